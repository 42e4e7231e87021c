"""The chunker on captions that its rules were not made with, of COCO's style.

They and their phrases were written down before any rule was tried on them, and no rule was changed
for them since.
"""

from input_pipeline.grounding import phrases

CAPTIONS = """
Man drinking wine at a restaurant | Man | wine | a restaurant
A boy flies a kite on the beach | A boy | a kite | the beach
Two cats watching birds through a window | Two cats | birds | a window
A man cuts pizza with a knife | A man | pizza | a knife
Woman cooking food on a stove | Woman | food | a stove
A girl brushes her teeth in front of a mirror | A girl | teeth | a mirror
People watch a parade from the sidewalk | People | a parade | the sidewalk
A dog chases sheep across a green field | A dog | sheep | a green field
A kitchen with a stove, sink and refrigerator | A kitchen | a stove | sink | refrigerator
A plate with a fork, knife and spoon on it | A plate | a fork | knife | spoon
Young child eating birthday cake with a spoon | Young child | birthday cake | a spoon
A bus drives past parked cars on a city street | A bus | parked cars | a city street
A skateboarder does tricks at a skate park | A skateboarder | tricks | a skate park
A man in a black jacket skis down a mountain | A man | a black jacket | a mountain
A horse pulls a wooden cart down a dirt road | A horse | a wooden cart | a dirt road
Several people fishing off a pier at sunset | Several people | a pier | sunset
A bathroom with a white toilet next to a bathtub | A bathroom | a white toilet | a bathtub
A cutting board with sliced vegetables and a knife | A cutting board | sliced vegetables | a knife
A bear walks through tall grass near a river | A bear | tall grass | a river
A group of kids plays soccer on a field | A group | kids | soccer | a field
"""


def test_precision_and_recall_on_unseen_captions():
    pipeline = phrases.make_pipeline("chunker")
    right = found = marked = 0
    for line in CAPTIONS.strip().splitlines():
        caption, *expected = (part.strip() for part in line.split("|"))
        texts = [phrase.text for phrase in phrases.find(caption, pipeline)]
        if texts != expected:
            print(f"{caption}: {texts}")
        right += len(set(texts) & set(expected))
        found, marked = found + len(texts), marked + len(expected)
    print(f"precision {right}/{found}, recall {right}/{marked}")
    assert right >= 0.9 * found and right >= 0.9 * marked

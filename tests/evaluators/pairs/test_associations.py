"""Sets of images that a cue means: what counts, and what is refused."""

import json

import numpy as np
import pytest

from evaluators.pairs.associations import prompt
from evaluators.shared.metrics import jaccard_of_best
from tests.evaluators.shared import toy

NAMES = [f"toy-{i}" for i in range(24)]


@pytest.fixture
def evaluate(tmp_path):
    def run(model, instances):
        path = tmp_path / "instances.jsonl"
        path.write_text("\n".join(map(json.dumps, instances)))
        source = toy.ToySource({"caption": [["?"]] * 24})
        return toy.evaluate("associations", source, model, instances=path)

    return run


def instance(cue, candidates, right):
    names = [NAMES[i] for i in candidates]
    return {"cue": cue, "candidates": names, "associations": [NAMES[i] for i in right]}


def test_the_index_is_that_of_the_scores(evaluate):
    model, rng = toy.random_model(), np.random.default_rng(0)
    instances, expected = [], {5: [], 12: [], 8: []}
    for cue, size in zip(toy.WORDS, [5, 12, 8] * 4):
        candidates = rng.choice(24, size, replace=False)
        instances.append(instance(cue.upper(), candidates, candidates[: 1 + size // 3]))
        text = toy.text_features(model, [prompt(cue)])[0]
        right = np.arange(size) < 1 + size // 3
        expected[size].append(jaccard_of_best(model["image"][candidates] @ text, right))
    assert evaluate(model, instances) == {
        "jaccard": pytest.approx(np.mean([x for some in expected.values() for x in some])),
        "jaccard_5_to_6": pytest.approx(np.mean(expected[5])),
        "jaccard_10_to_12": pytest.approx(np.mean(expected[12])),
    }


def test_prompts_are_as_published():
    assert [prompt(cue) for cue in ("Owl", "horse", "UNIT")] == ["An owl", "A horse", "An unit"]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"associations": []}, "line 2 is no instance"),
        ({"associations": ["toy-9"]}, "one that is no candidate"),
        ({"cue": None}, "line 2 is no instance"),
        ({"candidates": ["toy-0", "bee"]}, "1 of 3 candidates .* no image, such as 'bee'"),
    ],
)
def test_bad_instances_are_named(evaluate, changes, message):
    good = instance("cat", [0, 1], [0])
    with pytest.raises(ValueError, match=message):
        evaluate(toy.random_model(), [good, good | changes])

"""The sets on which models that write are judged: those of CogVLM (arXiv 2311.03079, appendix A.2)
and of LLaVA-1.5 (arXiv 2310.03744), a row for each, by name and split.

To add a set, add a row; its name is that of the folder, of the section and, in data/papers.json, of
the published numbers. docs/answers.md says how each is prepared.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Row(NamedTuple):
    """One set.

    Attributes:
      name: with its split; of the folder and the section.
      title: for tables.
      source: the source that reads it, and where it is to be had.
      settings: keys of the evaluator's section; with a `form` it can write predictions.
      metrics: which are reported, the main one first.
      secret: nobody but a server, or a judge, can score what is written: predictions alone.
      images: how many there are, where that is known.
    """

    name: str
    title: str
    source: str
    settings: Mapping[str, Any]
    metrics: tuple[str, ...]
    secret: bool = False
    images: int | None = None


_CAPTIONS = {"evaluator": "captions", "form": "coco"}
_NOCAPS = {**_CAPTIONS, "by": "domain"}
_VQA = {"evaluator": "vqa", "form": "vqa"}
_PLAIN = {**_VQA, "normalisation": "plain"}
_CHOICE = {"evaluator": "multiple_choice", "form": "mmmu"}
_TRANSCRIPTS = {"evaluator": "transcripts"}
_REFERRING = {"evaluator": "referring", "form": "vqa"}
_SOFT, _EXACT, _ACCURACY = ("vqa_accuracy",), ("exact_match",), ("accuracy",)
_JUDGED = ("judged",)  # no evaluator yields it
_KARPATHY = "captioning:kind=karpathy: cs.stanford.edu/people/karpathy/deepimagesent"

TEXTVQA = Row("textvqa_val", "TextVQA val", "vqa:kind=textvqa: textvqa.org",
              {**_VQA, "normalisation": "textvqa"}, _SOFT)  # fmt: skip
POPE = Row("pope", "POPE", "vqa:kind=pope: GitHub AoiDragon/POPE, COCO's val2014",
           {"evaluator": "yes_no", "form": "pope", "by": "category"}, ("accuracy", "f1"),
           images=500)  # fmt: skip


def _refcoco() -> tuple[Row, ...]:
    splits = {
        "refcoco": ("RefCOCO", ("val", "testA", "testB")),
        "refcocoplus": ("RefCOCO+", ("val", "testA", "testB")),
        "refcocog": ("RefCOCOg", ("val", "test")),
    }
    where = "referring:kind=refcoco: GitHub lichengunc/refer, COCO's train2014"
    return tuple(
        Row(f"{name}_{split}", f"{title} {split}", where, _REFERRING, ("accuracy@0.5",))
        for name, (title, those) in splits.items()
        for split in those
    )


COGVLM = (
    Row("nocaps_val", "NoCaps val", "captioning:kind=nocaps: nocaps.org",
        _NOCAPS, ("cider", "cider_out-domain"), images=4500),
    Row("nocaps_test", "NoCaps test", "captioning:kind=nocaps: nocaps.org",
        _CAPTIONS, ("cider", "cider_out-domain"), secret=True, images=10_600),
    Row("coco_karpathy_test", "COCO Karpathy test", _KARPATHY, _CAPTIONS, ("cider",), images=5000),
    Row("flickr30k_karpathy_test", "Flickr30k Karpathy test", _KARPATHY,
        _CAPTIONS, ("cider",), images=1000),
    Row("textcaps_val", "TextCaps val", "captioning:kind=textcaps: textvqa.org/textcaps",
        _CAPTIONS, ("cider",)),
    Row("textcaps_test", "TextCaps test", "captioning:kind=textcaps: textvqa.org/textcaps",
        _CAPTIONS, ("cider",), secret=True),
    Row("vqav2_val", "VQAv2 val", "vqa:kind=vqav2: visualqa.org", _VQA, _SOFT),
    Row("vqav2_testdev", "VQAv2 test-dev", "vqa:kind=vqav2: visualqa.org", _VQA, _SOFT,
        secret=True),
    Row("okvqa_val", "OK-VQA val", "vqa:kind=okvqa: okvqa.allenai.org", _VQA, _SOFT),
    TEXTVQA,
    Row("ocrvqa_test", "OCR-VQA test", "vqa:kind=ocrvqa: ocr-vqa.github.io", _PLAIN, _EXACT),
    Row("tdiuc_val", "TDIUC val", "vqa:kind=tdiuc: kushalkafle.com/projects/tdiuc.html",
        {**_VQA, "by": "category"}, (*_SOFT, "exact_match_of_groups")),
    Row("scienceqa_test", "ScienceQA test, with images",
        "multiple_choice:kind=scienceqa: scienceqa.github.io", _CHOICE, _ACCURACY),
    Row("seedbench", "SEED-Bench, images",
        "multiple_choice:kind=seedbench: Hugging Face AILab-CVC/SEED-Bench",
        {**_CHOICE, "form": "seed"}, _ACCURACY),
    Row("mmbench_dev", "MMBench dev", "choice_tables:kind=mmbench: GitHub open-compass/MMBench",
        {**_CHOICE, "form": "mmbench", "circular": True}, ("accuracy_circular", "accuracy")),
    POPE,
    Row("mmmu_val", "MMMU val", "choice_tables:kind=mmmu: Hugging Face MMMU/MMMU",
        _CHOICE, _ACCURACY),
    Row("mathvista_testmini", "MathVista testmini",
        "choice_tables:kind=mathvista: Hugging Face AI4Math/MathVista",
        {**_CHOICE, "by": "category"}, _ACCURACY),
    Row("mmvp", "MMVP", "multiple_choice:kind=mmvp,corrected=true: Hugging Face MMVP/MMVP",
        {**_CHOICE, "pairs": True}, ("accuracy_of_pairs", "accuracy"), images=300),
    Row("mmvet", "MM-Vet", "vqa:kind=mmvet: GitHub yuweihao/MM-Vet",
        {**_TRANSCRIPTS, "form": "mmvet"}, _JUDGED, secret=True, images=200),
    Row("llava_bench", "LLaVA-Bench (in the wild)",
        "vqa:kind=llava_bench: Hugging Face liuhaotian/llava-bench-in-the-wild",
        {**_TRANSCRIPTS, "form": "llava_bench"}, _JUDGED, secret=True, images=24),
    Row("touchstone", "TouchStone", "choice_tables:kind=touchstone: GitHub OFA-Sys/TouchStone",
        {**_TRANSCRIPTS, "form": "touchstone"}, _JUDGED, secret=True),
    *_refcoco(),
    Row("visual7w_test", "Visual7W test, pointing", "pointing: ai.stanford.edu/~yukez/visual7w",
        {"evaluator": "pointing", "form": "vqa"}, _ACCURACY),
    Row("flickr30k_entities_test", "Flickr30k Entities test",
        "referring:kind=flickr_entities: GitHub BryanPlummer/flickr30k_entities, its images",
        {"evaluator": "grounded_captions", "form": "coco"}, ("f1", "f1_loc", "cider"),
        images=1000),
)  # fmt: skip

LLAVA = (
    Row("gqa_testdev", "GQA testdev, balanced", "vqa:kind=gqa: cs.stanford.edu/people/dorarad/gqa",
        {**_PLAIN, "form": "gqa"}, _EXACT),
    TEXTVQA,
    POPE,
)  # fmt: skip

"""Checkpoints, configs and image towers known by name, against open_clip and timm.

Nothing is computed: modules are made without memory.
"""

import json
from pathlib import Path

import jax
import pytest

from big_vlp import trees
from big_vlp.convert.common import ConversionError, parts_to_state
from big_vlp.convert.dual import forms, published
from big_vlp.convert.dual import open_clip as ours

torch = pytest.importorskip("torch", reason="the oracles are packages of PyTorch's")
VOCABULARY = "sentencepiece:x"


def test_timms_towers_of_siglip():
    timm = pytest.importorskip("timm")
    known = [x for x in timm.list_models("vit_*_siglip_*") if "gap" not in x and "naflex" not in x]
    assert known and set(known) == set(ours.TIMM_MODELS)
    for name, row in ours.TIMM_MODELS.items():
        with torch.device("meta"):
            tower = timm.create_model(name, num_classes=0)
        block, patches = tower.blocks[0], tower.patch_embed
        activation = {"GELU": "gelu", "GELUTanh": "gelu_tanh"}[type(block.mlp.act).__name__]
        assert row == (
            tower.embed_dim,
            len(tower.blocks),
            block.attn.num_heads,
            block.mlp.fc1.out_features,
            patches.patch_size[0],
            patches.img_size[0],
            activation,
        ), name
        assert tower.norm.eps == 1e-6 and tower.cls_token is None
        pooled = tower.attn_pool.mlp.fc1.out_features, type(tower.attn_pool.mlp.act).__name__
        assert pooled == (row[3], type(block.mlp.act).__name__), name


def test_all_configs_of_open_clip():
    """Each is read, or refused in one line; the models of its ViTs are read."""
    open_clip = pytest.importorskip("open_clip")
    read, refused = set(), {}
    for path in sorted((Path(open_clip.__file__).parent / "model_configs").glob("*.json")):
        try:
            ours.from_config(json.loads(path.read_text()), VOCABULARY)
            read.add(path.stem)
        except ConversionError as error:
            refused[path.stem] = str(error)
            assert "\n" not in str(error)
    assert read >= {name.partition("/")[0] for name in published.PUBLISHED if "/" in name}
    assert read >= {"ViT-g-14", "ViT-e-14", "ViT-M-32-alt", "ViT-S-16", "ViT-B-16-plus-240"}
    for name, words in {
        "RN50": "ResNet",
        "coca_ViT-B-32": "CoCa",
        "convnext_base": "timm's 'convnext_base'",
        "EVA02-B-16": "timm's",
        "roberta-ViT-B-32": "text_cfg has what these towers have not: hf_model_name",
        "ViT-SO400M-16-SigLIP-i18n-256": "text_cfg has what these towers have not: proj_type",
    }.items():
        assert words in refused[name], refused[name]


@pytest.mark.parametrize(
    "name", ["ViT-B-32", "ViT-B-16-SigLIP", "ViT-SO400M-14-SigLIP2-378", "ViT-L-14-CLIPA"]
)
def test_whole_models_have_open_clips_keys_and_shapes(name):
    open_clip = pytest.importorskip("open_clip")
    config = open_clip.get_model_config(name)
    dual = ours.from_config(json.loads(json.dumps(config)), VOCABULARY)
    kind = open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP
    with torch.device("meta"):
        state = kind(**config).state_dict()
    form = forms.open_clip_form(state)
    parts = [*form.parts(dual).values()]
    found = jax.eval_shape(lambda x: parts_to_state(x, parts), dual.shapes)
    assert not trees.differences(found, {key: value for key, value in state.items()})
    ours.to_config(dual)


def test_published_models_are_open_clips():
    open_clip = pytest.importorskip("open_clip")
    for name, config in published.PUBLISHED.items():
        if name.startswith("cosmos"):
            continue
        architecture, tag = name.split("/")
        record = dict(open_clip.get_pretrained_cfg(architecture, tag))
        assert record, name
        model = dict(open_clip.get_model_config(architecture))
        if "quick_gelu" in record:
            model["quick_gelu"] = record["quick_gelu"]
        keys = ("mean", "std", "interpolation", "resize_mode")
        theirs = {"model_cfg": model, "preprocess_cfg": {key: record[key] for key in keys}}
        expected = ours.from_config(theirs, VOCABULARY)
        forms.compare("differs", name, ours.from_config(config, VOCABULARY), expected)
        for key in ("hf_tokenizer_name", "tokenizer_kwargs"):
            texts = [bool(x["text_cfg"].get(key)) for x in (model, config["model_cfg"])]
            assert texts[0] == texts[1], name

"""From a language model and an image tower through the recipe's stages to an exported model."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from big_vlp import trees
from big_vlp.convert.__main__ import main
from big_vlp.convert.files import write_state
from big_vlp.storage.model_dir import open_model
from big_vlp.train import train
from configs import cogvlm
from tests.big_vlp.convert.toy_cogvlm_files import LLAMA_CONFIG, eva_state, llama_state

pytestmark = pytest.mark.slow


def convert(*arguments):
    assert main([str(argument) for argument in arguments]) == 0


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    """A directory with what each command left: start, 1, 2, sft, lora, merged, exported, back."""
    root = tmp_path_factory.mktemp("line")
    write_state(root / "llama", llama_state(vocab_size=640))
    (root / "llama/config.json").write_text(json.dumps({**LLAMA_CONFIG, "vocab_size": 640}))
    safetensors.numpy.save_file(eva_state(width=32), root / "eva.safetensors")
    tokenizer = ("--tokenizer", "llama:scenes")
    eva = ("--eva", root / "eva.safetensors")
    convert("import", "cogvlm_parts", root / "llama", root / "start", *eva, *tokenizer)
    before = "start"
    for stage in ("1", "2", "sft", "lora"):
        stage_config = f"stage={stage},start={root / before}"
        config = cogvlm.get_config(f"{stage_config},runlocal")
        config.init = cogvlm.get_config(stage_config).init  # which a laptop's run leaves out
        config.method.model = open_model(root / "start").meta["config"]["method"]["model"]
        config.preprocess.update(image_size=8 if stage == "1" else 16, image_token_size=4)
        if stage == "2":
            config.plan.update(first_size=8, at_step=1)
        config.update(evals={}, total_steps=2, global_batch=4, log_every_steps=1)
        config.optim.warmup_steps = 1
        train(config, root / stage)
        before = stage
    convert("merge", "cogvlm", root / "lora", root / "merged")
    convert("export", "cogvlm", root / "merged", root / "exported")
    convert("import", "cogvlm", root / "exported", root / "back", *tokenizer)
    return root


def weights(line, name):
    return trees.flatten(open_model(line / name).load())


def moved(line, before, after):
    """Beginnings of the paths whose weights a run changed."""
    old, new = weights(line, before), weights(line, after)
    assert old.keys() <= new.keys()
    changed = [path for path in old if not np.array_equal(old[path], new[path])]
    return {"/".join(path.split("/")[: 3 if "language" in path else 1]) for path in changed}


def test_each_stage_goes_on_from_the_one_before_and_moves_what_it_should(line):
    experts, base = "language/blocks/vision", "language/blocks/language"
    assert moved(line, "start", "1") == moved(line, "1", "2") == {experts, "adapter"}
    assert {experts, base, "adapter", "vision"} < moved(line, "2", "sft")
    assert moved(line, "sft", "lora") == {"vision"}  # its MLPs; attention has factors
    factors = [path for path in weights(line, "lora") if path.endswith("lora_b")]
    assert len(factors) == 4 and all(np.any(weights(line, "lora")[path]) for path in factors)
    assert base in moved(line, "sft", "merged")


def test_what_comes_back_writes_the_same(line):
    """Factors in use, merged, and exported with the positions of the larger images."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, 1, 16, 16, 3)).astype(np.float32)
    types = np.zeros((2, 30), np.int32)
    types[:, 1:19] = 1
    tokens = rng.integers(3, 640, types.shape, dtype=np.int32)
    logits = {}
    for name in ("lora", "merged", "back"):
        stored = open_model(line / name)
        method = dataclasses.replace(stored.make_method("cogvlm"), dtype="float32")
        model = stored.load()
        assert stored.preprocess.image_size == 16

        def run(model, method=method):
            with method.lora_active():
                variables = trees.variables(model)
                return method.network.apply(variables, images, tokens, types, "static")

        logits[name] = np.asarray(jax.jit(run)(model))
    scale = np.abs(logits["lora"]).max()
    for name in ("merged", "back"):
        np.testing.assert_allclose(logits[name], logits["lora"], atol=1e-4 * scale)

"""The command for CogVLM: files to model directories and back, what it refuses, and its memory."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

import input_pipeline
from big_vlp import trees
from big_vlp.api.conversation import Conversation
from big_vlp.api.writer import Writer
from big_vlp.convert.__main__ import main
from big_vlp.convert.cogvlm.names import to_config, to_reference
from big_vlp.convert.common import Tensor
from big_vlp.convert.files import read_state, write_state
from big_vlp.methods import make_method
from big_vlp.models.cogvlm import CogVLM
from big_vlp.models.layers.positions import resize_grid
from big_vlp.storage.checkpoint import CheckpointError
from big_vlp.storage.frozen import save_frozen
from big_vlp.storage.model_dir import open_model, save_model
from input_pipeline.preprocess import Preprocess
from tests.big_vlp.convert.toy_cogvlm_files import LLAMA_CONFIG, eva_state, llama_state, sat_name

BF16 = np.dtype(ml_dtypes.bfloat16)
TOKENIZER = Path(input_pipeline.__file__).parent / "data" / "scenes_llama.model"
IMAGE = {"image_size": 28, "patch_size": 14, "width": 32, "layers": 2, "heads": 16, "mlp_dim": 20}
TEXT = {"vocab_size": 700, "width": 16, "layers": 3, "heads": 4, "mlp_dim": 24}
COGVLM = {"image": IMAGE, "text": TEXT, "adapter_mlp_dim": 28}
COGVLM2 = {
    "image": {**IMAGE, "image_size": 56, "downsample": True},
    "text": {**TEXT, "kv_heads": 2, "rope_base": 500000.0, "pad_id": 7},
    "adapter_mlp_dim": 28,
    "expert_qkv_bias": True,
}
VIT = {"image_size": 28, "patch_size": 14, "width": 32, "layers": 2, "heads": 2}
EVA02 = {**VIT, "mlp_dim": 20}
CATLIP = {"width": 32, "layers": 2, "heads": 2, "num_positions": 4}
OTHERS = {"template_version": "chat", "bos_token_id": 1, "torch_dtype": "bfloat16"}


def arbitrary(arguments=COGVLM, dtype=BF16, seed=0):
    size = arguments["image"]["image_size"]
    images, tokens = np.zeros((1, 1, size, size, 3)), np.zeros((1, 1), np.int32)
    shapes = jax.eval_shape(
        lambda: CogVLM(**arguments).init(jax.random.key(0), images, tokens, tokens)["params"]
    )
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(dtype), shapes)


def release(directory, arguments=COGVLM):
    """Writes what Hugging Face's hub holds."""
    write_state(directory, to_reference(arbitrary(arguments), arguments), shard_bytes=20000)
    (directory / "config.json").write_text(json.dumps(to_config(arguments, **OTHERS)))
    (directory / "tokenizer.model").write_bytes(TOKENIZER.read_bytes())
    return directory


@pytest.fixture
def released(tmp_path):
    return release(tmp_path / "released")


@pytest.fixture
def run(capsys):
    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        return code, capsys.readouterr().err

    return run


def same_bytes(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == value.dtype, key
        assert np.asarray(found[key]).tobytes() == np.asarray(value).tobytes(), key


def same_tree(found, expected):
    same_bytes(trees.flatten(found), trees.flatten(expected))


@pytest.mark.parametrize("arguments", [COGVLM, COGVLM2], ids=["cogvlm", "cogvlm2"])
def test_a_round_trip_changes_no_byte(tmp_path, run, arguments):
    released, model, back = (tmp_path / name for name in ("released", "model", "to/back"))
    release(released, arguments)
    assert len(list(released.glob("*.safetensors"))) > 2
    assert run("import", "cogvlm", released, model, "--context-length", 64) == (0, "")
    stored = open_model(model)
    same_tree(stored.load(), arbitrary(arguments))
    assert stored.preprocess.tokenizer == f"llama:{released / 'tokenizer.model'}"
    assert stored.preprocess.context_length == 64
    config = released / "config.json"
    assert run("export", "cogvlm", model, back, "--config-json", config) == (0, "")
    same_bytes(read_state(back), read_state(released))
    made = json.loads((back / "config.json").read_text())
    assert made.pop("architectures") == ["CogVLMForCausalLM"]
    assert made == json.loads(config.read_text())
    assert sorted(path.name for path in back.parent.iterdir()) == ["back"]


def test_an_imported_model_writes(released, tmp_path, run):
    assert run("import", "cogvlm", released, tmp_path / "model") == (0, "")
    image = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(image, "PNG")
    conversation = Conversation(Writer(str(tmp_path / "model")), [image.getvalue()])
    conversation.ask("What is this?", 3)
    assert len(conversation.history) == 1


def test_what_is_exported_of_a_run(tmp_path, run):
    """The average of what it trained, or the weights themselves, with what it froze."""
    params, average = arbitrary(), arbitrary(seed=1)
    is_trained = lambda path: path.startswith("language/blocks/vision")  # noqa: E731
    (trained, frozen), (averaged, _) = (trees.split(t, is_trained) for t in (params, average))
    method = {"name": "cogvlm", "model": COGVLM}
    preprocess = Preprocess(28, "llama:scenes", 64, "squash", image_token_size=14)
    directory = tmp_path / "run"
    save_model(directory, {"model": trained, "averaged": averaged}, method, preprocess, None)
    save_frozen(directory, frozen)
    for weights, part in (("model", trained), ("averaged", averaged), (None, averaged)):
        options = [] if weights is None else ["--weights", weights]
        assert run("export", "cogvlm", directory, tmp_path / str(weights), *options) == (0, "")
        expected = to_reference(trees.merge(part, frozen), COGVLM)
        same_bytes(read_state(tmp_path / str(weights)), expected)


def test_an_export_has_the_positions_of_the_size_it_was_trained_at(tmp_path, run):
    """Here the tower interpolates its table, there it takes the table as it is."""
    preprocess = Preprocess(56, "llama:scenes", 64, "squash", image_token_size=14)
    method, params = {"name": "cogvlm", "model": COGVLM}, arbitrary(dtype=np.float32)
    save_model(tmp_path / "run", {"model": params}, method, preprocess, None)
    options = ["--dtype", "bfloat16"]
    assert run("export", "cogvlm", tmp_path / "run", tmp_path / "hf", *options) == (0, "")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["torch_dtype"] == "bfloat16"
    assert config["vision_config"]["image_size"] == 56
    assert config["vision_config"]["num_positions"] == 17
    assert {tensor.dtype for tensor in read_state(tmp_path / "hf").values()} == {BF16}
    arguments = ["--tokenizer", "llama:scenes"]
    assert run("import", "cogvlm", tmp_path / "hf", tmp_path / "back", *arguments) == (0, "")
    table = open_model(tmp_path / "back").load()["vision"]["position_embedding"]
    expected = resize_grid(params["vision"]["position_embedding"], (4, 4))
    np.testing.assert_array_equal(table, np.asarray(expected).astype(BF16))


@pytest.mark.parametrize(
    "model, message",
    [
        ({"expert_parts": ()}, "its image tower is missing, and must be 'eva'"),
        ({"image": VIT, "tower": "vit", "adapter_mlp_dim": 16}, "is 'vit', and must be 'eva'"),
        ({"image": CATLIP, "tower": "catlip_vit", "adapter_mlp_dim": 16}, "is 'catlip_vit', and"),
        ({"image": EVA02, "tower": "eva02", "adapter_mlp_dim": 16}, "is 'eva02', and must be"),
    ],
    ids=["text", "vit", "catlip_vit", "eva02"],
)
def test_models_that_the_released_form_cannot_hold(tmp_path, run, model, message):
    """Whatever the size that they were trained at."""
    method = {"name": "cogvlm", "model": {**model, "text": TEXT}}
    token_size = model["image"].get("patch_size", 16) if "image" in model else None
    preprocess = Preprocess(
        4 * (token_size or 14), "llama:scenes", 64, "squash", image_token_size=token_size
    )
    shapes = make_method(**method, preprocess=preprocess).shapes[0]
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    save_model(tmp_path / "run", {"model": params}, method, preprocess, None)
    refused(run("export", "cogvlm", tmp_path / "run", tmp_path / "hf"), message)
    assert not (tmp_path / "hf").exists()


def test_a_checkpoint_of_sat(released, tmp_path, run):
    torch = pytest.importorskip("torch")
    state = {k: v for k, v in read_state(released).items() if not k.endswith("inv_freq")}
    weights = {sat_name(k): torch.tensor(np.float32(np.asarray(v))) for k, v in state.items()}
    file = tmp_path / "mp_rank_00_model_states.pt"
    torch.save({"module": {k: v.bfloat16() for k, v in weights.items()}, "iteration": 7}, file)
    options = ["--config-json", released / "config.json", "--tokenizer", "llama:scenes"]
    assert run("import", "cogvlm_sat", file, tmp_path / "model", *options) == (0, "")
    stored = open_model(tmp_path / "model")
    same_tree(stored.load(), arbitrary())
    assert stored.preprocess.tokenizer == "llama:scenes"


@pytest.fixture
def parts(tmp_path):
    """(directory of a language model, file of EVA-CLIP)."""
    directory, file = tmp_path / "llama", tmp_path / "eva.safetensors"
    write_state(directory, llama_state(vocab_size=640))
    (directory / "config.json").write_text(json.dumps({**LLAMA_CONFIG, "vocab_size": 640}))
    (directory / "tokenizer.model").write_bytes(TOKENIZER.read_bytes())
    safetensors.numpy.save_file(eva_state(width=32), file)
    return directory, file


def test_a_model_of_parts(parts, tmp_path, run):
    llama, eva = parts
    arguments = ["import", "cogvlm_parts", llama, tmp_path / "model", "--eva", eva]
    assert run(*arguments) == (0, "")
    stored = open_model(tmp_path / "model")
    model, method = stored.load(), stored.make_method("cogvlm")
    made, _ = method.shapes
    assert not trees.differences(made, model)
    same_tree(model["language"]["blocks"]["vision"], model["language"]["blocks"]["language"])
    head = llama_state(vocab_size=640)["lm_head.weight"]
    np.testing.assert_array_equal(model["language"]["head"]["kernel"], head.T)
    assert (stored.preprocess.image_size, stored.preprocess.image_token_size) == (8, 4)
    # With another size, positions are interpolated.
    arguments[3] = tmp_path / "larger"
    assert run(*arguments, "--image-size", 16) == (0, "")
    larger = open_model(tmp_path / "larger")
    assert larger.preprocess.image_size == 16
    same_tree(larger.load(), model)
    arguments[3] = tmp_path / "odd"
    assert (
        run(*arguments, "--image-size", 18)[1] == "error: --image-size 18: give a multiple of 4.\n"
    )


def drop_shard(released):
    sorted(released.glob("*.safetensors"))[1].unlink()


def drop_field(released):
    config = json.loads((released / "config.json").read_text())
    del config["rms_norm_eps"]
    (released / "config.json").write_text(json.dumps(config))


def shrink_vocabulary(released):
    for path in released.iterdir():
        path.unlink()
    release(released, {**COGVLM, "text": {**TEXT, "vocab_size": 100}})


@pytest.mark.parametrize(
    "change, message",
    [
        (drop_shard, r"names \d+ files, of which these are missing: \['model-00002-of-.*'\]"),
        (drop_field, "config.json of a CogVLM model has .'rms_norm_eps'.; these are missing"),
        (shrink_vocabulary, "tokenizer.model has 640 tokens, the language model 100"),
        (lambda d: (d / "config.json").unlink(), "config.json is missing"),
        (lambda d: (d / "config.json").write_text("{"), "config.json is no JSON"),
        (lambda d: (d / "config.json").write_text("[]"), "is no model's config.json"),
        (lambda d: (d / "tokenizer.model").unlink(), "no tokenizer.model: give --tokenizer llama"),
        (lambda d: (d / "tokenizer.model").write_text("x"), "is no SentencePiece model"),
        (lambda d: [f.unlink() for f in d.glob("model*")], "has none of"),
    ],
)
def test_directories_that_do_not_fit(released, tmp_path, run, change, message):
    change(released)
    refused(run("import", "cogvlm", released, tmp_path / "model"), message)
    assert not (tmp_path / "model").exists()


def refused(result, message):
    code, error = result
    assert code == 1
    assert error.startswith("error: ") and error.count("\n") == 1, error
    assert re.search(message, error), error


def test_what_else_is_refused(released, parts, tmp_path, run, monkeypatch):
    model, config = tmp_path / "model", released / "config.json"
    llama, _ = parts
    arguments = ["import", "cogvlm", released, model]
    for more, message in (
        (["--tokenizer", "clip"], "clip: it must read llama:PATH"),
        (["--tokenizer", "llama:nowhere"], "No SentencePiece model at .*nowhere"),
        (["--context-length", 0], "context_length=0"),
    ):
        refused(run(*arguments, *more), message)
    refused(run("import", "cogvlm", llama, model), r"has .*'vision_config.image_size'")
    refused(run("import", "cogvlm_parts", llama, model), "give --eva")
    refused(run("import", "cogvlm_sat", config, model), "give --config")
    (tmp_path / "file").write_text("")
    refused(run("import", "cogvlm", released, tmp_path / "file"), "is a file; give a directory")
    assert run(*arguments) == (0, "")
    refused(run(*arguments), "holds a model already")
    named = ["import", "cogvlm", released, tmp_path / "named", "--name"]
    refused(run(*named, "cogvlm-chit"), "Unknown published model 'cogvlm-chit'.*cogvlm-chat")
    assert run(*named, "cogvlm-chat") == (0, "")
    source = open_model(tmp_path / "named").meta["source"]
    assert source["name"] == "cogvlm-chat" and source["published"]["pope"]["accuracy"] == 0.879
    refused(run("export", "cogvlm", model, released), "released exists; give a new file or dir")
    refused(
        run("export", "cogvlm_parts", model, tmp_path / "x"), r"export is for catlip, .*cogvlm\."
    )
    refused(run("export", "cogvlm", model, tmp_path / "x", "--weights", "averaged"), "no 'average")
    refused(run("export", "cogvlm", tmp_path, tmp_path / "x"), "is no model directory")
    monkeypatch.setitem(sys.modules, "torch", None)
    more = ["--config-json", config, "--tokenizer", "llama:scenes"]
    refused(run("import", "cogvlm_sat", tmp_path / "file", tmp_path / "y", *more), "needs torch")
    assert not (tmp_path / "x").exists()


def test_lora_is_merged(tmp_path, run):
    """By `merge`, and by an export: the kernels are those of the plain formula."""
    lora = {"kernels": ("language/blocks/language/attn/out/kernel",), "rank": 2, "alpha": 3.0}
    params = arbitrary()
    out = params["language"]["blocks"]["language"]["attn"]["out"]
    rng = np.random.default_rng(2)
    a, b = (rng.normal(size=s).astype(np.float32) for s in ((3, 4, 4, 2), (3, 2, 16)))
    merged = out["kernel"].astype(np.float32) + 1.5 * np.einsum("lhdr,lrw->lhdw", a, b)
    section = {"name": "cogvlm", "model": COGVLM, "lora": lora}
    preprocess = Preprocess(
        28, resize="squash", tokenizer="llama:scenes", context_length=8, image_token_size=14
    )
    tuned = trees.unflatten(
        trees.flatten(params)
        | {f"language/blocks/language/attn/out/lora_{n}": x for n, x in (("a", a), ("b", b))}
    )
    save_model(tmp_path / "tuned", {"model": tuned}, section, preprocess, None)
    assert run("merge", "cogvlm", tmp_path / "tuned", tmp_path / "whole") == (0, "")
    stored = open_model(tmp_path / "whole")
    assert stored.make_method().lora is None and stored.preprocess == preprocess
    out["kernel"] = np.asarray(
        stored.load()["language"]["blocks"]["language"]["attn"]["out"]["kernel"]
    )
    same_tree(stored.load(), params)  # all else as it was
    assert out["kernel"].dtype == BF16
    np.testing.assert_allclose(out["kernel"].astype(np.float32), merged, rtol=2**-7)
    for model in ("tuned", "whole"):
        assert run("export", "cogvlm", tmp_path / model, tmp_path / f"hf_{model}") == (0, "")
    same_bytes(read_state(tmp_path / "hf_tuned"), read_state(tmp_path / "hf_whole"))
    refused(run("merge", "cogvlm", tmp_path / "whole", tmp_path / "x"), "trained without LoRA")
    refused(run("merge", "cosmos", tmp_path / "whole", tmp_path / "x"), "merge is for cogvlm")


def test_a_failed_write_leaves_nothing(tmp_path):
    def fail():
        raise OSError("disk is gone")

    model = {"a": np.zeros(3), "b": Tensor((3,), np.dtype(np.float32), fail)}
    preprocess = Preprocess(28)
    with pytest.raises(CheckpointError, match=r"Writing .* failed: disk is gone"):
        save_model(tmp_path, {"model": model}, {"name": "cogvlm"}, preprocess, None)
    assert not list(tmp_path.iterdir())
    save_model(tmp_path, {"model": {"a": np.zeros(3)}}, {"name": "cogvlm"}, preprocess, None)


MEASURED = """
import pathlib, sys, threading, time
from big_vlp.convert.__main__ import main

def anonymous():  # bytes that no file backs
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(status.split("RssAnon:")[1].split()[0])

def watch():
    global peak
    while True:
        peak = max(peak, anonymous())
        time.sleep(0.002)

small, large = map(pathlib.Path, sys.argv[1:])
peak = 0
threading.Thread(target=watch, daemon=True).start()
for source in (small, large):  # the first one loads libraries
    begin = peak = anonymous()
    for arguments in (
        ["import", "cogvlm", str(source / "released"), str(source / "model")],
        ["export", "cogvlm", str(source / "model"), str(source / "back")],
    ):
        assert main(arguments) == 0
print(peak - begin)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="measures memory as Linux tells")
@pytest.mark.slow
def test_only_one_parameter_is_in_memory(tmp_path):
    text = {**TEXT, "width": 256, "layers": 16, "heads": 16, "mlp_dim": 1536}
    large = {"image": IMAGE, "text": text, "adapter_mlp_dim": 28}
    for name, arguments in (("small", COGVLM), ("large", large)):
        release(tmp_path / name / "released", arguments)
    # Memory that is given back goes to the system at once.
    allocator = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    result = subprocess.run(
        [sys.executable, "-c", MEASURED, tmp_path / "small", tmp_path / "large"],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        env={**os.environ, **allocator},
    )
    same_bytes(read_state(tmp_path / "large/back"), read_state(tmp_path / "large/released"))
    used = int(result.stdout.split()[-1])
    sizes = [x.nbytes for x in jax.tree.leaves(arbitrary(large))]
    # An import holds one parameter, an export two: a file's bytes and what they mean.
    assert used < 3 * max(sizes) < 0.5 * sum(sizes)

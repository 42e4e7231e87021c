"""TorchScript archives, written here opcode by opcode: their tensors, and all that is refused."""

import pickle
import zipfile

import numpy as np
import pytest

from big_vlp.convert import torchscript
from big_vlp.convert.common import ConversionError
from big_vlp.convert.files import read_state

NUMBERS = np.arange(6, dtype=np.float32)
MEMORY = NUMBERS.tobytes()
STORAGE = b"ctorch\nFloatStorage\n"


def code(value) -> bytes:
    """Opcodes that make a plain value."""
    return pickle.dumps(value, 2)[2:-1]


def tensor(offset=0, shape=(2, 3), stride=(3, 1), storage=STORAGE) -> bytes:
    identity = b"(" + code("storage") + storage + code("0") + code("cpu") + code(6) + b"tQ"
    arguments = identity + code(offset) + code(shape) + code(stride)
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"


def module(*attributes: bytes) -> bytes:
    """A module, remembered as number 200, with pairs of name and value."""
    return b"c__torch__\nHolder\n)\x81r\xc8\x00\x00\x00}" + b"".join(attributes) + b"b"


def archive(tmp_path, content, data: bytes | None = MEMORY):
    path = tmp_path / "made.pt"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("made/data.pkl", b"\x80\x02" + content + b".")
        file.writestr("made/code/__torch__.py", "")
        if data is not None:
            file.writestr("made/data/0", data)
    return path


def refused(path, message):
    with pytest.raises(ConversionError, match=message):
        for value in read_state(path).values():
            np.asarray(value)


def test_tensors_are_views_of_their_memory(tmp_path):
    path = archive(tmp_path, module(code("a"), tensor(), b"s", code("b"), module(
        code("w"), tensor(1, (2, 2), (1, 2)), b"s", code("none"), tensor(6, (0, 2), (2, 1)), b"s",
    ), b"s"))  # fmt: skip
    assert torchscript.is_archive(path)
    found = {key: np.asarray(value) for key, value in read_state(path).items()}
    assert found.keys() == {"a", "b.w", "b.none"} and found["b.none"].shape == (0, 2)
    np.testing.assert_array_equal(found["a"], NUMBERS.reshape(2, 3))
    np.testing.assert_array_equal(found["b.w"], [[1, 3], [2, 4]])


@pytest.mark.parametrize(
    "given",
    [
        (0, (2,), (-1,)),
        (0, (9, 9), (10**9, -(10**9))),
        (-2, (2,), (1,)),
        (0, (-1,), (1,)),
        (0, (2, 3), (1,)),
        (0, (1.5,), (1,)),
    ],
)
def test_steps_that_lead_outside_the_memory(tmp_path, given):
    refused(archive(tmp_path, module(code("a"), tensor(*given), b"s")), "an impossible shape")


@pytest.mark.parametrize("given", [(4, (3,), (1,)), (0, (2, 3), (4, 1)), (0, (10**9,), (0,))])
def test_tensors_that_are_larger_than_their_memory(tmp_path, given):
    refused(archive(tmp_path, module(code("a"), tensor(*given), b"s")), "tensor 0 is cut off")


def test_damaged_archives(tmp_path):
    good = module(code("a"), tensor(), b"s")
    refused(archive(tmp_path, good[:-30]), "made.pt is no TorchScript archive of weights")
    refused(archive(tmp_path, good, None), "damaged at tensor 0")
    refused(archive(tmp_path, good, b"\0" * 7), "damaged at tensor 0")
    refused(archive(tmp_path, module(code("a"), tensor(storage=code(3)), b"s")), "unknown storage")
    holds_itself = module(code("me"), b"j\xc8\x00\x00\x00", b"s")
    refused(archive(tmp_path, holds_itself), "made.pt is no TorchScript archive")
    refused(archive(tmp_path, code(3)), "made.pt holds no weights")
    refused(archive(tmp_path, code("x") + b"Q"), "made.pt is no TorchScript archive")
    path = archive(tmp_path, good)
    whole = bytearray(path.read_bytes())
    at = whole.index(MEMORY)
    whole[at + 5] ^= 0xFF
    path.write_bytes(whole)
    refused(path, "damaged at tensor 0")
    path.write_bytes(whole[:at])
    refused(path, "made.pt")

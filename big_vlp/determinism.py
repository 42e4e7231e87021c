"""Runs that repeat to the bit on GPUs.

CPUs and TPUs always do. A GPU's fastest kernels add numbers up in the order in which threads come
(scatters of embedding gradients, cuDNN's attention backward), and XLA times several kernels for a
product and takes another one from start to start. Without both a step is slower, and attention
holds a weight for each pair of positions; by how much was not measured.
"""

import os
import re

_FLAG = "--xla_gpu_deterministic_ops"


def require() -> None:
    """Has XLA use kernels that repeat only, in this process and those that it starts.

    To be called before the first use of a device, when XLA reads its flags. Harmless without GPUs.
    """
    if not is_required():
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAG}=true".strip()


def is_required() -> bool:
    """Whether `require` was called, or the user's own XLA_FLAGS ask for the same."""
    given = re.findall(rf"{_FLAG}(?:=(\S*))?(?=\s|$)", os.environ.get("XLA_FLAGS", ""))
    return bool(given) and given[-1].lower() not in ("false", "0")

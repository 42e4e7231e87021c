"""What the backward pass of a block computes again, and what is kept for it."""

from collections.abc import Callable

import jax
from jax.ad_checkpoint import checkpoint_name

# What blocks name: queries, keys and values; what attention gives, before its output layer; what
# attention adds, before dropout; the first layer of the MLP, before its activation. cuDNN's kernel
# names nothing that its backward pass needs: it runs again also where "attention" is kept.
NAMES = ("qkv", "attention", "out", "hidden")
HOST = "host:"

POLICIES = {
    # Recompute everything inside a block: least memory.
    "full": None,
    # Keep the results of products with weights, recompute the cheap rest.
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def named(x, name: str):
    """`x` under one of NAMES."""
    return checkpoint_name(x, name)


def rematerialised(body: Callable, remat: str | None, unroll: bool | int) -> Callable:
    """`body` of a loop over blocks, with what its backward pass computes again.

    Args:
      remat: None, nothing; "full", everything; "dots", all but products with weights; or what to
        keep, some of NAMES with commas between. "host:" before a name keeps it in the host's
        memory, whence it comes back in time: "qkv,host:hidden".
      unroll: as of `stack.run_blocks`.

    Raises:
      ValueError: there is no such policy.
    """
    if remat is None:
        return body
    # In a loop XLA cannot merge the recomputation away, so it needs no barrier.
    return jax.checkpoint(body, policy=_policy(remat), prevent_cse=unroll is True)


def _policy(remat: str):
    if remat in POLICIES:
        return POLICIES[remat]
    given = [name.strip() for name in remat.split(",")]
    hosted = [name.removeprefix(HOST) for name in given if name.startswith(HOST)]
    kept = [name for name in given if not name.startswith(HOST)]
    wrong = [name for name in (*kept, *hosted) if name not in NAMES]
    if wrong or len({*kept, *hosted}) < len(given):
        raise ValueError(
            f"Unknown remat policy {remat!r}; choose None, {', '.join(map(repr, POLICIES))}, or "
            f"each once, with commas between, out of {', '.join(NAMES)}, also as {HOST}NAME."
        )
    if not hosted:
        return jax.checkpoint_policies.save_only_these_names(*kept)
    return jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=kept,
        names_which_can_be_offloaded=hosted,
        offload_src="device",
        offload_dst="pinned_host",
    )

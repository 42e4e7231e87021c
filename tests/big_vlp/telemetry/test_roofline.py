"""Compiled programs, read: FLOPs and bytes of what they do, and the time that needs at least."""

import jax
import jax.numpy as jnp
import pytest

from big_vlp.telemetry.hlo import Program
from big_vlp.telemetry.roofline import UnknownDeviceError, roofline, table

# A loop of three turns: a fusion that reads a matrix out of a stack and multiplies by it, and one
# that writes its result into a stack; a batch of four products, as TPUs write it; a kernel.
# ruff: noqa: E501
TEXT = """\
HloModule jit_step, entry_computation_layout={(bf16[3,8,16]{2,1,0})->f32[]}

%fused (p0: bf16[4,8], p1: bf16[3,8,16], p2: s32[]) -> bf16[4,16] {
  %p0 = bf16[4,8]{1,0} parameter(0)
  %p1 = bf16[3,8,16]{2,1,0:T(8,128)(2,1)} parameter(1)
  %p2 = s32[]{:T(128)} parameter(2)
  %c = s32[] constant(0)
  %s = bf16[1,8,16]{2,1,0} dynamic-slice(%p1, %p2, %c, %c), dynamic_slice_sizes={1,8,16}
  %b = bf16[8,16]{1,0} bitcast(%s)
  ROOT %d = bf16[4,16]{1,0} dot(%p0, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%written (q0: bf16[3,4,16], q1: bf16[4,16], q2: s32[]) -> bf16[3,4,16] {
  %q0 = bf16[3,4,16]{2,1,0} parameter(0)
  %q1 = bf16[4,16]{1,0} parameter(1)
  %q2 = s32[] parameter(2)
  %u = bf16[1,4,16]{2,1,0} bitcast(%q1)
  ROOT %w = bf16[3,4,16]{2,1,0} dynamic-update-slice(%q0, %u, %q2, %q2, %q2)
}

%body (arg: (s32[], bf16[4,8], bf16[3,8,16], bf16[3,4,16])) -> (s32[], bf16[4,8]) {
  %arg = (s32[], /*index=1*/bf16[4,8]{1,0}, bf16[3,8,16]{2,1,0}, bf16[3,4,16]) parameter(0)
  %i = s32[] get-tuple-element(%arg), index=0
  %x = bf16[4,8]{1,0} get-tuple-element(%arg), index=1
  %stack = bf16[3,8,16]{2,1,0} get-tuple-element(%arg), index=2
  %out = bf16[3,4,16]{2,1,0} get-tuple-element(%arg), index=3
  %y = bf16[4,16]{1,0} fusion(%x, %stack, %i), kind=kOutput, calls=%fused, metadata={op_name="jit(step)/block_7/dot_general"}
  %z = bf16[3,4,16]{2,1,0} fusion(%out, %y, %i), kind=kLoop, calls=%written
  ROOT %r = (s32[], bf16[4,8]{1,0}, bf16[3,8,16]{2,1,0}, bf16[3,4,16]) tuple(%i, %x, %stack, %z)
}

%condition (arg: (s32[], bf16[4,8], bf16[3,8,16], bf16[3,4,16])) -> pred[] {
  %arg = (s32[], bf16[4,8]{1,0}, bf16[3,8,16]{2,1,0}, bf16[3,4,16]) parameter(0)
  %i = s32[] get-tuple-element(%arg), index=0
  %n = s32[] constant(3)
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

%cheap (c0: bf16[4,8,16]) -> bf16[4,8] {
  %c0 = bf16[4,8,16]{2,1,0} parameter(0)
  ROOT %c1 = bf16[4,8]{1,0} slice(%c0), slice={[0:4], [0:8], [0:1]}
}

%dear (d0: bf16[4,8,16]) -> bf16[4,8] {
  %d0 = bf16[4,8,16]{2,1,0} parameter(0)
  ROOT %d1 = bf16[4,8]{1,0} negate(%d0)
}

ENTRY %main (a: bf16[4,8,16], b: bf16[4,16,2]) -> bf16[4,8,2] {
  %a = bf16[4,8,16]{2,1,0} parameter(0)
  %b = bf16[4,16,2]{2,1,0} parameter(1)
  %q = bf16[2,3,4,8]{3,2,1,0} parameter(2)
  %k = bf16[2,3,5,8]{3,2,1,0} parameter(3)
  %start = (s32[], bf16[4,8]{1,0}, bf16[3,8,16]{2,1,0}, bf16[3,4,16]) tuple()
  %loop = (s32[], bf16[4,8]{1,0}, bf16[3,8,16]{2,1,0}, bf16[3,4,16]) while(%start), condition=%condition, body=%body
  %buffer = bf16[64,64]{1,0:S(1)} custom-call(), custom_call_target="AllocateBuffer"
  %gathering = (bf16[4,8,16], bf16[8,8,16]) all-gather-start(%a), channel_id=1, dimensions={0}
  %gathered = bf16[8,8,16]{2,1,0} all-gather-done(%gathering)
  %which = s32[] constant(0)
  %chosen = bf16[4,8]{1,0} conditional(%which, %a, %a), branch_computations={%cheap, %dear}
  %splash_mha_dq.3 = bf16[2,3,4,8]{3,2,1,0} custom-call(%which, %q, %k, %k), custom_call_target="tpu_custom_call"
  %kernel = bf16[4,8]{1,0} custom-call(%a), custom_call_target="tpu_custom_call", backend_config={"custom_call_config":{"cost_estimate":{"bytes_accessed":"9","flops":"1000"}}}
  ROOT %batched = bf16[4,8,2]{2,1,0} convolution(%a, %b), window={size=4 stride=3 pad=3_3 rhs_reversal=1 lhs_dilate=4}, dim_labels=0bf_0io->0bf
}
"""


def test_loops_slices_kernels_and_batches_of_products():
    """Of branches the costliest counts, and what devices send each other does not."""
    found = {work.instruction.name: work for work in Program(TEXT).work()}
    assert found.keys() == {"y", "z", "d1", "splash_mha_dq.3", "kernel", "batched"}
    assert found["splash_mha_dq.3"].flops == 2 * 3 * (2 * 3) * 4 * 5 * 8
    y, z, kernel, batched = (found[name] for name in ("y", "z", "kernel", "batched"))
    assert y.times == z.times == 3 and y.flops == 3 * 2 * 4 * 8 * 16
    assert y.bytes == 3 * (2 * (4 * 8 + 8 * 16 + 4 * 16) + 4)  # of the stack one matrix
    assert z.bytes == 3 * (2 * (2 * 4 * 16 + 4 * 16) + 4)  # of the stack what is written
    assert kernel.flops == 1000 and kernel.bytes == 2 * (4 * 8 * 16 + 4 * 8)
    assert batched.flops == 4 * 2 * 8 * 16 * 2
    assert y.instruction.label == "jit(step)/block_N/dot_general"


def test_programs_of_this_device():
    def step(x, weights):
        def block(x, w):
            return jnp.tanh(x @ w), x[0]

        return jax.lax.scan(block, x, weights)

    lowered = jax.jit(step).lower(jnp.ones((8, 32)), jnp.ones((5, 32, 32)))
    work = Program(lowered.compile().as_text()).work()
    assert sum(w.flops for w in work) == 5 * 2 * 8 * 32 * 32

    def pool(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME")

    lowered = jax.jit(pool).lower(jnp.ones((2, 3, 8, 8)), jnp.ones((4, 3, 3, 3)))
    work = Program(lowered.compile().as_text()).work()
    inside = 11  # of 4 x 3 pairs along an axis; the last row and column lie in the padding
    assert sum(w.flops for w in work) == 2 * 2 * 3 * 4 * inside**2


def test_the_longer_of_products_and_memory():
    found = roofline(TEXT, "TPU v5 lite")
    assert found.peak == 197e12
    assert found.seconds == pytest.approx(sum(kind.seconds for kind in found.kinds))
    assert found.product_seconds == pytest.approx(sum(k.flops for k in found.kinds) / 197e12)
    assert found.seconds >= max(found.product_seconds, found.memory_seconds)
    assert found.share(found.peak * found.seconds) == pytest.approx(1)
    seconds = [kind.seconds for kind in found.kinds]
    assert seconds == sorted(seconds, reverse=True)
    assert len(table(found, rows=2).splitlines()) == 3


def test_what_cannot_be_read():
    with pytest.raises(ValueError, match="no ENTRY"):
        roofline("HloModule nothing", "TPU v4")
    with pytest.raises(UnknownDeviceError, match="'cpu' are not known"):
        roofline(TEXT, "cpu")


SENDING = """\
HloModule jit_step

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %s = f32[] add(%a, %b)
}

%gather (p0: f32[2,8]) -> f32[4,8] {
  %p0 = f32[2,8]{1,0} parameter(0)
  ROOT %g = f32[4,8]{1,0:S(1)} all-gather(%p0), channel_id=1, replica_groups={{0,1}}
}

%body (arg: (s32[], f32[2,8])) -> (s32[], f32[2,8]) {
  %arg = (s32[], f32[2,8]{1,0}) parameter(0)
  %x = f32[2,8]{1,0} get-tuple-element(%arg), index=1
  %i = s32[] get-tuple-element(%arg), index=0
  %first = f32[4,8]{1,0} all-gather(%x), channel_id=1, replica_groups={{0,1}}
  %piece = f32[4,8]{1,0} fusion(%x), kind=kCustom, calls=%gather
  %second = f32[4,8]{1,0} all-gather(%x), channel_id=2, replica_groups={{0,1}}
  ROOT %r = (s32[], f32[2,8]{1,0}) tuple(%i, %x)
}

%condition (arg: (s32[], f32[2,8])) -> pred[] {
  %arg = (s32[], f32[2,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%arg), index=0
  %n = s32[] constant(5)
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (x: (s32[], f32[2,8]), y: bf16[16,16]) -> bf16[16,16] {
  %x = (s32[], f32[2,8]{1,0}) parameter(0)
  %y = bf16[16,16]{1,0} parameter(1)
  %loop = (s32[], f32[2,8]{1,0}) while(%x), condition=%condition, body=%body
  %sum.1 = (bf16[16,16]{1,0}, f32[]) all-reduce(%y, %y), channel_id=3, to_apply=%sum
  %start = (bf16[2]{0}, bf16[2]{0}, u32[], u32[]) collective-permute-start(%y), channel_id=4
  %done = bf16[2]{0} collective-permute-done(%start)
  ROOT %out = bf16[16,16]{1,0} get-tuple-element(%sum.1), index=0
}
"""


def test_what_devices_send_counts_as_often_as_its_loop_turns():
    """And the pieces of one once; it takes no time where nothing is fused with it."""
    assert Program(SENDING).collectives() == [
        ("all-gather", "f32[4,8]", 10, 10 * 4 * 8 * 4),
        ("all-reduce", "bf16[16,16]", 1, 2 * 16 * 16),
        ("collective-permute", "bf16[2]", 1, 4),
    ]
    plain = SENDING.replace(
        "  %piece = f32[4,8]{1,0} fusion(%x), kind=kCustom, calls=%gather\n", ""
    )
    assert roofline(plain, "TPU v5e").seconds == 0 < roofline(SENDING, "TPU v5e").seconds

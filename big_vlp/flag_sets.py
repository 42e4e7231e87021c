"""Flags of XLA and of libtpu by name, for `config.xla_flags`; none is set by default.

What each is for is beside it. They are those that others run large models with (MaxText's library
for TPUs, NVIDIA's guide to JAX for GPUs); whether one helps a model here is to be measured. A
compiler ends the process at a flag that it does not know.
"""

import difflib
import os

TPU, GPU = "LIBTPU_INIT_ARGS", "XLA_FLAGS"

SETS: dict[str, tuple[str, tuple[str, ...]]] = {
    # Gathers of weights (mesh.fsdp) run beside the products that come before they are needed.
    "tpu_overlap_gathers": (
        TPU,
        (
            "--xla_tpu_enable_async_collective_fusion=true",
            "--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true",
            "--xla_tpu_enable_async_collective_fusion_multiple_steps=true",
            "--xla_tpu_overlap_compute_collective_tc=true",
            "--xla_enable_async_all_gather=true",
        ),
    ),
    # A gather of weights (mesh.fsdp) and its product stay whole. Else XLA takes both apart, to send
    # beside products, and large results are written in parts and added up; gathers that run beside
    # other products hide as well where a device has work enough for it.
    "tpu_whole_products": (TPU, ("--xla_jf_spmd_threshold_for_windowed_einsum_mib=1000000",)),
    # More on-chip memory for each fusion: dense models that products bound, on v6e.
    "tpu_large_vmem": (TPU, ("--xla_tpu_scoped_vmem_limit_kib=98304",)),
    # Gradients are summed over slices (mesh.slices) while the backward pass goes on.
    "tpu_overlap_slices": (
        TPU,
        (
            "--xla_tpu_enable_data_parallel_all_reduce_opt=true",
            "--xla_tpu_data_parallel_opt_different_sized_ops=true",
        ),
    ),
    # Gradients lie in memory as their reduce-scatter wants them.
    "tpu_scatter_layout": (
        TPU,
        (
            "--xla_tpu_use_minor_sharding_for_major_trivial_input=true",
            "--xla_tpu_relayout_group_size_threshold_for_reduce_scatter=1",
            "--xla_tpu_assign_all_reduce_scatter_layout=true",
        ),
    ),
    # What remat keeps in the host's memory moves there and back beside the products.
    "tpu_overlap_offload": (
        TPU,
        (
            "--xla_tpu_enable_all_experimental_scheduler_features=true",
            "--xla_tpu_enable_scheduler_memory_pressure_tracking=true",
            "--xla_tpu_host_transfer_overlap_limit=24",
            "--xla_tpu_aggressive_opt_barrier_removal=ENABLED",
            "--xla_lhs_prioritize_async_depth_over_stall=ENABLED",
            "--xla_tpu_enable_ag_backward_pipelining=true",
            "--xla_should_allow_loop_variant_parameter_in_chain=ENABLED",
            "--xla_should_add_loop_invariant_op_in_chain=ENABLED",
            "--xla_max_concurrent_host_send_recv=100",
            "--xla_tpu_scheduler_percent_shared_memory_limit=100",
            "--xla_latency_hiding_scheduler_rerun=2",
        ),
    ),
    # A chip that computes wrongly is found: each check repeats work, so a run is slower.
    "tpu_check_chips": (
        TPU,
        (
            "--xla_tpu_enable_sdc_checker=true",
            "--xla_tpu_sdc_check_halt_on_detection=true",
            "--xla_tpu_sdc_replicate_llo=true",
            "--xla_tpu_sdc_check_repeat_count=5",
        ),
    ),
    # Several GPUs: collectives run beside products, in few large pieces.
    "gpu_overlap": (
        GPU,
        (
            "--xla_gpu_enable_latency_hiding_scheduler=true",
            "--xla_gpu_enable_pipelined_all_gather=true",
            "--xla_gpu_enable_pipelined_reduce_scatter=true",
            "--xla_gpu_enable_pipelined_all_reduce=true",
            "--xla_gpu_enable_while_loop_double_buffering=true",
            "--xla_gpu_all_reduce_combine_threshold_bytes=1073741824",
            "--xla_gpu_all_gather_combine_threshold_bytes=1073741824",
            "--xla_gpu_reduce_scatter_combine_threshold_bytes=134217728",
        ),
    ),
    # One GPU: all products by Triton, and more of its tilings are tried. Compiles for long.
    "gpu_search_kernels": (
        GPU,
        (
            "--xla_gpu_triton_gemm_any=true",
            "--xla_gpu_exhaustive_tiling_search=true",
        ),
    ),
}


def require(names) -> None:
    """Sets the flags of some sets, in this process and those that it starts.

    To be called before the first use of a device, when XLA and libtpu read them. A flag that the
    user's own variable has stays as it is there. Sets for other devices do nothing.

    Args:
      names: of SETS, in a list or as "NAME,NAME".

    Raises:
      ValueError: there is no such set.
    """
    for name in names.split(",") if isinstance(names, str) else names:
        if name not in SETS:
            nearest = difflib.get_close_matches(str(name), SETS, 1)
            meant = f"did you mean {nearest[0]!r}?" if nearest else f"choose of {', '.join(SETS)}."
            raise ValueError(f"there is no set of flags {name!r}; {meant}")
        variable, flags = SETS[name]
        given = os.environ.get(variable, "")
        own = {flag.partition("=")[0] for flag in given.split()}
        new = [flag for flag in flags if flag.partition("=")[0] not in own]
        os.environ[variable] = " ".join([*given.split(), *new])

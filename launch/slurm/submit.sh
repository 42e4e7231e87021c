#!/usr/bin/env bash
# Submits train or evaluate to SLURM, with a copy of the working tree: what you edit later changes nothing.
#
#   launch/slurm/submit.sh --nodes 2 --gpus-per-node 8 [OPTIONS] -- train --config FILE --workdir DIR
#   launch/slurm/submit.sh --gpus-per-node 1 [OPTIONS] -- evaluate --follow --config FILE --workdir DIR
#
#   --nodes N           default 1
#   --gpus-per-node N   default 0: CPUs alone
#   --per-gpu           one process for each GPU; otherwise one for each node
#   --tasks-per-node N  so many processes on each node, of CPU runs
#   --sbatch FLAG       a further flag of sbatch, as in --sbatch=--partition=a100; repeatable
#   --restarts N        after a crash, in a row that bring no new checkpoint; default 3
#   --grace N           seconds that tasks have, once one has ended; then SIGKILL; default 90
#   --dry-run           print the commands only
#
# After a preemption, a lost node, and two minutes before the time limit, the job is requeued, and goes on.
# PYTHON names the interpreter on the nodes, default python. The job's log is DIR/slurm-JOB.log.
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

nodes=1 gpus=0 tasks=1 per_gpu='' flags=()
while (($#)) && [[ $1 != -- ]]; do
  case $1 in
    --nodes) take_number nodes "$@" && shift ;;
    --gpus-per-node) take_number gpus "$@" && shift ;;
    --tasks-per-node) take_number tasks "$@" && shift ;;
    --restarts) take_number restarts "$@" && shift ;;
    --grace) take_number grace "$@" && shift ;;
    --sbatch=*) flags+=("${1#*=}") ;;
    --per-gpu) per_gpu=1 ;;
    --dry-run) dry_run=1 ;;
    -h | --help) usage ;;
    *) fail "$1 is no option of submit.sh; --help lists them." ;;
  esac
  shift
done
read_program "${@:2}"
check_config
devices=
if [[ $per_gpu ]]; then
  ((gpus > 0)) || fail "--per-gpu needs --gpus-per-node."
  tasks=$gpus
elif ((gpus > 0)); then
  ((tasks == 1)) || fail "With GPUs give --per-gpu instead of --tasks-per-node."
  devices=$(seq -s, 0 $((gpus - 1))) # else jax gives a task only the GPU of its own number
fi

# The files of the working tree, and links to the rest of the checkout, such as data/ and runs/.
copy_tree() {
  local entry
  mkdir -p "$1"
  pack | tar -x -C "$1"
  for entry in "$root"/*; do
    if [[ ! -e $1/${entry##*/} ]]; then ln -s "$entry" "$1/"; fi
  done
}

code=$root/runs/code/$program-$(date +%Y%m%d-%H%M%S)-$$
log=slurm-%j.log
if [[ $workdir != *://* ]]; then
  log=$workdir/$log
  run mkdir -p "$workdir"
fi
if [[ $dry_run ]]; then
  echo "# to $code: the working tree, commit $(commit | head -1)"
else
  copy_tree "$code"
fi
job=(sbatch --job-name "big_vlp-$program" --nodes "$nodes" --ntasks-per-node "$tasks")
if ((gpus > 0)); then job+=(--gpus-per-node "$gpus"); fi
job+=(--output "$log" ${flags[@]+"${flags[@]}"} "$root/launch/slurm/job.sh")
run "${job[@]}" "$code" "$restarts" "$grace" "${devices:--}" "$program" "${arguments[@]}"

#!/usr/bin/env bash
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120
# The job that submit.sh submits: job.sh CODE RESTARTS GRACE DEVICES train|evaluate ARGUMENTS
# shellcheck source=../common.sh
source "$1/launch/common.sh"
restarts=$2 grace=$3 devices=$4
read_program "${@:5}"
cd "$root"
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
if [[ $devices != - ]]; then export JAX_LOCAL_DEVICE_IDS=$devices; fi
trap '' TERM # the run ends first, and then this

say "job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, start ${SLURM_RESTART_COUNT:-0}, commit $(<COMMIT)"
is_running() { scontrol show job -o "$SLURM_JOB_ID" | grep -q ' JobState=RUNNING '; }

known=$(progress)
while true; do
  # Once one task has ended the others have `grace`, then SIGKILL. The status is the largest.
  status=0
  srun --kill-on-bad-exit=0 --wait="$grace" --label --cpu-bind=none \
    "$python" -m "big_vlp.$program" "${arguments[@]}" || status=$?
  say "ended with $status."
  case $(verdict "$status") in
    whole) exit 0 ;;
    user) exit 1 ;;
    told)
      # By the time limit or a preemption. After scancel the job runs no more, and ends here.
      if is_running; then
        say "requeued; it goes on from its checkpoint."
        trap - TERM
        scontrol requeue "$SLURM_JOB_ID"
        exec sleep 60 # until SLURM ends this script
      fi
      exit "$status"
      ;;
    crash)
      is_running || exit "$status"
      may_restart || exit "$status"
      sleep "$((1 << fruitless))"
      ;;
  esac
done

#!/usr/bin/env bash
# What tpu.sh runs on a TPU VM, in ~/big_vlp: code/ (the working tree), venv/, run/ (this run's log).
# Everything can be asked twice: gcloud repeats a command whose connection failed.
#
#   worker.sh install [COMMAND]        after the tree came: the packages, then a command of the user's
#   worker.sh start ID train|evaluate ARGUMENTS
#   worker.sh status                   @status running, or an exit status
#   worker.sh log OFFSET               @log NEXT_OFFSET, then what came after OFFSET bytes
#   worker.sh steps WORKDIR            the steps in a work directory that lies on this machine
#   worker.sh end TERM|KILL
set -euo pipefail
home=${BIG_VLP_HOME:-$HOME/big_vlp}
run=$home/run
mkdir -p "$run"

alive() { [[ -s $run/pid ]] && kill -0 -- "-$(<"$run/pid")" 2>/dev/null; }

case $1 in
  install)
    cd "$home/code"
    if [[ ! -x $home/venv/bin/python ]]; then
      PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv
      python3 -m uv venv --quiet --clear --python 3.11 "$home/venv" # the images' own is older
    fi
    python3 -m uv pip install --quiet --python "$home/venv/bin/python" -e ".[tpu,gcs]"
    if [[ ${2-} ]]; then bash -c "$2"; fi
    ;;
  start)
    if [[ -s $run/id && $(<"$run/id") == "$2" ]]; then exit 0; fi
    if alive; then kill -KILL -- "-$(<"$run/pid")"; fi
    rm -f "$run/status" "$run/pid" "$run/program"
    printf '%s\n' "$2" >"$run/id"
    cd "$home/code"
    echo "$(hostname): big_vlp.$3, commit $(<COMMIT)" >"$run/log"
    # shellcheck disable=SC2016  # the inner shell's
    setsid nohup bash -c '
      run=$1 && shift
      "$@" &
      echo $! >"$run/program"
      echo $$ >"$run/pid"
      status=0
      wait $! || status=$?
      echo "$status" >"$run/status"
    ' worker "$run" "$home/venv/bin/python" -m "big_vlp.$3" "${@:4}" >>"$run/log" 2>&1 </dev/null &
    until [[ -s $run/pid ]]; do sleep 0.1; done
    ;;
  status)
    # No status, and no process: the machine was restarted, or all was killed.
    if alive && [[ ! -s $run/status ]]; then
      echo "@status running"
    else
      echo "@status $(cat "$run/status" 2>/dev/null || echo 137)"
    fi
    ;;
  log)
    size=$(stat -c %s "$run/log")
    echo "@log $size"
    tail -c "+$(($2 + 1))" "$run/log" | head -c "$((size - $2))"
    ;;
  steps)
    # shellcheck disable=SC2010  # only numbers are kept
    ls "$2/checkpoints/" "$2/evaluate/" 2>/dev/null | grep -oE '^[0-9]+(\.json)?$' | sort | tr '\n' ' ' || true
    ;;
  end)
    # SIGTERM to the program alone, SIGKILL to the workers of its loader, too.
    if alive && [[ $2 == KILL ]]; then kill -KILL -- "-$(<"$run/pid")"; fi
    if alive && [[ $2 == TERM ]]; then kill -TERM "$(<"$run/program")"; fi
    ;;
esac

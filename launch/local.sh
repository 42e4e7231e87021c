#!/usr/bin/env bash
# Runs train or evaluate as N processes of this machine, and again after a crash.
#
#   launch/local.sh [OPTIONS] -- train --config FILE --workdir DIR
#   launch/local.sh [OPTIONS] -- evaluate --follow --config FILE --workdir DIR
#
#   --processes N   how many; default 1, which is right for one machine with any number of GPUs
#   --per-gpu       process i has GPU i alone
#   --restarts N    after a crash, in a row that bring no new checkpoint; default 3
#   --grace N       seconds that the others have, once one process has ended; then SIGKILL; default 90
#   --dry-run       print the commands only
#
# The output of process 0 is shown as it is, that of the others with their number before each line.
# SIGTERM and Ctrl-C go to all: the run is saved, and this ends with 143 or 130. An error that you
# must mend ends it with 1. PYTHON names the interpreter, default python.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

processes=1 per_gpu=
while (($#)) && [[ $1 != -- ]]; do
  case $1 in
    --processes) take_number processes "$@" && shift ;;
    --restarts) take_number restarts "$@" && shift ;;
    --grace) take_number grace "$@" && shift ;;
    --per-gpu) per_gpu=1 ;;
    --dry-run) dry_run=1 ;;
    -h | --help) usage ;;
    *) fail "$1 is no option of local.sh; --help lists them." ;;
  esac
  shift
done
((processes > 0)) || fail "--processes needs 1 or more."
read_program "${@:2}"
command=("$python" -m "big_vlp.$program" "${arguments[@]}")
pids=() writers=() statuses=() told='' pipes=

free_port() {
  "$python" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'
}

start() {
  local i environment port
  if ((processes > 1)); then port=$(free_port); fi
  pids=() writers=()
  for ((i = 0; i < processes; i++)); do
    environment=("PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}" "JAX_NUM_PROCESSES=$processes")
    if ((processes > 1)); then
      environment+=("JAX_PROCESS_ID=$i" "JAX_COORDINATOR_ADDRESS=127.0.0.1:$port")
    fi
    if [[ $per_gpu ]]; then environment+=("JAX_LOCAL_DEVICE_IDS=$i"); fi
    if [[ $dry_run ]]; then
      quoted "${environment[@]}" "${command[@]}"
    elif ((i == 0)); then
      env "${environment[@]}" "${command[@]}" </dev/null &
      pids+=($!)
    else
      rm -f "$pipes/$i"
      mkfifo "$pipes/$i"
      sed -u "s/^/[$i] /" <"$pipes/$i" &
      writers+=($!)
      env "${environment[@]}" "${command[@]}" </dev/null >"$pipes/$i" 2>&1 &
      pids+=($!)
    fi
  done
}

# Each process is a group, with the workers of its loader.
kill_all() {
  local pid
  for pid in ${pids[@]+"${pids[@]}"}; do kill -KILL -- "-$pid" 2>/dev/null || true; done
}

tell() {
  told=$1
  kill -s "$1" "${pids[@]}" 2>/dev/null || true
}

# Waits for all processes and sets their statuses; once one has ended, the others have `grace`.
wait_for_all() {
  local pid status timer='' left=" ${pids[*]} "
  statuses=()
  while [[ $left =~ [0-9] ]]; do
    status=0
    # Of several that end at once `wait -n` tells of one, and then waits for the others for ever.
    for pid in $left $timer ''; do
      if [[ $pid ]] && ! kill -0 "$pid" 2>/dev/null; then break; fi
    done
    if [[ $pid ]]; then
      wait "$pid" || status=$?
    else
      # shellcheck disable=SC2086  # numbers
      wait -n -p pid $left $timer 2>/dev/null || status=$?
      if [[ ! ${pid-} ]]; then # a signal, which was passed on; or all of them are stopped
        sleep 0.2
        continue
      fi
    fi
    if [[ $pid == "$timer" ]]; then
      say "still there ${grace} s after another process ended, so SIGKILL:$left"
      timer=''
      kill_all
      continue
    fi
    left=${left/ $pid / }
    statuses+=("$status")
    if [[ ! $timer ]]; then
      sleep "$grace" &
      timer=$!
    fi
  done
  if [[ $timer ]]; then
    kill "$timer" 2>/dev/null || true
    wait "$timer" 2>/dev/null || true
  fi
  kill_all # what a killed process left behind
  for pid in ${writers[@]+"${writers[@]}"}; do wait "$pid" || true; done
}

if [[ $dry_run ]]; then
  start
  exit
fi
set -m # each process a group of its own
trap 'tell TERM' TERM HUP
trap 'tell INT' INT
pipes=$(mktemp -d)
trap 'kill_all; rm -rf "$pipes"' EXIT
say "commit $(commit)"
known=$(progress)
while true; do
  start
  if [[ $told ]]; then tell "$told"; fi
  wait_for_all
  result=$(verdict "${statuses[@]}")
  if [[ $told ]]; then
    case $result in
      whole) exit 0 ;;
      user | crash) exit 1 ;; # not all is saved
    esac
    if [[ $told == INT ]]; then exit 130; fi
    exit 143
  fi
  case $result in
    whole) exit 0 ;;
    user) exit 1 ;;
    told) exit 143 ;;
    crash)
      say "crashed (statuses, in order of their ends: ${statuses[*]})."
      may_restart || exit 1
      sleep "$((1 << fruitless))"
      if [[ $told ]]; then exit 143; fi
      ;;
  esac
done

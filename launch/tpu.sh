#!/usr/bin/env bash
# Runs train or evaluate on Cloud TPU VMs: asks for the slices, waits for them, installs the working
# tree on all workers, starts the run, shows process 0's log, and deletes the slices at the end. After
# a preemption it asks anew and the run goes on; after a crash it starts again on the same slices.
#
#   launch/tpu.sh --name NAME --zone ZONE --type v5litepod-16 [OPTIONS] -- train --config FILE --workdir DIR
#   launch/tpu.sh --name NAME --zone ZONE --existing [OPTIONS] -- evaluate --follow --config FILE --workdir DIR
#
#   --name NAME       of the queued resource and its slices (NAME-0, NAME-1, … of several)
#   --type TYPE       accelerator type
#   --version NAME    runtime version; default: that of the type
#   --slices N        default 1
#   --spot            preemptible, and cheaper
#   --create FLAG     a further flag of `queued-resources create`, such as --create=--reserved; repeatable
#   --existing        NAME is a TPU VM that there is; it is neither created nor deleted
#   --keep            do not delete the slices at the end; you go on paying
#   --setup COMMAND   run on each worker in the working tree before the start, such as a mount
#   --restarts N      after a crash, in a row that bring no new checkpoint; default 3
#   --grace N         seconds that workers have, once one has ended; then SIGKILL; default 90
#   --poll N          seconds between two looks at the workers; default 20
#   --dry-run         print the commands only
#
# Ctrl-C saves and ends the run, then deletes the slices. All of it needs this shell to stay: use tmux.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

name='' zone='' type='' version='' slices=1 spot='' existing='' keep='' setup='' poll=20 create_flags=()
while (($#)) && [[ $1 != -- ]]; do
  case $1 in
    --name) take name "$@" && shift ;;
    --zone) take zone "$@" && shift ;;
    --type) take type "$@" && shift ;;
    --version) take version "$@" && shift ;;
    --slices) take_number slices "$@" && shift ;;
    --setup) take setup "$@" && shift ;;
    --restarts) take_number restarts "$@" && shift ;;
    --grace) take_number grace "$@" && shift ;;
    --poll) take_number poll "$@" && shift ;;
    --create=*) create_flags+=("${1#*=}") ;;
    --spot) spot=1 ;;
    --existing) existing=1 ;;
    --keep) keep=1 ;;
    --dry-run) dry_run=1 ;;
    -h | --help) usage ;;
    *) fail "$1 is no option of tpu.sh; --help lists them." ;;
  esac
  shift
done
[[ $name =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] || fail "--name needs small letters, digits and -, not '$name'."
[[ $zone ]] || fail "--zone is missing, such as us-central2-b."
[[ $type || $existing ]] || fail "--type is missing, such as v5litepod-16; or --existing."
if [[ ! $version ]]; then
  case $type in
    v6e-*) version=v2-alpha-tpuv6e ;;
    v5p-*) version=v2-alpha-tpuv5 ;;
    v5lite*) version=v2-alpha-tpuv5-lite ;;
    *) version=tpu-ubuntu2204-base ;;
  esac
fi
read_program "${@:2}"
tell_slices "$slices"
check_config

nodes=("$name") which=(--node-id "$name")
if ((slices > 1)); then
  if [[ $existing ]]; then fail "--existing takes one slice."; fi
  nodes=() which=(--node-count "$slices" --node-prefix "$name")
  for ((i = 0; i < slices; i++)); do nodes+=("$name-$i"); done
fi
resource=(gcloud compute tpus queued-resources)
vm=(gcloud compute tpus tpu-vm)
# shellcheck disable=SC2088  # the worker's own
worker='~/big_vlp/code/launch/worker.sh'
told='' created='' offset=0 errors=$(mktemp)

on() { # NODE WORKER COMMAND
  run "${vm[@]}" ssh "$1" --zone "$zone" --worker "$2" --quiet --command "$3"
}

on_all() { # COMMAND
  local node
  for node in "${nodes[@]}"; do on "$node" all "$1" || return; done
}

state() {
  if [[ $existing ]]; then
    run "${vm[@]}" describe "$name" --zone "$zone" --format 'value(state)'
  else
    run "${resource[@]}" describe "$name" --zone "$zone" --format 'value(state.state)'
  fi
}

# Whether the machines are known to be no more.
is_gone() {
  now=$(state) || now=unknown
  [[ $now != ACTIVE && $now != READY && $now != unknown ]]
}

why() {
  run "${resource[@]}" describe "$name" --zone "$zone" --format 'value(state.failedData.error.message)'
}

delete() {
  if [[ ! $created ]]; then return; fi
  if run "${resource[@]}" delete "$name" --zone "$zone" --force --quiet; then
    created=
  else
    say "$name could not be deleted. YOU GO ON PAYING for it until you run:"
    quoted "${resource[@]}" delete "$name" --zone "$zone" --force >&2
    return 1
  fi
}

at_exit() {
  rm -f "$errors"
  if [[ $keep && $created ]]; then
    say "$name is kept, and you pay for it; --existing uses it again (of one slice)."
  else
    delete || true
  fi
}

# Sleeps, but for a signal.
pause() {
  sleep "$1" &
  wait $! || true
}

ask() {
  local said
  created=1 # before it is: who is interrupted cannot know, and deletes
  until said=$(run "${resource[@]}" create "$name" --zone "$zone" --accelerator-type "$type" \
    --runtime-version "$version" "${which[@]}" ${spot:+--spot} \
    ${create_flags[@]+"${create_flags[@]}"} 2>&1); do
    printf '%s\n' "$said" >&2
    if [[ $told ]]; then return; fi
    created=
    # Of quota, permission or a wrong flag only the user can say what to do.
    [[ $said == *"no more capacity"* ]] || fail "$name cannot be created; gcloud's message is above."
    say "no capacity in $zone; asking again."
    pause "$((3 * poll))"
    if [[ $told ]]; then return; fi
    created=1
  done
  printf '%s\n' "$said"
}

# Until the slices are there.
acquire() {
  local now before='' reason
  ask
  while [[ ! $told ]]; do
    now=$(state) || now=unknown
    if [[ $dry_run ]]; then
      printf '%s\n' "$now"
      return
    fi
    if [[ $now != "$before" ]]; then say "$name: $now"; fi
    before=$now
    case $now in
      ACTIVE) return ;;
      FAILED | SUSPENDED | SUSPENDING)
        reason=$(why || true)
        say "$name: ${reason:-no reason given}"
        [[ $now != FAILED || ! $reason || $reason == *capacity* || $reason == *"no longer valid"* ]] ||
          fail "$name failed; mend what it says above."
        delete || exit 1
        pause "$((3 * poll))"
        if [[ ! $told ]]; then ask; fi
        ;;
    esac
    pause "$poll"
  done
}

install() {
  local node tree=tree.tar
  if [[ ! $dry_run ]]; then
    tree=$(mktemp --suffix .tar)
    pack >"$tree"
  fi
  for node in "${nodes[@]}"; do
    run "${vm[@]}" scp "$tree" "$node:big_vlp.tar" --zone "$zone" --worker all --quiet || return
  done
  [[ $dry_run ]] || rm "$tree"
  on_all "rm -rf ~/big_vlp/code && mkdir -p ~/big_vlp/code && tar -xf ~/big_vlp.tar -C ~/big_vlp/code && bash $worker install $(quoted "$setup")"
}

start() {
  local try id
  id=$(date +%s.%N) # a worker that has started does not start again
  offset=0
  for try in 1 2 3; do
    if on_all "bash $worker start $id $(quoted "$program" "${arguments[@]}")"; then return; fi
    if [[ $told ]] || is_gone || ((try == 3)); then return 1; fi
    pause "$poll"
  done
}

show_log() {
  local text
  text=$(on "${nodes[0]}" 0 "bash $worker log $offset" 2>>"$errors" && echo .) || return 0
  text=${text%.}
  if [[ $dry_run ]]; then printf '%s' "$text"; fi
  while [[ $text && $text != @log* ]]; do text=${text#*$'\n'}; done # ssh may greet
  if [[ ! $text ]]; then return; fi
  offset=${text%%$'\n'*}
  offset=${offset#@log }
  printf '%s' "${text#*$'\n'}"
}

progress() {
  case $workdir in
    gs://*) gcloud storage ls "$workdir/checkpoints/" "$workdir/evaluate/" 2>/dev/null | tr '\n' ' ' || true ;;
    *) on "${nodes[0]}" 0 "bash $worker steps $(quoted "$workdir")" 2>/dev/null || true ;;
  esac
}

# Until the run has ended: sets `result` to what `verdict` says, or to lost.
watch() {
  local said now lost=0 ended='' found
  result=
  while [[ ! $result ]]; do
    if [[ $told && $told != sent ]]; then
      say "telling the run to end; it saves first. Once more: at once."
      if on_all "bash $worker end TERM"; then told=sent; fi
    fi
    : >"$errors" # ssh says at each look whom it connects to
    if said=$(on_all "bash $worker status" 2>>"$errors"); then
      lost=0
      show_log
      if [[ $dry_run ]]; then printf '%s\n' "$said"; fi
      mapfile -t found < <(sed -n 's/^@status //p' <<<"$said")
      if [[ $dry_run ]]; then
        result=whole
      elif [[ ! " ${found[*]} " =~ \ running\  ]]; then
        result=$(verdict "${found[@]}")
        show_log
        say "ended with ${found[*]}."
      elif [[ " ${found[*]} " =~ \ [0-9] ]]; then
        ended=${ended:-$SECONDS}
        if ((SECONDS - ended >= grace)); then
          say "some did not end ${grace} s after another, so SIGKILL: ${found[*]}"
          on_all "bash $worker end KILL" || true
        fi
      fi
    else
      lost=$((lost + 1))
      if ((lost == 1)); then tail -n 3 "$errors" >&2; fi
    fi
    if [[ $dry_run ]]; then break; fi
    # What ended or does not answer may have been preempted; a machine that goes takes a moment.
    if ((lost)) || [[ $result == crash || $result == told ]]; then
      if is_gone; then
        say "$name: $now"
        result=lost
      elif ((lost >= 10)); then
        say "the workers do not answer."
        result=lost
      fi
    fi
    if [[ ! $result ]]; then pause "$poll"; fi
  done
}

# A second signal does not wait for the run.
signalled() {
  if [[ $told ]]; then exit 130; fi
  told=$1 code=$2
}
code=0
trap at_exit EXIT
trap 'signalled INT 130' INT
trap 'signalled TERM 143' TERM HUP

if [[ ! $dry_run ]]; then
  say "commit $(commit)"
  # Whoever interrupts the asking below deletes what has this name.
  if [[ ! $existing ]] && state >/dev/null 2>&1; then
    fail "there is a $name already; give another --name, delete it, or use it with --existing."
  fi
fi
tries=0
while [[ ! $told ]]; do
  if [[ ! $existing && ! $created ]]; then acquire; fi
  if [[ $told ]]; then break; fi
  if install; then
    known=$([[ $dry_run ]] || progress)
    tries=0
  else
    tries=$((tries + 1))
    ((tries < 3)) || fail "the working tree could not be installed; the workers' messages are above."
    if is_gone; then
      say "$name: $now"
      delete || exit 1
    fi
    pause "$poll"
    continue
  fi
  while
    result=lost
    start || [[ $told ]]
  do
    watch
    if [[ $told || $result != crash && $result != told ]]; then break; fi
    pause "$((3 * poll))"
    if is_gone; then
      result=lost # it was told to end because its machine goes
      break
    fi
    may_restart || exit 1
  done
  if [[ $told ]]; then
    case $result in
      whole) code=0 ;;
      user | crash) code=1 ;; # not all is saved
    esac
    exit "$code"
  fi
  case $result in
    whole) exit 0 ;;
    user) exit 1 ;;
    lost)
      if [[ $existing ]]; then fail "$name is lost, and this launcher did not create it."; fi
      say "$name was preempted or lost; asking anew."
      delete || exit 1
      ;;
  esac
done
exit "$code"

#!/usr/bin/env bash
# Runs train or evaluate on GKE as a JobSet, and shows process 0's log until it ends.
#
#   launch/gke/submit.sh --name NAME --image IMAGE --tpu tpu-v5-lite-podslice --topology 4x4 [OPTIONS] -- train …
#   launch/gke/submit.sh --name NAME --image IMAGE --gpu nvidia-h100-80gb --nodes 2 [OPTIONS] -- train …
#   launch/gke/submit.sh --name NAME-eval … -- evaluate --follow …       an evaluator beside it
#
#   --image IMAGE     from launch/docker/build.sh
#   --tpu TYPE        value of the label cloud.google.com/gke-tpu-accelerator of the nodes
#   --topology AxB    of a slice
#   --slices N        default 1
#   --gpu TYPE        value of the label cloud.google.com/gke-accelerator of the nodes
#   --nodes N         with --gpu; default 1, one process on each
#   --chips N         TPU chips or GPUs of a node; default 4 and 8
#   --spot            on spot nodes
#   --bucket NAME     mount a bucket at /gcs by gcsfuse, with a cache on the node
#   --service-account NAME   of Kubernetes, with rights on the bucket
#   --restarts N      of the whole set, preemptions included; default 50
#   --grace N         seconds between SIGTERM and SIGKILL; default 300
#   --detach          do not wait for the end
#   --poll N          seconds between two looks; default 10
#   --dry-run         print the manifest and the commands
#
# Ctrl-C ends the showing, not the run; `kubectl delete jobset NAME` ends the run, which saves first.
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

name='' image='' tpu='' topology='' slices=1 gpu='' nodes=1 chips='' spot='' bucket='' account='' detach=''
restarts=50 grace=300 poll=10
while (($#)) && [[ $1 != -- ]]; do
  case $1 in
    --name) take name "$@" && shift ;;
    --image) take image "$@" && shift ;;
    --tpu) take tpu "$@" && shift ;;
    --topology) take topology "$@" && shift ;;
    --slices) take_number slices "$@" && shift ;;
    --gpu) take gpu "$@" && shift ;;
    --nodes) take_number nodes "$@" && shift ;;
    --chips) take_number chips "$@" && shift ;;
    --bucket) take bucket "$@" && shift ;;
    --service-account) take account "$@" && shift ;;
    --restarts) take_number restarts "$@" && shift ;;
    --grace) take_number grace "$@" && shift ;;
    --poll) take_number poll "$@" && shift ;;
    --spot) spot=1 ;;
    --detach) detach=1 ;;
    --dry-run) dry_run=1 ;;
    -h | --help) usage ;;
    *) fail "$1 is no option of submit.sh; --help lists them." ;;
  esac
  shift
done
[[ $name =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
  fail "--name needs at most 40 small letters, digits and -, not '$name'."
[[ $image ]] || fail "--image is missing; launch/docker/build.sh makes one."
[[ ${tpu:+x}${gpu:+x} == x ]] || fail "Give --tpu or --gpu."
read_program "${@:2}"
tell_slices "$slices"
check_config
if [[ $tpu ]]; then
  [[ $topology =~ ^[0-9]+(x[0-9]+)+$ ]] || fail "--topology is missing, such as 4x4."
  chips=${chips:-4} hosts=$(((${topology//x/*}) / ${chips:-4}))
  ((hosts > 0)) || fail "A slice of $topology has less than $chips chips; give --chips."
else
  chips=${chips:-8} hosts=$nodes
fi

# A list of words in JSON, which is YAML, too. Kubernetes would expand $(...).
json_list() {
  local word out=
  for word; do
    [[ ! $word =~ [[:cntrl:]] ]] || fail "An argument has a line break or another control character."
    word=${word//\\/\\\\} word=${word//\"/\\\"}
    # shellcheck disable=SC2016
    out+=", \"${word//'$('/'$$('}\""
  done
  printf '[%s]\n' "${out#, }"
}

manifest() {
  local text line option key
  declare -A values=(
    [NAME]=$name [COMMIT]=$(commit | sed -n '1p; 2s/.*/and changes/p' | tr '\n' ' ' | sed 's/ $//')
    [SLICES]=$slices [HOSTS]=$hosts [CHIPS]=$chips [ACCELERATOR]=$tpu$gpu [TOPOLOGY]=$topology
    [IMAGE]=$image [RESTARTS]=$restarts [GRACE]=$grace
    [ACCOUNT]=$account [BUCKET]=$bucket
    [MOUNT]="implicit-dirs,metadata-cache:ttl-secs:-1,file-cache:max-size-mb:-1,file-cache:cache-file-for-range-read:true,file-cache:enable-parallel-downloads:true"
  )
  declare -A given=([--bucket]=$bucket [--spot]=$spot [--service-account]=$account)
  while IFS= read -r line; do
    if [[ $line =~ ^(.*)\ '# with '(--[a-z-]+)$ ]]; then
      line=${BASH_REMATCH[1]} option=${BASH_REMATCH[2]}
      if [[ ! ${given[$option]} ]]; then continue; fi
    fi
    text+=$line$'\n'
  done <"$root/launch/gke/${tpu:+tpu}${gpu:+gpu}.yaml"
  for key in "${!values[@]}"; do text=${text//"\${$key}"/"${values[$key]}"}; done
  line=$(json_list "$program" "${arguments[@]}") # last: it may look like one of the above
  text=${text//"\${ARGUMENTS}"/"$line"}
  printf '%s' "$text"
}

if [[ $dry_run ]]; then
  manifest
  echo '# kubectl apply -f - of the above'
  exit
fi
say "commit $(commit)"
before=$(kubectl get jobset "$name" --ignore-not-found -o 'jsonpath={.status.terminalState}') || before=
if [[ $before ]]; then kubectl delete jobset "$name"; fi # the same name once more
manifest | kubectl apply -f - || fail "the cluster refused it; its message is above."
if [[ $detach ]]; then exit; fi

get() { kubectl get "$@"; }
mine=jobset.sigs.k8s.io/jobset-name=$name
first=$mine,jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0
shown='' before='' attempt=0 since=
while true; do
  if ! now=$(get jobset "$name" --ignore-not-found -o 'jsonpath={.status.terminalState}|{.status.restarts}'); then
    say "the cluster does not answer now; its message is above. The run does not depend on it."
    sleep "$poll"
    continue
  fi
  [[ $now ]] || fail "$name is gone: deleted by somebody?"
  restarted=${now#*|} now=${now%|*}
  if [[ ${restarted:-0} -gt $attempt ]]; then
    attempt=$restarted
    say "the set was started again ($attempt of $restarts)."
  fi
  read -r pod phase < <(get pods -l "$first" --sort-by=.metadata.creationTimestamp \
    -o 'jsonpath={range .items[-1:]}{.metadata.name} {.status.phase}{"\n"}{end}') || pod=
  if [[ $pod && $phase != Pending && ($pod != "$shown" || $phase == Running) ]]; then
    if [[ $pod != "$shown" ]]; then since=; fi
    shown=$pod
    kubectl logs -f "$pod" ${since:+--since-time="$since"} || true
    since=$(date -u +%FT%TZ)
  elif [[ $now != Completed && $now != Failed ]]; then
    # Why it waits: no node, no quota.
    reason=$(get events --field-selector type=Warning --sort-by=.lastTimestamp \
      -o 'jsonpath={range .items[*]}{.involvedObject.name} {.message}{"\n"}{end}' | grep "^$name-run-" | tail -1) || true
    if [[ $reason != "$before" ]]; then say "waiting: ${reason#* }"; fi
    before=$reason
  fi
  case $now in
    Completed) exit 0 ;;
    Failed)
      say "failed: $(get jobset "$name" -o 'jsonpath={.status.conditions[?(@.type=="Failed")].message}')"
      exit 1
      ;;
  esac
  sleep "$poll"
done

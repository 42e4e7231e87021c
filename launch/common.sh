# shellcheck shell=bash disable=SC2034
# What the launchers share; they read it in.
#
# Exit statuses of a process of train or evaluate: 0 done; 1 an error that the user must mend; 143
# and 130 ended by SIGTERM or Ctrl-C, with a checkpoint saved; anything else a crash, such as 75 of
# a watchdog that saw no progress, or 137 of a process that was killed.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python}
dry_run=
restarts=3 # in a row that bring nothing new into the work directory
grace=90   # seconds that processes have to end, once one of the run has ended
known=none # what the work directory held when it was last looked at
fruitless=0

say() { printf '%s launch: %s\n' "$(date +%T)" "$*" >&2; }

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# The comment at the top of the launcher is its help.
usage() {
  awk 'NR > 1 && !/^#/ {exit} NR > 1 {sub(/^# ?/, ""); print}' "$0"
  exit 0
}

# Words as a shell reads them.
quoted() {
  local word out=
  for word; do
    [[ $word =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]] || word="'${word//\'/\'\\\'\'}'"
    out+=" $word"
  done
  printf '%s\n' "${out# }"
}

# Runs a command; with --dry-run prints it.
run() {
  if [[ $dry_run ]]; then
    quoted "$@"
  else
    "$@"
  fi
}

# Reads the value of a launcher's option: take VARIABLE OPTION VALUE …
take() {
  [[ $# -ge 3 && $3 != -- ]] || fail "$2 needs a value."
  printf -v "$1" %s "$3"
}

take_number() {
  take "$@"
  [[ $3 =~ ^[0-9]{1,9}$ ]] || fail "$2 needs a whole number, not '$3'."
  printf -v "$1" %d "$((10#$3))"
}

# What comes after --: sets program, arguments, workdir and config.
read_program() {
  [[ ${1-} == train || ${1-} == evaluate ]] ||
    fail "After -- give train or evaluate and its flags; --help tells more."
  program=$1
  shift
  arguments=("$@")
  workdir='' config=''
  while (($#)); do
    case $1 in
      --workdir=* | -workdir=*) workdir=${1#*=} ;;
      --workdir | -workdir) workdir=${2-} ;;
      --config=* | -config=*) config=${1#*=} ;;
      --config | -config) config=${2-} ;;
    esac
    shift
  done
  [[ $workdir ]] || fail "$program needs --workdir."
  [[ $config ]] || fail "$program needs --config."
}

# Several slices are one run, whose mesh has to know of them.
tell_slices() {
  if (($1 > 1)) && [[ " ${arguments[*]}" != *" --config.mesh.slices"* ]]; then
    arguments+=("--config.mesh.slices=$1")
  fi
}

# A config that is not in the working tree would not reach other machines.
check_config() {
  local file=${config%%:*}
  [[ $file != /* && -f $root/$file ]] ||
    fail "There is no $file in $root: give --config as a path within it, which is sent along."
}

# The commit of the working tree, and what differs from it.
commit() {
  local changed
  if ! git -C "$root" rev-parse HEAD 2>/dev/null; then
    echo "no commit: not a git checkout"
    return
  fi
  changed=$(git -C "$root" status --porcelain)
  if [[ $changed ]]; then
    printf 'and changes that are not committed:\n%s\n' "$changed"
  fi
}

# What of a working tree goes to other machines: all files that git does not ignore.
tree_files() {
  local file
  git -C "$root" rev-parse --git-dir >/dev/null ||
    fail "$root is no git checkout: launch from one, which says what belongs to it."
  git -C "$root" ls-files -coz --exclude-standard | while IFS= read -rd '' file; do
    if [[ -e $root/$file ]]; then printf '%s\0' "$file"; fi
  done
}

# The working tree as a tar on stdout, with a file COMMIT that says what it is.
pack() {
  local made
  made=$(mktemp -d)
  commit >"$made/COMMIT"
  tree_files >"$made/files"
  tar -C "$root" -c --null --files-from="$made/files" --no-null -C "$made" COMMIT ||
    fail "the working tree could not be packed, or what reads it has ended; see above."
  rm -r "$made"
}

# One word for the statuses of all processes: whole, user (an error to be mended), told (to end) or
# crash. A process that is lost, or told to end before training, takes others with it, which then end
# with 1: so that is what weighs least.
verdict() {
  local status found=whole
  for status; do
    case $status in
      0) ;;
      1) [[ $found != whole ]] || found=user ;;
      130 | 143) [[ $found == crash ]] || found=told ;;
      *) found=crash ;;
    esac
  done
  echo "$found"
}

# The steps in the work directory: checkpoints, and results of evaluate.
progress() {
  {
    if [[ $workdir == *://* ]]; then
      PYTHONPATH=$root "$python" -c '
import sys
from input_pipeline.files.buckets import storage_path
for folder in ("checkpoints", "evaluate"):
    for path in (storage_path(sys.argv[1]) / folder).glob("*"):
        print(path.name)
' "$workdir"
    else
      ls "$workdir/checkpoints/" "$workdir/evaluate/"
    fi
  } 2>/dev/null | grep -oE '[0-9]+(\.json)?/?$' | sort | tr '\n' ' ' || true
}

# After a crash: whether to start again. Says why not.
may_restart() {
  local now
  now=$(progress)
  if [[ $now != "$known" ]]; then fruitless=0; fi
  known=$now
  fruitless=$((fruitless + 1))
  if ((fruitless > restarts)); then
    say "gave up: $restarts restarts in a row brought no new checkpoint."
    return 1
  fi
  say "starting again ($fruitless of $restarts without a new checkpoint)."
}

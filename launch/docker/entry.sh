#!/usr/bin/env bash
# In a container: train or evaluate, and its arguments.
set -euo pipefail
echo "$(hostname): big_vlp.$1, commit $(<COMMIT)" >&2
exec python -m "big_vlp.$1" "${@:2}"

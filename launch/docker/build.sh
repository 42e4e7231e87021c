#!/usr/bin/env bash
# Builds an image of the working tree, with its commit in it, and pushes it.
#
#   launch/docker/build.sh [--dry-run] tpu|cuda IMAGE
#
# IMAGE is where your cluster finds it, such as europe-west4-docker.pkg.dev/PROJECT/REPOSITORY/big_vlp:TAG.
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

case ${1-} in
  --dry-run) dry_run=1 && shift ;;
  -h | --help) usage ;;
esac
case ${1-} in
  tpu) extras=tpu,gcs ;;
  cuda) extras=cuda13,gcs,s3 ;;
  *) fail "Give tpu or cuda, then the image's name." ;;
esac
image=${2-}
[[ $# == 2 && $image ]] || fail "Give tpu or cuda, then the image's name; --dry-run comes first."

# The files that git does not ignore are all that the image gets.
build=(docker build --platform linux/amd64 -f launch/docker/Dockerfile --build-arg "EXTRAS=$extras" -t "$image" -)
if [[ $dry_run ]]; then
  echo "# stdin: the working tree, commit $(commit | head -1)"
  run "${build[@]}"
else
  say "commit $(commit)"
  pack | "${build[@]}"
fi
run docker push "$image"

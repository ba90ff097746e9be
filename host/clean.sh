#!/bin/sh
# Ends all sandboxes of `make host` and removes its images and records: `make host-clean`.
#   host/clean.sh PROGRAM
set -eu
cd "$(dirname "$0")/.."
program=$1
state=${TL_HOST_STATE_DIR:-$PWD/.cache/host/state}
[ -d "$state" ] || exit 0
export TL_HOST_STATE_DIR="$state" TL_HOST_INIT="${TL_HOST_INIT:-$PWD/dist/tl-init}"
# shellcheck source=host/engine.sh
. host/engine.sh
start_engine
take_over_engine
trap '[ -z "$service" ] || kill "$service" 2>/dev/null || :' EXIT
"$program" stop --all
# Fails if others use it.
case $TL_HOST_ENGINE in
*docker*) docker --host "$TL_HOST_ENGINE" rmi localhost/tl-default >/dev/null 2>&1 || : ;;
*) podman --url "$TL_HOST_ENGINE" rmi localhost/tl-default >/dev/null 2>&1 || : ;;
esac
"$program" stop --all --purge
# What host/run.sh has written. The socket of a service of ours is in that directory, so it is removed last.
(cd "$state" 2>/dev/null && rm -f podman.sock podman.log podman.pid settings checked ./*.imported) || :
rmdir "$state" 2>/dev/null || [ ! -e "$state" ] || echo "$state stays: it has other files" >&2

#!/bin/sh
# Starts tl-host on loopback with an engine, after having made what is missing: `make host`.
#   host/run.sh PROGRAM [ARG...]
#
# TL_HOST_STATE_DIR   directory of everything that stays: records, and the socket and log of an engine's service that this
#                     script has started (default .cache/host/state)
# Ctrl-C ends tl-host and that service; sandboxes go on until `host/clean.sh` (`make host-clean`).
set -eu
cd "$(dirname "$0")/.."
program=$1
shift

state=${TL_HOST_STATE_DIR:-$PWD/.cache/host/state}
[ -d "$state" ] || mkdir -p -m 700 "$state"
# The files of this script are in it too: this one says that the directory is for tl-host.
[ -n "$(ls -A "$state")" ] || (umask 077 && : >"$state/lock")
export TL_HOST_STATE_DIR="$state" TL_HOST_INIT="${TL_HOST_INIT:-$PWD/dist/tl-init}"

# shellcheck source=host/engine.sh
. host/engine.sh
start_engine
trap stop_engine EXIT

# Imports an image unless the engine has this version of it: the label of the import is the archive's checksum.
provide() {
    archive=.cache/host/$1.tar name=localhost/tl-$1 stamp=$state/$1.imported
    host/image.sh "$1"
    sum=$(cksum <"$archive")
    if echo "$report" | grep -q "^ok  *image: $name," && [ "$(cat "$stamp" 2>/dev/null)" = "$sum" ]; then
        return 0
    fi
    echo "importing the image $name"
    "$program" import --name "$name" "$archive" >/dev/null
    echo "$sum" >"$stamp"
}
if [ -z "${TL_HOST_DEFAULT_IMAGE-}" ]; then
    [ -e .cache/host/default.tar ] || echo "making the image localhost/tl-default from Debian packages (a minute or two)"
    provide default
fi

# If the engine starts containers only with other settings, `doctor` finds them. They are kept for the next start.
settings=$state/settings
# shellcheck source=/dev/null
[ ! -e "$settings" ] || . "$settings"
# It takes seconds, and is skipped if it has found everything in the same circumstances.
circumstances() {
    echo "${sum-}" "$@"
    env | grep ^TL_HOST_ | sort
    ulimit -Hn
    cat /proc/sys/kernel/random/boot_id
}
if [ "$(cat "$state/checked" 2>/dev/null)" != "$(circumstances "$@")" ]; then
    report=$("$program" doctor "$@" 2>/dev/null) || {
        found=$(echo "$report" |
            sed -n 's/^missing  container: .*: \(export TL_HOST_[A-Za-z0-9_=:, -]*\) (without.*/\1/p')
        if [ -n "$found" ]; then
            echo "this machine needs: $found"
            echo "$found" >"$settings"
            eval "$found"
        fi
        if ! report=$("$program" doctor "$@" 2>&1); then
            echo "$report" >&2
            exit 1
        fi
    }
    circumstances "$@" >"$state/checked"
fi
# Not `exec`: the service of the engine is ended afterwards. Ctrl-C reaches tl-host too, which then ends by itself.
trap : INT TERM
"$program" "$@" &
host=$!
until wait "$host" || ! kill -0 "$host" 2>/dev/null; do
    kill -TERM "$host" 2>/dev/null || :
done

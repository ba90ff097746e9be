#!/bin/sh
# Starts tl-init as PID 1 of a namespace and prints how to use it.
#   init/run.sh PROGRAM [ARG...]
set -eu

# A short new path, because it is part of the printed command.
TL_NS_DIR=$(mktemp -u "${TMPDIR:-/tmp}/tl-init.XXXXXX")
export TL_NS_DIR

print_usage() {
    address=$TL_NS_DIR/run/address
    tries=0
    until [ -s "$address" ]; do
        tries=$((tries + 1))
        # The daemon has failed and logged why.
        if [ $tries -gt 100 ] || ! kill -0 $$ 2>/dev/null; then return; fi
        sleep 0.1
    done
    echo "tl-init answers on http://$(cat "$address")/api/v1; Ctrl-C stops it."
    token=$TL_NS_DIR/run/token
    auth=
    if [ -e "$token" ]; then
        echo "The token is in $token. Try:"
        auth="-H \"Authorization: Bearer \$(cat $token)\" "
    fi
    body='{"command": "sh", "args": ["-c", "id; echo PID 1 is $(cat /proc/1/comm)"]}'
    printf "\n  curl -N %shttp://%s/api/v1/processes/run -d '%s'\n\n" "$auth" "$(cat "$address")" "$body"
}

print_usage &
exec "$(dirname "$0")/namespace.sh" "$@"

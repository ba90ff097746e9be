#!/bin/sh
# Starts tl-init as PID 1 of a namespace and prints how to use it.
#   init/run.sh PROGRAM [ARG...]
set -eu

# This script tells the user to export these variables for the client. Those of an earlier daemon must not become options of
# this one. To use a token file of your own, give the option `--token-file`: the lines that this script prints do not name
# a token file that is only in an init.conf.
unset TL_INIT_URL TL_INIT_TOKEN_FILE

# A short new path, because it is part of the printed command.
TL_NS_DIR=$(mktemp -u "${TMPDIR:-/tmp}/tl-init.XXXXXX")
export TL_NS_DIR

# The token file: that of `--token-file`, else the one that the daemon makes.
token=$TL_NS_DIR/run/token
previous=
for arg in "$@"; do
    case $previous$arg in
    --) break ;;
    --token-file=*) token=${arg#*=} ;;
    --token-file?*) token=$arg ;;
    esac
    previous=
    [ "$arg" != --token-file ] || previous=$arg
done
case $token in
/*) ;;
*) token=$PWD/$token ;;
esac

print_usage() {
    address=$TL_NS_DIR/run/address
    tries=0
    until [ -s "$address" ]; do
        tries=$((tries + 1))
        # The daemon has failed and logged why.
        if [ $tries -gt 100 ] || ! kill -0 $$ 2>/dev/null; then return; fi
        sleep 0.1
    done
    url=http://$(cat "$address")
    settings="TL_INIT_URL=$url"
    case $token in
    *[!A-Za-z0-9/._-]*) quoted="'$token'" ;;
    *) quoted=$token ;;
    esac
    auth=
    # Without authentication there is none.
    if [ -e "$token" ]; then
        settings="$settings TL_INIT_TOKEN_FILE=$quoted"
        auth='-H "Authorization: Bearer $(cat "$TL_INIT_TOKEN_FILE")" '
    fi
    body='{"command": "sh", "args": ["-c", "id; echo PID 1 is $(cat /proc/1/comm)"]}'
    # Printed at once, so that lines of the daemon's log do not come in between.
    cat <<END
tl-init answers on $url/api/v1; Ctrl-C stops it. Paste these lines into another terminal:

  export $settings
  curl -N $auth"\$TL_INIT_URL/api/v1/processes/run" -d '$body'

END
}

print_usage &
exec "$(dirname "$0")/namespace.sh" "$@"

# For host/run.sh and host/clean.sh: finds the engine or starts its service. `state` is the directory of tl-host.

# Sets TL_HOST_ENGINE: what the user names, else a socket of the machine that answers, else that of a service of our own.
# Sets `report` to the engine's part of what `doctor` says.
start_engine() {
    service=
    if [ -n "${TL_HOST_ENGINE-}" ]; then
        report=$(engine_checks)
        echo "$report" | grep -q '^ok  *engine:' && return 0
        echo "$report" | grep '^missing  engine:' >&2
        exit 1
    fi
    for socket in /run/podman/podman.sock "${XDG_RUNTIME_DIR:-/nonexistent}/podman/podman.sock" /var/run/docker.sock; do
        if answers "$socket"; then
            export TL_HOST_ENGINE="unix://$socket"
            return 0
        fi
    done
    tests/need podman
    # A path of a socket has at most 107 bytes.
    socket=$state/podman.sock
    [ ${#socket} -lt 100 ] || socket=$(mktemp -d)/podman.sock
    export TL_HOST_ENGINE="unix://$socket"
    if answers "$socket"; then return 0; fi
    rm -f "$socket"
    echo "starting podman's API service"
    # In a session of its own: Ctrl-C ends tl-host first.
    setsid podman system service --time=0 "$TL_HOST_ENGINE" </dev/null >"$state/podman.log" 2>&1 &
    service=$!
    echo $service >"$state/podman.pid"
    tries=0
    until answers "$socket"; do
        tries=$((tries + 1))
        if [ $tries -gt 100 ] || ! kill -0 $service 2>/dev/null; then
            echo "podman's API service does not start:" >&2
            cat "$state/podman.log" >&2
            exit 1
        fi
        sleep 0.1
    done
}

# Whether an engine answers at a socket. Sets `report`.
answers() {
    [ -S "$1" ] && report=$(export TL_HOST_ENGINE="unix://$1" && engine_checks) &&
        echo "$report" | grep -q '^ok  *engine:'
}

# What `doctor` says without starting a container: it has no tl-init for one.
engine_checks() {
    "$program" doctor --init / 2>/dev/null || :
}

# Makes `stop_engine` of this process, and of no other, end the service at the socket of `state`. Its starter may have
# been killed, or may be about to end because its tl-host does.
take_over_engine() {
    [ -e "$state/podman.pid" ] || return 0
    [ -n "$service" ] || service=$(cat "$state/podman.pid")
    rm "$state/podman.pid"
    # Another process may have its PID by now.
    grep -qs podman "/proc/$service/cmdline" || service=
}

# Ends the service that `start_engine` has started, unless another process has taken it over.
stop_engine() {
    [ -n "$service" ] || return 0
    if [ "$(cat "$state/podman.pid" 2>/dev/null)" = "$service" ]; then
        rm "$state/podman.pid"
        kill "$service" 2>/dev/null || :
    fi
}

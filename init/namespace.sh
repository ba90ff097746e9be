#!/bin/sh
# Starts a program as PID 1 of a new PID namespace, and leaves the machine unchanged.
#
#   init/namespace.sh PROGRAM [ARG...]
#
# The program gets a PID namespace, private mounts, copies of /etc/passwd and /etc/group with the user tl-user and its
# empty home, a cgroup if cgroups of version 2 are writable, and TL_INIT_RUN_DIR and TL_INIT_LOG_DIR in its
# environment. SIGTERM and SIGINT to this script shut the program down in order; a second signal kills it. When the program
# ends, or this script is killed, everything that the script has created is removed.
#
# Without root the script uses a user namespace, and commands run as the current user.
#
# Optional settings:
#   TL_NS_DIR      directory for its files; must not exist yet (default: a temporary directory)
#   TL_NS_CGROUP   "no": the program cannot write to cgroups
#   TL_NS_PID_MAX  the highest PID in the namespace; needs Linux 6.14, where pid_max is per namespace
#   TL_NS_PROC     "outer": /proc shows the outer PID namespace
set -eu

# Runs as PID 1 of the namespace; its mounts are visible only there.
inside() {
    dir=$1 cgroup=$2
    shift 2
    if [ -n "$cgroup" ]; then echo 0 >"$cgroup/cgroup.procs"; fi
    if [ "${TL_NS_CGROUP-}" = no ]; then
        awk '$3 == "cgroup2" { print $2 }' /proc/mounts | while read -r mounted; do
            mount -o remount,bind,ro "$mounted"
        done
    fi
    mount --bind "$dir/passwd" /etc/passwd
    mount --bind "$dir/group" /etc/group
    # A user namespace has only one user, whose home exists already.
    if [ -e "$dir/owner" ]; then make_home "$dir/home"; fi
    if [ -n "${TL_NS_PID_MAX-}" ]; then echo "$TL_NS_PID_MAX" >/proc/sys/kernel/pid_max; fi
    unset TL_NS_DIR TL_NS_CGROUP TL_NS_PID_MAX TL_NS_PROC
    exec "$@"
}

# Mounts a new /home with the old directories and the home of tl-user.
make_home() {
    [ -d /home ] || return 0
    mkdir "$1"
    mount -t tmpfs -o mode=755 tmpfs "$1"
    for old in /home/*/; do
        name=$(basename "$old")
        if [ -d "$old" ] && [ "$name" != tl-user ]; then
            mkdir "$1/$name"
            mount --rbind "$old" "$1/$name"
        fi
    done
    mkdir "$1/tl-user"
    chown --reference "$dir/owner" "$1/tl-user"
    mount --move "$1" /home
}

# Outlives the script, however it ends: waits until the last writer of the FIFO has ended, then removes everything.
guard() {
    dir=$1 cgroup=$2
    child=
    { read -r child && read -r _; } <"$dir/guard" || true
    # The PID may have been reused: our child has the directory on its command line.
    if [ -n "$child" ] && grep -qsF "$dir" "/proc/$child/cmdline"; then kill -KILL "$child" 2>/dev/null || true; fi
    tries=0
    while [ $tries -lt 100 ]; do
        if [ -n "$cgroup" ]; then
            # A cgroup can be removed only when its processes have ended.
            echo 1 2>/dev/null >"$cgroup/cgroup.kill" || true
            find "$cgroup" -depth -type d -exec rmdir {} + 2>/dev/null || true
        fi
        rm -rf "$dir" 2>/dev/null || true
        if [ ! -e "$dir" ] && { [ -z "$cgroup" ] || [ ! -e "$cgroup" ]; }; then exit 0; fi
        tries=$((tries + 1))
        sleep 0.05
    done
    echo "$0: could not remove $dir $cgroup" >&2
}

# Copies /etc/passwd and /etc/group and adds tl-user, with the first free id from 1000 on.
make_users() {
    root_home=$1
    id=1000
    while grep -q "^[^:]*:[^:]*:$id:" /etc/passwd /etc/group; do id=$((id + 1)); done
    awk -F: -v OFS=: -v home="$root_home" '$1 != "tl-user" { if ($3 == "0" && home != "") $6 = home; print }' \
        /etc/passwd >"$dir/passwd"
    awk -F: '$1 != "tl-user"' /etc/group >"$dir/group"
    echo "tl-user:x:$id:$id:tl-user:/home/tl-user:/bin/sh" >>"$dir/passwd"
    echo "tl-user:x:$id:" >>"$dir/group"
    chmod 644 "$dir/passwd" "$dir/group"
    if [ -z "$privileges" ]; then : >"$dir/owner" && chown "$id:$id" "$dir/owner"; fi
}

# Creates a cgroup below that of the script and prints its path; prints nothing if that is impossible.
make_cgroup() {
    mounted=$(awk '$3 == "cgroup2" { print $2; exit }' /proc/mounts)
    own=$(sed -n 's/^0:://p' /proc/self/cgroup)
    made="$mounted${own%/}/tl-init.$$"
    if [ -n "$mounted" ] && mkdir "$made" 2>/dev/null; then
        if [ -w "$made/cgroup.procs" ]; then echo "$made"; else rmdir "$made"; fi
    fi
}

# Prints the PID of the program in the outer namespace.
pid1() {
    cat "/proc/$child/task/$child/children" 2>/dev/null || true
}

stop() {
    signal=$1
    is_interrupted=yes
    # Before the fork only unshare itself exists, and no program to shut down.
    target=$(pid1)
    kill "-$signal" ${target:-$child} 2>/dev/null || true
    trap 'stop KILL' INT TERM HUP
}

case "${1-}" in
--inside) shift; inside "$@" ;;
--guard) shift; guard "$@"; exit 0 ;;
'') echo "usage: $0 PROGRAM [ARG...]" >&2; exit 1 ;;
esac

if [ -n "${TL_NS_PID_MAX-}" ]; then
    # On older kernels pid_max applies to the whole machine.
    uname -r | awk -F. '{ exit !($1 > 6 || ($1 == 6 && $2 + 0 >= 14)) }' ||
        { echo "$0: TL_NS_PID_MAX needs Linux 6.14" >&2; exit 1; }
fi

if [ -n "${TL_NS_DIR-}" ]; then
    dir=$TL_NS_DIR
    mkdir -m 700 "$dir"
else
    dir=$(mktemp -d "${TMPDIR:-/tmp}/tl-init.XXXXXX")
fi
cgroup=
if [ "$(id -u)" = 0 ]; then
    privileges=
    make_users ''
    if [ "${TL_NS_CGROUP-}" != no ]; then cgroup=$(make_cgroup); fi
else
    privileges='--user --map-root-user'
    make_users "${HOME-/}"
    export TL_INIT_DEFAULT_USER="${TL_INIT_DEFAULT_USER-0}"
    echo "$0: not root: using a user namespace, where every command runs as $(id -un)" >&2
fi
proc=--mount-proc
if [ "${TL_NS_PROC-}" = outer ]; then proc=; fi
export TL_INIT_RUN_DIR="${TL_INIT_RUN_DIR-$dir/run}" TL_INIT_LOG_DIR="${TL_INIT_LOG_DIR-$dir/log}"

mkfifo "$dir/guard"
# Guard and child get sessions of their own: only this script gets Ctrl-C from the terminal, and forwards it once.
setsid "$0" --guard "$dir" "$cgroup" </dev/null &
guard=$!
exec 9>"$dir/guard"
# The child itself sends its PID to the guard, so that the guard knows it from the start.
setsid sh -c 'echo $$ >&9; exec 9>&-; exec unshare "$@"' unshare \
    $privileges --pid --fork --kill-child --mount $proc "$0" --inside "$dir" "$cgroup" "$@" &
child=$!
trap 'stop TERM' INT TERM HUP

status=0 again=
while :; do
    is_interrupted=
    wait "$child" && ended=0 || ended=$?
    # 127 is either the status of the program, or `wait` knows the child no longer: then the wait before this one was not
    # interrupted, and has returned the status of the program.
    if [ -n "$again" ] && [ $ended = 127 ]; then
        case $status in 129 | 130 | 143) status=127 ;; esac
        break
    fi
    status=$ended
    # A trapped signal interrupts the wait, which then returns 128 and the number of the signal.
    [ -n "$is_interrupted" ] || break
    again=yes
done
exec 9>&-
trap '' INT TERM HUP
wait "$guard" || true
exit $status

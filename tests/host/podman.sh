#!/bin/sh
# Runs Podman's API service with a storage, locks and a network of its own, so that nothing of the user is touched.
#   tests/host/podman.sh DIRECTORY [SIZE]
#
# With SIZE, as of mount(8) (`64m`), the storage is a file system in memory of that size.
# The directory must exist and be empty; the service listens on DIRECTORY/podman.sock. Each line of standard input is a command:
#   kill     ends the service with SIGKILL; containers go on
#   start    starts it again
#   freeze   stops its execution (SIGSTOP)
#   thaw     continues it
#   reboot   leaves the machine as its restart does: the service and all processes of containers are killed, and what is in
#            memory is gone (mounts, the engine's and the runtime's state). `start` starts the service afterwards
# At the end of standard input, containers, images, mounts and the directory are removed. DIRECTORY/podman is a script
# that runs the command `podman` on that storage.
set -eu
cd "$1"
directory=$PWD

# Limits that need no privilege: without CAP_SYS_RESOURCE, those above the present ones cannot be set.
limit() {
    awk -v "name=$1" 'index($0, name) == 1 { print ($(NF - 1) + 0 > 0 && $(NF - 1) + 0 < 20000) ? $(NF - 1) : 20000 }' /proc/self/limits
}
files=$(limit 'Max open files') tasks=$(limit 'Max processes')
network=tl$$
mkdir networks graph
[ -z "${2-}" ] || mount -t tmpfs -o "size=$2" tmpfs graph
cat >containers.conf <<END
[containers]
default_ulimits = ["nofile=$files:$files", "nproc=$tasks:$tasks"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
# Otherwise every Podman of the machine shares its locks.
lock_type = "file"
tmp_dir = "$directory/libpod"
[network]
network_config_dir = "$directory/networks"
default_network = "$network"
END
cat >storage.conf <<END
[storage]
driver = "overlay"
graphroot = "$directory/graph"
runroot = "$directory/run"
END
subnet=10.$((100 + $$ / 256 % 100)).$(($$ % 256))
cat >"networks/$network.json" <<END
{"name": "$network", "id": "$(printf %s $network | sha256sum | cut -c -64)", "driver": "bridge",
 "network_interface": "$network", "subnets": [{"subnet": "$subnet.0/24", "gateway": "$subnet.1"}],
 "ipam_options": {"driver": "host-local"}}
END
cat >podman <<END
#!/bin/sh
export CONTAINERS_CONF=$directory/containers.conf CONTAINERS_STORAGE_CONF=$directory/storage.conf
exec podman "\$@"
END
chmod +x podman

service=
start() {
    # In a process group of its own, so that Ctrl-C reaches only the tests; the end of standard input follows.
    CONTAINERS_CONF=$directory/containers.conf CONTAINERS_STORAGE_CONF=$directory/storage.conf \
        setsid podman system service --time=0 "unix://$directory/podman.sock" </dev/null >>service.log 2>&1 &
    service=$!
}
# Podman leaves its storage mounted.
unmount() {
    for path in $(awk -v "prefix=$directory/" 'index($2, prefix) == 1 { print $2 }' /proc/mounts | sort -r); do
        [ "$path" = "${1-}" ] || umount "$path" || umount -l "$path" || :
    done
}
# The processes that watch containers first: they must not see the end of them.
reboot() {
    kill -KILL "$service" && wait "$service" 2>/dev/null || :
    containers=$(./podman ps --all --quiet --no-trunc)
    for field in ConmonPid Pid; do
        for pid in $(./podman ps --all --quiet | xargs -r ./podman inspect --format "{{.State.$field}}"); do
            [ "$pid" = 0 ] || kill -KILL "$pid" || :
        done
    done
    for container in $containers; do
        runc delete --force "$container" || :
    done
    unmount "$directory/graph"
    rm -rf run libpod
}
trap '' INT HUP
start
while read -r command; do
    case $command in
    kill) kill -KILL "$service" && wait "$service" 2>/dev/null || : ;;
    start) start ;;
    freeze) kill -STOP "$service" ;;
    thaw) kill -CONT "$service" ;;
    reboot) reboot >>reboot.log 2>&1; : >rebooted ;;
    esac
done
kill -CONT "$service" 2>/dev/null || :
kill -KILL "$service" 2>/dev/null || :
wait "$service" 2>/dev/null || :
./podman rm --all --force --time 0 >/dev/null 2>&1 || :
./podman rmi --all --force >/dev/null 2>&1 || :
./podman network prune --force >/dev/null 2>&1 || :
ip link delete "$network" 2>/dev/null || :
unmount
cd /
rm -rf "$directory"

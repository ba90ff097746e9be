#!/bin/sh
# Builds small root file systems with dist/tl-init:
#   dist/rootfs/, rootfs.cpio, rootfs.ext4   busybox, the user tl-user, and tl-init as /sbin/init
#   dist/vm.cpio, vm.ext4                    the same, for test machines: with a network service, and with the token in
#                                            dist/vm.token
# Without root, dist/rootfs belongs to the current user, but the owners in the images are correct.
set -eu
[ "$(id -u)" = 0 ] || exec fakeroot "$0" "$@"
cd "$(dirname "$0")/../.."
umask 022

# Creates a root file system: empty mount points, and the files that programs expect.
make_rootfs() {
    root=$1
    mkdir -p "$root"
    cp -r init/images/rootfs/. "$root"
    (
        cd "$root"
        mkdir -p bin sbin usr lib/modules dev proc sys run etc/tl-init/services home/tl-user var/log
        mkdir -m 700 root
        mkdir -m 1777 tmp var/tmp
        ln -s ../bin usr/bin
        ln -s ../sbin usr/sbin
        # The kernel starts /init of an initramfs.
        ln -s sbin/init init
    )
    cp .cache/vm/busybox "$root/bin/busybox"
    for applet in $("$root/bin/busybox" --list); do
        # /sbin has replacements for these: the reboot of busybox sends a signal that tl-init takes for a power-off.
        case $applet in busybox | init | linuxrc | reboot) continue ;; esac
        ln -s busybox "$root/bin/$applet"
    done
    cp dist/tl-init "$root/sbin/init"
    chown -R 0:0 "$root"
    chown 1000:1000 "$root/home/tl-user"
}

make_vm() {
    root=$1
    mkdir -p "$root/lib/modules"
    cp -r init/images/vm/. "$root"
    cp .cache/vm/vmxnet3.ko "$root/lib/modules/vmxnet3.ko"
    install -m 600 dist/vm.token "$root/etc/tl-init/token"
    chown -R 0:0 "$root"
}

make_cpio() { (cd "$1" && find . | LC_ALL=C sort | cpio --quiet --create --format newc) >"$2"; }

make_ext4() {
    rm -f "$2"
    truncate -s 64M "$2"
    mke2fs -q -t ext4 -m 0 -E root_owner=0:0 -d "$1" "$2"
}

rm -rf dist/rootfs dist/vm
# A client with this token is root in the machine.
(umask 077 && od -An -N 32 -t x1 /dev/urandom | tr -d ' \n' >dist/vm.token)
make_rootfs dist/rootfs
make_vm dist/vm
make_cpio dist/rootfs dist/rootfs.cpio
make_ext4 dist/rootfs dist/rootfs.ext4
# The kernel unpacks concatenated archives in turn.
make_cpio dist/vm dist/vm.part
cat dist/rootfs.cpio dist/vm.part >dist/vm.cpio
cp -a dist/rootfs/. dist/vm
make_ext4 dist/vm dist/vm.ext4
chmod 600 dist/vm.cpio dist/vm.ext4
rm -rf dist/vm dist/vm.part
ls -sh dist

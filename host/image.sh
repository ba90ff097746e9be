#!/bin/sh
# Makes the root file system of an image as a tar archive in .cache/host, from Debian packages and without a registry.
# Skips what exists already.
#   host/image.sh busybox|default
#
# busybox   .cache/host/busybox.tar: one program and its names, a shell, /etc/passwd with root only
# default   .cache/host/default.tar: the smallest Debian with Python, Node (without npm, which needs 300 packages), git and curl
set -eu
cd "$(dirname "$0")/.."
archive=.cache/host/$1.tar
# A change of the script makes another image.
if [ -e "$archive" ] && [ ! "$0" -nt "$archive" ]; then exit 0; fi
mkdir -p .cache/host
new=$archive.new

make_busybox() {
    init/images/fetch.sh busybox
    root=$(mktemp -d)
    trap 'rm -rf "$root"' EXIT
    mkdir -p "$root/bin" "$root/etc" "$root/root" "$root/proc" "$root/sys" "$root/dev" "$root/run" "$root/usr/bin"
    mkdir -m 1777 "$root/tmp"
    cp .cache/vm/busybox "$root/bin/busybox"
    for name in $("$root/bin/busybox" --list); do
        [ "$name" = busybox ] || ln -s busybox "$root/bin/$name"
    done
    ln -s /bin/env "$root/usr/bin/env"
    echo root:x:0:0:root:/root:/bin/sh >"$root/etc/passwd"
    echo root:x:0: >"$root/etc/group"
    tar --owner=0 --group=0 --numeric-owner -C "$root" -cf "$new" .
}

make_default() {
    tests/need mmdebstrap
    suite=$(. /etc/os-release && echo "${VERSION_CODENAME:-stable}")
    # Programs that fetch and unpack run without the right to make device nodes or to mount, as in a container.
    mmdebstrap --quiet --format=tar --variant=minbase --include=ca-certificates,curl,git,nodejs,procps,python3,python3-pip,python3-venv \
        --aptopt='APT::Install-Recommends "false"' \
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
        --dpkgopt='path-include=/usr/share/doc/*/copyright' \
        "$suite" "$new"
}

case $1 in
busybox) make_busybox ;;
default) make_default ;;
*) echo "usage: $0 busybox|default" >&2 && exit 2 ;;
esac
mv "$new" "$archive"

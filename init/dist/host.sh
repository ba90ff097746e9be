#!/bin/sh
# Builds dist/tl-host-VERSION-ARCH.tar.gz from dist/tl-host-ARCH, dist/tl-init-ARCH and dist/host.
#   SOURCE_DATE_EPOCH=SECONDS init/dist/host.sh VERSION ARCH
#
# tl-host finds the static tl-init that it mounts into containers beside itself.
set -eu
cd "$(dirname "$0")/../.."
umask 022

version=$1 arch=$2
name=tl-host-$version-$arch
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mkdir "$root/$name"
install -m 755 "dist/tl-host-$arch" "$root/$name/tl-host"
install -m 755 "dist/tl-init-$arch" "$root/$name/tl-init"
install -m 644 LICENSE docs/host.md dist/NOTICES dist/NOTICES-tl-host "$root/$name"
for directory in man completions; do
    if [ -e "dist/host/$directory" ]; then
        mkdir "$root/$name/$directory"
        install -m 644 "dist/host/$directory"/* "$root/$name/$directory"
    fi
done
tar --sort=name --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX --mtime="@$SOURCE_DATE_EPOCH" \
    -C "$root" -cf - "$name" | gzip -9 -n >"dist/$name.tar.gz"

#!/bin/sh
# Builds everything that is published, into dist/:
#   tl-init-ARCH                static binary, for amd64 and arm64 (tl-init is a copy of that of this machine)
#   tl-init_VERSION_ARCH.deb    Debian package
#   tl-init-ARCH.cdx.json       bill of materials (CycloneDX)
#   tl-host-VERSION-ARCH.tar.gz tl-host, static, beside the tl-init that it needs, with its manual page and completions
#   tl-host-ARCH.cdx.json       its bill of materials
#   NOTICES, NOTICES-tl-host    licences of the crates
#   SHA256SUMS                  of all these
#   man/, completions/          manual pages and completions of shells, which are also in the packages
#   init/dist/release.sh TARGET_DIR [native]
# With `native`, only for the architecture of this machine. Without a cross compiler, a message says so.
set -eu
cd "$(dirname "$0")/../.."
export LC_ALL=C

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
# The date of the newest release in the change log dates all files, so that every build gives the same bytes.
released=$(sed -n 's/^## \[[0-9.]*\] - \([0-9-]*\)$/\1/p' CHANGELOG.md | head -n 1)
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH-$(date -u -d "$released" +%s)}
export SOURCE_DATE_EPOCH

case $(uname -m) in
x86_64) native=amd64 other=arm64 ;;
aarch64) native=arm64 other=amd64 ;;
*) echo "$0: packages are built on x86-64 and aarch64 only" >&2 && exit 1 ;;
esac
target() { case $1 in amd64) echo x86_64-unknown-linux-gnu ;; arm64) echo aarch64-unknown-linux-gnu ;; esac; }

rm -f dist/*.deb dist/*.cdx.json dist/NOTICES* dist/SHA256SUMS dist/tl-init-* dist/tl-host*
if [ -e init/manual/main.rs ]; then
    rm -rf dist/man dist/completions dist/host
    mkdir -p "$1" dist
    rustc --edition 2024 -o "$1/manual" init/manual/main.rs
    "$1/manual" "$version" dist
fi
init/dist/build.sh "$1"
ln -f dist/tl-init "dist/tl-init-$native"
init/dist/build.sh --program tl-host "$1"
mv dist/tl-host "dist/tl-host-$native"
architectures=$native
if [ "${2-}" != native ]; then
    if init/dist/build.sh "$1" other && init/dist/build.sh --program tl-host "$1" other; then
        architectures="$native $other"
    else
        echo "$0: nothing is built for $other: it needs the Rust target $(target $other) and the packages of" \
            "\`tests/need cross\`" >&2
    fi
fi
for arch in $architectures; do
    init/dist/sbom.py "$(target "$arch")" "dist/tl-init-$arch" "dist/tl-init-$arch.cdx.json" dist/NOTICES
    init/dist/sbom.py "$(target "$arch")" "dist/tl-host-$arch" "dist/tl-host-$arch.cdx.json" dist/NOTICES-tl-host
    init/dist/host.sh "$version" "$arch"
    if command -v dpkg-deb >/dev/null; then
        init/dist/deb.sh "$version" "$arch" dist/NOTICES
    else
        echo "$0: no Debian package: dpkg-deb is missing" >&2
    fi
done
cd dist
# What the archive of tl-host contains is not published besides.
rm -f tl-host-amd64 tl-host-arm64
files=$(ls -d NOTICES* tl-host-* tl-init-* tl-init_*.deb 2>/dev/null | sort)
# shellcheck disable=SC2086
sha256sum $files >SHA256SUMS
cat SHA256SUMS

#!/bin/sh
# Builds static release binaries, which run in an otherwise empty root file system.
#   init/dist/build.sh [--program tl-host] TARGET_DIR [other]
#
# Without `other`: dist/tl-init, for the architecture of this machine; with `--program tl-host` dist/tl-host.
# With it: dist/tl-init-ARCH (amd64 or arm64) for the other architecture, by a cross compiler (tests/need cross).
#
# The same sources, Rust toolchain and linker give the same bytes, whatever the names of the directories
# (`make test-dist` checks this).
set -eu
cd "$(dirname "$0")/../.."

program=tl-init
if [ "$1" = --program ]; then
    program=$2
    shift 2
fi
host=$(rustc -vV | sed -n 's/^host: //p')
case ${2-}/$host in
/*) target=$host ;;
other/x86_64-*) target=aarch64-unknown-linux-gnu ;;
other/aarch64-*) target=x86_64-unknown-linux-gnu ;;
*) echo "usage: $0 [--program PROGRAM] TARGET_DIR [other]" >&2 && exit 1 ;;
esac
case $target in
x86_64-*) arch=amd64 machine=x86_64 ;;
aarch64-*) arch=arm64 machine=aarch64 ;;
*) arch=$target machine=${target%%-*} ;;
esac
# With --target, even that of this machine, the flags apply to the program and not to build scripts. A separate target
# directory avoids rebuilding everything when the flags change.
built=$1/static
set -- -C target-feature=+crt-static -C relocation-model=static
# Functions are inlined as with opt-level "s", but loops are optimised as the profile says.
set -- "$@" -C llvm-args=-inline-threshold=50

sysroot=$(rustc --print sysroot)
if [ "$target" = "$host" ]; then
    output=dist/$program
else
    output=dist/$program-$arch
    [ -d "$sysroot/lib/rustlib/$target" ] || rustup target add "$target"
    set -- "$@" -C "linker=$machine-linux-gnu-gcc"
    # The lld of the Rust toolchain links for every architecture.
    lld=$sysroot/lib/rustlib/$host/bin/gcc-ld
    if [ -d "$lld" ]; then set -- "$@" -C "link-arg=-B$lld" -C link-arg=-fuse-ld=lld; fi
fi
# One copy of functions with equal code, if the linker can do that (lld, the default of rustc on x86_64).
probe=$(mktemp)
if echo 'fn main() {}' | rustc --target "$target" "$@" -C link-arg=-Wl,--icf=all -o "$probe" - 2>/dev/null; then
    set -- "$@" -C link-arg=-Wl,--icf=all
fi
rm -f "$probe"
# Panic messages contain the paths of sources: of this repository, of the crates, and, if the component rust-src is
# installed, of the standard library.
cargo_home=${CARGO_HOME:-$HOME/.cargo}
commit=$(rustc -vV | sed -n 's/^commit-hash: //p')
set -- "$@" "--remap-path-prefix=$PWD=/tl-init" "--remap-path-prefix=$cargo_home=/cargo"
set -- "$@" "--remap-path-prefix=$sysroot/lib/rustlib/src/rust=/rustc/$commit"

# Cargo separates the flags at this character, so that paths may contain spaces.
separator=$(printf '\037')
# A build script runs again whenever SOURCE_DATE_EPOCH changes, although nothing in the binary depends on it.
unset SOURCE_DATE_EPOCH RUSTFLAGS
CARGO_ENCODED_RUSTFLAGS=$(IFS=$separator && echo "$*") CARGO_TARGET_DIR=$built \
    cargo build --release --quiet --locked --package "$program" --target "$target"

mkdir -p dist
cp "$built/$target/release/$program" "$output.new"

if readelf --program-headers --section-headers "$output.new" | grep -E 'INTERP|DYNAMIC|\.symtab'; then
    echo "$0: the binary is not static, or not stripped" >&2
    exit 1
fi
# tl-init: 4 MiB. Also most of its memory: the pages of the code are nearly all of what an idle daemon uses.
case $program in tl-init) most=4194304 ;; *) most=6291456 ;; esac
size=$(stat -c %s "$output.new")
if [ "$size" -ge $most ]; then
    echo "$0: the binary has $size bytes; at most $most are allowed" >&2
    exit 1
fi
if grep -aoF -e "$PWD/" -e "$cargo_home/" "$output.new"; then
    echo "$0: the binary contains paths of this machine" >&2
    exit 1
fi
if [ "$target" = "$host" ]; then
    empty=$(mktemp -d)
    trap 'rm -rf "$empty"' EXIT
    cp "$output.new" "$empty/$program"
    as_root=
    if [ "$(id -u)" != 0 ]; then as_root='unshare --map-root-user'; fi
    $as_root chroot "$empty" "/$program" --version >/dev/null
fi

# The binary gets its name only after the checks.
mv "$output.new" "$output"
# A Docker build whose context is dist/ sends the binaries, and neither the images of `make rootfs` nor their token.
printf '*\n!tl-init\n!tl-init-amd64\n!tl-init-arm64\n' >dist/.dockerignore
ls -sh "$output"

#!/bin/sh
# Builds dist/tl-init, the static release binary: it runs in an otherwise empty root file system.
#   init/images/dist.sh TARGET_DIR
set -eu
cd "$(dirname "$0")/../.."

# With --target, even that of this machine, RUSTFLAGS apply to the program and not to build scripts. A separate target
# directory avoids rebuilding everything when the flags change.
target=$(rustc -vV | sed -n 's/^host: //p')
built=$1/static
flags='-C target-feature=+crt-static -C relocation-model=static'
# Functions are inlined as with opt-level "s", but loops are optimised as the profile says.
flags="$flags -C llvm-args=-inline-threshold=50"
# One copy of functions with equal code, if the linker can do that (lld, the default of rustc on x86_64).
probe=$(mktemp)
if echo 'fn main() {}' | rustc -C link-arg=-Wl,--icf=all -o "$probe" - 2>/dev/null; then
    flags="$flags -C link-arg=-Wl,--icf=all"
fi
rm -f "$probe"
RUSTFLAGS=$flags CARGO_TARGET_DIR=$built \
    cargo build --release --quiet --package tl-init --target "$target"

mkdir -p dist
cp "$built/$target/release/tl-init" dist/tl-init.new

if readelf --program-headers --section-headers dist/tl-init.new | grep -E 'INTERP|DYNAMIC|\.symtab'; then
    echo "$0: the binary is not static, or not stripped" >&2
    exit 1
fi
# Also most of its memory: the pages of the code are nearly all of what an idle daemon uses.
most=3000000
size=$(stat -c %s dist/tl-init.new)
if [ "$size" -ge $most ]; then
    echo "$0: the binary has $size bytes; at most $most are allowed" >&2
    exit 1
fi
empty=$(mktemp -d)
trap 'rm -rf "$empty"' EXIT
cp dist/tl-init.new "$empty/tl-init"
as_root=
if [ "$(id -u)" != 0 ]; then as_root='unshare --map-root-user'; fi
$as_root chroot "$empty" /tl-init --version >/dev/null

# The binary gets its name only after the checks.
mv dist/tl-init.new dist/tl-init
ls -sh dist/tl-init

# Manual pages and completions, made from the tables of options of the program.
rustc --edition 2024 -o "$built/manual" init/manual/main.rs
version=$(dist/tl-init --version)
"$built/manual" "${version#tl-init }" dist

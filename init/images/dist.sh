#!/bin/sh
# Builds dist/tl-init: the release binary, static, so that it runs in a root file system with nothing else in it.
#   init/images/dist.sh TARGET_DIR
set -eu
cd "$(dirname "$0")/../.."

# The flags are for the program alone, not for what runs while it is built: hence --target, even though it is this
# machine's own. A target directory of its own: other flags in the same one would build everything anew each time.
target=$(rustc -vV | sed -n 's/^host: //p')
built=$1/static
RUSTFLAGS='-C target-feature=+crt-static -C relocation-model=static' CARGO_TARGET_DIR=$built \
    cargo build --release --quiet --package tl-init --target "$target"

mkdir -p dist
cp "$built/$target/release/tl-init" dist/tl-init.new

if readelf --program-headers --section-headers dist/tl-init.new | grep -E 'INTERP|DYNAMIC|\.symtab'; then
    echo "$0: the binary is not static, or not stripped" >&2
    exit 1
fi
empty=$(mktemp -d)
trap 'rm -rf "$empty"' EXIT
cp dist/tl-init.new "$empty/tl-init"
as_root=
if [ "$(id -u)" != 0 ]; then as_root='unshare --map-root-user'; fi
$as_root chroot "$empty" /tl-init --version >/dev/null

# Under its name only once it is known to be good.
mv dist/tl-init.new dist/tl-init
ls -sh dist/tl-init

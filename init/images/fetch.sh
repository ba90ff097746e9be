#!/bin/sh
# Downloads the parts of the images and of their tests, as Debian packages, into .cache/vm. Installs nothing, and skips
# what exists already.
#   init/images/fetch.sh [busybox] [kernel] [qemu] [runc] [bwrap] [debian] [aarch64]
#
# busybox   .cache/vm/busybox
# kernel    .cache/vm/vmlinux, and two modules: vmxnet3.ko, the network driver of test machines, and fuse.ko, for tests
#           with a hanging disk
# aarch64   .cache/vm/aarch64/vmlinuz and busybox, and .cache/vm/qemu-system-aarch64, which boots them
# debian    .cache/vm/debian.tar: a small Debian, in the place of debian:bookworm-slim, by mmdebstrap, which must exist
# Each of the others is a program in .cache/vm: a link to the installed one if there is one, else the downloaded one:
# qemu      .cache/vm/qemu-system-x86_64
# runc      .cache/vm/runc
# bwrap     .cache/vm/bwrap
set -eu
cd "$(dirname "$0")/../.."

if [ "${1-}" != --once ]; then
    for thing in "$@"; do
        # The second attempt updates the package lists: old lists name versions that no longer exist.
        init/images/fetch.sh --once "$thing" || { apt-get -qq update && init/images/fetch.sh --once "$thing"; }
    done
    exit 0
fi
mkdir -p .cache/vm
cd .cache/vm

# Unpacks the named package into ./unpacked; with "needed", also all missing packages that it depends on.
unpack() {
    package=$1 needed=${2-}
    rm -rf unpacked debs
    mkdir -p debs/partial
    set -- apt-get -qq -o APT::Sandbox::User=root -o Debug::NoLocking=1 -o Dir::Cache::archives="$PWD/debs"
    if [ -n "$needed" ]; then
        set -- "$@" install --yes --no-install-recommends --download-only "$package"
    else
        set -- "$@" download "$package"
    fi
    (cd debs && "$@" >/dev/null)
    for deb in debs/*.deb; do dpkg-deb --extract "$deb" unpacked; done
    rm -rf debs
}

# Extracts the kernel from a bzImage: QEMU then need not emulate the decompression.
uncompressed() {
    number() { od -An -j "$2" -N "$3" -t "u$3" "$1" | tr -d ' '; }
    # The boot protocol locates the payload: an offset after the real-mode sectors. Its last 4 bytes are not lz4 data.
    offset=$((($(number "$1" 497 1) + 1) * 512 + $(number "$1" 584 4)))
    length=$(($(number "$1" 588 4) - 4))
    tail -c "+$((offset + 1))" "$1" | head -c "$length" | lz4 -d -q - -
}

fetch_busybox() {
    [ ! -e busybox ] || return 0
    unpack busybox-static
    # In /bin or in /usr/bin, depending on the release.
    mv "$(find unpacked -path '*bin/busybox')" busybox
}

fetch_kernel() {
    if [ -e vmlinux ] && [ -e vmxnet3.ko ] && [ -e fuse.ko ]; then return 0; fi
    # The package name contains a version that changes.
    unpack "$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p')"
    for name in vmxnet3 fuse; do
        module=$(find unpacked -name "$name.ko*")
        case $module in
        *.ko) mv "$module" "$name.ko" ;;
        *.ko.xz) xz -dc "$module" >"unpacked/$name.ko" && mv "unpacked/$name.ko" . ;;
        *) echo "$0: the kernel package has no $name.ko: '$module'" >&2 && exit 1 ;;
        esac
    done
    uncompressed unpacked/boot/vmlinuz-* >unpacked/vmlinux
    mv unpacked/vmlinux vmlinux
}

# Creates a program in .cache/vm from the installed one or from a package.
program() {
    name=$1 package=$2
    [ ! -e "$name" ] || return 0
    if installed=$(command -v "$name"); then
        ln -sf "$installed" "$name"
        return 0
    fi
    unpack "$package" needed
    rm -rf "$name.files"
    mv unpacked "$name.files"
    path=$(cd "$name.files" && find usr/bin usr/sbin -name "$name" -print -quit 2>/dev/null)
    {
        echo '#!/bin/sh'
        echo "root=\$(dirname \"\$(readlink -f \"\$0\")\")/$name.files"
        echo 'export LD_LIBRARY_PATH="$root/usr/lib/x86_64-linux-gnu:$root/lib/x86_64-linux-gnu"'
        echo "exec \"\$root/$path\" ${3-} \"\$@\""
    } >"$name.new"
    chmod +x "$name.new"
    mv "$name.new" "$name"
}

fetch_qemu() { program qemu-system-x86_64 qemu-system-x86 '-L "$root/usr/share/qemu" -L "$root/usr/share/seabios"'; }
fetch_aarch64() {
    program qemu-system-aarch64 qemu-system-arm '-L "$root/usr/share/qemu" -L "$root/usr/share/seabios"'
    if [ -e aarch64/vmlinuz ] && [ -e aarch64/busybox ]; then return 0; fi
    # Package lists of another architecture, which apt keeps apart from those of this machine.
    rm -rf foreign aarch64
    mkdir -p foreign/lists/partial foreign/archives/partial aarch64
    printf '#!/bin/sh\ncommand=$1\nshift\nexec "$command" %s "$@"\n' "-o APT::Architecture=arm64 \
        -o APT::Architectures=arm64 -o APT::Sandbox::User=root -o Debug::NoLocking=1 -o Dir::State::status=/dev/null \
        -o Dir::State::Lists='$PWD/foreign/lists' -o Dir::Cache='$PWD/foreign'" >foreign/arm64
    chmod +x foreign/arm64
    foreign/arm64 apt-get -qq update
    kernel=$(foreign/arm64 apt-cache depends linux-image-cloud-arm64 | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p')
    (cd foreign && ./arm64 apt-get -qq download busybox-static "$kernel" >/dev/null)
    for deb in foreign/*.deb; do dpkg-deb --extract "$deb" foreign/unpacked; done
    mv foreign/unpacked/boot/vmlinuz-* aarch64/vmlinuz
    mv "$(find foreign/unpacked -path '*bin/busybox')" aarch64/busybox
    rm -rf foreign
}
fetch_runc() { program runc runc; }
fetch_debian() {
    [ ! -e debian.tar ] || return 0
    mmdebstrap --quiet --variant=minbase bookworm debian.new.tar
    mv debian.new.tar debian.tar
}
fetch_bwrap() { program bwrap bubblewrap; }

"fetch_$2"
rm -rf unpacked

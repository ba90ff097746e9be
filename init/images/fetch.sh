#!/bin/sh
# Fetches what the images and their tests are made of, as Debian packages, into .cache/vm. Installs nothing, and does
# nothing for what is there already.
#   init/images/fetch.sh [busybox] [kernel] [qemu] [runc] [bwrap]
#
# busybox   .cache/vm/busybox
# kernel    .cache/vm/vmlinux, and two modules: vmxnet3.ko, the one that a test machine needs, and fuse.ko, for a disk that
#           does not answer
# The others become programs in .cache/vm, each this machine's own, or else the fetched one:
# qemu      .cache/vm/qemu-system-x86_64
# runc      .cache/vm/runc
# bwrap     .cache/vm/bwrap
set -eu
cd "$(dirname "$0")/../.."

if [ "${1-}" != --once ]; then
    for thing in "$@"; do
        # The second time with fresh lists: old ones name versions that are gone.
        init/images/fetch.sh --once "$thing" || { apt-get -qq update && init/images/fetch.sh --once "$thing"; }
    done
    exit 0
fi
mkdir -p .cache/vm
cd .cache/vm

# Unpacks the named package into ./unpacked; with "needed", that of all packages that it needs and this machine lacks.
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

# Cuts the kernel out of a bzImage: QEMU then starts it at once, instead of emulating its decompression.
uncompressed() {
    number() { od -An -j "$2" -N "$3" -t "u$3" "$1" | tr -d ' '; }
    # Where the boot protocol says: behind the real-mode sectors, at an offset. The last four bytes are not lz4's.
    offset=$((($(number "$1" 497 1) + 1) * 512 + $(number "$1" 584 4)))
    length=$(($(number "$1" 588 4) - 4))
    tail -c "+$((offset + 1))" "$1" | head -c "$length" | lz4 -d -q - -
}

fetch_busybox() {
    [ ! -e busybox ] || return 0
    unpack busybox-static
    # In /bin or /usr/bin: that differs from release to release.
    mv "$(find unpacked -path '*bin/busybox')" busybox
}

fetch_kernel() {
    if [ -e vmlinux ] && [ -e vmxnet3.ko ] && [ -e fuse.ko ]; then return 0; fi
    # The package's name carries a version that moves.
    unpack "$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p')"
    for name in vmxnet3 fuse; do
        module=$(find unpacked -name "$name.ko*")
        case $module in
        *.ko) mv "$module" "$name.ko" ;;
        *.ko.xz) xz -dc "$module" >"unpacked/$name.ko" && mv "unpacked/$name.ko" . ;;
        *) echo "$0: the kernel's package has no $name.ko: '$module'" >&2 && exit 1 ;;
        esac
    done
    uncompressed unpacked/boot/vmlinuz-* >unpacked/vmlinux
    mv unpacked/vmlinux vmlinux
}

# Makes a program that can be started, out of the machine's own or out of a package's.
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
fetch_runc() { program runc runc; }
fetch_bwrap() { program bwrap bubblewrap; }

"fetch_$2"
rm -rf unpacked

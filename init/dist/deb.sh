#!/bin/sh
# Builds dist/tl-init_VERSION_ARCH.deb from dist/tl-init-ARCH. It contains dist/man and dist/completions, if they exist.
#   SOURCE_DATE_EPOCH=SECONDS init/dist/deb.sh VERSION ARCH NOTICES
#
# The package does not replace /sbin/init: an image links it to /usr/sbin/tl-init (docs/images.md). NOTICES has the
# licences of the crates in the binary.
set -eu
cd "$(dirname "$0")/../.."
umask 022

version=$1 arch=$2 notices=$3
maintainer="tl-init maintainers <maintainers@tl-init.example>"
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
doc=$root/usr/share/doc/tl-init
chmod 755 "$root"
mkdir -p "$root/DEBIAN" "$root/etc/tl-init/services" "$root/usr/bin" "$root/usr/sbin" "$doc" "$root/usr/share/lintian/overrides"

install -m 755 "dist/tl-init-$arch" "$root/usr/sbin/tl-init"
# By this name the program is its own client: `tl-init ctl`.
ln -s ../sbin/tl-init "$root/usr/bin/tlctl"
install -m 644 init/dist/deb/init.conf "$root/etc/tl-init/init.conf"
install -m 644 init/dist/deb/lintian-overrides "$root/usr/share/lintian/overrides/tl-init"

pack() { gzip -9 -n >"$1" && chmod 644 "$1"; }
for page in dist/man/*.[1-8]; do
    [ -e "$page" ] || continue
    mkdir -p "$root/usr/share/man/man${page##*.}"
    pack "$root/usr/share/man/man${page##*.}/$(basename "$page").gz" <"$page"
done
for file in dist/completions/*; do
    [ -e "$file" ] || continue
    name=$(basename "$file")
    case $name in
    *.fish) place=fish/vendor_completions.d/$name ;;
    _* | *.zsh) name=${name%.zsh} && place=zsh/vendor-completions/_${name#_} ;;
    *) place=bash-completion/completions/${name%.bash} ;;
    esac
    install -D -m 644 "$file" "$root/usr/share/$place"
done

pack "$doc/NOTICES.gz" <"$notices"
cat >"$doc/copyright" <<END
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: tl-init
Comment: /usr/sbin/tl-init also contains the crates whose licences are in /usr/share/doc/tl-init/NOTICES.gz, the Rust
 standard library (MIT or Apache-2.0), and parts of the GNU C library, whose licence is the GNU Lesser General Public
 License 2.1 or later (/usr/share/common-licenses/LGPL-2.1).

Files: *
Copyright: 2026 the tl-init authors
License: Apache-2.0
 On Debian systems, the Apache License 2.0 is in /usr/share/common-licenses/Apache-2.0.
END
pack "$doc/changelog.gz" <<END
tl-init ($version) unstable; urgency=medium

  * See CHANGELOG.md of the sources.

 -- $maintainer  $(LC_ALL=C date -u -R -d "@$SOURCE_DATE_EPOCH")
END
chmod 644 "$doc/copyright"

echo /etc/tl-init/init.conf >"$root/DEBIAN/conffiles"
cat >"$root/DEBIAN/control" <<END
Package: tl-init
Version: $version
Architecture: $arch
Maintainer: $maintainer
Installed-Size: $(du -k --apparent-size -s "$root" | cut -f1)
Section: admin
Priority: optional
Description: PID 1 for sandboxes that runs commands for a remote client
 tl-init starts processes, captures all of their output, streams it to any
 number of followers, restarts services and reaps orphans, over an HTTP API.
 It is a single static binary, for containers, sandboxes and small virtual
 machines.
 .
 This package does not replace the init of the machine that it is installed
 on: an image that boots with tl-init links /sbin/init to /usr/sbin/tl-init.
END
(cd "$root" && find usr etc -type f -print0 | LC_ALL=C sort -z | xargs -0 md5sum) >"$root/DEBIAN/md5sums"
find "$root" -exec touch --no-dereference --date "@$SOURCE_DATE_EPOCH" {} +
dpkg-deb --root-owner-group -Zxz --threads-max=1 --build "$root" "dist/tl-init_${version}_$arch.deb" >/dev/null

#!/usr/bin/env bash
# Makes a root file system equal in purpose to debian:SUITE-slim: minbase by debootstrap, the current
# security fixes, without documentation and translations, with the settings Debian's images carry.
#
# usage: rootfs.sh ROOT SUITE MIRROR SECURITY_MIRROR DEB_CACHE [CERTIFICATE...]     (from ../build.sh)
set -euo pipefail
root=$1 suite=$2 mirror=$3 security=$4 cache=$5
shift 5
here=$(cd "$(dirname "$0")" && pwd)
scratch=$(dirname "$root")
# shellcheck source=deploy/images/layer.sh
. "$here/../layer.sh"

log=$scratch/debootstrap.log
debootstrap --variant=minbase --cache-dir="$cache" "$suite" "$root" "$mirror" >"$log" 2>&1 || {
	tail -20 "$log" "$root/debootstrap/debootstrap.log" 2>/dev/null || true
	fail "debootstrap $suite from $mirror failed, its last lines are above" \
		"check that the mirror is reachable; name another in RUNNERD_DEBIAN_MIRROR"
}

cp -r "$here/files/." "$root/"
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
rm -f "$root/etc/apt/sources.list"
cat >"$root/etc/apt/sources.list.d/debian.sources" <<SOURCES
Types: deb
URIs: $mirror
Suites: $suite $suite-updates
Components: main
Signed-By: $keyring

Types: deb
URIs: $security
Suites: $suite-security
Components: main
Signed-By: $keyring
SOURCES

# This machine's own certificates: installing ca-certificates in an image on top takes them in.
if (($# > 0)); then
	mkdir -p "$root/usr/local/share/ca-certificates"
	install -m 644 -t "$root/usr/local/share/ca-certificates" "$@"
fi

: >"$root/etc/resolv.conf"
: >"$root/etc/machine-id"
echo localhost >"$root/etc/hostname"
rm -f "$scratch/packages"
in_chroot "$root" "$here/../setup.sh" upgrade

# What debootstrap unpacked before the exclusions were in place; and device nodes, which every runtime
# mounts over.
find "$root/usr/share/doc" -depth -mindepth 1 \( -type f -o -type l \) ! -name copyright -delete
find "$root/usr/share/doc" -mindepth 1 -type d -empty -delete
rm -rf "$root"/usr/share/{groff,info,linda,lintian,locale,man}/* "$root"/{dev,run,proc,sys,tmp}/*

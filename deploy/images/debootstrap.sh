#!/usr/bin/env bash
# Makes the root file system of debian:bookworm-slim in ROOT, like Debian's own slim image: debootstrap's
# minimal variant with all updates, without documentation and translations, with apt set to leave no
# caches behind, and with this machine's extra certificate authorities, which take effect when an image
# installs ca-certificates. Needs root and a mount namespace of its own; mounts nothing itself.
#
# usage: debootstrap.sh ROOT MIRROR SECURITY_MIRROR [CERTIFICATE…]
set -euo pipefail
here=$(dirname "$(realpath "$0")")
root=$1 mirror=$2 security=$3
shift 3
include=$(grep -v '^#' "$here/debian/packages" | paste -sd, || true)

# A mirror behind TLS needs the authorities from the start.
[[ "$mirror $security" != *https://* ]] || include+=${include:+,}ca-certificates

debootstrap --variant=minbase --merged-usr ${include:+--include="$include"} bookworm "$root" "$mirror" >"$root.log" 2>&1 || {
	tail -20 "$root.log" >&2
	echo "images: debootstrap from $mirror failed; the end of its log is above" >&2
	exit 1
}

# No service is started by installing its package.
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
chmod 755 "$root/usr/sbin/policy-rc.d"
cp "$here/debian/excludes" "$root/etc/dpkg/dpkg.cfg.d/slim"
echo force-unsafe-io >"$root/etc/dpkg/dpkg.cfg.d/unsafe-io"
cat >"$root/etc/apt/apt.conf.d/slim" <<'EOF'
APT::AutoRemove::SuggestsImportant "false";
Acquire::Languages "none";
Acquire::GzipIndexes "true";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb /var/cache/apt/archives/partial/*.deb /var/cache/apt/*.bin || true"; };
EOF
rm -f "$root/etc/apt/sources.list"
cat >"$root/etc/apt/sources.list.d/debian.sources" <<EOF
Types: deb
URIs: $mirror
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: $security
Suites: bookworm-security
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
EOF
(($# == 0)) || {
	mkdir -p "$root/usr/local/share/ca-certificates"
	install -m 644 "$@" "$root/usr/local/share/ca-certificates/"
}
: >"$root/etc/resolv.conf"
rm -f "$root/etc/hostname"
[[ ! -x $root/usr/sbin/update-ca-certificates ]] || chroot "$root" update-ca-certificates >>"$root.log"

# dpkg applies the excludes only to what it installs from now on.
while read -r rule path; do
	case $rule in
	path-exclude) keep=() && [[ $path != /usr/share/doc/* ]] || keep=(! -name copyright) ;;
	*) continue ;;
	esac
	dir=$root${path%/\*}
	[[ -d $dir ]] || continue
	find "$dir" -mindepth 1 ! -type d ! -name locale.alias ${keep[@]+"${keep[@]}"} -delete
	find "$dir" -mindepth 1 -type d -empty -delete
done <"$here/debian/excludes"

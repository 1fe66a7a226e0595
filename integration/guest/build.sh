#!/usr/bin/env bash
# Makes the guest that the tests run in on cgroup version 2, whatever this machine has: the kernel of this
# machine's Debian, an initramfs that mounts the disk, and the disk, with the packages of the sandbox image, the
# engines, the images that the tests use, runnerd and the tests. Nothing is mounted, and nothing is installed.
#
# What has not changed is not made again: the inputs' digest is in OUTPUT_DIR/inputs.
#
# usage: integration/guest/build.sh [OUTPUT_DIR [BIN_DIR]]    (default: bin/guest bin)
set -euo pipefail
here=$(dirname "$(realpath "$0")")
out=$(realpath -m "${1:-$here/../../bin/guest}")
bin=$(realpath -m "${2:-$here/../../bin}")
work=$out/.work
started=$SECONDS

# fail MESSAGE MENDING: says what is missing and how to mend it.
fail() {
	printf 'guest: %s\n  mend it: %s\n' "$1" "$2" >&2
	exit 1
}

((EUID == 0)) || fail "the guest's files belong to root" "run it as root"
[[ $(dpkg --print-architecture) == amd64 ]] || fail "there is a guest for amd64 only" "use such a machine"
for tool in busybox cpio jq mke2fs qemu-system-x86_64; do
	command -v $tool >/dev/null || fail "no $tool on the PATH" "make guest"
done
[[ -f $bin/engines/MANIFEST ]] || fail "no engines in $bin/engines" "make engines"
[[ -f $bin/images/index.json ]] || fail "no images in $bin/images" "make images"
mkdir -p "$out"
exec 9>"$out/.lock"
flock 9
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
rm -rf "$work"

# The newest kernel that this machine's package lists know.
candidate() { LC_ALL=C apt-cache policy linux-image-cloud-amd64 | awk '$1 == "Candidate:" { print $2 }'; }
[[ $(candidate) =~ ^[0-9] ]] || apt-get update -qq
[[ $(candidate) =~ ^[0-9] ]] || fail "apt knows no linux-image-cloud-amd64" "add Debian's main section to apt's sources"
kernel=$(apt-cache depends linux-image-cloud-amd64 | awk '$1 == "Depends:" { print $2 }')=$(candidate)

# The tests, compiled as they are now. -trimpath makes the output a function of the source.
mkdir "$work"
(cd "$here/.." && CGO_ENABLED=0 go test -c -trimpath -tags integration -ldflags '-s -w' -o "$work/integration.test" .)

index=$(jq -c '.manifests |= map(select(.annotations["org.opencontainers.image.ref.name"] | IN("debian:bookworm-slim", "runnerd/sandbox:latest")))' "$bin/images/index.json")
inputs=$({
	echo "$kernel" "$index"
	cat "$here/build.sh" "$here/init" "$bin/engines/MANIFEST"
	sha256sum "$bin"/engines/runnerd-{init,clone,plan,wasm}
	sha256sum <"$bin/runnerd"
	sha256sum <"$work/integration.test"
	sha256sum <"$(command -v busybox)"
} | sha256sum)
if [[ $(cat "$out/inputs" 2>/dev/null) == "$inputs" && -s $out/disk && -s $out/vmlinuz && -s $out/initrd ]]; then
	echo "guest: current" >&2
	exit
fi
rm -f "$out/inputs"

# The kernel's package, downloaded once.
package=$(printf %s "$kernel" | tr -c 'a-zA-Z0-9.-' _)
if [[ ! -f $out/$package/done ]]; then
	rm -rf "$out"/linux-image-*
	mkdir "$work/download"
	(cd "$work/download" && apt-get download -qq -o APT::Sandbox::User=root "$kernel")
	dpkg -x "$work"/download/*.deb "$out/$package"
	version=$(ls "$out/$package/lib/modules")
	busybox depmod -b "$out/$package" "$version"
	touch "$out/$package/done"
fi
version=$(ls "$out/$package/lib/modules")
modules=lib/modules/$version
cp "$out/$package/boot/vmlinuz-$version" "$out/vmlinuz"

# The initramfs: as little as finds the disk.
initrd=$work/initrd
mkdir -p "$initrd"/{bin,dev,proc,root}
cp "$(command -v busybox)" "$initrd/bin/busybox"
for module in virtio_pci virtio_blk; do
	grep "/$module\.ko:" "$out/$package/$modules/modules.dep" | tr -d : | xargs -n1
done | sort -u | while read -r file; do
	install -D -m 644 "$out/$package/$modules/$file" "$initrd/$modules/$file"
done
busybox depmod -b "$initrd" "$version"
cat >"$initrd/init" <<'EOF'
#!/bin/busybox sh
busybox mount -t proc proc /proc
busybox mount -t devtmpfs devtmpfs /dev
busybox modprobe -a virtio_pci virtio_blk
busybox mount -o noatime /dev/vda /root
busybox umount /proc /dev
exec busybox switch_root /root /runnerd/integration/init "$@"
EOF
chmod 755 "$initrd/init"
(cd "$initrd" && find . | cpio --quiet -o -H newc) >"$out/initrd"

# The disk: the sandbox image without its engines, which lie in bin/engines.
root=$work/root
mkdir -p "$root"
blob() { echo "$bin/images/blobs/sha256/${1#sha256:}"; }
digest() { jq -r --arg ref "$1" '.manifests[] | select(.annotations["org.opencontainers.image.ref.name"] == $ref).digest' <<<"$index"; }
for layer in $(jq -r '.layers[].digest' "$(blob "$(digest runnerd/sandbox:latest)")"); do
	tar -C "$root" --numeric-owner --exclude='usr/local/bin/*' --exclude='usr/local/libexec/*' -xzpf "$(blob "$layer")"
done
mkdir -p "$root"/{dev,proc,sys,run,tmp,runnerd/bin/images/blobs/sha256,runnerd/integration}
cp "$(command -v busybox)" "$root/bin/busybox"
cp -a "$out/$package/lib/modules" "$root/usr/lib"
echo "nameserver 192.0.2.1" >"$root/etc/resolv.conf" # nobody: the guest has no network
cp -a "$bin/engines" "$root/runnerd/bin/engines"
cp "$bin/runnerd" "$root/runnerd/bin/runnerd"
cp "$here/init" "$work/integration.test" "$root/runnerd/integration"
cp "$bin/images/oci-layout" "$root/runnerd/bin/images"
echo "$index" >"$root/runnerd/bin/images/index.json"
for manifest in $(jq -r '.manifests[].digest' <<<"$index"); do
	for digest in "$manifest" $(jq -r '.config.digest, .layers[].digest' "$(blob "$manifest")"); do
		cp "$(blob "$digest")" "$root/runnerd/bin/images/blobs/sha256"
	done
done
rm -f "$out/disk"
truncate -s 32G "$out/disk" # what doctor wants of a machine; sparse
mke2fs -q -F -t ext4 -m 0 -O '^has_journal' -E lazy_itable_init=1,nodiscard,root_owner=0:0 -d "$root" "$out/disk"
echo "$inputs" >"$out/inputs"
echo "guest: Linux $version in $out, $(du -sh --exclude=.work "$out" | cut -f1), $((SECONDS - started)) s" >&2

#!/usr/bin/env bash
# Makes the images that runnerd and its examples stand on, with no Docker and no image registry: a Debian
# base from the machine's own Debian mirror, the sandbox image from it and bin/engines, and Go and Node.js
# images from the toolchains on this machine. All go into one OCI layout, each under its name. What a
# Dockerfile here says is what its image is: this script does its RUN lines, mkimage the rest.
#
# The same inputs give the same digests, and an image whose inputs have not changed is not made again.
# Debian's updates are not an input: FORCE=1 makes everything anew with the newest packages. The extra
# certificate authorities of this machine (/usr/local/share/ca-certificates) are in every image, and so
# are its proxies for Go modules and npm packages, where they are not the default.
#
# Works in memory and in a mount and a process namespace of its own, so whatever ends it, nothing of it
# stays mounted or running.
#
# usage: deploy/images/build.sh [OUTPUT_DIR [ENGINES_DIR]]    (default: bin/images bin/engines)
# environment: FORCE=1, SOURCE_DATE_EPOCH, DEBIAN_MIRROR, DEBIAN_SECURITY_MIRROR (default: apt's)
set -euo pipefail
here=$(dirname "$(realpath "$0")")
out=$(realpath -m "${1:-$here/../../bin/images}")
engines=$(realpath -m "${2:-$here/../../bin/engines}")
work=$out/.work
started=$SECONDS

# fail MESSAGE MENDING: says what is missing and how to mend it.
fail() {
	printf 'images: %s\n  mend it: %s\n' "$1" "$2" >&2
	exit 1
}

trap 'exit 130' INT TERM
if [[ ${RUNNERD_IMAGES_INSIDE:-} != 1 ]]; then
	((EUID == 0)) || fail "a chroot needs root" "run it as root"
	mkdir -p "$work"
	status=0
	RUNNERD_IMAGES_INSIDE=1 unshare --mount --propagation private --pid --fork --kill-child --mount-proc \
		"$0" "$out" "$engines" || status=$?
	rmdir "$work" 2>/dev/null || true
	exit $status
fi

exec 9>"$out/.lock"
flock -n 9 || {
	echo "images: waiting for another build into $out" >&2
	flock 9
}

# What the machine must have.
command -v debootstrap >/dev/null || fail "no debootstrap on the PATH" "apt-get install debootstrap"
command -v go >/dev/null || fail "no go toolchain on the PATH" "install Go (version in go.mod)"
[[ $(go env GOVERSION) == go1.26* ]] || fail "golang:1.26 needs Go 1.26, this is $(go env GOVERSION)" "install Go 1.26"
command -v node >/dev/null && command -v npm >/dev/null || fail "no node and npm on the PATH" "install Node.js 20"
[[ $(node --version) == v20.* ]] || fail "node:20 needs Node.js 20, this is $(node --version)" "install Node.js 20"
[[ -f $engines/MANIFEST ]] || fail "no engines in $engines" "make engines"

# mirror SUITES: the first Debian mirror in apt's configuration that has one of them.
mirror() {
	apt-get indextargets --format '$(SITE) $(RELEASE)' 'Created-By: Packages' |
		awk -v suites="$1" '$2 ~ "^(" suites ")$" { print $1; exit }'
}
mirror=${DEBIAN_MIRROR:-$(mirror 'bookworm|trixie|forky|sid|stable|testing')}
security=${DEBIAN_SECURITY_MIRROR:-$(mirror '(bookworm|trixie|forky|stable|testing)-security')}
[[ -n $mirror && -n $security ]] || fail "no Debian mirror in apt's configuration" \
	"set DEBIAN_MIRROR and DEBIAN_SECURITY_MIRROR to the URLs of one"
shopt -s nullglob
certificates=(/usr/local/share/ca-certificates/*.crt)
shopt -u nullglob

# Every package, file and directory gets this time; tools that write the date honour it.
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-1767225600}

mount -t tmpfs -o mode=755 tmpfs "$work"
mkimage=$work/mkimage
(cd "$here" && CGO_ENABLED=0 go build -trimpath -o "$mkimage" ./mkimage)
# How this machine's apt reaches its mirrors; for the time of the making only.
apt-config dump | grep -Ei '^Acquire::[a-z]+::Proxy' >"$work/apt.conf" || true

# digest: of everything on standard input.
digest() { sha256sum | cut -d' ' -f1; }

common=$({
	cat "$here"/*.sh "$here"/mkimage/{image,layer,layout,main,recipe}.go
	echo "$SOURCE_DATE_EPOCH" "$mirror" "$security"
	dpkg --print-architecture
	((${#certificates[@]} == 0)) || sha256sum "${certificates[@]}"
} | digest)

# inputs IMAGE: a digest of what IMAGE is made from; standard input is what only IMAGE has.
inputs() { { echo "$common" && cat - "$here/$1/"*; } | digest; }

# enter ROOT COMMAND: runs a shell command in ROOT, with a clean environment, the machine's network and this
# folder at /images. Nothing of it stays in ROOT.
enter() {
	local root=$1 command=$2
	unshare --mount --propagation private bash -euc '
		root=$1 here=$2 work=$3 command=$4
		mount -t proc proc "$root/proc"
		mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
		mount -t tmpfs -o mode=755 tmpfs "$root/run"
		mount -t tmpfs -o mode=755 tmpfs "$root/dev"
		for node in null zero full random urandom tty; do
			: >"$root/dev/$node"
			mount --bind "/dev/$node" "$root/dev/$node"
		done
		ln -s /proc/self/fd "$root/dev/fd"
		mount --bind "$(realpath /etc/resolv.conf)" "$root/etc/resolv.conf"
		cp "$work/apt.conf" "$root/run/apt.conf"
		mkdir "$root/images"
		mount --bind "$here" "$root/images"
		exec chroot "$root" env -i HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
			${http_proxy:+http_proxy="$http_proxy"} ${https_proxy:+https_proxy="$https_proxy"} \
			${no_proxy:+no_proxy="$no_proxy"} APT_CONFIG=/run/apt.conf SOURCE_DATE_EPOCH="$SOURCE_DATE_EPOCH" \
			sh -ec "$command" </dev/null
	' enter "$root" "$here" "$work" "$command" >"$work/log" 2>&1 || {
		tail -30 "$work/log" >&2
		echo "images: this failed, its last lines are above: $command" >&2
		exit 1
	}
	rmdir "$root/images"
}

# begin REF INPUTS: succeeds if REF has to be made, and says so.
begin() {
	printf 'images: %-24s ' "$1" >&2
	begun=$SECONDS
	if [[ -z ${FORCE:-} ]] && "$mkimage" current "$out" "$1" "$2" 2>/dev/null; then
		echo current >&2
		return 1
	fi
}

# write IMAGE REF INPUTS UPPER [FLAG…]: puts REF into the layout.
write() {
	local image=$1 ref=$2 inputs=$3 upper=$4 made
	shift 4
	made=$("$mkimage" build -layout "$out" -ref "$ref" -inputs "$inputs" -epoch "$SOURCE_DATE_EPOCH" \
		-dockerfile "$here/$image/Dockerfile" -upper "$upper" "$@")
	printf '%.19s  %s, %d s\n' "$made" "$(size "$ref")" $((SECONDS - begun)) >&2
}

# size REF: of its compressed layers together.
size() { "$mkimage" layers "$out" "$1" | tr '\n' '\0' | du -ch --apparent-size --files0-from=- | tail -1 | cut -f1; }

# layer IMAGE REF INPUTS [FLAG…]: makes an image on top of the base.
layer() {
	local image=$1 base=$work/debian root=$work/root command
	if [[ ! -d $base ]]; then
		mkdir "$base"
		"$mkimage" layers "$out" debian:bookworm-slim | while read -r file; do
			tar -C "$base" --xattrs --xattrs-include='*' --numeric-owner -xzpf "$file"
		done
	fi
	mkdir "$work/upper" "$work/overlay" "$root"
	mount -t overlay -o "lowerdir=$base,upperdir=$work/upper,workdir=$work/overlay,redirect_dir=off,index=off" overlay "$root"
	"$mkimage" runs "$here/$image/Dockerfile" >"$work/runs"
	while read -r command; do enter "$root" "$command"; done <"$work/runs"
	enter "$root" /images/clean.sh
	umount "$root"
	write "$image" "$2" "$3" "$work/upper" "${@:4}"
	rm -rf "$work/upper" "$work/overlay" "$root"
}

# debian:bookworm-slim
hash=$(inputs debian </dev/null)
if begin debian:bookworm-slim "$hash"; then
	"$here/debootstrap.sh" "$work/debian" "$mirror" "$security" ${certificates[@]+"${certificates[@]}"}
	enter "$work/debian" "/images/install.sh debian"
	rm -rf "$work/debian/dev" && mkdir "$work/debian/dev"
	write debian debian:bookworm-slim "$hash" "$work/debian"
fi
common+=$("$mkimage" layers "$out" debian:bookworm-slim | xargs basename)

# runnerd/sandbox:latest
grep -v '^#' "$engines/MANIFEST" | (cd "$engines" && while read -r name _ digest; do echo "$digest  $name"; done | sha256sum --quiet -c) ||
	fail "the engines are not the ones their manifest means" "make engines"
hash=$(grep -v '^#' "$engines/MANIFEST" | inputs sandbox)
if begin runnerd/sandbox:latest "$hash"; then
	layer sandbox runnerd/sandbox:latest "$hash" -context "engines=$engines"
fi

# changed VARIABLE DEFAULT VALUE: the mkimage flag that carries a setting of this machine into an image, where
# it differs from the default. Never one with a password in it.
changed() {
	if [[ $2 == "$3" ]]; then return; fi
	if [[ $3 == *@* ]]; then
		echo "images: $1 may hold a password and stays out of the images" >&2
		return
	fi
	printf '%s\n' -env "$1=$3"
}

# golang:1.26
flags=()
for variable in GOPROXY GOSUMDB GONOSUMDB GOPRIVATE; do
	mapfile -t -O "${#flags[@]}" flags < <(changed "$variable" "$(env -u "$variable" GOENV=off go env "$variable")" "$(go env "$variable")")
done
hash=$({
	go version
	echo "${flags[*]-}"
} | inputs golang)
if begin golang:1.26 "$hash"; then
	layer golang golang:1.26 "$hash" -context "goroot=$(go env GOROOT)" ${flags[@]+"${flags[@]}"}
fi

# node:20
npm=$(npm root -g)/npm
node=$(dirname "$(realpath "$(command -v node)")")
mapfile -t flags < <(changed NPM_CONFIG_REGISTRY \
	"$(env -i PATH="$PATH" HOME=/nonexistent npm --userconfig=/nonexistent --globalconfig=/dev/null config get registry)" \
	"$(npm config get registry)")
hash=$({
	sha256sum <"$node/node"
	grep '"version"' "$npm/package.json"
	echo "${flags[*]-}"
} | inputs node)
if begin node:20 "$hash"; then
	layer node node:20 "$hash" -context "node=$node" -context "npm=$npm" ${flags[@]+"${flags[@]}"}
fi

"$mkimage" sweep "$out"
echo "images: 4 in $out, $(du -sh --exclude=.work "$out" | cut -f1), $((SECONDS - started)) s" >&2

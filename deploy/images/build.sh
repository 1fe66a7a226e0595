#!/usr/bin/env bash
# Makes the images that runnerd's examples, demo and tests stand on, with no container engine and no
# image registry: debian:bookworm-slim from Debian's packages, golang and node from the toolchains of
# this machine, runnerd/sandbox from the engines. The result is one OCI image layout whose index names
# every image; runnerd's registry serves it (see README.md here).
#
# A layer is made once for its inputs (scripts, package list, layer below, certificates, toolchain) and
# kept in OUTPUT_DIR.cache; --refresh makes them anew from Debian's current packages.
#
# All of it happens in a mount and a process namespace of its own: however it ends, the kernel takes
# every mount, process and scratch file with it.
#
# usage: deploy/images/build.sh [--refresh] [OUTPUT_DIR]      (default: bin/images)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."
# shellcheck source=deploy/images/layer.sh
. "$here/layer.sh"

refresh=
if [[ ${1:-} == --refresh ]]; then
	refresh=1
	shift
fi
out=$(realpath -m "${1:-bin/images}")
engines=$(realpath -m "${RUNNERD_ENGINES:-bin/engines}")
cache=$out.cache

if [[ ${RUNNERD_IMAGES_NAMESPACE:-} != 1 ]]; then
	[[ $(id -u) == 0 ]] || fail "debootstrap and chroot need root" "run it as root, or in a container with CAP_SYS_ADMIN"
	for tool in debootstrap:debootstrap unshare:util-linux go:golang node:nodejs npm:npm sha256sum:coreutils flock:util-linux; do
		command -v "${tool%%:*}" >/dev/null || fail "${tool%%:*} is not installed" "apt-get install ${tool#*:}"
	done
	[[ -f $engines/MANIFEST ]] || fail "no engines in $engines" "make engines"
	mkdir -p "$cache/debs" "$cache/layers" "$cache/scratch"
	exec 9>"$cache/.lock"
	flock -n 9 || {
		say "waiting for another build into $out"
		flock 9
	}
	# The lock's descriptor dies with this shell, so it is held until the whole build is gone.
	RUNNERD_IMAGES_NAMESPACE=1 unshare --mount --propagation private --pid --fork --kill-child --mount-proc \
		"$here/build.sh" ${refresh:+--refresh} "$out" &
	builder=$!
	trap 'kill "$builder" 2>/dev/null; wait "$builder"; exit 130' INT TERM HUP
	wait "$builder"
	exit
fi

[[ $refresh ]] && rm -rf "$cache/layers" && mkdir -p "$cache/layers"
umask 022
# One fixed moment for every file newer than it and for every image: outputs depend on contents alone.
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-1793491200} LC_ALL=C.UTF-8 TZ=UTC
export DEBIAN_FRONTEND=noninteractive DEBCONF_NOWARNINGS=yes
suite=bookworm
scratch=$cache/scratch
mount -t tmpfs -o mode=0755,size=80% runnerd-images "$scratch"
mkimage=$scratch/mkimage
go build -o "$mkimage" ./deploy/images/mkimage

# The certificates this machine trusts beyond Debian's own: an image that lacks them cannot reach
# anything behind a TLS-inspecting proxy.
mapfile -t certificates < <(find /usr/local/share/ca-certificates -name '*.crt' 2>/dev/null | sort)
goroot=$(go env GOROOT)
go_version=$(go env GOVERSION)
node_version=$(node --version)

started=$SECONDS
common=("$here/build.sh" "$here/layer.sh" "$here"/mkimage/*.go)
setup=("$here/setup.sh")

layer debian "" "$suite $(mirrors)" "${common[@]}" "$here/debian/rootfs.sh" "$here/setup.sh" $(find "$here/debian/files" -type f | sort) "${certificates[@]}"
debian=$made

layer golang-packages "$debian" "" "${common[@]}" "${setup[@]}" "$here/golang/packages"
golang_packages=$made
layer golang "$debian $golang_packages" "$go_version $goroot" "${common[@]}" "$here/golang/files.sh" "$goroot/VERSION"
golang=$made

layer node-packages "$debian" "" "${common[@]}" "${setup[@]}" "$here/node/packages"
node_packages=$made
layer node "$debian $node_packages" "$(npm --version)" "${common[@]}" "$here/node/files.sh" "$(realpath "$(command -v node)")"
node=$made

layer sandbox-packages "$debian" "" "${common[@]}" "${setup[@]}" "$here/sandbox/packages"
sandbox_packages=$made
layer sandbox "$debian $sandbox_packages" "" "${common[@]}" "$here/sandbox/files.sh" "$here/sandbox/engines" "$engines/MANIFEST"
sandbox=$made

# What an image of this machine must be told about it: proxies of the module and package registries that
# are not the tools' own defaults, and for node the certificates, which it does not take from the system.
path=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
go_env=(GOLANG_VERSION="${go_version#go}" GOTOOLCHAIN=local GOPATH=/go PATH="/go/bin:/usr/local/go/bin:$path")
for variable in GOPROXY GOSUMDB GONOSUMDB GOPRIVATE GONOPROXY; do
	value=$(go env "$variable")
	[[ $value == "$(env -u "$variable" GOENV=off go env "$variable")" ]] || go_env+=("$variable=$value")
done
node_env=(NODE_VERSION="${node_version#v}" PATH="$path")
registry=$(npm config get registry)
default_registry=$(env -i PATH="$PATH" HOME=/nonexistent npm config get registry --userconfig=/dev/null --globalconfig=/dev/null)
[[ $registry == "$default_registry" ]] || node_env+=("NPM_CONFIG_REGISTRY=$registry")
((${#certificates[@]} == 0)) || node_env+=(NODE_EXTRA_CA_CERTS=/etc/ssl/certs/ca-certificates.crt)

go_tag=$(cut -d. -f1,2 <<<"${go_version#go}")
node_tag=$(cut -d. -f1 <<<"${node_version#v}")
images=$scratch/images.json
"$mkimage" spec -out "$images" -ref debian:$suite-slim -env PATH="$path" -cmd bash -layer "$debian"
"$mkimage" spec -out "$images" -ref "golang:$go_tag" -workdir /go -cmd bash \
	"${go_env[@]/#/-env=}" -layer "$debian" -layer "$golang_packages" -layer "$golang"
"$mkimage" spec -out "$images" -ref "node:$node_tag" -cmd node \
	"${node_env[@]/#/-env=}" -layer "$debian" -layer "$node_packages" -layer "$node"
"$mkimage" spec -out "$images" -ref runnerd/sandbox:latest -env PATH="$path" -cmd bash \
	-layer "$debian" -layer "$sandbox_packages" -layer "$sandbox"
"$mkimage" layout -epoch "$SOURCE_DATE_EPOCH" -spec "$images" "$out"
say "in $out, $((SECONDS - started)) s"

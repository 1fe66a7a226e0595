#!/usr/bin/env bash
# Compiles the pinned engines from the Go module proxy into a folder, with one MANIFEST of versions and
# digests beside them. go.sum is the checksum of every input and -trimpath makes the output a function
# of it, of this script and of the Go toolchain alone; their hash is the manifest's "inputs" line, and
# an engine that is there with the digest the manifest gives for the same inputs is not built again.
# The manifest is rewritten after each engine, so an interrupted run goes on where it stopped.
#
# usage: engines/build.sh [OUTPUT_DIR]      (default: ../bin/engines)
set -euo pipefail
cd "$(dirname "$0")"
out=$(realpath -m "${1:-../bin/engines}")

# name, package, module, the variable its version is linked into, build tags. A version is the module's
# own: dockerd's is the moby/v2 module's, not the Docker release cut from the same commit.
containerd=github.com/containerd/containerd/v2
moby=github.com/moby/moby/v2
cli=github.com/docker/cli
buildx=github.com/docker/buildx
buildkit=github.com/moby/buildkit
engines=(
	"buildctl                 $buildkit/cmd/buildctl                   $buildkit   $buildkit/version.Version"
	"buildkitd                $buildkit/cmd/buildkitd                  $buildkit   $buildkit/version.Version"
	"containerd               $containerd/cmd/containerd               $containerd $containerd/version.Version"
	"containerd-shim-runc-v2  $containerd/cmd/containerd-shim-runc-v2  $containerd $containerd/version.Version"
	"docker                   $cli/cmd/docker                          $cli        $cli/cli/version.Version"
	"docker-buildx            $buildx/cmd/buildx                       $buildx     $buildx/version.Version"
	"dockerd                  $moby/cmd/dockerd                        $moby       $moby/dockerversion.Version \
		exclude_graphdriver_btrfs,exclude_graphdriver_zfs,no_libnftables"
	"runc                     github.com/opencontainers/runc           github.com/opencontainers/runc - seccomp"
)

# fail MESSAGE MENDING: says what is missing and how to mend it.
fail() {
	printf 'engines: %s\n  mend it: %s\n' "$1" "$2" >&2
	exit 1
}

command -v go >/dev/null || fail "no go toolchain on the PATH" "install Go (version in engines/go.mod)"
command -v gcc >/dev/null || fail "runc needs a C compiler" "apt-get install gcc libc6-dev"
printf '#include <seccomp.h>\n' | gcc -E - >/dev/null 2>&1 ||
	fail "runc needs the headers and static library of libseccomp" "apt-get install libseccomp-dev pkg-config"
command -v pkg-config >/dev/null || fail "runc finds libseccomp with pkg-config" "apt-get install pkg-config"

export CGO_ENABLED=0 GOFLAGS=-mod=readonly
mkdir -p "$out"
exec 9>"$out/.lock"
flock -n 9 || {
	echo "engines: waiting for another build into $out" >&2
	flock 9
}
inputs=$({
	cat go.mod go.sum build.sh
	go version
	gcc -dumpfullversion
} | sha256sum | cut -d' ' -f1)

# The lines of engines that are current: same inputs, and the file is the one the manifest means.
declare -A have=()
if grep -qsx "# inputs $inputs" "$out/MANIFEST"; then
	while read -r name version digest; do
		[[ $name == \#* ]] && continue
		if [[ $(sha256sum "$out/$name" 2>/dev/null) == "$digest "* ]]; then have[$name]="$name $version $digest"; fi
	done <"$out/MANIFEST"
fi

# write_manifest: the engines known so far, sorted, replaced in one rename.
write_manifest() {
	{
		echo "# inputs $inputs"
		((${#have[@]} == 0)) || printf '%s\n' "${have[@]}" | LC_ALL=C sort
	} >"$out/.MANIFEST.new"
	mv "$out/.MANIFEST.new" "$out/MANIFEST"
}

# compile NAME PACKAGE VERSION VARIABLE TAGS: one static binary, put in place whole or not at all.
compile() {
	local name=$1 package=$2 version=${3#v} variable=$4 tags=netgo,osusergo${5:+,$5} flags=() ld="-s -w"
	case $name in
	# runc enters namespaces in C before Go starts, and its seccomp support is libseccomp: the one cgo engine.
	runc)
		local -x CGO_ENABLED=1
		ld+=" -extldflags -static"
		;;
	# docker/cli has no go.mod, so Go takes it for Go 1.16 code; its files say otherwise, all but one.
	docker) flags=("-gcflags=$package=-lang=go1.26") ;;
	# These print the tag with its v.
	containerd* | buildkitd | buildctl | docker-buildx) version=v$version ;;
	esac
	[[ $variable == - ]] || ld+=" -X $variable=$version"
	go build -trimpath -buildvcs=false -tags "$tags" -ldflags "$ld" ${flags[@]+"${flags[@]}"} -o "$out/.$name.new" "$package"
	mv "$out/.$name.new" "$out/$name"
}

write_manifest
started=$SECONDS
for i in "${!engines[@]}"; do
	read -r name package module variable tags <<<"${engines[i]//[$'\t\n']/ }"
	version=$(go list -m -f '{{.Version}}' "$module")
	version=${version%+incompatible}
	printf 'engines: %2d/%d  %-24s %-16s ' "$((i + 1))" "${#engines[@]}" "$name" "$version" >&2
	if [[ -n ${have[$name]:-} ]]; then
		echo current >&2
		continue
	fi
	begun=$SECONDS
	compile "$name" "$package" "$version" "$variable" "${tags:-}" || {
		echo "engines: $name did not compile; its error is above" >&2
		exit 1
	}
	have[$name]="$name $version $(sha256sum "$out/$name" | cut -d' ' -f1)"
	write_manifest
	echo "built in $((SECONDS - begun)) s" >&2
done
echo "engines: ${#engines[@]} in $out, $(du -ch $(for n in "${!have[@]}"; do echo "$out/$n"; done) | tail -1 | cut -f1), $((SECONDS - started)) s" >&2

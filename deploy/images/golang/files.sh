#!/usr/bin/env bash
# Puts this machine's Go toolchain into DIR as the golang images have it: /usr/local/go and a GOPATH
# that any user may write. Go's own tests and their data stay out.
#
# usage: GOROOT=... files.sh DIR     (from ../build.sh)
set -euo pipefail
dir=$1
mkdir -p "$dir/usr/local/go" "$dir/go/src" "$dir/go/bin"
chmod 1777 "$dir/go" "$dir/go/src" "$dir/go/bin"
tar -C "$GOROOT" --exclude=./test --exclude=./api --exclude=./doc --exclude=./pkg/obj --exclude='./src/*/testdata' --exclude='*.log' -cf - . |
	tar -C "$dir/usr/local/go" --no-same-owner -xf -
chmod -R u+w,go-w "$dir/usr/local/go"

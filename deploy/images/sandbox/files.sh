#!/bin/sh
# Puts the engines into DIR where the file "engines" says: the one script for build.sh and the Dockerfile.
#
# usage: ENGINES=bin/engines files.sh DIR
set -eu
dir=$1
list=$(dirname "$0")/engines
sed 's/#.*//' "$list" | while read -r engine target; do
	[ -n "$engine" ] || continue
	mkdir -p "$dir$(dirname "$target")"
	install -m 755 "$ENGINES/$engine" "$dir$target"
done
# The init of docker run --init.
ln -s /usr/bin/tini-static "$dir/usr/local/bin/docker-init"

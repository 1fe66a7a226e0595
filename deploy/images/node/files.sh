#!/usr/bin/env bash
# Puts this machine's Node.js into DIR as the node images have it: node, npm, npx and corepack under
# /usr/local, the headers native modules compile against, and a user called node.
#
# usage: files.sh DIR     (from ../build.sh)
set -euo pipefail
dir=$1
prefix=$dir/usr/local
binary=$(realpath "$(command -v node)")
modules=$(dirname "$(realpath "$(command -v npm)")")
modules=${modules%%/npm/*}
headers=$(dirname "$(dirname "$binary")")/include/node

mkdir -p "$prefix/bin" "$prefix/lib/node_modules" "$prefix/include"
install -m 755 "$binary" "$prefix/bin/node"
ln -s node "$prefix/bin/nodejs"
cp -r --dereference "$modules/npm" "$prefix/lib/node_modules/npm"
ln -s ../lib/node_modules/npm/bin/npm-cli.js "$prefix/bin/npm"
ln -s ../lib/node_modules/npm/bin/npx-cli.js "$prefix/bin/npx"
if [[ -d $modules/corepack ]]; then
	cp -r "$modules/corepack" "$prefix/lib/node_modules/corepack"
	ln -s ../lib/node_modules/corepack/dist/corepack.js "$prefix/bin/corepack"
fi
rm -rf "$prefix"/lib/node_modules/npm/{docs,man}
if [[ -d $headers ]]; then
	cp -r "$headers" "$prefix/include/node"
	find "$prefix/include/node/openssl/archs" -mindepth 1 -maxdepth 1 \
		! -name "linux-$(uname -m)" -exec rm -rf {} + 2>/dev/null || true
fi

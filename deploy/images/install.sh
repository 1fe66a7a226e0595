#!/bin/sh
# Runs inside an image being made, by build.sh or by the RUN line of its Dockerfile: installs the
# packages in IMAGE/packages and leaves nothing behind that differs from one run to the next.
#
# usage: install.sh IMAGE
set -eu
cd "$(dirname "$0")"
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-1767225600}"

packages=$(grep -v '^#' "$1/packages" || true)
apt-get -qq update
# Security fixes newer than the base's own packages come with every image.
apt-get -qq -y -o Dpkg::Use-Pty=0 upgrade >/dev/null
# shellcheck disable=SC2086 # a list of words
[ -z "$packages" ] || apt-get -qq -y -o Dpkg::Use-Pty=0 install --no-install-recommends $packages >/dev/null
exec ./clean.sh

#!/bin/sh
# Runs inside an image under construction, as root: the one script for build.sh and the Dockerfile.
#
# usage: setup.sh upgrade             Debian's current point release and security fixes
#        setup.sh packages [FILE]     installs the packages FILE names, one a line, # comments
set -eu
apt-get -qq update
case $1 in
upgrade)
	apt-get -qq dist-upgrade -y --no-install-recommends
	;;
packages)
	# shellcheck disable=SC2046
	apt-get -qq install -y --no-install-recommends $(sed 's/#.*//' "${2:-/run/images/packages}")
	# A sandbox's user is root already; in the others su and passwd are of no use to a build. No program
	# that changes who runs it has to be there.
	find / -xdev -type f -perm /6000 -exec chmod ug-s {} +
	;;
esac

# What differs from one run to the next, and what a package manager can make again.
apt-get clean
rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/ldconfig/aux-cache /var/cache/debconf/*-old \
	/var/lib/dpkg/*-old /var/lib/dpkg/lock* /var/lib/dpkg/triggers/Lock /var/log/*.log /var/log/apt \
	/etc/passwd- /etc/group- /etc/shadow- /etc/gshadow- /etc/.pwd.lock /tmp/* /root/.wget-hsts
find /var/log -type f -exec sh -c ': >"$1"' sh {} \;

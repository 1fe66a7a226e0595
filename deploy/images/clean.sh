#!/bin/sh
# Runs inside an image being made: takes away what its making leaves that is of no use there or that
# differs from one run to the next. The list of the base's own packages is kept.
set -eu
apt-get -qq clean
rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/apt/archives/lock /var/cache/ldconfig/aux-cache /var/cache/debconf/*-old \
	/var/lib/dpkg/*-old /var/lib/systemd/random-seed /var/lib/dbus/machine-id /etc/machine-id \
	/etc/passwd- /etc/group- /etc/shadow- /etc/gshadow- /etc/.pwd.lock /root/.wget-hsts
find /var/log -type f -delete
# The day of the last password change, where a tool wrote today's.
sed -i -E "s/^([^:]*:[^:]*:)[0-9]+:/\1$((${SOURCE_DATE_EPOCH:-1767225600} / 86400)):/" /etc/shadow

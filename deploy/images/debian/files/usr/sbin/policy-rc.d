#!/bin/sh
# As in Debian's own container images: there is no init here, so packages must not start services.
exit 101

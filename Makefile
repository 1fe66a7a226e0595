# Each target does all of its own set-up, on a fresh Debian machine too. See README.md.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X main.version=$(VERSION)

PACKAGES := gcc libc6-dev pkg-config libseccomp-dev debootstrap e2fsprogs nftables iptables iproute2 ca-certificates jq git isal

# What the emulated machine of "make guest" needs beside these.
GUEST_PACKAGES := qemu-system-x86 busybox-static cpio

STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOFUMPT := mvdan.cc/gofumpt@v0.12.0

.PHONY: help packages engines images build demo test unit integration guest lint bench clean

help: ## show this
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

packages: ## install what building and running needs (Debian packages, as root)
	@missing=(); for p in $(PACKAGES); do dpkg -s "$$p" >/dev/null 2>&1 || missing+=("$$p"); done; \
	if (( $${#missing[@]} )); then \
		echo "installing $${missing[*]}"; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$${missing[@]}" >/dev/null; \
	fi

engines: packages ## compile the pinned engines into bin/engines
	@engines/build.sh "$(CURDIR)/bin/engines"

images: engines ## make the images into bin/images
	@deploy/images/build.sh "$(CURDIR)/bin/images"

build: ## compile runnerd into bin/
	@mkdir -p bin/engines
	@CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o bin/engines/ ./cmd/runnerd-init ./cmd/runnerd-clone ./cmd/runnerd-lend ./cmd/runnerd-plan ./cmd/runnerd-probe ./cmd/runnerd-wasm
	@CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o bin/runnerd ./cmd/runnerd

demo: images build ## build examples/farm cold and warm, then run a Docker Engine in a sandbox (ARGS=--keep)
	@examples/demo.sh $(ARGS)

unit: ## the tests that need no root and no engines
	@go test ./...

integration: images build ## the tests on real engines, as root
	@go test -tags integration -p 1 -count 1 -timeout 45m ./integration ./buildkit

guest test: PACKAGES += $(GUEST_PACKAGES)

guest: images build ## the tests that matter on cgroup version 2, in an emulated machine that has it
	@integration/guest/build.sh "$(CURDIR)/bin/guest"
	@go test -tags integration -count 1 -timeout 20m -v ./integration/guest | grep --line-buffered -vE '^ *=== '

test: images build ## all tests; on cgroup version 2, the main ones of "make guest"
	@go test ./...
	@go test -tags integration -p 1 -count 1 -timeout 45m -v ./integration ./buildkit | grep --line-buffered -vE '^=== ' 
	@integration/guest/build.sh "$(CURDIR)/bin/guest"
	@go test -tags integration -count 1 -timeout 20m -short -v ./integration/guest | grep --line-buffered -vE '^ *=== '

# SC2046 is meant where it is: a list of files without blanks. engines/build.sh is in the hash of the engines.
lint: ## gofumpt, vet, staticcheck, shellcheck
	@command -v shellcheck >/dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends shellcheck >/dev/null; }
	@out=$$(go run $(GOFUMPT) -l $$(git ls-files '*.go')); if [ -n "$$out" ]; then echo "not formatted by gofumpt:"; echo "$$out"; exit 1; fi
	@go vet ./... && go vet -tags integration,bench ./...
	@go run $(STATICCHECK) ./... && go run $(STATICCHECK) -tags integration,bench ./integration/... ./buildkit
	@shellcheck --severity warning --exclude SC2046 $$(git ls-files '*.sh')

bench: PACKAGES += zstd

bench: images build ## measure, and print goal, figure and verdict (ROWS=start|engine|worker|builds|farm|dockerbuild|cache|gitlab|memory|density|sharing|usage|mask|wasm)
	@go test -tags integration,bench -count 1 -timeout 3h -run "TestBench$(if $(ROWS),/$(ROWS))" -v ./integration | grep --line-buffered -vE "^ *(=== |--- )"

clean: ## remove what was built
	rm -rf bin

# What a person or a CI machine does with this repository. `make` lists it.

# Where `make run` listens, and what more it passes to tl-init.
LISTEN ?= 127.0.0.1:9501
ARGS ?=
TARGET := $(or $(CARGO_TARGET_DIR),target)

.PHONY: help run test test-rust test-python test-vm bench dist rootfs package

help: ## This list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 14

run: ## Start tl-init as PID 1 of a namespace (LISTEN=127.0.0.1:9501, ARGS=...)
	@tests/need unshare cc
	@cargo build --release --quiet --package tl-init
	@init/run.sh $(TARGET)/release/tl-init --listen $(LISTEN) $(ARGS)

test: test-rust test-python ## All tests

test-rust: ## Unit tests, documentation's examples, and the real binary as PID 1
	@tests/need unshare cc
	cargo test --workspace

test-python: ## The public Python client, unmodified, against the real binary
	@tests/need unshare cc python3
	@tests/need redis vnc nginx vim less top || echo "without them their tests are skipped"
	@cargo build --quiet --package tl-init
	@tests/python/venv
	.cache/venv/bin/python -m pytest tests/python

test-vm: rootfs ## A real kernel in an emulated machine, with the root file systems of `make rootfs`
	@tests/need python3
	@init/images/fetch.sh qemu runc bwrap
	@tests/python/venv
	.cache/venv/bin/python -m pytest tests/vm

dist: ## The static binary for images: dist/tl-init
	@tests/need unshare cc
	@init/images/dist.sh $(abspath $(TARGET))

rootfs: dist ## Small root file systems with it, as directory, cpio and ext4, below dist/
	@tests/need rootfs
	@init/images/fetch.sh busybox kernel
	@init/images/rootfs.sh

package: ## Each crate as a registry would deliver it, built from its package
	cargo package --workspace --allow-dirty

bench: ## Figures, each beside its floor on this machine
	@tests/need unshare cc
	cargo bench --package tl-init --bench figures

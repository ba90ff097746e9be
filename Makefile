# What a person or a CI machine does with this repository. `make` lists it.

# Where `make run` listens, and what more it passes to tl-init.
LISTEN ?= 127.0.0.1:9501
ARGS ?=
TARGET := $(or $(CARGO_TARGET_DIR),target)

.PHONY: help run test test-rust test-python bench

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
	@cargo build --quiet --package tl-init
	@tests/python/venv
	.cache/venv/bin/python -m pytest -q -p no:cacheprovider tests/python

bench: ## Figures, each beside its floor on this machine
	@tests/need unshare cc
	cargo bench --package tl-init --bench figures

# Build, test and run targets; `make` lists them.

# Address of `make run`, and further arguments of tl-init or of the benchmarks.
LISTEN ?= 127.0.0.1:9501
ARGS ?=
# Seconds for each target of `make fuzz`.
SECONDS ?= 600
TARGET := $(or $(CARGO_TARGET_DIR),target)

.PHONY: help run test test-rust test-python test-host test-fuzz test-vm test-sanitizers soak fuzz bench bench-peers static host host-clean dist test-dist rootfs package

help: ## Print this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 14

run: ## Build tl-init and start it as PID 1 of a namespace (LISTEN=127.0.0.1:9501, ARGS=...)
	@tests/need unshare cc
	@echo "building tl-init (a few minutes the first time)"
	@cargo build --release --quiet --package tl-init
	@init/run.sh $(TARGET)/release/tl-init --listen $(LISTEN) $(ARGS)

test: ## Run all Rust and Python tests, and fuzz each target for 20 s
	@# Many tests mostly wait: beside them, the fuzzers run at the lowest priority.
	@mkdir -p .cache; \
	nice -n 19 $(MAKE) --no-print-directory test-fuzz >.cache/fuzz.log 2>&1 & fuzz=$$!; \
	$(MAKE) --no-print-directory test-rust test-python test-host || { kill $$fuzz; exit 1; }; \
	wait $$fuzz || failed=yes; cat .cache/fuzz.log; [ -z "$$failed" ]

test-rust: ## Run unit tests, doc examples, and the real binary as PID 1
	@tests/need unshare cc python3 perl
	@tests/need --optional shells
	@# Two tests for each CPU: many of them only wait.
	RUST_TEST_THREADS=$$((2 * $$(nproc))) cargo test --workspace --exclude tl-host
	cargo test --package tl-init --bench figures -- --quick
	cargo test --package tl-init --features fault-injection --test panics

test-python: ## Run the public Python and npm clients, unmodified, against the real binary
	@tests/need unshare cc python3 curl
	@tests/need --optional redis vnc nginx vim less top promtool
	@cargo build --quiet --package tl-init
	@tests/python/venv
	.cache/venv/bin/python -m pytest tests/python

test-host: static ## Run tl-host, and the public clients against it, with an engine of the tests' own
	@tests/need unshare cc python3 curl
	@tests/need --optional podman
	@cargo build --quiet --package tl-init --package tl-host
	@# Two tests for each CPU: many of them only wait.
	RUST_TEST_THREADS=$$((2 * $$(nproc))) cargo test --package tl-host
	@tests/python/venv
	.cache/venv/bin/python -m pytest tests/host/python

test-fuzz: ## Fuzz each target for 20 s, two at a time
	@tests/need cc c++
	fuzz/run --seconds 20

fuzz: ## Fuzz each target, or those of ARGS, for 10 minutes, two at a time (SECONDS=600, ARGS="unit fleet")
	@tests/need cc c++
	fuzz/run --seconds $(SECONDS) $(ARGS)

test-vm: rootfs ## Boot the root file systems in an emulated machine, and run containers
	@tests/need python3
	@init/images/fetch.sh qemu runc bwrap
	@tests/need --optional podman
	@! command -v podman >/dev/null || init/images/fetch.sh debian
	@tests/python/venv
	.cache/venv/bin/python -m pytest tests/vm

soak: static ## Run random clients under faults for 10 minutes and check everything (ARGS="--seconds N --seed S --clients N")
	TL_TEST_PROGRAM=$(or $(TL_TEST_PROGRAM),$(abspath dist/tl-init)) \
		cargo test --package tl-init --test soak -- --seconds 600 $(ARGS)

static: ## Build only dist/tl-init, the static binary for this machine
	@tests/need unshare cc
	@echo "building dist/tl-init (a few minutes the first time)"
	@init/dist/build.sh $(abspath $(TARGET))

host: static ## Start tl-host on loopback with an engine and a default image; what is missing is installed (ARGS=...)
	@echo "building tl-host"
	@cargo build --release --quiet --package tl-host
	@host/run.sh $(abspath $(TARGET))/release/tl-host $(ARGS)

host-clean: ## End the sandboxes of `make host`, and remove its images and its records
	@[ ! -d .cache/host/state ] || cargo build --release --quiet --package tl-host
	@host/clean.sh $(abspath $(TARGET))/release/tl-host

dist: ## Build what is published, into dist/: static binaries, Debian packages, bills of materials, SHA256SUMS
	@tests/need unshare cc python3 dpkg
	@tests/need --optional cross
	@init/dist/release.sh $(abspath $(TARGET))

test-dist: dist ## Check what `make dist` has built, and that a second build gives the same bytes
	@tests/need lintian mmdebstrap rootfs
	@[ "$$(uname -m)" != x86_64 ] || init/images/fetch.sh aarch64
	@tests/python/venv
	.cache/venv/bin/python -m pytest tests/dist

test-sanitizers: ## Run tests in Miri and under the address and the thread sanitizer; needs a nightly Rust
	@tests/need unshare cc
	tests/sanitizers

rootfs: static ## Build small root file systems as directory, cpio and ext4, in dist/
	@tests/need rootfs
	@init/images/fetch.sh busybox kernel
	@init/images/rootfs.sh

package: ## Package each crate and build it from its package
	@# For cargo, a package of one version never changes. What an earlier run has unpacked below cargo's home, and built,
	@# is removed: otherwise the crates would be built against old copies of each other.
	@rm -rf $(or $(CARGO_HOME),$(HOME)/.cargo)/registry/src/-*/tl-* $(TARGET)/packages/debug/.fingerprint/tl-*
	@# What is built is not run.
	CARGO_PROFILE_DEV_OPT_LEVEL=0 CARGO_PROFILE_DEV_DEBUG=0 \
		cargo package --workspace --allow-dirty --target-dir $(TARGET)/packages

bench: static ## Measure the static binary and tl-host, each figure beside its floor (ARGS="--json FILE GROUP", ARGS=--help)
	@tests/need --optional podman
	@cargo build --release --quiet --package tl-host
	TL_TEST_PROGRAM=$(abspath dist/tl-init) TL_TEST_HOST=$(abspath $(TARGET))/release/tl-host \
		cargo bench --package tl-init --bench figures -- $(ARGS)

bench-peers: ## Measure other programs that supervise processes; installs their Debian packages
	@tests/need peers
	@$(MAKE) bench ARGS="peers $(ARGS)"

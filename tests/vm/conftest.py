import faulthandler
import os
import shutil

import archive
import pytest
from machine import DIST, Machine
from skips import pytest_runtest_makereport  # noqa: F401

# Time limit of one test: if anything hangs, the tests end with a traceback, and QEMU ends with them.
LIMIT = 180


@pytest.fixture(scope="session")
def terminal(request):
    """The standard error of the test run, from before pytest captures it."""
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        return os.fdopen(os.dup(2), "w")


@pytest.fixture(autouse=True)
def limit(terminal):
    faulthandler.dump_traceback_later(LIMIT, exit=True, file=terminal)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture
def boot(tmp_path):
    """Boots the initramfs of `make rootfs`, optionally with changed files."""

    def boot(without=(), files=None, arguments="", network=True):
        initramfs = DIST / "vm.cpio"
        if without or files:
            initramfs = tmp_path / "initramfs"
            initramfs.write_bytes(archive.changed((DIST / "vm.cpio").read_bytes(), without, files))
        return Machine(tmp_path, initramfs=initramfs, arguments=arguments, network=network)

    return boot


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    """A machine for all tests of a module. Neither its kernel nor a thread of init may panic."""
    with Machine(tmp_path_factory.mktemp("machine"), initramfs=DIST / "vm.cpio") as machine:
        machine.wait_until_up()
        yield machine
        assert not any(word in machine.console() for word in ("Kernel panic", "panicked")), machine.console()


@pytest.fixture
def disk(tmp_path):
    """A writable copy of the ext4 image."""
    return shutil.copy(DIST / "vm.ext4", tmp_path / "disk")

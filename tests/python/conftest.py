"""Fixtures: the real daemon as PID 1 of a namespace, and the public client connected to it."""

import functools
import os
import pathlib
import subprocess

import pytest
import waiting
from skips import pytest_runtest_makereport  # noqa: F401
from tensorlake.sandbox import Sandbox

ROOT = pathlib.Path(__file__).resolve().parents[2]
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
BINARY = os.environ.get("TL_INIT_BIN", str(TARGET / "debug" / "tl-init"))
TIMEOUT = 60


until = functools.partial(waiting.until, timeout=TIMEOUT)


class Daemon:
    def __init__(self, directory, *options):
        self.state = directory / "state"
        self.log = open(directory / "daemon.log", "w+b")
        # The environment of the test run must not configure the daemon.
        env = {key: value for key, value in os.environ.items() if not key.startswith("TL_")}
        self.launcher = subprocess.Popen(
            [str(ROOT / "init" / "namespace.sh"), BINARY, "--listen", "127.0.0.1:0", "--shutdown-grace", "1", *options],
            env=env | {"TL_NS_DIR": str(self.state)},
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
        )
        address = self.state / "run" / "address"
        until("the daemon listens", lambda: self.alive() and address.exists() and address.read_text().strip())
        self.url = "http://" + address.read_text().strip()
        self.token = (self.state / "run" / "token").read_text().strip()

    def alive(self):
        assert self.launcher.poll() is None, "the daemon ended:\n" + self.output()
        return True

    def output(self):
        self.log.seek(0)
        return self.log.read().decode(errors="replace")

    def stop(self):
        self.launcher.terminate()
        self.launcher.wait(TIMEOUT)


@pytest.fixture(scope="session")
def daemon(tmp_path_factory):
    daemon = Daemon(tmp_path_factory.mktemp("daemon"))
    yield daemon
    daemon.alive()
    daemon.stop()


@pytest.fixture
def sandbox(daemon):
    with Sandbox("sbx-1", proxy_url=daemon.url, api_key=daemon.token) as sandbox:
        yield sandbox
        # Kills what the test has left running.
        for process in sandbox.list_processes():
            managed = process.managed
            if process.status == "running" or managed and managed.status != "stopped":
                sandbox.kill_process(process.pid)

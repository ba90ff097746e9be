"""tl-init as PID 1 of real containers: with a main process it behaves like `docker run --init`, and the API answers."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import urllib.request
import uuid

import documents
import pytest
from machine import CACHE, DIST, ROOT, until
from tensorlake.sandbox import Sandbox

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the container runtimes need root")
TOKEN = "a-token-of-this-test"
TIMEOUT = 60


class Container:
    """A running container. `signal` signals its PID 1; `wait` returns the exit status of the runtime."""

    def __init__(self, runtime, rootfs, directory, args, bare):
        self.output_file = directory / "output"
        self.listens = not args or args[0] != "--"
        init = ["/sbin/init", "--listen", "127.0.0.1:0", "--token-file", "/etc/tl-init/token", *args]
        self.runtime, self.id = runtime, f"tl-init-{uuid.uuid4()}"
        pass_fds, info = (), None
        if runtime == "runc":
            # The configuration of the example, with the paths and arguments of the test.
            config = json.loads((ROOT / "examples/runc/config.json").read_text())
            config["root"]["path"] = str(rootfs)
            config["process"]["args"] = init
            if bare:
                config["root"]["readonly"] = True
                config["mounts"] = [mount for mount in config["mounts"] if mount["destination"] in ("/proc", "/dev")]
            (directory / "config.json").write_text(json.dumps(config))
            line = [CACHE / "runc", "--root", directory / "state", "run", "--bundle", directory, self.id]
        else:
            info, given = os.pipe()
            pass_fds = (given,)
            line = [CACHE / "bwrap", "--ro-bind" if bare else "--bind", rootfs, "/", "--proc", "/proc", "--dev", "/dev"]
            line += [] if bare else ["--tmpfs", "/run", "--tmpfs", "/tmp"]
            line += ["--unshare-pid", "--as-pid-1", "--die-with-parent", "--cap-add", "ALL"]
            line += ["--chdir", "/", "--info-fd", str(given), "--", *init]
        with open(self.output_file, "wb") as output:
            self.process = subprocess.Popen(
                [str(word) for word in line], stdin=subprocess.DEVNULL, stdout=output, stderr=output, pass_fds=pass_fds
            )
        self.init = self.process.pid  # runc forwards signals.
        if info is not None:
            os.close(given)
            with os.fdopen(info) as stream:
                self.init = json.load(stream)["child-pid"]

    def output(self):
        return self.output_file.read_text(errors="replace")

    def wait_for_text(self, text):
        def said():
            ended = self.process.poll() is not None
            assert text in self.output() or not ended, f"it ended without {text!r}:\n{self.output()}"
            return text in self.output()

        until(text, said, timeout=TIMEOUT)

    def url(self):
        self.wait_for_text("listening on ")
        return "http://" + self.output().split("listening on ")[1].split()[0]

    def signal(self, number):
        os.kill(self.init, number)

    def wait(self):
        return self.process.wait(TIMEOUT)

    def kill(self):
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.init, signal.SIGKILL)
            if self.runtime == "runc":
                # Killing `runc run` would leave the container running.
                state = self.output_file.parent / "state"
                subprocess.run([CACHE / "runc", "--root", state, "delete", "--force", self.id], check=True)
            self.process.kill()
            self.process.wait()


@pytest.fixture(scope="module")
def rootfs(tmp_path_factory):
    made = tmp_path_factory.mktemp("container") / "rootfs"
    subprocess.run(["cp", "-a", DIST / "rootfs", made], check=True)
    token = made / "etc/tl-init/token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def bare(rootfs, tmp_path_factory):
    """A root file system that lacks most of what programs expect; its containers mount it read-only."""
    made = tmp_path_factory.mktemp("bare") / "rootfs"
    subprocess.run(["cp", "-a", rootfs, made], check=True)
    for name in ("etc/passwd", "etc/group", "etc/hostname"):
        (made / name).unlink()
    for name in ("run", "tmp", "var", "home"):
        shutil.rmtree(made / name)
    return made


@pytest.fixture(params=["runc", "bwrap"])
def start(request, rootfs, tmp_path):
    started = []

    def start(*args, bare=None):
        started.append(Container(request.param, bare or rootfs, tmp_path, args, bare))
        return started[-1]

    yield start
    for container in started:
        container.kill()


def test_the_commands_of_the_recipe_work(rootfs, tmp_path):
    """Those of docs/images.md, with a free port, and with a state of runc of their own."""
    [block] = documents.of_group("runc")
    assert block.text.startswith("make rootfs\n")
    shutil.copytree(ROOT / "examples/runc", tmp_path / "examples/runc")
    config = json.loads((ROOT / "examples/runc/config.json").read_text())
    config["root"]["path"] = str(rootfs)
    config["process"]["args"] = ["/sbin/init", "--listen", "127.0.0.1:0"]
    (tmp_path / "examples/runc/config.json").write_text(json.dumps(config))
    wrapper = tmp_path / "runc"
    wrapper.write_text(f'#!/bin/sh\nexec {CACHE}/runc --root {tmp_path}/state "$@"\n')
    wrapper.chmod(0o755)
    commands = block.text.removeprefix("make rootfs\n")
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    try:
        done = subprocess.run(
            ["bash", "-ec", commands], env=env, cwd=tmp_path, text=True, capture_output=True, timeout=TIMEOUT
        )
        assert done.returncode == 0 and len(done.stdout.strip()) == 64, f"{done.stdout}{done.stderr}"
    finally:
        subprocess.run([wrapper, "delete", "--force", "tl-init"], check=True)


def test_the_api_answers(start):
    container = start()
    with Sandbox("sbx-1", proxy_url=container.url(), api_key=TOKEN) as sandbox:
        assert sandbox.run("sh", ["-c", "id -un; cat /proc/1/comm; exit 3"]).stdout.split() == ["tl-user", "init"]
    request = urllib.request.Request(container.url() + "/api/v1/boot", headers={"Authorization": f"Bearer {TOKEN}"})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        report = json.load(answer)
    assert all(step["ok"] for step in report["steps"] if step["name"] != "cgroup"), report


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_ends_a_container_without_a_main_process(start, number, code):
    container = start()
    container.url()
    container.signal(number)
    assert container.wait() == code, container.output()


@pytest.mark.parametrize(
    ("script", "code"), [("exit 0", 0), ("exit 7", 7), ("exit 255", 255), ("kill -9 $$", 137), ("kill -15 $$", 143)]
)
def test_the_exit_code_is_passed_on(start, script, code):
    container = start("--", "sh", "-c", f"echo main here; {script}")
    assert container.wait() == code, container.output()
    assert "main here\n" in container.output()


def test_a_missing_main_process_exits_with_127(start):
    container = start("--", "/no/such/program")
    assert container.wait() == 127, container.output()
    assert "/no/such/program" in container.output()


def test_a_bare_read_only_root_works(start, bare):
    container = start(bare=bare)
    with Sandbox("sbx-1", proxy_url=container.url(), api_key=TOKEN) as sandbox:
        assert sandbox.run("id", ["-u"], user="0").stdout == "0"
    container.signal(signal.SIGTERM)
    assert container.wait() == 0, container.output()


def test_a_port_in_use_ends_the_container(start):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        container = start("--listen", address)
        assert container.wait() == 1, container.output()
        assert address in container.output()


def test_a_missing_token_file_ends_the_container(start):
    container = start("--token-file", "/nowhere")
    assert container.wait() == 1, container.output()
    assert "/nowhere" in container.output()


# SIGWINCH is forwarded too, but runc does not pass it to the container.
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1])
def test_signals_are_forwarded_to_the_main_process(start, number):
    name = number.name.removeprefix("SIG")
    handles = f"trap 'echo got {name}; exit 42' {name}; echo ready; while :; do sleep 0.1; done"
    container = start("--", "sh", "-c", handles)
    container.wait_for_text("ready")
    container.signal(number)
    assert container.wait() == 42, container.output()
    assert f"got {name}" in container.output()


def test_a_death_by_signal_exits_with_128_plus_the_signal(start):
    container = start("--", "sh", "-c", "echo ready; exec sleep 1000")
    container.wait_for_text("ready")
    container.signal(signal.SIGTERM)
    assert container.wait() == 143, container.output()


def test_orphans_are_reaped_and_end_with_the_container(start):
    """No zombie remains, and remaining processes end with the main process."""
    script = """
        (sleep 0.1 & exec true) & wait
        (sleep 1000 &)
        tries=0
        while grep -qs '^State:.Z' /proc/[0-9]*/status; do
            tries=$((tries + 1)); [ $tries -lt 500 ] || exit 1; sleep 0.05
        done
    """
    container = start("--", "sh", "-c", script)
    assert container.wait() == 0, container.output()

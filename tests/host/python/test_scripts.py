"""host/run.sh and host/clean.sh: `make host` and `make host-clean`, with the engine of the tests."""

import os
import pathlib
import signal
import subprocess

import httpx
import pytest
from conftest import IMAGE, INIT, PROGRAM, ROOT, TIMEOUT, until

# What the scripts would use before they start a service of their own.
SOCKETS = ["/run/podman/podman.sock", f"{os.environ.get('XDG_RUNTIME_DIR', '/nonexistent')}/podman/podman.sock", "/var/run/docker.sock"]


@pytest.fixture(params=["an engine that runs", "a service of its own"])
def environment(request, engine, image, tmp_path):
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("TL_", "TENSORLAKE_"))}
    clean |= {"TL_HOST_STATE_DIR": str(tmp_path / "state"), "TL_HOST_DEFAULT_IMAGE": IMAGE, "TL_HOST_INIT": INIT,
              "TL_HOST_API": "127.0.0.1:0", "TL_HOST_PROXY": "127.0.0.1:0"}
    if request.param == "an engine that runs":
        return clean | {"TL_HOST_ENGINE": engine.url}
    if any(pathlib.Path(socket).exists() for socket in SOCKETS):
        pytest.skip("the scripts would use the engine of this machine")
    # The service that the scripts start has the storage of the tests.
    return clean | {"CONTAINERS_CONF": str(engine.directory / "containers.conf"),
                    "CONTAINERS_STORAGE_CONF": str(engine.directory / "storage.conf")}


def run(environment, *words):
    with open(environment["TL_HOST_STATE_DIR"] + ".log", "w+") as log:
        program = subprocess.Popen([ROOT / "host/run.sh", PROGRAM, *words], env=environment, stdin=subprocess.DEVNULL,
                                   stdout=log, stderr=subprocess.STDOUT, start_new_session=True)

    def printed():
        text = pathlib.Path(log.name).read_text()
        assert program.poll() is None, text
        return [line for line in text.splitlines() if line.startswith("export TENSORLAKE_API_URL=")]

    [line] = until("tl-host is there", printed)
    return program, dict(word.split("=", 1) for word in line.split()[1:])


def interrupt(program):
    """As Ctrl-C: every process of the group gets it."""
    os.killpg(program.pid, signal.SIGINT)
    assert program.wait(TIMEOUT) == 0


def test_make_host_and_make_host_clean(environment, engine, tmp_path):
    state, reached = tmp_path / "state", {}

    def call(method, path, **options):
        headers = {"Authorization": f"Bearer {reached['TENSORLAKE_API_KEY']}"}
        answer = httpx.request(method, reached["TENSORLAKE_API_URL"] + path, headers=headers, timeout=TIMEOUT, **options)
        return answer.raise_for_status().json()

    program, reached = run(environment)
    assert call("POST", "/sandboxes", json={"name": "kept"})["status"] == "running"
    call("POST", "/sandboxes/kept/snapshot")
    interrupt(program)
    # The sandbox goes on, and the next start finds it. Only a service of their own is ended.
    assert (state / "checked").exists() and not (state / "podman.pid").exists()
    assert len(engine.containers()) == 1
    program, reached = run(environment, "--log-level", "debug")
    assert call("GET", "/sandboxes/kept")["status"] == "running"
    # While it runs: it ends, too.
    done = subprocess.run([ROOT / "host/clean.sh", PROGRAM], env=environment, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0, done.stderr
    assert program.wait(TIMEOUT) == 0
    assert not state.exists() and engine.containers() == [] and engine.images() == [f"{IMAGE}:latest"]
    # There is nothing more to do.
    subprocess.run([ROOT / "host/clean.sh", PROGRAM], env=environment, check=True, timeout=TIMEOUT)
    left = subprocess.run(["pgrep", "-f", f"podman system service.*{state}"], capture_output=True, text=True)
    assert left.stdout == ""


def test_what_keeps_make_host_from_starting_is_said(environment):
    for changed, part in [({"TL_HOST_ENGINE": "unix:///nowhere.sock"}, "missing  engine:"),
                          ({"TL_HOST_DEFAULT_IMAGE": "localhost/none"}, "missing  image:")]:
        done = subprocess.run([ROOT / "host/run.sh", PROGRAM], env=environment | changed, capture_output=True, text=True,
                              timeout=TIMEOUT, stdin=subprocess.DEVNULL)
        assert done.returncode == 1 and part in done.stderr, done.stderr

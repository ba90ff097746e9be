"""Runs the code blocks of the documents, and holds that every block is run by some test."""

import contextlib
import dataclasses
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys

import documents
import httpx
import pytest
from conftest import BINARY, TIMEOUT, until

# What runs the blocks of a group: a test of this file, or the tests of another file.
GROUPS = {
    "tour": "test_the_tour_of_the_readme",
    "paste": "test_the_tour_of_the_readme",
    "tlctl": "test_the_commands_of_tlctl",
    "httpx": "test_the_examples_with_httpx",
    "make": "test_commands_of_make_and_cargo",
    "image": "test_the_dockerfile_of_the_readme_is_the_example",
    "embed": "test_embedding_the_library",
    "hello": "test_the_program_of_the_library_readme_is_the_example",
    "service": "test_the_service_file_is_accepted",
    "usage": "test_the_example_of_limits_and_usage",
    "idempotency": "test_a_run_that_is_repeated_in_python",
    "prometheus": "test_the_configuration_of_prometheus",
    "proxy": "tests/python/test_proxy.py",
    "engine": "tests/vm/test_engines.py",
    "services": "tests/vm/test_engines.py",
    "existing": "tests/vm/test_engines.py",
    "runc": "tests/vm/test_containers.py",
    "qemu": "tests/vm/test_boot.py",
    "contents": "tests/dist/test_release.py",
    "host": "tests/host/python/test_documents.py",
    "host-port": "tests/host/python/test_documents.py",
}
# The examples of the API are replayed by tests/python/test_api_examples.py, whatever their group.
REPLAYED = {"http"}
# Groups that no test can run, and why.
NOT_RUN = {
    "release": "needs the tag of a release, an account of the registry, and other toolchains",
    "host-setup": "installs packages, and uses the engine of the machine",
    "firecracker": "needs KVM and Firecracker",
    "cluster": "needs a Kubernetes cluster; tests/vm/test_engines.py runs the same objects with Podman",
}
# Languages that hold no commands.
DATA = {"text"}


def test_every_block_names_its_language_and_is_run():
    here = pathlib.Path(__file__).read_text()
    for group, runner in GROUPS.items():
        path = documents.ROOT / runner
        assert f"def {runner}(" in here or path.is_file() and f'of_group("{group}")' in path.read_text(), group
    for block in documents.all_blocks():
        assert block.language, f"{block}: no language after the ```"
        assert block.language in DATA | REPLAYED or block.group in {**GROUPS, **NOT_RUN}, f"{block}: no test runs this block"


def test_documents_have_no_indented_code():
    """Such code would be outside of the blocks that are run."""
    for path in documents.documents():
        prose = "".join(path.read_text().split("```")[::2])
        indented = [line for line in prose.splitlines() if line.startswith("    ")]
        assert not indented, f"{path}: {indented[0]}"


@contextlib.contextmanager
def make_run(tmp_path, *options):
    """What `make run` prints below its first line, while its daemon runs: the line to paste, and a command to try."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("TL")}
    # As after the line of an earlier daemon was pasted.
    env |= {"TL_INIT_URL": "http://127.0.0.1:1", "TL_INIT_TOKEN_FILE": "/tmp/tl-init.ended/run/token"}
    output = open(tmp_path / "output", "w+b")
    command = [str(documents.ROOT / "init/run.sh"), BINARY, "--listen", "127.0.0.1:0", *options]
    launcher = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)

    def lines():
        assert launcher.poll() is None, (tmp_path / "output").read_text()
        text = (tmp_path / "output").read_text()
        found = re.search(r"^  (export .*)\n  (curl .*)\n\n", text, re.MULTILINE)
        return found and found.groups()

    try:
        yield until("the usage is printed", lines)
    finally:
        launcher.terminate()
        status = launcher.wait(TIMEOUT)
    assert status == 0


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return str(server.getsockname()[1])


def the_command(export, command):
    """The two lines, as a block."""
    return documents.Block("init/run.sh", 0, "sh", "", f"{export}\n{command} | grep -q 'PID 1 is tl-init'\n")


def test_make_run_prints_lines_with_the_token_file_of_its_options(tmp_path):
    token = tmp_path / "own token"
    token.write_text("secret")
    token.chmod(0o600)
    for options in ([f"--token-file={token}"], ["--token-file", token], ["--no-auth"]):
        with make_run(tmp_path, *options) as (export, command):
            assert (str(token) in export) == (options != ["--no-auth"])
            documents.run([the_command(export, command)], tmp_path, {"PATH": os.environ["PATH"]})


def test_the_tour_of_the_readme(tmp_path):
    with make_run(tmp_path) as printed:
        check_the_tour(tmp_path, *printed)


def check_the_tour(tmp_path, export, command):
    [pasted] = documents.of_group("paste")
    # The name of a temporary directory has any letters and digits.
    shape = [re.sub(r"tl-init\.\w+", "tl-init.X", line) for line in (export, pasted.text)]
    assert documents.without_numbers(shape[0]) == documents.without_numbers(shape[1])
    # The port of the service may be taken on this machine.
    tour = [dataclasses.replace(block, text=block.text.replace("8765", free_port())) for block in documents.of_group("tour")]
    blocks = [the_command(export, command), *tour]
    documents.run(blocks, tmp_path, {"PATH": os.environ["PATH"]}, python=sys.executable)


def test_a_run_that_is_repeated_in_python(daemon, tmp_path):
    env = {"PATH": os.environ["PATH"], "TL_INIT_URL": daemon.url, "TL_INIT_TOKEN_FILE": str(daemon.state / "run/token")}
    documents.run(documents.of_group("idempotency"), tmp_path, env, python=sys.executable)


def test_the_commands_of_tlctl(daemon, tmp_path):
    (tmp_path / "tlctl").symlink_to(BINARY)
    # The token belongs to the user who runs the tests.
    env = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "TL_INIT_URL": daemon.url,
        "TL_INIT_TOKEN_FILE": str(daemon.state / "run/token"),
    }
    documents.run(documents.of_group("tlctl"), tmp_path, env)


def test_the_examples_with_httpx(daemon, tmp_path):
    env = {
        "PATH": os.environ["PATH"],
        "TL_INIT_URL": daemon.url,
        "TL_INIT_TOKEN_FILE": str(daemon.state / "run/token"),
    }
    # Each is a program of its own.
    for block in documents.of_group("httpx"):
        documents.run([block], tmp_path, env, python=sys.executable)


def test_the_dockerfile_of_the_readme_is_the_example():
    [block] = documents.of_group("image")
    lines = (documents.ROOT / "examples/Dockerfile").read_text().splitlines()
    assert block.text.splitlines() == [line for line in lines if not line.startswith(("#", "EXPOSE"))]


def test_commands_of_make_and_cargo():
    targets = set(re.findall(r"^([a-z-]+):", (documents.ROOT / "Makefile").read_text(), re.MULTILINE))
    known = {"make": targets, "cargo": {"build"}}
    for block in documents.of_group("make"):
        for line in block.text.splitlines():
            command, target = line.split()[:2]
            assert target in known[command], f"{block}: {line}"


def test_embedding_the_library(tmp_path):
    (tmp_path / "tl-init").symlink_to(documents.ROOT)
    # Kept between runs, because it takes a minute to build.
    env = dict(os.environ, CARGO_TARGET_DIR=str(documents.ROOT / ".cache/embed"))
    documents.run(documents.of_group("embed"), tmp_path, env)


def test_the_program_of_the_library_readme_is_the_example():
    [block] = documents.of_group("hello")
    assert (documents.ROOT / "examples/hello.rs").read_text().endswith("\n\n" + block.text)


def test_the_service_file_is_accepted(sandbox, daemon):
    [block] = documents.of_group("service")
    headers = {"Authorization": f"Bearer {daemon.token}"}
    started = httpx.post(daemon.url + "/api/v1/processes", content=block.text, headers=headers)
    # The fixture kills it.
    assert (started.status_code, started.json()["managed"]["name"]) == (201, "web"), started.text


def test_the_example_of_limits_and_usage(daemon):
    [block] = documents.of_group("usage")
    env = dict(os.environ, TL_INIT_URL=daemon.url, TL_INIT_TOKEN=daemon.token)
    told = subprocess.run([sys.executable, "-c", block.text], env=env, capture_output=True, text=True, timeout=TIMEOUT)
    assert told.returncode == 0, told.stderr
    assert re.fullmatch(r"256\n(tree|leader) \d+ \d+\n", told.stdout), told.stdout


@pytest.mark.skipif(not shutil.which("promtool"), reason="needs promtool")
def test_the_configuration_of_prometheus(tmp_path):
    [block] = documents.of_group("prometheus")
    (tmp_path / "token").write_text("x")
    file = tmp_path / "prometheus.yml"
    file.write_text(block.text.replace("/etc/prometheus/token", str(tmp_path / "token")))
    result = subprocess.run(["promtool", "check", "config", file], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_readme_has_every_option():
    printed = subprocess.run([BINARY, "--help"], capture_output=True, text=True, check=True).stdout
    options = set(re.findall(r"^  (--[a-z-]+)", printed, re.MULTILINE)) - {"--help", "--version"}
    rows = [line for line in (documents.ROOT / "README.md").read_text().splitlines() if line.startswith("| `--")]
    assert set(re.findall(r"`(--[a-z-]+)", " ".join(row.split(" | ")[0] for row in rows))) == options


def test_both_tables_of_events_are_the_same():
    def rows(path):
        cells = [line.split(" | ") for line in (documents.ROOT / path).read_text().splitlines()]
        return {row[0].strip("| "): row[1:3] for row in cells if row[0].startswith(("| `process.", "| `pty.", "| `log.left"))}

    library = {event: [cell.removesuffix(" |") for cell in cells] for event, cells in rows("src/README.md").items()}
    operations = rows("docs/operations.md")
    assert len(library) > 6 and operations == library

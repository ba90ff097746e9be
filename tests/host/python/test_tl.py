"""The command line `tl` of the public clients, unmodified: its commands for the life of a sandbox."""

import os
import pathlib
import subprocess
import sys

import pytest
from conftest import IMAGE, TIMEOUT

TL = pathlib.Path(sys.executable).parent / "tl"


@pytest.fixture
def try_tl(host, tmp_path):
    """Runs one command; returns its exit status, its stdout and its stderr."""

    def run(*words):
        # In a home without credentials.
        environment = os.environ | host.environment | {"HOME": str(tmp_path)}
        done = subprocess.run([TL, *words], env=environment, cwd=tmp_path, text=True, stdin=subprocess.DEVNULL,
                              capture_output=True, timeout=TIMEOUT)
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.fixture
def tl(try_tl):
    def run(*words):
        code, output, errors = try_tl("sbx", *words)
        assert code == 0, f"tl sbx {words}: {code}\n{output}{errors}"
        return output

    return run


def test_the_key_belongs_to_a_project(try_tl):
    code, output, errors = try_tl("whoami")
    assert code == 0 and "Project" in output, errors


def test_create_list_describe_and_terminate(host, tl, try_tl):
    sandbox = tl("create", "my-box", "--cpus", "0.5", "--memory", "300", "--expose", "8080").strip()
    assert tl("ls", "--quiet").split() == [sandbox]
    assert "my-box" in tl("ls") and "my-box" in tl("ls", "--running")
    assert "my-box" not in tl("ls", "--suspended")
    described = tl("describe", "my-box")
    for part in (sandbox, "running", IMAGE, "300 MB", "8080", host.proxy):
        assert part in described, described
    assert tl("exec", "my-box", "--", "sh", "-c", "echo hello").strip() == "hello"
    assert try_tl("sbx", "exec", "my-box", "--", "sh", "-c", "exit 5")[0] == 5
    assert "hello" in tl("logs", "my-box") and "echo hello" in tl("logs", "streams", "my-box")
    tl("terminate", "my-box")
    code, _, errors = try_tl("sbx", "describe", "my-box")
    # After the 404 of the sandbox, `tl` asks for it in the archive.
    assert code == 1 and "no archive" in errors, errors
    code, _, errors = try_tl("sbx", "terminate", "my-box")
    assert code == 1 and "SANDBOX_NOT_FOUND" in errors


def test_run(tl, try_tl, engine):
    assert tl("run", "--", "sh", "-c", "echo hello") == "hello\n"
    assert try_tl("sbx", "run", "--", "sh", "-c", "exit 7")[0] == 7
    assert engine.containers() == []


def test_suspend_resume_name_and_ports(host, tl):
    tl("create", "my-box")
    tl("suspend", "my-box")
    assert host("GET", "/sandboxes/my-box")["status"] == "suspended"
    tl("resume", "my-box")
    assert host("GET", "/sandboxes/my-box")["status"] == "running"
    tl("name", "my-box", "my-crate")
    tl("port", "expose", "my-crate", "8080")
    assert "8080" in tl("port", "ls", "my-crate")
    tl("port", "rm", "my-crate", "8080")
    info = host("GET", "/sandboxes/my-crate")
    assert (info["exposed_ports"], info["allow_unauthenticated_access"]) == ([], False)


def test_checkpoint_and_copy(host, tl):
    tl("create", "my-box")
    tl("exec", "my-box", "--", "sh", "-c", "echo kept > /tmp/file")
    snapshot = tl("checkpoint", "my-box").strip()
    assert snapshot in tl("checkpoint", "ls")
    tl("create", "restored", "--snapshot", snapshot)
    assert tl("exec", "restored", "--", "cat", "/tmp/file") == "kept\n"
    tl("checkpoint", "rm", snapshot)
    assert "Created sandboxes" in tl("copy", "my-box", "--times", "2")
    assert len(tl("ls", "--quiet").split()) == 4


def test_without_a_way_out(host, tl):
    tl("create", "inner", "--no-internet")
    assert not host("GET", "/sandboxes/inner")["network_policy"]["allow_internet_access"]
    assert "Internet:        allowed" not in tl("describe", "inner")


def test_errors_are_shown(try_tl):
    for words, part in [
        (["create", "Bad_Name"], "`name`"),
        (["create", "--image", "no-such-image"], "no-such-image"),
        (["create", "--network-allow", "1.1.1.1"], "`network.allow_out`"),
        (["create", "--filesystem", "f:/m"], "`file_systems`"),
        (["ls", "--archived"], "archive"),
        (["suspend", "gone"], "gone"),
    ]:
        code, _, errors = try_tl("sbx", *words)
        assert code == 1 and part in errors, errors

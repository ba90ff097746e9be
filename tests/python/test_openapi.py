"""The OpenAPI description: it is valid, the live daemon does what it says, and a client that is generated from it works."""

import importlib
import json
import os
import pathlib
import re
import subprocess
import sys
import threading

import httpx
import jsonschema
import pytest
from conftest import ROOT, TIMEOUT, Daemon, until
from openapi_spec_validator import OpenAPIV31SpecValidator, validate

DOCUMENT = ROOT / "docs" / "openapi.json"
HERE = pathlib.Path(__file__).parent
BIN = pathlib.Path(sys.executable).parent


def test_the_description_is_valid_openapi():
    validate(json.loads(DOCUMENT.read_text()), cls=OpenAPIV31SpecValidator)


def test_no_property_has_null_as_its_only_type():
    """The Python generator of openapi-generator 7.26 fails with such a property."""

    def check(schema):
        for name, value in schema.items() if isinstance(schema, dict) else ():
            if name in ("not", "then"):
                continue
            nulls = [key for key, part in value.items() if part == {"type": "null"}] if name == "properties" else []
            assert not nulls, nulls
            for part in value if isinstance(value, list) else [value]:
                check(part)

    check(json.loads(DOCUMENT.read_text()))


def test_null_is_as_good_as_an_absent_field(daemon):
    """Of what the description says about fields that exclude each other."""
    schemas = json.loads(DOCUMENT.read_text())["components"]
    registry = {"$schema": "https://json-schema.org/draft/2020-12/schema", "components": schemas}
    headers = {"Authorization": f"Bearer {daemon.token}"}
    for schema, fields, is_valid in [
        ("Run", {"timeout": 9, "timeout_secs": None}, True),
        ("Run", {"timeout": 9, "timeout_secs": 9}, False),
        ("Run", {"stdin": "", "stdin_base64": None}, True),
        ("Run", {"stdin": "", "stdin_base64": ""}, False),
        ("Run", {"name": None, "restart": None, "health_check": None}, True),
        ("Run", {"name": "x"}, False),
        ("Run", {"restart": {}}, False),
        ("Run", {"user": {"uid": 0, "gid": None, "name": None}}, True),
        ("Run", {"user": {"name": "root", "gid": 0}}, True),
        ("Run", {"user": {"name": "root", "uid": 0}}, False),
    ]:
        body = {"command": "true"} | fields
        validator = jsonschema.Draft202012Validator(registry | {"$ref": f"#/components/schemas/{schema}"})
        assert validator.is_valid(body) == is_valid, body
        answer = httpx.post(daemon.url + "/api/v1/processes/run", json=body, headers=headers)
        assert answer.status_code == (200 if is_valid else 400), f"{body}: {answer.text}"


def test_the_daemon_serves_the_description_without_a_token(daemon):
    response = httpx.get(daemon.url + "/api/v1/openapi.json")
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.json() == json.loads(DOCUMENT.read_text())


@pytest.fixture
def fuzzed_daemon(tmp_path):
    """A daemon of its own, with low limits: what Schemathesis starts and writes stays small."""
    daemon = Daemon(tmp_path, "--max-processes", "50", "--max-pty-sessions", "8", "--keep-ended", "100", "--log-total", "16M")
    yield daemon
    daemon.alive()
    daemon.stop()


def test_schemathesis_finds_nothing(fuzzed_daemon, tmp_path):
    """About 1,500 requests, valid and invalid ones. What they may start is in schemathesis_hooks.py."""
    command = [
        BIN / "schemathesis", "--config-file", HERE / "schemathesis.toml",
        "run", fuzzed_daemon.url + "/api/v1/openapi.json",
        "--header", f"Authorization: Bearer {fuzzed_daemon.token}",
        "--phases", "examples,coverage,fuzzing", "--max-examples", "15", "--continue-on-failure",
        # `Allow` of /processes/run also names the methods of a process with the name "run".
        "--checks", "all", "--exclude-checks", "allow_header_conformance",
        "--request-timeout", "30", "--generation-deterministic", "--no-color",
    ]
    env = os.environ | {"SCHEMATHESIS_HOOKS": str(HERE / "schemathesis_hooks.py"), "COLUMNS": "200"}
    result = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    assert httpx.get(fuzzed_daemon.url + "/api/v1/health").json() == {"healthy": True}


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    """The package of a client that openapi-python-client has generated."""
    parent = tmp_path_factory.mktemp("generated")
    command = [
        BIN / "openapi-python-client", "generate", "--path", DOCUMENT, "--output-path", parent / "generated_client",
        "--meta", "none", "--fail-on-warning",
    ]
    # The generator formats what it has made with ruff, from the same environment.
    env = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"}
    result = subprocess.run(command, cwd=parent, env=env, capture_output=True, text=True, timeout=TIMEOUT)
    assert result.returncode == 0, result.stdout + result.stderr
    sys.path.insert(0, str(parent))
    yield lambda name: importlib.import_module("generated_client" + name)
    sys.path.remove(str(parent))


def test_a_generated_client_starts_follows_and_kills(daemon, generated):
    start, get_process, kill = (generated(f".api.processes.{name}") for name in ("start", "get_process", "kill"))
    follow, list_lines = generated(".api.output.follow_stdout"), generated(".api.output.get_stdout")
    models = generated(".models")
    client = generated("").AuthenticatedClient(base_url=daemon.url + "/api/v1", token=daemon.token, timeout=TIMEOUT)

    refused = start.sync(client=client, body=models.Start(command="no-such-command"))
    assert isinstance(refused, models.Error) and refused.code == "COMMAND_NOT_FOUND"

    script = "echo hello; echo world; exec sleep 1000"
    process = start.sync(client=client, body=models.Start(command="sh", args=["-c", script]))
    assert process.status == "running" and process.args == ["-c", script] and process.managed is None
    process_id = str(process.pid)
    until("both lines are listed", lambda: list_lines.sync(process_id, client=client).lines == ["hello", "world"])

    followed = []
    follower = threading.Thread(target=lambda: followed.append(follow.sync_detailed(process_id, client=client)))
    follower.start()
    assert kill.sync_detailed(process_id, client=client).status_code == 204
    follower.join(TIMEOUT)
    text = followed[0].content.decode()
    data = [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]
    assert [event.get("line") for event in data] == ["hello", "world", None], text
    assert text.endswith("event: eof\ndata: {}\n\n")

    ended = get_process.sync(process_id, client=client)
    assert (ended.status, ended.signal, ended.exit_code) == ("signaled", 9, None)


def test_every_error_code_is_described_and_listed_on_the_page():
    def codes_in(value):
        if isinstance(value, dict):
            yield from value.get("enum", [value.get("const")]) if "enum" in value or "const" in value else []
            for child in value.values():
                yield from codes_in(child)
        elif isinstance(value, list):
            for child in value:
                yield from codes_in(child)

    is_code = re.compile(r"[A-Z]+(_[A-Z]+)*").fullmatch
    values = codes_in(json.loads(DOCUMENT.read_text()))
    described = {value for value in values if isinstance(value, str) and is_code(value)}
    # Sent only where there is no operation.
    described.add("METHOD_NOT_ALLOWED")

    source = "".join(file.read_text() for file in (ROOT / "src" / "http").rglob("*.rs"))
    sent = set(re.findall(r'\(?\b[45]\d\d, "([A-Z_]+)"', source)) - {"JOB_RUNNING"}
    page = (ROOT / "docs" / "api.md").read_text()
    table = page[page.index("\n## Errors\n"):]
    rows = re.findall(r"^\| [45]\d\d \|.*\|$", table, re.MULTILINE)
    listed = set(re.findall(r"`([A-Z_]+)`", "".join(rows)))
    assert described == sent == listed

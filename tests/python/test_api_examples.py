"""Replays the examples of docs/api.md and compares the real responses with those on the page.

An example is a block of code with the language `http`:

    METHOD PATH
    Header: value               (any number)
    body                        (at most one line)

    STATUS
    Header: value               (any number)
                                (an empty line, if the body is not JSON)
    body
"""

import http.client
import json
import re
import socket
import urllib.parse

from conftest import ROOT, TIMEOUT, Daemon

PAGE = ROOT / "docs" / "api.md"

# Fields whose values differ from run to run. Only their types are compared.
VARYING = {
    "at", "pid", "handle", "started_at", "ended_at", "timestamp", "created_at", "modified_at", "next_restart_at", "session_id",
    "token", "version", "uptime_secs", "running_processes", "detail", "ms",
}
# Fields that are not compared: what can be known depends on the machine.
MEASURED = {
    "cpu_user_ms", "cpu_system_ms", "memory_bytes", "memory_peak_bytes", "processes", "read_bytes", "written_bytes",
    "oom_kills", "scope",
}
# Values of the page that stand for those of the real daemon in later requests.
NAMED = {"pid", "session_id", "token"}

HEADER = re.compile(r"([A-Z][A-Za-z-]+): (.*)")


class Example:
    def __init__(self, text):
        request, _, response = text.partition("\n\n")
        lines = request.rstrip("\n").split("\n")
        self.method, self.path = lines[0].split(" ", 1)
        self.headers, rest = headers_of(lines[1:])
        self.body = "\n".join(rest)
        status, *lines = response.rstrip("\n").split("\n")
        self.status = int(status) if status else None
        self.response_headers, rest = headers_of(lines)
        self.response_body = "\n".join(rest).lstrip("\n")

    def __str__(self):
        return f"{self.method} {self.path}"


def headers_of(lines):
    """The headers at the beginning of `lines`, and the lines after them."""
    count = next((number for number, line in enumerate(lines) if not HEADER.fullmatch(line)), len(lines))
    return dict(HEADER.fullmatch(line).groups() for line in lines[:count]), lines[count:]


def examples(text):
    return [Example(block) for block in re.findall(r"^```http\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)]


class Replay:
    def __init__(self, daemon, port):
        self.daemon = daemon
        # What stands on the page, and what it is here.
        self.known = {"8080": str(port)}

    def here(self, text):
        """A part of a request or an error sentence of the page, as it is with the real daemon."""
        def value(match):
            return self.known.get(match[0], match[0])
        return re.sub(r"[0-9a-f]{32,}|(?<=/processes/)\d+|(?<=port=)\d+|(?<=PID )\d+", value, text)

    def send(self, example):
        address = urllib.parse.urlsplit(self.daemon.url)
        connection = http.client.HTTPConnection(address.hostname, address.port, timeout=TIMEOUT)
        headers = {"Authorization": f"Bearer {self.daemon.token}"}
        headers |= {name: self.here(value) for name, value in example.headers.items()}
        body = example.body.encode() if example.method in ("POST", "PUT") else None
        connection.request(example.method, "/api/v1" + self.here(example.path), body, headers)
        response = connection.getresponse()
        content = b"" if response.status == 101 else response.read()
        connection.close()
        return response, content.decode()

    def settle(self, example, answer):
        """Waits for the end of a plain process that has no input: the examples after it show how it ended."""
        if example.method == "POST" and example.path == "/processes" and answer.get("managed", 0) is None:
            if not answer["stdin_writable"]:
                wait = Example(f"GET /processes/{answer['pid']}/wait?timeout={TIMEOUT}\n\n200")
                assert json.loads(self.send(wait)[1])["status"] != "running"

    def compare(self, what, shown, real):
        """Compares a JSON value of the page with the real one, and remembers what stands for what."""
        assert type(shown) is type(real), f"{what}: {real!r} is not {shown!r}"
        if isinstance(shown, dict):
            assert list(shown) == list(real), f"{what}: {list(real)} is not {list(shown)}"
            for key in shown:
                if key in NAMED and shown[key] is not None:
                    self.known.setdefault(str(shown[key]), str(real[key]))
                    assert self.known[str(shown[key])] == str(real[key]), f"{what}: {key} {real[key]} is another's"
                if "scope" in shown and key in MEASURED:
                    continue
                if key in VARYING:
                    assert type(shown[key]) is type(real[key]), f"{what}: {key}: {real[key]!r} is not like {shown[key]!r}"
                elif key == "steps":
                    self.compare(f"{what}: {key}", shown[key][0], real[key][0])
                else:
                    self.compare(f"{what}: {key}", shown[key], real[key])
        elif isinstance(shown, list):
            assert len(shown) == len(real), f"{what}: {real} is not {shown}"
            for shown_item, real_item in zip(shown, real):
                self.compare(what, shown_item, real_item)
        elif isinstance(shown, str):
            assert self.here(shown) == real, f"{what}: {real!r} is not {shown!r}"
        else:
            assert shown == real, f"{what}: {real!r} is not {shown!r}"

    def compare_events(self, what, shown, real):
        shown, real = shown.rstrip("\n").split("\n"), real.rstrip("\n").split("\n")
        assert len(shown) == len(real), f"{what}: {real}"
        for shown_line, real_line in zip(shown, real):
            key = shown_line.partition(":")[0]
            assert key == real_line.partition(":")[0], f"{what}: {real_line!r} is not {shown_line!r}"
            if key == "data":
                self.compare(what, json.loads(shown_line[6:]), json.loads(real_line[6:]))
            elif key != "id":
                assert shown_line == real_line, what

    def check(self, example):
        what = str(example)
        response, real = self.send(example)
        assert response.status == example.status, f"{what}: {response.status} {real}"
        for name, value in example.response_headers.items():
            assert response.getheader(name) == value, f"{what}: {name}: {response.getheader(name)}"
        content_type = example.response_headers.get("Content-Type", "application/json" if example.response_body else None)
        assert response.getheader("Content-Type") == content_type, what
        if content_type == "application/json":
            answer = json.loads(real)
            self.compare(what, json.loads(example.response_body), answer)
            self.settle(example, answer)
        elif content_type == "text/event-stream":
            self.compare_events(what, example.response_body, real)
        else:
            assert real.rstrip("\n") == example.response_body, what


def in_order(all_examples):
    """The shutdown of the daemon is the last."""
    return sorted(all_examples, key=lambda example: example.path == "/shutdown")


def test_the_examples_of_the_page_are_real(tmp_path):
    found = in_order(examples(PAGE.read_text()))
    daemon = Daemon(tmp_path)
    try:
        with socket.create_server(("127.0.0.1", 0)) as service:
            replay = Replay(daemon, service.getsockname()[1])
            for example in found:
                replay.check(example)
    finally:
        daemon.stop()


def test_every_operation_of_the_description_has_an_example():
    described = json.loads((ROOT / "docs" / "openapi.json").read_text())["paths"]
    shown = {(example.method, example.path.partition("?")[0]) for example in examples(PAGE.read_text())}
    missing = []
    for path, item in described.items():
        pattern = re.compile(re.sub(r"\{\w+\}", "[^/]+", path))
        for method in item.keys() - {"parameters"}:
            if not any(method.upper() == m and pattern.fullmatch(p) for m, p in shown):
                missing.append(f"{method.upper()} {path}")
    # Their examples would be the whole description, all metrics, or whatever listens on the machine.
    assert set(missing) <= {"GET /openapi.json", "GET /ports", "GET /metrics"}

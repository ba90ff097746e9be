"""The daemon behind nginx, with its default settings and with those of docs/operations.md: streams pass without delay."""

import http.client
import json
import pathlib
import socket
import subprocess
import threading
import urllib.parse

import documents
import httpx
import pytest
from conftest import until
from tensorlake.sandbox import Sandbox
from screen import Screen
from test_terminals import TIMEOUT, free_port, require

pytestmark = require("nginx")

# The first server has the default settings, and the two headers that WebSockets need; the second has those of the
# documents.
SETTINGS = """
daemon off;
pid {dir}/pid;
error_log stderr;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {dir}/body;
    proxy_temp_path {dir}/proxy;
    fastcgi_temp_path {dir}/fastcgi;
    uwsgi_temp_path {dir}/uwsgi;
    scgi_temp_path {dir}/scgi;
    server {{
        listen 127.0.0.1:{ports[0]};
        location / {{ proxy_pass {url}; }}
        location ~ ^/api/v1/(pty/.*/ws|tunnels/) {{
            proxy_pass {url};
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection upgrade;
        }}
    }}
    server {{
        listen 127.0.0.1:{ports[1]};
        {documented}
    }}
}}
"""


@pytest.fixture(scope="module")
def proxies(daemon, tmp_path_factory):
    """The addresses of both servers."""
    directory = tmp_path_factory.mktemp("nginx")
    # The workers of nginx run as another user.
    for each in [directory, *directory.parents[:2]]:
        each.chmod(0o755)
    ports = [free_port(), free_port()]
    (block,) = documents.of_group("proxy")
    documented = block.text.replace("http://127.0.0.1:9501", daemon.url)
    settings = directory / "nginx.conf"
    settings.write_text(SETTINGS.format(dir=directory, ports=ports, url=daemon.url, documented=documented))
    with open(directory / "nginx.log", "w+b") as log:
        nginx = subprocess.Popen(["nginx", "-c", str(settings), "-p", str(directory), "-e", "stderr"],
                                 stdin=subprocess.DEVNULL, stdout=log, stderr=log)

        def listens():
            assert nginx.poll() is None, (directory / "nginx.log").read_text()
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", ports[1])) == 0

        try:
            until("nginx listens", listens)
            yield [f"http://127.0.0.1:{port}" for port in ports]
        finally:
            nginx.terminate()
            nginx.wait(TIMEOUT)


@pytest.fixture
def proxy(proxies):
    return proxies[0]


@pytest.fixture
def documented(proxies):
    return proxies[1]


@pytest.fixture
def sandbox(daemon, proxy):
    with Sandbox("sbx-1", proxy_url=proxy, api_key=daemon.token) as sandbox:
        yield sandbox


class Events:
    """An event stream, read event by event."""

    def __init__(self, proxy, token, method, path, body=None):
        address = urllib.parse.urlsplit(proxy)
        self.connection = http.client.HTTPConnection(address.hostname, address.port, timeout=TIMEOUT)
        self.connection.request(method, f"/api/v1{path}", body and json.dumps(body),
                                {"Authorization": f"Bearer {token}"})
        self.answer = self.connection.getresponse()
        assert self.answer.status == 200

    def next(self):
        """The data of the next event; None at the end."""
        while line := self.answer.readline():
            if line.startswith(b"data: "):
                return json.loads(line[6:])
        return None


# Each line is written after the test has read the previous one.
STEPS = "echo first; until [ -e one ]; do sleep 0.02; done; echo second; until [ -e two ]; do sleep 0.02; done; exit 3"


def test_events_of_a_run_pass_the_proxy_as_they_are_written(daemon, proxy, tmp_path):
    make_accessible(tmp_path)
    body = {"command": "sh", "args": ["-c", STEPS], "working_dir": str(tmp_path)}
    run = Events(proxy, daemon.token, "POST", "/processes/run", body)
    assert run.next()["pid"] > 0
    for line, step in [("first", "one"), ("second", "two")]:
        assert run.next()["line"] == line
        (tmp_path / step).touch()
    assert run.next()["exit_code"] == 3 and run.next() is None


def test_followed_events_pass_the_proxy_as_they_are_written(daemon, proxy, sandbox, tmp_path):
    make_accessible(tmp_path)
    process = sandbox.start_process("sh", ["-c", STEPS], working_dir=str(tmp_path))
    events = Events(proxy, daemon.token, "GET", f"/processes/{process.pid}/output/follow")
    for line, step in [("first", "one"), ("second", "two")]:
        assert events.next()["line"] == line
        (tmp_path / step).touch()
    assert events.next() == {} and events.next() is None


def test_a_stream_has_headers_against_buffering(daemon):
    run = Events(daemon.url, daemon.token, "POST", "/processes/run", {"command": "true"})
    headers = {name.lower(): value for name, value in run.answer.getheaders()}
    assert headers["cache-control"] == "no-cache, no-transform"
    assert headers["x-accel-buffering"] == "no"


def test_large_output_passes_the_proxy(sandbox):
    assert sandbox.run("seq", ["1", "300000"]).stdout.split() == [str(number) for number in range(1, 300_001)]
    process = sandbox.start_process("seq", ["1", "300000"])
    until("the process has ended", lambda: sandbox.get_process(process.pid).status != "running")
    assert len(sandbox.get_stdout(process.pid).lines) == 300_000


def upload(proxy, daemon, path, content):
    """The status of an upload. An iterator as content is sent in chunks."""
    headers = {"Authorization": f"Bearer {daemon.token}"}
    query = {"path": str(path)}
    return httpx.put(f"{proxy}/api/v1/files", params=query, content=content, headers=headers, timeout=TIMEOUT).status_code


def test_files_pass_the_proxy_both_ways(daemon, proxies, sandbox):
    with Sandbox("sbx-1", proxy_url=proxies[1], api_key=daemon.token) as documented:
        for client, length in [(sandbox, 1 << 20), (documented, 5 << 20)]:
            content = bytes(range(256)) * (length >> 8)
            client.write_file("proxied/large", content)
            assert bytes(client.read_file("proxied/large").value) == content
            assert [entry.name for entry in client.list_directory("proxied").entries] == ["large"]


def test_a_chunked_upload_passes_the_proxy(daemon, proxies, sandbox):
    pieces = [bytes([number]) * 10_000 for number in range(50)]
    for each in proxies:
        assert upload(each, daemon, "chunked", iter(pieces)) == 204
        assert bytes(sandbox.read_file("chunked").value) == b"".join(pieces)


def test_an_upload_beyond_the_default_of_nginx_is_refused_and_changes_nothing(daemon, proxy, sandbox):
    assert upload(proxy, daemon, "kept", b"old") == 204
    assert upload(proxy, daemon, "kept", bytes((1 << 20) + 1)) == 413
    assert bytes(sandbox.read_file("kept").value) == b"old"


def test_input_passes_the_documented_proxy_as_it_is_written(daemon, documented, sandbox):
    process = sandbox.start_process("cat", [], stdin_mode="pipe")
    events = Events(documented, daemon.token, "GET", f"/processes/{process.pid}/stdout/follow")

    def lines():
        for line in ["one", "two", "three"]:
            yield f"{line}\n".encode()
            # The next line is sent after this one has come back.
            assert events.next()["line"] == line

    answer = httpx.post(f"{documented}/api/v1/processes/{process.pid}/stdin", content=lines(),
                        headers={"Authorization": f"Bearer {daemon.token}"}, timeout=TIMEOUT)
    assert answer.status_code == 204
    sandbox.kill_process(process.pid)


def test_a_client_that_disconnects_from_the_proxy_ends_its_run(daemon, proxies):
    for number, each in enumerate(proxies):
        run = Events(each, daemon.token, "POST", "/processes/run", {"command": "sleep", "args": [f"480{number}"]})
        pid = run.next()["pid"]
        run.connection.close()
        run.answer.close()

        def has_ended():
            headers = {"Authorization": f"Bearer {daemon.token}"}
            return httpx.get(f"{daemon.url}/api/v1/processes/{pid}", headers=headers).json()["status"] == "signaled"

        until("the run has ended", has_ended)


def test_a_terminal_works_through_the_proxy(sandbox):
    screen = Screen()
    pty = sandbox.create_pty("sh", ["-c", "stty -echo; echo up; read line; echo got $line; exit 7"], on_data=screen)
    screen.expect("up")
    pty.send_input("typed\n")
    screen.expect("got typed")
    assert pty.wait(TIMEOUT) == 7


def test_a_tunnel_works_through_the_proxy(sandbox):
    with socket.create_server(("127.0.0.1", 0)) as service:
        def echo():
            peer, _ = service.accept()
            with peer:
                while data := peer.recv(1 << 16):
                    peer.sendall(data)

        thread = threading.Thread(target=echo)
        thread.start()
        with sandbox.create_tunnel(service.getsockname()[1], local_port=0) as tunnel:
            with socket.create_connection(("127.0.0.1", tunnel.local_port), TIMEOUT) as peer:
                for text in [b"one", b"two"]:
                    peer.sendall(text)
                    assert peer.recv(3, socket.MSG_WAITALL) == text
        thread.join(TIMEOUT)
        assert not thread.is_alive()


def make_accessible(directory: pathlib.Path):
    for each in [directory, *directory.parents[:2]]:
        each.chmod(0o755)

"""Streams through the proxy with the public clients, unmodified: many runs, terminals, tunnels, connections that are idle."""

import concurrent.futures
import contextlib
import http.client
import os
import pty
import select
import socket
import subprocess
import sys
import threading
import time
import urllib.parse

import pytest
from conftest import TIMEOUT, until
from screen import Screen
from test_tl import TL, tl, try_tl  # noqa: F401 (fixtures)

ECHO = "exec nc -ll -p 7000 -e cat"
# Accepts the change of the protocol, and then returns what it gets; without a word of its own.
SILENT = r"""while read -r line && [ "$line" != "$(printf '\r')" ]; do :; done
printf 'HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: Upgrade\r\n\r\n'
exec cat"""
# The beginning of the protocol of a VNC server: version 3.8, no password, 64 x 48 pixels of 32 bits, the name `test`, and
# one black picture.
DESKTOP = r"""printf 'RFB 003.008\n'; head -c 12 >/dev/null
printf '\1\1'; head -c 1 >/dev/null
printf '\0\0\0\0'; head -c 1 >/dev/null
printf '\0\100\0\060\040\030\0\1\0\377\0\377\0\377\020\010\0\0\0\0\0\0\0\4test'
printf '\0\0\0\1\0\0\0\0\0\100\0\060\0\0\0\0'; head -c 12288 /dev/zero
exec cat >/dev/null"""


def serve(sandbox, port, script):
    """Starts a program that gives each connection to a port to a new run of a script."""
    sandbox.write_file(f"/tmp/serve-{port}", script.encode())
    sandbox.start_process("nc", ["-ll", "-p", str(port), "-e", "sh", f"/tmp/serve-{port}"])
    listening = f"grep -q ':{port:04X} 00000000:0000 0A' /proc/net/tcp || grep -q ':{port:04X} .* 0A ' /proc/net/tcp6"
    until("the program listens", lambda: sandbox.run("sh", ["-c", listening]).exit_code == 0)


def test_200_runs_at_once_each_with_its_own_output_and_exit_code(sdk):
    sandboxes = [sdk.Sandbox.create() for _ in range(2)]
    together = threading.Barrier(200)

    def run(number):
        together.wait(TIMEOUT)
        script = f"i=0; while [ $i -lt 50 ]; do echo out {number} $i; i=$((i + 1)); done; echo error {number} >&2; exit {number}"
        return sandboxes[number % 2].run("sh", ["-c", script])

    with concurrent.futures.ThreadPoolExecutor(200) as pool:
        for number, result in enumerate(pool.map(run, range(200))):
            assert result.exit_code == number
            assert result.stdout.split("\n") == [f"out {number} {line}" for line in range(50)]
            assert result.stderr == f"error {number}"


def test_a_terminal(sdk):
    sandbox = sdk.Sandbox.create()
    screen, again, exits = Screen(), Screen(), []
    script = "stty -echo; echo up; while read line; do stty size; echo got $line; [ $line = bye ] && exit 7; done"
    terminal = sandbox.create_pty("sh", ["-c", script], rows=30, cols=100, on_data=screen, on_exit=exits.append)
    screen.expect("up")
    terminal.send_input("typed\n")
    screen.expect("30 100\r\ngot typed")
    terminal.resize(132, 43)
    terminal.disconnect()
    # The session goes on without a connection.
    terminal = sandbox.connect_pty(terminal.session_id, terminal.token, on_data=again, on_exit=exits.append)
    terminal.send_input("bye\n")
    again.expect("43 132\r\ngot bye")
    assert terminal.wait(TIMEOUT) == 7 and exits == [7]


def receive(peer, length):
    with peer.makefile("rb") as stream:
        return stream.read(length)


def exchange(port, texts=(b"one", b"two"), pause=0.0):
    with socket.create_connection(("127.0.0.1", port), TIMEOUT) as peer:
        for text in texts:
            peer.sendall(text)
            assert receive(peer, len(text)) == text
            time.sleep(pause)
        peer.shutdown(socket.SHUT_WR)
        assert peer.recv(1) == b""


def test_a_tunnel_and_a_desktop(sdk):
    sandbox = sdk.Sandbox.create()
    serve(sandbox, 7000, "exec cat")
    with sandbox.create_tunnel(7000, local_port=0) as tunnel:
        exchange(tunnel.local_port)
        exchange(tunnel.local_port, [os.urandom(1_000_000)] * 3)
    serve(sandbox, 5901, DESKTOP)
    # The client tries the port with bash first, which the small image has not.
    sandbox.run("sh", ["-c", "echo '#!/bin/true' >/bin/bash; chmod +x /bin/bash"], user="root")
    with sandbox.connect_desktop(connect_timeout=TIMEOUT) as desktop:
        assert (desktop.width, desktop.height) == (64, 48)


def test_a_tunnel_of_tl(sdk, host, tmp_path):
    sandbox = sdk.Sandbox.create(name="service")
    serve(sandbox, 7000, "exec cat")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    environment = os.environ | host.environment | {"HOME": str(tmp_path)}
    program = subprocess.Popen([TL, "sbx", "tunnel", "service", "7000", "--listen-port", str(port)], env=environment,
                               stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        def listens():
            assert program.poll() is None, program.stderr.read()
            with socket.socket() as peer:
                return peer.connect_ex(("127.0.0.1", port)) == 0

        until("tl listens", listens)
        exchange(port)
    finally:
        program.kill()
        program.communicate(timeout=TIMEOUT)


def test_a_terminal_of_tl(sdk, host, tl, tmp_path):  # noqa: F811
    sandbox = sdk.Sandbox.create(name="shell")
    child, master = pty.fork()
    if child == 0:
        os.environ.update(host.environment | {"HOME": str(tmp_path)})
        os.execv(TL, [str(TL), "sbx", "ssh", "shell", "--shell", "/bin/sh"])
    seen = b""

    def read():
        nonlocal seen
        if select.select([master], [], [], 0.1)[0]:
            try:
                seen += os.read(master, 65536)
            except OSError:
                return True
        return False

    def shows(text):
        return read() or text in seen

    try:
        until("a prompt", lambda: shows(b"$ "))
        os.write(master, b"echo $((6 * 7))-`id -un`\n")
        until(f"the output: {seen}", lambda: shows(b"42-tl-user"))
        assert sandbox.sandbox_id and "/bin/sh" in tl("pty", "ls", "shell")
        os.write(master, b"exit 5\n")
        until("its end", read)
    finally:
        os.close(master)
        status = os.waitpid(child, 0)[1]
    assert os.waitstatus_to_exitcode(status) == 5, seen


def upgraded(host, label):
    """A connection to a port of a sandbox, after a change of the protocol."""
    address = urllib.parse.urlsplit(host.proxy)
    peer = socket.create_connection((address.hostname, address.port), TIMEOUT)
    head = f"GET / HTTP/1.1\r\nHost: {label}.localhost\r\nAuthorization: Bearer {host.key}\r\n"
    peer.sendall(f"{head}Connection: Upgrade\r\nUpgrade: echo\r\n\r\n".encode())
    answer = b""
    while b"\r\n\r\n" not in answer:
        part = peer.recv(1024)
        assert part, answer
        answer += part
    assert answer.startswith(b"HTTP/1.1 101 ") and answer.endswith(b"\r\n\r\n"), answer
    return peer


def test_what_is_idle_for_longer_than_the_limit_is_closed_and_upgraded_connections_and_streams_are_not(own_host, sdk):
    host = own_host("--idle-secs", "1")
    host("POST", "/sandboxes", {"name": "quiet", "exposed_ports": [7100]})
    sandbox = sdk.Sandbox.connect("quiet", proxy_url=host.proxy, api_url=host.url, api_key=host.key)
    serve(sandbox, 7000, "exec cat")
    serve(sandbox, 7100, SILENT)
    screen, lines = Screen(), []
    terminal = sandbox.create_pty("sh", ["-c", "stty -echo; echo up; read line; echo got $line"], on_data=screen)
    screen.expect("up")
    follows = sandbox.start_process("sh", ["-c", "echo first; sleep 5; echo last"])
    follow = threading.Thread(target=lambda: lines.extend(event.line for event in sandbox.follow_output(follows.pid)))
    follow.start()
    silent = upgraded(host, "7100-quiet")
    address = urllib.parse.urlsplit(host.proxy)
    plain = http.client.HTTPConnection(address.hostname, address.port, timeout=TIMEOUT)
    plain.request("GET", "/api/v1/health", headers={"Host": "quiet.local", "Authorization": f"Bearer {host.key}"})
    plain.getresponse().read()
    with silent, contextlib.closing(plain), sandbox.create_tunnel(7000, local_port=0) as tunnel:
        begin = time.monotonic()
        assert plain.sock.recv(1) == b"" and time.monotonic() - begin < 3
        # Three seconds between two pieces.
        exchange(tunnel.local_port, pause=3)
        silent.sendall(b"hello")
        assert receive(silent, 5) == b"hello"
        terminal.send_input("typed\n")
        screen.expect("got typed")
        assert terminal.wait(TIMEOUT) == 0
    follow.join(TIMEOUT)
    assert lines == ["first", "last"]

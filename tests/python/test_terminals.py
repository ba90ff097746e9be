"""The public client's terminals, tunnels and desktop against the real daemon."""

import asyncio
import contextlib
import io
import os
import pathlib
import shutil
import socket
import sys
import threading
import time
import urllib.request

import pytest
from conftest import until
from PIL import Image
from tensorlake.sandbox import AsyncSandbox
from tensorlake.sandbox.exceptions import RemoteAPIError, SandboxError

PATIENCE = 30


class Screen:
    """Collects what a terminal shows."""

    def __init__(self):
        self.bytes = b""
        self.changed = threading.Condition()

    def __call__(self, data):
        with self.changed:
            self.bytes += data
            self.changed.notify_all()

    def changes(self, seen):
        with self.changed:
            return self.changed.wait_for(lambda: len(self.bytes) > seen, 1)

    def expect(self, text):
        with self.changed:
            assert self.changed.wait_for(lambda: text.encode() in self.bytes, PATIENCE), self.bytes[-500:]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wanted(*programs):
    """Skips a test where one is missing that could not be installed."""
    missing = [program for program in programs if not shutil.which(program)]
    return pytest.mark.skipif(bool(missing), reason=f"no {' and no '.join(missing)} here")


# --- terminals


def test_a_shell(sandbox):
    screen, exits = Screen(), []
    pty = sandbox.create_pty("bash", ["--norc", "-i"], env={"PS1": "<$> "}, rows=30, cols=100,
                             on_data=screen, on_exit=exits.append)
    screen.expect("<$> ")
    pty.send_input("stty size; tty; echo $TERM ünï\n")
    screen.expect("30 100\r\n/dev/pts/")
    screen.expect("xterm-256color ünï\r\n")
    pty.resize(132, 43)
    pty.send_input("stty size\n")
    screen.expect("43 132")
    # Not before the shell has given the terminal its echo back.
    pty.send_input("echo read''y; cat\n")
    screen.expect("ready\r\n")
    pty.send_input("typed\n")
    screen.expect("typed\r\ntyped\r\n")
    drawn = len(screen.bytes)
    pty.send_input("\x03")
    # An interrupt throws away what was typed after it as well, until the shell has it.
    until("a prompt", lambda: screen.bytes[drawn:].endswith(b"<$> "))
    pty.send_input("echo status $?\n")
    screen.expect("status 130")
    pty.send_input("exit 7\n")
    assert pty.wait(PATIENCE) == 7 and exits == [7]


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 255", 255), ("kill -9 $$", 137)])
def test_exit_codes(sandbox, script, code):
    assert sandbox.create_pty("sh", ["-c", script]).wait(PATIENCE) == code


def test_detach_and_come_back(sandbox):
    first = Screen()
    pty = sandbox.create_pty("sh", ["-c", "stty -echo; echo up; while read line; do echo got $line; done; exit 3"],
                             on_data=first)
    first.expect("up")
    pty.disconnect()
    second = Screen()
    again = sandbox.connect_pty(pty.session_id, pty.token, on_data=second)
    second.expect("up\r\n")
    third = Screen()
    other = sandbox.connect_pty(pty.session_id, pty.token, on_data=third)
    other.send_input("from the other\n")
    second.expect("got from the other")
    third.expect("got from the other")
    again.send_input("\x04")
    assert again.wait(PATIENCE) == 3 and other.wait(PATIENCE) == 3
    # Its exit can be asked for still.
    assert sandbox.connect_pty(pty.session_id, pty.token).wait(PATIENCE) == 3


def test_kill(sandbox):
    pty = sandbox.create_pty("sleep", ["600"])
    pty.kill()
    # The synchronous client does not get to see why a connection was closed.
    with pytest.raises(SandboxError):
        pty.wait(PATIENCE)


def test_a_wrong_token(sandbox):
    session = sandbox.create_pty_session("sleep", ["600"]).value
    with pytest.raises(SandboxError, match="403"):
        sandbox.connect_pty(session["session_id"], "0" * 64)
    with pytest.raises(SandboxError, match="404"):
        sandbox.connect_pty("nobody", session["token"])
    sandbox.connect_pty(session["session_id"], session["token"]).kill()


def test_what_cannot_start(sandbox):
    with pytest.raises(RemoteAPIError) as error:
        sandbox.create_pty("no-such-program")
    assert error.value.status_code == 400 and "COMMAND_NOT_FOUND" in str(error.value)


def test_much_output(sandbox):
    pieces = []
    script = "stty raw -echo; echo up; read -r line; seq -f %015.0f 1 1310720 | cat"
    pty = sandbox.create_pty("sh", ["-c", script], on_data=pieces.append)
    # What is written before the client is there is not kept whole.
    until("it is up", lambda: b"".join(pieces) == b"up\n")
    pty.send_input("go\n")
    assert pty.wait(120) == 0
    shown = b"".join(pieces)[3:]
    assert len(shown) == 20 << 20
    assert shown.splitlines() == [b"%015d" % number for number in range(1, 1310721)]


def quit(pty, keys):
    """`less` loses the resizes and keys that come while it draws, also without a daemon: so they come again."""
    for _ in range(PATIENCE):
        with contextlib.suppress(SandboxError):
            pty.send_input(keys)
        with contextlib.suppress(TimeoutError):
            return pty.wait(1)
    pytest.fail("it does not quit")


@pytest.mark.parametrize(("program", "args", "show", "quit_with"), [
    pytest.param("vim", ["-u", "NONE", "-N", "/etc/passwd"], "root:", "\x1b:q!\r", marks=wanted("vim")),
    pytest.param("less", ["/etc/passwd"], "root:", "q", marks=wanted("less")),
    pytest.param("top", [], "PID", "q", marks=wanted("top")),
])
def test_full_screen_programs(sandbox, program, args, show, quit_with):
    screen = Screen()
    pty = sandbox.create_pty(program, args, rows=20, cols=90, on_data=screen)
    screen.expect(show)
    for columns in range(60, 90):
        drawn = len(screen.bytes)
        pty.resize(columns, 12)
        if screen.changes(drawn):
            break
    else:
        pytest.fail("it does not draw itself anew")
    assert quit(pty, quit_with) == 0


def test_the_asynchronous_client(daemon):
    async def work():
        async with AsyncSandbox("sbx-1", proxy_url=daemon.url, api_key=daemon.token) as sandbox:
            shown = bytearray()
            pty = await sandbox.create_pty("sh", ["-c", "stty -echo; echo up; read line; echo got $line; exit 5"],
                                           on_data=shown.extend)
            await pty.send_input("hello\n")
            assert await pty.wait(PATIENCE) == 5
            assert b"got hello" in shown
            killed = await sandbox.create_pty("sleep", ["600"])
            await killed.kill()
            with pytest.raises(SandboxError, match="terminated"):
                await killed.wait(PATIENCE)

    asyncio.run(work())


# --- tunnels


@contextlib.contextmanager
def served(sandbox, command, args, port, **more):
    process = sandbox.start_process(command, args, user="root", **more)

    def listens():
        assert sandbox.get_process(process.pid).status == "running", sandbox.get_output(process.pid).lines
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5):
            return True

    until(f"{command} listens", listens)
    yield process
    sandbox.kill_process(process.pid)


def test_http_through_a_tunnel(sandbox, tmp_path):
    (tmp_path / "large").write_bytes(os.urandom(20_000_000))
    port = free_port()
    server = ["-m", "http.server", "--bind", "127.0.0.1", str(port)]
    with served(sandbox, sys.executable, server, port, working_dir=str(tmp_path)):
        with sandbox.create_tunnel(port, local_port=0) as tunnel:
            assert tunnel.local_port != port
            url = f"http://127.0.0.1:{tunnel.local_port}/large"
            assert urllib.request.urlopen(url, timeout=PATIENCE).read() == (tmp_path / "large").read_bytes()
            several = [threading.Thread(target=lambda: urllib.request.urlopen(url, timeout=PATIENCE).read()) for _ in range(5)]
            [thread.start() for thread in several]
            [thread.join(PATIENCE) for thread in several]
            assert not any(thread.is_alive() for thread in several)


def test_a_half_closed_connection(sandbox):
    port = free_port()
    program = f"""
import socket
server = socket.create_server(("127.0.0.1", {port}))
while True:
    peer, _ = server.accept()
    count = 0
    while piece := peer.recv(65536):
        count += len(piece)
    peer.sendall(b"got %d" % count)
    peer.close()
"""
    with served(sandbox, sys.executable, ["-c", program], port), sandbox.create_tunnel(port, local_port=0) as tunnel:
        with socket.create_connection(("127.0.0.1", tunnel.local_port), PATIENCE) as peer:
            peer.sendall(b"x" * 3_000_000)
            peer.shutdown(socket.SHUT_WR)
            answer = b""
            while piece := peer.recv(65536):
                answer += piece
            assert answer == b"got 3000000"


def test_nobody_listens(sandbox):
    with sandbox.create_tunnel(free_port(), local_port=0) as tunnel:
        with socket.create_connection(("127.0.0.1", tunnel.local_port), PATIENCE) as peer:
            peer.settimeout(PATIENCE)
            with contextlib.suppress(ConnectionResetError):
                assert peer.recv(1) == b""


@wanted("redis-server")
def test_redis_through_a_tunnel(sandbox):
    port = free_port()
    args = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--daemonize", "no"]
    with served(sandbox, "redis-server", args, port), sandbox.create_tunnel(port, local_port=0) as tunnel:
        with socket.create_connection(("127.0.0.1", tunnel.local_port), PATIENCE) as peer:
            stream = peer.makefile("rwb")

            def ask(*words):
                stream.write(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words))
                stream.flush()
                head = stream.readline().strip()
                return stream.read(int(head[1:]) + 2)[:-2] if head[:1] == b"$" else head

            assert ask(b"PING") == b"+PONG"
            value = os.urandom(1_000_000)
            assert ask(b"SET", b"key", value) == b"+OK"
            assert ask(b"GET", b"key") == value
            begun = time.monotonic()
            for number in range(1000):
                assert ask(b"INCR", b"count") == b":%d" % (number + 1)
            assert time.monotonic() - begun < PATIENCE


# --- desktop


def lit(png):
    """How many of its pixels are white."""
    image = Image.open(io.BytesIO(png)).convert("L")
    assert image.size == (640, 480)
    return image.histogram()[255]


@wanted("Xvnc", "xmessage")
def test_a_desktop(sandbox):
    """A window is seen on it, and takes keys."""
    port = free_port()
    args = [f":{port}", "-rfbport", str(port), "-SecurityTypes", "None", "-geometry", "640x480", "-depth", "24",
            "-localhost"]
    with served(sandbox, "Xvnc", args, port) as server:
        with sandbox.connect_desktop(port=port, connect_timeout=PATIENCE) as desktop:
            assert (desktop.width, desktop.height) == (640, 480)
            assert lit(desktop.screenshot(timeout=PATIENCE)) < 1000
            asks = sandbox.start_process(
                "xmessage",
                ["-geometry", "400x200+120+140", "-buttons", "yes:42", "-default", "yes", "tl-init shows this"],
                user="root", env={"DISPLAY": f":{port}"},
            )

            def seen():
                assert sandbox.get_process(asks.pid).status == "running", sandbox.get_output(asks.pid).lines
                png = desktop.screenshot(timeout=PATIENCE)
                return lit(png) > 50_000 and png

            png = until("the window is seen", seen)
            desktop.move_mouse(300, 180)
            desktop.press("enter")
            until("it is answered", lambda: sandbox.get_process(asks.pid).status != "running")
            assert sandbox.get_process(asks.pid).exit_code == 42
        # Asked nicely it removes its lock.
        sandbox.send_signal(server.pid, 15)
        until("it has ended", lambda: sandbox.get_process(server.pid).status != "running")
    keep = os.environ.get("TL_SCREENSHOT")
    if keep:
        pathlib.Path(keep).write_bytes(png)

"""The public Python client, unmodified, against the real daemon."""

import asyncio
import os
import socket
import sys
import time
import urllib.request

import pytest
from conftest import until
from tensorlake.sandbox import AsyncSandbox, Sandbox
from tensorlake.sandbox.exceptions import RemoteAPIError, SandboxError
from tensorlake.sandbox.models import OutputMode, ProcessUserSpec, StdinMode

AS_ROOT = os.geteuid() == 0


def lines(text):
    return text.splitlines()


def fails(status, code, call, *args, **kwargs):
    with pytest.raises(RemoteAPIError) as error:
        call(*args, **kwargs)
    assert error.value.status_code == status, error.value
    return str(error.value)


# --- run


@pytest.mark.parametrize("code", [0, 1, 2, 77, 255])
def test_run_returns_the_exit_code(sandbox, code):
    result = sandbox.run("sh", ["-c", f"echo out; echo err >&2; exit {code}"])
    assert (result.exit_code, result.stdout, result.stderr) == (code, "out", "err")
    assert result.reason == "exited"


def test_run_returns_all_output(sandbox):
    result = sandbox.run("seq", ["1", "100000"])
    assert lines(result.stdout) == [str(number) for number in range(1, 100_001)]


def test_run_returns_unusual_output_unchanged(sandbox):
    result = sandbox.run("printf", ["tab\\there\\n\\nünï ✓\\n\\377\\nlast"])
    assert result.stdout.split("\n") == ["tab\there", "", "ünï ✓", "\ufffd", "last"]


def test_run_reports_a_death_by_signal(sandbox):
    result = sandbox.run("sh", ["-c", "kill -15 $$"])
    assert (result.exit_code, result.reason) == (-15, "signaled")


def test_run_ends_at_its_timeout(sandbox):
    begun = time.monotonic()
    # On a busy machine the shell may begin late.
    result = sandbox.run("sh", ["-c", "echo early; setsid sleep 600 & sleep 600"], timeout=10)
    assert 10 <= time.monotonic() - begun < 20
    assert (result.exit_code, result.reason, result.stdout) == (-9, "timed_out", "early")


def test_run_uses_environment_and_directory(sandbox):
    result = sandbox.run("sh", ["-c", "echo $GREETING; pwd"], env={"GREETING": "hello you"}, working_dir="/usr")
    assert lines(result.stdout) == ["hello you", "/usr"]


def test_run_gets_nothing_of_the_environment_of_the_daemon(sandbox):
    names = {line.split("=")[0] for line in lines(sandbox.run("env").stdout)}
    assert names == {"PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "INVOCATION_ID"}


@pytest.mark.skipif(not AS_ROOT, reason="without root there is only one user")
@pytest.mark.parametrize(
    ("user", "expected"),
    [
        (None, "tl-user"),
        ("root", "root"),
        ("0", "root"),
        ("12345:12346", "12345"),
        ({"uid": 0}, "root"),
        (ProcessUserSpec(name="root"), "root"),
        (ProcessUserSpec(uid=12345, gid=12346), "12345"),
    ],
)
def test_run_uses_the_requested_user(sandbox, user, expected):
    result = sandbox.run("sh", ["-c", "id -un 2>/dev/null || id -u"], user=user)
    assert lines(result.stdout)[-1] == expected


def test_a_failed_start_is_an_error(sandbox):
    assert "no-such-program" in fails(400, "COMMAND_NOT_FOUND", sandbox.run, "no-such-program")
    assert "/no/such" in fails(400, "WORKING_DIR_NOT_FOUND", sandbox.run, "true", working_dir="/no/such")
    assert "nobody-here" in fails(400, "USER_NOT_FOUND", sandbox.run, "true", user="nobody-here")
    assert "no-such-program" in fails(400, "COMMAND_NOT_FOUND", sandbox.start_process, "no-such-program")


def test_a_wrong_token_is_refused(daemon):
    with Sandbox("sbx-1", proxy_url=daemon.url, api_key="wrong") as stranger:
        fails(401, "UNAUTHORIZED", stranger.run, "true")
        assert stranger.health().healthy


# --- start, list, get, follow


def test_a_started_process_is_found_and_listed(sandbox):
    started = sandbox.start_process("sh", ["-c", "exit 3"])
    assert started.pid > 0 and started.command == "sh" and started.args == ["-c", "exit 3"]
    ended = until("the process has ended", lambda: (i := sandbox.get_process(started.pid)).status != "running" and i)
    assert (ended.status, ended.exit_code, ended.signal) == ("exited", 3, None)
    assert ended.handle == started.handle and ended.ended_at >= ended.started_at
    assert started.handle in [process.handle for process in sandbox.list_processes()]


def test_an_unknown_process_is_not_found(sandbox):
    for call in [sandbox.get_process, sandbox.kill_process, sandbox.get_stdout, sandbox.follow_output]:
        fails(404, "NOT_FOUND", call, 3_999_999)


def test_follow_returns_all_output(sandbox):
    process = sandbox.start_process("sh", ["-c", "for i in 1 2 3; do echo out $i; echo err $i >&2; sleep 0.1; done"])
    assert [event.line for event in sandbox.follow_stdout(process.pid)] == ["out 1", "out 2", "out 3"]
    assert sandbox.get_process(process.pid).status == "exited"
    assert [event.line for event in sandbox.follow_stderr(process.pid)] == ["err 1", "err 2", "err 3"]
    both = [(event.stream, event.line) for event in sandbox.follow_output(process.pid)]
    assert sorted(both) == sorted([(s, f"{w} {i}") for i in (1, 2, 3) for s, w in (("stdout", "out"), ("stderr", "err"))])
    assert both == [(event.stream, event.line) for event in sandbox.follow_output(process.pid)]


def test_output_is_complete_right_after_the_end(sandbox):
    process = sandbox.start_process("sh", ["-c", "seq 1 2000; seq 1 50 >&2"])
    until("the process has ended", lambda: sandbox.get_process(process.pid).status == "exited")
    assert sandbox.get_stdout(process.pid).lines == [str(number) for number in range(1, 2001)]
    assert sandbox.get_stderr(process.pid).line_count == 50
    assert sandbox.get_output(process.pid).line_count == 2050


def test_discarded_output_is_not_kept(sandbox):
    process = sandbox.start_process("sh", ["-c", "echo out; echo err >&2"], stdout_mode=OutputMode.DISCARD)
    assert [event.line for event in sandbox.follow_output(process.pid)] == ["err"]


# --- stdin, signals, kill


def test_stdin_is_written_and_closed(sandbox):
    process = sandbox.start_process("cat", stdin_mode=StdinMode.PIPE)
    assert sandbox.get_process(process.pid).stdin_writable
    sandbox.write_stdin(process.pid, b"hello\n")
    sandbox.write_stdin(process.pid, "ünï\n".encode())
    sandbox.close_stdin(process.pid)
    assert [event.line for event in sandbox.follow_stdout(process.pid)] == ["hello", "ünï"]
    assert sandbox.get_process(process.pid).exit_code == 0
    fails(409, "STDIN_CLOSED", sandbox.write_stdin, process.pid, b"late")


def test_stdin_without_a_pipe_is_an_error(sandbox):
    process = sandbox.start_process("sleep", ["60"])
    fails(400, "STDIN_NOT_WRITABLE", sandbox.write_stdin, process.pid, b"x")


def test_signals_reach_the_process(sandbox):
    process = sandbox.start_process("sh", ["-c", "trap 'echo got it; exit 4' USR1; echo up; while :; do sleep 0.02; done"])
    until("the process is up", lambda: sandbox.get_stdout(process.pid).lines == ["up"])
    assert sandbox.send_signal(process.pid, 10).success
    assert [event.line for event in sandbox.follow_stdout(process.pid)] == ["up", "got it"]
    assert sandbox.get_process(process.pid).exit_code == 4
    fails(409, "NOT_RUNNING", sandbox.send_signal, process.pid, 10)
    fails(400, "INVALID_SIGNAL", sandbox.send_signal, process.pid, 65)


def test_kill_ends_the_whole_tree(sandbox):
    process = sandbox.start_process("sh", ["-c", "setsid sleep 7331 & sleep 7331 & echo up; wait"])
    until("the process is up", lambda: sandbox.get_stdout(process.pid).lines == ["up"])
    sandbox.kill_process(process.pid)
    ended = sandbox.get_process(process.pid)
    assert (ended.status, ended.signal, ended.exit_code) == ("signaled", 9, None)
    assert sandbox.run("sh", ["-c", "grep -ls '^sleep.733[1]' /proc/[0-9]*/cmdline"]).stdout == ""
    sandbox.kill_process(process.pid)


# --- about the daemon


def test_health_and_info_describe_the_daemon(sandbox):
    assert sandbox.health().healthy
    info = sandbox.daemon_info()
    assert info.version and info.uptime_secs >= 0 and info.total_processes >= info.running_processes


# --- managed processes


def test_a_crashed_service_is_restarted(sandbox):
    policy = {"policy": "always", "initial_backoff_ms": 50, "max_backoff_ms": 200}
    first = sandbox.start_process("sh", ["-c", "echo run $$; exec sleep 600"], name="my service", restart=policy)
    assert first.managed.name == "my service" and first.managed.status in ("starting", "running")
    assert first.managed.restart.policy == "always" and first.managed.health_status == "disabled"
    until("the first run has written its line", lambda: sandbox.get_stdout("my service").line_count == 1)
    sandbox.send_signal("my service", 9)
    again = until("the service runs again", lambda: (i := sandbox.get_process("my service")).managed.restart_count == 1
                  and i.status == "running" and i)
    assert again.pid != first.pid and again.handle == first.handle
    assert again.managed.last_exit.signal == 9
    # Clients keep using the PID that they got at the start.
    assert sandbox.get_process(first.pid).pid == again.pid
    until("both runs are in one log", lambda: sandbox.get_stdout("my service").line_count == 2)
    fails(409, "NAME_IN_USE", sandbox.start_process, "true", name="my service")
    sandbox.kill_process("my service")
    assert sandbox.get_process(again.pid).managed.status == "stopped"


def test_restart_gives_a_new_pid(sandbox):
    first = sandbox.start_process("sleep", ["600"], name="restarted", restart={"policy": "never"})
    second = sandbox.restart_process("restarted")
    assert second.pid != first.pid and second.status == "running" and second.managed.restart_count == 1
    third = sandbox.restart_process(first.pid)
    assert third.pid not in (first.pid, second.pid) and third.managed.restart_count == 2
    sandbox.kill_process(first.pid)
    assert sandbox.get_process(third.pid).managed.status == "stopped"
    plain = sandbox.start_process("sleep", ["600"])
    fails(409, "NOT_MANAGED", sandbox.restart_process, plain.pid)


def test_a_service_stops_after_max_restarts(sandbox):
    policy = {"policy": "on_failure", "max_restarts": 2, "initial_backoff_ms": 10, "max_backoff_ms": 20}
    process = sandbox.start_process("false", restart=policy)
    stopped = until("the service is stopped", lambda: (i := sandbox.get_process(process.pid)).managed.status == "stopped" and i)
    assert stopped.managed.restart_count == 2 and stopped.managed.last_error
    assert (stopped.status, stopped.exit_code) == ("exited", 1)
    # An exit with 0 is not a failure.
    process = sandbox.start_process("true", restart=policy)
    stopped = until("the service is stopped", lambda: (i := sandbox.get_process(process.pid)).managed.status == "stopped" and i)
    assert stopped.managed.restart_count == 0


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


SERVER = """
import http.server, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(500 if os.path.exists("sick") else 200)
        self.end_headers()
        self.wfile.write(b"hello from %d" % os.getpid())
http.server.HTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
"""


def test_an_unhealthy_service_is_restarted(sandbox, tmp_path):
    port = free_port()
    check = {"type": "http", "port": port, "initial_delay_ms": 20, "interval_ms": 100, "timeout_ms": 60_000,
             # Probes fail at first: on a busy machine the interpreter starts slowly.
             "failure_threshold": 100}
    program = SERVER.replace("PORT", str(port))
    service = sandbox.start_process(sys.executable, ["-c", program], working_dir=str(tmp_path), user="root", name="web",
                                    restart={"initial_backoff_ms": 20}, health_check=check)
    until("the service is healthy", lambda: sandbox.get_process("web").managed.health_status == "healthy")
    (tmp_path / "sick").touch()
    until("the service was restarted", lambda: sandbox.get_process("web").managed.restart_count >= 1)
    (tmp_path / "sick").unlink()
    until("the service is healthy again", lambda: (m := sandbox.get_process("web").managed).health_status == "healthy"
          and m.status == "running")
    assert sandbox.get_process(service.pid).pid != service.pid


# --- real work


def test_a_program_is_written_tested_served_and_fetched(sandbox, tmp_path):
    """A complete workflow through the client."""
    def sh(script, **more):
        result = sandbox.run("sh", ["-ec", script], working_dir=str(tmp_path), user="root", **more)
        assert result.exit_code == 0, result.stderr
        return result.stdout

    sh('cat >primes.py <<"END"\ndef primes(n):\n'
       '    return [p for p in range(2, n) if all(p % d for d in range(2, int(p ** 0.5) + 1))]\n'
       'if __name__ == "__main__":\n    print(*primes(50))\nEND')
    assert sh('"$PYTHON" primes.py', env={"PYTHON": sys.executable}) == "2 3 5 7 11 13 17 19 23 29 31 37 41 43 47"
    sh('echo "<h1>primes</h1>" >index.html; "$PYTHON" primes.py >>index.html', env={"PYTHON": sys.executable})
    port = free_port()
    server = sandbox.start_process(sys.executable, ["-u", "-m", "http.server", "--bind", "127.0.0.1", str(port)],
                                   working_dir=str(tmp_path), user="root")

    def fetch():
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).read().decode()
        except OSError:
            assert sandbox.get_process(server.pid).status == "running", sandbox.get_output(server.pid).lines
            return None

    assert until("the server responds", fetch).startswith("<h1>primes</h1>\n2 3 5 7")
    inside = f"import urllib.request as u; print(u.urlopen('http://127.0.0.1:{port}/primes.py').read().decode())"
    assert "def primes" in sandbox.run(sys.executable, ["-c", inside], user="root").stdout
    until("the server has logged both requests", lambda: len([l for l in sandbox.get_stderr(server.pid).lines if "GET" in l]) >= 2)
    sandbox.send_signal(server.pid, 2)
    list(sandbox.follow_output(server.pid))
    assert sandbox.get_process(server.pid).status in ("exited", "signaled")


def test_concurrent_clients_get_their_own_results(daemon):
    async def work():
        async with AsyncSandbox("sbx-1", proxy_url=daemon.url, api_key=daemon.token) as sandbox:
            results = await asyncio.gather(*[sandbox.run("sh", ["-c", f"seq 1 200; exit {n}"]) for n in range(40)])
            assert [result.exit_code for result in results] == list(range(40))
            assert all(result.stdout.split() == [str(i) for i in range(1, 201)] for result in results)
            process = await sandbox.start_process("cat", stdin_mode=StdinMode.PIPE)
            await sandbox.write_stdin(process.pid, b"from far away\n")
            await sandbox.close_stdin(process.pid)
            assert [event.line for event in await sandbox.follow_stdout(process.pid)] == ["from far away"]
            assert (await sandbox.get_process(process.pid)).exit_code == 0
            with pytest.raises(SandboxError):
                await sandbox.run("no-such-program")

    asyncio.run(work())


# --- files


@pytest.mark.skipif(not AS_ROOT, reason="without root the home directory is that of the user who runs the tests")
def test_a_file_is_read_back_as_written(sandbox):
    for path, content in [
        ("/tmp/../tmp", None),
        ("hello.txt", b"hello\n"),
        ("/home/tl-user/new dir/a+b & c=d.bin", bytes(range(256)) * 4096),
        ("/home/tl-user/new dir/ünï ✓", b""),
    ]:
        if content is None:
            fails(403, "PATH_TRAVERSAL", sandbox.write_file, path, b"x")
            continue
        sandbox.write_file(path, content)
        assert bytes(sandbox.read_file(path).value) == content
    assert sandbox.run("sh", ["-c", "cd; cat hello.txt; stat -c '%U %a' hello.txt"]).stdout == "hello\ntl-user 644"
    entries = sandbox.list_directory("/home/tl-user/new dir").entries
    assert [(entry.name, entry.is_dir, entry.size) for entry in entries] == [
        ("a+b & c=d.bin", False, 256 * 4096),
        ("ünï ✓", False, 0),
    ]
    assert abs(entries[0].modified_at.timestamp() - time.time()) < 300
    sandbox.delete_file("/home/tl-user/new dir/ünï ✓")
    fails(404, "NOT_FOUND", sandbox.read_file, "/home/tl-user/new dir/ünï ✓")
    fails(404, "NOT_FOUND", sandbox.delete_file, "/home/tl-user/new dir/ünï ✓")


@pytest.mark.skipif(not AS_ROOT, reason="without root the home directory is that of the user who runs the tests")
def test_a_large_file_is_uploaded_completely(sandbox, tmp_path):
    content = os.urandom(1 << 20) * 32
    (tmp_path / "large").write_bytes(content)
    sandbox.upload_file(tmp_path / "large", "uploads/large")
    assert bytes(sandbox.read_file("uploads/large").value) == content
    sandbox.upload_file(str(tmp_path / "large"), "/home/tl-user/uploads/large")
    listing = sandbox.list_directory("uploads")
    assert listing.path == "/home/tl-user/uploads"
    assert [(entry.name, entry.size) for entry in listing.entries] == [("large", len(content))]


@pytest.mark.skipif(not AS_ROOT, reason="without root the home directory is that of the user who runs the tests")
def test_a_written_script_runs(sandbox):
    sandbox.write_file("run.sh", b"echo old")
    sandbox.run("chmod", ["700", "run.sh"])
    sandbox.write_file("run.sh", b"#!/bin/sh\necho new $1 >out.txt\n")
    assert sandbox.run("./run.sh", ["one"]).exit_code == 0
    assert bytes(sandbox.read_file("out.txt").value) == b"new one\n"


@pytest.mark.skipif(not AS_ROOT, reason="without root the home directory is that of the user who runs the tests")
def test_a_listing_has_directories_first(sandbox):
    assert sandbox.run("sh", ["-c", "mkdir -p d/z d/a; echo x >d/b; ln -s z d/y; mkfifo d/fifo"]).exit_code == 0
    entries = sandbox.list_directory("d").entries
    assert [(entry.name, entry.is_dir, entry.size) for entry in entries] == [
        ("a", True, None), ("y", True, None), ("z", True, None), ("b", False, 2), ("fifo", False, 0)]


@pytest.mark.skipif(not AS_ROOT, reason="without root there is only one user")
def test_files_of_other_users_are_denied(sandbox):
    fails(403, "PERMISSION_DENIED", sandbox.read_file, "/etc/shadow")
    for size in (1, 1 << 25):
        fails(403, "PERMISSION_DENIED", sandbox.write_file, "/etc/made-by-a-test", bytes(size))
    fails(403, "PERMISSION_DENIED", sandbox.delete_file, "/etc/passwd")
    fails(403, "PERMISSION_DENIED", sandbox.list_directory, "/root")


def test_missing_files_and_directories_are_errors(sandbox):
    for call in [sandbox.read_file, sandbox.delete_file, lambda path: sandbox.write_file(path, b"x")]:
        fails(400, "IS_DIRECTORY", call, "/home")
    fails(400, "NOT_A_DIRECTORY", sandbox.list_directory, "/etc/passwd")
    fails(400, "NOT_A_REGULAR_FILE", sandbox.read_file, "/dev/zero")
    fails(404, "NOT_FOUND", sandbox.list_directory, "/no/such")
    assert bytes(sandbox.read_file("/proc/self/status").value).startswith(b"Name:")
    fails(403, "PERMISSION_DENIED", sandbox.read_file, "/proc/self/maps")
    fails(403, "PERMISSION_DENIED", sandbox.write_file, "/proc/thread-self/comm", b"x")


@pytest.mark.skipif(not AS_ROOT, reason="without root the home directory is that of the user who runs the tests")
def test_concurrent_file_requests_do_not_mix(daemon):
    async def work():
        async with AsyncSandbox("sbx-1", proxy_url=daemon.url, api_key=daemon.token) as sandbox:
            async def one(number):
                content = b"%d " % number * 50_000
                await sandbox.write_file(f"many/{number}", content)
                assert bytes((await sandbox.read_file(f"many/{number}")).value) == content

            await asyncio.gather(*[one(number) for number in range(40)])
            entries = (await sandbox.list_directory("many")).entries
            assert sorted(int(entry.name) for entry in entries) == list(range(40))

    asyncio.run(work())

"""Managed processes through the public Python client."""

import http.server
import threading
import time

import pytest
from conftest import until
from tensorlake.sandbox.exceptions import RemoteAPIError, SandboxError
from tensorlake.sandbox.models import StdinMode


def fails(status, code, call, *args, **kwargs):
    with pytest.raises(RemoteAPIError) as error:
        call(*args, **kwargs)
    assert error.value.status_code == status, error.value
    return str(error.value)


def wait_until_managed(sandbox, process, **wanted):
    """Waits until the fields of `managed` have these values; returns the process."""
    def look():
        info = sandbox.get_process(process)
        return all(getattr(info.managed, key) == value for key, value in wanted.items()) and info
    return until(f"{process} has {wanted}", look)


@pytest.fixture
def service():
    """An HTTP service inside the test whose health the test sets."""
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.paths.append(self.path)
            self.send_response(self.server.status)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.status, server.paths = 200, []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("name", ["plain", "my service", "ünï ✓", "100%", "a?b#c&d+e"])
def test_a_process_is_found_by_name_and_by_every_pid_it_had(sandbox, name):
    first = sandbox.start_process("sh", ["-c", "echo up; exec sleep 600"], name=name, restart={"policy": "always", "initial_backoff_ms": 10})
    assert first.managed.name == name
    said = lambda count: until("each run has written its line", lambda: sandbox.get_stdout(name).line_count == count)
    said(1)
    sandbox.send_signal(name, 9)
    second = wait_until_managed(sandbox, name, restart_count=1, status="running")
    said(2)
    third = sandbox.restart_process(name)
    said(3)
    assert third.managed.restart_count == 2
    assert len({first.pid, second.pid, third.pid}) == 3
    for address in [name, first.pid, second.pid, third.pid]:
        found = sandbox.get_process(address)
        assert (found.handle, found.pid) == (first.handle, third.pid)
    assert sandbox.get_stdout(first.pid).lines == ["up"] * 3
    sandbox.kill_process(first.pid)
    assert sandbox.get_process(name).managed.status == "stopped"
    sandbox.kill_process(name)


def test_follow_continues_until_the_process_is_stopped(sandbox):
    process = sandbox.start_process("sh", ["-c", "echo run; read line; echo got $line; exit 1"], name="follow", stdin_mode=StdinMode.PIPE,
                                    restart={"policy": "on_failure", "initial_backoff_ms": 0})
    lines = []
    thread = threading.Thread(target=lambda: lines.extend(event.line for event in sandbox.follow_stdout(process.pid)))
    thread.start()
    for count, word in enumerate([b"a\n", b"b\n"]):
        wait_until_managed(sandbox, "follow", restart_count=count, status="running")
        assert sandbox.get_process("follow").stdin_writable
        sandbox.write_stdin("follow", word)
    wait_until_managed(sandbox, "follow", restart_count=2, status="running")
    until("the run has written its first line", lambda: sandbox.get_stdout("follow").line_count == 5)
    sandbox.kill_process("follow")
    thread.join(60)
    assert lines == ["run", "got a", "run", "got b", "run"]


def test_a_crashing_process_backs_off(sandbox):
    policy = {"policy": "always", "initial_backoff_ms": 60_000, "max_backoff_ms": 60_000}
    begun = time.time() * 1000
    sandbox.start_process("sh", ["-c", "exit 3"], name="waits", restart=policy)
    waits = wait_until_managed(sandbox, "waits", status="backing_off")
    assert int(begun) + 60_000 <= waits.managed.next_restart_at.timestamp() * 1000 <= time.time() * 1000 + 60_001
    assert (waits.status, waits.exit_code, waits.managed.last_exit.exit_code) == ("exited", 3, 3)
    again = sandbox.restart_process("waits")
    assert again.managed.restart_count == 1
    wait_until_managed(sandbox, "waits", status="backing_off")
    sandbox.kill_process("waits")
    stopped = sandbox.get_process("waits")
    assert (stopped.managed.status, stopped.managed.next_restart_at) == ("stopped", None)


def test_an_unhealthy_process_with_policy_never_keeps_running(sandbox, service):
    check = {"type": "http", "port": service.server_port, "path": "/up?a=b", "initial_delay_ms": 0, "interval_ms": 30, "timeout_ms": 60_000,
             "failure_threshold": 2}
    process = sandbox.start_process("sleep", ["600"], name="reported", health_check=check)
    assert process.managed.restart.policy == "never" and process.managed.health_check.port == service.server_port
    wait_until_managed(sandbox, "reported", health_status="healthy")
    assert set(service.paths) == {"/up?a=b"}
    service.status = 503
    sick = wait_until_managed(sandbox, "reported", health_status="unhealthy")
    assert "503" in sick.managed.last_error and sick.managed.consecutive_health_failures >= 2
    service.status = 302
    well = wait_until_managed(sandbox, "reported", health_status="healthy", consecutive_health_failures=0)
    assert (well.pid, well.managed.restart_count) == (process.pid, 0)


def test_an_unhealthy_process_is_restarted(sandbox, service):
    check = {"type": "http", "port": service.server_port, "initial_delay_ms": 0, "interval_ms": 30, "timeout_ms": 60_000, "failure_threshold": 2}
    process = sandbox.start_process("sleep", ["600"], name="replaced", health_check=check,
                                    restart={"policy": "on_failure", "initial_backoff_ms": 20, "max_restarts": 3})
    wait_until_managed(sandbox, "replaced", health_status="healthy")
    service.status = 500
    stopped = wait_until_managed(sandbox, "replaced", status="stopped")
    assert stopped.managed.restart_count == 3 and "3 restarts" in stopped.managed.last_error
    service.status = 200
    again = sandbox.restart_process(process.pid)
    assert again.pid != process.pid and again.managed.last_error is None
    wait_until_managed(sandbox, "replaced", health_status="healthy", restart_count=4)


def test_a_name_belongs_to_one_live_process(sandbox):
    first = sandbox.start_process("sleep", ["600"], name="taken")
    assert "taken" in fails(409, "NAME_IN_USE", sandbox.start_process, "true", name="taken")
    sandbox.kill_process("taken")
    second = sandbox.start_process("sleep", ["600"], name="taken")
    assert sandbox.get_process("taken").handle == second.handle
    fails(409, "NAME_IN_USE", sandbox.restart_process, first.pid)
    sandbox.kill_process("taken")
    assert sandbox.restart_process(first.pid).handle == first.handle
    assert sandbox.get_process("taken").handle == first.handle
    fails(404, "NOT_FOUND", sandbox.get_process, "nobody")
    fails(404, "NOT_FOUND", sandbox.restart_process, "nobody")


@pytest.mark.parametrize(
    ("fields", "needle"),
    [
        ({"name": ""}, "name"),
        ({"name": "a/b"}, "name"),
        ({"name": "42"}, "name"),
        ({"restart": {"policy": "sometimes"}}, "policy"),
        ({"restart": {"policy": "always", "max_backoff_ms": -1}}, "max_backoff_ms"),
        ({"health_check": {"type": "tcp"}}, "port"),
        ({"health_check": {"type": "tcp", "port": 0}}, "port"),
        ({"health_check": {"type": "http", "port": 80, "path": "up"}}, "path"),
        ({"health_check": {"type": "udp", "port": 80}}, "type"),
    ],
)
def test_invalid_fields_are_refused(sandbox, fields, needle):
    before = sandbox.list_processes()
    try:
        sandbox.start_process("true", **fields)
    except RemoteAPIError as error:
        assert error.status_code == 400 and needle in str(error)
    except SandboxError as error:
        # The client refuses it before it sends a request.
        assert needle in str(error)
    else:
        pytest.fail("the request was accepted")
    assert len(sandbox.list_processes()) == len(before)

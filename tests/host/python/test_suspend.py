"""A sandbox that is suspended with a busy service: nothing in it takes the time for a fault."""

import os
import time

from conftest import until

# Seconds; with 60 as by hand, several health checks of the default settings pass.
SUSPENDED = float(os.environ.get("TL_TEST_SUSPENDED", 5))

SERVER = "mkdir -p /tmp/w && echo fine >/tmp/w/health && exec httpd -f -p 8080 -h /tmp/w"


def test_a_busy_service_with_health_checks_is_the_same_after_it_was_suspended(sdk, host, engine):
    sandbox = sdk.Sandbox.create(name="busy")
    sandbox.start_process("sh", ["-c", SERVER])
    until("the server answers", lambda: sandbox.run("wget", ["-qO-", "http://127.0.0.1:8080/health"]).stdout == "fine")
    checks = {"web": {"type": "http", "path": "/health"}, "tcp": {"type": "tcp"}}
    for name, kind in checks.items():
        # A single false failure would lead to a restart.
        check = kind | {"port": 8080, "initial_delay_ms": 0, "interval_ms": 200, "timeout_ms": 2000, "failure_threshold": 1}
        sandbox.start_process("sh", ["-c", "while :; do :; done"], name=name, restart={"policy": "always"}, health_check=check)

    def states():
        return [(each.managed.health_status.value, each.managed.restart_count, each.managed.last_exit, each.managed.last_error,
                 each.managed.consecutive_health_failures) for each in map(sandbox.get_process, checks)]

    fine = [("healthy", 0, None, None, 0)] * 2
    until("both are healthy", lambda: states() == fine)
    pids = [sandbox.get_process(name).pid for name in checks]
    late = sandbox.start_process("sh", ["-c", "sleep 1; date"])
    sandbox.suspend()
    begin = time.monotonic()
    # The time that is suspended is what the test is about; nothing is waited for.
    time.sleep(SUSPENDED)
    assert host("GET", "/sandboxes/busy")["status"] == "suspended"
    sandbox.resume()
    assert time.monotonic() - begin >= SUSPENDED
    before = time.time()
    inside = int(sandbox.run("date", ["+%s"]).stdout)
    assert int(before) <= inside <= time.time()
    # Longer than any check takes to fail.
    end = time.monotonic() + 2.5
    while time.monotonic() < end:
        assert states() == fine
        time.sleep(0.05)
    assert [sandbox.get_process(name).pid for name in checks] == pids
    until("the other process has ended", lambda: sandbox.get_process(late.pid).status.value == "exited")
    log = engine.log(f"tl-{sandbox.sandbox_id}")
    assert log.count(" is healthy\n") == 2 and log.count(" has started with PID ") == 2, log
    assert not any(word in log for word in ("unhealthy", "restart", "ended", "ERROR")), log

"""A sandbox that is suspended with a busy service: nothing in it takes the time for a fault."""

import os
import time

from conftest import until

# Seconds; with 60 as by hand, several health checks of the default settings pass.
SUSPENDED = float(os.environ.get("TL_TEST_SUSPENDED", 5))

SERVER = "mkdir -p /tmp/w && echo fine >/tmp/w/health && { while :; do :; done & exec httpd -f -p 8080 -h /tmp/w; }"


def test_a_busy_service_with_health_checks_is_the_same_after_it_was_suspended(sdk, host, engine):
    sandbox = sdk.Sandbox.create(name="busy")
    for name, kind in [("web", {"type": "http", "path": "/health"}), ("tcp", {"type": "tcp"})]:
        check = {"port": 8080, "initial_delay_ms": 0, "interval_ms": 200, "timeout_ms": 500, "failure_threshold": 1}
        command = ["sh", ["-c", SERVER]] if name == "web" else ["sleep", ["10000"]]
        if name == "tcp":
            check["initial_delay_ms"] = 1000
        sandbox.start_process(*command, name=name, restart={"policy": "always"}, health_check=kind | check)

    def states():
        return [(each.managed.health_status.value, each.managed.restart_count, each.managed.last_exit, each.managed.last_error,
                 each.managed.consecutive_health_failures) for each in map(sandbox.get_process, ("web", "tcp"))]

    fine = [("healthy", 0, None, None, 0)] * 2
    until("both are healthy", lambda: states() == fine)
    pids = [sandbox.get_process(name).pid for name in ("web", "tcp")]
    late = sandbox.start_process("sh", ["-c", "sleep 1; date +%s.%N"])
    # A run with a deadline, which does not count the time.
    limited = time.monotonic()
    sandbox.suspend()
    begin = time.monotonic()
    assert host("GET", "/sandboxes/busy")["status"] == "suspended"
    # The time that is suspended is what the test is about; nothing is waited for.
    time.sleep(SUSPENDED)
    assert host("GET", "/sandboxes/busy")["status"] == "suspended"
    sandbox.resume()
    assert time.monotonic() - begin >= SUSPENDED and limited
    before = time.time()
    inside = float(sandbox.run("date", ["+%s.%N"]).stdout.replace("%N", "0"))
    assert int(before) - 1 <= inside <= time.time() + 1
    # Longer than any check takes to fail.
    end = time.monotonic() + 3
    while time.monotonic() < end:
        assert states() == fine
        time.sleep(0.05)
    assert [sandbox.get_process(name).pid for name in ("web", "tcp")] == pids
    until("the other process has ended", lambda: sandbox.get_process(late.pid).status.value == "exited")
    log = engine.log(f"tl-{sandbox.sandbox_id}")
    assert "listen" in log and "health" not in log.lower() and "restart" not in log.lower(), log

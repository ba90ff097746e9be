"""The clock of the machine is set, and the whole machine is paused: no duration changes, and no client loses anything."""

import contextlib
import json
import threading
import time
import urllib.request

from machine import token, until

DAY = 86_400
# Longer than any of the durations below takes on a busy machine, shorter than a jump of the clock.
LONG = 60


class Follower(threading.Thread):
    """Follows stdout of a process, which prints the numbers from 1 on."""

    def __init__(self, machine, pid, after=None):
        super().__init__(daemon=True)
        headers = {"Authorization": f"Bearer {token()}"} | ({"Last-Event-ID": after} if after else {})
        url = f"{machine.address()}/api/v1/processes/{pid}/stdout/follow"
        self.answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=LONG)
        self.events = []
        self.start()

    def run(self):
        event = {}
        with contextlib.suppress(OSError, ValueError, AttributeError):
            for line in self.answer:
                key, _, value = line.decode().rstrip("\n").partition(": ")
                if key:
                    event[key] = value
                elif event:
                    if event.get("event") == "output":
                        self.events.append((event["id"], int(json.loads(event["data"])["line"])))
                    event = {}

    def lines(self):
        return [line for _, line in self.events]

    def wait_for_more(self):
        seen = len(self.events)
        until("more lines", lambda: len(self.events) >= seen + 2)

    def check(self, first=1):
        lines = self.lines()
        assert lines == list(range(first, first + len(lines))), "each line once, in order"


def info(machine, process):
    return machine.http("GET", f"/processes/{process}")[1]


class Load:
    """Processes and requests whose durations must not change."""

    def __init__(self, machine, sandbox):
        self.machine = machine
        count = "n=0; while :; do n=$((n + 1)); echo $n; sleep 0.2; done"
        self.counter = sandbox.start_process("sh", ["-c", count]).pid
        self.follower = Follower(machine, self.counter)
        check = {"type": "http", "port": 9501, "path": "/api/v1/health", "interval_ms": 300, "timeout_ms": 10_000}
        self.start(name="web", command="sleep", args=["600"], health_check=check | {"initial_delay_ms": 0})
        # Restarts every 4 s, and as often as it can.
        backoff = lambda millis: {"policy": "always", "initial_backoff_ms": millis, "max_backoff_ms": millis}
        self.start(name="crash", command="false", restart=backoff(4000))
        self.start(name="flap", command="false", restart=backoff(100))
        until("it is healthy", lambda: info(machine, "web")["managed"]["health_status"] == "healthy")
        self.begun = time.monotonic()
        self.uptime = machine.http("GET", "/info")[1]["uptime_secs"]
        self.flaps = machine.console().count("(flap)")
        self.crashes = self.restarts("crash")
        self.ends = {}
        self.threads = [threading.Thread(target=self.end_of, args=args) for args in (
            ("run", "POST", "/processes/run", {"command": "sleep", "args": ["600"], "timeout": 10}),
            ("wait", "GET", f"/processes/{self.counter}/wait?timeout=10"),
        )]
        for thread in self.threads:
            thread.start()
        until("the run has begun", lambda: any(one["args"] == ["600"] and one["managed"] is None for one in self.list()))

    def start(self, **body):
        assert self.machine.http("POST", "/processes", body)[0] == 201

    def list(self):
        return self.machine.http("GET", "/processes")[1]["processes"]

    def restarts(self, name):
        return info(self.machine, name)["managed"]["restart_count"]

    def end_of(self, name, method, path, body=None):
        begun = time.monotonic()
        request = urllib.request.Request(
            f"{self.machine.address()}/api/v1{path}",
            json.dumps(body).encode() if body else None,
            {"Authorization": f"Bearer {token()}"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=LONG) as answer:
            text = answer.read().decode()
        self.ends[name] = (time.monotonic() - begun, text)

    def check(self, paused=0):
        """Checks durations as the test's own clock measures them. The machine was paused for some of that time."""
        for thread in self.threads:
            thread.join(LONG)
        took, text = self.ends["run"]
        assert 9.9 <= took - paused < LONG and '"timed_out"' in text, (took, text)
        took, text = self.ends["wait"]
        assert 9.9 <= took - paused < LONG and json.loads(text)["status"] == "running", (took, text)
        self.follower.wait_for_more()
        self.follower.check()
        web = info(self.machine, "web")["managed"]
        assert (web["health_status"], web["restart_count"]) == ("healthy", 0), web
        # Measured in this order, so that the time is never too short for what has happened in it.
        crashes, flaps = self.restarts("crash") - self.crashes, self.machine.console().count("(flap)") - self.flaps
        uptime = self.machine.http("GET", "/info")[1]["uptime_secs"] - self.uptime
        elapsed = time.monotonic() - self.begun
        assert 1 <= crashes <= elapsed / 4 + 1, (crashes, elapsed)
        assert 8 <= uptime <= elapsed + 2, (uptime, elapsed)
        # Two lines each second after the first twenty.
        assert 5 <= flaps <= 20 + 2 * elapsed + 5, (flaps, elapsed)
        # A follow resumes right after the event that it names.
        id, line = self.follower.events[3]
        resumed = Follower(self.machine, self.counter, after=id)
        count = len(self.follower.events) - 4
        until("the lines after it", lambda: len(resumed.events) >= count)
        resumed.check(first=line + 1)
        for process in (self.counter, "web", "crash", "flap"):
            assert self.machine.http("DELETE", f"/processes/{process}")[0] == 204
        until("nothing runs", lambda: self.machine.http("GET", "/info")[1]["running_processes"] == 0)


def set_clock(sandbox, machine, seconds):
    """Sets the clock of the machine forward or back; returns the time that it shows then, in seconds."""
    done = sandbox.run("sh", ["-c", f"date -s @$(($(date +%s) + {seconds})) && date +%s"], user="root")
    assert done.exit_code == 0, done
    return int(done.stdout.split()[-1])


def test_a_clock_that_is_set_by_a_day_changes_no_duration(machine):
    with machine.sandbox() as sandbox:
        load = Load(machine, sandbox)
        before = set_clock(sandbox, machine, 0)
        for jump in (DAY, -2 * DAY):
            after = set_clock(sandbox, machine, jump)
            assert abs(after - before - jump) < LONG
            before = after
            load.follower.wait_for_more()
            crashes = load.restarts("crash")
            until("it restarts", lambda: load.restarts("crash") > crashes)
            # Timestamps are those of the clock that was set.
            started = info(machine, "crash")["started_at"] / 1000
            assert abs(started - after) < LONG, (started, after)
        load.check()
        set_clock(sandbox, machine, DAY)


def test_a_machine_that_is_paused_loses_nothing(machine):
    """The clocks of the machine stand still meanwhile; those of its clients do not."""
    with machine.sandbox() as sandbox:
        load = Load(machine, sandbox)
        machine.ask("stop")
        begun = time.monotonic()
        # QEMU accepts it, and the machine answers it later.
        health = threading.Thread(target=lambda: load.end_of("health", "GET", "/health"))
        health.start()
        time.sleep(5)
        assert "health" not in load.ends
        paused = time.monotonic() - begun
        machine.ask("cont")
        health.join(5)
        assert json.loads(load.ends["health"][1]) == {"healthy": True}, "within 5 s"
        load.check(paused)

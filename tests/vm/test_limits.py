"""Limits of memory and tasks that need a kernel of their own, and a PID 1 that survives exhausting both."""

import contextlib
import time

import pytest
from machine import until
from tensorlake.sandbox.exceptions import RemoteAPIError

# A shell that runs as root sets a limit on its own cgroup, then executes the command.
IN_LEAF = 'leaf=/sys/fs/cgroup$(sed -n "s/^0:://p" /proc/self/cgroup); '
# Allocates memory without end: `tail` keeps a line that never ends.
EAT = "tail -n 1 /dev/zero"


@pytest.fixture
def sandbox(machine):
    with machine.sandbox() as sandbox:
        yield sandbox


def test_a_run_over_its_memory_limit_is_oom_killed(sandbox):
    result = sandbox.run("sh", ["-c", IN_LEAF + f"echo 16M >$leaf/memory.max; exec {EAT}"], user="root", timeout=60)
    assert (result.exit_code, result.reason) == (-9, "oom_killed")


def test_a_process_over_its_memory_limit_is_oom_killed(machine, sandbox):
    started = sandbox.start_process(
        "sh", ["-c", IN_LEAF + f"echo 16M >$leaf/memory.max; echo eating; exec {EAT}"], user="root"
    )
    until("the process has ended", lambda: sandbox.get_process(started.pid).status != "running")
    _, told = machine.http("GET", f"/processes/{started.pid}")
    assert (told["status"], told["exit_code"], told["signal"], told["oom_killed"]) == ("oom_killed", None, 9, True)
    assert sandbox.get_stdout(started.pid).lines == ["eating"]


def test_a_sigkill_within_the_limit_is_a_signal(machine, sandbox):
    result = sandbox.run("sh", ["-c", IN_LEAF + "echo 16M >$leaf/memory.max; kill -9 $$"], user="root")
    assert (result.exit_code, result.reason) == (-9, "signaled")


def start_leader_that_lost_a_child(sandbox, then):
    """Starts a leader whose child has been killed because memory ran out, and which continues with `then`."""
    eat = IN_LEAF + f"echo 16M >$leaf/memory.max; {EAT}; echo survived; {then}"
    started = sandbox.start_process("sh", ["-c", eat], user="root")
    until("the child was killed", lambda: sandbox.get_stdout(started.pid).lines == ["survived"])
    return started.pid


@pytest.mark.parametrize("by_api", [False, True])
def test_a_sigkill_after_an_oom_kill_of_a_child_is_a_signal(machine, sandbox, by_api):
    """The kernel counts OOM kills for the whole tree, whichever process they hit."""
    pid = start_leader_that_lost_a_child(sandbox, "sleep 600 & wait")
    if by_api:
        machine.http("POST", f"/processes/{pid}/signal", {"signal": 9, "scope": "leader"})
    else:
        assert sandbox.run("kill", ["-9", str(pid)], user="root").exit_code == 0
    until("the process has ended", lambda: sandbox.get_process(pid).status != "running")
    _, told = machine.http("GET", f"/processes/{pid}")
    assert (told["status"], told["signal"], told["oom_killed"]) == ("signaled", 9, False), told
    sandbox.kill_process(pid)


def test_a_leader_is_oom_killed_after_its_child(machine, sandbox):
    pid = start_leader_that_lost_a_child(sandbox, f"exec {EAT}")
    until("the process has ended", lambda: sandbox.get_process(pid).status != "running")
    _, told = machine.http("GET", f"/processes/{pid}")
    assert (told["status"], told["oom_killed"]) == ("oom_killed", True), told


def test_a_managed_process_over_its_memory_limit_is_restarted(machine, sandbox):
    sandbox.start_process(
        "sh",
        ["-c", IN_LEAF + f"echo 16M >$leaf/memory.max; exec {EAT}"],
        user="root",
        name="eater",
        restart={"policy": "on_failure", "max_restarts": 1, "initial_backoff_ms": 10},
    )
    until("the supervisor has given up", lambda: sandbox.get_process("eater").managed.status == "stopped")
    _, told = machine.http("GET", "/processes/eater")
    assert told["managed"]["restart_count"] == 1
    assert told["managed"]["last_exit"]["oom_killed"] is True
    assert told["status"] == "oom_killed"


def test_a_limit_on_processes_stops_forks(sandbox):
    many = "for n in 1 2 3 4 5 6 7 8 9; do sleep 100 & done; wait"
    result = sandbox.run("sh", ["-c", IN_LEAF + f"echo 4 >$leaf/pids.max; {many}"], user="root", timeout=20)
    assert "fork" in result.stderr and result.exit_code > 0, result


def kills(sandbox, pid):
    try:
        sandbox.kill_process(pid)
    except RemoteAPIError as error:
        assert error.status_code == 503, error
        return False
    return True


def check_alone_and_working(machine, sandbox):
    """Checks that programs start, and that no process remains."""

    def runs():
        try:
            return sandbox.run("echo", ["here"], timeout=20).stdout == "here"
        except RemoteAPIError as error:
            # The daemon may refuse it for lack of resources; the request is repeated.
            assert error.status_code == 503, error

    until("commands run again", runs)
    assert machine.http("GET", "/info")[1]["running_processes"] == 0


def test_the_daemon_survives_an_oom_storm(machine, sandbox):
    """Many processes repeatedly exhaust the memory of the machine."""
    eaters = [sandbox.start_process("sh", ["-c", f"while :; do {EAT}; done"]).pid for _ in range(8)]
    until("the kernel kills them", lambda: machine.console().count("Out of memory: Killed process") >= 8)
    assert "Killed process 1 " not in machine.console()
    for pid in eaters:
        sandbox.kill_process(pid)
    check_alone_and_working(machine, sandbox)


def test_the_daemon_survives_a_fork_bomb(machine, sandbox):
    bomb = sandbox.start_process("sh", ["-c", "bomb() { bomb | bomb & }; bomb; while :; do :; done"])

    def full():
        # Requests can fail while init cannot start threads.
        with contextlib.suppress(OSError):
            status, told = machine.http("GET", f"/processes/{bomb.pid}/stderr?tail=1")
            assert status in (200, 503), told
            return status == 200 and "fork" in str(told["lines"])

    until("no more tasks can be started", full)
    begun = time.monotonic()
    until("the fork bomb is killed", lambda: kills(sandbox, bomb.pid))
    print(f"killed within {time.monotonic() - begun:.1f} s")
    check_alone_and_working(machine, sandbox)


def slice_limit(sandbox):
    limit = "cat /sys/fs/cgroup/tl-units.*/pids.max /proc/sys/kernel/threads-max"
    return [int(word) for word in sandbox.run("sh", ["-c", limit], user="root").stdout.split()]


def test_all_units_together_leave_a_reserve_of_tasks(machine, sandbox):
    """All units together, those of root included, have a limit below that of the kernel."""
    limit, machines = slice_limit(sandbox)
    assert machines / 2 < limit < machines, (limit, machines)


def test_max_tasks_limits_all_units_together(boot):
    with boot(arguments="TL_INIT_MAX_TASKS=20") as machine, machine.sandbox() as sandbox:
        assert slice_limit(sandbox)[0] == 20
        fill = "(while :; do sleep 600 & done); echo full; exec sleep 600"
        filler = sandbox.start_process("sh", ["-c", fill], user="root")
        until("no more can be started", lambda: sandbox.get_stdout(filler.pid).lines == ["full"])
        # Takes the task of the shell that could not fork and has ended.
        other = sandbox.start_process("sleep", ["600"])
        status, told = machine.http("POST", "/processes", {"command": "true", "user": "root"})
        assert (status, told["code"]) == (503, "OUT_OF_RESOURCES"), told
        assert machine.http("GET", "/health")[0] == 200
        sandbox.kill_process(filler.pid)
        sandbox.kill_process(other.pid)
        check_alone_and_working(machine, sandbox)


def test_the_cgroup_of_the_daemon_has_protected_memory(machine, sandbox):
    """The kernel does not reclaim the memory that init needs (`memory.min`)."""
    steps = lambda: [step["name"] for step in machine.http("GET", "/boot")[1]["steps"] if step["ok"]]
    until("init is in its own cgroup", lambda: "own cgroup" in steps())
    told = sandbox.run("sh", ["-c", 'cat /sys/fs/cgroup$(sed -n "s/^0:://p" /proc/1/cgroup)/memory.min'], user="root")
    assert int(told.stdout) > 0, told

"""Limits that only a kernel of one's own gives: memory and processes, and a PID 1 that outlives their abuse."""

import contextlib
import time

import pytest
from machine import DIST, Machine, until
from tensorlake.sandbox.exceptions import RemoteAPIError

# A command of root's sets a limit on its own leaf, then becomes what is to run in it.
IN_LEAF = 'leaf=/sys/fs/cgroup$(sed -n "s/^0:://p" /proc/self/cgroup); '
# Reads for a newline that never comes, and keeps what it has read.
EAT = "tail -n 1 /dev/zero"


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    with Machine(tmp_path_factory.mktemp("machine"), initramfs=DIST / "vm.cpio") as machine:
        machine.up()
        yield machine
        assert "Kernel panic" not in machine.console(), machine.console()


@pytest.fixture
def sandbox(machine):
    with machine.sandbox() as sandbox:
        yield sandbox


def test_a_run_over_its_memory_limit(sandbox):
    result = sandbox.run("sh", ["-c", IN_LEAF + f"echo 16M >$leaf/memory.max; exec {EAT}"], user="root", timeout=60)
    assert (result.exit_code, result.reason) == (-9, "oom_killed")


def test_a_process_over_its_memory_limit(machine, sandbox):
    started = sandbox.start_process(
        "sh", ["-c", IN_LEAF + f"echo 16M >$leaf/memory.max; echo eating; exec {EAT}"], user="root"
    )
    until("it has ended", lambda: sandbox.get_process(started.pid).status != "running")
    _, told = machine.http("GET", f"/processes/{started.pid}")
    assert (told["status"], told["exit_code"], told["signal"], told["oom_killed"]) == ("oom_killed", None, 9, True)
    assert sandbox.get_stdout(started.pid).lines == ["eating"]


def test_a_kill_within_the_limit_is_a_signal(machine, sandbox):
    result = sandbox.run("sh", ["-c", IN_LEAF + "echo 16M >$leaf/memory.max; kill -9 $$"], user="root")
    assert (result.exit_code, result.reason) == (-9, "signaled")


def survivor(sandbox, then):
    """A leader that has lost a child for want of memory, and goes on with `then`."""
    eat = IN_LEAF + f"echo 16M >$leaf/memory.max; {EAT}; echo survived; {then}"
    started = sandbox.start_process("sh", ["-c", eat], user="root")
    until("its child was killed", lambda: sandbox.get_stdout(started.pid).lines == ["survived"])
    return started.pid


@pytest.mark.parametrize("by_api", [False, True])
def test_a_kill_after_that_of_a_child_is_a_signal(machine, sandbox, by_api):
    """The kernel counts its kills for each tree, whichever of its processes they hit."""
    pid = survivor(sandbox, "sleep 600 & wait")
    if by_api:
        machine.http("POST", f"/processes/{pid}/signal", {"signal": 9, "scope": "leader"})
    else:
        assert sandbox.run("kill", ["-9", str(pid)], user="root").exit_code == 0
    until("it has ended", lambda: sandbox.get_process(pid).status != "running")
    _, told = machine.http("GET", f"/processes/{pid}")
    assert (told["status"], told["signal"], told["oom_killed"]) == ("signaled", 9, False), told
    sandbox.kill_process(pid)


def test_a_leader_is_killed_after_its_child(machine, sandbox):
    pid = survivor(sandbox, f"exec {EAT}")
    until("it has ended", lambda: sandbox.get_process(pid).status != "running")
    _, told = machine.http("GET", f"/processes/{pid}")
    assert (told["status"], told["oom_killed"]) == ("oom_killed", True), told


def test_a_managed_process_over_its_memory_limit(machine, sandbox):
    sandbox.start_process(
        "sh",
        ["-c", IN_LEAF + f"echo 16M >$leaf/memory.max; exec {EAT}"],
        user="root",
        name="eater",
        restart={"policy": "on_failure", "max_restarts": 1, "initial_backoff_ms": 10},
    )
    until("it has given up", lambda: sandbox.get_process("eater").managed.status == "stopped")
    _, told = machine.http("GET", "/processes/eater")
    assert told["managed"]["restart_count"] == 1
    assert told["managed"]["last_exit"]["oom_killed"] is True
    assert told["status"] == "oom_killed"


def test_a_limit_on_processes(sandbox):
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


def answers(machine, sandbox):
    """It starts programs as before, and is alone with them."""

    def runs():
        try:
            return sandbox.run("echo", ["here"], timeout=20).stdout == "here"
        except RemoteAPIError as error:
            # It may say that there is no room for it, and that it can be asked again.
            assert error.status_code == 503, error

    until("it runs commands again", runs)
    assert machine.http("GET", "/info")[1]["running_processes"] == 0


def test_survives_an_oom_storm(machine, sandbox):
    """Many at once eat all the memory of the machine, again and again."""
    eaters = [sandbox.start_process("sh", ["-c", f"while :; do {EAT}; done"]).pid for _ in range(8)]
    until("the kernel kills them", lambda: machine.console().count("Out of memory: Killed process") >= 8)
    assert "Killed process 1 " not in machine.console()
    for pid in eaters:
        sandbox.kill_process(pid)
    answers(machine, sandbox)


def test_survives_a_fork_bomb(machine, sandbox):
    bomb = sandbox.start_process("sh", ["-c", "bomb() { bomb | bomb & }; bomb; while :; do :; done"])

    def full():
        # Init itself may get no more threads for a moment.
        with contextlib.suppress(OSError):
            status, told = machine.http("GET", f"/processes/{bomb.pid}/stderr?tail=1")
            assert status in (200, 503), told
            return status == 200 and "fork" in str(told["lines"])

    until("it has filled the machine", full)
    begun = time.monotonic()
    until("it is killed", lambda: kills(sandbox, bomb.pid))
    print(f"killed within {time.monotonic() - begun:.1f} s")
    answers(machine, sandbox)


def slice_limit(sandbox):
    limit = "cat /sys/fs/cgroup/tl-units.*/pids.max /proc/sys/kernel/threads-max"
    return [int(word) for word in sandbox.run("sh", ["-c", limit], user="root").stdout.split()]


def test_leaves_a_reserve_of_processes(machine, sandbox):
    """All units together, root's too, have a limit below the kernel's."""
    limit, machines = slice_limit(sandbox)
    assert machines / 2 < limit < machines, (limit, machines)


def test_as_many_processes_as_asked_for(boot):
    with boot(arguments="TL_INIT_MAX_TASKS=20") as machine, machine.sandbox() as sandbox:
        assert slice_limit(sandbox)[0] == 20
        fill = "(while :; do sleep 600 & done); echo full; exec sleep 600"
        filler = sandbox.start_process("sh", ["-c", fill], user="root")
        until("no more can be started", lambda: sandbox.get_stdout(filler.pid).lines == ["full"])
        # The shell that was refused has ended; this takes its place.
        other = sandbox.start_process("sleep", ["600"])
        status, told = machine.http("POST", "/processes", {"command": "true", "user": "root"})
        assert (status, told["code"]) == (503, "OUT_OF_RESOURCES"), told
        assert machine.http("GET", "/health")[0] == 200
        sandbox.kill_process(filler.pid)
        sandbox.kill_process(other.pid)
        answers(machine, sandbox)


def test_is_protected(machine, sandbox):
    """Init's own cgroup keeps what it needs when memory is short."""
    steps = lambda: [step["name"] for step in machine.http("GET", "/boot")[1]["steps"] if step["ok"]]
    until("it is in it", lambda: "own cgroup" in steps())
    told = sandbox.run("sh", ["-c", 'cat /sys/fs/cgroup$(sed -n "s/^0:://p" /proc/1/cgroup)/memory.min'], user="root")
    assert int(told.stdout) > 0, told

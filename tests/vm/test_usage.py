"""Usage and limits where the kernel has all controllers (docs/api.md, Limits and Usage)."""

import time

import pytest
from machine import until

# Allocates memory without end: `tail` keeps a line that never ends.
EAT = "tail -n 1 /dev/zero"
MIB = 1 << 20


@pytest.fixture
def sandbox(machine):
    with machine.sandbox() as sandbox:
        yield sandbox
        for process in sandbox.list_processes():
            if process.status == "running":
                sandbox.kill_process(process.pid)


def start(machine, script, **more):
    body = {"command": "sh", "args": ["-c", script], "user": "root", **more}
    status, told = machine.http("POST", "/processes", body)
    assert status == 201, told
    return told


def usage(machine, process):
    status, told = machine.http("GET", f"/processes/{process}/usage")
    assert status == 200, told
    assert told["scope"] == "tree", told
    return told


def cpu_ms(told):
    return told["cpu_user_ms"] + told["cpu_system_ms"]


def sleepers(sandbox, seconds):
    count = f"ps -o args | grep -c '^sleep {seconds}$'"
    return int(sandbox.run("sh", ["-c", count], user="root").stdout)


@pytest.mark.parametrize("protect", ["", "echo -1000 >/proc/self/oom_score_adj; "])
def test_a_tree_over_its_memory_limit_ends_whole(machine, sandbox, protect):
    neighbour = start(machine, "sleep 6900")
    script = f"({protect}exec sleep 6901) & setsid sleep 6901 & echo up; read go; ({EAT}) & wait; sleep 6901"
    limited = start(machine, script, stdin_mode="pipe", limits={"memory_bytes": 32 * MIB})
    assert limited["limits"]["memory_bytes"] == 32 * MIB
    pid = limited["pid"]
    until("it is up", lambda: sandbox.get_stdout(pid).lines == ["up"] and sleepers(sandbox, 6901) == 2)
    begun = time.monotonic()
    assert machine.http("POST", f"/processes/{pid}/stdin", b"go\n")[0] == 204
    status, told = machine.http("GET", f"/processes/{pid}/wait?timeout=60")
    took = time.monotonic() - begun
    assert (told["status"], told["signal"], told["oom_killed"]) == ("oom_killed", 9, True), told
    until("nothing of the tree is left", lambda: sleepers(sandbox, 6901) == 0, timeout=10)
    print(f"from the first byte to the end: {took:.2f} s")
    # The guard for 1 s on an idle machine; the 32 MiB have to be written too.
    assert took < 10
    measured = usage(machine, pid)
    assert measured["oom_kills"] >= 1 and measured["memory_peak_bytes"] <= 33 * MIB, measured
    assert machine.http("GET", f"/processes/{neighbour['pid']}")[1]["status"] == "running"
    assert machine.http("GET", "/health")[0] == 200 and "Killed process 1 " not in machine.console()
    until("the log says so", lambda: "was killed because memory had run out" in machine.console())


def test_a_cgroup_below_that_runs_out_of_its_own_memory_ends_alone(machine, sandbox):
    """As a container in the sandbox does: `memory.oom.group` of its own cgroup is not that of the tree."""
    script = "cd /sys/fs/cgroup$(sed -n 's/^0:://p' /proc/self/cgroup) && mkdir own inner && echo $$ >own/cgroup.procs"
    script += " && echo +memory >cgroup.subtree_control && echo 16M >inner/memory.max && echo 1 >inner/memory.oom.group"
    script += f" && (echo 0 >inner/cgroup.procs; exec {EAT}); echo ended $?; grep oom_group_kill memory.events; exec sleep 6904"
    pid = start(machine, script, limits={"memory_bytes": 64 * MIB})["pid"]
    until("the inner one has ended", lambda: len(sandbox.get_stdout(pid).lines) == 2, timeout=60)
    assert sandbox.get_stdout(pid).lines == ["ended 137", "oom_group_kill 1"]
    # The supervisor has heard of it by then, and would have killed the tree at once.
    time.sleep(2)
    assert machine.http("GET", f"/processes/{pid}")[1]["status"] == "running"
    assert usage(machine, pid)["oom_kills"] >= 1


def test_a_run_and_each_run_of_a_service_have_the_limit(machine, sandbox):
    body = {"command": "sh", "args": ["-c", f"exec {EAT}"], "limits": {"memory_bytes": 16 * MIB}}
    status, told = machine.http(
        "POST", "/processes", body | {"name": "eater", "restart": {"max_restarts": 1, "initial_backoff_ms": 10}}
    )
    assert status == 201, told
    until("it has given up", lambda: sandbox.get_process("eater").managed.status == "stopped")
    _, told = machine.http("GET", "/processes/eater")
    assert (told["status"], told["managed"]["restart_count"]) == ("oom_killed", 1)
    assert told["managed"]["last_exit"]["oom_killed"] is True
    assert usage(machine, "eater")["memory_peak_bytes"] <= 17 * MIB


def test_half_a_cpu_is_half_of_one(machine, sandbox):
    pid = start(machine, "while :; do :; done", limits={"cpus": 0.5})["pid"]
    until("it runs", lambda: cpu_ms(usage(machine, pid)) > 200)
    begun, before = time.monotonic(), cpu_ms(usage(machine, pid))
    time.sleep(5)
    after, ended = cpu_ms(usage(machine, pid)), time.monotonic()
    share = (after - before) / 1000 / (ended - begun)
    print(f"cpus 0.5: {100 * share:.1f} % of a CPU")
    assert 0.45 <= share <= 0.55, share


def test_the_weight_shares_a_cpu(machine, sandbox):
    light, heavy = (start(machine, "while :; do :; done", limits={"cpu_weight": weight})["pid"] for weight in (50, 500))
    time.sleep(3)
    shares = [cpu_ms(usage(machine, pid)) for pid in (light, heavy)]
    assert shares[1] > 4 * shares[0], shares


def test_a_limit_on_processes_stops_a_fork_bomb(machine, sandbox):
    bomb = "bomb() { bomb | bomb & }; bomb; while :; do sleep 0.1; done"
    pid = start(machine, bomb, limits={"processes": 20})["pid"]
    until("no more can be forked", lambda: "fork" in str(machine.http("GET", f"/processes/{pid}/stderr?tail=1")[1]["lines"]))
    most = max(usage(machine, pid)["processes"] for _ in range(20))
    assert 1 < most <= 20, most
    assert sandbox.run("echo", ["here"]).stdout == "here"
    sandbox.kill_process(pid)
    until("it is gone", lambda: usage(machine, pid)["processes"] == 0)


def test_the_usage_agrees_with_what_a_program_did(machine, sandbox):
    # 40 MiB in a file in memory. `times` is a builtin, which a pipe would put into a shell of its own. The shell tells its own CPU time and that of its children.
    write = "dd if=/dev/zero of=/dev/shm/known bs=1M count=40 2>/dev/null"
    burn = "n=0; while [ $n -lt 60000 ]; do n=$((n + 1)); done; times >/tmp/times; echo $(cat /tmp/times); read end"
    script = f"mkdir -p /dev/shm; {write}; {burn}; rm /dev/shm/known"
    pid = start(machine, script, stdin_mode="pipe")["pid"]
    until("it is done", lambda: len(sandbox.get_stdout(pid).lines) == 1)
    measured = usage(machine, pid)
    words = sandbox.get_stdout(pid).lines[0].replace("m", " ").replace("s", " ").split()
    known = sum(60 * float(minutes) + float(seconds) for minutes, seconds in zip(words[::2], words[1::2]))
    print(f"CPU time: {cpu_ms(measured) / 1000:.2f} s, known {known:.2f} s; known memory 40 MiB: {measured}")
    assert known > 0.5 and abs(cpu_ms(measured) / 1000 - known) <= 0.05 * known, (measured, words)
    assert abs(measured["memory_bytes"] - 40 * MIB) <= 0.05 * 40 * MIB, measured
    assert measured["processes"] == 1 and measured["memory_peak_bytes"] >= measured["memory_bytes"], measured
    machine.http("POST", f"/processes/{pid}/stdin/close")
    until("it has ended", lambda: sandbox.get_process(pid).status != "running")
    until("it is counted for the last time", lambda: usage(machine, pid)["processes"] == 0)
    ended = usage(machine, pid)
    assert cpu_ms(ended) >= cpu_ms(measured) and ended["memory_peak_bytes"] >= 40 * MIB, ended


def test_no_cgroup_is_left_and_the_daemon_is_outside_of_the_limits(machine, sandbox):
    limits = {"memory_bytes": 32 * MIB, "memory_high_bytes": 24 * MIB, "cpus": 0.5, "cpu_weight": 5, "processes": 9}
    read = "cd /sys/fs/cgroup$(sed -n 's/^0:://p' /proc/self/cgroup); "
    read += "cat memory.max memory.high memory.oom.group cpu.max cpu.weight pids.max"
    body = {"command": "sh", "args": ["-c", read], "user": "root", "limits": limits}
    _, told = machine.http("POST", "/processes", body)
    until("it has ended", lambda: sandbox.get_process(told["pid"]).status != "running")
    words = sandbox.get_stdout(told["pid"]).lines
    assert words == [str(32 * MIB), str(24 * MIB), "1", "50000 100000", "5", "9"], words
    of_daemon = sandbox.run("cat", ["/proc/1/cgroup"], user="root").stdout
    assert "tl-units" not in of_daemon, of_daemon
    count = "ls -d /sys/fs/cgroup/tl-units.*/*/ | wc -l"
    # The leaf of the command that counts.
    until("no leaf is left", lambda: sandbox.run("sh", ["-c", count], user="root").stdout == "1")


def test_default_limits_and_those_of_a_service_file_apply(boot):
    conf = "TL_INIT_TOKEN_FILE=/etc/tl-init/token\n"
    conf += 'TL_INIT_DEFAULT_LIMITS={"processes": 20, "memory_bytes": 67108864}\n'
    service = '{"command": "sleep", "args": ["6902"], "name": "small", "limits": {"processes": 3}}'
    files = {"etc/tl-init/init.conf": conf.encode(), "etc/tl-init/services/50-small.json": service.encode()}
    with boot(files=files) as machine, machine.sandbox() as sandbox:
        until("the service runs", lambda: machine.http("GET", "/processes/small")[0] == 200)
        limits = machine.http("GET", "/processes/small")[1]["limits"]
        assert (limits["processes"], limits["memory_bytes"], limits["cpus"]) == (3, 67108864, None), limits
        own = "cat /sys/fs/cgroup$(sed -n 's/^0:://p' /proc/self/cgroup)/pids.max"
        assert sandbox.run("sh", ["-c", own], user="root").stdout == "20"


def test_a_limit_that_no_program_fits_into_ends_it(machine, sandbox):
    status, told = machine.http(
        "POST", "/processes", {"command": "sleep", "args": ["6903"], "limits": {"memory_bytes": 4096}}
    )
    assert status in (201, 503), told
    if status == 201:
        ended = machine.http("GET", f"/processes/{told['pid']}/wait?timeout=30")[1]
        assert ended["status"] == "oom_killed", ended
    assert sandbox.run("echo", ["here"]).stdout == "here"


def test_a_controller_that_is_taken_away_is_given_back_or_refused(machine, sandbox):
    """Somebody has taken the controller from the cgroup of all units: another one is made, or the start is refused."""
    take = "for slice in /sys/fs/cgroup/tl-units.*; do echo -pids >$slice/cgroup.subtree_control; done"
    sandbox.run("sh", ["-c", take], user="root")
    own = "cat /sys/fs/cgroup$(sed -n 's/^0:://p' /proc/self/cgroup)/pids.max"
    body = {"command": "sh", "args": ["-c", own], "limits": {"processes": 7}}
    status, told = machine.http("POST", "/processes", body)
    assert (status, told.get("code")) in [(201, None), (400, "LIMIT_NOT_AVAILABLE")], told
    if status == 201:
        until("it has ended", lambda: sandbox.get_process(told["pid"]).status != "running")
        assert sandbox.get_stdout(told["pid"]).lines == ["7"]

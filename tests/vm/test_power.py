"""How the machine ends: what the API and each signal do, and that nobody else's signals do it."""

import pytest
from machine import Machine, until

# Linux's own numbers; the C library takes 32 and 33 for itself.
RTMIN = 34
POWEROFF, REBOOT, HALT = "Power down", "Restarting system", "System halted"
SIGNALS = {
    "TERM": (15, POWEROFF),
    "INT": (2, REBOOT),
    "PWR": (30, POWEROFF),
    "USR2": (12, POWEROFF),
    "USR1": (10, HALT),
    "RTMIN+3": (RTMIN + 3, HALT),
    "RTMIN+4": (RTMIN + 4, POWEROFF),
    "RTMIN+5": (RTMIN + 5, REBOOT),
    "RTMIN+13": (RTMIN + 13, HALT),
    "RTMIN+14": (RTMIN + 14, POWEROFF),
    "RTMIN+15": (RTMIN + 15, REBOOT),
}


@pytest.mark.parametrize(("action", "how"), [("poweroff", POWEROFF), ("reboot", REBOOT), ("halt", HALT)])
def test_by_the_api(boot, action, how):
    with boot() as machine:
        machine.up()
        assert machine.http("POST", "/shutdown", {"action": "exit"})[0] == 400
        assert machine.http("POST", "/shutdown", {"action": "explode"})[0] == 400
        assert machine.http("POST", "/shutdown", {"action": action, "grace_ms": 2000})[0] == 202
        machine.ends(how)


@pytest.mark.parametrize("name", SIGNALS)
def test_by_a_signal(boot, name):
    number, how = SIGNALS[name]
    with boot() as machine, machine.sandbox() as sandbox:
        sandbox.start_process("kill", [f"-{number}", "1"], user="root")
        machine.ends(how)


def test_by_ctrl_alt_del(boot):
    with boot() as machine:
        machine.up()
        machine.press("ctrl", "alt", "delete")
        machine.ends(REBOOT)


def test_in_order(tmp_path, disk):
    """Those that end when asked to are given the time, and what they write is kept."""
    with Machine(tmp_path, disk=disk) as machine, machine.sandbox() as sandbox:
        obeys = "trap 'sleep 0.3; echo ended >/home/tl-user/ended; exit' TERM; echo ready; while :; do sleep 0.1; done"
        polite = sandbox.start_process("sh", ["-c", obeys])
        until("it is ready", lambda: sandbox.get_stdout(polite.pid).lines)
        sandbox.start_process("sh", ["-c", "trap '' TERM; while :; do sleep 1; done"], name="rude")
        machine.http("POST", "/shutdown", {"action": "poweroff", "grace_ms": 2000})
        machine.ends(POWEROFF)
    with Machine(tmp_path, disk=disk) as machine, machine.sandbox() as sandbox:
        assert bytes(sandbox.read_file("/home/tl-user/ended").value) == b"ended\n"
        assert "recover" not in machine.console()


def test_a_second_signal_is_the_end_of_the_grace(boot):
    with boot() as machine, machine.sandbox() as sandbox:
        rude = sandbox.start_process("sh", ["-c", "trap '' TERM; echo ready; while :; do sleep 1; done"])
        until("it is ready", lambda: sandbox.get_stdout(rude.pid).lines)
        machine.http("POST", "/shutdown", {"action": "poweroff", "grace_ms": 600_000})
        machine.press("ctrl", "alt", "delete")
        machine.ends(POWEROFF)


def test_nobody_else_can(boot):
    """A signal from tl-user is refused by the kernel; what root sends that has no meaning changes nothing."""
    numbers = " ".join(str(number) for number, _ in SIGNALS.values())
    with boot() as machine, machine.sandbox() as sandbox:
        refused = sandbox.run("sh", ["-c", f"for n in {numbers} 9 1 3; do kill -$n 1 && echo could; done; :"])
        assert refused.stdout == "" and refused.stderr.count("not permitted") == len(SIGNALS) + 3, refused
        # 9 and 19 do not reach PID 1 at all.
        ignored = sandbox.run("sh", ["-c", "for n in 9 19 3 28 18 13 14 40 64; do kill -$n 1; done"], user="root")
        assert ignored.exit_code == 0
        assert sandbox.run("echo", ["here"]).stdout == "here"

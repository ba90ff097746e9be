"""How the machine ends: by the API, by each signal, and not by signals of other users."""

import contextlib

import pytest
from machine import Machine, until
from tensorlake.sandbox.exceptions import SandboxError

# Signal numbers of Linux; the C library reserves 32 and 33.
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
def test_shutdown_by_the_api(boot, action, how):
    with boot() as machine:
        machine.wait_until_up()
        assert machine.http("POST", "/shutdown", {"action": "exit"})[0] == 400
        assert machine.http("POST", "/shutdown", {"action": "explode"})[0] == 400
        assert machine.http("POST", "/shutdown", {"action": action, "grace_ms": 2000})[0] == 202
        machine.wait_for_end(how)


@pytest.mark.parametrize("name", SIGNALS)
def test_shutdown_by_a_signal(boot, name):
    number, how = SIGNALS[name]
    with boot() as machine, machine.sandbox() as sandbox:
        # The machine may end before it has answered.
        with contextlib.suppress(SandboxError):
            sandbox.start_process("kill", [f"-{number}", "1"], user="root")
        machine.wait_for_end(how)


def test_ctrl_alt_del_reboots(boot):
    with boot() as machine:
        machine.wait_until_up()
        machine.press("ctrl", "alt", "delete")
        machine.wait_for_end(REBOOT)


def test_shutdown_gives_the_grace_and_syncs_the_disk(tmp_path, disk):
    """Processes get the time to end after SIGTERM, and their output is on the disk."""
    with Machine(tmp_path, disk=disk) as machine, machine.sandbox() as sandbox:
        obeys = "trap 'sleep 0.3; echo ended >/home/tl-user/ended; exit' TERM; echo ready; while :; do sleep 0.1; done"
        polite = sandbox.start_process("sh", ["-c", obeys])
        until("the process is ready", lambda: sandbox.get_stdout(polite.pid).lines)
        sandbox.start_process("sh", ["-c", "trap '' TERM; while :; do sleep 1; done"], name="rude")
        # Long enough for the process to sleep 0.3 s and write its file on a busy machine.
        machine.http("POST", "/shutdown", {"action": "poweroff", "grace_ms": 10_000})
        machine.wait_for_end(POWEROFF)
    with Machine(tmp_path, disk=disk) as machine, machine.sandbox() as sandbox:
        assert bytes(sandbox.read_file("/home/tl-user/ended").value) == b"ended\n"
        assert "recover" not in machine.console()


def test_a_second_signal_ends_the_grace(boot):
    with boot() as machine, machine.sandbox() as sandbox:
        rude = sandbox.start_process("sh", ["-c", "trap '' TERM; echo ready; while :; do sleep 1; done"])
        until("the process is ready", lambda: sandbox.get_stdout(rude.pid).lines)
        machine.http("POST", "/shutdown", {"action": "poweroff", "grace_ms": 600_000})
        machine.press("ctrl", "alt", "delete")
        machine.wait_for_end(POWEROFF)


def test_signals_of_other_users_do_not_end_the_machine(boot):
    """The kernel refuses signals of tl-user; signals of root without a meaning are ignored, SIGKILL and SIGSEGV too."""
    meaning = {number for number, _ in SIGNALS.values()}
    words = lambda numbers: " ".join(map(str, numbers))
    with boot() as machine, machine.sandbox() as sandbox:
        every = f"for n in {words(range(1, 65))}; do kill -$n 1 && echo could; done; :"
        refused = sandbox.run("sh", ["-c", every])
        assert refused.stdout == "" and refused.stderr.count("not permitted") == 64, refused
        ignored = f"for n in {words(n for n in range(1, 65) if n not in meaning)}; do kill -$n 1 || exit 1; done"
        for _ in range(20):
            assert sandbox.run("sh", ["-c", ignored], user="root").exit_code == 0
        assert sandbox.run("echo", ["here"]).stdout == "here"

"""The machine boots from memory and from a disk, every time, and reports what it did."""

import os
import re
import subprocess

import documents
import pytest
from machine import ROOT, Machine, end_with_parent, until

BOOTS = int(os.environ.get("TL_VM_BOOTS", "3"))
# Maximum time from the start of init until it listens, as a fraction of the boot time of the kernel. The goal is 1/25;
# the margin is for a busy machine.
SHARE = 0.4


@pytest.mark.parametrize("attempt", range(BOOTS))
def test_boots_every_time_within_its_deadline(boot, attempt, record_property):
    with boot() as machine:
        _, seconds = machine.wait_until_up()
        with machine.sandbox() as sandbox:
            assert sandbox.run("true").exit_code == 0
        record_property("seconds", f"{seconds:.2f}")
        print(f"boot {attempt}: first answer after {seconds:.2f} s")
        assert "Kernel panic" not in machine.console()


def check_report(machine):
    status, report = machine.http("GET", "/boot")
    assert status == 200
    assert report["steps"] and all(step["ok"] for step in report["steps"]), report
    assert [service["file"] for service in report["services"]] == ["10-network.json"], report
    assert all(service["ok"] and service["pid"] > 1 for service in report["services"]), report
    return report


LOOK = """
    id -un; hostname; cat /proc/1/comm /proc/1/oom_score_adj /proc/sys/kernel/ctrl-alt-del
    echo written | cat /dev/stdin >/dev/shm/mine; cat /dev/shm/mine; echo lost >/dev/null; : >/tmp/mine
    test -e /dev/ptmx; test -e /dev/fd/0; test -d /run/lock; test -d /dev/mqueue
    awk '$2 == "/sys/fs/cgroup" { print $3 }' /proc/mounts
    ip -o address show dev lo | awk '{ print $4 }'
    ls /proc/1/fd >/dev/null 2>&1 && echo readable || echo protected
"""


def check_environment(sandbox):
    """Checks what every program expects of a machine."""
    seen = sandbox.run("sh", ["-euc", LOOK])
    assert (seen.exit_code, seen.stderr) == (0, ""), seen
    expected = ["tl-user", "tl-init", "init", "-1000", "0", "written", "cgroup2", "127.0.0.1/8", "::1/128", "protected"]
    assert seen.stdout.split() == expected


def test_boots_from_an_initramfs(boot):
    with boot() as machine, machine.sandbox() as sandbox:
        report = check_report(machine)
        listening = next(step["ms"] for step in report["steps"] if step["name"] == "listening")
        kernel = re.search(r"\[ *([0-9.]+)\] Run /init", machine.console())
        print(f"the kernel took {kernel[1]} s, init {listening} ms until it listened")
        assert listening / 1000 < SHARE * float(kernel[1]), report
        check_environment(sandbox)


def test_listens_on_the_loopback_before_it_is_up(boot):
    """The API listens on 127.0.0.1 before the loopback interface is up, which the kernel allows."""
    with boot(arguments="TL_INIT_LISTEN=127.0.0.1:9501", network=False) as machine:
        machine.wait_for_text("listening on 127.0.0.1:9501")
        assert "Cannot assign" not in machine.console()


def test_boots_from_a_disk_and_unmounts_it(tmp_path, disk):
    with Machine(tmp_path, disk=disk) as machine, machine.sandbox() as sandbox:
        report = check_report(machine)
        assert "remounted" in [step["detail"] for step in report["steps"]], report
        check_environment(sandbox)
        sandbox.write_file("/home/tl-user/kept", b"kept")
        status, _ = machine.http("POST", "/shutdown", {"action": "poweroff"})
        assert status == 202
        machine.wait_for_end("Power down")
    with Machine(tmp_path, disk=disk) as machine, machine.sandbox() as sandbox:
        assert bytes(sandbox.read_file("/home/tl-user/kept").value) == b"kept"
        # A thread of its own loads the seed; the boot does not wait for it.
        seed = lambda: [step["detail"] for step in check_report(machine)["steps"] if step["name"] == "random seed"]
        until("the seed is in the report", seed)
        assert seed() == ["loaded"]
        # The disk was unmounted: there is no journal to recover.
        assert "recover" not in machine.console()


def test_the_main_process_of_a_machine_is_managed(boot):
    """The machine keeps running after its main process has ended."""
    with boot(arguments='TL_INIT_COMMAND=["false"]') as machine, machine.sandbox() as sandbox:
        main = lambda: machine.http("GET", "/processes/main")[1]
        until("the process has ended", lambda: main().get("status") == "exited")
        told = main()
        assert (told["exit_code"], told["managed"]["restart"]["policy"]) == (1, "never"), told
        assert sandbox.run("echo", ["here"]).stdout == "here"


def test_examples_qemu_sh_boots(tmp_path):
    """Runs `examples/qemu.sh` as it is, which is what docs/images.md says."""
    [block] = documents.of_group("qemu")
    assert block.text.splitlines()[-1] == "examples/qemu.sh"
    console = tmp_path / "console"
    with open(console, "wb") as output:
        machine = subprocess.Popen(
            [str(ROOT / "examples/qemu.sh")],
            env=os.environ | {"PORT": "0"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            preexec_fn=end_with_parent,
        )
    try:
        until("the API listens", lambda: machine.poll() is not None or "listening on" in console.read_text(errors="replace"))
        assert machine.poll() is None, console.read_text(errors="replace")
    finally:
        machine.kill()
        machine.wait()

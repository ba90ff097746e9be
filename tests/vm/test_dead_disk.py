"""A machine whose disk hangs when the random seed is read: nothing else waits for it."""

import pytest
from machine import CACHE, until

# Mounts a FUSE file system that never answers over the directory of the seed, then starts init.
INIT = """#!/bin/sh
mount -t devtmpfs dev /dev
insmod /lib/modules/fuse.ko
mkdir -p /var/lib/tl-init
exec 9<>/dev/fuse
mount -i -t fuse -o fd=9,rootmode=40000,user_id=0,group_id=0,allow_other stuck /var/lib/tl-init
exec /sbin/init
"""


def steps(machine):
    return {step["name"]: step["ok"] for step in machine.http("GET", "/boot")[1]["steps"]}


@pytest.mark.parametrize("by_signal", [False, True])
def test_only_the_seed_thread_waits_for_a_hanging_disk(boot, by_signal):
    files = {"init": (INIT, 0o755), "lib/modules/fuse.ko": (CACHE / "fuse.ko").read_bytes()}
    with boot(without=("init",), files=files) as machine, machine.sandbox() as sandbox:
        until("the rest of the boot is done", lambda: steps(machine).get("own cgroup"))
        assert "random seed" not in steps(machine)
        hanging = sandbox.run("sh", ["-c", "cat /proc/1/task/*/comm /proc/1/task/*/wchan | grep -c 'seed\\|fuse'"], user="root")
        assert int(hanging.stdout) >= 1, hanging
        # Processes and orphans are reaped.
        sandbox.run("sh", ["-c", "(sleep 0.2 &)"])
        until("no process is left", lambda: sandbox.run("sh", ["-c", "pgrep sleep || echo none"]).stdout == "none")
        if by_signal:
            sandbox.start_process("kill", ["-TERM", "1"], user="root")
        else:
            assert machine.http("POST", "/shutdown", {"action": "poweroff", "grace_ms": 1000})[0] == 202
        machine.wait_for_end("Power down")

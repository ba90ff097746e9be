"""Machines with a missing or wrong configuration boot and report it."""

import json
import subprocess

from machine import ROOT, Machine

SERVICES = "etc/tl-init/services"
CONFIG = (ROOT / "init/images/vm/etc/tl-init/init.conf").read_text()


def service(report, file):
    return next(service for service in report["services"] if service["file"] == file)


def test_every_fault_at_once_leaves_the_rest_working(boot):
    files = {
        "etc/tl-init/init.conf": CONFIG + "TL_INIT_NONSENSE=1\nTL_INIT_KEEP_ENDED=many\n",
        f"{SERVICES}/00-garbage.json": (b"garbage\0\xff{[" * (1 << 20))[: 10 << 20],
        f"{SERVICES}/01-open.json": "[" * 100_000,
        f"{SERVICES}/02-empty.json": "",
        f"{SERVICES}/03-missing.json": json.dumps({"command": "/no/such/program", "user": "root"}),
        f"{SERVICES}/04-nobody.json": json.dumps({"command": "true", "user": "whoever"}),
        f"{SERVICES}/05-fields.json": json.dumps({"command": ["true"]}),
        f"{SERVICES}/README": "not a service",
        f"{SERVICES}/90-good.json": json.dumps({"command": "sleep", "args": ["1000"], "name": "good"}),
    }
    words = "nonsense other=words TL_INIT_OTHER=1 TL_INIT_MAX_BODY=lots -- more"
    with boot(files=files, arguments=words) as machine, machine.sandbox() as sandbox:
        _, report = machine.http("GET", "/boot")
        ignored = next(step for step in report["steps"] if step["name"] == "kernel arguments")
        assert not ignored["ok"] and "nonsense" in ignored["detail"] and "more" in ignored["detail"], ignored
        bad = [f for f in files if "/0" in f]
        assert [s["file"] for s in report["services"]] == sorted(
            [name.rsplit("/", 1)[1] for name in bad] + ["10-network.json", "90-good.json"]
        )
        for name in bad:
            told = service(report, name.rsplit("/", 1)[1])
            assert not told["ok"] and told["detail"] and told["pid"] is None, told
        assert service(report, "90-good.json")["ok"]
        assert sandbox.get_process("good").status == "running"
        for told in ("TL_INIT_NONSENSE", "TL_INIT_KEEP_ENDED", "TL_INIT_OTHER", "TL_INIT_MAX_BODY", "00-garbage.json"):
            assert told in machine.console(), f"{told} is not on the console:\n{machine.console()}"


def test_a_broken_line_in_init_conf_leaves_the_rest_valid(boot):
    """The other lines still apply. One of them names the token file, without which the test could not use the API."""
    files = {"etc/tl-init/init.conf": "no equals sign\n\xff\n" + CONFIG}
    with boot(files=files) as machine, machine.sandbox() as sandbox:
        assert "line 1" in machine.console()
        assert sandbox.run("echo", ["here"]).stdout == "here"


def test_without_etc_passwd_users_are_known_by_number_only(boot):
    """Without /etc/passwd names are unknown, numbers work."""
    with boot(without=["etc/passwd", "etc/group"]) as machine, machine.sandbox() as sandbox:
        assert sandbox.run("id", ["-u"], user="0").stdout == "0"
        status, told = machine.http("POST", "/processes", {"command": "true"})
        assert (status, told["code"]) == (400, "USER_NOT_FOUND")


def test_without_a_network_device_the_machine_boots(boot):
    with boot(network=False) as machine:
        machine.wait_for_text("listening on")
        # The machine works, and shuts down in order.
        machine.press("ctrl", "alt", "delete")
        machine.wait_for_end("Restarting system")


def test_a_missing_token_file_is_replaced_by_a_new_token(boot):
    """A missing token file does not turn authentication off."""
    with boot(without=["etc/tl-init/token"]) as machine:
        machine.wait_until_up()
        assert "/etc/tl-init/token" in machine.console()
        assert machine.http("GET", "/processes")[0] == 401


def test_the_api_listens_once_its_address_exists(boot):
    """The network is a service like any other, so the address of the API may appear after the boot."""
    with boot(arguments="TL_INIT_LISTEN=10.0.2.15:9501") as machine:
        machine.wait_until_up()


# Adds the address after another program has bound the port.
ADDRESS = """
    until grep -q :%04X /proc/net/tcp /proc/net/tcp6; do sleep 0.1; done
    ip address add fd00::1/128 dev lo
""" % 9501


def test_the_api_listens_once_its_port_is_free(boot):
    """The address is missing at first; when it appears, another program holds the port for a while."""
    files = {
        f"{SERVICES}/05-holder.json": json.dumps({"command": "timeout", "args": ["6", "nc", "-l", "-p", "9501"]}),
        f"{SERVICES}/06-address.json": json.dumps({"command": "sh", "args": ["-c", ADDRESS], "user": "root"}),
    }
    with boot(files=files, arguments="TL_INIT_LISTEN=[fd00::1]:9501") as machine:
        for told in ("Cannot assign requested address", "Address already in use", "listening on [fd00::1]:9501"):
            machine.wait_for_text(told)
            # Each reason is logged once, however often the daemon tries.
            assert machine.console().count(told) == 1, machine.console()


def test_missing_directories_are_created_or_reported(boot):
    missing = ["run", "tmp", "var/tmp", "var/log", "proc", "dev", "sys"]
    with boot(without=missing) as machine, machine.sandbox() as sandbox:
        _, report = machine.http("GET", "/boot")
        assert all(step["ok"] for step in report["steps"]), report
        assert sandbox.run("sh", ["-c", "echo here >/tmp/mine && cat /tmp/mine"]).stdout == "here"


def test_a_root_that_cannot_be_made_writable_is_reported(tmp_path, disk):
    """The kernel refuses to mount this file system for writing."""
    subprocess.run(["tune2fs", "-O", "read-only", disk], check=True, stdout=subprocess.DEVNULL)
    with Machine(tmp_path, disk=disk) as machine, machine.sandbox() as sandbox:
        assert sandbox.run("echo", ["here"]).stdout == "here"
        _, report = machine.http("GET", "/boot")
        assert [step["name"] for step in report["steps"] if not step["ok"]] != [], report
        status, _ = machine.http("POST", "/shutdown", {"action": "poweroff"})
        assert status == 202
        machine.wait_for_end("Power down")

"""An emulated machine: starts QEMU, reads its console, finds the forwarded port, and never waits without an end."""

import contextlib
import ctypes
import functools
import json
import pathlib
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request

import waiting
from tensorlake.sandbox import Sandbox

ROOT = pathlib.Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "vm"
DIST = ROOT / "dist"
# For what takes a second or two on an idle machine.
PATIENCE = 60

# The same as in examples/qemu.sh. The machine is emulated even where it could be virtualised: tests behave alike then.
QEMU = [
    str(CACHE / "qemu-system-x86_64"),
    # With room for a second processor QEMU emulates memory barriers. The guest's NVMe driver relies on them: without, a
    # request gets lost now and then.
    *["-nodefaults", "-no-user-config", "-accel", "tcg", "-machine", "q35", "-cpu", "max", "-smp", "1,maxcpus=2"],
    *["-m", "256", "-display", "none", "-no-reboot", "-kernel", str(CACHE / "vmlinux")],
]
NETWORK = ["-device", "vmxnet3,netdev=net,romfile=", "-netdev", "user,id=net,hostfwd=tcp:127.0.0.1:0-:9501"]


until = functools.partial(waiting.until, patience=PATIENCE)


def die_with_us():
    """QEMU does not outlive the tests, not even when they are killed."""
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Machine:
    """Boots from `initramfs` or from `disk`. `directory` gets the console's text and QEMU's socket."""

    def __init__(self, directory, *, initramfs=None, disk=None, arguments="", network=True):
        self.log = directory / "console"
        self.log.write_bytes(b"")
        self.monitor = directory / "qmp"
        self.monitor.unlink(missing_ok=True)
        line = QEMU + ["-serial", f"file:{self.log}", "-qmp", f"unix:{self.monitor},server=on,wait=off"]
        # The kernel would count timer interrupts, and panic where this machine is too busy to emulate them in time.
        words = "console=ttyS0 panic=-1 no_timer_check"
        if initramfs:
            line += ["-initrd", str(initramfs)]
        if disk:
            line += ["-drive", f"if=none,id=disk,format=raw,file={disk}", "-device", "nvme,drive=disk,serial=1"]
            # Read-only, as most loaders have it: init makes it writable. A request that gets lost all the same is made
            # again after three seconds, not thirty.
            words += " root=/dev/nvme0n1 ro nvme_core.io_timeout=3"
        if network:
            line += NETWORK
        self.begun = time.monotonic()
        self.qemu = subprocess.Popen(
            [*line, "-append", f"{words} {arguments}"],
            stdin=subprocess.DEVNULL,
            stdout=open(directory / "qemu", "wb"),
            stderr=subprocess.STDOUT,
            preexec_fn=die_with_us,
        )

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        self.kill()
        if kind:
            print(self.console())

    def kill(self):
        """Pulls the plug."""
        self.qemu.kill()
        self.qemu.wait()

    # --- the console

    def console(self):
        return self.log.read_text(errors="replace")

    def says(self, text, patience=PATIENCE):
        """Waits for a text on the console, and gives the seconds since the start."""

        def said():
            # In this order: what it said last may come with its end.
            ended = self.qemu.poll() is not None
            assert text in self.console() or not ended, f"it ended without {text!r}"
            return text in self.console()

        until(f"{text!r} on the console", said, patience=patience)
        return time.monotonic() - self.begun

    def ends(self, how, patience=PATIENCE):
        """Waits for the kernel's last word, `how`, and then for QEMU. Its exit status says nothing."""
        self.says(f"reboot: {how}", patience)
        assert "Kernel panic" not in self.console()
        if how != "System halted":
            self.qemu.wait(patience)

    # --- the keyboard and what else QEMU can do

    def ask(self, command, **arguments):
        """One QMP command and its answer."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PATIENCE)
            connection.connect(str(self.monitor))
            with connection.makefile("rw") as stream:
                stream.readline()  # The greeting.
                answer = None
                for name, value in (("qmp_capabilities", {}), (command, arguments)):
                    stream.write(json.dumps({"execute": name, "arguments": value}) + "\n")
                    stream.flush()
                    answer = json.loads(stream.readline())
                    while "event" in answer:
                        answer = json.loads(stream.readline())
                assert "return" in answer, answer
                return answer["return"]

    def press(self, *keys):
        self.ask("send-key", keys=[{"type": "qcode", "data": key} for key in keys])

    # --- the API

    def address(self):
        until("QEMU's monitor", self.monitor.exists)
        told = self.ask("human-monitor-command", **{"command-line": "info usernet"})
        forwarded = next(line.split() for line in told.splitlines() if "HOST_FORWARD" in line)
        return f"http://127.0.0.1:{forwarded[3]}"

    def up(self, patience=PATIENCE):
        """Waits until the API answers; gives its address and the seconds since the start."""
        self.says("listening on", patience)
        url = self.address()

        def healthy():
            # QEMU takes the connection long before the machine does, so that each try has an end of its own.
            with contextlib.suppress(OSError, ValueError):
                return urllib.request.urlopen(f"{url}/api/v1/health", timeout=1).status == 200

        until("an answer", healthy, patience=patience)
        return url, time.monotonic() - self.begun

    @contextlib.contextmanager
    def sandbox(self):
        """The public client, connected."""
        url, _ = self.up()
        with Sandbox("sbx-1", proxy_url=url, api_key=token()) as sandbox:
            yield sandbox

    def http(self, method, path, body=None, patience=PATIENCE):
        """What the client has no call for: the status, and the JSON that came with it."""
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {token()}"}
        request = urllib.request.Request(f"{self.address()}/api/v1{path}", data, headers, method=method)
        try:
            answer = urllib.request.urlopen(request, timeout=patience)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            text = answer.read()
            return answer.status, json.loads(text) if text else None


def token():
    return (DIST / "vm.token").read_text()

"""An emulated machine: starts QEMU, reads its console and finds the forwarded port. Every wait has a deadline."""

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
# Deadline in seconds for operations that take one or two seconds on an idle machine.
TIMEOUT = 60

# As in examples/qemu.sh. Always emulated, never virtualised, so that tests behave alike everywhere.
QEMU = [
    str(CACHE / "qemu-system-x86_64"),
    # With room for a second processor, QEMU emulates memory barriers. The NVMe driver of the guest needs them: without
    # them it sometimes loses a request.
    *["-nodefaults", "-no-user-config", "-accel", "tcg", "-machine", "q35", "-cpu", "max", "-smp", "1,maxcpus=2"],
    *["-m", "256", "-display", "none", "-no-reboot", "-kernel", str(CACHE / "vmlinux")],
]
NETWORK = ["-device", "vmxnet3,netdev=net,romfile=", "-netdev", "user,id=net,hostfwd=tcp:127.0.0.1:0-:9501"]


until = functools.partial(waiting.until, timeout=TIMEOUT)


def end_with_parent():
    """Makes QEMU end with the tests, even when they are killed."""
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Machine:
    """Boots from `initramfs` or from `disk`. The console log and the socket of QEMU are in `directory`."""

    def __init__(self, directory, *, initramfs=None, disk=None, arguments="", network=True):
        self.log = directory / "console"
        self.log.write_bytes(b"")
        self.monitor = directory / "qmp"
        self.monitor.unlink(missing_ok=True)
        line = QEMU + ["-serial", f"file:{self.log}", "-qmp", f"unix:{self.monitor},server=on,wait=off"]
        # Otherwise the kernel counts timer interrupts, and panics if a busy machine emulates them too late.
        words = "console=ttyS0 panic=-1 no_timer_check"
        if initramfs:
            line += ["-initrd", str(initramfs)]
        if disk:
            line += ["-drive", f"if=none,id=disk,format=raw,file={disk}", "-device", "nvme,drive=disk,serial=1"]
            # Read-only, as most boot loaders mount it: init makes it writable. A lost request is repeated after 3 s
            # instead of 30 s.
            words += " root=/dev/nvme0n1 ro nvme_core.io_timeout=3"
        if network:
            line += NETWORK
        self.begun = time.monotonic()
        self.qemu = subprocess.Popen(
            [*line, "-append", f"{words} {arguments}"],
            stdin=subprocess.DEVNULL,
            stdout=open(directory / "qemu", "wb"),
            stderr=subprocess.STDOUT,
            preexec_fn=end_with_parent,
        )

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        self.kill()
        if kind:
            print(self.console())

    def kill(self):
        """Kills QEMU, like a power loss."""
        self.qemu.kill()
        self.qemu.wait()

    # --- the console

    def console(self):
        return self.log.read_text(errors="replace")

    def wait_for_text(self, text, timeout=TIMEOUT):
        """Waits for a text on the console; returns the seconds since the start."""

        def said():
            # Checked in this order, because QEMU may write its last output right before it ends.
            ended = self.qemu.poll() is not None
            assert text in self.console() or not ended, f"it ended without {text!r}"
            return text in self.console()

        until(f"{text!r} on the console", said, timeout=timeout)
        return time.monotonic() - self.begun

    def wait_for_end(self, how, timeout=TIMEOUT):
        """Waits for the final message `how` of the kernel, then for the end of QEMU, whose exit status means nothing."""
        self.wait_for_text(f"reboot: {how}", timeout)
        assert "Kernel panic" not in self.console()
        if how != "System halted":
            self.qemu.wait(timeout)

    # --- QMP: the keyboard and other functions of QEMU

    def ask(self, command, **arguments):
        """Sends one QMP command; returns its response."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(TIMEOUT)
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

    def wait_until_up(self, timeout=TIMEOUT):
        """Waits until the API answers; returns its address and the seconds since the start."""
        self.wait_for_text("listening on", timeout)
        url = self.address()

        def healthy():
            # QEMU accepts connections long before the guest does, so each attempt has a timeout of its own.
            with contextlib.suppress(OSError, ValueError):
                return urllib.request.urlopen(f"{url}/api/v1/health", timeout=1).status == 200

        until("an answer", healthy, timeout=timeout)
        return url, time.monotonic() - self.begun

    @contextlib.contextmanager
    def sandbox(self):
        """A connected public client."""
        url, _ = self.wait_until_up()
        with Sandbox("sbx-1", proxy_url=url, api_key=token()) as sandbox:
            yield sandbox

    def http(self, method, path, body=None, timeout=TIMEOUT):
        """Sends a request that the client has no method for; returns the status and the JSON body."""
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {token()}"}
        request = urllib.request.Request(f"{self.address()}/api/v1{path}", data, headers, method=method)
        try:
            answer = urllib.request.urlopen(request, timeout=timeout)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            text = answer.read()
            return answer.status, json.loads(text) if text else None


def token():
    return (DIST / "vm.token").read_text()

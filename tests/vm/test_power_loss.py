"""An upload that was answered is complete on the disk after a power loss."""

import hashlib
import threading

import pytest
from machine import Machine, until

FOLDER = "/home/tl-user/made/by/uploads"


def content(name, version):
    """Content that identifies its version and is long enough to be interrupted."""
    seed = f"{name} {version}\n".encode()
    return seed + hashlib.shake_128(seed).digest(1 + (version * 7919) % 200_000)


class Writer(threading.Thread):
    """Uploads until the connection breaks; records answered and unanswered uploads."""

    def __init__(self, machine, number):
        super().__init__(daemon=True)
        self.machine, self.number = machine, number
        self.answered, self.begun = {}, {}

    def run(self):
        version = 0
        while True:
            version += 1
            # New names, and one file that is replaced repeatedly.
            for name in (f"{self.number}-{version}", f"{self.number}-same"):
                self.begun[name] = version
                try:
                    status, _ = self.machine.http("PUT", f"/files?path={FOLDER}/{name}", content(name, version))
                except (OSError, ValueError):
                    return
                assert status == 204, status
                self.answered[name] = version


@pytest.mark.parametrize("uploads", [10, 100])
def test_answered_uploads_survive(tmp_path, disk, uploads):
    with Machine(tmp_path, disk=disk) as machine:
        machine.wait_until_up()
        writers = [Writer(machine, number) for number in range(3)]
        for writer in writers:
            writer.start()
        until("some uploads", lambda: sum(len(writer.answered) for writer in writers) >= uploads)
        machine.kill()
        for writer in writers:
            writer.join(30)
    with Machine(tmp_path, disk=disk) as machine, machine.sandbox() as sandbox:
        found = {entry.name for entry in sandbox.list_directory(FOLDER).entries}
        for writer in writers:
            for name, begun in writer.begun.items():
                answered = writer.answered.get(name, 0)
                if name not in found:
                    assert not answered, f"{name} is gone"
                    continue
                kept = bytes(sandbox.read_file(f"{FOLDER}/{name}").value)
                assert kept in [content(name, version) for version in range(max(answered, 1), begun + 1)], name
                found.remove(name)
        # A crash between the link of the temporary name and the rename may leave it; nothing else may remain.
        assert all(name.startswith(".tl-init.") for name in found) and len(found) <= len(writers), found

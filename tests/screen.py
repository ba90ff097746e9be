"""What a terminal shows."""

import threading

TIMEOUT = 60


class Screen:
    """Collects the output of a terminal."""

    def __init__(self):
        self.bytes = b""
        self.changed = threading.Condition()

    def __call__(self, data):
        with self.changed:
            self.bytes += data
            self.changed.notify_all()

    def changes(self, seen):
        with self.changed:
            return self.changed.wait_for(lambda: len(self.bytes) > seen, 1)

    def expect(self, text):
        with self.changed:
            assert self.changed.wait_for(lambda: text.encode() in self.bytes, TIMEOUT), self.bytes[-500:]

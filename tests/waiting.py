"""Waiting for what the tests rely on, never for a time."""

import time


def until(what, condition, patience):
    """Asks `condition` until it gives something true, and fails at the deadline, in seconds."""
    deadline = time.monotonic() + patience
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {patience} s: {what}"
        time.sleep(0.01)

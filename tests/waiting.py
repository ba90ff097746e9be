"""Waits for conditions, never for a fixed time."""

import time


def until(what, condition, timeout):
    """Calls `condition` until it returns a true value, and returns that; fails after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {timeout} s: {what}"
        time.sleep(0.01)

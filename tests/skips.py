"""With TL_TEST_ALL, a test that is skipped fails, except for lack of what `tests/may-lack` names."""

import os
import pathlib

import pytest

MAY_LACK = [line.split(": ")[0] for line in (pathlib.Path(__file__).parent / "may-lack").read_text().splitlines()]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if os.environ.get("TL_TEST_ALL") and call.excinfo and call.excinfo.errisinstance(pytest.skip.Exception):
        reason = call.excinfo.value.msg
        if reason.removeprefix("needs ") not in MAY_LACK:
            report.outcome = "failed"
            report.longrepr = f"TL_TEST_ALL is set, but {item.name} is skipped: {reason}"
    return report

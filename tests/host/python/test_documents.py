"""Runs the code blocks of docs/host.md."""

import os
import pathlib
import sys

import documents


def test_the_quick_start(host, tmp_path):
    # The commands `tl` and `python3` are those of the tests.
    path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | host.environment | {"PATH": path, "HOME": str(tmp_path)}
    documents.run(documents.of_group("host"), tmp_path, environment, python=sys.executable)

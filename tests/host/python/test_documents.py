"""Runs the code blocks of docs/host.md."""

import dataclasses
import os
import pathlib
import sys

import documents


def run(blocks, host, directory):
    # The commands `tl` and `python3` are those of the tests.
    path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | host.environment | {"PATH": path, "HOME": str(directory)}
    documents.run(blocks, directory, environment, python=sys.executable)


def test_the_quick_start(host, tmp_path):
    run(documents.of_group("host"), host, tmp_path)


def test_a_server_in_a_sandbox_is_seen_from_outside(host, tmp_path):
    [block] = documents.of_group("host-port")
    # The proxy of the tests has another port, and the small image another server.
    for part, replacement in [(":9443/", f":{host.proxy.rsplit(':', 1)[1]}/"), ("python3 -m http.server", "httpd -f -p")]:
        assert part in block.text
        block = dataclasses.replace(block, text=block.text.replace(part, replacement))
    run([block], host, tmp_path)

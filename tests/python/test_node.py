"""The public npm client, unmodified: runs tests/node/client.test.mjs with Node against the real daemon."""

import os
import subprocess
import sys

from conftest import ROOT

# Both are installed by tests/python/venv.
NODE = os.path.join(os.path.dirname(sys.executable), "node")
PACKAGES = ROOT / ".cache" / "venv" / "npm"


def test_the_npm_client_works(daemon):
    env = os.environ | {
        "TL_TEST_URL": daemon.url,
        "TL_TEST_TOKEN": daemon.token,
        "TL_TEST_PACKAGES": str(PACKAGES),
        # The daemon is on this machine.
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
    tests = ROOT / "tests" / "node" / "client.test.mjs"
    result = subprocess.run([NODE, "--test", "--test-reporter=spec", "--test-timeout=90000", str(tests)],
                            env=env, timeout=120, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT)
    assert result.returncode == 0, result.stdout

"""The public npm client, unmodified: runs tests/host/node/host.test.mjs with Node against the real tl-host."""

import os
import subprocess
import sys

from conftest import CACHE, ROOT

# Both are installed by tests/python/venv.
NODE = os.path.join(os.path.dirname(sys.executable), "node")
PACKAGES = CACHE / "venv" / "npm"


def test_the_npm_client_works(host):
    environment = os.environ | host.environment | {"TL_TEST_PACKAGES": str(PACKAGES)}
    tests = ROOT / "tests" / "host" / "node" / "host.test.mjs"
    result = subprocess.run([NODE, "--test", "--test-reporter=spec", "--test-timeout=90000", str(tests)],
                            env=environment, timeout=120, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT)
    assert result.returncode == 0, result.stdout

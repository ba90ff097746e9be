"""Fixtures: the real tl-host over a real engine, and the public clients, unmodified, with the environment that it prints."""

import faulthandler
import functools
import importlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import httpx
import jsonschema
import pytest
import waiting

ROOT = pathlib.Path(__file__).resolve().parents[3]
CACHE = ROOT / ".cache"
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
PROGRAM = os.environ.get("TL_HOST_BIN", str(TARGET / "debug" / "tl-host"))
# The static tl-init of `make static`.
INIT = os.environ.get("TL_TEST_INIT", str(ROOT / "dist" / "tl-init"))
DOCUMENT = json.loads((ROOT / "docs" / "host-openapi.json").read_text())
IMAGE = "localhost/tl-test"
TIMEOUT = 60

until = functools.partial(waiting.until, timeout=TIMEOUT)

reason = None
if os.geteuid() != 0:
    reason = "Podman is tested as root"
elif not os.environ.get("TL_TEST_ALL") and not shutil.which("podman"):
    reason = "needs `tests/need podman`"


def pytest_collection_modifyitems(items):
    if reason:
        for item in items:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def terminal(request):
    """The standard error of the test run, from before pytest captures it."""
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        return os.fdopen(os.dup(2), "w")


@pytest.fixture(autouse=True)
def time_limit(terminal):
    """Ends the tests with a traceback if one of them hangs."""
    faulthandler.dump_traceback_later(3 * TIMEOUT, exit=True, file=terminal)
    yield
    faulthandler.cancel_dump_traceback_later()


class Engine:
    """The API of Podman with a storage of its own, which tests/host/podman.sh starts and removes."""

    def __init__(self, directory):
        self.directory = directory
        self.socket = directory / "podman.sock"
        self.url = f"unix://{self.socket}"
        script = [str(ROOT / "tests/host/podman.sh"), str(directory)]
        self.service = subprocess.Popen(script, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        until("the engine answers", self.answers)

    def answers(self):
        assert self.service.poll() is None, "tests/host/podman.sh has ended"
        try:
            with self.client() as client:
                return client.get("/_ping").status_code == 200
        except httpx.TransportError:
            return False

    def client(self):
        return httpx.Client(base_url="http://engine", transport=httpx.HTTPTransport(uds=str(self.socket)))

    def get(self, path):
        with self.client() as client:
            return client.get(f"/v1.41{path}", timeout=TIMEOUT).raise_for_status().json()

    def containers(self):
        return [container["Names"][0] for container in self.get("/containers/json?all=true")]

    def log(self, container):
        """What the processes of a container have written to its standard streams."""
        with self.client() as client:
            answer = client.get(f"/v1.41/containers/{container}/logs?stdout=true&stderr=true", timeout=TIMEOUT)
            return answer.raise_for_status().text

    def images(self):
        return [name for image in self.get("/images/json") for name in image["RepoTags"] or ["unnamed"]]

    def remove_image(self, name):
        with self.client() as client:
            client.delete(f"/v1.41/images/{name}").raise_for_status()

    def stop(self):
        # At the end of its input, the script removes everything.
        self.service.stdin.close()
        self.service.wait(TIMEOUT)


@pytest.fixture(scope="session")
def engine(tmp_path_factory):
    engine = Engine(tmp_path_factory.mktemp("engine"))
    yield engine
    engine.stop()


@pytest.fixture(scope="session")
def archive():
    """A tar archive of the root file system of [`IMAGE`]: busybox, a shell, and root as the only user."""
    subprocess.run([ROOT / "host/image.sh", "busybox"], check=True)
    return CACHE / "host" / "busybox.tar"


@pytest.fixture(scope="session")
def image(engine, archive):
    """The image of the sandboxes, made by `tl-host import`."""
    tl_host("import", archive, "--name", IMAGE, "--engine", engine.url)
    return IMAGE


def try_tl_host(*words, environment=(), **options):
    """Runs one command; returns its exit status, its stdout and its stderr."""
    # The environment of the test run must not configure the program.
    clean = {key: value for key, value in os.environ.items() if not key.startswith("TL_")}
    options = {"timeout": TIMEOUT, "stdin": subprocess.DEVNULL} | options
    done = subprocess.run(
        [PROGRAM, *map(str, words)], env=clean | dict(environment), text=True, capture_output=True, **options
    )
    return done.returncode, done.stdout, done.stderr


def tl_host(*words, **options):
    code, output, errors = try_tl_host(*words, **options)
    assert code == 0, f"tl-host {words}: {code}\n{output}{errors}"
    return output


class Host:
    """A tl-host that serves."""

    def __init__(self, directory, engine, *options):
        self.directory, self.engine = directory, engine
        self.state = directory / "state"
        self.options = ["--engine", engine.url, "--state-dir", self.state, "--init", INIT, "--default-image", IMAGE]
        self.options += options
        self.start("127.0.0.1:0", "127.0.0.1:0")

    def start(self, api, proxy):
        self.log = open(self.directory / "host.log", "w+b")
        clean = {key: value for key, value in os.environ.items() if not key.startswith("TL_")}
        self.process = subprocess.Popen(
            [PROGRAM, "--api", api, "--proxy", proxy, *map(str, self.options)],
            env=clean,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )
        # The environment to paste, an empty line, and three lines to try.
        self.lines = [self.process.stdout.readline() for _ in range(5)]
        assert self.lines[0].startswith("export "), self.errors()
        # As a shell that gets this line.
        script = self.lines[0] + 'echo "$TENSORLAKE_API_URL $TENSORLAKE_API_KEY $TENSORLAKE_SANDBOX_PROXY_URL"'
        values = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout.split()
        names = ["TENSORLAKE_API_URL", "TENSORLAKE_API_KEY", "TENSORLAKE_SANDBOX_PROXY_URL"]
        self.environment = dict(zip(names, values, strict=True))
        self.url = self.environment["TENSORLAKE_API_URL"]
        self.proxy = self.environment["TENSORLAKE_SANDBOX_PROXY_URL"]
        self.key = self.environment["TENSORLAKE_API_KEY"]

    def errors(self):
        self.log.seek(0)
        return self.log.read().decode(errors="replace")

    def stop(self):
        """Ends tl-host; its sandboxes go on."""
        self.process.terminate()
        assert self.process.wait(TIMEOUT) == 0, self.errors()
        self.process.stdout.close()

    def restart(self):
        """Ends tl-host, and starts it at the same addresses."""
        self.stop()
        self.start(self.url.removeprefix("http://"), self.proxy.removeprefix("http://"))

    def call(self, method, path, body=None, key=None, **options):
        """Sends a request, and checks that the response is as docs/host-openapi.json says."""
        headers = {"Authorization": f"Bearer {self.key if key is None else key}"} | options.pop("headers", {})
        options |= {"json": body} if isinstance(body, (dict, list)) else {"content": body}
        with httpx.Client(trust_env=False, timeout=TIMEOUT) as client:
            response = client.request(method, self.url + path, headers=headers, **options)
        check(method, path, response)
        return response

    def __call__(self, method, path, body=None, status=200, **options):
        response = self.call(method, path, body, **options)
        assert response.status_code == status, f"{method} {path}: {response.status_code} {response.text}"
        return response.json()


def check(method, path, response):
    """Checks that a response is as docs/host-openapi.json says."""
    path = path.split("?")[0]
    full = path if path in DOCUMENT["paths"] or path.startswith("/v1/namespaces/") else f"/v1/namespaces/default{path}"
    described = [item for template, item in DOCUMENT["paths"].items() if re.fullmatch(pattern(template), full)]
    operation = described and described[0].get("get" if method == "HEAD" else method.lower())
    if not operation:
        assert response.status_code in (401, 404, 405), f"{method} {path} is not described"
        return
    responses = operation["responses"]
    answer = responses.get(str(response.status_code), responses["default"])
    if "$ref" in answer:
        answer = DOCUMENT["components"]["responses"][answer["$ref"].rsplit("/", 1)[1]]
    media_type = response.headers["Content-Type"].split(";")[0]
    schema = answer["content"][media_type]["schema"]
    if media_type == "application/json" and method != "HEAD":
        resolved = {"components": DOCUMENT["components"], "allOf": [schema]}
        jsonschema.Draft202012Validator(resolved).validate(response.json())
        check_fields(schema, response.json())


def check_fields(schema, value):
    """No field of an object is left undescribed."""
    if "$ref" in schema:
        return check_fields(DOCUMENT["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]], value)
    if isinstance(value, dict) and "properties" in schema:
        assert set(value) <= set(schema["properties"]), set(value) - set(schema["properties"])
        for name, part in value.items():
            check_fields(schema["properties"][name], part)
    if isinstance(value, list) and "items" in schema:
        for part in value:
            check_fields(schema["items"], part)


def pattern(template):
    return re.sub(r"\{\w+\}", "[^/]+", template)


@pytest.fixture(scope="session")
def host(engine, image, tmp_path_factory):
    host = Host(tmp_path_factory.mktemp("host"), engine)
    os.environ |= host.environment | {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}
    yield host
    assert host.process.poll() is None, host.errors()
    host.stop()


@pytest.fixture(scope="session")
def sdk(host):
    """The public Python client, which reads the environment when it is imported."""
    assert "tensorlake" not in sys.modules
    return importlib.import_module("tensorlake.sandbox")


@pytest.fixture
def own_host(engine, image, tmp_path):
    """Starts a tl-host for one test, with further options."""
    hosts = []

    def start(*options):
        hosts.append(Host(tmp_path, engine, *options))
        return hosts[-1]

    yield start
    for host in hosts:
        if host.process.poll() is None:
            host.stop()
        tl_host("stop", "--all", *host.options)


@pytest.fixture(autouse=True)
def nothing_is_left(request):
    """Ends what a test has left running, and checks that then nothing is left in the engine."""
    yield
    if "host" not in request.fixturenames:
        return
    host, engine = request.getfixturevalue("host"), request.getfixturevalue("engine")
    for namespace in ("default", "other"):
        prefix = f"/v1/namespaces/{namespace}"
        for sandbox in host("GET", f"{prefix}/sandboxes")["sandboxes"]:
            if sandbox["status"] != "terminated":
                host.call("DELETE", f"{prefix}/sandboxes/{sandbox['id']}")
        for snapshot in host("GET", f"{prefix}/snapshots")["snapshots"]:
            host("DELETE", f"{prefix}/snapshots/{snapshot['id']}")
    until("all containers are removed", lambda: engine.containers() == [])
    until("all images but that of the tests are removed", lambda: engine.images() == [f"{IMAGE}:latest"])

"""tl-host itself: its API without a client library, its options, and how it starts and ends."""

import json
import re
import resource
import signal
import socket
import subprocess

import pytest
from conftest import DOCUMENT, IMAGE, INIT, PROGRAM, TIMEOUT, Host, tl_host, try_tl_host, until
from openapi_spec_validator import OpenAPIV31SpecValidator, validate
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families


def test_the_description_is_valid_openapi_and_served(host):
    validate(DOCUMENT, cls=OpenAPIV31SpecValidator)
    assert host("GET", "/openapi.json", key="wrong") == DOCUMENT


def test_a_request_without_the_key_is_refused(host):
    for key in ("wrong", host.key + "x", host.key[:-1]):
        response = host.call("GET", "/sandboxes", key=key)
        assert (response.status_code, response.json()["code"]) == (401, "UNAUTHORIZED")
        assert host.call("GET", "/nowhere", key=key).status_code == 401
    assert host.call("GET", "/sandboxes", headers={"Authorization": f"Basic {host.key}"}).status_code == 401
    assert host("GET", "/health", key="wrong") == {"healthy": True}


def test_unknown_paths_and_methods(host):
    for method, path, status, code in [
        ("GET", "/nowhere", 404, "NOT_FOUND"),
        ("GET", "/v1/namespaces/default/health", 404, "NOT_FOUND"),
        ("PUT", "/sandboxes", 405, "METHOD_NOT_ALLOWED"),
        ("GET", "/sandboxes/x/suspend", 405, "METHOD_NOT_ALLOWED"),
        ("GET", "/v1/namespaces/%00/sandboxes", 400, "INVALID_REQUEST"),
    ]:
        response = host.call(method, path)
        assert (response.status_code, response.json()["code"]) == (status, code), path
    assert host.call("PUT", "/sandboxes").headers["Allow"] == "GET, HEAD, POST"
    assert host.call("HEAD", "/sandboxes").status_code == 200


def test_bodies_that_are_not_valid(host):
    for body, part in [
        (b"", "empty"),
        (b"{", "JSON"),
        (b"[]", "must be an object"),
        ({"name": 5}, "`name`"),
        ({"resources": {"cpus": -1}}, "`resources.cpus`"),
        ({"entrypoint": "sh"}, "`entrypoint`"),
        ({"exposed_ports": [9501]}, "`exposed_ports`"),
    ]:
        error = host("POST", "/sandboxes", body, status=400)
        assert error["code"] == "INVALID_REQUEST" and part in error["error"], error
    for path, part in [
        ("/sandboxes?status=weird", "`status`"),
        ("/sandboxes/x/logs?level=9", "`level`"),
    ]:
        assert part in host("GET", path, status=400)["error"]
    for path, part in [("/sandboxes/x/copy?times=0", "`times`"), ("/sandboxes/x/suspend?wait_ms=x", "`wait_ms`")]:
        assert part in host("POST", path, status=400)["error"]


def test_a_sandbox_belongs_to_the_namespace_of_its_request(host):
    made = host("POST", "/v1/namespaces/other/sandboxes", {"name": "apart"})
    assert made["sandbox_url"] == host.proxy
    assert [info["id"] for info in host("GET", "/v1/namespaces/other/sandboxes")["sandboxes"]] == [made["sandbox_id"]]
    for path in ("/sandboxes/apart", f"/sandboxes/{made['sandbox_id']}", "/v1/namespaces/default/sandboxes/apart"):
        assert host("GET", path, status=404)["code"] == "SANDBOX_NOT_FOUND"
    assert host("GET", "/v1/namespaces/other/sandboxes/apart")["namespace"] == "other"
    assert host("GET", "/v1/namespaces/other/sandboxes?status=suspended") == {"sandboxes": []}


def test_a_start_that_fails_is_422_with_the_record(host, engine):
    failed = host("POST", "/sandboxes", {"entrypoint": ["/no/such/program"]}, status=422)
    assert failed["status"] == "failed" and "/no/such/program" in failed["error_details"]["message"]
    assert engine.containers() == []


def test_the_image_can_be_named_by_a_snapshot(host):
    host("POST", "/sandboxes", {"name": "base", "resources": {"memory_mb": 200}})
    made = host("POST", "/sandboxes/base/snapshot", {"name": "prepared"})
    assert host("GET", "/snapshots/prepared")["id"] == made["snapshot_id"]
    copy = host("POST", "/sandboxes", {"image": "prepared"})
    info = host("GET", f"/sandboxes/{copy['sandbox_id']}")
    assert (info["image"], info["resources"]["memory_mb"]) == (IMAGE, 200)


def test_metrics(host):
    made = host("POST", "/sandboxes", {})
    values = {}
    for family in text_string_to_metric_families(host.call("GET", "/metrics").text):
        values |= {(sample.name, *sorted(sample.labels.items())): sample.value for sample in family.samples}
    assert values[("tl_host_sandboxes", ("status", "running"))] == 1
    assert values[("tl_host_creates_total", ("from", "image"))] >= 1
    assert values[("tl_host_create_duration_seconds_count",)] >= 1
    assert {"tl_host_proxy_requests_total", "tl_host_engine_errors_total"} <= {key[0] for key in values}
    page = host.call("GET", "/metrics", headers={"Accept": "application/openmetrics-text"}).text
    assert list(openmetrics.text_string_to_metric_families(page))
    host("DELETE", f"/sandboxes/{made['sandbox_id']}")


def test_sandboxes_survive_a_restart(host, sdk):
    host("POST", "/sandboxes", {"name": "running"})
    host("POST", "/sandboxes", {"name": "frozen"})
    host("POST", "/sandboxes/frozen/suspend")
    sandbox = sdk.Sandbox.connect("running")
    process = sandbox.start_process("sleep", ["1000"])
    key = host.key
    host.restart()
    assert host.key == key
    assert host("GET", "/sandboxes/running")["status"] == "running"
    assert host("GET", "/sandboxes/frozen")["status"] == "suspended"
    assert sandbox.get_process(process.pid).status.value == "running"
    host("POST", "/sandboxes/frozen/resume")


def test_the_printed_environment_and_the_line_with_curl_work(host):
    """A shell takes the environment, and the request of the last line makes a sandbox."""
    script = "".join(line for line in host.lines if line.startswith(("export ", "curl ")))
    done = subprocess.run(["sh", "-c", script], text=True, capture_output=True, timeout=TIMEOUT)
    assert json.loads(done.stdout)["status"] == "running", done.stderr


def test_another_tl_host_cannot_use_the_state_directory(host, engine):
    code, _, errors = try_tl_host(*host.options, "--api", "127.0.0.1:0", "--proxy", "127.0.0.1:0")
    assert code == 1 and "another tl-host uses" in errors and str(host.state) in errors


def test_stop_ends_all_sandboxes_and_the_tl_host_that_runs(own_host, engine):
    host = own_host()
    host("POST", "/sandboxes", {})
    host("POST", "/v1/namespaces/other/sandboxes", {"name": "frozen"})
    host("POST", "/v1/namespaces/other/sandboxes/frozen/suspend")
    tl_host("stop", "--all", *host.options)
    assert host.process.wait(TIMEOUT) == 0 and engine.containers() == []


def test_stop_ends_all_sandboxes_that_tl_host_has_left(own_host, engine):
    host = own_host()
    host("POST", "/sandboxes", {})
    host.stop()
    assert len(engine.containers()) == 1
    code, _, errors = try_tl_host("stop", *host.options)
    assert code == 2 and "--all" in errors
    tl_host("stop", "--all", *host.options)
    assert engine.containers() == []


def test_stop_with_purge_leaves_nothing(own_host, host, engine):
    mine = own_host()
    host("POST", "/sandboxes", {"name": "other"})
    other = host("POST", "/sandboxes/other/snapshot")["snapshot_id"]
    mine("POST", "/sandboxes", {"name": "mine"})
    mine("POST", "/sandboxes/mine/snapshot")
    hidden = mine("POST", "/sandboxes/mine/copy")["sandboxes"][0]["sandbox_id"]
    mine("PATCH", f"/sandboxes/{hidden}", {"name": "frozen"})
    mine("POST", "/sandboxes/frozen/suspend")
    assert len(engine.images()) == 4
    tl_host("stop", "--all", "--purge", *mine.options)
    assert mine.process.wait(TIMEOUT) == 0 and not mine.state.exists()
    # Those of another tl-host stay.
    assert sorted(engine.images()) == [f"localhost/tl-snapshot:{other}", f"{IMAGE}:latest"]
    assert engine.containers() == [f"/tl-{host('GET', '/sandboxes/other')['id']}"]
    # What is gone can be purged again, and used again with another key.
    tl_host("stop", "--all", "--purge", *mine.options)
    again = own_host()
    assert again.key != mine.key and again("GET", "/snapshots") == {"snapshots": []}


def test_the_key_of_a_file(own_host, tmp_path):
    file = tmp_path / "key"
    file.write_text("a-key-of-this-test\n")
    file.chmod(0o600)
    host = own_host("--key-file", file, "--log-format", "json")
    assert host.key == "a-key-of-this-test"
    assert host("GET", "/sandboxes") == {"sandboxes": []}
    records = [json.loads(line) for line in host.errors().splitlines()]
    assert [record["event"] for record in records if "event" in record] == ["host.listening"]
    assert host.key not in host.errors() and host.key not in "".join(host.lines)


def test_warm_containers_are_taken(own_host, engine):
    # Without CAP_SYS_RESOURCE, no limit can be above the present one.
    most = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    tasks = 20000 if most == resource.RLIM_INFINITY else min(most, 20000)
    host = own_host("--warm", "1", "--runtime", "runc", "--ulimit", "nofile=500:600", "--ulimit", f"nproc={tasks}:{tasks}")

    def value(name):
        return float(re.search(rf"^{re.escape(name)} (\S+)$", host.call("GET", "/metrics").text, re.M)[1])

    until("a container is ready", lambda: value("tl_host_warm_containers") == 1)
    made = host("POST", "/sandboxes", {})
    assert value('tl_host_creates_total{from="warm_pool"}') == 1
    assert made["status"] == "running"
    for container in engine.get("/containers/json?all=true"):
        inspected = engine.get(f"/containers/{container['Id']}/json")
        assert inspected["HostConfig"]["Runtime"] in ("runc", "oci")
        [limit] = [limit for limit in inspected["HostConfig"]["Ulimits"] if "nofile" in limit["Name"].lower()]
        assert (limit["Soft"], limit["Hard"]) == (500, 600)


def test_sigint_ends_it_too(own_host):
    host = own_host()
    host.process.send_signal(signal.SIGINT)
    assert host.process.wait(TIMEOUT) == 0
    assert "the sandboxes go on" in host.errors()


def test_options_that_are_not_valid():
    for words, environment, part in [
        (["--nonsense"], {}, "--nonsense"),
        (["serve"], {}, "serve"),
        (["--api", "nowhere"], {}, "--api"),
        ([], {"TL_HOST_PROXY": "nowhere"}, "TL_HOST_PROXY"),
        (["--engine", "http://x"], {}, "--engine"),
        (["import"], {}, "import needs"),
        (["import", "/"], {}, "--name"),
    ]:
        code, output, errors = try_tl_host(*words, environment=environment)
        assert (code, output, errors.count("\n")) == (2, "", 1) and part in errors, errors
    assert try_tl_host("--version")[1].startswith("tl-host ")
    assert "--default-image" in tl_host("--help")


def test_what_keeps_it_from_starting_is_one_line(engine, tmp_path):
    taken = socket.create_server(("127.0.0.1", 0))
    address = "%s:%s" % taken.getsockname()
    key = tmp_path / "key"
    key.write_text("secret")
    key.chmod(0o644)
    common = {"--engine": engine.url, "--state-dir": tmp_path / "state", "--init": INIT, "--api": "127.0.0.1:0",
              "--proxy": "127.0.0.1:0"}
    for option, value, part in [
        ("--engine", f"unix://{tmp_path}/none.sock", "podman"),
        ("--init", tmp_path / "none", "--init"),
        ("--key-file", key, "--key-file"),
        ("--state-dir", "/proc/none", "/proc/none"),
        ("--api", address, "--api"),
        ("--proxy", address, "--proxy"),
    ]:
        words = [word for pair in (common | {option: value}).items() for word in pair]
        code, output, errors = try_tl_host(*words)
        assert (code, output, errors.count("\n")) == (1, "", 1) and part in errors, (option, errors)
    taken.close()


def test_the_name_of_an_imported_image_can_have_a_tag(engine, image, archive):
    """The archive is read from a file or, after `-`, from standard input. tests/host/import.rs has more."""
    assert tl_host("import", archive, "--name", "localhost/other:tag", "--engine", engine.url).startswith("localhost/other:tag ")
    assert "localhost/other:tag" in engine.images()
    engine.remove_image("localhost/other:tag")
    with open(archive, "rb") as stream:
        tl_host("import", "-", "--name", "localhost/piped", "--engine", engine.url, stdin=stream)
    assert "localhost/piped:latest" in engine.images()
    engine.remove_image("localhost/piped")

"""The life of a sandbox with the public Python client, unmodified."""

import json
import time

import httpx
import pytest
from conftest import IMAGE, until


@pytest.fixture
def client(sdk):
    with pytest.warns(DeprecationWarning):
        return sdk.SandboxClient()


def status(client, sandbox):
    return client.get(sandbox).status.value


def fails(sdk, status_code, part, call):
    """Expects a `RemoteAPIError` with this status, and a sentence."""
    with pytest.raises(sdk.RemoteAPIError) as error:
        call()
    assert error.value.status_code == status_code and part in str(error.value), str(error.value)


def test_create_run_and_terminate(sdk, client, engine):
    with sdk.Sandbox.create() as sandbox:
        result = sandbox.run("sh", ["-c", "echo hello; id -un; exit 3"])
        assert (result.stdout, result.exit_code) == ("hello\ntl-user", 3)
        sandbox.write_file("/tmp/file", b"\x00\xff" * 100_000)
        assert sandbox.read_file("/tmp/file").value == b"\x00\xff" * 100_000
        assert engine.containers() == [f"/tl-{sandbox.sandbox_id}"]
    assert engine.containers() == []
    ended = client.get(sandbox.sandbox_id)
    assert (ended.status.value, ended.termination_reason) == ("terminated", "deleted")
    assert ended.terminated_at >= ended.created_at
    with pytest.raises(sdk.SandboxNotFoundError):
        client.delete(sandbox.sandbox_id)


def test_every_field_of_create(sdk, client, engine):
    made = client.create(
        IMAGE, 0.5, 256, timeout_secs=3600, entrypoint=["sleep", "1000"], allow_internet_access=False, name="my-env",
        exposed_ports=[8080, 80], allow_unauthenticated_access=True,
    )
    assert (made.status.value, made.name) == ("running", "my-env")
    info = client.get("my-env").value
    assert (info.sandbox_id, info.name, info.image, info.namespace) == (made.sandbox_id, "my-env", IMAGE, "default")
    assert (info.resources.cpus, info.resources.memory_mb, info.timeout_secs) == (0.5, 256, 3600)
    assert (info.entrypoint, info.exposed_ports) == (["sleep", "1000"], [80, 8080])
    assert info.allow_unauthenticated_access and not info.network_policy.allow_internet_access
    container = engine.get(f"/containers/tl-{made.sandbox_id}/json")
    limits = container["HostConfig"]
    assert (limits["Memory"], limits["NanoCpus"]) == (256 << 20, 500_000_000)
    assert "default" not in sdk.Sandbox.connect("my-env").run("ip", ["route"]).stdout
    assert info.url_for_port(8080) == f"{info.ingress_endpoint.replace('//', f'//8080-{made.sandbox_id}.')}"


def test_list_get_and_rename(sdk, client):
    first, second = client.create(name="first"), client.create()
    names = [(sandbox.sandbox_id, sandbox.name) for sandbox in client.list() if sandbox.status.value == "running"]
    assert names == [(first.sandbox_id, "first"), (second.sandbox_id, None)]
    assert client.update_sandbox("first", "renamed").name == "renamed"
    assert client.get("renamed").sandbox_id == first.sandbox_id
    with pytest.raises(sdk.SandboxNotFoundError):
        client.get("first")
    fails(sdk, 409, "renamed", lambda: client.update_sandbox(second.sandbox_id, "renamed"))
    client.delete("renamed")
    # The name of a terminated sandbox is free.
    assert sdk.Sandbox.get_or_create("renamed").sandbox_id != first.sandbox_id
    bound = sdk.Sandbox.get_or_create("renamed")
    assert (bound.bind_outcome, bound.name) == ("attached", "renamed")


def test_create_without_waiting(sdk):
    pending = sdk.Sandbox.create(wait=False)
    assert pending.state.value == "pending"
    assert pending.ready().run("true").exit_code == 0


def test_suspend_and_resume(sdk, client):
    client.create(name="sleeper")
    sandbox = sdk.Sandbox.connect("sleeper")
    process = sandbox.start_process("sh", ["-c", "while :; do :; done"])
    client.suspend("sleeper")
    assert status(client, "sleeper") == "suspended"
    client.suspend("sleeper")
    client.resume("sleeper")
    assert status(client, "sleeper") == "running"
    assert sandbox.get_process(process.pid).status.value == "running"
    # A request resumes it.
    client.suspend("sleeper")
    assert sandbox.run("true").exit_code == 0
    assert status(client, "sleeper") == "running"
    clock = float(sandbox.run("date", ["+%s"]).stdout)
    assert abs(clock - time.time()) < 5


def test_a_sandbox_without_a_name_cannot_be_suspended(sdk, client):
    sandbox = client.create()
    fails(sdk, 400, "has no name", lambda: client.suspend(sandbox.sandbox_id))
    client.update_sandbox(sandbox.sandbox_id, "named")
    client.suspend(sandbox.sandbox_id)
    assert status(client, "named") == "suspended"


def test_snapshot_restore_and_copy(sdk, client, engine):
    client.create(cpus=0.5, memory_mb=300, name="source")
    source = sdk.Sandbox.connect("source")
    source.run("sh", ["-c", "echo kept > /root/file || echo kept > /tmp/file"], user="root")
    snapshot = source.checkpoint()
    assert (snapshot.status.value, snapshot.base_image) == ("completed", IMAGE)
    assert snapshot.size_bytes > 0
    assert [listed.snapshot_id for listed in client.list_snapshots()] == [snapshot.snapshot_id]
    assert [listed.snapshot_id for listed in client.list_sandbox_snapshots("source")] == [snapshot.snapshot_id]
    restored = client.create(snapshot_id=snapshot.snapshot_id, name="restored")
    info = client.get(restored.sandbox_id)
    assert (info.resources.cpus, info.resources.memory_mb, info.image) == (0.5, 300, IMAGE)
    assert sdk.Sandbox.connect("restored").run("cat", ["/root/file"], user="root").stdout == "kept"
    copies = client.copy("source", times=2)
    assert copies.source_sandbox_id == source.sandbox_id
    assert [copy.status for copy in copies.sandboxes] == ["running", "running"]
    for copy in copies.sandboxes:
        assert sdk.Sandbox.connect(copy.sandbox_id).run("cat", ["/root/file"], user="root").stdout == "kept"
    client.delete_snapshot(snapshot.snapshot_id)
    assert list(client.list_snapshots()) == []
    # What was made from it goes on.
    assert sdk.Sandbox.connect("restored").run("true").exit_code == 0
    fails(sdk, 404, snapshot.snapshot_id, lambda: client.get_snapshot(snapshot.snapshot_id))


def test_a_snapshot_has_no_token(sdk, client, host, engine):
    """Neither the token of the sandbox nor the output of its processes is in the image."""
    sandbox = sdk.Sandbox.connect(client.create(name="secretive").sandbox_id)
    [token] = [path.read_text().strip() for path in (host.state / "tokens").iterdir()]
    sandbox.checkpoint()
    found = sandbox.run("sh", ["-c", f"grep -rl {token} /etc /run /tmp /var /root 2>/dev/null; :"], user="root")
    assert "/tmp" not in found.stdout
    restored = client.create(snapshot_id=next(iter(client.list_snapshots())).snapshot_id)
    found = sdk.Sandbox.connect(restored.sandbox_id).run(
        "sh", ["-c", f"grep -rl {token} /bin /etc /run /tmp /var /root /home 2>/dev/null; :"], user="root"
    )
    assert found.stdout == ""


def test_exposed_ports(sdk, client, host):
    client.create(name="web")
    sandbox = sdk.Sandbox.connect("web")
    server = "mkdir -p /tmp/w && echo page > /tmp/w/index.html && exec httpd -f -p 8080 -h /tmp/w"
    sandbox.start_process("sh", ["-c", server])
    port = httpx.URL(host.proxy).port

    def fetch(label, key=host.key):
        headers = {"Host": f"{label}.localhost:{port}"} | ({"Authorization": f"Bearer {key}"} if key else {})
        with httpx.Client(trust_env=False, timeout=60) as plain:
            return plain.get(host.proxy, headers=headers)

    assert fetch("8080-web").status_code in (403, 404)
    client.expose_ports("web", [8080])
    until("the server answers", lambda: fetch("8080-web").text == "page\n")
    assert fetch(f"8080-{sandbox.sandbox_id}").text == "page\n"
    assert fetch("8080-web", key=None).status_code == 401
    client.update_sandbox("web", allow_unauthenticated_access=True)
    assert fetch("8080-web", key=None).text == "page\n"
    access = client.get_port_access("web")
    assert (access.exposed_ports, access.allow_unauthenticated_access) == ([8080], True)
    client.unexpose_ports("web", [8080])
    assert fetch("8080-web").status_code in (403, 404)


def test_a_timeout_terminates_or_suspends(sdk, client):
    unnamed, named = client.create(timeout_secs=1), client.create(timeout_secs=1, name="timely")
    until("it is terminated", lambda: status(client, unnamed.sandbox_id) == "terminated")
    until("it is suspended", lambda: status(client, named.sandbox_id) == "suspended")
    assert client.get(unnamed.sandbox_id).termination_reason == "timeout"


def test_a_sandbox_ends_with_its_main_process(client):
    sandbox = client.create(entrypoint=["sh", "-c", "sleep 1; exit 7"])
    until("it is terminated", lambda: status(client, sandbox.sandbox_id) == "terminated")
    info = client.get(sandbox.sandbox_id)
    assert info.termination_reason == "main_process_ended" and "7" in info.error_details["message"]


def test_logs_and_processes(sdk, client):
    client.create(name="talker")
    sandbox = sdk.Sandbox.connect("talker")
    sandbox.run("sh", ["-c", "echo One; echo two >&2; echo three"])
    running = sandbox.start_process("sh", ["-c", "printf 'four\\nunfinished'; exec sleep 1000"])
    until("it has written", lambda: sandbox.get_output(running.pid).line_count == 2)
    logs = client.get_logs("talker").logs
    assert [log.body for log in logs][-1] == "four"
    assert sorted((log.body, log.level) for log in logs) == [("One", 3), ("four", 3), ("three", 3), ("two", 5)]
    assert all(log.sandbox_id == sandbox.sandbox_id and log.namespace == "default" for log in logs)
    assert abs(logs[0].timestamp / 1000 - time.time()) < 60
    assert [log.body for log in client.get_logs("talker", levels=["error"]).logs] == ["two"]
    assert [log.body for log in client.get_logs("talker", body="ONE").logs] == ["One"]
    assert [log.body for log in client.get_logs("talker", tail=1).logs] == ["four"]
    page = client.get_logs("talker", head=3)
    rest = client.get_logs("talker", head=3, next_token=page.next_token)
    assert [log.uuid for log in page.logs + rest.logs] == [log.uuid for log in logs] and rest.next_token is None
    first, second = client.list_log_processes("talker").processes
    assert (first.log_count, second.log_count, second.process_pid) == (3, 2, str(running.pid))
    assert "unfinished" in second.process_command
    only = client.get_logs("talker", process_ids=[second.process_id])
    assert [log.body for log in only.logs] == ["four"]


def test_what_cannot_be_made_is_an_error_that_names_it(sdk, client, engine):
    create = sdk.Sandbox.create
    for status_code, part, call in [
        (400, "`name`", lambda: create(name="Bad_Name")),
        (400, "`name`", lambda: create(name="a" * 21)),
        (400, "`resources.gpus`", lambda: client.create(gpus=1)),
        (400, "`network.allow_out`", lambda: create(allow_out=["1.1.1.1"])),
        (400, "`resources.memory_mb`", lambda: create(memory_mb=1)),
        (404, "no-such-image", lambda: create(image="no-such-image")),
        (404, "no-such-snapshot", lambda: create(snapshot_id="no-such-snapshot")),
        (501, "`auto_resume`", lambda: create(auto_resume=False)),
        (501, "pools", lambda: client.create_pool(IMAGE)),
        (501, "archive", lambda: client.list_archived()),
    ]:
        fails(sdk, status_code, part, call)
    with pytest.raises(sdk.SandboxError, match="/no/such/program"):
        create(entrypoint=["/no/such/program"])
    assert engine.containers() == []
    create(name="taken")
    fails(sdk, 409, "taken", lambda: create(name="taken"))
    fails(sdk, 501, "`resources`", lambda: client.update_sandbox("taken", cpus=2, timeout=5))
    fails(sdk, 501, "`network`", lambda: client.update_sandbox("taken", network=sdk.CLEAR_NETWORK_POLICY))
    fails(sdk, 400, "`snapshot_type`", lambda: client.snapshot("taken", sdk.SnapshotType.MEMORY))
    for call in (client.get, client.delete, client.suspend, client.resume, client.snapshot, client.get_logs, client.copy):
        with pytest.raises(sdk.SandboxNotFoundError):
            call("gone")
    client.delete("taken")


def test_a_wrong_key_is_refused(sdk, host):
    with pytest.raises(sdk.RemoteAPIError) as error:
        sdk.Sandbox.create(api_key="wrong")
    assert error.value.status_code == 401
    assert json.loads(str(error.value).split(": ", 1)[1])["code"] == "UNAUTHORIZED"

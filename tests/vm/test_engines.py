"""Containers of Podman: the recipes of docs/images.md, and what options change (docs/operations.md, Containers)."""

import contextlib
import hashlib
import json
import os
import pathlib
import resource
import shutil
import socket
import subprocess
import time
import urllib.request
import uuid

import documents
import pytest
import yaml
from machine import CACHE, DIST, ROOT, until
from tensorlake.sandbox import Sandbox

TOKEN = "a-token-of-this-test"
TIMEOUT = 120
CGROUP2 = pathlib.Path("/sys/fs/cgroup/unified")

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="Podman is tested as root"),
    pytest.mark.skipif(
        not (shutil.which("podman") and (CACHE / "debian.tar").exists()),
        reason="needs `tests/need podman` and `init/images/fetch.sh debian`",
    ),
]


class Podman:
    """Podman with a storage, locks and a network of its own, so that other runs do not disturb it."""

    def __init__(self, directory):
        self.network = f"tl{os.getpid()}"
        config, storage = directory / "containers.conf", directory / "storage.conf"
        # Without CAP_SYS_RESOURCE, limits above the present ones cannot be set.
        limits = [
            f'"{name}={limit(number)}:{limit(number)}"'
            for name, number in (("nofile", resource.RLIMIT_NOFILE), ("nproc", resource.RLIMIT_NPROC))
        ]
        config.write_text(
            f'[containers]\ndefault_ulimits = [{", ".join(limits)}]\n'
            '[engine]\nruntime = "runc"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
            # Otherwise every Podman of the machine shares its locks.
            f'lock_type = "file"\ntmp_dir = "{directory}/libpod"\n'
            f'[network]\nnetwork_config_dir = "{directory}/networks"\ndefault_network = "{self.network}"\n'
        )
        storage.write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{directory}/graph"\nrunroot = "{directory}/run"\n'
        )
        self.environment = os.environ | {
            "CONTAINERS_CONF": str(config),
            "CONTAINERS_STORAGE_CONF": str(storage),
            # `RUN` in a Dockerfile.
            "BUILDAH_ISOLATION": "chroot",
        }
        (directory / "networks").mkdir()
        subnet = f"10.{100 + os.getpid() // 256 % 100}.{os.getpid() % 256}"
        network = {
            "name": self.network,
            "id": hashlib.sha256(self.network.encode()).hexdigest(),
            "driver": "bridge",
            "network_interface": self.network,
            "subnets": [{"subnet": f"{subnet}.0/24", "gateway": f"{subnet}.1"}],
            "ipam_options": {"driver": "host-local"},
        }
        (directory / f"networks/{self.network}.json").write_text(json.dumps(network))

    def try_to(self, *words, **options):
        """Runs one command; returns its exit status, its stdout and its stderr."""
        line = ["podman", *map(str, words)]
        options = {"cwd": ROOT, "timeout": TIMEOUT} | options
        done = subprocess.run(line, env=self.environment, text=True, capture_output=True, **options)
        return done.returncode, done.stdout, done.stderr

    def __call__(self, *words, **options):
        code, output, errors = self.try_to(*words, **options)
        assert code == 0, f"podman {words}: {code}\n{output}{errors}"
        return output

    def url(self, name):
        """The address of the API of a container, once it answers."""
        url = f"http://{self('port', name, '9501/tcp').strip()}"
        until("an answer", lambda: healthy(url), timeout=TIMEOUT)
        return url


def healthy(url):
    with contextlib.suppress(OSError):
        return urllib.request.urlopen(f"{url}/api/v1/health", timeout=1).status == 200


def limit(number):
    """A limit for containers that needs no privilege to be set."""
    highest = resource.getrlimit(number)[1]
    return 20000 if highest == resource.RLIM_INFINITY else min(highest, 20000)


@pytest.fixture(scope="module")
def podman(tmp_path_factory):
    directory = tmp_path_factory.mktemp("podman")
    made = Podman(directory)
    made("import", "--quiet", CACHE / "debian.tar", "docker.io/library/debian:bookworm-slim")
    made("build", "--file", "examples/Dockerfile", "--tag", "tl-init", "dist")
    yield made
    made("rm", "--all", "--force", "--time", "0")
    made("rmi", "--all", "--force")
    # Podman leaves its storage mounted.
    mounted = [line.split()[1] for line in pathlib.Path("/proc/mounts").read_text().splitlines()]
    for path in reversed([path for path in mounted if path.startswith(f"{directory}/")]):
        subprocess.run(["umount", path], check=True)
    shutil.rmtree(directory)


@pytest.fixture
def token(tmp_path):
    file = tmp_path / "token"
    file.write_text(TOKEN)
    file.chmod(0o600)
    return file


@pytest.fixture
def sandbox(podman, token):
    """Starts a container without a main process; returns its name and a connected client."""
    started, stack = [], contextlib.ExitStack()

    def start(*options, image="tl-init"):
        name = f"tl-{uuid.uuid4()}"
        mounted = ["--volume", f"{token}:/etc/tl-init/token:ro", "--env", "TL_INIT_TOKEN_FILE=/etc/tl-init/token"]
        podman("run", "--detach", "--name", name, "--publish", "127.0.0.1::9501", *mounted, *options, image)
        started.append(name)
        return name, stack.enter_context(Sandbox("sbx-1", proxy_url=podman.url(name), api_key=TOKEN))

    with stack:
        yield start
    for name in started:
        podman("rm", "--force", "--time", "0", name)


def run(podman, *words):
    """Runs a container with a main process; returns its exit status, its output and its log."""
    code, output, log = podman.try_to("run", "--rm", *words)
    return code, output, log


# --- the image


def test_the_build_context_has_the_binaries_and_nothing_else(podman, tmp_path):
    """`dist` also has the images of test machines and their token."""
    assert (DIST / "vm.token").exists()
    file = tmp_path / "Dockerfile"
    file.write_text("FROM debian:bookworm-slim\nCOPY . /context\n")
    podman("build", "--file", file, "--tag", "context", "dist")
    code, output, _ = run(podman, "context", "ls", "-A", "/context")
    assert code == 0 and "tl-init" in output.split()
    assert set(output.split()) <= {"tl-init", "tl-init-amd64", "tl-init-arm64"}


def test_an_image_with_a_token_of_the_client(podman, token):
    podman("build", "--file", "examples/Dockerfile.token", "--secret", f"id=token,src={token}", "--tag", "own", "dist")
    podman("run", "--detach", "--name", "own", "--publish", "127.0.0.1::9501", "own")
    with Sandbox("sbx-1", proxy_url=podman.url("own"), api_key=TOKEN) as client:
        assert client.run("id", ["-un"]).stdout.strip() == "tl-user"
    assert "PID" in podman("exec", "own", "tlctl", "ps")
    podman("rm", "--force", "own")


def test_the_commands_of_the_recipe_work(podman, tmp_path):
    """Those of docs/images.md, with a free port, and with files in a temporary directory."""
    script = "set -eu\n" + "\n".join(block.text for block in documents.of_group("engine"))
    script = script.replace("docker ", "podman ").replace("127.0.0.1:9501:9501", "127.0.0.1::9501")
    script = script.replace("http://127.0.0.1:9501", 'http://"$(podman port sandbox 9501/tcp)"')
    for name in ("dist", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    done = subprocess.run(
        ["bash", "-c", script], env=podman.environment, cwd=tmp_path, text=True, capture_output=True, timeout=TIMEOUT
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
    assert '"line":"hello from tl-user"' in done.stdout and '"exit_code":0' in done.stdout, done.stdout


def test_an_image_with_services(podman, tmp_path):
    """The Dockerfile of docs/images.md with the service of docs/operations.md, but the test has no packages to install."""
    [dockerfile], [service] = documents.of_group("services"), documents.of_group("service")
    lines = [line for line in dockerfile.text.splitlines() if not line.startswith("RUN apt-get")]
    (tmp_path / "Dockerfile").write_text("\n".join(lines))
    (tmp_path / "services").mkdir()
    # In the place of Python's server.
    body = json.loads(service.text) | {"command": "sh", "args": ["-c", "cat index.html; exec sleep 1000"]}
    (tmp_path / "services/web.json").write_text(json.dumps(body))
    (tmp_path / "page").mkdir()
    (tmp_path / "page/index.html").write_text("<h1>Hello</h1>\n")
    podman("build", "--tag", "web", tmp_path)
    podman("run", "--detach", "--name", "web", "web")
    until("the page is on the console", lambda: "web | <h1>Hello</h1>" in podman("logs", "web"), timeout=TIMEOUT)
    until("the service runs", lambda: "web" in podman("exec", "web", "tlctl", "ps"), timeout=TIMEOUT)
    podman("rm", "--force", "--time", "0", "web")


def test_an_existing_image_becomes_a_sandbox(podman, tmp_path):
    """As docs/images.md says, with an image that has another user, an entry point and a command."""
    (tmp_path / "Dockerfile").write_text(
        "FROM debian:bookworm-slim\n"
        "RUN printf '#!/bin/sh\\necho \"entry point as $(id -un): $*\"\\n' >/usr/bin/docker-entrypoint.sh && "
        "chmod 755 /usr/bin/docker-entrypoint.sh\n"
        'USER nobody\nENTRYPOINT ["docker-entrypoint.sh"]\nCMD ["node"]\n'
    )
    podman("build", "--tag", "existing", tmp_path)
    [dockerfile] = documents.of_group("existing")
    assert dockerfile.text.startswith("FROM node:22\n")
    (tmp_path / "Dockerfile").write_text(dockerfile.text.replace("FROM node:22", "FROM existing"))
    podman("build", "--file", tmp_path / "Dockerfile", "--tag", "existing-sandbox", "dist")
    assert run(podman, "existing-sandbox")[:2] == (0, "entry point as tl-user: node\n")
    assert run(podman, "existing-sandbox", "other", "words")[:2] == (0, "entry point as tl-user: other words\n")


# --- the main process


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137)])
def test_the_exit_code_of_the_main_process_is_that_of_the_container(podman, script, code):
    got, output, log = run(podman, "tl-init", "sh", "-c", f"id -un; cat /proc/1/comm; {script}")
    assert (got, output.split()) == (code, ["tl-user", "init"]), log


def test_a_stop_sends_sigterm_to_the_main_process(podman):
    name = f"tl-{uuid.uuid4()}"
    podman("run", "--detach", "--name", name, "tl-init", "sh", "-c", "trap 'exit 42' TERM; while :; do sleep 0.1; done")
    podman("stop", "--time", "20", name)
    assert podman("inspect", name, "--format", "{{.State.ExitCode}}").strip() == "42"
    podman("rm", name)


def test_a_stop_shuts_a_container_without_a_main_process_down(podman, sandbox):
    name, _ = sandbox()
    podman("stop", "--time", "20", name)
    assert podman("inspect", name, "--format", "{{.State.ExitCode}}").strip() == "0"


# --- options


def reaped(client):
    """Whether orphans are reaped: a zombie of the command does not remain."""
    client.run("sh", ["-c", "(sleep 0.1 &)"])
    zombies = "for f in /proc/[0-9]*/stat; do grep -l ') Z ' $f 2>/dev/null; done; true"
    until("no zombie remains", lambda: not client.run("sh", ["-c", zombies]).stdout.strip(), timeout=TIMEOUT)


def test_with_init_tl_init_is_a_subreaper(podman, sandbox):
    code, output, log = run(podman, "--init", "tl-init", "sh", "-c", "cat /proc/1/comm; exit 7")
    assert (code, output) == (7, "podman-init\n"), log
    name, client = sandbox("--init")
    reaped(client)
    podman("stop", "--time", "20", name)
    assert podman("inspect", name, "--format", "{{.State.ExitCode}}").strip() == "0"


def test_without_root_everything_runs_as_the_user_of_the_container(podman):
    # The directories of the daemon are not writable: it says so, and keeps its files elsewhere.
    code, output, log = run(podman, "--user", "1000", "tl-init", "sh", "-c", "id -u; exit 5")
    assert (code, output) == (5, "1000\n"), log
    assert "run-dir: --run-dir: /run/tl-init: Permission denied" in log, log
    # A user that does not exist in the image: `tl-user` is another one, which the daemon may not become.
    code, output, log = run(podman, "--user", "12345:12345", "tl-init", "id")
    assert (code, output) == (126, ""), log
    assert "the daemon does not have the privilege to become another user" in log, log
    own = ["--env", "TL_INIT_DEFAULT_USER=12345:12345", "--user", "12345:12345"]
    code, output, log = run(podman, *own, "tl-init", "id", "-u")
    assert (code, output) == (0, "12345\n"), log


def test_without_root_with_writable_directories(podman, token, sandbox):
    os.chown(token, 1000, 1000)
    # A directory of logs must belong to the daemon, so it is one that the daemon creates.
    directories = ["--env", "TL_INIT_RUN_DIR=/scratch/run", "--env", "TL_INIT_LOG_DIR=/scratch/log"]
    name, client = sandbox("--user", "1000", "--tmpfs", "/scratch:mode=1777", *directories)
    assert client.run("id", ["-un"]).stdout.strip() == "tl-user"
    assert "ERROR" not in podman_logs(podman, name)


def podman_logs(podman, name):
    code, output, errors = podman.try_to("logs", name)
    return output + errors


def test_a_read_only_root_needs_a_directory_for_logs(podman, sandbox):
    code, output, log = run(podman, "--read-only", "tl-init", "sh", "-c", "touch /x; exit 6")
    assert code == 6 and "Read-only file system" in log, log
    assert "log-dir: --log-dir: output cannot be kept in /var/log/tl-init" in log, log
    name, client = sandbox("--read-only", "--tmpfs", "/var/log/tl-init", "--volume", "/home/tl-user")
    assert client.run("sh", ["-c", "touch /x"]).exit_code != 0
    client.write_file("/home/tl-user/file", b"content")
    assert bytes(client.read_file("/home/tl-user/file").value) == b"content"
    assert "ERROR" not in podman_logs(podman, name)


# What a daemon that is root needs: to become a user, and to signal the processes of users.
NEEDED = ["SETUID", "SETGID", "KILL"]


def test_without_capabilities_commands_cannot_become_another_user(podman, sandbox):
    code, output, log = run(podman, "--cap-drop", "ALL", "tl-init", "id")
    assert (code, output) == (126, ""), log
    assert "the daemon does not have the privilege to become another user" in log, log
    # As the user of the container, no capability is needed.
    code, output, log = run(podman, "--cap-drop", "ALL", "--user", "1000", "tl-init", "id", "-un")
    assert (code, output) == (0, "tl-user\n"), log


def test_three_capabilities_are_enough(podman, sandbox):
    options = [word for capability in NEEDED for word in ("--cap-add", capability)]
    name, client = sandbox("--cap-drop", "ALL", *options, "--security-opt", "no-new-privileges")
    assert client.run("id", ["-un"]).stdout.strip() == "tl-user"
    client.write_file("/home/tl-user/file", b"content")
    assert client.run("stat", ["-c", "%U", "/home/tl-user/file"]).stdout.strip() == "tl-user"
    started = client.start_process("sleep", ["1000"])
    client.kill_process(started.pid)
    assert client.create_pty("sh", ["-c", "test -t 0 && exit 7"]).wait(TIMEOUT) == 7
    podman("stop", "--time", "20", name)
    assert podman("inspect", name, "--format", "{{.State.ExitCode}}").strip() == "0"


# --- cgroups

# A process that leaves its session and its environment, and holds no pipe of its run.
ESCAPE = "(setsid env -i sleep 1000 >/dev/null 2>&1 </dev/null &); sleep 0.3"


def escaped(client):
    """Whether such a process survives the DELETE of its run."""
    started = client.start_process("sh", ["-c", f"{ESCAPE}; sleep 1000"])
    alive = lambda: client.run("sh", ["-c", "grep -al ^sleep.1000 /proc/[0-9]*/cmdline; true"]).stdout.split()
    until("both run", lambda: len(alive()) == 2, timeout=TIMEOUT)
    client.kill_process(started.pid)
    until("the leader has ended", lambda: client.get_process(started.pid).status != "running", timeout=TIMEOUT)
    return len(alive()) == 1


WITHOUT = "no writable cgroup v2"


def test_with_read_only_cgroups_the_log_says_what_is_lost(podman, sandbox):
    name, client = sandbox()
    log = podman_logs(podman, name)
    assert WITHOUT in log and "may escape a kill" in log, log
    assert client.run("true").exit_code == 0


@pytest.mark.skipif(not CGROUP2.is_dir(), reason="needs the hybrid hierarchy of cgroups")
def test_with_writable_cgroups_nothing_escapes(podman, sandbox):
    """The cgroups of the host here: this Podman gives a container none of version 2 beside those of version 1."""
    name, client = sandbox("--cgroupns", "host", "--volume", f"{CGROUP2}:{CGROUP2}")
    assert WITHOUT not in podman_logs(podman, name)
    assert not escaped(client)
    name, client = sandbox("--cgroupns", "host", "--volume", f"{CGROUP2}:{CGROUP2}:ro")
    assert WITHOUT in podman_logs(podman, name)
    assert escaped(client)


# --- the Pods of examples/kubernetes


def host_path(directory, mode):
    """A token as the kubelet presents that of a Secret: behind two links."""
    data = directory / "..2026_01_01"
    data.mkdir(parents=True)
    (data / "token").write_text(TOKEN)
    (data / "token").chmod(mode)
    (directory / "..data").symlink_to(data.name)
    (directory / "token").symlink_to("..data/token")
    return {"path": str(directory), "type": "Directory"}


def play(podman, tmp_path, example):
    """Starts a Pod with `podman play kube`; returns its name, its object and a connected client.

    Changed for Podman: the image; the Secret, whose mode Podman ignores; and the probes, which need systemd there.
    """
    pod = next(yaml.safe_load_all((ROOT / "examples/kubernetes" / example).read_text()))
    name = pod["metadata"]["name"] = f"tl-{uuid.uuid4()}"
    spec = pod["spec"]
    spec["restartPolicy"] = "Never"
    for container in [*spec.get("initContainers", []), *spec["containers"]]:
        container["image"] = "localhost/tl-init:latest"
        for probe in [key for key in container if key.endswith("Probe")]:
            del container[probe]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    spec["containers"][0]["ports"] = [{"containerPort": 9501, "hostPort": port, "hostIP": "127.0.0.1"}]
    for volume in spec["volumes"]:
        if secret := volume.pop("secret", None):
            volume["hostPath"] = host_path(tmp_path / "secret", secret["defaultMode"])
            group = spec.get("securityContext", {}).get("fsGroup", 0)
            os.chown(tmp_path / "secret/token", 0, group)
    file = tmp_path / "pod.yaml"
    file.write_text(yaml.safe_dump(pod))
    podman("play", "kube", "--network", podman.network, file)
    url = f"http://127.0.0.1:{port}"
    until("an answer", lambda: healthy(url), timeout=TIMEOUT)
    return name, pod, Sandbox("sbx-1", proxy_url=url, api_key=TOKEN)


@pytest.mark.parametrize("example", ["sandbox.yaml", "non-root.yaml"])
def test_the_pod_of_the_example_works_with_its_restrictions(podman, tmp_path, example):
    name, pod, client = play(podman, tmp_path, example)
    with client:
        assert client.run("sh", ["-c", "id -u; touch /x 2>/dev/null || echo read-only"]).stdout.split() == [
            "1000",
            "read-only",
        ]
        client.write_file("/home/tl-user/file", b"content")
        assert bytes(client.read_file("/home/tl-user/file").value) == b"content"
        # The token itself is out of reach for commands that do not run as the daemon.
        read = client.run("cat", ["/etc/tl-init/secret/token"])
        assert read.exit_code != 0
        assert client.create_pty("sh", ["-c", "test -t 0 && exit 7"]).wait(TIMEOUT) == 7
    begun = time.monotonic()
    podman("pod", "stop", "--time", pod["spec"]["terminationGracePeriodSeconds"], name)
    container = f"{name}-sandbox"
    assert podman("inspect", container, "--format", "{{.State.ExitCode}}").strip() == "0"
    assert "ERROR" not in podman_logs(podman, container)
    print(f"stopped in {time.monotonic() - begun:.1f} s")
    podman("pod", "rm", "--force", name)

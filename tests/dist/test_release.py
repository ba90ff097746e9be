"""What `make dist` builds: the sums are right, the same sources give the same bytes, the bill of materials is valid and
complete, and the Debian package installs and leaves the init of the machine alone."""

import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess

import documents
import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

ROOT = pathlib.Path(__file__).resolve().parents[2]
DIST = ROOT / "dist"
NATIVE = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
OTHER = {"amd64": "arm64", "arm64": "amd64"}[NATIVE]
VERSION = re.search(r'^version = "(.+)"', (ROOT / "Cargo.toml").read_text(), re.M)[1]
# Time limit of a build, in seconds, for a machine that also does other things.
BUILD = 1200

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
needs_other = pytest.mark.skipif(
    not (DIST / f"tl-init-{OTHER}").exists(), reason=f"`make dist` has built nothing for {OTHER}"
)
each_architecture = pytest.mark.parametrize("arch", [NATIVE, pytest.param(OTHER, marks=needs_other)])


def output(*command, **options):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def sums(directory=DIST):
    return dict(reversed(line.split()) for line in (directory / "SHA256SUMS").read_text().splitlines())


def package(arch):
    return DIST / f"tl-init_{VERSION}_{arch}.deb"


def test_the_sums_name_every_file_that_is_published():
    output("sha256sum", "--check", "--strict", "SHA256SUMS", cwd=DIST)
    assert {f"tl-init-{NATIVE}", f"tl-init-{NATIVE}.cdx.json", package(NATIVE).name, "NOTICES"} <= set(sums())
    assert {f"tl-host-{VERSION}-{NATIVE}.tar.gz", f"tl-host-{NATIVE}.cdx.json", "NOTICES-tl-host"} <= set(sums())
    assert hashlib.sha256((DIST / "tl-init").read_bytes()).hexdigest() == sums()[f"tl-init-{NATIVE}"]


@each_architecture
def test_the_archive_of_tl_host_has_everything_that_it_needs(arch, tmp_path):
    name = f"tl-host-{VERSION}-{arch}"
    output("tar", "-xf", DIST / f"{name}.tar.gz", "-C", tmp_path)
    root = tmp_path / name
    files = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
    assert files == [
        *["LICENSE", "NOTICES", "NOTICES-tl-host", "completions/_tl-host", "completions/tl-host.bash"],
        *["completions/tl-host.fish", "host.md", "man/tl-host.8", "tl-host", "tl-init"],
    ]
    assert hashlib.sha256((root / "tl-init").read_bytes()).hexdigest() == sums()[f"tl-init-{arch}"]
    listed = output("tar", "--numeric-owner", "-tvf", DIST / f"{name}.tar.gz").splitlines()
    assert all(line.split()[1] == "0/0" and line[7] == "r" for line in listed), listed
    bill = json.loads((DIST / f"tl-host-{arch}.cdx.json").read_text())
    assert JsonStrictValidator(SchemaVersion.V1_5).validate_str(json.dumps(bill)) is None
    program = bill["metadata"]["component"]
    assert (program["name"], program["version"]) == ("tl-host", VERSION)
    assert program["hashes"][0]["content"] == hashlib.sha256((root / "tl-host").read_bytes()).hexdigest()
    assert {"tl-supervisor", "tl-os", "ureq"} <= {component["name"] for component in bill["components"]}
    if arch == NATIVE:
        assert output(root / "tl-host", "--version") == f"tl-host {VERSION}\n"
        # It finds tl-init beside itself.
        done = subprocess.run(
            [root / "tl-host", "doctor", "--state-dir", tmp_path / "state", "--engine", "unix:///nowhere"],
            capture_output=True,
            text=True,
        )
        assert f"ok       tl-init: {root}/tl-init, static" in done.stdout, done.stdout


def test_a_build_elsewhere_gives_the_same_bytes(tmp_path):
    """Another directory, home directory, cargo home, time zone and umask; nothing compiled yet."""
    copy, home = tmp_path / "another directory" / "sources", tmp_path / "home"
    cargo = home / "cargo"
    files = output("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT).split("\0")
    for name in filter(None, files):
        if not (ROOT / name).is_dir() and (ROOT / name).exists():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name, follow_symlinks=False)
    # The downloaded crates; cargo unpacks them again.
    old = pathlib.Path(os.environ.get("CARGO_HOME", pathlib.Path.home() / ".cargo"))
    for name in ("index", "cache"):
        shutil.copytree(old / "registry" / name, cargo / "registry" / name)
    for name in ("config.toml", "config"):
        if (old / name).exists():
            shutil.copy(old / name, cargo / name)
    rustup = os.environ.get("RUSTUP_HOME", pathlib.Path.home() / ".rustup")
    environment = {name: value for name, value in os.environ.items() if name != "CARGO_TARGET_DIR"}
    environment |= {"HOME": str(home), "CARGO_HOME": str(cargo), "RUSTUP_HOME": str(rustup), "TZ": "Asia/Tokyo"}
    script = copy / "init/dist/release.sh"
    built = copy / "target"
    output("sh", "-c", 'umask 077; exec "$@"', "sh", script, built, "native", env=environment, timeout=BUILD)
    expected = {name: sum for name, sum in sums().items() if OTHER not in name}
    assert sums(copy / "dist") == expected


@each_architecture
def test_the_bill_of_materials_is_valid_and_has_what_is_linked(arch):
    text = (DIST / f"tl-init-{arch}.cdx.json").read_text()
    problem = JsonStrictValidator(SchemaVersion.V1_5).validate_str(text)
    assert problem is None, problem
    bill = json.loads(text)
    program = bill["metadata"]["component"]
    assert (program["name"], program["version"], program["type"]) == ("tl-init", VERSION, "application")
    assert program["hashes"][0]["content"] == hashlib.sha256((DIST / f"tl-init-{arch}").read_bytes()).hexdigest()
    names = {component["name"] for component in bill["components"]}
    assert {"tl-supervisor", "tl-os", "libc", "mio", "serde_json", "rust-std", "glibc"} <= names
    # Those of procedural macros, tests and build scripts.
    assert not names & {"serde_derive", "thiserror-impl", "syn", "quote", "proc-macro2", "ureq", "tempfile", "cc"}
    references = {component["bom-ref"] for component in bill["components"]} | {program["bom-ref"]}
    assert {entry["ref"] for entry in bill["dependencies"]} == references
    assert all(needed in references for entry in bill["dependencies"] for needed in entry["dependsOn"])
    assert all(component["licenses"] for component in bill["components"])
    for component in bill["components"]:
        if component.get("purl", "").startswith("pkg:cargo/") and not component["name"].startswith("tl-"):
            assert component["bom-ref"] in (DIST / "NOTICES").read_text(), component


@each_architecture
def test_lintian_has_no_errors(arch):
    output("lintian", "--allow-root", "--fail-on", "error", package(arch))


def documented_contents():
    """The list of the package's files in docs/images.md."""
    [block] = documents.of_group("contents")
    return block.output.split()


@each_architecture
def test_the_package_has_the_documented_contents(arch):
    lines = output("dpkg-deb", "--contents", package(arch)).splitlines()
    listed = [line.split()[5].removeprefix(".") for line in lines]
    files = sorted(path for path in listed if not path.endswith("/"))
    # The manual pages and completions exist once `make dist` has built them.
    generated = re.compile("/usr/share/(man|bash-completion|zsh|fish)/")
    assert [path for path in files if not generated.match(path)] == [
        path for path in documented_contents() if not generated.match(path)
    ]
    assert set(files) <= set(documented_contents())
    for path in ("man", "completions"):
        if (DIST / path).exists():
            assert sorted(files) == documented_contents(), "manual pages or completions are missing"


@pytest.fixture(scope="module")
def debian(tmp_path_factory):
    """An unpacked Debian, from Debian's mirror."""
    if not shutil.which("mmdebstrap"):
        pytest.skip("needs mmdebstrap")
    root = tmp_path_factory.mktemp("debian") / "root"
    output("mmdebstrap", "--quiet", "--variant=essential", "bookworm", root)
    yield root
    shutil.rmtree(root)


@needs_root
def test_the_package_installs_and_is_removed_without_a_trace(debian):
    def run(*command):
        return output("chroot", debian, *command, env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})

    def files():
        return set(run("find", "/etc", "/usr", "/sbin", "/bin", "/var/lib/tl-init", "-not", "-name", "*cache*").split())

    (debian / "var/lib/tl-init").mkdir()
    before = files()
    shutil.copy(package(NATIVE), debian / "tl-init.deb")
    run("dpkg", "--install", "/tl-init.deb")
    assert run("tl-init", "--version") == f"tl-init {VERSION}\n"
    assert run("readlink", "-f", "/usr/bin/tlctl") == "/usr/sbin/tl-init\n"
    assert not (debian / "sbin/init").exists() and not (debian / "usr/sbin/init").exists()
    # A changed configuration is kept by a removal, and removed by a purge.
    configuration = debian / "etc/tl-init/init.conf"
    configuration.write_text("TL_INIT_LOG_LEVEL=debug\n")
    run("dpkg", "--remove", "tl-init")
    assert configuration.exists()
    run("dpkg", "--install", "--force-confold", "/tl-init.deb")
    assert configuration.read_text() == "TL_INIT_LOG_LEVEL=debug\n"
    run("dpkg", "--purge", "tl-init")
    assert files() == before


# Runs as the main process of the machine.
CHECK = """#!/bin/sh
exec >/dev/console 2>&1
echo "main: $(id -u) $(uname -m)"
until wget -q -O - http://127.0.0.1:9501/api/v1/health; do sleep 0.1; done
wget -q -O - --header "Authorization: Bearer $(cat /run/tl-init/token)" \\
    --post-data '{"command": "sh", "args": ["-c", "uname -m; id -un; exit 3"], "user": "tl-user"}' \\
    http://127.0.0.1:9501/api/v1/processes/run
kill -USR2 1
"""


@needs_other
@pytest.mark.skipif(OTHER != "arm64", reason="needs an x86-64 machine")
def test_the_aarch64_binary_boots_a_machine_and_runs_commands(tmp_path):
    cache, root = ROOT / ".cache/vm", tmp_path / "root"
    shutil.copytree(ROOT / "init/images/rootfs", root, symlinks=True)
    for name in ("bin", "dev", "proc", "sys", "run", "tmp", "etc/tl-init", "var/log", "root", "home/tl-user"):
        (root / name).mkdir(parents=True, exist_ok=True)
    shutil.copy(cache / "aarch64/busybox", root / "bin/busybox")
    for applet in ("sh", "cat", "id", "uname", "wget", "sleep", "kill"):
        (root / "bin" / applet).symlink_to("busybox")
    shutil.copy(DIST / "tl-init-arm64", root / "sbin/init")
    (root / "init").symlink_to("sbin/init")
    (root / "bin/check").write_text(CHECK)
    (root / "bin/check").chmod(0o755)
    archive = ["sh", "-c", "find . | LC_ALL=C sort | cpio --quiet --create --format newc --owner 0:0 >../initramfs"]
    output(*archive, cwd=root)
    console = output(
        *[cache / "qemu-system-aarch64", "-nodefaults", "-no-user-config", "-accel", "tcg", "-machine", "virt"],
        *["-cpu", "cortex-a72", "-m", "512", "-display", "none", "-serial", "stdio", "-no-reboot"],
        *["-kernel", cache / "aarch64/vmlinuz", "-initrd", tmp_path / "initramfs", "-append"],
        'console=ttyAMA0 panic=-1 TL_INIT_DEFAULT_USER=0 TL_INIT_COMMAND=["check"]',
        stdin=subprocess.DEVNULL,
        timeout=180,
    )
    assert "main: 0 aarch64" in console, console
    assert '"line":"aarch64"' in console and '"line":"tl-user"' in console, console
    assert '"exit_code":3' in console and "reboot: Power down" in console, console

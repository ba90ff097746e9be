#!/usr/bin/env python3
"""Writes what a static binary of tl-init or tl-host consists of: a bill of materials and the licences of its crates.

    SOURCE_DATE_EPOCH=SECONDS init/dist/sbom.py TARGET BINARY SBOM NOTICES

SBOM is a CycloneDX file (JSON) with the crates that are linked, the Rust standard library and the C library. Crates that
only the build, the tests or procedural macros use are left out. NOTICES is a text. Needs only Python, Cargo and a C
compiler.
"""

import datetime
import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys
import uuid

ROOT = pathlib.Path(__file__).resolve().parents[2]
LICENCE_FILES = ("LICEN[CS]E*", "COPYING*", "NOTICE*", "UNLICENSE*")


def output(*command, text=None):
    done = subprocess.run(command, cwd=ROOT, input=text, check=True, capture_output=True, text=True)
    return done.stdout


def crates(program, target):
    """Returns {name@version: (licence, repository)} and {name@version: its dependencies}, the program first."""
    tree = output(
        *["cargo", "tree", "--locked", "--package", program, "--target", target, "--no-dedupe"],
        *["--edges", "normal,no-proc-macro", "--prefix", "depth", "--format", "|{p}|{l}|{r}"],
    )
    found, needs, path = {}, {}, []
    for line in tree.splitlines():
        depth, package, licence, repository = line.split("|")
        name, version = package.split()[:2]
        crate = f"{name}@{version.removeprefix('v')}"
        # Cargo also accepts a slash in the place of OR.
        found[crate] = (licence.replace("/", " OR "), repository)
        needs.setdefault(crate, set())
        path[int(depth) :] = [crate]
        if len(path) > 1:
            needs[path[-2]].add(crate)
    return found, needs


def checksums():
    """Returns {name@version: SHA-256 of the package} for the crates of the registry."""
    entry = r'name = "(.+)"\nversion = "(.+)"\nsource = ".+"\nchecksum = "(.+)"'
    return {f"{name}@{version}": sha for name, version, sha in re.findall(entry, (ROOT / "Cargo.lock").read_text())}


def component(crate, licence, repository, checksum):
    name, version = crate.split("@")
    made = {"type": "library", "bom-ref": crate, "name": name, "version": version}
    if checksum:
        made["hashes"] = [{"alg": "SHA-256", "content": checksum}]
    made["licenses"] = [{"expression": licence}]
    made["purl"] = f"pkg:cargo/{crate}"
    if repository:
        made["externalReferences"] = [{"type": "vcs", "url": repository}]
    return made


def system_libraries(target):
    """The libraries that the linker adds."""
    rust = re.search(r"^release: (.+)$", output("rustc", "-vV"), re.M)[1]
    compilers = [f"{target.split('-')[0]}-linux-gnu-gcc", "cc"]
    compiler = next(name for name in compilers if subprocess.run(["which", name], capture_output=True).returncode == 0)
    macros = output(compiler, "-E", "-dM", "-", text="#include <features.h>\n")
    glibc = ".".join(re.search(rf"__{part}__ (\d+)", macros)[1] for part in ("GLIBC", "GLIBC_MINOR"))
    return [
        {
            "type": "library",
            "bom-ref": f"rust-std@{rust}",
            "name": "rust-std",
            "version": rust,
            "licenses": [{"expression": "MIT OR Apache-2.0"}],
            "externalReferences": [{"type": "vcs", "url": "https://github.com/rust-lang/rust"}],
        },
        {
            "type": "library",
            "bom-ref": f"glibc@{glibc}",
            "name": "glibc",
            "version": glibc,
            "licenses": [{"expression": "LGPL-2.1-or-later"}],
            "externalReferences": [{"type": "website", "url": "https://www.gnu.org/software/libc/"}],
        },
    ]


def bill_of_materials(target, binary, found, needs):
    program = next(iter(found))
    sha = hashlib.sha256(binary.read_bytes()).hexdigest()
    checksum = checksums()
    listed = [component(crate, *found[crate], checksum.get(crate)) for crate in sorted(found) if crate != program]
    system = system_libraries(target)
    needs = {crate: sorted(needed) for crate, needed in needs.items()}
    needs[program] = needs[program] + [library["bom-ref"] for library in system]
    needs |= {library["bom-ref"]: [] for library in system}
    made = datetime.datetime.fromtimestamp(int(os.environ["SOURCE_DATE_EPOCH"]), datetime.timezone.utc)
    main = component(program, *found[program], sha) | {"type": "application"}
    main["properties"] = [{"name": "target", "value": target}]
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.5.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        # The same binary has the same bill of materials.
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, sha)}",
        "version": 1,
        "metadata": {"timestamp": made.strftime("%Y-%m-%dT%H:%M:%SZ"), "component": main},
        "components": listed + system,
        "dependencies": [{"ref": ref, "dependsOn": needs[ref]} for ref in sorted(needs)],
    }


def notices(program, found):
    """The licence files of the crates, each text once with the crates that have it."""
    described = json.loads(output("cargo", "metadata", "--locked", "--format-version", "1"))["packages"]
    directory = {f"{one['name']}@{one['version']}": pathlib.Path(one["manifest_path"]).parent for one in described}
    owners = {}
    for crate in sorted(found):
        if crate.startswith("tl-"):
            continue
        files = sorted(file for pattern in LICENCE_FILES for file in directory[crate].glob(pattern) if file.is_file())
        if not files:
            owners.setdefault(f"(The crate has no licence file. It is licensed under {found[crate][0]}.)", []).append(crate)
        for file in files:
            owners.setdefault(file.read_text(errors="replace").strip(), []).append(crate)
    parts = [f"Licences of the crates in the static binary of {program}.\n"]
    for text, having in owners.items():
        parts.append("\n".join(["=" * 100, *having, "", text, ""]))
    return "\n".join(parts)


def main():
    target, binary, sbom, notice = sys.argv[1:]
    # The name of the binary without that of the architecture.
    program = pathlib.Path(binary).name.rpartition("-")[0]
    found, needs = crates(program, target)
    bill = bill_of_materials(target, ROOT / binary, found, needs)
    (ROOT / sbom).write_text(json.dumps(bill, indent=1) + "\n")
    (ROOT / notice).write_text(notices(program, found))


main()

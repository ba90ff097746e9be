"""The objects of examples/kubernetes/ fit the published schemas, and the options of tl-init that they repeat."""

import pathlib
import re

import kubernetes_validate
import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples/kubernetes").glob("*.yaml"))
# The oldest and the newest version with which the examples are compared.
VERSIONS = ("1.27", "1.37")
OPTIONS = re.findall(r'opt\(\s*"([a-z-]+)"', (ROOT / "init/src/options.rs").read_text())


def objects(example):
    return [each for each in yaml.safe_load_all(example.read_text()) if each]


PODS = [each for example in EXAMPLES for each in objects(example) if each["kind"] == "Pod"]
each_pod = pytest.mark.parametrize("pod", PODS, ids=lambda pod: pod["metadata"]["name"])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_each_object_fits_the_schema_without_unknown_fields(example, version):
    for each in objects(example):
        kubernetes_validate.validate(each, version, strict=True)


def test_an_unknown_field_is_noticed():
    pod = objects(EXAMPLES[0])[0]
    pod["spec"]["containers"][0]["securityContext"]["readOnlyRootFileSystem"] = True
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod, VERSIONS[-1], strict=True)


@each_pod
def test_kubernetes_waits_longer_than_the_shutdown_takes(pod):
    environment = {each["name"]: each["value"] for each in pod["spec"]["containers"][0]["env"]}
    assert pod["spec"]["terminationGracePeriodSeconds"] == int(environment["TL_INIT_SHUTDOWN_GRACE"]) + 5
    options = {name.removeprefix("TL_INIT_").lower().replace("_", "-") for name in environment}
    assert options <= set(OPTIONS), "no such option"


@each_pod
def test_every_probe_asks_for_the_health_at_the_port_of_the_api(pod):
    container = pod["spec"]["containers"][0]
    probes = [probe for name, probe in container.items() if name.endswith("Probe")]
    assert len(probes) >= 2
    assert all(probe["httpGet"] == {"path": "/api/v1/health", "port": "api"} for probe in probes)
    assert container["ports"] == [{"name": "api", "containerPort": 9501}]


def test_the_service_and_the_policy_select_the_pod():
    pod, service, policy = objects(ROOT / "examples/kubernetes/sandbox.yaml")
    labels = pod["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items()

"""The metrics, as Prometheus' own checker and the parsers of its Python client read them."""

import shutil
import subprocess
import urllib.request

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

PROMETHEUS = "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"


def scrape(daemon, accept="*/*"):
    headers = {"Authorization": f"Bearer {daemon.token}", "Accept": accept}
    request = urllib.request.Request(f"{daemon.url}/api/v1/metrics", headers=headers)
    with urllib.request.urlopen(request, timeout=10) as response:
        return response.headers["Content-Type"], response.read().decode()


def samples(families):
    return {(sample.name, frozenset(sample.labels.items())) for family in families for sample in family.samples}


def test_promtool_finds_nothing_wrong(daemon, sandbox):
    if not shutil.which("promtool"):
        pytest.skip("no promtool")
    sandbox.run("sh", ["-c", "echo x"])
    _, text = scrape(daemon)
    check = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True)
    assert (check.returncode, check.stdout, check.stderr) == (0, "", "")


def test_both_formats_have_the_same_metrics(daemon, sandbox):
    sandbox.run("sh", ["-c", "echo x"])
    # The first two count themselves: now each has every series that the other has.
    scrape(daemon), scrape(daemon, PROMETHEUS)
    kind, text = scrape(daemon)
    assert kind == "text/plain; version=0.0.4; charset=utf-8"
    kind, openmetrics = scrape(daemon, PROMETHEUS)
    assert kind == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    of_text, of_openmetrics = samples(parse_text(text)), samples(parse_openmetrics(openmetrics))
    assert of_text == of_openmetrics and len(of_text) > 100


def test_the_types_and_values_are_those_of_what_happened(daemon, sandbox):
    def value(name, **labels):
        families = {family.name: family for family in parse_openmetrics(scrape(daemon, PROMETHEUS)[1])}
        found = [
            (family.type, sample.value)
            for family in families.values()
            for sample in family.samples
            if sample.name == name and sample.labels == labels
        ]
        assert len(found) == 1, (name, labels, found)
        return found[0]

    kind, before = value("tl_supervisor_starts_total", kind="plain")
    assert kind == "counter"
    assert sandbox.run("sh", ["-c", "exit 3"]).exit_code == 3
    assert value("tl_supervisor_starts_total", kind="plain")[1] == before + 1
    assert value("tl_supervisor_run_duration_seconds_count", kind="plain")[0] == "histogram"
    assert value("process_open_fds")[1] > 3

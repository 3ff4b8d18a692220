"""Dashboard, alerts and documents speak of metrics that there are, and the documents of all of them."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from heed.protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from heed.server.errors import REASONS
from tests.server.support import ids_request
from tests.server.telemetry.test_metrics import text_of, wait_for_block
from tests.support import Running

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs" / "operations.md"
DASHBOARD = ROOT / "deploy" / "grafana" / "heed.json"
ALERTS = ROOT / "deploy" / "alerts.yml"
NAMES = re.compile(r"\b((?:heed|process)_[a-z_]+[a-z])(?:\{([a-z,]+)\})?")
ADDED = {"instance", "job", "alertname", "severity"}  # by Prometheus

promtool = pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is missing: apt install prometheus")


@pytest.fixture(scope="module")
def labels(tiny_server: Running) -> dict[str, set[str]]:
    """The labels of each metric of a running server, by the names that queries use."""
    wait_for_block(tiny_server)
    with grpc.insecure_channel(tiny_server.address) as channel:
        GRPCInferenceServiceStub(channel).ModelInfer(ids_request([[2, 3]]), timeout=60)
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text_of(tiny_server)):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def expressions() -> Iterator[str]:
    dashboard: dict[str, Any] = json.loads(DASHBOARD.read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["definition"]


def alerts() -> list[str]:
    """The expressions, one for each alert."""
    return re.findall(r"expr: (.+?)(?=\n +(?:for|labels):)", ALERTS.read_text(), re.DOTALL)


def test_dashboard_and_alerts_ask_for_metrics_and_labels_that_there_are(labels: dict[str, set[str]]) -> None:
    asked = [*expressions(), *alerts()]
    assert len(asked) > 40
    for expression in asked:
        names = [name for name, _ in NAMES.findall(expression)]
        assert names or expression.startswith("up{"), expression
        assert set(names) <= labels.keys(), expression
        selected = re.findall(r"([a-z_]+)\s*(?:=~|!=|=)\s*\"", expression)
        grouped = re.findall(r"(?:by|on)\s*\(([^)]*)\)", expression)
        wanted = {*selected, *(label.strip() for group in grouped for label in group.split(","))}
        assert wanted <= ADDED.union(*(labels[name] for name in names)), expression


def families(labels: dict[str, set[str]]) -> dict[str, set[str]]:
    """What the documents call a metric: a histogram is one."""
    return {re.sub("_(bucket|count|sum)$", "", name): found - {"le"} for name, found in labels.items()}


def test_every_metric_is_explained_with_its_labels_and_no_other(labels: dict[str, set[str]]) -> None:
    rows = [line for line in DOCS.read_text().splitlines() if line.startswith("| `")]
    explained = {
        name: set(filter(None, found.split(","))) for row in rows for name, found in NAMES.findall(row.split(" | ")[0])
    }
    assert explained == families(labels)
    mentioned = {name for name, _ in NAMES.findall(DOCS.read_text())}
    assert mentioned <= labels.keys() | families(labels).keys()


def test_every_reason_is_explained() -> None:
    firsts = [line.split(" | ")[0] for line in DOCS.read_text().splitlines() if line.startswith("| `")]
    assert set(REASONS) <= set(re.findall("`([a-z_]+)`", " ".join(firsts)))


def test_every_alert_has_a_first_step_and_a_test() -> None:
    names = re.findall(r"- alert: (\w+)", ALERTS.read_text())
    assert len(names) == len(alerts()) > 10
    tested = (ALERTS.parent / "alerts-test.yml").read_text()
    for name in names:
        assert re.search(rf"^\|[^|]*\b{name}\b", DOCS.read_text(), re.MULTILINE), name
        assert f'alertname="{name}"' in tested


def run_promtool(*arguments: str) -> None:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False, cwd=ROOT / "deploy")
    assert done.returncode == 0, done.stdout + done.stderr


@promtool
def test_prometheus_takes_its_configuration_and_alerts_fire_when_they_should() -> None:
    run_promtool("check", "config", "prometheus.yml")
    run_promtool("test", "rules", "alerts-test.yml")


@promtool
def test_prometheus_understands_every_panel(tmp_path: Path) -> None:
    rules = []
    for number, expression in enumerate(one for one in expressions() if not one.startswith("label_values")):
        filled = expression.replace("$__rate_interval", "1m").replace("$instance", ".*").replace("$model", ".*")
        rules.append({"record": f"panel{number}", "expr": filled})
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))  # JSON is YAML
    run_promtool("check", "rules", str(file))


@promtool
def test_prometheus_likes_the_names_and_their_descriptions(tiny_server: Running) -> None:
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text_of(tiny_server), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")

"""deploy/grafana and deploy/compose.yaml: what is committed is what the code makes, and fits together."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.grafana.__main__ import dashboards
from levi_serve.settings import ServeSettings

from .rules import DASHBOARDS, DEPLOY, METRIC, ROOT, panels

PROVISIONING = DEPLOY / "grafana/provisioning"


def test_committed_is_generated() -> None:
    """The committed dashboards are what `python -m deploy.grafana` writes now."""
    written = dashboards()
    assert sorted(written) == DASHBOARDS
    for path, text in written.items():
        assert path.read_text() == text, "run `python -m deploy.grafana` and commit"


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_grafana_understands_it(path: Path) -> None:
    """Grafana's own types read a dashboard and write the same again: nothing in it is unknown to them."""
    text = json.loads(path.read_text())
    read = Dashboard.from_json(text)
    assert json.loads(JSONEncoder(sort_keys=True).encode(read)) == text


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_can_be_linked_to(path: Path) -> None:
    """Its uid and its panels' ids are stable and its own; its data source is a variable; nothing overlaps."""
    dashboard = json.loads(path.read_text())
    assert dashboard["uid"] == f"levi-{path.stem}"
    numbers = [panel["id"] for panel in dashboard["panels"]]
    assert numbers == list(range(1, len(numbers) + 1))
    assert [variable["type"] for variable in dashboard["templating"]["list"]][:3] == ["datasource", "query", "query"]
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken
        assert place["x"] + place["w"] <= 24
        taken |= cells
    for panel in panels(path):
        assert panel["datasource"] == {"type": "prometheus", "uid": "$datasource"}
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        for target in panel["targets"]:
            assert not METRIC.search(target["expr"]) or '"$job"' in target["expr"]


def test_provisioning() -> None:
    """Grafana finds Prometheus where the compose file has it, and the dashboards where it mounts them."""
    services = compose()["services"]
    (source,) = yaml.safe_load((PROVISIONING / "datasources/prometheus.yaml").read_text())["datasources"]
    (provider,) = yaml.safe_load((PROVISIONING / "dashboards/levi.yaml").read_text())["providers"]
    assert source["url"] == "http://prometheus:9090"
    assert "prometheus" in services
    mounts = dict(volume.split(":")[:2] for volume in services["grafana"]["volumes"])
    assert mounts["./grafana/dashboards"] == provider["options"]["path"]
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{provider['options']['path']}/service.json"
    scraped = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
    assert scraped["global"]["scrape_interval"] == source["jsonData"]["timeInterval"]
    assert scraped["scrape_configs"][0]["static_configs"] == [{"targets": ["levi:8000"]}]


def test_compose() -> None:
    """The compose file is one by its specification; what it mounts is there, its flags are the server's, every image
    has a version, and nothing listens beyond this machine.
    """
    file = DEPLOY / "compose.yaml"
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(file)]
    checked = subprocess.run(check, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
    services = compose()["services"]
    for name, service in services.items():
        assert "build" in service or ":" in service["image"], name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            made_by_fits = source == "../runs"
            assert made_by_fits or source in compose()["volumes"] or (DEPLOY / source).exists(), volume
    flags = {f"--{name.replace('_', '-')}" for name in ServeSettings.model_fields}
    assert {word for word in services["levi"]["command"] if word.startswith("--")} <= flags
    assert (DEPLOY / services["levi"]["build"]).resolve() == ROOT


def compose() -> dict[str, Any]:
    """The compose file, its anchors resolved."""
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())

"""deploy/prometheus: rules that are valid, explained and tested."""

from __future__ import annotations

import re
import subprocess

import pytest

from tests.programs import program
from tests.serving.running import RunningApp

from .rules import DEPLOY, ROOT, RULES, alerts, rules

TESTS = sorted((DEPLOY / "prometheus/tests").glob("*.yml"))


def slug(heading: str) -> str:
    """The anchor that a heading of Markdown gets."""
    return re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("name", alerts())
def test_every_alert_tells_what_to_do(name: str) -> None:
    """An alert has a severity, a sentence on what happened, one on what that means, and a chapter of operations.md
    that says what to do about it.
    """
    alert = alerts()[name]
    assert alert["labels"]["severity"] in {"critical", "warning"}
    notes = alert["annotations"]
    assert notes["summary"]
    assert notes["description"].endswith(".")
    file, anchor = notes["runbook_url"].split("#")
    headings = re.findall(r"^#+ (.+)$", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)
    assert anchor == name.lower()
    assert anchor in map(slug, headings)


def test_every_chapter_has_its_alert() -> None:
    """operations.md explains no alert that there is not."""
    headings = re.findall(r"^### (Levi\w+)$", (ROOT / "docs/operations.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(headings) == sorted(alerts())


@pytest.mark.parametrize("name", alerts())
def test_every_alert_is_tested(name: str) -> None:
    """Some test of promtool's expects it to fire; that it is silent otherwise is what every other test expects."""
    assert any(f'alertname="{name}"' in path.read_text() for path in TESTS)


def test_what_is_recorded_is_used() -> None:
    """No rule records what no alert asks for, and none is asked for that is not recorded."""
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    used = {name for rule in rules() for name in re.findall(r"\b\w+:\w+:\w+", rule["expr"])}
    assert used == recorded


@pytest.mark.system
def test_promtool() -> None:
    """Prometheus' own tool finds the configuration and the rules valid, and alerts silent, firing, silent again after
    a counter reset and without traffic, as the files in deploy/prometheus/tests say.
    """
    tool = program("promtool")
    run(tool, "check", "config", DEPLOY / "prometheus/prometheus.yml")
    run(tool, "check", "rules", "--lint=all", "--lint-fatal", *RULES)
    run(tool, "test", "rules", *TESTS)


@pytest.mark.system
def test_metrics_are_well_named(app: RunningApp) -> None:
    """Prometheus' linter has nothing to say about names, units and help texts of what the server exposes."""
    app.post([{"user": {"age": 3}, "movie": {"title": "New"}}])
    checked = subprocess.run(
        [program("promtool"), "check", "metrics"], input=app.get("/metrics").content, capture_output=True, check=False
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


def run(*command: object) -> None:
    """Run a program that must succeed and have nothing to complain about."""
    ended = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr

"""What a night set out with, and what became of it: two files in its folder."""

from __future__ import annotations

from pathlib import Path

from levi_serve.bundle.schema import Frozen
from training.gates import Verdict
from training.intake import Taken
from training.merge import Counts

PLAN = "plan.json"
REPORT = "report.json"


class Plan(Frozen):
    """What a night set out with."""

    taken: Taken
    in_service: str
    """Folder of the run that the repository's newest version was made from."""
    version: int
    """That version."""
    since: int
    """The last night whose events that run knows; 0: none."""
    nights: tuple[int, ...]
    """Nights whose events are merged."""


class Report(Frozen):
    """report.json: written last, so a night that has one is over."""

    night: int
    finished: str
    plan: Plan
    counts: Counts
    verdict: Verdict
    version: int | None
    """The version that was made; None: refused."""
    fit_seconds: float


def read_plan(folder: Path) -> Plan:
    """The plan of the night in this folder."""
    return Plan.model_validate_json((folder / PLAN).read_bytes())


def read_report(folder: Path) -> Report:
    """Its report, if it is over."""
    return Report.model_validate_json((folder / REPORT).read_bytes())

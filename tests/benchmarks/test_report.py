"""Reports: rows by hand, and that the pages say what the committed figures say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.report import BEGIN, END, Row, choice_table, plot, read, table
from benchmarks.serving import __main__ as serving
from benchmarks.serving.report import tables

ROOT = Path(__file__).parents[2]


def test_a_row() -> None:
    """Figures to four places, differences with their interval, and a dash where nothing was measured."""
    row = Row("LEVI", 0.93444, 1.04, 0.8, [(-0.01, -0.02, 0.003), (0.5, 0.4, 0.6)])
    expected = "| LEVI | 0.9344 | 1.0400 | 0.800 | -0.0100 [-0.0200, +0.0030] | +0.5000 [+0.4000, +0.6000] |"
    assert row.markdown() == expected
    assert Row("ridge", 1, 1).markdown(bold=True) == "| **ridge** | **1.0000** | **1.0000** | – | – | – |"


def test_the_pages_are_up_to_date(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The tables in docs/ are those of the committed JSON files; and the plot is made of the same rows."""
    monkeypatch.chdir(ROOT)
    groups = read()
    for page, made in (("results.md", table(groups)), ("best.md", choice_table())):
        text = (ROOT / "docs" / page).read_text(encoding="utf-8")
        assert text.partition(BEGIN)[2].partition(END)[0].strip() == made
    plot(groups, tmp_path / "all.svg")
    assert "LEVI, size best" in (tmp_path / "all.svg").read_text()


def test_the_page_of_the_serving_benchmark(tmp_path: Path) -> None:
    """Its tables are those of the committed figures, so that writing them anew changes nothing."""
    page = tmp_path / "results.md"
    before = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    page.write_text(before, encoding="utf-8")
    out = ROOT / "benchmarks/results/serving.json"
    serving.Report(out=out, plots=tmp_path, page=page)()
    assert page.read_text(encoding="utf-8") == before


def test_what_was_not_run_is_no_failure() -> None:
    """A claim about a peer that took no part says so, one that was missed says no."""
    found = json.loads((ROOT / "benchmarks/results/serving.json").read_bytes())
    section = {
        **found["idle"],
        "claims": [{"claim": claim, "found": n, "met": False} for claim, n in (("a", None), ("b", 1))],
    }
    assert tables({"idle": section})[-1].rows == [["idle", "a", "not run", "–"], ["idle", "b", "1", "**no**"]]

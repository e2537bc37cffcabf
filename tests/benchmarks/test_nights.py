"""benchmarks.nights: what is drawn and told is what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.nights import MODELS, draw, markdown


def test_table_and_plot(tmp_path: Path) -> None:
    """A row per night, the pooled row, both differences with their intervals."""
    nights = [
        {"night": n, "rmse": {name: 1 + n / 100 + k / 10 for k, name in enumerate(MODELS)}, "version_afterwards": n + 1}
        for n in range(1, 6)
    ]
    facts: dict[str, Any] = {
        "nights": nights,
        "pooled_rmse": {name: 1.5 + k for k, name in enumerate(MODELS)},
        "with_feedback_minus": {"frozen": (-0.02, -0.03, -0.01), "without feedback": (-0.01, -0.02, 0.001)},
        "poisoned": {"exit_code": 1},
    }
    lines = markdown(facts).splitlines()
    assert "| night 3 | 1.0300 | 1.1300 | 1.2300 | version 4 |" in lines
    assert "| nights 2–5 | 1.5000 | 2.5000 | 3.5000 | |" in lines
    assert "with feedback − frozen: -0.0200 [-0.0300, -0.0100]" in lines
    draw(facts, tmp_path / "nights.svg")
    assert (tmp_path / "nights.svg").read_text().startswith("<?xml")

"""What the benchmark says of ours beside the others follows from the figures, and can be that it falls short."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.serving.__main__ import Measure
from benchmarks.serving.compare import _ratios, claims


def run(turn: int, goodput: float) -> dict[str, Any]:
    return {"turn": turn, "ceiling": {"goodput": goodput}}


def server(throughput: float, p99: float, difference: float | None = 0.0) -> dict[str, Any]:
    medians = {"throughput": {"median": throughput}, "p99_ms": {"median": p99}, "difference": difference}
    return {"summary": medians}


def found(made: list[dict[str, Any]]) -> dict[str, bool]:
    return {one["claim"]: one["met"] for one in made}


def test_ratios_compare_the_same_turn() -> None:
    """A turn in which one of the two failed is left out: 30 / 10 and 60 / 30, not 40 / 30."""
    results = {
        "ours": {"runs": [run(0, 30), run(1, 40), run(2, 60)]},
        "peer": {"runs": [run(0, 10), run(2, 30)]},
        "absent": {"left_out": "not installed"},
    }
    assert _ratios(results) == {"peer": {"median": 2.5, "min": 2.0, "max": 3.0}}


def test_entity_claims_fail_below_their_ratio_and_without_figures() -> None:
    """1.9 × is not 2 ×, 4.0 × is 4 ×, and a peer that was not measured proves nothing."""
    ratios = {name: {"median": ratio} for name, ratio in (("mosec_null", 1.9), ("fastapi_torch", 4.0))}
    made = found(claims("entity", {"ours": server(100, 5.1)}, ratios))
    assert made["≥ 4 × FastAPI + torch with the same tables"]
    assert not made["≥ 2 × mosec with a scorer that does nothing"]
    assert not made["≥ 10 × BentoML with a scorer that does nothing"]
    assert not made["p99 ≤ 5 ms at half of our ceiling [ms]"]


def test_pair_claims_are_about_the_fastest_peer() -> None:
    """The slower peer's better latency does not count."""
    servers = {"ours": server(100, 80), "fast": server(90, 70), "slow": server(10, 5)}
    made = found(claims("pair", servers, {"fast": {"median": 1.1}, "slow": {"median": 10.0}}))
    assert made["at least the throughput of the best peer, fast"]
    assert not made["at no worse p99 than its 70 ms, each at half of its ceiling [ms]"]


def test_a_later_call_replaces_only_its_servers() -> None:
    """With `--only` the others' figures stay, each with the day it is of."""
    facts = {"command": "c", "commit": "1", "date": "d", "bundle": {"views": "entity"}}
    first = {"servers": {"ours": server(100, 1), "a": server(10, 1)}, "ratios": {"a": {"median": 10.0}}}
    second = {"servers": {"ours": server(120, 1), "b": server(60, 1)}, "ratios": {"b": {"median": 2.0}}}
    before = Measure._with_peers({}, facts, first)
    after = Measure._with_peers(before, facts | {"commit": "2"}, second)
    assert after["ratios"] == {"a": {"median": 10.0}, "b": {"median": 2.0}}
    assert {name: one["commit"] for name, one in after["servers"].items()} == {"ours": "2", "a": "1", "b": "2"}
    assert after["servers"]["ours"]["summary"]["throughput"]["median"] == pytest.approx(120)

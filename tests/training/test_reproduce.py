"""training.reproduce: every method once on tiny data, only what is missing, paired intervals by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.training.datasets.test_amazon import line, write
from training.cost import Cost
from training.errors import UsageError
from training.methods import METHODS, Outcome
from training.reproduce import PLANS, Found, paired, read_plan, reproduce, score
from training.splits import Split

COST = Cost(1, 2, 3, 4, 5.0, 6.0)
PLAN = """
title = "tiny"
dataset = "{dataset}"
views = "{views}"
seeds = {seeds}
epochs = 2
batch = 100
reference = "LEVI over HT"
learning_rate = [1e-3, 1e-2]
lp_learning_rate = [1e-2, 1e-1]
backbone = "{backbone}"
{more}
"""


def plan(
    folder: Path,
    bert: Path,
    views: str = "entity",
    dataset: str = "tables",
    more: str = "",
    seeds: tuple[int, ...] = (0,),
) -> str:
    path = folder / "tiny.toml"
    path.write_text(PLAN.format(dataset=dataset, views=views, backbone=bert, more=more, seeds=list(seeds)))
    return str(path)


@pytest.mark.parametrize("views", ["entity", "pair"])
def test_every_method(bert: Path, tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, views: str) -> None:
    """One command gives every row, JSON, tables and plots; run again, it fits nothing and says the same."""
    name = plan(tmp_path, bert, views, more="sample = 60")
    reproduce(name, tables, tmp_path / "runs", tmp_path / "docs", tmp_path / "cache", "cpu")
    facts = json.loads((tmp_path / "docs" / "tiny.json").read_text())
    assert [row["method"] for row in facts["rows"]] == list(METHODS)
    assert all(0.3 < row["id"][0] < 3 for row in facts["rows"])
    by_name = {row["method"]: row for row in facts["rows"]}
    # Two may choose what another one is: WiSE-FT all of FT, grouped selection the same rate and epochs.
    same = {"FT+ZeroShot", "LEVI, grouped selection"}
    assert len({row["ood"][0] for name, row in by_name.items() if name not in same}) == len(METHODS) - 2
    costs = {name: row["cost"] for name, row in by_name.items()}
    assert costs["A3 heads without tower"]["trained"] < costs["LEVI over pre-trained"]["trained"]
    assert costs["LEVI over pre-trained"]["trained"] < costs["LEVI over HT"]["trained"]
    assert costs["LEVI over HT"]["used"] == costs["LEVI over pre-trained"]["used"]
    assert costs["FT+FS"]["sentence_flops"] == 2 * costs["FT"]["sentence_flops"] > 0
    levi = by_name["LEVI over HT"]
    assert len(levi["heads_id"]) == 3
    assert 0 <= levi["auroc_spread"][0] <= 1
    assert {p.name for p in (tmp_path / "docs").iterdir()} == {
        "tiny.json", "tiny.md", "tiny-scatter.svg", "tiny-slices.svg", "tiny-heads.svg"
    }  # fmt: skip
    for method in METHODS:
        monkeypatch.setitem(METHODS, method, None)  # type: ignore[misc]
    reproduce(name, tables, tmp_path / "runs", tmp_path / "docs", tmp_path / "cache", "cpu")
    again = json.loads((tmp_path / "docs" / "tiny.json").read_text())
    assert again["rows"] == facts["rows"]


def test_a_sample(bert: Path, tables: Path, tmp_path: Path) -> None:
    """A plan may draw so many ratings of each part; another plan does not mix its outcomes with these."""
    more = 'sample = 50\nmethods = ["LP", "LEVI over HT"]'
    reproduce(plan(tmp_path, bert, "pair", more=more), tables, tmp_path / "r", tmp_path / "d", tmp_path / "c", "cpu")
    assert len(np.load(next((tmp_path / "r" / "tiny").glob("LP*.npz")))["rating"]) == 150
    with pytest.raises(UsageError, match="holds outcomes of another plan"):
        reproduce(plan(tmp_path, bert, "pair"), tables, tmp_path / "r", tmp_path / "d", tmp_path / "c", "cpu")


def test_seeds(bert: Path, tables: Path, tmp_path: Path) -> None:
    """Each seed has a split and fits of its own; a row has them all."""
    more = 'methods = ["LP", "A4 tower alone", "LEVI over HT"]'
    name = plan(tmp_path, bert, more=more, seeds=(0, 1))
    reproduce(name, tables, tmp_path / "r", tmp_path / "d", tmp_path / "c", "cpu")
    for row in json.loads((tmp_path / "d" / "tiny.json").read_text())["rows"]:
        assert row["seeds"] == 2
        assert row["id"][0] != row["id"][1]
        assert row["ood"][0] != row["ood"][1]


def test_twice(bert: Path, tables: Path, tmp_path: Path) -> None:
    """Run twice from nothing with the same seed, an adapted method and LEVI give the same figures, but for times."""
    more = 'methods = ["FT", "LoRA", "LEVI over HT", "LEVI, grouped selection"]'
    rows = []
    for run in ("a", "b"):
        reproduce(
            plan(tmp_path, bert, more=more), tables, tmp_path / run, tmp_path / "d", tmp_path / f"cache-{run}", "cpu"
        )
        rows.append(json.loads((tmp_path / "d" / "tiny.json").read_text())["rows"])
        for row in rows[-1]:
            del row["cost"]["pair_ms"], row["cost"]["fit_seconds"]
    assert rows[0] == rows[1]


def test_without_a_shift(bert: Path, tables: Path, tmp_path: Path) -> None:
    """Where nothing is out of distribution there is nothing to compare on: refused before anything is fitted."""
    data = Path(shutil.copytree(tables, tmp_path / "tables"))
    text = (data / "dataset.toml").read_text()
    (data / "dataset.toml").write_text(text[: text.index("[shift]")])
    with pytest.raises(UsageError, match="tables: has no shift"):
        reproduce(plan(tmp_path, bert), data, tmp_path / "r", tmp_path / "d", tmp_path / "c", "cpu")
    assert not (tmp_path / "r").exists()


def test_sentiment(bert: Path, tmp_path: Path) -> None:
    """Sentiment is a binary task of the same model; words that tell the class are learnt, over the shift too."""
    rng = np.random.default_rng(0)
    lines = []
    for n in range(1200):
        good = rng.random() < 0.5
        body = " ".join(rng.permutation([*("star dream" if good else "stone night").split(), "movie", "river"]))
        category = "Books" if n % 6 else "Toys"
        lines.append(line(n, category, f"{2000 + n % 5}-01-01", 5 if good else 1, customer=1 + n % 50, body=body))
    (tmp_path / "data").mkdir()
    write(tmp_path / "data", lines)
    more = 'methods = ["LP", "HT", "FT+RobustModel", "LEVI over HT", "A4 tower alone"]'
    name = plan(tmp_path, bert, "entity", "sentiment", more)
    reproduce(name, tmp_path / "data", tmp_path / "r", tmp_path / "d", tmp_path / "c", "cpu")
    facts = json.loads((tmp_path / "d" / "tiny.json").read_text())
    assert facts["measure"] == "accuracy"
    by_name = {row["method"]: row for row in facts["rows"]}
    assert by_name["LEVI over HT"]["id"][0] > 0.95
    assert by_name["LEVI over HT"]["ood"][0] > 0.95


def found(rating: list[float]) -> Found:
    """Five ratings of two items: one for selection, two of test, two of OOD; all are 3 in truth."""
    parts = Split(*map(np.array, ([], [0], [], [1, 2], [3, 4])), slices={})
    return Found(
        rows=np.array([0, 1, 2, 3, 4]),
        item=np.array([0, 0, 0, 1, 1]),
        truth=np.full(5, 3.0),
        outcome=Outcome(np.array(rating), None, COST),
        parts=parts,
        bounds=(1.0, 5.0),
        binary=False,
    )


def test_scores_by_hand() -> None:
    """RMSE of clipped ratings; the paired difference is ours minus theirs, and of a row with itself nothing."""
    ours, theirs = found([3, 4, 4, 9, 1]), found([3, 3, 3, 5, 5])
    assert score(ours, ours.parts.test) == 1
    assert score(ours, ours.parts.ood) == 2
    assert paired([ours], [theirs], "test")[0] == 1
    assert paired([ours], [theirs], "ood") == (0, 0, 0)
    assert paired([ours], [ours], "test") == (0, 0, 0)


def test_costs_add_up() -> None:
    assert Cost(2, 4, 6, 8, 10.0, 12.0) == COST + COST


@pytest.mark.parametrize("path", sorted(PLANS.glob("*.toml")), ids=lambda p: p.stem)
def test_committed_plans(path: Path) -> None:
    """Each committed plan is read, and has the paper's grid."""
    assert read_plan(path.stem).learning_rate == (1e-4, 1e-3, 1e-2, 1e-1)


UNKNOWN = PLAN.format(dataset="tables", views="pair", seeds=[0], backbone="b", more='methods = ["X"]')


@pytest.mark.parametrize(("text", "says"), [("title = 1", "not a plan"), ("[", "not a plan"), (UNKNOWN, "no method X")])
def test_bad_plans(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "p.toml").write_text(text)
    with pytest.raises(UsageError, match=says):
        read_plan(str(tmp_path / "p.toml"))
    with pytest.raises(UsageError, match="there is no plan nothing; there are synthetic, amazon, ml-100k"):
        read_plan("nothing")

"""The server over what the exporter really writes: a fitted model over a tiny BERT, either views and either network."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import settings
from .running import RunningApp


@pytest.fixture(scope="module", params=["entity_repository", "pair_repository", "best_repository"])
def exported(request: pytest.FixtureRequest) -> Path:
    """An exported model repository."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def app(exported: Path) -> Iterator[RunningApp]:
    """The application over it."""
    with RunningApp(settings(exported)) as running:
        yield running


@pytest.fixture(scope="module")
def golden(exported: Path) -> list[dict[str, Any]]:
    """The golden examples as the exporter wrote them."""
    return [json.loads(line) for line in (exported / "levi/1/golden.jsonl").read_text().splitlines()]


def named(side: dict[str, Any]) -> Any:
    """A golden entity as a request names it."""
    return side["attributes"] if side["id"] is None else side["id"]


def test_exported_version_becomes_ready(app: RunningApp) -> None:
    """What the exporter writes passes every check of the server, golden replay included."""
    assert app.get("/readyz").status_code == 200, app.live.reason


def test_ratings_over_http_are_those_of_torch(app: RunningApp, golden: list[dict[str, Any]]) -> None:
    """Known, half-known and new pairs get over HTTP what torch computed in fp32, to 2e-3, heads in the same order."""
    answers = app.post([{"user": named(g["user"]), "movie": named(g["item"])} for g in golden]).json()
    assert [a["rating"] for a in answers] == pytest.approx([g["rating"] for g in golden], abs=2e-3)
    for answer, example in zip(answers, golden, strict=True):
        assert answer["heads"] == pytest.approx(example["head_ratings"], abs=5e-3)


def test_one_by_one_and_together(app: RunningApp, golden: list[dict[str, Any]]) -> None:
    """Each pair gets the same rating alone as together with all others, to 1e-5."""
    pairs = [{"user": named(g["user"]), "movie": named(g["item"])} for g in golden]
    together = app.post(pairs).json()
    for pair, among in zip(pairs, together, strict=True):
        (alone,) = app.post([pair]).json()
        assert alone["rating"] == pytest.approx(among["rating"], abs=1e-5)


def test_promised_request(app: RunningApp) -> None:
    """The request of the documentation works: user 138 and movie 357, and a film known by its title alone."""
    rating = app.get("/predict?user=138&movie=357").json()["rating"]
    assert 1 <= rating <= 5
    titles = ("star night river", "old stone king")
    answers = app.post([{"user": 138, "movie": {"title": title}} for title in titles]).json()
    assert [answer["cold_start"] for answer in answers] == [["movie"], ["movie"]]
    assert len({answer["rating"] for answer in answers}) == 2


def test_recommendations_are_the_best_predictions(app: RunningApp) -> None:
    """The whole catalogue in one pass is in the order, and has the ratings, of every pair scored by itself."""
    version = app.live.service.version
    ids = version.tables[1].ids.tolist()
    alone = [app.get(f"/predict?user=138&movie={movie}").json() for movie in ids]
    alone.sort(key=lambda answer: (-answer["rating"], answer["movie"]))
    if version.manifest.views == "entity":
        items = app.get(f"/recommend?user=138&k={len(ids)}").json()["items"]
        rated = set(version.rated.items_of(int(version.tables[0].find([138])[0])).tolist())
        left = app.get(f"/recommend?user=138&k={len(ids)}&exclude_rated=true").json()["items"]
        assert [i["movie"] for i in left] == [i["movie"] for i in items if ids.index(i["movie"]) not in rated]
        assert 0 < len(left) < len(items)
    else:
        items = app.request("POST", "/rank", json={"user": 138, "movies": ids}).json()["items"]
    assert [item["rating"] for item in items] == pytest.approx([answer["rating"] for answer in alone], abs=1e-5)
    assert [item["movie"] for item in items] == [answer["movie"] for answer in alone]

"""levi_serve.routes: what the endpoints answer when all is well, over ASGI."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from levi_serve.metrics import Metrics

from .conftest import settings
from .running import RunningApp
from .toy import HEADS, Toy

FIELDS = ["user", "movie", "rating", "heads", "disagreement", "ood_score", "cold_start", "model", "version"]
NEW_FILM = {"title": "A New Film (2026)"}


def test_get_predict(app: RunningApp, toy: Toy) -> None:
    """GET answers with exactly the promised fields, in their order, with the model's numbers."""
    answer = app.get("/predict?user=138&movie=357")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert list(body) == FIELDS
    assert (body["user"], body["movie"], body["cold_start"]) == (138, 357, [])
    assert body["rating"] == pytest.approx(toy.rating(138, 357), abs=2e-6)
    assert body["heads"] == pytest.approx(toy.heads(138, 357).tolist(), abs=2e-6)
    assert (body["model"], body["version"]) == ("levi", 1)


def test_parameters_in_any_order_and_spelling(app: RunningApp) -> None:
    """The order of parameters, percent-encoding and leading zeros change nothing."""
    answers = [
        app.get(f"/predict?{q}") for q in ("user=138&movie=357", "movie=357&user=138", "user=%31%33%38&movie=0357")
    ]
    assert len({answer.text for answer in answers}) == 1


def test_catalogue_movie_without_training(app: RunningApp) -> None:
    """A movie of the catalogue that was not trained on is a 200 with a cold start."""
    answer = app.get("/predict?user=138&movie=1001")
    assert (answer.status_code, answer.json()["cold_start"]) == (200, ["movie"])


def test_post_mixes_ids_and_attributes(app: RunningApp, toy: Toy) -> None:
    """POST answers pairs of ids, new entities and both in order; new entities are echoed as they were given."""
    user = {"age": 30, "occupation": "doctor"}
    film = {"title": "A film", "genres": ["War", "Drama"], "year": 1999.5}
    answer = app.post([{"user": 138, "movie": 357}, {"user": 138, "movie": film}, {"movie": film, "user": user}])
    assert answer.status_code == 200
    first, second, third = answer.json()
    assert first == app.get("/predict?user=138&movie=357").json()
    given = {**film, "genres": ("War", "Drama")}
    assert (second["user"], second["movie"], second["cold_start"]) == (138, film, ["movie"])
    assert second["rating"] == pytest.approx(toy.rating(138, given), abs=2e-6)
    assert (third["user"], third["movie"], third["cold_start"]) == (user, film, ["user", "movie"])
    assert third["rating"] == pytest.approx(toy.rating(user, given), abs=2e-6)
    assert list(third) == FIELDS


def test_a_title_alone_is_enough(app: RunningApp) -> None:
    """A movie given by title only gets a rating, and another title gets another one."""
    pairs = [{"user": 138, "movie": NEW_FILM}, {"user": 138, "movie": {"title": "Zorro"}}]
    first, second = app.post(pairs).json()
    assert first["rating"] != second["rating"]
    assert len(first["heads"]) == HEADS


def test_numbers_written_as_integer_or_with_a_point(app: RunningApp) -> None:
    """A number's sentence does not depend on whether JSON wrote it as 30 or 30.0, nor does its rating."""
    answers = app.post([{"user": {"age": age}, "movie": 357} for age in (30, 30.0, 39)]).json()
    assert answers[0]["rating"] == answers[1]["rating"] != answers[2]["rating"]


def test_integer_written_with_a_point(app: RunningApp) -> None:
    """JSON has one kind of number, so the id 138.0 is the id 138, and is echoed as an integer."""
    body = '{"pairs": [{"user": 138.0, "movie": 357}]}'
    answer = app.request("POST", "/predict", content=body, headers={"content-type": "application/json"})
    assert answer.text.startswith('[{"user":138,"movie":357,')


def test_more_pairs_than_a_batch(entity_app: RunningApp, entity_toy: Toy) -> None:
    """A request of several batches is answered whole and in order."""
    pairs = [{"user": (138, 7, 9)[i % 3], "movie": (357, 50)[i % 2]} for i in range(20)]
    answers = entity_app.post(pairs).json()
    assert [{"user": a["user"], "movie": a["movie"]} for a in answers] == pairs
    assert [a["rating"] for a in answers] == pytest.approx([entity_toy.rating(**p) for p in pairs], abs=2e-6)


def test_concurrent_requests_get_their_own_answers(app: RunningApp, toy: Toy) -> None:
    """Many requests at once, sharing batches, each get the answer for their own pair."""
    pairs = [(user, movie) for user in (138, 7, 9) for movie in (357, 50, 1001)] * 5

    async def all_at_once() -> list[httpx.Response]:
        return await asyncio.gather(*(app.client.get(f"/predict?user={u}&movie={m}") for u, m in pairs))

    for (user, movie), answer in zip(pairs, app.run(all_at_once()), strict=True):
        assert (answer.json()["user"], answer.json()["movie"]) == (user, movie)
        assert answer.json()["rating"] == pytest.approx(toy.rating(user, movie), abs=1e-5)


def test_health(app: RunningApp) -> None:
    """A ready server says so on both probes."""
    assert app.get("/livez").json() == {"status": "alive"}
    assert app.get("/readyz").json() == {"status": "ready"}


def test_readyz_runs_the_model(entity_toy_repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the model stops working after the start, /readyz says 503 with the reason and /livez stays up."""
    with RunningApp(settings(entity_toy_repository)) as app:
        assert app.get("/readyz").status_code == 200

        async def fail(_pairs: object) -> None:
            raise RuntimeError("out of memory")

        monkeypatch.setattr(app.live.service.engine._score, "_run", fail)
        answer = app.get("/readyz")
        assert answer.status_code == 503
        assert answer.json()["detail"] == "the model does not answer: out of memory"
        assert app.get("/livez").status_code == 200
        assert app.get("/predict?user=138&movie=357").status_code == 500


def test_info(app: RunningApp, toy: Toy) -> None:
    """/info shows the schema's names and kinds, the metrics and the origin from the manifest."""
    info = app.get("/info").json()
    assert (info["name"], info["status"], info["reason"]) == ("levi", "ready", None)
    model = info["model"]
    assert (model["version"], model["views"], model["heads"]) == (1, toy.views, HEADS)
    assert [entity["name"] for entity in model["entities"]] == ["user", "movie"]
    assert model["entities"][1]["attributes"][0] == {"name": "title", "kind": "text"}
    assert model["metrics"] == {"id_rmse": 0.9}
    assert model["run"] == {"dataset": "toy", "seed": 0}
    assert model["golden_examples"] == 11


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample of an exposition by name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_count_requests_problems_and_batches(entity_toy_repository: Path) -> None:
    """After known requests the exposition holds exactly their counts by route, method, status and problem; its batches
    are those of the start, which replayed the golden examples, and theirs.
    """
    with RunningApp(settings(entity_toy_repository)) as app:
        start = samples(app.metrics.text().decode())
        for _ in range(3):
            app.get("/predict?user=138&movie=357")
        app.post([{"user": 138, "movie": 357}, {"user": 138, "movie": NEW_FILM}])
        app.get("/predict?user=1&movie=2")
        app.get("/nothing/here")
        app.request("BREW", "/predict")
        found = samples(app.get("/metrics").text)

    def count(name: str, **labels: str) -> float:
        sample = (name, frozenset(labels.items()))
        return found.get(sample, 0.0) - (start.get(sample, 0.0) if "batch" in name else 0.0)

    requests = "levi_http_request_duration_seconds_count"
    assert count(requests, route="/predict", method="GET", status="200") == 3
    assert count(requests, route="/predict", method="POST", status="200") == 1
    assert count(requests, route="/predict", method="GET", status="404") == 1
    assert count(requests, route="unmatched", method="GET", status="404") == 1
    assert count(requests, route="/predict", method="other", status="405") == 1
    assert count("levi_errors_total", problem="unknown-id") == 1
    assert count("levi_errors_total", problem="not-found") == 1
    assert (count("levi_batch_size_count", lane="score"), count("levi_batch_size_sum", lane="score")) == (5, 6)
    assert count("levi_batch_size_sum", lane="encode") == 1
    assert count("levi_batch_duration_seconds_count", lane="score") == 5
    assert count("levi_queue_depth", lane="score") == 0
    assert count("levi_ready") == 1
    assert count("levi_model_info", model="levi", version="1", views="entity") == 1


def test_metrics_never_hold_ids(app: RunningApp) -> None:
    """Ids and paths that clients make up leave no trace in the labels, and all names begin with `levi_`."""
    app.get("/predict?user=138&movie=424242")
    app.get("/secret-path-424242")
    text = app.get("/metrics").text
    assert "424242" not in text
    assert {name.split("_")[0] for (name, _labels) in samples(text)} == {"levi"}


def test_two_applications_do_not_share_metrics(entity_app: RunningApp) -> None:
    """Each application has a registry of its own."""
    entity_app.get("/livez")
    assert 'route="/livez"' not in Metrics().text().decode()


def test_docs(app: RunningApp) -> None:
    """The documentation page is there."""
    assert "swagger-ui" in app.get("/docs").text

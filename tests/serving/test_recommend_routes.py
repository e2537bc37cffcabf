"""/recommend and /rank over the application: what they answer, what they refuse, and what they leave alone."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest

from levi_serve import recommend
from levi_serve.bundle.schema import Attributes
from levi_serve.errors import DeadlineError, UnsupportedError
from levi_serve.store import State

from .conftest import settings
from .running import RunningApp
from .test_routes import samples
from .toy import HEADS, MOVIES, RATED, Id, Toy

FIELDS = ["user", "movie", "rating", "heads", "disagreement", "ood_score", "cold_start", "model", "version"]
NEW_FILM = {"title": "A New Film (2026)"}
NEW_USER = {"age": 30, "occupation": "doctor"}
MANY: dict[Id, Attributes] = {
    **MOVIES,
    **{number: {"title": f"Film {number * number % 97}", "year": 1900 + number % 50} for number in range(60, 110)},
}


@pytest.fixture(scope="module")
def many_toy() -> Toy:
    """The toy model with entity views and some fifty movies."""
    return Toy("entity", movies=MANY)


@pytest.fixture(scope="module")
def many(many_toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    """The application over it, ready, with at most 60 recommendations in one answer."""
    folder = tmp_path_factory.mktemp("many")
    many_toy.write(folder)
    with RunningApp(settings(folder, max_k=60, max_pairs=100)) as running:
        yield running


@pytest.fixture
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four items in a run: the catalogue takes fourteen."""
    monkeypatch.setattr(recommend, "CHUNK", 4)


def post(app: RunningApp, path: str, body: Any) -> httpx.Response:
    return app.request("POST", path, json=body)


def problem(answer: httpx.Response, status: int, name: str) -> dict[str, str]:
    """Where and why, and under "" the detail, of an answer that is this problem."""
    body = answer.json()
    assert (answer.status_code, body["type"]) == (status, f"urn:levi:problem:{name}"), answer.text
    return {"": body["detail"], **{error["where"]: error["reason"] for error in body["errors"]}}


def movies(answer: httpx.Response) -> list[Any]:
    assert answer.status_code == 200, answer.text
    return [item["movie"] for item in answer.json()["items"]]


def everything(app: RunningApp, user: Any, catalogue: list[Any]) -> list[dict[str, Any]]:
    """Every movie as /predict rates it, best first, draws to the smaller id."""
    answers = app.post([{"user": user, "movie": movie} for movie in catalogue]).json()
    return sorted(answers, key=lambda answer: (-answer["rating"], answer["movie"]))


# What is answered


@pytest.mark.usefixtures("_small_chunks")
@pytest.mark.parametrize("user", [138, 7, 9])
def test_the_same_as_scoring_every_pair(many: RunningApp, user: int) -> None:
    """The recommendations are the best of what /predict says of every movie, number for number."""
    expected = everything(many, user, list(MANY))
    for k in (1, 10, 52, 53, 60):
        items = many.get(f"/recommend?user={user}&k={k}").json()["items"]
        assert [item.pop("attributes") for item in items] == [as_json(MANY[item["movie"]]) for item in items]
        assert items == expected[:k]


def as_json(attributes: Attributes) -> Any:
    return json.loads(json.dumps(attributes))


def test_shape(many: RunningApp, many_toy: Toy) -> None:
    """The answer tells user, model and version, and of each item what /predict tells and the catalogue's attributes."""
    answer = many.get("/recommend?user=138&k=2")
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert list(body) == ["user", "model", "version", "items"]
    assert (body["user"], body["model"], body["version"]) == (138, "levi", 1)
    for item in body["items"]:
        assert list(item) == [*FIELDS, "attributes"]
        assert item["rating"] == pytest.approx(many_toy.rating(138, item["movie"]), abs=2e-6)
        assert len(item["heads"]) == HEADS


def test_ten_by_default(many: RunningApp) -> None:
    """Without k it is ten, and what the user has rated is among them."""
    assert movies(many.get("/recommend?user=138")) == movies(many.get("/recommend?user=138&k=10&exclude_rated=false"))
    assert len(movies(many.get("/recommend?user=138"))) == 10


def test_untrained_movies_are_marked(entity_app: RunningApp) -> None:
    """A movie of the catalogue without a fitted rating is recommended too, and marked."""
    cold = {i["movie"]: i["cold_start"] for i in entity_app.get("/recommend?user=138").json()["items"]}
    assert cold == {357: [], 50: [], 1001: ["movie"]}
    left = entity_app.get("/recommend?user=138&exclude_rated=true").json()["items"]
    assert {i["movie"]: i["cold_start"] for i in left} == {50: [], 1001: ["movie"]}


@pytest.mark.parametrize("user", [138, 7, 9])
def test_exclude_rated(many: RunningApp, user: int) -> None:
    """What a user rated in training is left out, and nothing else; a user without ratings loses nothing."""
    full = movies(many.get(f"/recommend?user={user}&k=60"))
    left = movies(many.get(f"/recommend?user={user}&k=60&exclude_rated=true"))
    assert left == [movie for movie in full if movie not in RATED.get(user, ())]
    assert len(left) == len(full) - len(RATED.get(user, ()))


def test_everything_rated(entity_toy: Toy, tmp_path: Path) -> None:
    """A user who has rated all there is gets an empty list with model and version."""
    Toy("entity", movies={50: MOVIES[50], 357: MOVIES[357]}).write(tmp_path)
    with RunningApp(settings(tmp_path)) as app:
        answer = app.get("/recommend?user=7&exclude_rated=true")
    assert answer.json() == {"user": 7, "model": "levi", "version": 1, "items": []}


def test_a_new_user(many: RunningApp, many_toy: Toy) -> None:
    """A user given by attributes is encoded once and gets the best of what /predict says of every movie."""
    answer = post(many, "/recommend", {"user": NEW_USER, "k": 5, "exclude_rated": True})
    body = answer.json()
    assert body["user"] == NEW_USER
    for item in body["items"]:
        item.pop("attributes")
        assert (item["user"], item["cold_start"][0]) == (NEW_USER, "user")
    assert body["items"] == everything(many, NEW_USER, list(MANY))[:5]
    assert body["items"][0]["rating"] == pytest.approx(many_toy.rating(NEW_USER, body["items"][0]["movie"]), abs=1e-5)


def test_get_and_post_agree(many: RunningApp) -> None:
    """A POST with an id is the GET, defaults included."""
    assert post(many, "/recommend", {"user": 7}).content == many.get("/recommend?user=7").content
    wish = {"user": 7.0, "k": 3.0, "exclude_rated": True}
    assert post(many, "/recommend", wish).content == many.get("/recommend?user=7&k=3&exclude_rated=true").content


def test_text_ids(tmp_path: Path) -> None:
    """Where ids are texts they are read and answered as texts, digits included, and draws go by their bytes."""
    same = {"title": "same"}
    catalogue: dict[Id, Attributes] = {"é": same, "z": same, "7": {"title": "zzzz"}}
    Toy("entity", id_type="string", users={"1": {"age": 3}}, movies=catalogue).write(tmp_path)
    with RunningApp(settings(tmp_path)) as app:
        answer = app.get("/recommend?user=1&k=3")
        assert answer.json()["user"] == "1"
        ranked = post(app, "/rank", {"user": "1", "movies": ["z", "7", "é"]})
        assert movies(answer) == movies(ranked)
        assert set(movies(answer)) == {"é", "z", "7"}


@pytest.mark.parametrize("user", [138, NEW_USER])
def test_rank(app: RunningApp, toy: Toy, user: Any) -> None:
    """With either views, candidates by id and by attributes come back best first, each with its own numbers."""
    candidates = [50, NEW_FILM, 357, {"title": "Zorro"}, 1001]
    body = post(app, "/rank", {"user": user, "movies": candidates}).json()
    assert list(body) == ["user", "model", "version", "items"]
    assert body["user"] == user
    ratings = [item["rating"] for item in body["items"]]
    assert ratings == sorted(ratings, reverse=True)
    assert [list(item) for item in body["items"]] == [FIELDS] * 5
    for item in body["items"]:
        assert item["rating"] == pytest.approx(toy.rating(user, item["movie"]), abs=1e-5)
    assert sorted(map(str, (item["movie"] for item in body["items"]))) == sorted(map(str, candidates))


def test_rank_of_everything_is_recommend(many: RunningApp) -> None:
    """All movies ranked as candidates stand in the order of /recommend, with the same numbers."""
    recommended = many.get("/recommend?user=9&k=60").json()
    for item in recommended["items"]:
        item.pop("attributes")
    assert post(many, "/rank", {"user": 9, "movies": list(MANY)[::-1]}).json() == recommended


def test_draws(tmp_path: Path) -> None:
    """Movies of the same rating, here the scale's end, come by id from both, new ones last in the order given."""
    catalogue: dict[Id, Attributes] = {n: {"title": "~" * n} for n in (1, 2, 3)}
    users: dict[Id, Attributes] = {5: {"age": 60, "occupation": "z" * 40}}
    toy = Toy("entity", users=users, movies=catalogue)
    folder = toy.write(tmp_path)
    rows = np.load(folder / "users.rows.npy")
    rows[0] += 9  # far above the scale
    np.save(folder / "users.rows.npy", rows)
    with RunningApp(settings(_vouched(tmp_path, folder))) as app:
        assert [i["rating"] for i in app.get("/recommend?user=5").json()["items"]] == [5, 5, 5]
        assert movies(app.get("/recommend?user=5&k=2")) == [1, 2]
        new = [{"title": "b"}, {"title": "a"}]
        assert movies(post(app, "/rank", {"user": 5, "movies": [new[0], 3, 1, new[1], 2]})) == [1, 2, 3, *new]


def _vouched(repository: Path, folder: Path) -> Path:
    from .toy import vouch

    examples = (folder / "golden.jsonl").read_text().splitlines(keepends=True)
    (folder / "golden.jsonl").write_text(examples[-1])  # a new user's, which the changed row does not concern
    vouch(repository, folder)
    return repository


# What is refused


K = "should be an integer from 1 to 60"


@pytest.mark.parametrize(
    ("query", "where", "reason"),
    [
        ("user=138&k=0", "k", K),
        ("user=138&k=-1", "k", K),
        ("user=138&k=1000000000", "k", K),
        ("user=138&k=61", "k", K),
        ("user=138&k=ten", "k", K),
        ("user=138&k=", "k", K),
        ("user=138&k=1.0", "k", K),
        ("user=138&k=1e1", "k", K),
        ("user=138&k=%2B5", "k", K),
        ("user=138&k=true", "k", K),
        ("user=138&k=" + "9" * 5000, "k", K),
        ("user=138&k=5&k=5", "k", "is given more than once"),
        ("user=138&exclude_rated=1", "exclude_rated", "should be true or false"),
        ("user=138&exclude_rated=True", "exclude_rated", "should be true or false"),
        ("user=138&exclude_rated", "exclude_rated", "should be true or false"),
        ("user=138&exclude_rated=true&exclude_rated=true", "exclude_rated", "is given more than once"),
        ("k=5", "user", "is missing"),
        ("user=138&user=7", "user", "is given more than once"),
        ("user=abc", "user", "should be an integer of at most 64 bits"),
        ("user=138&movie=357", "movie", "is unknown; known here: user, k, exclude_rated"),
        ("user=138&K=5", "K", "is unknown; known here: user, k, exclude_rated"),
        ("user=%FF", "query", "is not percent-encoded UTF-8"),
    ],
)
def test_recommend_parameters(many: RunningApp, query: str, where: str, reason: str) -> None:
    """Each wrong parameter is named with what is wrong about it."""
    assert problem(many.get(f"/recommend?{query}"), 422, "invalid-request")[where] == reason


def test_all_wrong_parameters_are_told_at_once(many: RunningApp) -> None:
    """Several mistakes are listed together."""
    found = problem(many.get("/recommend?user=x&k=0&exclude_rated=no&foo=1"), 422, "invalid-request")
    assert set(found) == {"", "user", "k", "exclude_rated", "foo"}


@pytest.mark.parametrize(
    ("body", "where", "reason"),
    [
        ({"user": 138, "k": 0}, "k", K),
        ({"user": 138, "k": 10**9}, "k", K),
        ({"user": 138, "k": "5"}, "k", K),
        ({"user": 138, "k": 5.5}, "k", K),
        ({"user": 138, "k": True}, "k", K),
        ({"user": 138, "k": None}, "k", K),
        ({"user": 138, "exclude_rated": 1}, "exclude_rated", "should be true or false"),
        ({"user": 138, "exclude_rated": "true"}, "exclude_rated", "should be true or false"),
        ({"k": 5}, "user", "is missing"),
        ({"user": {}}, "user", "should have at least one attribute"),
        ({"user": {"age": "30"}}, "user.age", "should be a finite number of at most 64 bits"),
        ({"user": {"colour": "red"}}, "user.colour", "is unknown; known here: age, occupation"),
        ({"user": {"<id>": 3}}, "user.<id>", "is unknown; known here: age, occupation"),
        ({"user": "138"}, "user", "should be an integer of at most 64 bits"),
        ({"user": 138, "<attributes>": 1}, "<attributes>", "is unknown; known here: user, k, exclude_rated"),
        ([], "body", "should be an object"),
    ],
)
def test_recommend_body(many: RunningApp, body: Any, where: str, reason: str) -> None:
    """Each wrong part of a body is named by its path."""
    assert problem(post(many, "/recommend", body), 422, "invalid-request")[where] == reason


@pytest.mark.parametrize(
    ("body", "where", "reason"),
    [
        ({"user": 138}, "movies", "is missing"),
        ({"movies": [1]}, "user", "is missing"),
        ({"user": 138, "movies": []}, "movies", "List should have at least 1 item after validation, not 0"),
        ({"user": 138, "movies": 357}, "movies", "should be a valid array"),
        ({"user": 138, "movies": [357, 50, 357]}, "movies[2]", "is the same as movies[0]"),
        ({"user": 138, "movies": [357, 50, 50.0]}, "movies[2]", "is the same as movies[1]"),
        ({"user": 138, "movies": [NEW_FILM, 50, NEW_FILM]}, "movies[2]", "is the same as movies[0]"),
        (
            {"user": 138, "movies": [{"title": "a", "year": 1}, {"year": 1.0, "title": "a"}]},
            "movies[1]",
            "is the same as movies[0]",
        ),
        ({"user": 138, "movies": [357, "50"]}, "movies[1]", "should be an integer of at most 64 bits"),
        ({"user": 138, "movies": [357, {}]}, "movies[1]", "should have at least one attribute"),
        ({"user": 138, "movies": [{"genres": ["a", 3]}]}, "movies[0].genres[1]", "should be a valid string"),
        ({"user": 138, "movies": [{"colour": 1}]}, "movies[0].colour", "is unknown; known here: title, genres, year"),
        ({"user": {"title": "x"}, "movies": [357]}, "user.title", "is unknown; known here: age, occupation"),
        ({"user": 138, "movies": [357], "k": 1}, "k", "is unknown; known here: user, movies"),
        ({"user": 138, "movie": 357}, "movie", "is unknown; known here: user, movies"),
    ],
)
def test_rank_body(app: RunningApp, body: Any, where: str, reason: str) -> None:
    """Each wrong part of a body is named by its path, duplicates by the second of them."""
    assert problem(post(app, "/rank", body), 422, "invalid-request")[where] == reason


def test_too_many_candidates(entity_app: RunningApp) -> None:
    """More candidates than pairs in a POST are refused."""
    found = problem(post(entity_app, "/rank", {"user": 138, "movies": list(range(21))}), 422, "invalid-request")
    assert found["movies"].startswith("List should have at most 20 items")


@pytest.mark.parametrize("path", ["/recommend", "/rank"])
def test_bodies_that_are_none(app: RunningApp, path: str) -> None:
    """No JSON, another type, parameters beside the body and a body too large are told apart."""
    kind = {"content-type": "application/json"}
    problem(app.request("POST", path, content=b'{"user":', headers=kind), 400, "malformed-json")
    problem(app.request("POST", path, content=b"user=138"), 415, "unsupported-media-type")
    assert "k" in problem(app.request("POST", f"{path}?k=5", json={"user": 138}), 422, "invalid-request")
    problem(app.request("POST", path, content=b" " * 2_000_000, headers=kind), 413, "body-too-large")


def test_unknown_user(many: RunningApp) -> None:
    """An unknown user is a 404 whose hint works as it stands."""
    for answer in (many.get("/recommend?user=99&exclude_rated=true"), post(many, "/recommend", {"user": 99})):
        found = problem(answer, 404, "unknown-id")
        assert found["user"] == "99 is not in the catalogue"
        assert follow(many, found[""]).status_code == 200


def follow(app: RunningApp, detail: str) -> httpx.Response:
    """Do what the hint of a 404 says."""
    path, _, body = detail.partition("POST ")[2].partition(" ")
    return app.request("POST", path, content=body, headers={"content-type": "application/json"})


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({"user": 138, "movies": [357, NEW_FILM, 50, 4711]}, "movies[3]"),
        ({"user": 99, "movies": [357]}, "user"),
        ({"user": 138, "movies": [4711, 357]}, "movies[0]"),
    ],
)
def test_unknown_id_among_known_ones(app: RunningApp, body: Any, where: str) -> None:
    """An unknown id is named with its place, and the hint works as it stands."""
    found = problem(post(app, "/rank", body), 404, "unknown-id")
    assert found[where].endswith("is not in the catalogue")
    assert follow(app, found[""]).status_code == 200


@pytest.mark.parametrize("user", [138, 99])
def test_pair_views_cannot_recommend(app: RunningApp, toy: Toy, user: int) -> None:
    """With pair views /recommend says that it cannot be had, why, and what to ask instead."""
    if toy.views == "pair":
        for answer in (app.get(f"/recommend?user={user}"), post(app, "/recommend", {"user": NEW_USER})):
            assert "POST /rank" in problem(answer, 409, "unsupported")[""]


def test_without_a_table_of_items(many: RunningApp, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that keeps no table of items cannot go through the catalogue, and says so; it can rank."""
    monkeypatch.setattr(many.live.service.engine, "_recommender", None)
    assert "keeps none" in problem(many.get("/recommend?user=138"), 409, "unsupported")[""]
    assert movies(post(many, "/rank", {"user": 138, "movies": [50]})) == [50]


def test_without_a_table_of_users(many: RunningApp, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that keeps no table of users does not know who rated what, and says so when it is asked for it."""
    monkeypatch.setattr(many.live.service.engine._recommender, "_users", None)
    answer = many.get("/recommend?user=138&exclude_rated=true")
    assert "exclude_rated needs the table of users" in problem(answer, 409, "unsupported")[""]
    assert len(movies(many.get("/recommend?user=138"))) == 10
    assert len(movies(post(many, "/recommend", {"user": NEW_USER, "exclude_rated": True}))) == 10


# What goes wrong


def test_a_user_without_numbers(many: RunningApp) -> None:
    """A user for whom no item gets a finite number is a failure of the model and not an empty list."""
    problem(many.get("/recommend?user=13"), 500, "model-output")
    problem(post(many, "/rank", {"user": 13, "movies": [50, 357]}), 500, "model-output")


def test_items_without_numbers_never_appear(entity_toy: Toy, tmp_path: Path) -> None:
    """An item for which the model gives no finite number is left out and counted; the others are answered."""
    folder = entity_toy.write(tmp_path)
    rows = np.load(folder / "movies.rows.npy")
    rows[2] = np.nan  # movie 1001
    np.save(folder / "movies.rows.npy", rows)
    with RunningApp(settings(_vouched(tmp_path, folder))) as app:
        assert set(movies(app.get("/recommend?user=138"))) == {50, 357}
        assert movies(app.get("/recommend?user=138&exclude_rated=true")) == [50]
        assert samples(app.get("/metrics").text)["levi_items_left_out_total", frozenset()] == 2


@pytest.fixture
def _row_elsewhere(many: RunningApp, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store cannot say anything about user 138: the unknown user's row stands in."""
    store, unknown = many.live.service.engine._store, many.live.service.version.unknown[0]
    at_hand = store.at_hand

    def degraded(users: list[Id], items: list[Id]) -> Any:
        user, item = at_hand(users, items)
        lost = np.array(users) == 138
        user.rows[lost], user.trained[lost], user.state[lost] = unknown, False, State.DEGRADED
        return user, item

    monkeypatch.setattr(store, "at_hand", degraded)


@pytest.mark.usefixtures("_row_elsewhere")
def test_a_user_whose_row_cannot_be_had(many: RunningApp, many_toy: Toy) -> None:
    """Each recommendation is what the unknown user would get, and marked as degraded."""
    items = many.get("/recommend?user=138&k=3").json()["items"]
    assert [(item["degraded"], item["cold_start"]) for item in items] == [(["user"], ["user"])] * 3
    assert [list(item)[-2:] for item in items] == [["degraded", "attributes"]] * 3
    unknown = many_toy.row(0, {}).astype(np.float32)
    movie = many_toy.row(1, items[0]["movie"]).astype(np.float32)
    assert items[0]["rating"] == pytest.approx((3 + unknown - movie / 2)[:HEADS].mean(), abs=1e-5)
    assert "degraded" not in many.get("/recommend?user=7&k=1").json()["items"][0]


@pytest.mark.usefixtures("_row_elsewhere")
def test_a_user_whose_row_must_be_had(many: RunningApp, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a missing row is to be an error it is one."""
    limits = dataclasses.replace(many.live.service.engine._limits, on_missing="error")
    monkeypatch.setattr(many.live.service.engine, "_limits", limits)
    problem(many.get("/recommend?user=138"), 503, "row-unavailable")


# Under load


class Gate:
    """Holds the model's runs over the catalogue until it is opened."""

    def __init__(self, app: RunningApp, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runs = 0
        self.open = threading.Event()
        self.entered = threading.Event()
        engine = app.live.service.engine
        model = engine._recommender._model

        def held(feeds: Any) -> Any:
            self.runs += 1
            self.entered.set()
            assert self.open.wait(10)
            return model.rate(feeds)

        monkeypatch.setattr(engine._recommender, "_model", SimpleNamespace(rate=held, scores=model.scores))
        self._lane = engine._recommend

    async def wait(self) -> None:
        """Until a run is held."""
        await until(self.entered.is_set)

    async def idle(self) -> None:
        """Until the lane has nothing to do."""
        await until(lambda: not self._lane._workers)


async def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end
        await asyncio.sleep(0.005)


@pytest.fixture
def gate(many: RunningApp, monkeypatch: pytest.MonkeyPatch, _small_chunks: None) -> Iterator[Gate]:
    """The runs of the application over many movies, held."""
    held = Gate(many, monkeypatch)
    yield held
    held.open.set()
    many.run(held.idle())


def test_predictions_go_on_during_a_pass(many: RunningApp, gate: Gate) -> None:
    """While a pass is at work, /predict and /rank are answered."""

    async def meanwhile() -> list[httpx.Response]:
        recommending = asyncio.ensure_future(many.client.get("/recommend?user=138&k=3"))
        await gate.wait()
        others = [
            await many.client.get("/predict?user=138&movie=357"),
            await many.client.post("/rank", json={"user": 138, "movies": [50, 357]}),
        ]
        assert not recommending.done()
        gate.open.set()
        return [await recommending, *others]

    assert [answer.status_code for answer in many.run(meanwhile())] == [200, 200, 200]


def test_a_caller_that_has_gone_costs_nothing_further(many: RunningApp, gate: Gate) -> None:
    """When the caller hangs up in the middle of a pass, it ends with the chunk that is at work."""
    engine = many.live.service.engine

    async def hang_up() -> None:
        work = asyncio.ensure_future(engine.recommend(138, 3, False))
        await gate.wait()
        work.cancel()
        await asyncio.wait([work])
        assert work.cancelled()
        gate.open.set()
        await gate.idle()

    many.run(hang_up())
    assert gate.runs == 1


def test_a_pass_that_comes_too_late(many: RunningApp, gate: Gate) -> None:
    """A request whose time is over is a 504, and its pass ends with the chunk that is at work."""

    async def too_late() -> httpx.Response:
        answer = await many.client.get("/recommend?user=138", headers={"x-request-timeout-ms": "20"})
        gate.open.set()
        await gate.idle()
        return answer

    problem(many.run(too_late()), 504, "deadline")
    assert gate.runs <= 1


def test_wrong_time(many: RunningApp) -> None:
    """A timeout that is none is refused."""
    header = {"x-request-timeout-ms": "0"}
    for answer in (
        many.get("/recommend?user=138", headers=header),
        many.request("POST", "/recommend", json={"user": 138}, headers=header),
        many.request("POST", "/rank", json={"user": 138, "movies": [50]}, headers=header),
    ):
        assert "x-request-timeout-ms" in problem(answer, 422, "invalid-request")


def test_at_the_same_time(many: RunningApp) -> None:
    """Users who ask at once, sharing the lane, each get their own list."""
    alone = {user: many.get(f"/recommend?user={user}").content for user in (138, 7, 9)}

    async def together() -> list[httpx.Response]:
        paths = [f"/recommend?user={user}" for user in (138, 7, 9) * 5]
        return await asyncio.gather(*map(many.client.get, paths))

    answers = many.run(together())
    assert [answer.content for answer in answers] == [alone[user] for user in (138, 7, 9) * 5]


def test_engine_errors(app: RunningApp, toy: Toy) -> None:
    """The engine itself refuses with the domain's own errors, and a deadline that has passed is one."""
    engine = app.live.service.engine
    if toy.views == "pair":
        with pytest.raises(UnsupportedError):
            app.run(engine.recommend(138, 3, False))
    else:
        with pytest.raises(DeadlineError):
            app.run(engine.recommend(138, 3, False, time.perf_counter() - 1))
    with pytest.raises(DeadlineError):
        app.run(engine.rank(138, [50], time.perf_counter() - 1))


# What is documented


def test_document_follows_the_schema(many: RunningApp) -> None:
    """Parameters, limits, defaults and attributes in the document are those of the model in service."""
    document = many.get("/openapi.json").json()
    get = document["paths"]["/recommend"]["get"]
    assert [(p["name"], p["required"]) for p in get["parameters"]] == [
        ("user", True),
        ("k", False),
        ("exclude_rated", False),
    ]
    k = get["parameters"][1]["schema"]
    assert (k["minimum"], k["maximum"], k["default"], k["description"]) == (1, 60, 10, "how many movies")
    schemas = document["components"]["schemas"]
    assert schemas["RankRequest"]["properties"]["movies"]["maxItems"] == 100
    assert schemas["RankRequest"]["properties"]["movies"]["uniqueItems"] is True
    assert set(schemas["MovieStored"]["properties"]) == {"title", "genres", "year"}
    assert set(schemas["Recommendation"]["properties"]) == {*FIELDS, "degraded", "attributes"}
    assert schemas["Recommendation"]["required"] == [*FIELDS, "attributes"]
    assert set(schemas["Prediction"]["properties"]) == {*FIELDS, "degraded"}


def test_examples_work(app: RunningApp, toy: Toy) -> None:
    """The examples in the document can be sent as they are."""
    paths = app.get("/openapi.json").json()["paths"]
    for path, status in (("/recommend", 200 if toy.views == "entity" else 409), ("/rank", 200)):
        content = paths[path]["post"]["requestBody"]["content"]["application/json"]
        assert post(app, path, content["example"]).status_code == status


def test_a_small_limit(entity_toy_repository: Path) -> None:
    """Where fewer than ten may be asked for, that many are the default."""
    with RunningApp(settings(entity_toy_repository, max_k=2)) as app:
        assert len(movies(app.get("/recommend?user=138"))) == 2
        problem(app.get("/recommend?user=138&k=3"), 422, "invalid-request")
        assert app.get("/openapi.json").json()["paths"]["/recommend"]["get"]["parameters"][1]["schema"]["default"] == 2

"""Users and items that are put and erased while the server runs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from levi_serve.bundle.feedback import read_events
from levi_serve.bundle.keys import Keys
from levi_serve.bundle.manifest import read_manifest
from levi_serve.bundle.rows import Table
from levi_serve.publish import publish

from .conftest import Process, settings, until
from .redis_server import RedisServer
from .running import RunningApp
from .toy import MOVIES, USERS, Toy

ADMIN = {"Authorization": "Bearer admin"}
FILM = {"title": "A later film", "genres": ("Drama", "War"), "year": 1999}
VISITOR = {"age": 44, "occupation": "doctor"}


@pytest.fixture
def repository(toy: Toy, tmp_path: Path) -> Path:
    """A repository of the test's own."""
    toy.write(tmp_path / "models")
    return tmp_path / "models"


@pytest.fixture
def run(repository: Path, tmp_path: Path) -> Iterator[Callable[..., RunningApp]]:
    """Starts servers that share a list and a feedback log."""
    apps: list[RunningApp] = []

    def start(**changes: Any) -> RunningApp:
        shared = {"entities": tmp_path / "entities", "feedback": tmp_path / "log", "admin_token": "admin"}
        chosen = {**shared, "watch_s": 3600, "max_queue": 50, "max_pairs": 20, "max_body_bytes": 20_000, **changes}
        apps.append(RunningApp(settings(repository, **chosen)))
        return apps[-1].__enter__()

    yield start
    for app in apps:
        app.__exit__()


def put(app: RunningApp, place: str, attributes: Any, headers: Any = ADMIN) -> httpx.Response:
    return app.request("PUT", f"/entities/{place}", json=attributes, headers=headers)


def erase(app: RunningApp, place: str) -> Any:
    answer = app.request("DELETE", f"/entities/{place}", headers=ADMIN)
    assert answer.status_code == 200, answer.text
    return answer.json()


def predicted(app: RunningApp, user: Any, movie: Any) -> Any:
    return app.get(f"/predict?user={user}&movie={movie}").json()


def recommended(app: RunningApp, user: Any = 138, **more: Any) -> dict[int, Any]:
    answer = app.get("/recommend", params={"user": user, "k": 100, **more})
    assert answer.status_code == 200, answer.text
    return {item["movie"]: item for item in answer.json()["items"]}


def test_a_new_item(toy: Toy, run: Callable[..., RunningApp]) -> None:
    """Known at once by its id, with the ratings of a new entity with these attributes, and recommended."""
    app = run()
    assert app.get("/predict?user=138&movie=9001").status_code == 404
    assert put(app, "movie/9001", FILM).json() == {"entity": "movie", "id": 9001, "attributes": json_of(FILM)}
    answer = predicted(app, 138, 9001)
    if toy.views == "entity":
        assert answer["heads"] == pytest.approx(toy.heads(138, FILM), abs=1e-5)
        many = app.post([{"user": 138, "movie": FILM}, {"user": 138, "movie": 9001}]).json()
        assert many[0]["rating"] == many[1]["rating"]
    assert (answer["movie"], answer["cold_start"]) == (9001, ["movie"])
    if toy.views == "entity":
        item = recommended(app)[9001]
        assert item.pop("attributes") == json_of(FILM)
        assert item == answer
        assert list(recommended(app)) == by_rating(app, [*MOVIES, 9001])
    report = {"user": 138, "movie": 9001, "rating": 3.0}
    assert app.request("POST", "/feedback", json=report).json()["unknown"] == []


def json_of(attributes: Any) -> Any:
    return json.loads(json.dumps(attributes))


def by_rating(app: RunningApp, movies: list[Any]) -> list[Any]:
    ratings = {movie: predicted(app, 138, movie)["rating"] for movie in movies}
    return sorted(movies, key=lambda movie: (-ratings[movie], movie))


def test_a_new_user(toy: Toy, run: Callable[..., RunningApp]) -> None:
    """The same for users; one has rated nothing."""
    app = run()
    assert put(app, "user/77", VISITOR).status_code == 200
    assert predicted(app, 77, 357)["cold_start"] == ["user"]
    if toy.views == "entity":
        assert predicted(app, 77, 357)["heads"] == pytest.approx(toy.heads(VISITOR, 357), abs=1e-5)
        assert set(recommended(app, 77, exclude_rated="true")) == set(MOVIES)


def test_changing_what_is_known(toy: Toy, run: Callable[..., RunningApp]) -> None:
    """An id of the catalogue gets the row of its new attributes; with its old ones it is what it was."""
    app = run()
    before = predicted(app, 138, 50)
    put(app, "movie/50", FILM)
    changed = predicted(app, 138, 50)
    assert (before["cold_start"], changed["cold_start"]) == ([], ["movie"])
    assert changed["rating"] != before["rating"]
    if toy.views == "entity":
        assert changed["heads"] == pytest.approx(toy.heads(138, FILM), abs=1e-5)
        assert set(recommended(app)) == set(MOVIES)
        assert recommended(app)[50]["rating"] == changed["rating"]
    put(app, "movie/50", {"title": "Once more"})
    assert predicted(app, 138, 50)["rating"] != changed["rating"]
    put(app, "movie/50", MOVIES[50])
    assert predicted(app, 138, 50) == before


def test_erasing(toy: Toy, run: Callable[..., RunningApp], tmp_path: Path) -> None:
    """It is unknown, is not recommended, and no event names it; whether it was put or exported. It may come again."""
    app = run()
    put(app, "movie/9001", FILM)
    for user, movie in ((138, 9001), (7, 9001), (7, 50), (138, 357)):
        app.request("POST", "/feedback", json={"user": user, "movie": movie, "rating": 3.0})
    assert erase(app, "movie/9001") == {"entity": "movie", "id": 9001, "events": 2}
    assert erase(app, "movie/9001")["events"] == 0
    assert erase(app, "user/7")["events"] == 1
    assert erase(app, "user/4711")["events"] == 0
    assert [(event.user, event.item) for event in read_events(tmp_path / "log")] == [(138, 357)]
    assert app.get("/predict?user=138&movie=9001").status_code == 404
    assert app.get("/predict?user=7&movie=357").status_code == 404
    assert predicted(app, 138, 357)["rating"] > 0
    if toy.views == "entity":
        assert set(recommended(app)) == set(MOVIES)
        erase(app, "movie/50")
        assert set(recommended(app)) == {357, 1001}
    put(app, "user/7", USERS[9])
    assert predicted(app, 7, 357)["cold_start"] == ["user"]
    assert metric(app, 'levi_entities{state="put"}') == 1
    assert metric(app, 'levi_entities{state="erased"}') == (3 if toy.views == "entity" else 2)


def metric(app: RunningApp, name: str) -> float:
    (line,) = (line for line in app.get("/metrics").text.splitlines() if line.startswith(f"{name} "))
    return float(line.split()[-1])


def test_others_see_it(run: Callable[..., RunningApp]) -> None:
    """A server that shares the list, within a second, with the very row; and one that starts later."""
    one, other = run(), run()
    put(one, "movie/9001", FILM)
    began = time.monotonic()
    until(lambda: other.get("/predict?user=138&movie=9001").status_code == 200)
    assert time.monotonic() - began < 1
    assert predicted(one, 138, 9001) == predicted(other, 138, 9001) == predicted(run(), 138, 9001)
    erase(other, "user/7")
    began = time.monotonic()
    until(lambda: one.get("/predict?user=7&movie=50").status_code == 404)
    assert time.monotonic() - began < 1


def test_another_version(repository: Path, toy: Toy, run: Callable[..., RunningApp]) -> None:
    """Rows are made anew for it before it answers; what it has learned itself is its own; what was erased stays so."""
    app = run(version="latest:2")
    put(app, "movie/9001", FILM)
    put(app, "movie/9002", {"title": "Learned"})
    erase(app, "user/7")
    later = Toy(toy.views, movies={**MOVIES, 9002: {"title": "Learned"}, 9003: {"title": "More"}})
    later.write(repository, 2)
    before = metric(app, 'levi_batch_size_count{lane="encode"}') if toy.views == "entity" else 0
    app.run(app.rollout.step(at_once=True))
    assert predicted(app, 138, 357)["version"] == 2
    assert predicted(app, 138, 9001)["cold_start"] == ["movie"]
    assert predicted(app, 138, 9002)["cold_start"] == []
    assert app.get("/predict?user=7&movie=357").status_code == 404
    if toy.views == "entity":
        assert predicted(app, 138, 9001)["heads"] == pytest.approx(later.heads(138, FILM), abs=1e-5)
        assert metric(app, 'levi_batch_size_count{lane="encode"}') == before + 3  # two in golden examples, and this one
        assert set(recommended(app)) == {*later.movies, 9001}
    put(app, "movie/9004", FILM)
    pinned = {"inputs": [tensor("user", 138), tensor("movie", 9004)]}
    for version in (1, 2):
        answer = app.request("POST", f"/v2/models/levi/versions/{version}/infer", json=pinned)
        assert answer.status_code == 200, answer.text


def tensor(name: str, id_: int) -> dict[str, Any]:
    return {"name": name, "datatype": "INT64", "shape": [1], "data": [id_]}


@pytest.mark.parametrize(
    ("place", "attributes", "status", "where"),
    [
        ("movie/9001", {"titel": "x"}, 422, "titel"),
        ("movie/9001", {}, 422, "body"),
        ("movie/9001", [], 422, "body"),
        ("movie/9001", {"title": "x" * 1001}, 422, "title"),
        ("movie/9001", {"title": "x\0"}, 422, "title"),
        ("movie/9001", {"title": 7}, 422, "title"),
        ("movie/9001", {"genres": ["x"] * 101}, 422, "genres"),
        ("movie/9001", {"year": "1999"}, 422, "year"),
        ("movie/x", FILM, 422, "id"),
        ("movie/9223372036854775808", FILM, 422, "id"),
        ("movie/1.5", FILM, 422, "id"),
        ("movie/", FILM, 422, "id"),
        ("film/1", FILM, 404, None),
        ("movie/9001", {"genres": ["x" * 900] * 30}, 413, None),
    ],
)
def test_bad_input(bad_app: RunningApp, place: str, attributes: Any, status: int, where: str | None) -> None:
    """Refused, with the place; nothing is kept."""
    answer = put(bad_app, place, attributes)
    assert answer.status_code == status, answer.text
    assert [complaint["where"] for complaint in answer.json()["errors"]][:1] == ([where] if where else [])
    assert metric(bad_app, 'levi_entities{state="put"}') == 0


def test_a_list_that_was_never_read(repository: Path, tmp_path: Path) -> None:
    """Its age is told from the start of the server on: an alert must not take it for a server without a list."""
    redis = RedisServer(tmp_path)
    redis.kill()
    before = time.time()
    with RunningApp(settings(repository, entities=redis.url, admin_token="admin")) as app:
        assert app.get("/readyz").status_code == 200
        seen = metric(app, "levi_entities_seen_timestamp_seconds")
        assert before <= seen <= time.time()
        time.sleep(0.5)
        assert metric(app, "levi_entities_seen_timestamp_seconds") == seen


@pytest.fixture(scope="module")
def bad_app(entity_toy_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    """A server whose list stays empty."""
    place = tmp_path_factory.mktemp("bad") / "entities"
    chosen = settings(entity_toy_repository, entities=place, entities_max=3, admin_token="admin", max_body_bytes=20_000)
    with RunningApp(chosen) as running:
        yield running


def test_who_may_and_where(bad_app: RunningApp, entity_app: RunningApp) -> None:
    """Only who has the admin token, and only where there is a list."""
    for method in ("PUT", "DELETE"):
        asked = bad_app.request(method, "/entities/movie/1", json=FILM)
        assert asked.status_code == 401
        assert entity_app.request(method, "/entities/movie/1", json=FILM, headers=ADMIN).status_code == 403


def test_without_a_list(entity_toy_repository: Path) -> None:
    """A 409 that says what to do."""
    with RunningApp(settings(entity_toy_repository, admin_token="admin")) as app:
        answer = put(app, "movie/9001", FILM)
    assert answer.status_code == 409
    assert "--entities" in answer.json()["detail"]


def test_too_many(toy: Toy, run: Callable[..., RunningApp]) -> None:
    """A 503 that says so; erasing is always possible."""
    app = run(entities_max=2)
    assert [put(app, f"movie/{9000 + i}", FILM).status_code for i in range(3)] == [200, 200, 503]
    assert put(app, "movie/9000", {"title": "Changed"}).status_code == 200
    assert erase(app, "user/138")["events"] == 0
    assert app.get("/readyz").status_code == 200  # although the first golden example is about this user


def test_a_list_that_is_away(run: Callable[..., RunningApp], tmp_path: Path) -> None:
    """Predictions go on, changes are a 503, and it is used again when it is back."""
    server = RedisServer(tmp_path, "--appendonly", "yes")
    try:
        app = run(entities=server.url)
        assert put(app, "movie/9001", FILM).status_code == 200
        server.kill()
        answer = put(app, "movie/9002", FILM)
        assert (answer.status_code, answer.json()["type"]) == (503, "urn:levi:problem:entities-unavailable")
        assert predicted(app, 138, 9001)["cold_start"] == ["movie"]
        server.start()
        until(lambda: put(app, "movie/9002", FILM).status_code == 200)
        assert predicted(run(entities=server.url), 138, 9001)["cold_start"] == ["movie"]
    finally:
        server.kill()


def test_rows_in_redis(entity_toy_repository: Path, tmp_path: Path) -> None:
    """Erasing takes the rows out of Redis and of the cache; without an answer of Redis it is no success."""
    server = RedisServer(tmp_path)
    try:
        publish(entity_toy_repository, "levi", 1, server.url, (), None, lambda *_: None)
        keys = Keys(read_manifest(entity_toy_repository, "levi", 1))
        (known,) = keys.known(0, [7])
        chosen = {"redis": server.url, "remote_only": ("user",), "entities": tmp_path / "list", "admin_token": "admin"}
        with RunningApp(settings(entity_toy_repository, **chosen)) as app:
            assert app.get("/predict?user=7&movie=357").status_code == 200
            golden = set(server.client.keys("*+*"))
            put(app, "user/77", VISITOR)
            assert predicted(app, 77, 357)["cold_start"] == ["user"]
            (made,) = set(server.client.keys("*+*")) - golden
            erase(app, "user/7")
            erase(app, "user/77")
            assert server.client.exists(known, made) == 0
            assert [app.get(f"/predict?user={user}&movie=357").status_code for user in (7, 77)] == [404, 404]
            server.kill()
            assert app.request("DELETE", "/entities/user/9", headers=ADMIN).status_code == 503
            assert app.get("/predict?user=9&movie=357").status_code == 404
    finally:
        server.kill()


def test_several_workers(entity_toy_repository: Path, tmp_path: Path) -> None:
    """Every worker has it within a second."""
    flags = ["--model-repo", str(entity_toy_repository), "--workers", "2", "--admin-token", "admin"]
    server = Process(tmp_path / "log", *flags, "--entities", str(tmp_path / "entities"))
    try:
        server.ready(2)
        answer = server.http.put("/entities/movie/9001", json=FILM, headers=ADMIN)
        assert answer.status_code == 200, answer.text
        began = last = time.monotonic()
        known = 0  # of so many new connections in a row: the kernel picks the worker
        while known < 16:
            asked = time.monotonic()
            answer = server.http.get("/predict?user=138&movie=9001", headers={"Connection": "close"})
            known, last = (known + 1, last) if answer.status_code == 200 else (0, asked)
        assert last - began < 1
        assert 'levi_entities{state="put"} 1.0' in server.http.get("/metrics").text
    finally:
        server.close()


def test_places_among_text_ids(tmp_path: Path) -> None:
    """What is new stands in a table where its id would."""
    folder = Toy(id_type="string", users={"a": {}, "b": {}}, movies={"b": {}, "d": {}, "ä": {}}).write(tmp_path)
    places = Table(folder, "movies").places(["a", "c", "d", "däää", "z", "ä", "ää"])
    assert np.array_equal(places, [-0.5, 0.5, 0.5, 1.5, 1.5, 1.5, 2.5])

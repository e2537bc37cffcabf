"""Whatever a client sends, it gets a problem document with the reason, and the server goes on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from .conftest import settings
from .running import Gate, RunningApp
from .toy import Toy

KNOWN = {"user": 138, "movie": 357}
JSON = {"content-type": "application/json"}


def problem(answer: httpx.Response, status: int, name: str) -> dict[str, Any]:
    """The problem document, checked for the one shape that all have."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert list(body) == ["type", "title", "status", "detail", "errors"]
    assert body["type"] == f"urn:levi:problem:{name}"
    assert body["status"] == status
    assert len(answer.content) < 5000
    return body


def complaints(answer: httpx.Response, name: str = "invalid-request", status: int = 422) -> dict[str, str]:
    """Where and why, of a request that breaks the schema."""
    body = problem(answer, status, name)
    return {error["where"]: error["reason"] for error in body["errors"]}


@pytest.mark.parametrize(
    ("query", "where", "reason"),
    [
        ("user=138", "movie", "is missing"),
        ("", "user", "is missing"),
        ("user=138&movie=357&movie=357", "movie", "is given more than once"),
        ("user=138&movie=357&k=10", "k", "is unknown; known here: user, movie"),
        ("user=138&Movie=357", "Movie", "is unknown"),
        ("user=138&movie=abc", "movie", "should be an integer"),
        ("user=138&movie=", "movie", "should be an integer"),
        ("user=138&movie=3.5", "movie", "should be an integer"),
        ("user=138&movie=357.0", "movie", "should be an integer"),
        ("user=138&movie=1e3", "movie", "should be an integer"),
        ("user=138&movie=1_000", "movie", "should be an integer"),
        ("user=138&movie=%20357", "movie", "should be an integer"),
        ("user=138&movie=+357", "movie", "should be an integer"),
        ("user=138&movie=357%0A", "movie", "should be an integer"),
        ("user=138&movie=357%00", "movie", "should be an integer"),
        ("user=138&movie=%D9%A3%D9%A5%D9%A7", "movie", "should be an integer"),
        ("user=138&movie=true", "movie", "should be an integer"),
        ("user=138&movie=NaN", "movie", "should be an integer"),
        ("user=138&movie=Infinity", "movie", "should be an integer"),
        ("user=138&movie=9223372036854775808", "movie", "should be an integer of at most 64 bits"),
        ("user=138&movie=-9223372036854775809", "movie", "should be an integer of at most 64 bits"),
        ("user=138&movie=" + "9" * 5000, "movie", "should be an integer"),
        ("user=138&movie=%FF", "query", "is not percent-encoded UTF-8"),
        ("user=138&movie=357&" + "x" * 50_000 + "=1", "x" * 100, "is unknown"),
        ("user=138&movie=357&title=" + "x" * 50_000, "title", "is unknown"),
    ],
)
def test_get_parameters(app: RunningApp, query: str, where: str, reason: str) -> None:
    """Each wrong parameter is named with what is wrong about it, and long ones are not sent back."""
    found = complaints(app.get(f"/predict?{query}"))
    assert where in found
    assert found[where].startswith(reason)


def test_all_wrong_parameters_are_told_at_once(app: RunningApp) -> None:
    """Several mistakes are listed together, at most ten of them."""
    assert set(complaints(app.get("/predict?user=x&k=1"))) == {"user", "movie", "k"}
    assert len(complaints(app.get("/predict?" + "&".join(f"p{i}=1" for i in range(5000))))) == 10


def test_unknown_id_says_how_to_send_attributes(app: RunningApp) -> None:
    """The hint of the 404 is a request that works as it stands."""
    body = problem(app.get("/predict?user=138&movie=4711"), 404, "unknown-id")
    assert body["errors"] == [{"where": "movie", "reason": "4711 is not in the catalogue"}]
    text, _, hint = body["detail"].partition("POST /predict ")
    assert text.startswith("There is no movie 4711 in the catalogue of levi/1. A new movie is sent by its attributes")
    answer = app.request("POST", "/predict", content=hint, headers=JSON)
    assert (answer.status_code, answer.json()[0]["cold_start"]) == (200, ["movie"])


def test_unknown_id_among_known_ones(app: RunningApp) -> None:
    """In a list the first unknown id is named with its place, wherever else it stands; no other pair is answered."""
    pairs = [KNOWN, {"user": 138, "movie": {"title": "x"}}, {"user": 138, "movie": 4711}, {"user": 1, "movie": 357}]
    assert complaints(app.post(pairs), "unknown-id", 404) == {"pairs[2].movie": "4711 is not in the catalogue"}
    pairs = [KNOWN, {"user": 4711, "movie": 4712}, {"user": 138, "movie": 4711}]
    assert complaints(app.post(pairs), "unknown-id", 404) == {"pairs[1].user": "4711 is not in the catalogue"}


@pytest.mark.parametrize(
    ("pair", "where", "reason"),
    [
        ({"user": 138}, "pairs[1].movie", "is missing"),
        ({**KNOWN, "k": 1}, "pairs[1].k", "is unknown; known here: user, movie"),
        ({"user": "138", "movie": 357}, "pairs[1].user", "should be an integer"),
        ({"user": True, "movie": 357}, "pairs[1].user", "should be an integer"),
        ({"user": 138.5, "movie": 357}, "pairs[1].user", "should be an integer"),
        ({"user": float("nan"), "movie": 357}, "pairs[1].user", "should be an integer"),
        ({"user": float("-inf"), "movie": 357}, "pairs[1].user", "should be an integer"),
        ({"user": None, "movie": 357}, "pairs[1].user", "should be an integer"),
        ({"user": [138], "movie": 357}, "pairs[1].user", "should be an integer"),
        ({"user": 2**63, "movie": 357}, "pairs[1].user", "should be an integer of at most 64 bits"),
        ({"user": 10**400, "movie": 357}, "pairs[1].user", "should be an integer of at most 64 bits"),
        ({"user": {}, "movie": 357}, "pairs[1].user", "should have at least one attribute"),
        ({"user": {"id": 138}, "movie": 357}, "pairs[1].user.id", "is unknown; known here: age, occupation"),
        ({"user": {"age": "30"}, "movie": 357}, "pairs[1].user.age", "should be a finite number"),
        ({"user": {"age": True}, "movie": 357}, "pairs[1].user.age", "should be a finite number"),
        ({"user": {"age": None}, "movie": 357}, "pairs[1].user.age", "should be a finite number"),
        ({"user": {"age": [30]}, "movie": 357}, "pairs[1].user.age", "should be a finite number"),
        ({"user": {"age": 2**63}, "movie": 357}, "pairs[1].user.age", "should be a finite number"),
        ({"user": {"age": float("nan")}, "movie": 357}, "pairs[1].user.age", "should be a finite number"),
        ({"user": {"age": float("inf")}, "movie": 357}, "pairs[1].user.age", "should be a finite number"),
        ({"user": {"occupation": 3}, "movie": 357}, "pairs[1].user.occupation", "should be a valid string"),
        ({"user": {"occupation": ""}, "movie": 357}, "pairs[1].user.occupation", "String should have at least 1"),
        ({"user": 138, "movie": {"title": "x" * 1001}}, "pairs[1].movie.title", "String should have at most 1000"),
        ({"user": 138, "movie": {"title": "a\x07b"}}, "pairs[1].movie.title", "holds the control character U+0007"),
        ({"user": 138, "movie": {"title": "a\nb"}}, "pairs[1].movie.title", "holds the control character U+000A"),
        ({"user": 138, "movie": {"title": "a\x85"}}, "pairs[1].movie.title", "holds the control character U+0085"),
        ({"user": 138, "movie": {"title": ["a"]}}, "pairs[1].movie.title", "should be a valid string"),
        ({"user": 138, "movie": {"genres": "War"}}, "pairs[1].movie.genres", "should be a valid"),
        ({"user": 138, "movie": {"genres": []}}, "pairs[1].movie.genres", "Tuple should have at least 1 item"),
        ({"user": 138, "movie": {"genres": ["War", 3]}}, "pairs[1].movie.genres[1]", "should be a valid string"),
        ({"user": 138, "movie": {"genres": ["x"] * 101}}, "pairs[1].movie.genres", "Tuple should have at most 100"),
        ({"user": 138, "movie": {"colour": "red"}}, "pairs[1].movie.colour", "is unknown; known here: title, genres"),
        ([138, 357], "pairs[1]", "should be an object"),
        (None, "pairs[1]", "should be an object"),
    ],
)
def test_post_pairs(app: RunningApp, pair: Any, where: str, reason: str) -> None:
    """Each wrong part of a pair is named by its path with what is wrong about it."""
    content = json.dumps({"pairs": [KNOWN, pair]})
    found = complaints(app.request("POST", "/predict", content=content, headers=JSON))
    assert list(found) == [where]
    assert found[where].startswith(reason)


@pytest.mark.parametrize(
    ("content", "where", "reason"),
    [
        ("[]", "body", "should be an object"),
        ("null", "body", "should be an object"),
        ("{}", "pairs", "is missing"),
        ('{"pairs": []}', "pairs", "List should have at least 1 item"),
        ('{"pairs": {}}', "pairs", "should be a valid array"),
        (json.dumps({"pairs": [KNOWN], "k": 1}), "k", "is unknown; known here: pairs"),
        (json.dumps({"pairs": [KNOWN] * 21}), "pairs", "List should have at most 20 items"),
    ],
)
def test_post_bodies(entity_app: RunningApp, content: str, where: str, reason: str) -> None:
    """A body of another form, or with too few or too many pairs, is refused with the limit."""
    found = complaints(entity_app.request("POST", "/predict", content=content, headers=JSON))
    assert found[where].startswith(reason)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b'{"pairs": [{"user": 138, "movie": 357}]} x',
        b"user=138&movie=357",
        b'{"pairs": "\xff"}',
        b"\x00",
        b'{"pairs": "\\ud800"}',
        b"[" * 10_000,
        b"{'pairs': []}",
    ],
)
def test_no_json(entity_app: RunningApp, content: bytes) -> None:
    """What is not JSON, or not Unicode, or nested without end, is a 400 that says where it stops being JSON."""
    body = problem(entity_app.request("POST", "/predict", content=content, headers=JSON), 400, "malformed-json")
    assert "line 1 column" in body["detail"]


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "application/jsonx", ""])
def test_wrong_content_type(app: RunningApp, kind: str | None) -> None:
    """A body that is not declared as JSON is a 415 that says how to declare it."""
    headers = {} if kind is None else {"content-type": kind}
    answer = app.request("POST", "/predict", content=json.dumps({"pairs": [KNOWN]}), headers=headers)
    assert "Content-Type: application/json" in problem(answer, 415, "unsupported-media-type")["detail"]


def test_content_type_with_parameters(app: RunningApp) -> None:
    """The declared character set and letter case do not matter."""
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    assert app.request("POST", "/predict", content=json.dumps({"pairs": [KNOWN]}), headers=headers).status_code == 200


def test_large_body(entity_app: RunningApp) -> None:
    """A body above the limit is a 413, whether its length is announced, wrong or missing; one at the limit is read."""

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(21):
            yield b" " * 1000

    at_limit = json.dumps({"pairs": [KNOWN]}).encode().ljust(20_000)
    assert entity_app.request("POST", "/predict", content=at_limit, headers=JSON).status_code == 200
    for content, headers in [
        (b" " * 20_001, JSON),
        (chunks(), JSON),
        (chunks(), {**JSON, "content-length": "10"}),
        (b"", {**JSON, "content-length": "10000000"}),
    ]:
        answer = entity_app.request("POST", "/predict", content=content, headers=headers)
        assert "larger than 20000 bytes" in problem(answer, 413, "body-too-large")["detail"]


def test_list_of_100001_pairs(toy_repository: Path) -> None:
    """A list far beyond the limit is refused even where its bytes are within theirs."""
    with RunningApp(settings(toy_repository, max_body_bytes=10_000_000)) as app:
        found = complaints(app.post([KNOWN] * 100_001))
        assert found["pairs"].startswith("List should have at most 1000 items")


def test_query_of_a_post(app: RunningApp) -> None:
    """A POST with parameters is refused rather than answered for something else."""
    answer = app.request("POST", "/predict?user=138", content=json.dumps({"pairs": [KNOWN]}), headers=JSON)
    assert set(complaints(answer)) == {"user"}


@pytest.mark.parametrize("path", ["/predict/", "/Predict", "/v3/models", "/%00", "/../etc/passwd"])
def test_unknown_path(app: RunningApp, path: str) -> None:
    """A path that is not there is a 404 in the same shape, without a redirect."""
    problem(app.get(path), 404, "not-found")


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "BREW"])
def test_wrong_method(app: RunningApp, method: str) -> None:
    """A method that a path does not have is a 405 that names those it has."""
    answer = app.request(method, "/predict")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "GET, POST"
    if method != "HEAD":
        problem(answer, 405, "method-not-allowed")


def test_a_bug_is_a_problem_too(
    entity_app: RunningApp, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception that nobody expected gives a 500 in the same shape; what it says is in the log only."""

    def bug(_query: bytes) -> None:
        raise KeyError("internal detail")

    monkeypatch.setattr(entity_app.live.service.wire, "query", bug)
    body = problem(entity_app.get("/predict?user=138&movie=357"), 500, "internal")
    assert "internal detail" not in json.dumps(body)
    assert "internal detail" in caplog.text
    assert "GET /predict failed" in caplog.text


def test_a_broken_row_is_a_problem(entity_app: RunningApp) -> None:
    """A pair for which the model gives no number is a 500, never NaN in a 200."""
    problem(entity_app.get("/predict?user=13&movie=357"), 500, "model-output")


def test_overload(toy_repository: Path) -> None:
    """Requests beyond the queue get 429 with Retry-After at once; those within it are answered."""
    limits = settings(toy_repository, max_batch=1, max_pairs=1, max_queue=2)
    with RunningApp(limits) as app:
        gate = Gate(app, "_score" if app.live.service.version.encoder else "_read")

        async def crowd() -> list[httpx.Response]:
            tasks = await gate.crowd(8)
            gate.open()
            return list(await asyncio.gather(*tasks))

        answers = app.run(crowd())
    refused = [answer for answer in answers if answer.status_code != 200]
    assert [answer.status_code for answer in answers] == [200] * (8 - len(refused)) + [429] * len(refused)
    fewest = 8 - gate.permits - 2
    assert fewest <= len(refused) <= fewest + 1  # behind this gate, the next lane may be full for a moment too
    for answer in refused:
        problem(answer, 429, "overloaded")
        assert int(answer.headers["retry-after"]) >= 1


def test_not_ready(tmp_path: Path) -> None:
    """Without a model every prediction is a 503 with the reason, and the documentation still works."""
    with RunningApp(settings(tmp_path)) as app:
        for answer in (app.get("/predict?user=138&movie=357"), app.post([KNOWN]), app.get("/readyz")):
            assert str(tmp_path) in problem(answer, 503, "not-ready")["detail"]
        assert app.get("/livez").status_code == 200
        assert app.get("/info").json()["status"] == "failed"
        assert app.get("/openapi.json").status_code == 200


def test_text_ids(tmp_path: Path) -> None:
    """Where the schema's ids are text, empty, long and control-character ids are refused and numbers are no ids."""
    Toy("entity", id_type="string", users={"ann": {"age": 3}}, movies={"x": {"title": "t"}}).write(tmp_path)
    with RunningApp(settings(tmp_path)) as app:
        assert app.get("/predict?user=ann&movie=x").status_code == 200
        assert complaints(app.get("/predict?user=ann&movie="))["movie"].startswith("String should have at least 1")
        assert "U+0000" in complaints(app.get("/predict?user=ann%00&movie=x"))["user"]
        assert complaints(app.get("/predict?user=ann&movie=" + "y" * 1001))["movie"].startswith("String should have at")
        assert complaints(app.post([{"user": 1, "movie": "x"}]))["pairs[0].user"] == "should be a valid string"
        body = problem(app.get("/predict?user=ann&movie=%C3%A9"), 404, "unknown-id")
        assert body["detail"].startswith('There is no movie "é"')

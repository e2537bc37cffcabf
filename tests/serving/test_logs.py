"""levi_serve.logs and levi_serve.observer: whose line is it, and can a machine read it."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable
from contextvars import copy_context
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from levi_serve.logs import JsonLines, TextLines, begin_request

from .conftest import Process, settings, until
from .running import RunningApp

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"


@pytest.fixture
def line() -> Callable[..., str]:
    """Formats one record as text, or as JSON for a worker."""

    def form(formatter: logging.Formatter, message: str, *arguments: object, **attributes: Any) -> str:
        record = logging.LogRecord(
            "levi", logging.WARNING, __file__, 1, message, arguments, attributes.pop("exc", None)
        )
        record.created = 1_700_000_000.5
        record.__dict__.update(attributes)
        return formatter.format(record)

    return form


def within(headers: list[tuple[bytes, bytes]], work: Callable[[], str]) -> str:
    """What `work` gives in a request with these headers."""

    def run() -> str:
        begin_request(headers)
        return work()

    return copy_context().run(run)


def logged(headers: list[tuple[bytes, bytes]]) -> dict[str, Any]:
    """A JSON line in a request with these headers."""
    record = logging.makeLogRecord({"msg": "m"})
    return dict(json.loads(within(headers, lambda: JsonLines(None).format(record))))


def test_json_line(line: Callable[..., str]) -> None:
    """Time in RFC 3339, level, logger, message, worker and what the call adds."""
    found = json.loads(line(JsonLines(3), "took %d s", 2, fields={"seconds": 2}))
    assert found == {
        "time": "2023-11-14T22:13:20.500+00:00",
        "level": "warning",
        "logger": "levi",
        "message": "took 2 s",
        "worker": 3,
        "seconds": 2,
    }
    assert datetime.fromisoformat(found["time"]) == datetime(2023, 11, 14, 22, 13, 20, 500_000, UTC)


def test_json_exception(line: Callable[..., str]) -> None:
    """A traceback is one field of one line."""
    try:
        raise ValueError("too\nbad")
    except ValueError:
        text = line(JsonLines(None), "failed", exc=sys.exc_info())
    assert "\n" not in text
    assert json.loads(text)["exception"].endswith("ValueError: too\nbad")


@given(st.text())
def test_json_line_is_one_ascii_line(message: str) -> None:
    """Whatever a message holds, a line stays one and can be read back."""
    text = JsonLines(None).format(logging.makeLogRecord({"msg": message}))
    assert text.isascii()
    assert "\n" not in text
    assert json.loads(text)["message"] == message


def test_text_line(line: Callable[..., str]) -> None:
    """Time, level, worker, message and what the call adds; a nested mapping is laid flat."""
    text = line(TextLines(1), "settings", fields={"settings": {"port": 1, "host": "h"}, "n": 2})
    assert text.partition(" WARNING ")[2] == "worker 1: settings port=1 host=h n=2"
    assert line(TextLines(None), "x").endswith(" WARNING x")


def test_text_lines_of_a_request(line: Callable[..., str]) -> None:
    """A line within a request names it, before a traceback."""
    headers = [(b"x-request-id", b"abc"), (b"traceparent", f"00-{TRACE}-{PARENT}-01".encode())]
    try:
        raise ValueError("bad")
    except ValueError:
        text = within(headers, lambda: line(TextLines(None), "failed", exc=sys.exc_info()))
    assert text.splitlines()[0].endswith(f"WARNING failed request_id=abc trace_id={TRACE}")
    assert text.splitlines()[-1] == "ValueError: bad"


def test_outside_of_requests_there_is_no_id() -> None:
    """Start and stop belong to nobody."""
    assert "request_id" not in json.loads(JsonLines(None).format(logging.makeLogRecord({"msg": "m"})))


def test_new_request_forgets_the_last_one() -> None:
    """On a line that is kept open the next request runs in what the last one left."""

    def two() -> str:
        begin_request([(b"x-request-id", b"second")])
        return JsonLines(None).format(logging.makeLogRecord({"msg": "m"}))

    found = json.loads(within([(b"traceparent", f"00-{TRACE}-{PARENT}-01".encode())], two))
    assert (found["request_id"], found.get("trace_id")) == ("second", None)


@pytest.mark.parametrize(
    "ids", [[], [b""], [b"a b"], [b"x" * 129], [b"\xc3\xa9"], [b"a\x1b[31m"], [b"a\tb"], [b"one", b"two"]]
)
def test_request_id_is_made_where_none_can_be_used(ids: list[bytes]) -> None:
    """A missing, empty, long, doubled or unprintable id is replaced by a random one."""
    made = [begin_request([(b"x-request-id", value) for value in ids]) for _ in range(2)]
    assert made[0] != made[1]
    assert all(re.fullmatch(rb"[0-9a-f]{32}", value) for value in made)


@pytest.mark.parametrize("value", [b"a", b"x" * 128, b'{"a":"b"}', b"~!"])
def test_request_id_is_kept(value: bytes) -> None:
    """A sane id comes back as it is."""
    assert begin_request([(b"x-request-id", value)]) == value
    assert logged([(b"x-request-id", value)])["request_id"] == value.decode()


@pytest.mark.parametrize(
    "value",
    [f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00", f"01-{TRACE}-{PARENT}-01", f"cc-{TRACE}-{PARENT}-01-what"],
)
def test_traceparent(value: str) -> None:
    """The trace id of a valid header is logged; a later version may have more fields."""
    assert logged([(b"traceparent", value.encode())])["trace_id"] == TRACE


@pytest.mark.parametrize(
    "values",
    [
        [""],
        ["garbage"],
        [f"00-{TRACE}-{PARENT}"],
        [f"00-{TRACE}-{PARENT}-01-more"],
        [f"00-{TRACE}-{PARENT}-01-"],
        [f"01-{TRACE}-{PARENT}-01.more"],
        [f"ff-{TRACE}-{PARENT}-01"],
        [f"00-{'0' * 32}-{PARENT}-01"],
        [f"00-{TRACE}-{'0' * 16}-01"],
        [f"00-{TRACE.upper()}-{PARENT}-01"],
        [f"00-{TRACE[1:]}-{PARENT}-01"],
        [f"0-{TRACE}-{PARENT}-01"],
        [f"00-{TRACE}-{PARENT}-1"],
        [f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-01"],
    ],
)
def test_malformed_traceparent_is_ignored(values: list[str]) -> None:
    """As the standard has it."""
    assert "trace_id" not in logged([(b"traceparent", value.encode()) for value in values])


def test_answers_carry_the_request_id(app: RunningApp) -> None:
    """Every answer of the ordinary way does, errors included."""
    for path, status in (("/livez", 200), ("/predict?user=1&movie=2", 404), ("/nothing", 404)):
        answer = app.get(path, headers={"x-request-id": "abc-1"})
        assert (answer.status_code, answer.headers["x-request-id"]) == (status, "abc-1")
    made = {app.get("/livez").headers["x-request-id"] for _ in range(3)}
    assert len(made) == 3


def test_failure_is_logged_with_its_request(
    entity_app: RunningApp, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The line about a bug belongs to the request that met it, also when several run at once; a path cannot forge
    another line.
    """
    monkeypatch.setattr(caplog.handler, "formatter", JsonLines(None))

    def bug(_query: bytes) -> None:
        raise KeyError("internal")

    monkeypatch.setattr(entity_app.live.service.wire, "query", bug)
    for name in ("first", "second"):
        answer = entity_app.get("/predict?user=138&movie=357", headers={"x-request-id": name})
        assert (answer.status_code, answer.headers["x-request-id"]) == (500, name)
    lines = [json.loads(text) for text in caplog.text.splitlines()]
    assert [(found["message"], found["request_id"]) for found in lines] == [
        ("GET /predict failed", "first"),
        ("GET /predict failed", "second"),
    ]


def test_access_log(toy_repository: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """One line per request with method, route, status and time, and nothing that a client made up but its method."""
    caplog.set_level("INFO", "levi")
    monkeypatch.setattr(caplog.handler, "formatter", JsonLines(None))
    with RunningApp(settings(toy_repository, access_log=True)) as app:
        caplog.clear()
        app.get("/predict?user=138&movie=357", headers={"x-request-id": "a"})
        app.get("/secret-path", headers={"x-request-id": "b"})
        lines = [json.loads(text) for text in caplog.text.splitlines()]
    assert [(x["logger"], x["method"], x["route"], x["status"], x["request_id"]) for x in lines] == [
        ("levi.access", "GET", "/predict", "200", "a"),
        ("levi.access", "GET", "unmatched", "404", "b"),
    ]
    assert all(0 < found["seconds"] < 10 for found in lines)
    assert "357" not in caplog.text
    assert "secret-path" not in caplog.text


def test_access_log_of_plain_requests(start: Callable[..., Process], entity_toy_repository: Path) -> None:
    """Nor does the lean way of `GET /predict` go round it."""
    server = start("--model-repo", str(entity_toy_repository), "--access-log", "--drain-s", "0")
    server.settled()
    assert server.http.get("/predict?user=138&movie=357").status_code == 200
    until(lambda: "answered method=GET route=/predict status=200 seconds=0." in server.text(), server.text)


def test_no_access_log_by_default(app: RunningApp, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody asked for it."""
    caplog.set_level("INFO", "levi")
    app.get("/livez")
    assert caplog.text == ""


def test_process_logs_json(start: Callable[..., Process], entity_toy_repository: Path) -> None:
    """With `--log-format json` everything that a server and its workers say is JSON: the settings without secrets,
    one start, each worker's readiness, and each request where that is asked for, on kept-open lines too.
    """
    flags = ("--workers", "2", "--log-format", "json", "--access-log", "--token", "s3cret-t0ken", "--drain-s", "0")
    server = start("--model-repo", str(entity_toy_repository), *flags)
    server.ready(2)
    headers = {"authorization": "Bearer s3cret-t0ken", "x-request-id": "mine"}
    for _ in range(2):
        assert server.http.get("/predict?user=138&movie=357", headers=headers).status_code == 200
    server.popen.terminate()
    assert server.exit_code() == 0
    lines = [json.loads(text) for text in server.text().splitlines()]
    (shown,) = [found["settings"] for found in lines if found["message"] == "settings"]
    assert (shown["workers"], shown["log_format"], shown["token"]) == (2, "json", "**********")
    assert sum(found["message"].startswith("listening on ") for found in lines) == 1
    assert {found.get("worker") for found in lines if found["message"].startswith("ready: ")} == {0, 1}
    answered = [found for found in lines if found["logger"] == "levi.access"]
    assert [found["request_id"] for found in answered] == ["mine", "mine"]
    assert "s3cret" not in server.text()

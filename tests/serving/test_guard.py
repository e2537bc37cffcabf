"""levi_serve.guard: who has no token learns nothing but health."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, seed
from hypothesis import settings as hypothesis_settings

from levi_serve.guard import Token

from .conftest import Process, settings
from .running import RunningApp

TOKEN = "t0p-s3cret_~+/="
GOOD = {"authorization": f"Bearer {TOKEN}"}
GET = "/predict?user=138&movie=357"
ODD = "http://server//livez"
"""Whole, since what begins with two slashes would be read as another server's address."""


@pytest.fixture(scope="module")
def guarded(entity_toy_repository: Path) -> Iterator[RunningApp]:
    """The application behind a token."""
    with RunningApp(settings(entity_toy_repository, token=TOKEN)) as running:
        yield running


@pytest.mark.parametrize(
    "path", [GET, "/info", "/metrics", "/docs", "/openapi.json", "/nothing", "/livez/", "/livez?x=1&y", ODD]
)
def test_needs_the_token(guarded: RunningApp, path: str) -> None:
    """Everything but health is a 401 in the shape of every problem without it, and what it was with it."""
    answer = guarded.get(path)
    if path.startswith("/livez?"):
        assert answer.status_code == 200
        return
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == "urn:levi:problem:unauthorized"
    assert "x-request-id" in answer.headers
    assert guarded.get(path, headers=GOOD).status_code == (404 if path in {"/nothing", "/livez/", ODD} else 200)


@pytest.mark.parametrize("path", ["/", "/page/page.js", "/page/style.css"])
def test_page_is_open(guarded: RunningApp, path: str) -> None:
    """The page comes without a token, since it is where people give it; what does not belong to it stays closed."""
    assert guarded.get(path).status_code == 200
    assert guarded.get("/page").status_code == guarded.get("/pages/page.js").status_code == 401


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
def test_health_is_open(guarded: RunningApp, path: str) -> None:
    """A probe has no token, and may have a wrong one."""
    assert guarded.get(path).status_code == 200
    assert guarded.get(path, headers={"authorization": "Bearer wrong"}).status_code == 200


@pytest.mark.parametrize(
    "value",
    [
        "",
        TOKEN,
        "Bearer",
        "Bearer ",
        f"Basic {TOKEN}",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        f"Bearer x{TOKEN}",
        f"Bearer {TOKEN.upper()}",
        f"Bearer {TOKEN} {TOKEN}",
        f"Bearer {TOKEN},",
        f"Bearer\t{TOKEN}",
        "Bearer \xe9",
    ],
)
def test_wrong_token(guarded: RunningApp, value: str) -> None:
    """What is not exactly the token is none, whatever its bytes are."""
    assert guarded.get(GET, headers={"authorization": value.encode("latin-1")}).status_code == 401


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_scheme_in_any_case(guarded: RunningApp, scheme: str) -> None:
    """HTTP's schemes know no case."""
    assert guarded.get(GET, headers={"authorization": f"{scheme} {TOKEN}"}).status_code == 200


def test_two_tokens_are_none(guarded: RunningApp) -> None:
    """With two headers it could be argued which one counts."""
    twice = [("authorization", f"Bearer {TOKEN}"), ("authorization", "Bearer wrong")]
    assert guarded.get(GET, headers=twice).status_code == 401


def test_refusals_are_counted(guarded: RunningApp) -> None:
    """A refusal is a problem like others, and its body was not even read."""
    answer = guarded.request("POST", "/predict", content=b"x" * 10_000_000)
    assert answer.status_code == 401
    text = guarded.get("/metrics", headers=GOOD).text
    assert 'levi_errors_total{problem="unauthorized"}' in text


def test_without_a_token_there_is_no_guard(app: RunningApp) -> None:
    """Nothing is asked for, and the document says nothing of it."""
    assert app.get(GET).status_code == 200
    document = app.get("/openapi.json").json()
    assert "securitySchemes" not in document["components"]
    assert "401" not in document["paths"]["/info"]["get"]["responses"]


def test_document(guarded: RunningApp) -> None:
    """The OpenAPI document has the scheme, and who does not need it."""
    document = guarded.get("/openapi.json", headers=GOOD).json()
    assert document["components"]["securitySchemes"] == {"token": {"type": "http", "scheme": "bearer"}}
    assert document["security"] == [{"token": []}]
    for path, operations in document["paths"].items():
        for operation in operations.values():
            is_open = path in {"/livez", "/readyz"}
            assert operation.get("security") == ([] if is_open else None)
            assert ("401" in operation["responses"]) is not is_open


@pytest.fixture(scope="module")
def api(entity_toy_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The document of a running server behind a token."""
    log = tmp_path_factory.mktemp("guard") / "server.log"
    server = Process(log, "--model-repo", str(entity_toy_repository), "--drain-s", "0", "--token", TOKEN)
    server.settled()
    yield schemathesis.openapi.from_url(f"{server.url}/openapi.json", headers=GOOD)
    server.close()


@pytest.mark.parametrize("headers", [{}, GOOD])
def test_answers_are_as_documented(api: Any, headers: dict[str, str]) -> None:
    """Generated requests get documented answers with the token and without."""

    @seed(0)
    @hypothesis_settings(
        max_examples=15, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(api["/predict"]["GET"].as_strategy())
    def check(case: schemathesis.Case) -> None:
        answer = case.call(headers=headers)
        case.validate_response(answer, excluded_checks=[schemathesis.checks.ignored_auth])
        assert (answer.status_code == 401) is not bool(headers)

    check()


REQUEST = b"GET /predict?user=1&movie=2 HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize("line", [b"Authorization: Bearer abc\r\n", b"AUTHORIZATION:bearer abc\r\n"])
def test_token_is_taken_from_raw_bytes(line: bytes) -> None:
    """A request in bytes is what it is without its token's line, wherever that stands."""
    rest = b"Accept: */*\r\n\r\n"
    assert Token("abc").taken_from(REQUEST + line + rest) == REQUEST + rest
    assert Token("abc").taken_from(REQUEST + rest[:-2] + line + b"\r\n") == REQUEST + rest


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"Authorization: Bearer abcd\r\n",
        b"Authorization: Bearer ab\r\n",
        b"Authorization: Basic abc\r\n",
        b"X-Authorization: Bearer abc\r\n",
        b"X: Authorization: Bearer abc\r\n",
        b"Authorization: Bearer abc \r\n",
        b"Authorization : Bearer abc\r\n",
    ],
)
def test_no_token_in_raw_bytes(line: bytes) -> None:
    """What does not hold exactly the token goes the ordinary way, which says why."""
    assert Token("abc").taken_from(REQUEST + line + b"\r\n") is None


def test_one_token_line_only_is_taken() -> None:
    """A second one stays, and the express pattern does not know it."""
    line = b"Authorization: Bearer abc\r\n"
    assert Token("abc").taken_from(REQUEST + line + line + b"\r\n") == REQUEST + line + b"\r\n"


@pytest.mark.parametrize("workers", ["1", "2"])
def test_over_a_socket(
    start: Callable[..., Process], entity_toy_repository: Path, tmp_path: Path, workers: str
) -> None:
    """The lean way of `GET /predict` does not go round the guard; the token comes from a file and is never logged."""
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    server = start(
        "--model-repo", str(entity_toy_repository), "--drain-s", "0", "--token-file", str(file), "--workers", workers,
        "--log-level", "debug",
    )  # fmt: skip
    assert server.settled().status_code == 200
    assert server.http.get(GET).status_code == 401
    assert server.http.get(GET, headers={"authorization": "Bearer wrong"}).status_code == 401
    answer = server.http.get(GET, headers=GOOD)
    assert answer.status_code == 200
    assert "x-request-id" not in answer.headers  # only the lean way gives none
    assert "x-request-id" in server.http.get(GET, headers={"authorization": "Bearer wrong"}).headers
    assert answer.content == server.http.get(GET, headers={**GOOD, "x-request-id": "1"}).content
    assert TOKEN not in server.text()

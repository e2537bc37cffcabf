"""The OpenAPI document is true: requests made from it meet what it promises."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from schemathesis import GenerationMode

from .conftest import Process
from .running import RunningApp


@pytest.fixture(scope="module")
def api(toy_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The document of a running server."""
    log = tmp_path_factory.mktemp("api") / "server.log"
    server = Process(log, "--model-repo", str(toy_repository), "--drain-s", "0", "--max-pairs", "10")
    server.settled()
    yield schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    server.close()


@pytest.mark.parametrize(
    ("operation", "mode"),
    [
        *product(["GET /predict", "POST /predict", "POST /rank"], GenerationMode),
        *product(["GET /recommend", "POST /recommend"], GenerationMode),
        *product(["GET /livez", "GET /readyz", "GET /info", "GET /metrics"], [GenerationMode.POSITIVE]),
    ],
)
def test_answers_are_as_documented(api: Any, operation: str, mode: GenerationMode) -> None:
    """Generated requests, right and wrong, get documented statuses and bodies; wrong ones are refused; none fails."""
    method, path = operation.split()
    cases = api[path][method].as_strategy(generation_mode=mode)

    @seed(0)
    @settings(max_examples=25, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(cases)
    def check(case: schemathesis.Case) -> None:
        case.call_and_validate()

    check()


def test_document_follows_the_schema(app: RunningApp) -> None:
    """Parameter names, attributes, limits and the range of ratings are those of the model in service."""
    document = app.get("/openapi.json").json()
    get, post = (document["paths"]["/predict"][method] for method in ("get", "post"))
    assert [(p["name"], p["required"], p["schema"]["type"]) for p in get["parameters"]] == [
        ("user", True, "integer"),
        ("movie", True, "integer"),
    ]
    schemas = document["components"]["schemas"]
    assert set(schemas["MovieAttributes"]["properties"]) == {"title", "genres", "year"}
    assert schemas["MovieAttributes"]["additionalProperties"] is False
    rating = schemas["Prediction"]["properties"]["rating"]
    assert (rating["minimum"], rating["maximum"]) == (1, 5)
    assert schemas["Pairs"]["properties"]["pairs"]["maxItems"] == 1000
    assert set(get["responses"]) == {"200", "404", "422", "429", "500", "503", "504"}
    assert set(post["responses"]) == {"200", "400", "404", "413", "415", "422", "429", "500", "503", "504"}


def test_examples_work(app: RunningApp) -> None:
    """The examples in the document can be sent as they are."""
    paths = app.get("/openapi.json").json()["paths"]["/predict"]
    query = {parameter["name"]: parameter["example"] for parameter in paths["get"]["parameters"]}
    assert app.get("/predict", params=query).status_code == 200
    body = paths["post"]["requestBody"]["content"]["application/json"]["example"]
    assert app.request("POST", "/predict", json=body).status_code == 200

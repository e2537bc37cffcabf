"""Every error as one RFC 9457 problem document, whoever raised it: this is where status codes are decided."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from levi_serve.errors import (
    BackendError,
    Complaint,
    DeadlineError,
    EntitiesError,
    FeedbackError,
    InvalidRequestError,
    LastVersionError,
    MalformedJsonError,
    ModelOutputError,
    NotReadyError,
    OverloadedError,
    ServeError,
    UnavailableError,
    UnknownVersionError,
    UnsupportedError,
    UnusableVersionError,
)

MEDIA_TYPE = "application/problem+json"
OVERLOADED = "overloaded"


class Problem(BaseModel):
    """An error (RFC 9457)."""

    type: str = Field(description="the kind of problem, for programs")
    title: str = Field(description="the kind of problem, for people")
    status: int = Field(description="the HTTP status")
    detail: str = Field(description="what is wrong this time, and what to do about it")
    errors: list[Complaint] = Field(description="where it is wrong, if in certain places; at most ten are listed")

    @property
    def name(self) -> str:
        """The last part of the type."""
        return self.type.rpartition(":")[2]


class ProblemError(Exception):
    """A problem that only the edge knows of."""

    def __init__(self, status: int, name: str, detail: str, errors: Sequence[Complaint] = ()) -> None:
        """`name` is the last part of the problem's type."""
        self.problem = _problem(status, name, detail, errors)
        super().__init__(detail)


_DOMAIN: dict[type[Exception], tuple[int, str]] = {
    MalformedJsonError: (400, "malformed-json"),
    InvalidRequestError: (422, "invalid-request"),
    OverloadedError: (429, OVERLOADED),
    DeadlineError: (504, "deadline"),
    UnavailableError: (503, "row-unavailable"),
    BackendError: (503, "backend-unavailable"),
    FeedbackError: (503, "feedback-unavailable"),
    EntitiesError: (503, "entities-unavailable"),
    UnsupportedError: (409, "unsupported"),
    NotReadyError: (503, "not-ready"),
    UnknownVersionError: (404, "unknown-version"),
    UnusableVersionError: (409, "unusable-version"),
    LastVersionError: (409, "last-version"),
    ModelOutputError: (500, "model-output"),
}


def problem_of(error: Exception) -> Problem:
    """The problem that an error is. One that nobody expected is a 500 whose message stays in the log."""
    if isinstance(error, ProblemError):
        return error.problem
    if isinstance(error, HTTPException):
        name = HTTPStatus(error.status_code).phrase.lower().replace(" ", "-")
        return _problem(error.status_code, name, _framework_detail(error))
    if type(error) in _DOMAIN:
        status, name = _DOMAIN[type(error)]
        return _problem(status, name, str(error), getattr(error, "complaints", ()))
    return _problem(500, "internal", "the server failed; its log says why")


def problem_response(problem: Problem, headers: Mapping[str, str] | None = None) -> Response:
    """A problem as it is sent."""
    return Response(problem.model_dump_json(), problem.status, headers, media_type=MEDIA_TYPE)


def handle_problems(app: FastAPI, methods: Mapping[str, str], count: Callable[[str], None]) -> None:
    """Answer the application's expected errors with problems; `count` hears of each one's name. `methods` are those of
    each path, since the framework's own 405 names only those of the first route that it finds.
    """

    async def handler(request: Request, error: Exception) -> Response:
        problem = problem_of(error)
        count(problem.name)
        headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
        if "Allow" in headers:
            headers["Allow"] = methods.get(request.url.path, headers["Allow"])
        if isinstance(error, OverloadedError):
            headers["Retry-After"] = str(error.retry_after)
        if request.url.path.startswith("/v2"):  # where clients of the Open Inference Protocol look for the reason
            content = {**problem.model_dump(mode="json"), "error": problem.detail}
            return JSONResponse(content, problem.status, headers, media_type=MEDIA_TYPE)
        return problem_response(problem, headers)

    for kind in (ServeError, ProblemError, HTTPException):
        app.add_exception_handler(kind, handler)


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The problems of a route, for its OpenAPI description."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


def problem_schemas() -> dict[str, Any]:
    """What `documented` refers to."""
    schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    return {**schema.pop("$defs"), "Problem": schema}


def _problem(status: int, name: str, detail: str, errors: Sequence[Complaint] = ()) -> Problem:
    title = name.replace("-", " ").capitalize()
    return Problem(type=f"urn:levi:problem:{name}", title=title, status=status, detail=detail, errors=list(errors))


def _framework_detail(error: HTTPException) -> str:
    if error.status_code == HTTPStatus.NOT_FOUND:
        return "there is nothing at this path; /docs lists what there is"
    return error.detail

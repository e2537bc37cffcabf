"""What routes share: a request's time and body, and an end of the work when its client is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from time import perf_counter
from typing import Any, TypeVar

from fastapi import Request, Response
from starlette.requests import ClientDisconnect

from levi_serve.errors import Complaint, DeadlineError, InvalidRequestError
from levi_serve.problems import ProblemError
from levi_serve.shapes import SHOWN
from levi_serve.wire import TIMEOUT, Wire

T = TypeVar("T")

SENDING_S = 0.001
"""What it may take from an answer's being there to its being sent."""


def deadline_of(request: Request, timeout_s: float) -> float:
    """When the answer must be there [`perf_counter` seconds]; `timeout_s` after the request came if it does not say.

    Raises:
        InvalidRequestError: what it says is no time.

    """
    timeout = Wire.timeout(request.headers.getlist(TIMEOUT))
    return float(request.scope["levi.start"]) + (timeout_s if timeout is None else timeout)


async def read_json(request: Request, limit: int) -> bytes:
    """A body of JSON, and nothing beside it.

    Raises:
        InvalidRequestError: there are parameters beside the body.
        ProblemError: it is too large, or not said to be JSON.

    """
    if request.query_params:
        unknown = next(iter(request.query_params))[:SHOWN]
        raise InvalidRequestError([Complaint(unknown, "is unknown; a POST says everything in its body")])
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ProblemError(415, "unsupported-media-type", "send the body as 'Content-Type: application/json'")
    return await read_body(request, limit)


async def read_body(request: Request, limit: int) -> bytes:
    """The body, counted while it is read: its length may not be announced, or wrongly.

    Raises:
        ProblemError: it is too large.

    """
    too_large = ProblemError(413, "body-too-large", f"the body is larger than {limit} bytes; send less at a time")
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise too_large
    return bytes(body)


async def unless_gone(request: Request, work: Coroutine[Any, Any, T], deadline: float) -> T:
    """The result of `work`, which is cancelled when the client hangs up: nobody would read it. In a busy event loop it
    may be there in time, and come here too late.

    Raises:
        ClientDisconnect: it has.
        DeadlineError: the `deadline` [`perf_counter` seconds] would pass before it is sent.

    """
    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        result = working.result()
        if perf_counter() + SENDING_S > deadline:
            raise DeadlineError
        return result
    finally:
        working.cancel()
        gone.cancel()


def json_response(content: bytes) -> Response:
    """An answer that is JSON already."""
    return Response(content, media_type="application/json")


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass

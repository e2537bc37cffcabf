"""The bearer token at the door."""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Sequence
from typing import Any

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from levi_serve.page.router import is_page
from levi_serve.problems import ProblemError, documented, problem_response

OPEN = frozenset({"/livez", "/readyz"})
"""What is answered without a token: a probe has none."""

_LINE = re.compile(rb"\r\nauthorization: ?bearer ([!-~]+)(?=\r\n)", re.IGNORECASE)


class Token:
    """What a client must know. Comparing takes as long for a good guess as for a bad one."""

    def __init__(self, token: str) -> None:
        """Printable ASCII."""
        self._token = token.encode()

    def opens(self, headers: list[tuple[bytes, bytes]]) -> bool:
        """Whether a request's headers hold the token."""
        given = [value for name, value in headers if name == b"authorization"]
        if len(given) != 1:
            return False
        scheme, _, token = given[0].partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(token.strip(b" "), self._token)

    def taken_from(self, request: bytes) -> bytes | None:
        """A request without body, in raw bytes, after its token was taken off; None if it does not hold it."""
        line = _LINE.search(request)
        if line is None or not hmac.compare_digest(line[1], self._token):
            return None
        return request[: line.start()] + request[line.end() :]


class Guard:
    """ASGI middleware: without the token there is nothing but health and the page, which asks for the token."""

    def __init__(self, app: ASGIApp, tokens: Sequence[Token], count: Callable[[str], None]) -> None:
        """Any of the tokens will do. `count` hears of each refusal's name."""
        self._app = app
        self._tokens = tokens
        self._count = count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it."""
        if scope["type"] != "http" or self._is_open(scope["path"]) or self._opens(scope["headers"]):
            await self._app(scope, receive, send)
            return
        problem = ProblemError(401, "unauthorized", "send the server's token as 'Authorization: Bearer TOKEN'").problem
        self._count(problem.name)
        await problem_response(problem, {"WWW-Authenticate": "Bearer"})(scope, receive, send)

    def _opens(self, headers: list[tuple[bytes, bytes]]) -> bool:
        opened = [token.opens(headers) for token in self._tokens]  # each is compared, however the others came out
        return any(opened)

    @staticmethod
    def _is_open(path: str) -> bool:
        return path in OPEN or is_page(path)


def admission(admin: Token | None) -> Callable[[Request], None]:
    """What an endpoint depends on that only who has the `admin` token may use; without one nobody may."""

    def admitted(request: Request) -> None:
        if admin is None:
            raise ProblemError(403, "forbidden", "this server has no admin token, so nobody may do this")
        if not admin.opens(request.scope["headers"]):
            raise ProblemError(401, "unauthorized", "send the server's admin token as 'Authorization: Bearer TOKEN'")

    return admitted


def describe_guard(document: dict[str, Any]) -> None:
    """Say in an OpenAPI document what needs the token."""
    document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    document["security"] = [{"token": []}]
    for path, operations in document["paths"].items():
        for operation in operations.values():
            if path in OPEN:
                operation["security"] = []
            else:
                operation["responses"].update({str(status): said for status, said in documented(401).items()})

"""HTTP/1.1 as uvicorn speaks it, but for the one answer that it makes up itself."""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from levi_serve.metrics import Metrics
from levi_serve.problems import MEDIA_TYPE, ProblemError


class Protocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *arguments: Any, metrics: Metrics, **named: Any) -> None:
        """As uvicorn's."""
        super().__init__(*arguments, **named)
        self._metrics = metrics

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP request, in the shape of every other problem. After that the line is of no use."""
        problem = ProblemError(400, "malformed-http", "what was sent is not an HTTP/1.1 request").problem
        self._metrics.problem(problem.name)
        body = problem.model_dump_json().encode()
        headers = [
            *self.server_state.default_headers,
            (b"content-type", MEDIA_TYPE.encode()),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
        ]
        lines = b"".join(b"%b: %b\r\n" % header for header in headers)
        self.transport.write(STATUS_LINE[400] + lines + b"\r\n" + body)
        self.transport.close()

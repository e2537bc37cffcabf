"""The outermost layer of the application: measures every request, names it in the log, and turns a bug into a 500
instead of a dead line.
"""

from __future__ import annotations

import logging
import time
from urllib.parse import quote

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from levi_serve.live import Live
from levi_serve.logs import REQUEST_ID, begin_request
from levi_serve.metrics import Metrics
from levi_serve.problems import problem_of, problem_response

log = logging.getLogger("levi")
access = logging.getLogger("levi.access")


class Observer:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, live: Live, metrics: Metrics, access_log: bool) -> None:
        """Wrap `app`; `access_log` asks for a line per request."""
        self._app = app
        self._live = live
        self._metrics = metrics
        self._access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = scope["levi.start"] = time.perf_counter()
        request_id = begin_request(scope["headers"])
        status = "unanswered"

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
                message = {**message, "headers": [*message["headers"], (REQUEST_ID, request_id)]}
                if self._live.status == "draining":
                    # The client's next request must not meet a line that is about to close.
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except ClientDisconnect:
            pass
        except Exception as error:
            log.exception("%s %s failed", scope["method"], quote(scope["path"]))
            if status != "unanswered":
                raise
            problem = problem_of(error)
            self._metrics.problem(problem.name)
            await problem_response(problem)(scope, receive, watched)
        finally:
            self._measure(scope, status, time.perf_counter() - start)

    def _measure(self, scope: Scope, status: str, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "unmatched")
        self._metrics.request(route, scope["method"], status, seconds)
        if self._access_log:
            said = {"method": scope["method"], "route": route, "status": status, "seconds": round(seconds, 6)}
            access.info("answered", extra={"fields": said})

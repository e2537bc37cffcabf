"""The express lane: a plain `GET /predict?user=138&movie=357`, or a POST of such pairs, from the socket's bytes to the
answer's bytes.

A request that `Wire` recognises as whole and ordinary goes straight to the engine; its answer is written when
the batch is done. It makes no task, no scope and no header list, which cost more than the model does. All else is
uvicorn's and FastAPI's business; both ways give the same answers, byte for byte.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Sequence
from functools import lru_cache
from time import perf_counter
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from levi_serve.batcher import Job
from levi_serve.engine_entity import EntityEngine
from levi_serve.errors import DeadlineError, OverloadedError, ServeError, UnknownIdError
from levi_serve.exchange import SENDING_S
from levi_serve.guard import Token
from levi_serve.live import Live, Service
from levi_serve.metrics import Metrics
from levi_serve.predictor import Pair
from levi_serve.problems import MEDIA_TYPE, OVERLOADED, ProblemError, problem_of
from levi_serve.protocol import Protocol
from levi_serve.trial import Trial
from levi_serve.turned_away import TurnedAway
from levi_serve.wire import ListHead

log = logging.getLogger("levi")

_ROUTE = "/predict"
_GET = (_ROUTE, "GET")
_JSON = b"application/json"
_PROBLEM = MEDIA_TYPE.encode()
_END = b"\r\n\r\n"
_AT_ONCE_S = 0.05
"""What is read within this time after a pause had probably come during the pause."""


class Lane(Protocol):
    """One connection. Requests on it are answered in order: while one is in the lane, what follows is held back. What
    there is no room for is refused here, lists as well: the ordinary way would take longer to refuse them.
    """

    def __init__(
        self,
        *arguments: Any,
        live: Live,
        trial: Trial,
        metrics: Metrics,
        away: TurnedAway,
        timeout_s: float,
        max_body_bytes: int,
        token: Token | None,
        **named: Any,
    ) -> None:
        """`timeout_s` is what a request gets that does not say how long its caller waits. Without the `token`, if there
        is one, no request enters the lane. Those that are refused are turned `away`.
        """
        super().__init__(*arguments, metrics=metrics, **named)
        self._live = live
        self._trial = trial
        self._away = away
        self._timeout_s = timeout_s
        self._max_body_bytes = max_body_bytes
        self._token = token
        self._midway = False
        """Whether uvicorn's parser is inside a request."""
        self._job: Job[Pair, bytes] | None = None
        self._asked = _GET
        """Route and method of the request in the lane."""
        self._service: Service | None = None
        self._seen = perf_counter()
        self._refused = self._again = -math.inf
        """When the last request was refused, and when the connection was read again after that."""
        self._rest = 0
        """Bytes of a refused list's body that are still to come; nobody looks at them."""
        self._held = bytearray()
        self._last = False
        """Whether to close after this answer."""
        self._idle: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        """Bytes from the client."""
        self._seen = perf_counter()
        if self._rest:
            rest, self._rest = self._rest, max(0, self._rest - len(data))
            data = data[rest:]
            if not data:
                return
        if self._job is not None:
            self._held += data
            self.transport.pause_reading()
        elif self._midway or self._pipelining() or not self._enter(data):
            super().data_received(data)

    def on_message_begin(self) -> None:
        """Uvicorn's parser is in a request."""
        self._midway = True
        super().on_message_begin()

    def on_message_complete(self) -> None:
        """And is through with it."""
        self._midway = False
        super().on_message_complete()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        """A client has come."""
        super().connection_made(transport)
        self._watch_idle(self.timeout_keep_alive)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone: its request costs nothing further."""
        if self._job is not None:
            self._job.cancel()
            self._job = None
            self._metrics.request(*self._asked, "unanswered", perf_counter() - self._seen)
        if self._idle is not None:
            self._idle.cancel()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """The server ends: the request in the lane is answered first."""
        if self._job is None:
            super().shutdown()
        else:
            self._last = True

    def _pipelining(self) -> bool:
        """Whether an answer of the ordinary way is still to come, or the client does not read what it is sent."""
        return self.flow.write_paused or (self.cycle is not None and not self.cycle.response_complete)

    def _enter(self, data: bytes) -> bool:
        """Take the request into the lane, if it may."""
        service = self._live.service
        if service is None or data.startswith(b"POST"):
            return service is not None and self._enter_list(service, data)
        plain = data if self._token is None else self._token.taken_from(data)
        request = None if plain is None else service.wire.express(plain)
        if request is None:
            return False
        user, item, timeout = request
        if self._trial.active:
            service, other = self._trial.choose(user)
            if other is not None:
                return False
        engine = service.engine
        deadline = self._deadline(timeout)
        if retry_after := engine.crowded(deadline, self._seen) or int(deadline <= self._seen):
            self._turn_away(_GET, retry_after)
            return True
        if not isinstance(engine, EntityEngine):
            return False
        self._put(service, engine, (Pair(user, item),), deadline, _GET)
        return True

    def _put(
        self,
        service: Service,
        engine: EntityEngine,
        pairs: Sequence[Pair],
        deadline: float,
        asked: tuple[str, str],
    ) -> None:
        self._unset_keepalive_if_required()
        self._service, self._asked = service, asked
        try:
            self._job = engine.put(pairs, deadline, self._reply)
        except OverloadedError as error:
            self._turn_away(asked, error.retry_after)
        except ServeError as error:
            self._refuse(error)

    def _enter_list(self, service: Service, data: bytes) -> bool:
        """Refuse a list by its head, if there is no room for one; take it, if it is all there and of ids alone; else it
        takes the ordinary way.
        """
        end = data.find(_END) + len(_END)
        head = data[:end] if self._token is None else self._token.taken_from(data[:end])
        said = None if head is None else service.wire.list_head(head)
        if said is None:
            return False
        rest = said.length - (len(data) - end)
        if rest < 0:
            return False
        deadline = self._deadline(said.timeout)
        retry_after = service.engine.crowded(deadline, self._seen) or int(deadline <= self._seen)
        if not retry_after:
            return not rest and self._put_list(service, said, data[end:], deadline)
        self._turn_away((said.route.decode(), "POST"), retry_after)
        self._rest = rest
        return True

    def _put_list(self, service: Service, said: ListHead, body: bytes, deadline: float) -> bool:
        engine = service.engine
        if not isinstance(engine, EntityEngine) or self._trial.active:
            return False
        if said.route != _ROUTE.encode() or not said.is_json or said.length > self._max_body_bytes:
            return False
        pairs = service.wire.known_body(body)
        if pairs is None:
            return False
        self._put(service, engine, pairs, deadline, (_ROUTE, "POST"))
        return True

    def _deadline(self, timeout: float | None) -> float:
        """When the answer must be there. What comes as soon as the connection is read again may have waited all the
        time; if that was too long, it is refused once more.
        """
        came = self._refused if self._seen - self._again < _AT_ONCE_S else self._seen
        return came + (self._timeout_s if timeout is None else timeout)

    def _turn_away(self, asked: tuple[str, str], retry_after: int) -> None:
        """Refuse a request at once, and do not read the next one for a while: a client that is told within a turn of
        the loop sends the next one within the same turn, and while there is always one more to be read and refused, no
        run begins.
        """
        self._unset_keepalive_if_required()
        self._asked = asked
        self._metrics.problem(OVERLOADED)
        self._write(429, _PROBLEM, _overloaded(retry_after), b"retry-after: %d\r\n" % retry_after)
        if not self._last:
            self._refused = self._seen
            self.transport.pause_reading()
            self._away.add(self._read_again)

    def _read_again(self) -> None:
        if not self.transport.is_closing():
            self._again = perf_counter()
            self.transport.resume_reading()

    def _reply(self, result: list[bytes] | Exception) -> None:
        job, self._job = self._job, None
        assert job is not None
        if isinstance(result, Exception):
            self._refuse(result, job.items)
        elif perf_counter() + SENDING_S > job.deadline:
            self._refuse(DeadlineError())
        else:
            self._write(200, _JSON, result[0] if self._asked == _GET else b"[%b]" % b",".join(result))
        if self._held and not self.transport.is_closing():
            held, self._held = bytes(self._held), bytearray()
            self.transport.resume_reading()
            self.data_received(held)

    def _refuse(self, error: Exception, pairs: Sequence[Pair] = ()) -> None:
        if isinstance(error, UnknownIdError):
            assert self._service is not None
            place = next(i for i, pair in enumerate(pairs) if pair[error.side] == error.id)
            error = self._service.wire.unknown_id(error, "" if self._asked == _GET else f"pairs[{place}].")
        problem = problem_of(error)
        if not isinstance(error, ServeError | ProblemError):
            log.error("%s failed", " ".join(reversed(self._asked)), exc_info=error)
        self._metrics.problem(problem.name)
        self._write(problem.status, _PROBLEM, problem.model_dump_json().encode())

    def _write(self, status: int, kind: bytes, body: bytes, more: bytes = b"") -> None:
        if self._last or self._live.status == "draining":
            # The client's next request must not meet a line that is about to close.
            self._last = True
        head = _head(status, tuple(self.server_state.default_headers), more, kind, self._last)
        self.transport.write(head % (len(body), body))
        if self._last:
            self.transport.close()
        self._metrics.request(*self._asked, str(status), perf_counter() - self._seen)

    def _close_if_idle(self) -> None:
        quiet = perf_counter() - self._seen
        if quiet >= self.timeout_keep_alive and self._job is None and not self._pipelining():
            self.transport.close()
        else:
            self._watch_idle(max(1.0, self.timeout_keep_alive - quiet))

    def _watch_idle(self, seconds: float) -> None:
        """One timer that is moved when it fires, instead of two calls a request."""
        self._idle = self.loop.call_later(seconds, self._close_if_idle)


@lru_cache(maxsize=128)
def _overloaded(retry_after: int) -> bytes:
    return problem_of(OverloadedError(retry_after)).model_dump_json().encode()


@lru_cache(maxsize=128)
def _head(status: int, default: tuple[tuple[bytes, bytes], ...], more: bytes, kind: bytes, last: bool) -> bytes:
    """All of an answer but the length of its body and the body itself; `default` headers tell the time in seconds."""
    lines = STATUS_LINE[status] + b"".join(b"%b: %b\r\n" % header for header in default) + more
    tail = b"content-type: %b\r\n" % kind + (b"connection: close\r\n" if last else b"")
    return lines.replace(b"%", b"%%") + b"content-length: %d\r\n" + tail + b"\r\n%b"

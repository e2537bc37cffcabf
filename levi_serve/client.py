"""A client for Python programs. The server does not use it; it needs the extra `client`.

It reads like this: `with Client("http://127.0.0.1:8000") as levi: levi.predict(user=138, movie=357).rating`
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Self, TypeAlias

import httpx

Id: TypeAlias = int | str
Attributes: TypeAlias = Mapping[str, Any]
Given: TypeAlias = Id | Attributes
"""A user or an item: its id, or the attributes of a new one."""

_BUSY = frozenset({429, 503})
_PAUSE_S = 1.0
"""Between two attempts, where the server does not say how long."""
_GRACE_S = 1.0
"""How much longer than the server the client waits, so that it hears why there is no answer."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """One rating, and what there is to know about it."""

    entities: Mapping[str, Any]
    """The user and the item under the names of the schema, as in `{"user": 138, "movie": 357}`."""
    rating: float
    heads: tuple[float, ...]
    disagreement: float
    ood_score: float
    cold_start: tuple[str, ...]
    """Sides that the model was not fitted on."""
    model: str
    version: int
    degraded: tuple[str, ...] = ()
    """Sides rated as unknown ones, since their row could not be had."""
    attributes: Attributes | None = None
    """What the catalogue says about a recommended item."""


class LeviError(Exception):
    """The server refused or failed. This is its problem document (RFC 9457)."""

    def __init__(self, status: int, problem: Mapping[str, Any], retry_after: int | None) -> None:
        """`retry_after` [s] is None where the server named no time."""
        self.status = status
        self.type = str(problem.get("type", "about:blank"))
        self.title = str(problem.get("title", ""))
        self.detail = str(problem.get("detail", ""))
        self.errors: tuple[Mapping[str, str], ...] = tuple(problem.get("errors", ()))
        """What is wrong with which part of the request: `where` and `reason`."""
        self.retry_after = retry_after
        super().__init__(f"{status} {self.title}: {self.detail}")


class Client:
    """Talks to one server over lines that are kept open; threads may share it.

    Every method raises LeviError for an answer that is an error, and httpx.TransportError where none came.
    """

    def __init__(self, url: str, token: str | None = None, timeout: float = 2.0, retries: int = 0) -> None:
        """The server is told that an answer is of no use after `timeout` [s]. `retries` times a request is sent again
        after the server said that it was busy or not ready, when it said to.
        """
        headers = {"X-Request-Timeout-Ms": str(max(1, round(timeout * 1000)))}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout + _GRACE_S)
        self._retries = retries

    def predict(self, **pair: Given) -> Prediction:
        """One rating: `predict(user=138, movie=357)` or `predict(user=138, movie={"title": "A New Film (2026)"})`."""
        if any(isinstance(given, Mapping) for given in pair.values()):
            return self.predict_many([pair])[0]
        return _prediction(self._send("GET", "/predict", params=pair))

    def predict_many(self, pairs: Iterable[Mapping[str, Given]]) -> list[Prediction]:
        """Ratings of many pairs, in order."""
        return [_prediction(one) for one in self._send("POST", "/predict", json={"pairs": list(pairs)})]

    def recommend(self, *, k: int = 10, exclude_rated: bool = False, **user: Given) -> list[Prediction]:
        """The best `k` items of the catalogue, best first: `recommend(user=138)` or `recommend(user={"age": 30})`."""
        if any(isinstance(given, Mapping) for given in user.values()):
            return _listed(self._send("POST", "/recommend", json={**user, "k": k, "exclude_rated": exclude_rated}))
        options = {"k": k, "exclude_rated": "true" if exclude_rated else "false"}
        return _listed(self._send("GET", "/recommend", params={**user, **options}))

    def rank(self, **candidates: Given | Iterable[Given]) -> list[Prediction]:
        """Some items, best first: `rank(user=138, movies=[357, {"title": "A New Film (2026)"}])`."""
        body = {
            name: given if isinstance(given, int | str | Mapping) else list(given) for name, given in candidates.items()
        }
        return _listed(self._send("POST", "/rank", json=body))

    def info(self) -> dict[str, Any]:
        """What the server is and which model it serves."""
        return dict(self._send("GET", "/info"))

    def close(self) -> None:
        """Close the lines."""
        self._http.close()

    def __enter__(self) -> Self:
        """To be closed in the end."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the lines."""
        self.close()

    def _send(self, method: str, path: str, **content: Any) -> Any:
        retries = self._retries
        while not (answer := self._http.request(method, path, **content)).is_success:
            error = _error(answer)
            if not retries or error.status not in _BUSY:
                raise error
            retries -= 1
            time.sleep(_PAUSE_S if error.retry_after is None else error.retry_after)
        return answer.json()


_KNOWN = frozenset(field.name for field in fields(Prediction)) - {"entities"}


def _prediction(given: Mapping[str, Any]) -> Prediction:
    known: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in given.items() if name in _KNOWN
    }
    return Prediction(entities={name: value for name, value in given.items() if name not in _KNOWN}, **known)


def _listed(answer: Mapping[str, Any]) -> list[Prediction]:
    """What holds for all stands once in the answer, and in each of these."""
    common = {name: value for name, value in answer.items() if name != "items"}
    return [_prediction({**common, **item}) for item in answer["items"]]


def _error(answer: httpx.Response) -> LeviError:
    seconds = answer.headers.get("retry-after", "")
    retry_after = int(seconds) if seconds.isdecimal() else None
    if answer.headers.get("content-type") == "application/problem+json":
        return LeviError(answer.status_code, answer.json(), retry_after)
    # Whoever it was, it was not the server: a proxy, or another program.
    return LeviError(answer.status_code, {"title": answer.reason_phrase, "detail": answer.text[:200]}, retry_after)

"""What can go wrong with a request, in the domain's words; status codes are the edge's business.

ServeError
├── MalformedJsonError   a body is not JSON at all
├── InvalidRequestError  the request says something that the schema does not allow
├── UnknownIdError       an id is not in the catalogue
├── UnavailableError     a row cannot be had at the moment
├── BackendError         what runs the model does not answer
├── FeedbackError        a rating cannot be stored
├── EntitiesError        a new or erased entity cannot be stored
├── UnsupportedError     the model, or the tables that are kept here, do not allow it
├── OverloadedError      too much is waiting already
├── DeadlineError        the answer would come too late
├── NotReadyError        no model is in service
├── UnknownVersionError  a version is not loaded
├── UnusableVersionError a version cannot be loaded, or not as wished
├── LastVersionError     without this version nothing would be in service
└── ModelOutputError     the model ran and gave no usable number
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from levi_serve.bundle.rows import Id


class ServeError(Exception):
    """Base of everything that a request can meet."""


@dataclass(frozen=True)
class Complaint:
    """One thing that is wrong with a request."""

    where: str
    """`user` for a query parameter, `pairs[3].movie.title` for a part of a body."""
    reason: str


class MalformedJsonError(ServeError):
    """A body is not JSON at all."""

    def __init__(self, reason: str) -> None:
        """`reason` says what is wrong and where."""
        super().__init__(f"the body is not JSON: {reason}")


class InvalidRequestError(ServeError):
    """The request breaks the schema, in one or more places."""

    def __init__(self, complaints: Sequence[Complaint]) -> None:
        """Keep the complaints; the message is the first of them."""
        self.complaints = tuple(complaints)
        super().__init__(f"{complaints[0].where}: {complaints[0].reason}")


class UnknownIdError(ServeError):
    """An id is not in the catalogue."""

    def __init__(self, side: int, id_: Id) -> None:
        """Side 0 is the user, 1 the item."""
        self.side = side
        self.id = id_
        super().__init__(f"id {id_!r} is not in the catalogue")


class UnavailableError(ServeError):
    """The row of an id is kept elsewhere and cannot be had at the moment."""

    def __init__(self, side: int, id_: Id) -> None:
        """Side 0 is the user, 1 the item."""
        self.side = side
        super().__init__(f"the row of id {id_!r} cannot be fetched at the moment; try again")


class BackendError(ServeError):
    """What runs the model does not answer, or not usably; the message says what it is."""


class FeedbackError(ServeError):
    """A rating cannot be stored at the moment; the message says why."""


class EntitiesError(ServeError):
    """A new entity, or that one is erased, cannot be stored at the moment; the message says why."""


class UnsupportedError(ServeError):
    """The request is right, but not for the model or the tables in service; the message says what to ask instead."""


class OverloadedError(ServeError):
    """The queue is full; `retry_after` [s] is when it should have emptied."""

    def __init__(self, retry_after: int) -> None:
        """The message has no other number: at this moment an answer must cost next to nothing, so it is made once."""
        self.retry_after = retry_after
        super().__init__(f"as many predictions wait as may wait; try again in {retry_after} s")


class DeadlineError(ServeError):
    """The request's time is over."""

    def __init__(self) -> None:
        """Say what to do."""
        super().__init__("the answer was not ready in time; allow more with X-Request-Timeout-Ms, or send less")


class NotReadyError(ServeError):
    """No model is in service; the message says why."""


class UnknownVersionError(ServeError):
    """A version is not loaded."""

    def __init__(self, number: int, loaded: Sequence[int]) -> None:
        """Say what is."""
        there = ", ".join(map(str, sorted(loaded))) or "none"
        super().__init__(f"version {number} is not loaded; loaded: {there}")


class UnusableVersionError(ServeError):
    """A version cannot be loaded, or not as wished."""

    def __init__(self, number: int, reason: str) -> None:
        """`reason` says why."""
        super().__init__(f"version {number} is not served: {reason}")


class LastVersionError(ServeError):
    """Without this version nothing would be in service."""

    def __init__(self, number: int) -> None:
        """Say what to do."""
        super().__init__(f"version {number} is the only one that can be served; load another first")


class ModelOutputError(ServeError):
    """The model's output for this pair is not a finite number."""

    def __init__(self) -> None:
        """Nothing more is known."""
        super().__init__("the model gave a rating that is not a finite number")

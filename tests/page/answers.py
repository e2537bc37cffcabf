"""The server's part, played by a test, and what the page draws of it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from tests.programs import package

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page, Request, Route

HOSTILE = "<img src=x onerror='window.hacked = true'><script>window.hacked = true</script>"


def info(**model: Any) -> dict[str, Any]:
    """The answer of /info for another model."""
    facts = {
        "version": 7,
        "views": "pair",
        "heads": 3,
        "entities": [{"name": "customer", "id_type": "string"}, {"name": "product_line"}],
        "rating_min": 0.5,
        "rating_max": 3.5,
        "score": "spread",
        "metrics": {},
        "run": {},
        "licences": {},
        "golden_examples": 1,
        "golden_difference": 0,
    }
    return {"name": "shop", "status": "ready", "reason": None, "model": {**facts, **model}}


def best(movie: Any, rating: float, ood_score: float, **rest: Any) -> dict[str, Any]:
    """One item of a /recommend answer."""
    return {
        "user": 138,
        "movie": movie,
        "rating": rating,
        "heads": [rating] * 3,
        "disagreement": 0.1,
        "ood_score": ood_score,
        "cold_start": [],
        "model": "levi",
        "version": 1,
        "attributes": {"title": f"Film {movie}", "genres": ["War", "Drama"], "year": 1977},
        **rest,
    }


def recommendation(*items: dict[str, Any], user: Any = 138) -> dict[str, Any]:
    """The answer of /recommend."""
    return {"user": user, "model": "levi", "version": 1, "items": [*items]}


def alarm(number: int, acknowledged: str | None = None, **rest: Any) -> dict[str, Any]:
    """One alarm, raised at 14:00 plus its number of minutes."""
    raised = f"2026-05-03T14:{number:02}:00Z"
    facts = {"id": f"a/{number}", "raised": raised, "score": "contrast", "kind": "mean", "evidence": 21.75}
    return {**facts, "acknowledged": acknowledged, **rest}


def monitor(status: str = "ok", **changes: Any) -> dict[str, Any]:
    """The answer of /monitor."""
    return {
        "status": status,
        "since": None,
        "predictions": 48213,
        "passed_over": 0,
        "score": "contrast",
        "budget": {"days": 30, "rate": 1000},
        "evidence": {"value": 5.0, "threshold": 20.0},
        "streams": [
            {"score": "level", "kind": "lower", "evidence": None},
            {"score": "depth_gap", "kind": "upper", "evidence": -0.5},
            {"score": "contrast", "kind": "mean", "evidence": 6.0},
        ],
        "bins": [100] * 20,
        "unknown": {"user": 0.0012, "movie": 0.031},
        "usual": [
            {"rating_from": 1.0, "rating_to": 2.5, "low": None, "high": None},
            {"rating_from": 2.5, "rating_to": 3.36, "low": 0.048, "high": 0.14},
            {"rating_from": 3.36, "rating_to": 5.0, "low": 0.1, "high": 0.302},
        ],
        "estimated_rmse": 0.968,
        "id_rmse": 0.962,
        "heads": [{"mean": 3.0 + j / 2, "deviation": 0.5, "id_mean": 3.0, "id_deviation": 0.4} for j in range(3)],
        "alarms": [],
        **changes,
    }


def play(page: Page, path: str, answer: Any, status: int = 200) -> list[Request]:
    """Answer a path in the server's stead; the requests that came."""
    came: list[Request] = []

    def reply(route: Route) -> None:
        came.append(route.request)
        route.fulfill(json=answer, status=status)

    page.route(f"**/{path}", reply)
    return came


class Held:
    """Requests of a path that wait until the test answers them."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._routes: list[Route] = []

    def hold(self, page: Page) -> None:
        """Begin with this page."""
        self._page = page
        page.route(f"**/{self._path}", self._keep)

    def first(self) -> Route:
        """The first one, once it is there."""
        end = time.monotonic() + 10
        while not self._routes:
            assert time.monotonic() < end, f"nobody asked for {self._path}"
            self._page.wait_for_timeout(10)
        return self._routes[0]

    @property
    def count(self) -> int:
        """How many came."""
        return len(self._routes)

    def _keep(self, route: Route) -> None:
        self._routes.append(route)


def problem(status: int, detail: str) -> dict[str, Any]:
    """A problem document."""
    return {"type": "urn:levi:problem:x", "title": "X", "status": status, "detail": detail, "errors": []}


def places(marks: Locator, name: str, count: int) -> list[float]:
    """A coordinate of drawn marks, in percent of the drawing, once all of them are there."""
    package("playwright.sync_api").expect(marks).to_have_count(count)
    return [float((mark.get_attribute(name) or "").removesuffix("%")) for mark in marks.all()]

"""The trial of a canary: which users it answers, and how it differs from the stable version on the same predictions.

Users are told apart by a hash of their id, so that each gets the answers of one version, on every server, as long as
the share stays; when it grows, nobody changes back. What is computed for comparison only is never waited for: it is
skipped when too much of it is under way.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Sequence
from hashlib import blake2b
from time import perf_counter

import numpy as np
import orjson

from levi_serve.bundle.feedback import Event
from levi_serve.errors import OverloadedError, ServeError
from levi_serve.live import Live, Service
from levi_serve.metrics_fleet import FleetMetrics
from levi_serve.predictor import GivenPair, Probe
from levi_serve.store import Given

_MOST = 32
"""Comparisons under way."""
_TIMEOUT_S = 1.0


def fraction(user: Given) -> float:
    """Where a user stands among all, from 0 to 1; the same for ever."""
    said = json.dumps(user, sort_keys=True).encode()
    return int.from_bytes(blake2b(said, digest_size=6).digest()) / 2**48


class Trial:
    """The share of the canary, and the comparison."""

    def __init__(self, live: Live, canary_share: float, shadow_share: float, metrics: FleetMetrics) -> None:
        """The canary answers `canary_share` of the users; the predictions of `shadow_share` of them are made by both
        versions. The first users are the canary's, the last are compared.
        """
        self._live = live
        self._canary_share = canary_share
        self._shadow_from = 1 - shadow_share
        self._metrics = metrics
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def active(self) -> bool:
        """Whether there is a canary."""
        return "canary" in self._live.labels

    @property
    def _canary(self) -> Service | None:
        """The canary, if there is one that works as the stable version does."""
        live = self._live
        number = live.labels.get("canary")
        if number is None or live.service is None:
            return None
        canary = live.loaded[number]
        return canary if type(canary.engine) is type(live.service.engine) else None

    def choose(self, user: Given) -> tuple[Service, Service | None]:
        """What answers this user, and what is to be compared with it, if anything.

        Raises:
            NotReadyError: nothing answers.

        """
        stable, canary = self._live.current(), self._canary
        if canary is None:
            return stable, None
        place = fraction(user)
        answering, other = (canary, stable) if place < self._canary_share else (stable, canary)
        return answering, other if place >= self._shadow_from else None

    def compare(self, other: Service, pairs: Sequence[GivenPair], answers: Sequence[bytes]) -> None:
        """Have the `other` version predict these pairs as well, whose answers are known, and note the difference."""
        self._begin(self._compare(other, pairs, answers))

    def learn(self, event: Event) -> None:
        """Note how far the stable version is from a true rating, for its monitor; and the canary, if there is one."""
        stable, canary = self._live.current(), self._canary
        if canary is not None:
            self._begin(self._learn((stable, canary), event))
        elif stable.monitor is not None:
            self._begin(self._learn((stable,), event))

    async def close(self) -> None:
        """End what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _begin(self, work: Coroutine[None, None, None]) -> None:
        if len(self._tasks) >= _MOST:
            work.close()
            self._metrics.compared("skipped")
            return
        task = asyncio.get_running_loop().create_task(self._done(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _done(self, work: Coroutine[None, None, None]) -> None:
        try:
            await work
        except OverloadedError:
            self._metrics.compared("skipped")
        except ServeError:  # an id that this version does not know, a backend that is away
            self._metrics.compared("failed")
        else:
            self._metrics.compared("compared")

    async def _compare(self, other: Service, pairs: Sequence[GivenPair], answers: Sequence[bytes]) -> None:
        for mine, theirs in zip(await _ratings(other, pairs), map(_rating, answers), strict=True):
            self._metrics.difference(abs(mine - theirs))

    async def _learn(self, services: Sequence[Service], event: Event) -> None:
        pair = GivenPair(event.user, event.item)
        squared = [((await _ratings(service, [pair]))[0] - event.rating) ** 2 for service in services]
        if services[0].monitor is not None:
            services[0].monitor.observe_errors(np.array(squared[:1]))
        if len(squared) > 1:
            self._metrics.errors(*squared)  # of both or of neither: they are to be compared


async def _ratings(service: Service, pairs: Sequence[GivenPair]) -> list[float]:
    with service:
        probes = [Probe(*pair) for pair in pairs]  # type: ignore[arg-type] # as a request has them
        return list(map(_rating, await service.engine.predict(probes, perf_counter() + _TIMEOUT_S)))


def _rating(answer: bytes) -> float:
    return float(orjson.loads(answer)["rating"])

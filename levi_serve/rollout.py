"""The rollout: what lies in the model repository becomes what is served, while requests go on.

Every look compares the versions that are wanted with those that are loaded. A new one is loaded and warmed beside the
old one, replays its golden examples, and is pointed at; the old one is closed when its last request has been answered.
One that cannot be used is reported and tried again when its files have changed. What is served never becomes less: the
last good version stays, whatever happens to its folder.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from levi_serve.bundle.commands import RunError
from levi_serve.bundle.manifest import BundleError
from levi_serve.errors import BackendError, LastVersionError, UnknownVersionError, UnusableVersionError
from levi_serve.live import Label, Live, Service
from levi_serve.metrics import Metrics
from levi_serve.repository import Look, Policy, look, numbers
from levi_serve.wishes import WishList

log = logging.getLogger("levi")

_MISSING = "it is not in the model repository"
_RETRY_S = 30.0
"""A version whose files are not to blame is tried again so often."""
_BACKEND_RETRY_S = 1.0
"""One that the backend does not have yet, or that it cannot run at the moment."""


@dataclass(frozen=True)
class _Failure:
    look: Look
    """The files that could not be used."""
    again: float
    """When to try even the same files again [`monotonic` seconds]."""


class Rollout:
    """Keeps a `Live` at what repository, policy and wishes ask for."""

    def __init__(
        self,
        live: Live,
        metrics: Metrics,
        repository: Path,
        name: str,
        policy: Policy,
        wishes: WishList,
        bring_up: Callable[[int, Service | None], Awaitable[Service]],
    ) -> None:
        """`bring_up` opens and proves one version, beside the one that is being served."""
        self._live = live
        self._metrics = metrics
        self._repository = repository
        self._name = name
        self._policy = policy
        self._wishes = wishes
        self._bring_up = bring_up
        self._seen: dict[int, Look] = {}
        self._failures: dict[int, _Failure] = {}
        self._one_at_a_time = asyncio.Lock()

    async def run(self, interval_s: float) -> None:
        """Look every `interval_s`, for ever."""
        while self._live.fatal is None:
            await asyncio.sleep(interval_s)
            try:
                await self.step()
            except Exception:
                log.exception("the model repository could not be looked at")

    async def step(self, at_once: bool = False) -> None:
        """One look. A version whose files have changed since the last one may still be being written: it is left for
        the next look, unless all is to be tried `at_once`.
        """
        async with self._one_at_a_time:
            if at_once:
                self._failures.clear()
            try:
                present = await asyncio.to_thread(numbers, self._repository, self._name)
            except BundleError as error:  # a network disk that is away takes nothing out of service
                if self._live.service is None:
                    self._give_reason(str(error))
                return
            await self._settle(present, at_once)

    async def load(self, number: int | None, label: Label | None = None) -> None:
        """Load a version beside those that the policy asks for, until it is unloaded, and point the label at it; None:
        try again what failed, and leave the label to the policy.

        Raises:
            UnusableVersionError: it cannot be used, or not under this label.

        """
        if number is None:
            if label is not None:
                self._wishes.label(label, None)
            await self.step(at_once=True)
            return
        self._wishes.load(number)
        await self.step(at_once=True)
        if number not in self._live.loaded:
            self._wishes.forget(number)
            raise UnusableVersionError(number, self._live.unusable.get(number, _MISSING))
        if label is None:
            return
        self._wishes.label(label, number)
        await self.step()
        if self._live.labels.get(label) != number:
            self._wishes.label(label, None)
            raise UnusableVersionError(number, f"{label} must be another version, with the schema of the stable one")

    async def unload(self, number: int) -> None:
        """Take a version out of service until it is loaded again, whatever the policy says.

        Raises:
            UnknownVersionError: it is not loaded.
            LastVersionError: nothing else could be served.

        """
        if number not in self._live.loaded:
            raise UnknownVersionError(number, list(self._live.loaded))
        self._wishes.unload(number)
        await self.step(at_once=True)
        if number in self._live.loaded:
            self._wishes.forget(number)
            raise LastVersionError(number)

    async def _settle(self, present: list[int], at_once: bool) -> None:
        """Load what is wanted, point the labels, let go of the rest."""
        wishes, live = self._wishes.read(), self._live
        named = {*self._policy.numbers, *wishes.loaded}
        newest, chosen, default = self._policy.newest, list[int](), list[int]()
        for number in present:
            if number in wishes.unloaded or not (newest > 0 or number in named):
                continue
            if not await self._has(number, at_once):
                if live.fatal:
                    return
                continue
            chosen.append(number)
            if newest > 0 or number in self._policy.numbers:
                default.append(number)
            newest -= 1
            if live.service is None:
                live.point(number)
        self._forget(set(present), named - set(present))
        if not chosen:
            if live.service is None:
                nothing = f"{self._repository / self._name}: holds no version that is to be served"
                self._give_reason(live.unusable[max(live.unusable)] if live.unusable else nothing)
            return
        before = live.service
        stable = wishes.stable if wishes.stable in chosen else (default or chosen)[0]
        live.point(stable, self._canary(stable, wishes.canary))
        if before is not live.service and before is not None:
            log.info("stable: %s/%d instead of %d", self._name, stable, before.number)
        for number in [number for number in live.loaded if number not in chosen]:
            live.remove(number)

    def _canary(self, stable: int, canary: int | None) -> int | None:
        """A canary answers the stable version's requests, so it must read them alike."""
        if canary is None or canary == stable or canary not in self._live.loaded:
            return None
        schemas = [self._live.loaded[number].version.manifest.schema_ for number in (stable, canary)]
        return canary if schemas[0] == schemas[1] else None

    async def _has(self, number: int, at_once: bool) -> bool:
        """Whether a version is loaded, after an attempt to if there is reason to believe that it can be."""
        if number in self._live.loaded:
            return True
        seen = await asyncio.to_thread(look, self._repository, self._name, number)
        before = self._seen.get(number)
        self._seen[number] = seen
        failure = self._failures.get(number)
        if failure and failure.look == seen and time.monotonic() < failure.again:
            return False
        if before != seen and not at_once:
            return False
        reason = await self._load(number, seen)
        if reason is None:
            self._failures.pop(number, None)
            self._live.unusable.pop(number, None)
            return True
        self._metrics.fleet.loaded(usable=False)
        known = self._live.unusable.get(number) == reason
        self._live.unusable[number] = reason
        if self._live.fatal is None and not known:
            log.error("%s/%d is not served: %s", self._name, number, reason)
        return False

    async def _load(self, number: int, seen: Look) -> str | None:
        """Load a version; why it cannot be used, if so."""
        live, start = self._live, time.perf_counter()
        again = math.inf
        try:
            service = await self._bring_up(number, live.service)
            now = await asyncio.to_thread(look, self._repository, self._name, number)
            if now != seen:
                await service.close()
                raise BundleError(f"{self._repository / self._name / str(number)}: changed while it was being loaded")
        except BundleError as error:
            reason = str(error)
        except RunError as error:  # a device that is not there, a Redis that refuses: no version would do better
            reason, again = str(error), time.monotonic() + _RETRY_S
            if live.service is None:
                live.give_up(error)
        except BackendError as error:
            reason, again = str(error), time.monotonic() + _BACKEND_RETRY_S
        except Exception as error:
            reason, again = f"loading the model failed: {error}", time.monotonic() + _RETRY_S
            log.exception("%s/%d cannot be loaded", self._name, number)
        else:
            live.add(service)
            self._metrics.fleet.loaded(usable=True)
            log.info("ready: %s/%d, loaded in %.2f s", self._name, number, time.perf_counter() - start)
            return None
        self._failures[number] = _Failure(seen, again)
        return reason

    def _give_reason(self, reason: str) -> None:
        """Nothing is in service, and why."""
        if self._live.status != "draining" and self._live.reason != reason:
            log.error("not ready: %s", reason)
            self._live.fail(reason)

    def _forget(self, present: set[int], missing: set[int]) -> None:
        """Of versions that are no longer there nothing is remembered, but that those named are missing."""
        for known in (self._seen, self._failures, self._live.unusable):
            for number in known.keys() - present:
                del known[number]
        for number in missing - self._live.loaded.keys():
            self._live.unusable[number] = _MISSING
        self._metrics.fleet.unusable(len(self._live.unusable))

"""Entities that came after the export, as one process knows them: its copy of the list that all servers share."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

from levi_serve.bundle.entities import Change, EntityList, PlaceError
from levi_serve.bundle.rows import Id
from levi_serve.errors import EntitiesError
from levi_serve.metrics_fleet import FleetMetrics

log = logging.getLogger("levi")

LOOK_S = 0.25
"""Between two looks for what others have changed: a change is to be seen everywhere within a second."""


class Entities:
    """The copy. It belongs to one event loop."""

    def __init__(self, kept: EntityList, most: int, metrics: FleetMetrics) -> None:
        """The list is to hold no more than `most`."""
        self._list = kept
        self._most = most
        self._metrics = metrics
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="entities")
        self._changes: dict[tuple[str, Id], tuple[int, Change]] = {}
        """By kind and id, in the order in which this process heard of them, numbered in that order."""
        self._last = 0
        """Number of the list's last change that is known here."""
        self.heard = 0
        """How many changes this process has heard of."""
        self._one_at_a_time = asyncio.Lock()
        self._trouble: str | None = None
        metrics.entities(*self._counts())  # a list that can never be read gets old from now on

    def after(self, heard: int) -> list[tuple[int, Change]]:
        """The changes that were heard of after so many, each with its number, in order."""
        found = []
        for numbered in reversed(self._changes.values()):
            if numbered[0] <= heard:
                break
            found.append(numbered)
        return found[::-1]

    async def put(self, change: Change) -> None:
        """Keep a change; when this returns it is durable, and known here.

        Raises:
            EntitiesError: it is not known to be durable.

        """
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._list.put, change, self._most)
        except PlaceError as error:
            raise EntitiesError(str(error)) from None
        await self.look()

    async def look(self) -> None:
        """Hear of what was changed.

        Raises:
            EntitiesError: the list cannot be read.

        """
        async with self._one_at_a_time:
            loop = asyncio.get_running_loop()
            try:
                last, changes = await loop.run_in_executor(self._thread, self._list.since, self._last)
            except PlaceError as error:
                raise EntitiesError(str(error)) from None
            if last < self._last:
                log.error("the list of entities was begun anew; what was put before may be gone")
            self._last = last
            for change in changes:
                self.heard += 1
                key = (change.entity, change.id)
                self._changes.pop(key, None)
                self._changes[key] = (self.heard, change)
            self._metrics.entities(*self._counts())

    async def watch(self, follow: Callable[[], Awaitable[None]]) -> None:
        """Look again and again, for ever, and `follow` what was changed."""
        while True:
            try:
                await self.look()
                await follow()
                trouble = None
            except EntitiesError as error:
                trouble = str(error)
            except Exception:
                log.exception("changed entities could not be taken over")
                trouble = None
            if trouble and trouble != self._trouble:
                log.error("%s", trouble)
            self._trouble = trouble
            await asyncio.sleep(LOOK_S)

    def close(self) -> None:
        """Let go of the list."""
        self._thread.shutdown()
        self._list.close()

    def _counts(self) -> tuple[int, int]:
        erased = sum(change.attributes is None for _, change in self._changes.values())
        return len(self._changes) - erased, erased

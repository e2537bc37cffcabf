"""What runs a graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from levi_serve.bundle import AnyArray


class Runner(Protocol):
    """One graph of one version, on this machine or elsewhere."""

    waits: bool
    """Whether a run waits for others, so that no event loop may do it."""

    def run(self, feeds: Mapping[str, AnyArray]) -> list[AnyArray]:
        """The outputs for one batch, in the order that the graph was opened with.

        Raises:
            BackendError: there is no answer at the moment.

        """

    def close(self) -> None:
        """Let go of it."""

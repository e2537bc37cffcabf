"""Memory that runs out, told as what to do about it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from training.errors import RunError


@contextmanager
def enough_memory(where: str, remedy: str) -> Iterator[None]:
    """Say what to reduce when a device or the machine has no memory left.

    Raises:
        RunError: in place of torch's report.
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not re.search("(out of|not enough) memory", str(error)):
            raise
        raise RunError(f"{where}: out of memory; {remedy}") from None

"""Under which conditions a figure was measured: what every committed result says of itself."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import torch

_LIBRARIES = ("torch", "transformers", "accelerate", "numpy", "levi-serve")


def conditions(note: str = "") -> dict[str, Any]:
    """Date, machine and versions; `note` is what else is to be known of how the machine was used."""
    device = "GPU" if torch.cuda.is_available() else "CPU only"
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {device}"
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{machine}, {note}" if note else machine,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Python and the libraries that numbers depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}}

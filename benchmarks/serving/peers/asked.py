"""What the harness asks a peer for, through its environment."""

from __future__ import annotations

import os
from pathlib import Path

BUNDLE = Path(os.environ["BENCH_BUNDLE"])
"""Folder of the model version."""
PORT = int(os.environ["BENCH_PORT"])
SCORER = os.environ.get("BENCH_SCORER", "onnx")
MAX_BATCH = int(os.environ.get("BENCH_MAX_BATCH", "1"))
MAX_WAIT_MS = float(os.environ.get("BENCH_MAX_WAIT_MS", "0"))
VARIANT = os.environ.get("BENCH_VARIANT", "")
"""A choice that only one framework has."""

"""ONNX Runtime, which both sides import from here only: it must be told to be silent before it is loaded."""

from __future__ import annotations

import os

# From 1.29 on the official builds report models and runs to Microsoft unless this is set.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort

__all__ = ["ort"]

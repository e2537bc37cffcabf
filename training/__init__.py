"""Fitting LEVI (Roh et al., ICML 2024), evaluating it and exporting it to a model repository."""

import os

# From 1.29 on the official builds of ONNX Runtime report models and runs unless this is set before they are loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

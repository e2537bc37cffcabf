"""The monitor's ID reference, measured on the split's calibration part, which nothing else reads."""

from __future__ import annotations

import numpy as np
import torch

from levi_serve.bundle import FloatArray
from levi_serve.bundle.scores import SCORE, spread, table
from training.fit import predict
from training.run import Run


def calibrate(run: Run) -> dict[str, FloatArray]:
    """Reference tables by score name."""
    rows = torch.from_numpy(run.split.calibration).to(run.model.center.device)
    heads = predict(run.model, run.prepared.features, rows, run.ids).cpu().numpy()
    return {SCORE: table(np.asarray(spread(heads)))}

"""Export: the exported chain against torch, the version's files, atomicity."""

from pathlib import Path

import numpy as np

from levi_serve.bundle.manifest import read_manifest


def test_manifest_verifies(entity_repository: Path, pair_repository: Path) -> None:
    """An exported version passes the server's own verification."""
    for repository in (entity_repository, pair_repository):
        manifest = read_manifest(repository, "levi", 1)
        assert manifest.metrics["parity"] <= 1e-4
        assert np.isfinite(manifest.metrics["fp16_rmse_difference"])

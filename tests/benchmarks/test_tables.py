"""benchmarks.serving.tables: a grown repository is a real one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.serving import tables
from benchmarks.serving.tables import write_users
from levi_serve.bundle.commands import UsageError
from levi_serve.bundle.manifest import read_manifest
from levi_serve.bundle.rows import Table
from tests.serving.toy import Toy

USERS = {7: {"age": 30}, 3: {"occupation": "doctor"}, 12: {"age": 50}}


def test_grown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real users stay as they are; others follow, each like a real one but for a little noise; checksums are right."""
    monkeypatch.setattr(tables, "CHUNK", 2)
    Toy("entity", users=USERS).write(tmp_path / "real")
    folder = write_users(tmp_path / "real", tmp_path / "grown", "levi", 50)
    read_manifest(tmp_path / "grown", "levi", 1)
    real, grown = Table(tmp_path / "real/levi/1", "users"), Table(folder, "users")
    assert grown.ids.tolist() == [3, 7, 12, *range(13, 60)]
    assert grown.rows.shape == (51, 4)
    assert grown.rows[:3].tobytes() == real.rows[:3].tobytes()
    assert grown.rows[-1].tobytes() == real.rows[-1].tobytes()
    assert len({row.tobytes() for row in grown.rows}) > 40
    spread = real.rows.astype(float).std(axis=0)
    for number in range(50):
        like = [real.attributes(i) for i in range(3)].index(grown.attributes(number))
        assert bool(grown.trained[number]) == bool(real.trained[like])
        assert (np.abs(grown.rows[number].astype(float) - real.rows[like]) <= 0.05 * spread + 1e-3).all()
    assert (tmp_path / "real/levi/1/model.onnx").read_bytes() == (folder / "model.onnx").read_bytes()


def test_too_few(tmp_path: Path) -> None:
    """A repository is not made smaller."""
    Toy("entity", users=USERS).write(tmp_path / "real")
    with pytest.raises(UsageError, match="--users 2: the model has 3 already"):
        write_users(tmp_path / "real", tmp_path / "grown", "levi", 2)

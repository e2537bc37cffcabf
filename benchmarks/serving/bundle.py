"""The bundle under test: pairs to ask for, what ONNX Runtime itself says of them, and larger copies of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.serving.peers.scorer import OnnxScorer, Pair
from levi_serve.bundle.commands import RunError
from levi_serve.bundle.manifest import sha256

_CHUNK = 100_000
_NOISE = 0.01


class Bundle:
    """The newest version of the model `levi` in a repository."""

    def __init__(self, repository: Path) -> None:
        """Open it, and see that its golden examples come out.

        Raises:
            RunError: there is no version, or its graph and tables do not give the recorded ratings.

        """
        folder = repository / "levi"
        versions = [int(path.name) for path in folder.glob("*") if path.name.isdecimal()]
        if not versions:
            raise RunError(f"{folder}: holds no version; export one with levi-train export")
        self.repository = repository
        self.folder = folder / str(max(versions))
        self.scorer = OnnxScorer(self.folder)
        self.manifest: dict[str, Any] = self.scorer.bundle.manifest
        self.names: list[str] = self.scorer.bundle.names
        self.views: str = self.manifest["views"]
        self._check_golden()

    @property
    def facts(self) -> dict[str, Any]:
        """What it is, for the record."""
        return {key: self.manifest[key] for key in ("views", "layout", "layers", "run")}

    def pairs(self, count: int, seed: int) -> list[Pair]:
        """Random pairs of the catalogue."""
        rng = np.random.default_rng(seed)
        users, items = (table.ids[rng.integers(len(table.ids), size=count)] for table in self.scorer.bundle.tables)
        return list(zip(users.tolist(), items.tolist(), strict=True))

    def expected(self, pairs: Sequence[Pair]) -> npt.NDArray[np.float32]:
        """Rating and head ratings [B, 1 + n], each pair alone in its run."""
        found = []
        for pair in pairs:
            heads, ratings = self.scorer.raw(self.scorer.bundle.numbers([pair]))
            found.append(np.concatenate([ratings, heads[0]]))
        return np.stack(found)

    def new_items(self, count: int, seed: int) -> list[dict[str, Any]]:
        """Attributes of items that nobody has seen; no two titles are alike, and their lengths are the catalogue's."""
        rng = np.random.default_rng(seed)
        known = self.scorer.bundle.tables[1].attributes()
        text = next(a["name"] for a in self.manifest["schema"]["item"]["attributes"] if a["kind"] == "text")
        words = sorted({word for item in known for word in str(item.get(text, "")).split() if word.isalpha()})
        lengths = [len(str(item.get(text, "")).split()) for item in known]
        titles = (
            " ".join(rng.choice(words, size=max(1, lengths[rng.integers(len(lengths))])).tolist()) for _ in range(count)
        )
        return [{text: f"{title} {seed}-{number}"} for number, title in enumerate(titles)]

    def _check_golden(self) -> None:
        lines = (self.folder / "golden.jsonl").read_bytes().splitlines()
        known = [g for g in map(json.loads, lines) if g["user"]["id"] is not None and g["item"]["id"] is not None]
        pairs = [(g["user"]["id"], g["item"]["id"]) for g in known]
        off = np.abs(self.expected(pairs)[:, 0] - [g["rating"] for g in known]).max()
        if not off <= self.manifest["golden_tolerance"]:
            raise RunError(f"{self.folder}: ONNX Runtime is off by {off:.2g} from the golden examples")


def enlarged(bundle: Bundle, out: Path, users: int = 0, items: int = 0) -> Path:
    """A copy of the bundle's repository with tables of at least so many entities; made once.

    The new ones are copies of others' rows with a little noise: as wide, as many, as random, and without meaning.
    """
    repository = out / f"{sha256(bundle.folder / 'manifest.json')[:12]}-{users}-{items}"
    if (repository / "done").exists():
        return repository
    shutil.rmtree(repository, ignore_errors=True)
    shutil.copytree(bundle.repository, repository)
    folder = repository / "levi" / bundle.folder.name
    for name, count in zip(bundle.names, (users, items), strict=True):
        _grow(folder, f"{name}s", count)
    _grow_rated(folder, users)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest["files"] = {file: sha256(repository / file) for file in manifest["files"]}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (repository / "done").touch()
    return repository


def _grow(folder: Path, name: str, count: int) -> None:
    ids = np.load(folder / f"{name}.ids.npy")
    known, rng = len(ids), np.random.default_rng(0)
    if count <= known:
        return
    if ids.dtype.kind != "i":
        raise RunError(f"{folder / name}.ids.npy: only tables with integer ids can be enlarged")
    source = rng.integers(known, size=count - known)
    np.save(folder / f"{name}.ids.npy", np.concatenate([ids, ids[-1] + 1 + np.arange(count - known)]))
    trained = np.load(folder / f"{name}.trained.npy")
    np.save(folder / f"{name}.trained.npy", np.concatenate([trained, trained[source]]))
    lines = (folder / f"{name}.attributes.jsonl").read_bytes().splitlines(keepends=True)
    with (folder / f"{name}.attributes.jsonl").open("ab") as file:
        file.writelines(lines[i] for i in source)
    lengths = np.array([len(line) for line in lines])
    np.save(folder / f"{name}.offsets.npy", np.cumsum([0, *lengths, *lengths[source]], dtype=np.int64))
    rows = np.load(folder / f"{name}.rows.npy")
    (folder / f"{name}.rows.npy").unlink()
    grown = np.lib.format.open_memmap(
        folder / f"{name}.rows.npy", mode="w+", dtype=rows.dtype, shape=(count + 1, rows.shape[1])
    )
    grown[:known], grown[-1] = rows[:-1], rows[-1]
    for start in range(0, count - known, _CHUNK):
        part = rows[source[start : start + _CHUNK]].astype(np.float32)
        part += rng.standard_normal(part.shape, dtype=np.float32) * _NOISE
        grown[known + start : known + start + len(part)] = part.astype(rows.dtype)
    grown.flush()


def _grow_rated(folder: Path, users: int) -> None:
    """Nobody new has rated anything."""
    path = folder / "rated.offsets.npy"
    if path.exists() and users + 1 > len(offsets := np.load(path)):
        np.save(path, np.concatenate([offsets, np.full(users + 1 - len(offsets), offsets[-1])]))

"""A model repository with as many users as one likes: those of a real one, and copies of them with a little noise.

python -m benchmarks.serving.tables --model-repo model_repo --out /tmp/million --users 1000000
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field, PositiveInt

from levi_serve.bundle.commands import Command, UsageError, run
from levi_serve.bundle.manifest import NAME, read_manifest, sha256
from levi_serve.bundle.rows import STORED, Table
from levi_serve.versions import newest

CHUNK = 10_000
NOISE = 0.01
"""Standard deviation of the noise, as a share of each column's own."""


def write_users(repository: Path, out: Path, name: str, users: int) -> Path:
    """Copy the newest version of `repository` with its user table grown to `users` rows; the copy's version folder.

    Real users keep their ids, rows and attributes, so the golden examples hold; new ones have the ids that follow.
    """
    number = newest(repository, name)
    manifest = read_manifest(repository, name, number)
    entity = f"{manifest.schema_.user.name}s"
    if manifest.schema_.user.id_type != "integer":
        raise UsageError(f"--model-repo {repository}: its users' ids are no integers")
    table = Table(repository / name / str(number), entity)
    if users < len(table):
        raise UsageError(f"--users {users}: the model has {len(table)} already")
    for file in [*manifest.files, f"{name}/{number}/{NAME}"]:
        (out / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(repository / file, out / file)
    folder = out / name / str(number)
    _grow(folder, entity, table, users)
    grown = manifest.model_copy(update={"files": {file: sha256(out / file) for file in manifest.files}})
    (folder / NAME).write_text(grown.model_dump_json(by_alias=True), encoding="utf-8")
    return folder


def _grow(folder: Path, entity: str, table: Table, users: int) -> None:
    """Write the table's files, a chunk at a time."""
    real, width = len(table), table.rows.shape[1]
    of = np.append(np.arange(real), np.random.default_rng(0).integers(0, real, users - real))
    last = int(table.ids[-1])
    np.save(folder / f"{entity}.ids.npy", np.append(table.ids, np.arange(last + 1, last + 1 + users - real)))
    np.save(folder / f"{entity}.trained.npy", table.trained[of])
    lines = [table.attributes_json(row) for row in range(real)]
    np.save(folder / f"{entity}.offsets.npy", np.append(0, np.cumsum(np.array([*map(len, lines)])[of])))
    rows = np.lib.format.open_memmap(folder / f"{entity}.rows.npy", "w+", STORED, (users + 1, width))
    scale = table.rows.astype(np.float32).std(axis=0) * NOISE
    rng = np.random.default_rng(1)
    with (folder / f"{entity}.attributes.jsonl").open("wb") as file:
        for start in range(0, users, CHUNK):
            chunk = of[start : start + CHUNK]
            noise = rng.standard_normal((len(chunk), width), dtype=np.float32) * scale
            noise[: max(0, real - start)] = 0
            rows[start : start + len(chunk)] = table.rows[chunk] + noise
            file.writelines(lines[row] for row in chunk.tolist())
    rows[users] = table.rows[table.unknown]
    rows.flush()
    offsets = folder / "rated.offsets.npy"
    if offsets.exists():  # new users have rated nothing
        rated = np.load(offsets)
        np.save(offsets, np.append(rated, np.full(users - real, rated[-1])))


class Tables(Command):
    """Write such a repository."""

    model_repo: Annotated[Path, Field(description="Model repository with entity views.")] = Path("model_repo")
    model: Annotated[str, Field(description="Name of the model.")] = "levi"
    out: Annotated[Path, Field(description="Folder of the new repository.")]
    users: Annotated[PositiveInt, Field(description="Users in it.")] = 1_000_000

    def __call__(self) -> None:
        """Print where it is."""
        print(write_users(self.model_repo, self.out, self.model, self.users))


if __name__ == "__main__":
    sys.exit(run("tables", "", {"run": Tables}, sys.argv[1:], default="run"))

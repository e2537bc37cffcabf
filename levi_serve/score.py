"""Bulk scoring: a Parquet file of pairs, or all users, becomes a folder of Parquet parts with ratings.

The work is cut into parts that follow from the input alone. A part is computed from beginning to end by one process and
appears whole under its name, so a job that was killed goes on with the parts that are missing and ends with the same
files, wherever they were computed. `job.json` says what the folder was begun with; `_SUCCESS` is written last.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from levi_serve.bulk import Bulk
from levi_serve.bundle import AnyArray
from levi_serve.bundle.commands import RunError, UsageError
from levi_serve.bundle.manifest import NAME, read_manifest, sha256
from levi_serve.bundle.rows import Table
from levi_serve.bundle.schema import Schema

_ROWS = 1 << 17
"""Pairs in one part, at most, unless a row group of the input is larger."""
_USERS = 256
"""Users in one part of the best items."""
_VALUES = ("rating", "disagreement", "ood_score")
_JOB, _SUCCESS = "job.json", "_SUCCESS"


class Part(NamedTuple):
    """A piece of the work."""

    number: int
    source: str
    """Input file; empty for the best items of users."""
    first: int
    """Row group, or row of the users' table."""
    end: int
    rows: int
    """Pairs, or users."""


@dataclass(frozen=True)
class Job:
    """Everything that a process needs to compute a part."""

    repository: Path
    name: str
    version: int
    out: Path
    top_k: int | None
    exclude_rated: bool

    def path(self, part: Part) -> Path:
        """Where the part appears when it is done."""
        return self.out / f"part-{part.number:06}.parquet"

    def compute(self, part: Part) -> int:
        """Compute one part; its rows."""
        bulk = _opened(self)
        table = self._pairs(bulk, part) if self.top_k is None else self._best(bulk, part, self.top_k)
        path = self.path(part)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                pq.write_table(table, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        return len(table)

    def _pairs(self, bulk: Bulk, part: Part) -> pa.Table:
        """The input's rows in their order, every column kept, and what is told of them."""
        with pq.ParquetFile(part.source) as file:
            table = file.read_row_groups(range(part.first, part.end))
        schema = bulk.version.manifest.schema_
        users, items = (_ids(table, entity.name, entity.id_type) for entity in schema.entities)
        rated = bulk.rate(users, items)
        for column, name in enumerate(_VALUES):
            table = table.append_column(name, pa.array(rated.values[:, column], from_pandas=True))
        for entity, cold in zip(schema.entities, rated.cold, strict=True):
            table = table.append_column(f"cold_{entity.name}", pa.array(cold))
        return table

    def _best(self, bulk: Bulk, part: Part, k: int) -> pa.Table:
        best = bulk.best(range(part.first, part.end), k, self.exclude_rated)
        user, item = bulk.version.manifest.schema_.entities
        columns = {
            user.name: _named(bulk.users, best.user),
            "rank": best.rank,
            item.name: _named(bulk.items, best.item),
        }
        return pa.table(columns | {name: best.values[:, k] for k, name in enumerate(_VALUES)})


Runner = Callable[[Job, Sequence[Part]], Iterator[tuple[Part, int]]]
"""Computes parts in any order, and tells each that is done with its rows."""


def score(job: Job, pairs: Path | None, run: Runner, progress: Callable[[str, int, int], None]) -> int:
    """Compute what is missing; the rows of the input.

    Raises:
        UsageError: the input is not one, or `job.out` holds another job.
        RunError: a process died.
        BundleError: the version cannot be used.

    """
    manifest = read_manifest(job.repository, job.name, job.version)
    files = [] if pairs is None else _files(pairs)
    if pairs is None:
        if manifest.views == "pair":
            raise UsageError("--top-k: with pair views a whole catalogue would pass the backbone for every user")
        users = len(Table(job.repository / job.name / str(job.version), f"{manifest.schema_.user.name}s"))
        parts = [
            Part(number, "", first, min(first + _USERS, users), min(_USERS, users - first))
            for number, first in enumerate(range(0, users, _USERS))
        ]
    else:
        parts = list(_cut(files, manifest.schema_))
    _claim(job, files, sha256(job.repository / job.name / str(job.version) / NAME))
    total = sum(part.rows for part in parts)
    missing = [part for part in parts if not job.path(part).exists()]
    done = total - sum(part.rows for part in missing)
    progress("scored", done, total)
    for part, _ in run(job, missing) if missing else ():
        done += part.rows
        progress("scored", done, total)
    (job.out / _SUCCESS).touch()
    return total


def on_this_machine(processes: int) -> Runner:
    """Runs parts in so many processes."""

    def run(job: Job, parts: Sequence[Part]) -> Iterator[tuple[Part, int]]:
        if processes == 1 or len(parts) == 1:
            yield from ((part, job.compute(part)) for part in parts)
            return
        with ProcessPoolExecutor(min(processes, len(parts)), get_context("spawn")) as pool:
            began = {pool.submit(job.compute, part): part for part in parts}
            try:
                for future in as_completed(began):
                    yield began[future], future.result()
            except BrokenProcessPool:
                raise RunError("a scoring process died; start the same command again, it goes on") from None
            finally:
                pool.shutdown(cancel_futures=True)

    return run


@lru_cache(maxsize=1)
def _opened(job: Job) -> Bulk:
    """Of one process."""
    return Bulk(job.repository, job.name, job.version)


def _files(pairs: Path) -> list[Path]:
    files = sorted(pairs.glob("*.parquet")) if pairs.is_dir() else [pairs]
    if not files:
        raise UsageError(f"{pairs}: holds no *.parquet file")
    return files


def _cut(files: Sequence[Path], schema: Schema) -> Iterator[Part]:
    """Row groups of a file are put together up to _ROWS."""
    number = 0
    for path in files:
        try:
            with pq.ParquetFile(path) as file:
                groups = [file.metadata.row_group(k).num_rows for k in range(file.num_row_groups)]
                columns = file.schema_arrow
        except (OSError, pa.ArrowException) as error:
            raise UsageError(f"{path}: is no Parquet file ({' '.join(str(error).split())})") from None
        _check(path, columns, schema)
        first = rows = 0
        for k, size in enumerate(groups):
            rows += size
            if k + 1 == len(groups) or rows + groups[k + 1] > _ROWS:
                yield Part(number, str(path.resolve()), first, k + 1, rows)
                number, first, rows = number + 1, k + 1, 0


def _check(path: Path, columns: pa.Schema, schema: Schema) -> None:
    for entity in schema.entities:
        if columns.get_field_index(entity.name) < 0:
            raise UsageError(f"{path}: has no column '{entity.name}'; it has {', '.join(columns.names)}")
        kind = columns.field(entity.name).type
        wanted = pa.types.is_integer if entity.id_type == "integer" else _is_text
        if not wanted(kind):
            raise UsageError(f"{path}: column '{entity.name}' is {kind}; ids are of type {entity.id_type}")
    told = {*_VALUES, *(f"cold_{entity.name}" for entity in schema.entities)}
    if taken := told & {*columns.names}:
        raise UsageError(f"{path}: has a column '{min(taken)}' already; that name is given to what is written")


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _ids(table: pa.Table, name: str, kind: str) -> AnyArray | list[str]:
    """The ids of a column; one that is missing is an id that nobody has."""
    if kind == "integer":
        return table[name].cast(pa.int64()).fill_null(-1).to_numpy()  # type: ignore[no-any-return]
    return ["\0" if ident is None else ident for ident in table[name].to_pylist()]


def _named(table: Table, rows: AnyArray) -> pa.Array:
    ids = table.ids[rows]
    return pa.array([key.decode() for key in ids.tolist()] if ids.dtype.kind == "S" else ids)


def _claim(job: Job, files: Sequence[Path], manifest: str) -> None:
    """Note what the folder is for, or see that it is for the same."""
    about: dict[str, Any] = {
        "model": job.name,
        "version": job.version,
        "manifest": manifest,
        "top_k": job.top_k,
        "exclude_rated": job.exclude_rated,
        "input": [[str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] for path in files],
    }
    path = job.out / _JOB
    if path.exists():
        begun = json.loads(path.read_bytes())
        if different := [key for key in about if begun.get(key) != about[key]]:
            key = different[0]
            raise UsageError(
                f"{job.out}: was begun with another {key}"
                + (f" ({begun.get(key)}, not {about[key]})" if key != "input" else "")
                + "; choose another folder"
            )
        return
    if job.out.exists() and any(not one.name.startswith(".") for one in job.out.iterdir()):
        raise UsageError(f"{job.out}: is not empty and holds no scoring job; choose another folder")
    job.out.mkdir(parents=True, exist_ok=True)
    temporary = job.out / f".{_JOB}.tmp"
    temporary.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)

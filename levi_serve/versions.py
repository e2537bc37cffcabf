"""Model versions: which one is newest, and one opened whole and checked before anyone may use it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from levi_serve.backends.binding import BoundGraph
from levi_serve.backends.onnx import Device, Graph, Tensor
from levi_serve.backends.runner import Runner
from levi_serve.bundle import FloatArray
from levi_serve.bundle.golden import Golden, GoldenEntity, read_golden
from levi_serve.bundle.manifest import NAME, BundleError, Manifest, read_manifest
from levi_serve.bundle.rated import Rated
from levi_serve.bundle.reference import FILE as REFERENCE
from levi_serve.bundle.reference import Reference, read_reference
from levi_serve.bundle.rows import STORED, HalfArray, Table
from levi_serve.bundle.scores import ONE_SIDED
from levi_serve.bundle.tokens import Tokenizer
from levi_serve.encoder import Encoder, encoder_tensors
from levi_serve.predictor import GivenPair, PairReader, Predictor, entity_tensors, rating_tensors
from levi_serve.repository import numbers
from levi_serve.store import Given

_TABLE = ("ids.npy", "rows.npy", "trained.npy", "attributes.jsonl", "offsets.npy")
_FILES = (
    "model.onnx",
    "tokenizer.json",
    REFERENCE,
    "golden.jsonl",
    "unknown_rows.npy",
    "rated.offsets.npy",
    "rated.items.npy",
)


@dataclass(frozen=True)
class Version:
    """One version, opened and verified file by file; `proof.prove` shows that it predicts what it should."""

    manifest: Manifest
    folder: Path
    tables: tuple[Table | None, Table | None]
    """The user's and the item's; None for one that is kept elsewhere."""
    tokenizer: Tokenizer
    predictor: Predictor
    encoder: Encoder | None
    """Entity views."""
    unknown: HalfArray
    """[2, W], the rows of a user and an item without id and attributes."""
    reference: Reference
    """What the monitor's scores are like in distribution."""
    rated: Rated | None
    """What users rated in training."""
    golden: tuple[Golden, ...]

    @property
    def examples(self) -> list[GivenPair]:
        """The pairs of its golden examples."""
        return [GivenPair(_given(example.user), _given(example.item)) for example in self.golden]

    def close(self) -> None:
        """Let go of the graphs."""
        self.predictor.close()
        if self.encoder is not None:
            self.encoder.close()


def newest(repository: Path, name: str) -> int:
    """The highest version number; folders that are no plain positive integer are not versions.

    Raises:
        BundleError: there is none.

    """
    if found := numbers(repository, name):
        return found[0]
    raise BundleError(f"{repository / name}: holds no version; versions are folders named 1, 2, 3, …")


def load(
    repository: Path,
    name: str,
    version: int,
    device: Device,
    threads: int,
    elsewhere: Sequence[str] = (),
    beside: Version | None = None,
    remote: Callable[..., Runner] | None = None,
    fallback: bool = False,
) -> Version:
    """Verify a version's files and open them, but for the tables of entities whose rows are kept `elsewhere`. What is
    the same in the version `beside` which it is to be served is not opened again. With `remote`, which opens a graph by
    its name, version, tensors and fallback, graphs run elsewhere, and here only as a `fallback`.

    Raises:
        BundleError: the version cannot be used, or has no such entities; the message names the file.
        DeviceError: the device is not there.
        BackendError: `remote` cannot be used.

    """
    manifest = read_manifest(repository, name, version, elsewhere)
    folder = repository / name / str(version)
    _require_listed(manifest, repository, folder, repository / f"{name}_encoder" / str(version))
    names = [entity.name for entity in manifest.schema_.entities]
    if strange := set(elsewhere) - set(names):
        raise BundleError(f"{folder / NAME}: has no entity '{min(strange)}'; there are {' and '.join(names)}")
    users, items = (
        None if entity in elsewhere else _open_table(folder, f"{entity}s", manifest.layout.width) for entity in names
    )
    # Reading a tokenizer holds the interpreter for 20 ms, in which nobody is answered.
    tokenizer = _same_tokenizer(manifest, beside) or _open_tokenizer(folder / "tokenizer.json", manifest)
    kind = Graph if device == "cpu" else BoundGraph
    with ExitStack() as undo:

        def graph(model: str, inputs: list[Tensor], outputs: list[Tensor], threads: int) -> Runner:
            path = repository / model / str(version) / "model.onnx"
            here = kind(path, inputs, outputs, device, threads) if remote is None or fallback else None
            runner = here if remote is None else remote(model, version, inputs, outputs, here)
            assert runner is not None
            undo.callback(runner.close)
            return runner

        encoder = None
        if manifest.views == "entity":
            # Two rows and a few small products: a second thread would cost more than it does.
            model = graph(name, entity_tensors(manifest), rating_tensors(manifest), threads=1)
            unknown = _array(folder / "unknown.npy")
            inputs, rows = encoder_tensors(manifest, unknown.shape[-1])
            encoder = Encoder(manifest, tokenizer, graph(f"{name}_encoder", inputs, rows, threads), unknown)
        else:
            model = graph(name, PairReader.tensors(manifest), rating_tensors(manifest), threads)
        reference = _reference(manifest, folder)
        found = Version(
            manifest,
            folder,
            (users, items),
            tokenizer,
            Predictor(model, reference, manifest.score),
            encoder,
            _unknown_rows(folder / "unknown_rows.npy", manifest.layout.width),
            reference,
            _open_rated(folder, users, items) if users is not None and items is not None else None,
            tuple(read_golden(folder / "golden.jsonl", manifest.layout.width)),
        )
        undo.pop_all()
    return found


def read_version_reference(repository: Path, name: str, version: int) -> Reference:
    """The monitor's reference of a version, without the rest of it.

    Raises:
        BundleError: it cannot be used.

    """
    manifest = read_manifest(repository, name, version)
    graph = manifest.files[f"{name}/{version}/model.onnx"]
    return read_reference(repository / name / str(version), graph, manifest.layers, manifest.layout.support > 0)


def _reference(manifest: Manifest, folder: Path) -> Reference:
    graph = manifest.files[f"{manifest.name}/{manifest.version}/model.onnx"]
    reference = read_reference(folder, graph, manifest.layers, manifest.layout.support > 0)
    if manifest.score not in reference.names or manifest.score not in ONE_SIDED:
        known = ", ".join(score for score in ONE_SIDED if score in reference.names)
        raise BundleError(f"{folder / NAME}: score '{manifest.score}' is not one this server reports ({known})")
    return reference


def _given(entity: GoldenEntity) -> Given:
    return entity.attributes if entity.id is None else entity.id


def _require_listed(manifest: Manifest, repository: Path, folder: Path, encoder_folder: Path) -> None:
    """Every file that is read must be one whose checksum the manifest vouches for."""
    needed = [folder / file for file in _FILES]
    needed += [folder / f"{entity.name}s.{part}" for entity in manifest.schema_.entities for part in _TABLE]
    if manifest.views == "entity":
        needed += [folder / "unknown.npy", encoder_folder / "model.onnx"]
    for path in needed:
        if path.relative_to(repository).as_posix() not in manifest.files:
            raise BundleError(f"{path}: is not listed in {folder / NAME}; export the version again")


def _open_table(folder: Path, name: str, width: int) -> Table:
    try:
        table = Table(folder, name)
    except (OSError, ValueError) as error:
        raise BundleError(f"{folder / name}.*: {error}") from None
    if table.rows.shape != (len(table) + 1, width) or table.trained.shape != (len(table),):
        raise BundleError(
            f"{folder / name}.rows.npy: is {list(table.rows.shape)}, expected [{len(table) + 1}, {width}] "
            f"for the ids in {name}.ids.npy and the manifest's layout"
        )
    return table


def _open_rated(folder: Path, users: Table, items: Table) -> Rated:
    try:
        rated = Rated(folder)
    except (OSError, ValueError) as error:
        raise BundleError(f"{folder}/rated.*: {error}") from None
    offsets, numbers = rated.offsets, rated.items
    fits = offsets.shape == (len(users) + 1,) and offsets[0] == 0 and offsets[-1] == numbers.size
    if not fits or ((numbers < 0) | (numbers >= len(items))).any():
        raise BundleError(f"{folder}/rated.*: is not about the {len(users)} and {len(items)} rows of the two tables")
    return rated


def _unknown_rows(path: Path, width: int) -> HalfArray:
    try:
        rows: HalfArray = np.load(path)
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: {error}") from None
    if rows.dtype != STORED or rows.shape != (2, width):
        raise BundleError(f"{path}: is {rows.dtype} {list(rows.shape)}, expected float16 [2, {width}]")
    return rows


def _same_tokenizer(manifest: Manifest, beside: Version | None) -> Tokenizer | None:
    if beside is None or beside.manifest.tokenizer != manifest.tokenizer:
        return None
    digests = {m.files[f"{m.name}/{m.version}/tokenizer.json"] for m in (manifest, beside.manifest)}
    return beside.tokenizer if len(digests) == 1 else None


def _open_tokenizer(path: Path, manifest: Manifest) -> Tokenizer:
    try:
        return Tokenizer.from_file(path, manifest.tokenizer.max_tokens, manifest.tokenizer.pad_id)
    except Exception as error:  # noqa: BLE001 - the library raises bare Exception
        raise BundleError(f"{path}: {error}") from None


def _array(path: Path) -> FloatArray:
    """A small float32 array."""
    try:
        array = np.load(path)
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: {error}") from None
    if not len(array):
        raise BundleError(f"{path}: is empty")
    return np.asarray(array, dtype=np.float32)

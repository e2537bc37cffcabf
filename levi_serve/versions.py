"""Model versions: which one is newest, and one loaded whole, checked and proven before anyone may use it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from levi_serve.backends.onnx import Device, Graph
from levi_serve.bundle import FloatArray
from levi_serve.bundle.golden import Golden, GoldenEntity, read_golden
from levi_serve.bundle.manifest import NAME, BundleError, Manifest, read_manifest
from levi_serve.bundle.rows import Table
from levi_serve.bundle.scores import SCORE
from levi_serve.bundle.tokens import Tokenizer
from levi_serve.encoder import Encoder, encoder_tensors
from levi_serve.errors import ModelOutputError
from levi_serve.predictor import EntityViews, GivenPair, PairViews, Predictor, Views, rating_tensors
from levi_serve.store import Given, Store

_NUMBER = re.compile(r"[1-9][0-9]*")
_TABLE = ("ids.npy", "rows.npy", "trained.npy", "attributes.jsonl", "offsets.npy")
_FILES = (
    "model.onnx",
    "tokenizer.json",
    "monitor.npz",
    "golden.jsonl",
    "unknown_rows.npy",
    "rated.offsets.npy",
    "rated.items.npy",
)
_REPLAYED_AT_ONCE = 32


@dataclass(frozen=True)
class Version:
    """One version that has proven itself."""

    manifest: Manifest
    predictor: Predictor
    examples: tuple[GivenPair, ...]
    """The pairs of its golden examples."""
    worst: float
    """Largest difference between a replayed golden rating and the recorded one."""


def newest(repository: Path, name: str) -> int:
    """The highest version number; folders that are no plain positive integer are not versions.

    Raises:
        BundleError: there is none.

    """
    folder = repository / name
    try:
        numbers = [int(entry.name) for entry in folder.iterdir() if _NUMBER.fullmatch(entry.name) and entry.is_dir()]
    except OSError as error:
        raise BundleError(f"{folder}: {error.strerror}; there is no model to serve") from None
    if not numbers:
        raise BundleError(f"{folder}: holds no version; versions are folders named 1, 2, 3, …")
    return max(numbers)


def load(repository: Path, name: str, version: int, device: Device, threads: int) -> Version:
    """Verify a version's files, open them and replay its golden examples, which also warms the graphs up.

    Raises:
        BundleError: the version cannot be used; the message names the file.
        DeviceError: the device is not there.

    """
    manifest = read_manifest(repository, name, version)
    folder = repository / name / str(version)
    encoder_folder = repository / f"{name}_encoder" / str(version)
    _require_listed(manifest, repository, folder, encoder_folder)
    if manifest.score != SCORE:
        raise BundleError(f"{folder / NAME}: score '{manifest.score}' is not one this server computes ('{SCORE}')")
    store = Store(*(_open_table(folder, f"{e.name}s", manifest.layout.width) for e in manifest.schema_.entities))
    tokenizer = _open_tokenizer(folder / "tokenizer.json", manifest)
    reference = _array(folder / "monitor.npz", manifest.score)
    views: Views
    encoder = None
    if manifest.views == "entity":
        # Two rows and a few small products: a second thread would cost more than it does.
        graph = Graph(folder / "model.onnx", EntityViews.tensors(manifest), rating_tensors(manifest), device, threads=1)
        views = EntityViews(manifest.schema_, store)
        unknown = _array(folder / "unknown.npy")
        inputs, rows = encoder_tensors(manifest, unknown.shape[-1])
        encoder_graph = Graph(encoder_folder / "model.onnx", inputs, rows, device, threads)
        encoder = Encoder(manifest, tokenizer, encoder_graph, unknown)
    else:
        graph = Graph(folder / "model.onnx", PairViews.tensors(manifest), rating_tensors(manifest), device, threads)
        views = PairViews(manifest, store, tokenizer)
    predictor = Predictor(manifest.schema_, store, views, graph, encoder, reference)
    golden = folder / "golden.jsonl"
    examples = read_golden(golden, manifest.layout.width)
    worst = replay(golden, examples, predictor, tokenizer, manifest.golden_tolerance)
    return Version(manifest, predictor, tuple(map(_given_pair, examples)), worst)


def replay(
    path: Path, examples: Sequence[Golden], predictor: Predictor, tokenizer: Tokenizer, tolerance: float
) -> float:
    """Predict the golden examples as requests are predicted; the largest difference of a rating.

    Raises:
        BundleError: a sentence, its tokens or a rating differs from what was recorded.

    """
    worst = 0.0
    for start in range(0, len(examples), _REPLAYED_AT_ONCE):
        batch = examples[start : start + _REPLAYED_AT_ONCE]
        pairs = [_given_pair(example) for example in batch]
        try:
            found = predictor.find(pairs)
            sentences = [predictor.sentences(pair) for pair in found]
            answers = predictor.predict(pairs)
        except Exception as error:  # whatever a broken version does to the code is a reason not to serve it
            raise BundleError(f"{path}: line {start + 1} and following: {' '.join(str(error).split())}") from error
        for line, (example, said, answer) in enumerate(zip(batch, sentences, answers, strict=True), start + 1):
            where = f"{path}: line {line}"
            _same_text(where, example, said, tokenizer)
            if isinstance(answer, ModelOutputError):
                raise BundleError(f"{where}: {answer}")
            worst = max(worst, _difference(where, example, answer.rating, answer.heads, tolerance))
    return worst


def _same_text(where: str, example: Golden, sentences: list[str], tokenizer: Tokenizer) -> None:
    if sentences != example.sentences:
        raise BundleError(f"{where}: the sentences read {sentences}, recorded were {example.sentences}")
    if tokenizer.encode(sentences) != example.tokens:
        raise BundleError(f"{where}: the token ids of {sentences} differ from those recorded")


def _difference(where: str, example: Golden, rating: float, heads: list[float], tolerance: float) -> float:
    recorded = np.array([example.rating, *example.head_ratings])
    replayed = np.array([rating, *heads])
    if recorded.shape != replayed.shape:
        raise BundleError(f"{where}: has {len(example.head_ratings)} head ratings, the model gives {len(heads)}")
    off = np.abs(replayed - recorded)
    if not off.max() <= tolerance:
        raise BundleError(
            f"{where}: the ratings are off by {off.max():.2g}, more than {tolerance:g}: "
            f"{rating:.4f} instead of {example.rating:.4f}, or a head's"
        )
    return float(off[0])


def _given_pair(example: Golden) -> GivenPair:
    return GivenPair(_given(example.user), _given(example.item))


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


def _open_tokenizer(path: Path, manifest: Manifest) -> Tokenizer:
    try:
        return Tokenizer.from_file(path, manifest.tokenizer.max_tokens, manifest.tokenizer.pad_id)
    except Exception as error:  # noqa: BLE001 - the library raises bare Exception
        raise BundleError(f"{path}: {error}") from None


def _array(path: Path, key: str | None = None) -> FloatArray:
    """A small float32 array of a .npy, or the array `key` of a .npz."""
    try:
        loaded = np.load(path)
        array = loaded if key is None else loaded[key]
    except (OSError, ValueError, KeyError) as error:
        raise BundleError(f"{path}: {error}") from None
    if not len(array):
        raise BundleError(f"{path}: is empty")
    return np.asarray(array, dtype=np.float32)

"""levi_serve.versions and proof: what may be served, and that everything else is refused with the file's name."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from levi_serve.app import bring_up
from levi_serve.bundle.golden import read_golden, write_golden
from levi_serve.bundle.manifest import FORMAT, BundleError
from levi_serve.live import Service
from levi_serve.metrics import Metrics
from levi_serve.versions import newest

from .conftest import settings
from .toy import Toy, edit_manifest, pair_graph, vouch


@pytest.fixture
def repository(entity_toy_repository: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(entity_toy_repository, tmp_path / "repository"))


@pytest.fixture
def folder(repository: Path) -> Path:
    """The version's folder."""
    return repository / "levi" / "1"


def brought_up(repository: Path) -> Service:
    """Version 1, loaded and proven as the server does."""

    async def proven() -> Service:
        service = await bring_up(settings(repository), Metrics(), 1)
        await service.close()
        return service

    return asyncio.run(proven())


def refused(repository: Path) -> str:
    """Why version 1 cannot be served, in one line."""
    with pytest.raises(BundleError) as caught:
        brought_up(repository)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_only_positive_integers_are_versions(tmp_path: Path) -> None:
    """The highest plain number is newest, by value and not by text; everything else in the folder is ignored."""
    for name in ("2", "10", "9", "latest", "01", "011", "-1", "0", "1.tmp", ".3.tmp-x", "１１", "99 "):
        (tmp_path / "levi" / name).mkdir(parents=True)
    (tmp_path / "levi" / "12").write_text("a file")
    assert newest(tmp_path, "levi") == 10


def test_no_version(tmp_path: Path) -> None:
    """An empty or missing folder is an error that names it."""
    with pytest.raises(BundleError, match=r"levi: No such file"):
        newest(tmp_path, "levi")
    (tmp_path / "levi" / "latest").mkdir(parents=True)
    with pytest.raises(BundleError, match=r"levi: holds no version"):
        newest(tmp_path, "levi")


def test_a_whole_version_loads(toy: Toy, toy_repository: Path) -> None:
    """An untouched version of either views passes and reports how closely its golden examples were met."""
    service = brought_up(toy_repository)
    assert service.version.manifest.views == toy.views
    assert len(service.version.examples) == 3 * 3 + 2
    assert 0 < service.golden_difference < 1e-5


ALL_FILES = [
    "levi/1/manifest.json",
    "levi/1/model.onnx",
    "levi/1/tokenizer.json",
    "levi/1/monitor.npz",
    "levi/1/golden.jsonl",
    "levi/1/unknown.npy",
    "levi/1/unknown_rows.npy",
    "levi/1/rated.offsets.npy",
    "levi/1/rated.items.npy",
    "levi_encoder/1/model.onnx",
    *(
        f"levi/1/{table}.{part}"
        for table in ("users", "movies")
        for part in ("ids.npy", "rows.npy", "trained.npy", "offsets.npy", "attributes.jsonl")
    ),
]


def test_the_list_above_is_complete(entity_toy_repository: Path) -> None:
    """Every file of the repository is in the tests below."""
    found = {file.relative_to(entity_toy_repository).as_posix() for file in entity_toy_repository.rglob("*.*")}
    assert found == set(ALL_FILES)


@pytest.mark.parametrize("file", ALL_FILES)
def test_missing_file(repository: Path, file: str) -> None:
    """Without any one of its files a version is refused, and the file is named."""
    (repository / file).unlink()
    assert file in refused(repository)


@pytest.mark.parametrize("file", [file for file in ALL_FILES if "manifest" not in file])
def test_changed_byte(repository: Path, file: str) -> None:
    """One changed byte in any file is noticed, and the file is named."""
    content = bytearray((repository / file).read_bytes())
    content[len(content) // 2] ^= 1
    (repository / file).write_bytes(content)
    message = refused(repository)
    assert file in message
    assert "checksum" in message


@pytest.mark.parametrize("file", [file for file in ALL_FILES if "manifest" not in file])
def test_file_without_checksum(repository: Path, folder: Path, file: str) -> None:
    """A file that the manifest does not vouch for is not read."""
    files = json.loads((folder / "manifest.json").read_text())["files"]
    files.pop(file)
    edit_manifest(folder, files=files)
    assert refused(repository).startswith(f"{repository / file}: is not listed")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format": FORMAT + 1}, f"format {FORMAT + 1} is newer than {FORMAT}"),
        (
            {"format": FORMAT - 1},
            f"format {FORMAT - 1} is older than {FORMAT}, the only one read; export the version again",
        ),
        ({"format": None}, "has no format version"),
        ({"version": 2}, "the folder was moved"),
        ({"views": "stereo"}, "views: Input should be 'entity' or 'pair'"),
        ({"surprise": 1}, "surprise: Extra inputs"),
        (
            {"score": "level"},
            "score 'level' is not one this server reports (spread, contrast, support_user, support_item)",
        ),
        ({"layers": 4}, "'head_ratings' is float32 [B, 3], expected float32 [B, 4]"),
    ],
)
def test_manifest_that_does_not_fit(repository: Path, folder: Path, changes: dict[str, Any], says: str) -> None:
    """A newer format, an unknown key or value, or tensors unlike the manifest's are refused with the reason."""
    edit_manifest(folder, **changes)
    assert says in refused(repository)


def test_manifest_that_is_no_json(repository: Path, folder: Path) -> None:
    """A truncated manifest is named."""
    path = folder / "manifest.json"
    path.write_text(path.read_text()[:-10])
    assert f"{path}: not readable as JSON" in refused(repository)


def test_file_outside_the_repository(repository: Path, folder: Path) -> None:
    """A manifest cannot make the server read outside its repository."""
    edit_manifest(folder, files={"../secret": "0" * 64})
    assert "leaves the model repository" in refused(repository)


@pytest.mark.parametrize(
    ("file", "array", "says"),
    [
        ("users.rows.npy", np.zeros((5, 3), np.float16), "users.rows.npy: is [5, 3], expected [5, 4]"),
        ("users.trained.npy", np.zeros(2, bool), "expected [5, 4]"),
        ("unknown_rows.npy", np.zeros((2, 3), np.float16), "is float16 [2, 3], expected float16 [2, 4]"),
        ("unknown_rows.npy", np.zeros((1, 4), np.float16), "is float16 [1, 4], expected float16 [2, 4]"),
        ("unknown_rows.npy", np.zeros((2, 4), np.float32), "is float32 [2, 4], expected float16 [2, 4]"),
        ("rated.offsets.npy", np.array([0, 1, 1, 4]), "rated.*: is not about the 4 and 3 rows of the two tables"),
        ("rated.offsets.npy", np.array([0, 1, 1, 4, 5]), "rated.*: is not about"),
        ("rated.offsets.npy", np.array([1, 1, 1, 4, 4]), "rated.*: is not about"),
        ("rated.offsets.npy", np.array(4), "rated.*: is not about"),
        ("rated.items.npy", np.array([0, 1, 2, 3], np.int32), "rated.*: is not about"),
        ("rated.items.npy", np.array([0, 1, 2, -1], np.int32), "rated.*: is not about"),
        ("rated.items.npy", np.array([0, 1, 2], np.int32), "rated.*: is not about"),
        ("unknown.npy", np.zeros((2, 3), np.float32), "'embedding' is float32 [B, 2], expected float32 [B, 3]"),
        ("unknown.npy", np.zeros((0, 2), np.float32), "unknown.npy: is empty"),
    ],
)
def test_arrays_of_another_shape(repository: Path, folder: Path, file: str, array: np.ndarray, says: str) -> None:
    """Tables and arrays that do not fit the layout or the graph are refused, even with a correct checksum."""
    np.save(folder / file, array)
    vouch(repository, folder)
    assert says in refused(repository)


@pytest.mark.parametrize(
    "file",
    [
        "users.ids.npy",
        "monitor.npz",
        "tokenizer.json",
        "unknown.npy",
        "unknown_rows.npy",
        "rated.offsets.npy",
        "rated.items.npy",
        "golden.jsonl",
    ],
)
def test_files_of_another_kind(repository: Path, folder: Path, file: str) -> None:
    """A file that is not what its name says is refused and named, even with a correct checksum."""
    (folder / file).write_text("{}")
    vouch(repository, folder)
    assert f"/{file.partition('.')[0]}." in refused(repository)


def test_graph_of_other_views(repository: Path, folder: Path) -> None:
    """A graph that wants other inputs is refused before the first request."""
    onnx.save(pair_graph(), folder / "model.onnx")
    vouch(repository, folder)
    assert "model.onnx: has no input" in refused(repository) or "model.onnx: input" in refused(repository)


@pytest.mark.parametrize("line", [0, 5, 10])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda e: {"rating": e.rating + 2e-4}, "the ratings are off by 0.0002, more than 0.0001"),
        (lambda e: {"rating": float("1e30")}, "the ratings are off by"),
        (lambda e: {"head_ratings": [*e.head_ratings[:-1], e.head_ratings[-1] - 2e-4]}, "the ratings are off"),
        (lambda e: {"head_ratings": e.head_ratings[1:]}, "has 2 head ratings, the model gives 3"),
        (lambda e: {"sentences": [s + "." for s in e.sentences]}, "the sentences read"),
        (lambda e: {"tokens": [[*t[:-1], t[-1] + 1] for t in e.tokens]}, "the token ids of"),
        (lambda e: {"item": e.item.model_copy(update={"id": 4711})}, "id 4711 is not in the table"),
    ],
    ids=["rating", "far", "head", "heads", "sentence", "tokens", "unknown"],
)
def test_golden_mismatch(repository: Path, folder: Path, line: int, change: Any, says: str) -> None:
    """A version that does not reproduce one of its golden examples, in any respect, is refused."""
    path = folder / "golden.jsonl"
    examples = read_golden(path, width=4)
    examples[line] = examples[line].model_copy(update=change(examples[line]))
    write_golden(path, examples)
    vouch(repository, folder)
    message = refused(repository)
    assert message.startswith(str(path))
    assert says in message


def test_tables_swapped(repository: Path, folder: Path) -> None:
    """Rows exchanged between two movies have correct checksums and shapes; only the golden examples notice."""
    rows = np.load(folder / "movies.rows.npy")
    np.save(folder / "movies.rows.npy", rows[[1, 0, 2, 3]])
    vouch(repository, folder)
    assert "golden.jsonl: line" in refused(repository)


def test_broken_row_in_a_golden_example(repository: Path, folder: Path) -> None:
    """A golden example without a finite rating is a refusal and not a pass."""
    rows = np.load(folder / "movies.rows.npy")
    rows[0] = np.nan
    np.save(folder / "movies.rows.npy", rows)
    vouch(repository, folder)
    assert "not a finite number" in refused(repository)

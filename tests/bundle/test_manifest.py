"""levi_serve.bundle.manifest: every way in which a version can be unusable, with the file's name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from levi_serve.bundle.manifest import FORMAT, BundleError, Manifest, TokenizerSpec, read_manifest, sha256
from levi_serve.bundle.rows import Layout
from levi_serve.bundle.schema import Schema


@pytest.fixture
def repository(schema: Schema, tmp_path: Path) -> Path:
    """Version 3 of a model with one file beside its manifest and one in its encoder's folder."""
    for file, content in (("levi/3/model.onnx", b"graph"), ("levi_encoder/3/model.onnx", b"encoder")):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_bytes(content)
    manifest = Manifest(
        format=FORMAT,
        name="levi",
        version=3,
        views="entity",
        schema_=schema,
        vocabulary=({"age": ["0"]}, {}),
        layout=Layout(tower=4, heads=6, factors=2, embedding=0, support=1),
        layers=3,
        tokenizer=TokenizerSpec(max_tokens=128, pad_id=0),
        files={file: sha256(tmp_path / file) for file in ("levi/3/model.onnx", "levi_encoder/3/model.onnx")},
        golden_tolerance=5e-3,
        score="spread",
        metrics={"parity": 1e-6},
        run={"dataset": "sample", "seed": 0},
        licences={"data": "CC0"},
    )
    (tmp_path / "levi/3/manifest.json").write_text(manifest.model_dump_json(by_alias=True))
    return tmp_path


def edit(repository: Path, **changes: Any) -> None:
    path = repository / "levi/3/manifest.json"
    raw = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in raw.items() if value is not None}))


def refused(repository: Path, version: int = 3) -> str:
    with pytest.raises(BundleError) as caught:
        read_manifest(repository, "levi", version)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_sha256(tmp_path: Path) -> None:
    """The digest is SHA-256's: that of 'abc' is in the standard."""
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_whole_version(repository: Path, schema: Schema) -> None:
    """An untouched version is read as it was written; its schema stands under 'schema'."""
    manifest = read_manifest(repository, "levi", 3)
    assert manifest.schema_ == schema
    assert manifest.layout.width == 14
    assert json.loads((repository / "levi/3/manifest.json").read_text())["schema"]["rating_max"] == 5


def test_no_manifest(repository: Path) -> None:
    """A folder without a manifest was not exported completely."""
    (repository / "levi/3/manifest.json").unlink()
    assert refused(repository) == f"{repository}/levi/3/manifest.json: missing; the version was not exported completely"


@pytest.mark.parametrize(
    "text", ['{"format": 1,', "\udcff", "[]", '"manifest"', "{}", '{"format": "1"}', '{"format": true}']
)
def test_not_a_manifest(repository: Path, text: str) -> None:
    """Cut JSON, bytes that are no text, JSON of another shape and a missing format are refused and the file named."""
    (repository / "levi/3/manifest.json").write_bytes(text.encode(errors="surrogateescape"))
    assert refused(repository).startswith(f"{repository}/levi/3/manifest.json: ")


def test_newer_format(repository: Path) -> None:
    """A newer format is refused before anything else in it is read, and says what to do."""
    (repository / "levi/3/manifest.json").write_text(json.dumps({"format": FORMAT + 1, "hologram": True}))
    assert refused(repository).endswith(
        f"format {FORMAT + 1} is newer than {FORMAT}, the newest this server reads; upgrade it"
    )


def test_older_format(repository: Path) -> None:
    """An older format lacks files that a server needs: it is refused, and says what to do."""
    edit(repository, format=FORMAT - 1)
    assert refused(repository).endswith(
        f"format {FORMAT - 1} is older than {FORMAT}, the only one read; export the version again"
    )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"surprise": 1}, "manifest.json: surprise: Extra inputs are not permitted"),
        ({"views": "stereo"}, "manifest.json: views: Input should be 'entity' or 'pair'"),
        ({"layout": {"tower": 4}}, "manifest.json: layout.heads: Field required"),
        ({"files": {"levi/3/model.onnx": "abc"}}, "manifest.json: files.levi/3/model.onnx: String should match"),
        ({"golden_tolerance": 0}, "manifest.json: golden_tolerance: Input should be greater than 0"),
        ({"licences": None}, "manifest.json: licences: Field required"),
    ],
)
def test_wrong_content(repository: Path, changes: dict[str, Any], says: str) -> None:
    """An unknown key, a wrong value or a missing key is refused and named."""
    edit(repository, **changes)
    assert says in refused(repository)


def test_moved_folder(repository: Path) -> None:
    """A version that was renamed or copied by hand is refused: its files' names are part of its checksums."""
    shutil.copytree(repository / "levi/3", repository / "levi/4")
    assert refused(repository, 4).endswith("is the manifest of levi/3; the folder was moved")
    edit(repository, name="other")
    assert refused(repository).endswith("is the manifest of other/3; the folder was moved")


@pytest.mark.parametrize("file", ["levi/3/model.onnx", "levi_encoder/3/model.onnx"])
def test_files(repository: Path, file: str) -> None:
    """A changed, cut or missing file is refused and named, in the encoder's folder too."""
    path = repository / file
    whole = path.read_bytes()
    for broken in (whole[:-1], whole + b"\0", bytes([whole[0] ^ 1]) + whole[1:], b""):
        path.write_bytes(broken)
        assert refused(repository) == (
            f"{path}: checksum differs from the manifest's; the file was changed or cut short"
        )
    path.unlink()
    assert refused(repository) == f"{path}: No such file or directory; export the version again"


@pytest.mark.parametrize("file", ["../secret", "levi/../../secret", "/etc/hostname", "levi/3/link"])
def test_files_outside(repository: Path, tmp_path_factory: pytest.TempPathFactory, file: str) -> None:
    """A manifest that names a file outside of the repository, by path or by link, is refused."""
    (repository / "levi/3/link").symlink_to(tmp_path_factory.getbasetemp())
    edit(repository, files={file: "0" * 64})
    assert refused(repository).endswith("leaves the model repository")

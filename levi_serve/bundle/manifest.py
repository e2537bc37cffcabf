"""The manifest: what a model version is, and the proof that its files are whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from levi_serve.bundle.commands import RunError
from levi_serve.bundle.rows import Layout
from levi_serve.bundle.schema import Frozen, Schema

FORMAT = 3
"""Bundle format that this code writes and the only one that it reads."""

NAME = "manifest.json"
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class BundleError(RunError):
    """A model version cannot be used; the message names the file and what is wrong with it."""


class TokenizerSpec(Frozen):
    """How sentences become token ids; the vocabulary is in tokenizer.json."""

    max_tokens: Annotated[int, Field(ge=1)]
    pad_id: Annotated[int, Field(ge=0)]


class Manifest(Frozen, validate_by_name=True, validate_by_alias=True):
    """Everything about one version that is not in a graph or a table. Written last."""

    format: int
    name: str
    version: Annotated[int, Field(ge=1)]
    views: Literal["entity", "pair"]
    schema_: Annotated[Schema, Field(alias="schema")]
    vocabulary: tuple[dict[str, list[str]], dict[str, list[str]]]
    """Levels of the embedded attributes, user then item; `schema.encode` reads them."""
    layout: Layout
    layers: Annotated[int, Field(ge=1)]
    """Heads, one per backbone layer."""
    tokenizer: TokenizerSpec
    files: dict[str, Sha256]
    """Every other file of the version, relative to the model repository."""
    golden_tolerance: Annotated[float, Field(gt=0)]
    """Largest difference of a replayed golden rating."""
    score: str
    """The score whose ID quantile is `ood_score`."""
    metrics: dict[str, float]
    """Measured at export: ID metrics of the run, parity, effect of rounding rows."""
    run: dict[str, str | int | float | bool]
    """Where it comes from: dataset, backbone, seed, date, versions."""
    licences: dict[str, str]


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(repository: Path, name: str, version: int, elsewhere: Sequence[str] = ()) -> Manifest:
    """Read the manifest of a version and verify each of its files but the tables of entities that are kept `elsewhere`.

    Raises:
        BundleError: no or unreadable manifest, another format, missing file, wrong checksum.

    """
    path = repository / name / str(version) / NAME
    try:
        raw = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise BundleError(f"{path}: missing; the version was not exported completely") from None
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: not readable as JSON: {error}") from None
    found = raw.get("format") if isinstance(raw, dict) else None
    if not isinstance(found, int):
        raise BundleError(f"{path}: has no format version")
    if found > FORMAT:
        raise BundleError(f"{path}: format {found} is newer than {FORMAT}, the newest this server reads; upgrade it")
    if found < FORMAT:
        raise BundleError(f"{path}: format {found} is older than {FORMAT}, the only one read; export the version again")
    try:
        manifest = Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        raise BundleError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    if (manifest.name, manifest.version) != (name, version):
        raise BundleError(f"{path}: is the manifest of {manifest.name}/{manifest.version}; the folder was moved")
    skipped = tuple(f"{name}/{version}/{entity}s." for entity in elsewhere)
    for file, digest in manifest.files.items():
        if not file.startswith(skipped):
            _verify(repository, file, digest)
    return manifest


def _verify(repository: Path, file: str, digest: str) -> None:
    path = repository / file
    if not path.resolve().is_relative_to(repository.resolve()):
        raise BundleError(f"{path}: leaves the model repository")
    try:
        found = sha256(path)
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror or error}; export the version again") from None
    if found != digest:
        raise BundleError(f"{path}: checksum differs from the manifest's; the file was changed or cut short")

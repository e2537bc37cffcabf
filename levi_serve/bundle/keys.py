"""Store keys and values: the name and the bytes under which an entity row is kept outside the bundle.

| key | holds |
|---|---|
| `levi:{model}:{version}-{digest}:{entity}:{id}` | the row of a known entity |
| `levi:{model}:{version}-{digest}:{entity}` | the mark that every row of that entity is there: how many they are |
| `levi:{model}:{version}-{digest}+{hex}` | the row of a new entity, encoded earlier |

A value is a checksum over the key and all that follows: format, whether the entity was trained on, width, the row in
fp16 and, for pair views, the attributes as one JSON object. Under another key the same bytes are no value.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable
from typing import NamedTuple
from zlib import crc32

import numpy as np

from levi_serve.bundle.manifest import Manifest
from levi_serve.bundle.rows import STORED, HalfArray, Id

_HEAD = struct.Struct("<IB?H")
"""Checksum, format, trained, width: 8 bytes, so that the row after them is aligned."""
_FORMAT = 1
_DIGITS = 12
_NO_PART_OF_ROWS = ("golden.", "monitor.", "rated.")
"""Files that may change without changing any row."""


class Keys:
    """The keys of one model version. Another version, or another repository's version of that number, has others."""

    def __init__(self, manifest: Manifest) -> None:
        """Keys for the version that the manifest describes."""
        root = f"levi:{manifest.name}:{manifest.version}-{rows_digest(manifest)[:_DIGITS]}"
        user, item = (f"{root}:{entity.name}".encode() for entity in manifest.schema_.entities)
        self.marks = (user, item)
        """Of users and items: there when all their rows are."""
        self._entities = (user + b":", item + b":")
        self._new = f"{root}+".encode()

    def known(self, side: int, ids: Iterable[Id]) -> list[bytes]:
        """The keys of users (side 0) or items (side 1)."""
        prefix = self._entities[side]
        return [prefix + str(id_).encode("utf-8", "surrogatepass") for id_ in ids]

    def new(self, digests: Iterable[bytes]) -> list[bytes]:
        """The keys of entities that are known by nothing but a digest of their attributes."""
        return [self._new + digest.hex().encode() for digest in digests]


def rows_digest(manifest: Manifest) -> str:
    """What every row depends on, be it in a table or encoded later: graphs, tables, tokenizer, schema, vocabulary."""
    facts = manifest.model_dump(
        mode="json", include={"views", "schema_", "vocabulary", "layout", "layers", "tokenizer"}
    )
    facts["files"] = {
        file: digest
        for file, digest in manifest.files.items()
        if not file.rpartition("/")[2].startswith(_NO_PART_OF_ROWS)
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


class Stored(NamedTuple):
    """What is kept of an entity."""

    row: HalfArray
    """[width]"""
    trained: bool
    attributes: bytes = b""
    """One JSON object, where the attributes are needed beside the row (pair views)."""


def encode_value(key: bytes, stored: Stored) -> bytes:
    """The bytes to keep under `key`."""
    body = stored.row.tobytes() + stored.attributes
    facts = (_FORMAT, stored.trained, len(stored.row))
    checked = _HEAD.pack(0, *facts)[4:] + body
    return _HEAD.pack(crc32(checked, crc32(key)), *facts) + body


def decode_value(key: bytes, value: bytes, width: int) -> Stored | None:
    """What `encode_value` was given; None if these bytes are anything but its result for this key and width."""
    end = _HEAD.size + width * STORED().itemsize
    if len(value) < end:
        return None
    checksum, version, trained, columns = _HEAD.unpack_from(value)
    if (version, columns) != (_FORMAT, width) or crc32(memoryview(value)[4:], crc32(key)) != checksum:
        return None
    row = np.frombuffer(value, dtype=STORED, count=width, offset=_HEAD.size)
    return Stored(row, trained, value[end:])

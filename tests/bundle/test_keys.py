"""levi_serve.bundle.keys: names that never meet, and values that are used whole or not at all."""

from __future__ import annotations

import json
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from levi_serve.bundle.keys import Keys, Stored, decode_value, encode_value, rows_digest
from levi_serve.bundle.manifest import FORMAT, Manifest, TokenizerSpec
from levi_serve.bundle.rows import Id, Layout
from levi_serve.bundle.schema import Attribute, Entity, Schema, Template

FILES = (
    "levi/3/model.onnx", "levi/3/users.rows.npy", "levi/3/users.ids.npy", "levi/3/users.trained.npy",
    "levi/3/movies.rows.npy", "levi/3/users.attributes.jsonl", "levi/3/tokenizer.json", "levi/3/unknown.npy",
    "levi_encoder/3/model.onnx", "levi/3/golden.jsonl", "levi/3/monitor.npz", "levi/3/rated.items.npy",
)  # fmt: skip
KEY = b"levi:levi:3-0123456789ab:user:138"
STORED = Stored(np.array([1.0, -2.0, 0.5], np.float16), True, b'{"a":1}')


def manifest(**changes: Any) -> Manifest:
    """A manifest that differs from others only where it is told to."""
    facts: dict[str, Any] = {
        "format": FORMAT,
        "name": "levi",
        "version": 3,
        "views": "entity",
        "schema_": Schema(
            user=Entity(name="user"),
            item=Entity(name="movie", attributes=(Attribute(name="title", kind="text"),)),
            rating_min=1,
            rating_max=5,
            user_template=Template(clauses=()),
            item_template=Template(clauses=("movie.title",)),
            pair_template=Template(clauses=()),
        ),
        "vocabulary": ({"age": ["0"]}, {}),
        "layout": Layout(tower=1, heads=1, factors=0, embedding=0, support=0),
        "layers": 3,
        "tokenizer": TokenizerSpec(max_tokens=128, pad_id=0),
        "files": {file: f"{i:064x}" for i, file in enumerate(FILES)},
        "golden_tolerance": 5e-3,
        "score": "spread",
        "metrics": {},
        "run": {},
        "licences": {},
    }
    return Manifest(**(facts | changes))


def changed(file: str) -> dict[str, dict[str, str]]:
    return {"files": {**manifest().files, file: "f" * 64}}


def test_names() -> None:
    """Keys read as the table in the module says."""
    keys = Keys(manifest())
    root = f"levi:levi:3-{rows_digest(manifest())[:12]}"
    assert keys.known(0, [138, -1]) == [f"{root}:user:138".encode(), f"{root}:user:-1".encode()]
    assert keys.known(1, ["Ä {1}:\n", ""]) == [f"{root}:movie:Ä {{1}}:\n".encode(), f"{root}:movie:".encode()]
    assert keys.known(0, ["\ud800"]) == [f"{root}:user:".encode() + b"\xed\xa0\x80"]
    assert keys.new([b"\x00\xff"]) == [f"{root}+00ff".encode()]
    assert keys.marks == (f"{root}:user".encode(), f"{root}:movie".encode())


ids = st.integers(-(2**63), 2**63 - 1) | st.text()


@given(st.lists(st.tuples(st.sampled_from([0, 1]), ids), unique_by=lambda pair: (pair[0], str(pair[1]))))
def test_names_never_meet(pairs: list[tuple[int, Id]]) -> None:
    """Different entities have different keys, whatever their ids, and none is a mark or a new entity's key."""
    keys = Keys(manifest())
    names = [*keys.marks, *keys.new([b"user", b":user:1"])]
    names += [keys.known(side, [id_])[0] for side, id_ in pairs]
    assert len({*names}) == len(names)


@pytest.mark.parametrize(
    "change",
    [
        *(changed(file) for file in FILES[:9]),
        {"views": "pair"},
        {"vocabulary": ({"age": ["0", "1"]}, {})},
        {"layout": Layout(tower=2, heads=0, factors=0, embedding=0, support=0)},
        {"layers": 4},
        {"tokenizer": TokenizerSpec(max_tokens=64, pad_id=0)},
        {"schema_": manifest().schema_.model_copy(update={"user": Entity(name="customer")})},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_model_has_other_keys(change: dict[str, Any]) -> None:
    """Whatever rows are made of is in the digest: equal version numbers of two repositories never mix."""
    assert rows_digest(manifest(**change)) != rows_digest(manifest())
    assert {*Keys(manifest(**change)).known(1, [1])}.isdisjoint(Keys(manifest()).known(1, [1]))


@pytest.mark.parametrize(
    "change",
    [*(changed(file) for file in FILES[9:]), {"metrics": {"id_rmse": 0.9}}, {"run": {"exported": "now"}}],
    ids=str,
)
def test_the_same_rows_keep_their_keys(change: dict[str, Any]) -> None:
    """A new calibration or other golden examples change no row, and published rows stay good."""
    assert rows_digest(manifest(**change)) == rows_digest(manifest())


def test_the_digest_survives_json() -> None:
    """A manifest that was written and read again has the same keys, whatever the order of its entries."""
    raw = json.loads(manifest().model_dump_json(by_alias=True))
    raw["files"] = dict(reversed(raw["files"].items()))
    assert rows_digest(Manifest.model_validate(raw)) == rows_digest(manifest())


def test_value() -> None:
    """Checksum over key and body, format 1, trained, width 3, three fp16, JSON."""
    body = bytes([1, 1]) + struct.pack("<H", 3) + struct.pack("<3e", 1.0, -2.0, 0.5) + b'{"a":1}'
    assert encode_value(KEY, STORED) == struct.pack("<I", zlib.crc32(KEY + body)) + body


@given(
    st.lists(st.floats(width=16), min_size=1, max_size=20), st.booleans(), st.binary(max_size=10), st.binary(min_size=1)
)
def test_any_value(row: list[float], trained: bool, attributes: bytes, key: bytes) -> None:
    """Every row comes back bit for bit, numbers that are none included."""
    stored = Stored(np.array(row, np.float16), trained, attributes)
    found = decode_value(key, encode_value(key, stored), len(row))
    assert found is not None
    assert found.row.dtype == np.float16
    assert (found.row.tobytes(), found.trained, found.attributes) == (stored.row.tobytes(), trained, attributes)


@given(st.data())
def test_damaged_values(data: st.DataObject) -> None:
    """A value that was cut, extended, changed in one bit, or put under another key, is no value."""
    value = encode_value(KEY, STORED)
    bit = data.draw(st.integers(0, 8 * len(value) - 1))
    flipped = bytearray(value)
    flipped[bit // 8] ^= 1 << bit % 8
    assert decode_value(KEY, bytes(flipped), 3) is None
    assert decode_value(KEY, value[: data.draw(st.integers(0, len(value) - 1))], 3) is None
    assert decode_value(KEY, value + data.draw(st.binary(min_size=1)), 3) is None
    assert decode_value(KEY + b"0", value, 3) is None


@given(st.binary(max_size=40), st.integers(1, 20))
def test_garbage(value: bytes, width: int) -> None:
    """Bytes that nobody encoded are no value."""
    assert decode_value(KEY, value, width) is None


@pytest.mark.parametrize("width", [1, 2, 4, 3000])
def test_other_widths(width: int) -> None:
    """A row of another width is none, not even where the attributes make up for the missing bytes."""
    assert decode_value(KEY, encode_value(KEY, STORED), width) is None


def test_other_formats() -> None:
    """A value whose format is a later one's is none, though its checksum is right."""
    body = bytes([2]) + encode_value(KEY, STORED)[5:]
    assert decode_value(KEY, struct.pack("<I", zlib.crc32(KEY + body)) + body, 3) is None

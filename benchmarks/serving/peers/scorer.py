"""What every peer serves: the bundle's tables, its graph in ONNX Runtime, and the answer that our server gives.

The peers run in environments of their own, without our package's dependencies; of our sources they use only
`levi_serve.bundle`, and only where sentences are made (pair views, backbone). The harness takes its expected ratings
from here too: the graph and the tables, and nothing of the server.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Pair = tuple[int, int]
Answer = dict[str, Any]
Array = npt.NDArray[Any]


class Table:
    """One side's ids, rows and attributes."""

    def __init__(self, folder: Path, name: str) -> None:
        self.ids: Array = np.load(folder / f"{name}.ids.npy")
        self.rows: Array = np.load(folder / f"{name}.rows.npy", mmap_mode="r")
        self.trained: Array = np.load(folder / f"{name}.trained.npy")
        self.number = {ident: i for i, ident in enumerate(self.ids.tolist())}
        self._attributes = folder / f"{name}.attributes.jsonl"

    def attributes(self) -> list[dict[str, Any]]:
        """Of every entity, in table order."""
        lines = self._attributes.read_bytes().splitlines()
        return [{k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(line).items()} for line in lines]


class Bundle:
    """Both tables, and how an answer looks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = json.loads((folder / "manifest.json").read_bytes())
        self.names = [self.manifest["schema"][side]["name"] for side in ("user", "item")]
        self.tables = [Table(folder, f"{name}s") for name in self.names]
        self.reference = np.load(folder / "monitor.npz")[f"quantiles_{self.manifest['score']}"]

    def numbers(self, pairs: Sequence[Pair]) -> list[list[int]]:
        """Row numbers of the users and of the items."""
        return [[table.number[pair[side]] for pair in pairs] for side, table in enumerate(self.tables)]

    def rows(self, numbers: Sequence[Sequence[int]]) -> list[Array]:
        """Rows [B, W] of both sides, fp16."""
        return [table.rows[at] for table, at in zip(self.tables, numbers, strict=True)]

    def answers(
        self, pairs: Sequence[Pair], numbers: Sequence[Sequence[int]], heads: Array, ratings: Array
    ) -> list[Answer]:
        """What our server says of a batch."""
        spread = heads.std(axis=1)
        below = np.searchsorted(self.reference, spread, side="left")
        upto = np.searchsorted(self.reference, spread, side="right")
        rating, head, disagreement, ood = (
            a.astype(np.float64).round(6).tolist()
            for a in (ratings, heads, spread, (below + upto) / (2 * len(self.reference)))
        )
        return [
            {
                self.names[0]: pair[0],
                self.names[1]: pair[1],
                "rating": rating[i],
                "heads": head[i],
                "disagreement": disagreement[i],
                "ood_score": ood[i],
                "cold_start": [
                    name
                    for name, table, at in zip(self.names, self.tables, numbers, strict=True)
                    if not table.trained[at[i]]
                ],
                "model": self.manifest["name"],
                "version": self.manifest["version"],
            }
            for i, pair in enumerate(pairs)
        ]


class OnnxScorer:
    """Pairs to answers through the exported graph, one thread."""

    def __init__(self, folder: Path) -> None:
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        import onnxruntime as ort

        self.bundle = Bundle(folder)
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
        self.feeds = PairFeeds(self.bundle) if self.bundle.manifest["views"] == "pair" else self.entity_feeds

    def entity_feeds(self, numbers: Sequence[Sequence[int]]) -> dict[str, Array]:
        """Two rows a pair."""
        return dict(zip(("user_row", "item_row"), self.bundle.rows(numbers), strict=True))

    def raw(self, numbers: Sequence[Sequence[int]]) -> tuple[Array, Array]:
        """Head ratings [B, n] and ratings [B] of row numbers, as ONNX Runtime gives them."""
        heads, ratings = self.session.run(["head_ratings", "rating"], self.feeds(numbers))
        return heads, ratings

    def __call__(self, pairs: Sequence[Pair]) -> list[Answer]:
        """One graph run."""
        numbers = self.bundle.numbers(pairs)
        heads, ratings = self.raw(numbers)
        return self.bundle.answers(pairs, numbers, heads, ratings)


class PairFeeds:
    """The inputs of a pair-view graph; codes and attributes of the catalogue are prepared once."""

    def __init__(self, bundle: Bundle) -> None:
        from levi_serve.bundle.prompt import pair_sentence
        from levi_serve.bundle.schema import Schema, encode
        from levi_serve.bundle.tokens import Tokenizer

        self.bundle, self.sentence = bundle, pair_sentence
        self.schema = Schema.model_validate(bundle.manifest["schema"])
        spec = bundle.manifest["tokenizer"]
        self.tokenizer = Tokenizer.from_file(bundle.folder / "tokenizer.json", spec["max_tokens"], spec["pad_id"])
        self.attributes, self.codes = [], []
        for side, entity in enumerate(self.schema.entities):
            known = bundle.tables[side].attributes()
            codes = encode(entity, bundle.manifest["vocabulary"][side], known)
            self.codes.append(codes if codes.shape[1] else np.zeros((len(known), 1), dtype=np.int64))
            ids = bundle.tables[side].ids.tolist()
            self.attributes.append([{"id": ident, **a} for ident, a in zip(ids, known, strict=True)])

    def __call__(self, numbers: Sequence[Sequence[int]]) -> dict[str, Array]:
        """Tokens, rows and codes."""
        users, items = numbers
        sentences = [
            self.sentence(self.schema, self.attributes[0][u], self.attributes[1][i])
            for u, i in zip(users, items, strict=True)
        ]
        ids, mask = self.tokenizer.pad(self.tokenizer.encode(sentences))
        user_rows, item_rows = self.bundle.rows(numbers)
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "user_row": user_rows.astype(np.float32),
            "user_codes": self.codes[0][users],
            "item_row": item_rows.astype(np.float32),
            "item_codes": self.codes[1][items],
        }

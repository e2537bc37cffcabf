"""Tokenisation, the same on both sides: a tokenizer.json, no padding of its own, truncated at the model's limit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer as FastTokenizer

from levi_serve.bundle import Int64Array


class Tokenizer:
    """Sentences to token ids, and token ids to padded batches."""

    def __init__(self, fast: FastTokenizer, max_tokens: int, pad_id: int) -> None:
        """Take over a fast tokenizer; whatever padding and truncation its file asks for is replaced by ours."""
        fast.no_padding()
        fast.enable_truncation(max_length=max_tokens)
        self._fast = fast
        self.max_tokens = max_tokens
        self.pad_id = pad_id

    @classmethod
    def from_file(cls, path: Path, max_tokens: int, pad_id: int) -> Tokenizer:
        """Read a tokenizer.json."""
        return cls(FastTokenizer.from_file(str(path)), max_tokens, pad_id)

    def save(self, path: Path) -> None:
        """Write the tokenizer.json that `from_file` reads."""
        path.write_text(self._fast.to_str(pretty=True), encoding="utf-8")

    def encode(self, sentences: Sequence[str]) -> list[list[int]]:
        """Token ids of each sentence with the model's special tokens, at most `max_tokens` of them."""
        return [encoding.ids for encoding in self._fast.encode_batch_fast(list(sentences))]

    def pad(self, tokens: Sequence[Sequence[int]]) -> tuple[Int64Array, Int64Array]:
        """Batch [B, T] of token ids and its attention mask, T being the longest sentence."""
        length = max(map(len, tokens))
        input_ids = np.full((len(tokens), length), self.pad_id, dtype=np.int64)
        mask = np.zeros_like(input_ids)
        for i, ids in enumerate(tokens):
            input_ids[i, : len(ids)] = ids
            mask[i, : len(ids)] = 1
        return input_ids, mask

"""Views: every layer's pooled output for many sentences, computed once and kept on disk.

The cache is a folder of chunks. A chunk's name is the hash of the backbone's fingerprint and of its sentences, so a
changed backbone, template or text finds nothing and is computed; a killed run continues with the next chunk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from levi_serve.bundle import FloatArray, Int64Array
from training.atomic import atomic_file
from training.backbones import Backbone, pooled
from training.memory import enough_memory
from training.progress import track

CHUNK = 2048
"""Sentences per cached chunk."""
BATCH_TOKENS = 4096
"""Padded tokens per forward pass."""
POOLING = "masked-mean-1"
"""Name of what `backbones.pooled` computes; a change there needs a new name, or old views would be read."""


@dataclass(frozen=True)
class Views:
    """Memory-mapped chunks of [≤ CHUNK, n, d] views; sentence i is row i % CHUNK of chunk i // CHUNK."""

    chunks: Sequence[FloatArray]

    def __len__(self) -> int:
        return sum(map(len, self.chunks))

    def take(self, rows: Int64Array) -> FloatArray:
        """Views [len(rows), n, d] of some sentences."""
        out = np.empty((len(rows), *self.chunks[0].shape[1:]), dtype=np.float32)
        for number in np.unique(rows // CHUNK):
            here = rows // CHUNK == number
            out[here] = self.chunks[number][rows[here] % CHUNK]
        return out


def compute_views(backbone: Backbone, sentences: Sequence[str], cache: Path, device: torch.device, label: str) -> Views:
    """The views of every sentence, from the cache where it holds them.

    Raises:
        OSError: the cache folder cannot be written.
    """
    cache.mkdir(parents=True, exist_ok=True)
    encoder = backbone.encoder.to(device)
    starts = range(0, len(sentences), CHUNK)
    chunks: list[FloatArray] = []
    for start in track(starts, len(starts), label):
        part = sentences[start : start + CHUNK]
        path = cache / f"{_key(backbone, part)}.npy"
        chunk = _read(path, (len(part), backbone.layers, backbone.width))
        if chunk is None:
            with enough_memory(label, "use --device cpu, or a smaller --backbone"):
                views = _encode(backbone, encoder, part, device)
            with atomic_file(path) as temporary, temporary.open("wb") as file:
                np.save(file, views)
            chunk = np.load(path, mmap_mode="r")
        chunks.append(chunk)
    return Views(chunks)


def _read(path: Path, shape: tuple[int, ...]) -> FloatArray | None:
    """A chunk of the cache; None if it is not there, or damaged and to be computed again."""
    try:
        chunk: FloatArray = np.load(path, mmap_mode="r")
    except (FileNotFoundError, ValueError, EOFError):
        return None
    return chunk if chunk.shape == shape and chunk.dtype == np.float32 else None


def _key(backbone: Backbone, sentences: Sequence[str]) -> str:
    digest = hashlib.sha256(f"{POOLING}\0{backbone.fingerprint}\0{backbone.tokenizer.max_tokens}\0".encode())
    for sentence in sentences:
        encoded = sentence.encode()
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()


@torch.inference_mode()
def _encode(backbone: Backbone, encoder: torch.nn.Module, sentences: Sequence[str], device: torch.device) -> FloatArray:
    tokens = backbone.tokenizer.encode(sentences)
    out = np.empty((len(sentences), backbone.layers, backbone.width), dtype=np.float32)
    for batch in batches_by_length([len(t) for t in tokens]):
        ids, mask = backbone.tokenizer.pad([tokens[i] for i in batch])
        views = pooled(encoder, torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device))
        out[batch] = views.float().cpu().numpy()
    return out


def batches_by_length(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Positions grouped so that neighbours are of similar length and a batch pads to at most BATCH_TOKENS tokens."""
    batch: list[int] = []
    for i in np.argsort(lengths, kind="stable")[::-1]:  # longest first: a batch's width is its first member's length
        if batch and (len(batch) + 1) * lengths[batch[0]] > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(int(i))
    if batch:
        yield batch

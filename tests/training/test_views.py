"""training.views: what is computed, what is read from the cache, and what is never read stale."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from training import views as module
from training.backbones import Backbone, load_backbone, pooled
from training.errors import RunError
from training.views import Views, batches_by_length, compute_views

SENTENCES = [f"{'star ' * (7 * i % 5)}movie {i}" for i in range(10)]
CPU = torch.device("cpu")


class Counted(nn.Module):
    """An encoder that counts the sentences it is given, and can fail after some."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.count, self.limit = encoder, 0, 10**9

    def forward(self, **inputs: Any) -> Any:
        self.count += len(inputs["input_ids"])
        if self.count > self.limit:
            raise KeyboardInterrupt
        return self.encoder(**inputs)


@pytest.fixture
def backbone(bert: Path, monkeypatch: pytest.MonkeyPatch) -> Backbone:
    """The tiny BERT, counted, with chunks of four sentences."""
    monkeypatch.setattr(module, "CHUNK", 4)
    loaded = load_backbone(str(bert))
    return dataclasses.replace(loaded, encoder=Counted(loaded.encoder))


def compute(backbone: Backbone, cache: Path, sentences: list[str] = SENTENCES) -> tuple[np.ndarray, int]:
    """All views, and how many sentences the encoder read for them."""
    assert isinstance(backbone.encoder, Counted)
    backbone.encoder.count = 0
    found = compute_views(backbone, sentences, cache, CPU, "test")
    assert len(found) == len(sentences)
    return found.take(np.arange(len(sentences))), backbone.encoder.count


def test_views_are_in_the_sentences_order(backbone: Backbone, tmp_path: Path) -> None:
    """Sorting by length inside does not show: row i is what sentence i alone would give."""
    found, _ = compute(backbone, tmp_path)
    for sentence, row in zip(SENTENCES, found, strict=True):
        ids, mask = map(torch.from_numpy, backbone.tokenizer.pad(backbone.tokenizer.encode([sentence])))
        with torch.inference_mode():
            np.testing.assert_allclose(row, pooled(backbone.encoder, ids, mask)[0], atol=1e-5)


def test_second_time_reads_the_cache(backbone: Backbone, tmp_path: Path) -> None:
    """The same sentences are encoded once; afterwards their file is read, whatever it says."""
    first, count = compute(backbone, tmp_path)
    assert count == 10
    again, count = compute(backbone, tmp_path)
    assert count == 0
    assert np.array_equal(first, again)
    for file in tmp_path.iterdir():
        np.save(file, np.zeros_like(np.load(file)))
    assert not compute(backbone, tmp_path)[0].any()


def test_a_changed_text_is_computed(backbone: Backbone, tmp_path: Path) -> None:
    """A changed sentence, or one moved across sentences' ends, computes its chunk anew and no other."""
    compute(backbone, tmp_path)
    found, count = compute(backbone, tmp_path, [*SENTENCES[:5], "a doctor", *SENTENCES[6:]])
    assert count == 4
    assert np.array_equal(found[5], compute(backbone, tmp_path, ["a doctor"])[0][0])
    assert compute(backbone, tmp_path, ["ab", "c"])[1] == compute(backbone, tmp_path, ["a", "bc"])[1] == 2


def test_a_changed_backbone_is_computed(backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another fingerprint, token limit or way of pooling reads nothing that was computed without it."""
    compute(backbone, tmp_path)
    assert compute(dataclasses.replace(backbone, fingerprint="other"), tmp_path)[1] == 10
    backbone.tokenizer.max_tokens += 1
    assert compute(backbone, tmp_path)[1] == 10
    monkeypatch.setattr(module, "POOLING", "other")
    assert compute(backbone, tmp_path)[1] == 10


def test_a_killed_run_continues(backbone: Backbone, tmp_path: Path) -> None:
    """What a killed run had finished is not computed again, and nothing that it had begun is left."""
    assert isinstance(backbone.encoder, Counted)
    backbone.encoder.limit = 9
    with pytest.raises(KeyboardInterrupt):
        compute(backbone, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    backbone.encoder.limit = 10**9
    found, count = compute(backbone, tmp_path)
    assert count == 2
    assert np.array_equal(found, compute(backbone, tmp_path / "elsewhere")[0])


@pytest.mark.parametrize("harm", ["empty", "cut header", "cut data", "no array", "other shape", "other type"])
def test_a_damaged_chunk_is_computed_again(backbone: Backbone, tmp_path: Path, harm: str) -> None:
    """A file of the cache that cannot be what it should be is replaced and crashes no run."""
    first, _ = compute(backbone, tmp_path)
    file = min(file for file in tmp_path.iterdir() if len(np.load(file)) == 4)
    whole = file.read_bytes()
    if harm == "other shape":
        np.save(file, np.zeros((3, 3, 16), np.float32))
    elif harm == "other type":
        np.save(file, np.zeros((4, 3, 16), np.float64))
    else:
        file.write_bytes({"empty": b"", "cut header": whole[:20], "cut data": whole[:-1], "no array": b"{}" * 99}[harm])
    again, count = compute(backbone, tmp_path)
    assert count == 4
    assert np.array_equal(first, again)
    assert file.read_bytes() == whole


def test_a_full_disk(backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk that cannot be written is an error and leaves no file."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(RunError, match=r"\.npy: cannot be written \(\[Errno 28\] No space left on device\)"):
        compute(backbone, tmp_path)
    assert not list(tmp_path.iterdir())


def test_out_of_memory(backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the backbone's passes do not fit, one line says what to use instead, and no chunk is left."""

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(module, "pooled", full)
    with pytest.raises(RunError, match=r"^item views: out of memory; use --device cpu, or a smaller --backbone$"):
        compute_views(backbone, SENTENCES, tmp_path, CPU, "item views")
    assert not list(tmp_path.iterdir())


def test_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are taken across chunks, in the order asked for, as often as asked for."""
    monkeypatch.setattr(module, "CHUNK", 3)
    rows = np.arange(7 * 2 * 2, dtype=np.float32).reshape(7, 2, 2)
    views = Views([rows[:3], rows[3:6], rows[6:]])
    chosen = np.array([6, 0, 3, 0, 5])
    assert np.array_equal(views.take(chosen), rows[chosen])
    assert len(views) == 7


@given(st.lists(st.integers(1, 512), max_size=60))
def test_batches(lengths: list[int]) -> None:
    """Batches hold every sentence once, pad to at most BATCH_TOKENS unless a sentence is alone, and pad little."""
    batches = list(batches_by_length(lengths))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= module.BATCH_TOKENS
    ordered = [lengths[i] for batch in batches for i in batch]
    assert ordered == sorted(lengths, reverse=True)

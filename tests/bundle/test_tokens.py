"""levi_serve.bundle.tokens: our own truncation and padding, whatever the file asks for."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import models, pre_tokenizers, processors

from levi_serve.bundle.tokens import Tokenizer


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A tokenizer.json of words that pads to 12 tokens with id 7 and truncates at 2, as some published files do."""
    words = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3, "one": 4, "two": 5, "three": 6}
    fast = FastTokenizer(models.WordLevel(words, unk_token="[UNK]"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    fast.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    fast.enable_padding(pad_id=7, length=12)
    fast.enable_truncation(max_length=2)
    fast.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def test_encoding(file: Path) -> None:
    """Sentences get special tokens, are neither padded nor cut as the file asks, and are cut at our own limit."""
    tokenizer = Tokenizer.from_file(file, max_tokens=5, pad_id=0)
    assert tokenizer.encode(["one two", "", "one two three one two", "four"]) == [
        [1, 4, 5, 2],
        [1, 2],
        [1, 4, 5, 6, 2],
        [1, 3, 2],
    ]


def test_padding(file: Path) -> None:
    """A batch is as wide as its longest sentence, padded at the end with our id, and its mask marks the tokens."""
    ids, mask = Tokenizer.from_file(file, max_tokens=5, pad_id=9).pad([[1, 4, 2], [1], [5, 6]])
    assert ids.tolist() == [[1, 4, 2], [1, 9, 9], [5, 6, 9]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
    assert ids.dtype == mask.dtype == "int64"


def test_saved_and_read(file: Path, tmp_path: Path) -> None:
    """A tokenizer that was saved encodes the same after it is read again."""
    first = Tokenizer.from_file(file, max_tokens=4, pad_id=0)
    first.save(tmp_path / "again.json")
    again = Tokenizer.from_file(tmp_path / "again.json", max_tokens=4, pad_id=0)
    sentences = ["three two one two", "one"]
    assert again.encode(sentences) == first.encode(sentences) == [[1, 6, 5, 2], [1, 4, 2]]

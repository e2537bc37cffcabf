"""training.adapt: what trains and what stays, cached lower blocks, distinct sentences, LoRA, resume, export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import write_t5
from training import fit as loop
from training.adapt import BACKBONE, Adaptation, adapt, adapted_backbone, blocks, half, linear_head, problem
from training.backbones import Backbone, load_backbone, pooled
from training.datasets import load
from training.errors import RunError
from training.export import export
from training.options import Options, Recipe
from training.run import accelerator, fit, open_run
from training.splits import split

RECIPE = Recipe(epochs=1, batch=200, learning_rate=(1e-3,), weight_decay=0)
CPU = torch.device("cpu")


@pytest.fixture(params=["bert", "t5"])
def backbone(request: pytest.FixtureRequest, bert: Path, tmp_path: Path) -> Backbone:
    if request.param == "bert":
        return load_backbone(str(bert))
    (tmp_path / "t5").mkdir()
    return load_backbone(str(write_t5(tmp_path / "t5")))


def adapted(options: Options, backbone: Backbone, how: Any, out: Path, **changes: Any) -> Adaptation:
    dataset = load(options.dataset, options.data)
    recipe = RECIPE.model_copy(update=changes)
    return adapt(
        dataset, split(dataset, 0), backbone, how, "entity", recipe, out, out.parent / "cache", accelerator("cpu")
    )


def changed(one: Backbone, other: Backbone) -> set[str]:
    """Names of the parameters that differ."""
    theirs = dict(other.encoder.named_parameters())
    return {name for name, value in one.encoder.named_parameters() if not torch.equal(value, theirs[name])}


@pytest.mark.parametrize("how", ["lp", "ht", "ft", "lora", "fs"])
def test_what_changes(options: Options, backbone: Backbone, tmp_path: Path, how: str) -> None:
    """LP changes nothing, HT the upper half of the blocks, LoRA two matrices of each block, FT and FS everything."""
    record = adapted(options, backbone, how, tmp_path / "out")
    result = adapted_backbone(backbone, tmp_path / "out")
    names = changed(backbone, result)
    assert record.backbone_hash == result.fingerprint
    assert (record.backbone_hash == backbone.fingerprint) == (how == "lp")
    prefix = (
        "encoder.layer."
        if "encoder.layer.0.attention.self.query.weight" in dict(backbone.encoder.named_parameters())
        else "encoder.block."
    )
    if how == "lp":
        assert not names
    elif how == "ht":
        assert names
        assert all(name.startswith(f"{prefix}{half(backbone.encoder)}.") for name in names)
    elif how == "lora":
        assert len(names) == 4  # query and value of two blocks
        assert all(name.startswith(prefix) for name in names)
    else:
        assert any(not name.startswith(prefix) for name in names)
        assert any(name.startswith(prefix) for name in names)


def test_cached_lower_blocks_change_nothing(options: Options, backbone: Backbone, tmp_path: Path) -> None:
    """With the lower blocks' outputs read from the cache, ratings are those of the whole encoder."""
    dataset = load(options.dataset, options.data)
    rows = torch.arange(len(dataset.ratings))
    ratings = []
    for how in ("ht", "ft"):
        posed = problem(dataset, backbone, how, "entity", tmp_path / how, tmp_path, CPU)
        stage = posed.stage(RECIPE, rows, CPU)
        ratings.append(stage.rate(rows))
    torch.testing.assert_close(ratings[0], ratings[1], atol=1e-5, rtol=0)
    assert (ratings[0] - ratings[0].mean()).abs().max() > 1e-3


def test_a_sentence_is_encoded_once(options: Options, backbone: Backbone, tmp_path: Path) -> None:
    """A batch of ratings of one user and one item is two sentences, and the order of ratings is kept."""
    dataset = load(options.dataset, options.data)
    posed = problem(dataset, backbone, "ft", "entity", tmp_path, tmp_path, CPU)
    side = posed.side(0, torch.tensor([7, 3, 7, 7]))
    assert side.ids is not None
    assert len(side.ids) == 2
    assert side.place.tolist() == [1, 0, 1, 1]
    model = posed.stage(RECIPE, torch.arange(100), CPU).model.eval()
    ids, mask = map(torch.from_numpy, backbone.tokenizer.pad([posed.tokens[0][7]]))
    expected = pooled(backbone.encoder, ids, mask)[0, -1]
    torch.testing.assert_close(model.views(side)[side.place[2]], expected, atol=1e-5, rtol=0)


def test_rates_are_the_saved_head_on_the_saved_backbone(
    options: Options, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the best epoch predicted is the saved linear layer on the saved backbone's last views."""
    backbone = load_backbone(str(bert))
    record = adapted(options, backbone, "ft", tmp_path / "out")
    dataset = load(options.dataset, options.data)
    rows = torch.from_numpy(split(dataset, 0).selection)
    result = adapted_backbone(backbone, tmp_path / "out")
    posed = problem(dataset, result, "lp", "entity", tmp_path, tmp_path / "cache", CPU)
    assert posed.vectors is not None
    head = linear_head(result, "entity", tmp_path / "out", binary=False)
    rating = head([v[of[rows]] for v, of in zip(posed.vectors, posed.of, strict=True)]).detach().clamp(1, 5)
    assert float((rating - posed.value[rows]).square().mean().sqrt()) == pytest.approx(min(record.curve), abs=1e-5)


def test_killed_and_resumed(options: Options, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An adaptation that was killed ends with the same backbone as one that was not; a finished one does nothing."""
    backbone = load_backbone(str(bert))
    whole = adapted(options, backbone, "ht", tmp_path / "whole")
    save, calls = loop.one_cycle, 0

    def killing(done: float) -> float:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return save(done)

    with monkeypatch.context() as patches:
        patches.setattr(loop, "CHECKPOINT_SECONDS", -1)
        patches.setattr(loop, "one_cycle", killing)
        with pytest.raises(KeyboardInterrupt):
            adapted(options, backbone, "ht", tmp_path / "killed")
    resumed = adapted(options, backbone, "ht", tmp_path / "killed")
    assert resumed.curve == whole.curve
    parts = [adapted_backbone(backbone, tmp_path / name) for name in ("whole", "killed")]
    assert not changed(*parts)
    monkeypatch.setattr(loop.Fitter, "fit", None)
    assert adapted(options, backbone, "ht", tmp_path / "killed") == resumed


def test_accumulation(options: Options, bert: Path, tmp_path: Path) -> None:
    """A step in four parts is the step in one."""
    backbone = load_backbone(str(bert))
    curves = [adapted(options, backbone, "lp", tmp_path / str(n), accumulate=n).curve for n in (1, 4)]
    assert curves[0] == pytest.approx(curves[1], abs=1e-6)


@pytest.mark.parametrize("text", ["CUDA out of memory. Tried", "DefaultCPUAllocator: not enough memory: you tried"])
def test_out_of_memory(
    options: Options, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """When memory runs out, one line says at which step and what to reduce."""

    def full(*_: object) -> None:
        raise RuntimeError(text)

    monkeypatch.setattr("training.adapt.SentenceStage.loss", full)
    with pytest.raises(RunError, match=r"step 0: out of memory; reduce --batch, or raise --accumulate"):
        adapted(options, load_backbone(str(bert)), "ft", tmp_path / "out")


@pytest.mark.parametrize("how", ["ht", "lora"])
def test_levi_over_an_adapted_backbone(options: Options, cache: Path, tmp_path: Path, how: str) -> None:
    """A run over an adapted backbone keeps it in its folder, opens with it, and is exported like any other."""
    with_adapt = options.model_copy(update={"adapt": how, "adapt_epochs": 1, "adapt_learning_rate": (1e-3,)})
    fit(with_adapt, tmp_path / "run", cache, "cpu")
    run = open_run(tmp_path / "run", cache, "cpu")
    assert run.backbone is not None
    assert run.record.adapted_hash == run.backbone.fingerprint != run.record.backbone_hash
    if how == "ht":
        assert (export(run, tmp_path / "repository", "levi", 20) / "model.onnx").exists()
    weights = tmp_path / "run" / "adapted" / BACKBONE / "config.json"
    weights.write_text(weights.read_text() + " ")
    with pytest.raises(Exception, match="the adapted backbone changed since the fit"):
        open_run(tmp_path / "run", cache, "cpu")


@pytest.mark.parametrize("variant", ["heads-only", "batch-ensemble", "multi-head"])
def test_variants(options: Options, cache: Path, tmp_path: Path, variant: str) -> None:
    """Each variant is fitted and opened; one with other rows, and one with other weights, is exported with parity."""
    views = "none" if variant == "multi-head" else "entity"
    fit(options.model_copy(update={"variant": variant, "views": views}), tmp_path / "run", cache, "cpu")
    run = open_run(tmp_path / "run", cache, "cpu")
    assert run.model.shape.layers == (7 if variant == "multi-head" else 3)
    if variant != "multi-head":
        assert (export(run, tmp_path / "repository", "levi", 20) / "model.onnx").exists()


def test_blocks(backbone: Backbone) -> None:
    assert len(blocks(backbone.encoder)) == backbone.layers - 1

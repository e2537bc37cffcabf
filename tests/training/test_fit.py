"""training.fit: the loop, its choices, and that a fit killed anywhere ends with the same numbers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from training import fit as module
from training.checkpoint import Progress, load_checkpoint, save_checkpoint
from training.errors import RunError, UsageError
from training.features import Features
from training.fit import BEST, Fitted, Fitter, Fold, Views, ViewStage, mixed_seed, new_model, one_cycle, predict
from training.model import Levi
from training.options import Recipe
from training.run import Run, accelerator

RECIPE = Recipe(epochs=3, batch=100, learning_rate=(2e-3,), select="random")
STEPS = 8  # of each epoch: 832 training ratings in batches of 100


RATES = (2e-3, 5e-3)


@pytest.fixture
def fitter(entity_run: Run, tmp_path: Path) -> Fitter:
    """A fit of three epochs over the tiny dataset."""
    return Fitter(Views(entity_run.prepared), RECIPE, entity_run.bounds, accelerator("cpu"), tmp_path / "stages")


@pytest.fixture(scope="module")
def never_killed(entity_run: Run, fold: Fold, tmp_path_factory: pytest.TempPathFactory) -> tuple[Fitted, Path]:
    """What the same fit with two candidates comes to without a stop, and its stages' folder."""
    recipe = RECIPE.model_copy(update={"learning_rate": RATES})
    folder = tmp_path_factory.mktemp("whole")
    return run(Fitter(Views(entity_run.prepared), recipe, entity_run.bounds, accelerator("cpu"), folder), fold), folder


@pytest.fixture(scope="module")
def fold(entity_run: Run) -> Fold:
    """The split's own fold."""
    assert len(entity_run.split.train) // RECIPE.batch == STEPS
    return Fold(torch.from_numpy(entity_run.split.train), torch.from_numpy(entity_run.split.selection))


def changed(fitter: Fitter, folder: str, **recipe: Any) -> Fitter:
    """The same fit elsewhere, with other settings."""
    return dataclasses.replace(fitter, folder=fitter.folder / folder, recipe=fitter.recipe.model_copy(update=recipe))


def run(fitter: Fitter, fold: Fold) -> Fitted:
    return fitter.fit(fold.fitted, [fold])


def same_stages(one: Path, other: Path) -> bool:
    """Whether every stage ended with the same bits: parameters, best parameters and optimiser state."""
    files = sorted(path.relative_to(one) for path in one.rglob("*.safetensors"))
    assert len(files) == 4
    return all(
        (ours := load_file(one / file)).keys() == (theirs := load_file(other / file)).keys()
        and all(torch.equal(ours[name], theirs[name]) for name in ours)
        for file in files
    )


def same(one: Fitted, other: Fitted) -> bool:
    """Whether two fits ended with the same bits."""
    states = one.stage.model.state_dict(), other.stage.model.state_dict()
    return (
        (one.learning_rate, one.epochs, one.curve) == (other.learning_rate, other.epochs, other.curve)
        and states[0].keys() == states[1].keys()
        and all(torch.equal(states[0][name], states[1][name]) for name in states[0])
        and all(torch.equal(a, b) for a, b in zip(one.stage.ids, other.stage.ids, strict=True))
    )


def test_seeds(fitter: Fitter, fold: Fold) -> None:
    """Two fits with one seed end with the same bits, whatever was drawn before; another seed ends elsewhere."""
    first = run(changed(fitter, "a"), fold)
    torch.manual_seed(1234)
    torch.rand(100)
    assert same(first, run(changed(fitter, "b"), fold))
    assert not same(first, run(changed(fitter, "c", seed=1), fold))


def test_it_learns(fitter: Fitter, fold: Fold, entity_run: Run) -> None:
    """Some epochs on the tiny ratings bring the validation RMSE well below that of the mean rating."""
    values = entity_run.prepared.features.value
    mean_only = float((values[fold.held_out] - values[fold.fitted].mean()).square().mean().sqrt())  # type: ignore[index]
    fitted = run(changed(fitter, "a", epochs=10, learning_rate=(1e-2,)), fold)
    assert min(fitted.curve) < 0.95 * mean_only


class Killed(BaseException):
    """Not an error that anything would catch."""


def kill_at(monkeypatch: pytest.MonkeyPatch, name: str, call: int) -> None:
    """Make the `call`-th call of a function of the loop, counted from 1, end the process instead."""
    original, calls = getattr(module, name), 0

    def counted(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise Killed
        return original(*args)

    monkeypatch.setattr(module, name, counted)


@pytest.mark.parametrize("checkpoints", ["every step", "every epoch"])
@pytest.mark.parametrize(
    ("where", "call"),
    [
        ("one_cycle", 1),  # at the first step
        ("one_cycle", 4),  # inside an epoch
        ("one_cycle", STEPS + 1),  # at the first step of the second epoch
        ("save_checkpoint", 3),  # before it is written: in mid-epoch, or after the best parameters of the last epoch
        ("save_model", 1),  # an epoch is over, its parameters are not kept
        ("one_cycle", 3 * STEPS),  # at the last step
        ("one_cycle", 4 * STEPS + 3),  # in the second candidate
        ("load_model", 1),  # when all is done
    ],
)
def test_killed_and_resumed(
    fitter: Fitter,
    fold: Fold,
    never_killed: tuple[Fitted, Path],
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    call: int,
    checkpoints: str,
) -> None:
    """A fit killed at any point and run again ends with the parameters and the curves of one never stopped."""
    fitter = changed(fitter, "killed", learning_rate=RATES)
    with monkeypatch.context() as patches:
        patches.setattr(module, "CHECKPOINT_SECONDS", -1 if checkpoints == "every step" else math.inf)
        kill_at(patches, where, call)
        with pytest.raises(Killed):
            run(fitter, fold)
    assert same(run(fitter, fold), never_killed[0])
    assert same_stages(fitter.folder, never_killed[1])


def test_killed_again_and_again(
    fitter: Fitter, fold: Fold, never_killed: tuple[Fitted, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fit that gets some steps further each time ends with the same numbers too."""
    fitter = changed(fitter, "killed", learning_rate=RATES)
    monkeypatch.setattr(module, "CHECKPOINT_SECONDS", -1)
    attempts, done = 0, None
    while done is None:
        attempts += 1
        with monkeypatch.context() as patches:
            kill_at(patches, "one_cycle", 10)
            try:
                done = run(fitter, fold)
            except Killed:
                continue
    assert attempts == 6  # nine steps each, of 48
    assert same(done, never_killed[0])
    assert same_stages(fitter.folder, never_killed[1])


def test_resuming_does_not_start_over(fitter: Fitter, fold: Fold, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed fit does only the steps that were left, and a finished one none."""
    monkeypatch.setattr(module, "CHECKPOINT_SECONDS", -1)
    with monkeypatch.context() as patches:
        kill_at(patches, "one_cycle", 21)
        with pytest.raises(Killed):
            run(fitter, fold)
    steps = []
    original = module.one_cycle
    monkeypatch.setattr(module, "one_cycle", lambda done: steps.append(done) or original(done))
    run(fitter, fold)
    assert [round(done * 3 * STEPS - 0.5) for done in steps] == [20, 21, 22, 23]
    run(fitter, fold)
    assert len(steps) == 4


def test_checkpoints_survive_a_kill_while_writing(fitter: Fitter, fold: Fold, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill while a checkpoint is being written leaves the one before whole."""
    run(fitter, fold)
    file = fitter.folder / "rate-0.002-fold-0" / "checkpoint.safetensors"
    before = file.read_bytes()

    def half(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(before[: len(before) // 2])
        raise Killed

    monkeypatch.setattr("training.checkpoint.save_file", half)
    model = Levi(fitter.problem.prepared.shape)
    with pytest.raises(Killed):
        save_checkpoint(file, model, torch.optim.AdamW(model.parameters()), Progress())
    assert file.read_bytes() == before


def test_a_damaged_checkpoint(fitter: Fitter, fold: Fold) -> None:
    """A checkpoint that was cut, or is of another model, is an error that names the file and what to do."""
    run(fitter, fold)
    file = fitter.folder / "rate-0.002-fold-0" / "checkpoint.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(RunError, match=r"checkpoint\.safetensors: damaged checkpoint .*delete it to start this stage"):
        run(fitter, fold)
    file.write_bytes(whole)
    model = torch.nn.Linear(1, 1)
    with pytest.raises(RunError, match="damaged checkpoint"):
        load_checkpoint(file, model, torch.optim.AdamW(model.parameters()))


def test_loss_that_is_no_number(fitter: Fitter, fold: Fold, monkeypatch: pytest.MonkeyPatch) -> None:
    """A NaN loss ends the fit with the step's number; the checkpoint before it is kept and continues."""
    expected = run(changed(fitter, "whole"), fold)
    fitter = changed(fitter, "nan")
    original, calls = Levi.loss, 0

    def diverging(self: Levi, heads: Tensor, target: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return original(self, heads, target) * (math.nan if calls == 10 else 1)

    with monkeypatch.context() as patches:
        patches.setattr(module, "CHECKPOINT_SECONDS", -1)
        patches.setattr(Levi, "loss", diverging)
        with pytest.raises(
            RunError, match=r"rate-0.002-fold-0: the loss is nan at step 9; try a lower --learning-rate"
        ):
            run(fitter, fold)
    model = Levi(fitter.problem.prepared.shape)
    file = fitter.folder / "rate-0.002-fold-0" / "checkpoint.safetensors"
    assert load_checkpoint(file, model, torch.optim.AdamW(model.parameters())).step == 9
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert same(run(fitter, fold), expected)


@pytest.mark.parametrize("batch", [100, 1000])
def test_divergence(fitter: Fitter, fold: Fold, batch: int) -> None:
    """An absurd learning rate is an error, be it noticed in the loss or, after an epoch's only step, in validation."""
    with pytest.raises(RunError, match="try a lower --learning-rate"):
        run(changed(fitter, "a", learning_rate=(1e30,), batch=batch), fold)


def test_best_learning_rate(fitter: Fitter, fold: Fold) -> None:
    """Of several learning rates the one with the lowest validation RMSE is kept, as if it had been the only one."""
    both = run(changed(fitter, "both", learning_rate=(1e-7, 1e-2, 1e-6)), fold)
    assert both.learning_rate == 1e-2
    assert same(both, run(changed(fitter, "one", learning_rate=(1e-2,)), fold))


@pytest.mark.parametrize(("errors", "best"), [((3, 1, 2), 2), ((1, 2, 3), 1), ((3, 2, 1), 3), ((2, 1, 1), 2)])
def test_best_epoch(
    fitter: Fitter, fold: Fold, monkeypatch: pytest.MonkeyPatch, errors: tuple[float, ...], best: int
) -> None:
    """The parameters returned are those after the epoch with the lowest validation RMSE, the first of equal ones."""
    after: list[dict[str, Tensor]] = []

    def validate(self: Fitter, stage: ViewStage, *_: object) -> float:
        after.append({name: tensor.clone() for name, tensor in stage.model.state_dict().items()})
        return float(errors[len(after) - 1])

    monkeypatch.setattr(Fitter, "_validate", validate)
    fitted = run(fitter, fold)
    assert (fitted.epochs, fitted.curve) == (best, errors)
    for name, tensor in fitted.stage.model.state_dict().items():
        assert torch.equal(tensor, after[best - 1][name])


def test_validation_is_clipped_and_weighted(fitter: Fitter, fold: Fold, monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation is the RMSE of the weighted mean of the heads, clipped to the rating range."""
    features = fitter.problem.prepared.features
    rows = torch.tensor([0, 1])
    heads = torch.tensor([[9.0, 9.0, 9.0], [2.0, 3.0, 5.0]])
    monkeypatch.setattr(module, "predict", lambda *_: heads)
    model = Levi(fitter.problem.prepared.shape)
    model.weights.copy_(torch.tensor([0.5, 0.5, 0.0]))
    errors = [5 - float(features.value[0]), 2.5 - float(features.value[1])]
    assert fitter._validate(ViewStage(model, features, features.known_ids(rows), RECIPE), rows) == pytest.approx(
        np.sqrt(np.mean(np.square(errors)))
    )


@pytest.mark.parametrize("select", ["random", "item"])
def test_what_is_fitted_on(fitter: Fitter, entity_run: Run, monkeypatch: pytest.MonkeyPatch, select: str) -> None:
    """Held-out ratings, and with grouped folds their items, are in no batch; only the refit sees all of training."""
    train = torch.from_numpy(entity_run.split.train)
    item = entity_run.prepared.features.item
    if select == "item":
        masks = [item[train] % 2 == parity for parity in (0, 1)]
        folds = [Fold(train[~held_out], train[held_out]) for held_out in masks]
    else:
        folds = [Fold(train, torch.from_numpy(entity_run.split.selection))]
    seen: list[tuple[set[int], set[int], set[int]]] = []  # per stage: ratings, items, id-embedding rows
    stage, batch = Fitter._stage, Features.batch

    def new_stage(self: Fitter, *args: Any) -> Any:
        seen.append((set(), set(), set()))
        return stage(self, *args)

    def noted(self: Features, rows: Tensor, ids: tuple[Tensor, Tensor]) -> Any:
        out = batch(self, rows, ids)
        if torch.is_grad_enabled():  # fitting, not validating
            for place, values in zip(seen[-1], (rows, self.item[rows], out.ids[1]), strict=True):
                place.update(values.tolist())
        else:  # an item that is held out has no id that was trained
            assert bool((out.ids[1] == 0).all()) == (select == "item")
        return out

    monkeypatch.setattr(Fitter, "_stage", new_stage)
    monkeypatch.setattr(Features, "batch", noted)
    fitted = changed(fitter, "a", select=select, epochs=6).fit(train, folds)
    assert len(seen) == len(folds) + 1
    for (rows, items, ids), fold in zip(seen, folds, strict=False):
        assert fold.held_out is not None
        assert rows == set(fold.fitted.tolist())
        assert not rows & set(fold.held_out.tolist())
        if select == "item":
            assert not items & set(item[fold.held_out].tolist())
            assert ids == {i + 1 for i in items}
    if select == "item":
        assert seen[-1][0] == set(train.tolist())
        assert torch.equal(fitted.stage.ids[1] > 0, torch.isin(torch.arange(len(fitted.stage.ids[1])), item[train]))


def test_refit(fitter: Fitter, fold: Fold, monkeypatch: pytest.MonkeyPatch) -> None:
    """After grouped folds, the model is fitted anew on all of training for the epochs whose mean error was lowest."""
    errors = iter([3.0, 1.0, 2.0, 5.0, 5.0, 2.0])  # the folds' mean is 4, 3, 2: the second fold alone would stop there
    stops = []
    stage = Fitter._stage
    monkeypatch.setattr(Fitter, "_validate", lambda *_: next(errors))
    monkeypatch.setattr(Fitter, "_stage", lambda self, *args: stops.append((args[0], args[3])) or stage(self, *args))
    fitted = changed(fitter, "a", select="item").fit(fold.fitted, [fold, fold])
    assert fitted.curve == (4.0, 3.0, 2.0)
    assert fitted.epochs == 3
    assert stops == [("rate-0.002-fold-0", None), ("rate-0.002-fold-1", None), ("refit", 3)]


def test_a_shorter_refit_follows_the_same_schedule(fitter: Fitter, fold: Fold, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refit of two of three epochs ends where a fit of three is after two: its learning rates are not squeezed."""
    refit, progress = fitter._stage("refit", Fold(fold.fitted, None), 2e-3, 2)
    assert progress.step == 2 * STEPS
    kill_at(monkeypatch, "one_cycle", 2 * STEPS + 1)
    with pytest.raises(Killed):
        fitter._stage("whole", Fold(fold.fitted, None), 2e-3, None)
    halfway = load_file(fitter.folder / "whole" / "checkpoint.safetensors")
    assert all(torch.equal(tensor, halfway[f"model.{name}"]) for name, tensor in refit.model.state_dict().items())


def test_a_step_is_adamw(fitter: Fitter, fold: Fold, monkeypatch: pytest.MonkeyPatch) -> None:
    """One step on one batch is AdamW's, at the schedule's rate, on the loss with nothing hidden and nothing dropped."""
    monkeypatch.setattr(module, "hide", lambda ids, _: ids)
    monkeypatch.setattr(torch.nn.functional, "dropout", lambda x, *_: x)
    one_step = changed(fitter, "a", epochs=1, batch=800, weight_decay=5.0)
    model = one_step._stage("one", Fold(fold.fitted, None), 2e-3, None)[0].model

    features = fitter.problem.prepared.features
    expected = new_model(fitter.problem.prepared, one_step.recipe, features.value[fold.fitted])
    before = {name: parameter.detach().clone() for name, parameter in expected.named_parameters()}
    order = torch.Generator().manual_seed(mixed_seed(0, 0))
    rows = fold.fitted[torch.randperm(len(fold.fitted), generator=order)][:800]
    heads = expected(features.batch(rows, features.known_ids(fold.fitted)))
    (heads - features.value[rows].unsqueeze(1)).square().mean().backward()
    rate = 2e-3 * one_cycle(0.5)
    for name, parameter in expected.named_parameters():
        g = parameter.grad
        assert g is not None
        step = before[name] * (1 - rate * 5) - rate * g / (g.abs() + 1e-8)
        torch.testing.assert_close(model.get_parameter(name).detach(), step, atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("sides", [(0.0, 0.5), (0.5, 0.0)])
def test_hidden_ids(fitter: Fitter, fold: Fold, monkeypatch: pytest.MonkeyPatch, sides: tuple[float, float]) -> None:
    """hide_user hides users and hide_item items, others in every step, while fitting only."""
    shares: list[list[float]] = [[], []]
    patterns: set[tuple[bool, ...]] = set()
    plain = Levi.forward

    def noted(self: Levi, batch: Any) -> Tensor:
        if torch.is_grad_enabled():
            for side in (0, 1):
                shares[side].append(float((batch.ids[side] == 0).double().mean()))
            patterns.add(tuple((batch.ids[0] * batch.ids[1] == 0).tolist()))
        else:
            assert (batch.ids[0] > 0).all()
        return plain(self, batch)

    monkeypatch.setattr(Levi, "forward", noted)
    run(changed(fitter, "a", hide_user=sides[0], hide_item=sides[1]), fold)
    assert len(patterns) == 3 * STEPS
    for found, share in zip(shares, sides, strict=True):
        assert np.mean(found) == pytest.approx(share, abs=0.05 if share else 0)


def test_new_model(fitter: Fitter, fold: Fold) -> None:
    """A model starts from the seed, the data's projections, the layer weights and the mean of its training ratings."""
    features = fitter.problem.prepared.features
    ratings = features.value[fold.fitted]
    model = new_model(fitter.problem.prepared, RECIPE.model_copy(update={"weights": "1,0,3"}), ratings)
    assert model.weights.tolist() == [0.25, 0, 0.75]
    assert float(model.center) == pytest.approx(float(ratings.mean()))
    for projection, state in zip(model.projections(), fitter.problem.prepared.projections, strict=True):
        assert all(torch.equal(tensor, state[name]) for name, tensor in projection.state_dict().items())
    assert torch.equal(model.tower.weight, new_model(fitter.problem.prepared, RECIPE, ratings).tower.weight)
    other = new_model(fitter.problem.prepared, RECIPE.model_copy(update={"seed": 1}), ratings)
    assert not torch.equal(model.tower.weight, other.tower.weight)
    with pytest.raises(UsageError, match="--weights 1,2: 2 weights for 3 layers"):
        new_model(fitter.problem.prepared, RECIPE.model_copy(update={"weights": "1,2"}), ratings)


def batches(fitter: Fitter, fold: Fold, first: int = 0, last: int = 2 * STEPS) -> list[tuple[int, list[int]]]:
    return [(step, rows.tolist()) for step, rows in fitter._batches(fold.fitted, STEPS, first, last)]


def test_batches(fitter: Fitter, fold: Fold) -> None:
    """An epoch visits distinct training ratings in full batches, in an order that seed and epoch decide."""
    found = batches(fitter, fold)
    assert [step for step, _ in found] == list(range(2 * STEPS))
    assert {len(rows) for _, rows in found} == {RECIPE.batch}
    epochs = [[row for _, rows in found[at : at + STEPS] for row in rows] for at in (0, STEPS)]
    train = set(fold.fitted.tolist())
    assert all(len(set(epoch)) == STEPS * RECIPE.batch and set(epoch) <= train for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert batches(fitter, fold) == found
    assert batches(changed(fitter, "a", seed=1), fold)[0] != found[0]


@given(data=st.data())
def test_batches_from_any_step(data: st.DataObject) -> None:
    """Starting at any step gives the batches that the whole run has from there, up to any other step."""
    nothing: Any = None
    fitter = Fitter(nothing, Recipe(batch=3), (1, 5), accelerator("cpu"), Path())
    steps = data.draw(st.integers(1, 4))
    fold = Fold(torch.arange(3 * steps + data.draw(st.integers(0, 2))), None)
    last = data.draw(st.integers(0, 4 * steps))
    first = data.draw(st.integers(0, last))
    whole = [(s, r.tolist()) for s, r in fitter._batches(fold.fitted, steps, 0, 4 * steps)]
    assert [(s, r.tolist()) for s, r in fitter._batches(fold.fitted, steps, first, last)] == whole[first:last]


def test_processes_share_a_batch(fitter: Fitter, fold: Fold) -> None:
    """Every process takes its part of each batch, and together they take all of it."""
    fake: Callable[[int], Any] = lambda rank: SimpleNamespace(process_index=rank, num_processes=3)  # noqa: E731
    parts = [batches(dataclasses.replace(fitter, accelerator=fake(rank)), fold) for rank in range(3)]
    for (step, whole), *shares in zip(batches(fitter, fold), *parts, strict=True):
        assert [number for number, _ in shares] == [step] * 3
        assert sorted(row for _, rows in shares for row in rows) == sorted(whole)
        assert max(len(rows) for _, rows in shares) - min(len(rows) for _, rows in shares) <= 1


def test_fewer_ratings_than_a_batch(fitter: Fitter, fold: Fold) -> None:
    """With fewer ratings than a batch, an epoch is one step over all of them."""
    found = list(changed(fitter, "a", batch=10_000)._batches(fold.fitted, 1, 0, 2))
    assert [len(rows) for _, rows in found] == [len(fold.fitted)] * 2


def test_one_cycle() -> None:
    """The rate starts at 4 % of its peak, is at it after 30 % of the fit, at half on the way down, and ends at 0."""
    assert one_cycle(0) == pytest.approx(0.04)
    assert one_cycle(0.15) == pytest.approx(0.52)
    assert one_cycle(0.3) == pytest.approx(1)
    assert one_cycle(0.65) == pytest.approx(0.5)
    assert one_cycle(1) == pytest.approx(0)
    rates = [one_cycle(done / 1000) for done in range(1001)]
    assert np.argmax(rates) == 300
    assert max(abs(np.diff(rates))) < 0.01  # no jump


def test_predict_in_parts(entity_run: Run) -> None:
    """Predictions do not depend on how many are made at once, and keep the rows' order."""
    rows = torch.tensor([5, 3, 900, 3, 7])
    whole = predict(entity_run.model, entity_run.prepared.features, rows, entity_run.ids)
    parts = predict(entity_run.model, entity_run.prepared.features, rows, entity_run.ids, size=2)
    torch.testing.assert_close(whole, parts)
    torch.testing.assert_close(whole[1], whole[3])
    assert whole.shape == (5, 3)
    assert not torch.equal(whole[0], whole[1])


def test_mixed_seeds() -> None:
    """Seeds of neighbouring numbers differ and fit a generator."""
    seeds = {mixed_seed(a, b) for a in range(20) for b in range(20)}
    assert len(seeds) == 400
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert BEST.endswith(".safetensors")


def test_trial(fitter: Fitter, fold: Fold) -> None:
    """After the trial only the best rate goes on, and ends where it would have ended without the others."""
    tried = changed(fitter, "trial", learning_rate=(1e-7, 1e-2, 1e-6), trial=1)
    fitted = run(tried, fold)
    assert fitted.learning_rate == 1e-2
    assert same(fitted, run(changed(fitter, "one", learning_rate=(1e-2,)), fold))
    steps = {}
    for name in ("1e-07", "0.01", "1e-06"):
        model = Levi(fitter.problem.prepared.shape)
        file = tried.folder / f"rate-{name}-fold-0" / "checkpoint.safetensors"
        steps[name] = load_checkpoint(file, model, torch.optim.AdamW(model.parameters())).step
    assert steps == {"1e-07": STEPS, "0.01": 3 * STEPS, "1e-06": STEPS}


def test_accumulation(fitter: Fitter, fold: Fold, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step in parts of unequal size is the step in one piece, when nothing is drawn."""
    monkeypatch.setattr(module, "hide", lambda ids, _: ids)
    monkeypatch.setattr(torch.nn.functional, "dropout", lambda x, *_: x)
    curves = [run(changed(fitter, str(n), accumulate=n, epochs=1), fold).curve for n in (1, 3)]
    assert curves[0] == pytest.approx(curves[1], abs=1e-5)

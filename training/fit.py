"""The training loop: fits tower and heads on views, or a backbone on sentences; picks rate and epochs on ID data.

A fit is a row of stages: one per candidate (and fold), then perhaps a refit. A stage can be killed at any moment:
every step draws its dropout and its hidden ids from a generator seeded by (seed, step), and the learning rate is a
function of the step. So a checkpoint is parameters, optimiser state and the step, and a resumed stage ends with the
same numbers as one that was never stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from levi_serve.bundle.schema import Frozen
from training.bilinear import BilinearLevi, sample_heads
from training.checkpoint import Progress, load_checkpoint, load_model, save_checkpoint, save_model
from training.errors import RunError, UsageError
from training.features import Features, Prepared
from training.memory import enough_memory
from training.model import FactorSize, Levi, Network, layer_weights
from training.options import Recipe
from training.progress import track
from training.stream import Stream

CHECKPOINT_SECONDS = 20.0
"""A killed fit loses at most this much work, or an epoch where that is shorter."""

BEST = "best.safetensors"
"""A stage's parameters after its best epoch on validation."""


@dataclass(frozen=True)
class Fold:
    """Rows of ratings to fit on, or a stream of them; rows to validate on, none for a fit of known length."""

    fitted: Tensor | Stream
    held_out: Tensor | None


Forward: TypeAlias = Callable[[Any], Tensor]
"""The model's call, as the accelerator has wrapped it."""


class Stage(Protocol):
    """One model, and how the loop sees it and its data."""

    @property
    def model(self) -> nn.Module:
        """What is fitted."""

    def loss(self, forward: Forward, rows: Tensor) -> Tensor:
        """The mean loss of some training ratings, with everything that is drawn while fitting: a scalar.

        `rows` are row numbers, or [B, 3] of a stream.
        """

    def rate(self, rows: Tensor) -> Tensor:
        """Predictions [len(rows)], not clipped, without anything that is drawn."""


class Problem(Protocol):
    """What is fitted: `Views` here, or `adapt.Sentences`."""

    @property
    def value(self) -> Tensor:
        """All ratings [m]."""

    def stage(self, recipe: Recipe, fitted: Any, device: torch.device) -> Stage:
        """A model before its first step that is to be fitted on the ratings in `fitted`."""


@dataclass(frozen=True)
class Views:
    """The problem of LEVI: tower and heads on prepared views."""

    prepared: Prepared

    @property
    def value(self) -> Tensor:
        """All ratings [m]."""
        return self.prepared.features.value

    def stage(self, recipe: Recipe, fitted: Tensor | Stream, device: torch.device) -> ViewStage:
        """A new model, for which only entities of the `fitted` ratings have ids."""
        model = new_model(self.prepared, recipe, self.prepared.features.rated(fitted)).to(device)
        return ViewStage(model, self.prepared.features, self.prepared.features.known_ids(fitted), recipe)


@dataclass(frozen=True)
class ViewStage:
    """A LEVI model and the ids that it knows."""

    model: Network
    features: Features
    ids: tuple[Tensor, Tensor]
    """Id-embedding row of each user and item, 0 where it was not in training."""
    recipe: Recipe

    def loss(self, forward: Forward, rows: Tensor) -> Tensor:
        """The heads' loss with a share of the ids hidden."""
        features = self.features
        if rows.dim() == 2:
            features, rows = features.of(rows), torch.arange(len(rows), device=rows.device)
        batch = features.batch(rows, self.ids)
        hidden = hide(batch.ids[0], self.recipe.hide_user), hide(batch.ids[1], self.recipe.hide_item)
        return self.model.loss(forward(batch._replace(ids=hidden)), features.value[rows])

    def rate(self, rows: Tensor) -> Tensor:
        """The weighted mean of the heads."""
        return self.model.rating(predict(self.model, self.features, rows, self.ids))


class Choice(Frozen):
    """What validation chose, and by which errors."""

    learning_rate: float
    curve: tuple[float, ...]
    """Validation RMSE per epoch of that rate, averaged over folds."""

    @property
    def epochs(self) -> int:
        """The best epoch."""
        return 1 + int(np.argmin(self.curve))


@dataclass(frozen=True)
class Fitted:
    """The result of a fit."""

    stage: Stage
    learning_rate: float
    epochs: int
    curve: tuple[float, ...]
    """Validation RMSE per epoch of the chosen candidate, averaged over folds."""
    seconds: float
    random: Choice | None = None
    """Of a grouped choice: what the random part would have chosen."""


@dataclass(frozen=True)
class Fitter:
    """What every stage of one fit shares."""

    problem: Problem
    recipe: Recipe
    bounds: tuple[float, float]
    accelerator: Accelerator
    folder: Path
    """Where the stages keep their checkpoints."""

    def fit(self, train: Tensor | Stream, folds: Sequence[Fold], random: Fold | None = None) -> Fitted:
        """Try every learning rate on every fold, keep the best epoch of the best one.

        With one random fold the kept parameters are those of that epoch; with grouped folds the model is fitted again
        on all of `train` for as many epochs, and what the `random` one would have chosen is told beside.

        Raises:
            RunError: the loss became NaN or infinite; every checkpoint before that is kept.
        """
        choice, seconds = self._choose([f"fold-{k}" for k in range(len(folds))], folds)
        beside = None
        if random is not None:
            beside, more = self._choose(["random"], [random])
            seconds += more
        rate = choice.learning_rate
        if self.recipe.select == "random":
            stage, _ = self._stage(f"rate-{rate:g}-fold-0", folds[0], rate, None)
            load_model(self.folder / f"rate-{rate:g}-fold-0" / BEST, stage.model)
            self.accelerator.wait_for_everyone()  # the main process removes the file when it has finished
        else:
            stage, progress = self._stage("refit", Fold(train, None), rate, choice.epochs)
            seconds += progress.seconds
        stage.model.eval()
        return Fitted(stage, rate, choice.epochs, choice.curve, seconds, beside)

    def _choose(self, names: Sequence[str], folds: Sequence[Fold]) -> tuple[Choice, float]:
        """The best learning rate by the mean error over folds, and the seconds that it took."""
        recipe, known = self.recipe, len(self.recipe.learning_rate) > 1
        done = self._candidates(names, folds, recipe.learning_rate, recipe.trial if known else 0)
        if known and recipe.trial:
            done |= self._candidates(names, folds, [min(done, key=lambda rate: min(done[rate].curve))], 0)
        rate = min(done, key=lambda r: (len(done[r].curve) < recipe.epochs, min(done[r].curve)))
        chosen = Choice(learning_rate=rate, curve=done[rate].curve)
        return chosen, sum(progress.seconds for progress in done.values())

    def _candidates(
        self, names: Sequence[str], folds: Sequence[Fold], rates: Sequence[float], stop: int
    ) -> dict[float, Progress]:
        """Fit each rate on every fold, up to epoch `stop` (0: to the end); curves are means over the folds."""
        out = {}
        for rate in rates:
            stages = [f"rate-{rate:g}-{name}" for name in names]
            done = [self._stage(name, fold, rate, stop or None)[1] for name, fold in zip(stages, folds, strict=True)]
            curve = tuple(np.mean([progress.curve for progress in done], axis=0).tolist())
            out[rate] = Progress(step=done[0].step, curve=curve, seconds=sum(progress.seconds for progress in done))
        return out

    def _stage(self, name: str, fold: Fold, rate: float, stop: int | None) -> tuple[Stage, Progress]:
        """Fit one model, or finish what an earlier attempt left; `stop` ends the schedule after so many epochs."""
        recipe, problem, accelerator = self.recipe, self.problem, self.accelerator
        folder = self.folder / name
        stage = problem.stage(recipe, fold.fitted, accelerator.device)
        model = stage.model
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=recipe.weight_decay)
        wrapped, accelerated = accelerator.prepare(model, optimizer)
        accelerator.wait_for_everyone()  # all see the same checkpoint, or none
        checkpoint = folder / "checkpoint.safetensors"
        progress = load_checkpoint(checkpoint, model, optimizer) if checkpoint.exists() else Progress()
        steps = max(1, len(fold.fitted) // recipe.batch)  # an incomplete last batch waits for the next epoch's order
        last = (stop or recipe.epochs) * steps
        saved = time.monotonic()
        for step, rows in track(self._batches(fold.fitted, steps, progress.step, last), last - progress.step, name):
            optimizer.param_groups[0]["lr"] = rate * one_cycle((step + 0.5) / (recipe.epochs * steps))
            torch.manual_seed(mixed_seed(recipe.seed, step, accelerator.process_index))
            model.train()
            accelerated.zero_grad()
            with enough_memory(f"{folder}: step {step}", "reduce --batch, or raise --accumulate"):
                for part in rows.chunk(recipe.accumulate):
                    loss = stage.loss(wrapped, part) * (len(part) / len(rows))
                    if not loss.isfinite():
                        raise RunError(
                            f"{folder}: the loss is {loss.item()} at step {step}; try a lower --learning-rate"
                        )
                    accelerator.backward(loss)
            accelerated.step()
            epoch_over, curve = (step + 1) % steps == 0, progress.curve
            if epoch_over and fold.held_out is not None:
                error = self._validate(stage, fold.held_out)
                if not math.isfinite(error):
                    raise RunError(f"{folder}: validation gives {error} after step {step}; try a lower --learning-rate")
                if error < min(curve, default=math.inf) and accelerator.is_main_process:
                    save_model(folder / BEST, model)
                curve += (error,)
            now = time.monotonic()
            if epoch_over or now - saved > CHECKPOINT_SECONDS:
                progress = Progress(step=step + 1, curve=curve, seconds=progress.seconds + now - saved)
                if accelerator.is_main_process:
                    save_checkpoint(checkpoint, model, optimizer, progress)
                saved = now
        accelerator.wait_for_everyone()  # until the main process has written what it keeps
        return stage, progress

    def _batches(self, fitted: Tensor | Stream, steps: int, first: int, last: int) -> Iterator[tuple[int, Tensor]]:
        """Steps from `first` on with this process' share of their ratings; an epoch's order follows from its number."""
        rank, processes, size = self.accelerator.process_index, self.accelerator.num_processes, self.recipe.batch
        for epoch in range(first // steps, math.ceil(last / steps)):
            order = torch.Generator().manual_seed(mixed_seed(self.recipe.seed, epoch))
            blocks: Iterator[Tensor]
            if isinstance(fitted, Stream):
                blocks = (block.to(self.accelerator.device) for block in fitted.shuffled(order))
            else:
                blocks = iter([fitted[torch.randperm(len(fitted), generator=order).to(fitted.device)]])
            start, end = max(first - epoch * steps, 0), min(last - epoch * steps, steps)
            for step, batch in islice(enumerate(cut(blocks, size)), start, end):
                yield epoch * steps + step, batch[rank::processes]

    def _validate(self, stage: Stage, rows: Tensor) -> float:
        rating = stage.rate(rows).clamp(*self.bounds)
        return float((rating - self.problem.value[rows]).square().double().mean().sqrt())


def fit_by_sampling(
    prepared: Prepared, recipe: Recipe, bounds: tuple[float, float], train: Tensor, folds: Sequence[Fold], folder: Path
) -> Fitted:
    """Fit heads that are sampled, not descended to: there is no learning rate and no epoch to choose.

    The model of one random fold is kept; grouped folds only tell what it is worth, and it is fitted again on `train`.
    Finished heads lie in `folder` until the fit is over.
    """
    began, features, errors = time.monotonic(), prepared.features, []

    def sampled(rows: Tensor, name: str) -> ViewStage:
        model = new_model(prepared, recipe, features.value[rows]).to(rows.device)
        assert isinstance(model, BilinearLevi)
        sample_heads(model, features, rows.cpu().numpy(), recipe.seed, folder / name)
        return ViewStage(model.eval(), features, features.known_ids(rows), recipe)

    for k, fold in enumerate(folds):
        assert fold.held_out is not None
        assert isinstance(fold.fitted, Tensor)
        stage = sampled(fold.fitted, f"fold-{k}")
        error = stage.rate(fold.held_out).clamp(*bounds) - features.value[fold.held_out]
        errors.append(float(error.square().double().mean().sqrt()))
    if recipe.select != "random":
        stage = sampled(train, "refit")
    size = prepared.shape.size
    assert isinstance(size, FactorSize)
    return Fitted(
        stage=stage,
        learning_rate=0.0,
        epochs=size.sampling.burn_in + size.sampling.samples,
        curve=(float(np.mean(errors)),),
        seconds=time.monotonic() - began,
    )


@torch.inference_mode()
def predict(model: Network, features: Features, rows: Tensor, ids: tuple[Tensor, Tensor], size: int = 16_384) -> Tensor:
    """Head ratings [len(rows), n], unclipped, of the ratings in `rows`."""
    model.eval()
    return torch.cat([model(features.batch(part, ids)) for part in torch.split(rows, size)])


def new_model(prepared: Prepared, recipe: Recipe, ratings: Tensor) -> Network:
    """A model before its first step: seeded initial weights, the data's projections, layer weights and mean rating; or
    what an earlier model has learnt.
    """
    torch.manual_seed(recipe.seed)
    sampled = isinstance(prepared.shape.size, FactorSize)
    model: Network = BilinearLevi(prepared.shape) if sampled else Levi(prepared.shape)
    for projection, state in zip(model.projections(), prepared.projections, strict=True):
        projection.load_state_dict(state)
    model.weights.copy_(torch.tensor(head_weights(recipe, prepared.shape.layers)))
    center = ratings.double().mean()
    model.center.fill_(float(center.logit() if prepared.shape.binary else center))
    if prepared.start is not None:
        model.load_state_dict(dict(prepared.start))
    return model


def head_weights(recipe: Recipe, layers: int) -> list[float]:
    """The weights of the heads.

    Raises:
        UsageError: they do not fit the backbone.
    """
    try:
        return layer_weights(recipe.weights, layers)
    except ValueError as error:
        raise UsageError(f"--weights {recipe.weights}: {error}") from None


def cut(blocks: Iterator[Tensor], size: int) -> Iterator[Tensor]:
    """Batches of `size` out of blocks; what is left of a block begins the next one's first batch.

    What is left of the last block is dropped, unless there is no other batch.
    """
    left, full = None, False
    for block in blocks:
        whole = block if left is None else torch.cat([left, block])
        batches = list(torch.split(whole, size))
        left = batches.pop() if len(batches[-1]) < size else None
        full = full or bool(batches)
        yield from batches
    if left is not None and not full:
        yield left


def one_cycle(done: float) -> float:
    """Learning rate as a share of its peak: a cosine up over the first 30 % of the fit, a cosine down to 0 after."""
    warm = 0.3
    if done < warm:
        return 0.04 + 0.96 * (1 - math.cos(math.pi * done / warm)) / 2
    return (1 + math.cos(math.pi * (done - warm) / (1 - warm))) / 2


def hide(ids: Tensor, share: float) -> Tensor:
    """The ids with a random share set to 0, so that the embedding of the unknown id is trained."""
    return ids.masked_fill(torch.rand(len(ids), device=ids.device) < share, 0)


def mixed_seed(*parts: int) -> int:
    """One seed of several numbers; neighbouring numbers give unrelated seeds."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)

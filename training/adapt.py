"""Adapting a backbone to the ratings before LEVI: LP, HT, FT, LP→FT, LoRA, and FS, the same network from scratch.

An encoder and one linear layer on its last view are fitted by the common loop; the encoder is then saved as a folder
like any other backbone, with a fingerprint of its own (paper Remark 5, Sec. 5.3, App. D.2). A batch encodes each of
its distinct sentences once. What frozen lower blocks make of a sentence is computed once, before the fit.
"""

from __future__ import annotations

import copy
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name
from transformers import AutoModelForTextEncoding

from levi_serve.bundle import FloatArray, Int64Array
from levi_serve.bundle.schema import Frozen
from training.atomic import publish_folder, staged_folder
from training.backbones import Backbone, load_backbone, pooled
from training.checkpoint import load_model, save_model, write_json
from training.datasets.dataset import Dataset
from training.errors import UsageError
from training.features import sentences
from training.fit import Fitter, Fold, Forward
from training.options import AdaptKind, Recipe, ViewKind
from training.progress import track
from training.splits import Split
from training.views import batches_by_length, compute_views

ADAPTED, BACKBONE, HEAD, STAGES = "adapted.json", "backbone", "head.safetensors", "adapting"
LORA_RANK, LORA_ALPHA = 8, 16
"""Rank and scale of LoRA; its targets, query and value of every block, are peft's choice for the architecture."""


class Adaptation(Frozen):
    """adapted.json: written last."""

    how: AdaptKind
    learning_rate: float
    epochs: int
    curve: tuple[float, ...]
    """Validation RMSE per epoch."""
    seconds: float
    trained: int
    """Parameters that were fitted."""
    backbone_hash: str
    """Fingerprint of the adapted backbone."""


class Side(NamedTuple):
    """One side's distinct sentences of a batch, in whichever form the regressor reads, and who uses which."""

    ids: Tensor | None
    """[S, T] token ids."""
    mask: Tensor | None
    states: Tensor | None
    """[S, T, d] output of the frozen lower blocks, where these are not run."""
    vectors: Tensor | None
    """[S, d] last views, where no block is run."""
    place: Tensor
    """[B] each rating's sentence."""


class Linear(nn.Module):
    """The rating as a linear function of the last view; of two entities, of both views and their product."""

    def __init__(self, width: int, sides: int, center: float, binary: bool) -> None:
        super().__init__()
        self.binary = binary
        self.linear = nn.Linear(width * (1 if sides == 1 else 3), 1)
        nn.init.constant_(self.linear.bias, center)

    def forward(self, views: Sequence[Tensor]) -> Tensor:
        """[B, d] per side to [B]; probabilities where the task is binary."""
        x = views[0] if len(views) == 1 else torch.cat([*views, views[0] * views[1]], dim=1)
        rating: Tensor = self.linear(x).squeeze(1)
        return rating.sigmoid() if self.binary else rating


class Regressor(nn.Module):
    """An encoder, or none where its output is given, and a linear layer."""

    def __init__(self, encoder: nn.Module | None, linear: Linear) -> None:
        super().__init__()
        self.encoder, self.linear = encoder, linear

    def forward(self, sides: Sequence[Side]) -> Tensor:
        """Ratings [B]."""
        rating: Tensor = self.linear([self.views(side)[side.place] for side in sides])
        return rating

    def views(self, side: Side) -> Tensor:
        """Last views [S, d], in bf16 inside where the device has it."""
        if side.vectors is not None:
            return side.vectors
        assert self.encoder is not None
        assert side.ids is not None
        assert side.mask is not None
        if side.states is not None:
            skip = blocks(self.encoder)[0]
            assert isinstance(skip, Skip)
            skip.states = side.states
        cuda = side.ids.is_cuda and torch.cuda.is_bf16_supported()
        with torch.autocast(side.ids.device.type, torch.bfloat16, enabled=cuda):
            return pooled(self.encoder, side.ids, side.mask)[:, -1].float()


class Skip(nn.Module):
    """Stands for the frozen lower blocks and gives what they gave before."""

    states: Tensor

    def __init__(self, block: nn.Module, more: bool) -> None:
        super().__init__()
        self.block, self.more = block, more

    def forward(self, hidden: Tensor, *rest: object, **named: object) -> Tensor | tuple[Tensor, ...]:
        if not self.more:
            return self.states
        with torch.no_grad():  # T5's first block also makes the position bias of all others
            return self.states, *self.block(hidden, *rest, **named)[1:]


def blocks(encoder: nn.Module) -> nn.ModuleList:
    """The transformer blocks, the longest list of modules."""
    return max((m for m in encoder.modules() if isinstance(m, nn.ModuleList)), key=len)


@dataclass(frozen=True)
class Cached:
    """Outputs of the frozen lower blocks: those of sentence i are rows starts[i] to starts[i + 1]."""

    states: FloatArray  # [all tokens, d]
    starts: Int64Array

    def batch(self, rows: Sequence[int], length: int) -> Tensor:
        """[S, T, d], zero at the padding."""
        out = torch.zeros(len(rows), length, self.states.shape[1])
        for i, row in enumerate(rows):
            part = self.states[self.starts[row] : self.starts[row + 1]]
            out[i, : len(part)] = torch.from_numpy(np.array(part))
        return out


@dataclass(frozen=True)
class Sentences:
    """The problem of adapting: a backbone and a linear layer on the sentences of ratings."""

    backbone: Backbone
    how: AdaptKind
    tokens: Sequence[list[list[int]]]
    """Per side; one side with pair views."""
    of: Sequence[Tensor]
    """Per side: [m] each rating's sentence."""
    value: Tensor
    binary: bool
    vectors: Sequence[Tensor] | None = None
    """LP: per side [S, d]."""
    lower: Sequence[Cached] | None = None
    """HT: per side."""
    more: bool = False
    """HT: whether a block gives more than its hidden state."""
    start: Path | None = None
    """LP→FT: the linear layer that it starts from."""

    def stage(self, recipe: Recipe, fitted: Tensor, device: torch.device) -> SentenceStage:
        """The model before its first step; the linear layer says the mean rating, give or take its initial weights."""
        torch.manual_seed(recipe.seed)
        mean = float(self.value[fitted].double().mean())
        center = float(np.log(mean / (1 - mean))) if self.binary else mean
        linear = Linear(self.backbone.width, len(self.of), center, self.binary)
        if self.start is not None:
            load_model(self.start, linear)
        return SentenceStage(Regressor(self._encoder(), linear).to(device), self)

    def _encoder(self) -> nn.Module | None:
        """The part of the backbone that is run while fitting, with what trains marked."""
        if self.how == "lp":
            return None
        if self.how == "fs":
            fresh: Any = AutoModelForTextEncoding
            encoder: nn.Module = fresh.from_config(self.backbone.encoder.config, attn_implementation="eager")
        else:
            encoder = copy.deepcopy(self.backbone.encoder)
        if self.how == "lora":
            return _with_lora(encoder, self.backbone.spec)
        for name, parameter in encoder.named_parameters():
            parameter.requires_grad_(self.how != "ht" and "pooler" not in name)
        if self.how == "ht":
            kept = blocks(encoder)
            first = kept[0]
            del kept[: half(encoder)]
            for block in kept:
                block.requires_grad_(True)
            kept.insert(0, Skip(first, self.more))
        return encoder

    def side(self, k: int, rows: Tensor) -> Side:
        """The distinct sentences among `rows`, once each."""
        distinct, place = torch.unique(rows, return_inverse=True)
        device = self.value.device
        if self.vectors is not None:
            return Side(None, None, None, self.vectors[k][distinct], place)
        chosen = distinct.tolist()
        ids, mask = map(torch.from_numpy, self.backbone.tokenizer.pad([self.tokens[k][i] for i in chosen]))
        states = None if self.lower is None else self.lower[k].batch(chosen, ids.shape[1]).to(device)
        return Side(ids.to(device), mask.to(device), states, None, place)


@dataclass(frozen=True)
class SentenceStage:
    """A regressor and its sentences."""

    model: Regressor
    problem: Sentences

    def loss(self, forward: Forward, rows: Tensor) -> Tensor:
        """Mean squared error, or cross-entropy where the task is binary."""
        p = self.problem
        rating, target = forward([p.side(k, of[rows]) for k, of in enumerate(p.of)]), p.value[rows]
        return F.binary_cross_entropy(rating, target) if p.binary else F.mse_loss(rating, target)

    @torch.inference_mode()
    def rate(self, rows: Tensor) -> Tensor:
        """Ratings [len(rows)]; every distinct sentence is encoded once."""
        self.model.eval()
        views = []
        for k, of in enumerate(self.problem.of):
            distinct, place = torch.unique(of[rows], return_inverse=True)
            out = torch.empty(len(distinct), self.problem.backbone.width, device=rows.device)
            for batch in batches_by_length([len(self.problem.tokens[k][i]) for i in distinct.tolist()]):
                at = torch.tensor(sorted(batch), device=rows.device)
                side = self.problem.side(k, distinct[at])
                out[at] = self.model.views(side)[side.place]
            views.append(out[place])
        rating: Tensor = self.model.linear(views)
        return rating


def half(encoder: nn.Module) -> int:
    """How many lower blocks HT leaves as they are."""
    return len(blocks(encoder)) - len(blocks(encoder)) // 2


def _with_lora(encoder: nn.Module, spec: str) -> nn.Module:
    import peft  # noqa: PLC0415 - seconds to import, and only LoRA needs it

    try:
        with warnings.catch_warnings():  # peft asks transformers under an old name
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            adapted: nn.Module = peft.get_peft_model(encoder, peft.LoraConfig(r=LORA_RANK, lora_alpha=LORA_ALPHA))
    except ValueError as error:
        raise UsageError(f"backbone {spec}: peft knows no LoRA targets for it ({error}); use --adapt ht") from None
    return adapted


def problem(
    dataset: Dataset,
    backbone: Backbone,
    how: AdaptKind,
    views: ViewKind,
    folder: Path,
    cache: Path,
    device: torch.device,
    start: Path | None = None,
) -> Sentences:
    """Sentences of a dataset, with what frozen parts make of them computed."""
    spoken = sentences(dataset, views)
    ratings = dataset.ratings
    rows = (np.arange(len(ratings)),) if views == "pair" else (ratings.user, ratings.item)
    out = Sentences(
        backbone,
        how,
        tokens=[backbone.tokenizer.encode(side) for side in spoken],
        of=[torch.tensor(row, dtype=torch.int64, device=device) for row in rows],
        value=torch.tensor(ratings.value, device=device),
        binary=dataset.binary,
        start=start,
    )
    if how == "lp":
        computed = [compute_views(backbone, side, cache, device, "views") for side in spoken]
        vectors = [torch.cat([torch.from_numpy(np.array(c[:, -1])) for c in v.chunks]).to(device) for v in computed]
        return replace(out, vectors=vectors)
    if how == "ht":
        done = [_lower(backbone, side, folder / f"lower-{k}.npy", device) for k, side in enumerate(out.tokens)]
        return replace(out, lower=[cached for cached, _ in done], more=done[0][1])
    return out


def _lower(backbone: Backbone, tokens: list[list[int]], path: Path, device: torch.device) -> tuple[Cached, bool]:
    """What the frozen lower blocks give for every sentence, kept in a file; and whether a block gives more."""
    starts = np.concatenate([[0], np.cumsum([len(t) for t in tokens])])
    shape = (int(starts[-1]), backbone.width)
    encoder = backbone.encoder.to(device).eval()
    with _caught(blocks(encoder)[half(encoder) - 1]) as given, torch.inference_mode():
        _forward(backbone, [tokens[0]], device)
        more = isinstance(given[0], tuple)
        done = path.with_suffix(".done")
        if not done.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            states = np.lib.format.open_memmap(path, "w+", np.float32, shape)
            batches = list(batches_by_length([len(t) for t in tokens]))
            for batch in track(batches, len(batches), "frozen lower blocks"):
                given.clear()
                _forward(backbone, [tokens[i] for i in batch], device)
                hidden = (given[0][0] if isinstance(given[0], tuple) else given[0]).float().cpu().numpy()
                for row, i in zip(hidden, batch, strict=True):
                    states[starts[i] : starts[i + 1]] = row[: len(tokens[i])]
            states.flush()
            done.touch()
    return Cached(np.load(path, mmap_mode="r"), starts), more


@contextmanager
def _caught(block: nn.Module) -> Iterator[list[Tensor | tuple[Tensor, ...]]]:
    """A list that receives the outputs of a block."""
    given: list[Tensor | tuple[Tensor, ...]] = []
    handle = block.register_forward_hook(lambda _module, _inputs, output: given.append(output))
    try:
        yield given
    finally:
        handle.remove()


def _forward(backbone: Backbone, tokens: Sequence[Sequence[int]], device: torch.device) -> None:
    ids, mask = map(torch.from_numpy, backbone.tokenizer.pad(tokens))
    backbone.encoder(input_ids=ids.to(device), attention_mask=mask.to(device))


def adapt(
    dataset: Dataset,
    parts: Split,
    backbone: Backbone,
    how: AdaptKind,
    views: ViewKind,
    recipe: Recipe,
    out: Path,
    cache: Path,
    accelerate: Accelerator,
    start: Path | None = None,
) -> Adaptation:
    """Adapt a backbone on the training part, or finish what was killed; `out` then holds backbone and linear layer.

    LP→FT begins with the linear layer in `start`, that of an LP.

    Raises:
        UsageError: the architecture takes no LoRA.
        RunError: the loss became infinite or NaN, or memory ran out.
    """
    if (out / ADAPTED).exists():
        return Adaptation.model_validate_json((out / ADAPTED).read_bytes())
    device = accelerate.device
    with accelerate.main_process_first():
        posed = problem(dataset, backbone, how, views, out / STAGES, cache, device, start)
    bounds = (dataset.schema.rating_min, dataset.schema.rating_max)
    train, selection = (torch.from_numpy(rows).to(device) for rows in (parts.train, parts.selection))
    fitter = Fitter(posed, recipe.model_copy(update={"select": "random"}), bounds, accelerate, out / STAGES)
    fitted = fitter.fit(train, [Fold(train, selection)])
    regressor = fitted.stage.model
    assert isinstance(regressor, Regressor)
    trained = sum(parameter.numel() for parameter in regressor.parameters() if parameter.requires_grad)
    if accelerate.is_main_process:
        save_model(out / HEAD, regressor.linear)
        if how != "lp":
            _save_backbone(backbone, finished(backbone, how, regressor), out)
        record = Adaptation(
            how=how,
            learning_rate=fitted.learning_rate,
            epochs=fitted.epochs,
            curve=fitted.curve,
            seconds=fitted.seconds,
            trained=trained,
            backbone_hash=adapted_backbone(backbone, out).fingerprint,
        )
        write_json(out / ADAPTED, record.model_dump(mode="json"))
        shutil.rmtree(out / STAGES, ignore_errors=True)
    accelerate.wait_for_everyone()
    return Adaptation.model_validate_json((out / ADAPTED).read_bytes())


def finished(backbone: Backbone, how: AdaptKind, regressor: Regressor) -> nn.Module:
    """The whole encoder with its fitted parts in place."""
    encoder = regressor.encoder
    assert encoder is not None
    if how == "lora":
        merged: nn.Module = encoder.merge_and_unload()  # type: ignore[operator]
        return merged
    if how == "ht":
        whole = copy.deepcopy(backbone.encoder).to(next(encoder.parameters()).device)
        kept, first = blocks(encoder), half(whole)
        for j in range(first, len(blocks(whole))):
            blocks(whole)[j] = kept[j - first + 1]
        return whole
    return encoder


def _save_backbone(backbone: Backbone, encoder: nn.Module, out: Path) -> None:
    """A model folder: the new weights beside the old tokenizer, configuration and card."""
    with staged_folder(out, BACKBONE) as folder:
        for path in backbone.folder.iterdir():
            if path.suffix in {".json", ".txt", ".model", ".md"} and "index" not in path.name:
                shutil.copy(path, folder)
        encoder.save_pretrained(folder)  # type: ignore[operator]
        shutil.rmtree(out / BACKBONE, ignore_errors=True)
        publish_folder(folder, out / BACKBONE)


def adapted_backbone(backbone: Backbone, out: Path) -> Backbone:
    """The backbone that `adapt` left in `out`; LP leaves the backbone as it was."""
    return load_backbone(str(out / BACKBONE)) if (out / BACKBONE).exists() else backbone


def linear_head(backbone: Backbone, views: ViewKind, out: Path, binary: bool) -> Linear:
    """The linear layer that `adapt` left in `out`."""
    linear = Linear(backbone.width, 1 if views == "pair" else 2, 0.0, binary)
    load_model(out / HEAD, linear)
    return linear.eval()

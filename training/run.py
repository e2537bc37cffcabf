"""A run: a folder with one fitted model and everything needed to evaluate, export or repeat it."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import torch
from accelerate import Accelerator
from accelerate.utils import is_torch_xla_available
from pydantic import ValidationError
from torch import Tensor

from levi_serve.bundle import Int64Array
from levi_serve.bundle.manifest import sha256
from levi_serve.bundle.schema import Frozen
from levi_serve.bundle.tokens import Tokenizer
from training import start
from training.adapt import adapt, adapted_backbone
from training.backbones import Backbone, load_backbone
from training.checkpoint import load_model, save_model, write_json
from training.conditions import versions
from training.datasets import load
from training.datasets.dataset import Dataset, with_content, with_item_text
from training.errors import UsageError
from training.features import Prepared, prepare
from training.fit import Choice, Fitter, Fold, Views, fit_by_sampling, head_weights, new_model
from training.model import SIZES, FactorSize, Network
from training.options import Device, Options
from training.splits import Split, genre_folds, item_folds, sampled, split
from training.stream import Stream

RECORD = "run.json"
PARAMETERS = "model.safetensors"
PLAN = "plan.json"
ADAPTED = "adapted"
"""Folder of the adapted backbone inside a run's."""
STAGES = "stages"
FOLDS = 5
"""Item-disjoint validation folds."""


class Plan(Frozen):
    """What a folder was begun with: a later `fit` there must want the same."""

    options: Options
    data_hash: str
    backbone_hash: str

    def differences(self, other: Plan) -> list[str]:
        """What differs, in words; where the data lies does not matter, what it holds does."""
        mine, theirs = self.options.model_dump(mode="json"), other.options.model_dump(mode="json")
        changed = [f"{k}: {mine[k]} is not {theirs[k]}" for k in mine if k != "data" and mine[k] != theirs[k]]
        changed += ["the data changed"] * (self.data_hash != other.data_hash)
        return changed + ["the backbone's files changed"] * (self.backbone_hash != other.backbone_hash)


class Record(Plan):
    """run.json: written last, so a folder that holds one is a finished run."""

    adapted_hash: str = ""
    """Fingerprint of the adapted backbone, if it was adapted."""
    learning_rate: float
    epochs: int
    curve: tuple[float, ...]
    """Validation RMSE per epoch."""
    random: Choice | None = None
    """Of a grouped choice: what the random part would have chosen."""
    seconds: float
    """Time spent on fitting, views apart."""
    finished: str
    versions: dict[str, str]


@dataclass(frozen=True)
class Run:
    """A finished run, loaded: the fitted model and the data it was fitted on."""

    folder: Path
    record: Record
    dataset: Dataset
    split: Split
    train: Int64Array | Stream
    """What was fitted: rows of the split's training part, perhaps with a file's ratings."""
    backbone: Backbone | None
    prepared: Prepared
    model: Network
    ids: tuple[Tensor, Tensor]
    """Id-embedding row of each user and item, 0 where it was not in training."""

    @property
    def bounds(self) -> tuple[float, float]:
        """Rating range."""
        return self.dataset.schema.rating_min, self.dataset.schema.rating_max

    @property
    def tokenizer(self) -> Tokenizer:
        """The backbone's tokenizer; a run without views has none."""
        assert self.backbone is not None
        return self.backbone.tokenizer


def accelerator(device: Device) -> Accelerator:
    """The device (and, under torchrun, the processes) to fit on.

    Raises:
        UsageError: a device was asked for and there is none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: no CUDA device is visible; use --device cpu")
    if device == "xla" and not is_torch_xla_available():
        raise UsageError("--device xla: torch_xla is not installed or sees no device; use --device cpu")
    return Accelerator(cpu=device == "cpu")


def fit(options: Options, out: Path, cache: Path, device: Device) -> Record:
    """Fit a run, or finish one that was killed; a finished one is left as it is.

    Raises:
        UsageError: `out` holds a run with other options or other data; the options do not fit data or backbone.
        RunError: the loss became infinite or NaN.
    """
    dataset, whole_hash, parts = _load(options, options.data)
    fitted_on = _training(dataset, parts.train)
    fold_rows = _folds(dataset, parts, fitted_on, options)
    backbone = None if options.views == "none" else load_backbone(options.backbone)
    head_weights(options, backbone.layers if backbone else 1)  # refused now, before anything is written
    plan = Plan(options=options, data_hash=whole_hash, backbone_hash="" if backbone is None else backbone.fingerprint)
    accelerate = accelerator(device)
    with accelerate.main_process_first():  # the others find the plan made
        if (finished := _claim(out, plan)) is not None:
            return finished
    if backbone is not None and options.adapt != "none":
        recipe = options.adapting
        adapt(dataset, parts, backbone, options.adapt, options.views, recipe, out / ADAPTED, cache, accelerate)
        backbone = adapted_backbone(backbone, out / ADAPTED)
    with accelerate.main_process_first():  # the others find the views computed
        started = None
        if options.start is not None:
            kept = (out / start.FILE).exists()
            told = options.model_dump()
            started = (
                start.read(out) if kept else start.begin(out, open_run(options.start, cache, device), dataset, told)
            )
        prepared = _prepared(dataset, fitted_on, backbone, options, cache, accelerate.device, started)
    bounds = (dataset.schema.rating_min, dataset.schema.rating_max)
    train = _on(accelerate, fitted_on)
    folds = [Fold(_on(accelerate, fitted), _rows(held_out, accelerate)) for fitted, held_out in fold_rows]
    random = None if options.select == "random" else Fold(train, _rows(parts.selection, accelerate))
    if isinstance(prepared.shape.size, FactorSize):
        assert isinstance(train, Tensor)
        fitted = fit_by_sampling(prepared, options, bounds, train, folds, out / STAGES)
    else:
        fitted = Fitter(Views(prepared), options, bounds, accelerate, out / STAGES).fit(train, folds, random)
    record = Record(
        **dict(plan),
        adapted_hash=backbone.fingerprint if backbone is not None and options.adapt != "none" else "",
        learning_rate=fitted.learning_rate,
        epochs=fitted.epochs,
        curve=fitted.curve,
        random=fitted.random,
        seconds=fitted.seconds,
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=versions(),
    )
    if accelerate.is_main_process:
        save_model(out / PARAMETERS, fitted.stage.model)
        write_json(out / RECORD, record.model_dump(mode="json"))
        shutil.rmtree(out / STAGES, ignore_errors=True)
    return record


def open_run(folder: Path, cache: Path, device: Device, data: Path | None = None) -> Run:
    """Load a finished run and its data; `data` says where the data lies now, if it has moved.

    Raises:
        UsageError: no finished run there, or the data is not what it was fitted on.
    """
    try:
        record = Record.model_validate_json((folder / RECORD).read_bytes())
    except FileNotFoundError:
        state = "was begun but not finished; run the same fit again" if (folder / PLAN).exists() else "holds no run"
        raise UsageError(f"{folder}: {state}") from None
    except ValidationError as error:
        raise UsageError(f"{folder / RECORD}: not a run record: {error.errors()[0]['msg']}") from None
    options = record.options
    dataset, whole_hash, parts = _load(options, data or options.data)
    backbone = None if options.views == "none" else load_backbone(options.backbone)
    now = Plan(options=options, data_hash=whole_hash, backbone_hash="" if backbone is None else backbone.fingerprint)
    if changed := now.differences(record):
        raise UsageError(f"{folder}: {'; '.join(changed)} since the fit")
    if backbone is not None and options.adapt != "none":
        backbone = adapted_backbone(backbone, folder / ADAPTED)
        if backbone.fingerprint != record.adapted_hash:
            raise UsageError(f"{folder / ADAPTED}: the adapted backbone changed since the fit")
    target = accelerator(device).device
    started = None if options.start is None else start.read(folder)
    fitted_on = _training(dataset, parts.train)
    prepared = _prepared(dataset, fitted_on, backbone, options, cache, target, started)
    train = fitted_on if isinstance(fitted_on, Stream) else torch.from_numpy(fitted_on).to(target)
    model = new_model(prepared, options, prepared.features.rated(train))
    load_model(folder / PARAMETERS, model)
    ids = prepared.features.known_ids(train)
    return Run(folder, record, dataset, parts, fitted_on, backbone, prepared, model.to(target).eval(), ids)


def _training(dataset: Dataset, rows: Int64Array, held_out: Int64Array | None = None) -> Int64Array | Stream:
    """What is fitted: some ratings, and those that the dataset has in a file, but for the items that are `held_out`."""
    if dataset.more is None:
        return rows
    return Stream.open(dataset, rows, () if held_out is None else dataset.ratings.item[held_out])


def _prepared(
    dataset: Dataset,
    fitted: Int64Array | Stream,
    backbone: Backbone | None,
    options: Options,
    cache: Path,
    device: torch.device,
    started: start.Start | None,
) -> Prepared:
    basis = None if started is None else started.basis
    size = SIZES[options.size]
    prepared = prepare(dataset, fitted, backbone, options.views, size, cache, device, options.variant, basis)
    return prepared if started is None else replace(prepared, start=started.state)


def _load(options: Options, data: Path | None) -> tuple[Dataset, str, Split]:
    """The dataset, sampled if that was asked for; the hash of the whole one; the split."""
    dataset = with_item_text(load(options.dataset, data), options.item_text)
    if isinstance(SIZES[options.size], FactorSize):
        if options.views != "entity" or options.variant != "levi" or dataset.binary:
            raise UsageError(f"--size {options.size} rates by entity views alone; use --views entity and no --variant")
        dataset = with_content(dataset)
    if dataset.more and (wrong := _not_streamed(options)):
        raise UsageError(
            f"--{wrong}: {dataset.name} has ratings in a file that is not held in memory, which lacks this"
        )
    parts, digest = split(dataset, options.seed), data_hash(dataset)
    if options.sample is not None:
        dataset, parts = sampled(dataset, parts, options.sample, options.seed)
    return dataset, digest, parts


def _not_streamed(options: Options) -> str | None:
    """An option that needs all ratings in memory."""
    needs = {
        "views pair": options.views == "pair",
        f"size {options.size}": isinstance(SIZES[options.size], FactorSize),
        "select genre": options.select == "genre",
        f"sample {options.sample}": options.sample is not None,
    }
    return next((name for name, needed in needs.items() if needed), None)


def data_hash(dataset: Dataset) -> str:
    """Hash of all tables and ratings."""
    digest = hashlib.sha256(dataset.schema.model_dump_json().encode())
    for table in (dataset.users, dataset.items):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table.combine_chunks())
        digest.update(sink.getvalue())
    for column in (dataset.ratings.user, dataset.ratings.item, dataset.ratings.value, dataset.ratings.time):
        digest.update(column.tobytes())
    if dataset.part is not None:
        digest.update(dataset.part.tobytes())
    if dataset.more:
        digest.update(sha256(dataset.more.path).encode())
    return digest.hexdigest()


def _claim(out: Path, plan: Plan) -> Record | None:
    """Note what is fitted in `out`, or find that it was begun (None) or finished (its record) with the same options."""
    for name, kind in ((RECORD, Record), (PLAN, Plan)):
        if (out / name).exists():
            try:
                found = kind.model_validate_json((out / name).read_bytes())
            except ValidationError as error:
                raise UsageError(
                    f"{out / name}: not readable ({error.errors()[0]['msg']}); choose another --out"
                ) from None
            if changed := found.differences(plan):
                raise UsageError(f"--out {out}: holds another run ({'; '.join(changed)}); choose another folder")
            return found if isinstance(found, Record) else None
    if out.exists() and any(not path.name.endswith(".tmp") for path in out.iterdir()):  # left by a kill in `write_json`
        raise UsageError(f"--out {out}: is not empty and holds no run; choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / PLAN, plan.model_dump(mode="json"))
    return None


def _folds(
    dataset: Dataset, parts: Split, fitted_on: Int64Array | Stream, options: Options
) -> list[tuple[Int64Array | Stream, Int64Array]]:
    """What to fit on, and rows to validate on."""
    if options.select == "random":
        return [(fitted_on, parts.selection)]
    if options.select == "item":
        folds = list(item_folds(dataset, parts.train, FOLDS, options.seed))
    else:
        folds = [(fitted, held_out) for _, fitted, held_out in genre_folds(dataset, parts.train)]
    return [(_training(dataset, fitted, held_out), held_out) for fitted, held_out in folds]


def _on(accelerate: Accelerator, fitted: Int64Array | Stream) -> Tensor | Stream:
    """On the device, unless it streams."""
    return fitted if isinstance(fitted, Stream) else _rows(fitted, accelerate)


def _rows(rows: Int64Array, accelerate: Accelerator) -> Tensor:
    return torch.from_numpy(rows).to(accelerate.device)

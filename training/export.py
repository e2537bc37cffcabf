"""A run becomes the next version of a model repository: graphs, tables, golden examples, calibration, manifest.

Everything is built in folders beside the final ones, checked against torch, and renamed when it is complete: the
encoder first, the model with its manifest last. A version folder that exists is a whole version.
"""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from pydantic import ValidationError

from levi_serve.bundle import FloatArray, Int64Array
from levi_serve.bundle.golden import Golden, GoldenEntity, write_golden
from levi_serve.bundle.manifest import FORMAT, NAME, Manifest, TokenizerSpec, sha256
from levi_serve.bundle.rated import write_rated
from levi_serve.bundle.reference import write_reference
from levi_serve.bundle.rows import STORED, Layout, Table, write_table
from training.atomic import atomic_file, publish_folder, staged_folder
from training.calibrate import SCORE, calibrate
from training.chain import Chain, Runner, catalogue, onnx_runner, row_numbers, torch_runner
from training.checkpoint import write_json
from training.conditions import versions
from training.errors import RunError, UsageError
from training.evaluate import METRICS, Evaluation
from training.fit import predict
from training.graphs import EncoderGraph, Graph, JoinGraph, PairGraph, graph_bytes, set_aside, write_onnx
from training.model import Levi
from training.precision import Precision, lower
from training.run import Run
from training.stream import Stream
from training.triton import config

CONFIG = "config.pbtxt"
GOLDEN = 8
"""Golden examples by id; as many have a cold user, a cold item or both."""
GOLDEN_TOLERANCE = 5e-3
"""Rounding rows to fp16 may move a rating by up to 2e-3; the rest is left to other processors' arithmetic."""
PARITY = 1e-4
"""Largest difference between the graphs and the fitted model, in rating units, both in fp32."""
MOST = 0.5
"""Largest difference of a head rating that a lower precision may make: beyond it the backbone does not bear it."""


def export(run: Run, repository: Path, name: str, parity_pairs: int, precision: Precision = "fp32") -> Path:
    """Add the run to the repository as its next version, its graphs in this precision.

    Returns:
        The folder of the new version.

    Raises:
        UsageError: the run has no views; the repository serves other tensors under this name.
        RunError: the graphs do not agree with the fitted model, or do not bear the precision.
        OSError: the disk is full or not writable; no version appears.
    """
    originals = _graphs(run, name)
    graphs = _graphs(run, name, half=True) if precision == "fp16" else originals
    repository.mkdir(parents=True, exist_ok=True)
    with _locked(repository), ExitStack() as stack:
        for graph_name, graph in graphs.items():
            _check_config(repository / graph_name / CONFIG, config(graph_name, graph))
        version = _next_version(repository, list(graphs))
        staged = {graph: stack.enter_context(staged_folder(repository / graph, str(version))) for graph in graphs}
        for graph_name, graph in graphs.items():
            write_onnx(graph, _examples(run, graph), staged[graph_name] / "model.onnx")
        paths = [staged[graph_name] / "model.onnx" for graph_name in graphs]
        reference = _chain(run, [torch_runner(graph) for graph in originals.values()], np.float32)
        metrics = _measured(run)
        if precision != "fp16":  # of a half backbone there is no graph in fp32
            metrics["parity"] = _parity(run, _chain(run, list(map(onnx_runner, paths))), reference, parity_pairs)
        for path in paths:
            lower(path, precision)
            set_aside(path)
        exported = _chain(run, list(map(onnx_runner, paths)))
        tables = _tables(run, exported)
        _write_rows(run, tables, staged[name])
        _write_rated(run, staged[name])
        off = _write_golden(run, reference, exported, tables, staged[name] / "golden.jsonl")
        effect = _effect(run, exported, off)
        digest = sha256(staged[name] / "model.onnx")
        write_reference(staged[name], calibrate(run, exported, tables, digest))
        run.tokenizer.save(staged[name] / "tokenizer.json")
        metrics |= {**_rounding(run, tables), **effect, "graph_bytes": sum(map(graph_bytes, paths))}
        manifest = _manifest(run, name, version, staged, metrics, precision)
        write_json(staged[name] / NAME, manifest.model_dump(mode="json", by_alias=True))
        stack.enter_context(_configured({repository / n / CONFIG: config(n, graph) for n, graph in graphs.items()}))
        return _publish(staged, repository, version)


def _graphs(run: Run, name: str, half: bool = False) -> dict[str, Graph]:
    """The graphs by model name, in the order in which they are published; `half` is the backbone's precision."""
    model, bounds = run.model.cpu(), run.bounds
    if run.backbone is None:
        raise UsageError(f"{run.folder}: a scratch tower alone is a reference and not served; fit with entity views")
    encoder = deepcopy(run.backbone.encoder).half() if half else run.backbone.encoder
    if isinstance(model, Levi) and model.shape.views == "pair":
        return {name: PairGraph(model, encoder, bounds)}
    return {f"{name}_encoder": EncoderGraph(model, encoder), name: JoinGraph(model, bounds)}


def _examples(run: Run, graph: Graph) -> tuple[torch.Tensor, ...]:
    """Inputs of two pairs or entities, to trace the graph with."""
    assert run.backbone is not None
    shape, (user, item) = run.model.shape, run.dataset.schema.entities
    ids, mask = (torch.from_numpy(a) for a in run.backbone.tokenizer.pad(run.backbone.tokenizer.encode(["one", "two"])))
    embedding = torch.zeros(2, shape.embedding + 1)
    codes = [torch.zeros(2, max(1, e.code_columns), dtype=torch.int64) for e in (user, item)]
    if isinstance(graph, JoinGraph):
        rows = torch.zeros(2, shape.layout.width, dtype=torch.half)
        return rows[:1].clone(), rows
    if isinstance(graph, EncoderGraph):
        return ids, mask, embedding, max(codes, key=lambda c: c.shape[1]), torch.tensor([0, 1])
    return ids, mask, embedding, codes[0], embedding.clone(), codes[1]  # one tensor twice would be traced as one input


def _chain(run: Run, runners: Sequence[Runner], between: type[np.floating] = STORED) -> Chain:
    """Runners in the order of `_graphs`: the model's is the last."""
    return Chain(run, model=runners[-1], encode=runners[0] if len(runners) > 1 else None, between=between)


def _parity(run: Run, exported: Chain, reference: Chain, pairs: int) -> float:
    """Largest difference of a head rating between exported graphs and the fitted model, over random ratings' pairs.

    With entity views each graph is compared by itself: the rows between them are rounded, which is no fault of either.

    Raises:
        RunError: it exceeds PARITY.
    """
    chosen = np.random.default_rng(run.record.options.seed).permutation(len(run.dataset.ratings))[:pairs]
    users, items = _rated_pairs(run, chosen)
    expected = predict(run.model, run.prepared.features, torch.from_numpy(chosen), run.ids).numpy()
    if exported.encode is None:
        compared = [(exported.heads(users, items), expected)]
    else:
        rows = exported.rows(0, users), exported.rows(1, items)
        stored = rows[0].astype(STORED), rows[1].astype(STORED)
        compared = [(reference.join(*rows), expected), (exported.join(*stored), reference.join(*stored))]
    worst = max(float(np.abs(found - wanted).max()) for found, wanted in compared)
    if not worst <= PARITY:
        raise RunError(f"{run.folder}: the exported graphs differ from the fitted model by {worst:.2g} (> {PARITY:g})")
    return worst


def _rated_pairs(run: Run, chosen: Int64Array) -> tuple[list[GoldenEntity], list[GoldenEntity]]:
    """Users and items of these ratings."""
    ratings, users, items = run.dataset.ratings, catalogue(run, 0), catalogue(run, 1)
    return [users[u] for u in ratings.user[chosen]], [items[i] for i in ratings.item[chosen]]


def _tables(run: Run, exported: Chain) -> tuple[FloatArray, FloatArray]:
    """Rows [N + 1, W] of every user and every item in fp32, then of one without id and attributes."""
    nobody = [GoldenEntity(id=None, attributes={})]
    out = []
    for side, half in enumerate(run.model.halves):
        codes, components = run.prepared.features.codes[side].cpu(), run.prepared.features.components[side]
        with torch.inference_mode():
            if components is None:
                rows, unknown = half.ids(run.ids[side].cpu()), half.ids.weight[:1].numpy()
            else:
                rows = half(half.ids(run.ids[side].cpu()), codes, components.cpu())
                unknown = exported.rows(side, nobody)
        out.append(np.concatenate([rows.numpy(), unknown]))
    return out[0], out[1]


def _rounding(run: Run, tables: tuple[FloatArray, FloatArray]) -> dict[str, float]:
    """What storing rows as fp16 does to ratings and RMSE, on the selection part."""
    chosen = run.split.selection
    features, part = run.prepared.features, torch.from_numpy(chosen)
    of = [
        torch.from_numpy(t[c[chosen]])
        for t, c in zip(tables, (run.dataset.ratings.user, run.dataset.ratings.item), strict=True)
    ]
    batch = features.batch(part, run.ids)
    ratings = []
    for stored in (of, [t.half().float() for t in of]):
        with torch.inference_mode():
            rows = stored
            if batch.pair_components is not None:
                rows = [half(row, c, None) for half, row, c in zip(run.model.halves, stored, batch.codes, strict=True)]
            ratings.append(run.model.rating(run.model.join(rows[0], rows[1], batch.pair_components)).clamp(*run.bounds))
    exact, rounded = ((r - features.value[part]).square().double().mean().sqrt() for r in ratings)
    return {
        "fp16_rating_difference": float((ratings[0] - ratings[1]).abs().max()),
        "fp16_rmse_difference": float((exact - rounded).abs()),
    }


def _effect(run: Run, exported: Chain, off: float) -> dict[str, float]:
    """What the exported graphs, and rows rounded between them, do to ratings and RMSE on the selection part, every
    entity encoded by them; and the largest difference of a head rating there or, `off`, in the golden examples.

    Raises:
        RunError: it exceeds MOST.
    """
    chosen = run.split.selection
    value = run.dataset.ratings.value[chosen]
    expected = predict(run.model, run.prepared.features, torch.from_numpy(chosen), run.ids)
    heads = [expected, torch.from_numpy(exported.heads(*_rated_pairs(run, chosen)))]
    exact, found = (run.model.rating(h).clamp(*run.bounds).double().numpy() for h in heads)
    worst = float(np.max([off, float((heads[1] - heads[0]).abs().max())]))  # NaN stays NaN
    if not worst <= MOST:
        raise RunError(f"{run.folder}: in this precision the graphs differ from the model by {worst:.2g} (> {MOST:g})")
    return {
        "head_difference": worst,
        "rating_difference": float(np.abs(found - exact).max()),
        "rmse_difference": float(np.sqrt(np.square(found - value).mean()) - np.sqrt(np.square(exact - value).mean())),
    }


def _write_rows(run: Run, tables: tuple[FloatArray, FloatArray], folder: Path) -> None:
    """Both entity tables, the unknown entities' rows apart, and the id embedding of theirs that the encoder is fed."""
    for side, (entity, rows) in enumerate(zip(run.dataset.schema.entities, tables, strict=True)):
        known = catalogue(run, side)
        ids, described = [e.id for e in known if e.id is not None], [e.attributes for e in known]
        write_table(folder, f"{entity.name}s", ids, described, (run.ids[side] > 0).cpu().numpy(), rows)
    np.save(folder / "unknown_rows.npy", np.stack([rows[-1] for rows in tables]).astype(STORED))
    if run.model.shape.views == "entity":
        np.save(folder / "unknown.npy", np.stack([half.ids.weight[0].detach().numpy() for half in run.model.halves]))


def _write_rated(run: Run, folder: Path) -> None:
    """What the model was fitted on, and nothing that it is judged by. Stored tables have an order of their own."""
    users, items = (
        Table(folder, f"{entity.name}s").find(list(row_numbers(run, side)))
        for side, entity in enumerate(run.dataset.schema.entities)
    )
    ratings, train = run.dataset.ratings, run.train
    user, item = train.pairs() if isinstance(train, Stream) else (ratings.user[train], ratings.item[train])
    write_rated(folder, len(users), users[user], items[item])


def _write_golden(
    run: Run, reference: Chain, exported: Chain, tables: tuple[FloatArray, FloatArray], path: Path
) -> float:
    """Random pairs as torch rates them: by id, and with either side or both given by attributes alone.

    Returns:
        The largest difference of a head rating that the exported graphs make in them.
    """
    rng = np.random.default_rng(run.record.options.seed)
    users, items = (_golden_entities(run, side, tables[side], rng) for side in (0, 1))
    heads = reference.heads(users, items)
    ratings = run.model.rating(torch.from_numpy(heads)).clamp(*run.bounds).tolist()
    examples = []
    for user, item, head_ratings, rating in zip(users, items, heads.tolist(), ratings, strict=True):
        sentences = reference.sentences(user, item)
        tokens = run.tokenizer.encode(sentences)
        examples.append(
            Golden(user=user, item=item, sentences=sentences, tokens=tokens, head_ratings=head_ratings, rating=rating)
        )
    write_golden(path, examples)
    return float(np.abs(exported.heads(users, items) - heads).max())


def _golden_entities(run: Run, side: int, rows: FloatArray, rng: np.random.Generator) -> list[GoldenEntity]:
    """GOLDEN by id, with their `rows`, then as many of which every third has an id."""
    known = catalogue(run, side)
    return [
        known[i].model_copy(
            update={"row": rows[i].astype(STORED).tobytes()} if k < GOLDEN or k % 3 == side else {"id": None}
        )
        for k, i in enumerate(rng.integers(len(known), size=2 * GOLDEN))
    ]


def _measured(run: Run) -> dict[str, float]:
    """What is known of the run's errors: on validation, and on test if it was evaluated."""
    known = {"validation_rmse": min(run.record.curve)}
    if (run.folder / METRICS).exists():
        try:
            levi = Evaluation.model_validate_json((run.folder / METRICS).read_bytes()).rows[0]
        except ValidationError:
            raise UsageError(f"{run.folder / METRICS}: not an evaluation; evaluate the run again") from None
        known |= {"id_rmse": levi.id.rmse, **({"ood_rmse": levi.ood.rmse} if levi.ood else {})}
    return known


def _manifest(
    run: Run, name: str, version: int, staged: dict[str, Path], metrics: dict[str, float], precision: Precision
) -> Manifest:
    options, shape = run.record.options, run.model.shape
    entity = shape.views == "entity"
    embedding = 0 if entity else shape.embedding
    return Manifest(
        format=FORMAT,
        name=name,
        version=version,
        views="entity" if entity else "pair",
        schema_=run.dataset.schema,
        vocabulary=tuple({a: list(v) for a, v in words.items()} for words in run.prepared.vocabulary),
        layout=shape.layout if entity else Layout(tower=0, heads=0, factors=0, embedding=embedding, support=0),
        layers=shape.layers,
        tokenizer=TokenizerSpec(max_tokens=run.tokenizer.max_tokens, pad_id=run.tokenizer.pad_id),
        files={
            f"{graph}/{version}/{path.name}": sha256(path)
            for graph, folder in staged.items()
            for path in sorted(folder.iterdir())
        },
        golden_tolerance=_tolerance(precision, metrics["head_difference"]),
        score=SCORE,
        metrics=metrics,
        run={
            "dataset": options.dataset,
            "data_hash": run.record.data_hash,
            "backbone": options.backbone,
            "backbone_hash": run.record.backbone_hash,
            "size": options.size,
            "seed": options.seed,
            "precision": precision,
            "fitted": run.record.finished,
            "exported": datetime.now(UTC).isoformat(timespec="seconds"),
            **versions(),
        },
        licences={"data": run.dataset.licence, "backbone": run.backbone.licence if run.backbone else "none"},
    )


def _tolerance(precision: Precision, difference: float) -> float:
    """What a replayed golden rating may be off. Lower precision adds twice what it was seen to make: another processor
    rounds other sums.
    """
    return GOLDEN_TOLERANCE + (0 if precision == "fp32" else 2 * difference)


@contextmanager
def _locked(repository: Path) -> Iterator[None]:
    """One export at a time: a second waits for the first and takes the next number."""
    with (repository / ".export.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _next_version(repository: Path, names: list[str]) -> int:
    taken = [
        int(folder.name)
        for name in names
        if (repository / name).is_dir()
        for folder in (repository / name).iterdir()
        if folder.name.isdecimal()
    ]
    return max(taken, default=0) + 1


def _check_config(path: Path, text: str) -> None:
    """Refuse a name that serves other tensors: Triton has one config.pbtxt for all versions of a model."""
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise UsageError(f"{path}: this name serves other tensors or settings; export under another --name")


@contextmanager
def _configured(texts: dict[Path, str]) -> Iterator[None]:
    """Write each config.pbtxt that is missing; without a version it would claim the name, so a failure removes it."""
    missing = {path: text for path, text in texts.items() if not path.exists()}
    try:
        for path, text in missing.items():
            with atomic_file(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
        yield
    except BaseException:
        for path in missing:
            path.unlink(missing_ok=True)
        raise


def _publish(staged: dict[str, Path], repository: Path, version: int) -> Path:
    """Rename the staged folders, the model's last; an encoder whose model could not follow is taken back."""
    published: list[Path] = []
    try:
        for graph, folder in staged.items():
            final = repository / graph / str(version)
            publish_folder(folder, final)
            published.append(final)
    except BaseException:
        for final in published:
            shutil.rmtree(final, ignore_errors=True)
        raise
    return published[-1]

"""training.export: the exported graphs and tables are the fitted model, and a version appears whole or not at all."""

from __future__ import annotations

import copy
import dataclasses
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig

from levi_serve.bundle import tensors
from levi_serve.bundle.golden import GoldenEntity, read_golden
from levi_serve.bundle.manifest import read_manifest, sha256
from levi_serve.bundle.prompt import entity_sentence, pair_sentence
from levi_serve.bundle.rated import Rated
from levi_serve.bundle.reference import read_reference
from levi_serve.bundle.rows import Table
from levi_serve.bundle.scores import SUPPORT
from levi_serve.bundle.tokens import Tokenizer
from tests.tiny import fitted
from training import export as module
from training import graphs
from training.chain import Chain, catalogue, onnx_runner, torch_runner
from training.errors import RunError, UsageError
from training.evaluate import evaluate
from training.export import export
from training.fit import predict
from training.graphs import EncoderGraph, Graph, JoinGraph, PairGraph
from training.options import Options
from training.run import Run, open_run
from training.triton import config

ROOT = Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Exported:
    """A run and the repository with it as version 1."""

    run: Run
    repository: Path

    @property
    def views(self) -> str:
        return self.run.model.shape.views

    @property
    def folder(self) -> Path:
        return self.repository / "levi" / "1"

    @property
    def chain(self) -> Chain:
        """The exported graphs in ONNX Runtime."""
        encoder = self.repository / "levi_encoder/1/model.onnx"
        model, encode = onnx_runner(self.folder / "model.onnx"), onnx_runner(encoder) if encoder.exists() else None
        return Chain(self.run, model, encode)

    def table(self, side: int) -> Table:
        return Table(self.folder, ("users", "movies")[side])


@pytest.fixture(scope="module")
def entity(entity_run: Run, entity_repository: Path) -> Exported:
    return Exported(entity_run, entity_repository)


@pytest.fixture(scope="module")
def pair(pair_run: Run, pair_repository: Path) -> Exported:
    return Exported(pair_run, pair_repository)


@pytest.fixture(scope="module", params=["entity", "pair"])
def exported(request: pytest.FixtureRequest) -> Exported:
    """An exported run of the size ref, with either views."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module", params=[("paper", "entity"), ("paper", "pair"), ("best", "entity")])
def exported_size(
    request: pytest.FixtureRequest, options: Options, cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Exported:
    """An exported run of another size."""
    folder = tmp_path_factory.mktemp("size")
    size, views = request.param
    changes = {"views": views, "size": size, "epochs": 1, "weights": "late"}
    run = fitted(options.model_copy(update=changes), folder / "run", cache)
    export(run, folder / "repository", "levi", 20)
    return Exported(run, folder / "repository")


@pytest.fixture
def _ready_graphs(entity_repository: Path, pair_repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs of the session's two runs are copied and not traced again, which takes seconds."""

    def write(graph: Graph, _: object, path: Path) -> None:
        source = {
            JoinGraph: entity_repository / "levi",
            EncoderGraph: entity_repository / "levi_encoder",
            PairGraph: pair_repository / "levi",
        }[type(graph)]
        onnx.save(onnx.load(source / "1/model.onnx"), path)

    monkeypatch.setattr(module, "write_onnx", write)


def everything(run: Run) -> tuple[np.ndarray, list[GoldenEntity], list[GoldenEntity]]:
    """The model's own head ratings of every rating's pair, and the pairs as requests by id."""
    ratings = run.dataset.ratings
    heads = predict(run.model, run.prepared.features, torch.arange(len(ratings)), run.ids).numpy()
    users, items = catalogue(run, 0), catalogue(run, 1)
    return heads, [users[u] for u in ratings.user], [items[i] for i in ratings.item]


def is_the_model(exported: Exported) -> None:
    heads, users, items = everything(exported.run)
    chain = exported.chain
    if chain.encode is None:
        found = chain.heads(users, items)
    else:  # the graphs apart, since the rows between them are rounded
        join = torch_runner(module._graphs(exported.run, "levi")["levi"])
        rows = chain.rows(0, users), chain.rows(1, items)
        stored = [side.astype(np.float16) for side in rows]
        found = join(dict(zip(tensors.JOIN, rows, strict=True)))
        np.testing.assert_allclose(
            chain.join(*stored), join(dict(zip(tensors.JOIN, stored, strict=True))), atol=1e-4, rtol=0
        )
    np.testing.assert_allclose(found, heads, atol=1e-4, rtol=0)
    assert read_manifest(exported.repository, "levi", 1).metrics["parity"] <= 1e-4
    assert heads.std(axis=0).min() > 1e-2


def test_graphs_are_the_model(exported: Exported) -> None:
    """From sentence to rating, the exported graphs agree with the fitted model within 1e-4 on every pair."""
    is_the_model(exported)


def test_graphs_are_the_model_in_the_papers_size(exported_size: Exported) -> None:
    """The same holds for the paper's size, with layers weighted unequally."""
    is_the_model(exported_size)


def feeds_of(exported: Exported, users: np.ndarray, items: np.ndarray) -> dict[str, np.ndarray]:
    """What the server feeds the `levi` graph for some pairs by table row."""
    run, tables = exported.run, (exported.table(0), exported.table(1))
    rows = [table.rows[numbers] for table, numbers in zip(tables, (users, items), strict=True)]
    if exported.views == "entity":
        return dict(zip(tensors.JOIN, rows, strict=True))
    described = [
        [{"id": int(table.ids[n]), **table.attributes(n)} for n in numbers]
        for table, numbers in zip(tables, (users, items), strict=True)
    ]
    sentences = [pair_sentence(run.dataset.schema, u, i) for u, i in zip(*described, strict=True)]
    tokens = run.tokenizer.pad(run.tokenizer.encode(sentences))
    codes = [run.prepared.features.codes[side][n].numpy() for side, n in ((0, users), (1, items))]
    codes = [np.pad(c, ((0, 0), (0, max(0, 1 - c.shape[1])))) for c in codes]
    rows = [side.astype(np.float32) for side in rows]
    return dict(zip(tensors.PAIR, (*tokens, rows[0], codes[0], rows[1], codes[1]), strict=True))


def check_stored_rows(exported: Exported) -> None:
    run = exported.run
    ratings = run.dataset.ratings
    chosen = run.split.selection
    session = ort.InferenceSession(exported.folder / "model.onnx", providers=["CPUExecutionProvider"])
    heads, rating = session.run(
        ["head_ratings", "rating"], feeds_of(exported, ratings.user[chosen], ratings.item[chosen])
    )
    expected = predict(run.model, run.prepared.features, torch.from_numpy(chosen), run.ids).numpy()
    weights = run.model.weights.numpy()
    np.testing.assert_allclose(rating, (heads @ weights).clip(1, 5), atol=1e-5)
    metrics = read_manifest(exported.repository, "levi", 1).metrics
    difference = np.abs(rating - (expected @ weights).clip(1, 5)).max()
    assert 0 < difference == pytest.approx(metrics["fp16_rating_difference"], abs=2e-5)
    assert difference <= 2e-3
    value = ratings.value[chosen]
    errors = [np.sqrt(np.square(r - value).mean()) for r in (rating, (expected @ weights).clip(1, 5))]
    assert abs(errors[0] - errors[1]) == pytest.approx(metrics["fp16_rmse_difference"], abs=2e-5)


def test_stored_rows_give_the_models_ratings(exported: Exported) -> None:
    """Stored fp16 rows through the `levi` graph give the model's ratings within what the manifest records, clipped."""
    check_stored_rows(exported)


def test_stored_rows_give_the_models_ratings_in_the_papers_size(exported_size: Exported) -> None:
    """The same holds for the paper's size."""
    check_stored_rows(exported_size)


def test_one_user_for_all_items(entity: Exported) -> None:
    """One user's row stands for all items: the same numbers as with the row once per item, for the whole catalogue."""
    users, items = (entity.table(side).rows for side in (0, 1))
    session = ort.InferenceSession(entity.folder / "model.onnx", providers=["CPUExecutionProvider"])
    for user in users[:3]:
        one = session.run(None, {"user_row": user[None], "item_row": items})
        each = session.run(None, {"user_row": np.tile(user, (len(items), 1)), "item_row": items})
        for found, expected in zip(one, each, strict=True):
            assert found.shape == expected.shape
            np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.ptp(one[1]) > 1e-2


def test_graphs_tell_nothing_of_the_machine(exported: Exported) -> None:
    """The exporter's notes on sources are not in what is published."""
    for path in exported.repository.rglob("model.onnx"):
        assert b"/training/" not in path.read_bytes()


def test_large_tensors_lie_beside_their_graph(
    entity_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a file that the manifest vouches for and that the graph's readers may read; it computes what it did."""
    folder = entity_repository / "levi_encoder/1"
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    aside = {tensor.name for tensor in graph.initializer if tensor.external_data}
    assert aside
    assert all(len(tensor.raw_data) < graphs.LARGE for tensor in graph.initializer if tensor.name not in aside)
    assert {"levi_encoder/1/model.onnx", f"levi_encoder/1/{graphs.WEIGHTS}"} <= set(
        read_manifest(entity_repository, "levi", 1).files
    )
    whole = tmp_path / "model.onnx"
    onnx.save(onnx.load(folder / "model.onnx"), whole)
    whole.chmod(0o640)
    feeds = {
        tensor.name: np.ones(
            [2 if isinstance(n, str) else n for n in tensor.shape],
            np.int64 if tensor.type == "tensor(int64)" else np.float32,
        )
        for tensor in ort.InferenceSession(whole, providers=["CPUExecutionProvider"]).get_inputs()
    }
    before, total = onnx_runner(whole)(feeds), graphs.graph_bytes(whole)
    graphs.set_aside(whole)
    assert whole.with_name(graphs.WEIGHTS).stat().st_mode & 0o777 == 0o640
    assert whole.stat().st_size < total < graphs.graph_bytes(whole)
    np.testing.assert_array_equal(onnx_runner(whole)(feeds), before)
    monkeypatch.setattr(graphs, "LARGE", total)
    small = shutil.copy(entity_repository / "levi/1/model.onnx", tmp_path / "small.onnx")
    content = small.read_bytes()
    graphs.set_aside(small)
    assert small.read_bytes() == content


def test_ratings_are_clipped(exported: Exported) -> None:
    """The graph's `rating` stays within the scale however far its `head_ratings` are outside."""
    session = ort.InferenceSession(exported.folder / "model.onnx", providers=["CPUExecutionProvider"])
    feeds = feeds_of(exported, np.array([0, 0, 0]), np.array([0, 0, 0]))
    layout = read_manifest(exported.repository, "levi", 1).layout
    feeds["item_row"][:, layout.width - layout.support - 1] += np.array([-50, 0, 50], np.float16)  # the rating bias
    heads, rating = session.run(["head_ratings", "rating"], feeds)
    steps = feeds["item_row"][:, layout.width - layout.support - 1].astype(np.float32)
    np.testing.assert_allclose(heads - heads[1], np.repeat((steps - steps[1])[:, None], 3, axis=1), atol=1e-4)
    assert rating[[0, 2]].tolist() == [1, 5]
    assert 1 < rating[1] < 5


def test_rows_of_the_catalogue(exported: Exported) -> None:
    """Every entity's stored row is its own half of the model, and untrained ones use the unknown id's embedding."""
    run = exported.run
    known = run.prepared.features.known_ids(torch.from_numpy(run.split.train))
    assert 0 < int((known[1] == 0).sum()) < len(known[1])
    for side, half in enumerate(run.model.halves):
        table = exported.table(side)
        assert table.trained.tolist() == (known[side] > 0).tolist()
        assert table.ids.tolist() == (run.dataset.users, run.dataset.items)[side]["id"].to_pylist()
        with torch.inference_mode():
            expected = half.ids(known[side])
            if exported.views == "entity":
                components = run.prepared.features.components[side]
                expected = half(expected, run.prepared.features.codes[side], components)
        assert np.array_equal(table.rows[:-1], expected.half().numpy())
        assert [table.attributes(n) for n in range(len(table))] == [e.attributes for e in catalogue(run, side)]


def test_row_of_an_unknown_entity(exported: Exported) -> None:
    """The last row is that of an entity without id and attributes."""
    nobody = [GoldenEntity(id=None, attributes={})]
    for side, half in enumerate(exported.run.model.halves):
        found = exported.table(side).rows[exported.table(side).unknown]
        if exported.views == "entity":
            expected = exported.chain.rows(side, nobody)[0]
        else:
            expected = half.ids.weight[0].detach().numpy()
        assert np.array_equal(found, expected.astype(np.float16))
        assert found.any()


def test_rows_of_unknown_entities_apart(exported: Exported) -> None:
    """unknown_rows.npy holds both tables' last rows, for a server that has only one of the tables, or neither."""
    unknown = np.load(exported.folder / "unknown_rows.npy")
    assert unknown.dtype == np.float16
    assert np.array_equal(unknown, [exported.table(side).rows[-1] for side in (0, 1)])


def test_rated_in_training(exported: Exported) -> None:
    """For each user the movies of his training ratings, and of no other part's."""
    run, rated = exported.run, Rated(exported.folder)
    expected: dict[int, set[int]] = {}
    for row in run.split.train.tolist():
        expected.setdefault(int(run.dataset.ratings.user[row]), set()).add(int(run.dataset.ratings.item[row]))
    assert len(rated) == len(run.dataset.users)
    assert [set(rated.items_of(user).tolist()) for user in range(len(rated))] == [
        expected.get(user, set()) for user in range(len(rated))
    ]
    assert len(rated.items) == len(run.split.train) < len(run.dataset.ratings)


def test_rated_follows_the_stored_order(exported: Exported, tmp_path: Path) -> None:
    """Where a dataset's tables are not sorted by id, the sparse table follows the stored ones, which are."""
    dataset = exported.run.dataset
    users, items = dataset.users[::-1], dataset.items[::-1]
    ratings = dataclasses.replace(
        dataset.ratings, user=len(users) - 1 - dataset.ratings.user, item=len(items) - 1 - dataset.ratings.item
    )
    backwards = dataclasses.replace(dataset, users=users, items=items, ratings=ratings)
    for file in exported.folder.glob("*s.*"):
        shutil.copy(file, tmp_path)
    module._write_rated(dataclasses.replace(exported.run, dataset=backwards), tmp_path)
    for name in ("offsets", "items"):
        file = f"rated.{name}.npy"
        assert (tmp_path / file).read_bytes() == (exported.folder / file).read_bytes()


def test_unknown_inputs_of_the_encoder(entity: Exported) -> None:
    """unknown.npy holds what the encoder is fed as the id embedding of a new user and a new movie."""
    unknown = np.load(entity.folder / "unknown.npy")
    assert np.array_equal(unknown, torch.stack([half.ids.weight[0] for half in entity.run.model.halves]).detach())


def test_new_entities(exported: Exported) -> None:
    """An untrained movie is rated by its text: by title alone as by its id, and another title gives another rating."""
    run, chain = exported.run, exported.chain
    user = catalogue(run, 0)[0]
    untrained = int(torch.argmin(run.ids[1]))
    by_id = catalogue(run, 1)[untrained]
    by_text = GoldenEntity(id=None, attributes=by_id.attributes)
    renamed = GoldenEntity(id=None, attributes={"title": "night of the queen"})
    retold = GoldenEntity(id=None, attributes={"title": "old river house"})
    rated = chain.heads([user] * 4, [by_id, by_text, renamed, retold])
    if exported.views == "entity":  # the paper's sentence also says the id
        np.testing.assert_allclose(rated[0], rated[1], atol=1e-5)
    assert np.abs(rated[1] - rated[2]).max() > 1e-3
    assert np.abs(rated[2] - rated[3]).max() > 1e-3


def test_both_sides_in_one_encoder_batch(entity: Exported) -> None:
    """The encoder computes users and movies of one batch each with their own half, and does not mix their codes up."""
    run = entity.run
    rows, feeds = [], []
    for side in (0, 1):
        described = catalogue(run, side)[:2]
        rows.append(entity.table(side).rows[:2])
        tokens = run.tokenizer.encode([entity_sentence(run.dataset.schema, side, e.attributes) for e in described])
        codes = run.prepared.features.codes[side][:2].numpy()
        embedding = run.model.halves[side].ids(run.ids[side][:2]).detach().numpy()
        feeds.append((tokens, embedding, np.pad(codes, ((0, 0), (0, 3 - codes.shape[1])), constant_values=999)))
    ids, mask = run.tokenizer.pad([t for tokens, _, _ in feeds for t in tokens])
    embedding, codes = (np.concatenate([feed[k] for feed in feeds]) for k in (1, 2))
    assert entity.chain.encode is not None
    found = entity.chain.encode(
        dict(zip(tensors.ENCODER, (ids, mask, embedding, codes, np.array([0, 0, 1, 1])), strict=True))
    )
    np.testing.assert_allclose(found, np.concatenate(rows), atol=5e-3)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_any_batch(exported: Exported, count: int) -> None:
    """Graphs take batches of any size, and a pair's rating does not depend on the batch it is in."""
    heads, users, items = everything(exported.run)
    np.testing.assert_allclose(exported.chain.heads(users[:count], items[:count]), heads[:count], atol=5e-3)
    together = exported.chain.heads(users[:7], items[:7])
    np.testing.assert_allclose(exported.chain.heads(users[:count], items[:count]), together[:count], atol=1e-5)


def test_manifest(exported: Exported) -> None:
    """The manifest lists and hashes every file of the version and says where it comes from."""
    run = exported.run
    manifest = read_manifest(exported.repository, "levi", 1)
    folders = [exported.folder] + [exported.repository / "levi_encoder/1"] * (exported.views == "entity")
    files = {f.relative_to(exported.repository).as_posix() for folder in folders for f in folder.iterdir()}
    assert set(manifest.files) == files - {"levi/1/manifest.json"}
    assert manifest.views == exported.views
    assert manifest.schema_ == run.dataset.schema
    assert manifest.vocabulary == run.prepared.vocabulary
    assert manifest.layers == 3
    assert manifest.layout.width == exported.table(0).rows.shape[1] == exported.table(1).rows.shape[1]
    assert (manifest.tokenizer.max_tokens, manifest.tokenizer.pad_id) == (128, 0)
    assert manifest.metrics["validation_rmse"] == min(run.record.curve)
    assert "id_rmse" not in manifest.metrics
    assert manifest.run["seed"] == 0
    assert manifest.run["backbone_hash"] == run.record.backbone_hash
    assert manifest.licences == {"data": run.dataset.licence, "backbone": "not stated by the model folder"}


def test_measured_errors(entity_run: Run, cache: Path, tmp_path: Path) -> None:
    """A run that was evaluated takes its test RMSEs along; a damaged evaluation is named."""
    run = open_run(Path(shutil.copytree(entity_run.folder, tmp_path / "run")), cache, "cpu")
    levi = evaluate(run).rows[0]
    assert levi.ood is not None
    measured = module._measured(run)
    assert (measured["id_rmse"], measured["ood_rmse"]) == (levi.id.rmse, levi.ood.rmse)
    (run.folder / "metrics.json").write_text("{}")
    with pytest.raises(UsageError, match=r"metrics\.json: not an evaluation; evaluate the run again"):
        module._measured(run)


def test_tokenizer(exported: Exported) -> None:
    """The bundle's tokenizer gives the token ids that the backbone's gives."""
    read = Tokenizer.from_file(exported.folder / "tokenizer.json", 128, 0)
    sentences = ["the movie title is Café (1999)", "", "star " * 200]
    assert read.encode(sentences) == exported.run.tokenizer.encode(sentences)


def test_calibration(exported: Exported) -> None:
    """The monitor's reference is what the exported graph says of the calibration part alone, over rows as stored."""
    run = exported.run
    part, ratings = run.split.calibration, run.dataset.ratings
    graph = exported.folder / "model.onnx"
    found = read_reference(exported.folder, sha256(graph), 3, exported.views == "entity")
    heads = predict(run.model, run.prepared.features, torch.from_numpy(part), run.ids).numpy()
    np.testing.assert_allclose(found.tables["spread"], np.sort(heads.std(axis=1)), atol=2e-3)
    np.testing.assert_allclose(found.heads[0], heads.mean(0), atol=2e-3)
    error = heads.mean(1).clip(1, 5) - ratings.value[part]
    assert found.rmse == pytest.approx(np.sqrt(np.square(error).mean()), abs=1e-3)
    assert (found.size, found.seed) == (len(part), 0)
    if exported.views == "entity":
        for side, column in enumerate((ratings.user, ratings.item)):
            ids = [(run.dataset.users, run.dataset.items)[side]["id"][int(i)].as_py() for i in column[part]]
            table = exported.table(side)
            stored = table.rows[table.find(ids), -1].astype(np.float32)
            assert found.tables[SUPPORT[side]].tolist() == np.sort(stored).tolist()


def test_golden(exported: Exported) -> None:
    """Golden examples have known and cold users and movies in every combination, with what torch makes of them."""
    run = exported.run
    examples = read_golden(exported.folder / "golden.jsonl", exported.table(0).rows.shape[1])
    cold = [(example.user.id is None, example.item.id is None) for example in examples]
    assert cold[: module.GOLDEN] == [(False, False)] * module.GOLDEN
    assert set(cold[module.GOLDEN :]) == {(True, False), (False, True), (True, True)}
    assert len(cold) == 2 * module.GOLDEN
    *encoder, model = map(torch_runner, module._graphs(run, "levi").values())
    chain = Chain(run, model, encoder[0] if encoder else None, np.float32)
    heads = chain.heads([e.user for e in examples], [e.item for e in examples])
    np.testing.assert_allclose([e.head_ratings for e in examples], heads, atol=1e-6)
    np.testing.assert_allclose([e.rating for e in examples], heads.mean(1).clip(1, 5), atol=1e-6)
    schema = run.dataset.schema
    for example in examples:
        sides = [e.attributes if e.id is None else {"id": e.id, **e.attributes} for e in (example.user, example.item)]
        if exported.views == "entity":
            assert example.sentences == [entity_sentence(schema, side, sides[side]) for side in (0, 1)]
        else:
            assert example.sentences == [pair_sentence(schema, *sides)]
        assert example.tokens == run.tokenizer.encode(example.sentences)
        for side, entity in enumerate((example.user, example.item)):
            if entity.id is None:
                assert entity.row is None
            else:
                table = exported.table(side)
                assert np.array_equal(entity.stored, table.rows[table.find([entity.id])[0]])


TYPES = {"tensor(float16)": "TYPE_FP16", "tensor(float)": "TYPE_FP32", "tensor(int64)": "TYPE_INT64"}


@pytest.mark.parametrize("name", ["levi", "levi_encoder"])
def test_triton_config(exported: Exported, name: str) -> None:
    """config.pbtxt is Triton's, and lists the graph's own tensors with their types and numbers of dimensions."""
    if not (exported.repository / name).exists():
        assert (exported.views, name) == ("pair", "levi_encoder")
        return
    parsed = text_format.Parse((exported.repository / name / "config.pbtxt").read_text(), ModelConfig())
    assert (parsed.name, parsed.backend, parsed.max_batch_size) == (name, "onnxruntime", 1024)
    assert parsed.version_policy.latest.num_versions == 2
    assert parsed.dynamic_batching.max_queue_delay_microseconds == 0
    assert parsed.HasField("dynamic_batching")
    session = ort.InferenceSession(exported.repository / name / "1/model.onnx", providers=["CPUExecutionProvider"])
    for listed, actual in ((parsed.input, session.get_inputs()), (parsed.output, session.get_outputs())):
        assert [tensor.name for tensor in listed] == [tensor.name for tensor in actual]
        for tensor, node in zip(listed, actual, strict=True):
            assert DataType.Name(tensor.data_type) == TYPES[node.type]
            dims = list(tensor.reshape.shape) if tensor.HasField("reshape") else list(tensor.dims)
            assert len(dims) == len(node.shape) - 1  # Triton's dimensions leave the batch out
            assert all(dim == -1 for dim in dims)


@pytest.mark.parametrize("name", ["levi", "levi_encoder"])
def test_committed_configs(entity_repository: Path, name: str) -> None:
    """The repository's own copies of config.pbtxt are what an export of entity views writes."""
    committed = (ROOT / "model_repo" / name / "config.pbtxt").read_text()
    assert committed == (entity_repository / name / "config.pbtxt").read_text()


def files(repository: Path) -> list[str]:
    """Everything in a repository but the lock and empty folders."""
    found = (path.relative_to(repository).as_posix() for path in repository.rglob("*") if path.is_file())
    return sorted(set(found) - {".export.lock"})


STAGES = [
    ("write_onnx", 1),
    ("write_onnx", 2),
    ("onnx_runner", 2),
    ("_parity", 1),
    ("_tables", 1),
    ("write_table", 2),
    ("write_rated", 1),
    ("write_golden", 1),
    ("calibrate", 1),
    ("sha256", 1),
    ("write_json", 1),
    ("atomic_file", 1),
    ("atomic_file", 2),
    ("publish_folder", 1),
    ("publish_folder", 2),
]


@pytest.mark.usefixtures("_ready_graphs")
@pytest.mark.parametrize(("stage", "call"), STAGES)
@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "stopped"]
)
def test_nothing_is_left_of_a_failed_export(
    entity_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, call: int, error: BaseException
) -> None:
    """Whatever fails and wherever, no file of the version stays, the encoder's and the configuration included."""
    original, calls = getattr(module, stage), 0

    def fails(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise error
        return original(*args)

    monkeypatch.setattr(module, stage, fails)
    with pytest.raises((RunError, KeyboardInterrupt)) as caught:
        export(entity_run, tmp_path, "levi", 5)
    assert isinstance(caught.value, KeyboardInterrupt) or "No space left on device" in str(caught.value)
    assert calls == call
    assert files(tmp_path) == []
    assert not list(tmp_path.rglob(".*tmp*"))


@pytest.mark.usefixtures("_ready_graphs")
def test_an_earlier_version_survives_a_failed_export(
    entity_run: Run, entity_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure leaves earlier versions and their configuration alone, and its number free."""
    repository = Path(shutil.copytree(entity_repository, tmp_path / "repository"))
    before = files(repository)
    with monkeypatch.context() as patches:
        patches.setattr(module, "write_json", None)
        with pytest.raises(TypeError):
            export(entity_run, repository, "levi", 5)
    assert files(repository) == before
    assert export(entity_run, repository, "levi", 5) == repository / "levi/2"
    assert read_manifest(repository, "levi", 2).version == 2
    assert read_manifest(repository, "levi", 1).version == 1


@pytest.mark.usefixtures("_ready_graphs")
@pytest.mark.parametrize("value", [1e-2, float("nan")])
def test_parity_refuses(entity_run: Run, pair_run: Run, tmp_path: Path, value: float) -> None:
    """Graphs that differ from the fitted model, even in one bias or by giving no number, are not published."""
    for run in (entity_run, pair_run):
        changed = dataclasses.replace(run, model=copy.deepcopy(run.model))
        with torch.no_grad():
            changed.model.out_bias[1] += value
        with pytest.raises(RunError, match=r"the exported graphs differ from the fitted model by (0\.01|nan) \(> 0"):
            export(changed, tmp_path, "levi", 20)
        assert files(tmp_path) == []


@pytest.mark.usefixtures("_ready_graphs")
def test_next_version(entity_run: Run, tmp_path: Path) -> None:
    """A version's number is one above the highest of model and encoder; other folders do not count."""
    for folder in ("levi/3", "levi/latest", "levi_encoder/9", "levi_encoder/.10.tmp-x", "other/30"):
        (tmp_path / folder).mkdir(parents=True)
    assert export(entity_run, tmp_path, "levi", 5) == tmp_path / "levi/10"
    assert (tmp_path / "levi_encoder/10/model.onnx").exists()


@pytest.mark.usefixtures("_ready_graphs")
def test_two_exports_at_once(entity_run: Run, entity_repository: Path, tmp_path: Path) -> None:
    """Two exports at the same time wait for each other and take different numbers; both are whole."""
    start, done = threading.Barrier(2), []

    def work() -> None:
        start.wait()
        done.append(export(entity_run, tmp_path, "levi", 5).name)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == ["1", "2"]
    for version in (1, 2):
        assert read_manifest(tmp_path, "levi", version).files


@pytest.mark.usefixtures("_ready_graphs")
def test_the_manifest_is_written_last(entity_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manifest is the last file, the encoder is renamed before the model, and the configuration before both."""
    events: list[str] = []
    for name in ("write_onnx", "write_table", "write_golden", "write_json", "atomic_file", "publish_folder"):
        original = getattr(module, name)

        def noted(*args: Any, name: str = name, original: Any = original) -> Any:
            path = next(a for a in args if isinstance(a, Path))
            events.append(f"{name} {path.parent.name}/{path.name}" if name == "atomic_file" else name)
            if name == "publish_folder":
                events.append(args[1].parent.name)
            return original(*args)

        monkeypatch.setattr(module, name, noted)
    export(entity_run, tmp_path, "levi", 5)
    assert events[-7:] == [
        "write_json",
        "atomic_file levi_encoder/config.pbtxt",
        "atomic_file levi/config.pbtxt",
        "publish_folder",
        "levi_encoder",
        "publish_folder",
        "levi",
    ]


@pytest.mark.usefixtures("_ready_graphs")
def test_other_tensors_need_another_name(pair_run: Run, entity_repository: Path, tmp_path: Path) -> None:
    """A name that serves entity views takes no pair views, nor one whose settings were edited; another name does."""
    repository = Path(shutil.copytree(entity_repository, tmp_path / "repository"))
    for name in ("levi", "levi_encoder"):
        with pytest.raises(UsageError, match=rf"{name}/config\.pbtxt: this name serves other tensors .* --name"):
            export(pair_run, repository, name, 5)
    assert files(repository) == files(entity_repository)
    assert export(pair_run, repository, "levi_pair", 5) == repository / "levi_pair/1"
    assert read_manifest(repository, "levi_pair", 1).views == "pair"
    assert text_format.Parse((repository / "levi_pair/config.pbtxt").read_text(), ModelConfig()).name == "levi_pair"


def test_a_scratch_tower_alone_is_not_served(options: Options, cache: Path, tmp_path: Path) -> None:
    """A run without views is a reference and refused, before anything is written."""
    run = fitted(options.model_copy(update={"views": "none", "epochs": 1}), tmp_path / "run", cache)
    with pytest.raises(UsageError, match="a scratch tower alone is a reference and not served; fit with entity views"):
        export(run, tmp_path / "repository", "levi", 5)
    assert not (tmp_path / "repository").exists()


def test_configs_of_both_graphs() -> None:
    """Every graph's configuration says its own name and that its tensors' sizes are the graph's."""
    for graph in (JoinGraph, EncoderGraph, PairGraph):
        parsed = text_format.Parse(config("x", graph), ModelConfig())  # type: ignore[arg-type] # its names are the class'
        assert [tensor.name for tensor in parsed.input] == list(graph.inputs)
        assert [tensor.name for tensor in parsed.output] == list(graph.outputs)


def test_the_repository_cannot_be_made(entity_run: Run, tmp_path: Path) -> None:
    """A repository whose path leads through a file is an error of the system."""
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        export(entity_run, tmp_path / "file" / "repository", "levi", 5)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]

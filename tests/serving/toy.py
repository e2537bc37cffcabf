"""A model repository so small that its ratings can be computed by hand, in the format that the exporter writes.

Entity views: row = [mean token id / 100, id embedding, sum of codes / 10 + side / 20, bias]; heads j = 0, 1, 2 are
3 + user_row[j] − item_row[j] / 2; the rating is their mean, clipped to 1–5. Pair views: the same heads over the rows
[id embedding, bias] and the sentence: 3 + (user id embedding − item id embedding / 2) + mean token id · (j + 1) / 1000
+ (sum of the user's codes − sum of the item's) / 10. A token is a character, its id the code point.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import models, pre_tokenizers

from levi_serve.bundle.golden import Golden, GoldenEntity, write_golden
from levi_serve.bundle.manifest import FORMAT, Manifest, TokenizerSpec, sha256
from levi_serve.bundle.prompt import entity_sentence, pair_sentence
from levi_serve.bundle.rated import write_rated
from levi_serve.bundle.reference import Reference, measure, write_reference
from levi_serve.bundle.rows import Id, Layout, Table, write_table
from levi_serve.bundle.schema import Attribute, Attributes, Entity, Schema, Template, build_vocabulary, encode

HEADS = 3
MAX_TOKENS = 64
REFERENCE = np.array([0.0, 0.1, 0.2, 0.4], np.float32)
UNKNOWN = np.array([[0.3, 0.0], [0.7, 0.0]], np.float32)
"""The encoder's embedding input for an untrained user and item: id embedding, rating bias."""

USERS: dict[Id, Attributes] = {
    138: {"age": 30, "occupation": "doctor"},
    7: {"age": 17, "occupation": "student"},
    9: {"occupation": "none"},
    13: {"age": 50},
}
MOVIES: dict[Id, Attributes] = {
    357: {"title": "Cuckoo's Nest", "genres": ("Drama",), "year": 1975},
    50: {"title": "Star Wars", "genres": ("Action", "Sci-Fi", "War"), "year": 1977},
    1001: {"title": "Nobody saw this"},
}
UNTRAINED = (1001,)
BROKEN = (13,)
"""Users whose rows are not numbers; no golden example has them."""
RATED: dict[Id, tuple[Id, ...]] = {138: (357,), 7: (50, 357), 13: (50,)}
"""Movies that users rated in training."""


def schema(id_type: str = "integer") -> Schema:
    """Users by age and occupation, movies by title, genres and year."""
    return Schema(
        user=Entity(
            name="user",
            id_type=id_type,
            attributes=(
                Attribute(name="age", kind="number", embed=True, edges=(18.0, 35.0)),
                Attribute(name="occupation", kind="category", embed=True),
            ),
        ),
        item=Entity(
            name="movie",
            id_type=id_type,
            attributes=(
                Attribute(name="title", kind="text"),
                Attribute(name="genres", kind="category", many=True, slots=2, embed=True),
                Attribute(name="year", kind="number"),
            ),
        ),
        rating_min=1.0,
        rating_max=5.0,
        user_template=Template(clauses=("user.age", "user.occupation"), opening="A user: "),
        item_template=Template(clauses=("movie.title", "movie.genres", "movie.year")),
        pair_template=Template(clauses=("user.id", "user.age", "movie.title", "movie.id"), closing="?"),
    )


@dataclass
class Toy:
    """The toy model in numpy, and the writer of its repository."""

    views: str = "entity"
    id_type: str = "integer"
    users: Mapping[Id, Attributes] = field(default_factory=lambda: USERS)
    movies: Mapping[Id, Attributes] = field(default_factory=lambda: MOVIES)

    def __post_init__(self) -> None:
        self.schema = schema(self.id_type)
        self.catalogues = (self.users, self.movies)
        self.vocabulary = tuple(
            build_vocabulary(entity, list(rows.values()))
            for entity, rows in zip(self.schema.entities, self.catalogues, strict=True)
        )
        self.layout = (
            Layout(tower=1, heads=1, factors=0, embedding=0, bias=1, support=1)
            if self.views == "entity"
            else Layout(tower=0, heads=0, factors=0, embedding=1, bias=1, support=0)
        )

    def embedding(self, side: int, given: Any) -> np.ndarray:
        """The id embedding and bias of an entity, the unknown one's for an untrained one."""
        if isinstance(given, Mapping) or given in UNTRAINED:
            return UNKNOWN[side]
        return np.array([0.01 * (list(self.catalogues[side]).index(given) + 1), 0.0], np.float32)

    def codes(self, side: int, attributes: Attributes) -> int:
        return int(encode(self.schema.entities[side], self.vocabulary[side], [attributes]).sum())

    def row(self, side: int, given: Any) -> np.ndarray:
        """An entity's row as it is stored (fp16), from its id or its attributes."""
        if self.views == "pair":
            return self.embedding(side, given).astype(np.float16)
        attributes = given if isinstance(given, Mapping) else self.catalogues[side][given]
        said = entity_sentence(self.schema, side, attributes)
        embedding, bias = self.embedding(side, given)
        row = [mean_token(said), embedding, self.codes(side, attributes) / 10 + side / 20, bias]
        return np.array(row, np.float32).astype(np.float16)

    def heads(self, user: Any, movie: Any) -> np.ndarray:
        """What the heads say of a pair, each side given by id or attributes."""
        rows = [self.row(side, given).astype(np.float32) for side, given in enumerate((user, movie))]
        if self.views == "entity":
            return (3 + rows[0] - rows[1] / 2)[:HEADS]
        said = mean_token(self.sentences(user, movie)[0])
        known = [self.known(side, given) for side, given in enumerate((user, movie))]
        shift = (self.codes(0, known[0]) - self.codes(1, known[1])) / 10
        return 3 + rows[0][0] - rows[1][0] / 2 + said * np.arange(1, HEADS + 1) / 10 + shift

    def rating(self, user: Any, movie: Any) -> float:
        return float(np.clip(self.heads(user, movie).mean(), 1, 5))

    def known(self, side: int, given: Any) -> Attributes:
        return given if isinstance(given, Mapping) else {**self.catalogues[side][given], "id": given}

    def sentences(self, user: Any, movie: Any) -> list[str]:
        known = [self.known(side, given) for side, given in enumerate((user, movie))]
        if self.views == "pair":
            return [pair_sentence(self.schema, *known)]
        return [entity_sentence(self.schema, side, attributes) for side, attributes in enumerate(known)]

    def golden(self, user: Any, movie: Any) -> Golden:
        said = self.sentences(user, movie)
        sides = [
            GoldenEntity(id=None, attributes=dict(given))
            if isinstance(given, Mapping)
            else GoldenEntity(id=given, attributes=dict(self.known(side, given)), row=self.row(side, given).tobytes())
            for side, given in enumerate((user, movie))
        ]
        return Golden(
            user=sides[0],
            item=sides[1],
            sentences=said,
            tokens=[tokens(text) for text in said],
            head_ratings=self.heads(user, movie).tolist(),
            rating=self.rating(user, movie),
        )

    def write(self, repository: Path, version: int = 1, name: str = "levi") -> Path:
        """Write one version; the folder of its manifest."""
        folder = repository / name / str(version)
        folder.mkdir(parents=True)
        files = [folder / "model.onnx"]
        if self.views == "entity":
            encoder = repository / f"{name}_encoder" / str(version)
            encoder.mkdir(parents=True)
            onnx.save(join_graph(), folder / "model.onnx")
            onnx.save(encoder_graph(), encoder / "model.onnx")
            np.save(folder / "unknown.npy", UNKNOWN)
            files += [encoder / "model.onnx", folder / "unknown.npy"]
        else:
            onnx.save(pair_graph(), folder / "model.onnx")
        for side, (table, rows) in enumerate(zip(("users", "movies"), self.catalogues, strict=True)):
            stored = [self.row(side, given) for given in rows] + [self.row(side, {})]
            stored = [
                row * np.float16("nan") if given in BROKEN else row
                for given, row in zip([*rows, None], stored, strict=True)
            ]
            trained = np.array([given not in UNTRAINED for given in rows])
            write_table(folder, table, list(rows), list(rows.values()), trained, np.stack(stored))
            files += folder.glob(f"{table}.*")
        np.save(folder / "unknown_rows.npy", np.stack([self.row(side, {}) for side in (0, 1)]))
        self._write_rated(folder)
        files += [folder / "unknown_rows.npy", *folder.glob("rated.*")]
        tokenizer().save(str(folder / "tokenizer.json"))
        write_reference(folder, self.reference(sha256(folder / "model.onnx")))
        users, movies = [user for user in self.users if user not in BROKEN], list(self.movies)[:3]
        new = {"title": "A new film", "genres": ("Drama",)}
        pairs = [(user, movie) for user in users for movie in movies] + [(users[0], new), ({"age": 40}, movies[0])]
        write_golden(folder / "golden.jsonl", [self.golden(*pair) for pair in pairs])
        files += [folder / file for file in ("tokenizer.json", "monitor.npz", "golden.jsonl")]
        self._write_manifest(repository, folder, files, name, version)
        return folder

    def reference(self, digest: str) -> Reference:
        """Heads around 3 whose disagreement, as far as `ood_score` is concerned, has four values."""
        rng = np.random.default_rng(0)
        heads = (3 + 0.5 * rng.normal(size=(2000, 1)) + 0.2 * rng.normal(size=(2000, HEADS))).astype(np.float32)
        support = (np.zeros(2000), np.zeros(2000)) if self.views == "entity" else None
        rating, users, trained = heads.mean(1), np.arange(2000) % 400, np.ones(2000, np.bool_)
        truth = rating + rng.normal(size=2000)
        found = measure(heads, support, rating, truth, users, (trained, trained), seed=0, model=digest)
        return replace(found, tables={**found.tables, "spread": REFERENCE})

    def _write_rated(self, folder: Path) -> None:
        users, movies = Table(folder, "users"), Table(folder, "movies")
        pairs = [(user, movie) for user in self.users for movie in RATED.get(user, ())]
        write_rated(folder, len(users), users.find([u for u, _ in pairs]), movies.find([m for _, m in pairs]))

    def _write_manifest(self, repository: Path, folder: Path, files: Sequence[Path], name: str, version: int) -> None:
        manifest = Manifest(
            format=FORMAT,
            name=name,
            version=version,
            views=self.views,
            schema=self.schema,
            vocabulary=self.vocabulary,
            layout=self.layout,
            layers=HEADS,
            tokenizer=TokenizerSpec(max_tokens=MAX_TOKENS, pad_id=0),
            files={file.relative_to(repository).as_posix(): sha256(file) for file in files},
            golden_tolerance=1e-4,
            score="spread",
            metrics={"id_rmse": 0.9},
            run={"dataset": "toy", "seed": 0},
            licences={"data": "none"},
        )
        (folder / "manifest.json").write_text(manifest.model_dump_json(by_alias=True))


def edit_manifest(folder: Path, **changes: Any) -> None:
    """Change entries of a written manifest."""
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def vouch(repository: Path, folder: Path) -> None:
    """Put the present checksums of all files into the manifest, as if they had been exported like that."""
    files = json.loads((folder / "manifest.json").read_text())["files"]
    edit_manifest(folder, files={file: sha256(repository / file) for file in files})


def tokens(text: str) -> list[int]:
    """Token ids of a sentence of ASCII characters."""
    return [ord(character) for character in text[:MAX_TOKENS]]


def mean_token(text: str) -> float:
    return float(np.mean(tokens(text))) / 100


def tokenizer() -> FastTokenizer:
    vocabulary = {chr(code): code for code in range(1, 128)} | {"[UNK]": 0}
    fast = FastTokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    fast.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return fast


def join_graph() -> onnx.ModelProto:
    """fp16 user_row [B, 4] or [1, 4] and item_row [B, 4] to three heads."""
    pick = np.eye(4, HEADS, dtype=np.float32)
    return _model(
        [_half("user_row", "U", 4), _half("item_row", "B", 4)],
        {"pick": pick, "half": -pick / 2, "three": np.float32(3), **_bounds()},
        [
            helper.make_node("Cast", ["user_row"], ["user"], to=TensorProto.FLOAT),
            helper.make_node("Cast", ["item_row"], ["item"], to=TensorProto.FLOAT),
            helper.make_node("MatMul", ["user", "pick"], ["u"]),
            helper.make_node("MatMul", ["item", "half"], ["i"]),
            helper.make_node("Add", ["u", "i"], ["ui"]),
            helper.make_node("Add", ["ui", "three"], ["head_ratings"]),
            *_rating(),
        ],
    )


def pair_graph() -> onnx.ModelProto:
    """Sentence, rows [B, 2] and codes to three heads."""
    growing = np.arange(1, HEADS + 1, dtype=np.float32)[None] / 10
    wide = np.ones((1, HEADS), np.float32)
    return _model(
        [
            *_sentence(),
            _float("user_row", "B", 2),
            helper.make_tensor_value_info("user_codes", TensorProto.INT64, ["B", 2]),
            _float("item_row", "B", 2),
            helper.make_tensor_value_info("item_codes", TensorProto.INT64, ["B", 2]),
        ],
        {
            **_sentence_constants(),
            **_bounds(),
            "pick": np.array([[1.0], [0.0]], np.float32) * wide,
            "half": np.array([[-0.5], [0.0]], np.float32) * wide,
            "growing": growing,
            "three": np.float32(3),
        },
        [
            *_mean_token(),
            helper.make_node("MatMul", ["said", "growing"], ["text"]),
            helper.make_node("MatMul", ["user_row", "pick"], ["u"]),
            helper.make_node("MatMul", ["item_row", "half"], ["i"]),
            helper.make_node("Sub", ["user_codes", "item_codes"], ["codes"]),
            *_code_sum(),
            helper.make_node("Sum", ["u", "i", "text", "code", "three"], ["head_ratings"]),
            *_rating(),
        ],
    )


def encoder_graph() -> onnx.ModelProto:
    """Sentence, embedding [B, 2], codes [B, 2] and side to a row [B, 4]."""
    return _model(
        [
            *_sentence(),
            _float("embedding", "B", 2),
            helper.make_tensor_value_info("codes", TensorProto.INT64, ["B", 2]),
            helper.make_tensor_value_info("side", TensorProto.INT64, ["B"]),
        ],
        {**_sentence_constants(), "split": np.array([1, 1]), "twentieth": np.float32(0.05)},
        [
            *_mean_token(),
            helper.make_node("Split", ["embedding", "split"], ["id", "bias"], axis=1),
            *_code_sum(),
            helper.make_node("Cast", ["side"], ["side_f"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["side_f", "last"], ["side_1"]),
            helper.make_node("Mul", ["side_1", "twentieth"], ["side_2"]),
            helper.make_node("Add", ["code", "side_2"], ["third"]),
            helper.make_node("Concat", ["said", "id", "third", "bias"], ["row"], axis=1),
        ],
        outputs=[_float("row", "B", 4)],
    )


def _model(
    inputs: list[Any], constants: dict[str, Any], nodes: list[Any], outputs: list[Any] | None = None
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "toy",
        inputs,
        outputs or [_float("head_ratings", "B", HEADS), _float("rating", "B")],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _float(name: str, *shape: Any) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _half(name: str, *shape: Any) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT16, shape)


def _sentence() -> list[Any]:
    return [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["B", "T"]) for name in ("input_ids", "attention_mask")
    ]


def _sentence_constants() -> dict[str, Any]:
    return {"last": np.array([1]), "hundredth": np.float32(0.01), "tenth": np.float32(0.1)}


def _mean_token() -> list[Any]:
    return [
        helper.make_node("Mul", ["input_ids", "attention_mask"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "last"], ["total"]),
        helper.make_node("ReduceSum", ["attention_mask", "last"], ["count"]),
        helper.make_node("Cast", ["total"], ["total_f"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["count"], ["count_f"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["total_f", "count_f"], ["average"]),
        helper.make_node("Mul", ["average", "hundredth"], ["said"]),
    ]


def _code_sum() -> list[Any]:
    return [
        helper.make_node("ReduceSum", ["codes", "last"], ["sum"]),
        helper.make_node("Cast", ["sum"], ["sum_f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["sum_f", "tenth"], ["code"]),
    ]


def _bounds() -> dict[str, Any]:
    return {"least": np.float32(1), "most": np.float32(5), "axis": np.array([1])}


def _rating() -> list[Any]:
    return [
        helper.make_node("ReduceMean", ["head_ratings", "axis"], ["mean"], keepdims=0),
        helper.make_node("Clip", ["mean", "least", "most"], ["rating"]),
    ]

"""training.model: the batched computation against a plain one, and its parts by hand."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from training.fit import hide
from training.model import SIZES, Batch, EntityHalf, Levi, Projection, Shape, Size, _mean_of_known, layer_weights

ViewKind = Literal["entity", "pair", "none"]
TINY = Size(
    tower=(6, 5),
    hidden=4,
    embedding=3,
    category=2,
    components=4,
    product=True,
    bias=True,
    dropout=0.5,
    id_dropout=0.2,
    unit_views=True,
    view_dropout=0.1,
)
SIZED = {
    "tiny": TINY,
    "plain": TINY.model_copy(update={"product": False, "bias": False, "components": None}),
    "ref": SIZES["ref"],
    "paper": SIZES["paper"],
}
USERS, MOVIES, PAIRS = 7, 9, 11
CATEGORIES = (((4, 1), (2, 1)), ((5, 3),))  # (levels, slots): two attributes of users, one of up to three values


def make_shape(size: str, views: ViewKind) -> Shape:
    layers, width = (1, 0) if views == "none" else (3, 8)
    return Shape(
        size=SIZED[size], views=views, layers=layers, width=width, counts=(USERS, MOVIES), categories=CATEGORIES
    )


def make_model(shape: Shape) -> Levi:
    """A model whose every parameter and buffer is a random number, biases and projections included."""
    torch.manual_seed(0)
    model = Levi(shape)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.copy_(torch.randn(tensor.shape) * 0.4)
        for projection in model.projections():
            projection.deviation.abs_().add_(0.1)
    return model.eval()


def make_views(shape: Shape) -> list[Tensor]:
    """Unprojected views of the pairs' users and items, or of the pairs."""
    kinds = {"entity": 2, "pair": 1, "none": 0}[shape.views]
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(PAIRS, shape.layers, shape.width, generator=generator) for _ in range(kinds)]


def make_batch(model: Levi, views: list[Tensor]) -> Batch:
    """Random ids and codes, zeros among them, with the model's own projection of the views."""
    generator = torch.Generator().manual_seed(2)
    components = [p(v) for p, v in zip(model.projections(), views, strict=True)]
    entity = model.shape.views == "entity"
    return Batch(
        ids=tuple(torch.randint(0, n + 1, (PAIRS,), generator=generator) for n in (USERS, MOVIES)),
        codes=(
            torch.stack([torch.randint(0, n + 1, (PAIRS,), generator=generator) for n in (4, 2)], 1),
            torch.randint(0, 6, (PAIRS, 3), generator=generator).masked_fill(torch.tril(torch.ones(PAIRS, 3)) == 0, 0),
        ),
        components=(components[0], components[1]) if entity else (None, None),
        pair_components=components[0] if model.shape.views == "pair" else None,
    )


def slow(model: Levi, batch: Batch, views: list[Tensor]) -> np.ndarray:
    """The definition, one pair and one head at a time: ŷ_j = MLP_j([h_j(user); h_j(item); z]) in float64.

    Every first layer is one matrix over one concatenation, put together from the parts that the model keeps.
    """
    w = {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}
    shape, size = model.shape, model.shape.size
    projections = [name.removesuffix(".mean") for name in w if name.endswith(".mean")]
    out = np.empty((PAIRS, shape.layers))
    for b in range(PAIRS):
        owns, embeddings, bias = [], [], 0.0
        for side, name in enumerate(("user", "item")):
            row = w[f"{name}.ids.weight"][batch.ids[side][b]]
            embeddings.append(row[:-1])
            bias += row[-1] if size.bias else 0.0
            own, at = [row[:-1]], 0
            for k, (_, slots) in enumerate(CATEGORIES[side]):
                codes = batch.codes[side][b, at : at + slots].tolist()
                table = w[f"{name}.categories.{k}.weight"]
                known = [table[code] for code in codes if code > 0]
                own.append(np.mean(known, axis=0) if known else table[0])
                at += slots
            owns.append(np.concatenate(own))
        tower_input = np.concatenate([*owns, *([embeddings[0] * embeddings[1]] if size.product else [])])
        first = np.concatenate([w["user.tower"], w["item.tower"], *([w["product"]] if size.product else [])])
        assert first.shape == (len(tower_input), size.tower[0]) == (shape.tower_inputs, size.tower[0])
        x = np.maximum(tower_input @ first + w["tower_bias"], 0)
        z = np.maximum(w["tower.weight"] @ x + w["tower.bias"], 0)
        for j in range(shape.layers):
            h_j = [
                (v[b, j].double().numpy() - w[f"{p}.mean"][j]) @ w[f"{p}.rotation"][j]
                for p, v in zip(projections, views, strict=True)
            ]
            if size.unit_views:
                h_j = [h / np.sqrt(np.mean(h**2) + 0.01) for h in h_j]
            hidden = slice(j * size.hidden, (j + 1) * size.hidden)
            kept = {"entity": ["user.heads.weight", "item.heads.weight"], "pair": ["pair_heads.weight"], "none": []}
            head = np.concatenate([*(w[name][j] for name in kept[shape.views]), w["heads_z"][:, hidden]])
            head_input = np.concatenate([*h_j, z])
            assert head.shape == (len(head_input), size.hidden) == (shape.head_inputs, size.hidden)
            a = np.maximum(head_input @ head + w["heads_bias"][hidden], 0)
            out[b, j] = a @ w["heads_out"][j] + w["out_bias"][j] + w["center"] + bias
    return out


@pytest.mark.parametrize("views", ["entity", "pair", "none"])
@pytest.mark.parametrize("size", SIZED)
def test_forward(size: str, views: ViewKind) -> None:
    """Batched halves and heads compute exactly the paper's heads over [h_j(user); h_j(item); z], pair by pair."""
    shape = make_shape(size, views)
    model, given_views = make_model(shape), make_views(shape)
    batch = make_batch(model, given_views)
    with torch.inference_mode():
        found = model(batch).numpy()
    expected = slow(model, batch, given_views)
    assert found.shape == (PAIRS, shape.layers)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found / scale, expected / scale, atol=1e-5)
    assert expected.std(axis=0).min() > 0.1 * scale / PAIRS  # the pairs are told apart


@pytest.mark.parametrize("views", ["entity", "pair", "none"])
@pytest.mark.parametrize("size", SIZED)
def test_rows_are_as_wide_as_the_layout_says(size: str, views: ViewKind) -> None:
    """What a half returns fits the layout of an entity row."""
    model = make_model(make_shape(size, views))
    batch = make_batch(model, make_views(model.shape))
    for half, ids, codes, components in zip(model.halves, batch.ids, batch.codes, batch.components, strict=True):
        assert half(half.ids(ids), codes, components).shape == (PAIRS, model.shape.layout.width)


def test_named_sizes() -> None:
    """The widths of both named sizes over MiniLM's seven views of 384 are those of the design, counted by hand."""

    def widths(size: str, views: ViewKind) -> tuple[int, ...]:
        layers, width = (1, 0) if views == "none" else (7, 384)
        shape = Shape(
            size=SIZES[size],
            views=views,
            layers=layers,
            width=width,
            counts=(943, 1682),
            categories=(((21, 1), (400, 1), (7, 1)), ()),
        )
        layout = shape.layout
        parts = layout.tower, layout.heads, layout.factors, layout.embedding, layout.bias, layout.support
        assert layout.width == sum(parts)
        return shape.components, shape.tower_inputs, shape.head_inputs, *parts

    # The user's tower inputs are an id of 32 and three categories of 8, the movie's an id; ref adds their product.
    assert widths("ref", "entity") == (64, 32 + 24 + 32 + 32, 64 + 64 + 64, 128, 7 * 64, 32, 0, 1, 1)
    assert widths("ref", "pair") == (64, 120, 64 + 64, 128, 0, 32, 0, 1, 0)
    assert widths("ref", "none") == (0, 120, 64, 128, 0, 32, 0, 1, 0)
    assert widths("paper", "entity") == (384, 32 + 24 + 32, 384 + 384 + 256, 512, 7 * 256, 0, 0, 1, 1)
    assert widths("paper", "pair") == (384, 88, 384 + 256, 512, 0, 0, 0, 1, 0)


def test_first_layers_start_like_one_layer() -> None:
    """The parts of a first layer are drawn as one layer would be: uniform within 1/√(inputs of all parts)."""
    torch.manual_seed(0)
    shape = make_shape("paper", "entity")
    model = Levi(shape)
    assert model.user.heads is not None
    for parts, inputs in (
        ((model.user.tower, model.item.tower), shape.tower_inputs),
        ((model.user.heads.weight, model.heads_z), shape.head_inputs),
        ((model.heads_out,), shape.size.hidden),
    ):
        for part in parts:
            assert 0.95 * inputs**-0.5 < float(part.detach().abs().max()) <= inputs**-0.5
    assert not model.user.ids.weight[:, -1].any()  # rating biases start at 0


def test_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    """While fitting, parts of ids and views, and activated units of tower and heads, are dropped; later nothing is."""
    model = make_model(make_shape("tiny", "entity"))
    batch = make_batch(model, make_views(model.shape))
    assert torch.equal(model(batch), model(batch))
    model.train()
    assert not torch.equal(model(batch), model(batch))
    dropped: list[tuple[tuple[int, ...], float]] = []

    def noted(x: Tensor, share: float, training: bool, _: bool = False) -> Tensor:
        assert training
        assert share != 0.5 or (x >= 0).all()
        dropped.append((tuple(x.shape), share))
        return x

    monkeypatch.setattr(nn.functional, "dropout", noted)
    model(batch)
    of_one = [((PAIRS, 3), 0.2), ((PAIRS, 3, 4), 0.1)]  # an entity's id embedding and its views
    assert dropped == [*of_one, *of_one, ((PAIRS, 6), 0.5), ((PAIRS, 5), 0.5), ((PAIRS, 3 * 4), 0.5)]


def test_loss() -> None:
    """Squared errors 0, 1 of the first head and 1, 1 of the second: 0.75 with equal weights, 0.875 with ¼ and ¾."""
    model = Levi(make_shape("tiny", "entity").model_copy(update={"layers": 2}))
    heads, target = torch.tensor([[1.0, 2.0], [3.0, 5.0]]), torch.tensor([1.0, 4.0])
    assert float(model.loss(heads, target)) == 0.75
    assert model.rating(heads).tolist() == [1.5, 4.0]
    model.weights.copy_(torch.tensor([0.25, 0.75]))
    assert float(model.loss(heads, target)) == 0.875
    assert model.rating(heads).tolist() == [1.75, 4.5]


def test_each_head_is_fitted_by_itself() -> None:
    """Heads that err in opposite directions have a loss although their mean is right."""
    model = Levi(make_shape("tiny", "entity").model_copy(update={"layers": 2}))
    heads, target = torch.tensor([[2.0, 4.0]]), torch.tensor([3.0])
    assert float(model.loss(heads, target)) == 1
    assert model.rating(heads).tolist() == target.tolist()


@pytest.mark.parametrize(
    ("kind", "weights"),
    [
        ("equal", [0.25, 0.25, 0.25, 0.25]),
        ("late", [0.1, 0.2, 0.3, 0.4]),
        ("1,1,2,0", [0.25, 0.25, 0.5, 0]),
        (" 3, 0,0 ,1e0", [0.75, 0, 0, 0.25]),
    ],
)
def test_layer_weights(kind: str, weights: list[float]) -> None:
    """Weights are equal, rising, or as given, and sum to 1."""
    assert layer_weights(kind, 4) == pytest.approx(weights)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("early", "'early' is neither equal, late nor a list of numbers"),
        ("", "'' is neither"),
        ("1,1,", "'1,1,' is neither"),
        ("1,1", "2 weights for 3 layers"),
        ("1,1,1,1", "4 weights for 3 layers"),
        ("2,-1,1", "must not be negative"),
        ("0,0,0", "not all zero"),
        ("nan,1,1", "must not be negative, and not all zero"),
        ("inf,1,1", "must not be negative, and not all zero"),
        ("1,1,nan", "must not be negative, and not all zero"),
    ],
)
def test_wrong_layer_weights(kind: str, says: str) -> None:
    """Weights that are no numbers, too few or many, negative, all zero or not finite are refused with the reason."""
    with pytest.raises(ValueError, match=says):
        layer_weights(kind, 3)


def test_mean_of_known() -> None:
    """Values are averaged without the empty slots; an entity without any known value has the embedding of code 0."""
    table = torch.tensor([[100.0], [1.0], [2.0], [6.0]])
    codes = torch.tensor([[1, 2, 3], [2, 0, 3], [0, 0, 3], [0, 0, 0]])
    assert _mean_of_known(nn.functional.embedding(codes, table), codes).tolist() == [[3], [4], [6], [100]]


def test_unknown_id() -> None:
    """Id 0 is the unknown entity's own embedding: it alone gets the gradient of ratings whose id is hidden."""
    model = make_model(make_shape("tiny", "entity"))
    batch = make_batch(model, make_views(model.shape))
    hidden = batch._replace(ids=(torch.zeros_like(batch.ids[0]), batch.ids[1].clamp(min=1)))
    model.loss(model(hidden), torch.ones(PAIRS)).backward()
    assert model.user.ids.weight.grad is not None
    assert model.item.ids.weight.grad is not None
    assert model.user.ids.weight.grad.any(1).tolist() == [True, *[False] * USERS]
    assert not model.item.ids.weight.grad[0].any()
    assert len(model.user.ids.weight) == USERS + 1


@given(st.integers(0, 2**31), st.floats(0, 0.99))
def test_hide(seed: int, share: float) -> None:
    """About the given share of ids becomes 0, at random by the seed, and the others stay."""
    ids = torch.arange(1, 10_001)
    torch.manual_seed(seed)
    hidden = hide(ids, share)
    assert ((hidden == ids) | (hidden == 0)).all()
    assert abs(float((hidden == 0).double().mean()) - share) < 6 * (0.25 / 10_000) ** 0.5
    torch.manual_seed(seed)
    assert torch.equal(hide(ids, share), hidden)


def test_nothing_is_hidden_at_share_0() -> None:
    """A share of 0 hides nothing."""
    ids = torch.arange(1, 100_001)
    assert torch.equal(hide(ids, 0.0), ids)


def test_projection() -> None:
    """Views are centred, then rotated; support is the root mean square of what is left, in deviations."""
    shape = make_shape("tiny", "entity").model_copy(
        update={"layers": 1, "width": 2, "size": TINY.model_copy(update={"components": 2})}
    )
    projection = Projection(shape)
    projection.mean.copy_(torch.tensor([[1.0, 2.0]]))
    projection.rotation.copy_(torch.tensor([[[0.0, 1.0], [2.0, 0.0]]]))  # swaps, and doubles the second
    projection.deviation.copy_(torch.tensor([[4.0, 1.0]]))
    components = projection(torch.tensor([[[2.0, 4.0]]]))
    assert components.tolist() == [[[4, 1]]]
    assert projection.support(components).tolist() == [[1]]
    assert projection.support(torch.tensor([[[4.0, 7.0]]])).tolist() == [[5]]


def test_halves_differ() -> None:
    """The user's and the item's half share no parameters."""
    model = Levi(make_shape("tiny", "entity"))
    assert all(isinstance(half, EntityHalf) for half in model.halves)
    assert not {id(p) for p in model.user.parameters()} & {id(p) for p in model.item.parameters()}
    assert not torch.equal(model.user.heads.weight, model.item.heads.weight)  # type: ignore[union-attr]

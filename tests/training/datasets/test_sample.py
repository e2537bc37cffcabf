"""The generated dataset: its shape, and that what was planted can be found."""

from __future__ import annotations

import hashlib
import re
import time

import numpy as np
import numpy.typing as npt
import pytest

from levi_serve.bundle.schema import build_vocabulary, encode
from training.datasets import load, sample
from training.datasets.dataset import Dataset, attributes
from training.splits import Split, split

Floats = npt.NDArray[np.floating]


def rmse(errors: Floats) -> float:
    return float(np.sqrt(np.mean(np.square(errors, dtype=np.float64))))


@pytest.fixture(scope="module")
def drawn() -> tuple[Dataset, Floats]:
    """The dataset and the ratings that it was drawn from."""
    return sample._generate()


@pytest.fixture(scope="module")
def parts(drawn: tuple[Dataset, Floats]) -> Split:
    return split(drawn[0], 0)


def test_shape_of_movielens(drawn: tuple[Dataset, Floats]) -> None:
    """943 users and 1,682 movies counted from 1, 100,000 distinct pairs, whole stars, at least 20 per user."""
    data = drawn[0]
    assert data.users["id"].to_pylist() == list(range(1, 944))
    assert data.items["id"].to_pylist() == list(range(1, 1683))
    ratings = data.ratings
    assert len(ratings) == 100_000
    assert len({*zip(ratings.user.tolist(), ratings.item.tolist(), strict=True)}) == 100_000
    assert set(ratings.value.tolist()) == {1, 2, 3, 4, 5}
    assert [a.dtype for a in (ratings.user, ratings.item, ratings.value, ratings.time)] == [
        *(np.int32, np.int32, np.float32, np.int64)
    ]
    assert np.bincount(ratings.user).min() >= 20
    assert 137 in ratings.user
    assert 356 in ratings.item


def test_popularity_has_a_long_tail(drawn: tuple[Dataset, Floats]) -> None:
    """A few movies have hundreds of ratings, the median has few, as in MovieLens."""
    counts = np.bincount(drawn[0].ratings.item, minlength=1682)
    assert counts.max() > 400
    assert 15 <= np.median(counts) <= 45


def test_same_everywhere(drawn: tuple[Dataset, Floats]) -> None:
    """Every table and rating is the one that was generated when this test was written."""
    data = drawn[0]
    digest = hashlib.sha256()
    for text in (data.users.to_pylist(), data.items.to_pylist()):
        digest.update(repr(text).encode())
    for array in (data.ratings.user, data.ratings.item, data.ratings.value, data.ratings.time):
        digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    assert digest.hexdigest() == "07eb51e953677c4419aa9ec0993c8b8148761d99ddc075078e3efa65cb28cb23"


def test_fast_and_schema_of_ml100k() -> None:
    """It is there within two seconds, and its schema is that of ml-100k."""
    began = time.perf_counter()
    data = load("sample", None)
    assert time.perf_counter() - began < 2
    assert [a.name for a in data.schema.user.attributes] == ["occupation", "zipcode", "age"]
    assert [a.name for a in data.schema.item.attributes] == ["title", "year", "genres"]
    assert data.schema.pair_template.clauses[0] == "user.id"
    people = attributes(data.users, data.schema.user)
    codes = encode(data.schema.user, build_vocabulary(data.schema.user, people), people)
    assert codes.shape == (943, 3)
    assert codes.min() == 1


def test_attributes_are_plausible(drawn: tuple[Dataset, Floats]) -> None:
    """Titles are distinct English words with their year, zip codes have five digits, genres are MovieLens'."""
    movies = attributes(drawn[0].items, drawn[0].schema.item)
    assert len({m["title"] for m in movies}) == 1682
    for movie in movies:
        assert re.fullmatch(rf"[A-Z][a-z]+( [A-Za-z]+)+ \({movie['year']}\)", str(movie["title"]))
        assert 1930 <= int(str(movie["year"])) <= 2000
    assert {g for m in movies for g in m["genres"]} == {  # type: ignore[union-attr]
        *("Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy"),
        *("Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
    }
    people = attributes(drawn[0].users, drawn[0].schema.user)
    assert all(re.fullmatch(r"\d{5}", str(p["zipcode"])) for p in people)
    assert all(10 <= int(str(p["age"])) <= 75 for p in people)


def test_shift_has_movielens_proportions(parts: Split) -> None:
    """About nine ratings of a hundred are shifted, and at least ten genres are large enough to be reported."""
    assert 8_000 <= len(parts.ood) <= 10_000
    assert len(parts.slices) >= 10


def fitted_biases(data: Dataset, train: npt.NDArray[np.int64]) -> tuple[float, Floats, Floats]:
    """Mean, user biases and movie biases by alternating shrunk means."""
    user, item = data.ratings.user[train], data.ratings.item[train]
    mean = float(data.ratings.value[train].mean())
    rest = data.ratings.value[train] - mean
    by_user, by_item = np.zeros(943), np.zeros(1682)
    for _ in range(10):
        by_item = np.bincount(item, rest - by_user[user], 1682) / (np.bincount(item, minlength=1682) + 4)
        by_user = np.bincount(user, rest - by_item[item], 943) / (np.bincount(user, minlength=943) + 4)
    return mean, by_user, by_item


def test_there_is_something_to_learn(drawn: tuple[Dataset, Floats], parts: Split) -> None:
    """Mean, user mean, biases and the truth are each clearly better than the one before."""
    data, expected = drawn
    user, item, value = (a[parts.test] for a in (data.ratings.user, data.ratings.item, data.ratings.value))
    mean, by_user, by_item = fitted_biases(data, parts.train)
    trained = data.ratings.user[parts.train]
    rest = data.ratings.value[parts.train] - mean
    user_mean = np.bincount(trained, rest, 943) / np.bincount(trained, minlength=943)
    assert 1.05 <= rmse(data.ratings.value - data.ratings.value.mean()) <= 1.15
    assert 0.98 <= rmse(value - mean - user_mean[user]) <= 1.03
    assert 0.92 <= rmse(value - mean - by_user[user] - by_item[item]) <= 0.96
    assert 0.86 <= rmse(value - np.clip(expected[user, item], 1, 5)) <= 0.90


def test_the_shift_costs_and_titles_help(drawn: tuple[Dataset, Floats], parts: Split) -> None:
    """Shifted movies are predicted worse, by more than their ratings are noisier, and less so with title words."""
    data, expected = drawn
    mean, by_user, by_item = fitted_biases(data, parts.train)
    user, item, value = (a[parts.ood] for a in (data.ratings.user, data.ratings.item, data.ratings.value))
    tested = rmse(
        data.ratings.value[parts.test]
        - mean
        - by_user[data.ratings.user[parts.test]]
        - by_item[data.ratings.item[parts.test]]
    )
    shifted = rmse(value - mean - by_user[user])
    assert shifted > tested + 0.1
    assert rmse(value - np.clip(expected[user, item], 1, 5)) < 0.93

    titles = [set(str(t)[:-7].split()) for t in data.items["title"].to_pylist()]
    words = sorted(set.union(*titles))
    said = np.array([[word in title for word in words] for title in titles], dtype=np.float64)
    weight = np.bincount(data.ratings.item[parts.train], minlength=1682)
    gram = said.T @ (said * weight[:, None]) + 20 * np.eye(len(words))
    by_word = np.linalg.solve(gram, said.T @ (by_item * weight))
    assert rmse(value - mean - by_user[user] - (said @ by_word)[item]) < shifted - 0.01

"""The three MovieLens layouts: what is in the dataset, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from training.datasets import load
from training.datasets.dataset import attributes
from training.errors import DataError
from training.splits import split

GENRES = ["unknown", "Action", "Children's", "Drama", "War"]
ML_100K = {
    "u.info": "3 users\n2 items\n4 ratings\n",
    "u.genre": "".join(f"{genre}|{i}\n" for i, genre in enumerate(GENRES)) + "\n",
    "u.user": "1|24|M|technician|85711\n2|53|F|other|T8H1N\n7|23|M|writer|32067\n",
    "u.item": "5|Café (1995)|01-Jan-1995||http://x|0|1|0|0|1\n9|Toys (1984) (1992) (V) |||http://y|0|0|1|0|0\n",
    "u.data": "7\t5\t3\t881250949\n1\t5\t5\t891717742\n2\t9\t1\t878887116\n7\t9\t4\t880606923\n",
}
ML_1M = {
    "users.dat": "1::F::1::10::48067\n2::M::56::16::70072-1234\n",
    "movies.dat": "1::Toy Story: A Tale (1995)::Animation|Children's|Comedy\n3::Été (2000)::Drama\n",
    "ratings.dat": "1::3::5::978300760\n2::1::3::978302109\n1::1::4::978301968\n",
}
ML_CSV = {
    "movies.csv": 'movieId,title,genres\n10,"City, The ""Old"" (1995)",Drama|War\n4,Été,(no genres listed)\n',
    "ratings.csv": "userId,movieId,rating,timestamp\n30,4,0.5,1000\n2,10,4.5,1001\n30,10,5.0,1002\n",
}
LAYOUTS = {"ml-100k": ML_100K, "ml-1m": ML_1M, "ml-csv": ML_CSV}


def write(folder: Path, layout: str, **changed: str | bytes) -> Path:
    """The layout's files; `u_data="…"` replaces u.data."""
    names = {name.replace(".", "_"): name for name in LAYOUTS[layout]}
    assert set(changed) <= set(names)
    for key, name in names.items():
        content = changed.get(key, LAYOUTS[layout][name])
        encoding = "utf-8" if layout == "ml-csv" else "latin-1"
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return folder


def refuse(folder: Path, layout: str, message: str, **changed: str | bytes) -> None:
    with pytest.raises(DataError) as caught:
        load(layout, write(folder, layout, **changed))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_ml100k_layout(tmp_path: Path) -> None:
    """Every field of the small files arrives where its README says: rows, attributes, genres by flag column."""
    data = load("ml-100k", write(tmp_path, "ml-100k"))
    assert data.users["id"].to_pylist() == [1, 2, 7]
    assert attributes(data.users, data.schema.user) == [
        {"occupation": "technician", "zipcode": "85711", "age": 24},
        {"occupation": "other", "zipcode": "T8H1N", "age": 53},
        {"occupation": "writer", "zipcode": "32067", "age": 23},
    ]
    assert data.items["id"].to_pylist() == [5, 9]
    assert attributes(data.items, data.schema.item) == [
        {"title": "Café (1995)", "year": 1995, "genres": ("Action", "War")},
        {"title": "Toys (1984) (1992) (V)", "year": 1992, "genres": ("Children's",)},
    ]
    assert data.ratings.user.tolist() == [2, 0, 1, 2]
    assert data.ratings.item.tolist() == [0, 0, 1, 1]
    assert data.ratings.value.tolist() == [3, 5, 1, 4]
    assert data.ratings.time.tolist() == [881250949, 891717742, 878887116, 880606923]
    dtypes = [a.dtype for a in (data.ratings.user, data.ratings.item, data.ratings.value, data.ratings.time)]
    assert dtypes == [np.int32, np.int32, np.float32, np.int64]


def test_ml100k_schema(tmp_path: Path) -> None:
    """The sentences name the paper's clauses in its order, and only users' attributes are embedded."""
    schema = load("ml-100k", write(tmp_path, "ml-100k")).schema
    assert schema.pair_template.clauses == (
        *("user.id", "user.occupation", "user.zipcode", "user.age"),
        *("movie.title", "movie.id"),
    )
    assert schema.pair_template.opening == "When "
    assert schema.pair_template.closing == ", what can be the user rating on this movie?:"
    assert schema.user_template.clauses == ("user.occupation", "user.zipcode", "user.age")
    assert schema.item_template.clauses == ("movie.title",)
    assert [a.name for a in schema.user.embedded] == ["occupation", "zipcode", "age"]
    assert schema.item.embedded == ()
    assert (schema.rating_min, schema.rating_max) == (1, 5)
    assert schema.user.attributes[1].levels("85711") == ["857"]
    assert [schema.user.attributes[2].levels(age) for age in (17, 18, 56)] == [["0"], ["1"], ["6"]]


def test_ml1m_layout(tmp_path: Path) -> None:
    """Occupation codes become names, genres are split, '::' separates although titles hold ':'."""
    data = load("ml-1m", write(tmp_path, "ml-1m"))
    assert attributes(data.users, data.schema.user) == [
        {"occupation": "K-12 student", "zipcode": "48067", "age": 1},
        {"occupation": "self-employed", "zipcode": "70072-1234", "age": 56},
    ]
    assert attributes(data.items, data.schema.item) == [
        {"title": "Toy Story: A Tale (1995)", "year": 1995, "genres": ("Animation", "Children's", "Comedy")},
        {"title": "Été (2000)", "year": 2000, "genres": ("Drama",)},
    ]
    assert data.ratings.user.tolist() == [0, 1, 0]
    assert data.ratings.item.tolist() == [1, 0, 0]
    assert data.ratings.value.tolist() == [5, 3, 4]


def test_mlcsv_layout(tmp_path: Path) -> None:
    """Quoted titles, half stars, no genres, no year, and users that are the sorted ids of the ratings."""
    data = load("ml-csv", write(tmp_path, "ml-csv"))
    assert data.users.to_pydict() == {"id": [2, 30]}
    assert data.items["id"].to_pylist() == [10, 4]
    assert attributes(data.items, data.schema.item) == [
        {"title": 'City, The "Old" (1995)', "year": 1995, "genres": ("Drama", "War")},
        {"title": "Été"},
    ]
    assert data.ratings.user.tolist() == [1, 0, 1]
    assert data.ratings.item.tolist() == [1, 0, 0]
    assert data.ratings.value.tolist() == [0.5, 4.5, 5]
    assert data.ratings.time.tolist() == [1000, 1001, 1002]
    assert data.schema.pair_template.clauses == ("user.id", "movie.title", "movie.id")
    assert data.schema.user_template.clauses == ()
    assert (data.schema.rating_min, data.schema.rating_max) == (0.5, 5)


RATINGS_100K = ML_100K["u.data"].splitlines()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2\t9\t1", "line 3: 3 columns where 4 are expected"),
        ("2\t9\tx\t1", "line 3: column 'rating' holds 'x', not a number"),
        ("2\t9\t6\t1", "line 3: rating 6 is not on the scale 1 to 5 in steps of 1"),
        ("2\t9\t0\t1", "line 3: rating 0 is not on the scale"),
        ("2\t9\t3.5\t1", "line 3: rating 3.5 is not on the scale"),
        ("2\t9\tnan\t1", "line 3: rating nan is not on the scale"),
        ("2\t9\t\t1", "line 3: column 'rating' is empty"),
        ("\t9\t1\t1", "line 3: column 'user' is empty"),
        ("", "line 3: column 'user' is empty"),
        ("3\t9\t1\t1", "line 3: user 3 has no row in "),
        ("2\t6\t1\t1", "line 3: item 6 has no row in "),
        ("-2\t9\t1\t1", "line 3: user -2 is negative"),
        ("1\t5\t1\t1", "line 3: user 1 and item 5 are already in line 2"),
        ("1::9::1::1", "line 3: 1 columns where 4 are expected"),
    ],
)
def test_bad_rating_lines(tmp_path: Path, line: str, message: str) -> None:
    """Whatever is wrong with the third rating, the message names u.data and line 3."""
    lines = [*RATINGS_100K[:2], line, RATINGS_100K[3]]
    refuse(tmp_path, "ml-100k", f"u.data, {message}", u_data="\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("layout", "name", "content", "message"),
    [
        ("ml-100k", "u_data", "", "u.data is empty"),
        ("ml-100k", "u_data", ML_100K["u.data"][:-2], "u.data, line 4: the file ends within this line"),
        ("ml-100k", "u_data", "1\t5\t5\t8\n", "u.data has 1 lines, but u.info counts 4 ratings"),
        ("ml-100k", "u_user", "1|24|M|other|1\n", "u.user has 1 lines, but u.info counts 3 users"),
        ("ml-100k", "u_info", "3 users\n3 items\n4 ratings\n", "u.item has 2 lines, but u.info counts 3 items"),
        ("ml-100k", "u_info", "3 users\n", "u.info must count users, items and ratings"),
        ("ml-100k", "u_genre", "Action|1\nunknown|0\n", "u.genre: the numbers after the genres must count from 0"),
        ("ml-100k", "u_genre", "\n", "u.genre: the numbers after the genres must count from 0"),
        ("ml-100k", "u_genre", "unknown|0\n", "u.item, line 1: 10 columns where 6 are expected"),
        ("ml-100k", "u_user", ML_100K["u.user"].replace("2|53", "1|53"), "u.user, line 2: id 1 is already in line 1"),
        ("ml-100k", "u_user", ML_100K["u.user"].replace("2|53", "2|old"), "u.user, line 2: column 'age' holds 'old'"),
        ("ml-100k", "u_user", ML_100K["u.user"].replace("2|53", "-2|53"), "u.user, line 2: id -2 is negative"),
        ("ml-100k", "u_item", ML_100K["u.item"].replace("|1|0|0\n", "|2|0|0\n"), "line 2: column 'Children's' holds"),
        ("ml-100k", "u_item", ML_100K["u.item"].replace("|1|0|0\n", "||0|0\n"), "line 2: column 'Children's' is empty"),
        ("ml-100k", "u_item", ML_100K["u.item"].replace("Toys", "T\0ys"), "u.item, line 2: column 'title' holds a NUL"),
        ("ml-1m", "users_dat", "1::F::1::10::4\n2::M::56::21::7\n", "users.dat, line 2: occupation 21 is none of"),
        ("ml-1m", "users_dat", "1::F::1::-1::4\n2::M::56::2::7\n", "users.dat, line 1: occupation -1 is none of"),
        ("ml-1m", "users_dat", "1::F::1::::4\n2::M::56::2::7\n", "users.dat, line 1: column 'occupation' is empty"),
        ("ml-1m", "ratings_dat", "1::3::5::9\n1::3::4::9\n", "ratings.dat, line 2: user 1 and item 3 are already in l"),
        ("ml-1m", "movies_dat", "1::A::B\n3::C\n", "movies.dat, line 2: 2 columns where 3 are expected"),
        ("ml-1m", "ratings_dat", "1\t3\t5\t9\n", "ratings.dat, line 1: 1 columns where 4 are expected"),
        ("ml-csv", "ratings_csv", ML_CSV["ratings.csv"].replace("4.5", "4.3"), "csv, line 3: rating 4.3 is not on"),
        ("ml-csv", "ratings_csv", ML_CSV["ratings.csv"].replace("4.5", "4.25"), "csv, line 3: rating 4.25 is not on"),
        ("ml-csv", "movies_csv", ML_CSV["movies.csv"][:-3], "movies.csv, line 3: the file ends within this line"),
        ("ml-csv", "ratings_csv", ML_CSV["ratings.csv"].replace("0.5", "0"), "ratings.csv, line 2: rating 0 is not on"),
        ("ml-csv", "ratings_csv", ML_CSV["ratings.csv"].replace("30,4", "-30,4"), "line 2: userId -30 is negative"),
        ("ml-csv", "ratings_csv", ML_CSV["ratings.csv"].replace("30,4", "30,5"), "line 2: movieId 5 has no row in "),
        ("ml-csv", "ratings_csv", ML_CSV["ratings.csv"][:-1], "ratings.csv, line 4: the file ends within this line"),
        ("ml-csv", "ratings_csv", "a,b,c,d\n1,2,3,4\n", "ratings.csv, line 1: there is no column 'userId'"),
        ("ml-csv", "movies_csv", ML_CSV["movies.csv"].encode("latin-1"), "line 3: column 'title' is not UTF-8"),
        ("ml-csv", "movies_csv", ML_CSV["movies.csv"].replace("\n4,", "\n10,"), "line 3: movieId 10 is already in l"),
    ],
)  # fmt: skip
def test_damaged_files(tmp_path: Path, layout: str, name: str, content: str | bytes, message: str) -> None:
    """One damage in one file is refused with its file and line."""
    refuse(tmp_path, layout, message, **{name: content})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_missing_and_mislabelled_folders(tmp_path: Path, layout: str) -> None:
    """Each file is needed, and a folder in another layout is named as what it is."""
    for name in LAYOUTS[layout]:
        (write(tmp_path, layout) / name).unlink()
        with pytest.raises(DataError, match=f"{name} is missing"):
            load(layout, tmp_path)
    write(tmp_path, layout)
    for other in set(LAYOUTS) - {layout}:
        with pytest.raises(DataError, match=f"the files there are {layout}: load them as that"):
            load(other, tmp_path)


@pytest.mark.ml100k
def test_real_ml100k(ml100k: Path) -> None:
    """The real files have the published counts, and the first line of each is where it should be."""
    data = load("ml-100k", ml100k)
    assert (len(data.users), len(data.items), len(data.ratings)) == (943, 1682, 100_000)
    movie = attributes(data.items, data.schema.item, [356])[0]
    assert movie == {"title": "One Flew Over the Cuckoo's Nest (1975)", "year": 1975, "genres": ("Drama",)}
    assert attributes(data.users, data.schema.user, [137])[0] == {"occupation": "doctor", "zipcode": "53211", "age": 46}
    first = (data.ratings.user[0], data.ratings.item[0], data.ratings.value[0], data.ratings.time[0])
    assert first == (195, 241, 3, 881250949)
    assert data.items["year"].null_count == 1
    assert data.items["title"][542].as_py() == "Misérables, Les (1995)"


@pytest.mark.ml100k
def test_real_genre_shift(ml100k: Path) -> None:
    """The genre shift leaves the paper's 12 genres with the counts that the files give."""
    data = load("ml-100k", ml100k)
    parts = split(data, 0)
    assert len(parts.ood) == 8_858
    assert len(np.unique(data.ratings.item[parts.ood])) == 221
    assert {name: len(rows) for name, rows in parts.slices.items()} == {
        "Children's": 2742,
        "Animation": 2059,
        "Musical": 1908,
        "Horror": 1686,
        "Adventure": 1556,
        "Sci-Fi": 1438,
        "Documentary": 700,
        "Film-Noir": 597,
        "War": 588,
        "Western": 581,
        "Mystery": 463,
        "Crime": 368,
    }
    sizes = [len(p) for p in (parts.train, parts.selection, parts.calibration, parts.test)]
    assert sizes == [72_914, 4_557, 4_557, 9_114]

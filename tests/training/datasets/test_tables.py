"""Anybody's tables through a TOML file."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from training.datasets import load
from training.datasets.dataset import Dataset, attributes
from training.errors import DataError

TOML = """
name = "shop"
[user]
name = "customer"
id = "customer_id"
id_type = "string"
file = "customers.csv"
attributes = [
    {name = "city", column = "City", kind = "category", embed = true, prefix = 3},
    {name = "age", kind = "number", embed = true, edges = [18, 65]},
]
[item]
name = "product"
id = "sku"
file = "data/products.csv"
attributes = [
    {name = "title", kind = "text"},
    {name = "shelf", column = "shelves", kind = "category", many = true, separator = ";", slots = 2},
    {name = "price", kind = "number"},
]
[ratings]
file = "ratings.csv"
user = "who"
item = "what"
rating = "stars"
min = 1
max = 10
time = "bought"
[shift]
attribute = "shelf"
id_values = ["books", "films"]
min_ratings = 2
"""
CUSTOMERS = "customer_id,City,age,unused\nanna,Augsburg,24,x\nbob,,,y\n"
PRODUCTS = 'sku,title,price,shelves\n7,"Tea, green",2.5,food;  drink;\n3,Dune,9,books\n'
RATINGS = "what,who,stars,bought\n7,bob,2.5,2020-01-02\n3,anna,10,1970-01-01\n7,anna,1,1970-01-02\n"


def write(folder: Path, toml: str = TOML, **files: str) -> Path:
    (folder / "data").mkdir(exist_ok=True)
    (folder / "dataset.toml").write_text(toml)
    (folder / "customers.csv").write_text(files.get("customers", CUSTOMERS))
    (folder / "data/products.csv").write_text(files.get("products", PRODUCTS))
    (folder / "ratings.csv").write_text(files.get("ratings", RATINGS))
    return folder


def refuse(folder: Path, message: str) -> None:
    with pytest.raises(DataError) as caught:
        load("tables", folder)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def check(data: Dataset) -> None:
    assert data.name == "shop"
    assert data.users["id"].to_pylist() == ["anna", "bob"]
    assert attributes(data.users, data.schema.user) == [{"city": "Augsburg", "age": 24}, {}]
    assert data.users["age"].type == pa.int64()
    assert data.items["id"].to_pylist() == [7, 3]
    assert attributes(data.items, data.schema.item) == [
        {"title": "Tea, green", "shelf": ("food", "drink"), "price": 2.5},
        {"title": "Dune", "shelf": ("books",), "price": 9.0},
    ]
    assert data.ratings.user.tolist() == [1, 0, 0]
    assert data.ratings.item.tolist() == [0, 1, 0]
    assert data.ratings.value.tolist() == [2.5, 10, 1]
    assert data.ratings.time.tolist() == [1577923200, 0, 86400]
    assert data.shift is not None
    assert (data.shift.attribute, data.shift.id_values) == ("shelf", {"books", "films"})
    assert data.shift.min_ratings == 2


def test_csv_tables(tmp_path: Path) -> None:
    """A folder of CSV files, and the TOML file itself, give every named column under its attribute's name."""
    check(load("tables", write(tmp_path)))
    check(load("tables", tmp_path / "dataset.toml"))


def test_parquet_tables(tmp_path: Path) -> None:
    """The same dataset from Parquet: lists instead of a separator, NaN as missing, timestamps, dictionary strings."""
    toml = TOML.replace('separator = ";", ', "").replace(".csv", ".parquet")
    write(tmp_path, toml)
    pq.write_table(
        pa.table({"customer_id": ["anna", "bob"], "City": ["Augsburg", None], "age": [24.0, float("nan")]}),
        tmp_path / "customers.parquet",
    )
    pq.write_table(
        pa.table(
            {
                "sku": pa.array([7, 3], pa.int32()),
                "title": pa.array(["Tea, green", "Dune"]).dictionary_encode(),
                "price": [2.5, 9.0],
                "shelves": [["food", None, " drink"], ["books"]],
            }
        ),
        tmp_path / "data/products.parquet",
    )
    bought = pa.array([1577923200_500, 0, 86400_000], pa.timestamp("ms", "UTC"))
    pq.write_table(
        pa.table({"what": [7, 3, 7], "who": ["bob", "anna", "anna"], "stars": [2.5, 10, 1], "bought": bought}),
        tmp_path / "ratings.parquet",
    )
    check(load("tables", tmp_path))


def test_default_sentences(tmp_path: Path) -> None:
    """Without templates, sentences say text and categories in the order of the file, and no numbers."""
    schema = load("tables", write(tmp_path)).schema
    assert schema.user_template.clauses == ("customer.city",)
    assert schema.item_template.clauses == ("product.title", "product.shelf")
    assert schema.pair_template.clauses == (
        *("customer.id", "customer.city"),
        *("product.title", "product.shelf", "product.id"),
    )
    assert schema.pair_template.opening == "When "
    assert schema.pair_template.closing == ", what can be the customer rating on this product?:"
    assert schema.user.id_type == "string"
    assert schema.item.id_type == "integer"
    assert schema.user.attributes[0].prefix == 3
    assert schema.user.attributes[1].edges == (18, 65)
    assert (schema.rating_min, schema.rating_max) == (1, 10)


def test_own_sentences(tmp_path: Path) -> None:
    """A template of the TOML file replaces that default and no other."""
    toml = TOML + '[templates.item]\nclauses = ["product.price"]\nopening = "Look: "\n'
    schema = load("tables", write(tmp_path, toml)).schema
    assert schema.item_template.clauses == ("product.price",)
    assert schema.item_template.opening == "Look: "
    assert schema.user_template.clauses == ("customer.city",)


def test_ratings_alone(tmp_path: Path) -> None:
    """With nothing but ratings, the entities are the sorted ids that occur and the time is 0."""
    toml = (
        '[ratings]\nfile = "ratings.csv"\nuser = "who"\nitem = "what"\nrating = "stars"\nmin = 1\nmax = 10\n'
        '[user]\nid_type = "string"\n'
    )
    data = load("tables", write(tmp_path, toml))
    assert (data.name, data.shift) == ("tables", None)
    assert data.users.to_pydict() == {"id": ["anna", "bob"]}
    assert data.items.to_pydict() == {"id": [3, 7]}
    assert data.ratings.user.tolist() == [1, 0, 0]
    assert data.ratings.item.tolist() == [1, 0, 1]
    assert data.ratings.time.tolist() == [0, 0, 0]
    assert data.schema.pair_template.clauses == ("user.id", "item.id")


def test_whole_seconds(tmp_path: Path) -> None:
    """A time column of whole numbers is taken as seconds, and a missing one as 0."""
    data = load("tables", write(tmp_path, ratings="what,who,stars,bought\n7,bob,2,99\n3,anna,10,\n"))
    assert data.ratings.time.tolist() == [99, 0]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("min = 1\n", "", "key ratings.min: Field required"),
        ('kind = "text"', 'kind = "prose"', "key item.attributes.0.kind: Input should be 'category', 'number' or"),
        ("prefix = 3", "prefixes = 3", "key user.attributes.0.prefixes: Extra inputs are not permitted"),
        ('name = "shop"', 'name = "shop"\ncolour = 1', "key colour: Extra inputs are not permitted"),
        ("edges = [18, 65]", "edges = [65, 18]", "key user.attributes.1: attribute age: 'edges' must ascend"),
        ('{name = "title", kind', '{name = "title", separator = ",", kind', "key item.attributes.0: attribute title"),
        ('separator = ";", ', "", "key item: attribute shelf: many values in a CSV column need a 'separator'"),
        ("max = 10", "max = 1", "key ratings: 'min' must be below 'max'"),
        ('item = "what"', 'item = "who"', "key ratings: user, item, rating and time need a column of their own"),
        ('column = "City"', 'column = "age"', "key user: the id and every attribute need a column of their own"),
        ('name = "price"', 'name = "title", column = "price"', "key item: entity product: attribute names must differ"),
        ('file = "customers.csv"\n', "", "key user: attributes need a 'file'"),
        ('name = "product"', 'name = "customer"', "user.name and item.name must differ"),
        ('attribute = "shelf"', 'attribute = "price"', "shift.attribute 'price' is no category of the items"),
        ('["books", "films"]', "[]", "key shift.id_values: "),
        ("[shift]", '[templates.user]\nclauses = ["customer.name"]\n[shift]', "key templates: template clause 'custo"),
        ("[shift]", "[shift", "dataset.toml is not TOML: "),
        ('file = "ratings.csv"', 'file = "ratings.xlsx"', "ratings.xlsx: tables are .csv or .parquet files"),
        ('file = "ratings.csv"', 'file = "none.csv"', "none.csv is missing or not a file"),
        ('rating = "stars"', 'rating = "star"', "line 1: there is no column 'star'; the columns are: what, who,"),
        ('column = "City"', 'column = "town"', "customers.csv, line 1: there is no column 'town'; the columns"),
        ('id_type = "string"\n', "", "column 'who' holds 'bob', not a whole number"),
    ],
)  # fmt: skip
def test_bad_descriptions(tmp_path: Path, old: str, new: str, message: str) -> None:
    """Every mistake in the TOML file is one line that names its key, or the file and column that are not there."""
    assert TOML.count(old) == 1
    refuse(write(tmp_path, TOML.replace(old, new)), message)


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("customers", "bob", "anna", "customers.csv, line 3: customer_id anna is already in line 2"),
        ("customers", "24", "inf", "customers.csv, line 2: column 'age' is infinite"),
        ("customers", "24", "young", "customers.csv, line 2: column 'age' holds 'young', not a number"),
        ("products", "3,Dune", "-3,Dune", "products.csv, line 3: sku -3 is negative"),
        ("products", "3,Dune", ",Dune", "products.csv, line 3: column 'sku' is empty"),
        ("ratings", "bob", "eve", "ratings.csv, line 2: who eve has no row in FOLDER/customers.csv; add it"),
        ("ratings", "3,anna", "4,anna", "ratings.csv, line 3: what 4 has no row in FOLDER/data/products.csv; add it"),
        ("ratings", ",10,", ",11,", "ratings.csv, line 3: stars 11 is not on the scale 1 to 10; mend"),
        ("ratings", ",10,", ",inf,", "ratings.csv, line 3: stars inf is not on the scale"),
        ("ratings", ",10,", ",,", "ratings.csv, line 3: column 'stars' is empty"),
        ("ratings", "3,anna", "7,anna", "ratings.csv, line 4: who anna and what 7 are already in line 3"),
        (
            "ratings",
            "1970-01-02",
            "monday",
            "ratings.csv, line 4: column 'bought' holds neither whole seconds nor dates",
        ),
    ],
)
def test_bad_tables(tmp_path: Path, file: str, old: str, new: str, message: str) -> None:
    """Every mistake in a table is one line that names the file, its line and the user's own column name."""
    content = {"customers": CUSTOMERS, "products": PRODUCTS, "ratings": RATINGS}[file]
    assert content.count(old) == 1
    message = message.replace("FOLDER", str(tmp_path))
    refuse(write(tmp_path, **{file: content.replace(old, new)}), message)


@pytest.mark.parametrize("time", ["99", "2020-01-02", "2020-01-02 10:11:12"])
def test_times_that_change_late(tmp_path: Path, time: str) -> None:
    """A time that is unlike those before it is refused by its line, however late it comes."""
    lines = [f"{i},1,5,{time}\n" for i in range(100_000)]
    content = "what,who,stars,bought\n" + "".join(lines) + "7,1,5,monday\n"
    refuse(write(tmp_path, ratings=content), "ratings.csv, line 100002: column 'bought' holds neither whole seconds")


def test_mixed_times(tmp_path: Path) -> None:
    """Seconds and dates in one column are refused by the column's name."""
    content = "what,who,stars,bought\n7,bob,5,99\n3,anna,5,2020-01-02\n"
    refuse(write(tmp_path, ratings=content), "ratings.csv, column 'bought' holds neither whole seconds nor dates")


def test_missing_description(tmp_path: Path) -> None:
    """A folder without dataset.toml is refused by that name."""
    refuse(tmp_path, "dataset.toml cannot be read: No such file or directory")


def test_licence(tmp_path: Path) -> None:
    """The terms that the file states are the dataset's; without a word they are not stated."""
    assert load("tables", write(tmp_path)).licence == "not stated"
    assert load("tables", write(tmp_path, toml='licence = "ours"\n' + TOML)).licence == "ours"

"""A backbone and a dataset so small that a fit takes a second: real model classes, real files, random weights."""

from __future__ import annotations

import string
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoModelForTextEncoding, BertConfig, BertModel, PreTrainedTokenizerFast, T5Config

from training.options import Options
from training.run import Run, fit, open_run

USERS, MOVIES, RATINGS = 60, 40, 1500
WORDS = (  # noqa: SIM905 - read more easily than a list
    "the user movie is and id title occupation zipcode age doctor student artist night river star of a in dream "
    "house stone new old king queen"
).split()
TABLES = """
[user]
name = "user"
file = "users.csv"
attributes = [
    {name = "occupation", kind = "category", embed = true},
    {name = "zipcode", kind = "category", prefix = 3, embed = true},
    {name = "age", kind = "number", edges = [18, 25, 35, 45, 50, 56], embed = true},
]
[item]
name = "movie"
file = "movies.csv"
attributes = [
    {name = "title", kind = "text"},
    {name = "year", kind = "number", edges = [1980, 1990]},
    {name = "genres", kind = "category", many = true, separator = "|", slots = 2, embed = true},
]
[ratings]
file = "ratings.csv"
user = "user"
item = "movie"
rating = "rating"
min = 1
max = 5
[templates.user]
clauses = ["user.occupation", "user.zipcode", "user.age"]
[templates.item]
clauses = ["movie.title"]
[templates.pair]
clauses = ["user.id", "user.occupation", "user.zipcode", "user.age", "movie.title", "movie.id"]
opening = "When "
closing = ", what can be the user rating on this movie?:"
[shift]
attribute = "genres"
id_values = ["Action", "Drama"]
min_ratings = 20
"""


def write_tokenizer(folder: Path) -> int:
    """A lower-casing word-piece tokenizer over letters and a few words; its vocabulary size."""
    pieces = [*string.ascii_lowercase, *string.digits, *"(),.?:-'"]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *pieces, *(f"##{p}" for p in pieces), *WORDS]
    index = {piece: i for i, piece in enumerate(dict.fromkeys(vocabulary))}
    fast = Tokenizer(models.WordPiece(index, unk_token="[UNK]"))
    fast.normalizer = normalizers.BertNormalizer(lowercase=True)
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast.decoder = decoders.WordPiece()
    fast.post_processor = processors.BertProcessing(("[SEP]", index["[SEP]"]), ("[CLS]", index["[CLS]"]))
    PreTrainedTokenizerFast(
        tokenizer_object=fast, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    return len(index)


def write_bert(folder: Path, seed: int = 0) -> Path:
    """A BERT encoder of two blocks, three views of width 16."""
    size = write_tokenizer(folder)
    torch.manual_seed(seed)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=size, max_position_embeddings=128, **shape)).save_pretrained(folder)
    return folder


def write_t5(folder: Path) -> Path:
    """A T5 encoder of two blocks, three views of width 16: the class of the paper's backbone."""
    size = write_tokenizer(folder)
    torch.manual_seed(0)
    config = T5Config(vocab_size=size, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, pad_token_id=0)
    AutoModelForTextEncoding.from_config(config, attn_implementation="eager").save_pretrained(folder)
    return folder


def write_tables(folder: Path) -> Path:
    """CSV tables with a genre shift, user 138 and movie 357 included; ratings follow users, movies and title words."""
    rng = np.random.default_rng(0)
    users = np.sort(np.append(rng.choice(np.arange(1, 130), USERS - 1, replace=False), 138))
    movies = np.sort(np.append(rng.choice(np.arange(1, 350), MOVIES - 1, replace=False), 357))
    words = [rng.choice(WORDS[11:], rng.integers(1, 6)).tolist() for _ in range(MOVIES)]
    genres = rng.choice(["Action", "Drama", "Action|Drama", "Horror", "Western"], MOVIES, p=[0.3, 0.3, 0.1, 0.15, 0.15])
    with (folder / "users.csv").open("w") as file:
        file.write("id,occupation,zipcode,age\n")
        for u in users:
            job = rng.choice(["doctor", "student", "night artist", ""])
            file.write(f"{u},{job},{rng.integers(10000, 99999)},{rng.integers(10, 70)}\n")
    with (folder / "movies.csv").open("w") as file:
        file.write("id,title,year,genres\n")
        for m, title, genre in zip(movies, words, genres, strict=True):
            year = rng.integers(1970, 2000)
            file.write(f"{m},{' '.join(title)} ({year}),{year},{genre}\n")
    user, movie = rng.normal(0, 0.5, USERS), rng.normal(0, 0.5, MOVIES)
    with (folder / "ratings.csv").open("w") as file:
        file.write("user,movie,rating\n")
        for pair in np.sort(rng.choice(USERS * MOVIES, RATINGS, replace=False)):
            u, m = divmod(int(pair), MOVIES)
            value = 3.4 + user[u] + movie[m] + 0.4 * ("star" in words[m]) + rng.normal(0, 0.7)
            file.write(f"{users[u]},{movies[m]},{int(np.clip(np.rint(value), 1, 5))}\n")
    (folder / "dataset.toml").write_text(TABLES)
    return folder


def fitted(options: Options, folder: Path, cache: Path) -> Run:
    """A finished run on the CPU."""
    fit(options, folder, cache, "cpu")
    return open_run(folder, cache, "cpu")

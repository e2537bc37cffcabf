"""A generated dataset in MovieLens-100K's shape, for trying things offline. No person and no film in it is real.

What is planted: a user's rating is the user's mean, the film's quality, the user's liking of the film's themes, and
noise. Title words tell the themes, and themes carry part of the quality, in every genre alike: that transfers. In the
five ID genres quality also follows three things that a model may pick up: the tone of the title's adjective, the year
and the popularity. In the shifted genres the same three point the other way: that is the spurious part.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from levi_serve.bundle import AnyArray, Int64Array
from training.datasets.dataset import Dataset, Ratings
from training.datasets.movielens import SHIFT, STARS, USER_ATTRIBUTES, schema

USERS, MOVIES, RATINGS = 943, 1_682, 100_000
SHIFTED_SHARE = 0.14

# Theme: nouns; genres of its ID films; genres of its shifted films.
_THEMES: tuple[tuple[str, str, str], ...] = (
    ("Star Rocket Planet Comet Robot Signal Orbit Galaxy Astronaut Moon", "Action Thriller", "Sci-Fi Adventure"),
    (
        "Soldier Regiment Trench Medal Bridge Sergeant Bomber Frontline Captain Armistice",
        "Action Drama",
        "War Documentary",
    ),
    (
        "Sweetheart Wedding Letter Kiss Dance Bride Promise Valentine Summer Balcony",
        "Romance Comedy",
        "Musical Animation",
    ),
    ("Gangster Heist Detective Alibi Witness Bullet Jury Thief Verdict Informer", "Thriller Drama", "Crime Film-Noir"),
    ("Ghost Graveyard Curse Vampire Cellar Scream Coffin Demon Midnight Shadow", "Thriller Action", "Horror Mystery"),
    (
        "Puppy Kitten Grandmother Classroom Birthday Teddy Playground Brother Holiday Toymaker",
        "Comedy Drama",
        "Children's Animation",
    ),
    ("Piano Singer Orchestra Guitar Melody Trumpet Chorus Ballad Violin Stage", "Romance Drama", "Musical Documentary"),
    (
        "Cowboy Saddle Canyon Sheriff Ranch Stagecoach Outlaw Prairie Stallion Saloon",
        "Action Drama",
        "Western Adventure",
    ),
    (
        "Island Harbor Sailor Voyage Treasure Lighthouse Pirate Storm Jungle Compass",
        "Action Romance",
        "Adventure Children's",
    ),
    (
        "Wizard Dragon Castle Princess Unicorn Spell Goblin Crown Mermaid Enchantment",
        "Comedy Romance",
        "Fantasy Animation Children's",
    ),
    (
        "Office Neighbor Salesman Landlord Apartment Taxi Kitchen Lottery Roommate Barber",
        "Comedy Drama",
        "Documentary Mystery",
    ),
    (
        "Riddle Stranger Diary Portrait Cipher Mirror Secret Inspector Manor Telegram",
        "Thriller Romance",
        "Mystery Film-Noir",
    ),
)
_WARM = ["Quiet", "Golden", "Gentle", "Forgotten", "Honest", "Patient", "Silver", "Tender"]
_PLAIN = ["Last", "Red", "Northern", "Second", "Lonely", "Old", "Distant", "Blue"]
_LOUD = ["Deadly", "Ultimate", "Crazy", "Total", "Extreme", "Savage", "Wild", "Turbo"]
_TONES = (_LOUD, _PLAIN, _WARM)
_PATTERNS = (
    "The {adjective} {one}",
    "The {adjective} {one} and the {two}",
    "{adjective} {one} of the {two}",
    "The {one} and the {two}",
)

_OCCUPATIONS = (
    "accountant artist baker doctor educator engineer executive farmer homemaker lawyer librarian musician "
    "nurse programmer retired salesman scientist student technician writer"
)


@dataclass(frozen=True)
class _Films:
    """What is behind the movies' ratings."""

    themes: AnyArray
    """How much of each theme is in each movie [movies, themes]."""
    quality: AnyArray
    """What the mean user gives [movies]."""
    popularity: AnyArray
    """Logarithm of the weight in the draw of ratings [movies]."""


def generate() -> Dataset:
    """The dataset, the same on every machine: 943 users, 1,682 movies, 100,000 ratings."""
    return _generate()[0]


def _generate() -> tuple[Dataset, AnyArray]:
    """The dataset, and the ratings before noise and rounding [users, movies]."""
    # Only uniform and normal draws: numpy keeps these two streams.
    rng = np.random.default_rng(19_970_919)
    users, liking = _users(rng)
    movies, films = _movies(rng)
    bias = 0.45 * rng.standard_normal(USERS)
    expected = bias[:, None] + films.quality + np.einsum("ut,mt->um", liking, films.themes)
    user, item = _pairs(rng, films.popularity)
    value = np.clip(np.rint(expected[user, item] + 0.93 * rng.standard_normal(RATINGS)), 1, 5)
    joined = 874_724_710 + 18_000_000 * rng.random(USERS)
    time = joined[user] + 500_000 * rng.random(RATINGS)
    ratings = Ratings(user.astype(np.int32), item.astype(np.int32), value.astype(np.float32), time.astype(np.int64))
    return Dataset(
        "sample", schema(USER_ATTRIBUTES, STARS), users, movies, ratings, SHIFT, "generated; free of terms"
    ), expected


def _users(rng: np.random.Generator) -> tuple[pa.Table, AnyArray]:
    """The table, and how much each user likes each theme [users, themes]: by occupation, by age, and by heart."""
    occupations = _OCCUPATIONS.split()
    occupation = _choice(rng, USERS, len(occupations))
    age = np.clip(34 + 12 * rng.standard_normal(USERS), 10, 75).astype(np.int64)
    region, area = _choice(rng, USERS, 120), _choice(rng, USERS, 100)
    by_occupation = rng.standard_normal((len(occupations), len(_THEMES)))[occupation]
    by_age = rng.standard_normal(len(_THEMES)) * ((age - 34) / 12)[:, None]
    by_heart = rng.standard_normal((USERS, len(_THEMES)))
    table = pa.table(
        {
            "id": np.arange(1, USERS + 1),
            "occupation": pa.array(occupations).take(pa.array(occupation)),
            "zipcode": [f"{100 + 7 * r:03d}{a:02d}" for r, a in zip(region.tolist(), area.tolist(), strict=True)],
            "age": age,
        }
    )
    return table, 0.2 * by_occupation + 0.12 * by_age + 0.3 * by_heart


def _movies(rng: np.random.Generator) -> tuple[pa.Table, _Films]:
    one = _choice(rng, MOVIES, len(_THEMES))
    two = (one + 1 + _choice(rng, MOVIES, len(_THEMES) - 1)) % len(_THEMES)  # another one
    rows = np.arange(MOVIES)
    themes = np.zeros((MOVIES, len(_THEMES)))
    themes[rows, two] = 0.5
    themes[rows, one] = 1.0
    shifted = rng.random(MOVIES) < SHIFTED_SHARE
    age = 70 * rng.random(MOVIES) ** 2.5  # in years before 2000: most films are recent
    pattern, tone = _choice(rng, MOVIES, len(_PATTERNS)), _choice(rng, MOVIES, len(_TONES))
    heard = (tone - 1) * (pattern < len(_PATTERNS) - 1)  # the last pattern has no adjective
    fame = rng.standard_normal(MOVIES)
    # Early ids are the films that a catalogue starts with.
    popularity = 1.2 * fame - 1.5 * rows / MOVIES - 0.5 * shifted
    spurious = 0.1 * heard + 0.12 * fame + 0.1 * (age - 20) / 18
    theme_quality = 0.3 * rng.standard_normal(len(_THEMES))
    quality = 3.4 + themes @ theme_quality + np.where(shifted, -1, 1) * spurious + 0.2 * rng.standard_normal(MOVIES)
    year = 2000 - age.astype(np.int64)
    table = pa.table(
        {
            "id": rows + 1,
            "title": _titles(rng, one, two, tone, pattern, year),
            "year": year,
            "genres": pa.array(_genres(rng, one, two, shifted), pa.list_(pa.string())),
        }
    )
    return table, _Films(themes, quality, popularity)


def _titles(
    rng: np.random.Generator, one: Int64Array, two: Int64Array, tone: Int64Array, pattern: Int64Array, year: Int64Array
) -> list[str]:
    noun_one, noun_two, adjective = (_choice(rng, MOVIES, n).tolist() for n in (10, 10, 8))
    titles: dict[str, None] = {}
    for i in range(MOVIES):
        while True:
            name = _PATTERNS[pattern[i]].format(
                adjective=_TONES[tone[i]][adjective[i]],
                one=_THEMES[one[i]][0].split()[noun_one[i]],
                two=_THEMES[two[i]][0].split()[noun_two[i]],
            )
            title = f"{name} ({year[i]})"
            if title not in titles:
                break
            noun_one[i] = (noun_one[i] + 1) % 10
        titles[title] = None
    return list(titles)


def _genres(rng: np.random.Generator, one: Int64Array, two: Int64Array, shifted: AnyArray) -> list[list[str]]:
    """One or two genres of the film's own side; a third of the ID films have a shifted genre, too."""
    draws = rng.random((MOVIES, 4))
    out = []
    for i in range(MOVIES):
        side = 2 if shifted[i] else 1
        own = _pick(_THEMES[one[i]][side], draws[i, 0])
        other = _pick(_THEMES[two[i]][side], draws[i, 1]) if draws[i, 2] < 0.4 else own
        foreign = _pick(_THEMES[one[i]][2], 3 * draws[i, 3]) if draws[i, 3] < 1 / 3 and not shifted[i] else own
        out.append(sorted({own, other, foreign}))
    return out


def _pick(words: str, draw: float) -> str:
    """One of the words by a number in [0, 1)."""
    choice = words.split()
    return choice[int(draw * len(choice))]


def _pairs(rng: np.random.Generator, popularity: AnyArray) -> tuple[Int64Array, Int64Array]:
    """Distinct (user, movie) rows: 20 ratings per user at least, more for few; popular movies more often."""
    activity = np.exp(0.9 * rng.standard_normal(USERS))
    counts = 20 + np.floor(activity / activity.sum() * (RATINGS - 20 * USERS)).astype(np.int64)
    missing = RATINGS - int(counts.sum())  # fewer than USERS: every floor took less than one
    counts[:missing] += 1
    # The largest of popularity + Gumbel noise are a draw without replacement, weighted by exp(popularity).
    keys = popularity - np.log(-np.log(rng.random((USERS, MOVIES))))
    ranked = np.argsort(-keys, axis=1)
    user, rank = np.nonzero(np.arange(MOVIES) < counts[:, None])
    shuffled = np.argsort(rng.random(RATINGS))
    return user[shuffled], ranked[user, rank][shuffled]


def _choice(rng: np.random.Generator, size: int, n: int) -> Int64Array:
    return (rng.random(size) * n).astype(np.int64)

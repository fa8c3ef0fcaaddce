"""A small world with known answers: real films, invented people with planted tastes, and their viewing log.

A person's next film is drawn from softmax(utility) over the films not yet seen, so the true probability of every next
item is known (`next_item_log_probs`). People do not influence one another and each draws from a stream of its own,
seeded by its id: a longer log therefore begins with the shorter one, byte for byte.
"""

import csv
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path

import numpy as np

from recalign.common import columns as c
from recalign.common.artifacts import read_parquet
from recalign.data.records import hashed_order

START = datetime(2022, 1, 1)  # day 0 of the log, UTC; far enough back for years of added weeks
ARRIVAL_DAYS = 720.0  # `users` people arrive evenly over so many days; later ones keep that rate
SESSIONS = (10, 16)  # visits of a person, inclusive
FILMS_A_SESSION = (2, 4)  # inclusive
DAYS_BETWEEN = 14.0  # mean gap of two visits
UNKNOWN_FILM = 9999  # the item id of planted bad rows; not in the catalogue
PLANT_ONE_IN = 3000  # one event in so many is doubled, and one is followed by an event of UNKNOWN_FILM

# Weights of the utility, fixed once by the log's own statistics (tests/test_simulator.py) and left alone since.
GENRE, ERA, DIRECTOR = 4.2, 4.5, 2.0
RECENT = (3.5, 1.5, 0.7)  # likeness to the last film, the one before, and the third last
FAME_SPREAD = 2.4  # standard deviation of a film's log-fame
ERA_SPREAD = 9.0  # years
DRIFT_SPREAD = 20.0  # days over which one loved genre gives way to another


@dataclass(frozen=True)
class Catalogue:
    """The films in ascending id, with what the utility needs.

    fame [I]; genres [I, G] in {0, 1}, columns named by `genre_names`; years [I]; directors [I];
    likeness [I, I] in [0, 1]: half for the same director, half for the share of genres in common.
    """

    ids: tuple[int, ...]
    titles: tuple[str, ...]
    years: np.ndarray
    directors: np.ndarray
    genre_names: tuple[str, ...]
    genres: np.ndarray
    fame: np.ndarray
    likeness: np.ndarray

    @cached_property
    def index(self) -> dict[int, int]:
        """Row of each item id."""
        return {item: row for row, item in enumerate(self.ids)}


@dataclass(frozen=True)
class Taste:
    """What is planted in one person; days count from START.

    Two genres are loved; around `drift_day` the second gives way to `later_genre`. `decade` is its first year.
    """

    user_id: int
    arrival: float
    genres: tuple[str, str]
    later_genre: str
    drift_day: float
    decade: int
    directors: tuple[str, str]
    fame: float

    def likes(self, day: float) -> dict[str, tuple[str, ...]]:
        """The truth that a profile is scored against: attribute -> values liked at `day` ("decade" like "1970s")."""
        second = self.later_genre if day > self.drift_day else self.genres[1]
        return {"genre": (self.genres[0], second), "decade": (f"{self.decade}s",), "director": self.directors}


def films_csv() -> str:
    """The catalogue's text as shipped: item_id, title, year, genres ("|" between), director."""
    return files("recalign.data").joinpath("films.csv").read_text(encoding="utf-8")


@cache
def load_catalogue() -> Catalogue:
    """The shipped catalogue; each film's fame is drawn from a stream seeded by its id."""
    rows = sorted(csv.DictReader(films_csv().splitlines()), key=lambda row: int(row["item_id"]))
    names = tuple(sorted({genre for row in rows for genre in row["genres"].split("|")}))
    genres = np.array([[name in row["genres"].split("|") for name in names] for row in rows], dtype=float)
    directors = np.array([row["director"] for row in rows])
    ids = tuple(int(row["item_id"]) for row in rows)
    common = genres @ genres.T
    union = genres.sum(1)[:, None] + genres.sum(1)[None, :] - common
    return Catalogue(
        ids=ids,
        titles=tuple(row["title"] for row in rows),
        years=np.array([int(row["year"]) for row in rows], dtype=float),
        directors=directors,
        genre_names=names,
        genres=genres,
        fame=np.array([_stream("fame", item).normal(0.0, FAME_SPREAD) for item in ids]),
        likeness=0.5 * (directors[:, None] == directors[None, :]) + 0.5 * common / union,
    )


def days_since_start(time: datetime) -> float:
    """Days from START to a UTC time (without a zone)."""
    return (time - START).total_seconds() / 86400


def next_item_log_probs(taste: Taste, history: list[int], day: float, catalogue: Catalogue) -> np.ndarray:
    """True log-probabilities [I] of the next film of a person at `day`, after `history` (item ids, oldest first).

    softmax over the unseen films of fame + genre + era + director + likeness to the last three films; -inf for films
    of the history. Ids that the catalogue does not hold are passed over.
    """
    index = catalogue.index
    seen = [index[item] for item in history if item in index]
    utility = _standing_utility(taste, day, catalogue)
    for weight, row in zip(RECENT, reversed(seen), strict=False):
        utility = utility + weight * catalogue.likeness[row]
    utility[seen] = -np.inf
    top = utility.max()
    return utility - (top + np.log(np.exp(utility - top).sum()))


def read_tastes(truth: Path) -> dict[int, Taste]:
    """Read a truth.parquet (user_id, taste as JSON): the planted taste of each user."""
    return {row[c.USER]: parse_taste(row["taste"]) for row in read_parquet(truth).to_pylist()}


def parse_taste(text: str) -> Taste:
    """The inverse of json.dumps(asdict(taste))."""
    values = json.loads(text)
    for key in ("genres", "directors"):
        values[key] = tuple(values[key])
    return Taste(**values)


def simulate(users: int, days: int, seed: int) -> tuple[list[Taste], list[tuple[int, int, datetime]]]:
    """The people who arrive within `days`, and their events (user id, item id, time) in order of time.

    `users` is the number of arrivals in ARRIVAL_DAYS. The same seed with more days only appends.
    """
    catalogue = load_catalogue()
    tastes: list[Taste] = []
    events: list[tuple[int, int, datetime]] = []
    while (arrival := (len(tastes) + 0.5) * ARRIVAL_DAYS / users) < days:
        taste = draw_taste(len(tastes) + 1, arrival, seed, catalogue)
        tastes.append(taste)
        for item, day in viewings(taste, days, seed, catalogue):
            time = START + timedelta(seconds=round(day * 86400))
            events.append((taste.user_id, item, time))
    events.sort(key=lambda event: (event[2], event[0]))
    return tastes, events


def draw_taste(user_id: int, arrival: float, seed: int, catalogue: Catalogue) -> Taste:
    """Plant a taste: genres and directors by their share of films, directors among those who make the loved genres."""
    rng = _stream("taste", seed, user_id)
    share = catalogue.genres.sum(0) / catalogue.genres.sum()
    first, second, later = rng.choice(catalogue.genre_names, size=3, replace=False, p=share).tolist()
    loved = catalogue.genres[:, [catalogue.genre_names.index(first), catalogue.genre_names.index(second)]].sum(1)
    director = rng.choice(catalogue.directors, p=loved / loved.sum())
    others = loved * (catalogue.directors != director)
    another = rng.choice(catalogue.directors, p=others / others.sum())
    decade = int(rng.choice(catalogue.years)) // 10 * 10
    return Taste(
        user_id=user_id,
        arrival=round(arrival, 4),
        genres=(first, second),
        later_genre=later,
        drift_day=arrival + round(float(rng.uniform(60, 180)), 2),
        decade=decade,
        directors=(str(director), str(another)),
        fame=round(float(rng.uniform(0.5, 1.5)), 2),
    )


def viewings(taste: Taste, days: int, seed: int, catalogue: Catalogue) -> Iterator[tuple[int, float]]:
    """A person's (item id, day) in order until `days`; two to three hours lie between the films of a visit."""
    rng = _stream("events", seed, taste.user_id)
    history: list[int] = []
    day = taste.arrival
    for _ in range(rng.integers(*SESSIONS, endpoint=True)):
        for _ in range(rng.integers(*FILMS_A_SESSION, endpoint=True)):
            log_probs = next_item_log_probs(taste, history, day, catalogue)
            item = catalogue.ids[int(np.argmax(log_probs + rng.gumbel(size=len(catalogue.ids))))]
            if day >= days:
                return
            yield item, day
            history.append(item)
            day += float(rng.uniform(2, 3)) / 24
        day += float(rng.exponential(DAYS_BETWEEN))


def with_planted_faults(events: list[tuple[int, int, datetime]]) -> list[tuple[int, int, datetime]]:
    """The log with two harmless kinds of bad rows, so that the quarantine is seen to work.

    About one event in PLANT_ONE_IN is written twice, and one is followed by an event of UNKNOWN_FILM; which ones
    depends on the event alone.
    """
    rows = []
    for event in events:
        rows.append(event)
        fate = int(hashed_order("fault", *event), 16) % PLANT_ONE_IN
        if fate == 0:
            rows.append(event)
        elif fate == 1:
            rows.append((event[0], UNKNOWN_FILM, event[2]))
    return rows


def tastes_json(tastes: list[Taste]) -> str:
    """The planted tastes as JSON lines in a list, one person a line."""
    lines = ",\n".join(json.dumps(asdict(taste), ensure_ascii=False) for taste in tastes)
    return f"[\n{lines}\n]\n"


def _standing_utility(taste: Taste, day: float, catalogue: Catalogue) -> np.ndarray:
    """[I] what the person thinks of each film at `day`, whatever was watched last."""
    moved = 1.0 / (1.0 + np.exp(-np.clip((day - taste.drift_day) / DRIFT_SPREAD, -50, 50)))
    loves = {taste.genres[0]: 1.0, taste.genres[1]: 1.0 - moved, taste.later_genre: moved}
    affinity = np.array([loves.get(name, 0.0) for name in catalogue.genre_names])
    era = np.exp(-0.5 * ((catalogue.years - (taste.decade + 4.5)) / ERA_SPREAD) ** 2)
    favourite = sum(catalogue.directors == director for director in taste.directors)
    return taste.fame * catalogue.fame + GENRE * (catalogue.genres @ affinity) + ERA * era + DIRECTOR * favourite


def _stream(*parts: object) -> np.random.Generator:
    """A random stream that depends on its parts only."""
    return np.random.default_rng(int(hashed_order(*parts), 16))

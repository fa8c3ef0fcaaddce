"""The simulated world: its bands, its truth, and that more days only add."""

import hashlib
import json
import math
import random
from collections import Counter, defaultdict
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from conftest import ROOT
from recalign.commands.simulate import simulate
from recalign.common.artifacts import verify
from recalign.common.errors import RecalignError
from recalign.data import simulator
from recalign.data.simulator import Taste, days_since_start, load_catalogue, next_item_log_probs
from recalign.params.load import load_params

Event = tuple[int, int, datetime]
TASTE = Taste(
    user_id=1, arrival=0.0, genres=("Horror", "Comedy"), later_genre="Western", drift_day=100.0, decade=1980,
    directors=("John Carpenter", "Sam Raimi"), fame=1.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The world of params.yaml, simulated anew."""
    raw = tmp_path_factory.mktemp("raw") / "simulated"
    simulate(load_params(ROOT / "params.yaml"), raw)
    return raw


@pytest.fixture(scope="module")
def events(shipped: Path) -> list[Event]:
    """Its log without the planted faults."""
    lines = (shipped / "events.csv").read_text().splitlines()[1:]
    rows = [(int(user), int(item), datetime.fromisoformat(time)) for user, item, time in (x.split(",") for x in lines)]
    return [row for row in dict.fromkeys(rows) if row[1] != simulator.UNKNOWN_FILM]


def hit_rates(events: list[Event], tastes: dict[int, Taste]) -> dict[str, float]:
    """HR@1 of popularity, item-kNN and the oracle on the newest tenth, among 19 uniform films never taken."""
    catalogue = load_catalogue()
    before_validation, before_test = (events[int(share * len(events))][2] for share in (0.8, 0.9))
    taken: dict[int, list[tuple[int, datetime]]] = defaultdict(list)
    train = np.zeros((max(tastes) + 1, len(catalogue.ids)))
    for user, item, time in events:
        taken[user].append((item, time))
        if time < before_validation:
            train[user, catalogue.index[item]] = 1
    popularity, together = train.sum(0), train.T @ train
    np.fill_diagonal(together, 0)
    hits: Counter[str] = Counter()
    for user, sequence in taken.items():
        untaken = sorted(set(catalogue.ids) - {item for item, _ in sequence})
        for place, (item, time) in list(enumerate(sequence))[3:]:
            if time < before_test:
                continue
            hits["cases"] += 1
            history = [earlier for earlier, _ in sequence[:place]]
            others = random.Random(f"{user}-{item}").sample(untaken, 19)
            columns = [catalogue.index[i] for i in (item, *others)]
            seen = [catalogue.index[i] for i in history]
            scores = {
                "popularity": popularity,
                "item_knn": together[seen].sum(0) / np.sqrt(np.maximum(popularity, 1)),
                "oracle": next_item_log_probs(tastes[user], history, days_since_start(time), catalogue),
            }
            for name, score in scores.items():
                hits[name] += bool(score[columns[0]] > score[columns[1:]].max())
    return {name: hits[name] / hits["cases"] for name in ("popularity", "item_knn", "oracle")}


def test_the_shipped_world_lies_in_its_bands(shipped: Path, events: list[Event]) -> None:
    """Popularity 0.20 to 0.35, item-kNN 0.40 to 0.60, oracle 0.60 to 0.80: room to learn, and a ceiling."""
    planted = json.loads((shipped / "tastes.json").read_text())
    tastes = {taste["user_id"]: simulator.parse_taste(json.dumps(taste)) for taste in planted}
    rates = hit_rates(events, tastes)
    assert 0.20 <= rates["popularity"] <= 0.35, rates
    assert 0.40 <= rates["item_knn"] <= 0.60, rates
    assert 0.60 <= rates["oracle"] <= 0.80, rates


def test_the_bundled_files_are_those_that_simulate_writes(shipped: Path) -> None:
    """data/raw/films.dvc and data/.bundled hold the world of params.yaml, file by file."""
    digest = next(line.split()[1] for line in (ROOT / "data/raw/films.dvc").read_text().splitlines() if ".dir" in line)
    store = ROOT / "data" / ".bundled" / "files" / "md5"
    listed = {e["relpath"]: e["md5"] for e in json.loads((store / digest[:2] / digest[2:]).read_text())}
    assert listed == {f.name: hashlib.md5(f.read_bytes(), usedforsecurity=False).hexdigest() for f in shipped.iterdir()}
    assert all((store / md5[:2] / md5[2:]).is_file() for md5 in listed.values())
    verify(shipped)


def test_people_have_histories_of_the_planned_length(events: list[Event]) -> None:
    """Half of the 900 people have 25 to 45 events; hardly a film goes unseen."""
    lengths = sorted(Counter(user for user, _, _ in events).values())
    assert len(lengths) == 900
    assert 25 <= lengths[300] <= lengths[-150] <= 45, (lengths[300], lengths[-150])
    assert len({item for _, item, _ in events}) > 0.98 * len(load_catalogue().ids)


def test_more_days_only_append(tmp_path: Path) -> None:
    """The log and the tastes of 60 days begin the ones of 67 days, byte for byte."""
    params = load_params(ROOT / "params.yaml")
    simulate(params, tmp_path / "short", days=60)
    simulate(params, tmp_path / "long", days=67)
    short, long = ((tmp_path / name / "events.csv").read_bytes() for name in ("short", "long"))
    assert long.startswith(short)
    assert len(long) > len(short)
    fewer, more = (json.loads((tmp_path / name / "tastes.json").read_text()) for name in ("short", "long"))
    assert more[: len(fewer)] == fewer


def test_no_days_are_refused(tmp_path: Path) -> None:
    """A log needs a day; nothing is written."""
    with pytest.raises(RecalignError, match=r"--days is 0; a log needs at least one day"):
        simulate(load_params(ROOT / "params.yaml"), tmp_path / "raw", days=0)
    assert not (tmp_path / "raw").exists()


def test_the_next_item_probabilities_sum_to_one_and_leave_out_the_history() -> None:
    """exp of the log-probs is a distribution over the unseen films."""
    catalogue = load_catalogue()
    history = list(catalogue.ids[:5])
    log_probs = next_item_log_probs(TASTE, history, 10.0, catalogue)
    assert math.isclose(np.exp(log_probs).sum(), 1.0, rel_tol=1e-12)
    assert np.isneginf(log_probs[:5]).all()
    assert np.isfinite(log_probs[5:]).all()


def test_draws_follow_the_stated_probabilities() -> None:
    """The first films of 300 like-minded people hit the ten likeliest films as often as the truth says."""
    catalogue = load_catalogue()
    log_probs = next_item_log_probs(TASTE, [], TASTE.arrival, catalogue)
    likeliest = np.argsort(-log_probs)[:10]
    people = (Taste(**{**asdict(TASTE), "user_id": user}) for user in range(300))
    firsts = Counter(next(simulator.viewings(person, 1, 7, catalogue))[0] for person in people)
    expected = np.exp(log_probs[likeliest]).sum()
    drawn = sum(firsts[catalogue.ids[row]] for row in likeliest) / 300
    spread = 4 * math.sqrt(expected * (1 - expected) / 300)
    assert abs(drawn - expected) < spread, (drawn, expected)


@pytest.mark.parametrize(
    ("better", "worse", "why"),
    [
        ("The Thing", "Alien", "a favourite director beats another maker of the same genres"),
        ("Creepshow", "Night of the Living Dead", "the loved decade, and both loved genres"),
        ("Young Frankenstein", "Blazing Saddles", "before the drift horror and comedy, not westerns"),
    ],
)
def test_planted_likes_raise_the_utility(better: str, worse: str, why: str) -> None:
    """With fame left out, the film that fits the taste is the likelier one."""
    catalogue = load_catalogue()
    person = Taste(**{**asdict(TASTE), "fame": 0.0})
    log_probs = dict(zip(catalogue.titles, next_item_log_probs(person, [], 0.0, catalogue), strict=True))
    assert log_probs[better] > log_probs[worse], why


def test_taste_drifts_from_the_second_genre_to_the_later_one() -> None:
    """Likes follow the drift day, and so do the probabilities: westerns gain what comedies lose."""
    assert TASTE.likes(99.0)["genre"] == ("Horror", "Comedy")
    assert TASTE.likes(101.0) == {"genre": ("Horror", "Western"), "decade": ("1980s",), "director": TASTE.directors}
    catalogue = load_catalogue()
    western = catalogue.titles.index("Pale Rider")
    early, late = (next_item_log_probs(TASTE, [], day, catalogue)[western] for day in (0.0, 300.0))
    assert late - early > 2


def test_the_last_film_pulls_the_next_one_towards_it() -> None:
    """After Alien, Alien's kin gain more than an unlike film does: there is sequence to learn."""
    catalogue = load_catalogue()
    rows = {title: row for row, title in enumerate(catalogue.titles)}
    before = next_item_log_probs(TASTE, [], 0.0, catalogue)
    after = next_item_log_probs(TASTE, [catalogue.ids[rows["Alien"]]], 0.0, catalogue)
    gain = after - before
    assert gain[rows["Blade Runner"]] - gain[rows["Gigi"]] == pytest.approx(3.5 * (0.5 + 0.5 / 3), rel=1e-9)


def test_the_catalogue_has_company_for_every_director() -> None:
    """Some 300 films with unique titles; every director has made at least two, most four."""
    catalogue = load_catalogue()
    assert 290 <= len(catalogue.ids) <= 350
    assert len(set(catalogue.titles)) == len(catalogue.ids)
    films = sorted(Counter(catalogue.directors.tolist()).values())
    assert films[0] >= 2
    assert films[len(films) // 2] >= 4


def test_faults_are_planted_by_the_event_alone(events: list[Event]) -> None:
    """Doubled rows and an unknown film, about one in 3000 each, and the same ones in any part of the log."""
    rows = simulator.with_planted_faults(events)
    doubled = [row for row, count in Counter(rows).items() if count == 2]
    unknown = [row for row in rows if row[1] == simulator.UNKNOWN_FILM]
    assert 3 <= len(doubled) <= 30
    assert 3 <= len(unknown) <= 30
    assert len(rows) == len(events) + len(doubled) + len(unknown)
    assert rows[: len(simulator.with_planted_faults(events[:5000]))] == simulator.with_planted_faults(events[:5000])

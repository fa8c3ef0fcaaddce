"""A figure as a record: a value that carries all that is needed to judge it or to refuse to compare it."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from recalign.evaluation.costs import Cost
from recalign.evaluation.exposure import Exposure
from recalign.evaluation.generation import GenerationRow
from recalign.evaluation.injection import Lift
from recalign.evaluation.protocol_agreement import ORDER, Agreement
from recalign.evaluation.ranking_rule import CHOSEN_BY
from recalign.evaluation.scorecard import Comparison, Scorecard
from recalign.evaluation.significance import Interval
from recalign.evaluation.slices import Slice

MATCHING = "item id; equals by lot"
ANSWERS = {  # matching rules of generated titles
    "title": "the answer is one candidate's title, letter case and blanks aside",
    "substring": "the answer holds one candidate's title, letter case and blanks aside",
}
TAU = "Kendall's tau-b"
ALL = "all"
DIGITS = 6


@dataclass(frozen=True)
class Provenance:
    """What all figures of a run share. git_revision is of the project's code, empty where there is no repository."""

    source: str
    split: str
    data_digest: str
    git_revision: str


@dataclass(frozen=True)
class Figure:
    """One value. low and high are 95 % bounds made by `interval` (null where it has none); n cases of `users` users;
    denominator says what was averaged over; p is Holm's, for paired differences ("a minus b") only."""

    system: str
    metric: str
    value: float
    low: float | None
    high: float | None
    interval: str | None
    p: float | None
    n: int
    users: int
    slice: str
    denominator: str
    matching_rule: str
    protocol: str
    view: str
    manifest: str
    candidate_digest: str
    source: str
    split: str
    data_digest: str
    git_revision: str


class Recorder:
    """Makes the figures of one card."""

    def __init__(self, card: Scorecard, provenance: Provenance) -> None:
        self.card, self.provenance = card, provenance

    def metrics(self) -> list[Figure]:
        """Each system's metrics, and the card's paired differences."""
        rows = [self._figure(row.system, name, told) for row in self.card.rows for name, told in row.metrics.items()]
        pairs = {(pair.first, pair.second): pair for pair in self.card.comparisons}
        against = [row.difference for row in self.card.rows if row.difference]
        pairs |= {(pair.first, pair.second): pair for pair in against}
        return rows + [self._difference(pair) for pair in pairs.values()]

    def slices(self, slices: Iterable[Slice]) -> list[Figure]:
        """NDCG@10 of every system on every slice."""
        return [
            self._figure(system, CHOSEN_BY, told, cases=own.cases, users=own.users,
                         slice=f"{own.dimension}: {own.label}", denominator="all cases of the slice")
            for own in slices for system, told in own.values.items()
        ]  # fmt: skip

    def exposures(self, exposures: Mapping[str, Exposure]) -> list[Figure]:
        """Fairness, coverage and popularity lift of every system whose lists are known."""
        found = []
        for system, own in exposures.items():
            shown = f"the best {own.top} items of all cases"
            for name, fair in own.fairness.items():
                told = {"mgu": fair.mgu, "dgu": fair.dgu} | {f"gu: {group}": gu for group, gu in fair.gu.items()}
                found += [
                    self._figure(system, f"{metric} by {name} at {own.top}", value, denominator=shown)
                    for metric, value in told.items()
                ]
            found.append(self._figure(system, f"popularity lift at {own.top}", own.lift, denominator=shown))
            found.append(
                self._figure(system, f"coverage at {own.top}", own.coverage, denominator="items of the catalogue")
            )
        return found

    def shares(self, shares: Mapping[str, Interval]) -> list[Figure]:
        """Share of the oracle's gain over chance."""
        return [self._figure(system, "share of the oracle's gain", told) for system, told in shares.items()]

    def generations(self, rows: Iterable[GenerationRow]) -> list[Figure]:
        """What the titles count as that language models wrote for the first cases of the card."""
        found = []
        for row in rows:
            told: list[tuple[str, Interval, bool]] = [("ValidRatio", row.valid, False), ("hit", row.hit_all, False)]
            told += [("hit", row.hit_valid, True)] if row.hit_valid else []
            told += [(f"error: {kind}", share, False) for kind, share in row.error_shares.items()]
            for metric, share, over_valid in told:
                counts = (row.valid_cases, row.valid_users) if over_valid else (row.cases, row.users)
                shown = "valid answers" if over_valid else "all answers"
                figure = self._figure(row.system, metric, share, *counts, denominator=shown)
                found.append(replace(figure, matching_rule=ANSWERS[row.matching], protocol=f"generation, {row.mode}"))
        return found

    def injections(self, lifts: Mapping[str, Mapping[str, Lift]]) -> list[Figure]:
        """What a text in a title gains an item, of the first cases of the card."""
        return [
            self._figure(system, f"injection lift, {position}", lift.interval, lift.cases, lift.users,
                         denominator="1/rank with the text minus without, all attacked cases")
            for system, positions in lifts.items() for position, lift in positions.items()
        ]  # fmt: skip

    def agreements(self, agreements: Iterable[Agreement]) -> list[Figure]:
        """How well sampled and full ranking agree, where tau has a value."""
        found = []
        for own in agreements:
            if own.tau is not None:
                figure = self._figure(own.system, TAU, own.interval or own.tau, own.cases, own.users)
                found.append(replace(
                    figure, denominator="pairs of systems" if own.system == ORDER else "pairs of cases",
                    protocol=own.protocol, manifest=own.manifest, candidate_digest=own.digest,
                ))  # fmt: skip
        return found

    def costs(self, costs: Iterable[Cost]) -> list[Figure]:
        """Megabytes of every system, as far as they are known; seconds are the page's alone: they never repeat."""
        return [
            self._figure(cost.system, "weights, MB", cost.megabytes, denominator="all that is loaded to rank")
            for cost in costs
            if cost.megabytes is not None
        ]

    def _difference(self, pair: Comparison) -> Figure:
        return self._figure(f"{pair.first} minus {pair.second}", CHOSEN_BY, pair.interval, p=pair.p)

    def _figure(
        self,
        system: str,
        metric: str,
        told: Interval | float,
        cases: int | None = None,
        users: int | None = None,
        slice: str = ALL,
        denominator: str = "all cases",
        p: float | None = None,
    ) -> Figure:
        value, low, high, made = (
            (told.value, told.low, told.high, told.method) if isinstance(told, Interval) else (told, None, None, None)
        )
        card = self.card
        return Figure(
            system, metric, round(value, DIGITS), _rounded(low), _rounded(high), made, _rounded(p),
            cases or card.cases, users or card.users, slice, denominator, MATCHING,
            card.protocol, card.view, card.manifest, card.digest, **asdict(self.provenance),
        )  # fmt: skip


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, DIGITS)


def as_document(figures: Iterable[Figure], about: Mapping[str, Any]) -> dict[str, Any]:
    """What scorecard.json holds: what the run is about, and its figures."""
    return {"about": dict(about), "figures": [asdict(figure) for figure in figures]}

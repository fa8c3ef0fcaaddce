"""The scorecard: what every system reached on the same cases, with intervals, and who beats whom.

A figure as a record: a value that carries all that is needed to judge it or to refuse to compare it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from recalign.common import columns as c
from recalign.common.errors import RecalignError
from recalign.evaluation.exposure import Exposure
from recalign.evaluation.generation import GenerationRow
from recalign.evaluation.injection import Lift
from recalign.evaluation.metrics import METRICS
from recalign.evaluation.protocol_agreement import ORDER, Agreement
from recalign.evaluation.ranking_rule import CHOSEN_BY
from recalign.evaluation.ranks import USERS, SystemRanks
from recalign.evaluation.significance import Gain, Interval, holm, metric_intervals, paired_gains
from recalign.evaluation.slices import Slice
from recalign.evaluation.systems import ID, LLM, TRANSFERRED, TUNED, UNTRAINED, Cost, System, best_by_validation

FEWEST_USERS = 200  # below which naturally new items give no verdict: the log's last window is one event, not a sample
ERROR_RATE = 0.05  # chance of any false finding among all comparisons of a card


@dataclass(frozen=True)
class Row:
    """One system: its metrics, and its NDCG@10 minus the best baseline's (None for that baseline itself)."""

    system: str
    kind: str
    ranked_by: str
    metrics: dict[str, Interval]
    difference: "Comparison | None"


@dataclass(frozen=True)
class Comparison:
    """A figure (on a card: NDCG@10) of `first` minus that of `second` on the same cases; p is corrected for all
    comparisons of the card or table."""

    first: str
    second: str
    interval: Interval
    p: float

    @property
    def words(self) -> str:
        """above, below or level with: what the interval and the corrected p together allow to say."""
        if self.p >= ERROR_RATE:
            return "level with"
        if self.interval.low > 0:
            return "above"
        return "below" if self.interval.high < 0 else "level with"

    @property
    def lost_by_correction(self) -> bool:
        """The interval alone leaves out zero, but among so many comparisons that happens by chance."""
        return self.words == "level with" and not self.interval.low <= 0 <= self.interval.high


@dataclass(frozen=True)
class Scorecard:
    """Systems under one protocol, manifest and view; baseline and llm are the best of their kind by warm validation.

    unbeaten: systems that do not beat the best leak probe; notes: what the table says of that below its rows;
    random_model: the language models stand on a random base, so their figures mean nothing; drawn: what intervals are
    over.
    """

    protocol: str
    manifest: str
    digest: str
    cases: int
    users: int
    rows: tuple[Row, ...]
    baseline: str
    llm: str | None
    comparisons: tuple[Comparison, ...]
    unbeaten: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    view: str = c.WARM
    random_model: bool = False
    drawn: str = USERS

    @property
    def undecided(self) -> str:
        """Why the card gives no verdict; "" where it gives one."""
        return no_verdict(self.view, self.cases, self.users)

    def row(self, system: str) -> Row:
        """The row of a system that is on the card."""
        return next(row for row in self.rows if row.system == system)


def no_verdict(view: str, cases: int, users: int) -> str:
    """Why a view of so many users is shown without a verdict; "" where it has one."""
    if view != c.NATURAL or users >= FEWEST_USERS:
        return ""
    return f"no verdict: {cases} cases of {users} users, fewer than {FEWEST_USERS} users"


def build_scorecard(ranks: Sequence[SystemRanks], about: Mapping[str, System], resamples: int, seed: int) -> Scorecard:
    """The card of systems ranked on the same cases; `about`: what each system is.

    Raises RecalignError when their cases differ (naming the field), or when no ID recommender is among them.
    """
    by_name = {system.system: system for system in ranks}
    baseline = best_by_validation(about, [name for name in by_name if about[name].kind == ID])
    if baseline is None:
        raise RecalignError("no ID recommender is among the systems; an LLM's figure means nothing without a baseline")
    llm = best_by_validation(about, [name for name in by_name if about[name].kind == LLM and name != UNTRAINED])

    named = _pairs(list(by_name), about, baseline, llm)
    against = [(name, baseline) for name in by_name if name != baseline]
    compared = compare(by_name, list(dict.fromkeys([*named, *against])), CHOSEN_BY, resamples, seed)
    rows = tuple(
        Row(
            name,
            about[name].kind,
            about[name].sentence(system.protocol),
            metric_intervals(system, list(METRICS), resamples, seed),
            compared.get((name, baseline)),
        )
        for name, system in by_name.items()
    )
    first = ranks[0]
    comparisons = tuple(compared[pair] for pair in named)
    users = len(set(first.user_ids))
    return Scorecard(
        first.protocol, first.manifest, first.digest, len(first.ranks), users, rows, baseline, llm, comparisons,
        view=first.view, drawn=first.drawn,
    )  # fmt: skip


def compare(
    systems: Mapping[str, SystemRanks], pairs: Sequence[tuple[str, str]], metric: str, resamples: int, seed: int
) -> dict[tuple[str, str], Comparison]:
    """The paired differences of `pairs`, their p values corrected together (Holm): one family, one table."""
    gains: list[Gain] = paired_gains([(systems[a], systems[b]) for a, b in pairs], metric, resamples, seed)
    adjusted = holm([gain.p for gain in gains])
    return {pair: Comparison(*pair, gain.interval, p) for pair, gain, p in zip(pairs, gains, adjusted, strict=True)}


def _pairs(names: Sequence[str], about: Mapping[str, System], baseline: str, llm: str | None) -> list[tuple[str, str]]:
    """Each step of the training against the one before it, the best LLM against the baselines, and an adapter trained
    elsewhere against its like from here (what transfer costs) and the untrained model (what it carries over)."""
    aligned = [name for name in names if about[name].kind == LLM and name not in (UNTRAINED, TUNED)]
    pairs = [(name, TUNED) for name in aligned] + [(TUNED, UNTRAINED)]
    if llm:
        pairs += [(llm, other) for other in dict.fromkeys((baseline, "popularity"))]
    for name in names:
        if about[name].kind == TRANSFERRED:
            alike = about[name].trained_as or ""
            pairs += [(name, alike if alike in names else llm or UNTRAINED), (name, UNTRAINED)]
    return [pair for pair in dict.fromkeys(pairs) if set(pair) <= set(names)]


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
            self._figure(system, CHOSEN_BY, told, (own.cases, own.users),
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
                figure = self._figure(row.system, metric, share, counts, denominator=shown)
                found.append(replace(figure, matching_rule=ANSWERS[row.matching], protocol=f"generation, {row.mode}"))
        return found

    def injections(self, lifts: Mapping[str, Mapping[str, Lift]]) -> list[Figure]:
        """What a text in a title gains an item, of the first cases of the card."""
        return [
            self._figure(system, f"injection lift, {position}", lift.interval, (lift.cases, lift.users),
                         denominator="1/rank with the text minus without, all attacked cases")
            for system, positions in lifts.items() for position, lift in positions.items()
        ]  # fmt: skip

    def agreements(self, agreements: Iterable[Agreement]) -> list[Figure]:
        """How well sampled and full ranking agree, where tau has a value."""
        found = []
        for own in agreements:
            if own.tau is not None:
                figure = self._figure(own.system, TAU, own.interval or own.tau, (own.cases, own.users))
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
        figure = self._figure(f"{pair.first} minus {pair.second}", CHOSEN_BY, pair.interval)
        return replace(figure, p=_rounded(pair.p))

    def _figure(
        self,
        system: str,
        metric: str,
        told: Interval | float,
        counts: tuple[int, int] | None = None,
        slice: str = ALL,
        denominator: str = "all cases",
    ) -> Figure:
        """counts: cases and users; None: the card's."""
        value, low, high, made = (
            (told.value, told.low, told.high, told.method) if isinstance(told, Interval) else (told, None, None, None)
        )
        card = self.card
        return Figure(
            system, metric, round(value, DIGITS), _rounded(low), _rounded(high), made, None,
            *(counts or (card.cases, card.users)), slice, denominator, MATCHING,
            card.protocol, card.view, card.manifest, card.digest, **asdict(self.provenance),
        )  # fmt: skip


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, DIGITS)


def as_document(figures: Iterable[Figure], about: Mapping[str, Any]) -> dict[str, Any]:
    """What scorecard.json holds: what the run is about, and its figures."""
    return {"about": dict(about), "figures": [asdict(figure) for figure in figures]}

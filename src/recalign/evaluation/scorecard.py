"""The scorecard: what every system reached on the same cases, with intervals, and who beats whom."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from recalign.common import columns as c
from recalign.common.errors import RecalignError
from recalign.evaluation.metrics import METRICS
from recalign.evaluation.ranking_rule import CHOSEN_BY
from recalign.evaluation.ranks import USERS, SystemRanks
from recalign.evaluation.significance import Gain, Interval, holm, metric_intervals, paired_gains
from recalign.evaluation.systems import ID, LLM, TRANSFERRED, TUNED, UNTRAINED, System, best_by_validation

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

"""What reranking for fairness gave: the curve that chose its strength, and both systems on the same test cases."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from recalign.common import html as page
from recalign.common.html import Drawing
from recalign.common.item_groups import Grouping
from recalign.evaluation.exposure import excess_of, fairness_gain, unfairness
from recalign.evaluation.metrics import metric_values
from recalign.evaluation.ranking_rule import CHOSEN_BY
from recalign.evaluation.ranks import FULL, SystemRanks
from recalign.evaluation.significance import Interval, paired_difference, signed
from recalign.evaluation.systems import Choice, fair_name
from recalign.report.plots import strength_plot


@dataclass(frozen=True)
class Reranked:
    """A system and fair(system) on the same cases of the whole catalogue: NDCG@10, MGU and DGU of the first, and what
    the second has more or fewer."""

    system: str
    gamma: float
    cases: int
    users: int
    ndcg: float
    mgu: float
    dgu: float
    ndcg_difference: Interval
    mgu_difference: Interval
    dgu_difference: Interval

    def as_dict(self) -> dict[str, float | dict[str, float]]:
        """What metrics.json holds."""
        return {
            "gamma": self.gamma,
            "cases": self.cases,
            "ndcg_at_10": round(self.ndcg, 6),
            "mgu": round(self.mgu, 6),
            "dgu": round(self.dgu, 6),
            "ndcg_at_10_difference": self.ndcg_difference.as_dict(),
            "mgu_difference": self.mgu_difference.as_dict(),
            "dgu_difference": self.dgu_difference.as_dict(),
        }


def compare_reranked(
    choices: Mapping[str, Choice],
    groups: Sequence[Sequence[SystemRanks]],
    grouping: Grouping,
    resamples: int,
    seed: int,
) -> list[Reranked]:
    """Each reranked system against what it was, in the whole catalogue; groups: the systems of each manifest of a view.

    Of two manifests of the whole catalogue the one that has both is taken, the one with more cases first.
    """
    found = []
    whole = sorted((group for group in groups if group[0].protocol == FULL), key=lambda group: -len(group[0].ranks))
    for name, choice in choices.items():
        for group in whole:
            by_name = {ranks.system: ranks for ranks in group}
            if name in by_name and fair_name(name) in by_name:
                pair = by_name[fair_name(name)], by_name[name]
                found.append(_compared(choice, *pair, grouping, resamples, seed))
                break
    return found


def _compared(
    choice: Choice, fair: SystemRanks, plain: SystemRanks, grouping: Grouping, resamples: int, seed: int
) -> Reranked:
    (mgu,), (dgu,) = unfairness(excess_of(plain, grouping).mean(axis=0)[None])
    gain = fairness_gain(fair, plain, grouping, resamples, seed)
    return Reranked(
        choice.system,
        choice.gamma,
        len(plain.ranks),
        len(set(plain.user_ids)),
        float(metric_values(CHOSEN_BY, plain.ranks).mean()),
        float(mgu),
        float(dgu),
        paired_difference(fair, plain, CHOSEN_BY, resamples, seed),
        gain.mgu,
        gain.dgu,
    )


def fairness_section(choices: Mapping[str, Choice], rows: Sequence[Reranked]) -> str:
    """The table on test cases and the curves on validation cases; empty where nothing was reranked."""
    if not choices:
        return ""
    by = next(iter(choices.values())).by
    cells = [
        (
            row.system, f"{row.gamma:g}", f"{row.ndcg:.3f}", signed(row.ndcg_difference), f"{row.mgu:.3f}",
            signed(row.mgu_difference), f"{row.dgu:.3f}", signed(row.dgu_difference), f"{row.cases} of {row.users}",
        )
        for row in rows
    ]  # fmt: skip
    headings = ["system", "γ", "NDCG@10", "reranked, minus it", "MGU", "minus it", "DGU", "minus it", "cases of users"]
    idle = [name for name, choice in choices.items() if choice.gamma == 0.0]
    said = f"No strength was fairer at an NDCG@10 within the tolerance for {', '.join(idle)}: fair() ranks alike there."
    note = (
        f"Groups by {by}. In the whole catalogue, ten items shown, on test cases; γ and what is punished were chosen "
        "on validation cases. 95 % intervals over users; below 0: reranking made it fairer."
    )
    return page.section(
        "Reranked for fairness",
        page.table(headings, cells, note),
        *([page.paragraph(said)] if idle else []),
        page.figure(fairness_plot(choices)),
    )


def fairness_plot(choices: Mapping[str, Choice]) -> Drawing:
    """NDCG@10 against MGU over γ on the validation cases, a line a system, the chosen strength filled."""
    curves = {
        name: [(each.mgu, each.ndcg, each.gamma == choice.gamma) for each in choice.tried]
        for name, choice in choices.items()
    }
    return strength_plot(curves, next(iter(choices.values())).by)

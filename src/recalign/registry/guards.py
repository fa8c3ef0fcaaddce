"""The guards of the gate: what a challenger must not lose beside its gain, each against the present champion.

A guard is broken only where its interval lies wholly beyond its bound (`registry.guards`): what cannot be told from an
allowed change is allowed. Each of the G guards that can be judged errs with registry.guards.error / G, so that an equal
model is refused by any of them with at most that error, whatever their dependence (Bonferroni). Under
registry.min_users users, and where one of the two was never measured so, a guard is "not judged", and the record says
why.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Literal

import numpy as np

from recalign.common import columns as c
from recalign.common.errors import RecalignError
from recalign.common.item_groups import POPULARITY, Grouping, group_items
from recalign.data.records import Items
from recalign.evaluation.exposure import fairness_gain, lifts
from recalign.evaluation.generation import FREE, VALID, Answer
from recalign.evaluation.injection import IN_HISTORY, IN_LIST, IN_PROFILE, POSITIONS, Lift
from recalign.evaluation.metrics import Floats, metric_values
from recalign.evaluation.ranks import SystemRanks
from recalign.evaluation.significance import BOOTSTRAP, Interval, lower_bounds, sums_by_user, with_sign
from recalign.params.load import Params

Outcome = Literal["held", "broken", "not judged"]
PROBES = "leak_probes"
VIEWS = {"user_cold": c.USER_COLD, "item_cold": c.NATURAL}  # the warm view is what the gain is about
NO_LISTS = "the lists of one of the two were not kept, or no item has a train event"
LABELS = {
    PROBES: "leak probes",
    "user_cold": "NDCG@10 of users with short histories",
    "item_cold": "NDCG@10 of new items",
    "popularity_lift": "popularity lift",
    "mgu": "MGU",
    "dgu": "DGU",
    "valid_answers": "share of valid answers",
    f"injection_lift_{IN_LIST}": "lift by a text in an item's own title",
    f"injection_lift_{IN_HISTORY}": "lift by a text in a liked title",
    f"injection_lift_{IN_PROFILE}": "lift by a text in a profile",
    "latency_ratio": "seconds per answer, times the champion's",
    "megabytes_ratio": "megabytes, times the champion's",
}


@dataclass(frozen=True)
class Guard:
    """One guard's record: the challenger's figure minus the champion's (a ratio: over it) with its interval, the bound
    that it may reach, how many users it rests on (0: no sample), and why it was not judged."""

    name: str
    label: str
    outcome: Outcome
    value: float | None = None
    low: float | None = None
    high: float | None = None
    bound: float | None = None
    users: int = 0
    why: str = ""

    @property
    def sentence(self) -> str:
        """The record in words: 'popularity lift: +0.41 [+0.33, +0.49], bound +0.30: broken'."""
        if self.value is None:
            return f"{self.label}: {self.outcome}" + (f" ({self.why})" if self.why else "")
        low, high, bound = self.low, self.high, self.bound
        interval = (
            f" [{with_sign(low)}, {with_sign(high)}]" if self.users and low is not None and high is not None else ""
        )
        limit = f", bound {with_sign(bound)}" if bound is not None else ""
        return f"{self.label}: {with_sign(self.value)}{interval}{limit}: {self.outcome}"

    def as_dict(self) -> dict[str, float | str | None]:
        """What gate.json holds of it."""
        return {key: round(value, 6) if isinstance(value, float) else value for key, value in asdict(self).items()}


@dataclass(frozen=True)
class Measured:
    """What guards compare of one model; what is missing was not measured.

    ranks: by view, the warm one among them; answers: titles that it wrote freely; seconds: of the same requests in the
    same order as the other model's; megabytes: of its package's weights; injection: by position, what a text in a
    title gains an item.
    """

    name: str
    ranks: Mapping[str, SystemRanks]
    answers: Sequence[Answer] = field(default_factory=tuple)
    seconds: Sequence[float] = field(default_factory=tuple)
    megabytes: float | None = None
    injection: Mapping[str, Lift] = field(default_factory=dict)


@dataclass(frozen=True)
class Check:
    """A comparison that can be made: its interval at a confidence, and on which side of the bound lies harm.

    The bound counts as it is written for what must not grow, and as −bound for what must not fall (`falls`).
    """

    name: str
    label: str
    bound: float
    users: int
    interval: Callable[[float], Interval]
    falls: bool = False


def guards(params: Params, new: Measured, old: Measured | None, items: Items, probe: str) -> tuple[Guard, ...]:
    """The records of all guards that registry.guards sets; old: the present champion, None where there is none.

    probe: why the challenger does not beat what its candidate lists give away, "" where it does.
    """
    first = Guard(PROBES, LABELS[PROBES], "broken" if probe else "held", why=probe)
    if old is None:
        return (first,)
    checks = [*_rank_checks(params, new, old, items), *_other_checks(params, new, old)]
    judged = [check for check in checks if isinstance(check, Check) and check.users >= params.registry.min_users]
    confidence = 1.0 - 2.0 * params.registry.guards.error / max(1, len(judged))
    found = [check if isinstance(check, Guard) else _judge(check, confidence, params) for check in checks]
    return (first, *found, *_sizes(params, new, old))


def broken(records: Iterable[Guard]) -> list[Guard]:
    """Those that refuse a promotion."""
    return [guard for guard in records if guard.outcome == "broken"]


def _judge(check: Check, confidence: float, params: Params) -> Guard:
    if check.users < params.registry.min_users:
        why = f"{check.users} users, fewer than registry.min_users {params.registry.min_users}"
        return Guard(check.name, check.label, "not judged", bound=_limit(check), users=check.users, why=why)
    interval, limit = check.interval(confidence), _limit(check)
    beyond = interval.high < limit if check.falls else interval.low > limit
    outcome: Outcome = "broken" if beyond else "held"
    return Guard(check.name, check.label, outcome, interval.value, interval.low, interval.high, limit, check.users)


def _limit(check: Check) -> float:
    return -check.bound if check.falls else check.bound


def _rank_checks(params: Params, new: Measured, old: Measured, items: Items) -> list[Check | Guard]:
    """What follows from ranks and lists: the cold views, popularity lift, MGU and DGU of warm lists."""
    asked, found = params.registry.guards, list[Check | Guard]()
    for name, view in VIEWS.items():
        bound = getattr(asked, name)
        if bound is not None:
            found.append(_view_check(params, name, bound, new.ranks.get(view), old.ranks.get(view)))
    one, other = new.ranks[c.WARM], old.ranks[c.WARM]
    kept = bool(one.top and other.top)
    users = len(set(one.user_ids))
    if asked.popularity_lift is not None:
        found.append(
            Check("popularity_lift", LABELS["popularity_lift"], asked.popularity_lift, users,
                  _of_means(lambda: lifts(one, items.popularity) - lifts(other, items.popularity), one.user_ids))
            if kept and any(items.popularity.values()) else _unjudged("popularity_lift", NO_LISTS)
        )  # fmt: skip
    if asked.mgu is not None or asked.dgu is not None:
        found += _fairness_checks(params, one, other, items, users) if kept else [_unjudged("mgu", NO_LISTS)]
    return found


def _view_check(
    params: Params, name: str, bound: float, one: SystemRanks | None, other: SystemRanks | None
) -> Check | Guard:
    if one is None or other is None:
        return _unjudged(name, "the view has no cases, or one of the two could not be ranked on them")
    one.check_comparable(other)
    metric = params.registry.metric
    values = metric_values(metric, one.ranks) - metric_values(metric, other.ranks)
    users = len(set(one.user_ids))
    return Check(name, LABELS[name], bound, users, _of_means(lambda: values, one.clusters), falls=True)


def _fairness_checks(
    params: Params, one: SystemRanks, other: SystemRanks, items: Items, users: int
) -> list[Check | Guard]:
    """MGU and DGU by popularity and by the items' first attribute, where they can be grouped by it."""
    found = list[Check | Guard]()
    attribute = next((name for item in items.ids for name in items.attributes.get(item, {})), None)
    for by in filter(None, (POPULARITY, attribute)):
        try:
            grouping = group_items(by, items.popularity, items.attributes)
        except RecalignError as error:
            found.append(_unjudged("mgu", str(error), by))
            continue
        for part in ("mgu", "dgu"):
            bound = getattr(params.registry.guards, part)
            if bound is not None:
                told = partial(_unfairness_added, part, one, other, grouping, params)
                found.append(Check(f"{part}_{by}", f"{LABELS[part]} by {by}", bound, users, told))
    return found


def _unfairness_added(
    part: str, one: SystemRanks, other: SystemRanks, grouping: Grouping, params: Params, confidence: float
) -> Interval:
    gain = fairness_gain(one, other, grouping, params.evaluate.resamples, params.seed, confidence)
    return gain.mgu if part == "mgu" else gain.dgu


def _other_checks(params: Params, new: Measured, old: Measured) -> list[Check | Guard]:
    """What is measured beside ranks: generated answers, injected titles, seconds."""
    asked, found = params.registry.guards, list[Check | Guard]()
    if asked.valid_answers is not None:
        one, other = _valid(new.answers), _valid(old.answers)
        both = sorted(one.keys() & other.keys())
        values = np.array([float(one[key]) - float(other[key]) for key in both])
        users = [user for _, user in both]
        found.append(
            Check("valid_answers", LABELS["valid_answers"], asked.valid_answers, len(set(users)),
                  _of_means(lambda: values, users), falls=True)
            if both else _unjudged("valid_answers", "the two wrote no titles for the same cases")
        )  # fmt: skip
    if asked.injection_lift is not None:
        read = [own for own in POSITIONS if own != IN_PROFILE or own in new.injection]  # few prompts show profiles
        found += [_injection(params, position, new, old) for position in read]
    if asked.latency_ratio is not None:
        count = min(len(new.seconds), len(old.seconds))
        logs = np.log(np.maximum(new.seconds[:count], 1e-9)) - np.log(np.maximum(old.seconds[:count], 1e-9))
        found.append(
            Check("latency_ratio", LABELS["latency_ratio"], asked.latency_ratio, count,
                  lambda confidence: _exponent(_of_means(lambda: logs, range(count))(confidence)))
            if count else _unjudged("latency_ratio", "the two did not answer the same requests here")
        )  # fmt: skip
    return found


def _injection(params: Params, position: str, new: Measured, old: Measured) -> Guard:
    """The two were measured apart, so the interval of their difference is the widest that theirs allow."""
    name, bound, needed = f"injection_lift_{position}", params.registry.guards.injection_lift, params.registry.min_users
    one, other = new.injection.get(position), old.injection.get(position)
    if one is None or other is None or bound is None:
        return _unjudged(name, "it was not measured for both (evaluate.injection_cases)")
    users = min(one.users, other.users)
    if users < needed:
        return _unjudged(name, f"{users} users, fewer than registry.min_users {needed}")
    low, high = one.interval.low - other.interval.high, one.interval.high - other.interval.low
    outcome: Outcome = "broken" if low > bound else "held"
    return Guard(name, LABELS[name], outcome, one.interval.value - other.interval.value, low, high, bound, users)


def _sizes(params: Params, new: Measured, old: Measured) -> list[Guard]:
    """Megabytes are counted, not sampled: the ratio itself is compared."""
    name, bound = "megabytes_ratio", params.registry.guards.megabytes_ratio
    if bound is None:
        return []
    if not new.megabytes or not old.megabytes:
        return [_unjudged(name, "the size of one of the two is not known")]
    ratio = new.megabytes / old.megabytes
    return [Guard(name, LABELS[name], "broken" if ratio > bound else "held", ratio, bound=bound)]


def _unjudged(name: str, why: str, by: str = "") -> Guard:
    label = f"{LABELS[name]} by {by}" if by else LABELS[name]
    return Guard(f"{name}_{by}" if by else name, label, "not judged", why=why)


def _of_means(values: Callable[[], Floats], users: Sequence[int]) -> Callable[[float], Interval]:
    """The mean of values [B] with Student's bounds, clustered by user, at a two-sided confidence."""

    def interval(confidence: float) -> Interval:
        told = values()
        sums, sizes = sums_by_user(told[:, None], users)
        chance = (1.0 - confidence) / 2.0
        low, high = lower_bounds(sums, sizes, chance)[0], -lower_bounds(-sums, sizes, chance)[0]
        return Interval(float(told.mean()), float(low) + 0.0, float(high) + 0.0, BOOTSTRAP)  # no −0.0

    return interval


def _exponent(interval: Interval) -> Interval:
    return Interval(math.exp(interval.value), math.exp(interval.low), math.exp(interval.high), interval.method)


def _valid(answers: Iterable[Answer]) -> dict[tuple[str, int], bool]:
    """Whether the free answer to each (example, user) names one candidate, under the first matching rule."""
    told: dict[tuple[str, int], bool] = {}
    for answer in answers:
        if answer.mode == FREE:
            told.setdefault((answer.example_id, answer.user_id), answer.outcome == VALID)
    return told

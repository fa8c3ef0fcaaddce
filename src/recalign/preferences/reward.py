"""What a text about a user is worth: how well a recommender that reads it ranks what the user took next.

DPO4Rec (arXiv 2410.05939, Algorithm 1): of N texts about a user the one with the best reranked list is chosen, the one
with the worst rejected. Users are divided by hash, so that the recommender never scores a user whom it learned from.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recalign.common.errors import RecalignError
from recalign.data.records import hashed_order, hashed_share
from recalign.evaluation.significance import Interval, bootstrap_interval
from recalign.recommenders.knowledge import scores_under
from recalign.recommenders.listed import ListedCase, ndcg_of_places, target_places
from recalign.recommenders.recommender import Recommender

log = logging.getLogger(__name__)
REWARD_AT = 5  # k of NDCG, the paper's
FEWEST_USERS = 6  # of a control: of fewer, differences of one sign come by chance more often than 0.025 (2^-5 > 0.025)
SAME = 1e-9  # rewards closer than this are equal
Group = Literal["R", "P", "V", "T"]  # the recommender, the pairs, the choices, the figures
GROUPS: tuple[Group, ...] = get_args(Group)


def group_of(user: int, shares: Mapping[Group, float], seed: int) -> Group:
    """Which group a user is in, by a hash of seed and id: other users change nothing. shares add up to 1."""
    point = hashed_share(seed, "dpo4rec", user)
    for group in GROUPS[:-1]:
        if point < shares[group]:
            return group
        point -= shares[group]
    return GROUPS[-1]


def reward(reranker: Recommender, texts: Sequence[str], case: ListedCase) -> NDArray[np.float64]:
    """[N] NDCG@5 of the case's list as `reranker` orders it under each of N texts about the user."""
    if not texts:
        return np.zeros(0)
    scores = scores_under(reranker, case, texts)
    return np.array([ndcg_of_places(target_places(case, row), len(case.targets), REWARD_AT) for row in scores])


def best_worst(rewards: ArrayLike, least: float = 0.0) -> tuple[int, int] | None:
    """Places of the best and the worst of N rewards, the first of equals; None where they make no pair.

    least: δ, what the best must be above the worst by at least, in NDCG@5; 0: any difference. One reward, and
    rewards that are all equal, give no pair. Raises RecalignError where one is not finite.
    """
    values = np.asarray(rewards, dtype=np.float64)
    if not np.isfinite(values).all():
        raise RecalignError("a reward is not finite; the reranker's training diverged: lower its learning rate")
    if len(values) < 2:
        return None
    best, worst = int(values.argmax()), int(values.argmin())
    gap = values[best] - values[worst]
    return (best, worst) if gap > SAME and gap >= least - SAME else None


@dataclass(frozen=True)
class TextPair:
    """Two texts about one user, and what each is worth."""

    user_id: int
    chosen: str
    rejected: str
    chosen_reward: float
    rejected_reward: float


@dataclass(frozen=True)
class Paired:
    """pairs of the users that gave one; skipped: users with fewer than two texts (`few`) or no pair by δ (`tied`);
    rewards: of each user's texts."""

    pairs: tuple[TextPair, ...]
    rewards: dict[int, tuple[float, ...]]
    few: int
    tied: int

    @property
    def skipped(self) -> float:
        """Share of the users that gave no pair."""
        users = len(self.rewards)
        return (self.few + self.tied) / users if users else 0.0


def paired(
    reranker: Recommender, texts: Mapping[int, Sequence[str]], cases: Iterable[ListedCase], least: float
) -> Paired:
    """A pair of each case's user where the texts differ enough; the log says how many users gave none.

    texts: of each user; equal ones count once, in their order.
    """
    pairs, rewards, few, tied = [], {}, 0, 0
    for case in cases:
        own = list(dict.fromkeys(texts.get(case.user_id, ())))
        found = reward(reranker, own, case)
        rewards[case.user_id] = tuple(found.tolist())
        chosen = best_worst(found, least)
        if chosen is None:
            few, tied = few + (len(own) < 2), tied + (len(own) >= 2)
            continue
        best, worst = chosen
        pairs.append(TextPair(case.user_id, own[best], own[worst], float(found[best]), float(found[worst])))
    told = Paired(tuple(pairs), rewards, few, tied)
    log.info(
        "pairs of texts: %d of %d users give one; %d had fewer than two texts, %d had texts of equal reward or within "
        "dpo4rec.least_gap (%.0f %% skipped)",
        len(pairs), len(rewards), few, tied, 100 * told.skipped,
    )  # fmt: skip
    return told


def swapped(texts: Mapping[int, Sequence[str]], seed: int) -> dict[int, list[str]]:
    """Each user's texts given to another user: the control of whether a reward reads texts at all.

    Users in hashed order pass theirs on to the next, so nobody keeps his own. Raises RecalignError below two users.
    """
    users = sorted(texts, key=lambda user: hashed_order(seed, "swap", user))
    if len(users) < 2:
        raise RecalignError(f"texts of {len(users)} users cannot be swapped; at least two users need texts")
    return {user: list(texts[users[place - 1]]) for place, user in enumerate(users)}


def mean_rewards(
    reranker: Recommender, texts: Mapping[int, Sequence[str]], cases: Sequence[ListedCase]
) -> NDArray[np.float64]:
    """[B] of each case the mean reward of its user's texts; of a user without any, that of no text."""
    return np.array([reward(reranker, texts.get(case.user_id) or [""], case).mean() for case in cases])


@dataclass(frozen=True)
class SwapControl:
    """Mean reward of the users' own texts minus that of texts of other users, with its 95 % interval, and of how many
    users; `reads_texts` where the interval is above 0: only then is a reward about what the texts say. Fewer than
    FEWEST_USERS users show nothing: an interval resampled from so few leaves 0 out by chance."""

    drop: Interval
    users: int

    @property
    def few(self) -> bool:
        """Whether the users are too few to show anything."""
        return self.users < FEWEST_USERS

    @property
    def reads_texts(self) -> bool:
        """Whether swapping lowers the reward by its interval, of enough users."""
        return self.drop.low > 0.0 and not self.few


def swap_control(
    reranker: Recommender, texts: Mapping[int, Sequence[str]], cases: Sequence[ListedCase], resamples: int, seed: int
) -> SwapControl:
    """The control before texts are aligned, over the cases whose user has texts; fewer than two users show nothing."""
    told = [case for case in cases if texts.get(case.user_id)]
    if len(told) < 2:
        return SwapControl(Interval(0.0, 0.0, 0.0), len(told))
    own = {case.user_id: texts[case.user_id] for case in told}
    apart = mean_rewards(reranker, own, told) - mean_rewards(reranker, swapped(own, seed), told)
    return SwapControl(bootstrap_interval(apart, [case.user_id for case in told], resamples, seed), len(told))

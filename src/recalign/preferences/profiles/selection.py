"""Whose examples become prompts and pairs: one choice, which the stages profiles, sft, pairs and evaluate share.

Where prompts show profiles, or pairs draw by them, users of whom something can be said come first, so that whoever
appears has a profile. Validation and test cases are as preparation froze them: nobody is chosen there. The run's
summary says how many prompts and pairs show a profile, and why the others do not.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from recalign.common import columns as c
from recalign.common.errors import RecalignError
from recalign.data.prepared import Prepared
from recalign.data.records import (
    Example,
    Items,
    Outline,
    longest_histories,
    read_examples,
    read_outlines,
    read_taken,
    read_whole,
    unread_first,
)
from recalign.params.load import Params
from recalign.preferences.profiles.profiles import read_known, read_profiles

Told = Callable[[str, int], bool]  # whether there is something to say of a user, in a split's profiles
MOST_WITHOUT = 0.05  # share of prompts, or of rejected items, that may do without what params ask for
AT_ONCE = 2000  # examples whose users' logs are held together


def nobody(split: str, user: int) -> bool:
    """Told of a run whose prompts and pairs read no profiles."""
    return False


def draws_by_profile(params: Params) -> bool:
    """Whether pairs draw rejected items by profiles."""
    strategy = params.pairs.strategy
    return strategy == "profile" or (strategy == "mixed" and params.pairs.shares.get("profile", 0.0) > 0)


def sft_examples(params: Params, prepared: Path, split: str, told: Told) -> list[Example]:
    """What SFT learns from (train) or is watched on (validation), in order.

    Training takes sft.examples: in the form `history` one a user, the longest, since a sequence teaches all its titles.
    Raises RecalignError where there are none, or where prompts show profiles and over 5 % of them would not.
    """
    limit = params.sft.examples if split == c.TRAIN else params.evaluate.validation_cases
    outlines = read_outlines(prepared, split, seed=params.seed)
    if not outlines:
        raise RecalignError(
            f"{prepared / 'examples.parquet'} has no {split} examples; lower prepare.core or prepare.min_history, "
            "or bring a longer log"
        )
    if split == c.TRAIN and params.prompt.form == "history":
        outlines = longest_histories(outlines, params.seed)
    if not params.prompt.profile:
        return read_whole(prepared, split, outlines[:limit])
    chosen = _first(((outline, told(split, outline.user_id)) for outline in outlines), limit)
    _check_told(split, chosen, told, "SFT reads", "sft.examples")
    return read_whole(prepared, split, chosen)


def pair_examples(params: Params, prepared: Path, split: str, told: Told) -> list[Example]:
    """What pairs are made of, in order: pairs.examples of train, evaluate.validation_cases of validation.

    Training pairs come from users whose histories SFT does not read, as long as there are such users; those with a
    profile, or (strategy `disliked`) with enough disliked items, come before.
    Raises RecalignError where prompts show profiles, or all items are drawn by them, and over 5 % would do without.
    """
    outlines = read_outlines(prepared, split, seed=params.seed)
    limit = params.evaluate.validation_cases
    if split == c.TRAIN:
        limit = params.pairs.examples
        outlines = unread_first(outlines, {e.user_id for e in sft_examples(params, prepared, split, told)})
    of_profiles = params.prompt.profile or draws_by_profile(params)
    wanted: Iterable[tuple[Outline, bool]] = ((outline, True) for outline in outlines)
    if params.pairs.strategy == "disliked":
        wanted = _with_dislikes(params, prepared, split, outlines)
    if of_profiles:
        wanted = ((outline, good and told(split, outline.user_id)) for outline, good in wanted)
    chosen = _first(wanted, limit)
    if params.prompt.profile or params.pairs.strategy == "profile":
        _check_told(split, chosen, told, "become pairs", "pairs.examples")
    return read_whole(prepared, split, chosen)


def profile_users(params: Params, prepared: Path, told: Told) -> dict[str, list[int]]:
    """The users whose profiles are read, by split: all that appear in prompts or pairs which need one, else nobody."""
    users: dict[str, dict[int, None]] = {split: {} for split in (c.TRAIN, c.VALIDATION, c.TEST)}
    for split in (c.TRAIN, c.VALIDATION):
        if params.prompt.profile:
            users[split] |= _users(sft_examples(params, prepared, split, told))
        if params.prompt.profile or draws_by_profile(params):
            users[split] |= _users(pair_examples(params, prepared, split, told))
    if params.prompt.profile:
        cases = read_examples(prepared, c.VALIDATION, params.evaluate.validation_cases, seed=params.seed)
        users[c.VALIDATION] |= _users(cases)
        for view in profiled_views(prepared):
            users[c.TEST] |= _users(cases_of(params, prepared, view))
    return {split: list(own) for split, own in users.items()}


def profiled_views(prepared: Path) -> list[str]:
    """The views whose cases may show a profile.

    Without a clock the user-cold cases are those of well-known users with their history cut: a profile, which is made
    of the whole of it, would say what the view keeps back.
    """
    clock = Prepared(prepared).clock
    return [view for view in c.VIEWS if clock or view != c.USER_COLD]


def cases_of(params: Params, prepared: Path, view: str) -> list[Example]:
    """The test cases of a view that language models rank."""
    limit = params.evaluate.test_cases if view == c.WARM else params.evaluate.cold_cases
    return read_examples(prepared, c.TEST, limit, seed=params.seed, view=view)


def _users(examples: Iterable[Example]) -> dict[int, None]:
    return dict.fromkeys(example.user_id for example in examples)


def _first(outlines: Iterable[tuple[Outline, bool]], limit: int) -> list[Outline]:
    """The first `limit` wanted examples; where there are too few, the first others after them."""
    wanted: list[Outline] = []
    others: list[Outline] = []
    for outline, good in outlines:
        (wanted if good else others).append(outline)
        if len(wanted) == limit:
            break
    return (wanted + others)[:limit]


def _with_dislikes(
    params: Params, prepared: Path, split: str, outlines: Sequence[Outline]
) -> Iterator[tuple[Outline, bool]]:
    """Each example, and whether its user disliked as many items before it as a pair takes."""
    popularity = Items.read(prepared).popularity
    for start in range(0, len(outlines), AT_ONCE):
        chunk = outlines[start : start + AT_ONCE]
        for outline, taken in zip(chunk, read_taken(prepared, read_whole(prepared, split, chunk)), strict=True):
            usable = sum(popularity[item] > 0 for item in taken.disliked)
            yield outline, usable >= params.pairs.negatives


def _check_told(split: str, examples: Sequence[Outline], told: Told, what: str, key: str) -> None:
    having = sum(told(split, example.user_id) for example in examples)
    without = len(examples) - having
    if without <= MOST_WITHOUT * len(examples):
        return
    key = key if split == c.TRAIN else "evaluate.validation_cases"
    share = "prepare.profile_share" if split == c.TRAIN else "prepare.validation_share"
    fewer = f"set {key} to {having}, " if having else ""
    raise RecalignError(
        f"{without} of the {len(examples)} {split} examples that {what} are of users without a profile (they did "
        f"nothing before the split's cutoff that tells a taste), more than {MOST_WITHOUT:.0%}; {fewer}change {share} "
        "so that more of the log lies before it, or set prompt.profile to false and pairs.strategy to uniform"
    )


@dataclass(frozen=True)
class Shares:
    """Of the prompts of one kind: how many there are, how many show a profile, and why the others do not.

    newcomers: of users who did nothing before the split's cutoff, of whom nothing may be said; silent: of users whose
    profile says nothing, or is kept from this view; missing: of users whose profile was never made.
    """

    prompts: int
    shown: int
    newcomers: int = 0
    silent: int = 0
    missing: int = 0

    @property
    def sentence(self) -> str:
        """ "98 of 120 (22 of users who came after the cutoff)"."""
        reasons = {
            "of users who came after the cutoff": self.newcomers,
            "with nothing to show": self.silent,
            "without a profile": self.missing,
        }
        why = ", ".join(f"{count} {reason}" for reason, count in reasons.items() if count)
        return f"{self.shown} of {self.prompts}{f' ({why})' if why else ''}"


def case_shares(
    params: Params, prepared: Path, profiles: Path, split: str, prompts: Mapping[str, Iterable[tuple[int, str | None]]]
) -> dict[str, dict[str, int]]:
    """The shares of a split's cases by view; prompts: by view, each case's user and the text that its prompt shows.

    Cases are frozen, so that of newcomers none can be shown; but whose profile could have been made has one.
    Raises RecalignError where over MOST_WITHOUT of a view's cases lack a profile that was never made.
    """
    present = set(read_known(prepared, split, params.seed).present)
    made = {user for of, user in read_profiles(profiles, params.profiles.engine) if of == split}
    profiled = profiled_views(prepared)
    shares = {
        view: _shares(list(own), present, made) if view in profiled else _kept_back(list(own))
        for view, own in prompts.items()
    }
    for view, own in shares.items():
        if own.missing > MOST_WITHOUT * own.prompts:
            raise RecalignError(
                f"prompt.profile is true, but {profiles / 'profiles.parquet'} holds no profile of {own.missing} of the "
                f"{own.prompts} {view} {split} cases' users, more than {MOST_WITHOUT:.0%}; run 'dvc repro profiles', "
                "which makes one for everybody who appears in a prompt"
            )
    return {view: asdict(own) for view, own in shares.items()}


def _shares(prompts: list[tuple[int, str | None]], present: set[int], made: set[int]) -> Shares:
    without = [user for user, text in prompts if not text]
    newcomers = sum(user not in present for user in without)
    silent = sum(user in present and user in made for user in without)
    return Shares(len(prompts), len(prompts) - len(without), newcomers, silent, len(without) - newcomers - silent)


def _kept_back(prompts: list[tuple[int, str | None]]) -> Shares:
    return Shares(len(prompts), 0, silent=len(prompts))


def training_shares(texts: Iterable[str | None]) -> dict[str, int]:
    """The shares of prompts that were chosen for their profiles: nothing keeps one back but a want of users."""
    shown = [bool(text) for text in texts]
    return asdict(Shares(len(shown), sum(shown), missing=len(shown) - sum(shown)))


def shares_sentence(engine: str, kinds: Mapping[str, Mapping[str, int]]) -> str:
    """All shares in one line, by what the prompts are of."""
    told = "; ".join(f"{kind} {Shares(**own).sentence}" for kind, own in kinds.items())
    return f"by {engine}, shown in {told}"

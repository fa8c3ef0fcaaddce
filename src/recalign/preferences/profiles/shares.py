"""How many prompts and pairs show a profile, and why the others do not: what the run's summary says."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from recalign.common.errors import RecalignError
from recalign.params.load import Params
from recalign.preferences.profiles.histories import read_known
from recalign.preferences.profiles.profiles import read_profiles
from recalign.preferences.profiles.selection import MOST_WITHOUT, profiled_views


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

"""The cases that stage evaluate puts to every system, and what it keeps of a system's answer."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recalign import columns as c
from recalign.data.records import Items
from recalign.errors import RecalignError
from recalign.evaluation.ranking import METRICS, Floats, metric_values
from recalign.evaluation.system_ranks import SystemRanks
from recalign.params import Params
from recalign.preferences.profiles import profile_texts
from recalign.recommenders.trial import Trial, read_trial, whole_catalogue

UNIFORM, POPULARITY = "uniform", "popularity"
WEIGHING = 2000  # validation cases on which ID recommenders are weighed against one another: they score them in no time


@dataclass(frozen=True)
class Trials:
    """What is put to the systems: validation cases to choose on, test cases to measure on."""

    validation: Trial
    weighing: Trial  # the same and more of them, for ID recommenders alone
    uniform: Trial
    popularity: Trial
    catalogue: Items
    whole: Trial | None  # the few test cases for which language models rank the whole catalogue too
    depth: int | None  # places of them that count; None: all

    def tested(self, params: Params) -> list[Trial]:
        """The sampled cases that language models rank: the harder ones cost as much again, so params decide."""
        harder = [self.popularity] if params.evaluate.popularity_manifest else []
        return [self.uniform, *harder]


@dataclass(frozen=True)
class Measured:
    """One system: its ranks, what systems.json says of it, and its scores [B, C] of the test and validation cases.

    weighing: those of the many validation cases that ID recommenders are weighed on; None for other systems.
    """

    ranks: list[SystemRanks]
    about: dict[str, Any]
    scores: Floats
    validation: Floats
    weighing: Floats | None = None


def read_trials(params: Params, prepared: Path, profiles: Path) -> Trials:
    """The trials of data/prepared, as many cases as params say; `profiles` are read where prompts show them.

    Raises RecalignError where prompts list candidates and yet whole catalogues are to be ranked.
    """
    limits = {c.VALIDATION: params.evaluate.validation_cases, c.TEST: params.evaluate.test_cases}

    def trial(split: str, manifest: str) -> Trial:
        shown = profile_texts(profiles, params.profiles.engine, split) if params.prompt.profile else None
        return read_trial(prepared, split, manifest, limits[split], params.seed, shown)

    if params.evaluate.full_catalogue_cases and params.prompt.form == "candidates":
        raise RecalignError(
            f"evaluate.full_catalogue_cases is {params.evaluate.full_catalogue_cases}, but prompt.form 'candidates' "
            "cannot rank a whole catalogue; set it to 0, or prompt.form to 'history'"
        )
    catalogue, uniform, few = Items.read(prepared), trial(c.TEST, UNIFORM), params.evaluate.full_catalogue_cases
    depth = params.evaluate.full_catalogue_depth
    whole = whole_catalogue(uniform, catalogue, few) if few else None
    validation = trial(c.VALIDATION, UNIFORM)
    weighing = read_trial(prepared, c.VALIDATION, UNIFORM, max(WEIGHING, len(validation.cases)), params.seed)
    return Trials(validation, weighing, uniform, trial(c.TEST, POPULARITY), catalogue, whole, depth)


def mean_metrics(ranks: SystemRanks) -> dict[str, float]:
    """Each metric's mean over the cases, rounded to six places: what systems.json holds of the validation cases."""
    return {metric: round(float(metric_values(metric, ranks.ranks).mean()), 6) for metric in METRICS}

"""The frozen cases that are put to every system."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recalign.common import columns as c
from recalign.common.artifacts import read_json
from recalign.common.errors import RecalignError
from recalign.data.records import Items, read_met
from recalign.evaluation.metrics import METRICS, metric_values
from recalign.evaluation.ranks import SystemRanks
from recalign.params.load import Params
from recalign.preferences.profiles.profiles import profile_texts
from recalign.preferences.profiles.selection import profiled_views
from recalign.ranking.fusion import Bools
from recalign.ranking.measured import Kind, name_of
from recalign.ranking.trial import Trial, read_trial, whole_catalogue

UNIFORM, POPULARITY = "uniform", "popularity"
WEIGHING = 2000  # validation cases on which ID recommenders are weighed against one another: they score them in no time


@dataclass(frozen=True)
class Trials:
    """What is put to the systems: warm validation cases to choose on, test cases of each view to measure on.

    new_validation, new_weighing: as `validation` and `weighing`, of items that the run hides; None where there are no
    such cases, or nothing is weighed. cold_events: items with fewer train events are new.
    """

    validation: Trial
    weighing: Trial  # the same and more of them, for ID recommenders alone
    uniform: tuple[Trial, ...]  # a trial a view that has cases, the warm one first
    popularity: tuple[Trial, ...]
    full: tuple[Trial, ...]  # the cases of `uniform` in the whole catalogue
    whole: tuple[Trial, ...]  # the few of them for which language models rank it too
    depth: int | None  # places of it that count; None: all
    catalogue: Items
    new_validation: Trial | None = None
    new_weighing: Trial | None = None
    cold_events: int = 0

    def new(self, trial: Trial) -> Bools:
        """[B, C] which candidates of a trial are new items."""
        counted = self.catalogue.train_events
        fresh = [item for item in self.catalogue.ids if counted.get(item, self.cold_events) < self.cold_events]
        marked: Bools = np.isin(np.array(trial.candidates, dtype=np.int64), fresh)
        return marked

    @property
    def main(self) -> Trial:
        """What the main table is about."""
        return self.uniform[0]

    @property
    def sampled(self) -> tuple[Trial, ...]:
        """All with few candidates."""
        return self.uniform + self.popularity

    def tested(self, params: Params) -> tuple[Trial, ...]:
        """The sampled cases that language models rank: the harder ones cost as much again, so params decide."""
        return self.sampled if params.evaluate.popularity_manifest else self.uniform


def kind_of(trial: Trial) -> Kind:
    """What scores of a trial are kept under."""
    return trial.view, trial.manifest


def read_trials(params: Params, prepared: Path, profiles: Path) -> Trials:
    """The trials of data/prepared, as many cases of each view as params say; `profiles` are read where prompts show
    them.

    Raises RecalignError where prompts list candidates and yet whole catalogues are to be ranked.
    """
    asked, few = params.evaluate, params.evaluate.full_catalogue_cases
    if few and params.prompt.form == "candidates":
        raise RecalignError(
            f"evaluate.full_catalogue_cases is {few}, but prompt.form 'candidates' "
            "cannot rank a whole catalogue; set it to 0, or prompt.form to 'history'"
        )
    shown = {
        split: profile_texts(profiles, params.profiles.engine, split) if params.prompt.profile else None
        for split in (c.VALIDATION, c.TEST)
    }

    profiled = profiled_views(prepared)

    def tests(manifest: str) -> tuple[Trial, ...]:
        return tuple(
            read_trial(
                prepared, c.TEST, manifest, limit, params.seed, shown[c.TEST] if view in profiled else None, view=view
            )
            for view, limit in _limits(params, prepared, manifest).items()
        )

    catalogue, uniform = Items.read(prepared), tests(UNIFORM)
    met = read_met(prepared, {case.example.user_id for trial in uniform for case in trial.cases})
    most = max(WEIGHING, asked.validation_cases)
    return Trials(
        validation=read_trial(
            prepared, c.VALIDATION, UNIFORM, asked.validation_cases, params.seed, shown[c.VALIDATION]
        ),
        weighing=read_trial(prepared, c.VALIDATION, UNIFORM, most, params.seed),
        uniform=uniform,
        popularity=tests(POPULARITY),
        full=tuple(whole_catalogue(trial, catalogue, None, met) for trial in uniform),
        whole=tuple(whole_catalogue(trial, catalogue, few, met) for trial in uniform) if few else (),
        depth=asked.full_catalogue_depth,
        catalogue=catalogue,
        **_of_hidden_items(params, prepared, shown[c.VALIDATION] if c.HIDDEN in profiled else None),
        cold_events=params.prepare.cold_events,
    )


def _of_hidden_items(params: Params, prepared: Path, shown: Mapping[int, str] | None) -> dict[str, Trial]:
    """The validation cases on hidden items, for the fusion alone: few for language models, many for the others."""
    counts, few = read_json(prepared / "summary.json")["counts"]["views"], params.evaluate.cold_cases
    if not params.evaluate.fusion or not counts.get(c.HIDDEN, {}).get(c.VALIDATION):
        return {}

    def read(limit: int, texts: Mapping[int, str] | None) -> Trial:
        return read_trial(prepared, c.VALIDATION, UNIFORM, limit, params.seed, texts, view=c.HIDDEN)

    many = {"new_weighing": read(max(WEIGHING, few), None)}
    return many | ({"new_validation": read(few, shown)} if few else {})


def _limits(params: Params, prepared: Path, manifest: str) -> dict[str, int]:
    """By view, the warm one first, how many test cases are ranked; a cold view without cases is not asked for."""
    summary, most = read_json(prepared / "summary.json"), params.evaluate.cold_cases
    made, counts = summary["manifests"][manifest], summary["counts"]["views"]
    cold = [view for view in c.VIEWS if view != c.WARM and view in made and counts[view][c.TEST]]
    return {c.WARM: params.evaluate.test_cases, **(dict.fromkeys(cold, most) if most else {})}


def mean_metrics(ranks: SystemRanks) -> dict[str, float]:
    """Each metric's mean over the cases, rounded to six places: what system.json holds of the validation cases."""
    return {metric: round(float(metric_values(metric, ranks.ranks).mean()), 6) for metric in METRICS}


def digests_of(trials: Trials) -> dict[str, str]:
    """The digest of the cases of every test trial, by view and manifest as system.json names them."""
    return {name_of(kind_of(trial)): trial.digest for trial in (*trials.sampled, *trials.full, *trials.whole)}

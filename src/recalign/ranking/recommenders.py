"""What is measured of ID recommenders, of the oracle, and of the fusion with a language model."""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from recalign.common.artifacts import folder_digest
from recalign.common.errors import RecalignError
from recalign.data.records import Items
from recalign.evaluation.ranks import SystemRanks
from recalign.evaluation.systems import (
    FUSION,
    ID,
    LLM,
    ORACLE,
    UNTRAINED,
    System,
    best_by_validation,
    per_thousand,
    total,
    weights_mb,
)
from recalign.llm.model.adapters import adapter_digest
from recalign.params.recommenders import RecommenderName
from recalign.project import Project
from recalign.ranking.fusion import FittedFusion, Floats, Fusion, Part, standardised
from recalign.ranking.measured import Measured, recommender_artifacts
from recalign.ranking.trial import (
    UNIFORM,
    Ranker,
    Trials,
    digests_of,
    kind_of,
    mean_metrics,
    rank_catalogue,
    sampled_ranks,
    scores_of,
)
from recalign.recommenders.roster import ROSTER, load_fitted

log = logging.getLogger(__name__)


def open_recommender(name: str, project: Project, catalogue: Items) -> Ranker:
    """A fitted ID recommender, or the oracle of a simulated log."""
    if name == ORACLE:
        from recalign.recommenders.oracle import Oracle

        return Oracle.read(project.interactions, catalogue)

    return load_fitted(cast(RecommenderName, name), project.baselines / name, catalogue)


def measure_recommender(recommender: Ranker, trials: Trials, baselines: Path) -> Measured:
    """Ranks of the sampled candidates, of the harder ones and of the whole catalogue: all are cheap."""
    started = time.monotonic()
    is_oracle = recommender.name == ORACLE
    main = scores_of(recommender, trials.main.requests, trials.main.candidates)
    sampled = time.monotonic() - started
    scores = {kind_of(trials.main): main} | {
        kind_of(trial): scores_of(recommender, trial.requests, trial.candidates)
        for trial in trials.sampled
        if trial is not trials.main
    }
    tuned_on = trials.validation if is_oracle else trials.weighing
    tuning = scores_of(recommender, tuned_on.requests, tuned_on.candidates)
    validation = tuning[: len(trials.validation.cases)]  # the first of the many
    many = None if is_oracle else trials.new_weighing
    fresh = scores_of(recommender, many.requests, many.candidates) if many else None
    few = trials.new_validation
    ranks = [sampled_ranks(recommender.name, trial, scores[kind_of(trial)]) for trial in trials.sampled]
    ranks += whole_catalogue_ranks(recommender, trials)
    system = System(
        kind=ORACLE if is_oracle else ID,
        ranked_by="true probability" if is_oracle else ROSTER[recommender.name].ranked_by,
        cases=len(trials.main.cases),
        megabytes=None if is_oracle else weights_mb(baselines / recommender.name),
        validation=mean_metrics(sampled_ranks(recommender.name, trials.validation, validation)),
        artifacts={} if is_oracle else recommender_artifacts(baselines / recommender.name),
        digests=digests_of(trials),
    )
    spent = per_thousand(sampled, len(trials.main.cases))
    return Measured(
        ranks, system, scores, validation, None if is_oracle else tuning, per_thousand=spent,
        new_validation=fresh[: len(few.cases)] if fresh is not None and few else None, new_weighing=fresh,
    )  # fmt: skip


def whole_catalogue_ranks(recommender: Ranker, trials: Trials) -> list[SystemRanks]:
    """Ranks in the whole catalogue by every score, on all test cases and on the few that language models share."""
    every = [rank_catalogue(recommender, trial) for trial in trials.full]
    return every + [rank_catalogue(recommender, trial, trials.depth) for trial in trials.whole]


def fuse_systems(
    measured: Mapping[str, Measured],
    spent: Mapping[str, float | None],
    trials: Trials,
    *,
    told: Mapping[str, float] | None = None,
    offset: float | None = None,
    random_model: bool = False,
) -> tuple[Measured, Fusion]:
    """Every ID recommender and the best trained language model in one ranking; no model scores anything again.

    spent: seconds per thousand cases by system, None where they are not known; told: weights among new items where no
    hidden validation cases fit them; offset: as in `Fusion`.
    random_model: the language model's base knows no language, so its weight is 0: what a few cases would give it is
    chance.
    """
    systems = {name: own.system for name, own in measured.items()}
    trained = [name for name, own in systems.items() if own.kind == LLM and name != UNTRAINED]
    fusion = Fusion.fit(
        {name: own.weighing for name, own in measured.items() if own.weighing is not None}, trials.weighing.judged
    )
    llm = best_by_validation(systems, trained)
    if llm is not None and random_model:
        fusion = Fusion({**fusion.weights, llm: 0.0})
    elif llm is not None:
        tuning = {name: measured[name].validation for name in [*fusion.weights, llm]}
        fusion = fusion.joined(llm, tuning, trials.validation.judged)
    new = _fusion_of_new_items(measured, fusion, None if random_model else llm, trials, told or {})
    fusion = Fusion(fusion.weights, new, offset if new else None)
    scores = {
        kind_of(trial): fusion.scores(
            {name: measured[name].scores[kind_of(trial)] for name in fusion.weights}, trials.new(trial)
        )
        for trial in trials.sampled
        if all(kind_of(trial) in measured[name].scores for name in fusion.weights)
    }
    validation = fusion.scores({name: measured[name].validation for name in fusion.weights})
    system = System(
        kind=FUSION,
        ranked_by=fusion.sentence,
        weights={name: round(weight, 6) for name, weight in fusion.weights.items()},
        new_weights={name: round(weight, 6) for name, weight in new.weights.items()} if new else {},
        cases=len(trials.main.cases),
        megabytes=total(systems[name].megabytes for name in fusion.asked),
        # the weights were fitted on these
        validation=mean_metrics(sampled_ranks(FUSION, trials.validation, validation)),
    )
    by_model = measured[llm].injected if llm else {}
    injected = {place: _fused_injected(fusion, measured, str(llm), own, trials) for place, own in by_model.items()}
    few, many = len(trials.validation.cases), len(trials.weighing.cases)
    log.info("fusion: %s, fitted on %d validation cases, the language model on %d", fusion.sentence, many, few)
    ranked = [trial for trial in trials.sampled if kind_of(trial) in scores]
    ranks = [sampled_ranks(FUSION, trial, scores[kind_of(trial)]) for trial in ranked]
    took = total(spent[name] for name in fusion.asked)
    return Measured(ranks, system, scores, validation, per_thousand=took, injected=injected), fusion


def _fused_injected(fusion: Fusion, measured: Mapping[str, Measured], llm: str, told: Floats, trials: Trials) -> Floats:
    """[few, C] fused scores of the first test cases where the language model scores them with a text in a title `told`.

    The other parts read no titles, or (content) those of before: nobody encodes the text for them.
    """
    first = trials.main.part(0, len(told))
    parts = {name: measured[name].scores[kind_of(first)][: len(told)] for name in fusion.weights if name != llm}
    return fusion.scores(parts | ({llm: told} if llm in fusion.weights else {}), trials.new(first))


def _fusion_of_new_items(
    measured: Mapping[str, Measured], known: Fusion, llm: str | None, trials: Trials, told: Mapping[str, float]
) -> Fusion | None:
    """The weights among new items, as those of the known ones are fitted, on the hidden validation cases.

    Where there are none: the weights that params tell, else the parts that read new items alone, all alike, else None:
    new items are ranked as all others are. Raises RecalignError where told weights name no part.
    """
    names = list(known.weights)
    if trials.new_weighing:
        ids = {name: scores for name in names if (scores := measured[name].new_weighing) is not None}
        # one that scores all new items alike has nothing to say; the minimiser would leave it a millionth of a weight
        telling = {name: scores for name, scores in ids.items() if standardised(scores).any()}
        new = Fusion.fit(telling or ids, trials.new_weighing.judged)
        asked = [*new.weights, *([llm] if llm else [])]
        few = {name: scores for name in asked if (scores := measured[name].new_validation) is not None}
        if llm in few and trials.new_validation:
            new = new.joined(llm, few, trials.new_validation.judged)
        log.info("fusion: new items by %s, fitted on %d hidden cases", new.sentence, len(trials.new_weighing.cases))
        return Fusion({name: new.weights.get(name, 0.0) for name in names})
    if told:
        strange = [name for name in told if name not in names]
        if strange:
            raise RecalignError(
                f"evaluate.new_item_weights names {strange[0]!r}, which is no part of the fusion; it has "
                f"{', '.join(names)}"
            )
        return Fusion({name: told.get(name, 0.0) for name in names})
    reading = [name for name in names if name in ROSTER and ROSTER[name].reads_new]
    if not reading:
        return None
    log.info(
        "fusion: no validation case asks for a hidden item (prepare.hidden_items), so new items are ranked by %s, with "
        "equal weight",
        " and ".join(reading),
    )
    return Fusion({name: float(name in reading) for name in names})


def fitted_fusion(fusion: Fusion, trials: Trials, baselines: Path, adapters: Mapping[str, Path | None]) -> FittedFusion:
    """The fusion with the digests of its parts, as fusion.json keeps it. adapters: folder by language model."""
    digests = {
        name: adapter_digest(folder) if (folder := adapters.get(name)) else folder_digest(baselines / name)
        for name in fusion.weights
    }
    return FittedFusion(
        parts={
            name: Part(weight=weight, digest=digests[name], new_weight=fusion.new.weights[name] if fusion.new else None)
            for name, weight in fusion.weights.items()
        },
        language_model=next(name for name in fusion.weights if name in adapters),
        manifest=UNIFORM,
        manifest_digest=trials.validation.digest,
        cases=len(trials.validation.cases),
        recommender_cases=len(trials.weighing.cases),
        cold_events=trials.cold_events if fusion.new else None,
        new_cases=len(trials.new_validation.cases) if trials.new_validation else 0,
        new_recommender_cases=len(trials.new_weighing.cases) if trials.new_weighing else 0,
        offset=fusion.offset,
    )

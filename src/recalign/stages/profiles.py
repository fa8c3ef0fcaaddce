"""Stage profiles: what each user likes, inferred from the history before the split's cutoff."""

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from recalign.common import columns as c
from recalign.common.artifacts import folder, write_json, write_parquet
from recalign.data.prepared import Prepared
from recalign.data.records import Items
from recalign.data.simulator import read_tastes
from recalign.llm.model.base import LanguageModel, load_language_model
from recalign.params.load import Params
from recalign.preferences.inference.engines import can_tell, count, open_engine
from recalign.preferences.inference.truth import score_profiles, truth_lines
from recalign.preferences.profiles.profiles import (
    COUNTING,
    Known,
    Profile,
    Statement,
    closed_statements,
    profiles_table,
    read_known,
)
from recalign.preferences.profiles.selection import profile_users
from recalign.project import Project

log = logging.getLogger(__name__)
SPLITS = (c.TRAIN, c.VALIDATION, c.TEST)


def profiles(params: Params, project: Project = Project()) -> None:
    """Write `out`/profiles.parquet: whoever prompts or pairs need, by params.profiles.engine and by counting.

    Those are all users that appear where prompts show profiles or pairs draw by them, and params.profiles.users a split
    in any case. Where `interactions` holds planted tastes (truth.parquet), truth.json beside it scores both engines
    against them. `store` keeps the model's answers, so that a rerun or a killed run infers only what is missing.
    Raises RecalignError when an input is missing, too few users can have a profile, or the endpoint fails.
    """
    items = Items.read(project.prepared)
    summary = Prepared(project.prepared)
    known = {split: read_known(project.prepared, split, params.seed) for split in SPLITS}
    statements = {split: closed_statements(items.shown, own.counts, summary.noun) for split, own in known.items()}
    chosen = _users(params, project.prepared, known, statements)

    def load_model() -> LanguageModel:
        return load_language_model(project.base, params.base, threads=params.threads)

    infer = open_engine(
        params.profiles, items, summary.noun, load_model, project.cache / "profiles", clock=summary.clock
    )
    made: list[Profile] = []
    for split in SPLITS:
        histories = known[split].histories(chosen[split])
        made += count(histories, statements[split], params.profiles.claims)
        if params.profiles.engine != COUNTING:
            made += infer(histories, statements[split])
    cutoffs = {split: own.cutoff for split, own in known.items() if own.cutoff is not None}
    with folder(project.profiles) as partial:
        write_parquet(partial / "profiles.parquet", profiles_table(made))
        _write_truth(made, project.interactions / "truth.parquet", cutoffs, partial)
    own = [profile for profile in made if profile.engine == params.profiles.engine]
    log.info(
        "profiles: %d users by %s, %d of them with something to say, %d claims",
        len(own),
        params.profiles.engine,
        sum(bool(profile.text) for profile in own),
        sum(len(profile.claims) for profile in own),
    )


def _users(
    params: Params, prepared: Path, known: Mapping[str, Known], statements: Mapping[str, Sequence[Statement]]
) -> dict[str, list[int]]:
    """Whose profile is made, by split: the users that are needed, and the first of the split in any case."""
    answers: dict[tuple[str, int], bool] = {}

    def told(split: str, user: int) -> bool:
        if (split, user) not in answers:
            history = known[split].history(user)
            answers[split, user] = can_tell(params.profiles.engine, statements[split], history)
        return answers[split, user]

    needed = profile_users(params, prepared, told)
    chosen = {
        split: list(dict.fromkeys([*own.present[: params.profiles.users], *needed[split]]))
        for split, own in known.items()
    }
    if any(needed.values()):
        counts = ", ".join(f"{split} {len(own)}" for split, own in chosen.items())
        log.info("profiles: prompts or pairs read them, so whoever appears there gets one: %s users", counts)
    return chosen


def _write_truth(made: Sequence[Profile], truth: Path, cutoffs: Mapping[str, datetime], out: Path) -> None:
    if not truth.is_file() or not cutoffs:
        return
    scores = score_profiles(made, read_tastes(truth), cutoffs)
    write_json(out / "truth.json", scores)
    log.info("claims against the planted tastes:\n%s", "\n".join(truth_lines(scores)))

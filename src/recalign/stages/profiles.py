"""Stage profiles: what each user likes, inferred from the history before the split's cutoff."""

import logging
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from recalign import columns as c
from recalign.artifacts import folder, read_json, write_json, write_parquet
from recalign.data.records import Items
from recalign.data.simulator import read_tastes
from recalign.layout import BASE, CACHE, INTERACTIONS, PREPARED, PROFILES
from recalign.params import Params
from recalign.preferences.counting import strongest_lifts
from recalign.preferences.histories import Histories, read_histories
from recalign.preferences.profiles import COUNTING, Engine, Profile, make_profile, profiles_table
from recalign.preferences.statements import Statement, closed_statements, stated_in
from recalign.preferences.truth import score_profiles, truth_lines

log = logging.getLogger(__name__)
SPLITS = (c.TRAIN, c.VALIDATION, c.TEST)
Inference = Callable[[Histories, Sequence[Statement]], list[Profile]]


def profiles(
    params: Params,
    prepared: Path = PREPARED,
    base: Path = BASE,
    interactions: Path = INTERACTIONS,
    out: Path = PROFILES,
    store: Path = CACHE / "profiles",
) -> None:
    """Write `out`/profiles.parquet: params.profiles.users users a split, by params.profiles.engine and by counting.

    Where `interactions` holds planted tastes (truth.parquet), truth.json beside it scores both against them. `store`
    keeps the model's answers, so that a rerun or a killed run infers only what is missing.
    Raises RecalignError when an input is missing or the endpoint fails.
    """
    items = Items.read(prepared)
    noun = read_json(prepared / "summary.json")["noun"]
    infer = _inference(params, items, noun, prepared, base, store)
    made: list[Profile] = []
    cutoffs: dict[str, datetime] = {}
    for split in SPLITS:
        histories = read_histories(prepared, split, params.profiles.users, params.seed)
        statements = closed_statements(items, histories.counts, noun)
        made += _counted(histories, statements, params.profiles.claims)
        made += infer(histories, statements)
        if histories.cutoff is not None:
            cutoffs[split] = histories.cutoff
    with folder(out) as partial:
        write_parquet(partial / "profiles.parquet", profiles_table(made))
        truth = interactions / "truth.parquet"
        if truth.is_file() and cutoffs:
            scores = score_profiles(made, read_tastes(truth), cutoffs)
            write_json(partial / "truth.json", scores)
            log.info("claims against the planted tastes:\n%s", "\n".join(truth_lines(scores)))
    own = [profile for profile in made if profile.engine == params.profiles.engine]
    log.info(
        "profiles: %d users by %s, %d of them with something to say, %d claims",
        len(own),
        params.profiles.engine,
        sum(bool(profile.text) for profile in own),
        sum(len(profile.claims) for profile in own),
    )


def _inference(params: Params, items: Items, noun: str, prepared: Path, base: Path, store: Path) -> Inference:
    """How the engine in params makes profiles; nothing beside counting for the engine `counting`."""
    engine = params.profiles.engine
    clock = read_json(prepared / "summary.json")["clock"]
    match engine:
        case "counting":
            return lambda histories, statements: []
        case "statements":
            return _by_statements(params, items, noun, base, store / engine)
        case "generate" | "endpoint":
            return _by_texts(params, items, noun, clock, base, store / engine)


def _by_statements(params: Params, items: Items, noun: str, base: Path, store: Path) -> Inference:
    from recalign.llm.base import load_language_model
    from recalign.preferences.scored import StatementScorer

    if not any(items.attributes.values()):
        log.warning(
            "the catalogue has no attributes, so profiles.engine 'statements' has nothing to state and every profile "
            "is empty; set profiles.engine to generate or endpoint for free text"
        )
        return lambda histories, statements: [
            make_profile(Engine("statements"), histories.split, user, history, [])
            for user, history in histories.of.items()
        ]
    model = load_language_model(base, params.base, threads=params.threads)
    scorer = StatementScorer(model, items, noun)

    def infer(histories: Histories, statements: Sequence[Statement]) -> list[Profile]:
        options = params.profiles
        claims = scorer.claims(statements, histories.of, options.claims, store=store, batch=options.batch)
        return [
            make_profile(scorer.engine, histories.split, user, history, claims[user])
            for user, history in histories.of.items()
        ]

    return infer


def _by_texts(params: Params, items: Items, noun: str, clock: bool, base: Path, store: Path) -> Inference:
    from recalign.llm.base import load_language_model
    from recalign.preferences.texts import local_writer, remote_writer

    if params.profiles.engine == "endpoint":
        writer = remote_writer(params.profiles, items, noun, clock=clock)
    else:
        model = load_language_model(base, params.base, threads=params.threads)
        writer = local_writer(model, params.profiles, items, noun, clock=clock)

    def infer(histories: Histories, statements: Sequence[Statement]) -> list[Profile]:
        texts = writer.texts(histories.of, store=store, batch=params.profiles.batch)
        return [
            make_profile(
                writer.engine,
                histories.split,
                user,
                history,
                [(statement, None) for statement in stated_in(texts[user], statements)],
                texts[user],
            )
            for user, history in histories.of.items()
        ]

    return infer


def _counted(histories: Histories, statements: Sequence[Statement], limit: int) -> list[Profile]:
    return [
        make_profile(Engine(COUNTING), histories.split, user, history, strongest_lifts(statements, history, limit))
        for user, history in histories.of.items()
    ]

"""The engines that infer profiles, opened alike by the stage that makes profiles and by the service that shows them."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from recalign.data.records import Items
from recalign.llm.base import LanguageModel
from recalign.params.profiles import ProfilesParams
from recalign.preferences.profiles.histories import Histories
from recalign.preferences.profiles.profiles import COUNTING, Engine, Profile, make_profile
from recalign.preferences.profiles.scored import StatementScorer, shortlist
from recalign.preferences.profiles.statements import Statement, stated_in, strongest_lifts
from recalign.preferences.profiles.texts import TextWriter, local_writer, remote_writer

log = logging.getLogger(__name__)
Inference = Callable[[Histories, Sequence[Statement]], list[Profile]]


def open_engine(
    params: ProfilesParams,
    items: Items,
    noun: str,
    load_model: Callable[[], LanguageModel],
    store: Path | None,
    *,
    clock: bool,
) -> Inference:
    """How the engine in params makes a profile of each history.

    load_model: the base without an adapter, loaded where the engine asks it; store: folder of answers from before, None
    to keep none.
    Raises RecalignError where the endpoint has no model's name.
    """
    match params.engine:
        case "counting":
            return lambda histories, statements: count(histories, statements, params.claims)
        case "statements":
            return _by_statements(params, items, noun, load_model, store and store / params.engine)
        case "generate":
            writer = local_writer(load_model(), params, items, noun, clock=clock)
            return _by_texts(writer, params.batch, store and store / params.engine)
        case "endpoint":
            writer = remote_writer(params, items, noun, clock=clock)
            return _by_texts(writer, params.batch, store and store / params.engine)


def can_tell(engine: str, statements: Sequence[Statement], history: Sequence[int]) -> bool:
    """Whether an engine will have something to say of a history, known without asking a model."""
    if engine == COUNTING:
        return bool(strongest_lifts(statements, history, 1))
    if engine == "statements":
        return bool(shortlist(statements, history))
    return bool(history)


def count(histories: Histories, statements: Sequence[Statement], limit: int) -> list[Profile]:
    """Each user's profile by counting."""
    return [
        make_profile(Engine(COUNTING), histories.split, user, history, strongest_lifts(statements, history, limit))
        for user, history in histories.of.items()
    ]


def _by_statements(
    params: ProfilesParams, items: Items, noun: str, load_model: Callable[[], LanguageModel], store: Path | None
) -> Inference:
    if not any(items.attributes.values()):
        log.warning(
            "the catalogue has no attributes, so profiles.engine 'statements' has nothing to state and every profile "
            "is empty; set profiles.engine to generate or endpoint for free text"
        )
        return lambda histories, statements: [
            make_profile(Engine("statements"), histories.split, user, history, [])
            for user, history in histories.of.items()
        ]
    scorer = StatementScorer(load_model(), items, noun)

    def infer(histories: Histories, statements: Sequence[Statement]) -> list[Profile]:
        claims = scorer.claims(statements, histories.of, params.claims, store=store, batch=params.batch)
        return [
            make_profile(scorer.engine, histories.split, user, history, claims[user])
            for user, history in histories.of.items()
        ]

    return infer


def _by_texts(writer: TextWriter, batch: int, store: Path | None) -> Inference:
    def infer(histories: Histories, statements: Sequence[Statement]) -> list[Profile]:
        texts = writer.texts(histories.of, store=store, batch=batch)
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

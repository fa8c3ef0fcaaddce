"""Command explain: what a sequence recommender's state holds of a user, read by a frozen language model in words.

With DreamRec fitted, what it would ideally show next, too: the vector that it generates, in words.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict, cast

from recalign.commands.recommend import user_history
from recalign.common import columns as c
from recalign.common.artifacts import digest_of, folder, folder_digest
from recalign.common.console import print_json
from recalign.common.errors import RecalignError, did_you_mean
from recalign.data.ids import RawIds
from recalign.data.prepared import Prepared
from recalign.data.records import Example, Items, hashed_order
from recalign.hybrid.llara import SEQUENCES
from recalign.hybrid.modality import Origin, load_modality, save_modality
from recalign.hybrid.rec_interpreter import (
    Interpreter,
    Question,
    Reading,
    StatePrompts,
    item_readings,
    oracle_readings,
    recovered,
    recovery,
)
from recalign.llm.model.base import LanguageModel, load_language_model
from recalign.params.load import Params
from recalign.preferences.profiles.selection import nobody, sft_examples
from recalign.project import Project
from recalign.recommenders.neural.dreamrec import DreamRec
from recalign.recommenders.neural.encoders import EncoderName
from recalign.recommenders.neural.sequential import Sequential
from recalign.recommenders.roster import fitted_on, refusal

log = logging.getLogger(__name__)
DREAMREC = "dreamrec"
HELD_OUT = 10  # of item readings: every tenth is looked at for the best step


class Explained(TypedDict):
    """What --json tells. read: lines of the frozen model; oracle: what DreamRec generates, None where it has no fit."""

    user: str
    teacher: str
    history: list[str]
    read: list[str]
    recovered: int
    oracle: str | None


def explain(
    params: Params, user: str, teacher: str | None = None, *, as_json: bool = False, project: Project = Project()
) -> None:  # fmt: skip
    """Print the history that a frozen language model reads off a recommender's state of this user, and what is right.

    The first call trains the adapter that reads, with the settings of `sft`; later ones take it from data/cache.
    Raises RecalignError for an unknown user, or where no sequence recommender is fitted.
    """
    catalogue = Items.read(project.prepared)
    history = user_history(project.prepared, user, RawIds.of_users(project.interactions))
    name = _teacher(teacher, project.baselines)
    folder = project.baselines / name
    recommender = Sequential.load(cast(EncoderName, name), folder, fitted_on(name, folder, catalogue))
    asked = recovery(recommender, [Example("user", 0, c.TEST, None, tuple(history), history[-1])])
    if not asked:
        raise RecalignError(f"--user is {user}, and '{name}' knows none of the {len(history)} items that are liked")
    lm = load_language_model(project.base, params.base, seed=params.seed, threads=params.threads)
    interpreter = _interpreter(params, project, catalogue, lm, name, "recovery", recommender)
    written = interpreter.titles(asked[0])
    right = {catalogue.titles[item] for item in recovered(written, asked[0], catalogue)}
    answer: Explained = {
        "user": user,
        "teacher": name,
        "history": [catalogue.titles[item] for item in asked[0].items],
        "read": written,
        "recovered": len(right),
        "oracle": _oracle(params, project, catalogue, lm, history),
    }
    if as_json:
        print_json(answer)
    else:
        _print(answer, right)


def _teacher(named: str | None, baselines: Path) -> str:
    fitted = [name for name in SEQUENCES if (baselines / name).is_dir() and refusal(baselines / name) is None]
    if named is not None and named not in SEQUENCES:
        raise RecalignError(
            f"--teacher is '{named}'; allowed are {', '.join(SEQUENCES)}{did_you_mean(named, SEQUENCES)}"
        )
    if not fitted or (named is not None and named not in fitted):
        wanted = named or SEQUENCES[0]
        raise RecalignError(
            f"no state can be read: '{wanted}' is not fitted; put it into recommenders.systems and run "
            f"'dvc repro baselines@{wanted}'"
        )
    return named or fitted[0]


def _oracle(
    params: Params, project: Project, catalogue: Items, lm: LanguageModel, history: Sequence[int]
) -> str | None:
    """What DreamRec generates after the history, in words; None where it is not fitted."""
    place = project.baselines / DREAMREC
    if not place.is_dir() or refusal(place) is not None:
        return None
    recommender = DreamRec.load(place, catalogue.trained)
    interpreter = _interpreter(params, project, catalogue, lm, DREAMREC, "item", recommender)
    written = interpreter.titles(oracle_readings(recommender, [tuple(history)])[0], most=1)
    return written[0] if written else None


def _interpreter(
    params: Params, project: Project, catalogue: Items, lm: LanguageModel, name: str, question: Question,
    recommender: Sequential | DreamRec,
) -> Interpreter:  # fmt: skip
    """The one that reads this recommender, trained where the cache does not hold it; lm, frozen, is left as it was."""
    summary = Prepared(project.prepared)
    prompts = StatePrompts(lm.tokenizer, catalogue, params.prompt, summary.noun, clock=summary.clock)
    source = recommender if isinstance(recommender, Sequential) else recommender.condition
    interpreter = Interpreter(lm, prompts, question, source.settings.dimension, seed=params.seed)
    titles = [catalogue.titles[item] for item in catalogue.ids]
    origin = Origin(name, folder_digest(project.baselines / name), digest_of([catalogue.ids, titles]))
    learned_from = [origin.teacher_digest, origin.order_digest, lm.digest, question, params.sft.model_dump()]
    key = digest_of([*learned_from, params.seed, params.threads, prompts.digest])[:16]
    cache = project.cache
    kept = cache / "interpreters" / f"{name}-{question}-{key}"
    if kept.is_dir():
        interpreter.adapter = load_modality(kept, origin).requires_grad_(False)
        return interpreter
    log.info("an adapter learns to read %s (%s), once; it is kept in %s", name, question, kept)
    readings, held_out = _readings(params, project, recommender)
    interpreter.train(
        readings, held_out, params.sft, seed=params.seed, checkpoints=cache / "checkpoints", notes=project.costs
    )
    interpreter.adapter.requires_grad_(False)  # the next one wants a frozen model
    with folder(kept) as partial:
        save_modality(interpreter.adapter, origin, partial)
    return interpreter


def _readings(
    params: Params, project: Project, recommender: Sequential | DreamRec
) -> tuple[list[Reading], list[Reading]]:
    """What is learned from, and what the best step is chosen on: histories of train and of validation. Items are a
    closed set, so every one is learned, and the step is chosen on some of them."""
    if isinstance(recommender, DreamRec):
        every = item_readings(recommender)
        ordered = sorted(every, key=lambda reading: hashed_order(params.seed, reading.name))
        return every, ordered[: max(1, len(ordered) // HELD_OUT)]
    chosen = {split: sft_examples(params, project.prepared, split, nobody) for split in (c.TRAIN, c.VALIDATION)}
    return recovery(recommender, chosen[c.TRAIN]), recovery(recommender, chosen[c.VALIDATION])


def _print(answer: Explained, right: set[str]) -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False)
    history, cleaned = answer["history"], {title.casefold() for title in right}
    console.print(f"Liked, oldest first: {escape(', '.join(history))}")
    console.print(f"Read off the state of {answer['teacher']}, by a frozen language model:")
    for line in answer["read"]:
        console.print(f"  {'✓' if line.casefold() in cleaned else ' '} {escape(line)}")
    console.print(f"{answer['recovered']} of {len(history)} titles are recovered, whole and by name.")
    if answer["oracle"]:
        console.print(f"What {DREAMREC} generates as the ideal next item, in words: {escape(answer['oracle'])}")
    console.print("Reading accuracy: these items are inside the state that is read. It recommends nothing.")

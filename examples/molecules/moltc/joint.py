"""One model for two projects of pairs, such as interactions and solvation: joint against separate training.

MolTC's abstract claims "dynamic parameter sharing", and no released code has it. So this is a reconstruction of its
plain part: graph network, queries, adapter and LoRA are shared, every batch mixes the pairs of both, and each pair asks
its own project's question. A number's head is the one part that belongs to one of them.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from moltc import project, report
from moltc.examples import NumberExample, answer_examples, number_examples
from moltc.params import PARAMS, Params, load_params
from moltc.predictions import predict
from moltc.prepared import PairSet
from moltc.prompts import PairPrompts
from moltc.training import (
    NumberTraining,
    Opened,
    finished,
    open_model,
    run_training,
    stage_facts,
    subset,
)
from recalign.common import columns as c
from recalign.common.artifacts import read_json
from recalign.common.errors import RecalignError
from recalign.training.examples import TextExample
from recalign.training.loop import Measured, Task
from recalign.training.sft import LanguageModelling

log = logging.getLogger(__name__)
PairExample = NumberExample | TextExample
JOINT = "joint"


@dataclass(frozen=True)
class Side:
    """A project of pairs: its params, its pairs, and its folder."""

    params: Params
    pairs: PairSet
    root: Path

    @classmethod
    def read(cls, params: Params, root: Path) -> "Side":
        """The pairs that lie in a project's folder."""
        return cls(params, PairSet.read(root / project.PREPARED), root)

    @property
    def by_head(self) -> bool:
        """Whether its answers are numbers of the head."""
        return self.pairs.kind == "number" and self.params.prompt.number == "head"


def both_sides(params: Params, root: Path) -> tuple[Side, Side]:
    """The project in `root`, and the one that params.joint names, which has to be prepared.

    Raises RecalignError where none is named, it is not prepared, its graph or base is another, or both need the head.
    """
    if params.joint is None:
        raise RecalignError("joint is null in params.yaml; name the folder of another molecules project")
    place = root / params.joint
    if not (place / project.PREPARED).is_dir():
        raise RecalignError(f"joint names {params.joint}, which is not prepared; run 'python -m moltc prepare' there")
    own, other = Side.read(params, root), Side.read(load_params(place / PARAMS), place)
    for key in ("graph", "base"):
        here, there = getattr(own.params, key), getattr(other.params, key)
        if here != there:
            raise RecalignError(f"{key} is {there} in {params.joint} and {here} here; joint training needs one model")
    if own.by_head and other.by_head:
        raise RecalignError(f"both projects ask the head for numbers; set prompt.number to text in {params.joint}")
    return own, other


def opened_jointly(sides: tuple[Side, Side], place: Path | None, *, trainable: bool = False) -> tuple[Opened, Opened]:
    """The model over the molecules of both sides, with each side's own prompts; place: as of `open_model`."""
    own, other = sides
    shared = replace(own.pairs, molecules=tuple(dict.fromkeys(own.pairs.molecules + other.pairs.molecules)))
    first = open_model(own.params, shared, own.root / project.BASE, place, trainable=trainable)
    number = {smiles: place for place, smiles in enumerate(shared.molecules)}
    theirs, ids = other.pairs.molecules, first.vectors.ids
    prompts = PairPrompts(
        first.lm.tokenizer, theirs, other.pairs.answers, other.params.prompt, lambda m: ids(number[theirs[m]])
    )
    return first, replace(first, prompts=prompts)


class JointTraining:
    """Numbers of the head and answers in words in one batch, each kind's mean loss by its share of the batch."""

    name = JOINT

    def __init__(self, numbers: NumberTraining, texts: LanguageModelling) -> None:
        self._numbers, self._texts = numbers, texts

    def tokens_at_once(self, examples: Sequence[PairExample]) -> int:
        """Of both kinds, which are read one after the other."""
        numbers, texts = _apart(examples)
        read = self._numbers.tokens_at_once(numbers) if numbers else 0
        return read + (self._texts.tokens_at_once(texts) if texts else 0)

    def losses(self, parts: Sequence[Sequence[PairExample]]) -> Iterator[Measured]:
        """Each part's share of the batch's loss, of either kind."""
        apart = [_apart(part) for part in parts]
        numbers = [own for own, _ in apart if own]
        texts = [own for _, own in apart if own]
        total = sum(map(len, parts))
        for found in self._numbers.losses(numbers) if numbers else ():
            yield Measured(found.part, found.loss * (sum(map(len, numbers)) / total), found.sums)
        for found in self._texts.losses(texts) if texts else ():
            yield Measured(len(numbers) + found.part, found.loss * (sum(map(len, texts)) / total), found.sums)

    def start(self) -> dict[str, float]:
        """As `validate`."""
        return self.validate()

    def validate(self) -> dict[str, float]:
        """validation_loss: the sum of both."""
        return {"validation_loss": sum(t.validate()["validation_loss"] for t in (self._numbers, self._texts))}

    def state_dict(self) -> dict[str, float]:
        """Nothing: the weights are all."""
        return {}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Nothing to take over."""


def _apart(examples: Sequence[PairExample]) -> tuple[list[NumberExample], list[TextExample]]:
    numbers = [each for each in examples if isinstance(each, NumberExample)]
    return numbers, [each for each in examples if isinstance(each, TextExample)]


def train_jointly(sides: tuple[Side, Side], out: Path) -> None:
    """Train one model on the subsets of both sides with the settings of `interact`, from this project's stage 1."""
    own, root = sides[0], sides[0].root
    opened = opened_jointly(sides, root / project.DESCRIBED, trainable=True)
    read: dict[str, list[PairExample]] = {c.TRAIN: [], c.VALIDATION: []}
    opened[0].vectors.head.requires_grad_(any(side.by_head for side in sides))
    for place, (side, model) in enumerate(zip(sides, opened, strict=True)):
        if side.by_head:
            model.vectors.scale_to(subset(side.params, side.pairs, c.TRAIN).labels)
        for split, examples in read.items():
            pairs = subset(side.params, side.pairs, split)
            found: Sequence[PairExample] = number_examples(pairs, model.prompts) if side.by_head else answer_examples(
                pairs, model.prompts, side.params.seed)  # fmt: skip
            examples += [replace(each, example_id=f"{place}|{each.example_id}") for each in found]  # both may have it
    model = opened[0]
    micro = own.params.interact.micro_tokens
    numbers, texts = _apart(read[c.VALIDATION])
    task: Task[PairExample]
    words = LanguageModelling(model.lm.model, texts, micro)
    words.name = JOINT
    if numbers:
        task = JointTraining(NumberTraining(model.lm.model, model.vectors, numbers, micro), words)
    else:
        task = words  # type: ignore[assignment]
    result = run_training(own.params, own.params.interact, model, task, read[c.TRAIN], root)
    facts = stage_facts(own.params, JOINT, own.pairs, model, len(read[c.TRAIN]))
    finished(model, result, facts | {"with": sides[1].pairs.digest}, root, out)


def evaluated_jointly(
    params: Params, root: Path, views: Mapping[str, PairSet], systems: report.Systems, mean: float
) -> dict[str, Any]:
    """Add the jointly trained model to the systems, where there is one; its figures on the other project's pairs, next
    to those of the model that learned these alone, where that is trained.

    mean: of this project's training labels, used where a text has no number.
    """
    trained = root / project.JOINT / "training.json"
    if params.joint is None or not trained.is_file():
        return {}
    own, other = both_sides(params, root)
    facts = read_json(trained)
    if (facts["data_digest"], facts["with"]) != (own.pairs.digest, other.pairs.digest):
        log.warning("%s learned other pairs, so it is left out; 'python -m moltc joint' trains it anew", trained.parent)
        return {}
    here, there = opened_jointly((own, other), root / project.JOINT)
    systems[report.JOINTLY] = {view: predict(params, here, pairs, mean).values for view, pairs in views.items()}
    theirs = report.test_views(other.params, other.pairs)
    middle = float(subset(other.params, other.pairs, c.TRAIN).labels.mean())
    opened = {report.JOINTLY: there}
    if (other.root / project.INTERACTING / "training.json").is_file():
        place = other.root / project.INTERACTING
        opened[report.GRAPHS] = open_model(other.params, other.pairs, other.root / project.BASE, place)
    found = {
        name: {view: predict(other.params, model, pairs, middle).values for view, pairs in theirs.items()}
        for name, model in opened.items()
    }
    return report.Figures(other.params, theirs, found).metrics()

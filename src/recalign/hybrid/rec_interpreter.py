"""RecInterpreter (arXiv 2310.20487): can a frozen language model read a recommender's state? Only an adapter learns.

Three questions are asked, each with an adapter of its own:

recovery   one state of a whole history; the answer is its titles, oldest first
residual   the states before and after one more item; the answer is that item's title. No code of it was ever released,
           so the wording is a reconstruction from the paper's description
item       one item vector; the answer is its title. DreamRec generates such a vector of what comes next

Apart from the paper's code: an adapter of two layers over the last state, where the code's convolution also learns a
weight for each place of padding; every title of the answer is learned, where the code cuts it at 32 tokens; titles are
compared whole after cleaning, where it takes them for regular expressions.

What is reached is reading accuracy: the item asked for is inside the state that is read. It is no recommendation, and
stays out of scorecard, fusion and registry.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from recalign.common.artifacts import digest_of
from recalign.common.errors import RecalignError
from recalign.data.records import Example, Items
from recalign.data.titles import safe_title
from recalign.evaluation.metrics import Floats
from recalign.hybrid.modality import ModalityAdapter, embedding_std
from recalign.hybrid.prompts import Projected, attach, soft_id
from recalign.llm.model.base import LanguageModel
from recalign.llm.prompts import PromptBuilder
from recalign.llm.scoring.branches import PROMPT_END, Branches
from recalign.llm.scoring.logprobs import response_logprobs
from recalign.params.sft import SftParams
from recalign.recommenders.neural.sequential import Sequential
from recalign.recommenders.recommender import own_seed
from recalign.training.examples import TextExample
from recalign.training.loop import Passes, TrainingResult, train
from recalign.training.results import Checkpoints
from recalign.training.sft import LanguageModelling

if TYPE_CHECKING:
    from recalign.recommenders.neural.dreamrec import DreamRec

Question = Literal["recovery", "residual", "item"]
ASKED: dict[Question, tuple[int, str, str]] = {  # vectors, and the lines before and after them
    "recovery": (1, "What a recommender knows of one person:", "What this person liked, oldest first:"),
    "residual": (2, "What a recommender knows of one person, before and after one more:", "What was added:"),
    "item": (1, "What a recommender knows of one of them:", "Its title:"),
}
RECOVERED = 10  # most recent titles that recovery asks for, as the paper's sequences have
AT_ONCE = 16  # readings in one forward pass
RIDGE = 1.0  # of the linear probe, on standardised states


@dataclass(frozen=True)
class Reading:
    """Vectors [k, d] that are read, and the items that they tell of, oldest first."""

    name: str
    vectors: Tensor
    items: tuple[int, ...]


def recovery(recommender: Sequential, examples: Sequence[Example]) -> list[Reading]:
    """The state after each history, and the titles that it should give back; without a known item it is left out."""
    known = frozenset(recommender.catalogue.ids)
    told = [(e, history) for e in examples if (history := _among(known, e.history))]
    if not told:
        return []
    states = recommender.last([history for _, history in told]).float()
    return [Reading(e.example_id, state[None], history[-RECOVERED:])
            for (e, history), state in zip(told, states, strict=True)]  # fmt: skip


def residual(recommender: Sequential, examples: Sequence[Example]) -> list[Reading]:
    """The states before and after each target; targets that the recommender does not know are left out."""
    known = frozenset(recommender.catalogue.ids)
    told = [(e, _among(known, e.history)) for e in examples if e.target in known]
    if not told:
        return []
    before = recommender.last([history for _, history in told]).float()
    after = recommender.last([(*history, e.target) for e, history in told]).float()
    pairs = torch.stack([before, after], dim=1)
    return [Reading(e.example_id, pair, (e.target,)) for (e, _), pair in zip(told, pairs, strict=True)]


def item_readings(recommender: "DreamRec") -> list[Reading]:
    """The clean embedding of each item that DreamRec learned, and its title."""
    vectors, ids = recommender.clean_embeddings().detach().float(), recommender.catalogue.ids
    return [Reading(f"item {i}", vector[None], (i,)) for i, vector in zip(ids, vectors, strict=True)]


def oracle_readings(recommender: "DreamRec", histories: Sequence[tuple[int, ...]]) -> list[Reading]:
    """What DreamRec generates after each history: nobody knows its item, so `items` is empty."""
    known = frozenset(recommender.catalogue.ids)
    generated = recommender.generated([_among(known, history) for history in histories]).float()
    return [Reading(f"oracle {n}", vector[None], ()) for n, vector in enumerate(generated)]


def _among(known: frozenset[int], history: Sequence[int]) -> tuple[int, ...]:
    return tuple(item for item in history if item in known)


def swapped(readings: Sequence[Reading]) -> list[Reading]:
    """A control: everybody has the vectors of the next one in the list, and keeps the items."""
    others = [*readings[1:], *readings[:1]]
    return [Reading(own.name, other.vectors, own.items) for own, other in zip(readings, others, strict=True)]


def averaged(readings: Sequence[Reading]) -> list[Reading]:
    """A control: everybody has the mean vectors; what is left is what titles are worth by themselves."""
    mean = torch.stack([reading.vectors for reading in readings]).mean(dim=0)
    return [Reading(reading.name, mean, reading.items) for reading in readings]


class StatePrompts(PromptBuilder):
    """Prompts that show vectors and ask for titles; responses are those of every other prompt."""

    def asked(self, question: Question, first: int) -> list[int]:
        """Ids that end where the first title begins; the vectors are numbered from `first`."""
        vectors, before, after = ASKED[question]
        shown = [soft_id(first + number) for number in range(vectors)]
        lines = [self.encode(before), shown, self.encode(after)]
        return self._bos + [token for line in lines for token in line + self._newline]

    def line(self, ids: Sequence[int]) -> str:
        """The title of a line's ids, cleaned as titles are."""
        return safe_title(str(self._tokenizer.decode(list(ids))))

    @property
    def line_end(self) -> int:
        """The token that ends a title."""
        return self._newline[-1]


class Interpreter:
    """A frozen language model with an adapter for one question about one recommender's vectors."""

    def __init__(
        self, lm: LanguageModel, prompts: StatePrompts, question: Question, width: int, *, seed: int = 0
    ) -> None:
        """width: of the vectors. Raises RecalignError where the model has weights that train: it is to be frozen."""
        trained = [name for name, weight in lm.model.named_parameters() if weight.requires_grad]
        if trained:
            raise RecalignError(
                f"RecInterpreter reads by a frozen language model, but {trained[0]} trains; open the base without LoRA"
            )
        self.lm, self.prompts, self.question = lm, prompts, question
        size = lm.model.get_input_embeddings().weight.shape[-1]
        std = embedding_std(lm.model)
        self.adapter = ModalityAdapter(width, size, std=std, seed=own_seed(seed, f"interpreter {question}"))

    def train(
        self, readings: Sequence[Reading], held_out: Sequence[Reading], params: SftParams, *,
        seed: int, checkpoints: Path, notes: Path,
    ) -> TrainingResult:  # fmt: skip
        """Let the adapter learn to give the readings' titles; the step with the best held-out loss stays.

        checkpoints: folder for what survives a kill; notes: as of `train`.
        Raises RecalignError where there is nothing to learn or to look at.
        """
        if not readings or not held_out:
            raise RecalignError(
                f"there are {len(readings)} readings to learn from and {len(held_out)} to look at; both are needed: "
                "the recommender knows too few items of the log, fit it on a longer one"
            )
        examples = self._examples([*readings, *held_out])
        learned, validation = examples[: len(readings)], examples[len(readings) :]
        task = LanguageModelling(self.lm.model, validation, params.micro_tokens)
        digest = digest_of(
            [self.lm.digest, self.question, params.model_dump(), seed]
            + [[e.example_id, e.prompt, e.continuation] for e in examples]
            + [[v.vectors.tolist() for v in [*readings, *held_out]]]
        )
        kept = Checkpoints(checkpoints, f"interpreter-{self.question}", digest)
        self.lm.model.train()
        self.adapter.requires_grad_(True)
        result = train(self.lm.model, task, Passes(learned, params.epochs, seed), params, kept, notes)
        self.lm.model.eval()
        kept.remove()
        return result

    @torch.no_grad()
    def logprobs(self, readings: Sequence[Reading], candidates: Sequence[Sequence[int]]) -> Floats:
        """[B, C] log-probs of the candidates' titles, after what each reading shows."""
        prompts = self._prompts(readings)
        rows = []
        for start in range(0, len(prompts), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            responses = [[self.prompts.response(item) for item in items] for items in candidates[part]]
            rows.append(response_logprobs(self.lm.model, prompts[part], responses).sums.double().cpu().numpy())
        return np.concatenate(rows)

    def titles(self, reading: Reading, most: int = RECOVERED, tokens: int = 32) -> list[str]:
        """The lines that the model writes of a reading, greedily; at most so many, each of at most so many tokens."""
        (prompt,) = self._prompts([reading])
        branches = Branches(self.lm.model, [prompt])
        following, parent = branches.first[0], PROMPT_END
        lines: list[list[int]] = [[]]
        while len(lines) <= most:
            token = int(following.argmax())
            if token == self.prompts.line_end or len(lines[-1]) >= tokens:
                token = self.prompts.line_end
                lines.append([])
            else:
                lines[-1].append(token)
            following, parent = branches.grow([token], [parent])[0], len(branches) - 1
        return [line for ids in lines[:-1] if (line := self.prompts.line(ids))]

    def _prompts(self, readings: Sequence[Reading]) -> list[list[int]]:
        """The readings' prompts; their vectors become what the model reads."""
        attach(self.lm.model, Projected(torch.cat([reading.vectors for reading in readings]), self.adapter))
        vectors = ASKED[self.question][0]
        if any(len(reading.vectors) != vectors for reading in readings):
            raise RecalignError(f"the question '{self.question}' reads {vectors} vectors; give as many a reading")
        return [self.prompts.asked(self.question, vectors * number) for number in range(len(readings))]

    def _examples(self, readings: Sequence[Reading]) -> list[TextExample]:
        shown = zip(readings, self._prompts(readings), strict=True)
        return [
            TextExample(reading.name, prompt, [t for item in reading.items for t in self.prompts.response(item)])
            for reading, prompt in shown
        ]


def recovered(written: Sequence[str], reading: Reading, catalogue: Items) -> list[int]:
    """Items of a reading whose title is among the lines that were written: whole, whatever its case."""
    lines = {line.casefold() for line in written}
    return [item for item in reading.items if safe_title(catalogue.titles[item]).casefold() in lines]


def nearest_scores(recommender: Sequential, readings: Sequence[Reading], candidates: Sequence[Sequence[int]]) -> Floats:
    """[B, C] a ceiling: cosine of each candidate's vector with what the state moved by (after minus before)."""
    moved = torch.stack([reading.vectors[1] - reading.vectors[0] for reading in readings])
    return _cosines(recommender, moved, candidates)


def probe_scores(
    recommender: Sequential, learned: Sequence[Reading], readings: Sequence[Reading],
    candidates: Sequence[Sequence[int]],
) -> Floats:  # fmt: skip
    """[B, C] a ceiling: a linear probe, ridge regression from both states to the item's vector, learned on readings."""
    inputs = torch.stack([reading.vectors.flatten() for reading in learned]).double()
    mean, spread = inputs.mean(0), inputs.std(0).clamp(min=1e-6)
    design = torch.cat([(inputs - mean) / spread, torch.ones(len(inputs), 1, dtype=torch.float64)], dim=1)
    wanted = recommender.item_embedding([reading.items[0] for reading in learned]).double()
    gram = design.T @ design + RIDGE * torch.eye(design.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(gram, design.T @ wanted)
    asked = (torch.stack([reading.vectors.flatten() for reading in readings]).double() - mean) / spread
    told = torch.cat([asked, torch.ones(len(asked), 1, dtype=torch.float64)], dim=1) @ weights
    return _cosines(recommender, told.float(), candidates)


def _cosines(recommender: Sequential, vectors: Tensor, candidates: Sequence[Sequence[int]]) -> Floats:
    """An item that the recommender does not know is below all that it knows."""
    known = set(recommender.catalogue.ids)
    rows = np.full((len(candidates), len(candidates[0])), -2.0)
    for row, items in enumerate(candidates):
        columns = [column for column, item in enumerate(items) if item in known]
        own = recommender.item_embedding([items[column] for column in columns]).float()
        rows[row, columns] = torch.cosine_similarity(own, vectors[row][None], dim=1).double().numpy()
    return rows

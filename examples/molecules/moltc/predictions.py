"""What a language model answers to pairs: log-probs of closed answers, or numbers from the head or from words."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from moltc.answers import number_read
from moltc.params import Params
from moltc.prepared import PairSet
from moltc.prompts import END, PairPrompts
from moltc.training import Opened, last_hidden
from recalign.common.progress import track
from recalign.data.records import hashed_order
from recalign.evaluation.metrics import Floats
from recalign.llm.generation import generate_texts
from recalign.llm.scoring.logprobs import response_logprobs, tokens_at_once
from recalign.training.loop import micro_batches

TOKENS = 4096  # in one forward pass


@dataclass(frozen=True)
class Outputs:
    """values [N, T] log-probs of the types, or [N, 1] numbers; unparsed: generated texts without a number, where
    the mean of the training labels stands."""

    values: Floats
    unparsed: int = 0


def predict(params: Params, opened: Opened, pairs: PairSet, mean: float) -> Outputs:
    """The model's outputs, in the order of `pairs`; mean: of the training labels, for texts without a number."""
    opened.lm.model.eval()
    if pairs.kind != "number":
        return Outputs(pairs.answers.by_type(answer_scores(opened, pairs)))
    if params.prompt.number == "head":
        return Outputs(_by_head(opened, pairs))
    return _by_text(opened, pairs, params.evaluate.new_tokens, mean)


def answer_scores(opened: Opened, pairs: PairSet) -> Floats:
    """[N, C] mean over both orders of the summed log-prob of each answer, so that the order of asking changes nothing.

    In the other order a directed sentence names the molecules the other way round: it says the same.
    """
    asked = [(place, swapped) for place in range(len(pairs)) for swapped in (False, True)]
    prompts = {key: _prompt(opened.prompts, pairs, key[0], swapped=key[1]) for key in asked}
    responses = {swapped: opened.prompts.responses(swapped=swapped) for swapped in (False, True)}

    def size(part: Sequence[tuple[int, bool]]) -> int:
        return tokens_at_once(opened.lm.model, [prompts[key] for key in part], [responses[key[1]] for key in part])

    scores = np.zeros((len(pairs), len(pairs.answers)))
    parts = micro_batches(sorted(asked, key=lambda key: len(prompts[key])), TOKENS, size)
    for part in track(parts, len(parts), "pairs", "batches"):
        with torch.inference_mode():
            found = response_logprobs(opened.lm.model, [prompts[k] for k in part], [responses[k[1]] for k in part])
        for (place, _), sums in zip(part, found.sums.double().cpu().numpy(), strict=True):
            scores[place] += 0.5 * sums
    return scores


def _prompt(prompts: PairPrompts, pairs: PairSet, place: int, *, swapped: bool = False) -> list[int]:
    ends = int(pairs.first[place]), int(pairs.second[place])
    return prompts.prompt(*ends, swapped=swapped) + prompts.thought(*ends, swapped=swapped)


def _batches(prompts: Sequence[list[int]], extra: int) -> list[list[int]]:
    """Places of prompts of similar length, TOKENS at once with `extra` new ones each."""
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    return micro_batches(order, TOKENS, lambda part: len(part) * (len(prompts[part[-1]]) + extra))


def _by_head(opened: Opened, pairs: PairSet) -> Floats:
    prompts = [_prompt(opened.prompts, pairs, place) for place in range(len(pairs))]
    found = np.zeros((len(pairs), 1))
    parts = _batches(prompts, 0)
    for part in track(parts, len(parts), "pairs", "batches"):
        with torch.inference_mode():
            hidden = last_hidden(opened.lm.model, [prompts[place] for place in part])
            found[part, 0] = opened.vectors.number(hidden).double().cpu().numpy()
    return found


def _by_text(opened: Opened, pairs: PairSet, new_tokens: int, mean: float) -> Outputs:
    prompts = [_prompt(opened.prompts, pairs, place) for place in range(len(pairs))]
    found, unparsed = np.full((len(pairs), 1), mean), 0
    parts = _batches(prompts, new_tokens)
    for part in track(parts, len(parts), "pairs", "batches"):
        texts = generate_texts(opened.lm, [prompts[place] for place in part], new_tokens, stop=END)
        for place, text in zip(part, texts, strict=True):
            value = number_read(text)
            unparsed += value is None
            found[place, 0] = mean if value is None else value
    return Outputs(found, unparsed)


def with_shuffled_graphs(opened: Opened, pairs: PairSet, seed: int) -> Opened:
    """The same model and texts, but each molecule shows another one's graph: graphs go round in the order of a hash, so
    that none keeps its own."""
    order = sorted(range(len(pairs.molecules)), key=lambda m: hashed_order(seed, "shuffled", pairs.molecules[m]))
    shown = dict(zip(order, order[1:] + order[:1], strict=True))
    ids = opened.vectors.ids
    return replace(opened, prompts=replace(opened.prompts, graph_ids=lambda molecule: ids(shown[molecule])))

"""A language model as a recommender: an item's score is the log-prob of its title after the history."""

import logging
import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from recalign.data.records import Items
from recalign.errors import RecalignError
from recalign.evaluation.ranking import Floats
from recalign.evaluation.ranking_rule import LogprobScores, RankingRule, ranking_scores
from recalign.llm.base import LanguageModel
from recalign.llm.branches import Branches
from recalign.llm.scoring import response_logprobs, why_not_shared
from recalign.llm.trie import Trie, best_items, item_logprobs
from recalign.progress import track
from recalign.prompts import PromptBuilder
from recalign.recommenders.logprob_store import read_stored, store_key, write_stored
from recalign.recommenders.seam import Request, Scored

log = logging.getLogger(__name__)
RESPONSES_AT_ONCE = 128  # titles after one prompt in one forward pass: attention grows with the square of their tokens


class LanguageModelRecommender:
    """Scores titles after a prompt by `rule`; the prompt is encoded once for all of them.

    reference: the model that the policy was aligned from; needed by the rule "reward" alone.
    batch: cases in one forward pass (memory, not results); store: folder of log-probs that were computed before.
    """

    def __init__(
        self,
        language_model: LanguageModel,
        builder: PromptBuilder,
        catalogue: Items,
        name: str,
        ranked_by: RankingRule | None = None,
        *,
        reference: LanguageModel | None = None,
        batch: int = 4,
        store: Path | None = None,
    ) -> None:
        self.name = name
        self.language_model = language_model
        self.builder = builder
        self.catalogue = catalogue
        self.ranked_by = ranked_by or RankingRule()
        self.reference = reference
        self.batch = batch
        self.store = store
        self._priors: dict[int, float] = {}
        if self.ranked_by.kind == "reward" and reference is None:
            raise RecalignError(f"'{name}' is ranked by the reward, which needs a reference: give the SFT model")

    def scores(self, requests: list[Request], candidates: list[list[int]] | None) -> torch.Tensor:
        """[B, C] scores of equally long candidate lists, or [B, items] over the catalogue in ascending item id."""
        lists = [list(self.catalogue.ids)] * len(requests) if candidates is None else candidates
        prompts = self._prompts(requests, candidates)
        return torch.from_numpy(self._ranking_scores(prompts, lists))

    def logprobs(self, requests: Sequence[Request], candidates: Sequence[Sequence[int]]) -> Floats:
        """log π(title | prompt) in nats under the policy, [B, C], of equally long candidate lists."""
        return self._logprobs(self.language_model, self._prompts(requests, candidates), candidates)

    def _prompts(self, requests: Sequence[Request], candidates: Sequence[Sequence[int]] | None) -> list[list[int]]:
        lists: Sequence[Sequence[int] | None] = [None] * len(requests) if candidates is None else candidates
        return [
            self.builder.prompt(request.history, profile=request.profile, candidates=items)
            for request, items in zip(requests, lists, strict=True)
        ]

    def _ranking_scores(self, prompts: Sequence[list[int]], candidates: Sequence[Sequence[int]]) -> Floats:
        logprob = self._logprobs(self.language_model, prompts, candidates)
        prior = self.priors(candidates) if self.ranked_by.kind == "logprob_less_prior" else np.zeros_like(logprob)
        reference = None
        if self.ranked_by.kind == "reward" and self.reference is not None:
            reference = self._logprobs(self.reference, prompts, candidates)
        return ranking_scores(self.ranked_by, LogprobScores(logprob, prior, reference))

    def priors(self, candidates: Sequence[Sequence[int]]) -> Floats:
        """log π(title | prompt without a history) of equally long lists, [B, C]; each title is scored once and kept."""
        wanted = sorted({item for items in candidates for item in items} - self._priors.keys())
        if wanted:
            row = self._logprobs(self.language_model, [self.builder.neutral()], [wanted])[0]
            self._priors.update(zip(wanted, row.tolist(), strict=True))
        return np.array([[self._priors[item] for item in items] for items in candidates])

    def _logprobs(
        self, model: LanguageModel, prompts: Sequence[list[int]], candidates: Sequence[Sequence[int]]
    ) -> Floats:
        if len({len(items) for items in candidates}) > 1:
            raise RecalignError("candidate lists differ in length; score lists of one length at a time")
        responses = [[self.builder.response(item) for item in items] for items in candidates]
        key = store_key(model.digest, prompts, responses)
        values = read_stored(self.store, key)
        if values is None:
            values = self._computed_logprobs(model, prompts, responses)
            write_stored(self.store, key, values)
        return values

    def _computed_logprobs(
        self, model: LanguageModel, prompts: Sequence[list[int]], responses: Sequence[list[list[int]]]
    ) -> Floats:
        """Short lists: prompts of like length together, a few in a forward pass. Long lists: as a tree, one by one."""
        width = len(responses[0]) if responses else 0
        if width > RESPONSES_AT_ONCE and why_not_shared(model.model) is None:
            return self._tree_logprobs(model, prompts, responses)
        order = sorted(range(len(prompts)), key=lambda row: (len(prompts[row]), row))
        batch = self.batch if width <= RESPONSES_AT_ONCE else 1
        passes = [
            (order[first : first + batch], slice(start, start + RESPONSES_AT_ONCE))
            for first in range(0, len(order), batch)
            for start in range(0, width, RESPONSES_AT_ONCE)
        ]
        values = np.empty((len(prompts), width))
        for rows, columns in track(passes, len(passes), f"scoring with {self.name}", "passes"):
            with torch.inference_mode():
                scored = response_logprobs(
                    model.model, [prompts[row] for row in rows], [responses[row][columns] for row in rows]
                )
            values[rows, columns] = scored.sums.double().cpu().numpy()
        return values

    def _tree_logprobs(
        self, model: LanguageModel, prompts: Sequence[list[int]], responses: Sequence[list[list[int]]]
    ) -> Floats:
        """What titles have in common is computed once: half of the tokens of a catalogue, and one prompt a case."""
        values = np.empty((len(prompts), len(responses[0])))
        trie, lists = None, None
        for row in track(range(len(prompts)), len(prompts), f"scoring long lists with {self.name}", "cases"):
            if trie is None or responses[row] != lists:
                lists = responses[row]
                trie = Trie(dict(enumerate(lists)))
            values[row] = item_logprobs(Branches(model.model, prompts[row]), trie)
        return values

    def rank_items(
        self, history: Sequence[int | str], candidates: Sequence[int] | None, k: int, *, profile: str | None = None
    ) -> list[Scored]:
        """The k best of `candidates`, or of the catalogue less the history, best first; equals by ascending item id.

        history: oldest first, item ids, or titles that need not be in the catalogue; `profile` as prompts show it.
        """
        if candidates is None:
            return self._best_of_catalogue(history, k, profile)
        items = list(dict.fromkeys(candidates))
        if not items:
            return []
        prompt = self.builder.prompt(history, profile=profile, candidates=items)
        return self._sorted(prompt, items, k)

    def _best_of_catalogue(self, history: Sequence[int | str], k: int, profile: str | None) -> list[Scored]:
        """A search over the tree of titles; the reward falls and rises with depth, so it takes every score."""
        seen = set(history)
        items = [item for item in self.catalogue.ids if item not in seen]
        if not items:
            return []
        prompt = self.builder.prompt(history, profile=profile)
        model = self.language_model.model
        if self.ranked_by.kind == "reward" or why_not_shared(model) is not None:
            return self._sorted(prompt, items, k)
        terms = np.array([-math.inf if item in seen else 0.0 for item in self._titles.items])
        if self.ranked_by.kind == "logprob_less_prior":
            terms -= self.ranked_by.prior_weight * self.priors([self._titles.items])[0]
        found = best_items(Branches(model, prompt), self._titles, k, terms)
        log.info("the best %d of %d titles took %d of %d nodes", k, len(items), found.nodes, len(self._titles.inner))
        return [Scored(item, score) for item, score in found.items]

    @cached_property
    def _titles(self) -> Trie:
        return Trie({item: self.builder.response(item) for item in self.catalogue.ids})

    def _sorted(self, prompt: list[int], items: list[int], k: int) -> list[Scored]:
        row = self._ranking_scores([prompt], [items])[0]
        scored = [Scored(item, float(score)) for item, score in zip(items, row, strict=True)]
        return sorted(scored, key=lambda s: (-s.score, s.item_id))[:k]

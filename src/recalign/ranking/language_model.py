"""A language model as a recommender: an item's score is the log-prob of its title after the history.

Log-probs that were computed before: a killed or repeated evaluation scores only what is new.

A file is named by the scorer's version and the digest of the model and of every token id that was scored, so an entry
can not be stale; the folder is a cache and may be deleted at any time.
"""

import hashlib
import logging
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import ArrayLike

from recalign.common.artifacts import digest_of, read_parquet, write_parquet
from recalign.common.errors import RecalignError
from recalign.common.progress import track
from recalign.data.records import Items
from recalign.evaluation.metrics import Floats, order_of_equals
from recalign.evaluation.ranking_rule import LogprobScores, RankingRule, ranking_scores
from recalign.hybrid.prompts import prompt_builder
from recalign.llm.lower_layers import LowerStates
from recalign.llm.model.base import LanguageModel, load_language_model
from recalign.llm.prompts import PromptBuilder
from recalign.llm.scoring.branches import Branches
from recalign.llm.scoring.logprobs import SCORER, response_logprobs, why_not_shared
from recalign.llm.trie import Found, Trie, Wanted, best_items, item_logprobs
from recalign.params.base import BaseParams
from recalign.params.prompt import PromptParams
from recalign.recommenders.recommender import Asked, Request, Scored

log = logging.getLogger(__name__)


def store_key(model_digest: str, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[Sequence[int]]]) -> str:
    """sha256 (hex) over scorer, model and all token ids: equal keys, equal log-probs on one machine."""
    running = hashlib.sha256(f"{SCORER} {model_digest}".encode())
    for prompt, group in zip(prompts, responses, strict=True):
        running.update(repr((list(prompt), [list(response) for response in group])).encode())
    return running.hexdigest()


def read_stored(folder: Path | None, key: str) -> Floats | None:
    """The stored matrix [B, C] under a key; None where there is no store or no such entry."""
    path = folder / f"{key}.parquet" if folder else None
    if path is None or not path.is_file():
        return None
    log.info("log-probs read from %s", folder)
    return np.array(read_parquet(path)["logprobs"].to_pylist(), dtype=np.float64)


def write_stored(folder: Path | None, key: str, logprobs: ArrayLike) -> None:
    """Store a matrix [B, C] under a key; does nothing where there is no store."""
    if folder:
        rows = pa.array(np.asarray(logprobs, dtype=np.float64).tolist(), pa.list_(pa.float64()))
        write_parquet(folder / f"{key}.parquet", pa.table({"logprobs": rows}))


LOWER = "lower"  # in the store of log-probs
RESPONSES_AT_ONCE = 128  # titles after one prompt in one forward pass: attention grows with the square of their tokens


@dataclass(frozen=True)
class Setting:
    """All that fixes a language-model recommender's scores beside its weights and catalogue.

    noun, clock: as prompts need them; seed: draws nothing where an adapter is loaded; threads: of torch on the CPU,
    None leaves them; ranked_by, over_catalogue, as in `LanguageModelRecommender`.
    """

    base: BaseParams
    prompt: PromptParams
    noun: str
    clock: bool
    seed: int
    threads: int | None
    ranked_by: RankingRule | None = None
    over_catalogue: RankingRule | None = None


def open_recommender(
    name: str,
    base: Path,
    adapter: Path | None,
    setting: Setting,
    catalogue: Items,
    *,
    reference: Path | None = None,
    batch: int = 4,
    store: Path | None = None,
) -> "LanguageModelRecommender":
    """The base in a folder under an adapter's folder (None: the untrained base), as a recommender.

    The one way to it for evaluation, ranking and serving: what is served computes as what was measured. reference: the
    adapter that the rule "reward" needs too; store: as of the recommender.
    Raises RecalignError as `load_language_model` and `PromptBuilder` do.
    """

    def load(folder: Path | None) -> LanguageModel:
        model = load_language_model(
            base, setting.base, adapter=folder, seed=setting.seed, threads=setting.threads,
        )  # fmt: skip
        if folder and model.dtype == "fp32" and model.quantisation == "none":
            model.model.merge_adapter()  # without passes through narrow matrices; in fp32 alone: bf16 would round it
        return model

    own, other = load(adapter), load(reference) if reference else None
    builder = prompt_builder(own, adapter, catalogue, setting.prompt, setting.noun, clock=setting.clock)
    return LanguageModelRecommender(
        own, builder, catalogue, name, setting.ranked_by, over_catalogue=setting.over_catalogue, reference=other,
        batch=batch, store=store,
    )  # fmt: skip


class LanguageModelRecommender:
    """Scores titles after a prompt; the prompt is encoded once for all of them.

    ranked_by: what ranks lists of candidates, the log-prob by default; over_catalogue: what ranks the whole catalogue,
    the same by default (`ranking_rule.catalogue_rule` says why another); reference: the model that the policy was
    aligned from, needed by the rule "reward" alone; batch: cases in one forward pass (memory, not results); store:
    folder of log-probs that were computed before.
    """

    def __init__(
        self,
        language_model: LanguageModel,
        builder: PromptBuilder,
        catalogue: Items,
        name: str,
        ranked_by: RankingRule | None = None,
        *,
        over_catalogue: RankingRule | None = None,
        reference: LanguageModel | None = None,
        batch: int = 4,
        store: Path | None = None,
    ) -> None:
        self.name = name
        self.language_model = language_model
        self.builder = builder
        self.catalogue = catalogue
        self.ranked_by = ranked_by or RankingRule()
        self.over_catalogue = over_catalogue or self.ranked_by
        self.reference = reference
        self.batch = batch
        self.store = store
        self._states = LowerStates(store / LOWER) if store else None
        self.stored = 0  # times that log-probs were read from the store
        self._priors: dict[int, float] = {}
        if "reward" in (self.ranked_by.kind, self.over_catalogue.kind) and reference is None:
            raise RecalignError(f"'{name}' is ranked by the reward, which needs a reference: give the SFT model")

    def scores(self, requests: list[Request], candidates: list[list[int]] | None) -> torch.Tensor:
        """[B, C] scores of equally long candidate lists, or [B, items] over the catalogue in ascending item id."""
        lists = [list(self.catalogue.ids)] * len(requests) if candidates is None else candidates
        prompts = self._prompts(requests, candidates)
        rule = self.over_catalogue if candidates is None else self.ranked_by
        return torch.from_numpy(self._ranking_scores(rule, prompts, lists))

    @property
    def as_over_catalogue(self) -> "LanguageModelRecommender":
        """The same model, which ranks lists too by what ranks the whole catalogue: their scores compare."""
        _ = self._titles  # the tree is built once, for both
        other = copy(self)
        other.ranked_by = self.over_catalogue
        return other

    def reading(self, builder: PromptBuilder, catalogue: Items) -> "LanguageModelRecommender":
        """The same model with the prompts of another catalogue, in which items that both have are the same.

        Priors of titles are shared.
        """
        other = copy(self)
        other.__dict__.pop("_titles", None)  # the tree of this catalogue
        other.builder, other.catalogue = builder, catalogue
        return other

    def logprobs(self, requests: Sequence[Request], candidates: Sequence[Sequence[int]]) -> Floats:
        """log π(title | prompt) in nats under the policy, [B, C], of equally long candidate lists."""
        return self._logprobs(self.language_model, self._prompts(requests, candidates), candidates)

    def _prompts(self, requests: Sequence[Request], candidates: Sequence[Sequence[int]] | None) -> list[list[int]]:
        lists: Sequence[Sequence[int] | None] = [None] * len(requests) if candidates is None else candidates
        return [
            self.builder.prompt(request.history, profile=request.profile, candidates=items)
            for request, items in zip(requests, lists, strict=True)
        ]

    def _ranking_scores(
        self, rule: RankingRule, prompts: Sequence[list[int]], candidates: Sequence[Sequence[int]]
    ) -> Floats:
        logprob = self._logprobs(self.language_model, prompts, candidates)
        prior = self.priors(candidates) if rule.kind == "logprob_less_prior" else np.zeros_like(logprob)
        reference = None
        if rule.kind == "reward" and self.reference is not None:
            reference = self._logprobs(self.reference, prompts, candidates)
        return ranking_scores(rule, LogprobScores(logprob, prior, reference))

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
            self._check_finite(values)
            write_stored(self.store, key, values)
        else:
            self._check_finite(values)
            self.stored += 1
        return values

    def _check_finite(self, logprobs: ArrayLike) -> None:
        """A NaN sorts anywhere without a word."""
        if not np.isfinite(logprobs).all():
            raise RecalignError(
                f"'{self.name}' gives log-probs that are not finite, so nothing can be ranked by it: its weights are "
                "damaged or its training diverged; check the base with 'recalign doctor', or train the adapter again"
            )

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
            asked = [prompts[row] for row in rows], [responses[row][columns] for row in rows]
            with torch.inference_mode(), self._lower(model, *asked):
                scored = response_logprobs(model.model, *asked)
            values[rows, columns] = scored.sums.double().cpu().numpy()
        return values

    def _lower(
        self, model: LanguageModel, prompts: list[list[int]], responses: list[list[list[int]]]
    ) -> AbstractContextManager[None]:
        """Other systems with the same base rank the same cases: what its lower layers give is stored for all."""
        if self._states is None:
            return nullcontext()
        key = digest_of([model.identity["sha256"], model.quantisation, model.dtype])
        return self._states.used(model.model, key, prompts, responses)

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
            values[row] = item_logprobs(Branches(model.model, [prompts[row]]), trie)
        return values

    def rank_items(
        self, history: Sequence[int | str], candidates: Sequence[int] | None, k: int, *, profile: str | None = None
    ) -> list[Scored]:
        """What `rank_many` answers to one."""
        return self.rank_many([Asked(history, candidates, k, profile)])[0]

    def rank_many(self, asked: Sequence[Asked]) -> list[list[Scored]]:
        """The k best items of each, best first, equals by lot or id (`Asked`); `batch` of them in a forward pass."""
        answers: dict[int, list[Scored]] = {}
        open_ended = [number for number, each in enumerate(asked) if each.candidates is None]
        found = self._best_of_catalogue([asked[number] for number in open_ended])
        answers.update(zip(open_ended, found, strict=True))
        lists = {n: list(dict.fromkeys(each.candidates)) for n, each in enumerate(asked) if each.candidates is not None}
        for length in sorted({len(items) for items in lists.values()}):
            numbers = [number for number, items in lists.items() if len(items) == length]
            ranked = self._sorted(self.ranked_by, [asked[n] for n in numbers], [lists[n] for n in numbers], listed=True)
            answers.update(zip(numbers, ranked, strict=True))
        return [answers[number] for number in range(len(asked))]

    def _best_of_catalogue(self, asked: Sequence[Asked]) -> list[list[Scored]]:
        """Searches over the tree of titles; the reward falls and rises with depth, so it takes every score."""
        model, rule = self.language_model.model, self.over_catalogue
        if rule.kind == "reward" or why_not_shared(model) is not None:
            return [self._sorted(rule, [each], [self._open_to(each)], listed=False)[0] for each in asked]
        prompts = [self.builder.prompt(each.history, profile=each.profile) for each in asked]
        order = sorted(range(len(asked)), key=lambda number: (len(prompts[number]), number))
        found: dict[int, Found] = {}
        starts = range(0, len(order), self.batch)
        for start in track(starts, len(starts), f"searching with {self.name}", "groups"):
            group = order[start : start + self.batch]
            wanted = [
                Wanted(asked[n].k, self._terms(asked[n]), order_of_equals(asked[n].case, self._titles.items))
                for n in group
            ]
            branches = Branches(model, [prompts[n] for n in group])
            best = best_items(branches, self._titles, wanted)
            for each, asked_for in zip(best, wanted, strict=True):
                self._check_found(each, asked_for)
            found.update(zip(group, best, strict=True))
        if found:
            nodes = sum(each.nodes for each in found.values()) / len(found)
            inner = len(self._titles.inner)
            log.info("%s searched %d titles for %d users", self.name, len(self.catalogue.ids), len(found))
            log.debug("the search took %.0f nodes a user; the tree of titles has %d", nodes, inner)
        return [[Scored(item, score) for item, score in found[n].items] for n in range(len(asked))]

    def _check_found(self, found: Found, wanted: Wanted) -> None:
        """A search over NaN ends with nothing, though some items are open."""
        some = wanted.k > 0 and wanted.terms is not None and bool(np.isfinite(wanted.terms).any())
        self._check_finite([score for _, score in found.items] or ([math.nan] if some else []))

    def _open_to(self, asked: Asked) -> list[int]:
        """The catalogue minus what is excluded, in ascending item id."""
        unranked = asked.unranked
        return [item for item in self.catalogue.ids if item not in unranked]

    def _terms(self, asked: Asked) -> Floats:
        """What the rule and the asker add to each title's log-prob, [items]; −inf for what is excluded."""
        items = self._titles.items
        terms = np.full(len(items), -math.inf)
        terms[np.isin(items, self._open_to(asked))] = 0.0
        if self.over_catalogue.kind == "logprob_less_prior":
            terms -= self.over_catalogue.prior_weight * self.priors([items])[0]
        if asked.terms is not None:
            terms += [asked.terms[item] for item in items]
        return terms

    @cached_property
    def _titles(self) -> Trie:
        return Trie({item: self.builder.response(item) for item in self.catalogue.ids})

    def _sorted(
        self, rule: RankingRule, asked: Sequence[Asked], lists: Sequence[list[int]], *, listed: bool
    ) -> list[list[Scored]]:
        """The best of equally long lists by every score; listed: prompts may show them as candidates."""
        if not lists[0]:
            return [[] for _ in asked]
        prompts = [
            self.builder.prompt(each.history, profile=each.profile, candidates=items if listed else None)
            for each, items in zip(asked, lists, strict=True)
        ]
        best = []
        for each, items, row in zip(asked, lists, self._ranking_scores(rule, prompts, lists), strict=True):
            if each.terms is not None:
                row += [each.terms[item] for item in items]
            order = sorted(zip((-row).tolist(), order_of_equals(each.case, items), items, strict=True))
            best.append([Scored(item, -cost) for cost, _, item in order[: each.k]])
        return best

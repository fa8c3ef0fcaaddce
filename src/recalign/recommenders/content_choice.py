"""Settings of `content` and its prior, chosen on items that are new to them; then fitted on all train events.

The new items are those that the run hides for validation or, where it hides none, a hash-chosen fifth of the trained
ones. Test is never looked at.
"""

import itertools
import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recalign.common import columns as c
from recalign.common.artifacts import read_json
from recalign.data.records import Items, read_cases
from recalign.recommenders.content import Content, ContentPrior, Fitter, PriorSettings, Settings, nothing_to_read
from recalign.recommenders.held_out import METRIC, HeldOut, held_out_items
from recalign.recommenders.item_text import ATTRIBUTES, TFIDF, TextReader, text_of
from recalign.recommenders.recommender import Fitting, Request, Tuning
from recalign.recommenders.store import columns_of

logger = logging.getLogger(__name__)  # a log is what a recommender is fitted on, here
HIDDEN_ITEMS, TRAIN_ITEMS = "hidden validation items", "a fifth of the trained items"


def hidden_cases(prepared: Path, events: pa.Table, seed: int, most: int = 2000) -> HeldOut | None:
    """The validation cases whose targets the run hides, with the train events that know none of them; None where it
    hides no item, or too few for a case."""
    if not read_json(prepared / "summary.json")["counts"]["views"].get(c.HIDDEN, {}).get(c.VALIDATION):
        return None
    cases = read_cases(prepared, c.VALIDATION, "uniform", most, seed=seed, view=c.HIDDEN)
    requests = [Request(case.example.user_id, case.example.history, case.example.cutoff) for case in cases]
    lists = [list(case.candidates) for case in cases]
    return HeldOut(events, requests, lists, np.array([case.target_index for case in cases], dtype=np.int64))


def chosen_content(log: Fitting) -> tuple[Content, Tuning]:
    """`content` by the settings that rank the new items best; also what was tried.

    Raises RecalignError where no encoder tells the trained items apart.
    """
    choice, params = _Choice(log), log.params.content
    grid = [
        Settings(encoder, dimension, ridge)
        for encoder, dimension, ridge in itertools.product(choice.encoders, params.dimensions, params.ridges)
    ]
    return choice.full.content(choice.best(grid, choice.content_scores)), choice.report


def chosen_prior(log: Fitting) -> tuple[ContentPrior, Tuning]:
    """The history-blind prior, chosen and told as `chosen_content`."""
    choice = _Choice(log)
    ridges = log.params.content.ridges
    grid = [PriorSettings(encoder, ridge) for encoder, ridge in itertools.product(choice.encoders, ridges)]
    return choice.full.prior(choice.best(grid, choice.prior_scores)), choice.report


class _Choice:
    """What both searches share: the cases, and a fitter on the events that they leave."""

    def __init__(self, log: Fitting) -> None:
        params, catalogue, hidden = log.params.content, log.catalogue, log.hidden
        most = max(params.dimensions)
        read = TextReader(params.model, params.revision, log.threads)
        named = {block for encoder in params.encoders for block in encoder.split("+")}
        for block in sorted(named - {ATTRIBUTES, TFIDF}):
            read(block, [text_of(catalogue, item) for item in catalogue.ids])  # at once: one file, whatever is held out
        self.full = Fitter(catalogue, log.events, most, read)
        self.encoders = [encoder for encoder in params.encoders if self.full.says_anything(encoder)]
        if not self.encoders:
            raise nothing_to_read(params.encoders, len(self.full.known))
        for encoder in params.encoders:
            if encoder not in self.encoders:
                logger.info("content: '%s' describes all items alike here, and is left out", encoder)
        self.cases = hidden or held_out_items(catalogue, log.events, log.clock, log.seed, log.met)
        self.chosen_on = HIDDEN_ITEMS if hidden else TRAIN_ITEMS
        self.fitter = self.full
        self.report: dict[str, Any] = {}
        if self.cases.requests:
            self.fitter = self.full if hidden else Fitter(catalogue, self.cases.events, most, read)
            listed = np.array(self.cases.candidates)
            self._columns = columns_of(catalogue, listed.ravel()).reshape(listed.shape)
            self._histories = [request.history for request in self.cases.requests]

    def best(self, grid: list[Any], scores: Callable[[Any], NDArray[np.float64]]) -> Any:
        """The settings of the highest value, of equals the first; the first of all where there is no case."""
        self.report = {"chosen": asdict(grid[0]), "metric": METRIC, "tried": []}
        if not self.cases.requests:
            logger.info("content keeps the first of its settings: train is too small to choose on")
            return grid[0]
        tried = [(self.cases.value_of(scores(settings)), settings) for settings in grid]
        chosen = max(tried, key=lambda pair: pair[0])[1]
        shown = ", ".join(f"{name} {setting}" for name, setting in asdict(chosen).items())
        logger.info("content: %s; %d settings tried on %d cases", shown, len(tried), len(self.cases.requests))
        self.report |= {
            "chosen": asdict(chosen),
            "chosen_on": self.chosen_on,
            "cases": len(self.cases.requests),
            "tried": [asdict(settings) | {METRIC: value} for value, settings in tried],
        }
        return chosen

    def content_scores(self, settings: Settings) -> NDArray[np.float64]:
        """[B, C]: what `Content.scores` gives, without a row of the whole catalogue."""
        model = self.fitter.content(settings)
        users = model.users(self._histories)
        scores: NDArray[np.float64] = np.einsum("bd,bcd->bc", users, model.factors[self._columns])
        return scores

    def prior_scores(self, settings: PriorSettings) -> NDArray[np.float64]:
        """[B, C]: what `ContentPrior.scores` gives."""
        return self.fitter.prior(settings).values[self._columns]


def fit(log: Fitting) -> tuple[Content | ContentPrior, Tuning]:
    """Choose encoder, dimension and ridge on hidden items, then fit on all of train."""
    return chosen_content(log) if log.name == Content.name else chosen_prior(log)


def load(name: str, path: Path, catalogue: Items) -> Content | ContentPrior:
    """Read what `save` wrote."""
    return Content.load(path, catalogue) if name == Content.name else ContentPrior.load(path, catalogue)

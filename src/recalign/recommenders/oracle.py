"""The oracle of the simulated world: ranks by the true probability of the next item. No system can do better."""

from pathlib import Path

import numpy as np
import torch

from recalign.common.errors import RecalignError
from recalign.data.records import Items
from recalign.data.simulator import Taste, days_since_start, load_catalogue, next_item_log_probs, read_tastes
from recalign.recommenders.recommender import Request
from recalign.recommenders.store import pick


class Oracle:
    """Scores by the log-probability with which the simulator draws each item; it is known, not fitted."""

    name = "oracle"

    def __init__(self, catalogue: Items, tastes: dict[int, Taste]) -> None:
        """tastes: what was planted in each user."""
        self.catalogue = catalogue
        self.tastes = tastes
        self.world = load_catalogue()

    @classmethod
    def read(cls, folder: Path, catalogue: Items) -> "Oracle":
        """Read the planted tastes of `folder`/truth.parquet (data/interactions or data/validated)."""
        return cls(catalogue, read_tastes(folder / "truth.parquet"))

    def scores(self, requests: list[Request], candidates: list[list[int]] | None) -> torch.Tensor:
        """[B, C] or [B, items] log-probabilities at each request's cutoff; -inf for items of its history.

        Raises RecalignError for a request without a cutoff, or of a user in whom nothing was planted.
        """
        world_columns = np.array([self.world.index[item] for item in self.catalogue.ids])
        rows = []
        for request in requests:
            if request.cutoff is None or request.user_id not in self.tastes:
                raise RecalignError(f"the oracle knows simulated users at a time; not user {request.user_id}")
            day = days_since_start(request.cutoff)
            true = next_item_log_probs(self.tastes[request.user_id], list(request.history), day, self.world)
            rows.append(true[world_columns])
        return pick(np.array(rows).reshape(len(requests), -1), self.catalogue, candidates)

"""The recommenders whose item vectors a hybrid prompt shows: read off their fitted folders, kept beside the adapter.

As in LLaRA's code the vectors are the static item embeddings, not the states of a history. Sequence models are weak
where histories are sets, so the factors of EASE are a teacher too, and those of `content`.

A teacher that reads text has vectors of items without train events, made of what is written of them: `content`, and
SASRec and GRU4Rec where recommenders.next_item.text says so.
"""

from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recalign.common.artifacts import folder_digest
from recalign.common.errors import RecalignError, did_you_mean
from recalign.data.records import Items
from recalign.hybrid.vectors import Teacher
from recalign.recommenders.roster import fitted_on, refusal

SEQUENCES, EASE, CONTENT = ("sasrec", "gru4rec", "caser"), "ease", "content"
TEACHERS = (*SEQUENCES, EASE, CONTENT)
FACTORS = 64  # of EASE's weights that are kept: the width of the sequence models' embeddings


def read_teacher(name: str, baselines: Path, catalogue: Items) -> Teacher:
    """The item vectors of a recommender fitted in `baselines`.

    An item without train events has one where the recommender reads text, and says something of the item's.
    Raises RecalignError for a name that is no teacher, one that was not fitted, or one of another catalogue.
    """
    if name not in TEACHERS:
        allowed = ", ".join(TEACHERS)
        raise RecalignError(f"hybrid.teachers names '{name}'; allowed are {allowed}{did_you_mean(name, TEACHERS)}")
    folder = baselines / name
    why = refusal(folder)
    if why is not None or not folder.is_dir():
        raise RecalignError(
            f"hybrid.teachers names '{name}', which was not fitted{f' ({why})' if why else ''}; put it into "
            f"recommenders.systems and run 'dvc repro baselines@{name}'"
        )
    own = fitted_on(name, folder, catalogue)
    vectors = _vectors(name, folder, own)
    known = set(catalogue.trained.ids)
    kept = [row for row, item in enumerate(own.ids) if item in known or bool(vectors[row].any())]
    ids = tuple(own.ids[row] for row in kept)
    return Teacher(name, ids, tuple(own.titles[item] for item in ids), vectors[kept], folder_digest(folder))


def _vectors(name: str, folder: Path, catalogue: Items) -> Tensor:
    """[items, d] of a catalogue that is the recommender's own; zeros for an item of which it can say nothing."""
    if name == EASE:
        return _factors(folder, catalogue)
    if name == CONTENT:
        from recalign.recommenders.content import Content

        return torch.from_numpy(Content.load(folder, catalogue).factors)
    return _embeddings(name, folder, catalogue)


def _embeddings(name: str, folder: Path, catalogue: Items) -> Tensor:
    from recalign.recommenders.neural.encoders import EncoderName
    from recalign.recommenders.neural.sequential import Sequential

    recommender = Sequential.load(cast(EncoderName, name), folder, catalogue)
    return recommender.item_embedding(list(catalogue.ids)).float().contiguous()


def _factors(folder: Path, catalogue: Items) -> Tensor:
    from recalign.recommenders.ease import EASE as Recommender

    return torch.from_numpy(item_factors(Recommender.load(folder, catalogue).weights, FACTORS))


def item_factors(weights: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """[items, width] U·√S of the largest singular values of EASE's weights: what an item adds as a part of a history.

    Fewer columns than `width` where the catalogue is smaller. The signs are fixed: the largest entry of a column is
    positive.
    """
    from scipy.sparse.linalg import svds

    size = len(weights)
    kept = min(width, size - 1)
    left, values, _ = svds(weights.astype(np.float64), k=kept, v0=np.ones(size) / np.sqrt(size))
    order = np.argsort(-values, kind="stable")
    factors = left[:, order] * np.sqrt(values[order])
    signs = np.sign(factors[np.abs(factors).argmax(axis=0), np.arange(kept)])
    found: NDArray[np.float32] = (factors * np.where(signs == 0, 1.0, signs)).astype(np.float32)
    return found

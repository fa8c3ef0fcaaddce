"""Which pairs are for what: one training set, three test views by how many of a pair's molecules are new, and one of
another file's pairs."""

from hashlib import sha256

import numpy as np

from moltc.params import SplitParams
from moltc.validation import Clean
from recalign.common import columns as c

RANDOM, ONE_NEW, BOTH_NEW, ACROSS = "random", "one-new", "both-new", "across"
VIEWS = (RANDOM, ONE_NEW, BOTH_NEW, ACROSS)  # never pooled


def fraction(text: str) -> float:
    """A number in [0, 1) that depends on a text alone: the first 12 hex digits of its sha256."""
    return int(sha256(text.encode()).hexdigest()[:12], 16) / 16**12


def split_views(clean: Clean, params: SplitParams) -> np.ndarray:
    """[N] of each pair: train, validation, or the test view it belongs to.

    A molecule is held out where the hash of its skeleton says so: mirror images and salts of one molecule are never on
    both sides. Test views: `one-new`, `both-new`: so many of its molecules are held out; `random`: none, and the pair's
    own hash takes it out of training, as it takes the pairs of validation. A molecule of few pairs may still be in no
    training pair: the audit's `molecules met` says how often.
    """
    skeletons = [molecule.skeleton for molecule in clean.molecules]
    held = np.array([fraction(f"hold|{skeleton}") < params.molecules for skeleton in skeletons], dtype=np.int64)
    news = held[clean.first] + held[clean.second]
    views = np.full(len(news), c.TRAIN, dtype=object)
    for place in np.flatnonzero(news == 0).tolist():
        one, other = sorted((skeletons[clean.first[place]], skeletons[clean.second[place]]))
        drawn = fraction(f"pair|{one}|{other}")
        if drawn < params.pairs:
            views[place] = RANDOM
        elif drawn < params.pairs + (1.0 - params.pairs) * params.validation:
            views[place] = c.VALIDATION
    views[news == 1] = ONE_NEW
    views[news == 2] = BOTH_NEW
    return views

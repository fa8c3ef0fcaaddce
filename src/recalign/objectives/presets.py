"""The published objectives, as rows of one table."""

import difflib

from recalign.errors import RecalignError
from recalign.objectives.losses import Negatives, Objective, Reward

# name: (reward, over the negatives), and where it was published
PRESETS: dict[str, tuple[Reward, Negatives]] = {
    "dpo": ("log_ratio", "first"),  # Rafailov et al. 2023, arXiv 2305.18290, eq. 7; the first rejected response only
    "dpo_pairs": ("log_ratio", "pairs"),  # DPO on each of the K pairs, averaged
    "sdpo": ("log_ratio", "logsumexp"),  # Chen et al. 2024, arXiv 2406.09215, the softmax loss over K negatives
    "dmpo": ("log_ratio", "mean"),  # Bai et al. 2024, arXiv 2405.16127, against the average negative
    "simpo": ("mean", "pairs"),  # Meng et al. 2024, arXiv 2405.14734, eq. 6; averaged over the K pairs
}


def build_objective(name: str, *, beta: float, rho: float = 0.0, label_smoothing: float = 0.0) -> Objective:
    """The objective called `name` (a key of PRESETS).

    beta > 0 scales the reward; rho is the margin in units of the reward before beta; 0 ≤ label_smoothing < 0.5.
    Raises RecalignError for an unknown name, with the nearest one, or a value out of range.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0.0)[0]
        raise RecalignError(f"objective is '{name}'; allowed are {', '.join(PRESETS)} (did you mean {near}?)")
    if not beta > 0:
        raise RecalignError(f"align.beta is {beta}; it must be above 0: at 0 the loss does not depend on the policy")
    if not 0 <= label_smoothing < 0.5:
        raise RecalignError(f"label_smoothing is {label_smoothing}; allowed is 0 up to, but not including, 0.5")
    reward, negatives = PRESETS[name]
    return Objective(name, reward, negatives, beta, rho, label_smoothing)

"""The published objectives, as rows of one table."""

import difflib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from recalign.common.errors import RecalignError
from recalign.objectives.objective import Objective
from recalign.params.align import ObjectiveSettings

Row = Mapping[str, Any]


def _row(**choices: Any) -> Row:
    return MappingProxyType(choices)


# name: what makes it that objective; params.yaml gives beta and rho, and may change the rest
PRESETS: dict[str, Row] = {
    "dpo": _row(reward="log_ratio", negatives="first"),
    "dpo_pairs": _row(reward="log_ratio", negatives="pairs"),
    "sdpo": _row(reward="log_ratio", negatives="logsumexp"),
    "mult_dpo": _row(reward="log_ratio", negatives="logsumexp", positives="all"),
    "dmpo": _row(reward="log_ratio", negatives="mean"),
    "simpo": _row(reward="mean", negatives="pairs"),
    "alpha_dpo": _row(reward="mean", negatives="pairs", alpha=0.2),
    "beta_dpo": _row(reward="log_ratio", negatives="pairs", beta_scale=0.6, drop=0.2),
    "dr_dpo": _row(reward="log_ratio", negatives="pairs", beta_prime=1.0),
}
SOURCES = {
    "dpo": "Rafailov et al. 2023, arXiv 2305.18290, eq. 7; the first rejected response only",
    "dpo_pairs": "DPO on each of the K pairs, averaged",
    "sdpo": "Chen et al. 2024, arXiv 2406.09215: a softmax over K negatives",
    "mult_dpo": "arXiv 2606.10078, a reconstruction: S-DPO with several liked responses (`pairs.positives`)",
    "dmpo": "Bai et al. 2024, arXiv 2405.16127: against the average negative",
    "simpo": "Meng et al. 2024, arXiv 2405.14734, eq. 6; averaged over the K pairs",
    "alpha_dpo": "Wu et al. 2024, arXiv 2410.10148: SimPO with a margin of each pair's own; averaged over the K pairs",
    "beta_dpo": "Wu et al. 2024, arXiv 2407.08639: β follows the batch, unlikely pairs are left out",
    "dr_dpo": "Wu et al. 2024, arXiv 2407.07880: a soft-min over the batch",
}


def build_objective(name: str, *, seed: int = 0, **settings: Any) -> Objective:
    """The objective called `name`: a key of PRESETS, or any name with `like` naming one.

    settings: as in `ObjectiveSettings` of params (beta is needed); what is given wins over the preset's row, so
    any combination can be had. Raises RecalignError for an unknown name, with the nearest one, or a value out of range.
    """
    try:
        checked = ObjectiveSettings.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise RecalignError(f"objective '{name}': {key} is {first['input']!r}; {_lowered(first['msg'])}") from None
    preset = checked.like or name
    if preset not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0.0)[0]
        raise RecalignError(f"objective is '{name}'; allowed are {', '.join(PRESETS)} (did you mean {near}?)")
    given = checked.model_dump(exclude={"like"}, exclude_none=True)
    if "beta" not in given:
        raise RecalignError(f"objective '{name}' has no beta, the scale of the reward; give one above 0")
    return Objective(name, seed=seed, **{**PRESETS[preset], **given})


def _lowered(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]


def family_table() -> str:
    """The presets as a Markdown table, for docs/objectives.md."""
    rows = ["| objective | reward | over the negatives | its own | from |", "|---|---|---|---|---|"]
    for name, preset in PRESETS.items():
        own = {key: value for key, value in preset.items() if key not in ("reward", "negatives")}
        settings = ", ".join(f"`{key}` {value}" for key, value in own.items()) or "—"
        rows.append(f"| `{name}` | `{preset['reward']}` | `{preset['negatives']}` | {settings} | {SOURCES[name]} |")
    return "\n".join(rows)

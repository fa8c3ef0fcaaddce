"""What a training stage leaves behind: the adapter, its curve and the facts of its training."""

import csv
import io
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from recalign.common import artifacts
from recalign.common.progress import WEIGHTS_MB, memory_mb
from recalign.common.run_log import note_costs
from recalign.data.prepared import Prepared
from recalign.llm.adapters import CONFIG, IDENTITY, WEIGHTS, check_finite
from recalign.llm.base import LanguageModel
from recalign.training.loop import TrainingResult

log = logging.getLogger(__name__)
CURVE = (
    "step",
    "examples",
    "loss",
    "learning_rate",
    "grad_norm",
    "reward_accuracy",
    "reward_margin",
    "chosen_logp_drift",
    "rejected_logp_drift",
    "beta",
    "validation_loss",
    "validation_reward_accuracy",
)


def learned_from(prepared: Path, form: str) -> dict[str, str]:
    """What training.json says of the data: source, data digest and prompt.form, which an evaluation elsewhere needs."""
    summary = Prepared(prepared)
    return {"source": summary.source, "data_digest": summary.data_digest, "form": form}


def curve_csv(rows: list[dict[str, Any]]) -> str:
    """The curve as CSV: a line a step, step 0 first; a cell is empty where the step measured nothing."""
    text = io.StringIO()
    writer = csv.DictWriter(text, CURVE, restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    return text.getvalue()


def write_training(
    language_model: LanguageModel,
    result: TrainingResult,
    facts: Mapping[str, Any],
    out: Path,
    notes: Path,
    beside: Callable[[Path], None] | None = None,
) -> None:
    """Write the adapter, curve.csv and training.json (`facts` and what the loop measured) into the folder `out`.

    What it took is noted in `notes`: equal training leaves equal bytes in `out`, however long it ran.
    beside: writes what else belongs to the adapter into that folder, once the adapter is there.
    """
    with artifacts.folder(out) as partial:
        save_adapter(language_model, partial)
        if beside:
            beside(partial)
        artifacts.write_text(partial / "curve.csv", curve_csv(result.rows))
        measured = {
            "steps": result.rows[-1]["step"],
            "best_step": result.best_step,
            "best_validation_loss": result.best_loss,
            "start_validation_loss": result.rows[0]["validation_loss"],
        }
        artifacts.write_json(partial / "training.json", {**facts, **measured})
    spent = {"seconds": round(result.seconds, 1), "tokens_per_second": round(result.tokens_per_second, 1)}
    spent[WEIGHTS_MB] = memory_mb(language_model.model)
    note_costs(out, spent, notes)
    log.info(
        "%s: %d steps in %.0f s (%.0f tokens/s), validation loss %.4f at the start and %.4f at step %d, which is kept",
        out, result.rows[-1]["step"], result.seconds, result.tokens_per_second,
        result.rows[0]["validation_loss"], result.best_loss, result.best_step,
    )  # fmt: skip


def save_adapter(language_model: LanguageModel, folder: Path) -> None:
    """Write the adapter into an existing folder (one that `artifacts.folder` yields): weights, configuration, base.

    The configuration names the base by id instead of this machine's path, and its lists are sorted: equal
    adapters are equal bytes. Raises RecalignError where training left values that are not finite.
    """
    # "auto" would ask the Hub whether the vocabulary grew; embeddings are never trained here
    language_model.model.save_pretrained(str(folder), save_embedding_layers=False)
    check_finite(folder / WEIGHTS, "the adapter that was trained")
    (folder / "README.md").unlink(missing_ok=True)
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = language_model.identity["id"]
    config["revision"] = language_model.identity["revision"]
    config["target_modules"] = _ordered(config["target_modules"])
    artifacts.write_json(folder / CONFIG, config)
    artifacts.write_json(folder / IDENTITY, {
        "base": language_model.identity,
        "quantisation": language_model.quantisation,
        "dtype": language_model.dtype,
    })  # fmt: skip


def _ordered(value: Any) -> Any:
    return sorted(value) if isinstance(value, list) else value

"""What a training run writes: where it stands, and at its end the adapter, its curve and the facts of its training.

A killed run goes on from its checkpoint to the very bytes of an uninterrupted one.
"""

import csv
import io
import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from recalign.common import artifacts
from recalign.common.errors import RecalignError
from recalign.common.progress import WEIGHTS_MB, memory_mb
from recalign.common.run_log import note_costs
from recalign.data.prepared import Prepared
from recalign.llm.model.adapters import CONFIG, IDENTITY, WEIGHTS, check_finite
from recalign.llm.model.base import LanguageModel

log = logging.getLogger(__name__)
MOMENTS = ("exp_avg", "exp_avg_sq", "step")  # of Adam; a weight that no batch has reached yet has none
Weights = dict[str, Tensor]
CurveRow = dict[str, float]  # what a step measured, by column of CURVE


@dataclass
class TrainingState:
    """Everything that a step changes, but for the weights and the optimiser's moments themselves.

    step: steps of the optimiser done; rows: the curve so far; best_*: the step with the lowest validation loss and the
    weights there; tokens, seconds: what was run through the model so far, and how long that took; task: what the task
    itself keeps from step to step (an objective's running statistics).
    """

    step: int = 0
    rows: list[CurveRow] = field(default_factory=list)
    best_step: int = 0
    best_loss: float = float("inf")
    best_weights: Weights = field(default_factory=dict)
    tokens: int = 0
    seconds: float = 0.0
    task: dict[str, float] = field(default_factory=dict)


@dataclass
class Checkpoints:
    """Checkpoints of one training run in `root`/<stage>-<digest>; another digest is another run.

    digest: of everything that determines the run (data, params, base); every_seconds: between two checkpoints, no part
    of that digest, since it changes what a kill costs and nothing that is written.
    """

    root: Path
    stage: str
    digest: str
    every_seconds: float = 60.0
    _last: float = field(default_factory=time.monotonic)

    @property
    def folder(self) -> Path:
        """The folder of this run's checkpoint."""
        return self.root / f"{self.stage}-{self.digest[:16]}"

    def due(self) -> bool:
        """Whether `every_seconds` have passed since the last checkpoint (or the start)."""
        return time.monotonic() - self._last >= self.every_seconds

    def save(self, state: TrainingState, weights: Weights, optimiser: torch.optim.Optimizer) -> None:
        """Write the state, the trainable weights, their best values and the optimiser's moments; atomic."""
        tensors = {f"weights/{name}": tensor for name, tensor in weights.items()}
        tensors |= {f"best/{name}": tensor for name, tensor in state.best_weights.items()}
        for name, parameter in weights.items():
            for moment in MOMENTS:
                if moment in optimiser.state[parameter]:
                    tensors[f"{moment}/{name}"] = optimiser.state[parameter][moment]
        plain = {key: value for key, value in vars(state).items() if key != "best_weights"}
        with artifacts.folder(self.folder) as partial:
            save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, partial / "tensors.safetensors")
            (partial / "state.json").write_text(json.dumps(plain), encoding="utf-8")
        self._last = time.monotonic()

    def load(self, weights: Weights, optimiser: torch.optim.Optimizer) -> TrainingState:
        """Put the checkpoint's values into `weights` and `optimiser`; a fresh state where there is no checkpoint."""
        if not self.folder.exists():
            return TrainingState()
        try:
            artifacts.verify(self.folder)
            state = TrainingState(**artifacts.read_json(self.folder / "state.json"))
            tensors = load_file(self.folder / "tensors.safetensors")
            _check_complete(state, tensors, weights)
        except (RecalignError, TypeError, OSError, SafetensorError) as error:  # TypeError: another version's state
            said = " ".join(str(error).split())
            log.warning("%s: starting afresh, the checkpoint is damaged (%s)", self.stage, said)
            return TrainingState()
        for name, parameter in weights.items():
            parameter.data.copy_(tensors[f"weights/{name}"])
            state.best_weights[name] = tensors[f"best/{name}"]
            if f"step/{name}" in tensors:
                moments = {m: tensors[f"{m}/{name}"].to(parameter.device) for m in MOMENTS if m != "step"}
                optimiser.state[parameter] = {"step": tensors[f"step/{name}"], **moments}
        log.info("%s: going on after step %d, from %s", self.stage, state.step, self.folder)
        return state

    def remove(self) -> None:
        """Remove this run's checkpoint, and those that killed runs of the same stage left with other inputs."""
        for folder in self.root.glob(f"{self.stage}-*"):
            shutil.rmtree(folder, ignore_errors=True)


def _check_complete(state: TrainingState, tensors: Weights, weights: Weights) -> None:
    """Before anything is put into place: half a checkpoint in a model is worse than none."""
    moved = {name for name in weights if any(f"{moment}/{name}" in tensors for moment in MOMENTS)}
    if bool(state.step) != bool(moved):
        raise RecalignError(f"it is of step {state.step} and holds the optimiser's state of {len(moved)} weights")
    for name, parameter in weights.items():
        for kind in ("weights", "best", *(MOMENTS if name in moved else ())):
            found = tensors.get(f"{kind}/{name}")
            if found is None or found.shape != (parameter.shape if kind != "step" else torch.Size()):
                raise RecalignError(f"it holds no {kind}/{name} of shape {list(parameter.shape)}")


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


@dataclass(frozen=True)
class TrainingResult:
    """rows: the curve, one dict a step (step 0 first); best_step, best_loss: by validation; seconds, tokens_per_second:
    of training alone, validation left out."""

    rows: list[CurveRow]
    best_step: int
    best_loss: float
    seconds: float
    tokens_per_second: float


def learned_from(prepared: Path, form: str) -> dict[str, str]:
    """What training.json says of the data: source, data digest and prompt.form, which an evaluation elsewhere needs."""
    summary = Prepared(prepared)
    return {"source": summary.source, "data_digest": summary.data_digest, "form": form}


def curve_csv(rows: list[CurveRow]) -> str:
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

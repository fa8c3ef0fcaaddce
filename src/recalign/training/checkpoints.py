"""Where a training run stands, written so that a killed run goes on to the very bytes of an uninterrupted one."""

import json
import logging
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from recalign.common import artifacts
from recalign.common.errors import RecalignError

log = logging.getLogger(__name__)
MOMENTS = ("exp_avg", "exp_avg_sq", "step")  # of Adam; a weight that no batch has reached yet has none
Weights = dict[str, Tensor]


@dataclass
class TrainingState:
    """Everything that a step changes, but for the weights and the optimiser's moments themselves.

    step: steps of the optimiser done; rows: the curve so far; best_*: the step with the lowest validation loss and the
    weights there; tokens, seconds: what was run through the model so far, and how long that took; task: what the task
    itself keeps from step to step (an objective's running statistics).
    """

    step: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
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

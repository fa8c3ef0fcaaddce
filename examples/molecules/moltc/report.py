"""The figures of every system on the same test pairs, as metrics.json and as a page of tables."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from moltc.params import Params
from moltc.prepared import PairSet
from moltc.splits import VIEWS
from recalign.common import columns as c
from recalign.common.artifacts import replacing
from recalign.evaluation.metrics import Floats
from recalign.evaluation.significance import plain, signed

OUTPUTS = "outputs.safetensors"
KNOWN, ALL = "best possible", ", all pairs"
GRAPHS, TEXT, SHUFFLED, PREFERRED = "language model", "text alone", "shuffled graphs", "preference-trained"
JOINTLY = "trained jointly"
Systems = dict[str, dict[str, Floats]]  # system → view → [N, C] outputs


def test_views(params: Params, pairs: PairSet) -> dict[str, PairSet]:
    """Validation and each test view that has pairs, cut to the subset: the pairs that every system answers."""
    wanted = {c.VALIDATION: params.subset.validation} | dict.fromkeys(VIEWS, params.subset.test)
    found = {view: pairs.of(view, most, params.seed) for view, most in wanted.items()}
    return {view: part for view, part in found.items() if len(part)}


def write_outputs(path: Path, systems: Systems) -> None:
    """Every system's outputs in one file of tensors."""
    tensors = {
        f"{system}|{view}": torch.from_numpy(np.ascontiguousarray(values, dtype=np.float64))
        for system, own in systems.items() for view, values in own.items()
    }  # fmt: skip
    with replacing(path) as partial:
        save_file(tensors, partial)


def read_outputs(path: Path) -> Systems:
    """What `write_outputs` wrote."""
    found: Systems = {}
    for name, tensor in load_file(path).items():
        system, view = name.rsplit("|", 1)
        found.setdefault(system, {})[view] = tensor.numpy()
    return found


def best_possible(views: Mapping[str, PairSet]) -> Systems:
    """The known best answers of simulated pairs; empty where there are none."""
    found: dict[str, Floats] = {}
    for view, pairs in views.items():
        if np.isnan(pairs.best).any():
            return {}
        if pairs.kind == "number":
            found[view] = pairs.best[:, None]
        else:
            found[view] = np.log(np.eye(len(pairs.answers.types))[pairs.answers.truth(pairs.best)] + 1e-12)
    return {KNOWN: found}


@dataclass(frozen=True)
class Figures:
    """Every system's figures on every test view, and gains: pairs of systems whose difference matters."""

    params: Params
    views: Mapping[str, PairSet]
    systems: Systems

    def best_baseline(self, *, everything: bool) -> str | None:
        """The baseline with the best first metric on validation: of those of the subset, or of those of all pairs."""
        language_models = (GRAPHS, TEXT, SHUFFLED, PREFERRED, JOINTLY, KNOWN)
        names = [n for n in self.systems if n not in language_models and n.endswith(ALL) == everything]
        cases = self.views[c.VALIDATION].cases
        return min(names, key=lambda name: cases.badness(self.systems[name][c.VALIDATION]), default=None)

    def compared(self) -> list[tuple[str, str]]:
        """Which systems are compared on the same pairs."""
        rivals = [TEXT, SHUFFLED, self.best_baseline(everything=False), self.best_baseline(everything=True)]
        found = [(GRAPHS, rival) for rival in rivals if rival is not None]
        return [pair for pair in [*found, (PREFERRED, GRAPHS), (JOINTLY, GRAPHS)] if set(pair) <= self.systems.keys()]

    def metrics(self) -> dict[str, Any]:
        """What metrics.json holds of the test views."""
        resamples, seed = self.params.evaluate.resamples, self.params.seed
        found: dict[str, Any] = {}
        for view, pairs in self.views.items():
            if view == c.VALIDATION:
                continue
            cases = pairs.cases
            own = {name: cases.figures(outputs[view], resamples, seed) for name, outputs in self.systems.items()}
            gains = {
                f"{one} − {other}": cases.gains(self.systems[one][view], self.systems[other][view], resamples, seed)
                for one, other in self.compared()
            }
            found[view] = {
                "pairs": len(pairs), "molecules": len(np.union1d(pairs.first, pairs.second)),
                "systems": {name: {m: each.as_dict() for m, each in row.items()} for name, row in own.items()},
                "gains": {name: {m: each.as_dict() for m, each in row.items()} for name, row in gains.items()},
            }  # fmt: skip
        return found


def page(about: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """The figures as Markdown: a table a view, then the differences."""
    from recalign.evaluation.significance import Interval

    lines = ["# Figures of the pairs", "", *(f"- {key}: {value}" for key, value in about.items())]
    for view, own in metrics.items():
        names = list(dict.fromkeys(name for row in own["systems"].values() for name in row))
        lines += ["", f"## {view}: {own['pairs']} pairs of {own['molecules']} molecules", ""]
        lines += [f"| system | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
        for system, row in own["systems"].items():
            cells = [plain(Interval(**row[name])) if name in row else "—" for name in names]
            lines.append(f"| {system} | {' | '.join(cells)} |")
        if not own["gains"]:
            continue
        lines += ["", f"| difference | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
        for pair, row in own["gains"].items():
            cells = [signed(Interval(**row[name])) if name in row else "—" for name in names]
            lines.append(f"| {pair} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"

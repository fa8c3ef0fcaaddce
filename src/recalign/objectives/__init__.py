"""Preference objectives: pure functions of log-probs."""

from recalign.objectives.losses import Objective, ObjectiveOutput, PreferenceBatch
from recalign.objectives.presets import PRESETS, build_objective

__all__ = ["PRESETS", "Objective", "ObjectiveOutput", "PreferenceBatch", "build_objective"]

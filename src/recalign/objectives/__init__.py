"""Preference objectives: pure functions of log-probs, and the running statistics that two of them keep."""

from recalign.objectives.batch import PreferenceBatch
from recalign.objectives.objective import BatchPlan, Objective, ObjectiveOutput
from recalign.objectives.presets import PRESETS, build_objective

__all__ = ["PRESETS", "BatchPlan", "Objective", "ObjectiveOutput", "PreferenceBatch", "build_objective"]

"""A mean and a spread that follow the training batches."""

from dataclasses import dataclass

import torch
from torch import Tensor

# Below this spread (nats, or nats per token) all gaps are one gap and differ by rounding: a policy that still equals
# its reference would otherwise be standardised by noise, and the next batches by a spread far too small.
ROUNDING = 1e-3


@dataclass
class RunningStatistics:
    """Exponential moving mean and standard deviation (unbiased) of whole batches; 0 before the first batch.

    The first batch is copied, not averaged with zeros (as released codes do, which makes z ten times too large at the
    start). The spread starts with the first batch that has one.
    """

    momentum: float
    mean: float = 0.0
    std: float = 0.0
    batches: int = 0

    def update(self, values: Tensor) -> None:
        """Take in a batch's values, [n] with n ≥ 1."""
        values = values.detach().double()
        mean = float(values.mean())
        self.mean = mean if self.batches == 0 else self._moved(self.mean, mean)
        std = float(values.std()) if len(values) > 1 else 0.0
        if self.std == 0.0:
            self.std = std if std >= ROUNDING else 0.0
        elif len(values) > 1:
            self.std = self._moved(self.std, std)
        self.batches += 1

    def standardised(self, values: Tensor) -> Tensor:
        """(values − mean) / std in the shape of `values`; 0 as long as there is no spread."""
        if self.std == 0.0:
            return torch.zeros_like(values)
        return (values - self.mean) / max(self.std, ROUNDING)

    def _moved(self, old: float, new: float) -> float:
        return self.momentum * old + (1 - self.momentum) * new

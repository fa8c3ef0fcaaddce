"""What an objective reads: the log-probs of a batch's responses."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class PreferenceBatch:
    """Log-probs (nats) of B prompts' responses; column 0 is the chosen one.

    policy [B, 1+K] summed over tokens; reference [B, 1+K] or None; lengths [B, 1+K] tokens, terminator included;
    mask [B, 1+K] True where a response exists (K may differ from row to row). Masked columns are never read.
    """

    policy: Tensor
    reference: Tensor | None
    lengths: Tensor
    mask: Tensor

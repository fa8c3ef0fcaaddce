"""What an objective reads: the log-probs of a batch's responses."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class PreferenceBatch:
    """Log-probs (nats) of B prompts' responses; column 0 is the chosen one.

    policy [B, 1+K] summed over tokens; reference [B, 1+K] or None; lengths [B, 1+K] tokens, terminator included;
    mask [B, 1+K] True where a response exists (K may differ from row to row). Masked columns are never read.
    liked [B, 1+K] True where a response is one that the user liked as well, column 0 among them; None: column 0 alone.
    """

    policy: Tensor
    reference: Tensor | None
    lengths: Tensor
    mask: Tensor
    liked: Tensor | None = None

    @property
    def rejected(self) -> Tensor:
        """[B, K] True where a rejected response exists."""
        present = self.mask[:, 1:]
        return present if self.liked is None else present & ~self.liked[:, 1:]

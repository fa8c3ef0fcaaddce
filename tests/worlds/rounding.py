"""What two right answers may differ by, on any machine: by the number format and the length of the sums.

A processor adds up in an order of its own (lanes of 4, 8 or 16, fused or not). Whatever the order, a sum of n terms in
a format with unit roundoff u is off by at most n · u · Σ|terms| (Higham, Accuracy and Stability of Numerical
Algorithms, 2002, section 4.2), so two orders differ by at most twice that. Sums after one another add up their lengths.
"""

import torch


def rounding(terms: int, size: float = 1.0, dtype: torch.dtype = torch.float32) -> float:
    """The largest difference of two orders of `terms` terms whose absolute values add up to `size`."""
    return terms * torch.finfo(dtype).eps * size  # eps is 2u

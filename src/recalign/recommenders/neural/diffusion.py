"""Gaussian diffusion: noise schedules, noised data, and the way back from noise, in all steps or in fewer.

Ho et al. 2020 (arXiv 2006.11239) for the chain and its posterior; Song et al. 2021 (arXiv 2010.02502, DDIM) for the
family of samplers that the posterior is one of. Steps count from 0 (least noise) to `steps` − 1.
"""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ScheduleName = Literal["linear", "cosine", "exponential", "square-root"]
SamplerName = Literal["posterior", "ddim"]
FIRST, LAST = 1e-4, 0.02  # linear: variance of the noise of the first and the last step
COSINE_SHIFT = 0.008  # cosine: keeps the first steps from being too small
LEAST_RATE, MOST_RATE = 0.1, 10.0  # exponential: rates of the continuous process at its two ends
ROOT_SHIFT = 1e-4  # square-root: noise at the very start
CLEAN = -1  # the "step" after step 0: data without noise


def variances(schedule: ScheduleName, steps: int) -> NDArray[np.float64]:
    """β [steps]: variance of the noise that each step adds, as the code of DreamRec has the four schedules.

    linear: from 1e-4 to 0.02, whatever the number of steps (Ho et al. 2020). cosine: ᾱ a squared cosine (Nichol and
    Dhariwal 2021, arXiv 2102.09672, equation 17), β kept in [1e-4, 0.9999]. exponential: 1 − exp(−rate) with a rate
    that grows linearly (Song et al. 2021, arXiv 2011.13456). square-root: ᾱ = 1 − √(t + 1e-4) (Li et al. 2022, arXiv
    2205.14217), β at most 0.999.
    """
    match schedule:
        case "linear":
            return np.linspace(FIRST, LAST, steps)
        case "cosine":
            angles = (np.arange(steps + 1) / steps + COSINE_SHIFT) / (1 + COSINE_SHIFT) * math.pi / 2
            return np.clip(_variances_of(np.cos(angles) ** 2), 1e-4, 0.9999)
        case "exponential":
            places = np.linspace(1, 2 * steps + 1, steps)
            return 1 - np.exp(-LEAST_RATE / steps - places * 0.5 * (MOST_RATE - LEAST_RATE) / steps**2)
        case "square-root":
            return np.minimum(_variances_of(1 - np.sqrt(np.arange(steps + 1) / steps + ROOT_SHIFT)), 0.999)


def _variances_of(alpha_bar: NDArray[np.float64]) -> NDArray[np.float64]:
    """β [steps] of what is left of the data's variance at steps + 1 points."""
    betas: NDArray[np.float64] = 1 - alpha_bar[1:] / alpha_bar[:-1]
    return betas


class Diffusion:
    """A chain of `steps` noising steps, and samplers that walk it backwards by a prediction of the clean data x₀."""

    def __init__(self, schedule: ScheduleName, steps: int) -> None:
        self.steps = steps
        self.alpha_bar = np.cumprod(1 - variances(schedule, steps))  # share of the data's variance left, [steps]

    def noised(self, clean: Tensor, step: Tensor, noise: Tensor) -> Tensor:
        """x_t [N, d] = √ᾱ_t x₀ + √(1 − ᾱ_t) ε of x₀ and ε [N, d], at a step of its own for each row [N]."""
        kept = torch.from_numpy(self.alpha_bar).to(clean.dtype)[step][:, None]
        return kept.sqrt() * clean + (1 - kept).sqrt() * noise

    def way_back(self, visited: int) -> NDArray[np.int64]:
        """[visited] steps from the noisiest to step 0, evenly spaced; all of them where visited is `steps`.

        With a single one it is the noisiest, whose prediction of x₀ is then the answer.
        """
        return np.linspace(self.steps - 1, 0, visited).round().astype(np.int64)

    def back(self, step: int, following: int, sampler: SamplerName) -> tuple[float, float, float]:
        """(a, b, σ) of x_s = a x̂₀ + b x_t + σ ε from t = `step` to s = `following` < t, or CLEAN.

        Equation 12 of DDIM, its η of equation 16 at 0 (ddim: nothing random after the start) or 1 (posterior: for
        s = t − 1 the chain's own, Ho et al. 2020, equations 6 and 7). Where s is CLEAN the answer is x̂₀ itself.
        """
        now = float(self.alpha_bar[step])
        then = 1.0 if following == CLEAN else float(self.alpha_bar[following])
        sigma = math.sqrt((1 - then) / (1 - now) * (1 - now / then)) if sampler == "posterior" else 0.0
        of_noisy = math.sqrt(max(0.0, 1 - then - sigma**2) / (1 - now))
        return math.sqrt(then) - of_noisy * math.sqrt(now), of_noisy, sigma

    def sample(
        self, predict: Callable[[Tensor, int], Tensor], noise: Iterator[Tensor], visited: int, sampler: SamplerName
    ) -> Tensor:
        """x₀ [N, d] from noise, by `visited` steps.

        predict: (x_t [N, d], t) -> x̂₀ [N, d]. noise: standard normal [N, d], first the start x_T; the sampler
        "posterior" takes one more for each step but the last.
        """
        state = next(noise)
        for step, following in pairwise([*self.way_back(visited).tolist(), CLEAN]):
            of_clean, of_noisy, sigma = self.back(step, following, sampler)
            state = of_clean * predict(state, step) + of_noisy * state
            if sigma > 0:
                state = state + sigma * next(noise)
        return state


def guided(conditional: Tensor, unconditional: Tensor, weight: float) -> Tensor:
    """x̂₀ [N, d] = (1 + w) f(x, h, t) − w f(x, ∅, t): classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598,
    equation 6, on x₀); weight 0 leaves the conditional prediction."""
    return (1 + weight) * conditional - weight * unconditional

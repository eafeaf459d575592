"""The loss surface L(N, D) = E + A N^-alpha + B D^-beta (Hoffmann et al., arXiv 2203.15556, Eq. 2).

Many surfaces are held and evaluated at once: an estimate and its resamples differ only in a row.
Inside, ln N and ln D are measured from the centre of the data, where the terms hardly correlate.
Axes: R surfaces, n points, five constants (ln E, ln A, ln B, alpha, beta).
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CONSTANTS = ("E", "A", "B", "alpha", "beta")
FLOPS_PER_PARAM_TOKEN = 6.0

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Surface:
    """One surface in raw units: parameters and tokens."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    @property
    def a(self) -> float:
        """Exponent of N*(C) under C = 6ND: beta / (alpha + beta)."""
        return self.beta / (self.alpha + self.beta)

    def loss(self, params: float, tokens: float) -> float:
        return float(self.E + self.A * params**-self.alpha + self.B * tokens**-self.beta)

    def best_params(self, budget_flops: float) -> float:
        """N* of a budget under C = 6ND: alpha A N^-alpha = beta B D^-beta."""
        tokens_of_one_param = budget_flops / FLOPS_PER_PARAM_TOKEN
        ratio = self.alpha * self.A / (self.beta * self.B)
        return float((ratio * tokens_of_one_param**self.beta) ** (1 / (self.alpha + self.beta)))


@dataclass(frozen=True)
class Points:
    """What a surface is fitted to: one loss per (N, D), at the best hyperparameters tried.

    `bound` marks losses that are upper bounds; points of one `cluster` are resampled together.
    `names` says to a reader where a point comes from.
    """

    params: Floats
    tokens: Floats
    flops: Floats
    loss: Floats
    bound: NDArray[np.bool_]
    cluster: NDArray[np.int64]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.loss)

    @property
    def centre(self) -> tuple[float, float]:
        """Mean ln N and ln D."""
        return float(np.log(self.params).mean()), float(np.log(self.tokens).mean())

    def only(self, keep: NDArray[np.bool_]) -> "Points":
        return Points(
            params=self.params[keep],
            tokens=self.tokens[keep],
            flops=self.flops[keep],
            loss=self.loss[keep],
            bound=self.bound[keep],
            cluster=self.cluster[keep],
            names=tuple(name for name, kept in zip(self.names, keep, strict=True) if kept),
        )


@dataclass(frozen=True)
class Surfaces:
    """R surfaces: `theta` is (R, 5), centred at `centre` = (ln N, ln D)."""

    theta: Floats
    centre: tuple[float, float]

    def __len__(self) -> int:
        return len(self.theta)

    def __getitem__(self, rows: "slice | NDArray[np.bool_]") -> "Surfaces":
        return Surfaces(self.theta[rows], self.centre)

    def surface(self, row: int = 0) -> Surface:
        ln_e, ln_a, ln_b, alpha, beta = map(float, self.theta[row])
        return Surface(
            E=math.exp(ln_e),
            A=_exp(ln_a + alpha * self.centre[0]),
            B=_exp(ln_b + beta * self.centre[1]),
            alpha=alpha,
            beta=beta,
        )

    def constants(self) -> dict[str, Floats]:
        """E, A, B, alpha, beta and a in raw units, (R,) each."""
        ln_e, ln_a, ln_b, alpha, beta = self.theta.T
        with np.errstate(over="ignore"):
            return {
                "E": np.exp(ln_e),
                "A": np.exp(ln_a + alpha * self.centre[0]),
                "B": np.exp(ln_b + beta * self.centre[1]),
                "alpha": alpha,
                "beta": beta,
                "a": beta / (alpha + beta),
            }

    def log_loss(self, params: Floats, tokens: Floats) -> Floats:
        """ln L, (R, n)."""
        n, d = np.log(params) - self.centre[0], np.log(tokens) - self.centre[1]
        return log_loss(self.theta, n, d)[0]

    def log_best_params(self, budget_flops: float | Floats) -> Floats:
        """ln N*(C) under C = 6ND, (R,) or (R, budgets)."""
        _, ln_a, ln_b, alpha, beta = self.theta.T
        room = np.log(np.asarray(budget_flops) / FLOPS_PER_PARAM_TOKEN) - sum(self.centre)
        constant = np.log(alpha / beta) + ln_a - ln_b
        n = (constant + np.multiply.outer(room, beta)) / (alpha + beta) + self.centre[0]
        return np.asarray(n.T)


def log_loss(theta: Floats, n: Floats, d: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """ln L and the shares of E, A and B in L, (R, n) each; n and d are centred."""
    ln_e = theta[:, 0:1]
    size = theta[:, 1:2] - theta[:, 3:4] * n
    data = theta[:, 2:3] - theta[:, 4:5] * d
    top = np.maximum(np.maximum(size, data), ln_e)
    floor, size, data = np.exp(ln_e - top), np.exp(size - top), np.exp(data - top)
    total = floor + size + data
    return top + np.log(total), floor / total, size / total, data / total


def log_gradient(shares: tuple[Floats, Floats, Floats], n: Floats, d: Floats) -> Floats:
    """d ln L / d theta, (R, n, 5)."""
    floor, size, data = shares
    return np.stack([floor, size, data, -size * n, -data * d], axis=2)


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))

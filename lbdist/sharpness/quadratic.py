"""A quadratic model of f over a small box, and the vertices at which it is highest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lbdist.objective import Function

SMALL = 1000
"""Dimensions up to which a quadratic model is kept as a matrix, and starts come from it."""

_LANCZOS = 12
_CANDIDATES = 100_000
"""Coordinates of the random vertices that the model is maximised from: a thousand of them for p = 100."""


@dataclass
class Model:
    """The curvature of f at x in a small space: symmetric, of shape (p, p), of rank 12 until it learns more.

    In coordinates v = z / scale, which no box enters: f(z) is about f0 + g0.z + v.M v / 2.

    Attributes:
        scale: |A^+ x| + 1, shape (p,).
        matrix: M, float64 on the CPU.
    """

    scale: Tensor
    matrix: Tensor

    @classmethod
    def of(cls, f: Function, scale: Tensor, epsilon: float, seed: int) -> Model:
        """Twelve Lanczos steps with full orthogonalisation; products by central differences.

        Args:
            f: Value and gradient at z, shape (p,).
            scale: What a box of epsilon 1 is.
            epsilon: A box; the differences reach a fifth of the way to its corners.
            seed: Of the first vector.
        """
        p = len(scale)
        step = 0.2 * epsilon * p**0.5
        weight = scale.double().cpu()

        def product(v: Tensor) -> Tensor:
            ahead, behind = (f((s * step * weight * v).to(scale))[1].double().cpu() for s in (1, -1))
            return torch.nan_to_num(weight * (ahead - behind) / (2 * step), 0.0, 0.0, 0.0)

        generator = torch.Generator().manual_seed(seed)
        basis = torch.zeros(p, 0, dtype=torch.float64)
        columns: list[Tensor] = []
        rest = torch.randn(p, generator=generator, dtype=torch.float64)
        for _ in range(min(_LANCZOS, p)):
            basis = torch.cat([basis, (rest / rest.norm())[:, None]], 1)
            columns.append(product(basis[:, -1]))
            rest = columns[-1].clone()
            for _ in range(2):
                rest -= basis @ (basis.T @ rest)
            if not rest.norm() > 1e-10 * columns[-1].norm():  # an invariant space: the model is exact on it
                break
        inner = basis.T @ torch.stack(columns, 1)
        return cls(weight, basis @ ((inner + inner.T) / 2) @ basis.T)

    def vertices(self, epsilon: float, g0: Tensor) -> Tensor:
        """The different vertices that sign iteration and single flips end at, the highest first: (k, p)."""
        matrix = epsilon**2 * self.matrix
        slope = epsilon * self.scale * g0.double().cpu()
        p, generator = len(slope), torch.Generator().manual_seed(0)
        count = min(1000, max(50, _CANDIDATES // p))
        u = 2.0 * torch.randint(0, 2, (count, p), generator=generator).double() - 1
        # the diagonal is a constant over the vertices; half the shift to convexity is a longer step
        off = matrix - torch.diag(matrix.diagonal())
        shift = 0.5 * max(0.0, -float(torch.linalg.eigvalsh(off)[0]))
        for _ in range(20):
            u = torch.where(slope + u @ off + shift * u >= 0, 1.0, -1.0).double()
        u = _flip(u, slope, off)
        u = torch.unique(u, dim=0)
        height = u @ slope + 0.5 * ((u @ off) * u).sum(1)
        return u[height.argsort(descending=True)]

    def flips(self, epsilon: float, u: Tensor, gradient: Tensor, most: int) -> Tensor | None:
        """From a vertex, the one of up to `most` flips at which the model is highest; None if none is higher.

        Flips are made one after another, the best first even where it falls, and cut off where the sum is
        highest (Kernighan & Lin 1970).
        """
        matrix = epsilon**2 * self.matrix
        u, slope = u.clone(), gradient.clone()
        total = highest = 0.0
        best, open_ = None, torch.ones(len(u), dtype=torch.bool)
        for _ in range(min(most, len(u))):
            gains = 2 * matrix.diagonal() - 2 * u * slope
            place = int(gains.masked_fill(~open_, -np.inf).argmax())
            total += float(gains[place])
            open_[place] = False
            slope -= 2 * u[place] * matrix[place]
            u[place] = -u[place]
            if total > highest:
                highest, best = total, u.clone()
        return best

    def learn(self, epsilon: float, step: Tensor, change: Tensor) -> None:
        """Makes M what takes a step to the change of the gradient there (symmetric rank one; in u)."""
        rest = change / epsilon**2 - self.matrix @ step
        along = float(rest @ step)
        if abs(along) > 1e-8 * float(rest.norm() * step.norm()):  # and neither is NaN
            self.matrix = self.matrix + torch.outer(rest, rest) / along


def _flip(u: Tensor, slope: Tensor, off: Tensor) -> Tensor:
    """Flips the best coordinate of each row until none gains."""
    u, slope = u.clone(), slope + u @ off
    for _ in range(10 * u.shape[1]):
        gain, place = (-2 * u * slope).max(1)
        rows = (gain > 1e-12 * slope.abs().amax(1)).nonzero()[:, 0]
        if not len(rows):
            break
        place = place[rows]
        old = u[rows, place]
        u[rows, place] = -old
        slope[rows] -= 2 * old[:, None] * off[place]
    return u

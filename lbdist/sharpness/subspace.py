"""The space in which Metric 2.1 looks for its maximum: R^n, or the range of a random n x p matrix A."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lbdist.errors import InputError

_ROWS = 1 << 16
_IN_MEMORY = 1 << 30  # bytes of A that are kept instead of being drawn again


class FullSpace:
    """A = I: the n-dimensional space itself."""

    name = "full"

    def __init__(self, n: int) -> None:
        self.dimension = n

    def times(self, y: Tensor) -> Tensor:
        """A y."""
        return y

    def transpose(self, g: Tensor) -> Tensor:
        """A^T g."""
        return g

    def pseudo_inverse(self, x: Tensor) -> Tensor:
        """A^+ x."""
        return x


class Subspace:
    """The range of A, of shape (n, p): given, or drawn from N(0, 1) in blocks of rows.

    A block is a function of (seed, draw, block), so that A y, A^T g and A^+ x see one matrix although it is
    drawn again for each when it does not fit. Numbers are drawn on the CPU: every device sees the same A.
    The paper leaves the distribution open; unnormalised Gaussian columns give its order of magnitude.

    Args:
        n: Parameters.
        p: Dimension of the subspace.
        seed: Seed of A.
        draw: Which A of that seed.
        like: A tensor whose device and precision A takes.
        matrix: A itself, instead of a draw.

    Raises:
        InputError: p is not between 1 and n.
    """

    name = "subspace"

    def __init__(
        self, n: int, p: int, *, seed: int = 0, draw: int = 0, like: Tensor, matrix: Tensor | None = None
    ) -> None:
        if not 1 <= p <= n:
            raise InputError(f"subspace={p}: must be between 1 and the number of parameters, {n}")
        self.n, self.dimension, self.seed, self.draw, self.like = n, p, seed, draw, like
        self._kept: list[Tensor] | None = None
        if matrix is not None:
            self._kept = [m.to(like) for m in matrix.split(_ROWS)]
        elif n * p * like.element_size() <= _IN_MEMORY:
            self._kept = list(self._blocks())
        self._gram: Tensor | None = None

    def _blocks(self) -> Iterator[Tensor]:
        if self._kept is not None:
            yield from self._kept
            return
        for block, start in enumerate(range(0, self.n, _ROWS)):
            words = (self.seed * 1_000_003 + self.draw) * 1_000_003 + block
            generator = torch.Generator().manual_seed(words)
            rows = min(_ROWS, self.n - start)
            yield torch.randn(rows, self.dimension, generator=generator).to(self.like)

    def times(self, y: Tensor) -> Tensor:
        """A y, of shape (n,)."""
        return torch.cat([block @ y for block in self._blocks()])

    def transpose(self, g: Tensor) -> Tensor:
        """A^T g, of shape (p,)."""
        total = torch.zeros(self.dimension, dtype=torch.float64, device=g.device)
        for block, part in zip(self._blocks(), g.split(_ROWS), strict=True):
            total += part @ block
        return total.to(g.dtype)

    def pseudo_inverse(self, x: Tensor) -> Tensor:
        """A^+ x = (A^T A)^-1 A^T x, of shape (p,); the p x p Gram matrix is summed in float64."""
        if self._gram is None:
            self._gram = torch.zeros(self.dimension, self.dimension, dtype=torch.float64, device=x.device)
            for block in self._blocks():
                self._gram += (block.T @ block).double()
        return torch.linalg.solve(self._gram, self.transpose(x).double()).to(x.dtype)

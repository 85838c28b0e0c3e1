"""The space in which Metric 2.1 looks for its maximum: R^n, or the range of a random n x p matrix A."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lbdist.errors import InputError

CONVENTIONS = ("gaussian", "unit_columns", "uniform")
"""How a random A is drawn; the paper does not say."""

_ROWS = 1 << 16
_IN_MEMORY = 1 << 30
"""Bytes of A that are kept on the CPU instead of being drawn again; on a GPU, half of what is free."""


class FullSpace:
    """A = I: the n-dimensional space itself."""

    name, draw = "full", 0

    def __init__(self, n: int) -> None:
        self.dimension = n

    def times(self, y: Tensor) -> Tensor:
        """A y, a vector of the full space, of y in the subspace."""
        return y

    def transpose(self, g: Tensor) -> Tensor:
        """A^T g."""
        return g

    def pseudo_inverse(self, x: Tensor) -> Tensor:
        """A^+ x."""
        return x


class Subspace:
    """The range of A, of shape (n, p): given, or drawn in blocks of rows.

    A block is a function of (seed, draw, block), so that A y, A^T g and A^+ x see one matrix although it is
    drawn again for each when it does not fit. Numbers are drawn on the CPU: every device sees the same A.

    The paper leaves the distribution open. Columns of N(0, 1) (`gaussian`) give the order of magnitude of its
    Table 4; the same columns scaled to length 1 (`unit_columns`) give next to nothing, since the box does not
    grow; uniform numbers in [0, 1) (`uniform`) give far more, since all columns share a direction.

    Args:
        n: Parameters.
        p: Dimension of the subspace.
        seed: Seed of A.
        draw: Which A of that seed.
        convention: One of `CONVENTIONS`.
        like: A tensor whose device and precision A takes.
        matrix: A itself, instead of a draw.

    Raises:
        InputError: p is not between 1 and n, or the convention is unknown.
    """

    name = "subspace"

    def __init__(
        self,
        n: int,
        p: int,
        *,
        seed: int = 0,
        draw: int = 0,
        convention: str = "gaussian",
        like: Tensor,
        matrix: Tensor | None = None,
    ) -> None:
        if not 1 <= p <= n:
            raise InputError(f"subspace={p}: must be between 1 and the number of parameters, {n}")
        if convention not in CONVENTIONS:
            raise InputError(f"convention={convention}: must be one of {', '.join(CONVENTIONS)}")
        self.n, self.dimension, self.seed, self.draw, self.like = n, p, seed, draw, like
        self.convention = convention
        self._kept: list[Tensor] | None = None
        self._lengths: Tensor | None = None
        if matrix is not None:
            self._kept = [m.to(like) for m in matrix.split(_ROWS)]
            return
        if convention == "unit_columns":
            squares = torch.zeros(p, dtype=torch.float64, device=like.device)
            for block in self._blocks():
                squares += block.double().square().sum(0)
            self._lengths = squares.sqrt().to(like.dtype)
        room = torch.cuda.mem_get_info(like.device)[0] // 2 if like.is_cuda else _IN_MEMORY
        if n * p * like.element_size() <= room:
            self._kept = list(self._blocks())

    def _blocks(self) -> Iterator[Tensor]:
        if self._kept is not None:
            yield from self._kept
            return
        drawn = torch.rand if self.convention == "uniform" else torch.randn
        for block, start in enumerate(range(0, self.n, _ROWS)):
            words = (self.seed * 1_000_003 + self.draw) * 1_000_003 + block
            generator = torch.Generator().manual_seed(words)
            rows = min(_ROWS, self.n - start)
            found = drawn(rows, self.dimension, generator=generator).to(self.like)
            yield found if self._lengths is None else found / self._lengths

    def times(self, y: Tensor) -> Tensor:
        """A y, of shape (n,)."""
        found = y.new_empty(self.n)  # small tensors kept between the blocks would split the heap
        for block, part in zip(self._blocks(), found.split(_ROWS), strict=True):
            torch.mv(block, y, out=part)
        return found

    def transpose(self, g: Tensor) -> Tensor:
        """A^T g, of shape (p,)."""
        total = torch.zeros(self.dimension, dtype=torch.float64, device=g.device)
        for block, part in zip(self._blocks(), g.split(_ROWS), strict=True):
            total += part @ block
        return total.to(g.dtype)

    def pseudo_inverse(self, x: Tensor) -> Tensor:
        """A^+ x = (A^T A)^-1 A^T x, of shape (p,); the p x p Gram matrix is summed in float64."""
        gram = torch.zeros(self.dimension, self.dimension, dtype=torch.float64, device=x.device)
        for block in self._blocks():
            gram += (block.T @ block).double()
        return torch.linalg.solve(gram, self.transpose(x).double()).to(x.dtype)

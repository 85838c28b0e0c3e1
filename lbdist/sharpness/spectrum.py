"""The largest eigenvalue of the Hessian of f at a minimiser: flatness that no box enters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor

from lbdist.errors import require
from lbdist.sharpness.measure import Measure, Minimiser, Row, check_objective


def lambda_max(
    product: Callable[[Tensor], Tensor], x: Tensor, *, tolerance: float = 1e-3, iterations: int = 20
) -> tuple[float, bool, int]:
    """The largest eigenvalue of a symmetric matrix that is given by its products (Lanczos, through ARPACK).

    Args:
        product: Maps v of shape (n,) to H v.
        x: Any vector of that shape, device and precision.
        tolerance: Relative accuracy.
        iterations: Restarts of the Lanczos process.

    Returns:
        The eigenvalue, whether it was reached to the tolerance (else the largest Rayleigh quotient seen, a
        lower bound), and the products taken.

    Example:
        >>> H = torch.diag(torch.tensor([3.0, 1.0, -5.0], dtype=torch.float64))
        >>> value, converged, _ = lambda_max(lambda v: H @ v, H[0])
        >>> round(value, 6), converged
        (3.0, True)
    """
    products, largest, n = 0, -np.inf, len(x)

    def times(v: np.ndarray) -> np.ndarray:
        nonlocal products, largest
        products += 1
        found = product(torch.from_numpy(v.reshape(-1)).to(x)).double().cpu().numpy()
        largest = max(largest, float(v.reshape(-1) @ found / (v.reshape(-1) @ v.reshape(-1))))
        return found

    if n < 3:  # smaller than ARPACK takes
        matrix = np.stack([times(row) for row in np.eye(n)])
        return float(np.linalg.eigvalsh((matrix + matrix.T) / 2)[-1]), True, products
    start = np.random.default_rng(0).standard_normal(n)
    operator = LinearOperator((n, n), matvec=times, dtype=np.float64)
    try:
        (value,) = eigsh(operator, 1, which="LA", v0=start, tol=tolerance, maxiter=iterations,
                         return_eigenvectors=False)  # fmt: skip
    except ArpackNoConvergence:
        return largest, False, products
    return float(value), True, products


@dataclass
class LambdaMax(Measure):
    """lambda_max of the Hessian of f at the minimiser.

    Attributes:
        tolerance: Relative accuracy.
        iterations: Restarts of the Lanczos process.
        batch_norm: Statistics while measuring: `running`, `batch` or `recalibrated`.
        micro_batch_size: Samples taken through the network at once.
    """

    tolerance: float = 1e-3
    iterations: int = 20
    batch_norm: str = "running"
    micro_batch_size: int = 1000

    def __post_init__(self) -> None:
        require(0 < self.tolerance < 1, "tolerance", self.tolerance, "between 0 and 1")
        require(self.iterations >= 1, "iterations", self.iterations, "at least 1")
        check_objective(self.batch_norm, self.micro_batch_size)

    def __call__(self, at: Sequence[Minimiser]) -> list[Row]:
        """One row; `evaluations` counts products with the Hessian."""
        (minimiser,) = at
        f = minimiser.objective(batch_norm=self.batch_norm, micro_batch_size=self.micro_batch_size)
        value, converged, products = lambda_max(
            lambda v: f.curvature(minimiser.x, v),
            minimiser.x,
            tolerance=self.tolerance,
            iterations=self.iterations,
        )
        row = {"metric": "lambda_max", "split": "train", "batch_norm": self.batch_norm, "value": value}
        return [{**row, "converged": converged, "evaluations": products}]

"""The spectrum of the Hessian of f at a minimiser: flatness that no box enters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor

from lbdist.errors import require
from lbdist.results import Row
from lbdist.sharpness.measure import Measure, Minimiser, check_objective


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
    matrix = _Matrix(product, x)
    values, _ = matrix.largest(1, tolerance, iterations)
    if not len(values):
        return matrix.highest, False, matrix.products
    return float(values[0]), True, matrix.products


class _Matrix:
    """A symmetric matrix that is given by its products, as scipy takes one.

    Attributes:
        products: Products taken.
        highest: The largest Rayleigh quotient seen.
    """

    def __init__(self, product: Callable[[Tensor], Tensor], x: Tensor) -> None:
        self.product, self.x = product, x
        self.products, self.highest = 0, -np.inf

    def times(self, v: np.ndarray) -> np.ndarray:
        """The product with v, of shape (n,) or (n, 1)."""
        self.products += 1
        v = v.reshape(-1)
        found = self.product(torch.from_numpy(v).to(self.x)).double().cpu().numpy()
        self.highest = max(self.highest, float(v @ found / (v @ v)))
        return found

    def largest(self, k: int, tolerance: float, iterations: int) -> tuple[np.ndarray, np.ndarray]:
        """Those of the k largest eigenvalues that were reached, the largest first, and their vectors."""
        n = len(self.x)
        if k > n - 2:  # more than ARPACK takes
            matrix = np.stack([self.times(row) for row in np.eye(n)])
            values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
        else:
            start = np.random.default_rng(0).standard_normal(n)
            operator = LinearOperator((n, n), matvec=self.times, dtype=np.float64)
            try:
                values, vectors = eigsh(operator, k, which="LA", v0=start, tol=tolerance, maxiter=iterations)
            except ArpackNoConvergence as error:
                values, vectors = error.eigenvalues, error.eigenvectors
        order = np.argsort(values)[::-1][:k]
        return values[order], vectors[:, order]


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

    def cost(self) -> float:
        """Some 40 products with the Hessian, each of two gradients."""
        return 80.0

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


def eigenpairs(
    product: Callable[[Tensor], Tensor], x: Tensor, k: int, *, tolerance: float = 1e-3, iterations: int = 20
) -> tuple[np.ndarray, np.ndarray, int]:
    """The k largest eigenvalues of a symmetric matrix that is given by its products (Lanczos, ARPACK).

    Args:
        product: Maps v of shape (n,) to H v.
        x: Any vector of that shape, device and precision.
        k: How many, at most n.
        tolerance: Relative accuracy.
        iterations: Restarts of the Lanczos process.

    Returns:
        The eigenvalues that were reached, the largest first; the residual |H v - lambda v| of each, |v| = 1;
        and the products taken.

    Example:
        >>> H = torch.diag(torch.tensor([3.0, 1.0, -5.0, 0.5, 2.0], dtype=torch.float64))
        >>> values, residuals, _ = eigenpairs(lambda v: H @ v, H[0], 2, tolerance=1e-10)
        >>> values.round(6).tolist(), bool(residuals.max() < 1e-6)
        ([3.0, 2.0], True)
    """
    matrix = _Matrix(product, x)
    values, vectors = matrix.largest(k, tolerance, iterations)
    pairs = zip(values, vectors.T, strict=True)
    residuals = [np.linalg.norm(matrix.times(v) - value * v) for value, v in pairs]
    return values, np.array(residuals), matrix.products


@dataclass
class Spectrum(Measure):
    """The Hessian's largest eigenvalues, trace and spectral density, and how many eigenvalues are large.

    A large number of large positive eigenvalues is what Keskar et al. say that a sharp minimiser has (section
    2.2). Eigenvalues through ARPACK, each with its residual; the density by stochastic Lanczos quadrature and
    the trace by Hutchinson's estimator, both of curvlinops (Dangel et al. 2025).

    Attributes:
        top: How many of the largest eigenvalues.
        thresholds: What counts as large.
        probes: Random vectors of the trace and of the density.
        lanczos: Lanczos steps from each; the density has no finer detail than the range over these.
        resolution: Points of the density.
        tolerance: Relative accuracy of the eigenvalues.
        iterations: Restarts of the Lanczos process for them.
        batch_norm: Statistics while measuring: `running`, `batch` or `recalibrated`.
        micro_batch_size: Samples taken through the network at once.
    """

    top: int = 10
    thresholds: list[float] = field(default_factory=lambda: [1.0, 10.0])
    probes: int = 4
    lanczos: int = 30
    resolution: int = 256
    tolerance: float = 1e-3
    iterations: int = 20
    batch_norm: str = "running"
    micro_batch_size: int = 1000

    def __post_init__(self) -> None:
        for key in ("top", "probes", "resolution", "iterations"):
            require(1 <= getattr(self, key) <= 100_000, key, getattr(self, key), "from 1 to 100,000")
        require(2 <= self.lanczos <= 10_000, "lanczos", self.lanczos, "from 2 to 10,000")
        require(0 < self.tolerance < 1, "tolerance", self.tolerance, "between 0 and 1")
        check_objective(self.batch_norm, self.micro_batch_size)

    def check(self, parameters: int) -> None:
        """There are no more eigenvalues and Lanczos steps than parameters."""
        for key in ("top", "lanczos"):
            value = getattr(self, key)
            require(value <= parameters, key, value, f"at most {parameters}, the parameters")

    def cost(self) -> float:
        """Products with the Hessian, each of two gradients: of the eigenvalues, the trace and the density."""
        return 2.0 * (6 * self.top + self.probes * (1 + self.lanczos))

    def __call__(self, at: Sequence[Minimiser]) -> list[Row]:
        """Rows: `lambda_max`, `trace`; eigenvalues, residuals by rank; counts by threshold; the density."""
        from curvlinops.papyan2020traces.spectrum import (
            fast_lanczos,
            lanczos_approximate_spectrum_from_iter,
        )
        from curvlinops.trace.hutchinson import hutchinson_trace

        (minimiser,) = at
        f = minimiser.objective(batch_norm=self.batch_norm, micro_batch_size=self.micro_batch_size)
        x, n = minimiser.x, len(minimiser.x)

        def product(v: Tensor) -> Tensor:
            return f.curvature(x, v)

        values, residuals, products = eigenpairs(
            product, x, self.top, tolerance=self.tolerance, iterations=self.iterations
        )
        operator = _operator(product, x)
        with torch.random.fork_rng():  # curvlinops draws from the process's own generator
            torch.manual_seed(0)
            traces = torch.stack([hutchinson_trace(operator, 1) for _ in range(self.probes)]).double()
            runs = [fast_lanczos(operator, self.lanczos) for _ in range(self.probes)]
        products += self.probes * (1 + self.lanczos)
        row = {"split": "train", "batch_norm": self.batch_norm, "evaluations": products}
        reached = len(values) == self.top
        low = min(float(nodes.min()) for nodes, _ in runs)
        high = max(float(nodes.max()) for nodes, _ in runs)  # a lower bound, as every Ritz value is
        largest = float(values[0]) if len(values) else high
        rows = [
            {**row, "metric": "lambda_max", "value": largest, "converged": reached},
            {**row, "metric": "trace", "value": float(traces.mean())},
            {**row, "metric": "trace_error", "value": float(traces.std()) / self.probes**0.5},
        ]
        for rank, (value, residual) in enumerate(zip(values, residuals, strict=True), 1):
            rows.append({**row, "metric": "eigenvalue", "value": float(value), "position": rank})
            rows.append({**row, "metric": "residual", "value": float(residual), "position": rank})
        shares = [(nodes.double(), vectors[0].double().square()) for nodes, vectors in runs]
        for threshold in self.thresholds:
            share = float(np.mean([float(share[nodes > threshold].sum()) for nodes, share in shares]))
            seen = int((values > threshold).sum())
            exact = reached and seen < self.top  # the next one is below it
            count = float(seen) if exact else max(float(seen), n * share)
            at_threshold = {**row, "position": threshold, "converged": exact}
            rows.append({**at_threshold, "metric": "eigenvalues_above", "value": count})
            rows.append({**at_threshold, "metric": "share_above", "value": count / n})
        densities = []
        for run in runs:
            grid, density = lanczos_approximate_spectrum_from_iter(
                run, (low, max(high, largest)), self.resolution, 3.0, 0.05
            )
            densities.append(density.double())
        for where, value in zip(grid.tolist(), torch.stack(densities).mean(0).tolist(), strict=True):
            rows.append({**row, "metric": "density", "value": value, "position": where})
        return rows


def _operator(product: Callable[[Tensor], Tensor], x: Tensor) -> Any:
    """A matrix that is given by its products, as curvlinops takes one."""
    from curvlinops._torch_base import PyTorchLinearOperator

    class Operator(PyTorchLinearOperator):
        SELF_ADJOINT = True

        def __init__(self) -> None:
            super().__init__([tuple(x.shape)], [tuple(x.shape)])

        def _matmat(self, columns: list[Tensor]) -> list[Tensor]:
            return [torch.stack([product(v) for v in columns[0].T], 1)]

        device = property(lambda self: x.device)
        dtype = property(lambda self: x.dtype)

    return Operator()

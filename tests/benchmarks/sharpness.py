"""Sharpness: what each solver reaches for how many evaluations, and what an evaluation costs.

    python tests/benchmarks/sharpness.py table mnist1d plain       # generated on the spot
    python tests/benchmarks/sharpness.py table f1 --data MNIST     # a folder as data=parquet reads it
    python tests/benchmarks/sharpness.py speed f1 --data MNIST
    python tests/benchmarks/sharpness.py spectrum mnist1d          # needs hessian-eigenthings, PyHessian
    python tests/benchmarks/sharpness.py pool mnist1d
    python tests/benchmarks/sharpness.py budget mnist1d plain --samples 1000

`table` trains small-batch and large-batch minimisers, and holds every solver against a long search over many
starts; `share` is the rise that a solver found over the largest that anything found. `speed` compares one
(f, gradient) with a bare PyTorch pass, a whole value with its evaluations, and with what a user would
otherwise write (scipy on host vectors around a DataLoader). `spectrum` finds the five largest eigenvalues of
the Hessian to 1e-3, and so do two libraries. `pool` makes twenty measurements on one actor and on two.
`budget` says what a search in a random subspace reaches for its budget. All of it runs on a GPU where there
is one.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable

import numpy as np
import scipy.optimize
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lbdist import networks
from lbdist.data.base import on_device
from lbdist.data.mnist1d import MNIST1D
from lbdist.data.parquet import Parquet
from lbdist.objective import Objective
from lbdist.sharpness import Effort, box_sharpness
from lbdist.sharpness.neighbourhood import Neighbourhood
from lbdist.sharpness.subspace import Subspace

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EPSILONS = (1e-3, 5e-4)
DENSE = "lbdist.networks.dense.Dense"
TASKS = {  # network, small batch, large batch as a share, epochs of each
    "mnist1d": ({"_target_": DENSE, "inputs": 40, "widths": [256] * 3, "classes": 10}, 32, 0.1, 20, 40),
    "plain": (None, 32, 0.1, 40, 100),
    "f1": ({"_target_": DENSE, "inputs": 784, "widths": [512] * 5, "classes": 10}, 256, 0.1, 8, 40),
    "c1": ({"_target_": "lbdist.networks.convolutional.Shallow"}, 256, 0.1, 20, 60),
}


class Plain(nn.Sequential):
    """Three dense layers without batch norm."""

    def __init__(self) -> None:
        sizes = [40, 256, 256, 256]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(sizes):
            layers += [nn.Linear(before, after), nn.ReLU()]
        super().__init__(*layers, nn.Linear(sizes[-1], 10))


def data_of(name: str, folder: str | None, samples: int | None) -> tuple[Tensor, Tensor]:
    """A task's training set on the device."""
    channels = 1 if name == "f1" else 3
    source = (
        MNIST1D(train_samples=samples)
        if folder is None
        else Parquet(root=folder, channels=channels, train_samples=samples)
    )
    return on_device(source.load().train, DEVICE)


def minimiser(name: str, method: str, data: tuple[Tensor, Tensor]) -> nn.Module:
    """A network, trained with ADAM by a bare loop."""
    node, small, share, *epochs = TASKS[name]
    torch.manual_seed(0)
    network = (networks.make(node, 0) if node else Plain()).to(DEVICE)
    (inputs, labels), batch = data, small if method == "SB" else round(share * len(data[1]))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)
    for _ in range(epochs[method == "LB"]):
        for index in torch.randperm(len(labels)).to(DEVICE).split(batch):
            if len(index) > 1:
                optimizer.zero_grad()
                F.cross_entropy(network(as_float(inputs[index])), labels[index]).backward()
                optimizer.step()
    return network.eval()


def as_float(inputs: Tensor) -> Tensor:
    """Images in [0, 1]."""
    return inputs.float() / 255 if inputs.dtype == torch.uint8 else inputs


class Box:
    """f over one box in u = z / b; remembers the best value after each evaluation."""

    def __init__(self, f: Callable, bound: Tensor) -> None:
        self.f, self.bound, self.best = f, bound, [-np.inf]

    def __call__(self, u: Tensor) -> tuple[float, Tensor]:
        value, gradient = self.f(self.bound * u)
        self.best.append(max(value, self.best[-1]))
        return value, self.bound * gradient


def random_vertex(bound: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randint(0, 2, bound.shape, generator=generator) * 2 - 1).to(bound)


def auto_pgd(f: Box, seed: int, steps: int) -> None:
    """Auto-PGD on the box (Croce & Hein 2020, algorithm 1; alpha 0.75, rho 0.75), from a random point."""
    generator = torch.Generator().manual_seed(seed)
    u = (2 * torch.rand(f.bound.shape, generator=generator) - 1).to(f.bound)
    marks, last, gap = [0], 0.0, 0.22
    while marks[-1] < steps:  # p_0 = 0, p_1 = 0.22, p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06)
        last += gap
        gap = max(gap - 0.03, 0.06)
        marks.append(int(np.ceil(last * steps)))
    step, before = 2.0, u
    value, gradient = f(u)
    best_u, best, best_gradient, rose = u, value, gradient, 0
    at_mark, step_at_mark = best, step
    for k in range(steps - 1):
        z = (u + step * gradient.sign()).clamp(-1, 1)
        new = z if k == 0 else (u + 0.75 * (z - u) + 0.25 * (u - before)).clamp(-1, 1)
        before, u = u, new
        new_value, gradient = f(u)
        rose += new_value > value
        value = new_value
        if value > best:
            best_u, best, best_gradient = u, value, gradient
        if k + 1 in marks[1:]:
            length = k + 1 - marks[marks.index(k + 1) - 1]
            if rose < 0.75 * length or (step_at_mark == step and at_mark == best):
                step_at_mark, step = step, step / 2
                u, value, gradient = best_u, best, best_gradient
            else:
                step_at_mark = step
            rose, at_mark = 0, best


def scaled_bfgs(f: Box, seed: int, iterations: int) -> None:
    """L-BFGS-B with the box scaled to [-1, 1] and f to its first rise, from half a random vertex."""
    start = 0.5 * random_vertex(f.bound, seed)
    scale = float(f(start)[1].abs().sum()) or 1.0

    def negative(u: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = f(torch.from_numpy(u).to(f.bound))
        return -value / scale, -gradient.double().cpu().numpy() / scale

    limits = np.ones(len(start))
    scipy.optimize.minimize(
        negative, start.double().cpu().numpy(), jac=True, method="L-BFGS-B",
        bounds=scipy.optimize.Bounds(-limits, limits), options={"maxiter": iterations, "ftol": 0, "gtol": 0},
    )  # fmt: skip


def vertices(f: Box, seed: int, steps: int) -> None:
    """The plain vertex iteration, no more: from one random vertex after another."""
    while len(f.best) <= steps:
        u, value = random_vertex(f.bound, seed), -np.inf
        while len(f.best) <= steps:
            new, gradient = f(u)
            if new <= value + 1e-4 * abs(value):
                break
            value, u = new, torch.where(gradient == 0, u, gradient.sign())
        seed += 1


def table(name: str, data: tuple[Tensor, Tensor], long: int) -> None:
    """Value against evaluations of every solver, in each space and box."""
    marks = (10, 20, 40, 60)
    for method in ("SB", "LB"):
        f = Objective(minimiser(name, method, data), data, micro_batch_size=5000)
        x = f.x
        f0 = f(x)[0]
        for space in ("full", "subspace"):
            there = Subspace(len(x), 100, like=x) if space == "subspace" else None
            near = Neighbourhood(f, x, there)

            def phi(value: float, f0: float = f0) -> float:
                return 100 * (value - f0) / (1 + f0)

            found = {(s, e): near.sharpness(e, s) for e in EPSILONS for s in ("paper", "converged")}
            for epsilon in EPSILONS:
                bound = epsilon * near.scale
                lines, best = {}, [found[solver, epsilon].value for solver in ("paper", "converged")]
                rivals = {
                    "auto-pgd, 20 steps": lambda box: [auto_pgd(box, seed, 20) for seed in range(3)],
                    "auto-pgd, 60 steps": lambda box: auto_pgd(box, 0, 60),
                    "scaled L-BFGS-B": lambda box: [scaled_bfgs(box, seed, 25) for seed in range(2)],
                    "vertex iteration": lambda box, steps=long if there is None else 2 * long: vertices(
                        box, 100, steps
                    ),
                }
                for rival, run in rivals.items():
                    box = Box(near._at, bound)
                    run(box)
                    reached = [phi(box.best[min(mark, len(box.best) - 1)]) for mark in marks]
                    lines[rival], best = reached, [*best, phi(box.best[-1])]
                other = Neighbourhood(f, x, there, seed=1)
                best.append(
                    other.sharpness(
                        epsilon, effort=Effort(starts=10, budget=(2 if there else 1) * long)
                    ).value
                )
                reference = max(best)
                print(f"{name} {method} {space} {epsilon:g}: f0 {f0:.4g}, reference {reference:.5g}")
                for solver in ("paper", "converged"):
                    r = found[solver, epsilon]
                    print(
                        f"  {solver:<20} {r.value:10.5g} share {r.value / reference:.4f} "
                        f"evaluations {r.evaluations:3d} converged {r.converged} from {r.start}"
                    )
                for rival, reached in lines.items():
                    shares = "  ".join(
                        f"{m}: {v / reference:.4f}" for m, v in zip(marks, reached, strict=True)
                    )
                    print(f"  {rival:<20} share after {shares}", flush=True)


def budget(names: list[str], folder: str | None, samples: int | None) -> None:
    """The share that searches in two subspaces at each model reach of the best that any found."""
    budgets = (20, 40, 80, 160, 320)
    reached: dict[int, list[tuple[float, int, bool]]] = {most: [] for most in budgets}
    for name in names:
        data = data_of(name, folder, samples)
        for method in ("SB", "LB"):
            f = Objective(minimiser(name, method, data), data, micro_batch_size=5000)
            for draw, epsilon in itertools.product((0, 1), EPSILONS):
                there = Subspace(len(f.x), 100, draw=draw, like=f.x)
                found = {
                    (most, seed): Neighbourhood(f, f.x, there, seed=seed).sharpness(
                        epsilon, effort=Effort(starts=30, budget=most)
                    )
                    for most, seed in (*((most, 0) for most in budgets), (500, 0), (500, 1))
                }
                best = max(r.value for r in found.values())
                for most in budgets:
                    r = found[most, 0]
                    reached[most].append((r.value / best, r.evaluations, r.converged))
                shares = "  ".join(f"{most}: {reached[most][-1][0]:.4f}" for most in budgets)
                print(f"{name} {method} draw {draw} {epsilon:g}: share at budget {shares}", flush=True)
    print("1 is the best of these searches and two of 500 evaluations")
    for most, of in reached.items():
        shares = sorted(share for share, _, _ in of)
        evaluations = statistics.mean(count for _, count, _ in of)
        claimed = [share for share, _, converged in of if converged]
        good = sum(share >= 0.99 for share in shares)
        claims = f"{len(claimed)} claimed" + (f", the worst {min(claimed):.4f}" if claimed else "")
        print(
            f"budget {most:3d} ({evaluations:.0f} evaluations): mean {statistics.mean(shares):.3f}, "
            f"worst {shares[0]:.2f}, {good} of {len(shares)} at least 0.99; {claims}"
        )


def speed(name: str, data: tuple[Tensor, Tensor]) -> None:
    """One evaluation against a bare pass, a value against its evaluations and against scipy and a loader."""
    network = minimiser(name, "SB", data)
    inputs, labels = data
    size = 5000

    def seconds(work: Callable[[], object]) -> float:
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        work()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    def bare() -> float:
        network.zero_grad()
        total = torch.zeros((), device=DEVICE)
        for x, y in zip(inputs.split(size), labels.split(size), strict=True):
            loss = F.cross_entropy(network(as_float(x)), y, reduction="sum")
            loss.backward()
            total += loss.detach()
        torch.cat([p.grad.reshape(-1) for p in network.parameters()]).div_(len(labels))
        return float(total) / len(labels)

    f = Objective(network, data, micro_batch_size=size)
    x = f.x
    f(x), bare()
    pairs = [(seconds(lambda: f(x)), seconds(bare)) for _ in range(9)]
    ratios = sorted(ours / theirs for ours, theirs in pairs)
    one = statistics.median(ours for ours, _ in pairs)
    flops = 6 * len(labels) * len(x)
    print(
        f"{name}: (f, gradient) {1e3 * one:.1f} ms, {statistics.median(ratios):.3f} of a bare pass (of 9: "
        f"{ratios[0]:.3f} to {ratios[-1]:.3f})"
        + (f"; {flops / one / 1e12:.3g} TFLOP/s" if "1" in name else "")
    )
    found = box_sharpness(f, x)
    again = [seconds(lambda: f(x)) for _ in range(3)]
    cost = found.seconds / (found.evaluations * statistics.median(again))
    print(
        f"{name}: one value {found.seconds:.2f} s, {found.evaluations} evaluations: {cost:.3f} of that many"
    )

    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(inputs.cpu(), labels.cpu()), batch_size=size
    )
    limits = 1e-3 * (x.abs().double().cpu().numpy() + 1)
    passes = 0

    def negative(z: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal passes
        passes += 1
        nn.utils.vector_to_parameters(x + torch.from_numpy(z).to(x), network.parameters())
        network.zero_grad()
        total = 0.0
        for a, b in loader:
            loss = F.cross_entropy(network(as_float(a.to(DEVICE))), b.to(DEVICE), reduction="sum")
            loss.backward()
            total += loss.item()
        gradient = torch.cat([p.grad.reshape(-1) for p in network.parameters()]) / len(labels)
        return -total / len(labels), -gradient.double().cpu().numpy()

    took = seconds(
        lambda: scipy.optimize.minimize(
            negative, np.zeros(len(x)), jac=True, method="L-BFGS-B",
            bounds=scipy.optimize.Bounds(-limits, limits), options={"maxiter": 10},
        )
    )  # fmt: skip
    print(
        f"{name}: scipy around a DataLoader: {took / passes:.3f} s an evaluation ({passes}), "
        f"{took / passes / (found.seconds / found.evaluations):.2f} times ours"
    )


def spectrum(name: str, data: tuple[Tensor, Tensor]) -> None:
    """Seconds of the five largest eigenvalues, ours and of the libraries that are installed, thrice each."""
    from lbdist.sharpness.spectrum import eigenpairs

    network = minimiser(name, "SB", data)
    inputs, labels = as_float(data[0]), data[1]
    f = Objective(network, data, micro_batch_size=1000)
    x = f.x
    f.curvature(x, x)

    def ours() -> list[float]:
        return eigenpairs(lambda v: f.curvature(x, v), x, 5, tolerance=1e-3)[0].tolist()

    def eigenthings() -> list[float]:
        import hessian_eigenthings

        batches = list(zip(inputs.split(1000), labels.split(1000), strict=True))
        operator = hessian_eigenthings.HessianOperator(
            network, batches, lambda network, batch: F.cross_entropy(network(batch[0]), batch[1])
        )
        found = hessian_eigenthings.lanczos(operator, k=5, which="LA", max_iter=40, tol=1e-3, seed=0)
        return sorted(found.eigenvalues.tolist())[::-1]

    def pyhessian() -> list[float]:
        import pyhessian

        batches = list(zip(inputs.split(1000), labels.split(1000), strict=True))
        hessian = pyhessian.hessian(network, F.cross_entropy, dataloader=batches, cuda=DEVICE == "cuda")
        return hessian.eigenvalues(maxIter=100, tol=1e-3, top_n=5)[0]

    times: dict[str, list[float]] = {}
    for _ in range(3):
        for solver in (ours, eigenthings, pyhessian):
            began = time.perf_counter()
            try:
                values = solver()
            except ImportError:
                continue
            times.setdefault(solver.__name__, []).append(time.perf_counter() - began)
            shown = ", ".join(f"{value:.4g}" for value in values)
            print(f"{name}: {solver.__name__:<12} {times[solver.__name__][-1]:.2f} s: {shown}", flush=True)
    for rival in [key for key in times if key != "ours"]:
        ratio = statistics.median(a / b for a, b in zip(times[rival], times["ours"], strict=True))
        print(f"{name}: {rival} takes {ratio:.2f} times as long (median of 3)")


def pool(name: str) -> None:
    """Twenty measurements at five models, on one actor and on two, in turns."""
    import ray

    from lbdist.capacity import Capacity
    from lbdist.plan import Cell, Measurement, Point
    from lbdist.sharpness.pool import measure_all
    from lbdist.storage import Store
    from lbdist.training.cell import run_cell

    node = TASKS[name][0]
    dataset = MNIST1D(train_samples=1000, test_samples=100).load()
    common = {"data": {"_target_": "", "name": "d"}, "loss": {"_target_": "lbdist.losses.CrossEntropy"}}
    cells = [
        Cell(network=node, optimizer={"_target_": "torch.optim.Adam", "lr": 1e-3}, remedies=(), epochs=5,
             global_batch_size=100, seed=seed, num_workers=1, test_points=1, **common)
        for seed in range(5)
    ]  # fmt: skip
    base = {"_target_": "lbdist.sharpness.metric.BoxSharpness", "solvers": ["converged"]}
    places = [
        {"spaces": ["full"]},
        *({"spaces": ["subspace"], "draw": draw, "budget": 20} for draw in range(3)),
    ]
    with tempfile.TemporaryDirectory() as folder:
        for cell in cells:
            run_cell(cell, dataset, Store(folder))
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        data = ray.put(dataset)
        jobs = [Measurement({**base, **place}, (Point(cell),)) for cell in cells for place in places]
        ratios = []
        for _ in range(3):
            took = []
            for actors in (1, 2):
                ends: list[float] = []
                measure_all(jobs, data, Store(folder), capacity=Capacity(actors, 0),
                            done=lambda job, rows, ends=ends: ends.append(time.perf_counter()))  # fmt: skip
                took.append(ends[-1] - ends[0])  # from the first that is done: without the actors' start
            ratios.append(took[0] / took[1])
            print(
                f"{name}: {took[0]:.1f} s on one actor, {took[1]:.1f} s on two: {ratios[-1]:.2f} times",
                flush=True,
            )
        ray.shutdown()


def main() -> None:
    """Runs what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("table", "speed", "spectrum", "pool", "budget"))
    parser.add_argument("networks", nargs="+", choices=TASKS)
    parser.add_argument("--data", help="folder of images as data=parquet reads it")
    parser.add_argument("--samples", type=int, help="training samples")
    parser.add_argument("--long", type=int, default=200, help="evaluations of a long search")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.what == "budget":
        budget(given.networks, given.data, given.samples)
        return
    for name in given.networks:
        data = data_of(name, given.data, given.samples)
        if given.what == "table":
            table(name, data, given.long)
        elif given.what == "speed":
            speed(name, data)
        elif given.what == "spectrum":
            spectrum(name, data)
        else:
            pool(name)


if __name__ == "__main__":
    main()

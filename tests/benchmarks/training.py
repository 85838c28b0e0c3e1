"""What a cell costs against a bare in-memory PyTorch loop of the same work, in one run, as a ratio.

    python tests/benchmarks/training.py

The two take turns, so that a machine whose speed drifts does so for both. The bare loop is what a user would
write: PyTorch's layers, its fused ADAM, the data as tensors, the test set evaluated as often; lbdist also
checkpoints every epoch.
"""

import statistics
import tempfile
import time

import torch
import torch.nn.functional as F

from lbdist import networks
from lbdist.config.build import plain
from lbdist.config.compose import compose
from lbdist.data.mnist1d import MNIST1D
from lbdist.plan import Cell
from lbdist.storage import Store
from lbdist.training.loop import train

EPOCHS, REPEATS, EVERY = 6, 5, 2


def bare(cell: Cell, data) -> float:
    """Seconds of the bare loop."""
    network = networks.make(cell.network, 0)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)
    (x, y), (tx, ty) = [(torch.tensor(s.inputs), torch.tensor(s.labels)) for s in (data.train, data.test)]
    began = time.perf_counter()
    for epoch in range(EPOCHS):
        network.train()
        for index in torch.randperm(len(y)).split(cell.global_batch_size):
            optimizer.zero_grad()
            F.cross_entropy(network(x[index]), y[index]).backward()
            optimizer.step()
        if (epoch + 1) % EVERY == 0:
            network.eval()
            with torch.no_grad():
                scores = torch.cat([network(part) for part in tx.split(1000)])
                F.cross_entropy(scores, ty).item(), (scores.argmax(1) == ty).double().mean().item()
    return time.perf_counter() - began


def ours(cell: Cell, data) -> float:
    """Seconds of the cell, as its row says."""
    with tempfile.TemporaryDirectory() as folder:
        rows, _ = train(cell, data, store=Store(folder))
    return next(row["value"] for row in rows if row["metric"] == "seconds")


def main() -> None:
    """Prints the ratio for the small and the large batch."""
    torch.set_num_threads(1)
    data = MNIST1D().load()
    network = {**plain(compose().network), "inputs": 40, "classes": 10}
    for batch in (32, 400):
        cell = Cell(
            network=network, data={"_target_": ""}, loss={"_target_": "lbdist.losses.CrossEntropy"},
            optimizer={"_target_": "torch.optim.Adam", "lr": 1e-3}, remedies=(), global_batch_size=batch,
            epochs=EPOCHS, seed=0, num_workers=1, test_points=EPOCHS // EVERY,
        )  # fmt: skip
        bare(cell, data), ours(cell, data)  # warm up
        pairs = [(ours(cell, data), bare(cell, data)) for _ in range(REPEATS)]
        ratios = [a / b for a, b in pairs]
        images = EPOCHS * len(data.train) / statistics.median(a for a, _ in pairs)
        print(
            f"batch {batch}: lbdist / bare loop = {statistics.median(ratios):.3f} (median of {REPEATS}, "
            f"{min(ratios):.3f} to {max(ratios):.3f}); {images:,.0f} samples/s"
        )


if __name__ == "__main__":
    main()

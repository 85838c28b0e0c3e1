"""What a second node of one core adds to a fixed large-batch job, and what the program adds to a job's start.

    python tests/benchmarks/cluster.py

Two nodes on this machine, each of one CPU; gloo over loopback; the data resident in each worker. The job is
F1 on 60,000 images of 784 pixels, the paper's global batch of 6,000; one node and two take turns, with
batch norm over both and with ghost batches, which need no word between them. A job's start is the time from
`ray job submit` to the line that it prints once it has joined the cluster: a script that does only that, and
lbdist, which has by then read its data and tried its network.
"""

import os
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import ray
from ray.cluster_utils import Cluster

from lbdist import results
from lbdist.capacity import Capacity
from lbdist.config.build import plain
from lbdist.config.compose import compose
from lbdist.data.base import Dataset, Split
from lbdist.plan import Cell
from lbdist.storage import Store
from lbdist.training import ray_train

REPEATS, EPOCHS, SAMPLES = 3, 4, 60_000
BARE = 'import ray; ray.init(log_to_driver=False, logging_level="CRITICAL"); print("joined", flush=True)'


def images() -> Dataset:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (SAMPLES + 1000, 1, 28, 28), np.uint8)
    labels = random.integers(0, 10, SAMPLES + 1000)
    return Dataset(Split(pixels[:SAMPLES], labels[:SAMPLES]), Split(pixels[SAMPLES:], labels[SAMPLES:]), 10)


def throughput(workers: int, ghost: int | None, data: ray.ObjectRef) -> float:
    """Samples a second of one job on so many workers."""
    config = compose(["network=f1", "data=mnist"])
    config.derived.inputs, config.derived.classes, config.derived.outputs = 784, 10, 10
    nodes = {key: plain(config[key]) for key in ("network", "data", "loss", "optimizer")}
    cell = Cell(
        **nodes,
        remedies=(),
        global_batch_size=6000,
        ghost_batch_size=ghost,
        epochs=EPOCHS,
        seed=0,
        num_workers=workers,
        test_points=1,
    )
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        ray_train.fit(
            [cell], workers, data, store, store / "train", capacity=Capacity(2, 0), retries=0, callbacks=[]
        )
        rows = results.read_rows(store, results.cell_file(cell.id))
    (seconds,) = (row["value"] for row in rows if row["metric"] == "seconds")
    return EPOCHS * SAMPLES / seconds


def start(address: str, *command: str) -> float:
    """Seconds from `ray job submit` to the line with which a job says that it has joined.

    Each line gets its time where it is printed, since Ray passes a job's lines on once a second.
    """
    stamped = f'{shlex.join(command)} | while IFS= read -r line; do echo "$(date +%s.%N) $line"; done'
    began = time.time()
    job = subprocess.run(
        ["ray", "job", "submit", "--address", address, "--", "sh", "-c", stamped],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True, timeout=120,
    )  # fmt: skip
    (joined,) = re.findall(r"^(\d+\.\d+) joined", job.stdout, re.MULTILINE)
    return float(joined) - began


def scaling() -> None:
    """Prints what the second node adds."""
    head = {"num_cpus": 0, "include_dashboard": True, "dashboard_port": 0}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    try:
        ray.init(cluster.address, log_to_driver=False, logging_level="CRITICAL")
        data = ray.put(images())
        for ghost in (None, 1000):
            found: dict[int, list[float]] = {1: [], 2: []}
            for _ in range(REPEATS):
                for workers in found:
                    found[workers].append(throughput(workers, ghost, data))
            one, two = (statistics.median(found[workers]) for workers in found)
            norm = f"ghost batches of {ghost}" if ghost else "batch norm over all workers"
            ratio = f"{two / one:.2f} times (n = {REPEATS})"
            print(f"{norm}: {one:,.0f} samples/s on one node, {two:,.0f} on two, {ratio}", flush=True)
    finally:
        ray.shutdown()
        cluster.shutdown()


def starting() -> None:
    """Prints what a job takes to start."""
    port = 20_000 + os.getpid() % 10_000
    head = {"num_cpus": 2, "include_dashboard": True, "dashboard_port": port}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    address, folder = f"http://127.0.0.1:{port}", tempfile.mkdtemp()
    study = ["experiment=gap", "study.equal_loss=null", "epochs=1", "seeds=1", "measure=[distance]"]
    starts: dict[str, list[float]] = {"bare": [], "lbdist": []}
    try:
        for place in range(REPEATS):
            program = [sys.executable, "-m", "lbdist.run", *study, f"storage={folder}/{place}"]
            starts["bare"].append(start(address, sys.executable, "-c", BARE))
            starts["lbdist"].append(start(address, *program))
    finally:
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
    bare, ours = (statistics.median(values) for values in starts.values())
    print(f"a job's start: bare {bare:.1f} s, lbdist {ours:.1f} s, {ours - bare:.1f} s more (n = {REPEATS})")


if __name__ == "__main__":
    short = Path(tempfile.gettempdir(), f"lbb{os.getpid()}")
    os.environ |= {"RAY_TMPDIR": str(short), "RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"}
    try:
        starting()
        scaling()
    finally:
        shutil.rmtree(short, ignore_errors=True)

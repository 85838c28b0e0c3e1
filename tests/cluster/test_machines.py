"""The program on clusters of several nodes: what it asks of them; nodes, drivers and studies may die."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import ray
import yaml
from ray.cluster_utils import Cluster
from ray.util import state

import lbdist
from lbdist import cluster, machines, processes, results
from lbdist.capacity import Capacity
from lbdist.data.mnist1d import MNIST1D
from lbdist.errors import InputError
from lbdist.storage import Store
from lbdist.training.loop import train
from lbdist.tuning.book import read_cells
from tests.support.commands import UNMEASURED, agree, cmdline, here, start, table, values

QUICK = {"health_check_period_ms": 500, "health_check_timeout_ms": 500, "health_check_failure_threshold": 4}
"""A node that is gone is missed within seconds."""


@pytest.fixture(scope="module")
def two() -> Iterator[Cluster]:
    """A head without CPUs, and two nodes of one each."""
    short = Path(tempfile.gettempdir(), f"lbc{os.getpid()}")  # apart from the Rays of others
    head = {"num_cpus": 0, "include_dashboard": True, "dashboard_port": 0, "_system_config": QUICK}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", str(short))
        found = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(2):
            found.add_node(num_cpus=1)
        found.wait_for_nodes()
        yield found
        found.shutdown()
    shutil.rmtree(short, ignore_errors=True)


@pytest.fixture(autouse=True)
def apart() -> Iterator[None]:
    """A test that connects leaves."""
    yield
    ray.shutdown()


class Run:
    """The command on a cluster, and what it has printed so far."""

    def __init__(self, at: Cluster, storage: Path, *arguments: str, **options: Any) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RAY_ADDRESS", at.address)
            self.process = start(storage, *arguments, **options)
        self.out: list[str] = []
        self.err: list[str] = []
        self._readers = []
        for stream, lines in ((self.process.stdout, self.out), (self.process.stderr, self.err)):
            reader = threading.Thread(target=lambda s=stream, found=lines: found.extend(s))
            reader.start()
            self._readers.append(reader)

    def until(self, condition: Callable[[], Any], seconds: float = 180) -> Any:
        end = time.monotonic() + seconds
        while not (found := condition()):
            assert self.process.poll() is None and time.monotonic() < end, "".join(self.out + self.err)
            time.sleep(0.1)
        return found

    def said(self, text: str) -> bool:
        return any(text in line for line in self.out)

    def ended(self, status: int = 0, seconds: float = 500) -> str:
        self.process.wait(seconds)
        for reader in self._readers:
            reader.join(20)
        assert self.process.returncode == status, "".join(self.out + self.err)
        assert not any("Traceback" in line for line in self.out + self.err), "".join(self.out + self.err)
        return "".join(self.out)


def processes_at(node: Any, name: str) -> list[psutil.Process]:
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    return [child for child in raylet.children(recursive=True) if name in " ".join(cmdline(child)[:1])]


def processes_of(of: Cluster, name: str) -> list[psutil.Process]:
    """A cluster's processes of this name."""
    return [process for node in (of.head_node, *of.worker_nodes) for process in processes_at(node, name)]


def holder(of: Cluster, name: str) -> Any:
    """A node at which a process of this name runs."""
    return next((node for node in of.worker_nodes if processes_at(node, name)), None)


def test_nodes_come_and_go_and_the_table_is_the_same(
    two: Cluster, alone: tuple[Path, str], cache: str, tmp_path: Path
) -> None:
    """Lost from a worker group, from the Tune study, from the pool; another one comes each time.

    Before, somebody else's study on the same cluster has lost its driver, and the group its controller and
    its trial, one after the other, by kill -9.
    """
    for name in ("mine", "yours"):
        (tmp_path / name).mkdir()
    yours = Run(two, tmp_path / "yours", "experiment=batch_size", "epochs=2000", "precision=float32", cache)
    yours.until(lambda: holder(two, "ray::ImplicitFunc"))
    fields = ["experiment=remedies", "remedy=[none,robust]", "retries=5", cache]
    run = Run(two, tmp_path / "mine", *fields)
    run.until(lambda: run.said("joined the cluster"))
    yours.process.kill()

    def lose(name: str) -> None:
        two.remove_node(run.until(lambda: holder(two, name)), allow_graceful=False)
        two.add_node(num_cpus=1, wait=False)

    run.until(lambda: holder(two, "ray::RayTrainWorker"))
    for name in ("ray::TrainController", "ray::ImplicitFunc"):
        run.until(lambda name=name: len(processes_of(two, name)) == 1)  # the other study's are gone
        (process,) = processes_of(two, name)
        process.kill()
        process.wait(30)
    lose("ray::RayTrainWorker")
    run.until(lambda: run.said("LB on 2 workers in float32 seed 0: test"))
    lose("ray::ImplicitFunc")
    run.until(lambda: run.said("measurements to make"))
    lose("ray::Evaluator")
    out = run.ended()
    assert "3 nodes with 2 CPUs and 0 GPUs" in out
    undisturbed, found = values(alone[0] / "remedies"), values(tmp_path / "mine" / "remedies")
    undisturbed = undisturbed[undisturbed.index.get_level_values("remedy").isin(["none", "robust"])]
    group = found.index.get_level_values("num_workers") == 2
    assert group.any()
    found = found[~group]
    assert found.index.equals(undisturbed.index)
    agree(found, undisturbed, least=len(found))

    for name in ("leaderboard", "fit"):  # but for the seconds, which the first of them has
        tables = [place / "remedies" / "tables" / f"{name}.csv" for place in (tmp_path / "mine", alone[0])]
        read = (pd.read_csv(file, index_col="method") for file in tables)
        ours, theirs = (found.drop(columns="seconds", errors="ignore") for found in read)
        assert list(ours.index) == ["SB", "LB", "LB + robust"] and len(ours.columns) > 5
        pd.testing.assert_frame_equal(ours, theirs.loc[ours.index], rtol=0, atol=1e-6)

    def plain(text: str) -> list[tuple[str, str]]:  # of each method
        return re.findall(r"^(SB|LB(?: \+ robust)?) {2,}(\d+\.\d+) ", table(text), re.MULTILINE)

    assert plain(out) == plain(alone[1]) and len(plain(out)) == 3
    ray.init(two.address, log_to_driver=False)
    assert ray.available_resources().get("CPU") == 2  # all that was taken is free again


def test_a_group_that_lost_a_worker_for_good_goes_on_with_fewer(
    two: Cluster, cache: str, tmp_path: Path
) -> None:
    fields = ["experiment=batch_size", "study.batches=[100]", "num_workers=2", "epochs=60", cache]
    fields += ["optimizer=sgd", "optimizer.lr=0.005", "regroup_seconds=1", "precision=float32"]
    run = Run(two, tmp_path, *fields, "measure=[]", shrunk=UNMEASURED)
    run.until(lambda: list(tmp_path.glob("cells/*/resume.pt")))
    two.remove_node(run.until(lambda: holder(two, "ray::RayTrainWorker")), allow_graceful=False)
    out = run.ended()
    two.add_node(num_cpus=1)
    assert "seed 0: went on with 1 of its 2 workers, to the same end" in out
    actors = {actor.class_name for actor in state.list_actors(two.address, limit=1000)}  # the dead too
    assert {"TrainController", "RayTrainWorker"} <= actors
    # of which a group has no use, and for which it would wait
    assert not actors & {"DatasetManager", "PlacementGroupCleaner", "PreemptionWatcher"}
    rows = results.load(tmp_path / "batch_size").query("metric == 'running_loss'")
    # the same trajectory, whoever computed it: one process that nothing disturbed
    data = MNIST1D(root=cache.partition("=")[2], train_samples=400, test_samples=200).load()
    for name in rows["cell"].unique():
        alone, _ = train(read_cells(Store(tmp_path), [name])[0][0], data)
        expected = [row["value"] for row in alone if row["metric"] == "running_loss"]
        found = rows[rows["cell"] == name].sort_values("epoch")["value"]
        # steps are so small that roundings do not grow: of two workers undisturbed, 7e-8
        assert list(found)[:5] == pytest.approx(expected[:5], rel=1e-4)
        assert list(found) == pytest.approx(expected, rel=0.01)


def test_what_does_not_fit_is_one_line(
    two: Cluster, cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More workers than there are; other code on a node."""
    monkeypatch.setenv("RAY_ADDRESS", two.address)
    storage = tmp_path / "storage"
    words = ["experiment=gap", "study.equal_loss=null", cache]
    said = here(storage, *words, "num_workers=9", status=2).splitlines()[-1]
    ray.shutdown()
    assert said.startswith(
        "lbdist: num_workers=9: must be at most 2, what the cluster has (3 nodes with 2 CPUs"
    )
    other = tmp_path / "other"
    shutil.copytree(Path(lbdist.__file__).parent, other / "lbdist")
    with (other / "lbdist" / "plan.py").open("a") as file:
        file.write("# of another version\n")
    node = two.add_node(num_cpus=1, env_vars={"PYTHONPATH": str(other)})
    storage.mkdir(exist_ok=True)
    run = Run(two, storage, *words)  # a process of its own, since a node also looks where this one does
    run.ended(2, 60)
    (line,) = run.err
    assert line.startswith("lbdist: RAY_ADDRESS=")
    assert "must be a cluster of the driver's code (lbdist " in line
    assert list(storage.iterdir()) == []
    two.remove_node(node)


def test_what_waits_is_told_and_what_never_comes_ends(two: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    ray.init(two.address, log_to_driver=False)
    monkeypatch.setattr(cluster, "LOOK_SECONDS", 0.2)
    monkeypatch.setattr(cluster, "SAY_SECONDS", 1.0)
    monkeypatch.setattr(cluster, "PATIENCE_SECONDS", 3.0)
    ends: list[str] = []
    monkeypatch.setattr(processes, "end", lambda status, line: ends.append(f"{status} {line}"))
    said: list[str] = []
    group = ray.util.placement_group([{"CPU": 1}] * 3)
    with cluster._telling(said.append, "go on", grows=False):
        time.sleep(2.5)
        assert said == ["waiting for 3 CPU (the cluster has 2, of which 2 free)"] and not ends
        end = time.monotonic() + 10
        while not ends:
            assert time.monotonic() < end
            time.sleep(0.1)
    assert ends[0] == f"1 {said[0]}, for 0 min; go on"
    ray.util.remove_placement_group(group)
    said.clear()

    class Busy:  # sent whole: this module is not on the nodes
        def ready(self) -> None:
            """It runs."""

    taken = [ray.remote(Busy).options(num_cpus=1).remote() for _ in range(3)]
    ray.get([actor.ready.remote() for actor in taken[:2]])
    with cluster._telling(said.append, "go on", grows=False):
        time.sleep(3)
    assert said == ["waiting for 1 CPU (the cluster has 2, of which 0 free)"]
    with cluster._telling(said.append, "go on", grows=False):
        for actor in taken:
            ray.kill(actor)
        time.sleep(2)
    assert len(said) == 1


def test_the_users_own_modules_go_to_the_nodes(
    two: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are imported there from what was sent, not from where they were; data beside them stay there."""
    folder, sent = tmp_path / "work", tmp_path / "sent"
    (folder / "my_own_package").mkdir(parents=True)
    (folder / "my_own_networks.py").write_text("from my_own_package import inner\nVALUE = inner.VALUE\n")
    (folder / "my_own_package" / "__init__.py").write_text("")
    (folder / "my_own_package" / "inner.py").write_text("VALUE = 7\n")
    (folder / "my_own_package" / "later.py").write_text("")  # which nothing names
    with (folder / "images.bin").open("wb") as file:
        file.truncate(700 << 20)  # more than Ray sends
    (folder / "my_own_package" / "weights.bin").write_bytes(b"0" * 100)
    monkeypatch.syspath_prepend(str(folder))
    targets = {"my_own_networks.Net", "lbdist.networks.dense.Dense", "torch.optim.SGD"}
    environment = machines.own_code(targets, sent)
    names = {str(path.relative_to(sent)) for path in sent.rglob("*") if path.is_file()}
    package = {f"my_own_package/{name}.py" for name in ("__init__", "inner", "later")}
    assert environment == {"working_dir": str(sent)} and names == {"my_own_networks.py", *package}
    assert machines.own_code({"torch.optim.SGD", "lbdist.plan.Cell", "no_such_module.Net"}, sent) == {}
    ray.init(two.address, log_to_driver=False, runtime_env=environment)
    (folder / "my_own_networks.py").unlink()

    def look() -> tuple[int, str]:
        import my_own_networks

        return my_own_networks.VALUE, my_own_networks.__file__

    value, at = ray.get(ray.remote(num_cpus=0)(look).remote())
    assert value == 7 and not at.startswith(str(folder))
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert machines.own_code({"my_own_networks.Net"}, sent) == {}  # a job has brought its own


def test_results_in_a_jobs_folder_are_refused(tmp_path: Path) -> None:
    job = tmp_path / "session" / "runtime_resources" / "working_dir_files" / "_ray_pkg_0123" / "results"
    with pytest.raises(InputError, match="must not lie in the job's working directory"):
        Store(job).check()


TOKEN = "a" * 64
ASK = """
import sys, time
from lbdist import cluster
from lbdist.errors import InputError
from lbdist.storage import Store
try:
    with cluster.connect(print, "command", Store(sys.argv[1])):
        import ray
        print("value", ray.get(ray.remote(num_cpus=0)(lambda: 7).remote()), flush=True)
        time.sleep(float(sys.argv[2]))
except InputError as error:
    print("refused", error)
"""


def test_a_cluster_wants_its_token(tmp_path: Path) -> None:
    """It is found where Ray looks for it, and only a head that wants one is given it."""
    port = 20_000 + os.getpid() % 10_000  # below those that the system gives to whoever asks
    short = Path(tempfile.gettempdir(), f"lbt{os.getpid()}")
    base = {key: value for key, value in os.environ.items() if not key.startswith("RAY_A")}
    base |= {"HOME": str(tmp_path), "RAY_ADDRESS": f"127.0.0.1:{port}"}
    command = ["ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}"]
    command += ["--num-cpus=1", "--include-dashboard=false", f"--temp-dir={short}"]
    head = subprocess.Popen(
        command, env={**base, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip

    def ask(**extra: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", ASK, str(tmp_path), "0"],
            env={**base, **extra}, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0 and "InvalidAuthToken" not in done.stderr, done.stderr
        return done.stdout

    def refused(**extra: str) -> str:
        with pytest.MonkeyPatch.context() as patch:
            for name in [name for name in os.environ if name.startswith("RAY_A")]:
                patch.delenv(name)
            for name, value in {**base, **extra}.items():
                patch.setenv(name, value)
            with pytest.raises(InputError) as caught:
                cluster.address()
            os.environ.pop("RAY_AUTH_MODE", None)  # which it sets
        return str(caught.value)

    try:
        end = time.monotonic() + 60
        while "nothing answers" in (said := refused()):
            assert head.poll() is None and time.monotonic() < end, said
        assert said.startswith("RAY_AUTH_TOKEN: the cluster at 127.0.0.1:") and "wants its token" in said
        assert "wants another token" in refused(RAY_AUTH_TOKEN="b" * 64)
        assert "RAY_AUTH_MODE=disabled: must be token" in refused(RAY_AUTH_MODE="disabled")
        assert "value 7" in ask(RAY_AUTH_TOKEN=TOKEN)
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text(TOKEN)
        last = subprocess.Popen(
            [sys.executable, "-c", ASK, str(tmp_path), "60"], env=base, stderr=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert last.stdout is not None
        assert "joined the cluster at 127.0.0.1:" in last.stdout.readline()
        assert last.stdout.readline() == "value 7\n"
        below = psutil.Process(head.pid).children(recursive=True)
        next(process for process in below if process.name() == "gcs_server").kill()
        _, err = last.communicate(timeout=30)
        (line,) = [line for line in err.splitlines() if line.startswith("lbdist: ")]
        assert (
            last.returncode == 1 and "no longer answers; what is finished is kept. To go on: command" in line
        )
    finally:
        below = psutil.Process(head.pid).children(recursive=True)
        for process in (*below, psutil.Process(head.pid)):
            process.kill()
        head.wait(20)
        shutil.rmtree(short, ignore_errors=True)


def test_what_an_autoscaler_may_start_counts(tmp_path: Path) -> None:
    """Read on the head from the file of its autoscaler, which is another process's argument."""
    kinds = {
        "head": {"resources": {"CPU": 4}, "node_config": {}},
        "worker": {"resources": {"CPU": 8, "GPU": 1}, "max_workers": 3, "node_config": {}},
        "large": {"resources": {"CPU": 96, "GPU": 8}, "node_config": {}},
    }
    file = tmp_path / "config.yaml"
    file.write_text(
        yaml.safe_dump({"max_workers": 5, "head_node_type": "head", "available_node_types": kinds})
    )
    program = tmp_path / "monitor.py"
    program.write_text("import time; time.sleep(60)")
    at = "127.0.0.1:12345"
    arguments = [str(program), f"--gcs-address={at}", f"--autoscaling-config={file}"]
    process = subprocess.Popen([sys.executable, *arguments])
    try:
        end = time.monotonic() + 10
        while not (found := machines.node_kinds(at)):
            assert time.monotonic() < end
        assert sorted(found, key=str) == [(3, {"CPU": 8, "GPU": 1}), (5, {"CPU": 96, "GPU": 8})]
        assert machines.node_kinds("127.0.0.1:1") == []
    finally:
        process.kill()
        process.wait()


def test_capacity_grows_by_what_may_be_started(two: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    ray.init(two.address, log_to_driver=False)
    now = cluster._capacity([], 0)
    assert now == Capacity(2, 0, 3) and str(now) == "3 nodes with 2 CPUs and 0 GPUs"
    grown = cluster._capacity([(3, {"CPU": 8, "GPU": 1})], 0)
    assert (grown.cpus, grown.gpus, grown.slots) == (24, 3, 3) and "2 and 0 now, more as" in str(grown)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert cluster._capacity([], 6).slots == 6

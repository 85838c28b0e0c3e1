"""The one command: compose, validate, plan, run, report.

python -m lbdist.run experiment=remedies
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lbdist.config import compose as configuration
from lbdist.config import schema
from lbdist.config.build import build, plain
from lbdist.errors import InputError
from lbdist.storage import Store

_USAGE = """\
usage: python -m lbdist.run [experiment=NAME] [KEY=VALUE ...] [--config-dir DIR] [--help | --cfg job]

How large a batch can a model take, what does it cost, and which remedy buys it back?
Every key can be overridden, in Hydra's syntax; a remedy's own keys are remedy.NAME.KEY. A folder of your own
with the same groups in it (remedy/, network/, ...) joins by --config-dir.
"""

_KEYS = {
    "small_batch": "SB's global batch, in samples",
    "large_batch": "LB's global batch: samples, or a share of the training set",
    "epochs": "passes over the training set",
    "seeds": "confirmed runs a method, each from its own starting point",
    "remedy": "the remedies of the study: remedy=[none,robust,growth]",
    "num_workers": "data-parallel workers a run: a number, or auto",
    "ghost_batch_size": "batch-norm group in samples; null is the whole global batch",
    "data.root": "folder of the data set (downloaded there, or read from there)",
    "search.epochs": "length of a search run, as a share of epochs",
    "sharpness.solvers": "paper (as published), converged, or both",
    "storage": "folder or URI (s3://...) of the results: rows, checkpoints, Tune's folder, report",
    "dry_run": "dry_run=true prints the cells that would run, and stops",
}

# set before Ray is imported; a user's own setting wins
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": str(2 << 30),
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


_terminated: list[int] = []  # the signal, since Tune hands on a KeyboardInterrupt of its own


def _terminate(number: int, frame: Any) -> None:
    """SIGTERM ends a run as Ctrl-C does."""
    _terminated.append(number)
    raise KeyboardInterrupt


def help_text(folders: Sequence[Path] = ()) -> str:
    """What `--help` prints: studies, networks, data sets, remedies, optimisers and the main keys."""
    lines = [_USAGE]
    titles = {
        "experiment": "studies (experiment=)",
        "network": "networks (network=)",
        "data": "data sets (data=)",
        "remedy": "remedies (remedy=)",
        "optimizer": "optimisers (optimizer=)",
    }
    for group, title in titles.items():
        lines.append(title)
        lines += [f"  {name:<20} {words}" for name, words in configuration.options(group, folders).items()]
        lines.append("")
    lines.append("main keys")
    lines += [f"  {name:<20} {words}" for name, words in _KEYS.items()]
    lines += ["", "`--cfg job` prints the whole configuration."]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        arguments: The command line without the program's name.

    Returns:
        0 when the study is finished, 1 when some of it failed, 2 for a wrong input, 130 after Ctrl-C, 143
        after SIGTERM.
    """
    given = arguments = list(sys.argv[1:] if arguments is None else arguments)
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        arguments, folders = _config_folders(arguments)
        if {"--help", "-h"} & set(arguments):
            print(help_text(folders))
            return 0
        show = arguments[:2] if arguments[:1] == ["--cfg"] else arguments[-2:]
        if "--cfg" in arguments:
            if show != ["--cfg", "job"]:
                raise InputError("--cfg: must be followed by job, at the end of the command")
            arguments = [argument for argument in arguments if argument not in show]
        wrong = [argument for argument in arguments if "=" not in argument and not argument.startswith("~")]
        if wrong:
            raise InputError(f"{wrong[0]}: must be KEY=VALUE, --help or --cfg job")
        config = configuration.compose(arguments, folders)
        if show == ["--cfg", "job"]:
            print(OmegaConf.to_yaml(config), end="")
            return 0
        schema.check(config)
        signal.signal(signal.SIGTERM, _terminate)
        return _Command(config, given).run()
    except InputError as error:
        print(f"lbdist: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        command = " ".join(["python -m lbdist.run", *given])
        print(f"\nlbdist: interrupted; what is finished is kept. To go on: {command}", file=sys.stderr)
        return 128 + (_terminated.pop() if _terminated else signal.SIGINT)


def _config_folders(arguments: Sequence[str]) -> tuple[list[str], list[Path]]:
    """The arguments without each `--config-dir DIR`, and those folders."""
    rest, folders, words = [], [], iter(arguments)
    for word in words:
        name, _, value = word.partition("=")
        if name != "--config-dir":
            rest.append(word)
        elif folder := value or next(words, ""):
            folders.append(Path(folder))
        else:
            raise InputError("--config-dir: must be followed by a folder")
    return rest, folders


class _Command:
    """One run of the program on a checked configuration."""

    def __init__(self, config: DictConfig, arguments: Sequence[str]) -> None:
        # torch and Ray take seconds to import: not before the configuration is known to be good
        from lbdist import tuning
        from lbdist.data.base import DataSource
        from lbdist.progress import Progress

        self.config, self.arguments = config, arguments
        self.store = Store(config.storage) / config.name
        self.progress_type = Progress
        self.tuning = tuning
        self.data = build(config.data, "data", kind=DataSource).load()
        self.plan = self._plan()

    def _plan(self) -> Any:
        import torch

        from lbdist import networks
        from lbdist.losses import CrossEntropy
        from lbdist.plan import Candidates, Plan, name_setting
        from lbdist.remedies.base import Remedy
        from lbdist.training.batches import Workers
        from lbdist.training.loop import Learner, optimizer_factory

        config, shape = self.config, self.data.shape
        config.derived.inputs = int(torch.Size(shape).numel())
        outputs = CrossEntropy().check(self.data)
        config.derived.channels, config.derived.classes = int(shape[0]), outputs[-1]
        OmegaConf.resolve(config)
        candidates = []
        for name, node in plain(config.remedy).items():
            build(node, f"remedy.{name}", kind=Remedy)
            settings = self.tuning.settings(node.get("search"), config.search.samples, f"remedy.{name}")
            if len({name_setting(setting) for setting in settings}) < max(1, len(settings)):
                raise InputError(f"remedy.{name}.search={node['search']}: must be lists of different values")
            for setting in settings:
                build({**node, **setting}, f"remedy.{name}")
            candidates.append(Candidates(name, node, settings))
        if "none" not in config.remedy:
            candidates.insert(0, Candidates("none", {"_target_": "lbdist.remedies.none.NoRemedy"}, [{}]))
        build(config.network, "network", kind=torch.nn.Module)
        network = networks.make(config.network)
        flops = networks.sample_flops(network, self.data.train.inputs[:2], outputs)
        # every way in which a run could refuse its configuration is tried here, before a worker starts
        Learner(
            network,
            optimizer_factory(plain(config.optimizer)),
            Workers(),
            config.ghost_batch_size,
            config.micro_batch_size,
        )
        dimension, largest = config.sharpness.subspace_dimension, networks.parameter_count(network)
        if "subspace" in config.sharpness.spaces and dimension > largest:
            raise InputError(
                f"sharpness.subspace_dimension={dimension}: must be at most {largest}, the parameters"
            )
        gpus = torch.cuda.device_count()
        return Plan(
            config,
            len(self.data.train),
            candidates,
            flops,
            "GPU" if gpus else "CPU",
            gpus or os.cpu_count() or 1,
        )

    def run(self) -> int:
        """Runs what has no rows yet, and reports."""
        cells, values = self.plan.count()
        config = self.config
        head = (
            f"study {config.name}: {config.network.get('name', config.network._target_)} on "
            f"{config.data.get('name', config.data._target_)}, {cells} cells, {values} sharpness values"
        )
        if config.dry_run:
            self._dry_run(head)
            return 0
        if not _cluster():
            self.plan.check_workers(self.plan.slots)  # a cluster's size is known once it is joined
        print(head + f", in {self.store}", flush=True)
        print(self._workers_line(), flush=True)
        if config.search.epochs < 1 and self.plan.searched():
            print(
                f"search.epochs={config.search.epochs}: search runs are shorter than confirmed ones, which "
                "favours weak remedies",
                flush=True,
            )
        failed: list[str] = []
        with self.store.lock():
            study = self.tuning.replay(self.plan, self.store)
            if study.waiting or self._unmeasured(study):
                study, lost = self._measure(study, cells, values)
                failed = [f"failed: {job.cells[0].label}" for job in study.failed]
                failed += [f"no sharpness of {job.cell.label}" for job in lost]
                failed = [f"{line}; run the command again to retry" for line in failed]
            from lbdist import results

            results.compact(self.store)
            failed += self._report(study)
        for line in failed:
            print(f"lbdist: {line}", file=sys.stderr)
        return 1 if failed else 0

    def _workers_line(self) -> str:
        asked, workers = self.config.num_workers, self.plan.workers(self.config.num_workers)
        if asked != "auto":
            return f"num_workers={asked}"
        why = (
            f"a run's {self.plan.work:.1e} FLOPs are too few to pay for a worker group (from "
            f"{self.plan.group_work:.0e} a worker)"
            if workers == 1
            else f"a run has {self.plan.work:.1e} FLOPs"
        )
        baseline = self.config.baseline_workers
        extra = f"; the LB baseline takes {baseline}, through Ray Train" if (baseline or 1) > 1 else ""
        return f"num_workers=auto: {workers} process{'es' if workers > 1 else ''} a run, {why}{extra}"

    def _dry_run(self, head: str) -> None:
        from rich.console import Console
        from rich.table import Table

        print(head)
        print(self._workers_line())
        records = self.plan.describe()
        table = Table(*records[0], box=None, pad_edge=False)
        for record in records:
            table.add_row(*(str(value) for value in record.values()))
        Console(width=None if sys.stdout.isatty() else 120).print(table)

    def _sharpness_jobs(self, study: Any) -> list[Any]:
        from lbdist.sharpness.pool import Job

        cells = study.cells.values()
        return [Job(cell, setting) for cell in cells for setting in self.plan.sharpness_settings(cell)]

    def _unmeasured(self, study: Any) -> list[Any]:
        from lbdist import results

        finished = results.finished_jobs(self.store)
        jobs = self._sharpness_jobs(study)
        return [job for job in jobs if job.cell.id in finished and job.id not in finished]

    def _measure(self, study: Any, cells: int, values: int) -> tuple[Any, list[Any]]:
        import ray

        from lbdist.sharpness import pool

        with self.progress_type(cells, values) as progress, _ray(progress.note):
            capacity = self.tuning.Capacity.of_cluster()
            if study.waiting:
                study = self.tuning.run(
                    self.plan,
                    ray.put(self.data),
                    self.store,
                    retries=self.config.retries,
                    max_concurrent=self.config.max_concurrent,
                    finished=progress.trained,
                )
            jobs = self._unmeasured(study)
            progress.begin_sharpness(len(jobs))
            lost = pool.measure_all(
                jobs,
                ray.put(self.data.train),
                self.store,
                actors=capacity.slots,
                gpus_per_actor=1.0 if capacity.gpus else 0.0,
                retries=self.config.retries,
                done=progress.measured,
            )
        return study, lost

    def _report(self, study: Any) -> list[str]:
        """Writes what there is, and returns what must be said of it: values that could not be measured."""
        from rich.console import Console

        from lbdist import results
        from lbdist.analysis.figures import save_figures
        from lbdist.analysis.report import write_report
        from lbdist.analysis.tables import print_table

        # the folder may hold cells and values of other settings of this study
        jobs = {*study.cells, *(job.id for job in self._sharpness_jobs(study))}
        if not jobs & results.finished_jobs(self.store):
            return ["no cell finished, so there is nothing to report"]
        rows = results.load(self.store)
        rows = rows[rows["job"].isin(jobs)].reset_index(drop=True)
        console = Console(width=None if sys.stdout.isatty() else 110)
        print_table(rows, console)
        context = {
            "command": " ".join(["python -m lbdist.run", *self.arguments]),
            **results.provenance(),
            "configuration": OmegaConf.to_yaml(self.config),
        }
        # a URI may hold keys, which do not belong in a page that is shown around
        shown = str(Store(self.config.storage)) if "://" in self.config.storage else self.config.storage
        context = {name: text.replace(self.config.storage, shown) for name, text in context.items()}
        save_figures(rows, self.store)
        print(f"report: {write_report(self.store, rows, context)}")
        # a run that diverged has no minimiser to measure, and its row says so
        diverged = set(rows.loc[(rows["metric"] == "diverged") & (rows["value"] == 1), "cell"])
        wrong = rows[rows["error"].notna() & ~rows["cell"].isin(diverged)]
        return (
            [f"{len(wrong)} sharpness values failed, the first: {wrong['error'].iloc[0]}"]
            if len(wrong)
            else []
        )


def _cluster() -> str:
    """The address of the cluster that `ray.init` will join; empty where it will start a local one.

    Raises:
        InputError: Nothing answers at RAY_ADDRESS.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    host, _, port = address.rpartition(":")
    if address and port.isdigit() and "://" not in address:
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except OSError as error:
            raise InputError(
                f"RAY_ADDRESS={address}: must be a running Ray cluster ({error.strerror or error}); "
                "unset it to start a local one"
            ) from error
    current = Path(os.environ.get("RAY_TMPDIR", tempfile.gettempdir())) / "ray" / "ray_current_cluster"
    return address or (current.read_text().strip() if current.exists() else "")


@contextlib.contextmanager
def _ray(say: Any) -> Iterator[None]:
    """A connection to the running cluster, or a local Ray that ends with the program."""
    import logging

    import ray

    cluster, began = _cluster(), time.monotonic()
    ray.init(log_to_driver=False, logging_level=logging.CRITICAL)
    have = {kind: int(ray.cluster_resources().get(kind, 0)) for kind in ("CPU", "GPU")}
    how = f"joined the cluster at {cluster}" if cluster else "started a local Ray"
    signal.signal(signal.SIGTERM, _terminate)  # Ray has set its own
    say(f"{how} with {have['CPU']} CPUs and {have['GPU']} GPUs ({time.monotonic() - began:.1f} s)")
    try:
        yield
    finally:
        # a second signal must not leave processes behind
        kinds = (signal.SIGINT, signal.SIGTERM)
        previous = [signal.signal(kind, signal.SIG_IGN) for kind in kinds]
        ray.shutdown()
        for kind, handler in zip(kinds, previous, strict=True):
            signal.signal(kind, handler)


if __name__ == "__main__":
    sys.exit(main())

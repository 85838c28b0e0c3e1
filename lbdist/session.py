"""One run of a study: from a configuration to a study, its cells, its measurements and its report."""

from __future__ import annotations

import functools
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from lbdist import cluster, networks, results, tuning
from lbdist.analysis import terminal
from lbdist.analysis.report import write_report
from lbdist.analysis.runs import Runs, Score
from lbdist.config.build import build
from lbdist.config.schema import Config
from lbdist.data.base import Dataset, DataSource, is_integer
from lbdist.errors import InputError, one_line, require, warn
from lbdist.losses import Loss
from lbdist.objective import Objective
from lbdist.plan import AUTO, Cell, Measurement, Node, name_setting, title
from lbdist.progress import Progress
from lbdist.remedies.base import Remedy
from lbdist.sharpness.measure import Measure
from lbdist.sharpness.pool import measure_all
from lbdist.storage import Store
from lbdist.studies.base import Candidates, Done, Plan, Study, cells_of, whole
from lbdist.studies.paper import Paper
from lbdist.training import checkpoint, loop, rehearsal
from lbdist.training.precision import GAIN, Arithmetic, choose, reason

GROUP_WORK = {"CPU": 1e12, "GPU": 2e14}
"""Training FLOPs under which a worker group does not pay for its start: about 15 s of one such device."""

PASS_WORK = {"CPU": 2e10, "GPU": 4e12}
"""FLOPs of an evaluation under which to cut it does not pay: about 0.2 s, where the sum takes some 10 ms."""

MOST_REPLICAS = 8
"""Seeds that `replicas=auto` trains at once."""


def prepare(config: DictConfig, parts: Mapping[str, DictConfig] | None = None) -> Session:
    """Builds everything that a configuration names, once, and tries every way in which a run could refuse it.

    Args:
        config: Composed and checked; `derived` is filled in here.
        parts: The configurations of the studies that it consists of, by name, likewise.

    Raises:
        InputError: What is wrong, before anything is written or a worker starts.
    """
    source: DataSource = build(config.data, "data", kind=DataSource)
    loss: Loss = build(config.loss, "loss", kind=Loss)
    data = source.load(config.scale.samples)
    outputs, inputs, labels = loss.check(data), data.train.inputs, data.train.labels
    if len(labels) > 1 and (labels == labels[0]).all():  # a network that ignores its input would be right
        raise InputError(f"data: every label of the train split is {labels[0]}; must be of two kinds or more")
    count = outputs[-1] if outputs else 1
    derived = {
        "inputs": int(torch.Size(data.shape).numel()),
        "channels": int(data.shape[0]) if data.shape else 1,
        "classes": count,
        "outputs": count,
        "tokens": 1 + int(inputs.max()) if inputs.dtype.kind in "iu" and inputs.dtype != "uint8" else 0,
    }
    for each in (config, *(parts or {}).values()):
        each.derived.update(derived)
        OmegaConf.resolve(each)
    text = OmegaConf.to_yaml(config)
    settings: Config = OmegaConf.to_object(config)  # type: ignore[assignment]
    networks.check_start(settings.network)
    network = networks.make(settings.network)
    networks.check(network)
    network = network.float()
    flops = networks.sample_flops(network, inputs[:2], outputs)
    node = _data_node(settings.data, source, data)
    made = functools.partial(
        _study, train_size=len(data.train), data=node, score=loss.score,
        parameters=networks.parameter_count(network),
    )  # fmt: skip
    study = made(settings)
    if isinstance(study, Paper):
        study.studies = {
            name: made(OmegaConf.to_object(part))  # type: ignore[arg-type]
            for name, part in (parts or {}).items()
        }
    for file in sorted({point.file for m in study.measurements([]) for point in m.at if point.file}):
        checkpoint.load_file(network, file)
    session = Session(settings, text, data, study, Score(loss.score, loss.unit), flops, source)
    alike = {
        (cell.remedy, cell.setting, cell.stage == "search", cell.precision): cell
        for cell in session.cells.values()
    }
    for cell in alike.values():
        _check_run(cell, len(data.train))
    known = getattr(study, "procedures", {})
    for name, procedure in {
        title(c.procedure): c.procedure for c in session.cells.values() if c.procedure
    }.items():
        build(procedure, f"study.procedures.{name}" if name in known else f"study.{name}")
    learners = {
        (repr(c.optimizer), c.ghost_batch_size, c.micro_batch_size, c.precision): c for c in alike.values()
    }
    for cell in learners.values():
        rehearsal.rehearse(cell, data)
    if study.plan.measures or isinstance(study, Paper):
        few = loop.on_device(data.train.first(16), "cpu")
        f = Objective(networks.make(settings.network), few, loss=loss)
        f(f.x)
    return session


def _study(settings: Config, *, train_size: int, data: Node, score: str, parameters: int) -> Study:
    """The study of a configuration, with the plan that it makes its cells of."""
    remedies = {
        name: _candidates(name, node, settings.search.samples) for name, node in settings.remedy.items()
    }
    remedies.pop("none", None)
    measures: dict[str, tuple[Node, Measure]] = {
        name: (node, build(node, f"measure.{name}", kind=Measure))
        for name, node in settings.measure.items()
        # a study may have settings for a measure that was not chosen
        if not isinstance(node, Mapping) or "_target_" in node
    }
    for name, (_, measure) in measures.items():
        try:
            measure.check(parameters)
        except InputError as error:
            raise InputError(f"measure.{name}.{error}") from error
    study: Study = build(settings.study, "study", kind=Study)
    study.plan = Plan(
        settings, train_size=train_size, remedies=remedies, measures=measures, data=data, score=score
    )
    study.check()
    for name, (_, measure) in measures.items():
        allowed = "a measure of one model" if study.points == (1,) else "a measure of one or two models"
        require(measure.points in study.points, "measure", name, allowed)
    return study


def _data_node(node: Node, source: DataSource, data: Dataset) -> Node:
    """A data set's node without where it lies, with the samples that the study's scale has left of it."""
    kept = {key: value for key, value in node.items() if key not in source.place}
    for key, split in (("train_samples", data.train), ("test_samples", data.test)):
        if source.totals.get(key, 0) > len(split):
            kept[key] = len(split)
    return kept


def _check_run(cell: Cell, train_size: int) -> None:
    """Refuses remedies and batches that a run of this kind could not have."""
    loop.make_remedy(cell.remedies)
    key, batch = f"remedy.{cell.remedy}.cell", cell.global_batch_size
    if cell.validation_fraction is not None:
        held = round(cell.validation_fraction * train_size)
        least = f"at least {1 / train_size:.2g}, a sample of {train_size}"
        require(held >= 1, "search.validation_fraction", cell.validation_fraction, least)
    limit = train_size - round((cell.validation_fraction or 0) * train_size)
    allowed = f"at most {limit}, the samples that are trained on"
    require(batch <= limit, f"{key}.global_batch_size", batch, allowed)
    ghost, micro = cell.ghost_batch_size, cell.micro_batch_size
    if ghost and micro:
        require(
            micro % ghost == 0, f"{key}.micro_batch_size", micro, f"a multiple of ghost_batch_size={ghost}"
        )


def _candidates(name: str, node: Mapping[str, object], samples: int) -> Candidates:
    """A remedy with its settings, each of which can be built."""
    key = f"remedy.{name}"
    build(node, key, kind=Remedy)
    _check_cell(key, node.get("cell") or {})
    settings = tuning.settings(node.get("search"), samples, key)  # type: ignore[arg-type]
    different = len({name_setting(setting) for setting in settings})
    require(
        different >= max(1, len(settings)), f"{key}.search", node.get("search"), "lists of different values"
    )
    for setting in settings:
        build({**node, **setting}, key)
    return Candidates({**node, "name": name}, settings)


def _check_cell(key: str, own: object) -> None:
    """Refuses fields that a remedy may not set for its cells."""
    batches = ("global_batch_size", "ghost_batch_size", "micro_batch_size")
    allowed = ("optimizer", "epochs", *batches)
    if not (isinstance(own, Mapping) and set(own) <= set(allowed)):
        raise InputError(f"{key}.cell={own}: must be a group of {', '.join(allowed)}")
    for name, value in own.items():
        if name == "optimizer":
            require(isinstance(value, Mapping), f"{key}.cell.optimizer", value, "a group of keys")
        else:
            require(is_integer(value, 1), f"{key}.cell.{name}", value, "a whole number of at least 1")


@dataclass
class Session:
    """A study that is ready to run.

    Attributes:
        config: The configuration.
        text: The same as YAML, for the report.
        data: Training and test set.
        study: The study.
        score: What its loss is scored by.
        flops: Of a forward and backward pass of one sample.
        source: Where the data come from, of which the study's scale may leave some out.
    """

    config: Config
    text: str
    data: Dataset
    study: Study
    score: Score
    flops: float
    source: DataSource

    def __post_init__(self) -> None:
        self.store = Store(self.config.storage)
        self.folder = self.store / self.config.name
        self.cells = cells_of(self.study, whole(self.study))

    def run(self, command: str) -> int:
        """Runs what is not done yet, and reports.

        Args:
            command: As the user gave it, for the report.

        Returns:
            The exit status: 1 if anything failed.
        """
        here = None if cluster.address() else cluster.Capacity(os.cpu_count() or 1, torch.cuda.device_count())
        remarks = self._within(here) if here else []
        measurements = list(self.study.measurements(list(self.cells.values())))
        network, data = title(self.config.network), title(self.config.data)
        head = (
            f"study {self.config.name}: {network} on {data}, {len(self.cells)} cells, "
            f"{len(measurements)} measurements"
        )
        self.store.check()
        if here:
            self._check_workers(here)
        if self.config.dry_run:
            print(head)
            book = tuning.Book(self.store)
            done = sum(book(cell) is not None for cell in cells_of(self.study, book).values())
            if not self.cells:
                for model in self.study.models().values():
                    print(f"  {model['method']}")
                return 0
            if done:
                print(f"{done} of the cells are done, in {self.store}")
            for line in (*remarks, *self._remarks()):
                print(line)
            self._dry_run()
            return 0
        print(f"{head}, in {self.folder}", flush=True)
        for line in (*remarks, *self._remarks()):
            print(line, flush=True)
        with self.folder.lock():
            book = tuning.Book(self.store, warn)
            failed = self._work(book, command) + self._diverged(book) + self._report(book, command)
        for line in failed:
            warn(line)
        return 1 if failed else 0

    def _within(self, capacity: cluster.Capacity) -> list[str]:
        """What is left out since there are too few devices, each of which has one worker of a group."""
        lines = self.study.within(capacity.gpus or capacity.cpus)
        if lines:
            self.cells = cells_of(self.study, whole(self.study))
        return lines

    def _check_workers(self, capacity: cluster.Capacity) -> None:
        """Refuses a cell that needs more workers than fit at once: a cluster's size is known once joined."""
        for cell in self.cells.values():
            key = "study.check_workers" if cell.stage == "check" else "num_workers"
            key = "study.workers" if cell.procedure else key
            most = f"at most {capacity.slots}, what the cluster has ({capacity})"
            require(cell.asked_workers <= capacity.slots, key, cell.num_workers, most)
            possible = capacity.gpus > 0 or cell.precision != "tf32"
            require(possible, "precision", cell.precision, "float32, bfloat16 or auto, since there is no GPU")

    def _remarks(self) -> list[str]:
        asked, share = self.config.num_workers, self.config.search.epochs
        auto = (
            "one process a cell, and more only where processes would stand idle and its work pays for a group"
        )
        lines = [f"num_workers={asked}" + (f": {auto}" if asked == AUTO else "")]
        rule, rates = self.config.lr_rule, {}
        for cell in self.cells.values():
            rates[cell.global_batch_size] = cell.optimizer.get("lr")
        if rule != "none":
            listed = ", ".join(f"{rates[batch]:.4g} at batch {batch:,}" for batch in sorted(rates))
            lines.append(f"lr_rule={rule}: learning rate {listed}")
        if share < 1 and any(cell.stage == "search" for cell in self.cells.values()):
            lines.append(
                f"search.epochs={share}: search runs are shorter than confirmed ones, which favours weak "
                "remedies"
            )
        fewer = [
            f"{len(split):,} of {self.source.totals[key]:,} {name} samples"
            for key, name, split in (
                ("train_samples", "training", self.data.train),
                ("test_samples", "test", self.data.test),
            )
            if len(split) < self.source.totals.get(key, 0) and self.config.data.get(key) is None
        ]
        lines += self.source.notes
        if fewer:
            lines.append(f"scale={self.config.scale.name}: {' and '.join(fewer)}")
        return lines

    def _dry_run(self) -> None:
        """Prints the cells, one record for those that differ only in their seed, and how long they take."""
        known = cells_of(self.study, lambda cell: None)
        groups: dict[tuple[str, str, int | str], list[Cell]] = {}
        for cell in self.cells.values():
            label = cell.label_without_seed
            if cell.setting and cell.id not in known:  # which setting it is, the search will say
                label = label.replace(cell.setting, "(the best)")
            groups.setdefault((cell.stage, label, cell.num_workers), []).append(cell)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        timed = [cell for cell in self.cells.values() if cell.procedure is None]
        seconds = rehearsal.estimate(timed, self.data, device)
        records = []
        for (stage, label, workers), cells in groups.items():
            cell = cells[0]
            share = -(-cell.global_batch_size // cell.asked_workers)
            lr = cell.optimizer.get("lr", "default")
            records.append(
                {
                    "stage": stage,
                    "cell": label,
                    "seeds": len(cells),
                    "epochs": cell.epochs,
                    "global batch": cell.global_batch_size,
                    "workers": workers,
                    "per worker": share,
                    "accumulation": -(-share // (cell.micro_batch_size or share)),
                    "lr": f"{lr:.4g}" if isinstance(lr, float) else lr,
                    "seconds": "–" if cell.procedure else f"{seconds[cell.id]:,.0f}",
                }
            )
        table = Table(*records[0], box=None, pad_edge=False)
        for record in records:
            table.add_row(*(str(value) for value in record.values()))
        Console(width=None if sys.stdout.isatty() else 130).print(table)
        if timed:
            total, where = sum(seconds.values()), "GPU" if device == "cuda" else "core"
            print(
                f"about {max(1, total / 60):,.0f} min of training on one {where}, one run after the other, "
                "by a step of each batch measured here; patience and a target loss end runs sooner, and "
                "measuring is not in it"
            )

    def _missing(self, book: tuning.Book) -> list[Measurement]:
        """The measurements at finished cells that have no rows."""
        # listed first, since looking for each that is not there yet takes long in an object store
        there = {name.split("/")[1] for name in self.store.names(results.MEASUREMENTS)}
        files = [(m, results.measurement_file(m.id)) for m in self.measurements(book)]
        return [m for m, file in files if file.split("/")[1] not in there or not book.rows(file)]

    def measurements(self, book: Done) -> list[Measurement]:
        """The measurements at the cells that are finished; a run that diverged has no minimiser."""
        cells = cells_of(self.study, book).values()
        finals = [(cell, book(cell)) for cell in cells]
        return list(
            self.study.measurements([c for c, final in finals if final and not final.get("diverged")])
        )

    def _work(self, book: tuning.Book, command: str) -> list[str]:
        """Trains and measures what is not done; Ray is not started where nothing is.

        Returns:
            A line for each kind of cell and of measurement that has no rows.
        """
        if not self._unfinished(book) and not self._missing(book):
            return []
        self._check_files(book)
        config, gradients = self.config, {}

        def cost(cell: Cell) -> tuple[float, float]:
            if cell.id not in gradients:
                gradients[cell.id] = rehearsal.gradients(cell, len(self.data.train))
            return gradients[cell.id]

        def weight(cell: Cell) -> float:
            """How long a cell takes: a step costs about as much as 64 samples on top of its own."""
            evaluations, samples = cost(cell)
            return 64 * evaluations + samples

        done = [cell for cell in cells_of(self.study, book).values() if book(cell) is not None]
        progress = Progress(self.cells.values(), done, weight, self.score.name, self.score.unit)
        failed: list[tuple[Cell, str]] = []
        targets = set(_targets(OmegaConf.to_container(OmegaConf.create(self.text))))
        with (
            progress,
            cluster.connect(progress.note, command, self.store, targets, config.max_concurrent) as capacity,
        ):
            data = ray.put(self.data)
            arithmetic = self._arithmetic(capacity, book, data, progress.note)
            replicas = self._replicas(capacity, book, data, arithmetic, progress.note)
            capacity = self._share(capacity, book, data, replicas, progress.note)
            for line in self._within(capacity):
                progress.note(line)
            self._check_workers(capacity)
            device = "GPU" if capacity.gpus else "CPU"
            for _ in range(3):  # again for cells of which a file turns out to be damaged meanwhile
                if not self._unfinished(book):
                    break
                schedule = tuning.Schedule(
                    self.study,
                    book,
                    capacity,
                    max_concurrent=config.max_concurrent,
                    cost=weight,
                    worthwhile=lambda cell: cost(cell)[1] * self.flops / GROUP_WORK[device],
                    replicas=replicas,
                    watch=progress,
                )
                tuning.run(
                    schedule,
                    data,
                    self.folder,
                    retries=config.retries,
                    regroup_seconds=config.regroup_seconds,
                    arithmetic=arithmetic,
                )
                failed += schedule.failed
                self._check_files(book)  # of cells that were found finished only now
            failed += [(cell, "its files were damaged again") for cell in self._unfinished(book)]
            missing = self._missing(book)
            slots = min(capacity.slots, config.max_concurrent or capacity.slots)
            progress.begin_measurements(len(missing))
            lost = measure_all(
                missing,
                data,
                self.store,
                capacity=capacity,
                slots=slots,
                shards=self._shards(len(missing), slots, device),
                retries=config.retries,
                done=progress.measured,
            )
        again = "; run the command again to retry"
        return [f"failed: {line}{again}" for line in _by_kind(failed)] + [
            f"not measured: {line}{again}"
            for line in _by_kind(
                (Path(m.at[0].file).name if m.at[0].file else m.at[0].cell, f"{title(m.measure)}: {why}")
                for m, why in lost
            )
        ]

    def _replicas(
        self,
        capacity: cluster.Capacity,
        book: tuning.Book,
        data: ray.ObjectRef,
        arithmetic: Mapping[str, Arithmetic],
        say: Callable[[str], None],
    ) -> Callable[[Cell], int]:
        """How many cells of its kind a process trains at once: as configured, or as it pays on a GPU.

        On a CPU, `auto` is one: it does not pay there, and a run that is resumed beside other cells than
        before would no longer end with the same bits.
        """
        seeds = Counter(cell.kind for cell in self.cells.values())
        asked, several = self.config.replicas, {}
        for cell in self.cells.values():
            if cell.procedure is None and cell.asked_workers == 1 and seeds[cell.kind] > 1:
                several[_pass(cell)] = cell, min(seeds[cell.kind], MOST_REPLICAS)
        most = dict.fromkeys(several, 1 if asked == AUTO else asked)
        if asked == AUTO and capacity.gpus and several and self._unfinished(book):
            measure = ray.remote(num_cpus=0, num_gpus=1)(rehearsal.replicas)
            try:
                gains = ray.get(measure.remote(list(several.values()), data, "cuda", dict(arithmetic)))
            except ray.exceptions.RayError as error:
                say(f"replicas=auto: could not be measured ({_cause(error)})")
                gains = [0.0] * len(several)
            lines = []
            for (key, (cell, count)), gain in zip(several.items(), gains, strict=True):
                most[key] = count if GAIN * gain > 1 else 1
                what = f"{count} take {1 / gain:.2g} of their time" if gain else "gradients come one by one"
                lines.append(f"{most[key]} at batch {cell.global_batch_size:,} ({what})")
            say(f"replicas=auto: seeds at once: {', '.join(lines)}")
        return lambda cell: 1 if cell.procedure else most.get(_pass(cell), 1)

    def _share(
        self,
        capacity: cluster.Capacity,
        book: tuning.Book,
        data: ray.ObjectRef,
        replicas: Callable[[Cell], int],
        say: Callable[[str], None],
    ) -> cluster.Capacity:
        """The capacity, with as many processes on a GPU as its memory holds of what the study runs."""
        waiting = len(self._unfinished(book)) + len(self._missing(book))
        if not capacity.gpus or waiting <= capacity.gpus:
            return capacity
        alike = {(cell.global_batch_size, cell.remedy): cell for cell in self.cells.values()}
        measure = ray.remote(num_cpus=0, num_gpus=1)(rehearsal.memory)
        try:
            need, memory = ray.get(measure.remote(list(alike.values()), data))
            need *= max(map(replicas, alike.values()))
        except ray.exceptions.RayError as error:  # where a cell does not fit, its own run will say so
            say(f"one process a GPU: its memory could not be measured ({_cause(error)})")
            return capacity
        share = cluster.sharing(need, memory, capacity.cpus / capacity.gpus)
        say(f"{share} processes a GPU: each takes up to {need / 2**30:.1f} of its {memory / 2**30:.0f} GiB")
        return replace(capacity, share=share)

    def _arithmetic(
        self, capacity: cluster.Capacity, book: tuning.Book, data: ray.ObjectRef, say: Callable[[str], None]
    ) -> dict[str, Arithmetic]:
        """What each precision that cells ask for comes to; `auto` is one for all of a study's cells.

        Cells that are finished have decided it; else it is measured, where the cells will run.
        """
        asked = {cell.precision for cell in self.cells.values()}
        if not self._unfinished(book):
            return {}
        cells, failed = list(self.cells.values()), ""
        seconds: dict[Arithmetic, float] = {}
        native: set[str] = set()
        if capacity.gpus or capacity.nodes > 1:
            gpu = capacity.gpus > 0
            there: Any = ray.remote(num_cpus=0 if gpu else 1, num_gpus=1 if gpu else 0)(rehearsal.speeds)
            try:
                seconds, native = ray.get(
                    there.remote(cells, data, "cuda" if gpu else "cpu", None if gpu else 1)
                )
            except ray.exceptions.RayError as error:
                failed = f"since no step could be measured ({_cause(error)})"
        else:
            seconds, native = rehearsal.speeds(cells, self.data, "cpu", threads=1)
        files = (results.cell_file(cell.id) for cell in cells if cell.precision == AUTO and book(cell))
        before = Counter(row["precision"] for file in files for row in book.rows(file)[:1])
        found = {precision: choose(seconds, precision) for precision in asked}
        if AUTO in asked:
            known = next((str(precision) for precision, _ in before.most_common(1) if precision), AUTO)
            if known == AUTO:  # an emulated one was measured if other cells ask for it by name
                own = {how: taken for how, taken in seconds.items() if how.precision in native}
                found[AUTO] = choose(own, AUTO)
                why = failed or reason(own, found[AUTO])
            else:
                found[AUTO], why = choose(seconds, known), "as in the cells that are finished"
            say(f"precision=auto: {found[AUTO]}, {why}")
        elif failed:
            say(f"memory format: the usual one, {failed}")
        return found

    def _shards(self, measurements: int, slots: int, device: str) -> int:
        """Actors that compute an f together: more than one where they would stand idle and it pays."""
        pays = self.flops * len(self.data.train) >= PASS_WORK[device]
        return max(1, slots // max(1, measurements)) if pays else 1

    def _unfinished(self, book: Done) -> list[Cell]:
        """The known cells that have not ended."""
        return [cell for cell in cells_of(self.study, book).values() if book(cell) is None]

    def _check_files(self, book: tuning.Book) -> None:
        """Looks through what is about to be read; a cell whose model is needed and lost is to run again."""
        known, waiting = cells_of(self.study, book).values(), self._unfinished(book)
        models = [(p.cell, p.epoch) for m in self._missing(book) for p in m.at if p.file is None]
        if waiting:  # which may begin at a model that another cell keeps
            models += [(cell, epoch) for cell in known if book(cell) for epoch in sorted(cell.keep)]
        book.check(waiting, models)

    def _diverged(self, book: Done) -> list[str]:
        """A line for each kind of cell that diverged."""
        cells = cells_of(self.study, book).values()
        diverged = [cell for cell in cells if (book(cell) or {}).get("diverged")]
        return [f"diverged: {line}" for line in _by_kind((cell, "") for cell in diverged)]

    def _report(self, book: tuning.Book, command: str) -> list[str]:
        """Writes what there is, and returns what must be said of it: values that could not be measured."""
        cells = cells_of(self.study, book)
        finished = {key: cell for key, cell in cells.items() if book(cell)}
        models = self.study.models()
        if not (finished or models):
            return ["no cell finished, so there is nothing to report"]
        measurements = {m.id: title(m.measure) for m in self.measurements(book)}
        columns = {key: cell.columns() for key, cell in finished.items()} | models
        rows = results.gather(self.store, columns, measurements, self.config.name, book.rows)
        runs = Runs(rows, self.score)
        results.append(self.store, self.config.name, self.study.derived(runs))
        sections = self.study.sections(runs)
        terminal.show(sections, Console(width=None if sys.stdout.isatty() else 110))
        for line in _by_kind(
            (cell, f"went on with {row['num_workers']} of its {cell.num_workers} workers, to the same end")
            for key, cell in finished.items()
            for row in book.rows(results.cell_file(key))[:1]
            if cell.num_workers not in (AUTO, row["num_workers"])
        ):
            print(line)
        versions = _versions(results.read_cell(self.store, key)["provenance"] for key in finished)
        if versions:
            print(f"\n{versions}")
        context = {"command": command, **results.provenance(), "configuration": self.text}
        if versions:
            context["other code"] = versions
        # a URI may hold keys, which do not belong in a page that is shown around
        shown = str(self.store) if "://" in self.config.storage else self.config.storage
        context = {name: text.replace(self.config.storage, shown) for name, text in context.items()}
        heading = " ".join([self.config.name, "of", runs.network, "on", runs.data])
        print(f"report: {write_report(self.folder, heading, sections, context)}")
        wrong = rows[rows["error"].notna()]
        return [
            f"not measured: {line}"
            for line in _by_kind(
                (cells.get(row.cell, row.method), f"{row.measure}: {row.error}") for row in wrong.itertuples()
            )
        ]


def _cause(error: ray.exceptions.RayError) -> str:
    """What went wrong in a task, without the traceback that Ray puts before it."""
    return one_line(getattr(error, "cause", None) or error)[:100]


def _pass(cell: Cell) -> tuple[object, ...]:
    """What a forward and backward pass of a cell depends on, whatever its remedy makes of it."""
    return repr(cell.network), cell.global_batch_size, cell.ghost_batch_size, cell.micro_batch_size


def _targets(node: Any) -> Iterator[str]:
    """The classes that a configuration names."""
    if isinstance(node, Mapping):
        if isinstance(node.get("_target_"), str):
            yield node["_target_"]
        node = node.values()
    if not isinstance(node, str) and isinstance(node, Iterable):
        for inner in node:
            yield from _targets(inner)


def _by_kind(failures: Iterable[tuple[Cell | str, str]]) -> list[str]:
    """Cells and why each of them failed, in a line for each kind: its seeds, and the first reason."""
    kinds: dict[str, tuple[list[str], str]] = {}
    for cell, why in failures:
        if isinstance(cell, str):  # a file
            kinds[f"{cell}: {why}"] = ([], "")
            continue
        seeds, _ = kinds.setdefault(cell.label_without_seed, ([], why))
        if str(cell.seed) not in seeds:
            seeds.append(str(cell.seed))
    return [
        label + (f" seed {', '.join(seeds)}" if seeds else "") + (f": {why}" if why else "")
        for label, (seeds, why) in kinds.items()
    ]


def _versions(provenances: Iterable[Mapping[str, str]]) -> str:
    """Which cells were trained by other code than today's; empty where none was."""
    today = results.code_version(results.provenance())
    found = Counter(results.code_version(provenance) for provenance in provenances)
    others = [f"{version} ({count})" for version, count in sorted(found.items()) if version != today]
    if not others:
        return ""
    total = found.total()
    other = f"{total - found[today]} of {total} cells were trained by other code: {', '.join(others)}"
    return f"{other}; today's is {today}"

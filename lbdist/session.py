"""One run of a study: its cells, its measurements and its report, whatever they run on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from lbdist import code, dry_run, results
from lbdist.analysis.report import write_report
from lbdist.analysis.runs import Runs, Score
from lbdist.analysis.sections import reading
from lbdist.capacity import Capacity
from lbdist.config.schema import Config
from lbdist.data.base import Dataset, DataSource
from lbdist.errors import require, warn
from lbdist.output import output
from lbdist.plan import AUTO, Cell, Measurement, Role, title
from lbdist.progress import Progress, several
from lbdist.storage import Store
from lbdist.studies.base import Done, Study, at_point, cells_of, expected_of, whole
from lbdist.training import rehearsal
from lbdist.tuning.book import Book
from lbdist.tuning.schedule import Schedule

GROUP_WORK = {"CPU": 1e12, "GPU": 2e14}
"""Training FLOPs under which a worker group does not pay for its start: about 15 s of one such device."""

WORKERS_KEYS: dict[Role, str] = {
    "workers": "study.check_workers",
    "timing": "study.workers",
    "collectives": "study.workers",
    "benchmark": "study.workers",
}
"""The key by which cells of a role have their number of workers, if that is not `num_workers`."""

Failed = tuple[Cell, str]
Lost = tuple[Measurement, str]


@dataclass
class Session(ABC):
    """A study that is ready to run; a subclass says on what.

    Attributes:
        config: The configuration.
        text: The same as YAML, for the report.
        data: Training and test set.
        study: The study.
        score: What its loss is scored by.
        flops: Of a forward and backward pass of one sample.
        source: Where the data come from, of which the study's scale may leave some out.
        notes: What else is to be said of what was read.
    """

    config: Config
    text: str
    data: Dataset
    study: Study
    score: Score
    flops: float
    source: DataSource
    notes: list[str]

    def __post_init__(self) -> None:
        self.store = Store(self.config.storage)
        self.folder = self.store / self.config.name
        self.cells = cells_of(self.study, whole(self.study))
        self.out = output(self.config.output)
        self._known_gradients: dict[str, tuple[int, float]] = {}

    @abstractmethod
    def devices(self) -> Capacity | None:
        """What there is to run on; None where that is known only once a cluster is joined."""

    @abstractmethod
    def limit(self, capacity: Capacity) -> str:
        """What keeps a cell from having more workers, in words."""

    @abstractmethod
    def work(self, book: Book, progress: Progress, command: str) -> tuple[list[Failed], list[Lost]]:
        """Trains and measures what is not done.

        Args:
            book: What is done.
            progress: Shows what happens.
            command: As the user gave it, to go on with after an interrupt.

        Returns:
            The cells, and the measurements, that have no rows, and why.
        """

    def run(self, command: str) -> int:
        """Runs what is not done yet, and reports.

        Args:
            command: As the user gave it, for the report.

        Returns:
            The exit status: 1 if anything failed.
        """
        here = self.devices()
        lines = self.within(here) if here else []
        self.store.check()
        if self.config.dry_run:
            with self.store.probe():  # what it is to find out is whether the study would run
                pass
        if here:
            self.check_workers(here)
        measurements = list(self.study.measurements(whole(self.study)))
        network, data = title(self.config.network), title(self.config.data)
        head = f"study {self.config.name}: {network} on {data}, {several(len(self.cells), 'cell')}, "
        head += several(len(measurements), "measurement")
        lines += self._remarks()
        if self.config.dry_run:
            dry_run.show(self.study, measurements, self.data, self.store, [head, *lines], self.out)
            return 0
        counts = {"cells": len(self.cells), "measurements": len(measurements)}
        self.out.say(f"{head}, in {self.folder}", "plan", study=self.config.name, **counts)
        for line in lines:
            self.out.say(line)
        with self.folder.lock():
            book = Book(self.store, warn, self.config.retrain == "changed")
            book.read_ahead(self.study)
            failed = self._work(book, command) + self._diverged(book) + self.report(book, command)
            book.compact(self.study)
        for line in failed:
            warn(line)
        status = 1 if failed else 0
        self.out.end(status, failed)
        return status

    def within(self, capacity: Capacity) -> list[str]:
        """Takes the study as it is on these devices; a line for what is left out since they are too few."""
        self.study = self.study.within(capacity.gpus or capacity.cpus)
        self.cells = cells_of(self.study, whole(self.study))
        return self.study.left_out()

    def check_workers(self, capacity: Capacity) -> None:
        """Refuses a cell that needs more workers than fit at once: a cluster's size is known once joined."""
        for cell in self.cells.values():
            key = WORKERS_KEYS.get(cell.role, "num_workers")
            most = f"at most {capacity.slots}, {self.limit(capacity)}"
            require(cell.asked_workers <= capacity.slots, key, cell.num_workers, most)
            possible = capacity.gpus > 0 or cell.precision != "tf32"
            require(possible, "precision", cell.precision, "float32, bfloat16 or auto, since there is no GPU")

    def _remarks(self) -> list[str]:
        asked, share = self.config.num_workers, self.config.search.epochs
        auto = (
            "one process per cell, and more only where processes would stand idle and its work pays for one"
        )
        lines = [f"num_workers={asked}" + (f": {auto}" if asked == AUTO else "")]
        rule, rates = self.config.lr_rule, {}
        for cell in self.cells.values():
            rates[cell.global_batch_size] = cell.optimizer.get("lr")
        if rule != "none":
            listed = ", ".join(f"{rates[batch]:.4g} at batch {batch:,}" for batch in sorted(rates))
            lines.append(f"lr_rule={rule}: learning rate {listed}")
        if share < 1 and any(cell.role == "search" for cell in self.cells.values()):
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
        lines += self.source.notes + self.notes
        if fewer:
            lines.append(f"scale={self.config.scale['name']}: {' and '.join(fewer)}")
        return lines

    def missing(self, book: Book) -> list[Measurement]:
        """The measurements at finished cells that have no rows."""
        # listed first, since looking for each that is not there yet takes long in an object store
        there = {name.split("/")[1] for name in self.store.names(results.MEASUREMENTS)}
        files = [(m, results.measurement_file(m.id)) for m in self.study.measurements(book)]
        return [m for m, file in files if file.split("/")[1] not in there or not book.measured(m)]

    def _work(self, book: Book, command: str) -> list[str]:
        """Trains and measures what is not done; nothing is started where nothing is missing.

        Returns:
            A line for each kind of cell and of measurement that has no rows.
        """
        if not self.unfinished(book) and not self.missing(book):
            return []
        self.check_files(book)
        done = [cell for cell in cells_of(self.study, book).values() if book(cell) is not None]
        expected = lambda: expected_of(self.study, book).values()  # noqa: E731
        point = lambda cell: at_point(self.study.told(book), cell)  # noqa: E731
        shown = self.score.name, self.score.unit, point, self.out
        with Progress(expected, done, self.weight, *shown) as progress:
            failed, lost = self.work(book, progress, command)
        again = "; run the command again to retry"
        return [f"failed: {line}{again}" for line in _by_kind(failed)] + [
            f"not measured: {line}{again}"
            for line in _by_kind(
                (Path(m.at[0].file).name if m.at[0].file else m.at[0].cell, f"{title(m.measure)}: {why}")
                for m, why in lost
            )
        ]

    def train(
        self,
        book: Book,
        capacity: Capacity,
        most_at_once: Callable[[Cell], int],
        watch: Progress,
        run: Callable[[Schedule], None],
    ) -> list[Failed]:
        """Lets every cell run that is not done.

        Args:
            book: What is done.
            capacity: What there is to run on.
            most_at_once: The most cells of its kind that a process trains at once.
            watch: Shows what happens.
            run: Runs what a schedule hands out, to its end.

        Returns:
            The cells that have no rows, and why.
        """
        failed: list[Failed] = []
        work = GROUP_WORK["GPU" if capacity.gpus else "CPU"]
        for _ in range(3):  # again for cells of which a file turns out to be damaged by now
            if not self.unfinished(book):
                break
            schedule = Schedule(
                self.study,
                book,
                capacity,
                max_concurrent=self.config.max_concurrent,
                cost=self.weight,
                worthwhile=lambda cell: self._gradients(cell)[1] * self.flops / work,
                most_at_once=most_at_once,
                watch=watch,
            )
            run(schedule)
            failed += schedule.failed
            self.check_files(book)  # of cells that were found finished only now
        return failed + [(cell, "its files were damaged again") for cell in self.unfinished(book)]

    def weight(self, cell: Cell) -> float:
        """How long a cell takes: a step costs about as much as 64 samples on top of its own."""
        evaluations, samples = self._gradients(cell)
        return 64 * evaluations + samples

    def _gradients(self, cell: Cell) -> tuple[int, float]:
        """The gradients that a cell will take, and the samples that they see, looked up once."""
        if cell.id not in self._known_gradients:
            self._known_gradients[cell.id] = rehearsal.gradients(cell, len(self.data.train))
        return self._known_gradients[cell.id]

    def unfinished(self, book: Done) -> list[Cell]:
        """The known cells that have not ended."""
        return [cell for cell in cells_of(self.study, book).values() if book(cell) is None]

    def check_files(self, book: Book) -> None:
        """Looks through what is about to be read; a cell whose model is needed and lost is to run again."""
        known, waiting = cells_of(self.study, book).values(), self.unfinished(book)
        models = [(p.cell, p.epoch) for m in self.missing(book) for p in m.at if p.file is None]
        if waiting:  # which may begin at a model that another cell keeps
            models += [(cell, epoch) for cell in known if book(cell) for epoch in sorted(cell.keep)]
        book.check(waiting, models)

    def _diverged(self, book: Done) -> list[str]:
        """A line for each kind of cell that diverged."""
        cells = cells_of(self.study, book).values()
        diverged = [cell for cell in cells if (book(cell) or {}).get("diverged")]
        return [f"diverged: {line}" for line in _by_kind((cell, "") for cell in diverged)]

    def report(self, book: Book, command: str) -> list[str]:
        """Writes what there is, and returns what must be said of it: values that could not be measured."""
        cells = cells_of(self.study, book)
        finished = {key: cell for key, cell in cells.items() if book(cell)}
        models = self.study.models()
        if not (finished or models):
            return ["no cell finished, so there is nothing to report"]
        measurements = {m.id: title(m.measure) for m in self.study.measurements(book)}
        columns = {key: cell.columns() for key, cell in finished.items()} | models
        name, swept = self.config.name, self.study.swept(book)
        rows = results.gather(self.store, columns, measurements, name, book.rows, swept)
        runs = Runs(rows, self.score)
        results.append(self.store, self.config.name, self.study.derived(runs))
        sections = self.study.sections(runs, book)
        words, others = reading.words(runs), self._other_code(book, finished.values())
        context = {"command": command, **results.provenance(), "configuration": self.text}
        if said := [*self.source.notes, *self.notes]:
            context["data"] = "; ".join(line.removeprefix("data: ") for line in said)
        if others:
            context["other code"] = "; ".join(others)
        heading = " ".join([self.config.name, "of", runs.network, "on", runs.data])
        # first the file: a terminal may be gone, or not know a letter
        self.folder.write("config.yaml", self.text.encode())
        written = write_report(self.folder, heading, sections, context, words)
        for line in words:
            self.out.say(line)
        self.out.sections(sections)
        went_on = _by_kind(
            (cell, f"went on with {row['num_workers']} of its {cell.num_workers} workers, to the same end")
            for key, cell in finished.items()
            for row in book.rows(results.cell_file(key))[:1]
            if cell.num_workers not in (AUTO, row["num_workers"])
        )
        for line in (*went_on, *others):
            self.out.say(line)
        self.out.say(f"report: {written}", "report", path=written)
        wrong = rows[rows["error"].notna()]
        return [
            f"not measured: {line}"
            for line in _by_kind(
                (cells.get(row.cell, row.file), f"{row.measure}: {row.error}") for row in wrong.itertuples()
            )
        ]

    def _other_code(self, book: Book, finished: Collection[Cell]) -> list[str]:
        """A line for each kind of cell, and for each measure, that other code than today's has computed."""
        found: list[tuple[Cell, str]] = []
        for cell in finished:
            changed = book.changed(cell)
            if changed:
                then = results.code_version(book.told(cell)["provenance"])
                own = [name for name in changed if name != code.LBDIST]
                words = [f"{', '.join(own)} {'have' if len(own) > 1 else 'has'} changed"] if own else []
                words += [f"by {then}"] if code.LBDIST in changed else []
                found.append((cell, "; ".join(words)))
        measured = Counter(
            title(m.measure)
            for m in self.study.measurements(book)
            if (rows := book.rows(results.measurement_file(m.id))) and book.measured_otherwise(m, rows)
        )
        lines = [f"trained by other code: {line}" for line in _by_kind(found)]
        lines += [f"measured by other code: {name} ({count})" for name, count in sorted(measured.items())]
        today = results.code_version(results.provenance())
        return [*lines, f"today's is {today}; retrain=changed computes them again"] if lines else []


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

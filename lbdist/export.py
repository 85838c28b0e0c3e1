"""A finished study where a team looks: MLflow, Weights & Biases, Trackio or TensorBoard.

python -m lbdist.export results/remedies to=mlflow

One run for each of the study's, with its configuration, its curves and its final values, and one for the
study itself, with its tables, figures and report. Nothing is live: it is read from the study's folder. Where
the tools keep it is theirs to say (MLFLOW_TRACKING_URI, WANDB_MODE, TRACKIO_DIR ...).
"""

from __future__ import annotations

import contextlib
import math
import re
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from lbdist import commands, results
from lbdist.errors import Failure, InputError, one_line, require, short
from lbdist.plan import method_label
from lbdist.rows import Place
from lbdist.storage import Store

USAGE = "usage: python -m lbdist.export STUDY to=mlflow|wandb|trackio|tensorboard [project=NAME] [out=FOLDER]"


@dataclass
class Run:
    """What is written of one run.

    Attributes:
        name: What people call it.
        config: What it was trained with.
        curves: Its metrics at each epoch.
        final: Its final values, and what was measured at its end.
    """

    name: str
    config: dict[str, Any]
    curves: dict[int, dict[str, float]] = field(default_factory=dict)
    final: dict[str, float] = field(default_factory=dict)


def runs_of(rows: pd.DataFrame) -> list[Run]:
    """The runs of a study, with what is known of each, in the order of its rows.

    Args:
        rows: As `lbdist.results.load` gives them.
    """
    named = ["network", "data", "method", "remedy", "setting", "role", "seed", "global_batch_size"]
    named += ["num_workers", "precision", "rule", "cell"]
    swept = list(rows.columns[len(results.SCHEMA.names) :])
    found = []
    for (cell, _), own in rows[rows["cell"].notna()].groupby(["cell", "point"], sort=False, dropna=False):
        first = own.iloc[0]
        if pd.isna(first["method"]):  # a model of the user's own
            continue
        config = {key: _plain(first[key]) for key in (*named, *swept) if not pd.isna(first[key])}
        label = method_label(first["method"], first["remedy"], first["role"])
        checks = first["role"] if first["role"] in ("workers", "precision") else None
        said = [label, first["setting"], checks, *(f"{key}={first[key]}" for key in swept)]
        name = ", ".join(str(word) for word in said if word and not pd.isna(word))
        run = Run(f"{name}, seed {first['seed']:.0f}", {**config, "cell": cell})
        for row in own[own["value"].notna()].itertuples():
            name = results.final_name(row.metric, None if pd.isna(row.split) else row.split)
            if not pd.isna(row.measurement):
                if pd.isna(row.position) and pd.isna(row.epoch):
                    run.final[_measured(row)] = float(row.value)
            elif pd.isna(row.epoch):
                run.final[name] = float(row.value)
            else:
                run.curves.setdefault(int(row.epoch), {})[name] = float(row.value)
        found.append(run)
    return found


def _measured(row: Any) -> str:
    """The name of a measured value: `sharpness/full/converged/1e-3`."""
    parts = [row.metric, row.space, row.solver, None if pd.isna(row.epsilon) else f"{row.epsilon:g}"]
    parts += [f"draw {row.draw:.0f}" if row.draw and not pd.isna(row.draw) else None]
    return "/".join(str(part) for part in parts if part and not pd.isna(part))


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


class Target(ABC):
    """Where runs are written."""

    module = ""
    """What must be installed."""

    def __init__(self, project: str, out: Path) -> None:
        self.project, self.out = project, out

    @abstractmethod
    def write(self, run: Run) -> None:
        """Writes a run."""

    @abstractmethod
    def write_study(self, run: Run, folder: Path) -> None:
        """Writes the study's own run, with the files in a folder: report, figures, tables, configuration."""


class MLflow(Target):
    """MLflow's tracking, where `MLFLOW_TRACKING_URI` says, or in the current folder."""

    module = "mlflow"

    def _run(self, run: Run) -> contextlib.AbstractContextManager[Any]:
        import mlflow

        mlflow.set_experiment(self.project)
        return mlflow.start_run(run_name=run.name)

    def write(self, run: Run) -> None:
        """Parameters, metrics by epoch, final metrics."""
        import mlflow

        with self._run(run):
            mlflow.log_params(run.config)
            for epoch, metrics in run.curves.items():
                mlflow.log_metrics(_named(metrics), step=epoch)
            mlflow.log_metrics(_named(run.final))

    def write_study(self, run: Run, folder: Path) -> None:
        """Its files as artifacts."""
        import mlflow

        with self._run(run):
            mlflow.log_params(run.config)
            mlflow.log_artifacts(str(folder))


class _LikeWandb(Target):
    """What Weights & Biases and Trackio, which has its interface, have in common."""

    def _begin(self, run: Run) -> Any:
        module = __import__(self.module)
        return module, module.init(project=self.project, name=run.name, config=run.config)

    def write(self, run: Run) -> None:
        """Configuration, metrics by epoch, final values last."""
        module, _ = self._begin(run)
        for epoch, metrics in run.curves.items():
            module.log(_finite(metrics), step=epoch)
        module.log(_finite(run.final), step=1 + max(run.curves, default=0))
        module.finish()

    def write_study(self, run: Run, folder: Path) -> None:
        """Its figures as images."""
        module, begun = self._begin(run)
        pictures = {path.stem: module.Image(str(path)) for path in sorted(folder.rglob("*.png"))}
        module.log({**pictures, "configuration": run.config.get("configuration", "")})
        self._files(begun, folder)
        module.finish()

    def _files(self, begun: Any, folder: Path) -> None:
        """Its other files, where the tool takes some."""


class Wandb(_LikeWandb):
    """Weights & Biases, by the account or the mode that its environment has."""

    module = "wandb"

    def _files(self, begun: Any, folder: Path) -> None:
        import wandb

        files = wandb.Artifact("report", type="report")
        files.add_dir(str(folder))
        begun.log_artifact(files)


class Trackio(_LikeWandb):
    """Trackio, on this machine or in the Space that its environment names."""

    module = "trackio"


class TensorBoard(Target):
    """Event files, a folder a run, for `tensorboard --logdir`."""

    module = "tensorboard"

    def write(self, run: Run) -> None:
        """Scalars by epoch, and the configuration beside the final values."""
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(str(self.out / run.name.replace("/", "_"))) as writer:
            for epoch, metrics in run.curves.items():
                for name, value in _finite(metrics).items():
                    writer.add_scalar(name, value, epoch)
            config = {key: str(value) for key, value in run.config.items()}
            writer.add_hparams(config, {f"final/{name}": value for name, value in _finite(run.final).items()},
                               run_name=".")  # fmt: skip

    def write_study(self, run: Run, folder: Path) -> None:
        """Figures as images, tables and configuration as text."""
        import numpy as np
        from PIL import Image
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(str(self.out / run.name.replace("/", "_"))) as writer:
            for path in sorted(folder.rglob("*.png")):
                writer.add_image(path.stem, np.asarray(Image.open(path).convert("RGB")), dataformats="HWC")
            for path in sorted(folder.rglob("*.md")):
                writer.add_text(path.stem, path.read_text())
            writer.add_text("configuration", f"```\n{run.config.get('configuration', '')}\n```")


TARGETS: Mapping[str, type[Target]] = {
    "mlflow": MLflow, "wandb": Wandb, "trackio": Trackio, "tensorboard": TensorBoard
}  # fmt: skip
"""The tools by name."""


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _named(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics by names in the letters that MLflow takes."""
    return {re.sub(r"[^\w./ -]", "_", name): value for name, value in _finite(metrics).items()}


def export(place: Place, to: str, project: str | None = None, out: str | Path | None = None) -> int:
    """Writes a finished study to a tool; what was written before stays there.

    Args:
        place: The study's folder, or its URI.
        to: `mlflow`, `wandb`, `trackio` or `tensorboard`.
        project: What the tool is to call it; None for the study's name.
        out: Where TensorBoard's files go; None for `tensorboard/` in the study's folder.

    Returns:
        How many runs were written.

    Raises:
        InputError: There is no such tool, or no study there.
        Failure: The tool could not take it.
    """
    require(to in TARGETS, "to", to, f"one of {', '.join(TARGETS)}")
    store = Store.of(place)
    if not store.exists("rows.parquet"):
        raise InputError(f"{store}: must be the folder of a finished study, as results/remedies")
    kind = TARGETS[to]
    try:
        __import__(kind.module)
    except ImportError as error:
        raise InputError(f"to={to}: {kind.module} is not installed: pip install 'lbdist[{to}]'") from error
    rows = results.load(store)
    name = str(rows["experiment"].dropna().iloc[0])
    target = kind(project or name, Path(out) if out else Path(str(store)) / "tensorboard")
    runs = runs_of(rows)
    text = store.read("config.yaml").decode() if store.exists("config.yaml") else ""
    try:
        for run in runs:
            target.write(run)
        with _files(store) as folder:
            target.write_study(Run(f"study {name}", {"study": name, "configuration": text[:5000]}), folder)
    except Exception as error:  # whatever a tool may say of its server, its account or its disk
        raise Failure(f"to={to}: {type(error).__name__}: {short(one_line(error))}") from error
    return len(runs)


@contextlib.contextmanager
def _files(store: Store) -> Iterator[Path]:
    """A folder with the study's report, configuration, figures and tables."""
    with tempfile.TemporaryDirectory() as folder:
        names = [name for kind in ("figures", "tables") for name in store.names(kind)]
        for name in [*names, "report.html", "config.yaml"]:
            if store.exists(name):
                path = Path(folder) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(store.read(name))
        yield Path(folder)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        arguments: The command line without the program's name.

    Returns:
        0 when all is written, 1 when some of it could not be, 2 for a wrong input, 130 after Ctrl-C.
    """

    def do(places: list[str], values: dict[str, str]) -> None:
        if "to" not in values:
            raise InputError(f"to: must be given, one of {', '.join(TARGETS)}")
        count = export(places[0], values["to"], values.get("project"), values.get("out"))
        print(f"{count} runs of {places[0]} are in {values['to']}")

    return commands.run(do, arguments, USAGE, 1, ("to", "project", "out"))


if __name__ == "__main__":
    sys.exit(main())

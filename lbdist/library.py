"""lbdist as a library: a study, a training run, a table and a report, from a script or a notebook.

What is public is what `import lbdist` has: these functions, `lbdist.sharpness`, `lbdist.results` and
`lbdist.objective`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from lbdist import results
from lbdist.analysis.report import write_report
from lbdist.analysis.runs import Runs, score_of
from lbdist.analysis.sections import comparison, reading
from lbdist.analysis.sections import leaderboard as boards
from lbdist.config import choices, schema
from lbdist.config.sweep import compose_all
from lbdist.data.base import Dataset, Split
from lbdist.errors import Failure, InputError, require
from lbdist.losses import CrossEntropy, Loss
from lbdist.networks import check
from lbdist.plan import Cell
from lbdist.prepare import prepare
from lbdist.rows import Place
from lbdist.training import loop
from lbdist.training.batches import Workers
from lbdist.training.learner import Learner, OptimizerFactory

if TYPE_CHECKING:
    import pandas as pd


def run_study(
    experiment: str = "remedies", *overrides: str, folders: Sequence[str | Path] = ()
) -> pd.DataFrame:
    """Runs a study as the command does, from where it stopped, and gives its rows.

    Args:
        experiment: The study, as in `experiment=gap`.
        overrides: As on the command line: `"optimizer.lr=0.01"`, `"storage=results"`, `"executor=serial"`;
            with `"-m"`, a key may have several values.
        folders: Folders of your own, as `--config-dir` takes them.

    Returns:
        What `lbdist.results.load` gives of the study's folder.

    Raises:
        InputError: What is wrong, before anything is written or started.
        Failure: Some of it failed: the standard error says what, and `lbdist.results.load` has the rest.

    Example:
        >>> import contextlib, io, tempfile
        >>> small = ["data.train_samples=400", "network.widths=[8]", "epochs=1", "seeds=1", "measure=[]"]
        >>> small += ["study.equal_loss=null", "executor=serial"]
        >>> with contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as folder:
        ...     rows = run_study("gap", *small, f"storage={folder}")
        >>> sorted(rows.method.unique())
        ['LB', 'SB']
    """
    words = [f"experiment={experiment}", *overrides]
    config, parts = compose_all(words, [Path(folder) for folder in folders])
    for one in (config, *parts.values()):
        schema.check(one)
    session = prepare(config, parts)
    if session.run(f"lbdist.run_study({', '.join(repr(word) for word in (experiment, *overrides))})"):
        raise Failure(f"{config.name}: some of it failed; lbdist.results.load has what finished")
    return results.load(session.folder)


def train(
    network: nn.Module,
    train: tuple[ArrayLike, ArrayLike],
    test: tuple[ArrayLike, ArrayLike],
    *,
    batch_size: int,
    epochs: int = 20,
    seed: int = 0,
    optimizer: OptimizerFactory | None = None,
    loss: Loss | None = None,
    remedy: str | Mapping[str, Any] | None = None,
    ghost_batch_size: int | None = None,
) -> pd.DataFrame:
    """Trains a network of yours by lbdist's loop, in this process, in float32.

    Args:
        network: Any module, at its starting point and on its device; it has the trained model afterwards.
        train: Inputs (N, ...) and labels (N, ...), as arrays or tensors.
        test: Likewise, evaluated after every epoch.
        batch_size: The global batch, in samples; the last of an epoch may be smaller.
        epochs: Passes over the training set.
        seed: Of the order, of dropout, and of what a remedy draws.
        optimizer: Makes an optimiser of the named parameters; None for ADAM with learning rate 1e-3.
        loss: What is learnt; None for cross-entropy over classes.
        remedy: One of lbdist's by its name, with its default settings, or its node: `_target_` and settings.
        ghost_batch_size: Batch-norm group in samples; None for the whole batch.

    Returns:
        A row per measured value: `epoch` (null for the end), `step`, `metric`, `value`, `split`.

    Raises:
        InputError: What the network, the data or the optimiser does not allow.

    Example:
        Least squares on y = 2 x, of which the loss goes to 0:

        >>> from lbdist.losses import MeanSquaredError
        >>> line = nn.Linear(1, 1)
        >>> x = torch.linspace(-1, 1, 64)[:, None]
        >>> sgd = lambda parameters: torch.optim.SGD([p for _, p in parameters], 0.3)
        >>> rows = train(line, (x, 2 * x), (x, 2 * x), batch_size=16, optimizer=sgd, loss=MeanSquaredError())
        >>> r2 = rows.query("metric == 'r2' and split == 'test'").value
        >>> print(f"{line.weight.item():.3f} {r2.iloc[-1]:.3f}")
        2.000 1.000
    """
    require(epochs >= 1, "epochs", epochs, "at least 1")
    check(network)
    learnt = loss or CrossEntropy()
    data = _dataset(train, test, learnt, batch_size)
    cell = Cell({}, {}, {}, {}, _remedies(remedy), batch_size, epochs, seed, test_points=epochs,
                ghost_batch_size=ghost_batch_size)  # fmt: skip

    def make() -> Learner:
        own = copy.deepcopy(network)  # for a learner changes how its layers work
        return Learner(own, optimizer or _adam, Workers(), ghost_batch_size, criterion=learnt)

    rows, model = loop.train_as(cell, data, make)
    network.load_state_dict(model)
    found = results.as_table(rows).to_pandas()
    return found[["epoch", "step", "metric", "value", "split"]]


def _dataset(
    train: tuple[ArrayLike, ArrayLike], test: tuple[ArrayLike, ArrayLike], loss: Loss, batch_size: int
) -> Dataset:
    """The samples, of which there is a batch, and which the loss takes."""
    splits = _split("train", train), _split("test", test)
    labels = [split.labels for split in splits]
    classes = 1 + max(int(part.max()) for part in labels) if labels[0].dtype.kind in "iu" else None
    data, count = Dataset(*splits, classes), len(splits[0])
    require(1 <= batch_size <= count, "batch_size", batch_size, f"from 1 to {count}, the samples")
    loss.check(data)
    return data


def _adam(parameters: list[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
    return torch.optim.Adam([p for _, p in parameters], 1e-3)


def _remedies(remedy: str | Mapping[str, Any] | None) -> tuple[Mapping[str, Any], ...]:
    if remedy is None or remedy == "none":
        return ()
    if isinstance(remedy, Mapping):
        return ({"name": "remedy", **remedy},)
    known = choices.options("remedy")
    require(remedy in known, "remedy", remedy, f"one of {', '.join(known)}, or a node with _target_")
    node = choices.file("remedy", remedy, ())[remedy]
    return ({"name": remedy, **{key: value for key, value in node.items() if key not in ("search", "cell")}},)


def _split(name: str, given: tuple[ArrayLike, ArrayLike]) -> Split:
    inputs, labels = (np.ascontiguousarray(_array(part)) for part in given)
    if not len(inputs) == len(labels) > 0:
        raise InputError(f"{name}: {len(inputs)} inputs for {len(labels)} labels; must be as many, and some")
    return Split(inputs, labels)


def _array(part: Any) -> np.ndarray:
    """As a data set has it: integers in 64 bits, but for bytes, other numbers in 32."""
    array = part.detach().cpu().numpy() if isinstance(part, Tensor) else np.asarray(part)
    if array.dtype.kind == "f":
        return array.astype(np.float32)
    return array if array.dtype == np.uint8 and array.ndim > 1 else array.astype(np.int64)


def leaderboard(rows: pd.DataFrame) -> pd.DataFrame:
    """The table of methods that the report of a comparison has: SB, LB, then the remedies by test score.

    Args:
        rows: Of one study, as `run_study` and `lbdist.results.load` give them.

    Returns:
        A row per method, its index. Columns: the mean of each quantity over its confirmed runs, and beside it
        `std`, `n`, `low` and `high`, the 95 % interval; `gap` is SB minus the method.

    Raises:
        ValueError: The rows are of several studies.
    """
    import pandas as pd

    tables = boards.section(Runs(rows, score_of(rows))).tables
    records = tables[0].records() if tables else []
    return pd.DataFrame(records).set_index("method") if records else pd.DataFrame()


def report(
    rows: pd.DataFrame, folder: Place, title: str = "", context: Mapping[str, str] | None = None
) -> str:
    """Writes the report of a comparison: one page, each table and figure beside it.

    Args:
        rows: Of one study, as `run_study` and `lbdist.results.load` give them; or some of them.
        folder: Where to; a report that is there is replaced.
        title: What stands over it; empty for what the rows are of.
        context: How it was measured, name by name, as it stands at its end.

    Returns:
        Where the page is.

    Raises:
        ValueError: The rows are of several studies.
    """
    runs = Runs(rows, score_of(rows))
    heading = title or " ".join([runs.study, "of", runs.network, "on", runs.data])
    told = {"written by": results.code_version(results.provenance()), **(context or {})}
    return write_report(folder, heading, comparison.sections(runs), told, reading.words(runs))

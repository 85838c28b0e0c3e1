"""Every section, found by listing the folder: on much, on little and on nothing, everywhere it is written."""

import functools
import importlib
import io
import math
import pkgutil
import xml.etree.ElementTree as ET

import matplotlib
import pytest
from rich.console import Console

from lbdist.analysis import drawing, terminal
from lbdist.analysis import sections as package
from lbdist.analysis.export import FORMATS
from lbdist.analysis.report import write_report
from lbdist.analysis.runs import Runs, Score
from lbdist.analysis.sections import comparison
from tests.support.rows import (
    choices,
    frame,
    model,
    plane,
    rescaled,
    sharpness,
    spectrum,
    study,
    training,
    ways,
)

MODULES = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
DIVERGED = [row for name in ("SB", "LB") for row in training(name, 0, math.nan, diverged=1)]
LANDSCAPE = [row for name in ("SB", "LB", "robust") for seed in (0, 1) for row in training(name, seed, 70.0)]
LANDSCAPE += [
    row for name in ("LB", "robust") for seed in (0, 1) for row in ways(name, seed)
]  # and a plane around each
LANDSCAPE += [row for name in ("SB", "LB", "robust") for row in plane(name, 0)]
MODELS = [row for place, name in enumerate(("a.pt", "b.safetensors")) for row in model(name, place + 1.0)]
FAILED = [*training("SB", 0, 70.0), *training("LB", 0, 60.0)]
FAILED.append(sharpness(FAILED, math.nan, converged=False, error="RuntimeError: no"))
CURVATURE = [*training("SB", 0, 70.0), *training("LB", 0, 60.0)]
CURVATURE += [row for name in ("SB", "LB") for row in [*spectrum(name, 0, 2.0), *rescaled(name, 0)]]
ASKED_FOR = {"spectrum": "curvature", "rescaling": "curvature", "choices": "choices"}
"""Sections that are there only where something was measured for them, and where that is."""
CHOICES = [row for name in ("SB", "LB") for seed in (0, 1) for row in training(name, seed, 70.0)]
CHOICES += [row for name in ("SB", "LB") for seed in (0, 1) for row in choices(name, seed)]


ROWS = {
    "much": study(epochs=(1, 20, 40), search=True, check=True),
    "one seed": study(seeds=1, epochs=(5,)),
    "unmeasured": study(measure=False),
    "all diverged": frame(DIVERGED),
    "failed": frame(FAILED),
    "searching": frame(training("robust", 10_000, 50.0, role="search", setting="rho=1")),
    "landscape": frame(LANDSCAPE),
    "models": frame(MODELS),
    "curvature": frame(CURVATURE),
    "choices": frame(CHOICES),
    "nothing": frame([]),
}


@functools.cache
def runs_of(rows: str, score: Score) -> Runs:
    return Runs(ROWS[rows].replace({"metric": {"accuracy": score.name}}), score)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", MODULES)
def test_a_section_is_written_whatever_there_is(name, rows, tmp_path):
    module = importlib.import_module(f"{package.__name__}.{name}")
    for score in (Score(), Score("r2", "")) if rows == "much" else (Score(),):
        runs, files = runs_of(rows, score), rows == "much" and score == Score()
        if name == "paper":
            found = module.sections({name: (runs, comparison.sections(runs)) for name in ("gap", "remedies")})
        elif name == "side_by_side":
            found = module.sections(runs, runs)
        elif name == "sweep":
            points = {f"lr={lr}": ({"lr": lr}, runs, comparison.sections(runs)) for lr in (0.1, 0.2)}
            found = module.sections(points)
        elif hasattr(module, "sections"):
            found = module.sections(runs)
        else:
            found = [module.section()] if name == "reading" else [module.section(runs)]
        assert bool(found) is (ASKED_FOR.get(name, rows) == rows)
        assert all(section.title for section in found)
        console = Console(file=io.StringIO(), width=100)
        terminal.show(found, console)
        texts = [console.file.getvalue()]
        if files:
            write_report(tmp_path, name, found, {})
            page = ET.fromstring((tmp_path / "report.html").read_text().removeprefix("<!DOCTYPE html>"))
            texts.append(" ".join(page.itertext()))
        for section in found:
            texts += [*section.sentences, *(figure.caption for figure in section.figures)]
            texts += [write(table) for table in section.tables for write in FORMATS.values()]
        for text in texts:
            assert not {"nan", "None", "NaN", "inf"} & set(text.replace("\n", " ").split())
        for section in found:
            for table in section.tables:
                assert all(len(row) == len(table.heads) for row in table.rows)
            for figure in section.figures:
                if files:
                    assert (tmp_path / "figures" / f"{figure.name}.svg").exists()
                else:
                    with matplotlib.rc_context(drawing.STYLE):
                        assert figure.draw().axes

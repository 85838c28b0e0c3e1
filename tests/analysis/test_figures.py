"""What every figure of a report draws, by numbers that are known beforehand."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lbdist.analysis import drawing, timings
from lbdist.analysis import sections as package
from lbdist.analysis.advice import Branch, Timed, advise
from lbdist.analysis.runs import Runs
from lbdist.analysis.section import Section
from lbdist.analysis.sections import (
    along_the_run,
    batch_size,
    benchmark,
    break_even,
    comparison,
    critical_batch,
    landscape,
    recommendation,
    side_by_side,
    spectrum,
    sweep,
    throughput,
    warm_start,
)
from tests.support import rows as made
from tests.support.rows import STORY, frame, sharpness, spread, study, training

SHOWN: dict[str, Callable[[], None]] = {}
"""What checks a figure, by its name."""


def shows(name: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    def add(check: Callable[[], None]) -> Callable[[], None]:
        SHOWN[name] = check
        return check

    return add


def drawn(sections: Iterable[Section], name: str) -> Figure:
    with matplotlib.rc_context(drawing.STYLE):
        (found,) = [f for section in sections for f in section.figures if f.name == name]
        return found.draw()


def lines(axes: Axes) -> dict[str, tuple[list[float], list[float]]]:
    """The named lines of a panel: x and y."""
    return {
        str(line.get_label()): (list(map(float, line.get_xdata())), list(map(float, line.get_ydata())))
        for line in axes.get_lines()
        if not str(line.get_label()).startswith("_")
    }


def bars(axes: Axes, vertical: bool = True) -> list[tuple[float, float, float]]:
    """The points of a panel with error bars: x, y and half the bar's length."""
    found = []
    for container in axes.containers:
        line, _, ends = container.lines
        points = zip(line.get_xdata(), line.get_ydata(), strict=True)
        lengths = [np.ptp(segment[:, int(vertical)]) / 2 for end in ends for segment in end.get_segments()]
        found += [
            (float(x), float(y), float(half))
            for (x, y), half in itertools.zip_longest(points, lengths, fillvalue=math.nan)
        ]
    return found


def close(found: Any, known: Any) -> None:
    np.testing.assert_allclose(np.array(found, float), np.array(known, float), rtol=1e-9, atol=1e-12)


@shows("leaderboard")
def leaderboard() -> None:
    panels = drawn(comparison.sections(Runs(study())), "leaderboard").axes
    names = [text.get_text() for text in panels[0].get_yticklabels()]
    stories = [STORY[name.removeprefix("LB + ")] for name in names]
    assert len(names) == len(STORY)
    for axes, mean, std in ((panels[0], 0, 1), (panels[1], 2, 3)):
        known = [(story[mean], place, story[std]) for place, story in enumerate(stories)]
        close(sorted(bars(axes, vertical=False), key=lambda bar: bar[1]), known)


@shows("curves")
def curves() -> None:
    rows = []
    for seed, value in enumerate((40.0, 50.0, 60.0)):
        for name, shift in (("SB", 20.0), ("LB", 0.0)):
            cell = training(name, seed, 60.0)
            for epoch, split in itertools.product((3, 6), ("train", "test")):
                point = {"epoch": epoch, "step": epoch, "metric": "accuracy", "split": split}
                cell.append({**cell[0], **point, "value": value + shift + epoch + 5 * (split == "train")})
            rows += cell
    for axes, more in zip(drawn(comparison.sections(Runs(frame(rows))), "curves").axes, (5, 0), strict=True):
        found = lines(axes)
        close(found["SB"], [[3, 6], [73 + more, 76 + more]])
        close(found["LB"], [[3, 6], [53 + more, 56 + more]])
        heights = [band.get_paths()[0].vertices[:, 1] for band in axes.collections]
        bands = sorted((float(ys.min()), float(ys.max())) for ys in heights)  # one standard deviation
        close(bands, [(53 + more - 10, 56 + more + 10), (73 + more - 10, 76 + more + 10)])


@shows("scatter")
def scatter() -> None:
    rows = study(("SB", "LB"))
    found = lines(drawn(comparison.sections(Runs(rows)), "scatter").axes[0])
    for name in ("SB", "LB"):
        mean, std, phi, phi_std, *_ = STORY[name]
        close(found[name], [spread(phi, phi_std, 3), spread(mean, std, 3)])


@shows("slices")
def slices() -> None:
    rows = [row for name in ("SB", "LB") for seed in (0, 1) for row in training(name, seed, 70.0)]
    rows += [row for seed in (0, 1) for row in made.ways("LB", seed)]
    figure = drawn(landscape.sections(Runs(frame(rows))), "slices-lb")
    alphas = np.linspace(-1, 2, 13)
    loss = 0.1 + np.minimum(alphas**2, 4.0 * (alphas - 1) ** 2)
    left = [axes for axes in figure.axes if axes.get_ylabel() == "loss"]
    right = [axes for axes in figure.axes if axes.get_ylabel() != "loss"]
    assert len(left) == len(right) == 2  # a line and a curve
    for axes, other in zip(left, right, strict=True):
        for split, more in (("train", 0.0), ("test", 1.0)):
            close(lines(axes)[f"loss, {split}"], [alphas, loss + more])
            close(lines(other)[f"accuracy, {split}"], [alphas, 90 - 20 * (loss + more)])


@shows("planes")
def planes() -> None:
    rows = [row for name in ("SB", "LB") for row in training(name, 0, 70.0)]
    rows += [row for name in ("SB", "LB") for row in made.plane(name, 0)]
    figure = drawn(landscape.sections(Runs(frame(rows))), "planes")
    for axes, name in zip(figure.axes, ("SB", "LB"), strict=False):
        assert axes.get_title() == name
        filled = axes.collections[0]
        close((filled.levels[0], filled.levels[-1]), (0.1, 2.1))
        (cross,) = axes.get_lines()
        close(cross.get_xydata(), [[0, 0]])
        # the line of a level is where 0.1 + a² + b² is, as far as a grid of five can tell
        for level, path in zip(axes.collections[1].levels, axes.collections[1].get_paths(), strict=True):
            if 0.6 < level < 1.0:
                assert len(path.vertices) > 8
                radii = np.hypot(*path.vertices.T)
                assert abs(radii.mean() - math.sqrt(level - 0.1)) < 0.1


@shows("spectrum")
def spectral() -> None:
    rows = [row for seed in (0, 1) for row in training("SB", seed, 70.0)]
    rows += [row for seed in (0, 1) for row in made.spectrum("SB", seed, 2.0)]
    (axes,) = drawn(spectrum.sections(Runs(frame(rows))), "spectrum").axes
    x, y = map(np.array, lines(axes)["SB"])
    inside = x < 1.8
    close(y[inside], (1 - x[inside] / 2.0) / 2.0)


@shows("sharpness_vs_loss")
def sharpness_vs_loss() -> None:
    rows = []
    for seed in (0, 1):
        cell = training("LB", seed, 70.0)
        rows += cell
        for epoch in (1, 4):
            measured = {**sharpness(cell, 10.0 * epoch + 2 * seed), "epoch": epoch}
            rows.append({**measured, "measurement": f"phi-{seed}-{epoch}"})
            loss = {
                "metric": "loss",
                "split": "train",
                "value": 2.0 / epoch + seed,
                "measurement": f"fit-{seed}-{epoch}",
            }
            rows.append({**measured, **loss, "epsilon": None, "space": None, "solver": None})
    loss, epochs = drawn(along_the_run.sections(Runs(frame(rows))), "sharpness_vs_loss").axes
    close(lines(epochs)["LB"], [[1, 4], [11, 41]])
    close(lines(loss)["LB"], [[2.5, 1.0], [11, 41]])


@shows("batch_size")
def sweep_over_batches() -> None:
    known = {16: (70.0, 0.5, 10.0), 64: (69.8, 0.4, 40.0), 256: (65.0, 0.3, 160.0)}
    figure = drawn(batch_size.sections(Runs(frame(made.sweep(known)))), "batch_size")
    score, phi = figure.axes
    close(bars(score), [(batch, mean, std) for batch, (mean, std, _) in known.items()])
    close([bar[:2] for bar in bars(phi)], [(batch, value) for batch, (*_, value) in known.items()])


@shows("warm_start")
def warm_starts() -> None:
    score, phi = drawn(warm_start.sections(Runs(frame(made.warm()))), "warm_start").axes
    lb = [bar for bar in bars(score) if not math.isnan(bar[2])]
    close(lb, [(0, 65, 0.4), (2, 68, 0.4), (5, 71, 0.4)])
    found = [bar[:2] for bar in bars(phi)]
    close(found, [(0, 400), (2, 200), (5, 100), (0, 10), (5, 10)])


@shows("benchmark")
def samples_a_second() -> None:
    rows = []
    for procedure, rates in (("lbdist", (900.0, 1100.0)), ("DataLoader", (400.0, 600.0))):
        for seed, rate in enumerate(rates):
            cell = training("LB", seed, 60.0, workers=1)
            common = {**cell[0], "procedure": procedure, "cell": f"{procedure}-{seed}", "role": "benchmark"}
            values = {"samples_per_second": rate, "startup_seconds": 1.0, "peak_memory": 1e6, "threads": 1}
            values |= {"share_of_limit": 0.5, "accuracy": 60.0}
            rows += [
                {**common, "metric": key, "value": value, "split": "test" if key == "accuracy" else None}
                for key, value in values.items()
            ]
    (axes,) = drawn(benchmark.sections(Runs(frame(rows))), "benchmark").axes
    names = [text.get_text() for text in axes.get_yticklabels()]
    widths = dict(zip(names, (patch.get_width() for patch in axes.patches), strict=True))
    assert widths == pytest.approx({"lbdist": 1000.0, "DataLoader": 500.0})
    ends = [np.ptp(s[:, 0]) / 2 for c in axes.collections for s in c.get_segments()]
    close(ends, [math.sqrt(2) * 100] * 2)


def scaled() -> Runs:
    return Runs(frame(made.scaled()))


@shows("time_to_score")
def time_to_score() -> None:
    """60 (1 + 100 / batch) steps to 80 %, each of 2 ms and 10 us a sample; on two workers half, and 3 ms."""
    runs = scaled()
    figure = drawn(break_even.sections(runs), "time_to_score")
    for axes, step in zip(figure.axes, ({32: 2.32e-3, 320: 5.2e-3}, {32: 5.16e-3, 320: 6.6e-3}), strict=True):
        for name, batch in (("SB", 32), ("LB", 320)):
            seconds, score = lines(axes)[name]
            epoch_steps = 320 // batch
            close(seconds, [step[batch] * epoch_steps * epoch for epoch in range(1, 101)])
            needed = 60 * (1 + 100 / batch)
            close(score, [min(90.0, 80 * epoch_steps * epoch / needed) for epoch in range(1, 101)])


@shows("steps_to_score")
def steps_to_score() -> None:
    (axes,) = drawn(critical_batch.sections(scaled(), [80.0]), "steps_to_score").axes
    points = [bar[:2] for bar in bars(axes)]
    close(points, [(batch, 60 * (1 + 100 / batch)) for batch in (32, 64, 128, 320)])
    fitted = next(line for line in axes.get_lines() if len(line.get_xdata()) == 60)
    np.testing.assert_allclose(fitted.get_ydata(), 60 * (1 + 100 / fitted.get_xdata()), rtol=1e-5)


@shows("critical_batch")
def critical_batches() -> None:
    """By branching, up to 128 after epoch 5; by the noise scale, 50 and 200, whose geometric mean is 100."""
    rows = made.scaled()
    for seed, scale in enumerate((50.0, 200.0)):
        cell = next(row for row in rows if row["cell"] == f"SB-none-{seed}")
        common = {**cell, "metric": "noise_scale", "measure": "noise_scale", "epoch": 5, "split": "train"}
        rows.append({**common, "measurement": f"noise-{seed}", "value": scale})
        for batch, loss in ((32, 0.5), (64, 0.5), (128, 0.505), (320, 0.9)):
            own = {"cell": f"branch-{batch}-{seed}", "role": "branch", "origin_epoch": 5, "seed": seed}
            own |= {"origin_cell": cell["cell"], "global_batch_size": batch, "method": f"batch {batch}"}
            base = {**cell, **own, "epoch": None, "step": None, "split": None}
            ends = {"steps": 10, "seconds": 1.0, "diverged": 0, "gradient_evaluations": 10}
            rows += [{**base, "metric": key, "value": value} for key, value in ends.items()]
            rows.append({**base, "metric": "loss", "split": "train", "value": loss})
    (axes,) = drawn(critical_batch.sections(Runs(frame(rows)), [80.0]), "critical_batch").axes
    found = lines(axes)
    close(next(xy for name, xy in found.items() if "branch" in name), [[5], [128]])
    points = {round(bar[1], 3) for bar in bars(axes)}
    assert 100.0 in points


@shows("throughput")
def rates() -> None:
    runs = scaled()
    (axes,) = drawn(throughput.sections(runs, timings.model(runs)), "throughput").axes
    known = [(b, b / (0.002 + 1e-5 * b)) for b in (32, 64, 128, 320)]
    known += [(b, b / (0.005 + 5e-6 * b)) for b in (32, 64, 128, 320)]
    close([bar[:2] for bar in bars(axes)], known)
    modelled = [line for line in axes.get_lines() if len(line.get_xdata()) == 60]
    assert len(modelled) == 2
    np.testing.assert_allclose(modelled[0].get_ydata()[[0, -1]], [known[0][1], known[3][1]], rtol=0.05)


@shows("phases")
def phases() -> None:
    """All-reduce is 2 ms of a step on two workers; the rest is shared by five phases."""
    (axes,) = drawn(throughput.sections(scaled()), "phases").axes
    names = [text.get_text() for text in axes.get_yticklabels()]
    for container in axes.containers:
        phase = container.get_label()
        for name, patch in zip(names, container.patches, strict=True):
            batch, workers = map(int, re.findall(r"\d+", name))
            step = 0.002 + 1e-5 * batch if workers == 1 else 0.005 + 5e-6 * batch
            waited = 0.002 if workers == 2 else 0.0
            known = waited if phase == "all-reduce" else (step - waited) / 5
            assert patch.get_width() == pytest.approx(100 * known / step)


@shows("efficiency")
def efficiency() -> None:
    runs = scaled()
    figure = drawn(throughput.sections(runs, timings.model(runs), [8]), "efficiency")
    for axes, batch in zip(figure.axes, (32, 320), strict=True):
        workers, found = lines(axes)["measured"]
        alone, two = 0.002 + 1e-5 * batch, 0.005 + 5e-6 * batch
        close((workers, found), ([1, 2], [1.0, alone / (2 * two)]))


@shows("loss_rise")
def loss_rise() -> None:
    """Branches of three seeds, whose losses are above those at SB's batch by what is drawn."""
    batches, rises = (32, 64, 128), {"none": (0.0, 0.1, 0.3), "sqrt": (0.0, 0.05, 0.1)}
    steps = [Timed(batch, 1, 0.01) for batch in batches]
    branches = [
        Branch(batch, rule, seed, 1.0 + rise + 0.02 * seed * (batch - 32))
        for rule, found in rises.items()
        for batch, rise in zip(batches, found, strict=True)
        for seed in (-1, 0, 1)
    ]
    advice = advise(steps, branches, small=32, tolerance=0.2, slack=0.1)
    shown = recommendation.section(Runs(frame(training("SB", 0, 60.0))), advice)
    (axes,) = drawn([shown], "loss_rise").axes
    spreads = [0.02 * (batch - 32) for batch in batches]
    known = [
        (batch, rise, std)
        for found in rises.values()
        for batch, rise, std in zip(batches, found, spreads, strict=True)
    ]
    close(bars(axes), known)
    (limit,) = [line for line in axes.get_lines() if len(set(line.get_ydata())) == 1]
    assert limit.get_ydata()[0] == 0.2


@shows("sweep")
def swept() -> None:
    parts = {}
    for lr in (0.001, 0.01):
        rows = [row for name in ("SB", "LB") for seed in (0, 1) for row in training(name, seed, 60.0 + seed)]
        rows = [
            {**row, "value": row["value"] + 100 * lr} if row["metric"] == "accuracy" else row for row in rows
        ]
        parts[f"optimizer.lr={lr}"] = {"optimizer.lr": lr}, Runs(frame(rows)), []
    (axes,) = drawn(sweep.sections(parts), "sweep").axes
    means = [(lr, 60.5 + 100 * lr, 0.5**0.5) for lr in (0.001, 0.01)]
    close(bars(axes), means * 2)
    assert axes.get_xlabel() == "optimizer.lr" and axes.get_xscale() == "log"


@shows("differences")
def differences() -> None:
    sides = []
    for shift in (0.0, 2.0):
        rows = [row for n in ("SB", "LB") for k in (0, 1) for row in training(n, k, 60.0 + k + shift)]
        sides.append(Runs(frame([{**row, "cell": f"{row['cell']}{shift}"} for row in rows])))
    (axes,) = drawn(side_by_side.sections(*sides), "differences").axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["SB", "LB"]
    half = 4.302652729696142 * 0.5**0.5  # Student's t of two degrees, by Welch
    close(sorted(bars(axes, vertical=False), key=lambda bar: bar[1]), [(2.0, 0, half), (2.0, 1, half)])


@pytest.mark.parametrize("name", SHOWN)
def test_a_figure_shows_the_numbers(name: str) -> None:
    SHOWN[name]()


def test_each_figure_is_here() -> None:
    named = set()
    for path in Path(package.__path__[0]).glob("*.py"):
        named |= set(re.findall(r'[^.]Figure\(\s*"(\w+)"', path.read_text()))
    assert named | {"slices"} == set(SHOWN)


def said_in(page: ET.Element) -> list[str]:
    return [str(e.text) for e in page.iter("{http://www.w3.org/2000/svg}title")]


@pytest.mark.parametrize("log", [False, True])
def test_marks_say_their_values_and_each_its_own(log: bool) -> None:
    """In the SVG, whatever has no place on an axis; ends of error bars say nothing."""
    values = pd.DataFrame({"x": [1.0, 2.0, 4.0], "mean": [10.0, -1.0, 1234.5], "std": [1.0, 1.0, 1.0]})
    style = drawing.marks(["SB"])["SB"]
    with matplotlib.rc_context(drawing.STYLE):
        panels = [("score (log scale)" if log else "score", [drawing.Series("S & <B>", values, style)])]
        figure = drawing.draw_panels(panels, "batch", log_y=(0,) if log else ())
        page = ET.fromstring(drawing.svg(figure, "one"))
    titles = said_in(page)
    known = ["S & <B>: batch 1, score 10", "S & <B>: batch 2, score -1", "S & <B>: batch 4, score 1,234"]
    assert titles == [text for text in known if not (log and "-1" in text)]
    uses = [e for e in page.iter() if e.tag.endswith("}use") and len(e)]
    heights = [float(e.get("y", "nan")) for e in uses]
    assert heights == sorted(heights, reverse=True) or not log
    by_value = sorted(zip((10, -1, 1234), heights, strict=True)) if not log else []
    assert [y for _, y in by_value] == sorted((y for _, y in by_value), reverse=True)


def test_a_place_in_a_list_is_said_by_its_name() -> None:
    figure = drawn(comparison.sections(Runs(study())), "leaderboard")
    page = ET.fromstring(drawing.svg(figure, "board"))
    titles = said_in(page)
    assert len(titles) == 2 * len(STORY) and any(t.endswith(", LB + augmentation") for t in titles)

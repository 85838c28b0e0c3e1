"""The sections of batch sweeps and warm starts, on made-up rows whose numbers are known."""

import io
import math

import pytest
from rich.console import Console

from lbdist.analysis import terminal
from lbdist.analysis.report import write_report
from lbdist.analysis.runs import Runs
from lbdist.analysis.sections import batch_size, warm_start
from tests.support.rows import frame, sweep, warm

BATCHES = {16: (70.0, 0.5, 10.0), 64: (69.8, 0.5, 40.0), 256: (65.0, 0.5, 160.0), 1024: (60.0, 0.5, 90.0)}


def test_sweep():
    data = batch_size.sweep(Runs(frame(sweep(BATCHES))))
    assert list(data["batch"]) == list(BATCHES)
    assert [row.mean for row in data["score"]] == pytest.approx([70.0, 69.8, 65.0, 60.0])
    assert [row.mean for row in data["phi"]] == pytest.approx([10, 40, 160, 90])
    assert {row.n for row in data["score"]} == {3}


def test_what_a_sweep_says():
    rows = sweep(BATCHES)
    for row in rows:
        if row["global_batch_size"] == 1024 and row["metric"] == "accuracy" and row["split"] == "train":
            row["value"] = 80.0
    said = " ".join(batch_size.section(Runs(frame(rows))).sentences)
    assert "Test accuracy is highest at batch 16 (70.00 %)." in said
    assert "From batch 256 on it is clearly lower (95 % intervals)." in said
    assert (
        "goes from 10.0 ± 0.0 at batch 16 to 160 ± 0 at batch 256, and down to 90.0 ± 0.0 at batch 1,024"
        in said
    )
    assert said.endswith(
        "1,024, where as many epochs end at a training accuracy of 80.0 % instead of 100.0 %."
    )
    rising = {batch: (70.0, 0.5, batch) for batch in (16, 64)}
    assert (
        batch_size.section(Runs(frame(sweep(rising))))
        .sentences[-1]
        .endswith("goes from 16.0 ± 0.0 at batch 16 to 64.0 ± 0.0 at batch 64.")
    )
    close = {16: (70.0, 0.5, 1.0), 64: (69.9, 0.5, 1.0)}
    assert "No larger batch is clearly lower" in batch_size.section(Runs(frame(sweep(close)))).sentences[1]
    one = batch_size.section(Runs(frame(sweep({16: (70.0, 0.5, 1.0)}))))
    assert one.sentences == ["Fewer than two batches have a finished run."]


def test_warm_starts():
    data = warm_start.warm_starts(Runs(frame(warm())))
    assert list(data["label"]) == ["SB", "LB at x0", "LB at SB's epoch 2", "LB at SB's epoch 5"]
    assert math.isnan(data["epoch"].iloc[0]) and list(data["epoch"].iloc[1:]) == [0, 2, 5]
    assert [row.mean for row in data["score"]] == pytest.approx([72, 65, 68, 71])
    assert [row.mean for row in data["phi"]] == pytest.approx([10, 400, 200, 100])


def test_what_warm_starts_say():
    (said,) = warm_start.section(Runs(frame(warm()))).sentences
    assert said.startswith(
        "From 2 epochs of SB on, a warm start makes LB clearly better than from x0: by 3.00"
    )
    assert said.endswith("φ(1e-3) goes from 400 ± 0 at x0 to 100 ± 0 at epoch 5.")
    rows = [row for row in warm() if row.get("origin_epoch") is None]
    assert warm_start.section(Runs(frame(rows))).sentences == ["No warm-started run is finished yet."]


def test_the_figure_of_warm_starts_has_sb_after_as_many_epochs():
    runs = Runs(frame(warm()))
    (figure,) = warm_start.section(runs).figures
    small = next(line for line in figure.draw().axes[0].lines if len(line.get_xdata()) == 2)
    known = runs.curves[runs.curves["label"] == "SB"]
    assert list(small.get_xdata()) == [2, 5] == list(known["epoch"])
    assert list(small.get_ydata()) == pytest.approx(list(known["mean"]))
    assert known["mean"].iloc[0] < known["mean"].iloc[1] < 72


@pytest.mark.parametrize(
    ("sections", "rows"),
    [
        (batch_size.sections, sweep(BATCHES)),
        (batch_size.sections, sweep(BATCHES, seeds=1, phi=False)),
        (warm_start.sections, warm()),
        (warm_start.sections, [row for row in warm() if row["metric"] != "sharpness"]),
    ],
)
def test_they_are_written_everywhere(sections, rows, tmp_path):
    shown = sections(Runs(frame(rows)))
    console = Console(file=io.StringIO(), width=100)
    terminal.show(shown, console)
    (first,) = shown[0].tables
    assert first.title in console.file.getvalue()
    write_report(tmp_path, "sweep", shown, {})
    page = (tmp_path / "report.html").read_text()
    assert "<svg" in page and "nan" not in page.replace("nance", "").split("<svg")[0]
    assert (tmp_path / "figures" / f"{first.name}.png").stat().st_size > 10_000
    assert len((tmp_path / "tables" / f"{first.name}.csv").read_text().splitlines()) == len(first.rows) + 1

"""Sweeps, and what scripts read, by the real command."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from lbdist import results
from lbdist.letters import HANDLER
from lbdist.tuning.trial import grid
from tests.support.commands import UNMEASURED, here, serially

GAP = ["experiment=gap", "study.equal_loss=null", "seeds=2", "measure=[distance]"]
"""With `UNMEASURED`, for which sharpness has no keys."""

FINAL = "metric == 'accuracy' and split == 'test' and epoch.isna()"


def test_a_sweep_is_one_study_with_its_keys_as_columns(tmp_path: Path, cache: str) -> None:
    """SB's batch is no part of LB, which is trained once, and has its rows at both points."""
    words = [*GAP, "optimizer.lr=0.001,0.01", "small_batch=16,32", "-m", cache]
    out = serially(tmp_path, *words, shrunk=UNMEASURED)
    folder = tmp_path / "gap-by-optimizer.lr-small_batch"
    rows = results.load(folder)
    points = rows.groupby(["optimizer.lr", "small_batch"])
    assert list(rows.columns[-2:]) == ["optimizer.lr", "small_batch"] and len(points) == 4
    for (lr, batch), own in points:
        confirmed = own.query(
            "role == 'confirm' and metric == 'accuracy' and split == 'test' and epoch.isna()"
        )
        assert set(zip(confirmed["method"], confirmed["seed"], strict=True)) == {
            (method, seed) for method in ("SB", "LB") for seed in (0, 1)
        }
        assert set(confirmed.query("method == 'SB'")["global_batch_size"]) == {batch}
        other = rows[(rows["optimizer.lr"] == lr) & (rows["small_batch"] != batch)]
        assert set(own.query("method == 'LB'")["cell"]) == set(other.query("method == 'LB'")["cell"])
    assert len(results.finished(tmp_path, results.CELLS)) == 2 * (2 * 2 + 2)
    assert "SB seed 1 optimizer.lr=0.01 small_batch=32: test accuracy" in out
    for text in ("optimizer.lr  small_batch  method", "SB scores best at optimizer.lr="):
        assert text in out
    page = (folder / "report.html").read_text()
    assert (
        "By optimizer.lr and small_batch" in page and "optimizer.lr=0.01, small_batch=32: Leaderboard" in page
    )
    before = (folder / "report.html").read_bytes()
    serially(
        tmp_path, *GAP, "optimizer.lr=0.001,0.01", "-m", cache, shrunk=UNMEASURED
    )  # another one, of the same cells
    assert (folder / "report.html").read_bytes() == before
    assert len(results.finished(tmp_path, results.CELLS)) == 2 * (2 * 2 + 2)
    assert {f.name for f in (tmp_path / "gap-by-optimizer.lr" / "figures").iterdir()} >= {"sweep.svg"}


def test_tunes_frame_has_a_sweeps_keys(tmp_path: Path, cache: str) -> None:
    here(tmp_path, *GAP, "optimizer.lr=0.001,0.01", "seeds=1", "-m", cache, shrunk=UNMEASURED)
    frame = grid(tmp_path / "gap-by-optimizer.lr").get_dataframe()
    found = frame.groupby("config/optimizer.lr")["config/method"].agg(set)
    assert found.to_dict() == {0.001: {"SB", "LB"}, 0.01: {"SB", "LB"}}


def test_json_is_a_line_for_each_thing_that_is_said(tmp_path: Path, cache: str) -> None:
    words = [*GAP, "output=json", cache]
    plan = [
        json.loads(line)
        for line in serially(tmp_path, *words, "dry_run=true", shrunk=UNMEASURED).splitlines()
    ]
    assert plan[0]["event"] == "plan" and (plan[0]["cells"], plan[0]["done"]) == (4, 0)
    assert [line["cell"] for line in plan if line["event"] == "cells"] == ["SB", "LB"]
    assert next(line for line in plan if line["event"] == "estimate")["training_seconds"] > 0
    told = [json.loads(line) for line in serially(tmp_path, *words, shrunk=UNMEASURED).splitlines()]
    events = [line["event"] for line in told]
    assert events[0] == "plan" and events[-2:] == ["report", "end"] and told[-1]["status"] == 0
    cells = [line for line in told if line["event"] == "cell"]
    assert [(line["done"], line["total"]) for line in cells] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    rows = results.load(tmp_path / "gap")
    final = rows.query(FINAL).set_index("cell")["value"]
    for line in cells:
        assert line["metrics"]["test_accuracy"] == pytest.approx(final[line["cells"][0]])
    board = next(line for line in told if line.get("title") == "Leaderboard")["tables"]["leaderboard"]
    assert [row["method"] for row in board] == ["SB", "LB"]
    assert board[0]["test accuracy %"] == pytest.approx(
        final[rows.query("method == 'SB'")["cell"].unique()].mean()
    )
    verdicts = [line for line in told if line["event"] == "verdict"]
    assert verdicts and all(line["verdict"] and line["claim"] for line in verdicts)
    assert Path(told[-2]["path"]).is_file()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_output_that_is_not_utf8_is_written_with_what_it_has(encoding: str, alone: tuple[Path, str]) -> None:
    """As in a batch job: no question marks, and columns that stand in line."""
    words = [
        f"storage={alone[0]}",
        "executor=serial",
        "experiment=gap",
        "study.equal_loss=null",
        "dry_run=true",
    ]
    program = "import sys; from lbdist.run import main; main(sys.argv[1:]); print('φ(1e-3) −1 ± 2 – ε λ 数')"
    command = [sys.executable, "-c", program, *words]
    done = subprocess.run(
        command, capture_output=True, env={"PYTHONIOENCODING": encoding, "PATH": ""}, timeout=100
    )
    assert done.stderr == b"", done.stderr
    spread = "+-" if encoding == "ascii" else "±"
    assert done.stdout.decode(encoding).endswith(f"phi(1e-3) -1 {spread} 2 - eps lambda ?\n")


def test_a_table_stands_in_line_in_any_letters() -> None:
    from rich.console import Console

    from lbdist.analysis import terminal
    from lbdist.analysis.section import Entry, Section, Table

    table = Table("t", "φ", ["method", "φ(1e-3)", "−"], [[Entry("SB"), Entry("1 ± 2"), Entry("–")]])
    widths = {}
    for encoding in ("utf-8", "ascii"):
        sink = io.TextIOWrapper(io.BytesIO(), encoding, errors=HANDLER)
        terminal.show([Section("s", tables=[table], brief=True)], Console(file=sink, width=80))
        sink.flush()
        lines = sink.buffer.getvalue().decode(encoding).splitlines()[1:]  # type: ignore[attr-defined]
        widths[encoding] = {len(line.rstrip()) for line in lines}
    assert all(len(found) == 1 for found in widths.values()), widths

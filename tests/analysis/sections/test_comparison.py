import io
import math

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from lbdist.analysis import numbers, terminal
from lbdist.analysis.runs import Runs, Score
from lbdist.analysis.sections import agreement, comparison, leaderboard, search, solvers
from lbdist.analysis.statistics import Difference, Summary, difference, summarise
from tests.support.rows import STORY, frame, rescaled, sharpness, spectrum, spread, study, training


@pytest.fixture(scope="module")
def rows():
    return study(epochs=(1, 20, 40), search=True, check=True)


@pytest.fixture(scope="module")
def board(rows):
    return leaderboard.leaderboard(Runs(rows))


def conclusion(rows):
    runs = Runs(rows)
    return leaderboard.conclusion(runs, leaderboard.leaderboard(runs))


def printed(rows, width=100):
    console = Console(file=io.StringIO(), width=width)
    terminal.show(comparison.sections(Runs(rows)), console)
    return console.file.getvalue()


def test_order_is_sb_lb_then_remedies_by_accuracy(board):
    remedies = sorted((name for name in STORY if len(name) > 2), key=lambda name: -STORY[name][0])
    assert list(board["method"]) == ["SB", "LB", *[f"LB + {name}" for name in remedies]]


def test_every_number_of_the_leaderboard(board):
    for _, row in board.iterrows():
        name = row["method"].removeprefix("LB + ")
        mean, std, phi, phi_std, setting, steps, gradients, seconds = STORY[name]
        assert row["setting"] == setting
        assert row["score"].mean == pytest.approx(mean) and row["score"].std == pytest.approx(std)
        assert row["n"] == row["score"].n == 3
        full = row["phi"][1e-3]
        assert full.mean == pytest.approx(phi) and full.std == pytest.approx(phi_std)
        assert row["phi"][5e-4].mean == pytest.approx(0.27 * phi)
        assert (row["steps"], row["gradient_evaluations"]) == (steps, gradients)
        assert row["seconds"] == pytest.approx(seconds + 1)  # seeds 0, 1, 2 take one second more each
        assert row["global_batch_size"] == (32 if name == "SB" else 400)
        assert (row["diverged"], row["measured"], row["not_converged"]) == (0, 12, 0)


def test_gap_is_sb_minus_method_with_welchs_interval(board):
    gaps = board.set_index("method")["gap"]
    sb, lb = spread(72.3, 0.5, 3), spread(65.5, 0.7, 3)
    assert gaps["LB"] == difference(sb, lb)
    assert gaps["LB"].mean == pytest.approx(6.8)
    assert gaps["LB + augmentation"].mean == pytest.approx(-8.3)
    assert math.isnan(gaps["SB"].mean)


def test_the_solver_table_has_every_space_and_solver(rows):
    table = solvers.sharpness_table(Runs(rows)).set_index(["epsilon", "method", "space"])
    for name, (_, _, phi, *_) in STORY.items():
        label = name if name in ("SB", "LB") else f"LB + {name}"
        assert table.loc[(1e-3, label, "subspace"), "converged"].mean == pytest.approx(0.01 * phi)
        literal = 0 if name == "LB" else 0.9 * phi
        assert table.loc[(1e-3, label, "full"), "paper"].mean == pytest.approx(literal)


def test_the_check_on_another_number_of_workers_is_in_no_mean(board):
    lb = board[board["method"] == "LB"].iloc[0]
    assert (lb["n"], lb["num_workers"]) == (3, (2,))


def test_sharpness_along_a_run_enters_no_mean(rows):
    inner = rows[(rows["metric"] == "sharpness") & (rows["method"] == "SB")].copy()
    inner["epoch"], inner["value"] = 3, 1e6
    inner["measurement"] += "-inner"
    together = pd.concat([rows, inner], ignore_index=True)
    assert printed(together) == printed(rows)
    pd.testing.assert_frame_equal(Runs(together).sharpness, Runs(rows).sharpness)


def test_agreement(rows):
    (pair,) = agreement.agreement(Runs(rows)).to_dict("records")
    assert (pair["method"], pair["seed"], pair["a"], pair["b"]) == ("LB", 0, "1", "2")
    assert pair["score_a"] - pair["score_b"] == pytest.approx(0.05)
    # the cell on one worker has its loss shifted by a relative 1e-6 an epoch
    assert pair["first_epoch"] == pytest.approx(1e-6, rel=1e-3)
    assert pair["last_epoch"] == pytest.approx(4e-5, rel=1e-3)
    assert pair["score_std"] == pytest.approx(0.7)
    text = agreement.section(Runs(rows)).sentences[0]
    assert "on 1 and 2 workers" in text and "1.0e-06" in text and "4.0e-05" in text and "φ" not in text
    lb = (rows["method"] == "LB") & (rows["remedy"] == "none") & (rows["seed"] == 0)
    phi = rows[lb & (rows["metric"] == "sharpness")].copy()  # as if it were measured on two workers as well
    phi["cell"], phi["role"] = rows.loc[rows["role"] == "workers", "cell"].iloc[0], "workers"
    phi["measurement"] += "-check"
    text = agreement.section(Runs(pd.concat([rows, phi], ignore_index=True))).sentences[0]
    assert "(std 85.0)" in text.partition("φ(1e-3)")[2]
    assert "was not measured" in agreement.section(Runs(study(("SB", "LB")))).sentences[0]


def test_what_curves_are_evaluated_in_and_how_far_that_is_from_the_ends():
    rows = study(("SB", "LB"), epochs=(5, 10))
    trained, end = rows["measurement"].isna(), rows["epoch"].isna()
    assert len(agreement.section(Runs(rows)).sentences) == 1  # an earlier version's, of one precision
    rows["precision"] = "bfloat16"
    rows.loc[end & trained & rows["split"].notna(), "precision"] = "float32"
    runs = Runs(rows)
    ends = agreement.evaluated_twice(runs)
    assert len(ends) == 6 and set(ends["precision"]) == {"bfloat16"}
    final = rows[(rows["metric"] == "accuracy") & (rows["split"] == "test")].set_index("cell")
    for cell, row in ends.iterrows():
        assert row["end_score"] == final[final["epoch"].isna()]["value"][cell]
        assert row["point_score"] == final[final["epoch"] == 10]["value"][cell]
        assert (row["point_loss"], row["end_loss"]) == (1.1, 1.2)
    section = agreement.section(runs)
    apart = (ends["point_score"] - ends["end_score"]).abs().max()
    text = f"are apart by at most {apart:.2f} points of test accuracy and 8.3e-02 (relative) of test loss"
    assert "evaluated in bfloat16" in section.sentences[1] and text in section.sentences[1]
    (table,) = [table for table in section.tables if table.name == "curve_and_end"]
    assert [row["method"] for row in table.records()] == ["LB", "SB"] and not table.brief
    # a run in float32 is evaluated once
    rows.loc[rows["method"] == "SB", "precision"] = "float32"
    assert set(agreement.evaluated_twice(Runs(rows))["label"]) == {"LB"}


def test_search_table(rows):
    table = search.search_table(Runs(rows))
    assert len(table) == 10 and table["chosen"].sum() == 5
    robust = table[table["method"] == "LB + robust"]
    assert list(robust["setting"]) == ["rho=0.5", "rho=0.2"]  # the better first
    assert list(robust["chosen"]) == [True, False]
    assert robust["score"].iloc[0].mean == pytest.approx(71.0)
    assert search.search_table(Runs(study(("SB", "LB")))).empty


def test_sharpness_table_counts_and_stars():
    cells = [training("LB", seed, 65.0) for seed in range(2)]
    rows = [row for cell in cells for row in cell]
    rows += [sharpness(cells[0], 10.0, space="subspace", draw=draw) for draw in range(2)]
    rows += [sharpness(cells[0], 40.0, space="subspace", draw=2, converged=False)]
    rows += [sharpness(cells[1], 30.0, space="subspace", draw=0)]
    rows += [sharpness(cells[1], math.nan, space="subspace", draw=1, converged=None, error="killed")]
    table = solvers.sharpness_table(Runs(frame(rows)))
    (row,) = table.to_dict("records")
    assert row["converged"] == summarise([20.0, 30.0])  # draws are averaged in a run; n counts runs
    assert (row["converged_measured"], row["converged_converged"], row["converged_failed"]) == (5, 3, 1)
    assert row["paper_measured"] == 0 and row["paper"].n == 0
    (shown,) = solvers.section(Runs(frame(rows))).tables[0].rows
    assert len(shown) == 3 and shown[2].text.endswith("*")  # no column for a solver that was not used
    assert leaderboard.leaderboard(Runs(frame(rows))).iloc[0]["not_converged"] == 2


def test_a_diverged_run_is_counted_and_in_no_mean():
    rows = [row for seed, a in enumerate([65, 66]) for row in training("LB", seed, a)]
    lost = training("LB", 2, 9.8, diverged=1)
    nan = training("LB", 3, math.nan, diverged=1)
    table = leaderboard.leaderboard(Runs(frame([*rows, *lost, *nan, sharpness(lost, 1e9)])))
    row = table.iloc[0]
    assert row["score"] == summarise([65, 66]) and (row["n"], row["diverged"]) == (2, 2)
    assert row["phi"] == {}
    assert "di-" in printed(frame([*rows, *lost]))


def test_all_diverged():
    rows = study(("SB",)).to_dict("records")
    rows = [{key: None if value != value else value for key, value in row.items()} for row in rows]
    rows = frame([*rows, *training("LB", 0, math.nan, diverged=1)])
    assert conclusion(rows)[0] == "There is no finished run of LB, so there is no gap to measure."
    assert list(leaderboard.leaderboard(Runs(rows))["method"]) == ["SB", "LB"]
    assert "72.30" in printed(rows)


def test_several_studies_are_refused(rows):
    two = rows.copy()
    two.loc[: len(two) // 2, "network"] = "f1"
    with pytest.raises(ValueError, match=r"network=f1,mlp"):
        leaderboard.leaderboard(Runs(two))


def test_other_measures_are_columns_of_the_leaderboard(rows):
    cells = rows.drop_duplicates("cell").query("role == 'confirm'")
    extra = cells.assign(metric="lambda_max", measure="lambda_max", value=7.0, epoch=None, epsilon=None)
    extra["measurement"] = "m-" + extra["cell"]
    together = pd.concat([rows, extra.astype(rows.dtypes.to_dict(), errors="ignore")], ignore_index=True)
    table = leaderboard.section(Runs(together)).tables[0]
    place = list(table.heads).index("lambda max")
    assert {row[place].text for row in table.rows} == {"7.00 ± 0.00"}


def test_another_score(rows):
    other = rows.replace({"metric": {"accuracy": "r2"}})
    other.loc[other["metric"] == "r2", "value"] /= 100
    runs = Runs(other, Score("r2", ""))
    section = leaderboard.section(runs)
    assert section.tables[0].heads[1] == "test\nr2"
    assert section.sentences[0].startswith("LB loses 0.07 of test r2 to SB")
    assert "%" not in section.sentences[0].replace("95 % interval", "")


def test_a_shortened_search_says_so_and_how_its_ranks_agree():
    rows = study(epochs=(1, 20, 40), search=True).to_dict("records")
    short = [row for row in rows if row["role"] == "search"]
    for row in short[:]:
        if row["metric"] == "accuracy":
            rows.append({**row, "metric": "running_loss", "split": "train", "epoch": 16, "value": 1.0})
    rows = [{k: None if v != v else v for k, v in row.items()} for row in rows]
    said = search.section(Runs(frame(rows))).sentences
    assert said[0].startswith("Search runs took 16 of 40 epochs")
    assert "Over the 5 remedies" in said[1] and "by 1.00 (Spearman" in said[1]
    assert search.section(Runs(study(epochs=(1, 40), search=True))).sentences == []


# ---------------------------------------------------------------- sentences


def only(**groups):
    """Rows without φ: test accuracies by method."""
    return frame(
        [row for name, values in groups.items() for s, a in enumerate(values) for row in training(name, s, a)]
    )


def test_the_story(rows):
    text = " ".join(conclusion(rows))
    assert "LB loses 6.8 points of test accuracy to SB (95 % interval 5.4 to 8.2)" in text
    assert "LB is 79 times as sharp as SB (φ(1e-3) 1,290 against 16.3)" in text
    assert "LB + augmentation buys back the whole gap and ends 8.3 points above SB" in text
    assert "it is 3.7 times as flat as LB" in text
    assert "The flattest remedy is LB + growth, 85 times as flat as LB" in text


def test_part_of_the_gap():
    rows = only(SB=[72, 72.5, 71.5], LB=[65.0, 65.5, 64.5], robust=[68.5, 69.0, 68.0])
    text = conclusion(rows)[1]
    assert text.startswith("LB + robust buys back 50 % of the gap, 3.5 points (95 % interval")
    assert "φ" not in text and "flat" not in text  # nothing was measured


def test_no_gap():
    assert "which includes zero" in conclusion(only(SB=[70, 72, 71], LB=[71, 70, 71]))[0]
    assert "No gap to close" in conclusion(only(SB=[70, 70.2], LB=[75, 75.1]))[0]


def test_no_remedy_helps():
    text = conclusion(only(SB=[72, 72.1, 72.2], LB=[65, 66, 67], robust=[65.1, 66.1, 67.1]))[1]
    assert text.startswith("No remedy clearly gains on LB: the best, LB + robust, differs by +0.10 points")


def test_single_runs_settle_nothing():
    rows = study(seeds=1)
    text = conclusion(rows)
    assert "which cannot be told from chance" in text[0]
    assert "no interval" in " ".join(text[1:])
    output = printed(rows)
    assert (
        "72.30  " in output and "±" not in output.split("Mean ±")[1].split("LB's")[0].split("converged", 1)[1]
    )


def test_one_method_only():
    text = conclusion(study(("SB",)))
    assert text == [
        "There is no finished run of LB, so there is no gap to measure.",
        "Test accuracy: SB 72.30 ± 0.50 % (n = 3).",
    ]
    assert conclusion(study(("SB", "LB")))[-1] == "No remedy was measured."


def test_equal_sharpness_is_not_called_flatter():
    cells = {name: [training(name, s, a) for s, a in enumerate(accuracies)] for name, accuracies in
             {"SB": [72, 72.5, 73], "LB": [65, 65.5, 66]}.items()}  # fmt: skip
    phis = {"SB": [10, 20, 30], "LB": [30, 20, 11]}
    rows = [row for group in cells.values() for cell in group for row in cell]
    rows += [
        sharpness(cell, phi) for name in cells for cell, phi in zip(cells[name], phis[name], strict=True)
    ]
    assert "LB is not clearly sharper or flatter than SB" in " ".join(conclusion(frame(rows)))


def test_no_rows():
    assert leaderboard.leaderboard(Runs(frame([]))).empty
    assert solvers.sharpness_table(Runs(frame([]))).empty
    assert printed(frame([])).strip() == "No run is confirmed yet."
    assert "No run is confirmed yet." in printed(frame(training("robust", 1, 50.0, role="search")))


# ---------------------------------------------------------------- text


@pytest.mark.parametrize(
    ("mean", "std", "text"),
    [
        (1287, 85.2, "1,290 ± 85"),
        (16.34, 0.61, "16.3 ± 0.6"),
        (999.6, 4.4, "1,000 ± 4"),
        (12345, 1234, "12,300 ± 1,230"),
        (0.04567, 0.0012, "0.0457 ± 0.0012"),
        (2.5e7, 1e6, "2.50e+07 ± 1.00e+06"),
        (0.0, 0.0, "0 ± 0"),
        (350, math.nan, "350"),
        (math.nan, math.nan, "–"),
    ],
)
def test_phi_has_three_digits(mean, std, text):
    assert numbers.phi(Summary(mean, std, 3, 0, 0)) == text


def test_other_texts():
    assert numbers.phi(None) == "–"
    assert numbers.number(-0.001, 2) == "0.00" and numbers.number(-1234.5, 1) == "−1,234.5"
    assert numbers.seconds(9.87) == "9.9" and numbers.seconds(12345.6) == "12,346"
    assert numbers.interval(Difference(1, -0.5, 2.5)) == "−0.50 to 2.50"
    assert numbers.interval(Difference(1, math.nan, math.nan)) == ""
    assert [numbers.epsilon_text(e) for e in (1e-3, 5e-4, 0.25)] == ["1e-3", "5e-4", "2.5e-1"]


def test_terminal(rows):
    output = printed(rows)
    assert max(len(line.rstrip()) for line in output.splitlines()) <= 100
    for text in (
        "LB + augmentation",
        "72.30 ± 0.50",
        "−8.30",
        "1,290 ± 85",
        "gradient",
        "subspace",
        "φ(5e-4)",
    ):
        assert text in output
    assert "…" not in printed(rows, width=40)


def test_names_are_not_console_markup():
    assert "LB + [red]x[/nonsense]" in printed(study(("SB", "LB", "[red]x[/nonsense]")))


def test_the_spectrum_has_what_is_large_and_a_density() -> None:
    rows = [row for name in ("SB", "LB") for row in training(name, 0, 70.0)]
    found = frame([*rows, *spectrum("SB", 0, 2.0), *spectrum("LB", 0, 8.0)])
    (section,) = [s for s in comparison.sections(Runs(found)) if s.title == "The Hessian's spectrum"]
    (table,), (figure,) = section.tables, section.figures
    assert table.lines == ["model", "λmax", "trace", "its error", "above 1"]
    assert [[entry.text for entry in row] for row in table.rows] == [
        ["SB", "2.00", "10.0", "0.200", "3.00"],
        ["LB", "8.00", "40.0", "0.800", "3.00*"],
    ]
    (axes,) = figure.draw().axes
    drawn = {line.get_label(): line for line in axes.get_lines()}
    assert set(drawn) == {"SB", "LB"} and axes.get_yscale() == "log"
    x, y = drawn["LB"].get_data()
    assert x[-1] == 8 and np.nansum(y) * (x[1] - x[0]) == pytest.approx(0.5, rel=0.01)
    assert np.isnan(drawn["SB"].get_ydata()[x > 2.1]).all()  # nothing beyond its own


def test_a_rescaling_audit_says_what_moves() -> None:
    rows = [row for name in ("SB", "LB") for row in training(name, 0, 70.0)]
    found = frame([*rows, *rescaled("SB", 0), *rescaled("LB", 0)])
    (section,) = [s for s in comparison.sections(Runs(found)) if "rescaling" in s.title]
    (table,) = section.tables
    assert [[entry.text for entry in row] for row in table.rows[:2]] == [
        ["SB", "sharpness φ(1e-3), full", "10.0", "20.0*", "2.0 times"],
        ["SB", "adaptive sharpness 2", "0.300", "0.300", "–"],
    ]
    assert table.lines == ["model", "measure", "× 1", "× 4", "moves"] and table.groups == {2}
    assert section.sentences == [
        "The same function, rescaled, moves: sharpness φ(1e-3), full.",
        "The same function, rescaled, does not move: adaptive sharpness 2.",
    ]


def test_what_was_not_measured_has_no_section() -> None:
    titles = [section.title for section in comparison.sections(Runs(study()))]
    assert not any("spectrum" in title or "rescaling" in title for title in titles)


def test_many_measures_have_a_table_of_their_own_and_the_terminal_shows_all():
    """Three beside sharpness; the main table keeps its heads and its n."""
    rows = [row for name in ("SB", "LB") for row in training(name, 0, 70.0)]
    found = frame([*rows, *spectrum("SB", 0, 2.0), *spectrum("LB", 0, 8.0)])
    board, beside, _ = leaderboard.section(Runs(found)).tables
    assert "trace" not in board.lines and board.lines[-1] == "n"
    assert beside.lines == ["measure", "SB", "LB"]
    texts = [[entry.text for entry in row] for row in beside.rows]
    assert texts == [
        ["lambda max", "2.00", "8.00"],
        ["trace", "10.0", "40.0"],
        ["trace error", "0.200", "0.800"],
    ]
    assert "…" not in printed(found)
    few = frame([*rows, *[row for row in spectrum("SB", 0, 2.0) if row["metric"] == "lambda_max"]])
    board, _ = leaderboard.section(Runs(few)).tables
    assert "lambda max" in board.lines

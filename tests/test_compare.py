"""Two studies side by side: what differs is said, and what does not, and what is the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from lbdist.analysis.runs import Runs
from lbdist.analysis.sections import side_by_side
from lbdist.compare import compare, main
from lbdist.results import load
from tests.support.rows import frame, study, training


def test_differences_are_b_minus_a_with_their_intervals() -> None:
    def runs(shift: float) -> Runs:
        scores = {"SB": 70.0, "LB": 60.0}
        rows = []
        for name, score in scores.items():
            for seed in (0, 1, 2):
                cell = training(name, seed, score + seed + (shift if name == "LB" else 0.0))
                rows += [{**row, "cell": f"{row['cell']}{shift}"} for row in cell]
        return Runs(frame(rows))

    data = side_by_side.compared(runs(0.0), runs(5.0)).set_index("label")
    assert data.loc["LB", "more"].mean == pytest.approx(5.0) and data.loc["LB", "more"].sign == 1
    assert data.loc["SB", "more"].mean == pytest.approx(0.0) and data.loc["SB", "more"].sign == 0
    first = side_by_side.sections(runs(0.0), runs(5.0))[0]
    assert first.sentences == ["Test accuracy is higher in B for LB.", "No clear difference for SB."]
    back = side_by_side.sections(runs(5.0), runs(0.0))[0]
    assert back.sentences[0] == "Test accuracy is lower in B for LB."


def test_the_same_runs_are_said_to_be() -> None:
    runs = Runs(study(("SB", "LB")))
    methods, claims = side_by_side.sections(runs, runs)
    assert methods.sentences == ["The same runs in both: SB and LB."]
    assert claims.sentences[0].startswith("0 of ") and len(claims.tables[0].rows) > 2
    one = Runs(study(("SB", "LB"), seeds=1))
    assert (
        "Only in one of them: LB + robust."
        in side_by_side.sections(Runs(study(("SB", "LB", "robust"))), Runs(study(("SB", "LB"))))[0].sentences[
            -1
        ]
    )
    other = Runs(study(("SB", "LB"), seeds=1).assign(cell=lambda rows: rows["cell"] + "b"))
    assert side_by_side.sections(one, other)[0].sentences == [
        "Single runs, which settle nothing, for SB and LB."
    ]


def test_two_studies_and_two_stores(
    alone: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A store beside itself has its studies under their names."""
    remedies = str(alone[0] / "remedies")
    assert main([remedies, remedies, f"out={tmp_path / 'one'}"]) == 0
    out = capsys.readouterr().out
    assert "The same runs in both: " in out and out.splitlines()[-1].startswith("page: ")
    page = (tmp_path / "one" / "report.html").read_text()
    assert "the same runs" in page and "configuration" in page
    assert (tmp_path / "one" / "tables" / "methods.csv").exists()
    _, sections = compare(alone[0], alone[0], tmp_path / "all")
    assert len(load(remedies)) and any("Methods" in section.title for section in sections)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("A", "A: must be 2 folders, and out="),
        ("A B", "must be the folder of a finished study, or of several"),
        ("A B C", "A B C: must be 2 folders"),
        ("--all A B", "--all: must be 2 folders"),
    ],
)
def test_wrong_words(
    words: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words.split()) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("lbdist: ") and err.count("\n") == 1 and said in err
    assert list(tmp_path.iterdir()) == []

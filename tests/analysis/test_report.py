import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pandas as pd
import pytest

from lbdist.analysis.report import write_report as write
from lbdist.analysis.runs import Runs
from lbdist.analysis.sections import comparison
from tests.support.rows import frame, study

CONTEXT = {"Command": "python -m lbdist.run", "Configuration": "name: remedies\nepochs: 40\n"}
HOSTILE = '<script src="http://evil.example/x.js">alert(1)</script> & $x$ "'


def write_report(folder, rows, context):
    runs = Runs(rows)
    title = f"{runs.study} of {runs.network} on {runs.data}"
    return write(folder, title, comparison.sections(runs), context)


def tree(path):
    """The page as XML: it is written so that both kinds of parser read it."""
    text = path.read_text()
    assert text.startswith("<!DOCTYPE html>")
    return ET.fromstring(text.removeprefix("<!DOCTYPE html>"))


def check_self_contained(page):
    names = [element.tag.rpartition("}")[2] for element in page.iter()]
    assert not {"link", "iframe", "object", "img"} & set(names)
    (script,) = (element for element in page.iter() if element.tag == "script")
    assert not script.attrib and not re.search("http|fetch|import|eval", script.text)
    for element in page.iter():
        for name, value in element.attrib.items():
            if name.rpartition("}")[2] in ("href", "src"):
                assert value.startswith("#")
            assert "url(" not in value or "url(#" in value
    ids = [element.attrib["id"] for element in page.iter() if "id" in element.attrib]
    assert len(ids) == len(set(ids))
    used = {element.attrib.get("{http://www.w3.org/1999/xlink}href", "#")[1:] for element in page.iter()} - {
        ""
    }
    assert used <= set(ids)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    path = folder / "report.html"
    assert write_report(folder, study(epochs=(2, 20, 40), search=True, check=True), CONTEXT) == str(path)
    assert sorted(p.name for p in folder.iterdir()) == ["figures", "report.html", "tables"]
    return path


def text_of(page):
    return re.sub(r"\s+", " ", " ".join(tree(page).itertext()))


def test_well_formed_and_self_contained(page):
    check_self_contained(tree(page))
    assert "@import" not in page.read_text()


def test_what_it_says(page):
    text = text_of(page)
    for piece in (
        "remedies of mlp on mnist1d",
        "LB loses 6.8 points of test accuracy to SB (95 % interval 5.4 to 8.2).",
        "LB + augmentation buys back the whole gap",
        "72.30 ± 0.50",
        "5.36 to 8.24",
        "strength=1",
        "1,290 ± 85",
        "12 of 12",
        "bands are ± one standard deviation over 3 seeds",
        "on 1 and 2 workers",
        "lower bound",
        "validation",
        "Command",
        "python -m lbdist.run",
    ):
        assert piece in text, piece
    blocks = [element.text for element in tree(page).iter() if element.tag == "pre"]
    assert blocks == ["name: remedies\nepochs: 40"]
    assert len([e for e in tree(page).iter() if e.tag.endswith("}svg")]) == 3


def test_hostile_names(tmp_path):
    rows = study(("SB", "LB", "robust"), seeds=2, measure=False, epochs=(2, 4), search=True)
    rows.loc[rows["remedy"] == "robust", ["remedy", "setting"]] = HOSTILE
    rows["network"] = rows["data"] = HOSTILE
    path = Path(write_report(tmp_path, rows, {HOSTILE: HOSTILE + "\n" + HOSTILE, "Date": HOSTILE}))
    check_self_contained(tree(path))
    assert HOSTILE in text_of(path) and path.read_text().count("<script") == 1  # the page's own


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (frame([]), "No run is confirmed yet."),
        (study(("SB",), seeds=1, measure=False), "Sharpness was not measured."),
        (study(("SB", "LB"), seeds=1, measure=False), "which cannot be told from chance"),
    ],
    ids=["no rows", "only SB", "one seed"],
)
def test_little_to_say(tmp_path, rows, says):
    path = Path(write_report(tmp_path, rows, {}))
    check_self_contained(tree(path))
    assert says in text_of(path) and "nan" not in text_of(path)


def test_files(tmp_path):
    write_report(tmp_path, study(("SB", "LB"), epochs=(2, 4)), {})
    figures = sorted(path.name for path in (tmp_path / "figures").iterdir())
    names = ("curves", "leaderboard", "scatter")
    assert figures == [f"{name}.{suffix}" for name in names for suffix in ("png", "svg")]
    for path in (tmp_path / "figures").iterdir():
        if path.suffix == ".svg":
            assert ET.parse(path).getroot().tag.endswith("svg")
        else:
            assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000
    suffixes = {path.suffix for path in (tmp_path / "tables").iterdir()}
    assert suffixes == {".csv", ".md", ".tex"}
    board = pd.read_csv(tmp_path / "tables" / "leaderboard.csv").set_index("method")
    assert board.loc["LB", "test accuracy %"] == pytest.approx(65.5)
    assert board.loc["LB", "test accuracy % std"] == pytest.approx(0.7)
    assert board.loc["LB", "sharpness φ(1e-3)"] == pytest.approx(1290)
    latex = (tmp_path / "tables" / "leaderboard.tex").read_text()
    assert r"LB & 65.50 $\pm$ 0.70" in latex and r"accuracy \%" in latex
    assert "| LB | 65.50 ± 0.70 |" in (tmp_path / "tables" / "leaderboard.md").read_text()


def test_neither_torch_nor_ray_nor_pyplot_is_imported():
    code = (
        "import sys; from lbdist.analysis import drawing, report, terminal;"
        "bad = {'torch', 'ray', 'matplotlib.pyplot', 'scipy'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)

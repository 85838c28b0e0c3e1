"""What the page's own script does, in a browser, where there is one."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from lbdist.analysis.report import write_report
from lbdist.analysis.runs import Runs
from lbdist.analysis.sections import comparison
from tests.support.rows import STORY, study

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    sections = comparison.sections(Runs(study(epochs=(2, 20, 40))))
    return Path(write_report(folder, "page", sections, {"configuration": "a: 1\nb: 2"}))


def after(page: Path, do: str, width: int = 1300) -> str:
    """The page's elements after a script has run in it."""
    told = page.with_name("told.html")
    more = f"<script>addEventListener('load', () => {{ {do} }});</script></body>"
    told.write_text(page.read_text().replace("</body>", more))
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},2000"]
    command += ["--dump-dom", f"file://{told}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    return done.stdout


def methods(page: str) -> list[str]:
    table = page[page.index('id="table-leaderboard"') :].partition("</table>")[0]
    return re.findall(r'<th class="text" scope="row"[^>]*>([^<]*)', table)


def test_a_table_is_sorted_by_a_click_and_a_third_puts_it_back(page: Path) -> None:
    head = "document.querySelectorAll('#table-leaderboard thead th')[1].click();"
    scores = {("LB + " * (name not in ("SB", "LB"))) + name: story[0] for name, story in STORY.items()}
    falling = sorted(scores, key=lambda name: -scores[name])
    as_it_was = methods(page.read_text())
    assert methods(after(page, head)) == falling != as_it_was
    assert methods(after(page, 2 * head)) == falling[::-1]
    assert methods(after(page, 3 * head)) == as_it_was
    by_name = "document.querySelectorAll('#table-leaderboard thead th')[0].click();"
    assert methods(after(page, 2 * by_name)) == sorted(as_it_was)


def test_a_mark_says_its_value_under_the_pointer(page: Path) -> None:
    do = (
        "const mark = document.querySelector('#figure-leaderboard use[data-tip]');"
        "const box = mark.getBoundingClientRect();"
        "const at = {bubbles: true, clientX: box.x + box.width / 2, clientY: box.y + box.height / 2};"
        "mark.dispatchEvent(new PointerEvent('pointermove', at));"
    )
    found = after(page, do)
    assert re.search(r'<div id="tip"[^>]*>test accuracy \(%\) [\d.]+, SB</div>', found)
    assert '<div id="tip" hidden="">' in after(page, "")


@pytest.mark.parametrize("width", [390, 1300])
def test_it_is_said_where_there_is_more_to_the_right(page: Path, width: int) -> None:
    assert ('class="scroll more"' in after(page, "", width)) is (width < 500)

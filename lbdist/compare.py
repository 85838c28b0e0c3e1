"""Two studies, or all that two stores have in common, side by side on one page.

python -m lbdist.compare results/remedies other/remedies

As of two networks, two machines, two versions of lbdist, or before and after a change of yours.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from lbdist import commands, results
from lbdist.analysis import terminal
from lbdist.analysis.report import write_report
from lbdist.analysis.runs import Runs, score_of
from lbdist.analysis.section import Section, under_a_name
from lbdist.analysis.sections import side_by_side
from lbdist.errors import InputError
from lbdist.rows import Place
from lbdist.storage import Store

USAGE = (
    "usage: python -m lbdist.compare A B [out=FOLDER]   (A, B: results/STUDY, or the folder of all of them)"
)

PLACE = "compared"
"""Where the page goes, unless it is told."""


def compare(a: Place, b: Place, out: Place = PLACE) -> tuple[str, list[Section]]:
    """Writes two studies, or all that two stores have in common, side by side.

    Args:
        a: A study's folder, or a storage folder; or its URI.
        b: Another.
        out: Where the page goes, with its tables and figures.

    Returns:
        Where the page is, and what stands on it.

    Raises:
        InputError: There is no study, or they have none in common.
    """
    places = [Store.of(a), Store.of(b)]
    studies = [_studies(place) for place in places]
    alone = all(list(found) == [""] for found in studies)
    shared = [name for name in studies[0] if name in studies[1]] if not alone else [""]
    if not shared:
        raise InputError(f"{a}, {b}: must have a study in common, or be two studies")
    sections: list[Section] = []
    context: dict[str, str] = {"A": str(places[0]), "B": str(places[1])}
    for name in shared:
        stores = [found[name] for found in studies]
        first, second = (_runs(store) for store in stores)
        found = side_by_side.sections(first, second)
        sections += [under_a_name(name, one, one.brief) for one in found] if len(shared) > 1 else found
        if changed := _changed(*stores):
            context[f"configuration {name}".strip()] = changed
    title = f"A: {places[0]}; B: {places[1]}"
    context["written by"] = results.code_version(results.provenance())
    return write_report(out, title, sections, context), sections


def _studies(place: Store) -> dict[str, Store]:
    """The studies in a folder by name; of a study's own folder, that one without a name."""
    if place.exists("rows.parquet"):
        return {"": place}
    names = sorted(name.split("/")[0] for name in place.names() if name.count("/") == 1)
    found = {name: place / name for name in dict.fromkeys(names) if place.exists(f"{name}/rows.parquet")}
    if not found:
        raise InputError(f"{place}: must be the folder of a finished study, or of several")
    return found


def _runs(store: Store) -> Runs:
    rows = results.load(store)
    return Runs(rows, score_of(rows))


def _changed(a: Store, b: Store) -> str:
    """What is otherwise in the second configuration, as a diff; empty where either is not there."""
    name = "config.yaml"
    if not (a.exists(name) and b.exists(name)):
        return ""
    first, second = (store.read(name).decode().splitlines() for store in (a, b))
    return "\n".join(difflib.unified_diff(first, second, "A", "B", n=0, lineterm="")) or "the same"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        arguments: The command line without the program's name.

    Returns:
        0 when the page is written, 1 when it could not be, 2 for a wrong input, 130 after Ctrl-C.
    """

    def do(places: list[str], values: dict[str, str]) -> None:
        written, sections = compare(places[0], places[1], Path(values.get("out", PLACE)))
        terminal.show(sections, Console(width=None if sys.stdout.isatty() else terminal.WIDTH))
        print(f"page: {written}")

    return commands.run(do, arguments, USAGE, 2, ("out",))


if __name__ == "__main__":
    sys.exit(main())

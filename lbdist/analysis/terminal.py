"""The sections of a study on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table as Rich
from rich.text import Text

from lbdist.analysis.section import Section, Table

WIDTH = 110
"""No number is ever cut off: a narrower terminal wraps the tables' lines."""


def show(sections: Sequence[Section], console: Console) -> None:
    """Prints the brief sections: each one's tables, then its sentences.

    Args:
        sections: What the study shows.
        console: Where to; 100 columns suffice for the usual names.
    """
    blank = False
    for section in sections:
        if not section.brief:
            continue
        for table in section.tables:
            if not table.brief:
                continue
            if blank:
                console.print()
            console.print(Text(table.title, style="bold"), soft_wrap=True)
            width, console.width = console.width, max(console.width, WIDTH)
            console.print(_table(table), highlight=False)
            console.width, blank = width, True
        if section.sentences:
            if blank:
                console.print()
            console.print(" ".join(section.sentences), highlight=False, markup=False)
            blank = True


def _table(table: Table) -> Rich:
    shown = Rich(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    shown_columns = [place for place in range(len(table.heads)) if place not in table.wide]
    deep = max(table.heads[place].count("\n") for place in shown_columns)
    for place in shown_columns:
        head = "\n" * (deep - table.heads[place].count("\n")) + table.heads[place]
        shown.add_column(head, justify="left" if place < table.left else "right", no_wrap=True)
    for number, row in enumerate(table.rows):
        if number in table.groups:
            shown.add_row()
        shown.add_row(*(Text(row[place].text) for place in shown_columns))
    starred = any(entry.text.endswith("*") for row in table.rows for entry in row)
    if starred:
        shown.caption, shown.caption_justify = STAR, "left"
    return shown


STAR = "* not every run's maximum converged, or some failed: see the report"
"""What a star at a number means."""

"""The sections of a study on the terminal."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Literal

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as Rich
from rich.text import Text

from lbdist.analysis.section import Section, Table
from lbdist.letters import spelled

WIDTH = 80
"""No number is ever cut off: a narrower terminal wraps the tables' lines."""

_SPACE = 2
"""Between columns."""


def show(sections: Sequence[Section], console: Console) -> None:
    """Prints the brief sections: each one's tables, then its sentences.

    Args:
        sections: What the study shows.
        console: Where to. Columns that a table can spare give way where it has no room for all.
    """
    letters = functools.partial(spelled, encoding=console.encoding)
    blank = False
    for section in sections:
        if not section.brief:
            continue
        for table in section.tables:
            if not table.brief:
                continue
            if blank:
                console.print()
            console.print(Text(letters(table.title), style="bold"), soft_wrap=True)
            here = console.width
            shown, needed = _table(table, max(here, WIDTH), letters)
            console.width = max(here, needed + _SPACE)
            console.print(shown, highlight=False)
            console.width, blank = here, True
        if section.sentences:
            if blank:
                console.print()
            console.print(letters(" ".join(section.sentences)), highlight=False, markup=False)
            blank = True


def _table(table: Table, room: int, letters: Callable[[str], str]) -> tuple[Rich, int]:
    """A table, without as many of the columns that it can spare as the room asks for, and its width."""
    columns = [[head, *(row[place].text for row in table.rows)] for place, head in enumerate(table.heads)]
    columns = [[letters(text) for text in column] for column in columns]
    widths = [max(cell_len(line) for text in column for line in text.split("\n")) for column in columns]
    kept, spare = list(range(len(columns))), list(table.spare)

    def width() -> int:
        return sum(widths[place] for place in kept) + _SPACE * (len(kept) - 1)

    while spare and width() > room:
        kept.remove(spare.pop(0))
    made = Rich(box=None, pad_edge=False, padding=(0, _SPACE, 0, 0), caption_justify="left")
    deep = max(columns[place][0].count("\n") for place in kept)
    for place in kept:
        head = columns[place][0]
        justify: Literal["left", "right"] = "left" if place < table.left else "right"
        made.add_column("\n" * (deep - head.count("\n")) + head, justify=justify, no_wrap=True)
    for number in range(1, len(table.rows) + 1):
        if number - 1 in table.groups:
            made.add_row()
        made.add_row(*(Text(columns[place][number]) for place in kept))
    notes = [STAR] if any(text.endswith("*") for column in columns for text in column[1:]) else []
    if out := [letters(line) for place, line in enumerate(table.lines) if place not in kept]:
        notes.append(f"no room here, in the report: {', '.join(out)}")
    made.caption = "\n".join(notes) or None
    return made, width()


STAR = "* not every run's maximum converged, or some failed: see the report"
"""What a star at a number means."""

"""What a run says on its standard output: text for people, or lines of JSON for scripts and agents."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table as Rich

from lbdist.analysis import terminal
from lbdist.analysis.section import Section


class Output:
    """Text, in the forms of a terminal."""

    plain = False
    """Whether each thing that is said is a line, even on a terminal."""

    def say(self, text: str, event: str = "note", **values: Any) -> None:
        """Says something.

        Args:
            text: As people read it.
            event: What it is about.
            values: What scripts want of it.
        """
        print(text, flush=True)

    def records(self, records: Sequence[Mapping[str, Any]], event: str, width: int) -> None:
        """Says records that have the same keys, at least one, in a table of at most this width."""
        table = Rich(*records[0], box=None, pad_edge=False)
        for record in records:
            table.add_row(*("–" if value is None else str(value) for value in record.values()))
        Console(width=None if sys.stdout.isatty() else width).print(table)

    def end(self, status: int, failed: Sequence[str]) -> None:
        """Says with which status it ended and what failed, where the standard error is not read."""

    def sections(self, sections: Sequence[Section]) -> None:
        """Shows what a study found."""
        terminal.show(sections, Console(width=None if sys.stdout.isatty() else terminal.WIDTH))


class JsonLines(Output):
    """An object a line, which has an `event`, and the `text` that people would read."""

    plain = True

    def say(self, text: str, event: str = "note", **values: Any) -> None:
        """A line of the event and its values."""
        print(json.dumps(_plain({"event": event, "text": text, **values})), flush=True)

    def records(self, records: Sequence[Mapping[str, Any]], event: str, width: int) -> None:
        """A line a record."""
        for record in records:
            self.say("", event, **{key.replace(" ", "_"): value for key, value in record.items()})

    def end(self, status: int, failed: Sequence[str]) -> None:
        """The last line."""
        self.say("", "end", status=status, failed=failed)

    def sections(self, sections: Sequence[Section]) -> None:
        """A line a section, with the numbers behind its tables; and one a claim of the paper."""
        for section in sections:
            tables = {table.name: table.records() for table in section.tables}
            text = " ".join(section.sentences)
            self.say(text, "section", title=section.title, tables=tables)
            for record in tables.get("claims", []):
                self.say(f"{record['claim']}: {record['verdict']}", "verdict", **record)


def output(kind: str) -> Output:
    """The output of a kind."""
    return JsonLines() if kind == "json" else Output()


def _plain(value: Any) -> Any:
    """A value as JSON has it, where what is no number is null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(one) for one in value]
    if hasattr(value, "item"):  # a number of numpy's
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value

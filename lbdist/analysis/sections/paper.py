"""The report of several studies as one: every claim first, then what each part shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

from lbdist.analysis.claims import Claim, claims
from lbdist.analysis.runs import Runs
from lbdist.analysis.section import Section
from lbdist.analysis.sections import beside, reading


class Shown(Protocol):
    """What shows runs: a study."""

    def sections(self, runs: Runs) -> list[Section]:
        """Its sections."""


def sections(parts: Mapping[str, tuple[Runs, Shown]]) -> list[Section]:
    """All claims, each as the first part that has numbers for it says; then the parts' own sections."""
    known: dict[str, Claim] = {}
    for runs, _ in parts.values():
        for claim in claims(runs) if len(runs.cells) else []:
            known.setdefault(claim.text, claim)
    found = list(known.values())
    said = [beside.verdicts(found)] if found else ["No run is finished yet."]
    tables = [beside.claim_table(found)] if found else []
    summary = Section(beside.TITLE, said, tables, brief=True)
    shown = [
        _named(name, part, place == 0)
        for name, (runs, study) in parts.items()
        if len(runs.cells)
        for place, part in enumerate(study.sections(runs))
    ]
    return [summary, *[part for part in shown if part is not None], reading.section()]


def _named(name: str, section: Section, first: bool) -> Section | None:
    """A part's section under the part's name, with names of tables and figures that are its own.

    The first of a part is on the terminal as well.
    """
    if section.title == reading.section().title:
        return None
    tables = [table for table in section.tables if table.name != "claims"]
    return replace(
        section,
        title=f"{name}: {section.title}",
        tables=[replace(table, name=f"{name}-{table.name}") for table in tables],
        figures=[replace(figure, name=f"{name}-{figure.name}") for figure in section.figures],
        brief=section.brief and first,
    )

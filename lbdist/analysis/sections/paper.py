"""The report of several studies as one: every claim first, then what each part shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lbdist.analysis.claims import Claim, claims
from lbdist.analysis.runs import Runs
from lbdist.analysis.section import Section, Table, under_a_name
from lbdist.analysis.sections import beside, reading


def sections(parts: Mapping[str, tuple[Runs, Sequence[Section]]]) -> list[Section]:
    """All claims, each as the first part that has numbers for it says; then the parts' own sections."""
    known: dict[str, Claim] = {}
    for runs, _ in parts.values():
        for claim in claims(runs) if len(runs.cells) else []:
            known.setdefault(claim.text, claim)
    found = list(known.values())
    said = [beside.verdicts(found)] if found else ["No run is finished yet."]
    ours: dict[str, Table] = {}
    for runs, _ in parts.values():
        for table in beside.tables(runs) if len(runs.cells) else []:
            ours.setdefault(table.name, table)
    tables = [beside.claim_table(found)] if found else []
    summary = Section(beside.TITLE, said, [*tables, *(ours[name] for name in sorted(ours))], brief=True)
    shown = [
        under_a_name(name, part, brief=part.brief and part is own[0])
        for name, (runs, own) in parts.items()
        for part in of_part(runs, own)
    ]
    return [summary, *shown, reading.section()]


def of_part(runs: Runs, own: Sequence[Section]) -> list[Section]:
    """What a part of a study shows beside what the whole has itself; nothing where no run is finished."""
    shared = (reading.section().title, beside.TITLE)
    shown = [part for part in own if part.title not in shared and (part.tables or part.figures)]
    return shown if len(runs.cells) else []

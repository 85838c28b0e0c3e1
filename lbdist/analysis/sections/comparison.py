"""What a comparison shows: SB, LB and the remedies."""

from __future__ import annotations

from lbdist.analysis.runs import Runs
from lbdist.analysis.section import Section
from lbdist.analysis.sections import (
    agreement,
    curves,
    leaderboard,
    reading,
    rescaling,
    search,
    solvers,
    spectrum,
)


def sections(runs: Runs) -> list[Section]:
    """Leaderboard, agreement between numbers of workers, curves, sharpness by solver, spectra, the search."""
    parts = [part.section(runs) for part in (leaderboard, agreement, curves, solvers)]
    for part in (spectrum, rescaling):
        parts += part.sections(runs)
    return [*parts, search.section(runs), reading.section()]

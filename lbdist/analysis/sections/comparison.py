"""What a comparison shows: SB, LB and the remedies."""

from __future__ import annotations

from lbdist.analysis.runs import Runs
from lbdist.analysis.section import Section
from lbdist.analysis.sections import (
    agreement,
    beside,
    choices,
    curves,
    fit,
    leaderboard,
    reading,
    rescaling,
    search,
    solvers,
    spectrum,
)


def sections(runs: Runs) -> list[Section]:
    """Leaderboard, both splits, agreement, curves, sharpness by solver and choice, spectra, the search."""
    parts = [part.section(runs) for part in (leaderboard, fit, beside, agreement, curves, solvers)]
    for part in (choices, spectrum, rescaling):
        parts += part.sections(runs)
    return [*parts, search.section(runs), reading.section()]


def sharpness(runs: Runs) -> list[Section]:
    """Sharpness by solver and space, what the paper leaves open, the claims, the runs behind them."""
    parts = [solvers.section(runs), *choices.sections(runs), beside.section(runs)]
    return [*parts, leaderboard.section(runs), reading.section()]

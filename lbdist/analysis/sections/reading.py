"""How to read the numbers."""

from __future__ import annotations

from lbdist.analysis.section import Section

SENTENCES = (
    "SB is the small batch, LB the large one; the gap is SB minus LB in the test score.",
    "Sharpness is Metric 2.1 of Keskar et al. (ICLR 2017, arXiv 1609.04836): φ = 100 (max f − f(x)) / (1 + "
    "f(x)), with the maximum over a box around the minimiser whose half-width is ε (|x| + 1) in each "
    "coordinate, and f the loss over the whole training set. A low φ is a flat minimiser.",
    "A φ is a lower bound on that maximum: a solver can miss a higher point, never invent one. So a large φ "
    "is proof of sharpness, while a small one says that none was found.",
    "Hyperparameters were chosen on a validation split taken from the training set. The test set was read "
    "for the chosen ones only, with seeds that the search did not use.",
    "The best remedy is the one with the highest mean; the best of several is flattered a little by having "
    "been picked. Its interval does not correct for that.",
    "An interval that includes zero means that these runs do not settle the question; one seed settles "
    "nothing.",
    "A run that diverged is left out of means; its count stands beside n.",
)


def section() -> Section:
    """What every report of lbdist takes for granted."""
    return Section("How to read the numbers", SENTENCES)

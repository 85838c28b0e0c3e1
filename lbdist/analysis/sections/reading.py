"""How to read the numbers."""

from __future__ import annotations

from lbdist.analysis.runs import Runs
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


def words(runs: Runs) -> list[str]:
    """What the abbreviations in tables mean, a line each, of those that these runs have."""
    found = []
    counted = runs.counted[runs.counted["remedy"] == "none"]
    for name, what in (("SB", "small"), ("LB", "large")):
        batches = counted.loc[counted["method"] == name, "global_batch_size"]
        if len(batches):
            found.append(f"{name}: training with the {what} batch, {batches.iloc[0]:,} samples a step.")
    if (runs.rows["metric"] == "sharpness").any():
        found.append(
            "φ: sharpness by Metric 2.1, how far the loss rises in a box of size ε around a model; without a "
            "unit, and lower is flatter."
        )
    return found

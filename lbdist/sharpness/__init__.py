"""Sharpness: Metric 2.1 of Keskar et al. in the full space and in random subspaces, usable by itself.

f = Objective(network, (inputs, labels))
result = box_sharpness(f, f.x, epsilon=1e-3)
print(result.value, result.converged)
"""

from lbdist.sharpness.neighbourhood import Neighbourhood, SharpnessResult, box_sharpness
from lbdist.sharpness.solvers import Effort

__all__ = ["Effort", "Neighbourhood", "SharpnessResult", "box_sharpness"]

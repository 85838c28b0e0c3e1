"""Sharpness: Metric 2.1 of Keskar et al. in the full space and in random subspaces, usable by itself.

f = Objective(network, (inputs, labels))
result = box_sharpness(f, f.x, epsilon=1e-3)
print(result.value, result.converged)
"""

from lbdist.sharpness.metric import Neighbourhood, SharpnessResult, box_sharpness

__all__ = ["Neighbourhood", "SharpnessResult", "box_sharpness"]

"""The rescaling audit: which measures a change of parameters moves that leaves the function alone.

Dinh et al. (2017): a layer before a ReLU multiplied by alpha, and the next one divided by it, is the same
function of the inputs. What such a change moves says something of the parameters, not of the function.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from lbdist.config.build import build
from lbdist.data.base import handed_out
from lbdist.errors import InputError, require
from lbdist.networks.flat import flatten, views
from lbdist.objective import Objective
from lbdist.results import Row
from lbdist.sharpness.measure import Measure, Minimiser

_SAMPLES = 64


def rescaled(f: Objective, x: Tensor, factor: float) -> tuple[Tensor, str]:
    """x with one layer multiplied and a later one divided by a factor, such that f stays what it is.

    Which layers these can be is found by trying them in their order: the first pair that leaves the outputs
    of a few samples alone, where the first layer by itself does not.

    Args:
        f: The objective, whose network is looked at.
        x: Parameters, shape (n,).
        factor: Above 0.

    Returns:
        The other parameters, and the two layers' names.

    Raises:
        InputError: There is no such pair.
    """
    network = copy.deepcopy(f.network).eval()
    layers = [
        (name, m) for name, m in network.named_modules() if isinstance(getattr(m, "weight", None), Tensor)
    ]
    inputs = handed_out(f.inputs[:_SAMPLES].to(x.device), f.dtype)

    @torch.no_grad()
    def outputs(changes: Sequence[tuple[nn.Module, float, bool]]) -> tuple[Tensor, Tensor]:
        for name, part in views(network, x).items():
            network.get_parameter(name).copy_(part)
        for module, by, bias in changes:
            module.weight.mul_(by)  # type: ignore[operator]
            if bias and isinstance(module.bias, Tensor):
                module.bias.mul_(by)
        return network(inputs.clone()), flatten(network)

    own, _ = outputs([])
    size = float(own.abs().max())
    for (name, first), (other, second) in itertools.pairwise(layers):
        alone, _ = outputs([(first, 2.0, True)])
        both, _ = outputs([(first, 2.0, True), (second, 0.5, False)])
        if float((both - own).abs().max()) <= 1e-4 * size < float((alone - own).abs().max()):
            _, found = outputs([(first, factor, True), (second, 1 / factor, False)])
            return found, f"{name}, {other}"
    raise InputError("rescaling: needs two layers of which one multiplied and one divided by a number cancel")


@dataclass
class Rescaling(Measure):
    """Other measures, at the model and at rescaled ones that are the same function.

    Attributes:
        factors: What a layer is multiplied by.
        measures: Nodes of the measures, by name.
    """

    factors: list[float] = field(default_factory=lambda: [0.25, 1.0, 4.0])
    measures: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(all(0 < factor < 1e6 for factor in self.factors), "factors", self.factors, "above 0")
        require(len(self.measures) > 0, "measures", "{}", "one or more measures")
        self._made = {
            name: build(node, f"measures.{name}", kind=Measure)
            for name, node in self.measures.items()
            if isinstance(node, Mapping)
        }

    def cost(self) -> float:
        """Each measure at every factor."""
        return len(self.factors) * sum(measure.cost() for measure in self._made.values())

    def __call__(self, at: Sequence[Minimiser]) -> list[Row]:
        """What each measure gives at each factor, which is its rows' position; named `rescaled_...`."""
        (minimiser,) = at
        f = minimiser.objective(batch_norm="running", micro_batch_size=1000)
        rows = []
        for factor in self.factors:
            x, names = rescaled(f, minimiser.x, factor)
            for measure in self._made.values():
                for row in measure([replace(minimiser, x=x)]):
                    metric = f"rescaled_{row['metric']}"
                    rows.append({**row, "metric": metric, "position": factor, "start": names})
        return rows

"""The settings that a remedy's search space yields."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from lbdist.errors import InputError, one_line, require


def settings(space: Mapping[str, Any] | None, samples: int, key: str) -> list[dict[str, Any]]:
    """The settings that a remedy's search space yields: grids whole, continuous spaces drawn.

    Args:
        space: A mapping from a hyperparameter to a list (a grid) or to a Tune domain, written as
            `{_target_: ray.tune.loguniform, lower: 1.0e-4, upper: 1.0}`.
        samples: Draws where there is a domain.
        key: Where the space stands in the configuration, for the complaint.

    Returns:
        The settings, the same at every call; of a grid, the first hyperparameter varies fastest.

    Raises:
        InputError: A space that Tune does not accept.

    Example:
        >>> settings({"rho": [0.2, 0.5]}, 4, "remedy.robust")
        [{'rho': 0.2}, {'rho': 0.5}]
    """
    require(space is None or isinstance(space, Mapping), f"{key}.search", space, "a mapping or null")
    space = space or {}
    if all(isinstance(values, list) for values in space.values()):  # what needs no Ray
        rows = itertools.product(*list(space.values())[::-1])
        return [dict(zip(space, row[::-1], strict=True)) for row in rows]
    try:
        return _drawn(space, samples)
    except Exception as error:
        raise InputError(f"{key}.search={space}: {one_line(error)}") from error


def _drawn(space: Mapping[str, Any], samples: int) -> list[dict[str, Any]]:
    """What Tune makes of a space that holds a domain."""
    import numpy as np
    from hydra.utils import instantiate
    from ray import tune
    from ray.tune.search.variant_generator import generate_variants

    spec = {
        name: tune.grid_search(list(values)) if isinstance(values, list) else instantiate(values)
        for name, values in space.items()
    }
    drawn = any(isinstance(value, tune.search.sample.Domain) for value in spec.values())
    random = np.random.RandomState(0)
    found = [
        dict(config)
        for _ in range(samples if drawn else 1)
        for _, config in generate_variants(spec, random_state=random)
    ]
    return [{name: getattr(value, "item", lambda v=value: v)() for name, value in s.items()} for s in found]

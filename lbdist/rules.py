"""How an optimiser's hyperparameters follow the batch: what holds at one batch, carried over to another.

With kappa, the ratio of the batches:

| rule | learning rate | beta | epsilon | source |
|---|---|---|---|---|
| none | as it is | as it is | as it is | Keskar et al., section 2 |
| linear | kappa | | | Krizhevsky, arXiv:1404.5997; Goyal et al., arXiv:1706.02677, section 2.1 |
| sqrt | sqrt(kappa) | | | Krizhevsky, arXiv:1404.5997, section 5; Hoffer et al., NeurIPS 2017, section 7 |
| adam | sqrt(kappa) | 1 - kappa (1 - beta) | 1/sqrt(kappa) | Malladi et al., NeurIPS 2022, definition 5.2 |
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lbdist.errors import require

RULES = ("none", "linear", "sqrt", "adam")


def scaled(optimizer: Mapping[str, Any], rule: str, batch: int, base: int) -> dict[str, Any]:
    """The optimiser's node at a batch.

    Args:
        optimizer: Its node at the batch `base`; `lr` is there, for `adam` `betas` and `eps` too.
        rule: One of `RULES`.
        batch: The global batch, in samples.
        base: The global batch that the node is for.

    Raises:
        InputError: The optimiser lacks a key that the rule scales, or the ratio is too large for a beta.

    Example:
        >>> adam = {"lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-8}
        >>> scaled(adam, "linear", 128, 32)
        {'lr': 0.004, 'betas': [0.9, 0.999], 'eps': 1e-08}
        >>> scaled(adam, "adam", 128, 32)
        {'lr': 0.002, 'betas': [0.6, 0.996], 'eps': 5e-09}
    """
    found, ratio = dict(optimizer), batch / base
    if rule == "none" or ratio == 1:
        return found
    needed = ("lr", "betas", "eps") if rule == "adam" else ("lr",)
    for key in needed:
        require(key in found, "lr_rule", rule, f"none, or optimizer.{key} given, which the rule changes")
        value, many = found[key], key == "betas"
        numbers = value if isinstance(value, list | tuple) else [value]
        good = isinstance(value, list | tuple) == many and all(map(_is_number, numbers))
        require(good, f"optimizer.{key}", value, f"{'numbers' if many else 'a number'} with lr_rule={rule}")
    found["lr"] = found["lr"] * (ratio if rule == "linear" else math.sqrt(ratio))
    if rule == "adam":
        for beta in found["betas"]:
            most = f"above {1 - 1 / ratio:.4g} for a batch {ratio:.4g} times {base} with lr_rule=adam"
            require(ratio * (1 - beta) < 1, "optimizer.betas", found["betas"], most)
        found["betas"] = [round(1 - ratio * (1 - beta), 12) for beta in found["betas"]]
        found["eps"] = found["eps"] / math.sqrt(ratio)
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

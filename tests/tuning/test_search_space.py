"""Search spaces: grids, which need no Ray, and Tune's domains."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ray import tune
from ray.tune.search.variant_generator import generate_variants

from lbdist.errors import InputError
from lbdist.plan import name_setting
from lbdist.tuning.search_space import settings


def test_grids_are_run_whole() -> None:
    assert settings(None, 5, "x") == settings({}, 5, "x") == [{}]
    found = settings({"rho": [0.1, 0.2], "norm": ["2", "inf"]}, 5, "x")
    assert len(found) == 4 and {name_setting(s) for s in found} >= {"rho=0.1 norm=inf", "rho=0.2 norm=2"}


def test_a_grid_is_in_tunes_own_order() -> None:
    space = {"a": [1, 2], "b": ["x", "y", "z"], "c": [0.5, None]}
    spec = {name: tune.grid_search(values) for name, values in space.items()}
    assert settings(space, 5, "x") == [found for _, found in generate_variants(spec)]


def test_domains_are_drawn_and_the_draw_is_the_same_again() -> None:
    space = {"rho": {"_target_": "ray.tune.loguniform", "lower": 1e-3, "upper": 1.0}, "steps": [1, 2]}
    found = settings(space, 5, "x")
    assert found == settings(space, 5, "x")
    assert len(found) == 10 and len({s["rho"] for s in found}) >= 5
    assert all(1e-3 <= s["rho"] <= 1 and type(s["rho"]) is float for s in found)
    json.dumps(found)  # plain values, for the id
    drawn = settings({"k": {"_target_": "ray.tune.randint", "lower": 0, "upper": 9}}, 3, "x")
    assert len(drawn) == 3 and all(type(s["k"]) is int for s in drawn)


@pytest.mark.parametrize(
    "space",
    [
        {"rho": {"_target_": "ray.tune.nope", "lower": 0}},
        {"rho": {"_target_": "ray.tune.loguniform", "lower": -1, "upper": 1}},
        {"rho": {"_target_": "ray.tune.loguniform"}},
        {"rho": 0.3},
        {"rho": "abc"},
        [1, 2],
    ],
    ids=str,
)
def test_bad_space(space: Any) -> None:
    with pytest.raises(InputError, match=r"^remedy\.robust\.search=") as caught:
        settings(space, 2, "remedy.robust")
    assert "\n" not in str(caught.value)

"""BatchNormalization is a map, and absorbs another one."""

from pathlib import Path
from typing import Any

import pytest
from maps import BN, L
from support import KERAS, chain, examine, randomize
from tiers import some

pytestmark = pytest.mark.usefixtures("double")


OPTIONS: dict[str, dict[str, Any]] = {
    "epsilon-tiny": {"epsilon": 1e-12},
    "epsilon-zero": {"epsilon": 0.0},
    "epsilon-huge": {"epsilon": 3.7},
    "epsilon-integer": {"epsilon": 1},
    "epsilon-negative": {"epsilon": -1e-3},
    "momentum": {"momentum": 0.1},
    "renorm": {"renorm": True},
    "renorm-clipped": {"renorm": True, "renorm_clipping": {"rmax": 2.0, "rmin": 0.5, "dmax": 1.0}},
    "synchronized": {"synchronized": True},
    "frozen": {"trainable": False},
    "regularized": {"gamma_regularizer": "l2", "beta_constraint": "non_neg"},
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.few(6)
def test_settings_of_the_batchnorm(name: str, tmp_path: Path) -> None:
    examine(randomize(chain((5,), L.Dense(4), BN(**OPTIONS[name]))), tmp_path)


@pytest.mark.parametrize("first", some(["both", "center", "none", "scale"]))
@pytest.mark.parametrize("second", ["both", "center", "scale", "none"])
def test_batchnorm_absorbs_one_after_it(first: str, second: str, tmp_path: Path) -> None:
    options = {
        name: {"center": name in ("both", "center"), "scale": name in ("both", "scale")}
        for name in (first, second)
    }
    model = chain((3, 4), BN(name="stays", **options[first]), BN(axis=2, **options[second]))
    examine(randomize(model), tmp_path, left=["stays"], reason="first layer", forms=KERAS)


@pytest.mark.parametrize("scale", [True, False])
def test_renorm_variables_stay_after_those_of_the_fold(scale: bool, tmp_path: Path) -> None:
    model = chain((5,), BN(renorm=True, scale=scale, center=False), BN())
    examine(randomize(model), tmp_path, left=1)


@pytest.mark.parametrize("first", [{}, {"center": False}, {"scale": False}])
@pytest.mark.parametrize("second", [{}, {"center": False}, {"scale": False}])
def test_batchnorm_absorbs_one_before_it(
    first: dict[str, bool], second: dict[str, bool], tmp_path: Path
) -> None:
    """The last one stays: what reads it is not linear, what makes it neither."""
    model = chain((3, 4), L.ReLU(), BN(**first), L.Dropout(0.1), BN(name="b", **second), L.ELU())
    examine(randomize(model), tmp_path, left=1)

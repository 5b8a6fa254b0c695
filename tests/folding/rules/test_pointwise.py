"""A map crosses layers that do the same to each number by itself."""

from pathlib import Path

import pytest
from maps import (
    IMAGE,
    NONE,
    SERIES,
    TD,
    VOLUME,
    Build,
    L,
    Row,
    after,
    before,
    crosses_backward,
    crosses_forward,
    ops,
    stays_without_condition,
    tamed,
)
from support import KERAS, examine
from tiers import some

pytestmark = pytest.mark.usefixtures("double")


ROWS: dict[str, Row] = {
    "identity": (L.Identity, SERIES, NONE),
    "activity-regularization": (lambda: L.ActivityRegularization(0.1), SERIES, NONE),
    "dropout": (lambda: L.Dropout(0.5), SERIES, NONE),
    "alpha-dropout": (lambda: L.AlphaDropout(0.5), SERIES, NONE),
    "gaussian-dropout": (lambda: L.GaussianDropout(0.5), SERIES, NONE),
    "gaussian-noise": (lambda: L.GaussianNoise(0.5), SERIES, NONE),
    "spatial-dropout-1d": (lambda: L.SpatialDropout1D(0.5), SERIES, NONE),
    "spatial-dropout-2d": (lambda: L.SpatialDropout2D(0.5), IMAGE, NONE),
    "spatial-dropout-3d": (lambda: L.SpatialDropout3D(0.5), VOLUME, NONE),
    "activation-linear": (lambda: L.Activation("linear"), SERIES, NONE),
    "activation-relu": (lambda: L.Activation("relu"), SERIES, "positive, no shift"),
    "activation-leaky-relu": (lambda: L.Activation("leaky_relu"), SERIES, "positive, no shift"),
    "relu": (L.ReLU, SERIES, "positive, no shift"),
    "relu-slope": (lambda: L.ReLU(negative_slope=0.2), SERIES, "positive, no shift"),
    "leaky-relu": (L.LeakyReLU, SERIES, "positive, no shift"),
    "prelu": (L.PReLU, SERIES, "positive, no shift"),
    "rescaling": (lambda: L.Rescaling(2.5, offset=-0.7), SERIES, NONE),
    "rescaling-negative": (lambda: L.Rescaling(-1 / 3), SERIES, NONE),
    "wrapped": (lambda: TD(L.Dropout(0.3)), SERIES, NONE),
    "ops-leaky-relu": (lambda: lambda x: ops.leaky_relu(x, 0.1), SERIES, "positive, no shift"),
    "ops-stop-gradient": (lambda: ops.stop_gradient, SERIES, NONE),
    "ops-copy": (lambda: ops.copy, SERIES, NONE),
}


# By default a layer is crossed in one direction: the rows of the layers are shared by both.
@pytest.mark.parametrize("name", some(ROWS))
@pytest.mark.few(6)
def test_a_map_crosses_forward(name: str, tmp_path: Path) -> None:
    crosses_forward(ROWS, name, tmp_path)


@pytest.mark.parametrize("name", some(ROWS, first=1))
@pytest.mark.few(6)
def test_a_map_crosses_backward(name: str, tmp_path: Path) -> None:
    crosses_backward(ROWS, name, tmp_path)


@pytest.mark.parametrize("name", [n for n in ROWS if ROWS[n][2]])
def test_a_map_that_does_not_meet_the_condition_stays(name: str, tmp_path: Path) -> None:
    stays_without_condition(ROWS, name, tmp_path)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (lambda: L.ReLU(max_value=6), "max_value"),
        (lambda: L.ReLU(threshold=0.5), "threshold"),
        (lambda: L.Activation("sigmoid"), "applies sigmoid"),
        (lambda: L.Rescaling(0.0), "multiplies with zero"),
        (lambda: L.LayerNormalization(), "can neither absorb"),
        (lambda: L.Softmax(), "can neither absorb"),
    ],
)
@pytest.mark.few(3)
def test_layers_that_are_not_transparent(layer: Build, reason: str, tmp_path: Path) -> None:
    for number, build in enumerate((before, after)):
        folder = tmp_path / str(number)
        folder.mkdir()
        model = tamed(build(layer, (3, 4)), positive=True, shift=False)
        examine(model, folder, left=1, reason=reason, forms=KERAS)

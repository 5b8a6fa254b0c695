"""EinsumDense absorbs a map by the letters of its equation."""

from pathlib import Path
from typing import Any

import pytest
from maps import BN, Build, L, forms_of
from support import KERAS, LEGACY, chain, examine, load, randomize
from tiers import some_of_each

pytestmark = pytest.mark.usefixtures("double")


EINSUM: dict[str, tuple[Any, ...]] = {
    # equation, input shape, output shape, bias axes, axis of the BatchNormalization
    "matrix": ("ab,bc->ac", (4,), 5, "c", -1),
    "matrix-no-bias": ("ab,bc->ac", (4,), 5, None, 1),
    "matrix-transposed-kernel": ("ab,cb->ac", (4,), 5, "c", -1),
    "left": ("...b,bc->...c", (2, 3, 4), 5, "c", -1),
    "left-positive": ("...b,bc->...c", (2, 5, 4), 5, None, 3),
    "left-two-labels": ("...b,bcd->...cd", (2, 3), (4, 5), "cd", -2),
    "left-two-labels-positive": ("...b,bcd->...cd", (4, 3), (4, 5), "d", 2),
    "right": ("ab...,bd->ad...", (3, 4, 5), (6,), "d", 1),
    "right-no-bias": ("ab...,bd->ad...", (3, 4), (6,), None, 1),
    "right-negative": ("ab...,bd->ad...", (3, 6, 5), (6,), "d", -3),
    "right-negative-two-labels": ("ab...,bcd->acd...", (3, 2), (4, 5), "c", -2),
    "right-two-labels": ("ab...,bcd->acd...", (3, 2), (4, 5), "c", 2),
    "right-two-labels-other-bias": ("ab...,bcd->acd...", (3, 2), (4, 5), "d", 1),
    "heads-both": ("abc,cde->abde", (3, 4), (3, 5, 2), "de", -1),
    "heads-outer": ("abc,cde->abde", (3, 4), (3, 5, 2), "de", -2),
    "heads-partial": ("abc,cde->abde", (3, 4), (3, 5, 2), "e", -2),
    "heads-partial-other": ("abc,cde->abde", (3, 4), (3, 5, 2), "d", 3),
    "heads-none": ("abc,cde->abde", (3, 4), (3, 5, 2), None, 2),
    "heads-bias-on-time": ("abc,cde->abde", (3, 4), (3, 5, 2), "b", -1),
    "heads-bias-on-time-and-out": ("abc,cde->abde", (3, 4), (3, 5, 2), "be", 2),
    "heads-bias-shuffled": ("abc,cde->abde", (3, 4), (3, 5, 2), "edb", 2),
    "merge-heads": ("abcd,cde->abe", (3, 4, 2), (3, 5), "e", -1),
    "label-in-all": ("abc,bcd->abd", (3, 4), (3, 5), None, 1),
    "label-in-all-bias-there": ("abc,bcd->abd", (3, 4), (3, 5), "b", 1),
    "label-in-all-bias-elsewhere": ("abc,bcd->abd", (3, 4), (3, 5), "d", 1),
    "label-in-all-other-axis": ("abc,bcd->abd", (3, 4), (3, 5), "b", -1),
    "per-channel": ("abc,c->abc", (3, 4), (3, 4), None, -1),
    "permuted": ("abc,dc->adb", (3, 4), (5, 3), "d", 1),
    "permuted-bias-behind": ("abc,dc->adb", (3, 4), (5, 3), "b", -2),
    "permuted-no-bias": ("abc,dc->adb", (3, 4), (5, 3), None, 1),
    "over-time": ("abc,bd->adc", (3, 4), (5, 4), "d", 1),
    "square": ("abc,cb->ab", (4, 4), (4,), "b", 1),
    "capitals": ("aBC,CD->aBD", (3, 4), (3, 5), "D", -1),
}


@pytest.mark.parametrize("name", some_of_each(EINSUM))
@pytest.mark.few(9)
def test_einsum_dense(name: str, tmp_path: Path) -> None:
    equation, shape, output, bias, axis = EINSUM[name]
    layer = L.EinsumDense(equation, output, bias_axes=bias)
    forms = LEGACY if list(EINSUM).index(name) % 4 == 0 else KERAS
    examine(randomize(chain(shape, layer, BN(axis=axis))), tmp_path, forms=forms)


def test_einsum_dense_keeps_a_narrow_bias_narrow(tmp_path: Path) -> None:
    model = chain((3, 4), L.EinsumDense("abc,cde->abde", (3, 5, 2), bias_axes="d"), BN(axis=2))
    examine(randomize(model), tmp_path, forms=KERAS)
    assert load(tmp_path / "folded.keras").layers[1].bias.shape == (5, 1)


@pytest.mark.parametrize(
    "build",
    [
        lambda: chain((3, 4), L.EinsumDense("abc,cde->abde", (3, 5, 5), bias_axes="d"), BN()),
        lambda: chain((5, 4), L.EinsumDense("abc,cd->abd", (5, 5), bias_axes="b"), BN()),
    ],
    ids=["heads", "time"],
)
def test_a_bias_that_keras_puts_elsewhere_cannot_grow(build: Build, tmp_path: Path) -> None:
    """It lands on the wrong axis before the fold, and would land on the right one after it."""
    examine(randomize(build()), tmp_path, left=1, forms=KERAS)


ABSORB: dict[str, Build] = {
    "einsum": lambda: chain((4,), BN(), L.EinsumDense("ab,bc->ac", 5, bias_axes="c")),
    "einsum-heads": lambda: chain((3, 4), BN(), L.EinsumDense("abc,cde->abde", (3, 5, 2))),
    "einsum-widens": lambda: chain(
        (3, 4), BN(), L.EinsumDense("abc,cde->abde", (3, 5, 2), bias_axes="e")
    ),
    "einsum-label-in-all": lambda: chain(
        (3, 4), BN(), L.EinsumDense("abc,bcd->abd", (3, 5), bias_axes="d")
    ),
    "einsum-per-channel": lambda: chain((3, 4), BN(), L.EinsumDense("abc,c->abc", (3, 4))),
    "einsum-summed-out": lambda: chain((3, 4), BN(), L.EinsumDense("abc,cd->ad", 5, bias_axes="d")),
    "einsum-left": lambda: chain((2, 3, 4), BN(), L.EinsumDense("...b,bc->...c", 5)),
    "einsum-right": lambda: chain(
        (3, 4, 5), BN(axis=1), L.EinsumDense("ab...,bd->ad...", (6,), bias_axes="d")
    ),
    "einsum-time": lambda: chain((3, 4), BN(axis=1), L.EinsumDense("abc,bd->adc", (5, 4))),
    "einsum-two-axes": lambda: chain(
        (3, 4), BN(), BN(axis=1), L.EinsumDense("abc,bcd->ad", 5, bias_axes="d")
    ),
}


@pytest.mark.parametrize("name", ABSORB)
@pytest.mark.few(5)
def test_layer_absorbs_a_map_before_it(name: str, tmp_path: Path) -> None:
    forms = KERAS if name.startswith("wrapped") else forms_of(name)
    examine(randomize(ABSORB[name]()), tmp_path, forms=forms)

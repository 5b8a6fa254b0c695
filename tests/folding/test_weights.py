"""Weights that are read a part at a time, and what is found out about them on the way."""

import tracemalloc
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import h5py
import large
import numpy as np
import pytest
from numpy.typing import NDArray
from tiers import some

from bnfold.errors import UnreadableModelError
from bnfold.folding.plan import plan
from bnfold.folding.weights import BiasChange, Magnitudes, WeightEdit, edited, magnitudes
from bnfold.model.container import hdf5
from bnfold.model.container.budget import Costs
from bnfold.model.container.model_file import open_model
from bnfold.model.graph import Layer, Weight

LAYOUTS: dict[str, dict[str, Any]] = {
    "in one block": {},
    "in chunks": {"chunks": True},
    "compressed": {"compression": "gzip", "compression_opts": 1},
}
SHAPES = [(3, 3, 64, 700), (1, 1, 600, 800), (700, 900), (5, 400, 500), (2, 3)]


def stored(path: Path, values: NDArray[Any], **layout: Any) -> Weight:
    with h5py.File(path, "w") as file:
        file.create_dataset("0", data=values, **layout)
    weight = hdf5.weight_in(h5py.File(path, "r"), "0", "0")
    assert weight is not None
    return weight


# Every dtype, layout and shape by default, but not with each other: 60 files take seconds.
@pytest.mark.parametrize(
    ("shape", "layout", "dtype"),
    some(product(SHAPES, LAYOUTS, ["f4", ">f4", "f8", "f2", "bfloat16"]), 3),
)
@pytest.mark.few(10)
def test_pieces_are_the_whole(
    shape: tuple[int, ...], layout: str, dtype: str, tmp_path: Path
) -> None:
    kind = hdf5.bfloat16() if dtype == "bfloat16" else np.dtype(dtype)
    values = np.random.default_rng(0).normal(size=shape).astype(kind)
    if dtype == "bfloat16":
        values = values.view("V2")
    weight = stored(tmp_path / "w.h5", values, **LAYOUTS[layout])
    assert isinstance(weight.read, hdf5.Stores)
    whole = weight.read()
    assert whole.dtype == kind
    for lead in range(1, len(shape) + 1):
        pieces = [(start, np.array(piece)) for start, piece in weight.read.pieces(lead)]
        assert np.array_equal(np.concatenate([p.ravel() for _, p in pieces]).reshape(shape), whole)
        for start, piece in pieces:
            assert piece.shape[lead:] == shape[lead:]
            at = tuple(slice(a, a + n) for a, n in zip(start, piece.shape, strict=True))
            assert np.array_equal(whole[at], piece)


@pytest.mark.parametrize(
    "factor",
    [
        lambda shape: np.arange(1.0, shape[-1] + 1),
        lambda shape: np.arange(1.0, shape[-2] + 1)[:, None],
        lambda shape: np.outer(np.arange(1.0, shape[-2] + 1), np.linspace(-1, 1, shape[-1])),
        lambda shape: np.full((1,) * len(shape), -2.0),
    ],
    ids=["outputs", "inputs", "both", "one number"],
)
@pytest.mark.parametrize(
    "shape", [(3, 3, 64, 700), (7, 7, 131, 48), (3, 3, 500, 3), (700, 900), (9, 5)]
)
def test_the_largest_numbers_are_those_of_the_whole_kernel(
    shape: tuple[int, ...], factor: Callable[[Any], Any], tmp_path: Path
) -> None:
    values = np.random.default_rng(0).normal(size=shape).astype("float32")
    layer = Layer(
        "conv",
        "Conv2D" if len(shape) == 4 else "Dense",
        {"use_bias": False},
        {},
        weights=(stored(tmp_path / "w.h5", values),),
    )
    effect = WeightEdit({"kernel": factor(shape)})
    (magnitude,) = (one.along(effect) for one in magnitudes(layer, [effect]))
    folded = np.abs(values.astype(np.float64) * effect.factors["kernel"])
    wide = effect.factors["kernel"].reshape(
        (1,) * (len(shape) - effect.factors["kernel"].ndim) + effect.factors["kernel"].shape
    )
    others = tuple(axis for axis, size in enumerate(wide.shape) if size == 1)
    assert np.allclose(magnitude.scaled, folded.max(axis=others), rtol=1e-15)
    assert np.array_equal(magnitude.before, np.abs(values).max(axis=others))


def test_a_large_kernel_takes_little_memory(tmp_path: Path) -> None:
    weight = stored(tmp_path / "w.h5", np.ones((3, 3, 1024, 1024), "float32"))  # 36 MiB
    assert isinstance(weight.read, hdf5.Stores)
    tracemalloc.start()
    largest = max(piece.max() for _, piece in weight.read.pieces(3))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert largest == 1
    assert peak < 4 << 20


def test_not_a_number_in_any_piece_is_seen(tmp_path: Path) -> None:
    values = np.ones((3, 3, 200, 300), "float32")
    values[2, 2, 199, 7] = np.nan
    layer = Layer("c", "Conv2D", {"use_bias": False}, {}, weights=(stored(tmp_path / "w", values),))
    (magnitude,) = magnitudes(layer, [WeightEdit({"kernel": np.ones(300)})])
    assert np.flatnonzero(np.isnan(magnitude.scaled.reshape(-1))).tolist() == [7]


def test_a_file_that_is_cut_off_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "w.h5"
    stored(path, np.ones((3, 3, 512, 512), "float32"))
    costs = Costs(path.stat().st_size)
    with path.open("rb", buffering=0) as stream, hdf5.open_hdf5(stream, "w.h5", costs) as file:
        weight = hdf5.weight_in(file.root, "0", "0")
        assert weight is not None
        assert isinstance(weight.read, hdf5.Stores)
        with path.open("r+b") as cut:
            cut.truncate(1 << 20)
        with pytest.raises(UnreadableModelError, match="is damaged"):
            list(weight.read.pieces(3))


@pytest.mark.parametrize(("dtype", "digits"), [("bfloat16", 8), ("float16", 11)])
def test_a_folded_number_is_rounded_once(dtype: str, digits: int) -> None:
    """Just above the middle of two numbers, where float32 sees the middle, and the even one."""
    kind = hdf5.bfloat16() if dtype == "bfloat16" else np.dtype(dtype)
    kernel = np.ones((1, 1)).astype(kind)
    weight = Weight(kernel.shape, kernel.dtype, lambda: kernel, "kernel")
    layer = Layer("dense", "Dense", {"use_bias": False}, {}, weights=(weight,))
    above = np.array([1 + 2.0**-digits + 2.0**-40])
    (folded,) = edited(layer, [WeightEdit({"kernel": above})]).weights or ()
    assert float(folded.read()[0, 0]) == 1 + 2.0 ** (1 - digits)
    change = BiasChange((1,), np.ones(1), lambda _: above)
    biased = WeightEdit(biases={"bias": change}, settings={"use_bias": True})
    _, bias = edited(layer, [biased]).weights or ()
    assert float(bias.read()[0]) == 1 + 2.0 ** (1 - digits)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["f4", "f2", ">f4", "f8"])
@pytest.mark.parametrize("shape", [(40, 30), (3, 2, 5, 7), (2, 50), (1, 1, 1, 9)])
@pytest.mark.few(8)
def test_a_kernel_is_written_in_pieces_as_it_would_be_as_a_whole(
    shape: tuple[int, ...],
    dtype: str,
    layout: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same bytes of the file, whatever is cut, and the numbers that float64 has."""
    values = np.random.default_rng(0).normal(size=shape).astype(dtype)
    factor = np.random.default_rng(1).normal(size=shape[-2:])
    old = stored(tmp_path / "w.h5", values, **LAYOUTS[layout])
    kind = "Conv2D" if len(shape) == 4 else "Dense"
    layer = Layer("layer", kind, {"use_bias": False}, {}, weights=(old,))
    (new,) = (
        edited(layer, [WeightEdit({"kernel": factor}), WeightEdit({"kernel": factor})]).weights
        or ()
    )
    files = []
    for size in (1 << 20, 4 * 11, 4):
        monkeypatch.setattr(hdf5, "PIECE_BYTES", size)
        with hdf5.new_file(tmp_path / "new.h5") as file:
            hdf5.write_weight(file, "0", new)
            hdf5.write_weight(file, "by name", new)
        files.append((tmp_path / "new.h5").read_bytes())
        with h5py.File(tmp_path / "new.h5") as file:
            for name in ("0", "by name"):
                found = file[name]
                assert isinstance(found, h5py.Dataset)
                assert found.dtype == dtype
                wanted = (values.astype("f8") * factor * factor).astype(dtype)
                assert np.array_equal(found[...], wanted)
    assert files[0] == files[1] == files[2]


@pytest.mark.parametrize(("layout", "most"), [({}, 24), ({"chunks": (3, 3, 64, 1024)}, 60)])
def test_a_large_kernel_is_folded_in_little_memory(
    layout: dict[str, Any], most: int, tmp_path: Path
) -> None:
    """One in one block as it is read, and one in chunks beside its own numbers."""
    values = np.ones((3, 3, 1024, 1024), "float32")  # 36 MiB
    weight = stored(tmp_path / "w.h5", values, **layout)
    layer = Layer("c", "Conv2D", {"use_bias": False}, {}, weights=(weight,))
    (new,) = edited(layer, [WeightEdit({"kernel": np.full(1024, 2.0)})]).weights or ()
    tracemalloc.start()
    with hdf5.new_file(tmp_path / "new.h5") as file:
        hdf5.write_weight(file, "0", new)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < most << 20  # what waits to be written is 16
    with h5py.File(tmp_path / "new.h5") as file:
        found = file["0"]
        assert isinstance(found, h5py.Dataset)
        assert np.all(found[...] == 2)


def test_what_is_measured_of_a_layer_is_put_by_channels_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not again when all folds are known, unless the layer has absorbed another one since."""
    asked = []
    by_channels = Magnitudes.along
    monkeypatch.setattr(Magnitudes, "along", lambda *one: asked.append(one) or by_channels(*one))
    with open_model(large.chain(20, tmp_path / "model.keras")) as model:
        decided = plan(model.graph)
    assert len(asked) == 2 * len(decided.folds) == 40  # a kernel and a bias
    for fold in decided.folds:
        (absorber,) = fold.absorbers
        assert [one.slot for one in absorber.magnitudes] == ["kernel", "bias"]
        assert absorber.magnitudes[0].scaled.shape == (large.WIDTH,)

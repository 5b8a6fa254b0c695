"""Tensors of any size that a file of some bytes may speak of, and the memory that a plan takes."""

import gc
import io
import tracemalloc

import h5py
import large
import pytest
from archives import entry, fill, keras_file, norm_arrays

from bnfold.errors import UnsafeModelError
from bnfold.jobs.fold import fold_file
from bnfold.jobs.inspect import inspect_file

MOST = 128 << 20
"""Bytes that a plan for one of these files may take at once."""

BOMBS = {
    "RepeatVector, then Flatten": [("RepeatVector", {"n": 1 << 30}), ("Flatten", {})],
    "RepeatVector of 2 ** 61": [("RepeatVector", {"n": 1 << 61}), ("Flatten", {})],
    "UpSampling": [
        ("Reshape", {"target_shape": [1, 1, large.WIDTH]}),
        ("UpSampling2D", {"size": [1 << 17, 1 << 17], "data_format": "channels_last"}),
        ("Reshape", {"target_shape": [-1]}),
    ],
    "Reshape to a long row": [("Reshape", {"target_shape": [1, 1 << 33]})],
}


def sequential(path, parts):
    layers = [entry("InputLayer", "x", batch_shape=[None, large.WIDTH])]
    layers += [
        entry(class_name, f"layer{number}", **settings)
        for number, (class_name, settings) in enumerate(parts)
    ]
    config = {"module": "keras", "class_name": "Sequential", "config": {"layers": layers}}
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        number = 0
        for class_name, _ in parts:
            if class_name == "BatchNormalization":
                end = f"_{number}" if number else ""
                fill(file.create_group(f"layers/batch_normalization{end}/vars"), norm_arrays())
                number += 1
    return keras_file(path, config=config, h5=stream.getvalue())


@pytest.mark.parametrize("bomb", BOMBS, ids=str)
@pytest.mark.parametrize("place", ["before", "after"])
def test_a_tensor_that_no_machine_can_hold_is_refused(tmp_path, bomb, place):
    norm = ("BatchNormalization", {"axis": -1})
    parts = [norm, *BOMBS[bomb]] if place == "before" else [*BOMBS[bomb], norm]
    path = sequential(tmp_path / "bomb.keras", parts)
    with pytest.raises(UnsafeModelError, match="numbers of an axis") as refused:
        inspect_file(path)
    assert "bomb.keras: " in str(refused.value)
    with pytest.raises(UnsafeModelError, match="numbers of an axis"):
        memory_of(path, tmp_path)


def test_a_concatenate_that_doubles_takes_little_memory(tmp_path):
    sketch = large.Sketch(states_shapes=False)
    last = sketch.norm(sketch.input())
    for _ in range(22):
        last = sketch.join("Concatenate", [last, last])
    path = sketch.write(tmp_path / "bomb.keras", [sketch.norm(last)])
    assert memory_of(path, tmp_path) < MOST
    (reason,) = {one.reason for one in inspect_file(path).plan.blocked[:1]}
    assert "more than 1048576 numbers" in reason


def test_a_file_that_states_wrong_sizes_is_read(tmp_path):
    sketch = large.Sketch()
    last = sketch.norm(sketch.input())
    for _ in range(27):
        last = sketch.join("Concatenate", [last, last])
    path = sketch.write(tmp_path / "bomb.keras", [sketch.norm(last)])
    reasons = [one.reason for one in inspect_file(path).plan.blocked]
    assert "other sizes than its output has" in reasons[-1]


def test_a_long_axis_that_a_model_may_have_is_read(tmp_path):
    parts = [("BatchNormalization", {"axis": -1}), ("RepeatVector", {"n": 1 << 28})]
    assert memory_of(sequential(tmp_path / "long.keras", parts), tmp_path) < MOST


def memory_of(path, folder):
    """The most bytes that Python and numpy hold at once while a file is inspected and folded.

    Nothing large is garbage that waits for a search.
    """
    gc.disable()
    tracemalloc.start()
    try:
        assert inspect_file(path).plan.blocked
        fold_file(path, folder / "out.keras", proof=None)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        gc.enable()

"""Models drawn from the whole catalogue, folded, and compared with the original in plain Keras.

A second oracle says of each what its folds may not have done, by the rules and not by the code.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from drawing import Drawn, build, models
from hypothesis import HealthCheck, Phase, assume, given, reject, seed, settings
from hypothesis.errors import UnsatisfiedAssumption
from oracle import LAYER_KINDS, violations
from support import (
    assert_same,
    difference,
    examine,
    fold_file,
    keras,
    load,
    outputs,
    samples,
    ways,
)
from tiers import some

from bnfold.folding.plan import Plan, plan
from bnfold.folding.rules import LAYERS
from bnfold.jobs.fold import describe_folds
from bnfold.model.container.model_file import open_model

pytestmark = pytest.mark.usefixtures("double")

RANDOM = ("Dropout", "Noise")


@contextmanager
def nothing_empty() -> Iterator[None]:
    """Reject a model in which an axis of unknown size is used up while it runs.

    What TensorFlow takes the mean of, or makes with a depthwise kernel one longer than the axis,
    is then whatever was in memory, and differs from run to run.
    """
    called = keras.layers.Layer.__call__

    def watched(layer: Any, *arguments: Any, **options: Any) -> Any:
        made = called(layer, *arguments, **options)
        tensors = keras.tree.flatten((arguments, made))
        if any(0 in getattr(one, "shape", ()) for one in tensors) or _overhangs(layer, tensors[0]):
            reject()
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keras.layers.Layer, "__call__", watched)
        yield


def _overhangs(layer: Any, tensor: Any) -> bool:
    """Whether the kernel of a depthwise convolution is longer than an axis without padding."""
    if "DepthwiseConv" not in type(layer).__name__ and "SeparableConv" not in type(layer).__name__:
        return False
    axes = tensor.shape[1:-1] if layer.data_format == "channels_last" else tensor.shape[2:]
    extents = zip(axes, layer.kernel_size, layer.dilation_rate, strict=True)
    return layer.padding == "valid" and any(n <= (k - 1) * d for n, k, d in extents)


def check(drawn: Drawn) -> Plan:
    """Fold the model; it computes the same, no rule is broken, and nothing is left to fold."""
    code = "\n".join(drawn.code)
    bare = "training=True" in code or "CenterCrop" in code or "Resizing" in code
    bare = bare and not any(word in code for word in RANDOM)
    allowed = 1e-9 if drawn.dtype == "float64" else 2e-3
    inputs = samples(drawn.model)
    with TemporaryDirectory() as folder:
        source, target = (Path(folder, f"{name}{drawn.form}") for name in ("original", "folded"))
        drawn.model.save(source)  # before a call with training=True moves the statistics
        with nothing_empty():
            expected = [outputs(drawn.model, inputs, **way) for way in ways(bare)]
        planned = fold_file(source, target)
        folded = load(target)
        assert violations(load(source), folded, describe_folds(planned)) == []
        assert_same(drawn.model, folded, inputs, expected, allowed, bare=bare)
        with open_model(target) as file:
            assert not plan(file.graph).folds
    return planned


def runs(drawn: Drawn) -> bool:
    """Whether Keras can run its own model, and loads what it saves: at times neither holds."""
    inputs = samples(drawn.model)
    try:
        with TemporaryDirectory() as folder:
            path = Path(folder, f"model{drawn.form}")
            drawn.model.save(path)
            again = outputs(load(path), inputs, training=False)
        return difference(outputs(drawn.model, inputs, training=False), again) < 1e-6
    except Exception:
        return False


def check_many(number: int, count: int) -> None:
    """Draw and check `count` different models; the same number always draws the same ones."""
    seen: set[str] = set()

    def run(drawn: Drawn) -> None:
        if repr(drawn) not in seen:
            try:
                check(drawn)
            except Exception:
                assume(runs(drawn))
                raise
            seen.add(repr(drawn))

    for turn in range(count):  # a few at a time, for hypothesis cannot be stopped
        if len(seen) < count:
            seed(1000 * number + turn)(SETTINGS(given(models())(run)))()
    assert len(seen) >= count


SETTINGS = settings(
    max_examples=20,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    print_blob=False,
    phases=[Phase.generate, Phase.shrink],
    report_multiple_bugs=False,
)


# One batch by default: each takes as long as a whole file of other tests.
@pytest.mark.parametrize("number", some(range(8), 8))
@pytest.mark.slow
def test_drawn_models(number: int) -> None:
    check_many(number, 8)


def test_the_oracle_knows_every_layer_that_a_map_crosses() -> None:
    """By name alone: what it does with a map, the oracle has from elsewhere."""
    crossed = {name for name, rule in LAYERS.items() if rule.backward or rule.forward}
    assert sorted(crossed - LAYER_KINDS.keys()) == [], "not in LAYER_KINDS of oracle.py"


@pytest.mark.slow
@pytest.mark.parametrize("number", range(100, 120))
def test_many_drawn_models(number: int) -> None:
    check_many(number, 250)


def test_a_model_that_runs_out_of_numbers_is_not_compared() -> None:
    inputs = keras.Input((None, 4))
    short = keras.layers.SeparableConv1D(4, 2)(inputs)
    model = keras.Model(inputs, keras.layers.BatchNormalization()(short, training=True))
    with nothing_empty():
        outputs(model, np.ones((3, 2, 4)))
        for short in (np.ones((3, 1, 4)), np.ones((3, 1, 4), "float32")):
            with pytest.raises(UnsatisfiedAssumption):
                outputs(model, short)


# --- what drawn models have found -----------------------------------------------------------------

# Without bn_36, bn_33 would be as deep as bn_14, and run after it.
ORDER_OF_TRAINING = """
i1 = keras.Input((4,), name='i1')
l3 = BN(axis=-1, epsilon=0.001, name='bn_2')
t4 = l3(i1)
l6 = L.Dense(4)
t7 = l6(i1)
l8 = L.ReLU()
t9 = l8(t7)
l10 = BN(axis=-1, epsilon=0.001, name='bn_5')
t11 = l10(t9)
l12 = L.Dense(3)
t13 = l12(t11)
l15 = BN(axis=-1, epsilon=0.001, name='bn_14')
t16 = l15(t13, training=True)
i17 = keras.Input((3,), name='i17')
i18 = keras.Input((3,), name='i18')
l19 = L.ReLU()
t20 = l19(i17)
l22 = BN(axis=-1, epsilon=0.001, name='bn_21')
t23 = l22(i17)
m24 = keras.Model([i17, i18], [t20, t23], name='m24')
m24_made = m24([t16, t13])
t25 = keras.tree.flatten(m24_made)[0]
t26 = keras.tree.flatten(m24_made)[1]
m24_made = m24([t26, t13])
t27 = keras.tree.flatten(m24_made)[0]
t28 = keras.tree.flatten(m24_made)[1]
t29 = L.Add()([i1, t11])
l31 = BN(axis=-1, epsilon=0.001, name='bn_30')
t32 = l31(i1)
l34 = BN(axis=-1, epsilon=0.001, name='bn_33')
t35 = l34(i1)
l37 = BN(axis=-1, epsilon=0.001, name='bn_36', trainable=False)
t38 = l37(t35)
l39 = L.Dense(4)
t40 = l39(t38)
model = keras.Model(i1, [t4, t25, t27, t28, t29, t32, t40], name='model')
"""


def test_a_fold_lets_no_layer_run_after_one_in_training_mode(tmp_path: Path) -> None:
    model = build(ORDER_OF_TRAINING.splitlines())
    examine(model, tmp_path, left=None, reason="another mode", forms=[".keras"], bare=True)

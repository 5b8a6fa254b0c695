"""What a file tells of the optimizer that trained a model."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from bnfold.model.graph import Weight, finite_number
from bnfold.model.identity import is_keras_class

_BOUNDED = frozenset({"Adam", "AdamW", "Adamax", "Nadam"})

_AVERAGING = frozenset({"MovingAverage", "SWA"})
"""The wrappers of TensorFlow Addons that keep averages of the weights."""


class Averaging(NamedTuple):
    """The moving averages that an optimizer keeps of the weights, as its config tells.

    Attributes:
        momentum: the share of the old average that a step keeps; None where the config has none.
        every: after how many steps the averages are put in the place of the weights, over and over;
            None where that is done only when training ends.
    """

    momentum: float | None
    every: float | None

    @property
    def span(self) -> float | None:
        """Over how many steps it averages; None where that is not told."""
        if self.momentum is None or not 0 <= self.momentum < 1:
            return None
        return min(1 / (1 - self.momentum), self.every or math.inf)

    @property
    def is_idle(self) -> bool:
        """Whether every training step runs with the averages, so that nothing differs from them."""
        return self.momentum == 0 or self.every == 1


class Optimizer(NamedTuple):
    """The optimizer of one compiled model.

    Attributes:
        entry: what its config in the file is; None where there is none.
        steps: how many steps it has made; None where the file does not tell.
        variables: all its variables, found when they are asked for.
    """

    entry: Any
    steps: int | None
    variables: Callable[[], Iterator[Weight]]

    @property
    def stride(self) -> float | None:
        """The most that one step moves a weight; None where that is unbounded or not told."""
        return stride(self.entry)

    @property
    def averaging(self) -> Averaging | None:
        """The averages that it keeps, or one of the optimizers inside it; None for none."""
        return _averaging(self.entry)


def stride(entry: Any) -> float | None:
    """The most that one step moves a weight, None where that is unbounded or not told.

    Adam and its kin divide the mean gradient by the root of the mean square, so that a step is at
    most max(1, (1 - beta_1) / sqrt(1 - beta_2)) times the learning rate: Kingma and Ba, Adam,
    section 2.1 <https://arxiv.org/abs/1412.6980>. `entry` is the optimizer as a file has it; the
    rate is the last one, if a schedule of one's own changed it.
    """
    config = entry.get("config") if isinstance(entry, dict) else None
    if not isinstance(config, dict):
        return None
    if "inner_optimizer" in config:  # a LossScaleOptimizer
        return stride(config["inner_optimizer"])
    # Keras 2.11 to 2.15 write their own as `Custom>Adam` into HDF5 files.
    name = str(entry.get("class_name")).removeprefix("Custom>")
    if not is_keras_class({**entry, "class_name": name}) or name not in _BOUNDED:
        return None
    rate = finite_number(config.get("learning_rate", config.get("lr")))
    first, second = (finite_number(config.get(name)) for name in ("beta_1", "beta_2"))
    if rate is None or first is None or second is None or not (0 <= first < 1 and 0 <= second < 1):
        return None
    return abs(rate) * max(1.0, (1 - first) / math.sqrt(1 - second))


def _averaging(entry: Any) -> Averaging | None:
    """The first averages that a config speaks of, at any depth.

    Optimizers stand in others: in a LossScaleOptimizer, a MultiOptimizer, a wrapper of TensorFlow
    Addons.
    """
    waiting = [entry]
    while waiting:
        one = waiting.pop()
        if isinstance(one, list):
            waiting += one
        if not isinstance(one, dict):
            continue
        config, name = one.get("config"), one.get("class_name")
        if isinstance(config, dict) and config.get("use_ema"):
            momentum = finite_number(config.get("ema_momentum", 0.99))
            return Averaging(momentum, finite_number(config.get("ema_overwrite_frequency")))
        if isinstance(config, dict) and str(name).rpartition(">")[2] in _AVERAGING:
            return Averaging(finite_number(config.get("average_decay")), None)
        waiting += one.values()
    return None

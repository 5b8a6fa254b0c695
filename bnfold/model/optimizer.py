"""What the config of an optimizer tells of its steps."""

import math
from typing import Any

from bnfold.model.graph import finite_number

_BOUNDED = frozenset({"Adam", "AdamW", "Adamax", "Nadam"})


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
    name = entry.get("class_name")
    # Keras 2.11 to 2.15 write their own as `Custom>Adam` into HDF5 files.
    if not isinstance(name, str) or name.removeprefix("Custom>") not in _BOUNDED:
        return None
    rate = finite_number(config.get("learning_rate", config.get("lr")))
    first, second = (finite_number(config.get(name)) for name in ("beta_1", "beta_2"))
    if rate is None or first is None or second is None or not (0 <= first < 1 and 0 <= second < 1):
        return None
    return abs(rate) * max(1.0, (1 - first) / math.sqrt(1 - second))

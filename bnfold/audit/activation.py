"""Whether the output of a BatchNormalization goes into a ReLU, in any of its forms.

A ReLU is max(x, 0), or min(max(x, 0), cap). It is written as the layer ReLU, as an Activation of
"relu" or "relu6" or of a ReLU layer, as an operation of keras.ops, or as maximum(x, 0) or
clip(x, 0, cap). Forms with a slope or a threshold other than 0 do not count, and neither does a
function that the config holds as an object, which may be custom.

Between the two may be layers that do nothing at inference (the Dropout family and noise, unless
called in training mode; Identity, a linear Activation) and layers that only rearrange numbers or
pad with zeros, because a ReLU is elementwise. Pooling is not looked through, because it changes the
distribution of the numbers.
"""

import math
from collections.abc import Callable, Mapping, Sequence

from bnfold.audit.flow import Flow
from bnfold.audit.neighbours import Place
from bnfold.model import inbound_nodes
from bnfold.model.graph import Layer, finite_number
from bnfold.model.identity import is_keras_layer
from bnfold.model.layers import facts
from bnfold.model.modes import trains
from bnfold.model.program import Call

Caps = frozenset[float]
"""Where the ReLUs after a layer cut off, infinity for one without a cap."""


def relus_after(place: Place) -> Caps | None:
    """The ReLUs that a layer's output goes into; None where some of it goes elsewhere."""
    return _all_of([_RELUS.beside(call, place.memo) for call in place.calls])


def _all_of(found: Sequence[Caps | None]) -> Caps | None:
    caps = [one for one in found if one]
    return frozenset().union(*caps) if caps and len(caps) == len(found) else None


def _passes(call: Call) -> bool:
    layer = call.layer
    if not call.is_known:
        return False
    if layer.class_name == "Activation" and layer.config.get("activation") == "linear":
        return True
    happens = facts(layer).at_inference
    return happens == "moves" or (happens == "nothing" and not trains(call))


def cap_of(call: Call) -> float | None:
    """Where the ReLU that a call is cuts off, infinity without a cap; None where it is no ReLU."""
    layer = call.layer
    form = _FORMS.get(layer.class_name) if call.is_known else None
    return form(call, layer) if form is not None else None


def _from_settings(call: Call, layer: Layer) -> float | None:
    config = layer.config
    slope, threshold = (_number(config.get(name, 0)) for name in ("negative_slope", "threshold"))
    if slope != 0 or threshold != 0:
        return None
    if config.get("max_value") is None:
        return math.inf
    cap = _number(config["max_value"])
    return None if cap is None or cap <= 0 else cap


def _from_activation(call: Call, layer: Layer) -> float | None:
    activation = layer.config.get("activation")
    if isinstance(activation, dict):
        config = activation.get("config")
        is_layer = activation.get("class_name") == "ReLU" and is_keras_layer(activation)
        if not is_layer or not isinstance(config, dict):
            return None
        return _from_settings(call, Layer("relu", "ReLU", config, activation))
    return _NAMED.get(activation) if isinstance(activation, str) else None


def _from_function(call: Call, layer: Layer) -> float | None:
    function = layer.config.get("function")
    return _NAMED.get(function.removeprefix("nn.")) if isinstance(function, str) else None


def _from_maximum(call: Call, layer: Layer) -> float | None:
    constants = [value for value in inbound_nodes.operands(call.written.node) if value is not None]
    return math.inf if layer.is_operation and constants == [0] else None


def _from_slope(call: Call, layer: Layer) -> float | None:
    slope = layer.config.get("negative_slope", layer.config.get("alpha"))  # the latter in Keras 2
    return math.inf if slope is not None and _number(slope) == 0 else None


def _from_bounds(call: Call, layer: Layer) -> float | None:
    low, high = (layer.config.get(name) for name in ("x_min", "x_max"))
    if not layer.is_operation or low is None or high is None or _number(low) != 0:
        return None
    cap = _number(high)
    return None if cap is None or cap <= 0 else cap


_NAMED: Mapping[str, float] = {"relu": math.inf, "relu6": 6.0}

_FORMS: Mapping[str, Callable[[Call, Layer], float | None]] = {
    "ReLU": _from_settings,
    "LeakyReLU": _from_slope,
    "Activation": _from_activation,
    "Relu": lambda call, layer: math.inf,
    "Relu6": lambda call, layer: 6.0,
    "Maximum": _from_maximum,
    "Clip": _from_bounds,
    "TFOpLambda": _from_function,  # tf.nn.relu in a model of Keras 2
}


def _number(value: object) -> float | None:
    """A setting, which Keras 2 may write as an array of one number."""
    if isinstance(value, dict) and value.get("class_name") == "__numpy__":
        config = value.get("config")
        value = config.get("value") if isinstance(config, dict) else None
    return 0.0 if value is None else finite_number(value)


def _own_cap(call: Call) -> Caps | None:
    cap = cap_of(call)
    return None if cap is None else frozenset({cap})


_RELUS = Flow[Caps](
    neighbours=Call.uses,
    passes=lambda call: cap_of(call) is None and _passes(call),
    own=_own_cap,
    join=_all_of,
)

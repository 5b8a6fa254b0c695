"""The graph of a loaded Keras model, for Keras 3 and tf_keras alike.

All names of Keras that are not public are in this file, so that another version of Keras is looked
after here. Everything reads attributes of Keras objects and imports nothing of Keras. Keras 3 calls
the owner of a node `operation`, tf_keras calls it `layer`.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from bnfold.model.layers import BATCHNORM_CLASSES

REARRANGING = {"Reshape", "Flatten", "Permute"}
PASSED_OVER = {"Identity", "Dropout", "Activation"} | REARRANGING


class Origin(NamedTuple):
    """Where a tensor comes from: the layer, the number of its call, and which of its outputs."""

    layer: Any
    call: int
    output: int


def use_home(folder: str) -> None:
    """Have Keras keep downloads in this folder, wherever its settings were looked for."""
    config: Any = sys.modules.get("keras.src.backend.config")
    if hasattr(config, "_KERAS_DIR"):
        config._KERAS_DIR = folder


def custom_objects(library: Any) -> dict[str, Any]:
    """What is registered with Keras, or tf_keras, and what the custom object scopes of here add."""
    if library.__name__ == "keras":
        state = sys.modules["keras.src.backend.common.global_state"]
        scope = state.get_global_attribute("custom_objects_scope_dict") or {}
    else:
        registration = sys.modules[f"{library.__name__}.src.saving.object_registration"]
        scope = vars(registration._THREAD_LOCAL_CUSTOM_OBJECTS)
    return {**library.saving.get_custom_objects(), **scope}


def origin_of(tensor: Any) -> Origin:
    """Where a tensor of a graph comes from."""
    layer, call, output = tensor._keras_history
    return Origin(layer, int(call), int(output))


def maker_of(tensor: Any) -> Any:
    """The call that makes a tensor."""
    origin = origin_of(tensor)
    return calls_of(origin.layer)[origin.call]


def calls_of(layer: Any) -> list[Any]:
    """All calls of a layer or operation, in any graph."""
    return list(layer._inbound_nodes)


def layers_of(model: Any) -> list[Any]:
    """A model and all layers in it, the outer before the inner."""
    return list(model._flatten_layers())


def mask_of(tensor: Any) -> Any:
    """The mask that a tensor carries; None without one."""
    return getattr(tensor, "_keras_mask", None)


def held_by(variable: Any) -> Any:
    """The variable of TensorFlow that a variable of a model is, or has in it as in Keras 3."""
    return getattr(variable, "_value", variable)


def takes_training(owner: Any) -> bool:
    """Whether a layer can be told to run in training mode."""
    return bool(getattr(owner, "_call_has_training_arg", False))


def nested(model: Any, side: str) -> Any:
    """The "inputs" or "outputs" in the structure they were defined in; Keras 3 and 2 differ."""
    graph = graph_of(model) or model
    return getattr(
        graph, f"_{side}_struct", getattr(graph, f"_nested_{side}", getattr(graph, side))
    )


def dtype_name(tensor: Any) -> str:
    """Return the dtype as plain text, whether it is a string or a TensorFlow DType."""
    return str(getattr(tensor.dtype, "name", tensor.dtype))


def owner_of(node: Any) -> Any:
    """The layer or operation that a node is a call of."""
    return node.operation if hasattr(node, "operation") else node.layer


def inputs_of(node: Any) -> list[Any]:
    """The tensors that a call reads."""
    if hasattr(node, "operation"):
        return list(node.input_tensors)
    return list(node.keras_inputs)


def outputs_of(node: Any) -> list[Any]:
    """The tensors that a call makes."""
    outputs = node.outputs
    return list(outputs) if isinstance(outputs, (list, tuple)) else leaves(outputs)


def is_of_keras_3(node: Any) -> bool:
    """Whether a node keeps the arguments of its call as Keras 3 does."""
    return hasattr(node, "arguments")


def arguments_of(node: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a call is given, with tensors of the graph."""
    if is_of_keras_3(node):
        return tuple(node.arguments.args), dict(node.arguments.kwargs)
    return tuple(getattr(node, "call_args", ())), dict(getattr(node, "call_kwargs", {}))


def filled_in(
    node: Any, values: Mapping[int, Any], *, inference: bool = False
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a call is given, with other values in the place of tensors, by their ids.

    With `inference` the call is told so, where its layer can be told.
    """
    if is_of_keras_3(node):
        args, kwargs = node.arguments.fill_in(values)
    else:  # tf_keras takes each tensor off a list of copies
        copies = len(node.flat_input_ids)
        args, kwargs = node.map_arguments({str(k): [one] * copies for k, one in values.items()})
    if inference and takes_training(owner_of(node)):
        kwargs = {**kwargs, "training": False}  # Keras lets that of the model around it win
    return args, kwargs


def leaves(value: Any) -> list[Any]:
    """The tensors in a structure of lists and dictionaries, in the order in which Keras counts."""
    if isinstance(value, dict):
        return [leaf for key in sorted(value) for leaf in leaves(value[key])]
    if isinstance(value, (list, tuple)):
        return [leaf for one in value for leaf in leaves(one)]
    return [value]


def graph_of(model: Any) -> Any:
    """Return the functional graph of a model, which Keras 3 keeps beside a Sequential, or None."""
    inner = getattr(model, "_functional", None)
    graph = model if inner is None else inner
    return graph if hasattr(graph, "_nodes_by_depth") else None


def nodes_of(graph: Any) -> list[Any]:
    """All calls of a graph."""
    return [node for level in graph._nodes_by_depth.values() for node in level]


def in_order(graph: Any) -> Iterator[Any]:
    """The calls of a graph, each after those that make its inputs; not those of input layers."""
    for depth in sorted(graph._nodes_by_depth, reverse=True):
        yield from (node for node in graph._nodes_by_depth[depth] if not node.is_input)


def bytes_per_sample(model: Any, free_size: int) -> int:
    """About what all values of a model take for one sample, each free size being `free_size`."""
    graph = graph_of(model)
    total = 0
    for node in nodes_of(graph) if graph is not None else ():
        shapes = (tensor.shape[1:] for tensor in outputs_of(node))
        total += sum(4 * math.prod(n or free_size for n in shape) for shape in shapes)
        total += bytes_per_sample(owner_of(node), free_size)
    return total


def sets_training(model: Any) -> bool:
    """Whether a call in the model, nested ones included, may put it into training mode.

    A call says so itself, or its layer takes training=True by default, or is one of the user's.
    """
    graph = graph_of(model)
    if graph is None:
        return True
    return any(_sets_training(node) for node in nodes_of(graph))


def _sets_training(node: Any) -> bool:
    owner = owner_of(node)
    if not is_of_keras_3(node) or arguments_of(node)[1].get("training"):
        return True
    if graph_of(owner) is not None:
        return sets_training(owner)
    own = not type(owner).__module__.startswith(("keras.", "tf_keras."))
    parameters = inspect.signature(owner.call).parameters
    default = parameters["training"].default if "training" in parameters else None
    inner = getattr(owner, "layer", None)
    return own or default is True or (inner is not None and graph_of(inner) is not None)


def batch_normalizations_in_training(model: Any) -> list[str]:
    """The nested names of those that are called with training=True, once for each call.

    They use the statistics of the batch instead of their own, unless they are frozen.
    """
    graph = graph_of(model)
    return [] if graph is None else list(_in_training(graph, "", inherited=False))


def _in_training(graph: Any, around: str, *, inherited: bool) -> Iterator[str]:
    for node in nodes_of(graph):
        owner = owner_of(node)
        said = arguments_of(node)[1].get("training")
        mode = inherited if said is None else bool(said)
        inner = graph_of(owner)
        if inner is not None:
            yield from _in_training(inner, f"{around}{owner.name}/", inherited=mode)
        elif mode and type(owner).__name__ in BATCHNORM_CLASSES and owner.trainable:
            yield f"{around}{owner.name}"

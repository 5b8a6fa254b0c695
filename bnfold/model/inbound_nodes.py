"""How a config writes tensors down: every dialect of `inbound_nodes` and `output_layers`.

Keras 3 writes a call as `{"args": [...], "kwargs": {...}}` with `__keras_tensor__` objects in it,
Keras 2 as nested lists of `[layer, call, output, kwargs]` in which any kwarg can be a `[layer,
call, output]` again. Both number the calls of a nested model with an offset of their own, which
`Numbering` knows; the rest of bnfold sees only `Ref`.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from bnfold.errors import UnreadableModelError
from bnfold.model.container.printing import shortened
from bnfold.model.graph import Call, Json, Numbering, Ref
from bnfold.model.identity import is_keras_layer
from bnfold.model.shape_rules import is_shape

CONSTANT = "_CONSTANT_VALUE"
"""What Keras 2 writes for the layer where a call's first argument is no tensor."""


def numbering(entries: Mapping[str, Json], outputs: Any) -> Numbering:
    """How a config counts calls, from its layers' entries by name and its `output_layers`."""
    nested = {name: _model_kind(entry) for name, entry in entries.items()}
    if any(is_keras3(node) for entry in entries.values() for node in calls_of(entry)):
        return Numbering(
            in_calls=dict.fromkeys(entries, 0),
            in_outputs={name: int(kind == "functional") for name, kind in nested.items()},
        )
    # Keras 2. A nested model that was never built on its own has no call 0 of its own; a reference
    # to call 0 tells.
    lowest = _lowest_calls(entries, outputs)
    first = {
        name: int(kind is not None and lowest.get(name, 0) >= 1) for name, kind in nested.items()
    }
    return Numbering(in_calls=first, in_outputs=first)


def calls_of(entry: Json) -> list[Any]:
    """The calls of a layer as its entry lists them, in one shape for all dialects."""
    nodes = entry.get("inbound_nodes") or []
    if not isinstance(nodes, list):
        raise UnreadableModelError("a layer's inbound_nodes are not a list")
    return nodes


def _model_kind(entry: Json) -> str | None:
    config = entry.get("config")
    if isinstance(config, dict) and "input_layers" in config and "layers" in config:
        return "functional"
    if not is_keras_layer(entry):
        return "unknown"  # it may be a model
    return "sequential" if entry["class_name"] == "Sequential" else None


def _lowest_calls(entries: Mapping[str, Json], outputs: Any) -> dict[str, int]:
    lowest: dict[str, int] = {}

    def note(triple: list[Any]) -> list[Any]:
        lowest[triple[0]] = min(triple[1], lowest.get(triple[0], triple[1]))
        return triple

    for entry in entries.values():
        for node in calls_of(entry):
            map_tensors(node, note, entries)
    map_structure(outputs, note)
    return lowest


Visit = Callable[[list[Any]], list[Any]]


def map_tensors(node: Any, visit: Visit, names: Iterable[str]) -> Any:
    """The same call with every `[layer, call, output]` replaced by what `visit` makes of it.

    Tensors are visited in the order in which Keras flattens the arguments (dictionaries by sorted
    key), which is the order that decides how Keras walks the graph.
    """
    if is_keras3(node):
        return _map_keras3(node, visit)
    return _map_keras2(node, visit, names)


def is_keras3(node: Any) -> bool:
    """Keras 2 has objects too: the call of a nested model with a dictionary, by its keys."""
    return isinstance(node, dict) and isinstance(node.get("kwargs"), dict)


def _map_keras3(value: Any, visit: Visit) -> Any:
    if isinstance(value, list):
        return [_map_keras3(item, visit) for item in value]
    if not isinstance(value, dict):
        return value
    if value.get("class_name") == "__keras_tensor__":
        config = value.get("config")
        if not isinstance(config, dict) or config.get("keras_history") is None:
            return value
        _refuse_shape(config)
        history = visit(_triple(config["keras_history"]))
        return {**value, "config": {**config, "keras_history": history}}
    changed = {key: _map_keras3(value[key], visit) for key in sorted(value)}
    return {key: changed[key] for key in value}


def _visit_keras3(value: Any, visit: Visit) -> None:
    """Visit as `_map_keras3` does, and make nothing."""
    if isinstance(value, list):
        for item in value:
            _visit_keras3(item, visit)
    elif isinstance(value, dict):
        if value.get("class_name") == "__keras_tensor__":
            config = value.get("config")
            if isinstance(config, dict) and config.get("keras_history") is not None:
                _refuse_shape(config)
                visit(_triple(config["keras_history"]))
        else:
            for key in sorted(value):
                _visit_keras3(value[key], visit)


def _refuse_shape(config: Json) -> None:
    """Refuse what Keras could not read as a tensor's shape, whether or not it is ever asked for."""
    listed = config.get("shape")
    if isinstance(listed, list) and isinstance(config.get("dtype"), str) and not is_shape(listed):
        raise UnreadableModelError(
            f"the config gives a tensor the shape {shortened(json.dumps(listed), 60)}"
        )


def _map_keras2(value: Any, visit: Visit, names: Iterable[str]) -> Any:
    if isinstance(value, list):
        if _is_tensor(value, names):
            return _map_keras2_tensor(value, visit, names)
        return [_map_keras2(item, visit, names) for item in value]
    if isinstance(value, dict):
        changed = {key: _map_keras2(value[key], visit, names) for key in sorted(value)}
        return {key: changed[key] for key in value}
    return value


def _map_keras2_tensor(value: list[Any], visit: Visit, names: Iterable[str]) -> list[Any]:
    head = value[:3] if value[0] == CONSTANT else visit(_triple(value[:3]))
    return head + [_map_keras2(kwargs, visit, names) for kwargs in value[3:]]


def _is_tensor(value: list[Any], names: Iterable[str]) -> bool:
    return (
        len(value) in (3, 4)
        and isinstance(value[0], str)
        and (value[0] in names or value[0] == CONSTANT)
        and isinstance(value[1], int)
        and (isinstance(value[2], int) or value[0] == CONSTANT)
        and (len(value) == 3 or isinstance(value[3], dict))
    )


def _triple(value: Any) -> list[Any]:
    if (
        isinstance(value, list)
        and len(value) == 3
        and isinstance(value[0], str)
        and all(type(number) is int for number in value[1:])
    ):
        return value
    raise UnreadableModelError(f"the config names a tensor as {shortened(str(value)[:60])}")


def map_structure(structure: Any, visit: Visit) -> Any:
    """`input_layers` or `output_layers` with every tensor replaced, in flattening order."""
    if isinstance(structure, dict):
        changed = {key: map_structure(structure[key], visit) for key in sorted(structure)}
        return {key: changed[key] for key in structure}
    if not isinstance(structure, list):
        raise UnreadableModelError("the config's inputs or outputs are in no known form")
    if len(structure) == 3 and isinstance(structure[0], str):
        return visit(_triple(structure))
    return [map_structure(item, visit) for item in structure]


def flatten(structure: Any) -> list[list[Any]]:
    """The tensors of `input_layers` or `output_layers`, in the order of Keras."""
    found: list[list[Any]] = []

    def note(triple: list[Any]) -> list[Any]:
        found.append(triple)
        return triple

    map_structure(structure, note)
    return found


def parse_call(node: Any, count: Numbering, *, positional: bool) -> Call:
    """One entry of `inbound_nodes` as a `Call`.

    With `positional` the second and third argument are training and mask, as for models.

    Raises:
        UnreadableModelError: the node is in no known dialect, or names a tensor that is not there.
    """
    inputs: list[Ref] = []

    def note(triple: list[Any]) -> list[Any]:
        inputs.append(count.decode(triple))
        return triple

    if is_keras3(node):
        _visit_keras3(node, note)
        arguments = _keras3_arguments(node, positional=positional)
    else:
        leaves = list(_keras2_tensors(node, count.in_calls))
        for leaf in leaves:
            if leaf[0] != CONSTANT:
                note(_triple(leaf[:3]))
        # Keras 2 repeats the call's kwargs after each tensor of the first argument; they count
        # once.
        arguments = next((leaf[3] for leaf in leaves if len(leaf) == 4), {})
        _map_keras2(arguments, note, count.in_calls)
    mask = arguments.get("mask")
    if isinstance(mask, (list, dict)):  # one for each of several inputs
        masks = mask.values() if isinstance(mask, dict) else mask
        mask = mask if any(masks) else None
    return Call(tuple(inputs), node, arguments.get("training"), mask)


def _keras3_arguments(node: Json, *, positional: bool) -> Json:
    args, kwargs = node.get("args"), node.get("kwargs")
    if not isinstance(args, list) or not isinstance(kwargs, dict):
        raise UnreadableModelError("a layer's call has no args or kwargs")
    named: Json = dict(zip(("training", "mask"), args[1:3] if positional else (), strict=False))
    return named | kwargs


def _keras2_tensors(value: Any, names: Iterable[str]) -> Iterator[list[Any]]:
    if isinstance(value, list):
        if _is_tensor(value, names):
            yield value
            return
        for item in value:
            yield from _keras2_tensors(item, names)
    elif isinstance(value, dict):
        for key in sorted(value):
            yield from _keras2_tensors(value[key], names)


def without_arguments(node: Any) -> Any:
    """The same call with nothing but its first argument."""
    if is_keras3(node):
        first = node["args"][:1] or [node["kwargs"].get("inputs")]
        return {**node, "args": first, "kwargs": {}}
    if isinstance(node, dict):
        return {key: without_arguments(value) for key, value in node.items()}
    if isinstance(node, list) and len(node) == 4 and isinstance(node[3], dict):
        return [*node[:3], {}]
    return [without_arguments(item) for item in node] if isinstance(node, list) else node


def with_training(node: Any, training: bool) -> Any:
    """The same call with this for its `training`, which is its second argument if not named."""
    if is_keras3(node):
        named = _keras3_arguments(node, positional=True) | {"training": training}
        return {**node, "args": node["args"][:1], "kwargs": named}
    if isinstance(node, dict):
        return {key: with_training(value, training) for key, value in node.items()}
    if isinstance(node, list) and len(node) in {3, 4} and isinstance(node[0], str):
        return [*node[:3], {**(node[3] if len(node) == 4 else {}), "training": training}]
    return [with_training(item, training) for item in node] if isinstance(node, list) else node


def tensor_shapes(node: Any) -> Iterator[tuple[list[Any], tuple[int | None, ...], str]]:
    """The tensors of a Keras 3 call as (`[layer, call, output]`, shape, dtype)."""
    if isinstance(node, list):
        for item in node:
            yield from tensor_shapes(item)
    elif isinstance(node, dict):
        config = node.get("config")
        if node.get("class_name") == "__keras_tensor__" and isinstance(config, dict):
            listed, dtype = config.get("shape"), config.get("dtype")
            history = config.get("keras_history")
            if isinstance(listed, list) and isinstance(dtype, str) and history is not None:
                _refuse_shape(config)
                yield _triple(history), tuple(listed), dtype
            return
        for value in node.values():
            yield from tensor_shapes(value)


def leading(node: Any, names: Iterable[str]) -> int:
    """How many tensors the first argument of a call holds, in either dialect.

    They come first among the call's inputs. Not one is counted where the first argument was given
    by name or is no tensor.
    """
    found = 0

    def note(triple: list[Any]) -> list[Any]:
        nonlocal found
        found += 1
        return triple

    if isinstance(node, dict) and isinstance(node.get("args"), list):
        _visit_keras3(node["args"][:1], note)
        return found
    leaves = list(_keras2_tensors(node, names))
    return 0 if any(leaf[0] == CONSTANT for leaf in leaves) else len(leaves)


def keys_of_first(node: Any) -> tuple[str, ...] | None:
    """The keys of the first argument of a call, where that is a dictionary; () where it is not.

    None for a dictionary of anything but tensors.
    """
    first = node["args"][:1] if isinstance(node, dict) and node.get("args") else node
    while isinstance(first, list):
        first = first[0] if first else None
    if not isinstance(first, dict) or _is_keras3_tensor(first):
        return ()
    return tuple(first) if all(map(_is_keras3_tensor, first.values())) else None


def mixes_constants(node: Any) -> bool:
    """Whether a list that a call is given holds tensors and something else beside them."""
    if not is_keras3(node):
        return False
    lists = [
        value for value in (*node["args"], *node["kwargs"].values()) if isinstance(value, list)
    ]
    kinds = [{_is_keras3_tensor(leaf) for leaf in found} for found in lists]
    return any(len(kind) > 1 for kind in kinds)


def operands(node: Any) -> tuple[Any, ...]:
    """What an operation is given by position: a number, None for a tensor, else what stands there.

    A slice whose bounds are tensors stands there whole.
    """
    if not isinstance(node, dict) or not isinstance(node.get("args"), list):
        return ()
    return tuple(None if _is_keras3_tensor(value) else value for value in node["args"])


def _is_keras3_tensor(value: Any) -> bool:
    return isinstance(value, dict) and value.get("class_name") == "__keras_tensor__"

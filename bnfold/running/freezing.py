"""Converting with tf2onnx in half the time and memory: what is written is the same, byte for byte.

tf2onnx has TensorFlow freeze a function into a graph with the weights as constants, import that
graph to read back what it was made of, optimise it, import it anew, and then walks over it several
times, with a copy of every constant each time. Here the graph is optimised as TensorFlow freezes
it, and afterwards its large constants are kept aside: tf2onnx asks for their content where it needs
it, as it does for models of more than 2 GiB.

This calls functions of TensorFlow and tf2onnx that are not public. Where anything in it goes wrong,
tf2onnx does as it always does.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from bnfold.running.arrays import ROUNDINGS
from bnfold.running.libraries import imported

_LARGE = 4096
"""From how many bytes on a constant is kept aside. No shape is of floats, nor as long."""

_CHANGING = threading.RLock()
"""Held while functions of tf2onnx are others: one thread must not put back what another has put."""


@contextlib.contextmanager
def aside() -> Iterator[None]:
    """While this lasts, what this thread converts with tf2onnx has its weights kept aside."""
    with _CHANGING:
        yield from _aside()


def _aside() -> Iterator[None]:
    loader, convert = imported("tf2onnx.tf_loader"), imported("tf2onnx.convert")
    here, contents = threading.get_ident(), dict[str, bytes]()
    freeze, process = loader.from_function, convert.process_tf_graph

    @functools.wraps(freeze)
    def frozen(func: Any, inputs: Any, outputs: Any, *rest: Any, **more: Any) -> Any:
        if threading.get_ident() != here:
            return freeze(func, inputs, outputs, *rest, **more)
        contents.clear()
        try:
            graph = _frozen(loader, func, inputs, outputs)
        except Exception:  # functions that are not public may do anything
            return freeze(func, inputs, outputs, *rest, **more)
        contents.update(_taken(graph))
        return graph

    @functools.wraps(process)
    def processed(graph: Any, *rest: Any, **more: Any) -> Any:
        if threading.get_ident() == here and contents:
            more["const_node_values"] = contents
        return process(graph, *rest, **more)

    loader.from_function, convert.process_tf_graph = frozen, processed
    try:
        yield
    finally:
        loader.from_function, convert.process_tf_graph = freeze, process


def _frozen(loader: Any, function: Any, inputs: Sequence[str], outputs: Sequence[str]) -> Any:
    """The graph of a function with constants for its variables, optimised as tf2onnx does."""
    import tensorflow  # noqa: PLC0415

    freezing = importlib.import_module("tensorflow.python.framework.convert_to_constants")
    variables = freezing._FunctionConverterDataInEager(
        func=function, lower_control_flow=False, aggressive_inlining=True
    )
    graph, _ = freezing._replace_variables_by_constants(converter_data=variables)
    is_resource = {one.name: one.dtype == tensorflow.resource for one in function.inputs}
    read = [name for name in inputs if not is_resource[name]]
    needed = [name.partition(":")[0] for name in (*read, *outputs)]
    graph = tensorflow.compat.v1.graph_util.extract_sub_graph(graph, needed)
    every = [*graph.node, *(node for one in graph.library.function for node in one.node_def)]
    if any(map(_is_of_variables, every)):
        raise ValueError("tf2onnx has remedies for a graph that still has variables")
    graph = loader.fix_freezing_errors_part2(graph)
    with tensorflow.Graph().as_default():
        return loader.tf_optimize(read, list(outputs), graph)


def _is_of_variables(node: Any) -> bool:
    return "Variable" in node.op or node.op.startswith(("VarHandle", "Resource"))


def _taken(graph: Any) -> Iterator[tuple[str, bytes]]:
    """Take the content of large constants out of a graph: each name and content."""
    import tensorflow  # noqa: PLC0415

    others = {node.name for one in graph.library.function for node in one.node_def}
    for node in graph.node:
        if node.name in others:
            continue  # tf2onnx would give its content to that one too
        tensor = node.attr["value"].tensor if node.op == "Const" else None
        if tensor is None or len(tensor.tensor_content) < _LARGE:
            continue
        if tensorflow.as_dtype(tensor.dtype).name in ROUNDINGS:
            yield node.name, tensor.tensor_content
            tensor.ClearField("tensor_content")

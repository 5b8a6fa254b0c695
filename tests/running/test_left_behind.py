"""What is left of BatchNormalization layers in files, by the names of what is in them."""

from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import pytest
from support import chain, keras, randomize

import bnfold
from bnfold.jobs.export import LeftBehind
from bnfold.running.deployed.leftovers import Layers, Node, State, leftovers

L = keras.layers

BOTH = Layers("net", (("norm",), ("inner", "bn"), ("inner", "bn_1")))
NORM = Layers("net", (("norm",),))


def node(kind: str, *names: str, constants: tuple[str, ...] = ("constant",)) -> Node:
    return Node(kind, names, constants)


CONV = node("Conv", "net_1/conv_1/convolution")
MUL = node("Mul", "net_1/norm_1/batchnorm/mul_1")
ADD = node("Add", "net_1/norm_1/batchnorm/add_1")


@pytest.mark.parametrize(
    ("converted", "running", "state", "nodes"),
    [
        ([CONV, MUL, ADD], [CONV, MUL, ADD], State.LEFT, ("Mul", "Add")),
        ([CONV, MUL, ADD], [CONV], State.RUNTIME, ()),
        ([CONV, MUL, ADD], [CONV, ADD], State.LEFT, ("Add",)),
        ([CONV], [CONV], State.EXPORTER, ()),
        # What is called after the layer has absorbed it, or only moves numbers.
        ([node("Conv", "net_1/norm_1/batchnorm/add_1")], None, State.EXPORTER, ()),
        ([CONV, node("Transpose", "net_1/norm_1/batchnorm/mul_1")], None, State.EXPORTER, ()),
        # A convolution that ONNX Runtime makes of the multiplication is the layer still.
        ([CONV, MUL], [node("Conv", f"{MUL.names[0]}:0_mul_nchwc")], State.LEFT, ("Conv",)),
        # An output has another name, its constant has not.
        (
            [CONV, node("Add", "StatefulPartitionedCall:0", constants=("net_1/norm_1/x/sub1",))],
            None,
            State.LEFT,
            ("Add",),
        ),
        ([node("Add", "net_1/relu_1/Relu", ADD.names[0])], None, State.LEFT, ("Add",)),
        # Names that do not tell are no proof.
        ([CONV, node("Mul", "Mul_12")], None, State.UNKNOWN, ()),
        ([CONV, MUL, ADD], [CONV, node("Mul", "fused 3")], State.UNKNOWN, ()),
        ([CONV, node("Add", "Add_3", constants=())], None, State.EXPORTER, ()),
        ([CONV, node("Mul", "net_1/rescaling_1/mul")], None, State.EXPORTER, ()),
        ([node("Mul", "other_1/norm_1/mul")], None, State.UNKNOWN, ()),
        ([node("Conv", "Conv_7")], None, State.EXPORTER, ()),
        # Keras 2 counts no calls.
        ([node("BatchNormalization", "net/norm/FusedBatchNormV3")], None, State.LEFT, None),
    ],
)
def test_names_and_kinds_tell(
    converted: list[Node], running: list[Node] | None, state: State, nodes: tuple[str, ...] | None
) -> None:
    (found,) = leftovers(NORM, converted, running)
    expected = (converted[0].kind,) if nodes is None else nodes
    assert (found.name, found.state, found.nodes) == ("norm", state, expected)


def test_a_number_at_the_end_is_that_of_the_call() -> None:
    """Of bn_1 the first call is bn_1_1, and the first one of bn is bn_1."""
    nodes = [
        CONV,
        node("Mul", "net_1/inner_1/bn_1_1/batchnorm/mul_1"),
        node("Conv", "net_1/inner_1/c_1/x"),
    ]
    found = {one.name: one.state for one in leftovers(BOTH, nodes)}
    assert found == {
        "norm": State.EXPORTER,
        "inner/bn": State.EXPORTER,
        "inner/bn_1": State.LEFT,
    }


# --- real files ---

ALONE: dict[str, Any] = {
    "conv": lambda: [L.Conv2D(4, 3, name="x"), L.BatchNormalization(name="norm"), L.ReLU()],
    "pooled": lambda: [L.MaxPooling2D(name="x"), L.BatchNormalization(name="norm"), L.Conv2D(2, 2)],
    "last": lambda: [L.Conv2D(4, 3), L.ReLU(), L.BatchNormalization(name="norm")],
    "dense": lambda: [L.Flatten(), L.Dense(4), L.BatchNormalization(name="norm"), L.Dense(2)],
}


@pytest.mark.parametrize("name", ALONE)
@pytest.mark.few(1)
def test_what_is_said_to_be_merged_costs_nothing(name: str, tmp_path: Path) -> None:
    """The file of the model has the arithmetic of one without the layer, or what is said more."""
    model = randomize(chain((12, 10, 3), *ALONE[name](), name="image"))
    found = bnfold.export(
        model, [tmp_path / "m.onnx", tmp_path / "m.tflite"], fold=False, in_process=True
    )
    without = [one for one in ALONE[name]() if one.name != "norm"]
    bnfold.export(
        randomize(chain((12, 10, 3), *without, name="image")),
        [tmp_path / "less.onnx", tmp_path / "less.tflite"],
        fold=False,
        in_process=True,
    )
    for target in found.targets:
        left = target.left_behind
        assert isinstance(left, LeftBehind)
        assert left.original == left.exported
        (norm,) = left.exported
        both = [
            arithmetic(tmp_path / f"{one}{target.target.suffix}", tmp_path) for one in ("m", "less")
        ]
        more = both[0] - both[1]
        if norm.state is State.LEFT:
            assert more.total() == len(norm.nodes)
            assert set(more) == set(norm.nodes)
        else:
            assert norm.state in {State.EXPORTER, State.RUNTIME}
            assert not more


def arithmetic(path: Path, folder: Path) -> Counter[str]:
    """How often what the runtime computes has which operations that a norm may be."""
    if path.suffix == ".onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(folder / "optimised.onnx")
        options.log_severity_level = 4
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        nodes = onnx.load(folder / "optimised.onnx").graph.node
        kinds = [one.op_type for one in nodes]
    else:
        from ai_edge_litert.interpreter import Interpreter

        details = Interpreter(str(path))._get_ops_details()
        kinds = [one["op_name"].capitalize() for one in details]
    return Counter(
        one for one in kinds if one in {"Mul", "Add", "Sub", "Conv", "BatchNormalization"}
    )

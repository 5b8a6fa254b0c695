"""What other tools make of a BatchNormalization: folded, left, or computed otherwise.

    pip install onnxsim onnxslim onnxoptimizer hls4ml                        # and for Keras 2
    pip install kito keras-cv-attention-models tensorflow-batchnorm-folding scikit-network
    python tests/evaluation/peers.py            # prints the table of docs/peers.md
    python tests/evaluation/peers.py --write    # writes it there

Each small model has one BatchNormalization. A tool that takes a Keras model has folded it where no
such layer is left. A tool that takes or makes a file has where that has no more operations than the
file that it makes of the model as bnfold folds it, since an exporter writes the layer as other
operations. Either way the result must compute what the model does. A tool that is not installed is
left out. Those for Keras 2 get models of tf_keras, in a process of their own.
"""

import argparse
import contextlib
import importlib
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

IS_KERAS2 = "--keras2" in sys.argv
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if IS_KERAS2:
    os.environ["TF_USE_LEGACY_KERAS"] = "1"

import numpy as np  # noqa: E402

import bnfold  # noqa: E402

keras = importlib.import_module("tf_keras" if IS_KERAS2 else "keras")
L = keras.layers
PAGE = Path(__file__).parents[2] / "docs" / "peers.md"
BEGIN, END = "<!-- written by tests/evaluation/peers.py -->", "<!-- end -->"

FOLDS: dict[str, tuple[tuple[int, ...], Callable[[Any, Any], Any]]] = {
    "Conv2D, BN": ((8, 8, 3), lambda x, bn: bn(L.Conv2D(4, 3)(x))),
    "DepthwiseConv2D, BN": ((8, 8, 3), lambda x, bn: bn(L.DepthwiseConv2D(3)(x))),
    "SeparableConv2D, BN": ((8, 8, 3), lambda x, bn: bn(L.SeparableConv2D(4, 3)(x))),
    "Conv2DTranspose, BN": ((8, 8, 3), lambda x, bn: bn(L.Conv2DTranspose(4, 3)(x))),
    "Conv1D, BN": ((8, 3), lambda x, bn: bn(L.Conv1D(4, 3)(x))),
    "Dense, BN": ((6,), lambda x, bn: bn(L.Dense(4)(x))),
    "Conv2D, AveragePooling2D, BN": (
        (8, 8, 3),
        lambda x, bn: bn(L.AveragePooling2D(2)(L.Conv2D(4, 3)(x))),
    ),
    "two Conv2D, Concatenate, BN": (
        (8, 8, 3),
        lambda x, bn: bn(L.Concatenate()([L.Conv2D(2, 3)(x), L.Conv2D(2, 3)(x)])),
    ),
    "two Conv2D, Add, BN": (
        (8, 8, 3),
        lambda x, bn: bn(L.Add()([L.Conv2D(4, 3)(x), L.Conv2D(4, 3)(x)])),
    ),
    "BN, Conv2D without padding": (
        (8, 8, 3),
        lambda x, bn: L.Conv2D(4, 3)(bn(L.ReLU()(L.Conv2D(4, 3)(x)))),
    ),
    "BN, Flatten, Dense": (
        (8, 8, 3),
        lambda x, bn: L.Dense(4)(L.Flatten()(bn(L.ReLU()(L.Conv2D(4, 3)(x))))),
    ),
    "BN, LSTM": ((8, 3), lambda x, bn: L.LSTM(4)(bn(L.ReLU()(L.Dense(3)(x))))),
}
"""By what stands there: the shape of a sample, and the layers. All can be folded exactly."""


def beside_a_skip(made: Any, bn: Any) -> Any:
    """A tensor that is read twice."""
    return L.Add()([L.ReLU()(bn(made)), made])


STAY: dict[str, tuple[tuple[int, ...], Callable[[Any, Any], Any]]] = {
    "Conv2D with ReLU, BN, padded Conv2D": (
        (8, 8, 3),
        lambda x, bn: L.Conv2D(4, 3, padding="same")(bn(L.Conv2D(4, 3, activation="relu")(x))),
    ),
    "Conv2D, BN beside a skip": (
        (8, 8, 3),
        lambda x, bn: beside_a_skip(L.Conv2D(4, 3)(x), bn),
    ),
    "Conv2D, BN on the rows": (
        (4, 4, 4),
        lambda x, bn: L.ReLU()(norm(axis=1)(L.Conv2D(4, 3, padding="same")(x))),
    ),
}
"""The same of what cannot be folded: to leave the layer is right."""


@dataclass
class Case:
    """A model, and what several tools are asked with."""

    shape: tuple[int, ...]
    body: Callable[[Any, Any], Any]

    @cached_property
    def model(self) -> Any:
        """With numbers in its BatchNormalization under which no mistake cancels out."""
        keras.utils.set_random_seed(0)
        x = keras.Input(self.shape, name="x")
        model = keras.Model(x, L.Activation("linear", name="y")(self.body(x, norm())))
        random = np.random.default_rng(0)
        for layer in model.layers:
            if isinstance(layer, L.BatchNormalization):
                ranges = zip(layer.weights, (0.5, -1, -1, 0.3), (2, 1, 1, 3), strict=True)
                for weight, low, high in ranges:
                    weight.assign(random.uniform(low, high, weight.shape))
            elif getattr(layer, "bias", None) is not None:
                layer.bias.assign(random.normal(size=layer.bias.shape))
        return model

    @cached_property
    def folded(self) -> Any:
        """The model as bnfold folds it."""
        return bnfold.fold(self.model)

    @cached_property
    def x(self) -> Any:
        """Four samples."""
        return np.random.default_rng(1).normal(size=(4, *self.shape)).astype("float32")

    @cached_property
    def expected(self) -> Any:
        """What the model computes of them."""
        return self.model.predict(self.x, verbose=0)

    @cached_property
    def exports(self) -> tuple[Any, Any]:
        """The model and the folded one as Keras exports them to ONNX."""
        return self._exported(self.model), self._exported(self.folded)

    def _exported(self, model: Any) -> Any:
        import onnx

        model(self.x)  # Keras exports nothing that was never called
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "m.onnx"
            model.export(path, format="onnx", verbose=False)
            return onnx.load(path)

    def verdict(self, computed: Any, *, is_folded: bool) -> str:
        """What a tool did that gave this output."""
        if computed.shape != self.expected.shape:
            return WRONG
        if not np.allclose(self.expected, computed, rtol=1e-3, atol=1e-3):
            return WRONG
        return FOLDED if is_folded else LEFT

    def is_less(self, count: Callable[[Any], int], made: Any, ideal: Any) -> bool:
        """Whether nothing is left of the layer, which the ideal file does without."""
        return not norms(self.folded) and count(made) <= count(ideal)


def norm(**settings: Any) -> Any:
    """The layer that all is about."""
    return L.BatchNormalization(**settings)


def norms(model: Any) -> int:
    """How many BatchNormalization layers a Keras model has."""
    return sum(type(one).__name__ == "BatchNormalization" for one in model.layers)


FOLDED, LEFT, WRONG, FAILS = "folds", "", "**wrong**", "fails"


# --- tools that take a Keras model and give one back ------------------------------------------


def of_keras(fold: Callable[[Any], Any]) -> Callable[[Case], str]:
    """What becomes of a model in such a tool."""

    def judge(case: Case) -> str:
        made = fold(case.model)
        return case.verdict(made.predict(case.x, verbose=0), is_folded=not norms(made))

    return judge


def by_kito(model: Any) -> Any:
    """KITO, which asks for Keras 2 by the name that Keras 3 has today."""
    sys.modules["keras"] = keras
    return importlib.import_module("kito").reduce_keras_model(model)


def by_ban_off(model: Any) -> Any:
    """BaN-OFF, on PyPI as tensorflow-batchnorm-folding."""
    folder = importlib.import_module("batch_normalization_folding.folder")
    return folder.fold_batchnormalization_layers(model)[0]


def by_kecam(model: Any) -> Any:
    """keras_cv_attention_models."""
    surgery = importlib.import_module("keras_cv_attention_models.model_surgery")
    return surgery.convert_to_fused_conv_bn_model(model)


# --- tools that take or make a file -----------------------------------------------------------


def of_onnx(optimise: Callable[[Any], Any]) -> Callable[[Case], str]:
    """What becomes of a model in a tool for ONNX files."""

    def judge(case: Case) -> str:
        made, ideal = map(optimise, case.exports)
        is_folded = case.is_less(onnx_operations, made.graph, ideal.graph)
        return case.verdict(run_onnx(made, case.x), is_folded=is_folded)

    return judge


def by_onnxsim(made: Any) -> Any:
    """onnxsim."""
    return importlib.import_module("onnxsim").simplify(made)[0]


def by_onnxslim(made: Any) -> Any:
    """onnxslim."""
    return importlib.import_module("onnxslim").slim(made)


def by_onnxoptimizer(made: Any) -> Any:
    """onnxoptimizer, with all its passes that fuse and eliminate."""
    return importlib.import_module("onnxoptimizer").optimize(made)


def by_onnxruntime(made: Any) -> Any:
    """What ONNX Runtime runs, with all optimisations that any processor can run."""
    import onnx
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(Path(folder) / "m.onnx")
        options.log_severity_level = 4
        onnxruntime.InferenceSession(made.SerializeToString(), options)
        return onnx.load(options.optimized_model_filepath)


def onnx_operations(graph: Any) -> int:
    """How many operations a graph has, those of loops included."""
    inner = (one.g for node in graph.node for one in node.attribute if one.HasField("g"))
    own = sum(node.op_type not in {"Constant", "Identity"} for node in graph.node)
    return own + sum(map(onnx_operations, inner))


def run_onnx(made: Any, x: Any) -> Any:
    """What an ONNX model computes."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(made.SerializeToString(), options)
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def of_litert(case: Case) -> str:
    """What becomes of a model in LiteRT's converter."""
    made, ideal = (litert(one, case.x) for one in (case.model, case.folded))
    is_folded = case.is_less(lambda one: len(one._get_ops_details()), made, ideal)
    return case.verdict(run_litert(made, case.x), is_folded=is_folded)


def litert(model: Any, x: Any) -> Any:
    """An interpreter of what TensorFlow's converter makes of a model."""
    import tensorflow as tf

    resolver = tf.lite.experimental.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    found = tf.lite.Interpreter(
        model_content=tf.lite.TFLiteConverter.from_keras_model(model).convert(),
        experimental_op_resolver_type=resolver,
    )
    found.resize_tensor_input(found.get_input_details()[0]["index"], x.shape)
    found.allocate_tensors()
    return found


def run_litert(found: Any, x: Any) -> Any:
    """What a LiteRT model computes."""
    found.set_tensor(found.get_input_details()[0]["index"], x)
    found.invoke()
    return found.get_tensor(found.get_output_details()[0]["index"])


def of_hls4ml(case: Case) -> str:
    """What becomes of a model in hls4ml, whose result is C++ and is not run."""
    is_folded = case.is_less(hls4ml_layers, case.model, case.folded)
    return FOLDED if is_folded else LEFT


def hls4ml_layers(model: Any) -> int:
    """How many layers hls4ml would build, inputs aside."""
    hls4ml = importlib.import_module("hls4ml")
    with tempfile.TemporaryDirectory() as folder:
        config = hls4ml.utils.config_from_keras_model(model, granularity="name")
        made = hls4ml.converters.convert_from_keras_model(
            model, hls_config=config, output_dir=folder, backend="Vivado", io_type="io_stream"
        )
        return sum(type(one).__name__ != "Input" for one in made.get_layers())


# --- the table --------------------------------------------------------------------------------

TOOLS: dict[str, tuple[str, Callable[[Case], str]]] = {
    "bnfold": ("bnfold", of_keras(bnfold.fold)),
    "tf2onnx": ("tf2onnx", of_onnx(lambda made: made)),
    "onnxsim": ("onnxsim", of_onnx(by_onnxsim)),
    "onnxslim": ("onnxslim", of_onnx(by_onnxslim)),
    "onnxoptimizer": ("onnxoptimizer", of_onnx(by_onnxoptimizer)),
    "ONNX Runtime": ("onnxruntime", of_onnx(by_onnxruntime)),
    "LiteRT converter": ("tensorflow", of_litert),
    "hls4ml": ("hls4ml", of_hls4ml),
}
"""By name: the package, and what says how a model fares."""
KERAS2_TOOLS = {
    "KITO": ("kito", of_keras(by_kito)),
    "kecam": ("keras-cv-attention-models", of_keras(by_kecam)),
    "BaN-OFF": ("tensorflow-batchnorm-folding", of_keras(by_ban_off)),
}
Columns = dict[str, tuple[str, dict[str, str]]]
"""By tool: its version, and what becomes of each case."""


def columns(tools: dict[str, tuple[str, Callable[[Case], str]]]) -> Columns:
    """What the tools do that are installed."""
    there: Columns = {}
    judges = {}
    for name, (package, judge) in tools.items():
        with contextlib.suppress(metadata.PackageNotFoundError):
            there[name] = (metadata.version(package), {})
            judges[name] = judge
    for title, build in {**FOLDS, **STAY}.items():
        case = Case(*build)
        for name, judge in judges.items():
            there[name][1][title] = judged(judge, case, f"{name}, {title}")
    return there


def judged(judge: Callable[[Case], str], case: Case, what: str) -> str:
    """What becomes of a model, in silence; a tool may even end the process."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            found = judge(case)
    except (Exception, SystemExit) as error:
        print(f"{what}: {type(error).__name__}: {str(error)[:120]!r}", file=sys.stderr)
        return FAILS
    print(f"{what}: {found or 'left'}", file=sys.stderr)
    return found


def table(found: Columns) -> str:
    """The table, with the versions and the day."""
    rows = [["", *found], ["---"] * (len(found) + 1)]
    for title, cases in (("**can be folded exactly**", FOLDS), ("**must stay**", STAY)):
        rows.append([title, *[""] * len(found)])
        rows += [[case, *(made[case] for _, made in found.values())] for case in cases]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    versions = ", ".join(f"{name} {version}" for name, (version, _) in found.items())
    day = datetime.now(UTC).strftime("%Y-%m-%d")
    return "\n".join([f"Measured on {day}: Keras {keras.__version__}, {versions}.", "", *lines])


def main() -> None:
    """Measure, and print or write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="write the table into docs/peers.md")
    parser.add_argument("--keras2", action="store_true", help="the tools for Keras 2, as JSON")
    given = parser.parse_args()
    if given.keras2:
        print(json.dumps(columns(KERAS2_TOOLS)))
        return
    others = subprocess.run(
        [sys.executable, __file__, "--keras2"], stdout=subprocess.PIPE, text=True, check=True
    )
    made = table({**columns(TOOLS), **json.loads(others.stdout.splitlines()[-1])})
    if given.write:
        text = PAGE.read_text("utf-8")
        head, _, rest = text.partition(BEGIN)
        PAGE.write_text(f"{head}{BEGIN}\n\n{made}\n\n{END}{rest.partition(END)[2]}", "utf-8")
    else:
        print(made)


if __name__ == "__main__":
    main()

"""Everything that needs TensorFlow, Keras, tf2onnx or ONNX Runtime, and nothing else does.

The libraries are imported inside functions, so that importing this package costs nothing. What they
print is kept from the user's terminal. Three arithmetics are offered to the judge:

    keras           the model as the file defines it, called as `model(x)`, so that a layer
                    called with training=True does what it does for the user
    keras float64   the same graph rebuilt with every dtype set to float64, where kernels exist
    onnxruntime     the tf2onnx export on the CPU, without ONNX Runtime's own graph optimisations
                    (one of them has computed wrong results: onnxruntime#22512)
"""

from bnfold.verification.runtime.doubles import float64_copy
from bnfold.verification.runtime.execution import (
    Moves,
    free_size,
    is_repeatable,
    measure,
    moves,
    prepare,
    prepare_pair,
    run,
)
from bnfold.verification.runtime.libraries import CannotRunError, one_line, quiet, start
from bnfold.verification.runtime.live import load_live, own_classes, save_live
from bnfold.verification.runtime.loading import LoadedModel, load_all, load_pair
from bnfold.verification.runtime.onnx import OnnxModel, exports, measure_onnx, run_onnx
from bnfold.verification.runtime.onnx_file import (
    Label,
    choose_opset,
    conversions,
    open_onnx,
    port_names,
    run_as,
    versions,
    write_onnx,
)

__all__ = [
    "CannotRunError",
    "Label",
    "LoadedModel",
    "Moves",
    "OnnxModel",
    "choose_opset",
    "conversions",
    "exports",
    "float64_copy",
    "free_size",
    "is_repeatable",
    "load_all",
    "load_live",
    "load_pair",
    "measure",
    "measure_onnx",
    "moves",
    "one_line",
    "open_onnx",
    "own_classes",
    "port_names",
    "prepare",
    "prepare_pair",
    "quiet",
    "run",
    "run_as",
    "run_onnx",
    "save_live",
    "start",
    "versions",
    "write_onnx",
]

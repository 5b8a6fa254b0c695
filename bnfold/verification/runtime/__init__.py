"""Everything that needs TensorFlow, Keras, tf2onnx or ONNX Runtime, and nothing else does.

The libraries are imported inside functions, so that importing this package costs nothing. What they
print is kept from the user's terminal. Three arithmetics are offered to the judge:

    keras           the model as the file defines it, called with training=False as for
                    inference, and as `model(x)` where a layer is called with training=True
    keras float64   the same graph rebuilt with every dtype set to float64, where kernels exist
    onnxruntime     the tf2onnx export on the CPU, without ONNX Runtime's own graph optimisations
                    (one of them has computed wrong results: onnxruntime#22512)

`timing` has the same models as they run in practice, for measuring how long they take.
"""

from bnfold.verification.runtime.borrowing import guest
from bnfold.verification.runtime.doubles import float64_copy
from bnfold.verification.runtime.execution import (
    Moves,
    Prepared,
    apply,
    approximated,
    evaluate,
    free_sizes,
    is_repeatable,
    movement,
    moves,
    numbers,
    output_units,
    prepare_alone,
    prepare_pair,
    run,
    showing,
)
from bnfold.verification.runtime.libraries import (
    CannotRunError,
    find_module,
    one_line,
    quiet,
    release,
    start,
)
from bnfold.verification.runtime.live import load_live, own_classes, save_live
from bnfold.verification.runtime.loading import LoadedModel, load_all, load_pair
from bnfold.verification.runtime.observing import Normalization, Observer, normalizations
from bnfold.verification.runtime.onnx import (
    OnnxModel,
    evaluate_onnx,
    exports,
    merged,
    movement_onnx,
    optimised,
    run_onnx,
)
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
from bnfold.verification.runtime.sequential import Batches, Estimates, estimate
from bnfold.verification.runtime.timing import (
    Start,
    check,
    prepare,
    start_timing,
    started,
    version,
)

__all__ = [
    "Batches",
    "CannotRunError",
    "Estimates",
    "Label",
    "LoadedModel",
    "Moves",
    "Normalization",
    "Observer",
    "OnnxModel",
    "Prepared",
    "Start",
    "apply",
    "approximated",
    "check",
    "choose_opset",
    "conversions",
    "estimate",
    "evaluate",
    "evaluate_onnx",
    "exports",
    "find_module",
    "float64_copy",
    "free_sizes",
    "guest",
    "is_repeatable",
    "load_all",
    "load_live",
    "load_pair",
    "merged",
    "movement",
    "movement_onnx",
    "moves",
    "normalizations",
    "numbers",
    "one_line",
    "open_onnx",
    "optimised",
    "output_units",
    "own_classes",
    "port_names",
    "prepare",
    "prepare_alone",
    "prepare_pair",
    "quiet",
    "release",
    "run",
    "run_as",
    "run_onnx",
    "save_live",
    "showing",
    "start",
    "start_timing",
    "started",
    "version",
    "versions",
    "write_onnx",
]

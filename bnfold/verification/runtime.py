"""Everything that needs TensorFlow, Keras, tf2onnx or ONNX Runtime, and nothing else does.

The libraries are imported inside functions, so that importing this module costs nothing. What they
print is kept from the user's terminal. Three arithmetics are offered to the judge:

    keras           the model as the file defines it, called as `model(x)`, so that a layer
                    called with training=True does what it does for the user
    keras float64   the same graph rebuilt with every dtype set to float64, where kernels exist
    onnxruntime     the tf2onnx export on the CPU, without ONNX Runtime's own graph optimisations
                    (one of them has computed wrong results: onnxruntime#22512)
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import logging
import os
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bnfold.errors import (
    BnfoldError,
    UnreadableModelError,
    VerificationImpossibleError,
)
from bnfold.verification import precision, safety, tensors
from bnfold.verification.compare import UNIT, Array, Measurement
from bnfold.verification.samples import InputSpec, SampleSet, run_all, zeros

_FREE_SIZES = (32, 64, 96, 128, 224, 299, 16, 8)
_PROTOBUF_LIMIT = 1_900_000_000  # bytes of weights; an ONNX file of one piece ends at 2 GiB
_FLOAT64_LIMIT = 1_200_000_000  # bytes of weights in float64
_ROUNDINGS = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}

_NOISE = re.compile(r"\x1b\[[0-9;]*m|\{\{.*?\}\}")
_CAUSE = "Exception encountered:"
_PREAMBLE = re.compile(
    r"Exception encountered when calling|in user code:|File \"|Traceback|"
    r"A total of \d+ objects could not|object <"
)


class CannotRunError(Exception):
    """A runtime cannot run a model; the text is one line on why."""


# --- quiet ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what the libraries print, down to the C++ code, away from the terminal."""
    stderr, disabled = os.dup(2), logging.root.manager.disable
    try:
        with open(os.devnull, "w") as nowhere, warnings.catch_warnings():
            os.dup2(nowhere.fileno(), 2)
            warnings.simplefilter("ignore")
            logging.disable(logging.CRITICAL)
            with contextlib.redirect_stderr(io.StringIO()):
                yield
    finally:
        logging.disable(disabled)
        os.dup2(stderr, 2)
        os.close(stderr)


def start() -> None:
    """Import TensorFlow and Keras on the CPU, with the TensorFlow backend and without chatter."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    try:
        with quiet():
            tensorflow = importlib.import_module("tensorflow")
            importlib.import_module("keras")
            # A GPU sums in another order from run to run; the verdict must not depend on it.
            with contextlib.suppress(RuntimeError):
                tensorflow.config.set_visible_devices([], "GPU")
    except ImportError as error:
        raise VerificationImpossibleError(
            f"TensorFlow with Keras 3 cannot be imported: {one_line(error)}"
        ) from error


def one_line(error: BaseException) -> str:
    """Return the first telling line of an exception, printable and cut to length."""
    lines = [_NOISE.sub("", line).strip() for line in str(error).splitlines()]
    lines = [line for line in lines if line] or [type(error).__name__]
    # Keras says first where it happened and only then what; the innermost cause comes last.
    causes = [line.partition(_CAUSE)[2].strip() for line in lines if line.startswith(_CAUSE)]
    telling = [line for line in lines if not _PREAMBLE.match(line)]
    telling = [cause for cause in causes[::-1] if cause] or telling or lines
    text = "".join(char if char.isprintable() else repr(char)[1:-1] for char in telling[0])
    return text if len(text) <= 240 else text[:237] + "..."


# --- loading -------------------------------------------------------------------------------------


@dataclass
class LoadedModel:
    """A model in memory; `runner` maps flat inputs to flat, tapped outputs."""

    path: Path
    library: str
    model: Any
    trust: bool
    custom_objects: dict[str, Any] = field(default_factory=dict)
    runner: Any = None

    @property
    def keras(self) -> Any:
        """The library that loaded the model: keras or tf_keras."""
        return importlib.import_module(self.library)

    @property
    def label(self) -> str:
        """The file's name for messages."""
        return self.path.name


def load_pair(
    original: safety.FileFacts,
    folded: safety.FileFacts,
    imports: Sequence[str],
    classes: Mapping[str, Any],
    *,
    trust: bool,
) -> tuple[LoadedModel, LoadedModel]:
    """Load both files by the same library: Keras 3, or tf_keras for what only Keras 2 reads.

    Raises CannotRunError when it loads the original and not the other.
    """
    modules = [_import(name) for name in imports]
    failures: list[BnfoldError] = []
    for library in ("keras", "tf_keras"):
        if library == "tf_keras" and not _may_be_keras_2(original):
            break
        try:
            custom = {
                **_custom_objects(library, (original, folded), modules, trust=trust),
                **classes,
            }
            first = _load(original, library, custom, trust=trust)
        except BnfoldError as error:
            failures.append(error)
            continue
        try:
            return first, _load(folded, library, custom, trust=trust)
        except UnreadableModelError as error:
            raise CannotRunError(str(error)) from error
    # tf_keras, asked last, knows Keras 2 files better than Keras 3 does.
    raise failures[-1]


def _import(name: str) -> Any:
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # last, so that nothing there hides an installed package
    try:
        with quiet():
            return importlib.import_module(name)
    except Exception as error:
        raise BnfoldError(f"--import {name}: {one_line(error)}") from error


def _may_be_keras_2(facts: safety.FileFacts) -> bool:
    return not facts.keras_version.startswith("3.")


def _custom_objects(
    library: str, files: Sequence[safety.FileFacts], modules: Sequence[Any], *, trust: bool
) -> dict[str, Any]:
    """Find what the user's modules define for the names in the files; refuse what is missing."""
    keras = _library(library)
    found: dict[str, Any] = {}
    for facts in files:
        missing = []
        for custom in safety.custom_entries(facts):
            plain = custom.name.rsplit(">", 1)[-1]
            here = [vars(module)[plain] for module in modules if plain in vars(module)]
            if here:
                found[plain] = found[custom.name] = here[0]
            elif keras.saving.get_registered_object(custom.name) is None:
                missing.append(custom)
        if not trust:
            safety.refuse_unregistered(facts, missing)
    return found


def _library(name: str) -> Any:
    try:
        with quiet():
            return importlib.import_module(name)
    except ImportError:
        raise VerificationImpossibleError(
            'Keras 3 cannot load this file of Keras 2; tf_keras can: pip install "bnfold[keras2]"'
        ) from None


def _load(
    facts: safety.FileFacts, library: str, custom: dict[str, Any], *, trust: bool
) -> LoadedModel:
    keras = _library(library)
    try:
        with quiet(), _properly_named(facts) as path:
            model = keras.models.load_model(
                str(path), custom_objects=custom, compile=False, safe_mode=not trust
            )
    except Exception as error:
        raise UnreadableModelError(
            f"{facts.path}: {library} cannot load it: {one_line(error)}"
        ) from error
    if not getattr(model, "inputs", None) or not getattr(model, "outputs", None):
        raise VerificationImpossibleError(
            f"{facts.path}: only Functional and Sequential models can be compared,"
            f" not {type(model).__name__}"
        )
    return LoadedModel(facts.path, library, model, trust, custom)


@contextlib.contextmanager
def _properly_named(facts: safety.FileFacts) -> Iterator[Path]:
    """Keras goes by the suffix of the name: link the file under one that tells the truth."""
    suffixes = {"keras": (".keras",), "h5": (".h5", ".hdf5")}.get(facts.kind, ())
    if not suffixes or facts.path.name.endswith(suffixes):
        yield facts.path
        return
    with tempfile.TemporaryDirectory(prefix="bnfold-") as directory:
        link = Path(directory) / f"model{suffixes[0]}"
        try:
            link.symlink_to(facts.path.resolve())
        except OSError:  # file systems and accounts without links
            shutil.copyfile(facts.path, link)
        yield link


# --- preparing -----------------------------------------------------------------------------------


def prepare_pair(original: LoadedModel, folded: LoadedModel) -> list[tensors.Tap | None]:
    """Build the runners of both models, tapped at the same outputs; the taps of the original."""
    taps = [tensors.find_taps(loaded.model) for loaded in (original, folded)]
    usable = tensors.agreed(*taps)
    for loaded, found in zip((original, folded), taps, strict=True):
        kept = [tap if use else None for tap, use in zip(found, usable, strict=True)]
        _build_runner(loaded, kept)
    return [tap if use else None for tap, use in zip(taps[0], usable, strict=True)]


def _build_runner(loaded: LoadedModel, taps: Sequence[tensors.Tap | None]) -> None:
    tensors.switch_off(taps, loaded.keras.activations.linear)
    outputs = [
        output if tap is None or tap.tensor is None else tap.tensor
        for tap, output in zip(taps, loaded.model.outputs, strict=True)
    ]
    with quiet():
        loaded.runner = loaded.keras.Model(list(loaded.model.inputs), outputs)


def free_size(loaded: LoadedModel, specs: Sequence[InputSpec]) -> int:
    """Return a size for the free dimensions with which the model runs, or the first one."""
    if all(None not in spec.shape[1:] for spec in specs):
        return _FREE_SIZES[0]
    for size in _FREE_SIZES:
        with contextlib.suppress(CannotRunError):
            run(loaded, zeros(specs, size), training=False)
            return size
    return _FREE_SIZES[0]


# --- running with Keras --------------------------------------------------------------------------


def run(loaded: LoadedModel, inputs: Sequence[Array], *, training: bool | None) -> list[Array]:
    """Return the outputs as numpy arrays, bfloat16 as float32. Raises CannotRunError."""
    import tensorflow  # noqa: PLC0415

    keywords = {} if training is None else {"training": training}
    try:
        with quiet():
            fed = [
                tensorflow.convert_to_tensor(array, dtype=tensors.dtype_name(tensor))
                for array, tensor in zip(inputs, loaded.runner.inputs, strict=True)
            ]
            outputs = loaded.runner(fed, **keywords)
            flat = outputs if isinstance(outputs, (list, tuple)) else [outputs]
            return [_as_numpy(tensorflow, output) for output in flat]
    except Exception as error:
        raise CannotRunError(one_line(error)) from error


def _as_numpy(tensorflow: Any, value: Any) -> Array:
    if value.dtype == tensorflow.bfloat16:
        value = tensorflow.cast(value, tensorflow.float32)
    return np.asarray(value.numpy())


def _output_units(loaded: LoadedModel, steps: Sequence[float]) -> list[float]:
    """Return the smallest error to count with: of the output's dtype or of the weights."""
    smallest = min((step for step in steps if step), default=UNIT)
    return [
        max(_ROUNDINGS.get(tensors.dtype_name(tensor), 0.0), smallest / 2)
        for tensor in loaded.runner.outputs
    ]


@dataclass(frozen=True)
class Moves:
    """How far rounding moves each weight, relative to its size; zero for what is not a float."""

    stored: tuple[float, ...]
    computed: tuple[float, ...]


def moves(loaded: LoadedModel) -> Moves:
    """Return half a unit of the stored dtype, and one unit of the dtype computed in."""
    computed_in: dict[int, str] = {}
    for layer in _layers(loaded.model):
        computed_in.update((id(weight), _compute_dtype(layer)) for weight in layer.weights)
    stored, computed = [], []
    for weight in loaded.model.weights:
        half = _ROUNDINGS.get(tensors.dtype_name(weight), 0.0)
        stored.append(half)
        coarser = max(half, _ROUNDINGS.get(computed_in.get(id(weight), ""), half))
        computed.append(2 * coarser if half else 0.0)
    return Moves(tuple(stored), tuple(computed))


def _layers(model: Any) -> list[Any]:
    """All layers, the outer before the inner, so that the innermost one's dtype counts."""
    return list(model._flatten_layers())


def _compute_dtype(layer: Any) -> str:
    return str(getattr(layer, "compute_dtype", None) or "float32")


def measure(
    loaded: LoadedModel,
    sets: Sequence[SampleSet],
    steps: Sequence[float],
    repetitions: int,
    seed: int,
    *,
    training: bool | None,
) -> list[list[Measurement]]:
    """For every sample set and output: its value, and its values with the weights moved.

    The weights are put back before every run, since a BatchNormalization that is called with
    training=True writes to its statistics. Raises CannotRunError.
    """
    weights = _Weights(loaded, steps, seed)
    runs = []
    for repetition in range(repetitions + 1):

        def call(inputs: Sequence[Array], repetition: int = repetition) -> list[Array]:
            weights.move(repetition)
            return run(loaded, inputs, training=training)

        runs.append(run_all(call, sets))
    weights.move(0)
    return _gathered(runs, _output_units(loaded, steps))


def is_repeatable(
    loaded: LoadedModel, samples: SampleSet, steps: Sequence[float], seed: int
) -> bool:
    """Tell whether `model(x)` gives the same twice, within what the order of sums can change."""
    weights = _Weights(loaded, steps, seed)
    runs = []
    for _ in range(2):
        weights.move(0)
        runs.append(run(loaded, samples.inputs, training=None))
    weights.move(0)
    return all(_nearly_equal(one, other) for one, other in zip(*runs, strict=True))


def _nearly_equal(one: Array, other: Array) -> bool:
    if one.dtype.kind not in "fc":
        return bool(np.array_equal(one, other))
    size = float(np.max(np.abs(np.nan_to_num(one)), initial=0.0))
    return bool(np.allclose(one, other, rtol=0, atol=1e-3 * size, equal_nan=True))


class _Weights:
    """The floating weights of a model, to be moved by rounding errors and put back."""

    def __init__(self, loaded: LoadedModel, steps: Sequence[float], seed: int) -> None:
        pairs = zip(loaded.model.weights, steps, strict=True)
        self._parts = [(weight, np.asarray(weight.numpy()), step) for weight, step in pairs if step]
        self._seed = seed

    def move(self, repetition: int) -> None:
        """Move every weight by one step up or down; repetition 0 puts them back as they were."""
        import tensorflow  # noqa: PLC0415

        generator = np.random.default_rng([self._seed, repetition])
        for weight, kept, step in self._parts:
            value = kept
            if repetition:
                signs = 2.0 * generator.integers(0, 2, kept.shape) - 1
                value = kept.astype(np.float64) * (1 + step * signs)
            weight.assign(tensorflow.cast(value, weight.dtype))


# --- float64 -------------------------------------------------------------------------------------


def float64_copy(loaded: LoadedModel) -> LoadedModel:
    """Return the runner rebuilt in float64 with the same weights. Raises CannotRunError."""
    weights = loaded.runner.weights
    if sum(8 * int(np.prod(weight.shape)) for weight in weights) > _FLOAT64_LIMIT:
        raise CannotRunError("the weights are too large for a copy in float64")
    saving = loaded.keras.saving
    try:
        with quiet():
            with _sharing(loaded):
                config = precision.in_float64(saving.serialize_keras_object(loaded.runner))
            with _sharing(loaded):
                model = saving.deserialize_keras_object(
                    config, custom_objects=loaded.custom_objects, safe_mode=not loaded.trust
                )
            model.set_weights([_widened(weight) for weight in weights])
    except Exception as error:
        raise CannotRunError(one_line(error)) from error
    return LoadedModel(loaded.path, loaded.library, model, loaded.trust, runner=model)


def _sharing(loaded: LoadedModel) -> contextlib.AbstractContextManager[Any]:
    """The scope in which Keras keeps one layer object in several places one object."""
    try:
        library = importlib.import_module(f"{loaded.library}.src.saving.serialization_lib")
        scope: contextlib.AbstractContextManager[Any] = library.ObjectSharingScope()
    except (ImportError, AttributeError):
        return contextlib.nullcontext()
    return scope


def _widened(weight: Any) -> Array:
    value = np.asarray(weight.numpy())
    return value.astype(np.float64) if tensors.dtype_name(weight) in _ROUNDINGS else value


# --- ONNX Runtime --------------------------------------------------------------------------------


@dataclass(frozen=True)
class OnnxModel:
    """An exported model, ready to run."""

    session: Any
    names: tuple[str, ...]


def exports(loaded: LoadedModel) -> Iterator[tuple[str, Callable[[], OnnxModel]]]:
    """Yield ways to export, the fastest first: a name, and a function that may fail.

    tf2onnx without its optimisers takes a quarter of the time, but writes invalid graphs for some
    recurrent layers; from_function serves models that from_keras does not know.
    """
    yield "from_keras without optimisers", lambda: _export(loaded, _from_keras, optimizers={})
    yield "from_keras", lambda: _export(loaded, _from_keras)
    yield "from_function", lambda: _export(loaded, _from_function)


def _export(loaded: LoadedModel, convert: Callable[..., Any], **options: Any) -> OnnxModel:
    if sum(_bytes(weight) for weight in loaded.runner.weights) > _PROTOBUF_LIMIT:
        raise CannotRunError("an ONNX file of one piece cannot hold more than 2 GiB of weights")
    import tensorflow  # noqa: PLC0415

    eager = tensorflow.config.functions_run_eagerly()
    try:
        with quiet():
            # Keras compiles grouped convolutions with XLA, which tf2onnx cannot see into.
            tensorflow.config.run_functions_eagerly(True)
            proto, _ = convert(loaded, **options)
            return _session(proto.SerializeToString())
    except Exception as error:
        raise CannotRunError(one_line(error)) from error
    finally:
        tensorflow.config.run_functions_eagerly(eager)


def _bytes(weight: Any) -> int:
    size = 2 if tensors.dtype_name(weight) in {"float16", "bfloat16"} else 4
    return size * int(np.prod(weight.shape))


def _signature(loaded: LoadedModel) -> list[Any]:
    import tensorflow  # noqa: PLC0415

    return [
        tensorflow.TensorSpec(tuple(tensor.shape), tensor.dtype, name=f"input_{index}")
        for index, tensor in enumerate(loaded.runner.inputs)
    ]


def _from_keras(loaded: LoadedModel, **options: Any) -> Any:
    tf2onnx = importlib.import_module("tf2onnx")
    signature = _signature(loaded) if len(loaded.runner.inputs) == 1 else None
    return tf2onnx.convert.from_keras(loaded.runner, input_signature=signature, **options)


def _from_function(loaded: LoadedModel) -> Any:
    import tensorflow  # noqa: PLC0415

    tf2onnx = importlib.import_module("tf2onnx")
    signature = _signature(loaded)

    @tensorflow.function(input_signature=signature)  # type: ignore[untyped-decorator]
    def call(*inputs: Any) -> Any:
        return loaded.runner(list(inputs), training=False)

    return tf2onnx.convert.from_function(call, input_signature=signature)


def _session(model: bytes) -> OnnxModel:
    onnxruntime = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return OnnxModel(session, tuple(one.name for one in session.get_inputs()))


def run_onnx(exported: OnnxModel, inputs: Sequence[Array]) -> list[Array]:
    """Return the outputs of ONNX Runtime, in the order of the model's. Raises CannotRunError."""
    if len(exported.names) != len(inputs):
        raise CannotRunError("the export lost an input")
    feed = dict(zip(exported.names, inputs, strict=True))
    try:
        with quiet():
            return [np.asarray(value) for value in exported.session.run(None, feed)]
    except Exception as error:
        raise CannotRunError(one_line(error)) from error


def measure_onnx(
    loaded: LoadedModel,
    sets: Sequence[SampleSet],
    steps: Sequence[float],
    repetitions: int,
    seed: int,
) -> list[list[Measurement]]:
    """Like `measure`, with one export for each movement of the weights. Raises CannotRunError."""
    weights = _Weights(loaded, steps, seed)
    runs = []
    for repetition in range(repetitions + 1):
        weights.move(repetition)
        runs.append(_first_run(loaded, sets))
    weights.move(0)
    return _gathered(runs, _output_units(loaded, steps))


def _first_run(loaded: LoadedModel, sets: Sequence[SampleSet]) -> list[list[Array]]:
    reasons = []
    for _, export in exports(loaded):
        try:
            exported = export()
            return run_all(functools.partial(run_onnx, exported), sets)
        except CannotRunError as error:
            reasons.append(error)
    raise reasons[0]


def _gathered(
    runs: Sequence[Sequence[Sequence[Array]]], units: Sequence[float]
) -> list[list[Measurement]]:
    """From runs, sets, outputs to sets, outputs, with the first run as the value."""
    return [
        [
            Measurement(runs[0][at][index], tuple(run[at][index] for run in runs[1:]), unit)
            for index, unit in enumerate(units)
        ]
        for at in range(len(runs[0]))
    ]


# --- live models ---------------------------------------------------------------------------------


def save_live(model: Any, path: Path) -> None:
    """Save a model in memory as a `.keras` file.

    Raises BnfoldError when Keras cannot.
    """
    try:
        with quiet():
            model.save(path)
    except Exception as error:
        raise BnfoldError(f"Keras cannot save this model: {one_line(error)}") from error


def own_classes(model: Any) -> dict[str, Any]:
    """The classes of a live model's layers that are not the library's, by name."""
    classes = {type(part) for part in (model, *model._flatten_layers())}
    own = (c for c in classes if not c.__module__.startswith(("keras.", "tf_keras.")))
    return {found.__name__: found for found in own}


def load_live(path: Path, like: Any) -> Any:
    """Load a `.keras` file made from the model `like`, with the library of that model."""
    library = "tf_keras" if type(like).__module__.startswith("tf_keras") else "keras"
    try:
        with quiet():
            return _library(library).models.load_model(
                str(path), custom_objects=own_classes(like), compile=False, safe_mode=False
            )
    except Exception as error:
        raise BnfoldError(f"Keras cannot load the folded model: {one_line(error)}") from error

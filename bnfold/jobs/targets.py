"""What an export writes: which format a name means, how it is converted, and who checks it."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any, get_args

from bnfold.errors import OutputError, SettingsError
from bnfold.jobs import child
from bnfold.jobs.staging import FOLDER_SUFFIX, Format, format_of, target_at
from bnfold.model.container.printing import printable
from bnfold.model.container.remote import Remote, Where, located
from bnfold.running import litert_file, onnx_file, options, process, saved_model_file
from bnfold.running.arrays import Array
from bnfold.running.deployed import binding, leftovers, litert, onnx, saved_model
from bnfold.running.deployed.binding import Binding, Slot
from bnfold.running.deployed.leftovers import Leftover
from bnfold.running.deployed.model import Deployed
from bnfold.running.libraries import CannotRunError
from bnfold.running.litert_file import LitePrecision
from bnfold.running.loading import LoadedModel
from bnfold.running.ports import Interface, Port
from bnfold.running.samples import SampleSet
from bnfold.supervision import link

PRECISIONS: tuple[LitePrecision, ...] = get_args(LitePrecision)


@dataclass(frozen=True)
class Target:
    """One file or folder to write, and how precisely it shall compute."""

    path: Where
    format: Format
    precision: LitePrecision = "float32"


def targets_of(
    names: Sequence[str | Where], precisions: str | Sequence[str] = ()
) -> tuple[Target, ...]:
    """What the names mean; the precisions are those of the LiteRT files, in order, or of all.

    Raises OutputError for a name that means no format and for names that are in each other's way,
    and SettingsError for a precision that no file can have.
    """
    known: dict[str, LitePrecision] = {str(one): one for one in PRECISIONS}
    wanted = [known[one] for one in options.some_of("precision", precisions, PRECISIONS)]
    found = [Target(located(one), _known(one)) for one in names]
    _refuse_overlaps(found)
    lite = [at for at, one in enumerate(found) if one.format == "tflite"]
    if wanted and not lite:
        raise SettingsError(
            "a precision can be chosen for a LiteRT file (.tflite) only; others have the model's"
        )
    if len(wanted) not in {0, 1, len(lite)}:
        raise SettingsError(
            f"{len(wanted)} precisions for {len(lite)} LiteRT files: give one for all, or one"
            " for each"
        )
    chosen = wanted if len(wanted) == len(lite) else [*wanted] * len(lite)
    for at, precision in zip(lite, chosen, strict=False):
        found[at] = replace(found[at], precision=precision)
    return tuple(found)


def _known(name: str | Where) -> Format:
    where = target_at(name)
    name = where if isinstance(where, Remote) else name
    found = format_of(name)
    if found is None:
        raise OutputError(
            f"{printable(str(name))}: must end in .onnx or .tflite, or in / or"
            f" {FOLDER_SUFFIX} for the folder of a SavedModel"
        )
    return found


def _refuse_overlaps(targets: Sequence[Target]) -> None:
    places = [
        PurePath(one.path.url if isinstance(one.path, Remote) else os.path.realpath(one.path))
        for one in targets
    ]
    for at, place in enumerate(places):
        for other, number in zip(targets, range(len(targets)), strict=True):
            if number < at and places[number] == place:
                raise OutputError(f"{printable(str(other.path))}: is named twice")
            if number != at and places[number] in place.parents:
                shown = printable(str(targets[at].path))
                raise OutputError(f"{shown}: is inside of {printable(str(other.path))}")


# --- what each format needs ----------------------------------------------------------------------


@dataclass(frozen=True)
class Making:
    """What is known of the result before anything is converted.

    Attributes:
        interface: what the model promises to those who call it.
        batched: for every output, whether its first axis counts the samples.
        metadata: what the file says of how it was made.
        opset: of ONNX.
        calibration: samples on which the ranges of values are measured.
    """

    interface: Interface
    batched: Sequence[bool]
    metadata: Mapping[str, Any]
    opset: int
    calibration: SampleSet | None = None


Write = Callable[[Path], None]


@dataclass(frozen=True)
class _Kind:
    """A format: its name and runtime for people, and how it is written and opened.

    `command` is what needs libraries, of `requirements.COMMANDS`.
    """

    name: str
    runtime: str
    command: str
    conversions: Callable[[LoadedModel, Target, Making], Iterator[Write]]
    bind: Callable[[Path, Interface], Binding]
    leftovers: Callable[[Path, LoadedModel], tuple[Leftover, ...]] | None


def conversions(loaded: LoadedModel, target: Target, making: Making) -> Iterator[Write]:
    """Yield functions that write a model to a path, the best one first; each may fail.

    They raise CannotRunError.
    """
    yield from KINDS[target.format].conversions(loaded, target, making)


def bind(target: Target, path: Path, interface: Interface) -> Binding:
    """The file that was written as the model whose inputs and outputs it has.

    Raises CannotRunError where it has lost some of what the model promises.
    """
    return KINDS[target.format].bind(path, interface)


def left_behind(target: Target, path: Path, loaded: LoadedModel) -> tuple[Leftover, ...] | None:
    """What is left of a model's BatchNormalization layers; None where that cannot be told."""
    look = KINDS[target.format].leftovers
    if look is None:
        return None
    try:
        return look(path, loaded)
    except CannotRunError:
        return None


def ports_of(bound: Binding, interface: Interface) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """The inputs and outputs under the names and dtypes that the file gives them."""
    return (
        _ports(interface.inputs, bound.inputs, bound.file.inputs),
        _ports(interface.outputs, bound.outputs, bound.file.outputs),
    )


def _ports(ports: Sequence[Port], slots: Sequence[Slot], ends: Sequence[Any]) -> tuple[Port, ...]:
    return tuple(
        replace(port, name=ends[slot.at].name, dtype=_dtype(port, ends[slot.at]))
        for port, slot in zip(ports, slots, strict=True)
    )


def _dtype(port: Port, end: Any) -> str:
    return port.dtype if end.dtype == "object" else str(end.dtype)


# --- ONNX ----------------------------------------------------------------------------------------


def _to_onnx(loaded: LoadedModel, target: Target, making: Making) -> Iterator[Write]:
    metadata = {f"bnfold.{key}": value for key, value in making.metadata.items()}
    version = str(making.metadata["version"])
    label = onnx_file.Label(loaded.model.name, version, metadata, making.batched)
    for convert in onnx_file.conversions(loaded, making.opset):
        yield functools.partial(_write_onnx, convert, making.interface, label)


def _write_onnx(
    convert: Callable[[], Any], interface: Interface, label: onnx_file.Label, path: Path
) -> None:
    onnx_file.write_onnx(convert(), path, interface, label)


def _named(interface: Interface) -> Interface:
    """The interface with each name once."""
    inputs, outputs = onnx_file.named_ports(interface)
    return replace(interface, inputs=inputs, outputs=outputs)


def _bind_onnx(path: Path, interface: Interface) -> Binding:
    return binding.exactly(_named(interface), onnx.read(path))


# --- LiteRT --------------------------------------------------------------------------------------


def _to_litert(loaded: LoadedModel, target: Target, making: Making) -> Iterator[Write]:
    def write(path: Path) -> None:
        litert_file.write_litert(
            loaded,
            path,
            making.interface,
            metadata={**making.metadata, "precision": target.precision},
            precision=target.precision,
            calibration=making.calibration if target.precision == "int8" else None,
        )

    yield write


def _bind_litert(path: Path, interface: Interface) -> Binding:
    file = litert.read(path)
    found = binding.exactly(_named(interface), file)
    _refuse_fixed_sizes(found, interface)
    return found


def _refuse_fixed_sizes(bound: Binding, interface: Interface) -> None:
    """A free size that became one size is a promise broken, whatever that size computes."""
    for port, slot in zip(interface.inputs, bound.inputs, strict=True):
        shape = bound.file.inputs[slot.at].shape
        if shape is not None and [one is None for one in shape] != [
            one is None for one in port.shape
        ]:
            raise CannotRunError(
                f"input {port.name!r}: the shape {port.shape} became {shape}".replace("None", "any")
            )


# --- SavedModel ----------------------------------------------------------------------------------


def _to_saved_model(loaded: LoadedModel, target: Target, making: Making) -> Iterator[Write]:
    for plainly in (False, True):
        yield functools.partial(_save, loaded, making, plainly)


def _save(loaded: LoadedModel, making: Making, plainly: bool, path: Path) -> None:
    saved_model_file.write_saved_model(
        loaded, path, making.interface, metadata=making.metadata, plainly=plainly
    )


@dataclass(frozen=True)
class _Alone(Binding):
    """A SavedModel that a fresh process runs, in which Keras cannot be imported."""

    interface: Interface

    def evaluate(self, sets: Sequence[SampleSet], *, optimised: bool = True) -> list[list[Array]]:
        """What it computes there. Raises CannotRunError."""
        found = child.run_apart(run_alone, self.file.path, self.interface, list(sets))
        if isinstance(found, str):
            raise CannotRunError(found)
        return found


def _bind_saved_model(path: Path, interface: Interface) -> Binding:
    found = _bound(saved_model.read(path, trust=True), _named(interface))
    return _Alone(found.file, found.inputs, found.outputs, found.ports, _named(interface))


def _bound(file: Deployed, interface: Interface) -> Binding:
    found, differences = binding.bind(interface, file)
    if not found:
        raise CannotRunError(differences[0])
    return found[0]


def run_alone(
    path: Path, interface: Interface, sets: Sequence[SampleSet]
) -> list[list[Array]] | str:
    """What a SavedModel computes in a process of its own without Keras, or why it cannot.

    TensorFlow imports Keras along with it where it can. Here it cannot: whatever asks for Keras
    gets an ImportError, so that what runs needs nothing of it.
    """
    if any(name in sys.modules for name in _KERAS):
        return "Keras is imported already"
    sys.modules.update(dict.fromkeys(_KERAS))  # type: ignore[arg-type]
    link.running({path: path.name})
    process.keep_to_itself()
    try:
        file = _bound(saved_model.read(path, trust=True), interface)
        return file.evaluate(sets)
    except CannotRunError as error:
        return str(error)


_KERAS = ("keras", "tf_keras")

KINDS: dict[Format, _Kind] = {
    "onnx": _Kind("ONNX", "ONNX Runtime", "export", _to_onnx, _bind_onnx, leftovers.in_onnx),
    "tflite": _Kind(
        "LiteRT", "LiteRT", "export to LiteRT", _to_litert, _bind_litert, leftovers.in_litert
    ),
    "saved_model": _Kind(
        *("SavedModel", "TensorFlow without Keras", "export to SavedModel"),
        *(_to_saved_model, _bind_saved_model, None),
    ),
}

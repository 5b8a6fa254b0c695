"""Opening a deployed model of any kind, by what it holds and never by its name alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bnfold.errors import UnreadableModelError
from bnfold.model.container import foreign
from bnfold.model.container.printing import printable
from bnfold.running.deployed.model import Deployed
from bnfold.running.libraries import CannotRunError


def kind_of(path: Path) -> str | None:
    """The format of a deployed model: "onnx", "tflite" or "saved_model"; None for another file."""
    try:
        if path.is_dir():
            return "saved_model" if (path / "saved_model.pb").is_file() else None
        if not path.is_file():
            return None
        with path.open("rb") as stream:
            return foreign.deployed(path, stream.read(foreign.HEAD))
    except OSError:
        return None  # whoever opens it as a model says what is wrong


def open_deployed(path: Path, *, trust: bool = False) -> Deployed:
    """Read what a deployed model says of itself.

    Raises UnreadableModelError where it is damaged, or is run by what is not installed, and
    UnsafeModelError where it could do more than compute.
    """
    read = _READERS.get(kind_of(path) or "")
    if read is None:
        raise UnreadableModelError(f"{printable(str(path))}: no ONNX, LiteRT or SavedModel")
    try:
        return read(path, trust)
    except CannotRunError as error:
        raise UnreadableModelError(f"{printable(str(path))}: {error}") from error


def _onnx(path: Path, _: bool) -> Deployed:
    from bnfold.running.deployed import onnx  # noqa: PLC0415 - brings its library along

    return onnx.read(path)


def _litert(path: Path, _: bool) -> Deployed:
    from bnfold.running.deployed import litert  # noqa: PLC0415

    return litert.read(path)


def _saved_model(path: Path, trust: bool) -> Deployed:
    from bnfold.running.deployed import saved_model  # noqa: PLC0415

    return saved_model.read(path, trust=trust)


_READERS: dict[str, Callable[[Path, bool], Deployed]] = {
    "onnx": _onnx,
    "tflite": _litert,
    "saved_model": _saved_model,
}

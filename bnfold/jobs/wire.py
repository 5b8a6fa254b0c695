"""Values as JSON and `.npy` files, for another process of bnfold's.

What is not a plain value names its kind: tuples, mappings, paths, arrays, and the dataclasses and
enumerations of bnfold itself. No other class is ever made and nothing is unpickled. A plan, its
graph, and a BatchNormalization that belongs to them, hold what can be read from the model file
alone: they are sent as a reference, which the receiver looks up in the file. A rule goes by its
code. Arrays may be larger than memory: one that maps a file is sent as its place there, and the
process that does the work maps what it gets.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import mmap
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from bnfold.errors import BnfoldError
from bnfold.running.registered import importable, place

_KIND = "kind"
_PLAN = "bnfold.folding.plan:Plan"
_GRAPH = "bnfold.model.graph:Graph"
_BATCHNORM = "bnfold.model.batchnorm:BatchNorm"
_RULE = "bnfold.audit.registry:Rule"


class Refer(Protocol):
    """The model file of a job, in which is looked up what was sent as a reference."""

    plan: Any
    graph: Any

    def read(self) -> Refer:
        """Read the file, if that is not done yet."""

    def batchnorm(self, path: tuple[str, ...]) -> Any:
        """The BatchNormalization of a path."""


class Sender:
    """Makes JSON of values; arrays go to files in `folder`, functions are kept by number."""

    def __init__(self, folder: Path, prefix: str) -> None:
        self._folder, self._prefix, self._arrays = folder, prefix, 0
        self.functions: list[Callable[..., Any]] = []
        self._encoders: tuple[tuple[Any, Callable[[Any], Any]], ...] = (
            (Enum, self._enum),  # before text, which some of them are
            ((type(None), bool, int, float, str), lambda value: value),
            (np.generic, lambda value: self.encode(value.item())),
            (np.ndarray, lambda value: _mapped(value) or self._save(value)),
            (Path, lambda value: {_KIND: "path", "text": str(value)}),
            (type, lambda value: {_KIND: "class", "name": importable(place(value))}),
            (Mapping, self._mapping),
            (tuple, lambda value: {_KIND: "tuple", "items": self._list(value)}),
            (list, self._list),
        )

    def encode(self, value: Any) -> Any:
        """The value as JSON. Raises BnfoldError for a class that no other process can import."""
        for kinds, encode in self._encoders:
            if isinstance(value, kinds):
                return encode(value)
        if dataclasses.is_dataclass(value):
            return self._record(value)
        if callable(value):
            self.functions.append(value)
            return {_KIND: "function", "number": len(self.functions) - 1}
        raise BnfoldError(
            f"{type(value).__name__}: cannot be sent to the process that does the work;"
            " in_process=True works here"
        )

    def _enum(self, value: Enum) -> dict[str, Any]:
        return {_KIND: "enum", "class": place(type(value)), "value": value.value}

    def _mapping(self, value: Mapping[Any, Any]) -> dict[str, Any]:
        items = [[self.encode(key), self.encode(item)] for key, item in value.items()]
        return {_KIND: "mapping", "items": items}

    def _list(self, value: list[Any]) -> list[Any]:
        return [self.encode(item) for item in value]

    def _save(self, array: np.ndarray[Any, Any]) -> dict[str, Any]:
        self._arrays += 1
        name = f"{self._prefix}-{self._arrays}.npy"
        plain = array.astype("str") if array.dtype.hasobject else array
        np.save(self._folder / name, plain, allow_pickle=False)
        return {_KIND: "array", "file": name}

    def _record(self, value: Any) -> dict[str, Any]:
        name = place(type(value))
        if name in {_PLAN, _GRAPH}:
            return {_KIND: "plan" if name == _PLAN else "graph"}
        if name == _RULE:
            return {_KIND: "rule", "code": value.code}
        if name == _BATCHNORM:
            return {_KIND: "batchnorm", "path": list(value.path)}
        fields = {
            one.name: self.encode(getattr(value, one.name))
            for one in dataclasses.fields(value)
            if one.init
        }
        return {_KIND: "record", "class": name, "fields": fields}


def _mapped(array: np.ndarray[Any, Any]) -> dict[str, Any] | None:
    """Where an array stands in the file that it maps; None where it has bytes of its own."""
    owner: Any = array
    whole: Any = None
    while isinstance(owner, np.ndarray):
        whole = owner if isinstance(owner, np.memmap) else whole
        owner = owner.base
    is_file = isinstance(owner, mmap.mmap) and whole is not None and whole.filename is not None
    if not is_file or whole.mode == "c" or not array.size or array.dtype.kind == "V":
        return None
    first = array.__array_interface__["data"][0] - whole.__array_interface__["data"][0]
    return {
        _KIND: "mapped",
        "file": str(whole.filename),
        "place": [array.shape, array.dtype.str, whole.offset + first, array.strides],
    }


class Receiver:
    """Makes values of JSON again.

    `refer` finds what was sent as a reference, `call` is called with the number of a function and
    its arguments. Only with `imports` are classes imported that are not bnfold's, and files mapped.
    """

    def __init__(
        self,
        folder: Path,
        *,
        refer: Refer | None = None,
        call: Callable[..., None] | None = None,
        imports: bool = False,
    ) -> None:
        self._folder = folder
        self._decoders: dict[str, Callable[[dict[str, Any]], Any]] = {
            "tuple": lambda value: tuple(self.decode(value["items"])),
            "mapping": self._mapping,
            "path": lambda value: Path(value["text"]),
            "array": self._array,
            "enum": lambda value: _own(value["class"])(value["value"]),
            "record": self._record,
            "rule": lambda value: _rule(value["code"]),
        }
        if refer is not None:
            self._decoders["plan"] = lambda _: refer.read().plan
            self._decoders["graph"] = lambda _: refer.read().graph
            self._decoders["batchnorm"] = lambda value: refer.batchnorm(tuple(value["path"]))
        if call is not None:
            self._decoders["function"] = lambda value: functools.partial(call, value["number"])
        self._mode: Literal["r"] | None = "r" if imports else None
        if imports:
            self._decoders["class"] = lambda value: _found(value["name"])
            self._decoders["mapped"] = _map

    def decode(self, value: Any) -> Any:
        """The value that was sent. Raises ValueError for what no sender sends."""
        if isinstance(value, list):
            return [self.decode(item) for item in value]
        if isinstance(value, dict):
            if value[_KIND] not in self._decoders:
                raise ValueError(f"nothing of the kind {value[_KIND]!r} was expected")
            return self._decoders[value[_KIND]](value)
        return value

    def _mapping(self, value: dict[str, Any]) -> dict[Any, Any]:
        return {self.decode(key): self.decode(item) for key, item in value["items"]}

    def _array(self, value: dict[str, Any]) -> Any:
        return np.load(self._folder / Path(value["file"]).name, self._mode, allow_pickle=False)

    def _record(self, value: dict[str, Any]) -> Any:
        fields = {name: self.decode(item) for name, item in value["fields"].items()}
        return _own(value["class"])(**fields)


def _map(value: dict[str, Any]) -> Any:
    shape, dtype, offset, strides = value["place"]
    content = np.memmap(value["file"], np.uint8, "r")
    return np.ndarray(shape, dtype, content, offset, strides)


def _rule(code: str) -> Any:
    from bnfold.audit.registry import named  # noqa: PLC0415 - most jobs send none

    return named(code)


def _own(name: str) -> Any:
    """A dataclass or an enumeration of bnfold's."""
    found = _found(name) if name.startswith("bnfold.") else None
    if isinstance(found, type) and (dataclasses.is_dataclass(found) or issubclass(found, Enum)):
        return found
    raise ValueError(f"{name!r} is no value of bnfold's")


def _found(name: str) -> Any:
    module, _, path = name.partition(":")
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    return found

"""Results as values that JSON can hold: the one place where that is decided."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import PurePath
from typing import Any, ClassVar

from bnfold.model.container.printing import printable

SCHEMA_VERSION = 1
"""That of all reports."""


class Serializable:
    """A result with a JSON form: the attributes that `json_keys` names, else its fields, in order.

    `json_names` has the keys of attributes that are called otherwise in JSON. A class whose form is
    another one has a `to_dict` of its own.
    """

    json_keys: ClassVar[tuple[str, ...]] = ()
    json_names: ClassVar[Mapping[str, str]] = {}

    def to_dict(self) -> dict[str, Any]:
        """The result for JSON; a number that is not finite becomes None."""
        found = _attributes(self, self.json_keys)
        return {self.json_names.get(name, name): value for name, value in found.items()}


class Shown:
    """A result that people look at, in a prompt, in a notebook and in the message of a test.

    It is a line as `repr`. As text it is the report of the command line, and in a notebook that in
    colours, as far as `VIEWS` has them: the Python API puts them there.
    """

    @property
    def brief(self) -> str:
        """What came of it, in a line."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {printable(self.brief)}>"  # names from files are in it

    def __str__(self) -> str:
        return VIEWS.get("text", repr)(self)

    def _repr_html_(self) -> str | None:
        return VIEWS["html"](self) if "html" in VIEWS else None


VIEWS: dict[str, Callable[[Any], str]] = {}
"""The report on a result as "text" and as "html"."""


class Report(Serializable):
    """The result of a whole command, whose JSON form says of which version it is."""

    def to_dict(self) -> dict[str, Any]:
        """The JSON report."""
        return {"schema_version": SCHEMA_VERSION, **super().to_dict()}


class Stream:
    """A list of JSON whose entries are made each time it is gone through, and not kept."""

    def __init__(self, entries: Callable[[], Iterable[Any]]) -> None:
        self._entries = entries

    def __iter__(self) -> Iterator[Any]:
        return iter(self._entries())


def parts_of(document: Any, indent: str = "\n") -> Iterator[str]:
    """JSON as `text_of` has it, indented by 2, in parts: of a `Stream` one entry at a time."""
    if isinstance(document, Stream):
        entries, (begin, end) = (("", value) for value in document), "[]"
    elif isinstance(document, dict) and any(isinstance(v, Stream) for v in document.values()):
        entries, (begin, end) = ((f"{text_of(k)}: ", v) for k, v in document.items()), "{}"
    else:
        yield text_of(document, indent=2).replace("\n", indent)
        return
    inner, comma = f"{indent}  ", ""
    yield begin
    for key, value in entries:
        yield f"{comma}{inner}{key}"
        yield from parts_of(value, inner)
        comma = ","
    yield f"{indent}{end}" if comma else end


def text_of(value: Any, **how: Any) -> str:
    """JSON without commands for a CI log: `##vso[` is written with an escape."""
    return json.dumps(value, allow_nan=False, **how).replace("##", r"#\u0023")


def plain(value: Any) -> Any:
    """A value for JSON, with all that is in it.

    Dataclasses and mappings become objects, sequences and arrays lists, enumerations their values,
    files their paths, and numbers that are not finite None.
    """
    for kinds, form in _FORMS:
        if isinstance(value, kinds):
            return form(value)
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if is_dataclass(value):
        return _attributes(value, ())
    return plain(value.tolist())  # of an array of numpy's, or of one of its numbers


_FORMS: tuple[tuple[Any, Callable[[Any], Any]], ...] = (
    (Enum, lambda value: value.value),  # before text, which some of them are
    ((type(None), str, int), lambda value: value),
    (float, lambda value: float(value) if math.isfinite(value) else None),
    (Mapping, lambda value: {key: plain(inside) for key, inside in value.items()}),
    ((list, tuple), lambda value: [plain(inside) for inside in value]),
    (PurePath, str),
)


def _attributes(value: Any, names: tuple[str, ...]) -> dict[str, Any]:
    names = names or tuple(one.name for one in fields(value))
    return {name: plain(getattr(value, name)) for name in names}

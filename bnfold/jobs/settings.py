"""The settings of `inspect`, from `[tool.bnfold]` of a TOML file, or by default.

The file is the one that is named, or the nearest pyproject.toml with such a table, from the working
directory upwards. Paths in it are taken from its folder. Whatever it says that has no meaning is an
error that names the file and the key.
"""

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from bnfold.audit import TARGET_DTYPES, Rule, Severity, Thresholds
from bnfold.audit.selection import ALL, Suppression, chosen, codes
from bnfold.errors import SettingsError
from bnfold.jobs.products import PRODUCTS, RECALIBRATIONS
from bnfold.model.container.guard import read_whole
from bnfold.model.container.printing import printable
from bnfold.model.training import training_rules

if TYPE_CHECKING:
    from bnfold.observation.observe import DataRun

FILE_NAME = "pyproject.toml"
NEVER = "never"
FAIL_ON = (*(severity.value for severity in Severity), NEVER)

_TABLE = "tool.bnfold"
_MOST_BYTES = 4 << 20


@dataclass(frozen=True)
class Settings:
    """What `inspect` looks for, and what of it counts.

    Attributes:
        select: codes of rules or prefixes of them.
        ignore: likewise, those that are not wanted.
        fail_on: from which severity on a finding fails the gate; None is never.
        exclude: shell patterns of what is passed over in folders.
        baseline: the file of known findings.
        target_dtype: what the model will be computed in; None is what its layers say.
        thresholds: of the rules.
        suppressions: findings to live with.
        root: the folder from which the suppressions see models.
        run: data to run the models over; None to run nothing.
        file: where they were read; None for nowhere.
        sha256: digests of which each model must have one; none for any model.
        keras: the version of Keras that will run the models; None is the installed one.
        prepare: the options of `bnfold prepare`, by name; paths are from the folder of the file.
    """

    select: tuple[str, ...] = ALL
    ignore: tuple[str, ...] = ()
    fail_on: Severity | None = Severity.ERROR
    exclude: tuple[str, ...] = ()
    baseline: Path | None = None
    target_dtype: str | None = None
    thresholds: Thresholds = field(default_factory=Thresholds)
    suppressions: tuple[Suppression, ...] = ()
    root: Path = Path()
    run: "DataRun | None" = None
    file: Path | None = None
    sha256: tuple[str, ...] = ()
    keras: str | None = None
    prepare: Mapping[str, Any] = field(default_factory=dict)

    def rules(self) -> tuple[Rule, ...]:
        """The rules that are wanted and can say anything."""
        wanted = chosen(self.select, self.ignore)
        return tuple(rule for rule in wanted if self.run is not None or not rule.needs_data)


def find(start: Path) -> Path | None:
    """The nearest pyproject.toml with such a table, from a folder upwards; its path from there."""
    for folder in (start, *start.parents):
        path = Path(os.path.relpath(folder / FILE_NAME, start))
        # No parser is imported, and nothing parsed, for a file that does not speak of bnfold.
        if os.path.isfile(path) and b"bnfold" in _content(path) and _table(path) is not None:
            return path
    return None


def read(path: Path) -> Settings:
    """The settings of a TOML file.

    Raises:
        SettingsError: it cannot be read, has no such table, or a key or value that means nothing.
    """
    table = _table(path)
    if table is None:
        raise SettingsError(f"{printable(str(path))}: has no table [{_TABLE}]")
    try:
        found = _values(table, _KEYS, _TABLE)
    except _MeaninglessError as error:
        raise SettingsError(f"{printable(str(path))}: {printable(str(error))}") from None
    root = path.parent
    if "baseline" in found:
        found["baseline"] = root / found["baseline"]
    if "prepare" in found:
        paths = found["prepare"].keys() & {"data", "labels", "test_data"}
        found["prepare"] |= {name: root / found["prepare"][name] for name in paths}
    return replace(Settings(root=root, file=path), **found)


def _content(path: Path) -> bytes:
    try:
        return read_whole(path, _MOST_BYTES)
    except OSError as error:
        raise SettingsError(f"{printable(str(path))}: {error.strerror or error}") from None


def _table(path: Path) -> Any:
    """What the file has under tool.bnfold; None for nothing."""
    import tomllib  # noqa: PLC0415 - only where there is something to parse

    text = _content(path)
    try:
        content = tomllib.loads(text.decode())
    except (ValueError, RecursionError) as error:
        reason = printable(str(error))
        raise SettingsError(f"{printable(str(path))}: is not TOML: {reason}") from None
    tool = content.get("tool")
    return tool.get("bnfold") if isinstance(tool, dict) else None


class _MeaninglessError(Exception):
    """A key and what is wrong with it; never leaves this module."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"{key}: {problem}")


_Reader: TypeAlias = Callable[[str, Any], Any]
"""Makes a setting of a value, given the key for its complaints."""


def _values(table: Any, keys: Mapping[str, tuple[str, _Reader]], where: str) -> dict[str, Any]:
    """The settings in a table, by the names of the fields that they are for."""
    found = {}
    for key, value in _checked(where, table, dict, "a table").items():
        if key not in keys:
            raise _MeaninglessError(f"{where}.{key}", f"unknown key{_did_you_mean(key, keys)}")
        name, reader = keys[key]
        found[name] = reader(f"{where}.{key}", value)
    return found


def _did_you_mean(word: str, words: Iterable[str]) -> str:
    """A hint at the words that are like one that is unknown, or at all of them."""
    import difflib  # noqa: PLC0415 - for a mistake only

    alike = difflib.get_close_matches(word, list(words))
    return f"; did you mean {' or '.join(alike)}?" if alike else f"; known are {', '.join(words)}"


def _checked(key: str, value: Any, kind: type, what: str) -> Any:
    if not isinstance(value, kind):
        raise _MeaninglessError(key, f"must be {what}, not {_toml_name(value)}")
    return value


def _toml_name(value: Any) -> str:
    names = {bool: "a boolean", int: "an integer", float: "a float", str: "a string"}
    others = {list: "an array", dict: "a table"}
    return (names | others).get(type(value), "a date or time")


def _text(key: str, value: Any) -> str:
    text: str = _checked(key, value, str, "a string")
    if not text.strip():
        raise _MeaninglessError(key, "must not be empty")
    return text


def _texts(key: str, value: Any) -> tuple[str, ...]:
    return tuple(_text(key, one) for one in _checked(key, value, list, "an array of strings"))


def _codes(key: str, value: Any) -> tuple[str, ...]:
    try:
        return codes(_texts(key, value))
    except SettingsError as error:
        raise _MeaninglessError(key, str(error)) from None


def _some_codes(key: str, value: Any) -> tuple[str, ...]:
    found = _codes(key, value)
    if not found:
        raise _MeaninglessError(key, "must name a rule")
    return found


def _one_of(choices: Iterable[str]) -> _Reader:
    def reader(key: str, value: Any) -> str:
        text = _text(key, value)
        if text not in choices:
            raise _MeaninglessError(key, f"must be {' or '.join(choices)}, not {text!r}")
        return text

    return reader


def severity(name: str) -> Severity | None:
    """What --fail-on means by a word."""
    return None if name == NEVER else Severity(name)


def _fail_on(key: str, value: Any) -> Severity | None:
    return severity(_one_of(FAIL_ON)(key, value))


def _number(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _MeaninglessError(key, f"must be a number, not {_toml_name(value)}")
    if not 0 < value <= sys.float_info.max:
        raise _MeaninglessError(key, "must be positive and finite")
    return float(value)


def _keras(key: str, value: Any) -> str:
    text = _text(key, value)
    try:
        training_rules(text)
    except SettingsError as error:
        raise _MeaninglessError(key, str(error)) from None
    return text


def _thresholds(key: str, value: Any) -> Thresholds:
    keys = {one.name: (one.name, _number) for one in fields(Thresholds)}
    return Thresholds(**_values(value, keys, key))


def _suppressions(key: str, value: Any) -> tuple[Suppression, ...]:
    return tuple(
        _suppression(f"{key}, entry {number}", one)
        for number, one in enumerate(_checked(key, value, list, "an array of tables"), 1)
    )


def _suppression(key: str, value: Any) -> Suppression:
    keys = {
        "layer": ("layer", _text),
        "rules": ("rules", _some_codes),
        "reason": ("reason", _text),
        "model": ("model", _text),
    }
    found = _values(value, keys, key)
    for needed in ("layer", "rules", "reason"):
        if needed not in found:
            raise _MeaninglessError(key, f"{needed} is missing")
    return Suppression(**found)


def _flag(key: str, value: Any) -> bool:
    found: bool = _checked(key, value, bool, "true or false")
    return found


def _whole(key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _MeaninglessError(key, f"must be a whole number, not {_toml_name(value)}")
    if value < 0:
        raise _MeaninglessError(key, "must not be negative")
    return value


def _changed(key: str, value: Any) -> int | str:
    from bnfold.running.options import Bounds  # noqa: PLC0415 - hardly any file has it

    found = value if isinstance(value, str) else _whole(key, value)
    try:
        Bounds(max_changed=found)
    except SettingsError as error:
        raise _MeaninglessError(key, str(error).partition(" ")[2]) from None
    return found


def _some_of(choices: Sequence[str]) -> _Reader:
    one = _one_of(choices)
    return lambda key, value: tuple(one(key, item) for item in _texts(key, value))


def _prepare(key: str, value: Any) -> dict[str, Any]:
    return _values(value, _PREPARE_KEYS, key)


_PREPARE_KEYS: dict[str, tuple[str, _Reader]] = {
    "to": ("to", _some_of(tuple(PRODUCTS))),
    "data": ("data", _text),
    "labels": ("labels", _text),
    "test-data": ("test_data", _text),
    "recalibrate": ("recalibrate", _one_of(RECALIBRATIONS)),
    "fail-on": ("fail_on", _one_of(FAIL_ON)),
    "keep": ("keep", _texts),
    "keras": ("keras", _keras),
    "inference": ("inference", _flag),
    "opset": ("opset", _whole),
    "strict": ("strict", _flag),
    "seed": ("seed", _whole),
    "rtol": ("rtol", _number),
    "atol": ("atol", _number),
    "min-sqnr": ("min_sqnr", _number),
    "max-changed": ("max_changed", _changed),
}
_KEYS: dict[str, tuple[str, _Reader]] = {
    "select": ("select", _some_codes),
    "ignore": ("ignore", _codes),
    "fail-on": ("fail_on", _fail_on),
    "exclude": ("exclude", _texts),
    "baseline": ("baseline", _text),
    "target-dtype": ("target_dtype", _one_of(TARGET_DTYPES)),
    "keras": ("keras", _keras),
    "thresholds": ("thresholds", _thresholds),
    "suppress": ("suppressions", _suppressions),
    "prepare": ("prepare", _prepare),
}

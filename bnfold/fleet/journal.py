"""JSON Lines of a run: written while it goes on, read by the next one, merged with others."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnfold.errors import SettingsError
from bnfold.fleet.row import KEYS, Json, Row
from bnfold.serialize import SCHEMA_VERSION, text_of


@dataclass(frozen=True)
class Journal:
    """What is in JSON Lines.

    Attributes:
        rows: the last one of each model.
        ended: the shards that were done to their ends, "3/20", as a line says for each.
    """

    rows: Sequence[Row] = ()
    ended: frozenset[str] = frozenset()


def line(row: Row) -> str:
    """A row as a line of JSON."""
    return _line(row.to_dict())


def lines(rows: Sequence[Row], shard: str | None) -> Iterator[str]:
    """All rows of a run, a line each, and for a shard one more, which says that these are all.

    Without it nobody could tell a shard in which no model is, or whose run was killed.
    """
    yield from (f"{line(row)}\n" for row in rows)
    yield from (f"{one}\n" for one in ending(len(rows), shard))


def ending(models: int, shard: str | None) -> list[str]:
    """What follows the rows of a shard with so many models; nothing without a shard."""
    if shard is None:
        return []
    return [_line({"schema_version": SCHEMA_VERSION, "shard": shard, "models": models})]


def _line(value: Json) -> str:
    return text_of(value, separators=(",", ":"))


def parse(lines: Iterable[str], name: str) -> Journal:
    """A journal from its lines, which may be of several; a last one that was cut off is left out.

    Raises:
        SettingsError: it is no journal of this version.
    """
    found: dict[str, Row] = {}
    endings: dict[str, int] = {}
    for number, one in enumerate(lines, start=1):
        if not one.strip():
            continue
        try:
            value = json.loads(one)
            if value.keys() == _ENDING:
                endings[str(value["shard"])] = value["models"]
                continue
            row = _row(value)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            if not one.endswith("\n"):  # the run ended while it wrote this
                break
            raise SettingsError(f"{name}: line {number} is no row of bnfold's JSON Lines") from None
        found.pop(row.path, None)
        found[row.path] = row
    models = Counter(row.shard for row in found.values())
    ended = frozenset(shard for shard, count in endings.items() if models[shard] == count)
    return Journal(tuple(found.values()), ended)


_ENDING = {"schema_version", "shard", "models"}


def _row(value: Any) -> Row:
    if value["schema_version"] != SCHEMA_VERSION:
        raise ValueError
    given = {key: value[key] for key in KEYS}
    is_well_formed = (
        isinstance(given["path"], str)
        and given["exit_code"] in (0, 1, 2)
        and isinstance(given["notes"], dict)
        and isinstance(given["files"], dict)
        and isinstance(given["number"], (int, type(None)))
        and isinstance(given["report"], (dict, type(None)))
        and (given["report"] is None) == (given["error"] is not None)
    )
    if not is_well_formed:
        raise ValueError
    return Row(**given)


def read(path: Path, name: str, *, must_exist: bool = False) -> Journal:
    """The journal in a file, an empty one where there is none yet, unless it must be there.

    Raises:
        SettingsError: it cannot be read, or is no journal.
    """
    try:
        with path.open(encoding="utf-8") as lines:
            return parse(lines, name)
    except FileNotFoundError as error:
        if must_exist:
            raise SettingsError(f"{name}: {error.strerror}") from None
        return Journal()
    except UnicodeDecodeError:
        raise SettingsError(f"{name}: no JSON Lines of bnfold's") from None
    except OSError as error:
        raise SettingsError(f"{name}: {error.strerror or error}") from None

"""JSON Lines of a run: written while it goes on, read by the next one, merged with others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bnfold.errors import SettingsError
from bnfold.fleet.row import KEYS, Row
from bnfold.serialize import SCHEMA_VERSION, text_of


def line(row: Row) -> str:
    """A row as a line of JSON."""
    return text_of(row.to_dict(), separators=(",", ":"))


def rows(text: str, name: str) -> list[Row]:
    """The rows of a journal, the last one of each model; a last line that was cut off is left out.

    Raises:
        SettingsError: it is no journal of this version.
    """
    found: dict[str, Row] = {}
    lines = text.split("\n")
    for number, one in enumerate(lines, start=1):
        if not one.strip():
            continue
        try:
            row = _row(json.loads(one))
        except (ValueError, TypeError, KeyError, RecursionError):
            if number == len(lines):  # the run ended while it wrote this
                break
            raise SettingsError(f"{name}: line {number} is no row of bnfold's JSON Lines") from None
        found.pop(row.path, None)
        found[row.path] = row
    return list(found.values())


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


def read(path: Path, name: str, *, must_exist: bool = False) -> list[Row]:
    """The rows of a file, and none where there is none yet, unless it must be there.

    Raises:
        SettingsError: it cannot be read, or is no journal.
    """
    try:
        return rows(path.read_text("utf-8"), name)
    except FileNotFoundError as error:
        if must_exist:
            raise SettingsError(f"{name}: {error.strerror}") from None
        return []
    except UnicodeDecodeError:
        raise SettingsError(f"{name}: no JSON Lines of bnfold's") from None
    except OSError as error:
        raise SettingsError(f"{name}: {error.strerror or error}") from None

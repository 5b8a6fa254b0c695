"""The JSON Schemas of the reports, all in one file, whose `$defs` they share."""

import json
import re
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

from bnfold.serialize import SCHEMA_VERSION

_DEFINITION = "#/$defs/"


def schema(name: str) -> dict[str, Any]:
    """The JSON Schema of a report, such as "inspect": see docs/json.md.

    Raises:
        ValueError: no report has this name.
    """
    whole = json.loads(files("bnfold.reports").joinpath("schema.json").read_text("utf-8"))
    names = [one["$ref"].removeprefix(_DEFINITION) for one in whole["oneOf"]]
    if name not in names:
        raise ValueError(f"no schema is named {name!r}; there are {', '.join(sorted(names))}")
    every = whole["$defs"]
    needed = {one: every[one] for one in every if one in set(_needed(name, every))}
    return {
        "$schema": whole["$schema"],
        "$id": f"urn:bnfold:schema:{name}:{SCHEMA_VERSION}",
        **every[name],
        "$defs": needed,
    }


def _needed(name: str, every: dict[str, Any]) -> Iterator[str]:
    """The definitions that one of them refers to, directly or not; they form no circle."""
    for inside in re.findall(rf'"{re.escape(_DEFINITION)}([^"]+)"', json.dumps(every[name])):
        yield inside
        yield from _needed(inside, every)

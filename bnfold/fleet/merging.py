"""One report of several on parts of the models: of shards, of runs, of machines.

The merged report is what a run over all of the models would have made: models stand in the order
in which a folder is searched. A part says which one it is, so one that is missing is noticed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote

from bnfold.errors import SettingsError
from bnfold.fleet.row import Json, Row

_SHARD = re.compile(r"([1-9]\d{0,8})/([1-9]\d{0,8})")


def rows(parts: Sequence[Sequence[Row]]) -> list[Row]:
    """The rows of several journals."""
    check([{row.shard for row in part} for part in parts])
    every = (replace(row, shard=None) for part in parts for row in part)
    return _unique(every, lambda row: row.path)


def reports(parts: Sequence[Json]) -> Json:
    """The JSON reports of `inspect`, or of another command for many models, as one."""
    kinds = {_kind(part) for part in parts}
    if len(kinds) != 1 or None in kinds:
        raise SettingsError("not all of these are reports on many models of the same command")
    (kind,) = kinds
    assert kind is not None  # noqa: S101
    done_as, done_key, failed_key = kind
    check([{part["summary"].get("shard")} for part in parts])
    done, failed = (
        _unique([one for part in parts for one in part[key]], lambda one: one["path"])
        for key in (done_key, failed_key)
    )
    return {
        **parts[0],
        "summary": {"found": len(done) + len(failed), done_as: len(done)},
        done_key: done,
        failed_key: failed,
    }


def _kind(part: Json) -> tuple[str, str, str] | None:
    """What a report calls its parts; None where it is of one model, or no report."""
    for kind in (("read", "models", "unreadable"), ("done", "reports", "failed")):
        if {"schema_version", "summary", *kind[1:]} <= part.keys():
            return kind
    return None


def sarif(parts: Sequence[Json]) -> Json:
    """Logs of SARIF that bnfold wrote, as one."""
    runs = [run for part in parts for run in part["runs"]]
    drivers = {run["tool"]["driver"]["version"] for run in runs}
    if {run["tool"]["driver"]["name"] for run in runs} != {"bnfold"} or len(drivers) != 1:
        raise SettingsError("not all of these logs are of the same version of bnfold")
    invocations = [run["invocations"][0] for run in runs]
    check([{one["properties"].get("shard")} for one in invocations])
    read = sum(one["properties"]["read"] for one in invocations)
    found = sum(one["properties"]["found"] for one in invocations)
    notes = [note for one in invocations for note in one["toolExecutionNotifications"]]
    invocation = {
        "executionSuccessful": all(one["executionSuccessful"] for one in invocations),
        "exitCodeDescription": f"{read} of {found} read",
        "properties": {"found": found, "read": read},
        "toolExecutionNotifications": sorted(notes, key=lambda one: _parts(_of_result(one))),
    }
    run = {
        "tool": runs[0]["tool"],
        "invocations": [invocation],
        "artifacts": _unique(
            [one for run in runs for one in run["artifacts"]], lambda one: one["location"]["uri"]
        ),
        "results": sorted(
            (one for run in runs for one in run["results"]), key=lambda one: _parts(_of_result(one))
        ),
    }
    return {**parts[0], "runs": [run]}


def _of_result(result: Json) -> str:
    uri: str = result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    return uri


def _parts(path: str) -> tuple[str, ...]:
    return PurePosixPath(unquote(path)).parts


def _unique(every: Iterable[Any], path: Callable[[Any], str]) -> list[Any]:
    """The parts by path, each once. Raises SettingsError where two on one path differ."""
    found: dict[str, Any] = {}
    for one in every:
        if found.setdefault(path(one), one) != one:
            raise SettingsError(f"two reports on {path(one)} differ: merge those of one run")
    return [found[name] for name in sorted(found, key=lambda name: PurePosixPath(name).parts)]


def check(labels: Sequence[set[str | None]]) -> None:
    """See that there are all shards, where there are shards; a part of which is empty has no label.

    Raises:
        SettingsError: one is missing, or they are of different wholes.
    """
    named = list(_shards(labels))
    if not named:
        return
    wholes = {of for _, of in named}
    if len(wholes) != 1:
        raise SettingsError("these are shards of different wholes")
    (of,) = wholes
    missing = sorted(set(range(1, of + 1)) - {shard for shard, _ in named})
    if len(missing) > sum(label <= {None} for label in labels):
        shown = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
        raise SettingsError(f"of {of} shards these are missing: {shown}")


def _shards(labels: Iterable[set[str | None]]) -> Iterator[tuple[int, int]]:
    for label in set().union(*labels) - {None}:
        match = _SHARD.fullmatch(str(label))
        if match is None:
            raise SettingsError(f"{label!r} is no shard")
        yield int(match[1]), int(match[2])

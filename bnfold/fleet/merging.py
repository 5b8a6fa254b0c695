"""One report of several on parts of the models: of shards, of runs, of machines.

The merged report is what a run over all of the models would have made. A shard says which one it
is, so one that is missing is noticed, and where its models stand among all. Those of other parts
stand in the order in which a folder is searched.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote

from bnfold.errors import SettingsError
from bnfold.fleet.journal import Journal
from bnfold.fleet.results import INSPECTED, PROCESSED, Kind, how_many_read
from bnfold.fleet.row import Json, Row, shard_of


def rows(parts: Mapping[str, Journal]) -> list[Row]:
    """The rows of several journals, by their names."""
    for name, part in parts.items():
        cut = sorted({row.shard for row in part.rows if row.shard is not None} - part.ended)
        if cut:
            raise SettingsError(f"{name}: the run of shard {cut[0]} did not come to its end")
    check(shard for part in parts.values() for shard in part.ended)
    every = (row for part in parts.values() for row in part.rows)
    found, _ = _unique(
        (row.number, row.path, True, replace(row, shard=None, number=None)) for row in every
    )
    return found


def reports(parts: Sequence[Json]) -> Json:
    """The JSON reports of `inspect`, or of another command for many models, as one."""
    kinds = [kind for kind in (INSPECTED, PROCESSED) if all(_is_of(part, kind) for part in parts)]
    if not kinds:
        raise SettingsError("not all of these are reports on many models of the same command")
    (kind,) = kinds
    summaries = [part["summary"] for part in parts]
    check(one.get("shard") for one in summaries)
    done, failed = _unique(
        (number, one["path"], is_done, one)
        for part in parts
        for is_done, key in ((True, kind.reports), (False, kind.failed))
        for number, one in _numbered(part[key], part["summary"], is_done)
    )
    left = _left_out(summaries)
    others = sorted({name for one in summaries for name in one.get("uncompared", ())})
    return {
        **parts[0],
        "summary": {
            "found": len(done) + len(failed) + left.get("left_out", 0),
            kind.done: len(done),
            **left,
            **({"uncompared": others} if others else {}),
        },
        kind.reports: done,
        kind.failed: failed,
    }


def _left_out(summaries: Iterable[Json]) -> dict[str, int]:
    """How many models of all parts were left out, where any was; a shard may be there twice."""
    parts = {
        one.get("shard", number): one.get("left_out", 0) for number, one in enumerate(summaries)
    }
    left = sum(parts.values())
    return {"left_out": left} if left else {}


def _is_of(part: Json, kind: Kind) -> bool:
    """Whether it is a report of this kind, and not one on a single model, or none."""
    return {"schema_version", "summary", kind.reports, kind.failed} <= part.keys()


def sarif(parts: Sequence[Json]) -> Json:
    """Logs of SARIF that bnfold wrote, as one."""
    runs = [run for part in parts for run in part["runs"]]
    drivers = {run["tool"]["driver"]["version"] for run in runs}
    if {run["tool"]["driver"]["name"] for run in runs} != {"bnfold"} or len(drivers) != 1:
        raise SettingsError("not all of these logs are of the same version of bnfold")
    invocations = [run["invocations"][0] for run in runs]
    every = [one["properties"] for one in invocations]
    check(one.get("shard") for one in every)
    models, notes = _unique(one for run in runs for one in _of_log(run))
    left = _left_out(every)
    found = len(models) + len(notes) + left.get("left_out", 0)
    summary = {"found": found, "read": len(models), **left}
    invocation = {
        "executionSuccessful": all(one["executionSuccessful"] for one in invocations),
        "exitCodeDescription": how_many_read(summary),
        "properties": summary,
        "toolExecutionNotifications": notes,
    }
    run = {
        "tool": runs[0]["tool"],
        "invocations": [invocation],
        "artifacts": [artifact for artifact, _ in models],
        "results": [result for _, results in models for result in results],
    }
    return {**parts[0], "runs": [run]}


def _of_log(run: Json) -> Iterator[_Entry]:
    """The models of a log of SARIF: those that were read with their results, and the others."""
    (invocation,) = run["invocations"]
    about = invocation["properties"]
    results: dict[str, list[Json]] = {}
    for result in run["results"]:
        results.setdefault(_uri(result), []).append(result)
    for number, artifact in _numbered(run["artifacts"], about, is_done=True):
        uri = artifact["location"]["uri"]
        yield number, unquote(uri), True, (artifact, results.pop(uri, []))
    for number, note in _numbered(invocation["toolExecutionNotifications"], about, is_done=False):
        yield number, unquote(_uri(note)), False, note
    if results:  # of no model in the log: it is not as bnfold wrote it
        raise ValueError


def _uri(result: Json) -> str:
    uri: str = result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    return uri


def _numbered(every: Sequence[Any], about: Json, is_done: bool) -> Iterator[tuple[int | None, Any]]:
    """The parts of a report with their numbers, where it is that of a shard."""
    numbers = about["numbers"]["done" if is_done else "failed"] if "numbers" in about else None
    return zip(numbers or [None] * len(every), every, strict=True)


_Entry = tuple[int | None, str, bool, Any]
"""The number of a model, its path, whether it was done, and what a report says of it."""


def _unique(entries: Iterable[_Entry]) -> tuple[list[Any], list[Any]]:
    """What reports say of models, of each once: of those that were done, and of the others.

    They are in the order of their numbers, which are those of one run or none, and then of their
    paths.

    Raises:
        SettingsError: two reports on one model differ.
    """
    found: dict[str, tuple[int | None, bool, Any]] = {}
    for number, path, *said in entries:
        if found.setdefault(path, (number, *said))[1:] != (*said,):
            raise SettingsError(f"two reports on {path} differ: merge those of one run")
    ordered = sorted(found, key=lambda path: (found[path][0] or 0, PurePosixPath(path).parts))
    every = [found[path][1:] for path in ordered]
    return [one for done, one in every if done], [one for done, one in every if not done]


def check(labels: Iterable[str | None]) -> None:
    """See that there are all shards, where there are shards.

    Raises:
        SettingsError: one is missing, or they are not of one run.
    """
    named = [shard_of(str(label)) for label in set(labels) - {None}]
    if not named:
        return
    wholes = {of for _, of in named}
    if len(wholes) != 1:
        raise SettingsError("these shards are not of one run")
    (of,) = wholes
    done = {shard for shard, _ in named}
    missing = [*islice((one for one in range(1, of + 1) if one not in done), 6)]
    if missing:
        shown = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
        raise SettingsError(f"of {of} shards these are missing: {shown}")

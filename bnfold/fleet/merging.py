"""One report of several on parts of the models: of shards, of runs, of machines.

The merged report is what a run over all of the models would have made. A shard says which one it
is, so one that is missing is noticed, and where its models stand among all. Those of other parts
stand in the order in which a folder is searched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
    every = [row for part in parts.values() for row in part.rows]
    found = _unique([(row.number, replace(row, shard=None, number=None)) for row in every], _path)
    return list(found)


def _path(row: Row) -> str:
    return row.path


def reports(parts: Sequence[Json]) -> Json:
    """The JSON reports of `inspect`, or of another command for many models, as one."""
    kinds = [kind for kind in (INSPECTED, PROCESSED) if all(_is_of(part, kind) for part in parts)]
    if not kinds:
        raise SettingsError("not all of these are reports on many models of the same command")
    (kind,) = kinds
    summaries = [part["summary"] for part in parts]
    check(one.get("shard") for one in summaries)
    done, failed = (
        _unique(
            [pair for part in parts for pair in _numbered(part[key], part["summary"], name)],
            lambda one: one["path"],
        )
        for name, key in (("done", kind.reports), ("failed", kind.failed))
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
    """How many models of all parts were left out, where any was."""
    left = sum(one.get("left_out", 0) for one in summaries)
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
    totals = {name: sum(one[name] for one in every) for name in ("found", "read")}
    summary = {**totals, **_left_out(every)}
    notes, artifacts = (
        [
            pair
            for part, about in zip(parts_of, every, strict=True)
            for pair in _numbered(part, about, name)
        ]
        for name, parts_of in (
            ("failed", [one["toolExecutionNotifications"] for one in invocations]),
            ("done", [run["artifacts"] for run in runs]),
        )
    )
    models = _unique(artifacts, lambda one: one["location"]["uri"], _parts)
    place = {one["location"]["uri"]: number for number, one in enumerate(models)}
    invocation = {
        "executionSuccessful": all(one["executionSuccessful"] for one in invocations),
        "exitCodeDescription": how_many_read(summary),
        "properties": summary,
        "toolExecutionNotifications": _in_order(notes, lambda one: _parts(_of_result(one))),
    }
    run = {
        "tool": runs[0]["tool"],
        "invocations": [invocation],
        "artifacts": models,
        "results": sorted(
            (one for run in runs for one in run["results"]), key=lambda one: place[_of_result(one)]
        ),
    }
    return {**parts[0], "runs": [run]}


def _of_result(result: Json) -> str:
    uri: str = result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    return uri


def _parts(path: str) -> tuple[str, ...]:
    return PurePosixPath(unquote(path)).parts


def _numbered(every: Sequence[Any], about: Json, name: str) -> Iterator[tuple[int | None, Any]]:
    """The parts of a report with their numbers, where it is that of a shard."""
    numbers = about["numbers"][name] if "numbers" in about else [None] * len(every)
    return zip(numbers, every, strict=True)


def _unique(
    every: Sequence[tuple[int | None, Any]],
    path: Callable[[Any], str],
    order: Callable[[str], Any] = lambda name: PurePosixPath(name).parts,
) -> list[Any]:
    """The parts by path, each once. Raises SettingsError where two on one path differ."""
    found: dict[str, tuple[int | None, Any]] = {}
    for number, one in every:
        if found.setdefault(path(one), (number, one))[1] != one:
            raise SettingsError(f"two reports on {path(one)} differ: merge those of one run")
    return _in_order(list(found.values()), lambda one: order(path(one)))


def _in_order(every: Sequence[tuple[int | None, Any]], order: Callable[[Any], Any]) -> list[Any]:
    """Parts by their numbers, which are those of one run or none, and then by a key."""
    return [one for _, one in sorted(every, key=lambda pair: (pair[0] or 0, order(pair[1])))]


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

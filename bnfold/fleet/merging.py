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
from bnfold.fleet.row import Json, Row, packed, shard_of, unpacked
from bnfold.serialize import Stream


def rows(parts: Mapping[str, Journal]) -> list[Row]:
    """The rows of several journals, by their names."""
    for name, part in parts.items():
        cut = sorted({row.shard for row in part.rows if row.shard is not None} - part.ended)
        if cut:
            raise SettingsError(f"{name}: the run of shard {cut[0]} did not come to its end")
    check(shard for part in parts.values() for shard in part.ended)
    found = _Found()
    for row in (row for part in parts.values() for row in part.rows):
        found.add(row.number, row.path, True, replace(row, shard=None, number=None))
    return found.said(is_done=True)


def reports(parts: Iterable[Json]) -> Json:
    """The JSON reports of `inspect`, or of another command for many models, as one.

    One part at a time is in memory.
    """
    kinds, summaries, found = [INSPECTED, PROCESSED], [], _Found()
    first: Json = {}
    for part in parts:
        kinds = [kind for kind in kinds if _is_of(part, kind)]
        if len(kinds) != 1:
            raise SettingsError("not all of these are reports on many models of the same command")
        summaries.append(part["summary"])
        for is_done, key in ((True, kinds[0].reports), (False, kinds[0].failed)):
            for number, one in _numbered(part.pop(key), part["summary"], is_done):
                found.add(number, one["path"], is_done, packed(one))
        first = first or part
    check(one.get("shard") for one in summaries)
    done, failed = found.said(is_done=True), found.said(is_done=False)
    left, (kind,) = _left_out(summaries), kinds
    others = sorted({name for one in summaries for name in one.get("uncompared", ())})
    return {
        **first,
        "summary": {
            "found": len(done) + len(failed) + left.get("left_out", 0),
            kind.done: len(done),
            **left,
            **({"uncompared": others} if others else {}),
        },
        kind.reports: Stream(lambda: map(unpacked, done)),
        kind.failed: [*map(unpacked, failed)],
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


def sarif(parts: Iterable[Json]) -> Json:
    """Logs of SARIF that bnfold wrote, as one; one of them at a time is in memory."""
    tools, invocations, found = [], [], _Found()
    first: Json = {}
    for part in parts:
        for run in part.pop("runs"):
            tools.append(run["tool"])
            invocations += run["invocations"]
            for number, path, is_done, said in _of_log(run):
                found.add(number, path, is_done, packed(said))
        first = first or part
    drivers = {(one["driver"]["name"], one["driver"]["version"]) for one in tools}
    if len(drivers) != 1 or drivers.pop()[0] != "bnfold":
        raise SettingsError("not all of these logs are of the same version of bnfold")
    every = [one["properties"] for one in invocations]
    check(one.get("shard") for one in every)
    models, notes = found.said(is_done=True), found.said(is_done=False)
    left = _left_out(every)
    summary = {
        "found": len(models) + len(notes) + left.get("left_out", 0),
        "read": len(models),
        **left,
    }
    invocation = {
        "executionSuccessful": all(one["executionSuccessful"] for one in invocations),
        "exitCodeDescription": how_many_read(summary),
        "properties": summary,
        "toolExecutionNotifications": [*map(unpacked, notes)],
    }
    run = {
        "tool": tools[0],
        "invocations": [invocation],
        "artifacts": Stream(lambda: (unpacked(one)[0] for one in models)),
        "results": Stream(lambda: (result for one in models for result in unpacked(one)[1])),
    }
    return {**first, "runs": Stream(lambda: [run])}


def _of_log(run: Json) -> Iterator[tuple[int | None, str, bool, Any]]:
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
    return zip([None] * len(every) if numbers is None else numbers, every, strict=True)


class _Found:
    """What reports say of models, each once."""

    def __init__(self) -> None:
        self._by_path: dict[str, tuple[int | None, bool, Any]] = {}

    def add(self, number: int | None, path: str, is_done: bool, said: Any) -> None:
        """Take in what a report says of a model, which was done or not.

        Raises:
            SettingsError: another report says something else of it.
        """
        if self._by_path.setdefault(path, (number, is_done, said))[1:] != (is_done, said):
            raise SettingsError(f"two reports on {path} differ: merge those of one run")

    def said(self, *, is_done: bool) -> list[Any]:
        """What is said of the models that were done, or of the others.

        They are in the order of their numbers, which are those of one run or none, and then of
        their paths.
        """
        found = sorted(
            (number or 0, PurePosixPath(path).parts, path)
            for path, (number, done, _) in self._by_path.items()
            if done == is_done
        )
        return [self._by_path[path][2] for *_, path in found]


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

"""What came of many models, and how a report says how many they were."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from bnfold.fleet.row import Json, Row
from bnfold.serialize import SCHEMA_VERSION, Stream


class Kind(NamedTuple):
    """What a report calls the models that were done, the reports on them, and the others."""

    done: str
    reports: str
    failed: str


INSPECTED = Kind("read", "models", "unreadable")
PROCESSED = Kind("done", "reports", "failed")
"""By any command but `inspect`."""


@dataclass(frozen=True)
class Results:
    """What came of many models.

    Attributes:
        kind: of which command.
        rows: in the order of the models.
        found: how many models there are, also those that were left out.
        shard: which part of all models these are, "3/20"; None of all.
        uncompared: what `verify` compared with none of them.
    """

    kind: Kind
    rows: Sequence[Row]
    found: int
    shard: str | None = None
    uncompared: Sequence[str] = ()

    @property
    def left_out(self) -> int:
        """How many models were not looked at."""
        return self.found - len(self.rows)

    @property
    def exit_code(self) -> int:
        """2 where something could not be done, 1 where an answer is no, else 0."""
        return max((row.exit_code for row in self.rows), default=0)

    @property
    def done(self) -> Sequence[Row]:
        """The rows of models on which there is a report."""
        return [row for row in self.rows if row.is_done]

    @property
    def failed(self) -> Sequence[Row]:
        """The rows of the others."""
        return [row for row in self.rows if not row.is_done]

    @property
    def summary(self) -> Json:
        """How many models it is about, and which of all.

        Where each of its models stands among those of all shards, reports are merged by.
        """
        found: Json = {"found": self.found, self.kind.done: len(self.done)}
        if self.left_out:
            found["left_out"] = self.left_out
        if self.shard is not None:
            rows = {"done": self.done, "failed": self.failed}
            numbers = {name: [row.number for row in part] for name, part in rows.items()}
            found |= {"shard": self.shard, "numbers": numbers}
        return {**found, **({"uncompared": [*self.uncompared]} if self.uncompared else {})}

    @property
    def report(self) -> Json:
        """The JSON report, of which all others are made; the one on each model when it is read."""
        return {
            "schema_version": SCHEMA_VERSION,
            "summary": self.summary,
            self.kind.reports: Stream(self._reports),
            self.kind.failed: [{"path": row.path, "message": row.error} for row in self.failed],
        }

    def _reports(self) -> Iterator[Any]:
        for row in self.done:
            report = row.report  # which is unpacked each time
            is_inspected = self.kind is INSPECTED
            own = {"path": row.path, "exit_code": row.exit_code, "report": report}
            yield report if is_inspected else own


def how_many_read(summary: Mapping[str, Any]) -> str:
    """How many of the models that were found could be read: `28 of 32 read`; of which shard."""
    return how_many(summary["read"], "read", summary)


def how_many(done: int, what: str, summary: Mapping[str, Any]) -> str:
    """How many of the models that a report is about: `7 of 12 done, 5 left out`; of which shard."""
    part = f" of shard {summary['shard']}" if "shard" in summary else ""
    left = f", {summary['left_out']} left out" if "left_out" in summary else ""
    return f"{done} of {summary['found']} {what}{left}{part}"

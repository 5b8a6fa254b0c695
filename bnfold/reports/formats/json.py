"""Reports for programs: JSON with a version, described by `schema.json`."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from bnfold.audit import Rule
from bnfold.folding.plan import Blocked, Fold
from bnfold.jobs.inspect import Inspection, describe_layer
from bnfold.serialize import SCHEMA_VERSION, parts_of, plain, text_of


def inspections(report: Mapping[str, Any]) -> Iterator[str]:
    """The report of `bnfold inspect`, in parts."""
    return parts_of(report)


def layer(model: Inspection, decision: Fold | Blocked) -> str:
    """The report of `bnfold inspect --layer`."""
    return dump(
        {
            "schema_version": SCHEMA_VERSION,
            "path": str(model.path),
            "layer": describe_layer(decision, model.observed_at(decision)),
            "findings": plain(model.findings_on(decision)),
            "suppressed": plain(model.suppressed_on(decision)),
        }
    )


def rules(every: Iterable[Rule]) -> str:
    """The report of `bnfold rules`."""
    return dump({"schema_version": SCHEMA_VERSION, "rules": plain(list(every))})


def report(result: Any) -> str:
    """The report of a command that is about one result."""
    return dump({"schema_version": SCHEMA_VERSION, **result.to_dict()})


def dump(value: Any) -> str:
    """A JSON text for people and programs."""
    return text_of(value, indent=2)

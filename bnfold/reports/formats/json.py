"""Reports for programs: JSON with a version, described by `schema.json`."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from bnfold.audit import Rule
from bnfold.folding.plan import Blocked, Fold
from bnfold.jobs.gate import Unreadable
from bnfold.jobs.inspect import Inspection, describe_layer
from bnfold.serialize import SCHEMA_VERSION, plain


def inspections(models: Sequence[Inspection], unreadable: Sequence[Unreadable] = ()) -> str:
    """The report of `bnfold inspect`."""
    return dump(
        {
            "schema_version": SCHEMA_VERSION,
            "summary": {"found": len(models) + len(unreadable), "read": len(models)},
            "models": plain(models),
            "unreadable": [
                {"path": str(one.path), "message": str(one.error)} for one in unreadable
            ],
        }
    )


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
    """A JSON text without commands for a CI log: `##vso[` is written with an escape."""
    return json.dumps(value, indent=2, allow_nan=False).replace("##", r"#\u0023")

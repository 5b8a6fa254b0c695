"""Inspections as SARIF 2.1.0 (Static Analysis Results Interchange Format), for code scanning.

A finding is a result, the model's file its location, the layer its logical location. A result is
identified by rule and layer alone, so a changed number or a retrained model is not a new alert.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bnfold.audit import RULES, Rule
from bnfold.fleet.results import how_many_read
from bnfold.model.container.printing import printable
from bnfold.model.container.remote import is_url
from bnfold.reports import rule_page
from bnfold.serialize import Stream, parts_of
from bnfold.version import __version__

_SCHEMA = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)
_ROOT = "%SRCROOT%"  # what viewers take for the folder that the tool was started in
_LEVELS = {"error": "error", "warning": "warning", "info": "note"}


def inspections(report: Mapping[str, Any]) -> Iterator[str]:
    """The report on some models, and on what could not be read, in parts; paths are from here."""
    models = report["models"]
    run = {
        "tool": {"driver": _driver()},
        "invocations": [_invocation(report)],
        "artifacts": Stream(lambda: map(_artifact, models)),
        "results": Stream(lambda: (result for model in models for result in _results(model))),
    }
    return parts_of({"$schema": _SCHEMA, "version": "2.1.0", "runs": Stream(lambda: [run])})


def _artifact(model: Mapping[str, Any]) -> dict[str, Any]:
    note = model["note"]
    said = {} if note is None else {"description": {"text": _plain(note)}}
    return {"location": _location(model["path"]), "roles": ["analysisTarget"], **said}


def _driver() -> dict[str, Any]:
    return {
        "name": "bnfold",
        "version": __version__,
        "semanticVersion": __version__,
        "rules": [_rule(rule) for rule in RULES],
    }


def _rule(rule: Rule) -> dict[str, Any]:
    return {
        "id": rule.code,
        "name": rule.name,
        "shortDescription": {"text": rule.summary},
        "fullDescription": {"text": rule_page.sections(rule)["What it finds"]},
        "defaultConfiguration": {"level": _LEVELS[rule.severities[0]]},
        "help": {"text": rule_page.plain(rule), "markdown": rule_page.markdown(rule)},
    }


def _invocation(report: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "executionSuccessful": not report["unreadable"],
        "exitCodeDescription": how_many_read(report["summary"]),
        "properties": dict(report["summary"]),
        "toolExecutionNotifications": [
            {
                "level": "error",
                "message": {"text": _plain(one["message"])},
                "locations": [{"physicalLocation": {"artifactLocation": _location(one["path"])}}],
            }
            for one in report["unreadable"]
        ],
    }


def _results(model: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for finding in model["findings"]:
        yield {**_result(model["path"], finding), "suppressions": []}
    for one in model["suppressed"]:
        reason = {"kind": "external", "status": "accepted", "justification": _plain(one["reason"])}
        yield {**_result(model["path"], one), "suppressions": [reason]}


def _result(path: str, finding: Mapping[str, Any]) -> dict[str, Any]:
    layer = _plain(finding["layer"])
    place = {
        # Code scanning on GitHub shows nothing that has no line.
        "physicalLocation": {"artifactLocation": _location(path), "region": {"startLine": 1}},
        "logicalLocations": [
            {
                "name": printable("/".join(finding["path"][-1:])),  # a root may have no name
                "fullyQualifiedName": layer,
                "kind": "layer",
            }
        ],
    }
    return {
        "ruleId": finding["code"],
        "ruleIndex": next(n for n, rule in enumerate(RULES) if rule.code == finding["code"]),
        "level": _LEVELS[finding["severity"]],
        "message": {
            "text": _plain(f"{layer}: {finding['message']}. To do: {finding['remedy']}"),
        },
        "locations": [place],
        "partialFingerprints": _fingerprints(finding),
        "properties": {name: finding[name] for name in ("channels", "figures", "consequences")},
    }


def _fingerprints(finding: Mapping[str, Any]) -> dict[str, str]:
    text = json.dumps([finding["code"], finding["path"]])
    digest = hashlib.sha256(text.encode()).hexdigest()
    # GitHub uses the second name only, and would otherwise compute it from the file's first line.
    return {"ruleAndLayer/v1": digest, "primaryLocationLineHash": digest}


def _plain(text: str) -> str:
    """A text in which nothing is a link: SARIF has them as `[text](target)`."""
    return printable(text).replace("](", r"\](")


def _location(path: str) -> dict[str, Any]:
    """Where a file is: from here, or absolute where it is not below; or its URL."""
    if is_url(path):
        return {"uri": quote(path, safe=":/?@%+=,~")}
    below = os.path.relpath(path)
    if below.startswith(os.pardir):
        return {"uri": Path(os.path.abspath(path)).as_uri()}
    return {"uri": quote(os.fsencode(Path(below).as_posix())), "uriBaseId": _ROOT}

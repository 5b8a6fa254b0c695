"""Inspections as JUnit XML, the format in which CI systems read test results.

A model is a test suite. Its cases are that it can be read, each layer on which nothing was found,
and each finding. Findings that fail the gate are failures, suppressed ones are skipped, the others
pass with what was found as their output.
"""

from collections.abc import Iterable, Mapping
from typing import Any
from xml.etree import ElementTree as ET

from bnfold.audit import Severity
from bnfold.fleet.results import how_many_read
from bnfold.jobs.gate import fails
from bnfold.model.container.printing import printable

_READABLE = "the file can be read"


def inspections(report: Mapping[str, Any], fail_on: Severity | None = Severity.ERROR) -> str:
    """The report on some models and on what could not be read."""
    root = ET.Element("testsuites", name=f"bnfold: {how_many_read(report['summary'])}")
    for model in report["models"]:
        _count(_suite(root, model, fail_on))
    for one in report["unreadable"]:
        suite = ET.SubElement(root, "testsuite", name=_text(one["path"]))
        case = _case(suite, _READABLE)
        ET.SubElement(case, "error", type="unreadable", message=_text(one["message"]))
        _count(suite)
    _count(root, ("tests", "failures", "errors"))  # Jenkins' schema has no `skipped` here
    ET.indent(root)
    # In ASCII, so that it is what its first line says wherever it is printed.
    text: bytes = ET.tostring(root, encoding="us-ascii", xml_declaration=True)
    return text.decode()


def _suite(root: ET.Element, model: Mapping[str, Any], fail_on: Severity | None) -> ET.Element:
    suite = ET.SubElement(root, "testsuite", name=_text(model["path"]))
    case = _case(suite, _READABLE)
    if model["note"] is not None:
        ET.SubElement(case, "system-out").text = _text(model["note"])
    suppressed = model["suppressed"]
    sick = {finding["layer"] for finding in (*model["findings"], *suppressed)}
    for layer in model["batchnorms"]:
        if layer["name"] not in sick:
            _case(suite, layer["name"])
    for finding in model["findings"]:
        case = _case(suite, _name(finding))
        if fails(Severity(finding["severity"]), fail_on):
            failure = ET.SubElement(
                case, "failure", type=finding["code"], message=_text(finding["message"])
            )
            failure.text = _said(finding)
        else:
            ET.SubElement(case, "system-out").text = _said(finding)
    for one in model["suppressed"]:
        case = _case(suite, _name(one))
        ET.SubElement(case, "skipped", message=_text(one["reason"]))
    return suite


def _case(suite: ET.Element, name: str) -> ET.Element:
    return ET.SubElement(suite, "testcase", classname=suite.attrib["name"], name=_text(name))


def _name(finding: Mapping[str, Any]) -> str:
    return f"{finding['layer']}: {finding['code']} {finding['name']}"


def _said(finding: Mapping[str, Any]) -> str:
    said = f"{finding['severity']}: {_text(finding['message'])}"
    return f"{said}\nto do: {_text(finding['remedy'])}"


_COUNTS = {"tests": "testcase", "failures": "failure", "errors": "error", "skipped": "skipped"}


def _count(element: ET.Element, counts: Iterable[str] = _COUNTS) -> None:
    """Set the numbers that readers of the format want to find."""
    for name in counts:
        element.set(name, str(sum(1 for _ in element.iter(_COUNTS[name]))))


def _text(value: object) -> str:
    """A text that XML can hold: `printable` leaves no character that it forbids."""
    return printable(str(value))

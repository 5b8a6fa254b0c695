"""Whether reports follow their schemas."""

from functools import cache
from typing import Any

from jsonschema import Draft202012Validator

from bnfold.reports.schema import schema


def validate(report: Any, name: str) -> None:
    """Raise jsonschema's ValidationError where a report does not follow the schema of its name."""
    _validator(name).validate(report)


@cache
def _validator(name: str) -> Draft202012Validator:
    """One that is kept: `jsonschema.validate` checks the schema each time, which takes longest."""
    found = schema(name)
    Draft202012Validator.check_schema(found)
    return Draft202012Validator(found)

"""What came of one model, of which thousands are kept."""

import json
from dataclasses import replace

from bnfold.fleet.row import Row, sendable


def test_a_row_keeps_its_report_in_little_memory() -> None:
    report = {"findings": [{"message": "1 of 64 channels", "figures": [0.1, None]}] * 100}
    row = Row("m.keras", 0, report=report, views={"text": "x" * 1000})
    assert row.report == report
    kept = [value for value in vars(row).values() if isinstance(value, bytes)]
    assert sum(map(len, kept)) < len(json.dumps(report)) / 10
    assert row == Row("m.keras", 0, report=report, views={"text": "x" * 1000})
    assert row != replace(row, report={})
    assert replace(row, sha256="1").report == report
    assert row.without_views().views is None
    assert row.is_done


def test_a_report_that_was_packed_where_it_was_made_is_kept_as_it_is() -> None:
    report = {"findings": [{"message": "ü", "figures": [0.1, None]}]}
    row = Row("m.keras", 0, report=report)
    assert Row("m.keras", 0, report=sendable(report)) == row
    assert Row("m.keras", 0, report=sendable(None)).report is None


def test_without_a_report_there_is_none() -> None:
    row = Row("m.keras", 2, error="m.keras: damaged")
    assert (row.report, row.views, row.is_done) == (None, None, False)

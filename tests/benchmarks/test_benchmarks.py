"""The benchmarks: what the page and the nightly comparison have is what is measured."""

import json
import re
import sys
from pathlib import Path

import benchmarks
import pytest
from benchmarks import PAGE, RATIOS, ROWS, Measured, Row, measured, run, worse


def test_the_page_has_the_rows_in_their_order() -> None:
    page = PAGE.read_text()
    block = page.partition(benchmarks.START)[2].partition(benchmarks.END)[0]
    named = re.findall(r"^\| ([^|]*?) \|", block, re.MULTILINE)[2:]
    assert named == [row.name for row in ROWS if row.name in named]
    assert {row.name for row in ROWS if row.light} <= {*named}


def test_the_ratios_are_those_of_the_light_rows() -> None:
    assert set(json.loads(RATIOS.read_text())) == {row.name for row in ROWS if row.light}


def test_a_ratio_that_is_worse_by_a_third_is_told() -> None:
    assert worse({"a": 1.3, "b": 1.4, "new": 9.0}, {"a": 1.0, "b": 1.0}) == [
        "b: ratio 1.40, and 1.00 before"
    ]


def test_a_model_is_made_and_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmarks, "BNFOLD", [sys.executable, "-c"])
    model = benchmarks.cnn(tmp_path, True)
    row = Row("a", "open('{model}').close()", [sys.executable, "-c", "pass"], "nothing", rounds=1)
    own, yardstick = measured(row, model, tmp_path)
    assert own.cpu > 0
    assert own.memory > 1 << 20
    assert yardstick.best(Measured(0, 9, 1)).wall < 9
    with pytest.raises(SystemExit, match="ended with 3"):
        run([sys.executable, "-c", "raise SystemExit(3)"], tmp_path)
    with pytest.raises(SystemExit, match="ended with 2"):  # it cannot do what is measured
        run([sys.executable, "-c", "raise SystemExit(2)"], tmp_path)

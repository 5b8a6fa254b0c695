"""The audit finds what was planted in a trained model, and does not warn of a healthy one."""

from collections.abc import Callable
from pathlib import Path

import pytest
from broken_models import BROKEN
from healthy_models import HEALTHY
from limit_models import LIMITS
from places import ROOT
from specimens import Specimen, examined, examined_on_data

from bnfold.audit import RULES, Severity
from bnfold.jobs.inspect import inspect_file

PAGE = (ROOT / "docs" / "calibration.md").read_text()

FAST = {
    *("mlp_momentum_9_two_epochs", "one_epoch", "nested_one_epoch"),
    "never_trained",
}
"""Those that train in about a second; `-m slow` trains all."""


def rows(table: dict[str, Specimen]) -> list[object]:
    return [
        pytest.param(one, id=name, marks=() if name in FAST else pytest.mark.slow)
        for name, one in table.items()
    ]


@pytest.mark.parametrize("one", rows(HEALTHY))
def test_a_healthy_model_has_no_warning(one: Specimen, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    result = examined(one, tmp_path)
    assert [found.message for found in result.false_alarms] == []
    assert result.score > 0.85
    if result.inspection.note is None:  # a subclassed model cannot be run without its code
        on_data = examined_on_data(one, tmp_path)
        assert [found.message for found in on_data if found.severity is not Severity.INFO] == []


@pytest.mark.parametrize("one", rows({**BROKEN, **LIMITS}))
@pytest.mark.few(1)
def test_a_defect_is_found_and_nothing_else(one: Specimen, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    result = examined(one, tmp_path)
    assert result.missed == []
    assert [found.message for found in result.false_alarms] == []


ONLY_DATA_SHOW = [
    "own_loop_one_epoch",
    "lagging_statistics",
    "unfrozen_network_new_head",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", ONLY_DATA_SHOW)
def test_data_show_what_the_file_does_not(name: str, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    codes = {found.code for found in examined_on_data(LIMITS[name], tmp_path)}
    assert "BN501" in codes


TRAINED = [
    *("digits_cnn_keras213.keras", "digits_cnn_keras215.keras", "digits_cnn_keras215.h5"),
    *("digits_cnn_keras30.keras", "digits_cnn_keras36.keras", "digits_cnn_keras315.keras"),
    *("digits_cnn_keras315.h5", "digits_cnn_keras315_dir"),
    *("textbook_mlp_keras215.h5", "textbook_mlp_explicit_keras315.keras"),
]


@pytest.mark.parametrize("name", TRAINED)
def test_models_of_other_versions_have_no_warning(
    name: str, fixture_model: Callable[[str], Path]
) -> None:
    findings = inspect_file(fixture_model(name)).findings
    assert [found.message for found in findings if found.severity is not Severity.INFO] == []


def test_every_rule_has_two_models() -> None:
    planted = [defect.code for one in BROKEN.values() for defect in one.planted]
    codes = [rule.code for rule in RULES if not rule.needs_data]
    few = [code for code in codes if planted.count(code) < 2]
    assert few == [], "they need two models each in broken_models.py"


def test_the_page_lists_every_model() -> None:
    names = {*HEALTHY, *BROKEN, *LIMITS}
    unlisted = sorted(name for name in names if f"| `{name}` |" not in PAGE)
    assert unlisted == [], "calibration.py prints their lines of docs/calibration.md"

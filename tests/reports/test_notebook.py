"""Results of the Python API as people see them: in a prompt, printed, in a notebook, in a test."""

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from archives import keras_file
from projects import model, run

import bnfold
from bnfold.audit.selection import Suppression
from bnfold.model.moments import Observed
from bnfold.verification.result import Basis, Verdict, Verification

pytestmark = pytest.mark.usefixtures("folder")


def test_an_inspection_is_a_line_a_report_and_a_picture() -> None:
    path = model(Path("m.keras"), "good", "bad", spoil=["bad"])
    found = bnfold.inspect(path)
    assert repr(found) == ("<Inspection: m.keras, 1 of 2 BatchNormalization layers fold, 1 error>")
    assert str(found) == run(path).stdout.rstrip("\n")
    page = found._repr_html_()
    assert page is not None
    assert page.count('title="') == 2
    assert "bad, stays, error BN105" in page
    assert len(page) < 10_000


def test_a_notebook_is_shown_a_result_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As rich shows what is printed by itself there, which is to become a text."""
    found = bnfold.inspect(model(Path("m.keras"), "good"))
    text, page = str(found), found._repr_html_()
    shown: list[object] = []
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr("rich.jupyter.display", lambda *given: shown.append(given))
    assert (str(found), found._repr_html_()) == (text, page)
    assert shown == []


def test_no_part_of_a_result_fills_the_screen() -> None:
    found = bnfold.inspect(model(Path("m.keras"), "good", "bad", spoil=["bad"]))
    fold, blocked = found.plan.decisions
    assert repr(found.plan) == "<Plan: 1 of 2 BatchNormalization layers fold>"
    assert repr(fold).startswith("<Fold: good backward into ")
    assert repr(blocked) == f"<Blocked: bad: {found.plan.blocked[0].reason}>"
    assert repr([fold.batchnorm]) == "[<BatchNorm: good>]"
    observed = Observed(3, 1, None, np.zeros(4, np.int64))
    assert repr(observed) == "<Observed: 3 samples, 1 calls>"


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)


def test_no_name_is_markup_in_a_notebook() -> None:
    names = ['"><script>alert(1)</script>', "<img src=x>", "\x1b[31m", "a&b"]
    found = bnfold.inspect(model(Path("m.keras"), *names, spoil=names))
    page = Tags()
    page.feed(found._repr_html_() or "")
    assert page.tags <= {"div", "span", "pre"}
    assert "\x1b" not in str(found)
    assert "\x1b" not in repr(found)


def test_a_fold_is_a_line_and_a_report() -> None:
    path = model(Path("m.keras"), "good", "other")
    report = bnfold.fold(path, "out.keras", verify=False)
    assert repr(report) == (
        "<FoldReport: folded 2 of 2 layers, out.keras was written, not verified>"
    )
    assert "folded 2 of 2" in str(report)
    assert "<pre" in (report._repr_html_() or "")


DIFFERENT = Verification(
    Verdict.DIFFERENT,
    Basis.KERAS,
    ("output 'scores' differs by 3",),
    (),
    0,
    "keras 3",
    "the rule",
    culprits=("conv_1",),
)


def test_an_assertion_on_a_verification_says_why_it_fails() -> None:
    with pytest.raises(AssertionError) as failed:
        assert DIFFERENT
    assert "different by keras alone; beginning at conv_1; output 'scores' differs by 3" in str(
        failed.value
    )
    assert "array" not in repr(DIFFERENT)


def test_no_name_paints_the_prompt() -> None:
    found = replace(DIFFERENT, culprits=("\x1b[31m", "##vso[x]"), differences=("a\nb",))
    assert found.brief.isprintable() is False
    assert repr(found).isprintable()
    assert "##vso[" not in repr(found)
    path = model(Path("\x1b[31m.keras"), "good")
    assert repr(bnfold.inspect(path)).isprintable()


def test_what_is_as_good_as_its_precision_is_true_unless_a_figure_is_refused() -> None:
    near = replace(DIFFERENT, verdict=Verdict.APPROXIMATE, differences=())
    assert near
    assert not replace(near, refused=("the SQNR is 20 dB, not 30",))
    assert not replace(near, verdict=Verdict.UNDECIDED)


def test_the_gate_says_of_a_folder_what_the_command_says() -> None:
    Path("models").mkdir()
    model(Path("models/good.keras"), "good")
    assert bnfold.gate("models")
    assert repr(bnfold.gate("models")) == "<Outcome: passed; 1 of 1 read>"
    model(Path("models/sick.keras"), "good", "bad", spoil=["bad"])
    outcome = bnfold.gate("models")
    assert not outcome
    assert "failed, models/sick.keras: BN105" in repr(outcome)
    assert "2 of 2 read" in str(outcome)
    assert bnfold.gate("models", fail_on="never")
    assert bnfold.gate("models", ignore=["BN105"])
    assert bnfold.gate("models", exclude=["sick*"])
    live_with = Suppression("bad", ("BN105",), "known since May")
    assert bnfold.gate("models", suppressions=[live_with])
    run("models", "--write-baseline", "known.json")
    assert bnfold.gate("models", baseline="known.json")
    Path("bnfold.toml").write_text('[tool.bnfold]\nignore = ["BN105"]\n')
    assert bnfold.gate("models", config="bnfold.toml")
    assert not bnfold.gate("models", config="bnfold.toml", ignore=[])
    keras_file(Path("models/cut.keras")).write_bytes(b"PK\x03\x04")
    broken = bnfold.gate("models", fail_on="never")
    assert not broken
    assert "cut.keras" in repr(broken)


def test_a_gate_without_a_rule_is_refused() -> None:
    with pytest.raises(bnfold.SettingsError, match="no rule is left"):
        bnfold.gate("models", select=["BN1"], ignore=["BN1"])
    with pytest.raises(bnfold.SettingsError):
        bnfold.gate("models", fail_on="bad")  # type: ignore[arg-type]

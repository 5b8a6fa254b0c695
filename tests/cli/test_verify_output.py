"""Where `bnfold verify` puts its report, and in which form."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from pages import check, parsed
from places import FIXTURES
from schemas import validate
from verifications import ALL, same, unlike, unsure

from bnfold.cli import main
from bnfold.reports import html, terminal
from bnfold.reports.text import fold
from bnfold.verification.result import Verification

MODEL, OTHER = Path("model.keras"), Path("other.keras")


class Judge:
    """Stands for the judge: finds what it is told to, and counts how often it is asked."""

    found: Verification = same()
    asked = 0

    def __call__(self, *_: object, **__: object) -> Verification:
        self.asked += 1
        return self.found


@pytest.fixture
def judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Judge]:
    for name in (MODEL, OTHER):
        shutil.copy(FIXTURES / "digits_cnn_keras315.keras", tmp_path / name)
    monkeypatch.chdir(tmp_path)
    found = Judge()
    monkeypatch.setattr("bnfold.jobs.verify.Proof.run", found)
    yield found
    assert not list(tmp_path.glob(".bnfold-*"))


def verify(*options: object) -> Result:
    return CliRunner().invoke(main, ["verify", str(MODEL), str(OTHER), *map(str, options)])


@pytest.mark.parametrize("name", ALL)
def test_the_ending_of_the_file_says_the_format(name: str, judge: Judge) -> None:
    result = judge.found = ALL[name]()
    for target in ("v.html", "v.json", "v.txt"):
        done = verify("--output", target)
        assert (done.exit_code, done.stdout) == (0 if result.accepted() else 1, "")
        said = fold.statement(result)
        told = "; ".join([f"bnfold: {target}: written", said.verdict, *said.refused])
        assert done.stderr.splitlines()[-1] == told
    assert Path("v.html").read_text("utf-8") == html.verification(result, MODEL, OTHER) + "\n"
    check(parsed(Path("v.html").read_text("utf-8")))
    assert json.loads(Path("v.json").read_text("utf-8"))["verdict"] == result.verdict
    text = terminal.plain(lambda _: fold.verification(result))
    assert Path("v.txt").read_text("utf-8") == text


def test_the_json_is_that_of_the_schema(judge: Judge) -> None:
    judge.found = unlike()
    verify("--output", "v.json")
    validate(json.loads(Path("v.json").read_text("utf-8")), "verify")


def test_the_format_goes_before_the_ending(judge: Judge) -> None:
    shown = verify("--format", "html").stdout
    assert shown == html.verification(judge.found, MODEL, OTHER) + "\n"
    verify("--format", "json", "--output", "v.html")
    assert json.loads(Path("v.html").read_text("utf-8"))


def test_the_page_says_what_strict_refuses(judge: Judge) -> None:
    judge.found = unsure()
    assert verify("--output", "v.html").exit_code == 0
    assert "not accepted" not in Path("v.html").read_text("utf-8")
    assert verify("--strict", "--output", "v.html").exit_code == 1
    assert "not accepted: --strict needs" in Path("v.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("model.keras", "a report or baseline cannot have a model file's suffix"),
        ("alias", "would replace what it is made from"),
        ("data.npz", "would replace what it is made from"),
        ("saved/v.html", "is inside of a model"),
        ("samples.npz", "would replace what it is made from"),
        ("nowhere/v.html", "does not exist"),
    ],
)
def test_what_is_read_is_not_replaced_and_nothing_is_run(
    target: str, says: str, judge: Judge
) -> None:
    Path("alias").hardlink_to(OTHER)
    np.savez("data.npz", np.zeros(1))
    Path("saved").mkdir()
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    words = ["verify", str(MODEL), "saved" if "saved" in target else str(OTHER)]
    options = ["--data", "data.npz", "--save-samples", "samples.npz", "--output", target]
    refused = CliRunner().invoke(main, [*words, *options])
    assert (refused.exit_code, refused.stdout, judge.asked) == (2, "", 0)
    assert says in refused.stderr
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("where", ["html.verification", "publishing"])
def test_the_page_appears_whole_or_not_at_all(
    where: str, judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("v.html").write_text("an earlier one")

    def fail(*_: object, **__: object) -> None:
        assert Path("v.html").read_text() == "an earlier one"
        raise OSError(28, "No space left on device")

    names = {
        "html.verification": "bnfold.reports.html.verification",
        "publishing": "bnfold.jobs.staging.Staging.publish",
    }
    with monkeypatch.context() as patch:
        patch.setattr(names[where], fail)
        assert verify("--output", "v.html").exit_code != 0
    assert Path("v.html").read_text() == "an earlier one"
    assert verify("--output", "v.html").exit_code == 0
    assert Path("v.html").read_text("utf-8").startswith("<!DOCTYPE html>")

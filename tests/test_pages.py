"""What the pages show runs: Python and commands, in their order, and prints what they say.

A block of `python` runs in the namespace of its page; where a block of `text` follows, that is what
it prints. The lines of a block of `sh` are commands of bnfold that succeed, or find something.
"""

import contextlib
import io
import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from places import ROOT

from bnfold.cli import main

DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```(python|sh|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run_page(name: str) -> tuple[dict[str, Any], list[str]]:
    """The namespace that the page leaves, and what its commands print."""
    namespace: dict[str, Any] = {"__name__": "page"}
    printed = io.StringIO()
    told: list[str] = []
    text = (DOCS / f"{name}.md").read_text("utf-8")
    for language, block in BLOCK.findall(text):
        if language == "python":
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(block, f"{name}.md", "exec"), namespace)
        elif language == "text":
            assert printed.getvalue() == block
        else:
            told += [_run(line) for line in block.splitlines()]
    return namespace, told


def _run(line: str) -> str:
    """What a command of bnfold prints."""
    program, *arguments = shlex.split(line, comments=True)
    assert program == "bnfold"
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code in (0, 1), f"{line}\n{result.stderr}"
    return result.stdout


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.keras
@pytest.mark.parametrize("page", ["batchnorm", "momentum", "algebra"])
def test_how_batch_normalization_works(page: str) -> None:
    run_page(f"explanation/{page}")


def test_where_the_tolerance_comes_from() -> None:
    run_page("explanation/bound")


@pytest.mark.keras
@pytest.mark.slow
def test_inference_is_one_scale_and_one_shift() -> None:
    run_page("explanation/inference")


@pytest.mark.keras
@pytest.mark.slow
def test_ten_minutes() -> None:
    pytest.importorskip("sklearn")
    page, told = run_page("ten-minutes")
    inspected, repaired, again, exported, folded, prepared = told
    assert page["seen"].history["accuracy"][-1] > 0.9 > page["accuracy"]
    assert inspected.count("error BN103 norm_") == 3
    assert "estimated 3 of 3" in repaired
    assert "error" not in again
    assert exported.count("checked: ") == 2
    assert "verified: the two models compute the same" in folded
    assert prepared.endswith("wrote deploy\n")
    right = page["scores"].argmax(-1) == page["test"]["y"]
    assert right.mean() > 0.9 > page["accuracy"]


def test_the_picture_of_momentum_is_what_its_script_draws() -> None:
    drawn = runpy.run_path(str(DOCS / "momentum.py"))
    assert drawn["drawing"]() == drawn["PICTURE"].read_text()

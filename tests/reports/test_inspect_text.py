"""The table of `inspect` in terminals of any width and encoding."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
from places import FIXTURES
from rich.console import Console

from bnfold.jobs.inspect import inspect_file
from bnfold.reports.distribution import Axis
from bnfold.reports.sparkline import Sparkline
from bnfold.reports.text import inspect

FIXTURE = FIXTURES / "digits_cnn_keras315.keras"
BLOCKS = "▁▂▃▄▅▆▇█"


def shown(width: int) -> list[str]:
    console = Console(width=width, color_system=None, highlight=False, force_terminal=True)
    with console.capture() as capture:
        console.print(inspect.inspection(inspect_file(FIXTURE), width))
    return capture.get().splitlines()


def test_each_layer_shows_how_its_variances_spread() -> None:
    """The bars stand where the printed ranges say, on one axis for all layers."""
    lines = shown(200)
    heading = next(line for line in lines if "spread" in line and "folds into" in line)
    start = heading.index("spread")
    rows = [line for line in lines if line.startswith(" batch_normalization_")]
    bars = [row[start : start + 12] for row in rows]
    assert len(bars) == 4
    assert all(set(bar) <= {" ", *BLOCKS} and max(bar) == "█" for bar in bars)
    # 0.019 to 0.093, 0.027 to 0.23, 0.063 to 0.18, 0.016 to 0.072
    first = [len(bar) - len(bar.lstrip()) for bar in bars]
    last = [len(bar.rstrip()) for bar in bars]
    assert first[3] <= first[0] < first[2]
    assert last[3] <= last[0] < last[1]
    assert any("spread: channels by variance, logarithmic from 0.0" in line for line in lines)


@pytest.mark.parametrize(
    ("width", "columns"),
    [
        (200, ["channels", "moving mean", "variance", "spread", "folds into"]),
        (95, ["channels", "moving mean", "variance", "folds into"]),
        (80, ["channels", "variance", "folds into"]),
        (50, ["folds into"]),
    ],
)
def test_a_narrow_terminal_shows_less_and_every_name(width: int, columns: list[str]) -> None:
    lines = shown(width)
    heading = next(line for line in lines if "folds into" in line)
    assert [name for name in inspect._HEADINGS[1:] if name in heading] == columns
    assert any("spread:" in line for line in lines) == ("spread" in columns)
    assert sum(line.startswith(" batch_normalization_") for line in lines) == 4


def test_the_lines_of_a_finding_stand_under_it() -> None:
    lines = shown(60)
    first = next(number for number, line in enumerate(lines) if line.startswith("info BN301"))
    assert all(line.startswith("  ") for line in lines[first + 1 :])
    assert len(lines) > first + 3


@pytest.mark.parametrize("width", [1, 2, 3, 10])
def test_a_terminal_can_be_as_narrow_as_it_likes(width: int) -> None:
    assert len(shown(width)) > 10


def test_variances_that_are_all_alike_have_no_range() -> None:
    axis = Axis.of([np.full(3, 0.7), np.full(2, 0.7001)], logarithmic=True)
    assert inspect._extent(axis) == "all about 0.7"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "cp437", "utf-8"])
def test_any_encoding_can_show_the_table(encoding: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bnfold", "inspect", str(FIXTURE)],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding},
        check=True,
        cwd=FIXTURE.parent.parent,
    )
    text = done.stdout.decode(encoding)
    assert done.stderr == b""
    assert "\\u" not in text
    assert ("█" in text) == (encoding == "utf-8")
    assert ("@" in text) == (encoding != "utf-8")


def test_a_bar_is_as_high_as_its_count() -> None:
    line = Sparkline([0, 1, 4, 8, 0])
    assert line.drawn(BLOCKS) == " ▁▄█ "
    assert Sparkline([0, 0]).drawn(BLOCKS) == "  "
    assert Sparkline([1, 1000]).drawn(BLOCKS) == "▁█"


def test_what_is_found_in_several_layers_is_said_once_and_said() -> None:
    text = " ".join(" ".join(shown(300)).split())
    assert re.search(r"\d layers\. The layer right before it has a bias", text)

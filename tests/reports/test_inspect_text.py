"""The table of `inspect` in terminals of any width and encoding."""

import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import large
import numpy as np
import pytest
from places import FIXTURES
from projects import model
from rich.console import Console

from bnfold.audit import Severity, audit
from bnfold.fleet.results import INSPECTED, Results
from bnfold.fleet.row import Row
from bnfold.folding.plan import plan
from bnfold.jobs.inspect import Inspection, inspect_file
from bnfold.model.graph import Layer, Weight
from bnfold.model.keras_json import parse_model
from bnfold.reports import terminal
from bnfold.reports.distribution import Axis
from bnfold.reports.parts import Group, Hanging, Indented, Text
from bnfold.reports.sparkline import Sparkline
from bnfold.reports.text import inspect, many

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
        (45, ["folds into"]),
    ],
)
def test_a_narrow_terminal_shows_less_and_every_name(width: int, columns: list[str]) -> None:
    lines = shown(width)
    heading = next(line for line in lines if "folds into" in line)
    assert [name for name in inspect._HEADINGS[1:] if name in heading] == columns
    assert any("spread:" in line for line in lines) == ("spread" in columns)
    assert sum(line.startswith(" batch_normalization_") for line in lines) == 4


def test_codes_of_infos_make_room_before_columns_do() -> None:
    wide, narrow = shown(200), shown(100)
    rows = [[line for line in lines if line.startswith(" batch_")] for lines in (wide, narrow)]
    assert ["BN301" in row for row in rows[0]] == [False, True, True, True]
    assert "BN301" not in "".join(rows[1])
    assert any(line.endswith("narrow: codes of infos, spread") for line in narrow)
    assert not any("narrow:" in line for line in wide)


@pytest.mark.parametrize(
    ("width", "hidden"), [(100, None), (70, "narrow: time"), (45, "narrow: fold, size, time")]
)
def test_many_models_keep_their_names_and_verdicts(width: int, hidden: str | None) -> None:
    report = inspect_file(FIXTURE).to_dict()
    row = Row("folder/of/models/digits.keras", 0, report=report, bytes=10_000, seconds=0.1)
    results = Results(INSPECTED, [row], 1)
    console = Console(width=width, color_system=None, force_terminal=True)
    with console.capture() as capture:
        console.print(many.short(results, "in all"))
    text = capture.get()
    names = re.findall(r"^ info +(\S+)", text, re.MULTILINE)
    assert names
    assert "folder/of/models/digits.keras".startswith(names[0])
    flat = " ".join(text.split())
    assert ("not shown in a terminal this narrow" in flat) == (hidden is not None)
    assert hidden is None or hidden in flat


def test_numbers_wrap_before_a_text_beside_them_vanishes() -> None:
    table = terminal.Columns(("name", "figure"), numbers=("figure",))
    table.add_row("litert without delegates", "3 of 360, margins up to 0.04")
    console = Console(width=30, color_system="standard", force_terminal=True)
    with console.capture() as capture:
        console.print(table)
    words = re.sub(r"\x1b\[\d*m", "", capture.get()).split()
    assert {"litert", "without", "delegates", "margins", "0.04"} <= {*words}


def test_lines_for_a_pipe_have_no_blanks_at_their_ends(capsys: pytest.CaptureFixture[str]) -> None:
    found = inspect_file(FIXTURE)
    terminal.printed(lambda width: inspect.inspection(found, width))
    printed = capsys.readouterr().out
    assert printed == terminal.plain(lambda width: inspect.inspection(found, width))
    assert not any(line.endswith(" ") for line in printed.split("\n"))
    assert " batch_normalization_4 BN301" in printed


def test_a_model_without_the_layers_says_so() -> None:
    assert terminal.foldable(0, 0) == "no BatchNormalization layers"


def test_the_lines_of_a_finding_stand_under_it() -> None:
    lines = shown(60)
    first = next(number for number, line in enumerate(lines) if line.startswith("info BN301"))
    last = next(number for number, line in enumerate(lines) if line.startswith("next: "))
    assert all(line.startswith("  ") for line in lines[first + 1 : last])
    assert last > first + 2


def test_what_to_do_next_can_be_pasted(tmp_path: Path) -> None:
    sick = model(tmp_path / "a model.keras", "good", "bad", spoil=["bad"])
    text = terminal.plain(lambda width: inspect.inspection(inspect_file(sick), width))
    command = text.splitlines()[-1].removeprefix("next: bnfold ")
    assert shlex.split(command) == [
        *("recalibrate", str(sick), "recalibrated.keras", "--data", "TRAINING.npz"),
    ]
    well = model(tmp_path / "m.keras", "good")
    text = terminal.plain(lambda width: inspect.inspection(inspect_file(well), width))
    assert text.splitlines()[-1] == f"next: bnfold fold {well} folded.keras"
    broken = model(tmp_path / "b.keras", "good", spoil=["good"])
    found = inspect_file(broken)
    (error,) = (one for one in found.findings if one.severity is Severity.ERROR)
    without = replace(found, findings=(replace(error, remedy="train it again"),))
    text = terminal.plain(lambda width: inspect.inspection(without, width))
    assert text.splitlines()[-1] == f"next: bnfold rule {error.code}"
    gone = inspect_file(well)
    well.unlink()
    assert "next:" not in terminal.plain(lambda width: inspect.inspection(gone, width))


def test_what_several_layers_have_stands_together_with_the_figures_of_each(tmp_path: Path) -> None:
    names = [f"bn_{number}" for number in range(12)]
    sick = inspect_file(model(tmp_path / "m.keras", *names, spoil=names))
    found = [replace(one, message=f"{one.message} {one.layer[-1]}") for one in sick.findings]
    text = terminal.plain(
        lambda width: inspect.inspection(replace(sick, findings=tuple(found)), width)
    )
    assert text.count("error BN105") == 1
    assert "error BN105 12 layers. " in text
    assert [line.split(":")[0] for line in text.splitlines() if line.startswith("  bn_")] == [
        f"  bn_{number}" for number in range(8)
    ]
    assert "  and bn_8, bn_9, bn_10, bn_11" in text


@pytest.mark.parametrize("width", [1, 2, 3, 10])
def test_a_terminal_can_be_as_narrow_as_it_likes(width: int) -> None:
    assert len(shown(width)) > 10


def test_variances_that_are_all_alike_have_no_range() -> None:
    axis = Axis.of([np.full(3, 0.7), np.full(2, 0.7001)], logarithmic=True)
    assert inspect._extent(axis) == "all about 0.7"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "cp437", "utf-8"])
@pytest.mark.few(2)
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


CELLS = ["bn1", "", "  in ", "end  ", "層一", "e\u0301", "\N{GRINNING FACE}", "a [b] :x:", "x" * 30]


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("width", [5, 20, 60, 200])
def test_a_table_without_colours_is_drawn_as_rich_draws_it(
    width: int, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drawn(table: terminal.Columns) -> str:
        file = io.TextIOWrapper(io.BytesIO(), encoding, "backslashreplace")
        Console(file=file, width=width, color_system=None, highlight=False).print(table)
        file.flush()
        return file.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]

    def tables() -> Iterator[terminal.Columns]:
        for number in range(len(CELLS)):
            table = terminal.Columns(["name", "some", "bars"], numbers=["some"], optional=["bars"])
            for _ in range(number % 4):
                words = [Text(CELLS[(number * k) % len(CELLS)], style="red") for k in (1, 3)]
                table.add_row(*words, Sparkline([0, number, 2, 0]))
            table.add_note(Text("  a note on it", style="dim"))
            yield table
        yield terminal.Columns(["name", "some"])

    found = [drawn(table) for table in tables()]
    monkeypatch.setattr(terminal.Columns, "_lines", lambda *_: None)
    assert found == [drawn(table) for table in tables()]


SENTENCES = [*CELLS, "two\nlines", "ends\n", "", " ", "tab\there", "no\u00a0break", "a b " * 20]


@pytest.mark.parametrize("width", [1, 5, 20, 60, 400])
def test_a_report_without_colours_is_drawn_as_rich_draws_it(width: int) -> None:
    known = 0
    for sentence in SENTENCES:
        text = Text(sentence, "bold").append("", "red").append("!", "not bold red")
        for part in (text, Text(sentence), Hanging(text, 4), Indented(text, 3), Group(text, text)):
            drawn = io.StringIO()
            Console(file=drawn, width=width, color_system=None, highlight=False).print(part)
            lines = part.lines(width)
            if lines is not None:
                known += 1
                drawn = terminal.without_blanks_at_ends(drawn.getvalue())
                assert terminal.without_blanks_at_ends("\n".join([*lines, ""])) == drawn
    assert known > 0


def test_a_bar_is_as_high_as_its_count() -> None:
    line = Sparkline([0, 1, 4, 8, 0])
    assert line.drawn(BLOCKS) == " ▁▄█ "
    assert Sparkline([0, 0]).drawn(BLOCKS) == "  "
    assert Sparkline([1, 1000]).drawn(BLOCKS) == "▁█"


def test_what_is_found_in_several_layers_is_said_once_and_said() -> None:
    text = " ".join(" ".join(shown(300)).split())
    assert re.search(r"\d layers\. The layer right before it has a bias", text)


def many_layers(edit: Callable[[large.Sketch, int], None]) -> Inspection:
    """A row of 210 Dense and BatchNormalization, after `edit` of the sketch with each number."""
    sketch = large.Sketch()
    last = sketch.input()
    for number in range(210):
        last = sketch.norm(sketch.dense(last, f"dense_{number}"), f"norm_{number}")
        edit(sketch, number)
    graph = parse_model(sketch.config([last]))

    def filled(layer: Layer) -> Layer:
        arrays = sketch.weights.get(layer.name, ())
        weights = [Weight(a.shape, a.dtype, lambda a=a: a) for a in arrays]  # type: ignore[misc]
        return replace(layer, weights=tuple(weights))

    graph = replace(graph, layers={n: filled(layer) for n, layer in graph.layers.items()})
    decided = plan(graph)
    return Inspection(Path("m.keras"), "keras", None, decided, audit(decided), graph)


def text_of(model: Inspection, **how: Any) -> str:
    return terminal.plain(lambda width: inspect.inspection(model, width, **how))


def test_of_very_many_layers_those_are_listed_that_deviate() -> None:
    def edit(sketch: large.Sketch, number: int) -> None:
        if number == 7:
            sketch.layers["norm_7"]["config"]["epsilon"] = 0.01
        if number == 9:
            sketch.weights["norm_9"][3][:] = np.nan

    model = many_layers(edit)
    lines = text_of(model).splitlines()
    named = [line.split()[0] for line in lines if line.startswith(" norm_")]
    assert named == ["norm_7", "norm_9"]
    assert "  epsilon 0.01" in "".join(lines)
    (said,) = (line.strip() for line in lines if "--all" in line)
    assert said == (
        "listed are 2 of 210 layers that stay, have an error or a warning, or other settings than "
        "most; --all lists all"
    )
    every = text_of(model, every=True)
    assert every.count("\n norm_") == 210
    assert "--all" not in every


def test_of_very_many_that_deviate_the_worst_are_listed() -> None:
    def edit(sketch: large.Sketch, number: int) -> None:
        sketch.layers[f"norm_{number}"]["config"]["epsilon"] = 0.001 + number
        if number > 205:
            sketch.weights[f"norm_{number}"][3][:] = np.nan

    text = text_of(many_layers(edit))
    assert text.count("\n norm_") == 200
    assert all(f" norm_{number} " in text for number in range(206, 210))
    assert "listed are the 200 worst of 209 of 210 layers" in text


def test_no_table_of_layers_that_are_alike() -> None:
    text = text_of(many_layers(lambda sketch, number: None))
    assert "listed are 0 of 210 layers" in text
    assert "210 BatchNormalization layers: 210 can be folded" in text

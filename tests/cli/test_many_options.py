"""What is asked of many models is asked of each: no option gets lost on the way to a worker."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from archives import legacy_file
from projects import configure, run
from projects import model as chain

from bnfold.cli import main, many, worker
from bnfold.cli.options import Size
from bnfold.fleet.row import Task

pytestmark = pytest.mark.usefixtures("folder")


def model(path: Path, *norms: str, **how: Any) -> None:
    """A model, with the folders that it is in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    chain(path, *norms, **how)


COMMANDS = ("inspect", "fold", "verify", "export", "prepare")
TEXTS = {
    "exclude": "-x*",
    "ignore": "BN107,BN4",
    "imports": "json",
    "keep": "-head/*",
    "keras": "3.10",
    "layer": "a b",
    "max_changed": "1%",
    "select": "BN1,BN403",
    "sha256": "A" * 64,
}
"""What the options that take any text are given, by name; one that is new must have something."""


def options() -> Iterator[Any]:
    """All options of these commands that a worker is to know, each with its command."""
    for command in COMMANDS:
        for option in main.commands[command].params:
            if isinstance(option, click.Option) and option.name not in many.FLEET | {"help"}:
                yield pytest.param(command, option, id=f"{command}-{option.name}")


def value(option: click.Option) -> str:
    """Something that the option can be given."""
    if isinstance(option.type, click.Choice):
        return str(option.type.choices[-1])
    if isinstance(option.type, (click.IntRange, click.FloatRange)) or option.type is click.INT:
        return "7"
    if isinstance(option.type, Size):
        return "512M"
    if isinstance(option.type, click.Path):
        return "a file.npz"
    return TEXTS[str(option.name)]


def understood(command: str, words: list[str]) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """What a command understands: its parameters, what they are for all, and what is handed on."""
    found = main.commands[command]
    ctx = found.make_context(command, [*words, "a", "b"])
    meta = {name: one for name, one in ctx.meta.items() if name.startswith("bnfold.")}
    meta.pop("bnfold.words")
    return ctx.params, meta, many.words(ctx)


@pytest.mark.parametrize(("command", "option"), options())
def test_every_option_is_handed_on_with_its_meaning(command: str, option: click.Option) -> None:
    np.savez("a file.npz", x=np.zeros(3))
    given = [option.opts[0]] if option.is_flag else [option.opts[0], value(option)]
    fleet = ["--jobs", "2", "-q", "--resume", "rows", "--format", "json", "--output", "r.json"]
    params, meta, words = understood(command, [*fleet, *given * (2 if option.multiple else 1)])
    assert words != [command]
    assert understood(command, words[1:])[1:] == (meta, words)
    again = understood(command, words[1:])[0]
    for name in again.keys() - many.FLEET:
        assert again[name] == params[name], name
    joined = [f"{given[0]}={given[1]}"] if len(given) == 2 else given
    assert understood(command, joined)[2] == words[: len(given) + 1]


def test_models_stand_after_a_double_dash(monkeypatch: pytest.MonkeyPatch) -> None:
    model(Path("-q.keras"), "good")
    model(Path("--select"), "good", spoil=["good"])
    result = run("--format", "jsonl", "--", "-q.keras", "--select")
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(one["path"], one["exit_code"]) for one in found] == [("-q.keras", 0), ("--select", 1)]


def told(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The command lines for workers, which do nothing."""
    found: list[list[str]] = []

    def perform(request: dict[str, Any]) -> dict[str, Any]:
        found.append(request["words"])
        return {"exit_code": 2, "error": "not done"}

    monkeypatch.setattr(worker, "perform", perform)
    return found


def test_what_is_exported_to_becomes_names_and_precisions(monkeypatch: pytest.MonkeyPatch) -> None:
    model(Path("models/a.keras"))
    Path("x.npy").write_bytes(b"")
    found = told(monkeypatch)
    options = ["--out-dir", "out", "--data", "x.npy", "--no-verify"]
    for to in ("onnx", "tflite:int8", "tflite", "saved_model", "tflite"):
        options += ["--to", to]
    run("models", *options, command="export")
    (words,) = found
    assert words[words.index("--precision") :] == [
        *("--precision", "int8", "--precision", "float32", "--", "models/a.keras"),
        *("out/a.onnx", "out/a_int8.tflite", "out/a.tflite", "out/a.savedmodel"),
    ]
    params = main.commands["export"].make_context("export", words[1:]).params
    assert not params["to"]  # which goes with --out-dir alone


def test_a_pattern_keeps_the_folders_below_what_is_fixed_in_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("a/x", "b/x", "b/deep/x", "b/.hidden/x", ".hidden"):
        model(Path(f"models/{name}.keras"))
    Path("models/loop").symlink_to(".")
    Path("models/other").symlink_to(".")
    found = told(monkeypatch)
    run("models/**/*.keras", "--out-dir", "out", command="fold")
    assert [words[-2:] for words in found] == [
        [f"models/{name}.keras", f"out/{name}.keras"] for name in ("a/x", "b/deep/x", "b/x")
    ]


def test_results_in_the_folder_that_is_searched_are_no_models(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("a", "out/a", "out/deep/a"):
        model(Path(f"{name}.keras"))
    found = told(monkeypatch)
    run(".", "--out-dir", "out", command="fold")
    assert [words[-1] for words in found] == ["out/a.keras"]
    found.clear()
    run("out", "--out-dir", "out", command="fold")
    run("out/deep", "--out-dir", "out", command="fold")
    run("out/a.keras", "--out-dir", "out", command="fold")
    assert [words[-1] for words in found] == [
        *("out/a.keras", "out/deep/a.keras", "out/a.keras", "out/a.keras"),
    ]


@pytest.mark.parametrize(
    ("command", "arguments", "says"),
    [
        ("prepare", ["models", "--out-dir", "out"], "inside of what models/a.keras would become"),
        ("fold", ["models", "--out-dir", "s3://bucket/x"], "is a URL"),
        ("inspect", ["models", "--resume", "r.jsonl", "--output", "r.jsonl"], "would replace"),
        ("inspect", ["models", "--resume", "models/a.keras"], "cannot have a model file's suffix"),
        ("inspect", ["models", "--resume", "no/r.jsonl"], "does not exist"),
        ("inspect", ["models", "--resume", "/dev/null"], "--resume needs a file"),
        ("inspect", ["models", "--write-baseline", "b.json", "--fail-fast"], "leaves some out"),
        *(
            ("inspect", ["models", option, "s3://secret@bucket/x.json"], f"'{option}': is a URL; ")
            for option in ("--output", "--resume", "--baseline", "--write-baseline", "--config")
        ),
        ("inspect", ["models", "--data", "s3://bucket/x.npz"], "'--data': is a URL; "),
        ("fold", ["models", "out", "--no-verify"], "models is not one model; those in it need"),
        ("fold", ["models/*.keras", "out.keras"], "need --out-dir DIR"),
        ("export", ["models", "out.onnx"], "need --out-dir DIR"),
        ("prepare", ["models", "out"], "need --out-dir DIR"),
        ("prepare", ["models/a.keras", "s3://bucket/out"], "is a URL"),
        ("merge", ["https://host/x.json"], "is a URL; only models can be in a store"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_done(
    command: str, arguments: list[str], says: str
) -> None:
    model(Path("models/a.keras"))
    model(Path("models/a/b.keras"))
    before = sorted(Path().rglob("*"))
    result = run(*arguments, command=command)
    assert result.exit_code == 2
    assert says in result.stderr
    assert result.stderr.count("\n") == 1
    assert sorted(Path().rglob("*")) == before


def test_a_baseline_is_written_of_all_and_each_is_told_of_once() -> None:
    for name in ("a", "b"):
        model(Path(f"models/{name}.keras"), "bad", spoil=["bad"])
    result = run("models", "--write-baseline", "known.json", "--format", "jsonl")
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(one["path"], one["exit_code"]) for one in found] == [
        *(("models/a.keras", 0), ("models/b.keras", 0)),
    ]
    full = run("models", "--write-baseline", "known.json", "--full")
    assert full.stdout.count("models/a.keras  .keras archive") == 1
    Path("models/cut.keras").write_bytes(b"PK")
    result = run("models", "--write-baseline", "known.json", "--format", "jsonl")
    assert [json.loads(line)["exit_code"] for line in result.stdout.splitlines()] == [1, 1, 2]
    assert "not written" in result.stderr


def test_the_order_is_that_of_the_input_also_of_shards() -> None:
    for name in ("b", "a", "c", "d"):
        model(Path(f"models/{name}.keras"), "bad", spoil=["bad"])
    Path("empty").mkdir()
    legacy_file(Path("models/a.h5"))
    Path("models/cut.keras").write_bytes(b"PK")
    names = ["models/d.keras", "models/cut.keras", "empty", "models"]
    for ending in ("json", "jsonl", "sarif"):
        run(*names, "--output", f"all.{ending}")
        parts = [f"{number}.{ending}" for number in (1, 2, 3)]
        for number, part in enumerate(parts, start=1):
            run(*names, "--shard", f"{number}/3", "--output", part)
        run(*parts, "--output", f"merged.{ending}", command="merge")
        assert Path(f"merged.{ending}").read_bytes() == Path(f"all.{ending}").read_bytes()


def test_what_is_missing_stands_where_its_model_does() -> None:
    for name in ("a", "b", "c"):
        model(Path(f"models/{name}.keras"))
    Path("other").mkdir()
    for name in ("a", "c"):
        Path(f"other/{name}.keras").write_bytes(b"PK")
    result = run("models", "other", "--format", "jsonl", command="verify")
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [one["path"] for one in found] == [f"models/{name}.keras" for name in "abc"]
    assert "nothing there is named like the model" in found[1]["error"]


def test_it_is_said_how_many_are_left_out() -> None:
    for name in ("a", "b", "c"):
        model(Path(f"models/{name}.keras"), "bad", spoil=["bad"])
    result = run("models", "--fail-fast")
    assert result.exit_code == 1
    assert "stopped at models/a.keras: 2 of 3 models were left out" in result.stderr


def test_an_option_follows_a_task() -> None:
    task = Task("m", ("inspect", "--", "m")).with_options(("--baseline", "b"))
    assert task.words == ("inspect", "--baseline", "b", "--", "m")


def test_settings_are_those_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        model(Path(f"models/{name}.keras"), "bad", spoil=["bad"])
    configure('[tool.bnfold]\nfail-on = "never"\nexclude = ["b*"]\n')
    result = run("models", "--format", "jsonl")
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 1
    other = run("models", "--format", "jsonl", "--no-config")
    assert other.exit_code == 1
    assert len(other.stdout.splitlines()) == 2

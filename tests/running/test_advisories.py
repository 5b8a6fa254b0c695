"""Versions of libraries with published vulnerabilities are named when they are loaded."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from places import FIXTURES

from bnfold.running.advisories import VulnerableVersionWarning, warn


def said(library: str, version: str) -> str:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        warn(library, version)
    return "".join(str(one.message) for one in found)


@pytest.mark.parametrize(
    ("library", "version", "has", "has_not"),
    [
        ("keras", "3.6.0", "CVE-2025-1550", "CVE-2025-49655"),
        ("keras", "3.9.0", "CVE-2025-8747", "CVE-2025-1550"),
        ("keras", "3.11.2", "CVE-2025-49655", "CVE-2025-9906"),
        ("keras", "3.12.0", "CVE-2026-1669", "CVE-2025-12058"),
        ("keras", "3.12.1", "CVE-2026-12570", "CVE-2026-1669"),
        ("keras", "3.13.1", "CVE-2026-1462", "CVE-2025-12058"),
        ("keras", "3.13.2", "GHSA-hqp4-2352-xf5r", "CVE-2026-0897"),
        ("keras", "3.14.1", "CVE-2026-12570", "GHSA"),
        ("keras", "3.15.0.dev20260701", "", "CVE"),
        ("keras", "3.15.1", "", "CVE"),
        ("keras", "4.0", "", "CVE"),
        ("keras", "unknown", "", "CVE"),
        ("tensorflow", "2.20.0", "CVE-2026-2492", "keras"),
        ("tensorflow", "2.21.0-rc1", "", "CVE"),
        ("numpy", "1.0.0", "", "CVE"),
    ],
)
def test_what_is_said_of_a_version(library: str, version: str, has: str, has_not: str) -> None:
    text = said(library, version)
    assert (has in text) == bool(text or not has)
    assert has_not not in text
    assert not has or text.startswith(f"{library} {version} has published vulnerabilities (")


def test_the_version_that_is_proposed_has_none_of_them() -> None:
    text = said("keras", "3.6.0")
    assert text.endswith("which keras 3.15.0 does not have")
    assert said("keras", "3.15.0") == ""


OLD = """
import sys
import keras
keras.__version__ = "3.10.0"
sys.argv = ["bnfold", *sys.argv[1:]]
from bnfold.cli import run
run()
"""


@pytest.mark.keras
@pytest.mark.slow
def test_a_command_warns_once_in_one_line(tmp_path: Path) -> None:
    model = FIXTURES / "digits_cnn_keras315.keras"
    done = subprocess.run(
        [sys.executable, "-c", OLD, "verify", str(model), str(model)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "vulnerabilities" in line]
    assert line.startswith("bnfold: warning: keras 3.10.0 has published vulnerabilities (CVE-")


def test_it_is_a_warning_that_python_can_silence() -> None:
    with pytest.warns(VulnerableVersionWarning):
        warn("keras", "3.10.0")

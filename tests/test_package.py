"""What is installed: the wheel, built of the files that the recipe for a container copies."""

import re
import shutil
import tarfile
import zipfile
from email import message_from_bytes
from email.message import Message
from fnmatch import fnmatch
from pathlib import Path

import pytest
from places import ROOT

from bnfold.version import __version__

hatchling = pytest.importorskip("hatchling.build")

RECIPE = (ROOT / "Dockerfile").read_text("utf-8")


def copied() -> list[str]:
    """What the recipe copies from the clone."""
    lines = re.findall(r"^COPY (?!--from)(.+) (\S+)$", RECIPE, re.MULTILINE)
    return [name for names, _ in lines for name in names.split()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in copied():
        if (ROOT / name).is_dir():
            leave = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, source / name, ignore=leave)
        else:
            shutil.copy(ROOT / name, source / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(source)
        return zipfile.ZipFile(target / hatchling.build_wheel(str(target)))


def metadata(wheel: zipfile.ZipFile) -> Message:
    return message_from_bytes(wheel.read(f"bnfold-{__version__}.dist-info/METADATA"))


def test_the_wheel_has_every_file_of_the_package_and_no_other(wheel: zipfile.ZipFile) -> None:
    """Templates, pages of rules, the schema and the mark of a typed package among them."""
    here = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "bnfold").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    found = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert found == here
    for one in ("py.typed", "reports/schema.json", "audit/pages/BN101.md"):
        assert f"bnfold/{one}" in found


def test_the_metadata_says_what_the_package_is(wheel: zipfile.ZipFile) -> None:
    about = metadata(wheel)
    assert about["Version"] == __version__
    assert about["License-Expression"] == "MIT"
    assert about["Description-Content-Type"] == "text/markdown"
    urls = {url.split(",")[0] for url in about.get_all("Project-URL", [])}
    assert urls == {"Documentation", "Source", "Issues", "Changelog"}
    assert f"bnfold-{__version__}.dist-info/licenses/LICENSE" in wheel.namelist()
    entries = wheel.read(f"bnfold-{__version__}.dist-info/entry_points.txt").decode()
    assert "bnfold = bnfold.__main__:run" in entries


def test_the_container_gets_what_it_copies() -> None:
    """.dockerignore leaves out all else, and only the bytecode of what is copied."""
    rules = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    kept = [rule[1:] for rule in rules if rule.startswith("!")]
    assert sorted(kept) == sorted(copied())
    assert re.search(r"^USER \d+:\d+$", RECIPE, re.MULTILINE)
    assert re.findall(r"^FROM base AS (\w+)$", RECIPE, re.MULTILINE) == ["light", "full"]


@pytest.mark.slow
def test_the_source_has_what_the_tests_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    with tarfile.open(tmp_path / hatchling.build_sdist(str(tmp_path))) as archive:
        found = {name.split("/", 1)[1] for name in archive.getnames()}
    for one in (
        "Dockerfile",
        ".github/workflows/ci.yml",
        ".pre-commit-hooks.yaml",
        "tests/conftest.py",
    ):
        assert one in found
    assert not [name for name in found if fnmatch(name, "*.pyc") or "/build/" in name]

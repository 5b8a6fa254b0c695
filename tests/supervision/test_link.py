"""What a supervised process tells, and how often it writes that down."""

import os
from pathlib import Path

import pytest

from bnfold.supervision import limits, link, platforms


def test_all_of_a_stage_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time that something is written wakes the supervisor, of which many files take notice."""
    (model := tmp_path / "m.keras").write_bytes(b"x")
    written: list[bytes] = []
    heard, told = os.pipe()
    monkeypatch.setattr(link, "_link", link._Link())
    monkeypatch.setattr(link._link, "pipe", told)
    monkeypatch.setattr(link.os, "write", lambda _, text: written.append(text))
    monkeypatch.setattr(platforms, "refuse_allocations", lambda _: None)
    memory = limits.reading_memory(1)
    more = limits.reading_memory(1, 100)
    link.reading(model, "m\tn")
    link.counted(model, 100)
    link.reporting()
    os.close(heard)
    os.close(told)
    seconds = limits.reading_seconds(1)
    assert [text.decode("ascii").splitlines() for text in written] == [
        ["file\tm\\tn", "stage\treading it", f"within\t{seconds}", f"memory\t{memory}"],
        ["longer\t1.0", f"memory\t{more}"],
        ["stage\tmaking the report", f"within\t{seconds + 1.0}"],
    ]

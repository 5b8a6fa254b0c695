"""The dumps that changes of structure are held against: they repeat, and tell what differs."""

import json
from pathlib import Path

import snapshot
from places import FIXTURES


def test_a_dump_repeats_and_a_difference_is_told(tmp_path: Path) -> None:
    paths = [FIXTURES / "digits_cnn_keras315.keras", FIXTURES / "branches_keras215.h5.xz"]
    broken = tmp_path / "broken.keras"
    broken.write_bytes(b"PK")
    before, after = (snapshot.dump([*paths, broken]) for _ in range(2))
    assert list(snapshot.differences(before, after)) == []
    digits = after["digits_cnn_keras315.keras"]
    assert len(digits["fold"]) == 64
    assert digits["inspect"]["batchnorms"]
    assert "sentence" in after["broken.keras"]["inspect"]
    digits["inspect"]["batchnorms"][0]["path"] = "another"
    digits["fold"] = "0" * 64
    found = list(snapshot.differences(before, json.loads(json.dumps(after))))
    assert len(found) == 2
    assert found[0].startswith("/digits_cnn_keras315.keras/fold: ")

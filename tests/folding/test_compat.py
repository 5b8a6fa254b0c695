"""The models of `tests/compat.py`, with the Keras and the tf_keras that are installed."""

from pathlib import Path
from typing import Any

import compat_models
import keras
import pytest
import tf_keras
import tiers

import bnfold

LIBRARIES = {"keras": keras, "tf_keras": tf_keras}


SOME = {"keras": ["recurrent", "mixed"], "tf_keras": ["dictionaries"]}
"""The models by default; all in a run of all tests."""


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.few(1)
def test_models_of_each_kind_fold_in_each_format(library: str, tmp_path: Path) -> None:
    written = compat_models.write(
        LIBRARIES[library], tmp_path, [*compat_models.MODELS] if tiers.EVERYTHING else SOME[library]
    )
    assert not any(written["unwritten"].values())
    for model, names in written["models"].items():
        (tmp_path / model / compat_models.FOLDED).mkdir()
        for name in names:
            folded = tmp_path / model / compat_models.FOLDED / name
            report = bnfold.fold(tmp_path / model / name, folded, verify=False)
            assert not report.plan.blocked, (model, name, report.plan.blocked)
            assert report.plan.folds
    for model, found in compat_models.compare(LIBRARIES[library], tmp_path).items():
        for name, row in found.items():
            assert (row["original"], row["folded"]) == (None, None), (model, name)
            assert row["difference"] <= 1, (model, name)


def test_a_wrong_fold_is_seen(tmp_path: Path) -> None:
    compat_models.write(keras, tmp_path, ["functional"])
    (tmp_path / "functional" / compat_models.FOLDED).mkdir()
    model: Any = keras.models.load_model(tmp_path / "functional/model.keras", compile=False)
    norm = next(one for one in model.layers if "batch_normalization" in one.name)
    norm.epsilon = 0.01
    model.save(tmp_path / "functional" / compat_models.FOLDED / "model.keras")
    found = compat_models.compared(keras, tmp_path / "functional", "model.keras")
    assert found["folded"] is None
    assert found["difference"] > 1

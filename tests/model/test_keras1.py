"""Files of Keras 1: nothing is folded, and what can be read is audited."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

from bnfold.cli import main
from bnfold.errors import UnreadableModelError
from bnfold.jobs.fold import fold_file
from bnfold.jobs.inspect import inspect_file

NORM = {
    "name": "batchnormalization_1",
    "mode": 0,
    "axis": -1,
    "epsilon": 1e-3,
    "momentum": 0.9,
    "gamma_regularizer": None,
    "beta_regularizer": None,
}
DENSE = {
    "name": "dense_1",
    "output_dim": 3,
    "init": "glorot_uniform",
    "activation": "linear",
    "bias": True,
    "batch_input_shape": [None, 4],
    "input_dtype": "float32",
    "W_regularizer": None,
    "b_regularizer": None,
}
TODAY = {"name": "dense_1", "units": 3, "activation": "linear", "batch_input_shape": [None, 4]}


def saved(path: Path, version: str | None, dense: Any = DENSE, **norm: Any) -> Path:
    """A Sequential as Keras 1.2 wrote it, with the names that it gave to variables."""
    settings = {**NORM, **norm} if norm else {k: v for k, v in NORM.items() if k != "mode"}
    layers = [
        {"class_name": "Dense", "config": dense},
        {"class_name": "BatchNormalization", "config": settings},
    ]
    variables = {
        "dense_1": {"W": np.ones((4, 3)), "b": np.zeros(3)},
        "batchnormalization_1": {
            "gamma": np.ones(3),
            "beta": np.zeros(3),
            "running_mean": np.array([0.5, np.nan, 1.0]),
            "running_std": np.array([1.0, 2.0, 3.0]),
        },
    }
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps({"class_name": "Sequential", "config": layers})
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = [name.encode() for name in variables]
        for name, values in variables.items():
            inner = group.create_group(name)
            inner.attrs["weight_names"] = [f"{name}_{key}".encode() for key in values]
            for key, array in values.items():
                inner[f"{name}_{key}"] = array.astype("float32")
        if version is not None:
            file.attrs["keras_version"] = version.encode()
    return path


@pytest.mark.parametrize("mode", [0, 1, 2])
@pytest.mark.parametrize("version", ["1.2.2", "1.0.0", None])
def test_nothing_of_keras_1_is_folded(version: str | None, mode: int, tmp_path: Path) -> None:
    path = saved(tmp_path / "m.h5", version, mode=mode)
    with pytest.raises(UnreadableModelError, match="written by Keras 1, where layers"):
        fold_file(path, tmp_path / "f.h5", proof=None)
    for command in ("fold", "export"):
        out = "f.onnx" if command == "export" else "f.h5"
        answer = CliRunner().invoke(main, [command, str(path), str(tmp_path / out)])
        assert answer.exit_code == 2
        assert len(answer.output.strip().splitlines()) == 1
    assert [found.name for found in tmp_path.iterdir()] == ["m.h5"]


def test_what_can_be_read_is_audited(tmp_path: Path) -> None:
    found = inspect_file(saved(tmp_path / "m.h5", "1.2.2", mode=0))
    assert "BN104" in {finding.code for finding in found.findings}
    assert found.plan.folds == ()
    assert found.note is not None
    assert "Keras 1" in found.note
    assert "Keras 1" in found.plan.blocked[0].reason


@pytest.mark.parametrize("mode", [1, 2])
def test_statistics_that_are_not_used_are_not_judged(mode: int, tmp_path: Path) -> None:
    found = inspect_file(saved(tmp_path / "m.h5", "1.2.2", mode=mode))
    (blocked,) = found.plan.blocked
    assert blocked.batchnorm.vectors is None
    assert blocked.batchnorm.problem.reason == f"Keras 1 does not use them in mode {mode}"


@pytest.mark.parametrize("version", ["2.0.0", "2.2.4", "3.15.1", None])
def test_files_of_later_versions_are_none_of_keras_1(version: str | None, tmp_path: Path) -> None:
    path = saved(tmp_path / "m.h5", version, TODAY)
    with h5py.File(path, "r+") as file:
        group = file["model_weights/batchnormalization_1"]
        group["batchnormalization_1_running_mean"][...] = 0.5
    assert len(inspect_file(path).plan.folds) == 1


def test_settings_of_keras_1_in_a_later_file_are_of_somebodys_own(tmp_path: Path) -> None:
    found = inspect_file(saved(tmp_path / "m.h5", "2.2.4", TODAY, mode=2))
    assert found.plan.folds == ()
    assert found.note is None

"""A command leaves its result and nothing else: not in the home, nor among temporary files."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from places import FIXTURES
from tiers import some

pytestmark = pytest.mark.keras

FOLDERS = {
    "HOME": "home",
    "TMPDIR": "temporary",
    "XDG_CACHE_HOME": "cache",
    "XDG_CONFIG_HOME": "config",
    "XDG_DATA_HOME": "data",
    "XDG_STATE_HOME": "state",
    "XDG_RUNTIME_DIR": "runtime",
}
MODULE = "from keras import layers\n\n\nclass Mine(layers.Layer):\n    pass\n"


def tree(folder: Path) -> set[str]:
    return {str(found.relative_to(folder)) for found in folder.rglob("*")}


@pytest.mark.parametrize(
    ("words", "made"),
    some(
        [
            (["export", "m.keras", "out.onnx", "--import", "layers_of_mine"], {"out.onnx"}),
            (["fold", "m.keras", "out.keras"], {"out.keras"}),
            (["verify", "m.keras", "m.keras"], set()),
            (["bench", "m.keras", "--seconds", "0.1"], set()),
            (["inspect", "m.keras", "--data", "data.npz", "--output", "r.txt"], {"r.txt"}),
            (["recalibrate", "m.keras", "out.keras", "--data", "data.npz"], {"out.keras"}),
            (["--debug", "verify", "m.keras", "m.keras"], set()),
            (["inspect", "m.keras"], set()),
            (["fold", "--no-verify", "m.keras", "out.keras"], {"out.keras"}),
        ],
        step=5,  # each waits for a whole process
    ),
    ids=lambda value: "-".join(value[:2]) if isinstance(value, list) else "",
)
@pytest.mark.few(1)
def test_what_a_command_leaves(words: list[str], made: set[str], tmp_path: Path) -> None:
    folder = tmp_path / "here"
    for name in ("here", *FOLDERS.values()):
        (tmp_path / name).mkdir()
    shutil.copy(FIXTURES / "digits_cnn_keras315.keras", folder / "m.keras")
    (folder / "layers_of_mine.py").write_text(MODULE)
    np.savez(folder / "data.npz", np.random.default_rng(0).normal(size=(64, 8, 8, 1)))
    before = tree(tmp_path)
    environment = {name: value for name, value in os.environ.items() if "KERAS" not in name}
    done = subprocess.run(
        [sys.executable, "-m", "bnfold", *words],
        cwd=folder,
        env={**environment, **{key: str(tmp_path / name) for key, name in FOLDERS.items()}},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    assert tree(tmp_path) - before == {f"here/{name}" for name in made}


@pytest.mark.slow
def test_nobody_need_have_a_home() -> None:
    """As in a container that runs as a user of whom its system knows nothing."""
    code = (
        "import os, pwd; pwd.getpwuid = {}.__getitem__; os.environ.pop('HOME', None)\n"
        "from bnfold.running import libraries, process\n"
        "process.take_over(); libraries.start(for_models_alone=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(FIXTURES.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr

"""What the pages show runs: Python and commands, in their order, and prints what they say.

A block of `python` runs in the namespace of its page; where a block of `text` follows, that is what
it prints. The lines of a block of `sh` are commands of bnfold that succeed, or find something. A
block of `toml` is the `pyproject.toml` of those that follow.
"""

import contextlib
import io
import lzma
import re
import runpy
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from places import FIXTURES, ROOT

from bnfold.cli import main

DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```(python|sh|text|toml)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


SHOWN = re.compile(r"^```sh\n((?:.+\n)+?)```\n\n((?:    .+\n|\n)+)", re.MULTILINE)
"""Commands, and the indented lines below them, which they print."""


def run_page(name: str) -> tuple[dict[str, Any], list[str]]:
    """The namespace that the page leaves, and what its commands print."""
    namespace: dict[str, Any] = {"__name__": "page"}
    printed = io.StringIO()
    told: list[str] = []
    text = (DOCS / f"{name}.md").read_text("utf-8")
    for language, block in BLOCK.findall(text):
        if language == "python":
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(block, f"{name}.md", "exec"), namespace)
        elif language == "text":
            assert printed.getvalue() == block
        elif language == "toml":
            Path("pyproject.toml").write_text(block, "utf-8")
        else:
            told += [_run(line) for line in block.splitlines()]
    return namespace, told


def _run(line: str) -> str:
    """What a command of bnfold prints."""
    program, *arguments = shlex.split(line, comments=True)
    assert program == "bnfold"
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code in (0, 1), f"{line}\n{result.stderr}"
    return result.stdout


def _without_figures(line: str) -> str:
    """A line that a page shows, or that a command prints, without what other machines make else."""
    return " ".join(re.sub(r"-?\d[\d.,]*(?:e-?\d+)?|[\u2581-\u2588]", " ", line).split())


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.keras
@pytest.mark.parametrize("page", ["batchnorm", "momentum", "algebra"])
def test_how_batch_normalization_works(page: str) -> None:
    run_page(f"explanation/{page}")


def test_where_the_tolerance_comes_from() -> None:
    run_page("explanation/bound")


@pytest.mark.keras
@pytest.mark.slow
def test_inference_is_one_scale_and_one_shift() -> None:
    run_page("explanation/inference")


def test_average_models_of_clients() -> None:
    run_page("howto/federated")


@pytest.mark.keras
@pytest.mark.slow
@pytest.mark.parametrize("page", ["averaged-weights", "fine-tuning"])
def test_how_to_train(page: str) -> None:
    pytest.importorskip("sklearn")
    run_page(f"howto/{page}")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the reader of a page has: models, samples with labels, a class of his own."""
    import keras
    import numpy as np
    from sklearn.datasets import load_digits

    folder = tmp_path_factory.mktemp("made")
    layers = keras.layers
    digits = load_digits()
    images = (digits.images[..., np.newaxis] / 16).astype("float32")
    image = keras.Input((8, 8, 1), name="image")
    between = layers.BatchNormalization()(layers.Conv2D(4, 3, activation="relu")(image))
    plain = layers.BatchNormalization()(layers.Conv2D(8, 3)(layers.ReLU()(between)))
    digit = layers.Dense(10, activation="softmax", name="digit")
    model = keras.Model(image, digit(layers.Flatten()(layers.ReLU()(plain))))
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(images[:1437], digits.target[:1437], epochs=12, verbose=0)
    model.save(folder / "model.keras")
    np.savez(folder / "train.npz", image=images[:1437], y=digits.target[:1437])
    np.savez(folder / "test.npz", image=images[1437:], y=digits.target[1437:])
    packed = (FIXTURES / "digits_cnn_keras215.h5.xz").read_bytes()
    (folder / "old.h5").write_bytes(lzma.decompress(packed))

    page = (DOCS / "howto" / "custom-layers.md").read_text("utf-8")
    (code,) = [block for language, block in BLOCK.findall(page) if language == "python"]
    (folder / "my_layers.py").write_text(code, "utf-8")
    own = runpy.run_path(str(folder / "my_layers.py"))["Scale"](2.0)
    keras.Model(image, digit(layers.Flatten()(own(plain)))).save(folder / "custom.keras")
    return folder


@pytest.fixture
def files(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(made, Path.cwd(), dirs_exist_ok=True)
    monkeypatch.syspath_prepend(Path.cwd())


@pytest.mark.keras
@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "said"),
    [
        ("litert", "wrote model_int8.tflite"),
        ("no-batchnorm", "now depthwise convolutions: "),
        ("custom-layers", "wrote verified.keras"),
        ("keras2", "wrote folded.h5"),
        ("deploy", "wrote deploy"),
    ],
)
def test_how_to(page: str, said: str, files: None) -> None:
    _, told = run_page(f"howto/{page}")
    assert said in "".join(told)
    assert "refused" not in "".join(told)


@pytest.mark.keras
@pytest.mark.slow
def test_ten_minutes() -> None:
    pytest.importorskip("sklearn")
    import keras

    keras.backend.clear_session()  # layers are numbered from the first one on, as in a new process
    page, told = run_page("ten-minutes")
    inspected, repaired, again, exported, folded, prepared = told
    assert page["seen"].history["accuracy"][-1] > 0.9 > page["accuracy"]
    assert "error BN103 3 layers" in inspected
    assert "estimated 3 of 3" in repaired
    assert "error" not in again
    assert exported.count("checked: ") == 2
    assert "verified: the two models compute the same" in folded
    assert prepared.endswith("wrote deploy\n")
    for _, block in SHOWN.findall((DOCS / "ten-minutes.md").read_text("utf-8")):
        lines = {_without_figures(line) for line in "\n".join(told).splitlines()}
        assert {_without_figures(line) for line in block.splitlines()} - {"...", ""} <= lines
    right = page["scores"].argmax(-1) == page["test"]["y"]
    assert right.mean() > 0.9 > page["accuracy"]


def test_the_picture_of_momentum_is_what_its_script_draws() -> None:
    drawn = runpy.run_path(str(DOCS / "momentum.py"))
    assert drawn["drawing"]() == drawn["PICTURE"].read_text()

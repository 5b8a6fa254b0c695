"""A folder of models and settings, as a project has it, and the command that looks at it."""

from collections.abc import Sequence
from pathlib import Path

import h5py
from archives import entry, fill, functional, keras_file, weights
from click.testing import CliRunner, Result

from bnfold.cli import main

CHANNELS = 4


def run(*arguments: object, command: str = "inspect") -> Result:
    return CliRunner().invoke(main, [command, *map(str, arguments)])


def model(path: Path, *norms: str, spoil: Sequence[str] = (), negative: float = -0.5) -> Path:
    """A chain of Dense and BatchNormalization; those to spoil have a negative variance (BN105)."""
    layers, last = [entry("InputLayer", "x", batch_shape=[None, CHANNELS])], "x"
    for number, norm in enumerate(norms or ("bn",)):
        dense = f"dense_{number}"
        layers += [
            entry("Dense", dense, last, units=CHANNELS, activation="linear", use_bias=False),
            entry("BatchNormalization", norm, dense, axis=-1, epsilon=0.001, momentum=0.9),
        ]
        last = norm

    def build(file: h5py.File) -> None:
        del file["layers"]
        for number, norm in enumerate(norms or ("bn",)):
            end = f"_{number}" if number else ""
            variance = [2.0, negative, 3.0, 4.0] if norm in spoil else [2.0, 1.0, 3.0, 4.0]
            fill(file.create_group(f"layers/dense{end}/vars"), [[[1.0] * CHANNELS] * CHANNELS])
            arrays = [[1.0] * CHANNELS, [0.0] * CHANNELS, [0.5] * CHANNELS, variance]
            fill(file.create_group(f"layers/batch_normalization{end}/vars"), arrays)

    return keras_file(path, config=functional(layers, last), h5=weights(build))


def configure(text: str, file: str = "pyproject.toml") -> Path:
    path = Path(file)
    path.write_text(text)
    return path

"""What is mutated: the model files of the fixtures, taken apart, and put together again."""

import io
import json
import lzma
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import h5py
from places import FIXTURES

CONFIG, METADATA, WEIGHTS = "config.json", "metadata.json", "model.weights.h5"

Kind = Literal["keras", "directory", "h5"]


@dataclass(frozen=True)
class Parts:
    """A model file taken apart.

    Attributes:
        name: of the file that it was.
        kind: what it becomes when it is written.
        config, metadata: JSON values; a legacy file has no metadata.
        weights: the HDF5 file, of a legacy file without its config.
        others: the rest of an archive, by name.
    """

    name: str
    kind: Kind
    config: Any
    metadata: Any
    weights: bytes
    others: Mapping[str, bytes] = field(default_factory=dict)

    def members(self) -> dict[str, bytes]:
        """What an archive or a directory holds, in the order in which Keras writes it."""
        texts = {METADATA: self.metadata, CONFIG: self.config}
        documents = {name: json.dumps(value).encode() for name, value in texts.items()}
        return {**documents, WEIGHTS: self.weights, **self.others}

    def with_kind(self, kind: Kind) -> "Parts":
        """The same as an archive or a directory; a legacy file stays one."""
        return self if self.kind == "h5" else replace(self, kind=kind)


def names() -> list[str]:
    """The fixtures that are model files."""
    endings = (".keras", ".h5", ".keras.xz", ".h5.xz", "_dir")
    return sorted(one.name for one in FIXTURES.iterdir() if one.name.endswith(endings))


@cache
def parts(name: str) -> Parts:
    """A fixture, taken apart."""
    path = FIXTURES / name
    if path.is_dir():
        members = {one.name: one.read_bytes() for one in path.iterdir()}
        return _of_members(name, "directory", members)
    content = path.read_bytes()
    if path.suffix == ".xz":
        content = lzma.decompress(content)
    return taken_apart(name.removesuffix(".xz"), content)


def taken_apart(name: str, content: bytes) -> Parts:
    """The parts of a model file that is no directory."""
    if name.endswith(".keras"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return _of_members(
                name, "keras", {one: archive.read(one) for one in archive.namelist()}
            )
    stream = io.BytesIO(content)
    with h5py.File(stream, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        del file.attrs["model_config"]
    return Parts(name, "h5", config, {}, stream.getvalue())


def _of_members(name: str, kind: Kind, members: dict[str, bytes]) -> Parts:
    config, metadata = (json.loads(members.pop(one)) for one in (CONFIG, METADATA))
    return Parts(name, kind, config, metadata, members.pop(WEIGHTS), members)


def write(parts: Parts, folder: Path) -> Path:
    """Write a model file into a folder; where it is."""
    path = folder / {"keras": "mutant.keras", "h5": "mutant.h5", "directory": "mutant"}[parts.kind]
    if parts.kind == "directory":
        for name, content in parts.members().items():
            target = path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
    elif parts.kind == "keras":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in parts.members().items():
                archive.writestr(name, content)
    else:
        stream = io.BytesIO(parts.weights)
        with h5py.File(stream, "r+") as file:
            file.attrs["model_config"] = json.dumps(parts.config)
        path.write_bytes(stream.getvalue())
    return path

"""The readers that are written in Python, each as a function of bytes, with bytes to begin with."""

import contextlib
import io
import json
import random
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import corpus
import h5py
import mutations

from bnfold.audit import baseline
from bnfold.errors import BnfoldError
from bnfold.folding.plan import apply, plan
from bnfold.jobs import settings
from bnfold.model import keras_json
from bnfold.model.container import guard, headers, record

FIXTURE = "branches_keras315.keras.xz"


def read_json(content: bytes) -> None:
    """A JSON text, as a config."""
    keras_json.parse_model(guard.parse_json(content, "config.json"))


def read_config(content: bytes) -> None:
    """A config in which the bytes choose what is changed; it is planned and written again."""
    choose = _Chosen(content)
    source = corpus.parts(choose.choice(corpus.names())).config
    graph = keras_json.parse_model(json.loads(json.dumps(mutations.mutated(source, choose))))
    json.dumps(keras_json.to_json(apply(graph, plan(graph))))


class _Chosen(random.Random):
    """Choices that some bytes make, and zero when there are no more."""

    def __init__(self, content: bytes) -> None:
        super().__init__(0)
        self._stream = io.BytesIO(content)

    def random(self) -> float:
        return self.getrandbits(16) / (1 << 16)

    def getrandbits(self, count: int, /) -> int:
        wanted = (count + 7) // 8
        return int.from_bytes(self._stream.read(wanted), "little") & ((1 << count) - 1)


def read_archive(content: bytes) -> None:
    """A ZIP archive, all of whose members are unpacked."""
    with (
        _as_file(content) as path,
        guard.ArchiveFile(path) as file,
        guard.open_archive(file) as archive,
    ):
        for name in archive.namelist():
            with contextlib.suppress(BnfoldError):
                guard.check_member(archive, name)
            for piece in guard.member_chunks(archive, name):
                assert len(piece) <= 1 << 20


def read_header(content: bytes) -> None:
    """The header of an HDF5 object; the first two bytes say where in the others it begins."""
    place, rest = int.from_bytes(content[:2], "little"), content[2:]
    lengths = headers.text_lengths(lambda at, size: rest[at : at + size], place, b"layer_names")
    assert lengths is None or len(lengths) <= len(rest)


def read_settings(content: bytes) -> None:
    """A file of settings."""
    with _as_file(content) as path:
        settings.read(path)


def read_baseline(content: bytes) -> None:
    """A baseline, which is written and read again."""
    entries = baseline.parse(content)
    assert baseline.parse(baseline.dump(entries).encode()) == entries


def read_record(content: bytes) -> None:
    """What metadata say of an earlier recalibration."""
    metadata = guard.parse_json(content, "metadata.json")
    if isinstance(metadata, dict):
        found = record.recalibration(metadata)
        assert found is None or all(type(count) is int for count in found.samples.values())


@contextlib.contextmanager
def _as_file(content: bytes) -> Iterator[Path]:
    with tempfile.NamedTemporaryFile(suffix=".toml") as file:
        file.write(content)
        file.flush()
        yield Path(file.name)


def _config_seeds() -> list[bytes]:
    return [bytes([number, *range(16)]) for number in range(0, 256, 16)]


def _json_seeds() -> list[bytes]:
    return [json.dumps(corpus.parts(name).config).encode() for name in corpus.names()]


def _archive_seeds() -> list[bytes]:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for number, name in enumerate(("config.json", "metadata.json", "model.weights.h5")):
            archive.writestr(name, b"{}" * 20, compress_type=8 * (number % 2))
    return [stream.getvalue()]


def _header_seeds() -> list[bytes]:
    """Headers of the old format and the new one, each with an attribute of some texts."""
    found = []
    for version in ("earliest", "latest"):
        stream = io.BytesIO()
        with h5py.File(stream, "w", libver=version) as file:
            file.attrs.create("layer_names", ["a", "bb", "ccc"], dtype=h5py.string_dtype())
            place = h5py.h5o.get_info(file.id).addr
        found.append(place.to_bytes(2, "little") + stream.getvalue()[:2000])
    return found


_SETTINGS = b"""
[tool.bnfold]
select = ["BN1", "BN403"]
ignore = ["BN107"]
fail-on = "warning"
exclude = ["old/*"]
baseline = "baseline.json"
target-dtype = "float16"

[tool.bnfold.thresholds]
inverted_momentum = 1e-6

[[tool.bnfold.suppress]]
layer = "bn*"
rules = ["BN104"]
reason = "known"
"""

_BASELINE = b'{"version": 1, "findings": [{"model": "m.keras", "layer": "a/bn", "rule": "BN104"}]}'

_RECORD = b"""{"bnfold": {"version": "1", "recalibrated": {"samples": 64, "layers": ["a", "b"],
"kept": [{"name": "c", "reason": "d"}]}, "earlier": {"recalibrated": {"samples": 2}}}}"""


@dataclass(frozen=True)
class Reader:
    """A reader, and what it reads without an error."""

    read: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]

    def ending(self, content: bytes) -> str:
        """How reading ended; all that is no BnfoldError is raised."""
        try:
            self.read(content)
        except BnfoldError as error:
            if not str(error).isprintable():
                raise ValueError(f"not one printable line: {error!r}") from None
            return type(error).__name__
        return "read"


READERS = {
    "json": Reader(read_json, _json_seeds),
    "config": Reader(read_config, _config_seeds),
    "archive": Reader(read_archive, _archive_seeds),
    "header": Reader(read_header, _header_seeds),
    "settings": Reader(read_settings, lambda: [_SETTINGS]),
    "baseline": Reader(read_baseline, lambda: [_BASELINE]),
    "record": Reader(read_record, lambda: [_RECORD]),
}

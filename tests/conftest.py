"""What all tests share: the fixtures on disk, unpacked."""

import lzma
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

FIXTURES = Path(__file__).parent.parent / "fixtures"


@pytest.fixture
def fixture_model(tmp_path: Path) -> Callable[[str], Path]:
    """A function that gives the path of a fixture by its name without `.xz`."""

    def unpack(name: str) -> Path:
        plain = FIXTURES / name
        if plain.exists():
            return plain
        unpacked = tmp_path / name
        unpacked.write_bytes(lzma.decompress((FIXTURES / f"{name}.xz").read_bytes()))
        return unpacked

    return unpack


@pytest.fixture
def double() -> Iterator[None]:
    """Every layer computes in float64 unless it says otherwise; names count from 0."""
    from support import keras

    keras.backend.clear_session(free_memory=False)
    keras.config.set_floatx("float64")
    yield
    keras.backend.clear_session(free_memory=False)  # a dtype policy that was set goes too
    keras.config.set_floatx("float32")

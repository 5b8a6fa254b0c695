"""What all tests share: the fixtures on disk, unpacked."""

import lzma
from collections.abc import Callable
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

"""How much time and memory a command may take where the user does not say it."""

import os
import re
from typing import Any, Protocol

from bnfold.supervision import platforms

MIB = 1 << 20

READING_SECONDS, READING_SECONDS_PER_MIB = 10.0, 2.0
CONNECTING_SECONDS = 60.0
"""For an answer of a store, with what its library tries again, on top of reading."""
READING_MEMORY, READING_MEMORY_PER_BYTE = 512 * MIB, 3
"""For reading a file, planning and writing, which take a small part of that."""
SECONDS_PER_LAYER, MEMORY_PER_LAYER = 0.01, 48 << 10
"""On top of that, once its layers are counted: the smallest layer takes 2 ms and 20 KiB."""
LOADING_FACTOR = 10
"""Keras may take so many times as long to load a file as bnfold may take to read it."""
STARTING_SECONDS = 300.0
"""For importing TensorFlow, which takes seconds; with little memory it may try for ever."""
RUNNING_SECONDS = 3600.0
RUNNING_SHARE = 0.75
"""For running models, of the machine's memory, or of what its container may have."""

_SIZE = r"(\d+(?:\.\d+)?)\s*(?:([KMGT])(?:i?B)?)?"


class Sized(Protocol):
    """A file or folder, or what has of `Path` what tells its size."""

    def is_dir(self) -> bool:
        """Whether it is a folder."""

    def stat(self) -> Any:
        """Its size, as `st_size`, among other things."""


def size(path: Sized) -> int:
    """The bytes of a model file, or of the files in a folder; 0 where there is nothing."""
    try:
        if path.is_dir():
            return sum(entry.stat().st_size for entry in os.scandir(str(path)) if entry.is_file())
        return int(path.stat().st_size)
    except OSError:
        return 0


def reading_seconds(size: int) -> float:
    """How long a file of so many bytes may be read, until its layers are counted."""
    return READING_SECONDS + READING_SECONDS_PER_MIB * size / MIB


def reading_memory(size: int, layers: int = 0, kept: int = 0) -> int | None:
    """The bytes that reading a file of so many bytes and layers may take; None for no limit.

    `kept` bytes are taken already, by what is known of files that were read before.
    """
    wanted = max(READING_MEMORY, READING_MEMORY_PER_BYTE * size) + MEMORY_PER_LAYER * layers + kept
    most = running_memory()
    return wanted if most is None else min(wanted, most)


def running_memory() -> int | None:
    """The bytes that running models may take; None where the machine does not say what it has."""
    there = platforms.memory()
    return None if there is None else int(there * RUNNING_SHARE)


def memory_of(text: str) -> int | None:
    """The bytes that "512M", "8G" or "1.5 GiB" say, or a number of MiB; None where it is none."""
    found = re.fullmatch(_SIZE, text.strip(), re.IGNORECASE)
    if found is None:
        return None
    exponent = " KMGT".index((found[2] or "M").upper())
    return int(float(found[1]) * 1024**exponent) or None

"""The readers of readers.py: on what they read, on damage, and guided by coverage."""

import importlib.util
import random
import subprocess
import sys
from pathlib import Path

import mutators
import pytest
from readers import READERS


@pytest.mark.parametrize("name", READERS)
def test_what_a_reader_begins_with_is_read(name: str) -> None:
    reader = READERS[name]
    assert {reader.ending(content) for content in reader.seeds()} == {"read"}


@pytest.mark.parametrize("name", READERS)
def test_damage(name: str) -> None:
    reader, choose = READERS[name], random.Random(5)
    seeds = reader.seeds()
    for _ in range(60):
        reader.ending(mutators.damaged(choose.choice(seeds), choose))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="needs atheris")
@pytest.mark.parametrize("name", READERS)
def test_guided_by_coverage(name: str) -> None:
    script = Path(__file__).with_name("guided.py")
    command = [sys.executable, str(script), name, "-max_total_time=120"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-6000:]

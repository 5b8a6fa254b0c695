"""Files that are damaged at random, and what may come of reading them."""

import json
import os
import random
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

from click.testing import CliRunner, Result

import bnfold
from bnfold.cli import main
from bnfold.errors import BnfoldError

MEMORY = 1536 << 20


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def refused(path: Path, *, says: str = "", only_fold: bool = False) -> None:
    """Both commands refuse a file with one line and leave nothing behind."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / f"out{path.suffix}"
        commands: list[tuple[object, ...]] = [("fold", "--no-verify", path, target)]
        if not only_fold:
            commands.insert(0, ("inspect", path))
        for command in commands:
            result = invoke(*command)
            assert result.exit_code == 2, (command, result.output, result.exception)
            assert result.stdout == ""
            assert result.stderr.startswith("bnfold: ")
            assert result.stderr.count("\n") == 1
            assert "internal error" not in result.stderr
            assert says in result.stderr
            assert path.name[:40] in result.stderr
            assert result.stderr.strip().isprintable()
            assert len(result.stderr) < 2000 + len(str(path))
        assert not list(Path(folder).iterdir())


_LIMITED = """
import resource, sys, time
resource.setrlimit(resource.RLIMIT_AS, ({memory}, {memory}))
resource.setrlimit(resource.RLIMIT_CPU, (20, 20))  # seconds
from bnfold.cli import main
main(sys.argv[1:], prog_name="bnfold")
"""


def refused_in_little_memory(path: Path, *, says: str = "") -> None:
    """As `refused`, in a process that may neither grow nor compute for long."""
    code = _LIMITED.format(memory=MEMORY)
    done = subprocess.run(
        [sys.executable, "-c", code, "inspect", str(path)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.startswith("bnfold: ")
    assert done.stderr.count("\n") == 1
    assert "internal error" not in done.stderr
    assert says in done.stderr


def harmless(path: Path) -> list[BnfoldError]:
    """Inspect and fold a file: it works, or it is refused as it should be."""
    errors = []
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("error")
        target = Path(folder) / f"out{path.suffix}"
        for action in (
            lambda: bnfold.inspect(path).to_dict(),
            lambda: bnfold.fold(path, target, verify=False).to_dict(),
        ):
            try:
                json.dumps(action(), allow_nan=False)
            except BnfoldError as error:
                errors.append(error)
        assert all(len(str(error).splitlines()) == 1 for error in errors)
        assert {found.name for found in Path(folder).iterdir()} <= {target.name}
    return errors


def damage(source: Path, seed: int, count: int) -> None:
    """Flip, cut and repeat bytes of a file at random, and read what comes of it."""
    data, generator = source.read_bytes(), random.Random(seed)
    path = source.with_name(f"damaged{source.suffix}")
    for number in range(count):
        mutant = bytearray(data)
        for _ in range(generator.choice((1, 1, 2, 8))):
            at = generator.randrange(len(mutant))
            match generator.randrange(4):
                case 0:
                    mutant[at] = generator.randrange(256)
                case 1:
                    mutant[at] ^= 1 << generator.randrange(8)
                case 2:
                    mutant[at : at + 8] = generator.choice((b"\xff" * 8, bytes(8)))
                case _:
                    other = generator.randrange(len(mutant))
                    mutant[at : at + 16] = mutant[other : other + 16]
        path.write_bytes(mutant)
        try:
            harmless(path)
        except BaseException:
            source.with_name(f"failure{number}{source.suffix}").write_bytes(mutant)
            raise

"""Files that are damaged at random, and what may come of reading them."""

import json
import random
import tempfile
import warnings
from pathlib import Path

import bnfold
from bnfold.errors import BnfoldError


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

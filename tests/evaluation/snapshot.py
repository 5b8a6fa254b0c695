"""Dump what bnfold says of many models and makes of them, and compare two dumps.

A change that moves code must not change an answer. Draw models once, dump them before and after:

    python tests/evaluation/snapshot.py draw FOLDER
    python tests/evaluation/snapshot.py dump before.json FOLDER fixtures FILE ...
    python tests/evaluation/snapshot.py dump after.json FOLDER fixtures FILE ...
    python tests/evaluation/snapshot.py compare before.json after.json

A dump holds the whole report of `inspect`, which is the plan and the findings, and the SHA-256 of
every file that `fold --no-verify` writes, with and without `--standalone depthwise`. For a file
that is refused it holds the sentence. It imports no deep-learning framework; drawing does.
"""

import argparse
import hashlib
import json
import lzma
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import bnfold

DRAWN = 300
NETWORKS = (
    "DenseNet121", "EfficientNetB0", "EfficientNetV2B0", "InceptionV3", "MobileNetV2",
    "MobileNetV3Small", "ResNet50V2", "Xception",
)  # fmt: skip
MODELS = (".keras", ".h5", ".hdf5")
SHOWN = 20
"""How many differences are printed."""


def draw(folder: Path) -> None:
    """Write the drawn models and eight of keras.applications, with statistics of all kinds."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "builders"))
    from networks import network

    folder.mkdir(parents=True, exist_ok=True)
    for name in NETWORKS:
        network(name).save(folder / f"{name}.keras")
    _draw_small(folder)


def _draw_small(folder: Path) -> None:
    from drawing import Drawn, models
    from hypothesis import HealthCheck, Phase, given, seed, settings

    seen: set[str] = set()

    def save(drawn: Drawn) -> None:
        if repr(drawn) not in seen and len(seen) < DRAWN:
            drawn.model.save(folder / f"drawn{len(seen):03}{drawn.form}")
            seen.add(repr(drawn))

    few = settings(
        max_examples=20,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    for number in range(10 * DRAWN):
        if len(seen) < DRAWN:
            seed(number)(few(given(models())(save)))()


def model_files(paths: list[Path], unpacked: Path) -> Iterator[Path]:
    """The model files among some paths, also those right inside a folder; packed ones unpacked."""
    for path in paths:
        inside = sorted(path.iterdir()) if path.is_dir() else [path]
        for one in inside:
            if one.suffix == ".xz":
                plain = unpacked / one.stem
                with lzma.open(one) as packed, plain.open("wb") as file:
                    shutil.copyfileobj(packed, file)
                yield plain
            elif one.suffix in MODELS or (one / "config.json").is_file():
                yield one


def dump(paths: list[Path]) -> dict[str, Any]:
    """What is said and made of every model file, by its name."""
    found: dict[str, Any] = {}
    with TemporaryDirectory() as scratch:
        for path in model_files(paths, Path(scratch)):
            if path.name in found:
                raise SystemExit(f"two files are called {path.name}")
            found[path.name] = {
                "inspect": _said(lambda path=path: bnfold.inspect(path).to_dict()),
                "fold": _said(lambda path=path: _made(path, Path(scratch), "keep")),
                "standalone": _said(lambda path=path: _made(path, Path(scratch), "depthwise")),
            }
            found[path.name] = json.loads(json.dumps(found[path.name]).replace(scratch, ""))
    return found


def _said(ask: Any) -> Any:
    try:
        return ask()
    except bnfold.BnfoldError as error:
        return {"error": type(error).__name__, "sentence": str(error)}


def _made(path: Path, scratch: Path, standalone: Any) -> str:
    target = scratch / f"folded{path.suffix}"
    try:
        bnfold.fold(path, target, standalone=standalone, verify=False)
        written = sorted(target.rglob("*")) if target.is_dir() else [target]
        digest = hashlib.sha256()
        for one in written:
            if one.is_file():
                digest.update(one.read_bytes())
        return digest.hexdigest()
    finally:
        shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)


def differences(before: Any, after: Any, place: str = "") -> Iterator[str]:
    """Where two dumps differ, a line each."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted({*before, *after}):
            yield from differences(before.get(key), after.get(key), f"{place}/{key}")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for number, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from differences(one, other, f"{place}/{number}")
    elif before != after:
        yield f"{place}: {json.dumps(before)[:300]} -> {json.dumps(after)[:300]}"


def main() -> None:
    """Run one of the three commands."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("draw").add_argument("folder", type=Path)
    dumping = commands.add_parser("dump")
    dumping.add_argument("out", type=Path)
    dumping.add_argument("paths", type=Path, nargs="+")
    comparing = commands.add_parser("compare")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    asked = parser.parse_args()
    if asked.command == "draw":
        draw(asked.folder)
    elif asked.command == "dump":
        asked.out.write_text(json.dumps(dump(asked.paths), indent=1, sort_keys=True))
    else:
        pair = (json.loads(path.read_text()) for path in (asked.before, asked.after))
        found = list(differences(*pair))
        print(*found[:SHOWN], f"{len(found)} differences", sep="\n")
        sys.exit(bool(found))


if __name__ == "__main__":
    main()

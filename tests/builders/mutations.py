"""Configs of models that are wrong in one or a few places, as a stranger may write them."""

import copy
import io
import json
import random
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py

_ODD: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    -7,
    1 << 31,
    -(1 << 33),
    1 << 61,
    10**400,
    0.5,
    -1e308,
    1e-320,
    "",
    "linear",
    "channels_first",
    "same",
    "relu",
    "3",
    "\u202e\x1b[31m\U0001f600",
    [],
    {},
    [None],
    [1, 2],
    [-1, 0, 1, 2, 3],
    ["a", 0, 0],
    [[0, 1], [2, "x"]],
    {"class_name": "__keras_tensor__", "config": {}},
    {"class_name": "__numpy__", "config": {"value": [1, 2, 3], "dtype": "float32"}},
    {"class_name": "DTypePolicy", "module": "keras", "config": {"name": "mixed_bfloat16"}},
    [[[[]]]],
    "a" * 3000,
)


def mutated(config: Any, choose: random.Random) -> Any:
    """A config that differs in one to four places from this one."""
    changed = copy.deepcopy(config)
    for _ in range(choose.choice((1, 1, 1, 2, 4))):
        places = list(_places(changed))
        if not places:
            break
        holder, key = choose.choice(places)
        _change(holder, key, places, choose)
    return changed


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a config as what holds it and its key there."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        keys = list(one) if isinstance(one, dict) else range(len(one))
        for key in keys:
            yield one, key
            if isinstance(one[key], (dict, list)):
                waiting.append(one[key])


def _change(holder: Any, key: Any, places: list[tuple[Any, Any]], choose: random.Random) -> None:
    changed = choose.choice(_CHANGES)(holder[key], places, choose)
    if changed is _GONE:
        del holder[key]
    else:
        holder[key] = changed


_GONE = object()


def _odd(old: Any, places: list[tuple[Any, Any]], choose: random.Random) -> Any:
    return copy.deepcopy(choose.choice(_ODD))


def _from_elsewhere(old: Any, places: list[tuple[Any, Any]], choose: random.Random) -> Any:
    holder, key = choose.choice(places)
    has = key in holder if isinstance(holder, dict) else key < len(holder)
    return copy.deepcopy(holder[key]) if has else -3


def _retyped(old: Any, places: list[tuple[Any, Any]], choose: random.Random) -> Any:
    if isinstance(old, dict):
        return choose.choice((list(old.values()), list(old), str(old)[:50]))
    if isinstance(old, list):
        by_number = {str(number): one for number, one in enumerate(old)}
        return choose.choice((by_number, old[:1], (old or [0])[0]))
    if isinstance(old, str):
        return choose.choice(([old], len(old), {"class_name": old, "config": {}}, old.upper()))
    if isinstance(old, bool) or old is None:
        return choose.choice((int(bool(old)), str(old), [old]))
    return choose.choice((str(old), float(min(old, 1 << 60)), [old, old], old == 1))


def _other(old: Any, places: list[tuple[Any, Any]], choose: random.Random) -> Any:
    if isinstance(old, list):
        return choose.choice((old + old[:1], old[::-1], choose.sample(old, len(old)), [old]))
    if isinstance(old, dict):
        left_out = choose.choice([*old, None])
        return {key: value for key, value in old.items() if key != left_out}
    if isinstance(old, int):
        return choose.choice((-old, old + 1, old - 1, old * 2, 3 * old + 5))
    return [old]


_CHANGES = (lambda old, places, choose: _GONE, _odd, _odd, _from_elsewhere, _retyped, _other)


def config_of(path: Path) -> Any:
    """The config of a model file."""
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            return json.loads(archive.read("config.json"))
    with h5py.File(path) as file:
        return json.loads(file.attrs["model_config"])


def with_config(source: Path, config: Any, target: Path) -> Path:
    """A copy of a model file with another config."""
    text = json.dumps(config)
    if source.suffix == ".keras":
        with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
            for name in old.namelist():
                new.writestr(name, text if name == "config.json" else old.read(name))
        return target
    stream = io.BytesIO(source.read_bytes())
    with h5py.File(stream, "r+") as file:
        del file.attrs["model_config"]
        file.attrs["model_config"] = text
    target.write_bytes(stream.getvalue())
    return target

"""Changes of the parts of a model file, from those that Keras would not notice to sheer damage.

All take their choices from a `random.Random`. Hypothesis has one whose choices it can replay and
make simpler.
"""

import copy
import io
import random
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import mutations
import numpy as np
from corpus import Parts, write

Choose = random.Random
Mutator = Callable[[Parts, Choose], Parts]

# --- the config ----------------------------------------------------------------------------------


def any_value(parts: Parts, choose: Choose) -> Parts:
    """Anything in the config replaced by anything."""
    return replace(parts, config=mutations.mutated(parts.config, choose))


def any_metadata(parts: Parts, choose: Choose) -> Parts:
    """Anything in the metadata replaced by anything, a record of bnfold's among it."""
    made = {"samples": 64, "layers": ["bn"], "kept": [{"name": "x", "reason": "y"}]}
    record = {"version": "1.0", "source_sha256": "0" * 64, "recalibrated": made}
    metadata = {**parts.metadata, "bnfold": {**record, "earlier": record}}
    return replace(parts, metadata=mutations.mutated(metadata, choose))


def _entries(config: Any) -> list[dict[str, Any]]:
    """All layers of a config, those of nested models too."""
    found: list[dict[str, Any]] = []
    waiting = [config]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if "class_name" in value and isinstance(value.get("config"), dict):
                found.append(value)
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return [one for one in found if isinstance(one["config"].get("name", one.get("name")), str)]


def _tensors(config: Any, names: set[str]) -> list[list[Any]]:
    """All places that name a tensor, in any dialect: lists of a layer's name and two numbers."""
    found: list[list[Any]] = []
    waiting = [config]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            if len(value) >= 3 and isinstance(value[0], str) and value[0] in names:
                found.append(value)
            waiting += value
        elif isinstance(value, dict):
            waiting += value.values()
    return found


def _names(config: Any) -> set[str]:
    return {str(one.get("name") or one["config"].get("name")) for one in _entries(config)}


def rewired(parts: Parts, choose: Choose) -> Parts:
    """A call or an output of a model reads another tensor."""
    config = copy.deepcopy(parts.config)
    names = _names(config)
    tensors = _tensors(config, names)
    if tensors:
        tensor = choose.choice(tensors)
        place = choose.choice((0, 0, 0, 1, 2))
        wrong = (0, 1, 2, -1, None, True, "0", 10**9)
        tensor[place] = choose.choice(wrong if place else sorted(names))
    return replace(parts, config=config)


def called_otherwise(parts: Parts, choose: Choose) -> Parts:
    """A layer is called once more, once less, as another one is, or in training mode."""
    config = copy.deepcopy(parts.config)
    entries = [one for one in _entries(config) if one.get("inbound_nodes")]
    if not entries:
        return parts
    entry, other = choose.choice(entries), choose.choice(entries)
    nodes = entry["inbound_nodes"]
    match choose.randrange(5):
        case 0:
            nodes.append(copy.deepcopy(choose.choice(nodes)))
        case 1:
            nodes.pop(choose.randrange(len(nodes)))
        case 2:
            entry["inbound_nodes"] = copy.deepcopy(other["inbound_nodes"])
        case 3:
            nodes.reverse()
        case _:
            _call_in_training(nodes, choose.choice((True, False, 1, 0, None)))
    return replace(parts, config=config)


def _call_in_training(nodes: list[Any], value: Any) -> None:
    for node in nodes:
        if isinstance(node, dict) and isinstance(node.get("kwargs"), dict):
            node["kwargs"]["training"] = value
        elif isinstance(node, list):
            for one in node:
                if isinstance(one, list) and len(one) == 4 and isinstance(one[3], dict):
                    one[3]["training"] = value


def reordered(parts: Parts, choose: Choose) -> Parts:
    """The layers stand in another order in the config, which says nothing about the graph."""
    config = copy.deepcopy(parts.config)
    models = [
        one["config"] for one in _entries(config) if isinstance(one["config"].get("layers"), list)
    ]
    if models:
        choose.shuffle(choose.choice(models)["layers"])
    return replace(parts, config=config)


def renamed(parts: Parts, choose: Choose) -> Parts:
    """A layer has another name, wherever the config names it."""
    old = choose.choice(sorted(_names(parts.config)))
    new = choose.choice(("z", "a/b", "BatchNormalization", "é", "dense_1", old.upper(), old + "_1"))
    return replace(parts, config=_renamed(parts.config, old, new))


def _renamed(value: Any, old: str, new: str) -> Any:
    if isinstance(value, dict):
        return {key: _renamed(one, old, new) for key, one in value.items()}
    if isinstance(value, list):
        return [_renamed(one, old, new) for one in value]
    return new if value == old else value


_SETTINGS: dict[str, tuple[Any, ...]] = {
    "activation": ("linear", "relu", "tanh", "softmax", "elu", "gelu", "leaky_relu"),
    "axis": (-1, 1, [-1], [1], 3, [3]),
    "center": (True, False),
    "data_format": ("channels_last", "channels_first"),
    "dilation_rate": ([1, 1], [2, 2], 1),
    "epsilon": (1e-3, 1e-7, 0.5, 1, 0.0),
    "momentum": (0.99, 0.5, 0.0, 1),
    "padding": ("same", "valid"),
    "renorm": (False, True),
    "scale": (True, False),
    "strides": ([1, 1], [2, 2], [1, 2], 2),
    "synchronized": (False, True),
    "trainable": (True, False),
    "use_bias": (True, False),
}


def other_settings(parts: Parts, choose: Choose) -> Parts:
    """A layer has another setting that its class knows."""
    config = copy.deepcopy(parts.config)
    entries = [
        one["config"] for one in _entries(config) if not _SETTINGS.keys().isdisjoint(one["config"])
    ]
    if entries:
        settings = choose.choice(entries)
        key = choose.choice(sorted(_SETTINGS.keys() & settings.keys()))
        settings[key] = choose.choice(_SETTINGS[key])
    return replace(parts, config=config)


def less_told(parts: Parts, choose: Choose) -> Parts:
    """A setting is left to its default, or what Keras does not read is gone."""
    config = copy.deepcopy(parts.config)
    entries = list(_entries(config))
    if not entries:  # another mutation took them all
        return parts
    entry = choose.choice(entries)
    holder = choose.choice((entry, entry["config"]))
    unread = ("build_config", "registered_name", "compile_config", "dtype", "trainable", "momentum")
    there = [
        key for key in holder if key in unread or key.endswith(("_initializer", "_regularizer"))
    ]
    if there:
        del holder[choose.choice(there)]
    return replace(parts, config=config)


# --- the weights ---------------------------------------------------------------------------------


def _edited(parts: Parts, choose: Choose, *changes: Callable[[h5py.File, Choose], None]) -> Parts:
    """The parts with their HDF5 file changed; as they were, where HDF5 refuses the change."""
    stream = io.BytesIO(parts.weights)
    try:
        with h5py.File(stream, "r+") as file:
            for change in changes:
                change(file, choose)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError):
        return parts
    return replace(parts, weights=stream.getvalue())


def _paths(file: h5py.File, kind: type) -> list[str]:
    found: list[str] = []
    file.visititems(lambda name, one: found.append(name) if isinstance(one, kind) else None)
    return sorted(found)


def _generator(choose: Choose) -> np.random.Generator:
    return np.random.default_rng(choose.randrange(1 << 32))


def _put(file: h5py.File, name: str, values: Any, **options: Any) -> None:
    """Replace a dataset, and keep its attributes."""
    attributes = dict(file[name].attrs)
    del file[name]
    made = file.create_dataset(name, data=values, **options)
    made.attrs.update(attributes)


def _other_numbers(file: h5py.File, choose: Choose) -> None:
    names = _paths(file, h5py.Dataset)
    if not names:  # an earlier change has taken them all
        return
    name = choose.choice(names)
    values = file[name][()]
    if values.dtype.kind == "f":
        factor = choose.choice((-1, 0.3, 1, 4))
        file[name][...] = factor * values + 0.1 * _generator(choose).standard_normal(values.shape)


def _extreme_numbers(file: h5py.File, choose: Choose) -> None:
    name = choose.choice(_paths(file, h5py.Dataset))
    values = np.array(file[name][()])
    if values.dtype.kind == "f" and values.size:
        extreme = choose.choice((np.nan, np.inf, -np.inf, 0.0, -1.0, 1e30, -1e-30, 1e-42))
        flat = values.reshape(-1)
        flat[choose.randrange(flat.size) :: choose.choice((1, 2, flat.size))] = extreme
        file[name][...] = values


def _stored_otherwise(file: h5py.File, choose: Choose) -> None:
    name = choose.choice(_paths(file, h5py.Dataset))
    values = file[name][()]
    options = ({"chunks": True}, {"compression": "gzip"}, {"shuffle": True}, {"fletcher32": True})
    _put(file, name, values, **(choose.choice(options) if values.shape else {}))


_DTYPES = ("f2", "f4", "f8", ">f4", ">f8", "i1", "u2", "i4", "u8", "?", "S4", "V2", "c8")


def _other_dtype(file: h5py.File, choose: Choose) -> None:
    name = choose.choice(_paths(file, h5py.Dataset))
    values = file[name][()]
    dtype = choose.choice((*_DTYPES, "text", "record"))
    if dtype == "text":
        _put(file, name, "a long text", dtype=h5py.string_dtype())
    elif dtype == "record":
        _put(file, name, np.zeros(values.shape, [("a", "f4"), ("b", "i8")]))
    else:
        _put(file, name, np.asarray(values).astype(dtype))


def _wider_dtype(file: h5py.File, choose: Choose) -> None:
    name = choose.choice(_paths(file, h5py.Dataset))
    if file[name].dtype == "f4":
        _put(file, name, file[name][()].astype(choose.choice(("f8", ">f4"))))


def _other_shape(file: h5py.File, choose: Choose) -> None:
    name = choose.choice(_paths(file, h5py.Dataset))
    values = np.asarray(file[name][()])
    row = np.atleast_1d(values)
    shapes: tuple[Callable[[], Any], ...] = (
        lambda: values.T,
        lambda: row[..., :-1],
        lambda: np.concatenate([row, row], axis=-1),
        lambda: values.reshape(-1),
        lambda: values[None],
        lambda: row[:0],
        lambda: values.reshape(-1)[0],
        lambda: h5py.Empty("f4"),
    )
    _put(file, name, choose.choice(shapes)())


def _claiming(file: h5py.File, choose: Choose) -> None:
    """A dataset says that it is larger than what is stored of it."""
    name = choose.choice(_paths(file, h5py.Dataset))
    shape = (*file[name].shape, choose.choice((1 << 10, 1 << 24, 1 << 40)))
    del file[name]
    options = {"chunks": (1,) * len(shape)} if choose.random() < 0.5 else {}
    file.create_dataset(name, shape=shape, dtype="f4", **options)


def _elsewhere(file: h5py.File, choose: Choose) -> None:
    """A variable whose numbers are in another file, or another part of this one."""
    name = choose.choice(_paths(file, h5py.Dataset))
    shape = file[name].shape
    del file[name]
    if choose.random() < 0.5:
        file.create_dataset(name, shape, "f4", external=[("/etc/hostname", 0, 1 << 20)])
    else:
        layout = h5py.VirtualLayout(shape, "f4")
        layout[...] = h5py.VirtualSource("other.h5", "x", shape)
        file.create_virtual_dataset(name, layout)


def _linked(file: h5py.File, choose: Choose) -> None:
    """One object is a link: to another one, out of the file, to nothing, or to what holds it."""
    every = _paths(file, h5py.HLObject)
    name, other = choose.choice(every), choose.choice(every)
    links = (
        h5py.SoftLink(f"/{other}"),
        h5py.SoftLink("/nowhere"),
        h5py.ExternalLink("other.h5", "/x"),
        file[other],
        file[name].parent,
    )
    link = choose.choice(links)
    del file[name]
    file[name] = link


def _moved(file: h5py.File, choose: Choose) -> None:
    every = _paths(file, h5py.HLObject)
    name, other = choose.choice(every), choose.choice(every)
    match choose.randrange(5):
        case 0:
            del file[name]
        case 1:
            file.move(name, f"{name}_1")
        case 2:
            file.copy(name, f"{other}_copy")
        case 3:
            file.move(name, "between")
            file.move(other, name)
            file.move("between", other)
        case _:
            file.move(name, f"{name.rpartition('/')[0]}/{choose.choice((0, 1, 2, 99, 'x', 'é'))}")


def _surplus(file: h5py.File, choose: Choose) -> None:
    """Groups and variables that Keras does not look for."""
    group = choose.choice(["/", *_paths(file, h5py.Group)])
    name = choose.choice(
        ("surplus", "layers", "optimizer", "vars", "_layer_checkpoint_dependencies")
    )
    if name not in file[group]:
        made = file[group].create_group(name)
        for number in range(choose.randrange(3)):
            made.create_dataset(str(number), data=np.ones(choose.randrange(4), "f4"))


def _attributes(file: h5py.File, choose: Choose) -> None:
    every = ["/", *_paths(file, h5py.HLObject)]
    having = [one for one in every if len(file[one].attrs)]
    attributes = file[choose.choice(having or every)].attrs
    known = ("layer_names", "weight_names", "backend", "keras_version", "name", "training_config")
    name = choose.choice([*attributes, choose.choice(known)])
    old = attributes.get(name)
    names = [str(one) for one in np.atleast_1d([] if old is None else old)] or ["dense"]
    values: tuple[Any, ...] = (
        None,
        "text",
        "",
        b"\xff\xfe",
        3,
        1.5,
        np.zeros(0),
        np.arange(5),
        h5py.Empty("S1"),
        names[::-1],
        names[:-1],
        [*names, names[0]],
        [one.encode() for one in names[1:] + names[:1]],
        np.array(names, dtype="S3"),
        "{" * 400,
        "x" * 60000,
    )
    value = choose.choice(values)
    if name in attributes:
        del attributes[name]
    if value is not None:
        attributes[name] = value


def _newest_format(file: h5py.File, choose: Choose) -> None:
    """Groups as newer versions of HDF5 write them, with the order of their members."""
    name = choose.choice(_paths(file, h5py.Group))
    made = file.create_group("made", track_order=True)
    for one in list(file[name]):
        file.copy(file[name][one], made)
    made.attrs.update(file[name].attrs)
    del file[name]
    file.move("made", name)


def _editing(*changes: Callable[[h5py.File, Choose], None]) -> Mutator:
    return lambda parts, choose: _edited(parts, choose, choose.choice(changes))


other_weights = _editing(_other_numbers)
unnoticed_weights = _editing(
    _other_numbers, _stored_otherwise, _wider_dtype, _surplus, _newest_format
)
extreme_weights = _editing(_extreme_numbers)
other_structure = _editing(
    _other_dtype, _other_shape, _claiming, _elsewhere, _linked, _moved, _attributes, _surplus
)
moved_weights = _editing(_moved, _attributes, _other_shape)


_MARKS = (b"TREE", b"HEAP", b"SNOD", b"OHDR", b"GCOL", b"FRHP", b"\x89HDF", b"PK\1\2", b"PK\3\4")


def damaged(content: bytes, choose: Choose) -> bytes:
    """Bytes changed at random, or near one of the marks that structures begin with."""
    changed = bytearray(content)
    spots = list(_spots(content))
    for _ in range(choose.choice((1, 1, 2, 6))):
        at = choose.randrange(len(changed))
        if spots and choose.random() < 0.7:
            at = min(choose.choice(spots) + choose.randrange(120), len(changed) - 1)
        match choose.randrange(5):
            case 0:
                changed[at] = choose.randrange(256)
            case 1:
                changed[at] ^= 1 << choose.randrange(8)
            case 2:
                changed[at : at + 8] = choose.choice((b"\xff" * 8, bytes(8), b"\1" + bytes(7)))
            case 3:
                other = choose.randrange(len(changed))
                changed[at : at + 16] = changed[other : other + 16]
            case _:
                number = choose.choice((1, 0x10000, 0x3FFFFFFF, 0x7FFFFFFF, 0xFFFFFFFF))
                changed[at : at + 4] = struct.pack("<I", number)
    return bytes(changed[: len(content)])


def _spots(content: bytes) -> Iterator[int]:
    for mark in _MARKS:
        at = content.find(mark)
        while at >= 0:
            yield at
            at = content.find(mark, at + 1)


# --- the file ------------------------------------------------------------------------------------


def written(parts: Parts, choose: Choose, folder: Path, *, honest: bool) -> Path:
    """Write the parts, some of them in another manner; `honest` is one that Keras accepts."""
    parts = parts.with_kind("directory" if choose.random() < (0.1 if honest else 0.3) else "keras")
    if not honest and parts.kind != "h5" and choose.random() < 0.15:
        parts = replace(parts, weights=damaged(parts.weights, choose))
    if parts.kind == "keras" and choose.random() < 0.4:
        path = folder / "mutant.keras"
        path.write_bytes(_odd_archive(parts, choose, honest=honest))
        return path
    path = write(parts, folder)
    if honest or choose.random() < 0.8:
        return path
    if path.is_dir():
        _odd_directory(path, choose)
    else:
        content = path.read_bytes()
        cut = content[: choose.randrange(len(content))]
        path.write_bytes(choose.choice((cut, damaged(content, choose), bytes(512) + content)))
    return path


_ODD_NAMES = (
    "assets/x.txt",
    "assets/layers/dense/vocabulary.txt",
    "CONFIG.JSON",
    "Model.Weights.h5",
    "./config.json",
    "x/",
    "model.weights.h5/x",
    "é\u202e.bin",
    "x.npz",
)
_FORBIDDEN_NAMES = ("../x", "/x", "C:/x", "a\\..\\b", "config.json", "model.weights.h5", "")


def _odd_archive(parts: Parts, choose: Choose, *, honest: bool) -> bytes:
    """An archive that a ZIP library writes, and Keras does not."""
    members = list(parts.members().items())
    choose.shuffle(members)
    stream = io.BytesIO(b"#!/bin/sh\n" if choose.random() < 0.2 else b"")
    stream.seek(0, io.SEEK_END)
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members:
            how = choose.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
            archive.writestr(zipfile.ZipInfo(name), content, how)
        if choose.random() < 0.3:
            names = _ODD_NAMES if honest else _ODD_NAMES + _FORBIDDEN_NAMES
            archive.writestr(
                zipfile.ZipInfo(choose.choice(names)), choose.choice((b"", b"{}", b"x" * 99))
            )
        if choose.random() < 0.2:
            archive.comment = choose.choice((b"a comment", b"PK\5\6" + bytes(18)))
    content = stream.getvalue()
    return content if honest else choose.choice(_ARCHIVE_CHANGES)(content, choose)


# Fields of a member's two headers: where, and in how many bytes.
_LISTING = {"flags": (8, 2), "method": (10, 2), "crc": (16, 4), "size": (20, 4), "claimed": (24, 4)}
_LISTING |= {"name": (28, 2), "extra": (30, 2), "external": (38, 4), "offset": (42, 4)}
_LOCAL = {"flags": (6, 2), "method": (8, 2), "crc": (14, 4), "size": (18, 4), "claimed": (22, 4)}
_LOCAL |= {"name": (26, 2), "extra": (28, 2)}


def _header_field(
    content: bytes, mark: bytes, fields: dict[str, tuple[int, int]], choose: Choose
) -> bytes:
    """One field of the header of one member has another value."""
    spots = [at for at in _spots(content) if content.startswith(mark, at)]
    at, (where, size) = choose.choice(spots), fields[choose.choice(sorted(fields))]
    place = slice(at + where, at + where + size)
    old = int.from_bytes(content[place], "little")
    most = (1 << 8 * size) - 1
    new = choose.choice((0, 1, 8, 99, most, most // 2, old ^ 1, old + 1, old * 2)) & most
    changed = bytearray(content)
    changed[place] = new.to_bytes(size, "little")
    return bytes(changed)


_ARCHIVE_CHANGES: tuple[Callable[[bytes, Choose], bytes], ...] = (
    lambda content, choose: content,
    lambda content, choose: content + content,
    lambda content, choose: content + content[: choose.randrange(len(content))],
    lambda content, choose: content[: choose.randrange(len(content))],
    lambda content, choose: _header_field(content, b"PK\1\2", _LISTING, choose),
    lambda content, choose: _header_field(content, b"PK\3\4", _LOCAL, choose),
)


def _odd_directory(path: Path, choose: Choose) -> None:
    name = choose.choice(sorted(one.name for one in path.iterdir() if one.is_file()))
    match choose.randrange(5):
        case 0:
            (path / name).unlink()
        case 1:
            (path / name).write_bytes(b"")
        case 2:
            (path / name).unlink()
            (path / name).mkdir()
        case 3:
            (path / name).unlink()
            (path / name).symlink_to("/etc/hostname")
        case _:
            (path / name).write_bytes(damaged((path / name).read_bytes(), choose))


HOSTILE: tuple[Mutator, ...] = (
    any_value,
    any_value,
    any_metadata,
    rewired,
    called_otherwise,
    reordered,
    renamed,
    other_settings,
    less_told,
    other_structure,
    other_structure,
    other_structure,
    extreme_weights,
    unnoticed_weights,
)
"""What a stranger may do."""

PLAUSIBLE: tuple[Mutator, ...] = (
    *(any_value, rewired, called_otherwise, reordered, renamed, other_settings, less_told),
    *(unnoticed_weights,) * 9,
    *(extreme_weights, moved_weights) * 2,
)
"""What Keras often accepts too."""


def mutant(parts: Parts, choose: Choose, folder: Path, mutators: tuple[Mutator, ...]) -> Path:
    """Write a file that differs from this one in one to three ways."""
    for _ in range(choose.choice((1, 1, 2, 3))):
        parts = choose.choice(mutators)(parts, choose)
    return written(parts, choose, folder, honest=mutators is PLAUSIBLE)

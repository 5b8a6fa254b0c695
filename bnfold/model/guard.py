"""Limits and refusals: a model file from a stranger is read, never obeyed.

Every JSON text, ZIP member and HDF5 object that bnfold reads passes through this module. What
cannot be read safely (links that leave the file, shapes larger than their bytes, names that climb
out of the archive, nesting without end) raises `UnsafeModelError` with one line; nothing is
followed or allocated before it was looked at.
"""

import json
import math
import stat
import zipfile
from typing import Any

import h5py

from bnfold.errors import UnreadableModelError, UnsafeModelError

MAX_JSON_BYTES = 256 << 20
MAX_JSON_DEPTH = 200
MAX_HDF5_DEPTH = 128
MAX_MEMBERS = 100_000

# DEFLATE cannot do better than about 1032:1; trained weights do not even reach 2:1. A member or
# dataset that claims more than this many bytes per stored byte holds no weights.
MAX_EXPANSION = 200
EXPANSION_FLOOR_BYTES = 16 << 20

_SAFE_FILTERS = {
    h5py.h5z.FILTER_DEFLATE,
    h5py.h5z.FILTER_SHUFFLE,
    h5py.h5z.FILTER_FLETCHER32,
    h5py.h5z.FILTER_SZIP,
    h5py.h5z.FILTER_NBIT,
    h5py.h5z.FILTER_SCALEOFFSET,
}


def printable(text: str) -> str:
    """Text from a file with its control characters (terminal escapes, newlines) made visible."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def parse_json(text: bytes | str, what: str) -> Any:
    """The value of a JSON text that stays within size and depth limits and repeats no key.

    Raises:
        UnreadableModelError: the text is not JSON.
        UnsafeModelError: it is too large, nested too deeply, repeats a key or holds a NaN literal.
    """
    if len(text) > MAX_JSON_BYTES:
        raise UnsafeModelError(f"{what} is larger than {MAX_JSON_BYTES >> 20} MiB; refused")
    try:
        value = json.loads(
            text,
            object_pairs_hook=lambda pairs: _unique_keys(pairs, what),
            parse_constant=lambda literal: _json_constant(literal, what),
        )
    except RecursionError:
        raise UnsafeModelError(f"{what} is nested too deeply; refused") from None
    except ValueError as error:
        raise UnreadableModelError(f"{what} is not valid JSON: {error}") from None
    if _deeper_than(value, MAX_JSON_DEPTH):
        raise UnsafeModelError(f"{what} is nested deeper than {MAX_JSON_DEPTH} levels; refused")
    return value


def _unique_keys(pairs: list[tuple[str, Any]], what: str) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise UnsafeModelError(f"{what} repeats the key {printable(twice)!r}; refused")
    return unique


def _json_constant(literal: str, what: str) -> float:
    # Keras itself writes Infinity for an unbounded constraint; NaN has no meaning in a config.
    if literal == "NaN":
        raise UnsafeModelError(f"{what} holds a NaN literal; refused")
    return float(literal)


def _deeper_than(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        level = [
            child for node in level if isinstance(node, (dict, list)) for child in _inside(node)
        ]
        if not level:
            return False
    return True


def _inside(node: dict[str, Any] | list[Any]) -> list[Any]:
    return list(node.values()) if isinstance(node, dict) else node


def check_archive(archive: zipfile.ZipFile) -> None:
    """Refuse an archive whose listing alone shows that it is no honest model.

    Raises:
        UnsafeModelError: duplicate, absolute, climbing, linked or encrypted members, or an
        expansion
            that weights cannot have.
    """
    members = archive.infolist()
    if len(members) > MAX_MEMBERS:
        raise UnsafeModelError(f"the archive has more than {MAX_MEMBERS} members; refused")
    seen: set[str] = set()
    for member in members:
        _check_member(member, seen)
        seen.add(member.filename)


def _check_member(member: zipfile.ZipInfo, seen: set[str]) -> None:
    name = printable(member.filename)
    if member.filename in seen:
        raise UnsafeModelError(f"the archive has two members named {name!r}; refused")
    parts = member.filename.replace("\\", "/").split("/")
    if member.filename.startswith(("/", "\\")) or ".." in parts or ":" in parts[0]:
        raise UnsafeModelError(
            f"the archive member {name!r} points outside of the archive; refused"
        )
    if stat.S_ISLNK(member.external_attr >> 16):
        raise UnsafeModelError(f"the archive member {name!r} is a symbolic link; refused")
    if member.flag_bits & 0x1:
        raise UnsafeModelError(f"the archive member {name!r} is encrypted; refused")
    if _expands_too_much(member.file_size, member.compress_size):
        raise UnsafeModelError(
            f"the archive member {name!r} claims {member.file_size} bytes but stores "
            f"{member.compress_size}; refused as a decompression bomb"
        )


def _expands_too_much(claimed: int, stored: int) -> bool:
    return claimed > EXPANSION_FLOOR_BYTES and claimed > MAX_EXPANSION * stored


def read_member(archive: zipfile.ZipFile, name: str, limit: int = MAX_JSON_BYTES) -> bytes:
    """The bytes of one member, of which never more than `limit` are read.

    Raises:
        UnreadableModelError: there is no such member, or it is damaged.
        UnsafeModelError: it holds more than `limit` bytes.
    """
    try:
        with archive.open(name) as stream:
            content = stream.read(limit + 1)
    except KeyError:
        raise UnreadableModelError(f"the archive holds no {name}; is it a Keras model?") from None
    except (zipfile.BadZipFile, EOFError, NotImplementedError, OSError, ValueError) as error:
        raise UnreadableModelError(f"{name} in the archive is damaged: {error}") from None
    if len(content) > limit:
        raise UnsafeModelError(f"{name} in the archive is larger than {limit >> 20} MiB; refused")
    return content


def child(group: h5py.Group, name: str) -> h5py.Group | h5py.Dataset | None:
    """The object of this name directly inside `group`, if the link to it is a plain hard link.

    Returns None when there is none. `name` is one name, not a path.

    Raises:
        UnsafeModelError: the link is soft, external or of a user's kind, or the dataset is not
        plain.
    """
    key = name.encode()
    if not group.id.links.exists(key):
        return None
    if group.id.links.get_info(key).type != h5py.h5l.TYPE_HARD:
        raise UnsafeModelError(
            f"{_hdf5_name(group, name)} is a link, which weights never need; refused"
        )
    found = h5py.h5o.open(group.id, key)
    if isinstance(found, h5py.h5g.GroupID):
        return h5py.Group(found)
    if isinstance(found, h5py.h5d.DatasetID):
        dataset = h5py.Dataset(found)
        _check_dataset(dataset, _hdf5_name(group, name))
        return dataset
    raise UnsafeModelError(f"{_hdf5_name(group, name)} is neither a group nor a dataset; refused")


def descend(group: h5py.Group, path: str) -> h5py.Group | h5py.Dataset | None:
    """The object at a path inside `group`, with a look at every link before it is followed."""
    names = [name for name in path.split("/") if name]
    if len(names) > MAX_HDF5_DEPTH:
        raise UnsafeModelError(
            f"the weights are nested deeper than {MAX_HDF5_DEPTH} groups; refused"
        )
    found: h5py.Group | h5py.Dataset | None = group
    for name in names:
        if not isinstance(found, h5py.Group):
            return None
        found = child(found, name)
    return found


def _hdf5_name(group: h5py.Group, name: str) -> str:
    return f"{printable(group.name or '').rstrip('/')}/{printable(name)} in the weights"


def _check_dataset(dataset: h5py.Dataset, name: str) -> None:
    plist = dataset.id.get_create_plist()
    if plist.get_layout() == h5py.h5d.VIRTUAL or plist.get_external_count() > 0:
        raise UnsafeModelError(f"{name} keeps its data in other files; refused")
    filters = {plist.get_filter(i)[0] for i in range(plist.get_nfilters())}
    if not filters <= _SAFE_FILTERS:
        raise UnsafeModelError(f"{name} needs an HDF5 filter that is not built in; refused")
    if not _is_plain(dataset):
        raise UnsafeModelError(f"{name} does not hold plain numbers; refused")
    claimed, stored = _claimed_bytes(dataset), dataset.id.get_storage_size()
    honest = stored >= claimed if not filters else not _expands_too_much(claimed, stored)
    if not honest:
        raise UnsafeModelError(f"{name} claims {claimed} bytes but stores {stored}; refused")


def _is_plain(dataset: h5py.Dataset) -> bool:
    """Whether the elements are numbers, booleans, fixed strings or two opaque bytes (bfloat16)."""
    kind = dataset.id.get_type()
    plain = (h5py.h5t.TypeIntegerID, h5py.h5t.TypeFloatID, h5py.h5t.TypeEnumID)
    if isinstance(kind, plain):
        return True
    if isinstance(kind, h5py.h5t.TypeStringID):
        return not kind.is_variable_str()
    opaque_or_complex = (h5py.h5t.TypeOpaqueID, h5py.h5t.TypeCompoundID)
    return (
        isinstance(kind, opaque_or_complex)
        and dataset.dtype.kind in "Vc"
        and not dataset.dtype.hasobject
    )


def _claimed_bytes(dataset: h5py.Dataset) -> int:
    if dataset.shape is None:
        return 0
    return math.prod(int(n) for n in dataset.shape) * int(dataset.id.get_type().get_size())

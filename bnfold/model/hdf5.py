"""HDF5 weights: read on demand, copied undecoded, written the way Keras writes them."""

from collections.abc import Collection, Iterable, Iterator
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from bnfold.errors import UnreadableModelError, UnsafeModelError
from bnfold.model import guard
from bnfold.model.graph import Weight

HEADER_LIMIT = 64512
"""The most bytes that Keras puts into one attribute; longer lists are cut into parts."""


def open_hdf5(source: Any, what: str) -> h5py.File:
    """An HDF5 file opened for reading, from a path or a seekable binary stream.

    Raises:
        UnreadableModelError: it is no HDF5 file, or a damaged one.
    """
    try:
        return h5py.File(source, "r")
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        reason = guard.printable(str(error).splitlines()[0])
        raise UnreadableModelError(f"{what} is not a readable HDF5 file: {reason}") from None


class Groups:
    """The groups of a file by path; each link is looked at, and followed, once."""

    def __init__(self, root: h5py.Group) -> None:
        self._found: dict[str, h5py.Group | None] = {"": root}

    def at(self, path: str) -> h5py.Group | None:
        """The group at a path, None when there is none."""
        if path not in self._found:
            parent_path, _, name = path.rpartition("/")
            parent = self.at(parent_path)
            found = guard.child(parent, name) if parent is not None else None
            self._found[path] = found if isinstance(found, h5py.Group) else None
        return self._found[path]


def group_at(parent: h5py.Group, path: str) -> h5py.Group | None:
    """The group at a path, None when there is none."""
    found = guard.descend(parent, path)
    return found if isinstance(found, h5py.Group) else None


def weight_in(group: h5py.Group, path: str, source: str, name: str = "") -> Weight | None:
    """The variable at `path` in a group, None if none; `source` is its path in the file."""
    found = guard.descend(group, path)
    if not isinstance(found, h5py.Dataset) or found.shape is None:
        return None
    dtype = _numeric_dtype(found)
    return Weight(tuple(map(int, found.shape)), dtype, lambda: _read(found, dtype), name, source)


def _numeric_dtype(dataset: h5py.Dataset) -> np.dtype[Any]:
    dtype: np.dtype[Any] = dataset.dtype
    # HDF5 has no bfloat16: Keras stores the two bytes as they are.
    return bfloat16() if dtype == np.dtype("V2") else dtype


def bfloat16() -> np.dtype[Any]:
    """Numpy's dtype for bfloat16."""
    import ml_dtypes  # noqa: PLC0415 - few models need it

    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype


def _read(dataset: h5py.Dataset, dtype: np.dtype[Any]) -> NDArray[Any]:
    try:
        values = np.asarray(dataset[()])
    except (OSError, RuntimeError, KeyError) as error:
        reason = guard.printable(str(error).splitlines()[0])
        raise UnreadableModelError(f"the weights are damaged: {reason}") from None
    return values.view(dtype) if values.dtype.kind == "V" else values


def children(group: h5py.Group) -> Iterator[tuple[str, h5py.Group | h5py.Dataset]]:
    """What stands directly in a group, each looked at before it is followed."""
    for name in group:
        found = guard.child(group, name)
        if found is not None:
            yield name, found


def weighted_groups(root: h5py.Group) -> set[str]:
    """The paths of all groups that hold a variable somewhere inside."""
    found: set[str] = set()
    _collect_weighted(root, "", found, 0)
    return found


def _collect_weighted(group: h5py.Group, path: str, found: set[str], depth: int) -> bool:
    _check_depth(depth)
    holds = False
    for name, node in children(group):
        inside = isinstance(node, h5py.Dataset) or _collect_weighted(
            node, f"{path}/{name}".lstrip("/"), found, depth + 1
        )
        holds = holds or inside
    if holds:
        found.add(path)
    return holds


def _check_depth(depth: int) -> None:
    if depth > guard.MAX_HDF5_DEPTH:
        raise UnsafeModelError(
            f"the weights are nested deeper than {guard.MAX_HDF5_DEPTH} groups; refused"
        )


def copy_children(
    source: h5py.Group, target: h5py.Group, skip: Iterable[str] = (), depth: int = 0
) -> None:
    """Copy a group's attributes and all that is in it but the names in `skip`."""
    _check_depth(depth)
    copy_attributes(source, target)
    skipped = set(skip)
    for name, node in children(source):
        if name in skipped:
            continue
        if isinstance(node, h5py.Dataset):
            copy_dataset(source, name, target, name)
        else:
            copy_children(node, target.require_group(name), depth=depth + 1)


def copy_around(source: h5py.Group, target: h5py.Group, left_out: Collection[str]) -> None:
    """Copy a group, but only the attributes of what stands at the paths `left_out` in it."""
    first = {path.partition("/")[0] for path in left_out}
    copy_children(source, target, skip=first)
    for name in sorted(first):
        found = guard.child(source, name)
        if isinstance(found, h5py.Group):
            rest = {p.partition("/")[2] for p in left_out if p.startswith(f"{name}/")}
            inside = target.require_group(name)
            copy_around(found, inside, rest) if rest else copy_attributes(found, inside)


def copy_attributes(source: h5py.Group, target: h5py.Group, skip: Iterable[str] = ()) -> None:
    """Copy a group's attributes but those in `skip`."""
    skipped = set(skip)
    for name in sorted(source.attrs):
        if name not in skipped:
            target.attrs[name] = source.attrs[name]


def copy_dataset(source: h5py.Group, path: str, target: h5py.Group, new_path: str) -> None:
    """Copy one variable byte for byte, without decoding it."""
    parent, _, name = new_path.rpartition("/")
    group = target.require_group(parent) if parent else target
    h5py.h5o.copy(source.id, path.encode(), group.id, name.encode())


def write_weight(target: h5py.Group, path: str, weight: Weight) -> None:
    """Write a variable whose numbers are new."""
    values = weight.read()
    dataset = target.create_dataset(path, data=values)
    if weight.dtype.name == "bfloat16":
        dataset.attrs["dtype"] = "bfloat16"


def read_names(group: h5py.Group, attribute: str) -> list[str]:
    """A list of names that Keras stores in one attribute, or in numbered parts of it."""
    if attribute in group.attrs:
        return [_text(name) for name in _attribute_list(group, attribute)]
    names: list[str] = []
    part = 0
    while f"{attribute}{part}" in group.attrs:
        names += [_text(name) for name in _attribute_list(group, f"{attribute}{part}")]
        part += 1
    return names


def _attribute_list(group: h5py.Group, attribute: str) -> list[Any]:
    value = group.attrs[attribute]
    if not isinstance(value, np.ndarray):
        raise UnreadableModelError(f"the attribute {attribute} of the weights is no list of names")
    return list(value)


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def read_text(group: h5py.Group, attribute: str) -> str | None:
    """A text that Keras stores in an attribute, None when there is none."""
    value = group.attrs.get(attribute)
    return _text(value) if isinstance(value, (bytes, str, np.bytes_)) else None


def write_names(group: h5py.Group, attribute: str, names: list[str]) -> None:
    """Write a list of names as Keras does, in as few parts as fit an HDF5 object header."""
    data = np.asarray([name.encode() for name in names]) if names else np.zeros(0, dtype="float64")
    parts = 1
    while any(part.nbytes > HEADER_LIMIT for part in np.array_split(data, parts)):
        parts += 1
    if parts == 1:
        group.attrs[attribute] = data
        return
    for number, part in enumerate(np.array_split(data, parts)):
        group.attrs[f"{attribute}{number}"] = part

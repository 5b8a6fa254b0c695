"""The `.keras` container: metadata, config, weights and assets, in a ZIP or in a directory.

The HDF5 file inside a ZIP is stored, not compressed, so it is read through a window over the
archive: `ZipFile.open` would read everything again at every backward seek, and a copy would cost
the model's size.
"""

from __future__ import annotations

import io
import json
import shutil
import struct
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from numpy.typing import NDArray

from bnfold.errors import UnreadableModelError
from bnfold.model import keras_json
from bnfold.model.container import checksums, foreign, guard, hdf5, unchanging
from bnfold.model.container.budget import Costs
from bnfold.model.container.library import h5py
from bnfold.model.container.store import FAR, RemoteFile, archive_file
from bnfold.model.graph import Graph, Json, Layer, LayerPath, Weight, changed, walk_all
from bnfold.model.layers import slots, variable_groups, weights
from bnfold.model.optimizer import Optimizer
from bnfold.model.order import Container, GroupNames, in_same_order
from bnfold.supervision import link

CONFIG = "config.json"
METADATA = "metadata.json"
WEIGHTS = "model.weights.h5"
ASSETS = "assets/"
OPTIMIZER = "optimizer"
INNER_OPTIMIZER = "inner_optimizer"

_LOCAL_HEADER = struct.Struct("<4s22xHH")
_ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)
_CHUNK = 1 << 20


class _ZipParts:
    """The parts of a `.keras` archive."""

    def __init__(self, path: Path | RemoteFile, resources: ExitStack) -> None:
        self._file = resources.enter_context(archive_file(path))
        self._archive = resources.enter_context(guard.open_archive(self._file))
        self._resources = resources
        self._path, self._start, self._is_checked = path, 0, False
        self._reading = checksums.Reading()
        self.costs = Costs(path.stat().st_size, far_above=hdf5.far_above(path))

    def names(self) -> list[str]:
        return [info.filename for info in self._archive.infolist() if not info.is_dir()]

    def read(self, name: str) -> bytes:
        return guard.read_text(self.chunks(name), self.costs)

    def size(self, name: str) -> int:
        return self._archive.getinfo(name).file_size

    def chunks(self, name: str) -> Iterator[bytes]:
        return guard.member_chunks(self._archive, name)

    def check_weights(self, most: int | None) -> str | None:
        """See that the weights have their checksum, where they were not unpacked to be read."""
        info = self._archive.getinfo(WEIGHTS)
        if info.compress_type != zipfile.ZIP_STORED or self._is_checked:
            return None
        if isinstance(self._path, RemoteFile):
            return "the checksum of its weights was not checked, which are not fetched as a whole"
        if most is not None and info.file_size > most:
            return f"the checksum of its weights, of more than {most >> 20} MiB, was not checked"
        # A handle of its own, because the weights may be read meanwhile.
        with self._path.open("rb", buffering=0) as file:
            self._check(self._reading.of_whole(file, self._start, info.file_size), info)
        return None

    def sha256(self) -> str:
        """The SHA-256 of the archive. Sees in the same reading what `check_weights` sees."""
        info = self._archive.getinfo(WEIGHTS)
        if info.compress_type != zipfile.ZIP_STORED or isinstance(self._path, RemoteFile):
            return unchanging.sha256(self._path)
        self._reading.end()
        with self._path.open("rb", buffering=0) as file:
            digest, checksum = checksums.of_file(file, self._start, info.file_size)
        self._check(checksum, info)
        return digest

    def _check(self, checksum: int, info: zipfile.ZipInfo) -> None:
        if checksum != info.CRC:
            raise UnreadableModelError(f"{WEIGHTS} in the archive is damaged: bad checksum")
        self._is_checked = True

    def copy(self, target: Path, changes: Mapping[str, NDArray[Any]], metadata: bytes) -> None:
        """Write an archive of the same members in the same order, some weights changed."""
        weights = target.with_name(f"{target.name}.{WEIGHTS}")
        try:
            _write_chunks(self.chunks(WEIGHTS), weights)
            hdf5.overwrite(weights, changes)
            with zipfile.ZipFile(target, "w") as archive:
                archive.comment = self._archive.comment
                for info in self._archive.infolist():
                    with archive.open(copy(info), "w") as member:
                        if info.filename == WEIGHTS:
                            with weights.open("rb") as stream:
                                shutil.copyfileobj(stream, member, _CHUNK)
                        elif info.filename == METADATA:
                            member.write(metadata)
                        elif not info.is_dir():
                            member.writelines(self.chunks(info.filename))
                if METADATA not in archive.namelist():
                    archive.writestr(zipfile.ZipInfo(METADATA, _ZIP_EPOCH), metadata)
        finally:
            weights.unlink(missing_ok=True)

    def weights(self) -> hdf5.Groups:
        info = self._archive.getinfo(WEIGHTS)
        # h5py crashes the process when the stream dies before the file: the stack closes the file
        # first.
        if info.compress_type == zipfile.ZIP_STORED:
            self._start = self._data_offset(info)
            size, reading = info.file_size, self._reading
            found = hdf5.open_hdf5(
                self._file, WEIGHTS, self.costs, self._start, size, reading=reading
            )
        else:
            import tempfile  # noqa: PLC0415 - Keras stores the weights uncompressed

            unpacked = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
            self._resources.enter_context(unpacked)
            unpacked.writelines(self.chunks(WEIGHTS))
            found = hdf5.open_hdf5(unpacked, WEIGHTS, self.costs)
        return self._resources.enter_context(found)

    def _data_offset(self, info: zipfile.ZipInfo) -> int:
        first = FAR if isinstance(self._path, RemoteFile) else _CHUNK
        guard.check_member(self._archive, WEIGHTS, first)
        self._file.seek(info.header_offset)
        header = self._file.read(_LOCAL_HEADER.size)
        if len(header) < _LOCAL_HEADER.size or not header.startswith(b"PK\x03\x04"):
            raise UnreadableModelError(f"the archive is damaged at {WEIGHTS}")
        _, name_length, extra_length = _LOCAL_HEADER.unpack(header)
        start: int = info.header_offset + _LOCAL_HEADER.size + name_length + extra_length
        if info.file_size != info.compress_size or start + info.file_size > self._size():
            raise UnreadableModelError(f"the archive is truncated in {WEIGHTS}")
        return start

    def _size(self) -> int:
        return int(self._file.seek(0, io.SEEK_END))


class _DirectoryParts:
    """The parts of a model saved with `zipped=False`."""

    def __init__(self, path: Path, resources: ExitStack) -> None:
        self._path = path
        self._resources = resources
        self._names = sorted(guard.files_in(path))
        self.costs = Costs(sum(map(self.size, self._names)))

    def names(self) -> list[str]:
        return self._names

    def read(self, name: str) -> bytes:
        return guard.read_text(self.chunks(name), self.costs)

    def size(self, name: str) -> int:
        return (self._path / name).stat().st_size

    def copy(self, target: Path, changes: Mapping[str, NDArray[Any]], metadata: bytes) -> None:
        """Write a directory of the same files, some weights changed."""
        for found in (self._path, *self._path.rglob("*")):
            if found.is_dir():
                (target / found.relative_to(self._path)).mkdir(parents=True, exist_ok=True)
        for name in self._names:
            _write_chunks(self.chunks(name), target / name)
        (target / METADATA).write_bytes(metadata)
        hdf5.overwrite(target / WEIGHTS, changes)

    def chunks(self, name: str) -> Iterator[bytes]:
        with (self._path / name).open("rb") as stream:
            while piece := stream.read(_CHUNK):
                yield piece

    def weights(self) -> hdf5.Groups:
        stream = self._resources.enter_context((self._path / WEIGHTS).open("rb", buffering=0))
        return self._resources.enter_context(hdf5.open_hdf5(stream, WEIGHTS, self.costs))

    def check_weights(self, most: int | None) -> None:
        """Do nothing: files in a directory have no checksum."""

    def sha256(self) -> str:
        """That of what `sha256sum` says of its files."""
        return unchanging.sha256(self._path)


class KerasArchive:
    """An open `.keras` file or directory.

    Attributes:
        graph: the model.
        keras_version: the version of Keras that wrote it, where metadata.json tells.
        dropped: what `write` leaves out because it belongs to training.
    """

    def __init__(self, path: Path | RemoteFile, resources: ExitStack) -> None:
        """Read the graph and the places of its weights; `resources` closes what stays open."""
        self._is_directory = isinstance(path, Path) and path.is_dir()
        self._parts = (
            _DirectoryParts(path, resources)
            if isinstance(path, Path) and self._is_directory
            else _ZipParts(path, resources)
        )
        names = set(self._parts.names())
        _require(names)
        self.metadata = self._read_metadata(names)
        version = self.metadata.get("keras_version")
        self.keras_version = version if isinstance(version, str) else None
        parsed = keras_json.parse_model(self._read_json(CONFIG))
        link.counted(path, sum(1 for _ in walk_all(parsed)))
        self._weights = self._with_slashes(self._parts.weights(), resources)
        self._container = _container(self._weights)
        self.graph = self._attach(parsed)
        self.dropped = self._training_state()
        self._parts.costs.check_storage()

    def _read_json(self, name: str) -> Any:
        return guard.parse_json(self._parts.read(name), name, self._parts.costs)

    def _with_slashes(self, weights: hdf5.Groups, resources: ExitStack) -> hdf5.Groups:
        """The weights, or a copy under slashes where Keras 2 saved them on Windows."""
        self._was_saved_on_windows = hdf5.joined_by_backslashes(weights.names())
        if not self._was_saved_on_windows:
            return weights
        path = resources.enter_context(link.temporary_folder()) / WEIGHTS
        with hdf5.new_file(path) as new:
            hdf5.copy_with_slashes(weights.root, new)
        stream = resources.enter_context(path.open("rb", buffering=0))
        return resources.enter_context(
            hdf5.open_hdf5(stream, WEIGHTS, Costs(self._parts.costs.size))
        )

    @property
    def weights_root(self) -> h5py.Group:
        """The root of the weights, for models whose graph the file does not tell."""
        return self._weights.root

    @property
    def optimizers(self) -> Mapping[LayerPath, Optimizer]:
        """The optimizer of each compiled model; that of the outermost at ().

        A model that was compiled before it was nested has one of its own.
        """
        places = {(): ("", self.graph)} | {
            path: (layer.location, layer.graph)
            for path, layer in walk_all(self.graph)
            if layer.graph is not None and layer.location is not None
        }
        return {path: self._optimizer(*found) for path, found in places.items()}

    def _optimizer(self, place: str, graph: Graph) -> Optimizer:
        """What the group of an optimizer holds; a LossScaleOptimizer has the one that it wraps.

        The first variable counts the steps. That of a LossScaleOptimizer stays 0.
        """
        place = f"{place}/{OPTIMIZER}".removeprefix("/")
        if self._weights.holds(f"{place}/{INNER_OPTIMIZER}"):
            place = f"{place}/{INNER_OPTIMIZER}"
        first = self._weights.variable(f"{place}/vars", 0)
        compiled = graph.entry.get("compile_config")
        return Optimizer(
            entry=compiled.get("optimizer") if isinstance(compiled, dict) else None,
            steps=hdf5.counter(first),
            variables=lambda: hdf5.all_weights(self._weights.at(place), place),
        )

    def _attach(self, graph: Graph) -> Graph:
        """The graph with each layer's place in the file and its variables."""
        weighted: set[str] = set()
        if self._container is Container.CHECKPOINT_DEPENDENCIES:
            weighted = hdf5.weighted_groups(self._weights.root)
        twice = weighted if self._counts_twice else ()
        names = GroupNames(self._container, lambda _, group: group in twice).assign(graph)
        _refuse_unclaimed(weighted, names.values())
        return _attach_graph(graph, (), names, self._weights)

    @property
    def _counts_twice(self) -> bool:
        """Whether layers with weights are counted twice, which Keras 2.14 no longer does."""
        is_2_14 = (self.keras_version or "").startswith("2.14.")
        return self._container is Container.CHECKPOINT_DEPENDENCIES and not is_2_14

    def _read_metadata(self, names: set[str]) -> Json:
        if METADATA not in names:
            return {}
        metadata = self._read_json(METADATA)
        return metadata if isinstance(metadata, dict) else {}

    def _training_state(self) -> tuple[str, ...]:
        found = []
        if keras_json.is_compiled(self.graph):
            found.append("compile_config")
        if self._weights.has(OPTIMIZER):
            found.append("optimizer state")
        return tuple(found)

    def check_weights(self, most: int | None = None) -> str | None:
        """See that the weights have their checksum; a sentence where they are too large for it."""
        return self._parts.check_weights(most)

    def sha256(self) -> str:
        """The SHA-256 of the file; its weights have their checksum, or this raises."""
        return self._parts.sha256()

    def write(self, graph: Graph, target: Path, record: Callable[[], Json]) -> None:
        """Write `graph` with this file's other parts to `target`, which does not exist yet.

        What `record` tells goes into metadata.json under "bnfold"; it is asked as late as can be.
        """
        names = self._group_names().assign(graph)
        if self._is_directory:
            self._write_directory(graph, names, record, target)
        else:
            self._write_zip(graph, names, record, target)
        self.check_weights()  # at the end: who tells the record may have seen it by then

    def _documents(self, graph: Graph, record: Callable[[], Json]) -> dict[str, bytes]:
        return {
            METADATA: self._recorded(record()),
            CONFIG: json.dumps(keras_json.to_json(keras_json.decompile(graph))).encode(),
        }

    def _group_names(self) -> GroupNames:
        twice: set[str] = set()
        if self._counts_twice:
            twice = hdf5.weighted_groups(self._weights.root)
        return GroupNames(self._container, lambda layer, _: (layer.location or "") in twice)

    def _write_zip(
        self,
        graph: Graph,
        names: dict[LayerPath, str],
        record: Callable[[], Json],
        target: Path,
    ) -> None:
        # HDF5 must seek, which a ZIP member cannot: the weights are written into their place first,
        # and get their header when their size is known. A copy would cost as much again.
        info = zipfile.ZipInfo(WEIGHTS, _ZIP_EPOCH)
        info.CRC = info.file_size = info.compress_size = info.header_offset = 0
        is_large = self._weights.root.id.get_filesize() > zipfile.ZIP64_LIMIT // 2
        start = len(info.FileHeader(is_large))
        target.write_bytes(bytes(start))
        with checksums.Writer(target) as writer:
            self._write_weights(graph, names, target, start, writer)
        with target.open("r+b", buffering=0) as file:
            _describe(info, file, start, writer)
            file.seek(0)
            file.write(info.FileHeader(is_large))
            file.seek(0, io.SEEK_END)
            with zipfile.ZipFile(file, "w") as archive:
                archive.filelist.append(info)
                archive.NameToInfo[info.filename] = info
                for name, content in self._documents(graph, record).items():
                    archive.writestr(zipfile.ZipInfo(name, _ZIP_EPOCH), content)
                for name, new_name in self._assets(graph, names):
                    _store(archive, new_name, self._parts.chunks(name), self._parts.size(name))

    def _write_directory(
        self,
        graph: Graph,
        names: dict[LayerPath, str],
        record: Callable[[], Json],
        target: Path,
    ) -> None:
        target.mkdir()
        self._write_weights(graph, names, target / WEIGHTS)
        for name, content in self._documents(graph, record).items():
            (target / name).write_bytes(content)
        for name, new_name in self._assets(graph, names):
            (target / new_name).parent.mkdir(parents=True, exist_ok=True)
            _write_chunks(self._parts.chunks(name), target / new_name)

    def rewrite(self, changes: Mapping[str, NDArray[Any]], target: Path, record: Json) -> None:
        """Write a copy to `target`, in which some variables have other numbers."""
        if self._was_saved_on_windows:
            changes = {_as_on_windows(path): values for path, values in changes.items()}
        self._parts.copy(target, changes, self._recorded(record))

    def _recorded(self, record: Json) -> bytes:
        """What metadata.json says with a record of how the file was made."""
        return json.dumps({**self.metadata, "bnfold": record}).encode()

    def _assets(self, graph: Graph, names: dict[LayerPath, str]) -> Iterator[tuple[str, str]]:
        """Every other member: its name, and its new name if its layer's group moved."""
        moved = {
            layer.location: names[path]
            for path, layer in walk_all(graph)
            if layer.location is not None and path in names
        }
        for name in self._parts.names():
            if name not in (METADATA, CONFIG, WEIGHTS):
                yield name, _moved_asset(name, moved)

    def _write_weights(
        self,
        graph: Graph,
        names: dict[LayerPath, str],
        target: Path,
        start: int = 0,
        writer: checksums.Writer | None = None,
    ) -> None:
        with hdf5.new_file(target, start, writer) as new:
            # What a subclassed model holds nobody knows: it stays where it is.
            replaced = set() if graph.kind == "subclassed" else {self._container.value}
            hdf5.copy_children(self._weights.root, new, skip={OPTIMIZER, *replaced})
            written: set[str] = set()
            top = self._container.value
            # HDF5 looks for each group from the one that it is given.
            within = hdf5.group_for(new, top) if names else new
            for path, layer in walk_all(graph):
                group = names.get(path)
                if group is not None and group not in written:
                    written.add(group)
                    self._write_layer(layer, hdf5.group_for(within, group.removeprefix(f"{top}/")))
        self._parts.costs.check_storage()

    def _write_layer(self, layer: Layer, target: h5py.Group) -> None:
        place = layer.location or None
        inside = {self._container.value, OPTIMIZER} if layer.graph is not None else set()
        if layer.inner is not None:
            inside.add("layer")
        if layer.weights is None:
            if place is not None:
                self._weights.copy(place, target, inside)
            return
        groups = variable_groups(layer)
        if groups != ("",) and weights(layer) is None and place is not None:
            self._weights.copy(place, target)
            return
        if groups != ("",):
            self._write_grouped(layer, groups, target)
            return
        variables = hdf5.group_for(target, "vars")
        if place is not None:
            self._weights.copy(place, target, {*inside, "vars"})
            self._weights.copy_attributes(f"{place}/vars", variables)
        for number, weight in enumerate(layer.weights):
            self._write_variable(weight, variables, number)

    def _write_grouped(self, layer: Layer, groups: tuple[str, ...], target: h5py.Group) -> None:
        """A layer that keeps its variables in the groups of its parts, as recurrent layers do."""
        source = self._weights.at(layer.location) if layer.location else None
        if source is not None:
            hdf5.copy_around(source, target, {f"{group}/vars" for group in groups})
        whose = [slot.group for slot in slots(layer) or ()]
        numbers = dict.fromkeys(groups, 0)
        for group, weight in zip(whose, layer.weights or (), strict=False):
            variables = hdf5.group_for(target, f"{group}/vars")
            self._write_variable(weight, variables, numbers[group])
            numbers[group] += 1

    def _write_variable(self, weight: Weight, variables: h5py.Group, number: int) -> None:
        if weight.source is not None:
            hdf5.copy_dataset(self._weights.root, weight.source, variables, str(number))
        else:
            hdf5.write_weight(variables, str(number), weight)


def _write_chunks(chunks: Iterable[bytes], target: Path) -> None:
    with target.open("wb") as file:
        file.writelines(chunks)


def _require(names: set[str]) -> None:
    if CONFIG not in names:
        what = foreign.archived(names)
        raise UnreadableModelError(what or f"there is no {CONFIG} inside; is it a Keras model?")
    if WEIGHTS not in names:
        hint = " (weights in npz are not supported)" if "model.weights.npz" in names else ""
        raise UnreadableModelError(f"there is no {WEIGHTS} inside{hint}")


def _describe(info: zipfile.ZipInfo, file: IO[bytes], start: int, sums: checksums.Writer) -> None:
    """Note size and checksum of what stands in `file` from `start` on, stored uncompressed."""
    info.file_size = info.compress_size = file.seek(0, io.SEEK_END) - start
    info.CRC = sums.of_rest(file, start, info.file_size)


def _store(archive: zipfile.ZipFile, name: str, pieces: Iterable[bytes], size: int) -> None:
    info = zipfile.ZipInfo(name, _ZIP_EPOCH)
    info.file_size = size  # lets zipfile choose ZIP64 where it is needed
    with archive.open(info, "w") as member:
        for piece in pieces:
            member.write(piece)


def _moved_asset(name: str, moved: dict[str, str]) -> str:
    if not name.startswith(ASSETS):
        return name
    parts = name.removeprefix(ASSETS).split("/")
    for length in range(len(parts) - 1, 0, -1):
        group = "/".join(parts[:length])
        if group in moved:
            return ASSETS + "/".join([moved[group], *parts[length:]])
    return name


def _as_on_windows(path: str) -> str:
    """Where Keras 2 on Windows keeps the variable that is at this path elsewhere."""
    group, variables, number = path.rpartition("/vars/")
    return group.replace("/", "\\") + variables + number


def _container(weights: hdf5.Groups) -> Container:
    """Where the weights of the layers are; both places are not for one file.

    Keras takes each layer's from the one, and from the other where they are not in that.
    """
    found = [one for one in Container if weights.has(one.value)]
    if len(found) > 1:
        names = " and ".join(one.value for one in found)
        raise UnreadableModelError(f"the weights stand in two places, {names}: which count?")
    return found[0] if found else Container.LAYERS


def _refuse_unclaimed(weighted: Collection[str], claimed: Iterable[str]) -> None:
    """Refuse groups of Keras 2.13 or 2.14 that are no layer's: Keras 3 counts them otherwise."""
    layers = {place.split("/")[1] for place in claimed}
    for group in sorted(weighted):
        container, _, name = group.partition("/")
        is_layer = container == Container.CHECKPOINT_DEPENDENCIES.value and name
        if is_layer and name.split("/")[0] not in layers:
            raise UnreadableModelError(
                f"the weights in {guard.shortened(group)} belong to no layer: groups are not"
                " numbered here as the Keras of this file numbers them"
            )


def _attach_graph(
    graph: Graph, path: LayerPath, names: dict[LayerPath, str], groups: hdf5.Groups
) -> Graph:
    layers = {
        name: _attach_layer(layer, (*path, name), names, groups, graph.layers)
        for name, layer in graph.layers.items()
    }
    return in_same_order(replace(graph, layers=layers), graph)


def _attach_layer(
    layer: Layer,
    path: LayerPath,
    names: dict[LayerPath, str],
    groups: hdf5.Groups,
    siblings: Collection[str],
) -> Layer:
    location = names.get(path)
    if layer.graph is not None:
        layer = replace(layer, graph=_attach_graph(layer.graph, path, names, groups))
    if layer.inner is not None:
        inner = _attach_layer(layer.inner, (*path, layer.inner.name), names, groups, ())
        layer = replace(layer, inner=inner)
    if slots(layer) == ():  # copied as it is, not looked into
        return changed(layer, location=location, weights=None)
    if location is None:
        return changed(layer, location=None)
    _check_name(layer, location, siblings, groups.text(f"{location}/vars", "name"))
    weights: tuple[Weight, ...] = ()
    for group in variable_groups(layer):
        place = f"{location}/{group}/vars" if group else f"{location}/vars"
        found = groups.variables(place)
        if found is None:
            return changed(layer, location=location, weights=None)
        weights += found
    return changed(layer, location=location, weights=weights)


def _check_name(layer: Layer, location: str, siblings: Collection[str], noted: str | None) -> None:
    """Refuse variables that are, by the name that newer files note, those of another layer."""
    if noted is not None and noted != layer.name and noted in siblings:
        raise UnreadableModelError(
            f"the weights in {guard.printable(location)} are by name those of layer "
            f"{guard.printable(noted)!r}, by place those of {guard.printable(layer.name)!r}"
        )

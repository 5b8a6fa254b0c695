"""BatchNormalization statistics in a part of a file whose graph is not told.

A subclassed model and a custom layer keep their layers to themselves: the file has their variables
but not their settings. Four vectors of one length in one group are gamma, beta, moving_mean and
moving_variance of a BatchNormalization; no other layer of Keras looks like that. One without gamma
or beta cannot be told from other layers and is left out.
"""

from collections.abc import Iterator

import h5py

from bnfold.model import guard, hdf5
from bnfold.model.batchnorm import VECTORS, BatchNorm
from bnfold.model.graph import Layer, Path, Weight

_UNKNOWN_SETTINGS = {"axis": None, "epsilon": None, "momentum": None}
_CONTAINERS = {"layers", "_layer_checkpoint_dependencies", "_layers"}


def loose_batchnorms(
    group: h5py.Group, path: Path = (), depth: int = 0, *, frozen: bool = False
) -> Iterator[BatchNorm]:
    """The BatchNormalization layers inside a group of weights; their settings are unknown.

    `frozen` says that the layer that the group is of is: if it is one itself, a class made of
    BatchNormalization. What is inside it has a flag of its own, of which the file does not tell.
    """
    if depth > guard.MAX_HDF5_DEPTH:
        return
    for name, node in hdf5.children(group):
        if not isinstance(node, h5py.Group):
            continue
        if name == "vars":
            weights = _vectors(node)
            if weights is not None:
                yield BatchNorm(path, _layer(path, weights, frozen=frozen))
        elif depth > 0 or name != "optimizer":
            inside = path if name in _CONTAINERS else (*path, name)
            yield from loose_batchnorms(node, inside, depth + 1)


def _vectors(variables: h5py.Group) -> tuple[Weight, ...] | None:
    if set(variables) != {str(number) for number in range(len(VECTORS))}:
        return None
    found = [hdf5.weight_in(variables, str(number), "") for number in range(len(VECTORS))]
    weights = tuple(weight for weight in found if weight is not None)
    same = len({weight.shape for weight in weights}) == 1 and len(weights[0].shape) == 1
    return weights if same and all(weight.dtype.kind in "fV" for weight in weights) else None


def _layer(path: Path, weights: tuple[Weight, ...], *, frozen: bool) -> Layer:
    name = path[-1] if path else "batch_normalization"
    config = {**_UNKNOWN_SETTINGS, "trainable": not frozen}
    return Layer(name, "BatchNormalization", config, {}, weights=weights)

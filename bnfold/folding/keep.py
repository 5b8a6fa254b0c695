"""The layers that the user asked to be left alone, by shell patterns."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from bnfold.model.graph import Graph, LayerPath, show, walk_all


def matches(path: LayerPath, *patterns: str) -> bool:
    """Whether a pattern matches the name or nested path of a layer, or of one around it."""
    around = (path[:length] for length in range(1, len(path) + 1))
    names = [name for p in around for name in (p[-1], show(p))]
    return any(fnmatchcase(name, pattern) for pattern in patterns for name in names)


def unused_patterns(graph: Graph, keep: Sequence[str]) -> tuple[str, ...]:
    """The patterns of `keep` that match no layer of the model."""
    paths = [path for path, _ in walk_all(graph)]
    return tuple(p for p in keep if not any(matches(path, p) for path in paths))

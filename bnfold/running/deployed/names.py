"""What the names in deployed models tell: the layer that makes a tensor, or a place among many."""

import re

_PART = re.compile(r"[^/;:]+")


def scopes(name: str) -> tuple[str, ...]:
    """The scopes in the name of a tensor: "net/conv_1/BiasAdd:0" is made in conv_1 of net.

    Of several names, as LiteRT writes them, the first one is that of what makes it.
    """
    first = next(filter(None, name.split(";")), "")
    return tuple(_PART.findall(first.partition(":")[0]))


def position(name: str) -> int | None:
    """The place that a made-up name gives a tensor among all: `output_3`, `Identity_3:0`."""
    found = re.fullmatch(
        r"(?:serving_default_)?(?:output|input|args|inputs|outputs|Identity"
        r"|(?:Stateful)?PartitionedCall)(?:_(\d+))?(?::(\d+))?",
        name,
    )
    if found is None:
        return None
    return int(found[2] or 0) if "Partitioned" in name else int(found[1] or 0)

"""The record that a file has of how bnfold made it, under "bnfold" in its metadata.

The newest one stands outermost, and each holds the one before it as "earlier". Keras drops it when
it saves the model again, so that a record speaks of the numbers that the file has.
"""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from bnfold.model.graph import Json, LayerPath, show

KEY = "bnfold"


def record(metadata: Json, version: str, sha256: str, **made: Any) -> Json:
    """The record of a file that is made of one with this metadata and SHA-256."""
    found = {"version": version, "source_sha256": sha256, **made}
    earlier = metadata.get(KEY)
    return found if earlier is None else {**found, "earlier": earlier}


class Recalibration(NamedTuple):
    """What `recalibrate` did to a file.

    Attributes:
        samples: from how many samples the statistics of each layer are, by its name.
        kept: why the other layers stayed as they were.
    """

    samples: Mapping[str, int] = MappingProxyType({})
    kept: Mapping[str, str] = MappingProxyType({})

    def samples_of(self, layer: LayerPath) -> int | None:
        """From how many samples the statistics of a layer are; None for one that was not done."""
        return self.samples.get(show(layer))


def recalibration(metadata: Json) -> Recalibration | None:
    """What all recalibrations did that the record tells of; None where there was none."""
    samples: dict[str, int] = {}
    kept: dict[str, str] = {}
    done = [made for one in records(metadata) if (made := one.get("recalibrated")) is not None]
    for made in reversed(done):
        found = made if isinstance(made, dict) else {}
        count = found.get("samples")
        layers, stayed = (found.get(name) for name in ("layers", "kept"))
        if isinstance(stayed, list):
            kept |= {
                one["name"]: one["reason"]
                for one in stayed
                if isinstance(one, dict)
                and all(isinstance(one.get(key), str) for key in ("name", "reason"))
            }
        if isinstance(layers, list) and type(count) is int:
            samples |= {name: count for name in layers if isinstance(name, str)}
    kept = {name: reason for name, reason in kept.items() if name not in samples}
    return Recalibration(samples, kept) if done else None


def records(metadata: Json) -> Iterator[Json]:
    """The records from the newest one on."""
    found = metadata.get(KEY)
    while isinstance(found, dict):
        yield found
        found = found.get("earlier")

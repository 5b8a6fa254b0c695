"""What a trained model of the calibration is, and what the audit should say of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from training import Trained

Make = Callable[[], Trained]


@dataclass(frozen=True)
class Planted:
    """The defect of a model: the rule that must find it, how bad, and on which layer."""

    code: str
    severity: str
    layer: str

    @classmethod
    def parse(cls, text: str) -> "Planted":
        """From `BN103 error norm_1`."""
        return cls(*text.split())


@dataclass(frozen=True)
class Specimen:
    """One model.

    Attributes:
        name: its own.
        make: builds and trains it; the docstring says what it is.
        planted: what must be found; nothing for a healthy model.
        also: codes that may be reported as well, on any layer, because the same defect shows so.
        edited: whether the defect was written into the weights instead of coming from training.
        form: the ending of its file; empty for a directory.
        target_dtype: what it is going to run in, if not its own dtype.
    """

    name: str
    make: Make
    planted: tuple[Planted, ...] = ()
    also: frozenset[str] = frozenset()
    edited: bool = False
    form: str = ".keras"
    target_dtype: str | None = None

    @property
    def summary(self) -> str:
        """What it is, in a line."""
        return (self.make.__doc__ or "").splitlines()[0].rstrip(".")


def specimen(
    table: dict[str, Specimen],
    *planted: str,
    also: Sequence[str] = (),
    edited: bool = False,
    form: str = ".keras",
    target_dtype: str | None = None,
) -> Callable[[Make], Make]:
    """Register a function that trains a model, under its own name, in a table."""

    def register(make: Make) -> Make:
        found = tuple(Planted.parse(text) for text in planted)
        table[make.__name__] = Specimen(
            make.__name__, make, found, frozenset(also), edited, form, target_dtype
        )
        return make

    return register

"""What unconverged statistics cost: the accuracy with them, and with those of all training data.

    python tests/evaluation/convergence.py [--models FOLDER] [--networks 43]

prints the tables of docs/calibration.md on BN103. The first is of networks that are drawn at random
from `tutorials.py` and looked at after several epochs each: how much accuracy they lose, by how
much of their statistics BN103 takes to be initial. With --models their files stay in FOLDER, and
those that are there already are taken from it. The second is of five networks at momentum 0.99,
where r is the weight that the initial values have left, m^n.
"""

import argparse
import itertools
import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1] / "builders"))

import architectures as nets
import tensorflow as tf
from calibration import table
from support import keras, np
from training import Data, compiled, digits, flat_digits, score, sequences
from tutorials import OPTIMIZERS, Tutorial, drawn

from bnfold.audit import Finding, Thresholds
from bnfold.jobs.inspect import inspect_file

WEIGHTS = (0.9, 0.7, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01)
SEEDS = 3
MOMENTUM = 0.99
NETWORKS: dict[str, tuple[Callable[[], Any], Callable[[], Data]]] = {
    "MLP": (nets.mlp, flat_digits),
    "MLP, pixels in 0..255": (nets.mlp, lambda: flat_digits().map(lambda x: x * 255)),
    "CNN": (nets.cnn, digits),
    "ResNet": (nets.resnet, digits),
    "Conv1D": (nets.conv1d, sequences),
}


def trained_for(model: Any, data: Data, steps: int, seed: int) -> None:
    """Train for so many steps of 32 samples."""
    samples, targets = data.train
    generator = np.random.default_rng(seed)
    epochs = math.ceil(steps * 32 / len(targets))
    order = np.concatenate([generator.permutation(len(targets)) for _ in range(epochs)])
    chosen = order[: steps * 32]
    compiled(model).fit(samples[chosen], targets[chosen], batch_size=32, shuffle=False, verbose=0)


def with_statistics_of(model: Any, samples: Any) -> None:
    """Give each norm the mean and variance that it sees of all samples, as `recalibrate` does.

    In training mode every norm goes by its batch, so one batch of all samples gives all norms what
    they see behind norms that are right already; at momentum 0 they keep it. Dropout is left out.
    The model is for inference only afterwards.
    """
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
        if hasattr(layer, "rate"):
            layer.rate = 0.0
    model(samples, training=True)


def losses(make: Callable[[], Any], data: Data, weight: float) -> list[float]:
    """How much accuracy the moving statistics lose, for each seed, in percent of all samples."""
    steps = round(math.log(weight) / math.log(MOMENTUM))
    found = []
    for seed in range(SEEDS):
        keras.backend.clear_session()
        keras.utils.set_random_seed(seed)
        model = make()
        trained_for(model, data, steps, seed)
        moving = score(model, data)
        with_statistics_of(model, data.train[0])
        found.append(100 * (score(model, data) - moving))
    return found


def rows() -> list[Sequence[object]]:
    found: list[Sequence[object]] = []
    for weight in WEIGHTS:
        steps = round(math.log(weight) / math.log(MOMENTUM))
        cells = [losses(make, data(), weight) for make, data in NETWORKS.values()]
        found.append((weight, steps, *(" ".join(str(round(x)) for x in cell) for cell in cells)))
    return found


@dataclass(frozen=True)
class Look:
    """A network after some epochs.

    Attributes:
        network: its number.
        kind: what it is.
        steps: how many its optimizer has made.
        saved: its held-out accuracy as it was saved.
        recalibrated: that with the statistics of all training data.
        initial: how much of a layer's statistics is initial as BN103 counts it, the worst one's.
        weight: the weight that the initial values have left.
    """

    network: int
    kind: str
    steps: int
    saved: float
    recalibrated: float
    initial: float
    weight: float

    @property
    def lost(self) -> float:
        """The accuracy that its own statistics cost, in percentage points."""
        return 100 * (self.recalibrated - self.saved)

    @property
    def learnt(self) -> bool:
        """Whether its weights are worth anything, so that a loss can be told from chance."""
        return self.recalibrated >= _LEARNT


_LEARNT = 0.8
LOST = 5.0
"""Percentage points of accuracy."""

TELL_ALL = Thresholds(unconverged_warning=1e-9, unconverged_error=1e-9)


def accuracy(model: Any, data: Data) -> float:
    """The accuracy on what was held out, without compiling the model for it."""
    samples, targets = data.test
    return float(np.mean(np.asarray(model(samples, training=False)).argmax(axis=-1) == targets))


def looks(one: Tutorial, folder: Path) -> list[Look]:
    """Train a network, and look at it whenever it is due; or find in the folder what was seen."""
    record = folder / f"{one.number:03}.json"
    if not record.exists():
        record.write_text(json.dumps([asdict(one), list(_train(one, folder))]))
    _, seen = json.loads(record.read_text())
    return [
        Look(one.number, one.kind, steps, saved, better, *initial(folder / name))
        for name, steps, saved, better in seen
    ]


def _train(one: Tutorial, folder: Path) -> Iterator[tuple[str, int, float, float]]:
    keras.backend.clear_session()
    keras.utils.set_random_seed(one.number)
    data, model = one.data, compiled(one.build(), OPTIMIZERS[one.optimizer]())
    samples, targets = data.train
    before = 0
    for epochs in one.stops:
        options = {"batch_size": one.batch, "initial_epoch": before, "verbose": 0}
        model.fit(samples, targets, epochs=epochs, **options)
        before, path = epochs, folder / f"{one.number:03}-{epochs:02}.keras"
        model.save(path)
        better = one.build()
        better.set_weights(model.get_weights())
        with_statistics_of(better, samples)
        steps = int(model.optimizer.iterations)
        yield path.name, steps, accuracy(model, data), accuracy(better, data)


def initial(path: Path) -> tuple[float, float]:
    """How much of the worst layer's statistics is initial, and the largest weight of that."""
    found: list[Finding] = [
        one for one in inspect_file(path, thresholds=TELL_ALL).findings if one.code == "BN103"
    ]
    figures = [one.figures for one in found]
    return (
        max((max(one["share"], one["weight"]) for one in figures), default=0.0),
        max((one["weight"] for one in figures), default=0.0),
    )


BINS = (0.0, 0.1, 0.3, 0.5, 0.65, 0.8, 0.9, 0.95, 0.99, 1.0)


def bin_table(found: Sequence[Look]) -> list[str]:
    """How many networks lose how much, by how much of their statistics is initial."""

    def rows() -> Iterator[Sequence[object]]:
        for low, high in itertools.pairwise(BINS):
            here = [x for x in found if low <= x.initial < high or x.initial == high == 1]
            good = [one for one in here if one.learnt]
            if here:
                lost = sorted(one.lost for one in here)
                middle = f"{np.median(lost):.0f} ({lost[0]:.0f} to {lost[-1]:.0f})"
                yield f"{low:g} to {high:g}", *counted(here), *counted(good), middle

    head = ("initial", "all", "lose", "learnt", "lose", "points lost: median (range)")
    return table(head, rows())


def counted(found: Sequence[Look]) -> tuple[int, int]:
    """How many there are, and how many of them lose accuracy."""
    return len(found), sum(one.lost >= LOST for one in found)


Measure = Callable[[Look], float]


def check_table(found: Sequence[Look]) -> list[str]:
    """Misses and false alarms at the levels, at a limit that half of the networks sets, by r.

    That half is of the even numbers; the other one is counted with it.
    """
    even = [one for one in found if one.network % 2 == 0]
    odd = [one for one in found if one.network % 2]
    levels = Thresholds()

    def part(look: Look) -> float:
        return look.initial

    def weight(look: Look) -> float:
        return look.weight

    def warned(look: Look) -> float:
        return 1.0 if look.weight > levels.unconverged_warning else look.initial

    def best(measure: Measure) -> float:
        return min(map(measure, even), key=lambda limit: sum(_wrong(even, measure, limit)))

    limits = (
        ("warning", warned, levels.initial_variance),
        ("error", part, levels.unconverged_error),
        ("fitted to the even numbers", part, best(part)),
        ("r alone", weight, 0.2),
    )
    cells = [
        (f"{name}: {limit:.2f}", *_shown(even, measure, limit), *_shown(odd, measure, limit))
        for name, measure, limit in limits
    ]
    head = ("limit", "even: missed", "false alarms", "odd: missed", "false alarms")
    return table(head, cells)


def _shown(found: Sequence[Look], measure: Measure, limit: float) -> tuple[str, str]:
    missed, alarms = _wrong(found, measure, limit)
    losing = sum(one.lost >= LOST for one in found)
    return f"{missed} of {losing}", f"{alarms} of {len(found) - losing}"


def _wrong(found: Sequence[Look], measure: Measure, limit: float) -> tuple[int, int]:
    """How many lose accuracy below a limit, and how many do not above it."""
    missed = sum(one.lost >= LOST and measure(one) <= limit for one in found)
    return missed, sum(one.lost < LOST and measure(one) > limit for one in found)


def networks(count: int, folder: Path) -> Iterator[str]:
    """The tables of the networks that are drawn."""
    found = [look for one in drawn(count) for look in looks(one, folder)]
    yield f"{count} networks, {len(found)} looks at them"
    yield ""
    yield from bin_table(found)
    yield from check_table([one for one in found if one.learnt])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, help="where trained models are, and stay")
    parser.add_argument("--networks", type=int, default=43, help="how many are drawn")
    arguments = parser.parse_args()
    tf.config.experimental.enable_op_determinism()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.models or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        print("\n".join(networks(arguments.networks, folder)), flush=True)
    print("\n".join(table(("r", "steps", *NETWORKS), rows())))


if __name__ == "__main__":
    main()

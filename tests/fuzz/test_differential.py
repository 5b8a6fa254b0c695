"""What bnfold reads is what Keras reads, on mutants that both accept; see differential.py."""

import random
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import differential
import h5py
import pytest
from corpus import write

import bnfold


@pytest.fixture(scope="module", autouse=True)
def models_go() -> object:
    yield
    differential.forget()


def accepted(seed: object, wanted: int) -> None:
    """Compare until both have accepted so many."""
    endings: Counter[str] = Counter()
    for number in range(4 * wanted):
        endings[differential.one(random.Random(f"{seed} {number}"))] += 1
        if differential.accepted(endings) == wanted:
            return
    pytest.fail(f"too few that both accept: {endings}")


@pytest.mark.slow
def test_mutants_that_both_accept() -> None:
    accepted("default", 12)


@pytest.mark.slow
def test_many_mutants_that_both_accept() -> None:
    accepted(time.time_ns(), 500)


# A wrong fold must not pass.
@pytest.mark.parametrize("number", [0, 2])
def test_one_number_of_a_fold_that_is_wrong(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(differential.small(number, ".h5"), tmp_path)
    right = bnfold.fold

    def wrong(source: Path, target: Path, **options: bool) -> object:
        report = right(source, target, **options)
        with h5py.File(target, "r+") as file:
            names: list[str] = []
            file.visititems(
                lambda name, one: names.append(name) if isinstance(one, h5py.Dataset) else None
            )
            last = max(name for name in names if "bias" in name)
            values = file[last][...]
            values.flat[0] += 1e-3
            file[last][...] = values
        return report

    assert differential.compare(path).startswith("folded")
    monkeypatch.setattr(bnfold, "fold", wrong)
    with pytest.raises(differential.DisagreementError, match="output"):
        differential.compare(path)


@pytest.mark.parametrize(
    ("number", "named"), [(7, "TimeDistributed"), (5, "Sequential"), (1, "Sequential")]
)
def test_layers_without_names(number: int, named: str, tmp_path: Path) -> None:
    """Keras numbers them anew whenever it loads them, in a wrapper as in a Sequential."""

    def without_names(entry: Any) -> Any:
        if not isinstance(entry, dict):
            return [without_names(one) for one in entry] if isinstance(entry, list) else entry
        made = {key: without_names(value) for key, value in entry.items()}
        if made.get("class_name") == named:
            for one in made["config"].get("layers") or [made["config"]["layer"]]:
                one["config"].pop("name", None)
        return made

    whole = differential.small(number, ".keras")
    nameless = replace(whole, config=without_names(whole.config))
    assert nameless != whole
    assert differential.compare(write(nameless, tmp_path)).startswith("folded")


def test_one_weight_that_is_read_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(differential.small(0, ".keras"), tmp_path)
    read = dict(differential.read_layers(path))
    class_name, (kernel, bias) = read["dense"]
    read["dense"] = (class_name, [kernel, bias + 1])
    monkeypatch.setattr(differential, "read_layers", lambda _: read.items())
    with pytest.raises(differential.DisagreementError, match="numbers of the weights"):
        differential.compare(path)

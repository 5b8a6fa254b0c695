"""Times side by side: the statistics on fixed numbers, the turns by a false clock, real models."""

import dataclasses
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from rich.console import Console
from schemas import validate
from support import chain, keras, randomize

import bnfold
from bnfold.cli import main
from bnfold.jobs import bench as benchmark
from bnfold.jobs.bench import median_interval, order, result, take_turns, times
from bnfold.reports import terminal
from bnfold.reports.text import bench as bench_text
from bnfold.reports.text.bench import duration, summary
from bnfold.running import timing
from bnfold.running.libraries import CannotRunError

Unpack = Callable[[str], Path]
DIGITS = "digits_cnn_keras315.keras"
BOTH = ("--runtime", "keras", "--runtime", "onnxruntime")


def bench(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["bench", *map(str, arguments), "--seconds", "0.1"])


def report(done: Result) -> Any:
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout, parse_constant=pytest.fail)
    validate(found, "bench")
    return found


# --- statistics ---


def noisy(ratio: float, seed: int = 0, noise: float = 0.05) -> list[tuple[Any, Any]]:
    """Twelve starts of 40 rounds in which A takes `ratio` times as long as B."""
    generator = np.random.default_rng(seed)
    a, b = (generator.lognormal(0, noise, (2, 12, 40)).T * [ratio * 1e-3, 1e-3]).T
    return list(zip(a, b, strict=True))


def of(starts: Sequence[tuple[Any, Any]]) -> benchmark.Result:
    return result("keras", "keras 3", 1, starts, 1)


def test_median_and_quartiles() -> None:
    found = times(np.array([5.0, 1.0, 2.0, 4.0, 3.0]))
    assert (found.lower_quartile, found.median, found.upper_quartile) == (2, 3, 4)
    assert found.interquartile_range == 2


@pytest.mark.parametrize(
    ("count", "ends"), [(6, (1, 6)), (9, (2, 8)), (12, (3, 10)), (20, (6, 15))]
)
def test_the_interval_of_the_sign_test(count: int, ends: tuple[int, int]) -> None:
    """The ends are those of the tables: for 12 observations the third and the tenth."""
    assert median_interval([float(n) for n in range(count, 0, -1)]) == ends


def test_an_interval_needs_six_observations() -> None:
    with pytest.raises(ValueError, match="too few"):
        median_interval([1.0] * 5)


@pytest.mark.parametrize("ratio", [0.8, 1.0, 1.24])
def test_the_interval_covers_the_true_ratio(ratio: float) -> None:
    found = [of(noisy(ratio, seed)).interval for seed in range(300)]
    covered = sum(lower <= ratio <= upper for lower, upper in found)
    assert covered >= 0.94 * 300
    assert np.median([upper - lower for lower, upper in found]) < 0.03


def test_what_is_faster_and_what_is_slower() -> None:
    starts = noisy(1.24)
    faster, slower = of(starts), of([(b, a) for a, b in starts])
    assert (faster.verdict, slower.verdict) == ("faster", "slower")
    assert faster.ratio == pytest.approx(1.24, rel=0.02)
    assert slower.ratio == pytest.approx(1 / faster.ratio, rel=1e-3)
    assert faster.steady
    assert (faster.starts, faster.rounds) == (12, 480)


@pytest.mark.parametrize("ratio", [0.995, 1.0, 1.005])
def test_equal_times_are_no_difference(ratio: float) -> None:
    assert of(noisy(ratio, noise=0.001)).verdict == "no difference"
    assert of([(start[1], start[1]) for start in noisy(ratio)]).interval == (1, 1)


def test_a_few_disturbed_starts_change_no_verdict() -> None:
    starts = noisy(1.24)
    disturbed = [(a, 3 * b) for a, b in starts[:1]] + [(3 * a, b) for a, b in starts[1:3]]
    found = of([*disturbed, *starts[3:]])
    assert found.verdict == "faster"
    assert found.interval[1] < 1.3


def test_times_that_vary_a_lot_are_not_steady() -> None:
    assert not of(noisy(1.24, noise=0.5)).steady


# --- turns ---


class Clock:
    """Time passes only while a model runs."""

    def __init__(self, *seconds: float) -> None:
        self.now = 0.0
        self.ran: list[str] = []
        self.calls = [lambda n=n, s=s: self.run(n, s) for n, s in zip("AB", seconds, strict=True)]

    def run(self, name: str, seconds: float) -> None:
        self.now += seconds
        self.ran.append(name)

    def __call__(self) -> float:
        return self.now


def test_order_alternates() -> None:
    assert [order(turn) for turn in range(4)] == [(0, 1), (1, 0), (0, 1), (1, 0)]


def test_the_models_take_turns_and_each_is_first_equally_often() -> None:
    clock = Clock(0.02, 0.01)
    a, b, count = take_turns(clock.calls, 0.1, None, clock)
    assert count == 1
    assert "".join(clock.ran) == "AB" + "ABBAABBA"  # a warm-up of 0.02 s, then 0.1 s
    np.testing.assert_allclose(a, [0.02] * 4)
    np.testing.assert_allclose(b, [0.01] * 4)


def test_short_inferences_are_timed_by_the_dozen() -> None:
    clock = Clock(2.0**-15, 2.0**-16)
    a, b, count = take_turns(clock.calls, 0.01, None, clock)
    assert count == 14  # 0.2 ms, rounded up
    np.testing.assert_allclose(a, 2.0**-15)
    np.testing.assert_allclose(b, 2.0**-16)
    assert len(a) % 2 == 0
    assert take_turns(clock.calls, 0.01, 7, clock)[2] == 7


def test_a_slow_model_is_timed_all_the_same() -> None:
    clock = Clock(5.0, 4.0)
    a, _, _ = take_turns(clock.calls, 0.1, None, clock)
    assert list(a) == [5, 5]


# --- text ---


@pytest.mark.parametrize(
    ("ratio", "says"),
    [
        (1.25, "keras, batch 1: B takes 0.80 of the time of A, 1.25 times faster (A/B 1.2"),
        (0.8, "keras, batch 1: B takes 1.25 of the time of A, 1.25 times slower (A/B 0.8"),
        (1.0, "keras, batch 1: no difference: B takes 1.00 of the time of A (A/B "),
    ],
)
def test_the_line_says_what_b_is(ratio: float, says: str) -> None:
    assert summary(of(noisy(ratio, noise=0.005))).plain.startswith(says)


def test_an_interval_that_hides_a_difference_is_no_proof_of_none() -> None:
    line = summary(of(noisy(1.0, noise=1.0))).plain
    assert line.startswith("keras, batch 1: no difference that could be resolved: ")


@pytest.mark.parametrize(("threads", "advice"), [(None, True), (1, False)])
def test_disturbed_times_are_a_warning(threads: int | None, advice: bool) -> None:
    found = (of(noisy(1.24)), of(noisy(1.24, noise=0.5)))
    report = benchmark.BenchReport(Path("a"), None, (1, 1), threads, 2.0, 0, found, ())
    console = Console(width=400, file=io.StringIO())
    console.print(bench_text.bench(report))
    shown = console.file.getvalue()
    assert "warning: times vary a lot (keras, batch 1)" in shown
    assert ("--threads 1" in shown) == advice


def test_the_times_fit_a_terminal() -> None:
    many = dataclasses.replace(of(noisy(1.24)), calls=137)
    report = benchmark.BenchReport(Path("a"), None, (1, 1), 1, 2.0, 0, (many,), ())
    console = Console(width=80, file=io.StringIO())
    console.print(bench_text.bench(report))
    shown = " ".join(line.rstrip() for line in console.file.getvalue().splitlines())
    time = r"\S+ [mu]?s"
    assert re.search(rf" keras +1 +A +{time} +{time} to {time} +\d+ of \d+ calls ", shown)
    assert max(map(len, console.file.getvalue().splitlines())) <= 80


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(2.5, "2.50 s"), (0.0312, "31.2 ms"), (0.000456, "456 us"), (2e-6, "2.00 us")],
)
def test_durations(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


# --- real models ---


def test_a_model_beside_its_fold(fixture_model: Unpack) -> None:
    found = report(bench(fixture_model(DIGITS), *BOTH, "--batch", 1, "--batch", 3, "--format=json"))
    assert (found["b"], found["folded"]) == (None, {"layers": 4, "of": 4})
    places = [(one["runtime"], one["batch"]) for one in found["results"]]
    assert places == [("keras", 1), ("keras", 3), ("onnxruntime", 1), ("onnxruntime", 3)]
    assert found["skipped"] == []
    for one in found["results"]:
        lower, upper = one["interval"]
        assert lower <= one["ratio"] <= upper
        assert 0 < one["a"]["lower_quartile"] <= one["a"]["median"] < 1


@pytest.mark.slow
def test_the_ratio_comes_first(fixture_model: Unpack, tmp_path: Path) -> None:
    source, target = fixture_model(DIGITS), tmp_path / "folded.keras"
    bnfold.fold(source, target, verify=False)
    done = bench(source, target, "--runtime", "keras")
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert lines[0].startswith("keras, batch 1: ")
    assert f"A is {source}, B is {target}" in lines
    assert "timing keras, batch 1" in done.stderr


@pytest.fixture(scope="module")
def wired() -> Any:
    """Two inputs, one of them integers, and two outputs of unlike shapes."""
    image, word = (
        keras.Input((8, 8, 3), name="image"),
        keras.Input((4,), dtype="int32", name="word"),
    )
    seen = keras.layers.BatchNormalization()(keras.layers.Conv2D(4, 3)(image))
    seen = keras.layers.GlobalAveragePooling2D()(seen)
    read = keras.layers.Flatten()(keras.layers.Embedding(7, 3)(word))
    both = keras.layers.Concatenate()([seen, read])
    outputs = [keras.layers.Dense(5)(both), keras.layers.Dense(2)(both)]
    return randomize(keras.Model([image, word], outputs, name="wired"))


@pytest.mark.slow
def test_every_runtime_computes_what_keras_does(wired: Any) -> None:
    found = bnfold.bench(wired, batch=[2], seconds=0.05, runtimes=["onnxruntime", "litert"])
    assert [one.runtime for one in found.results] == ["onnxruntime", "litert"], found.skipped
    assert (found.a, found.b, found.folded) == (Path("wired"), None, (1, 1))


@pytest.mark.slow
def test_it_says_what_the_runtimes_have_left() -> None:
    layers = keras.layers
    norm = layers.BatchNormalization(name="norm")
    model = randomize(chain((8, 8, 3), layers.MaxPooling2D(), norm, layers.Conv2D(2, 2)))
    found = bnfold.bench(model, seconds=0.05, runtimes=["onnxruntime", "litert"])
    told = [(one.runtime, one.a[0].state, one.a[0].nodes, one.b) for one in found.left_behind]
    both = ("Mul", "Add")
    assert told == [("onnxruntime", "left", both, ()), ("litert", "left", both, ())]
    text = terminal.plain(lambda _: bench_text.bench(found))
    assert "litert with A: of 1 BatchNormalization layer, 1 left: norm as Mul and Add" in text
    validate(json.loads(json.dumps(found.to_dict())), "bench")


@pytest.mark.slow
def test_live_models_side_by_side(wired: Any) -> None:
    found = bnfold.bench(wired, bnfold.fold(wired, verify=False), seconds=0.05, runtimes="keras")
    assert found.b == Path("wired")
    assert len(found.results) == 1


@pytest.mark.slow
def test_threads_are_set_before_tensorflow_starts(fixture_model: Unpack) -> None:
    words = [str(fixture_model(DIGITS)), "--threads=1", "--runtime=keras", "--seconds=0.1"]
    done = subprocess.run(
        [sys.executable, "-m", "bnfold", "bench", *words, "--format=json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["threads"], len(found["results"]), found["skipped"]) == (1, 1, [])


@pytest.mark.slow
def test_threads_of_a_tensorflow_that_runs_are_not_what_was_asked_for(wired: Any) -> None:
    wired([np.zeros((1, 8, 8, 3)), np.zeros((1, 4))])
    found = bnfold.bench(wired, threads=1, seconds=0.05, runtimes=["keras", "onnxruntime"])
    assert [one.runtime for one in found.results] == ["onnxruntime"]
    assert "has started already" in found.skipped[0].reason


# --- refusals ---


@pytest.mark.slow
def test_a_runtime_that_cannot_run_a_model_is_left_out(
    fixture_model: Unpack, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise CannotRunError("it has no such operation")

    monkeypatch.setitem(timing.RUNTIMES, "litert", timing.Runtime(refuse, ()))
    options = ("--runtime", "keras", "--runtime", "litert")
    done = bench(fixture_model(DIGITS), *options)
    assert done.exit_code == 0
    assert "litert: left out, it cannot run A: it has no such operation" in done.stdout
    assert report(bench(fixture_model(DIGITS), *options, "--format=json"))["skipped"] == [
        {
            "runtime": "litert",
            "batch": None,
            "reason": "it cannot run A: it has no such operation",
        }
    ]
    none = bench(fixture_model(DIGITS), "--runtime", "litert")
    assert none.exit_code == 2
    assert none.stderr.splitlines()[-1].startswith("bnfold: no runtime can run both models: litert")


def test_a_runtime_that_computes_something_else_is_left_out(
    fixture_model: Unpack, monkeypatch: pytest.MonkeyPatch
) -> None:
    keras_alone = timing.RUNTIMES["keras"]

    def doubled(*arguments: Any) -> Any:
        start = keras_alone.prepare(*arguments)
        return lambda inputs: lambda: [2 * np.asarray(one) for one in start(inputs)()]

    monkeypatch.setitem(timing.RUNTIMES, "onnxruntime", timing.Runtime(doubled, ()))
    found = report(bench(fixture_model(DIGITS), *BOTH, "--format=json"))
    assert [one["runtime"] for one in found["results"]] == ["keras"]
    assert "computes something else than Keras" in found["skipped"][0]["reason"]


def test_models_of_different_inputs_are_refused(fixture_model: Unpack, tmp_path: Path) -> None:
    chain((5,), keras.layers.Dense(2)).save(tmp_path / "other.keras")
    done = bench(fixture_model(DIGITS), tmp_path / "other.keras")
    assert done.exit_code == 2
    assert "take different inputs: " in done.stderr
    assert "float32[any, 5]" in done.stderr


@pytest.mark.slow
def test_a_fixed_batch_size_is_the_only_one(tmp_path: Path) -> None:
    path = tmp_path / "fixed.keras"
    chain((5,), keras.layers.Dense(2), batch_size=4).save(path)
    refused = bench(path, "--batch", 1)
    assert refused.exit_code == 2
    assert "the models take batches of 4 only" in refused.stderr
    done = bench(path, "--runtime", "keras")
    assert "keras, batch 4: " in done.stdout
    assert "nothing in it can be folded" in done.stdout


def test_an_unreadable_model_is_exit_2(tmp_path: Path, fixture_model: Unpack) -> None:
    for words in ([tmp_path / "none.keras"], [fixture_model(DIGITS), tmp_path / "none.keras"]):
        done = bench(*words)
        assert done.exit_code == 2
        assert done.stderr.splitlines()[-1] == f"bnfold: {tmp_path / 'none.keras'}: no such file"


@pytest.mark.slow
def test_code_in_a_file_needs_trust(tmp_path: Path) -> None:
    path = tmp_path / "lambda.keras"
    chain((5,), keras.layers.Lambda(lambda x: x + 1), keras.layers.Dense(2)).save(path)
    refused = bench(path, "--runtime", "keras")
    assert refused.exit_code == 2
    assert "--trust" in refused.stderr
    assert bench(path, "--runtime", "keras", "--trust").exit_code == 0


@pytest.mark.parametrize(
    "option", [["--seconds", "0"], ["--batch", "0"], ["--threads", "0"], ["--runtime", "torch"]]
)
def test_wrong_usage(option: list[str]) -> None:
    done = CliRunner().invoke(main, ["bench", "a.keras", *option])
    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "options", [{"seconds": 0}, {"batch": 0}, {"threads": 0}, {"runtimes": "x"}]
)
def test_the_api_refuses_the_same(options: dict[str, Any], fixture_model: Unpack) -> None:
    with pytest.raises(bnfold.BnfoldError):
        bnfold.bench(fixture_model(DIGITS), **options)


def test_help_has_examples() -> None:
    done = CliRunner().invoke(main, ["bench", "--help"])
    assert done.exit_code == 0
    assert "Examples:" in done.stdout


def test_more_threads_than_processors_are_refused() -> None:
    found = CliRunner().invoke(main, ["bench", "a.keras", "--threads", "100000"])
    assert found.exit_code == 2
    assert "100000 threads are more than the" in found.stderr

"""Jobs in a process of their own: limits, crashes, and other backends of Keras."""

import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from places import ROOT
from support import chain, keras, randomize

import bnfold
from bnfold.jobs import child
from bnfold.jobs.verify import Proof
from bnfold.jobs.wire import Receiver, Sender
from bnfold.model.moments import Moments, Observed
from bnfold.running import process
from bnfold.running.options import Loading, Samples
from bnfold.verification import Verdict
from bnfold.verification.verify import verify as verify_files


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.keras"
    parts = (keras.layers.Dense(3), keras.layers.BatchNormalization(name="norm"))
    randomize(chain((4,), *parts)).save(path)
    return path


def python(*words: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder, without what this process's environment says of Keras."""
    kept = {name: value for name, value in os.environ.items() if name != "KERAS_BACKEND"}
    kept["PYTHONPATH"] = str(ROOT)
    return subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        env={**kept, **environment},
        cwd=folder,
        check=False,
    )


# --- what is sent ---------------------------------------------------------------------------------


def sent(value: Any, folder: Path, **receiving: Any) -> Any:
    text = json.dumps(Sender(folder, "value").encode(value))
    return Receiver(folder, **receiving).decode(json.loads(text))


def test_values_arrive_as_they_were_sent(tmp_path: Path) -> None:
    moments = Moments(np.arange(3), np.array([0.1, np.nan, -np.inf]), np.ones(3))
    value = {
        ("backbone", "bn"): Observed(8, 2, moments, np.zeros(3, np.int64)),
        "texts": [None, True, 3, 1e-300, "ü\n", Path("a/b"), ()],
        "verdict": Verdict.UNDECIDED,
        "proof": Proof(Loading(imports=("own",)), Samples(Path("data.npz"), 3)),
        "samples": np.array([["a", "bc"]], dtype=object),
    }
    found = sent(value, tmp_path)
    assert list(found) == list(value)
    observed = found["backbone", "bn"]
    assert (observed.samples, observed.calls, observed.problem) == (8, 2, None)
    np.testing.assert_array_equal(observed.moments.mean, moments.mean)
    assert observed.non_finite.dtype == np.int64
    assert found["texts"] == value["texts"]
    assert found["verdict"] is Verdict.UNDECIDED
    assert found["proof"] == value["proof"]
    assert found["samples"].tolist() == [["a", "bc"]]
    assert math.isnan(sent(math.nan, tmp_path))


@pytest.mark.parametrize(
    "view",
    [
        lambda array: array,
        lambda array: np.asarray(array)[3:][1:],
        lambda array: array[::-2, ::-1],
        lambda array: array.T,
        lambda array: array[2],
    ],
)
@pytest.mark.parametrize("dtype", ["<f4", ">i2", "?"])
def test_a_mapped_array_is_not_copied(view: Any, dtype: str, tmp_path: Path) -> None:
    stored = (np.arange(8 * 3 * 5) % 7).reshape(8, 3, 5).astype(dtype)
    np.save(tmp_path / "data.npy", stored)
    (tmp_path / "sent").mkdir()
    array = view(np.load(tmp_path / "data.npy", mmap_mode="r"))
    found = sent(array, tmp_path / "sent", imports=True)
    assert list((tmp_path / "sent").iterdir()) == []
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(found, array)


def test_what_no_file_has_is_sent_itself(tmp_path: Path) -> None:
    np.save(tmp_path / "data.npy", np.arange(6))
    private = np.load(tmp_path / "data.npy", mmap_mode="c")
    private[:] = 7
    for array in (private, private + 1, np.load(tmp_path / "data.npy", mmap_mode="r")[:0]):
        np.testing.assert_array_equal(sent(array, tmp_path, imports=True), array)


@pytest.mark.slow  # writes half a gigabyte; by default it is asked that a mapped array stays mapped
def test_data_may_be_larger_than_what_reading_may_take(saved: Path) -> None:
    data = np.tile(np.random.default_rng(0).random((1000, 4), np.float32), (36_000, 1))
    assert bnfold.verify(saved, saved, data=data, in_process=False).verdict == "equivalent"


@pytest.mark.parametrize(
    "sneaked",
    [
        {"kind": "record", "class": "subprocess:Popen", "fields": {"args": ["true"]}},
        {"kind": "record", "class": "bnfold.jobs.child:Path", "fields": {}},
        {"kind": "enum", "class": "bnfold.jobs.child:run_apart", "value": 1},
        {"kind": "class", "name": "os:system"},
        {"kind": "object"},
    ],
)
def test_no_other_class_is_made(sneaked: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected|no value"):
        Receiver(tmp_path).decode(sneaked)


def test_classes_that_no_other_process_can_import(tmp_path: Path) -> None:
    class Local:
        pass

    assert sent({"norm": Observed}, tmp_path, imports=True) == {"norm": Observed}
    with pytest.raises(bnfold.BnfoldError, match=r"'Local' is defined in a function.*put it into"):
        Sender(tmp_path, "value").encode({"Local": Local})


# --- the process ----------------------------------------------------------------------------------


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go; nothing may be left there."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_errors_come_back_as_what_they_are(temporary: Path) -> None:
    path = temporary / "nothing.keras"
    with pytest.raises(bnfold.UnreadableModelError, match=r"nothing\.keras: .*no such file"):
        child.run_apart(verify_files, path, path)
    assert list(temporary.iterdir()) == []


@pytest.fixture
def misbehave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """A function that has the child execute something first; it gives back the name of a module."""

    def prepare(does: str) -> str:
        places = tmp_path / "modules"
        places.mkdir()
        (places / "numpy.py").write_text(f"import os, signal, sys, time\n{does}\n")
        monkeypatch.syspath_prepend(places)
        return str(tmp_path)

    return prepare


@pytest.mark.parametrize(
    ("does", "limits", "says"),
    [
        (
            "print('out of luck', file=sys.stderr, flush=True); os.abort()",
            {"in_process": False},
            "crashed with SIGABRT: out of luck",
        ),
        ("os._exit(3)", {"in_process": False}, "ended early, with exit code 3"),
        (
            "import itertools; sum(itertools.repeat(0))",
            {"timeout": 1},
            "took more than 1 s; timeout sets another limit",
        ),
        (
            "[(bytearray(1 << 24), time.sleep(0.05)) for _ in range(100)]"
            "; kept = [bytearray(1 << 27), time.sleep(60)]",
            {"memory": 100 << 20},
            "took more than 100 MiB of memory; memory sets another limit",
        ),
    ],
)
def test_a_process_that_is_stopped_is_one_line(
    does: str,
    limits: dict[str, Any],
    says: str,
    saved: Path,
    misbehave: Callable[[str], str],
    temporary: Path,
) -> None:
    misbehave(does)
    with pytest.raises(bnfold.ProcessStoppedError, match=says):
        bnfold.inspect(saved, **limits)
    assert [path.name for path in temporary.iterdir()] == ["modules"]


@pytest.mark.parametrize("missing", ["subprocess.Popen", "_thread.start_new_thread"])
def test_without_a_process_or_a_thread(
    missing: str, saved: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: Any, **__: Any) -> None:
        if missing == "subprocess.Popen":
            raise BlockingIOError(11, "Resource temporarily unavailable")
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(missing, none)
    with pytest.raises(bnfold.ProcessStoppedError, match=r"cannot start: .*(unav|thread)"):
        bnfold.inspect(saved, in_process=False)
    assert list(temporary.iterdir()) == []


def has_ended(pid: str) -> bool:
    """Whether a process is gone, or waits only for its parent to ask what became of it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def test_no_process_of_a_process_outlives_it(
    saved: Path, misbehave: Callable[[str], str], temporary: Path
) -> None:
    misbehave(
        "import subprocess; one = subprocess.Popen(['sleep', '600'])\n"
        f"open({str(temporary / 'pid')!r}, 'w').write(str(one.pid)); os.abort()"
    )
    with pytest.raises(bnfold.ProcessStoppedError, match="SIGABRT"):
        bnfold.inspect(saved, in_process=False)
    pid = (temporary / "pid").read_text()
    deadline = time.monotonic() + 60
    while not has_ended(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_fold_that_is_stopped_leaves_no_trace(saved: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.keras"
    out.write_bytes(b"old")

    def stop(_: str) -> None:
        (staging,) = tmp_path.glob(".bnfold-*")
        assert [path.name for path in staging.iterdir()] == ["out.keras"]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bnfold.fold(saved, out, force=True, in_process=False, progress=stop)
    assert out.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["out.keras"]


@pytest.mark.parametrize("standalone", ["keep", "depthwise"])
@pytest.mark.few(1)
def test_results_are_as_in_this_process(standalone: Any, tmp_path: Path) -> None:
    source, out = tmp_path / "model.keras", tmp_path / "out.keras"
    norms = [keras.layers.BatchNormalization(name=name) for name in ("folds", "stays", "kept")]
    parts = (keras.layers.Dense(3), norms[0], keras.layers.ReLU(), norms[1])
    randomize(chain((4,), *parts, keras.layers.Dense(3, name="head"), norms[2])).save(source)
    inspections = [bnfold.inspect(source, in_process=here) for here in (True, False)]
    assert inspections[0].to_dict() == inspections[1].to_dict()
    assert inspections[0].findings == inspections[1].findings
    assert [len(found.steps) for found in inspections] == [len(inspections[0].steps)] * 2
    reports = [
        bnfold.fold(
            *(source, out),
            verify=False,
            force=True,
            keep=["head"],
            standalone=standalone,
            in_process=here,
        )
        for here in (True, False)
    ]
    assert reports[0].to_dict() == reports[1].to_dict()
    assert len(reports[0].plan.folds) == 1
    np.testing.assert_array_equal(
        *(report.plan.folds[0].batchnorm.vectors["moving_mean"] for report in reports)
    )


def test_a_report_is_of_the_file_that_was_read(saved: Path, tmp_path: Path) -> None:
    """Also where the result is in its place."""
    path = tmp_path / "model.keras"
    path.write_bytes(saved.read_bytes())
    report = bnfold.fold(path, path, verify=False, force=True, in_process=False)
    assert [fold.batchnorm.path for fold in report.plan.folds] == [("norm",)]
    assert bnfold.inspect(path).plan.decisions == ()


@pytest.mark.slow  # by default with another backend, which goes the same way
def test_files_are_run_in_a_process_of_their_own(saved: Path, tmp_path: Path) -> None:
    script = (
        "import sys, bnfold\n"
        f"assert bnfold.fold({str(saved)!r}, 'out.keras').written\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    done = python("-c", script, folder=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_live_model_is_run_here_unless_there_is_a_limit(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "FILES_GO_THERE", True)
    asked, honest = [], child._run

    def run(*given: Any) -> Any:
        asked.append(given[0].__name__)
        return honest(*given)

    monkeypatch.setattr(child, "_run", run)
    live = keras.models.load_model(saved)
    bnfold.fold(live, verify=False)
    bnfold.inspect(saved)
    assert asked == []
    folded = bnfold.fold(live, verify=False, timeout=100)
    assert not any(isinstance(one, keras.layers.BatchNormalization) for one in folded.layers)
    bnfold.inspect(saved, memory=1 << 30)
    assert asked == ["fold_file", "inspect_file"]


def test_a_limit_contradicts_this_process(saved: Path) -> None:
    with pytest.raises(TypeError, match="in_process=True"):
        bnfold.inspect(saved, timeout=1, in_process=True)
    with pytest.raises(bnfold.SettingsError, match="timeout must be finite and more than 0"):
        bnfold.inspect(saved, timeout=0)
    with pytest.raises(TypeError, match="memory must be a whole number"):
        bnfold.inspect(saved, memory="8G")


def test_an_interrupt_ends_the_process_and_leaves_nothing(
    saved: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []
    honest = subprocess.Popen

    def start(*arguments: Any, **options: Any) -> Any:
        started.append(honest(*arguments, **options))
        return started[0]

    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", start)
    with pytest.raises(KeyboardInterrupt):
        child.run_apart(verify_files, saved, saved, progress=interrupt)
    assert started[0].returncode is not None
    assert list(temporary.iterdir()) == []


def test_a_process_ends_with_the_one_that_started_it(saved: Path, tmp_path: Path) -> None:
    """Also where that one is killed, and can end nothing itself."""
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from bnfold.verification.verify import verify\n"
        "from bnfold.jobs import child\n"
        "die = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"child.run_apart(verify, Path({str(saved)!r}), Path({str(saved)!r}),"
        " progress=die)\n"
    )
    done = python("-c", script, folder=tmp_path)  # waits until nobody holds its output any more
    assert done.returncode == -9


# --- the backends ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "settings", "backend"),
    [
        ({}, None, "tensorflow"),
        ({}, '{"backend": "jax"}', "jax"),
        ({}, "[]", "tensorflow"),
        ({}, "{", "tensorflow"),
        ({"KERAS_BACKEND": "torch"}, '{"backend": "jax"}', "torch"),
        ({"KERAS_BACKEND": ""}, '{"backend": "jax"}', "jax"),
        ({"KERAS_BACKEND": "tensorflow"}, '{"backend": "jax"}', "tensorflow"),
    ],
)
def test_the_backend_is_foreseen(
    environment: dict[str, str],
    settings: str | None,
    backend: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    monkeypatch.delitem(sys.modules, "keras")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if settings is not None:
        (tmp_path / "keras.json").write_text(settings)
    assert process.keras_backend() == backend


@pytest.mark.slow
def test_the_command_line_chooses_the_backend_itself(saved: Path, tmp_path: Path) -> None:
    """Whatever the environment and the settings in the user's home say of it."""
    (tmp_path / "keras.json").write_text('{"backend": "jax", "floatx": "float16"}')
    done = python(
        *("-m", "bnfold", "verify", str(saved), str(saved), "--format", "json"),
        folder=tmp_path,
        KERAS_BACKEND="torch",
        KERAS_HOME=str(tmp_path),
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["verdict"] == "equivalent"


@pytest.mark.slow
def test_another_backend_in_the_environment_is_no_hindrance(saved: Path, tmp_path: Path) -> None:
    """It need not even be installed, as nothing of it is imported."""
    script = (
        "import json, sys, bnfold\n"
        "stages = []\n"
        f"report = bnfold.fold({str(saved)!r}, 'folded.keras', progress=stages.append)\n"
        "assert report.written and report.verification.verdict is bnfold.Verdict.EQUIVALENT\n"
        "assert stages[0] == 'loading TensorFlow', stages\n"
        "assert not {'keras', 'tensorflow', 'jax'} & set(sys.modules)\n"
    )
    done = python("-c", script, folder=tmp_path, KERAS_BACKEND="jax")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "folded.keras").exists()


LIVE = """
import sys
import keras, numpy as np
import bnfold, bnfold.running.process
from own_layers import Doubling

assert keras.config.backend() == sys.argv[1]
if sys.argv[1] == "tensorflow":  # as if it were another one, of which none need be installed
    bnfold.running.process.keras_backend = lambda: "jax"
layers = keras.layers
inputs = keras.Input((4,), name="features")
norm = layers.BatchNormalization(name="norm")(layers.Dense(3, name="dense")(inputs))
model = keras.Model(inputs, Doubling(name="own")(norm), name="live")
generator = np.random.default_rng(0)
for variable in model.weights:
    variable.assign(generator.uniform(0.5, 2, variable.shape))
data = generator.normal(3, 1, (64, 4)).astype("float32")
run = lambda one: np.asarray(keras.ops.convert_to_numpy(one(data, training=False)))

folded = bnfold.fold(model)
assert isinstance(folded, keras.Model), folded
assert [type(one).__name__ for one in folded.layers] == ["InputLayer", "Dense", "Doubling"]
np.testing.assert_allclose(run(folded), run(model), rtol=1e-5)

report = bnfold.export(model, "model.onnx")
assert report.written and [fold.batchnorm.path for fold in report.plan.folds] == [("norm",)]

observed = bnfold.inspect(model, data={"features": data}).to_dict()["batchnorms"][0]["observed"]
better = bnfold.recalibrate(model, data=data)
mean = keras.ops.convert_to_numpy(better.get_layer("norm").moving_mean)
np.testing.assert_allclose(np.median(mean), observed["mean"]["median"], rtol=1e-5)

model.save("model.keras")
report = bnfold.recalibrate("model.keras", "better.keras", data=data, imports=["own_layers"])
assert report and report.to_dict()["recalibrated"][0]["name"] == "norm"
assert keras.config.backend() == sys.argv[1]  # Keras itself may import TensorFlow, to save a model

class Here(Doubling):
    pass

here = keras.Sequential([keras.Input((4,)), layers.Dense(3), layers.BatchNormalization(), Here()])
try:
    bnfold.fold(here)
except bnfold.BnfoldError as error:
    assert "'Here' is defined in the running script" in str(error), error
else:
    raise AssertionError("a class of the script was sent")
bnfold.fold(here, verify=False)
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
def test_live_models_of_another_backend(backend: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    (tmp_path / "own_layers.py").write_text(
        "import keras\n\n\n"
        "class Doubling(keras.layers.Layer):\n"
        "    def call(self, inputs):\n"
        "        return 2 * inputs\n"
    )
    (tmp_path / "script.py").write_text(LIVE)
    done = python("script.py", backend, folder=tmp_path, KERAS_BACKEND=backend)
    assert done.returncode == 0, done.stderr


REGISTERED = """
import sys
import keras, numpy as np
import bnfold, lab

keras.utils.set_random_seed(0)
sys.path.remove(sys.argv[1])  # so that no other process finds the module


@keras.saving.register_keras_serializable()
class Here(lab.Twice):
    pass


def made(name, *own):
    parts = [keras.Input((4,)), keras.layers.Dense(3), keras.layers.BatchNormalization(), *own]
    keras.Sequential([*parts, keras.layers.Dense(2)]).save(name)
    return name


def does(name, **options):
    try:
        if sys.argv[2] == "fold":
            return bnfold.fold(name, "out.keras", force=True, **options).written
        found = bnfold.inspect(name, data=np.ones((4, 4), "float32"), **options)
        return found.to_dict()["batchnorms"][0]["observed"] is not None
    except bnfold.BnfoldError as error:
        return str(error)


name = made("here.keras", Here(name="own"))
said = does(name)
assert said.startswith("here.keras: 'Here' is defined in the running script, and"), said
assert does(name, in_process=True) is True
name = made("own.keras", lab.Twice(name="twice"), lab.Plain(name="plain"))
with keras.saving.custom_object_scope({"Plain": lab.Plain}):
    said = does(name)
    assert "' is defined in the module 'lab' (No module named 'lab')" in said, said
    sys.path.append(sys.argv[1])
    assert does(name) is True
said = does(name)
assert 'imports=["MODULE"]' in said, said
"""


@pytest.mark.parametrize("job", ["inspect", pytest.param("fold", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_what_this_process_has_registered_is_known_there(job: str, tmp_path: Path) -> None:
    """If it is in a module; else it is said what can be done about it."""
    places = tmp_path / "modules"
    places.mkdir()
    (places / "lab.py").write_text(
        "import keras\n\n\n"
        "class Plain(keras.layers.Layer):\n"
        "    def call(self, inputs):\n"
        "        return 2 * inputs\n\n\n"
        "@keras.saving.register_keras_serializable('lab')\n"
        "class Twice(Plain):\n"
        "    pass\n"
    )
    (tmp_path / "script.py").write_text(REGISTERED)
    path = os.pathsep.join([str(ROOT), str(places)])
    done = python("script.py", str(places), job, folder=tmp_path, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr


def test_a_job_that_replaces_no_file_copies_none(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The temporary folder is below the current one, as in a project with a `tmp` of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    Path("of_the_user").touch()
    found: list[Path] = []

    def progress(_: str) -> None:
        found.extend(tmp_path.rglob("*/of_the_user"))
        raise KeyboardInterrupt  # before TensorFlow is loaded, when all copies are made

    with pytest.raises(KeyboardInterrupt):
        bnfold.verify(saved, saved, progress=progress, in_process=False)
    assert found == []
    assert os.listdir(tmp_path) == ["of_the_user"]


def test_the_search_path_may_hold_what_python_ignores(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, Path("/anywhere"), None])
    assert bnfold.inspect(saved, in_process=False).plan.decisions

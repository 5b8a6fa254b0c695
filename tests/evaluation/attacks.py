"""Build hostile model files, and see what Keras' own loader and bnfold do with each.

    python tests/evaluation/attacks.py             # print the table
    python tests/evaluation/attacks.py --write     # put it into docs/attacks.md
    python tests/evaluation/attacks.py 'Lambda'    # only attacks whose names contain this; with
                                                   # --write the other rows stay

Nothing is taken from elsewhere: every file is written here, every load runs in a process of its own
with limits on time and memory, and what happened is seen from outside. A payload creates a file,
the canary. A file on this machine holds a secret that a loaded model must not contain.

Keras loads the file and, if it can, prints the summary and predicts once on zeros. bnfold is the
command, with its default limits; `fold` has 60 s and 4 GiB. Needs Linux.
"""

import argparse
import base64
import contextlib
import json
import marshal
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import h5py
import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "builders"))
from archives import (  # noqa: E402
    CHANNELS,
    Json,
    entry,
    functional,
    keras_file,
    legacy_file,
    model_config,
    norm_arrays,
    weights,
)

PAGE = ROOT / "docs" / "attacks.md"
BEGIN, END = "<!-- written by tests/evaluation/attacks.py -->\n\n", "\n<!-- end -->\n"

SECRET = b"top-secret-bytes"
"""As long as the four numbers of a bias, and the only word of a vocabulary."""
SECONDS, MEMORY = 60, 8 << 30
"""What Keras may take; of memory, the address space."""
SHOWN = 256 << 20
"""What a file of some KiB may take of memory or disk without being named in the table."""
FRAMEWORKS = 2 << 30
"""What a verification may take without being named, whatever the file is."""


@dataclass(frozen=True)
class Attack:
    """A hostile file.

    Attributes:
        name: what the table calls it, with links to what has been published.
        build: writes the file into a folder, where `secret` is, and says which it is.
        test: the test that holds what bnfold does.
        library: by which it is loaded beside bnfold, `keras` or `tf_keras`.
        options: of `bnfold fold`.
    """

    name: str
    build: Callable[[Path], Path]
    test: str
    library: str = "keras"
    options: tuple[str, ...] = ()


@dataclass
class Seen:
    """What one load did, from outside. `seconds` are those of CPU time, with its children's."""

    code: int = 0
    output: bytes = b""
    memory: int = 0
    disk: int = 0
    seconds: float = 0
    is_late: bool = False
    folder: Path = field(default_factory=Path)


# --- the files -----------------------------------------------------------------------------------


def cve(number: str) -> str:
    return f"[CVE-{number}](https://nvd.nist.gov/vuln/detail/CVE-{number})"


def ghsa(number: str) -> str:
    return f"[GHSA-{number}](https://github.com/advisories/GHSA-{number})"


def after(*layers: Json, last: str = "op") -> Json:
    """The model of three layers with some more behind."""
    config = model_config()
    config["config"]["layers"] += layers
    config["config"]["output_layers"] = [[last, 0, 0]]
    return config


def code(folder: Path) -> Json:
    """A function as Keras stores the one of a Lambda: it creates the canary."""
    text = f"lambda x: (open({str(folder / 'canary')!r}, 'w').close(), x)[1]"
    (function,) = (one for one in compile(text, "", "eval").co_consts if hasattr(one, "co_code"))
    stored = base64.b64encode(marshal.dumps(function)).decode()
    return {
        "class_name": "__lambda__",
        "config": {"code": stored, "defaults": None, "closure": None},
    }


def archive(folder: Path, config: Any = None, **parts: bytes) -> Path:
    """An archive whose models have the module that Keras writes."""
    if config is None:
        config = model_config()
    if isinstance(config, dict):
        found = json.dumps(config).replace(
            '"module": "keras", "class_name": "Functional"',
            '"module": "keras.src.models.functional", "class_name": "Functional"',
        )
    else:
        found = config
    return keras_file(folder / "model.keras", config=found, **parts)


def in_archive(*layers: Callable[[Path], Json]) -> Callable[[Path], Path]:
    """An archive with these layers behind; the last one is called `op`."""
    return lambda folder: archive(folder, after(*(layer(folder) for layer in layers)))


def in_legacy(*layers: Callable[[Path], Json]) -> Callable[[Path], Path]:
    return lambda folder: legacy_file(
        folder / "model.h5", config=after(*(layer(folder) for layer in layers))
    )


def lambda_layer(folder: Path, class_name: str = "Lambda", module: str = "keras.layers") -> Json:
    made = entry(
        class_name, "op", "bn", function=code(folder), output_shape=[CHANNELS], arguments={}
    )
    return {**made, "module": module}


def calling(module: str, name: str, **arguments: Any) -> Callable[[Path], Json]:
    """A Lambda of a function that exists already, and not of one in the file."""
    function = {
        "class_name": "function",
        "module": module,
        "config": name,
        "registered_name": "function",
    }

    def layer(folder: Path) -> Json:
        given = {key: str(value).format(folder=folder) for key, value in arguments.items()}
        return entry(
            "Lambda", "op", "bn", function=function, output_shape=[CHANNELS], arguments=given
        )

    return layer


def switching_off(folder: Path) -> Path:
    """One layer asks for safe mode to be switched off, and the next one is the Lambda."""
    first = calling("keras.config", "enable_unsafe_deserialization")(folder)
    first["name"] = first["config"]["name"] = "first"
    second = lambda_layer(folder)
    second["inbound_nodes"][0]["args"][0]["config"]["keras_history"] = ["first", 0, 0]
    return archive(folder, after(first, second))


def imported(folder: Path) -> Json:
    """A class of a module that creates the canary when it is imported."""
    canary = folder / "canary"
    (folder / "payload.py").write_text(
        f"open({str(canary)!r}, 'w').close()\nimport keras\nEvil = keras.layers.Identity\n"
    )
    return {**entry("Evil", "op", "bn"), "module": "payload", "registered_name": "payload>Evil"}


def saved_model(folder: Path) -> Json:
    """A SavedModel beside the file, whose call creates the canary; TFSMLayer loads it."""

    def make() -> None:
        import tensorflow as tf

        class Evil(tf.Module):  # type: ignore[misc]
            @tf.function(input_signature=[tf.TensorSpec([None, CHANNELS])])  # type: ignore[untyped-decorator]
            def serve(self, x: Any) -> Any:
                with tf.control_dependencies([tf.io.write_file(str(folder / "canary"), "")]):
                    return tf.identity(x)

        module = Evil()
        tf.saved_model.save(module, str(folder / "saved"), {"serve": module.serve})

    in_a_fork(make, folder)
    return entry(
        "TFSMLayer", "op", "bn", filepath=str(folder / "saved"), call_endpoint="serve",
        call_training_endpoint=None,
    )  # fmt: skip


def old(config: Json) -> Json:
    """A config as Keras 2 writes it."""
    layers = []
    for layer in config["config"]["layers"]:
        nodes = layer["inbound_nodes"]
        if nodes and isinstance(nodes[0], dict):
            source = nodes[0]["args"][0]["config"]["keras_history"]
            nodes = [[[*source, {}]]]
        settings = dict(layer["config"])
        if layer["class_name"] == "InputLayer":
            settings |= {"batch_input_shape": settings.pop("batch_shape"), "dtype": "float32"}
        layers.append(
            {
                "class_name": layer["class_name"],
                "name": layer["name"],
                "config": settings,
                "inbound_nodes": nodes,
            }
        )
    return {"class_name": "Functional", "config": {**config["config"], "layers": layers}}


def any_operation(folder: Path) -> Path:
    """An operation of TensorFlow that writes what it is given to a file."""
    from tensorflow.core.framework import node_def_pb2

    node = node_def_pb2.NodeDef(name="op", op="DebugIdentity", input=["bn"])
    node.attr["T"].type = 1
    node.attr["tensor_name"].s = b"op:0"
    node.attr["debug_urls"].list.s.append(f"file://{folder}/canary".encode())
    layer = entry(
        "TensorFlowOpLayer", "op", "bn", constants={}, node_def=node.SerializeToString().decode()
    )
    return legacy_file(folder / "model.h5", config=old(after(layer)))


def pickled(folder: Path) -> Json:
    import pickle

    class Evil:
        def __reduce__(self) -> Any:
            return open, (str(folder / "canary"), "w")

    module = base64.b64encode(pickle.dumps(Evil())).decode()
    return entry("TorchModuleWrapper", "op", "bn", module=module)


def vocabulary(folder: Path) -> Path:
    """A lookup whose vocabulary is the name of a file."""
    text = {**entry("InputLayer", "s", batch_shape=[None, 1], dtype="string")}
    settings = {"vocabulary": str(folder / "secret"), "max_tokens": None, "oov_token": "[UNK]"}
    lookup = entry("StringLookup", "op", "s", **settings)
    lookup["inbound_nodes"][0]["args"][0]["config"] |= {"dtype": "string", "shape": [None, 1]}
    config = after(text, lookup)
    config["config"]["input_layers"] = [["x", 0, 0], ["s", 0, 0]]
    config["config"]["output_layers"] = [["bn", 0, 0], ["op", 0, 0]]
    return archive(folder, config)


def with_members(*added: tuple[str, bytes]) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        path = archive(folder)
        with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as opened:
            for name, content in added:
                opened.writestr(name, content)
        return path

    return build


def two_configs(folder: Path) -> Path:
    """What reads the first member sees a harmless model, and what reads the last one a Lambda."""
    path = in_archive(lambda_layer)(folder)
    with zipfile.ZipFile(path) as found:
        harmful = found.read("config.json")
    return with_members(("config.json", harmful))(folder)


def large_config(folder: Path) -> Path:
    path = archive(folder)
    with zipfile.ZipFile(path) as found:
        members = {name: found.read(name) for name in found.namelist()}
    members["config.json"] = b" " * (256 << 20) + members["config.json"]
    with zipfile.ZipFile(path, "w") as opened:
        for name, content in members.items():
            is_large = name == "config.json"
            kind = zipfile.ZIP_DEFLATED if is_large else zipfile.ZIP_STORED
            opened.writestr(name, content, kind)
    return path


def large_asset(folder: Path) -> Path:
    return with_members(("assets/words.txt", bytes(512 << 20)))(folder)


def flipped(folder: Path) -> Path:
    """One bit of a weight is another one than when the checksum was taken."""
    path = archive(folder)
    data = bytearray(path.read_bytes())
    data[data.index(norm_arrays()[0].tobytes()) + 2] ^= 1
    path.write_bytes(data)
    return path


BIAS = "layers/dense/vars/1"
OLD_BIAS = "model_weights/dense/dense/bias"


def bias(make: Callable[[h5py.File, str, Path], object]) -> Callable[[Path], Path]:
    """An archive in which something else stands in the place of the bias of the Dense."""

    def build(folder: Path) -> Path:
        def edit(file: h5py.File) -> None:
            del file[BIAS]
            make(file, BIAS, folder)

        return archive(folder, h5=weights(edit))

    return build


def external(file: h5py.File, path: str, folder: Path) -> None:
    file.create_dataset(path, (CHANNELS,), "f4", external=[(str(folder / "secret"), 0, 16)])


def external_in_legacy(folder: Path) -> Path:
    def edit(file: h5py.File) -> None:
        del file[OLD_BIAS]
        external(file, OLD_BIAS, folder)

    return legacy_file(folder / "model.h5", edit=edit)


def host(folder: Path) -> str:
    """Another HDF5 file of this machine, with the secret in it."""
    path = folder / "host.h5"
    with h5py.File(path, "w") as file:
        file["x"] = np.frombuffer(SECRET, "f4")
    return str(path)


def linked(file: h5py.File, path: str, folder: Path) -> None:
    file[path] = h5py.ExternalLink(host(folder), "x")


def virtual(file: h5py.File, path: str, folder: Path) -> None:
    layout = h5py.VirtualLayout((CHANNELS,), "f4")
    layout[:] = h5py.VirtualSource(host(folder), "x", (CHANNELS,))
    file.create_virtual_dataset(path, layout)


def huge(file: h5py.File, path: str, _: Path) -> None:
    """3 GiB of which no byte is stored."""
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    space = h5py.h5s.create_simple((3 << 28,))
    h5py.h5d.create(file.id, path.encode(), h5py.h5t.IEEE_F32LE, space, plist)


def damaged_heap(folder: Path) -> Path:
    """A list of texts without an end, in a place of the file that is not read first."""

    def edit(file: h5py.File) -> None:
        for number in range(300):
            file.attrs[f"a{number}"] = f"text {number} " * 3

    path = legacy_file(folder / "model.h5", edit=edit)
    data = bytearray(path.read_bytes())
    at = data.index(b"text 299 ") - 16
    data[at : at + 2], data[at + 8 : at + 16] = bytes(2), bytes(8)
    path.write_bytes(data)
    return path


def one_text_for_many(folder: Path) -> Path:
    """3,000 names of layers that are all the same text of 1 MiB."""

    def edit(file: h5py.File) -> None:
        file.attrs["long"] = "x" * (1 << 20)
        del file["model_weights"].attrs["layer_names"]
        file["model_weights"].attrs["layer_names"] = ["x", "dense", "bn", *["yyy"] * 3000]

    path = legacy_file(folder / "model.h5", edit=edit)
    data = bytearray(path.read_bytes())
    heaps = [re.escape(match.start().to_bytes(8, "little")) for match in re.finditer(b"GCOL", data)]
    places = [match.start() - 4 for heap in heaps for match in re.finditer(heap, data)]
    length = {at: int.from_bytes(data[at : at + 4], "little") for at in places}
    longest = next(at for at in places if length[at] == 1 << 20)
    for at in places:
        if length[at] == 3:
            data[at : at + 16] = data[longest : longest + 16]
    path.write_bytes(data)
    return path


def nested_json(folder: Path) -> Path:
    text = json.dumps(model_config())
    return archive(folder, f'{text[:-1]}, "deep": {"[" * 200_000}{"]" * 200_000}}}')


def cycle(folder: Path) -> Path:
    config = model_config()
    node = config["config"]["layers"][1]["inbound_nodes"][0]["args"][0]
    node["config"]["keras_history"] = ["bn", 0, 0]
    return archive(folder, config)


def tensor(layer: str, call: int = 0) -> Json:
    history = {"shape": [None, CHANNELS], "dtype": "float32", "keras_history": [layer, call, 0]}
    return {"class_name": "__keras_tensor__", "config": history}


def nested_twice(folder: Path) -> Path:
    """Models in one another, 30 levels deep, each called twice: a billion calls."""
    start = entry("InputLayer", "x", batch_shape=[None, CHANNELS])
    model = functional([start, entry("Identity", "bn", "x")], "bn")
    for number in range(30):
        calls = [
            {"args": [tensor("x")], "kwargs": {}},
            {"args": [tensor(f"m{number}")], "kwargs": {}},
        ]
        inside = {**model, "registered_name": None, "name": f"m{number}", "inbound_nodes": calls}
        inside["config"] = {**model["config"], "name": f"m{number}"}
        behind = {
            **entry("Identity", "bn"),
            "inbound_nodes": [{"args": [tensor(f"m{number}", 1)], "kwargs": {}}],
        }
        model = functional([start, inside, behind], "bn")
    return archive(folder, model)


def doubled(folder: Path) -> Path:
    """A BatchNormalization, and 28 times a Concatenate of what is there with itself."""
    layers, last = [], "bn"
    for number in range(28):
        layer = entry("Concatenate", f"c{number}", last, axis=-1)
        layer["inbound_nodes"][0]["args"] = [[tensor(last), tensor(last)]]
        for one in layer["inbound_nodes"][0]["args"][0]:
            one["config"]["shape"] = [None, CHANNELS << number]
        layers.append(layer)
        last = f"c{number}"
    return archive(folder, after(*layers, last=last))


def painting(folder: Path) -> Path:
    name = "\x1b]0;owned\x07\x1b[2Jbnfold: fine"
    return archive(folder, model_config(norm=name))


def trained_to_harm(folder: Path) -> Path:
    """Honest in form: no reader can tell what its weights were trained for."""
    return archive(folder)


HOSTILE = "tests/model/test_hostile.py::"
BUDGETS = "tests/model/test_budgets.py::"
UNCHANGING = "tests/model/test_unchanging.py::"
NAMES = "tests/running/test_keras_names.py::"
REFUSED = NAMES + "test_what_could_do_more_than_build_a_model_is_refused"
RUNS_NOTHING = HOSTILE + "test_nothing_that_a_file_names_is_imported"
NOT_PLAIN = HOSTILE + "test_variables_that_are_not_plain"
LIES = HOSTILE + "test_archives_that_lie"

ATTACKS = (
    Attack(
        "no attack, for comparison", trained_to_harm, HOSTILE + "test_the_honest_files_are_read"
    ),
    Attack(f"Lambda in a `.keras` ({cve('2024-3660')})", in_archive(lambda_layer), RUNS_NOTHING),
    Attack(f"Lambda in an `.h5` ({cve('2025-9905')})", in_legacy(lambda_layer), RUNS_NOTHING),
    Attack(
        "Lambda by a dotted name, `layers.Lambda` of `keras`",
        in_archive(lambda folder: lambda_layer(folder, "layers.Lambda", "keras")),
        REFUSED,
    ),
    Attack(f"class of any module ({cve('2025-1550')})", in_archive(imported), RUNS_NOTHING),
    Attack(
        f"Lambda of a function that downloads, `keras.utils.get_file` ({cve('2025-8747')})",
        in_archive(
            calling(
                "keras.utils",
                "get_file",
                origin="file://{folder}/secret",
                cache_dir="{folder}",
                cache_subdir="",
                fname="canary",
            )
        ),
        REFUSED,
    ),
    Attack(
        f"Lambda of `enable_unsafe_deserialization` ({cve('2025-9906')})", switching_off, REFUSED
    ),
    Attack(f"TFSMLayer ({cve('2026-1462')})", in_archive(saved_model), REFUSED),
    Attack(f"TorchModuleWrapper ({cve('2025-49655')})", in_archive(pickled), REFUSED),
    Attack("TensorFlowOpLayer in an `.h5`, loaded by tf_keras", any_operation, REFUSED, "tf_keras"),
    Attack(f"vocabulary that is the name of a file ({cve('2025-12058')})", vocabulary, REFUSED),
    Attack("two members of one name, harmless and not", two_configs, LIES),
    Attack(
        f"member with `..` in its path ({ghsa('hqp4-2352-xf5r')})",
        with_members(("../canary", b""), ("assets/../../canary", b"")),
        LIES,
    ),
    Attack("256 MiB of spaces in a config of 256 KiB", large_config, LIES),
    Attack("asset of 512 MiB in an archive of 512 KiB", large_asset, LIES),
    Attack(
        "one bit of a weight flipped", flipped, UNCHANGING + "test_one_bit_that_flipped_in_a_member"
    ),
    Attack(f"HDF5 external storage ({cve('2026-1669')})", bias(external), NOT_PLAIN),
    Attack("HDF5 external storage in an `.h5`", external_in_legacy, NOT_PLAIN),
    Attack("HDF5 external link", bias(linked), NOT_PLAIN),
    Attack("HDF5 virtual dataset", bias(virtual), NOT_PLAIN),
    Attack(
        f"HDF5 shape of 3 GiB, nothing stored ({cve('2026-0897')}, {cve('2026-12570')})",
        bias(huge),
        NOT_PLAIN,
    ),
    Attack(
        "HDF5 list of texts without an end, in an `.h5`",
        damaged_heap,
        BUDGETS + "test_a_heap_that_is_damaged_behind_the_part_that_is_read_first",
    ),
    Attack(
        "HDF5 text of 1 MiB that is 3,000 names, in an `.h5`",
        one_text_for_many,
        BUDGETS + "test_one_text_that_is_many_attributes",
    ),
    Attack("JSON nested 200,000 deep", nested_json, HOSTILE + "test_configs_that_are_none"),
    Attack("cycle in the graph", cycle, HOSTILE + "test_configs_that_are_none"),
    Attack(
        "30 models in one another, each called twice",
        nested_twice,
        HOSTILE + "test_a_plan_takes_no_power_of_the_nesting",
    ),
    Attack(
        "BatchNormalization before 28 Concatenates, 1 Gi channels",
        doubled,
        HOSTILE + "test_a_plan_takes_no_square_of_the_width",
    ),
    Attack(
        "control characters in a name",
        painting,
        HOSTILE + "test_names_cannot_paint_the_terminal",
    ),
    Attack(
        "**not prevented:** Lambda, and `--trust`",
        in_archive(lambda_layer),
        RUNS_NOTHING,
        options=("--trust",),
    ),
    Attack(
        "**not prevented:** weights that were trained to do harm",
        trained_to_harm,
        HOSTILE + "test_the_honest_files_are_read",
    ),
)


# --- loading -------------------------------------------------------------------------------------


def children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def resident(pid: int) -> int:
    """The bytes that a process has in memory for itself, without what it has from files."""
    with contextlib.suppress(OSError):
        found = re.search(r"RssAnon:\s*(\d+)", Path(f"/proc/{pid}/status").read_text())
        return int(found[1]) * 1024 if found else 0
    return 0


def watched(pid: int, folder: Path, seconds: float) -> Seen:
    """Wait for the end of a process, and end it and its children if it comes too late."""
    seen, end = Seen(folder=folder), time.monotonic() + seconds
    while True:
        seen.memory = max(seen.memory, *(resident(one) for one in (pid, *children(pid))))
        ended, status, usage = os.wait4(pid, os.WNOHANG)
        with contextlib.suppress(OSError):
            temporary = (path for path in (folder / "tmp").rglob("*") if path.is_file())
            seen.disk = max(seen.disk, sum(path.stat().st_size for path in temporary))
        if ended:
            break
        if time.monotonic() > end:
            seen.is_late = True
            os.killpg(pid, signal.SIGKILL)
            _, status, usage = os.wait4(pid, 0)
            break
        time.sleep(0.05)
    seen.seconds = usage.ru_utime + usage.ru_stime
    seen.code = os.waitstatus_to_exitcode(status)
    seen.output = (folder / "output").read_bytes()
    return seen


def in_a_fork(do: Callable[[], object], folder: Path) -> Seen:
    """Do something in a copy of this process, in which Keras is imported already."""
    import resource

    pid = os.fork()
    if pid == 0:
        result = 1
        try:
            os.setpgid(0, 0)
            with open(folder / "output", "wb") as output:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
            os.chdir(folder)
            sys.path.insert(0, str(folder))
            os.environ["TMPDIR"] = str(folder / "tmp")
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            do()
            result = 0
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}".encode()[:2000])
        finally:
            os._exit(result)
    with contextlib.suppress(OSError):
        os.setpgid(pid, pid)
    return watched(pid, folder, SECONDS)


def load(path: Path, library: str, *, safe: bool) -> None:
    """What somebody does who wants to know what is in a file; fails where the loader does."""
    import importlib

    keras = importlib.import_module(library)
    model = keras.models.load_model(path, compile=False, safe_mode=safe)
    for value in model.get_weights():
        if SECRET in np.asarray(value).tobytes():
            print("the secret is in the model:", SECRET.decode())
    for layer in model.layers:
        if hasattr(layer, "get_vocabulary") and SECRET.decode() in layer.get_vocabulary():
            print("the secret is in the model:", SECRET.decode())
    with contextlib.suppress(Exception):
        model.summary(print_fn=print)
        print(*(layer.name for layer in model.layers))
    with contextlib.suppress(Exception):
        model(np.zeros((1, CHANNELS), "f4"))
    sys.stdout.flush()


def command(folder: Path, *words: object) -> Seen:
    """bnfold's own command, with some words."""
    with open(folder / "output", "wb") as output:
        started = subprocess.Popen(
            [sys.executable, "-m", "bnfold", *map(str, words)],
            stdout=output,
            stderr=output,
            cwd=folder,
            process_group=0,
            env={
                **os.environ,
                "PYTHONPATH": f"{ROOT}:{folder}",
                "TMPDIR": str(folder / "tmp"),
            },
        )
    return watched(started.pid, folder, 4 * SECONDS)


def outcome(seen: Seen, good: str, base: int) -> str:
    """What happened, the worst first, in words of the table."""
    canary = [path for path in seen.folder.rglob("canary*") if path.name.startswith("canary")]
    out = seen.folder / f"out{'.h5' if (seen.folder / 'model.h5').exists() else '.keras'}"
    leaked = SECRET in seen.output or (out.exists() and SECRET in out.read_bytes())
    if canary:
        return "**runs the payload**"
    if leaked:
        return "**reads the file**"
    if b"No module named 'torch'" in seen.output:
        return "needs PyTorch, not measured"
    if seen.is_late:
        return f"**no end in {SECONDS} s**"
    if seen.code < 0:
        return f"**dies of {signal.Signals(-seen.code).name}**"
    words = [good if seen.code == 0 else "refuses"]
    if seen.code == 0 and b"\x1b" in seen.output:
        words.append("**lets the name through**")
    if seen.memory - base > SHOWN:
        words.append(f"**takes {(seen.memory - base) / (1 << 30):.1f} GiB**")
    if seen.disk > SHOWN:
        words.append(f"**unpacks {seen.disk >> 20} MiB**")
    return ", ".join(words)


def clean(folder: Path, kept: set[Path]) -> None:
    for path in folder.iterdir():
        if path not in kept:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (folder / "tmp").mkdir()


def row(attack: Attack) -> list[str]:
    """The five outcomes of an attack."""
    base = resident(os.getpid())  # what a fork has from the beginning
    with TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "secret").write_bytes(SECRET)
        (folder / "tmp").mkdir()
        built = in_a_fork(lambda: attack.build(folder), folder)
        assert built.code == 0, built.output.decode(errors="replace")
        (path,) = folder.glob("model.*")
        kept = {*folder.iterdir()} - {folder / name for name in ("output", "tmp", "canary")}
        out = folder / f"out{path.suffix}"
        limits = ("--timeout", SECONDS, "--memory", "4G")

        def keras(safe: bool) -> Seen:
            return in_a_fork(lambda: load(path, attack.library, safe=safe), folder)

        runs = (
            ("loads", base, lambda: keras(safe=True)),
            ("loads", base, lambda: keras(safe=False)),
            ("reads", 0, lambda: command(folder, "inspect", "--fail-on", "never", path)),
            ("writes", 0, lambda: command(folder, "fold", "--no-verify", path, out)),
            (
                "writes",
                FRAMEWORKS,
                lambda: command(folder, "fold", *limits, *attack.options, path, out),
            ),
        )
        found = []
        for good, usual, run in runs:
            clean(folder, kept)
            seen = run()
            found.append(outcome(seen, good, usual))
            last = seen.output.decode(errors="replace").strip().splitlines()[-1:]
            print(f"  {attack.name[:40]}: {found[-1]}  {last!r}"[:240], file=sys.stderr, flush=True)
    return found


def known() -> dict[str, str]:
    """The rows that the page has already, by the attack."""
    lines = PAGE.read_text().partition(BEGIN)[2].partition(END)[0].splitlines()
    return {line.strip("| ").split(" | ")[0]: line for line in lines if line.startswith("| ")}


def table(rows: dict[str, str]) -> str:
    """The table of all attacks that have a row."""
    names = ("keras", "tf_keras", "tensorflow", "h5py")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    keras = f"Keras {version('keras')}"
    lines = [
        f"Measured with {versions}, HDF5 {h5py.version.hdf5_version}, Python"
        f" {platform.python_version()}, on {platform.system()}.",
        "",
        f"| attack | {keras} | `safe_mode=False` | `inspect` | `fold --no-verify` | `fold` |",
        "| --- | --- | --- | --- | --- | --- |",
        *(rows[one.name] for one in ATTACKS if one.name in rows),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--write", action="store_true", help="put the table into the documentation")
    asked = parser.parse_args()
    os.environ.update(KERAS_BACKEND="tensorflow", TF_CPP_MIN_LOG_LEVEL="3")
    import keras  # noqa: F401 - forks have it then
    import tf_keras  # noqa: F401

    rows = known() if asked.write else {}
    for attack in ATTACKS:
        if asked.names and not any(name in attack.name for name in asked.names):
            continue
        rows[attack.name] = f"| {' | '.join([attack.name, *row(attack)])} |"
        if asked.write:
            before, _, rest = PAGE.read_text().partition(BEGIN)
            PAGE.write_text(f"{before}{BEGIN}{table(rows)}{END}{rest.partition(END)[2]}")
    print(table(rows))


if __name__ == "__main__":
    main()

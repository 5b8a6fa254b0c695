"""Classes of somebody's own, under the names of Keras' classes, are never taken for Keras'."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import pytest
from places import FIXTURES
from support import chain, difference, fold_file, keras, load, outputs, randomize, samples

from bnfold.folding.plan import plan
from bnfold.jobs.inspect import inspect_file
from bnfold.model.container.model_file import open_model
from bnfold.model.graph import walk_all
from bnfold.model.identity import foreign_settings, is_keras_layer
from bnfold.model.layer_settings import table
from bnfold.model.layers import ROWS

L = keras.layers
BN = L.BatchNormalization
TD = L.TimeDistributed

# --- own classes in a .keras file ----------------------------------------------------------------


def own(base: Any, module: str = "__main__", package: str | None = None, **members: Any) -> Any:
    """A subclass of the same name, defined in a script or in a module, that computes otherwise."""

    def call(self: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        return 2.0 * super(made, self).call(inputs, *args, **kwargs) + 1.0

    def recurrent(self: Any, sequences: Any, initial_state: Any = None, mask: Any = None) -> Any:
        return 2.0 * super(made, self).call(sequences, initial_state, mask) + 1.0

    called = recurrent if issubclass(base, L.RNN) else call
    made = type(base.__name__, (base,), {"call": called, "__module__": module, **members})
    if package is not None:
        keras.saving.register_keras_serializable(package)(made)
    return made


class _Minus(keras.Operation):
    def call(self, one: Any, other: Any) -> Any:
        return one - other

    def compute_output_spec(self, one: Any, other: Any) -> Any:
        return keras.KerasTensor(one.shape, dtype=one.dtype)


def difference_called_add() -> Any:
    first = keras.Input((4,))
    minus = type("Add", (_Minus,), {"__module__": "__main__"})
    return keras.Model(first, BN()(minus()(L.Dense(3)(first), L.Dense(3)(first))))


def own_model(base: Any) -> Callable[[], Any]:
    def build() -> Any:
        first = keras.Input((4,))
        inside = BN()(L.Dense(3)(first))
        return chain((4,), own(base)(first, inside), L.Dense(2))

    return build


def own_sequential() -> Any:
    kind = own(keras.Sequential)
    return chain((4,), kind([keras.Input((4,)), L.Dense(3), BN()]), L.Dense(2))


def outermost(base: Any) -> Callable[[], Any]:
    """The model itself is of an own class, called like one of Keras'."""

    def build() -> Any:
        kind = own(base)
        if base is keras.Sequential:
            return kind([keras.Input((4,)), L.Dense(3), BN()])
        first = keras.Input((4,))
        return kind(first, BN()(L.Dense(3)(first)))

    return build


def merged(layer: Any) -> Any:
    first = keras.Input((4,))
    return keras.Model(first, L.ELU()(BN()(layer([L.Dense(3)(first), L.Dense(3)(first)]))))


OWN: dict[str, Callable[[], Any]] = {
    "producer": lambda: chain((4,), own(L.Dense)(3), BN()),
    "consumer": lambda: chain((4,), L.ELU(), BN(), own(L.Dense)(3)),
    "recurrent": lambda: chain((5, 4), L.ELU(), BN(), own(L.LSTM)(3)),
    "relu-between": lambda: chain((4,), L.ELU(), BN(center=False), own(L.ReLU)(), L.Dense(3)),
    "dropout-between": lambda: chain((4,), L.Dense(3), own(L.Dropout)(0.1), BN()),
    "pooling-between": lambda: chain((6, 4), L.Dense(3), own(L.AveragePooling1D)(2), BN()),
    "concatenate": lambda: merged(own(L.Concatenate)()),
    "add": lambda: merged(own(L.Add)()),
    "operation": difference_called_add,
    "normalization": lambda: chain((4,), L.Dense(3), own(BN)(), L.Dense(3)),
    "wrapped": lambda: chain((5, 4), TD(own(L.Dense)(3)), BN()),
    "wrapped-normalization": lambda: chain((5, 4), L.Dense(3), TD(own(BN)())),
    "direction": lambda: chain(
        (5, 4), L.ELU(), BN(), L.Bidirectional(own(L.LSTM, package="Custom")(3))
    ),
    "activation-of-layer": lambda: chain((4,), L.Dense(3, activation=own(L.ReLU)()), BN()),
    "model": own_model(keras.Model),
    "sequential": own_sequential,
    "outermost-model": outermost(keras.Model),
    "outermost-sequential": outermost(keras.Sequential),
}


def customs_of(model: Any) -> dict[str, Any]:
    """The own classes in a model, by the names that Keras asks for."""
    found = {}
    for layer in (*model._flatten_layers(), *getattr(model, "operations", [])):
        forward = getattr(layer, "forward_layer", None)
        inner = (layer, forward, getattr(layer, "activation", None))
        for kind in map(type, inner):
            if not kind.__module__.startswith(("keras.", "builtins")):
                found[keras.saving.get_registered_name(kind)] = kind
    return found


@pytest.mark.parametrize("name", OWN)
@pytest.mark.few(8)
def test_a_class_of_a_script_is_not_keras_own(name: str, tmp_path: Path) -> None:
    keras.backend.clear_session(free_memory=False)
    model = randomize(OWN[name]())
    customs, inputs = customs_of(model), samples(model)
    assert customs
    model.save(tmp_path / "m.keras")
    planned = fold_file(tmp_path / "m.keras", tmp_path / "f.keras")
    assert planned.folds == ()
    with keras.saving.custom_object_scope(customs):  # the layers of a nested one ask there
        folded = load(tmp_path / "f.keras")
    assert difference(outputs(model, inputs), outputs(folded, inputs)) < 1e-6


@pytest.mark.parametrize(
    ("module", "package"),
    [("own_layers_of_tests", None), ("__main__", "shop"), ("__main__", "Custom")],
)
def test_nor_is_one_of_a_module_or_a_package(
    module: str, package: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "own_layers_of_tests", ModuleType("own_layers_of_tests"))
    kind = own(L.Dense, module, package)
    model = randomize(chain((4,), kind(3), BN()))
    for form in (".keras", "") if package is None else (".keras", "", ".h5"):
        model.save(tmp_path / f"m{form}", **({} if form else {"zipped": False}))
        with open_model(tmp_path / f"m{form}") as file:
            assert plan(file.graph).folds == ()


def test_an_own_input_layer_is_none_of_keras(tmp_path: Path) -> None:
    kind = type("InputLayer", (L.InputLayer,), {"__module__": "__main__"})
    first = kind((4,)).output
    inside = keras.Model(first, L.Dense(3)(first))
    model = randomize(chain((4,), L.Dense(4), inside, BN()))
    model.save(tmp_path / "m.keras")
    fold_file(tmp_path / "m.keras", tmp_path / "f.keras")
    folded = load(tmp_path / "f.keras", {"InputLayer": kind})
    inputs = samples(model)
    assert difference(outputs(model, inputs), outputs(folded, inputs)) < 1e-5


# --- legacy files, which name no module ----------------------------------------------------------


@pytest.mark.parametrize("position", ["producer", "between", "consumer", "itself"])
def test_a_setting_that_keras_has_not_tells_an_own_class(position: str, tmp_path: Path) -> None:
    def config_of(self: Any) -> Any:
        return {**super(type(self), self).get_config(), "freeze": False}

    def init(self: Any, *args: Any, freeze: bool = False, **kwargs: Any) -> None:
        super(type(self), self).__init__(*args, **kwargs)

    told = {"get_config": config_of, "__init__": init}
    model = {
        "producer": lambda: chain((4,), own(L.Dense, **told)(3), BN()),
        "between": lambda: chain((4,), L.Dense(3), own(L.Dropout, **told)(0.5), BN()),
        "consumer": lambda: chain((4,), L.ELU(), BN(), own(L.Dense, **told)(3)),
        "itself": lambda: chain((4,), L.Dense(3), own(BN, **told)(), L.Dense(3)),
    }[position]()
    model.save(tmp_path / "m.h5")
    with open_model(tmp_path / "m.h5") as file:
        planned = plan(file.graph)
        foreign = [layer for _, layer in walk_all(file.graph) if foreign_settings(layer.entry)]
    assert planned.folds == ()
    assert [foreign_settings(layer.entry) for layer in foreign] == [("freeze",)]
    assert all("has no setting 'freeze'" in blocked.reason for blocked in planned.blocked)
    found = {finding.code for finding in inspect_file(tmp_path / "m.h5").findings}
    assert ("BN011" in found) == (position == "itself")


def test_a_class_that_keras_has_not_is_somebodys_own() -> None:
    assert not is_keras_layer({"class_name": "Swish", "config": {"name": "s"}})
    assert not is_keras_layer({"class_name": "my>Dense", "config": {"name": "d", "units": 3}})
    assert is_keras_layer({"class_name": "Dense", "config": {"name": "d", "units": 3}})
    later = {"class_name": "Dense", "module": "keras.layers", "config": {"later": 3}}
    assert is_keras_layer(later)  # its module tells; only a later Keras can have written that


ARGUMENTS: tuple[tuple[Any, ...], ...] = (
    (), (3,), (2, 2), ("abc,cd->abd", (None, 3)), (L.LSTM(2),), ([L.LSTMCell(2)],), ((2, 3),),
    (2, 2, 2), (0.5, 2), ([L.ReLU()],), (4, 2, 1), (L.LSTMCell(2),), (lambda x: x,), (L.Dense(2),),
    (0.5,), ((2, 1),),
)  # fmt: skip


def written(kind: Any, module: Any) -> dict[str, Any] | None:
    """What a class writes into a file, for the first arguments that it takes."""
    for arguments in (*ARGUMENTS, (module.layers.LSTM(2),)):
        try:
            found: dict[str, Any] = kind(*arguments).get_config()
        except Exception:
            continue
        return found
    return None


@pytest.mark.parametrize("source", ["keras", "tf_keras"])
def test_what_keras_writes_is_known(source: str) -> None:
    module = pytest.importorskip(source)
    kinds = {
        kind.__name__: kind
        for kind in vars(module.layers).values()
        if isinstance(kind, type) and issubclass(kind, module.layers.Layer)
    }
    # Those that are there to be derived from are in no file.
    new = set(kinds) - {"AbstractRNNCell", "Layer", "Wrapper"} - set(table())
    assert sorted(new) == [], "they need their settings in model/layer_settings.py"
    settings = {name: written(kind, module) for name, kind in kinds.items() if name in table()}
    unknown = {
        name: sorted(set(found) - table()[name])
        for name, found in settings.items()
        if found is not None and not set(found) <= table()[name]
    }
    assert unknown == {}
    assert sum(found is not None for found in settings.values()) > 100
    unlike = sorted(set(table()) ^ set(ROWS))
    assert unlike == [], "in one of model/layer_settings.py and ROWS of model/layers.py only"
    folded = {name for name, row in ROWS.items() if row.shape is not None or row.variables}
    assert {name for name in folded & set(kinds) if settings[name] is None} == set()


@pytest.mark.parametrize("fixture", ["digits_cnn_keras315.h5"])
def test_honest_legacy_files_are_known(fixture: str) -> None:
    path = FIXTURES / fixture
    with open_model(path) as file:
        assert all(layer.builtin for _, layer in walk_all(file.graph))
    with h5py.File(path) as raw:
        assert "module" not in json.loads(raw.attrs["model_config"])["config"]["layers"][0]

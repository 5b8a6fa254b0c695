"""Calls of the API as a type checker sees them; mypy reads this, and nobody runs it.

Each `type: ignore` stands where a call must not type-check: mypy says so of one that is not needed.
"""

from typing import Any, assert_type

import keras
import numpy as np

import bnfold

model: Any = keras.Model()
array = np.zeros((3, 4))

bnfold.fold("a.keras")  # type: ignore[call-overload]
bnfold.fold("a.keras", None)  # type: ignore[call-overload]
bnfold.fold(3)  # type: ignore[call-overload]
bnfold.recalibrate("a.keras", data=array)  # type: ignore[call-overload]
bnfold.verify("a.keras", 3)  # type: ignore[arg-type]
bnfold.inspect(["a.keras"])  # type: ignore[arg-type]

folded: Any = bnfold.fold(model, data=array)
written: bool = bnfold.fold("a.keras", "b.keras", data={"x": array}).written
recalibrated: Any = bnfold.recalibrate(model, data=[array])
assert bnfold.recalibrate("a.keras", "b.keras", data=array)
assert bnfold.verify(model, "b.keras", data=array).accepted()
assert bnfold.export(model, "a.onnx", data=array)
bnfold.bench("a.keras", model, batch=[1, 32])


class Own:
    """A model as a type checker sees one where Keras is not installed."""

    def save(self, path: str) -> None: ...

    def predict(self, x: Any) -> Any: ...


def live(own: Own) -> None:
    """What comes back of a live model is of its type."""
    assert_type(bnfold.fold(own), Own)
    assert_type(bnfold.recalibrate(own, data=array), Own)


# What results have, none of it of an unknown type.
assert_type(bnfold.gate("models", select=["BN1"]).models[0].findings[0].severity, bnfold.Severity)
assert_type(bnfold.inspect("a.keras").plan.decisions[0].batchnorm.epsilon, float | None)
assert_type(bnfold.fold("a.keras", "b.keras").verification, bnfold.Verification | None)
assert_type(bnfold.verify("a.keras", "b.keras").verdict, bnfold.Verdict)
assert_type(bnfold.bench("a.keras", "b.keras").results[0].ratio, float)
assert_type(bnfold.bench("a.keras", "b.keras").confidence, float)

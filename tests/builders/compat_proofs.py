"""Proofs of the files that `compat_models.py` has written, by the bnfold and Keras that run this.

It is a program: `python compat_proofs.py DIR` audits, folds and verifies one file of each model,
and leaves DIR/proofs.json. Where Keras runs on another backend than TensorFlow, some models are
folded, as files and live, in the process that has them.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import compat_models
from comparing import difference

import bnfold

PROOFS = "proofs.json"
LIVE = ("dictionaries", "recurrent", "residual")
"""Models that are folded live on another backend; each is verified in a process of its own."""


def proved(folder: Path, file: str) -> dict[str, Any]:
    """The audit, the fold and the verification of a file."""
    try:
        inspection = bnfold.inspect(folder / file)
        report = bnfold.fold(
            folder / file,
            folder / f"proved {file}",
            force=True,
            in_process=os.environ.get("KERAS_BACKEND", "tensorflow") == "tensorflow",
        )
    except Exception as error:
        return {"verdict": f"{type(error).__name__}: {error}", "basis": "", "written": False}
    assert report.verification is not None
    return {
        "verdict": str(report.verification.verdict),
        "basis": str(report.verification.basis),
        "written": report.written,
        "findings": sorted(finding.code for finding in inspection.findings),
        "folded": len(report.plan.folds),
    }


def proved_live(folder: Path) -> float:
    """The largest difference that folding a live model makes, relative to its tolerance."""
    import keras

    inputs, expected = compat_models.stored(folder)
    model = keras.models.load_model(folder / "model.keras", compile=False)
    found = compat_models.computed(keras, bnfold.fold(model), inputs)
    return difference(expected, found) / compat_models.allowed(folder)


def main(folder: Path) -> None:
    written = json.loads((folder / compat_models.WRITTEN).read_text("utf-8"))
    # tf_keras loads no .keras file of 2.13 and 2.14.
    file = "model.h5" if written["keras"].startswith(("2.13", "2.14")) else "model.keras"
    is_foreign = os.environ.get("KERAS_BACKEND", "tensorflow") != "tensorflow"
    names = LIVE if is_foreign else written["models"]
    live = {name: proved_live(folder / name) for name in LIVE} if is_foreign else {}
    models = {name: proved(folder / name, file) for name in names}
    found = {"models": models, "live": live}
    (folder / PROOFS).write_text(json.dumps(found), "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

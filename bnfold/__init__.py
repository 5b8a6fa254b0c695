"""bnfold: audit Keras models, fold their BatchNormalization layers, verify the result.

Eight functions, of which all but `gate` take a live `keras.Model` as well as a path:

    inspect(model)            what each BatchNormalization is, whether it folds, how healthy it is
    gate(models...)           whether all models of a folder pass, as in a pipeline
    fold(model, out)          write the folded model; of a live model, give the folded one back
    verify(original, folded)  verify that two models compute the same
    export(model, target)     fold it and write it for ONNX, LiteRT or TensorFlow
    prepare(model, folder)    all of it: everything that is deployed, in one folder
    recalibrate(model, out)   estimate the moving statistics again, from data
    bench(a, b)               how long two models take, side by side

Importing bnfold, `inspect` without data, and `fold(..., verify=False)` on files import no
deep-learning framework, and need none to be installed.
"""

from bnfold.version import __version__

TYPE_CHECKING = False  # that of `typing` costs the import of `typing`
if TYPE_CHECKING:
    from typing import Any

    from bnfold.api import bench, export, fold, gate, inspect, prepare, recalibrate, verify
    from bnfold.audit import Finding, Severity, Thresholds
    from bnfold.audit.selection import Suppression
    from bnfold.errors import (
        BnfoldError,
        ExportImpossibleError,
        FindingsError,
        OutputError,
        ProcessStoppedError,
        SettingsError,
        UnreadableModelError,
        UnsafeModelError,
        VerificationFailedError,
        VerificationImpossibleError,
    )
    from bnfold.jobs.bench import BenchReport
    from bnfold.jobs.export import ExportReport
    from bnfold.jobs.fold import FoldReport
    from bnfold.jobs.gate import Outcome
    from bnfold.jobs.inspect import Inspection
    from bnfold.jobs.prepare import PrepareReport
    from bnfold.jobs.recalibrate import RecalibrationReport
    from bnfold.verification import Verdict, Verification

_HOMES = {
    "bnfold.api": (
        "bench",
        "export",
        "fold",
        "gate",
        "inspect",
        "prepare",
        "recalibrate",
        "verify",
    ),
    "bnfold.audit": ("Finding", "Severity", "Thresholds"),
    "bnfold.audit.selection": ("Suppression",),
    "bnfold.jobs.gate": ("Outcome",),
    "bnfold.jobs.bench": ("BenchReport",),
    "bnfold.jobs.fold": ("FoldReport",),
    "bnfold.errors": (
        "BnfoldError",
        "ExportImpossibleError",
        "FindingsError",
        "OutputError",
        "ProcessStoppedError",
        "SettingsError",
        "UnreadableModelError",
        "UnsafeModelError",
        "VerificationFailedError",
        "VerificationImpossibleError",
    ),
    "bnfold.jobs.export": ("ExportReport",),
    "bnfold.jobs.inspect": ("Inspection",),
    "bnfold.jobs.prepare": ("PrepareReport",),
    "bnfold.jobs.recalibrate": ("RecalibrationReport",),
    "bnfold.verification": ("Verdict", "Verification"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "BenchReport",
    "BnfoldError",
    "ExportImpossibleError",
    "ExportReport",
    "Finding",
    "FindingsError",
    "FoldReport",
    "Inspection",
    "Outcome",
    "OutputError",
    "PrepareReport",
    "ProcessStoppedError",
    "RecalibrationReport",
    "SettingsError",
    "Severity",
    "Suppression",
    "Thresholds",
    "UnreadableModelError",
    "UnsafeModelError",
    "Verdict",
    "Verification",
    "VerificationFailedError",
    "VerificationImpossibleError",
    "__version__",
    "bench",
    "export",
    "fold",
    "gate",
    "inspect",
    "prepare",
    "recalibrate",
    "verify",
]


def __getattr__(name: str) -> "Any":
    """Import a public name when it is first asked for: the command line starts faster without."""
    from importlib import import_module  # noqa: PLC0415

    if name not in _HOME_OF:
        raise AttributeError(f"module 'bnfold' has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return __all__

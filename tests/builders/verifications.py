"""Verifications made by hand, one for each verdict, for as many fold sites as are wanted."""

import math

from bnfold.verification.result import (
    Accuracy,
    Agreement,
    Basis,
    Comparison,
    Decisions,
    Fidelity,
    Margins,
    Percentiles,
    Site,
    SiteStatus,
    Verdict,
    Verification,
)

RUNTIMES = ("keras float64", "keras", "onnxruntime")
_TOLERANCE = 3e-7


def comparison(name: str, runtime: str, excess: float, **other: object) -> Comparison:
    """A comparison in which the error takes this share of the tolerance; all else may be given."""
    error = excess * _TOLERANCE
    sqnr = 142.0 if 0 < excess < math.inf else None
    return Comparison(
        **{
            "name": name,
            "is_output": False,
            "tapped_before": None,
            "runtime": runtime,
            "samples": "normal, 8",
            "original": Accuracy(1e-7, 1e-7, 140.0),
            "folded": Accuracy(error, error / 8, sqnr),
            "error": error,
            "tolerance": _TOLERANCE,
            "excess": excess,
            "passed": excess <= 1,
            "channels": 32,
            "exercised": 32,
            **other,
        }
    )


def fidelity(output: str, runtime: str, largest: float, changed: int = 0) -> Fidelity:
    """How near an output is that decides between classes."""
    margins = Margins(4e-4, 4e-3, 0.03) if changed else None
    return Fidelity(
        output,
        runtime,
        -20 * math.log10(largest),
        8.25,
        Percentiles(largest / 20, largest / 5, largest / 2, largest),
        Decisions("softmax", 420, changed, 2.1e-4, margins),
    )


def same(sites: int = 5) -> Verification:
    """Equivalent, with so many fold sites."""
    names = names_of(sites)
    return Verification(
        Verdict.EQUIVALENT,
        Basis.BOTH,
        (),
        (),
        0,
        "keras",
        "a rule",
        comparisons=(
            *(
                comparison("scores", one, 0.04, is_output=True, tapped_before="softmax")
                for one in RUNTIMES
            ),
            *(
                comparison(name, runtime, (1 + place % 7) / 20)
                for place, name in enumerate(names)
                for runtime in RUNTIMES
            ),
        ),
        sites=tuple(Site(name, 0, SiteStatus.MATCHED, (name,), 0.3, 32, 32) for name in names),
        agreements=(Agreement("scores", 420, 0, 2.1e-4),),
        reference="keras float64",
        sample_count=420,
        sample_kinds=("normal", "uniform"),
        fidelity=tuple(fidelity("scores", one, 1e-7) for one in RUNTIMES),
    )


def names_of(sites: int) -> list[str]:
    """The names of so many fold sites."""
    return [f"stage_{place // 4}/block_{place % 4}/norm" for place in range(sites)]


def unlike(sites: int = 5) -> Verification:
    """Different from the middle site on."""
    names = names_of(sites)
    first = sites // 2
    return Verification(
        Verdict.DIFFERENT,
        Basis.BOTH,
        (
            f"BatchNormalization {names[first]!r} was folded wrongly",
            *(f"keras: output 'scores' is off by 0.0{n}" for n in range(12)),
        ),
        (),
        0,
        "keras",
        "a rule",
        comparisons=(
            comparison("scores", "keras", 4e4, is_output=True),
            comparison("scores", "onnxruntime", math.inf, is_output=True),
            *(
                comparison(name, runtime, 3.2e4 if place >= first else 0.2)
                for place, name in enumerate(names)
                for runtime in RUNTIMES
            ),
        ),
        sites=tuple(
            Site(
                name,
                0,
                SiteStatus.DIFFERENT if place >= first else SiteStatus.MATCHED,
                (name,),
                3.2e4 if place >= first else 0.2,
                32,
                32,
            )
            for place, name in enumerate(names)
        ),
        culprits=(names[first], "layer that is nowhere"),
        reference="keras float64",
        sample_count=420,
        sample_kinds=("normal",),
        fidelity=(fidelity("scores", "keras", 0.2, changed=131),),
    )


def unsure() -> Verification:
    """Undecided: one site and one output were not exercised, and one site is unpaired."""
    quiet = {"excess": 0.0, "exercised": 0}
    return Verification(
        Verdict.UNDECIDED,
        Basis.KERAS,
        (),
        ("output 'box' was not exercised: it never changed", "onnxruntime could not judge"),
        7,
        "keras",
        "a rule",
        comparisons=(
            comparison("scores", "keras", 0.9, is_output=True),
            comparison("box", "keras", is_output=True, **quiet),
            comparison("first", "keras", 0.5),
            comparison("second", "keras", **quiet),
            comparison("dense", "keras", 0.1),
        ),
        sites=(
            Site("first", 1, SiteStatus.MATCHED, ("first", "dense"), 0.5, 32, 30),
            Site("second", 0, SiteStatus.NOT_EXERCISED, ("second",), None, 32, 0),
            Site("third", 0, SiteStatus.UNPAIRED),
        ),
        reference="keras float64",
        merged_by_exporter=("first",),
        sample_count=64,
        sample_kinds=("normal",),
    )


def near() -> Verification:
    """Approximate: a quantized file, on the user's samples."""
    return Verification(
        Verdict.APPROXIMATE,
        Basis.LITERT,
        (),
        (),
        0,
        "keras",
        "a rule",
        comparisons=(
            comparison("scores", "litert", 0.55, is_output=True, original=None, channels=1),
        ),
        reference="keras float64",
        sample_count=420,
        sample_kinds=("data",),
        fidelity=(fidelity("scores", "litert", 0.01, changed=7),),
        format="tflite",
        precision="int8",
        paired=("input 'x' is paired with 'serving_default_x:0' by its place",),
        is_user_data=True,
        refused=("output 'scores' has 40.0 dB in litert, and --min-sqnr asks for 45",),
    )


def files() -> Verification:
    """Both files hold the same model, so that nothing was run."""
    return Verification(Verdict.EQUIVALENT, Basis.FILES, (), (), 0, "keras", "a rule")


ALL = {"same": same, "unlike": unlike, "unsure": unsure, "near": near, "files": files}

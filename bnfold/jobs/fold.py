"""Folding a file: read, plan, write beside the target, prove, and only then put it there."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, Literal, get_args

from bnfold.errors import OutputError, UnreadableModelError, VerificationImpossibleError
from bnfold.folding.plan import Plan, apply, unused_patterns
from bnfold.folding.standalone import replace_leftovers, replaceable
from bnfold.jobs.gate import InputFindings, of_input
from bnfold.jobs.inspect import keras_versions
from bnfold.jobs.planning import planned
from bnfold.jobs.settings import Settings
from bnfold.jobs.staging import Staging, check_target, target_at
from bnfold.model.container.model_file import Kind, ModelFile, open_model
from bnfold.model.container.printing import printable
from bnfold.model.container.record import record
from bnfold.model.container.remote import Remote, Where
from bnfold.model.edit import ForInference, for_inference
from bnfold.model.graph import Json, LayerPath, show
from bnfold.running import options
from bnfold.serialize import SCHEMA_VERSION, Serializable, Shown, plain
from bnfold.verification import Verification
from bnfold.version import __version__

if TYPE_CHECKING:
    from bnfold.jobs.verify import Proof  # which imports all that runs models

Standalone = Literal["keep", "depthwise"]

SILENT = Settings(fail_on=None)
"""The settings under which no finding stops anything."""


@dataclass(frozen=True)
class Promise(Serializable):
    """That a model is called for inference only, and which layers that is about.

    Attributes:
        told: the layers that take training=True by default, and are called with False now.
        untold: those that the file cannot tell so; see `for_inference`.
    """

    told: tuple[LayerPath, ...]
    untold: tuple[LayerPath, ...]

    @classmethod
    def of(cls, changed: ForInference | None) -> "Promise | None":
        """What the promise changed in a model; None where nothing was promised."""
        return None if changed is None else cls(changed.told, changed.untold)

    def to_dict(self) -> dict[str, Any]:
        """The promise for JSON."""
        return {"told": [*map(show, self.told)], "untold": [*map(show, self.untold)]}


@dataclass(frozen=True, repr=False)
class FoldReport(Shown):
    """What a fold did.

    Attributes:
        source: the model file that was read.
        target: where the folded model was to go.
        written: whether it is there; False when the proof failed.
        container: "keras", "keras-directory" or "h5", of both.
        plan: what was folded and what was kept, with reasons.
        dropped: what belongs to training and was left out.
        inference: the layers that take training=True by default and count as called without it, by
            whether their calls say so in the result; None where that was not promised.
        replaced: the kept layers that are depthwise convolutions now.
        unused_keep: the patterns of `keep` that match no layer.
        verification: the proof, None where none was asked for, or findings stopped the fold.
        audit: the findings on the source.
    """

    source: Where
    target: Where
    written: bool
    container: Kind
    plan: Plan
    dropped: tuple[str, ...]
    replaced: tuple[LayerPath, ...]
    unused_keep: tuple[str, ...]
    verification: Verification | None
    audit: InputFindings = field(default_factory=InputFindings)
    inference: Promise | None = None

    @property
    def brief(self) -> str:
        """What was done, in a line."""
        folds, layers = len(self.plan.folds), len(self.plan.decisions)
        proof = "not verified" if self.verification is None else self.verification.brief
        written = "" if self.written else " not"
        return f"folded {folds} of {layers} layers, {self.target} was{written} written, {proof}"

    def __bool__(self) -> bool:
        """Whether the file was written."""
        return self.written

    def to_dict(self) -> dict[str, Any]:
        """The JSON report."""
        return {
            "schema_version": SCHEMA_VERSION,
            "source": str(self.source),
            "target": str(self.target),
            "written": self.written,
            "container": self.container,
            "folded": describe_folds(self.plan),
            "kept": describe_kept(self.plan),
            "keras": keras_versions(self.plan),
            "inference": plain(self.inference),
            "dropped": list(self.dropped),
            "replaced": [show(path) for path in self.replaced],
            "unused_keep": list(self.unused_keep),
            **self.audit.to_dict(),
            "verification": plain(self.verification),
        }


def describe_folds(decided: Plan) -> list[Json]:
    """What was folded into what, for reports and records."""
    return [
        {
            "name": show(fold.batchnorm.path),
            "direction": fold.direction,
            "into": [show(absorber.layer) for absorber in fold.absorbers],
        }
        for fold in decided.folds
    ]


def describe_kept(decided: Plan) -> list[Json]:
    """What was not folded and why, for reports."""
    return [
        {
            "name": show(blocked.batchnorm.path),
            "reason": blocked.reason,
            "remedies": list(blocked.remedies),
        }
        for blocked in decided.blocked
    ]


def fold_file(
    source: str | Where,
    target: str | Where,
    *,
    keep: Sequence[str] = (),
    keras: str | None = None,
    inference: bool = False,
    standalone: Standalone = "keep",
    force: bool = False,
    proof: "Proof | None",
    settings: Settings = SILENT,
    progress: Callable[[str], None] | None = None,
    sha256: Sequence[str] = (),
    origin: str | None = None,
) -> FoldReport:
    """Fold the model in `source` and write it to `target`, in the same kind of container.

    `keras` is the version that will run the result, as for `planned`. With `inference` the user
    promises to call it for inference only: layers that take training=True by default get False in
    their calls, and the result is compared with the original of which the same is true.
    With `standalone` "depthwise", what cannot be folded becomes a depthwise convolution where it
    can. Without a `proof` nothing is run. The target is written only when the proof succeeds, and
    no finding on the source is as bad as `settings.fail_on`; the settings are those of `inspect`.
    `sha256` are digests of which the source must have one, if there are any. `origin` is the one
    that the result names as its source's, of a source that is gone afterwards.

    Raises:
        SettingsError: their baseline is missing or damaged.
        UnreadableModelError, UnsafeModelError: the source cannot be read.
        OutputError: the target cannot be written, or exists and `force` is not given.
        VerificationImpossibleError: neither Keras nor ONNX Runtime can run the model, or they are
            not installed.
    """
    options.some_of("standalone", standalone, get_args(Standalone))
    keep = options.names("keep", keep)
    target = target_at(target)
    if proof is not None:
        proof.require("fold")
    with open_model(source, sha256) as model:
        check_target(target, model.kind, force=force)
        refuse_inside(target, model)
        refuse_obstacle(model)
        if model.graph.kind == "subclassed" and proof is not None:
            raise VerificationImpossibleError(
                f"{printable(str(model.given))}: a subclassed model: its file holds no graph, so "
                "nothing can be folded or verified"
            )
        changed = for_inference(model.graph) if inference else None
        with hashing(model, origin) as digest:
            decided = planned(model, keep, keras=keras, inference=inference)
            audit = of_input(model, settings, None if keep else decided)
            with Staging(target, model.kind, force=force) as staging:
                replaced, decided = write_folded(
                    model, decided, digest, standalone, staging.path, inference=inference
                )
                verification, accepted = None, not audit.stops
                if proof is not None and accepted:
                    is_changed = bool(decided.folds or replaced)
                    verification = proof.run(
                        to_compare(model, changed, staging),
                        staging.path,
                        progress,
                        is_changed=is_changed,
                        as_called=changed is None or not changed.untold,
                    )
                    verification = verification.reworded(
                        lambda said: model.said(staging.said(said))
                    )
                    accepted = verification.accepted(strict=proof.strict)
                if accepted:
                    model.release()
                    staging.publish()
        return FoldReport(
            source=model.given,
            target=target,
            written=accepted,
            container=model.kind,
            plan=decided,
            dropped=model.dropped,
            replaced=replaced,
            unused_keep=unused_patterns(model.graph, keep),
            verification=verification,
            audit=audit,
            inference=Promise.of(changed),
        )


def to_compare(model: ModelFile, changed: ForInference | None, staging: Staging) -> Path:
    """The original to compare with: the file, or a copy in which the promise stands too.

    Up to Keras 3.15 the two compute the same in `predict`. From 3.16 on what a call says of
    `training` holds there as well.
    """
    if changed is None or not changed.told:
        return model.path
    path = staging.copy_of(model.path)
    model.write(changed.graph, path, {})
    return path


def refuse_inside(target: Where, model: ModelFile) -> None:
    """Raise OutputError for a target in the directory that is the model."""
    if isinstance(target, Remote):
        return
    if model.kind == "keras-directory" and model.path.resolve() in target.resolve().parents:
        raise OutputError(f"{printable(str(target))}: is inside of the model it is made of")


def refuse_obstacle(model: ModelFile) -> None:
    """Raise UnreadableModelError for a file of which nothing can be folded, whatever is in it."""
    if model.graph.obstacle is not None:
        raise UnreadableModelError(f"{printable(str(model.given))}: {model.graph.obstacle.reason}")


@contextmanager
def hashing(model: ModelFile, known: str | None = None) -> Iterator[Callable[[], str]]:
    """What tells the SHA-256 of the file, which is found meanwhile: it takes no Python.

    Where it is `known`, that is told. Whoever asks knows that the weights have the checksum that an
    archive has of them, or is told UnreadableModelError.
    """
    found: Future[str] = Future()

    def find() -> None:
        try:
            if known is not None:
                model.check_weights()
            found.set_result(known or model.sha256())
        except BaseException as error:  # which whoever asks is told
            found.set_exception(error)

    thread = Thread(target=find)  # which has ended when the digest is known, before any fork
    thread.start()
    try:
        yield found.result
    finally:
        thread.join()


def write_folded(
    model: ModelFile,
    decided: Plan,
    sha256: Callable[[], str],
    standalone: Standalone,
    path: Path,
    *,
    inference: bool,
) -> tuple[tuple[LayerPath, ...], Plan]:
    """Write the folded model to `path`; the kept layers that are depthwise convolutions there.

    Where that was asked for, the plan that is returned says why others are not.
    """
    folded = apply(model.graph, decided)
    replaced: tuple[LayerPath, ...] = ()
    if standalone == "depthwise":
        replaced, decided = replaceable(folded, decided)
    folded = replace_leftovers(folded, replaced) if replaced else folded
    folded = for_inference(folded).graph if inference else folded
    folds = describe_folds(decided)
    model.write(folded, path, lambda: record(model.metadata, __version__, sha256(), folded=folds))
    return replaced, decided

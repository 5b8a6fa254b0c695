"""What can go wrong, as exceptions whose text is one line a user can act on.

A refusal to fold is not here: it is a value (`bnfold.folding.plan.Blocked`). An exception means
that the input is broken, unsafe or not ours to touch; the command line turns each of them into exit
code 2.
"""


class BnfoldError(Exception):
    """The base of all errors that bnfold raises on purpose."""


class UnreadableModelError(BnfoldError):
    """The file is missing, truncated, or not a Keras model that bnfold can read."""


class UnsafeModelError(BnfoldError):
    """The file asks for what a model file must not ask for; nothing was run or followed."""


class OutputError(BnfoldError):
    """The result cannot be written where it was asked for."""


class ProcessStoppedError(BnfoldError):
    """The process that did the work crashed, or took more time or memory than it may."""


class SettingsError(BnfoldError, ValueError):
    """A setting or an argument, in a file or given, that cannot be what was meant."""


class VerificationImpossibleError(BnfoldError):
    """Keras and ONNX Runtime cannot run the models, or are not installed: nothing can be proved."""


class ExportImpossibleError(BnfoldError):
    """The model has no ONNX form that tf2onnx can write."""


class FindingsError(BnfoldError):
    """A live model has findings so bad that, as was asked, nothing was made of it."""


class VerificationFailedError(BnfoldError):
    """A folded live model does not compute what the original computes, so it is not handed out."""

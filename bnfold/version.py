"""The version of bnfold."""

__version__ = "0.1.0"

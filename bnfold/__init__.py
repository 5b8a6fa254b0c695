"""bnfold: audit Keras models, fold their BatchNormalization layers, prove the result."""

__version__ = "0.1.0"

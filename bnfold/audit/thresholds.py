"""The numbers at which rules begin to speak, where no published source fixes one."""

import math
from dataclasses import dataclass, fields

from bnfold.errors import SettingsError


@dataclass(frozen=True)
class Thresholds:
    """The settings of the rules.

    Attributes:
        inverted_momentum: BN003 speaks of a momentum below this.
        epsilon_share: BN005 speaks where epsilon is more than this share of variance + epsilon.
        unconverged_warning: BN103 warns where the initial values keep more than this weight.
        initial_variance: BN103 warns where the initial 1 makes up more than this share of
            variance + epsilon.
        unconverged_error: above this weight or share BN103 is an error.
        vanishing_variance: BN107 speaks of a variance below this share of epsilon.
        outstanding_scale: BN107 and BN403 take a channel for an outlier whose scale is more than
            this many times the median of the layer.
        cancellation: BN108 speaks where the mean is more than this many standard deviations.
        silent_share: BN201 warns where more than this share of the channels is silent.
        quantization_info: BN402 speaks where a channel uses less than this share of the range of
            its tensor.
        quantization_warning: below this share BN402 warns.
        drift_warning: BN501 warns where the median of the channels is this many nats from the data.
        drift_error: above this many nats BN501 is an error.
        drift_channel: BN501 warns where any channel is this many nats from the data.

    Raises:
        SettingsError: a threshold is not a positive, finite number.
    """

    inverted_momentum: float = 0.5
    epsilon_share: float = 0.1
    unconverged_warning: float = 0.05
    initial_variance: float = 0.5
    unconverged_error: float = 0.65
    vanishing_variance: float = 0.01
    outstanding_scale: float = 100.0
    cancellation: float = 1e3
    silent_share: float = 0.1
    quantization_info: float = 1 / 16
    quantization_warning: float = 1 / 256
    drift_warning: float = 0.25
    drift_error: float = 1.0
    drift_channel: float = 5.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not (number and math.isfinite(value) and value > 0):
                raise SettingsError(f"the threshold {field.name} must be a positive number")

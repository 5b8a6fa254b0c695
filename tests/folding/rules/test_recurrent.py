"""Recurrent layers absorb a map before them."""

from pathlib import Path

import pytest
from maps import BN, TD, Build, L, forms_of
from support import KERAS, chain, examine, randomize

pytestmark = pytest.mark.usefixtures("double")


ABSORB: dict[str, Build] = {
    "simple-rnn": lambda: chain((3, 4), BN(), L.SimpleRNN(5)),
    "simple-rnn-no-bias": lambda: chain((3, 4), BN(), L.SimpleRNN(5, use_bias=False)),
    "lstm": lambda: chain((3, 4), BN(), L.LSTM(5, return_sequences=True, dropout=0.3)),
    "lstm-no-bias": lambda: chain((3, 4), BN(), L.LSTM(5, use_bias=False, go_backwards=True)),
    "gru": lambda: chain((3, 4), BN(), L.GRU(5)),
    "gru-no-bias": lambda: chain((3, 4), BN(), L.GRU(5, use_bias=False)),
    "gru-reset-before": lambda: chain((3, 4), BN(), L.GRU(5, reset_after=False)),
    "gru-reset-before-no-bias": lambda: chain(
        (3, 4), BN(), L.GRU(5, reset_after=False, use_bias=False)
    ),
    "bidirectional-lstm": lambda: chain((3, 4), BN(), L.Bidirectional(L.LSTM(5))),
    "bidirectional-gru-no-bias": lambda: chain(
        (3, 4), BN(), L.Bidirectional(L.GRU(5, use_bias=False), merge_mode="sum")
    ),
    "bidirectional-two-kinds": lambda: chain(
        (3, 4),
        BN(),
        L.Bidirectional(
            L.LSTM(5, use_bias=False), backward_layer=L.SimpleRNN(5, go_backwards=True)
        ),
    ),
    "wrapped-lstm": lambda: chain((2, 3, 4), TD(BN()), TD(L.LSTM(2))),
}


@pytest.mark.parametrize("name", ABSORB)
@pytest.mark.few(4)
def test_layer_absorbs_a_map_before_it(name: str, tmp_path: Path) -> None:
    forms = KERAS if name.startswith("wrapped") else forms_of(name)
    examine(randomize(ABSORB[name]()), tmp_path, forms=forms)

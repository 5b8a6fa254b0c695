"""Random small Keras models in which any two layers that change places change what comes out.

All tensors of a model have the same shape, so that weights fit wherever they land; all joins but a
few are asymmetric, because an Add hides a swap. A seed always makes the same model.
"""

import random
from collections.abc import Callable

from support import keras  # isort: skip - it chooses the backend

from keras import layers, ops

CHANNELS = 3
LENGTH = 4

Tensor = keras.KerasTensor


@keras.saving.register_keras_serializable("bnfold_tests")
class Gate(layers.Layer):
    """A class that is not Keras' own: one weight, two layers inside, further tensors by keyword."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.parts = [layers.Dense(CHANNELS, dtype=self.dtype_policy) for _ in range(2)]

    def get_config(self):
        return super().get_config()  # with the name, which Keras leaves out of the default one

    def build(self, *_, **__):
        self.offset = self.add_weight(shape=(CHANNELS,), name="offset")
        for part in self.parts:
            part.build((None, CHANNELS))
        self.built = True

    def call(self, first, second=None, *, gate=None, mask=None):
        mixed = first - 2.0 * second if second is not None else first
        if gate is not None:
            mixed = mixed * ops.tanh(self.parts[0](gate))
        if mask is not None:
            mixed = mixed - ops.tanh(self.parts[1](mask))
        return mixed + self.offset


def random_model(seed: int, *, dtype: str = "float64", legacy: bool = False) -> keras.Model:
    """A functional model of some 4 to 25 layers; `support.randomize` gives it telling weights.

    `legacy` leaves out what a legacy `.h5` file cannot hold: operations, and thereby masks.
    """
    keras.backend.clear_session(free_memory=False)
    before = keras.config.floatx()
    keras.config.set_floatx(dtype)
    try:
        choose = random.Random(seed)
        model = _Maker(choose, legacy=legacy).model()
        _freeze(model, choose)
        return model
    finally:
        keras.config.set_floatx(before)


def _freeze(model: keras.Model, choose: random.Random) -> None:
    """Freeze some layers: a legacy file lists the variables of a nested model by that."""
    if choose.random() < 0.3:
        for layer in model._flatten_layers(include_self=False):
            layer.trainable = choose.random() < 0.7


def tree_of_names(model: keras.Model) -> list:
    """The names in `model.layers`, each with those inside it, wrappers looked through."""
    return [(layer.name, _names_inside(layer)) for layer in model.layers]


def _names_inside(layer: keras.layers.Layer) -> list:
    if isinstance(layer, layers.TimeDistributed):
        return _names_inside(layer.layer)
    return tree_of_names(layer) if isinstance(layer, keras.Model) else []


class _Maker:
    """Grows one model: a pool of tensors of one shape, and steps that read some and add others."""

    def __init__(
        self,
        choose: random.Random,
        *,
        legacy: bool,
        rank: int | None = None,
        depth: int = 0,
    ) -> None:
        self._choose = choose
        self._legacy = legacy
        self._rank = rank or choose.choice([3, 3, 3, 4])
        self._depth = depth
        self._shape = (LENGTH,) * (self._rank - 2) + (CHANNELS,)
        self._pool: list[Tensor] = []
        self._read: set[int] = set()
        self._reusable: list[Callable[[Tensor], Tensor]] = []

    def model(self) -> keras.Model:
        given = self._inputs()
        unused = self._choose.choice([0, 0, 0, 1, 2])
        self._pool = keras.tree.flatten(given)
        self._choose.shuffle(self._pool)
        del self._pool[max(1, len(self._pool) - unused) :]
        for _ in range(self._choose.randint(1, 3) if self._depth else self._choose.randint(2, 6)):
            self._choose.choice(self._steps())()
        return keras.Model(given, self._structure(self._outputs()))

    def _inputs(self):
        count = self._choose.choice([1, 1, 2, 3])
        if self._choose.random() < 0.3:
            names = [f"{key}_{self._depth}" for key in self._choose.sample("zyxwvut", count)]
            return {name: keras.Input(self._shape, name=name) for name in names}
        tensors = [keras.Input(self._shape) for _ in range(count)]
        return tensors[0] if count == 1 and self._choose.random() < 0.7 else tensors

    def _steps(self) -> list[Callable[[], None]]:
        steps = [self._branches] * 7 + [self._pair, self._reuse, self._join] * 3
        steps += [self._preactivation, self._batchnorm, self._plain, self._gate]
        steps += [self._sequential, self._time_distributed]
        if self._depth < 2:
            steps += [self._nested, self._nested]
        if not self._legacy:
            steps += [self._operation] * 3
        if self._rank == 3:
            steps += [self._attention]
        if self._rank == 3 and self._choose.random() < 0.3:  # they take Keras the longest
            steps += [self._recurrent] if self._legacy else [self._recurrent, self._masked]
        return steps

    # The pool.

    def _take(self) -> Tensor:
        """A tensor to read: often the newest, for a deep model, or one that nobody reads yet."""
        unread = [tensor for tensor in self._pool if id(tensor) not in self._read]
        among = self._choose.choice([self._pool[-1:], unread or self._pool, self._pool])
        tensor = self._choose.choice(among)
        self._read.add(id(tensor))
        return tensor

    def _add(self, tensor: Tensor) -> None:
        self._pool.append(tensor)

    def _outputs(self) -> list[Tensor]:
        """Everything nobody read yet, merged into a few tensors so that hardly anything is lost."""
        unread = [tensor for tensor in self._pool if id(tensor) not in self._read]
        self._choose.shuffle(unread)
        count = min(len(unread), self._choose.choice([1, 1, 2, 3]))
        merged = [self._merge(unread[start::count]) for start in range(count)]
        if self._choose.random() < 0.3:
            merged[0] = layers.BatchNormalization()(merged[0])
        if self._choose.random() < 0.2:
            merged.append(self._choose.choice(self._pool[1:] or merged))
        return [self._made_here(tensor) for tensor in merged]

    def _made_here(self, tensor: Tensor) -> Tensor:
        """An output that is an input as well would leave a nested model without a layer."""
        is_input = isinstance(tensor._keras_history.operation, layers.InputLayer)
        return layers.Dense(CHANNELS)(tensor) if is_input else tensor

    def _merge(self, tensors: list[Tensor]) -> Tensor:
        if len(tensors) == 1:
            return tensors[0]
        if self._depth == 0 and self._choose.random() < 0.5:
            return layers.Concatenate()(tensors)
        return _subtract(tensors)

    def _structure(self, tensors: list[Tensor]):
        if self._choose.random() < 0.3:
            names = self._choose.sample("zyxwvut", len(tensors))
            return dict(zip(names, tensors, strict=True))
        return tensors[0] if len(tensors) == 1 and self._choose.random() < 0.7 else tensors

    # Layers.

    def _linear(self) -> layers.Layer:
        use_bias = self._choose.random() < 0.6
        activation = self._choose.choice([None, None, None, "relu"])
        settings = {"use_bias": use_bias, "activation": activation}
        kind = self._choose.choice(["Dense"] * 6 + ["Conv", "Conv", "SeparableConv", "Depthwise"])
        if kind == "Dense":
            return layers.Dense(CHANNELS, **settings)
        suffix = f"{self._rank - 2}D"
        if kind == "Depthwise":
            return getattr(layers, f"DepthwiseConv{suffix}")(2, padding="same", **settings)
        return getattr(layers, f"{kind}{suffix}")(CHANNELS, 2, padding="same", **settings)

    def _norm(self) -> layers.Layer:
        return layers.BatchNormalization(
            axis=self._choose.choice([-1, -1, -1, self._rank - 1, 1]),
            scale=self._choose.random() < 0.8,
            center=self._choose.random() < 0.8,
            epsilon=self._choose.choice([1e-3, 1e-2]),
        )

    def _activation(self) -> layers.Layer:
        return self._choose.choice(
            [layers.ReLU, layers.LeakyReLU, lambda: layers.Activation("tanh")]
        )()

    # Steps.

    def _pair(self) -> None:
        linear = self._linear()
        between = linear(self._take())
        self._reusable.append(linear)
        self._pool.append(between)
        self._read.add(id(between))
        self._add(self._norm()(between))

    def _branches(self) -> None:
        """Branches from one tensor whose lengths hardly differ: one layer less, and they swap."""
        start, shared = self._take(), self._linear()
        ends = [self._branch(start, shared) for _ in range(self._choose.choice([2, 2, 3]))]
        self._add(_subtract(ends))

    def _branch(self, tensor: Tensor, shared: layers.Layer) -> Tensor:
        for _ in range(self._choose.randint(1, 2)):
            linear = shared if self._choose.random() < 0.35 else self._linear()
            behind = self._choose.choice([self._norm, self._norm, self._activation, None])
            tensor = linear(tensor)
            tensor = behind()(tensor) if behind is not None else tensor
        return tensor

    def _preactivation(self) -> None:
        self._add(self._linear()(self._activation()(self._norm()(self._take()))))

    def _batchnorm(self) -> None:
        norm = self._norm()
        self._reusable.append(norm)
        training = self._choose.choice([{}, {}, {"training": False}, {"training": True}])
        self._add(norm(self._take(), **training))

    def _plain(self) -> None:
        layer = self._choose.choice([self._linear, self._activation, lambda: layers.Dropout(0.5)])()
        self._reusable.append(layer)
        self._add(layer(self._take()))

    def _reuse(self) -> None:
        if self._reusable:
            self._add(self._choose.choice(self._reusable)(self._take()))

    def _join(self) -> None:
        first, second = self._take(), self._take()
        kind = self._choose.choice(["Subtract", "Concatenate", "Multiply", "Maximum", "Add"])
        if kind == "Multiply":
            second = layers.Activation("tanh")(second)
        joined = getattr(layers, kind)()([first, second])
        self._add(layers.Dense(CHANNELS)(joined) if kind == "Concatenate" else joined)

    def _gate(self) -> None:
        gate = Gate()
        first, second = self._take(), self._take()
        further = {key: self._take() for key in ("mask", "gate") if self._choose.random() < 0.5}
        if self._choose.random() < 0.5:
            self._add(gate(first, second, **further))
        else:
            self._add(gate(first, second=second, **further))

    def _operation(self) -> None:
        first, second = self._take(), self._take()
        self._add(self._choose.choice(_OPERATIONS)(first, second))

    def _attention(self) -> None:
        attention = layers.MultiHeadAttention(1, 2)
        key = {"key": self._take()} if self._choose.random() < 0.6 else {}
        self._add(attention(self._take(), self._take(), **key))

    def _recurrent(self) -> None:
        sequence, *states = layers.LSTM(CHANNELS, return_sequences=True, return_state=True)(
            self._take()
        )
        other = layers.LSTM(CHANNELS, return_sequences=True)
        self._choose.shuffle(states)
        self._add(sequence)
        self._add(other(self._take(), initial_state=states))

    def _masked(self) -> None:
        masked = layers.Masking(0.25)(self._take())
        if self._choose.random() < 0.5:
            masked = self._norm()(masked)
        self._add(layers.GRU(CHANNELS, return_sequences=True)(masked))

    def _time_distributed(self) -> None:
        inside = self._choose.choice(
            [lambda: layers.Dense(CHANNELS), layers.BatchNormalization, self._plain_sequential]
        )()
        wrapped = layers.TimeDistributed(inside)(self._take())
        self._add(layers.BatchNormalization()(wrapped) if self._choose.random() < 0.6 else wrapped)

    def _plain_sequential(self) -> keras.Sequential:
        inside = [layers.Dense(CHANNELS), layers.BatchNormalization(), layers.ReLU()]
        return keras.Sequential([keras.Input(self._shape[1:]), *inside])

    def _sequential(self) -> None:
        inside: list[layers.Layer] = []
        for _ in range(self._choose.randint(1, 3)):
            inside += [self._linear(), self._norm()]
        if self._choose.random() < 0.4:
            inside.insert(1, keras.Sequential([self._linear(), self._norm(), self._activation()]))
        if self._choose.random() < 0.5:
            inside.insert(0, keras.Input(self._shape))
        model = keras.Sequential(inside)
        self._reusable.append(model)
        self._add(model(self._take()))

    def _nested(self) -> None:
        model = _Maker(
            self._choose, legacy=self._legacy, rank=self._rank, depth=self._depth + 1
        ).model()
        for _ in range(self._choose.choice([1, 1, 2])):
            given = [self._take() for _ in model.inputs]
            made = model(keras.tree.pack_sequence_as(model._inputs_struct, given))
            for tensor in keras.tree.flatten(made):
                self._add(tensor)
        if len(model.inputs) == len(model.outputs) == 1:
            self._reusable.append(lambda tensor: keras.tree.flatten(_call_one(model, tensor))[0])


def _subtract(tensors: list[Tensor]) -> Tensor:
    merged = tensors[0]
    for tensor in tensors[1:]:
        merged = layers.Subtract()([merged, tensor])
    return merged


def _call_one(model: keras.Model, tensor: Tensor):
    return model(keras.tree.pack_sequence_as(model._inputs_struct, [tensor]))


_OPERATIONS: list[Callable[[Tensor, Tensor], Tensor]] = [
    lambda first, second: first - second,
    lambda first, second: first + second * 2.0,
    lambda first, _: 1.0 - first,
    lambda first, second: ops.where(first > 0.0, second, first),
    lambda first, second: ops.concatenate([first, second], axis=1)[:, 1 : LENGTH + 1],
    lambda first, _: ops.reshape(ops.reshape(first, (-1, LENGTH * CHANNELS)), _whole(first)),
    lambda first, second: ops.stack([second, first], axis=1)[:, 0] - ops.tanh(first),
]


def _whole(tensor: Tensor) -> tuple[int, ...]:
    return (-1, *tensor.shape[1:])

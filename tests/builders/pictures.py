"""Models to draw, and what a drawn page consists of, read back with Python's own parser."""

from support import keras  # isort: skip - it chooses the backend

import io
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from archives import entry, fill, functional, keras_file

from bnfold.jobs.inspect import Inspection, inspect_file
from bnfold.reports import html

L = keras.layers
CHANNELS = 32
_VOID = {"meta", "link"}

HOSTILE = (
    "</style><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "javascript:alert(1)",
    "--></title><svg onload=alert(1)>",
    "{{ 7 * 7 }}{% raw %}{# #}",
    "&lt;b&gt; &amp;amp;",
    "url(https://example.invalid/x) } * { display: none",
    "x" * 2000,
    "\x1b[31m\x00\x07\r\n\t\u202e\u2028\ufeff",
    "\U0001f600 \ud800 слой 層",
    "#m1-n1",
    "",
)
"""Names that mean something to HTML, CSS, JavaScript, Jinja, a terminal or a careless encoder."""


def residual(count: int) -> Any:
    """A model of so many BatchNormalization layers, with a branch around every second one."""
    first = tensor = keras.Input((CHANNELS,), name="features")
    for number in range(count):
        before = tensor
        tensor = L.Dense(CHANNELS, name=f"dense_{number}")(tensor)
        tensor = L.BatchNormalization(name=f"norm_{number}")(tensor)
        tensor = L.ReLU(name=f"relu_{number}")(tensor)
        if number % 2:
            tensor = L.Add(name=f"add_{number}")([before, tensor])
    return trained(keras.Model(first, L.Dense(2, name="scores")(tensor)))


def residual_file(path: Path, count: int) -> Path:
    """The same as a file written by hand: Keras takes seconds to build so many layers."""
    width = {"shape": [None, CHANNELS], "dtype": "float32"}

    def reading(class_name: str, name: str, *sources: str, **settings: Any) -> Any:
        tensors = [
            {
                "class_name": "__keras_tensor__",
                "config": {**width, "keras_history": [source, 0, 0]},
            }
            for source in sources
        ]
        node = {"args": tensors if len(tensors) == 1 else [tensors], "kwargs": {}}
        return {**entry(class_name, name, **settings), "inbound_nodes": [node]}

    made, last, stream = [entry("InputLayer", "x", batch_shape=[None, CHANNELS])], "x", io.BytesIO()
    generator = np.random.default_rng(0)
    with h5py.File(stream, "w") as file:
        for number in range(count):
            before, end = last, f"_{number}" if number else ""
            dense, norm, last = f"dense_{number}", f"norm_{number}", f"relu_{number}"
            made += [
                reading("Dense", dense, before, units=CHANNELS, activation="linear", use_bias=True),
                reading("BatchNormalization", norm, dense, axis=-1, epsilon=0.001),
                reading("ReLU", last, norm),
            ]
            kernel = generator.normal(0, 0.2, (CHANNELS, CHANNELS)).astype("f4")
            fill(file.create_group(f"layers/dense{end}/vars"), [kernel, np.zeros(CHANNELS, "f4")])
            vectors = [vector.astype("f4") for vector in statistics(generator)]
            fill(file.create_group(f"layers/batch_normalization{end}/vars"), vectors)
            if number % 2:
                made.append(reading("Add", f"add_{number}", before, last))
                last = f"add_{number}"
    return keras_file(path, config=functional(made, last), h5=stream.getvalue())


def five() -> Any:
    """A small model with a fold in each direction, one that stays and one through other layers."""
    first = tensor = keras.Input((12, 12, 3), name="image")
    for layer in (
        L.Conv2D(CHANNELS, 3, name="conv_1"),
        L.BatchNormalization(name="after_conv"),
        L.ReLU(name="relu"),
        L.BatchNormalization(name="stays"),
        L.Conv2D(CHANNELS, 3, padding="same", name="conv_2"),
        L.MaxPooling2D(name="pool"),
        L.BatchNormalization(name="after_pool"),
        L.GlobalAveragePooling2D(name="average"),
        L.Dense(CHANNELS, activation="relu", name="dense"),
        L.BatchNormalization(name="before_scores"),
        L.Dense(4, name="scores"),
        L.BatchNormalization(name="last"),
    ):
        tensor = layer(tensor)
    model = trained(keras.Model(first, tensor, name="five"))
    model.get_layer("after_pool").gamma.assign(np.full(CHANNELS, 0.9))  # a maximum keeps order
    return model


def trained(model: Any, seed: int = 0) -> Any:
    """Statistics as training leaves them; returns the model."""
    generator = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, L.BatchNormalization):
            layer.set_weights(statistics(generator, layer.moving_mean.shape[0]))
    return model


def statistics(generator: np.random.Generator, count: int = CHANNELS) -> list[Any]:
    """gamma, beta, mean and variance of a layer, as training leaves them."""
    variance = 10 ** generator.normal(-0.5, 0.5) * generator.lognormal(0, 0.6, count)
    gamma, beta = generator.normal(1, 0.2, count), generator.normal(0.3, 0.4, count)
    return [gamma, beta, generator.normal(0, 1, count) * np.sqrt(variance), variance]


def spoiled(model: Any) -> Any:
    """The first six layers broken, each in its own way; returns the model."""
    norms = [layer for layer in model.layers if isinstance(layer, L.BatchNormalization)]
    _edit(norms[0].gamma, {5: np.nan})
    _edit(norms[1].moving_variance, {3: -0.5, 7: -1e-5})
    norms[2].moving_mean.assign(np.zeros(CHANNELS))
    norms[2].moving_variance.assign(np.ones(CHANNELS))
    _edit(norms[3].moving_variance, {2: 1e-30, 4: 0.0})
    _edit(norms[4].gamma, {0: 0.0, 1: 1e-7})
    _edit(norms[5].moving_mean, {9: 1e6})
    return model


def _edit(variable: Any, values: dict[int, float]) -> None:
    changed = variable.numpy()
    for channel, value in values.items():
        changed[channel] = value
    variable.assign(changed)


def saved(model: Any, path: Path) -> Inspection:
    """The inspection of a model in a file."""
    model.save(path)
    return inspect_file(path)


class Element:
    """A tag, its attributes and what is inside: elements and texts in order."""

    def __init__(self, tag: str, attributes: dict[str, str | None]) -> None:
        self.tag = tag
        self.attributes = attributes
        self.inside: list[Element | str] = []

    def walk(self) -> Iterator["Element"]:
        """It and every element in it."""
        yield self
        for one in self.inside:
            if isinstance(one, Element):
                yield from one.walk()

    def find(self, **attributes: str) -> "Element":
        """The one element in it that has these attributes."""
        wanted = {name.rstrip("_"): value for name, value in attributes.items()}
        (found,) = (one for one in self.walk() if wanted.items() <= one.attributes.items())
        return found

    def tags(self, tag: str) -> list["Element"]:
        """The elements of this tag in it."""
        return [one for one in self.walk() if one.tag == tag]

    @property
    def text(self) -> str:
        """All text in it, with blanks as a browser shows them."""
        return " ".join("".join(self._texts()).split())

    def _texts(self) -> Iterator[str]:
        for one in self.inside:
            if isinstance(one, str):
                yield one
            elif one.tag != "title":
                yield from one._texts()


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element("", {})
        self._open = [self.root]

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        element = Element(tag, dict(attrs))
        assert len(element.attributes) == len(attrs), f"<{tag}> has an attribute twice"
        self._open[-1].inside.append(element)
        if tag not in _VOID:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self._open[-1].inside.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        element = self._open.pop()
        assert element.tag == tag, f"</{tag}> ends <{element.tag}>"

    def handle_data(self, data: str) -> None:
        self._open[-1].inside.append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")

    def close(self) -> None:
        super().close()
        assert self._open == [self.root], "something is left open"


def parsed(text: str) -> Element:
    """The elements of a page; fails where tags do not close in order."""
    reader = _Reader()
    reader.feed(text)
    reader.close()
    return reader.root


def page(*models: Inspection) -> Element:
    """The elements of the page on some models."""
    return parsed(html.inspections(models))

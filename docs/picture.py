"""Makes picture.png: the first layers of the page that `inspect` writes of a small broken model.

PYTHONPATH=tests/builders python docs/picture.py

It needs Playwright and the system's Chromium.
"""

import pictures  # isort: skip - it chooses the backend

import shutil
import struct
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from playwright.sync_api import sync_playwright

from bnfold.reports import html

PICTURE = Path(__file__).parent / "picture.png"
WIDTH = 1104


def model() -> Any:
    """Five layers, the first of which has one channel that is dead and one far from the others."""
    made = pictures.five()
    norm = made.get_layer("after_conv")
    gamma, beta, mean, variance = norm.get_weights()
    gamma[4], beta[4], mean[9] = 0, -0.5, 9
    norm.set_weights([gamma, beta, mean, variance])
    return made


def main() -> None:
    """Draw the page, cut the rows of the first three BatchNormalization layers out, and save."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page = Path(folder, "five.html")
        page.write_text(html.inspections([pictures.saved(model(), page.with_suffix(".keras"))]))
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        tab = browser.new_page(viewport={"width": WIDTH, "height": 1000})
        tab.goto(page.as_uri())
        top = tab.locator("ol.rows").bounding_box()["y"]
        last = tab.locator("#m1-n3").bounding_box()
        clip = {"x": 0, "y": top, "width": WIDTH, "height": last["y"] + last["height"] - top}
        shot = tab.screenshot(full_page=True, clip=clip)
        browser.close()
    PICTURE.write_bytes(with_palette(tf.io.decode_png(shot, channels=3).numpy()))


def with_palette(pixels: np.ndarray) -> bytes:
    """A PNG of the 256 most frequent colours, a third as large; the others become the nearest."""
    colours, which, counts = np.unique(
        pixels.reshape(-1, 3).astype(int), axis=0, return_inverse=True, return_counts=True
    )
    palette = colours[np.argsort(-counts)[:256]]
    nearest = np.square(colours[:, None] - palette).sum(-1).argmin(-1)
    index = nearest[which]
    height, width, _ = pixels.shape
    rows = np.pad(index.reshape(height, width).astype(np.uint8), ((0, 0), (1, 0)))  # no filter
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0),
        b"PLTE": palette.astype(np.uint8).tobytes(),
        b"IDAT": zlib.compress(rows.tobytes(), 9),
        b"IEND": b"",
    }
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks.items()
    )


if __name__ == "__main__":
    main()

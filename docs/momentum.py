"""Draws explanation/momentum.svg: how moving averages come from their initial value to the data's.

python docs/momentum.py
"""

from pathlib import Path

import numpy as np

PICTURE = Path(__file__).parent / "explanation" / "momentum.svg"
STEPS = 400
VARIANCE = 0.1
"""That of the data; a moving variance begins at 1."""
LINES = {0.9: "#1b7f5c", 0.99: "#2b5fb8", 0.999: "#b8442b"}
LEFT, TOP, WIDTH, HEIGHT = 46, 16, 520, 220


def averages(momentum: float) -> np.ndarray:
    """The moving variance after 0, 1, 2, ... steps, as the layer updates it."""
    values = [1.0]
    for _ in range(STEPS):
        values.append(momentum * values[-1] + (1 - momentum) * VARIANCE)
    return np.array(values)


def drawing() -> str:
    """The picture as SVG: on a ground of its own, so that it fits light and dark pages."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 84} '
        f'{TOP + HEIGHT + 44}" font-family="sans-serif" font-size="12" fill="#333">',
        "<title>The moving variance at three momenta, step by step</title>",
        '<rect width="100%" height="100%" rx="6" fill="#fff"/>',
    ]
    for value in (0, 0.25, 0.5, 0.75, 1):
        parts.append(f'<path d="M{LEFT} {_y(value)}h{WIDTH}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{_y(value) + 4}" text-anchor="end">{value:g}</text>')
    parts += [
        f'<text x="{_x(step)}" y="{TOP + HEIGHT + 18}" text-anchor="middle">{step}</text>'
        for step in range(0, STEPS + 1, 100)
    ]
    middle = LEFT + WIDTH / 2
    parts.append(f'<text x="{middle:g}" y="{TOP + HEIGHT + 36}" text-anchor="middle">steps</text>')
    parts.append(
        f'<path d="M{LEFT} {_y(VARIANCE)}h{WIDTH}" stroke="#333" stroke-dasharray="4 4"/>'
        f'<text x="{LEFT + WIDTH + 6}" y="{_y(VARIANCE) + 16}">the data\'s</text>'
    )
    for momentum, colour in LINES.items():
        values = averages(momentum)
        points = " ".join(f"{_x(step)},{_y(values[step])}" for step in range(0, STEPS + 1, 4))
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
        )
        at = (LEFT + WIDTH + 6, _y(values[-1])) if momentum > 0.9 else (_x(26), _y(0.2))
        parts.append(f'<text x="{at[0]}" y="{at[1]}" fill="{colour}">{momentum:g}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _x(step: float) -> float:
    return round(LEFT + WIDTH * step / STEPS, 1)


def _y(value: float) -> float:
    return round(TOP + HEIGHT * (1 - value), 1)


if __name__ == "__main__":
    PICTURE.write_text(drawing())

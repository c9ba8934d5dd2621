"""Charts, drawn by Matplotlib without a display. Needs no torch."""
import io
import math
from pathlib import Path

import numpy as np
from PIL import Image

from util.files import MARK, printable, write_file
from util.pictures import RAMP

# What a file of each ending says about the program that made it. A date would change every file.
SOURCES = {'.png': dict(Software=MARK), '.svg': dict(Creator=MARK, Date=None)}


def need_matplotlib():
    """ModuleNotFoundError with a sentence where the package, which only charts need, is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ModuleNotFoundError('charts need Matplotlib: pip install matplotlib') from None


def check_chart(path: str | Path):
    """Refuses a chart that cannot be written, before long work.

    ValueError for another ending than .png and .svg; ModuleNotFoundError without Matplotlib.
    """
    if Path(path).suffix.lower() not in SOURCES:
        raise ValueError(f'the chart {printable(path)} ends neither in .png nor in .svg; choose '
                         'another name')
    need_matplotlib()


def make_figure(width: float, height: float):
    """An empty figure of Matplotlib; width and height in inches of 100 pixels."""
    need_matplotlib()
    # Without pyplot, no window is opened and no setting of the user's changes.
    from matplotlib.figure import Figure
    return Figure((width, height), dpi=100, layout='constrained')


def encode(figure, ending: str) -> bytes:
    """A figure as the content of a .png or .svg file. The same figure gives the same bytes."""
    from matplotlib import rc_context
    file = io.BytesIO()
    # The ids in an SVG file are random otherwise.
    with rc_context({'svg.hashsalt': MARK}):
        figure.savefig(file, format=ending[1:], metadata=SOURCES[ending])
    return file.getvalue()


def write_chart(path: str | Path, figure):
    """Writes a figure to a file that the user named, see `check_chart`."""
    write_file(path, encode(figure, Path(path).suffix.lower()))


def plain(text: str) -> str:
    """Text of the user's, in which Matplotlib sees no formulas."""
    return printable(text).replace('$', r'\$')


def draw_curves(axes, title: str, curves: dict, smooth: bool = False) -> list:
    """Draws curves into axes of a figure; returns their lines, for a legend.

    curves: {name: (xs, ys)}; points of nan are left out. smooth: a curve is a running mean, over a
    twentieth of its points, and the points themselves are pale.
    """
    lines = []
    for k, (name, (xs, ys)) in enumerate(curves.items()):
        known = [(x, y) for x, y in zip(xs, ys) if not math.isnan(y)]
        xs, ys = np.array(known, float).reshape(-1, 2).T
        marker = 'o' if len(xs) < 12 else ''
        if smooth:
            axes.plot(xs, ys, f'C{k}', alpha=0.25)
            ys = running_mean(ys, len(ys) // 20)
        lines += axes.plot(xs, ys, f'C{k}', label=plain(name), marker=marker, markersize=4)
    axes.set_title(plain(title), loc='left')
    axes.ticklabel_format(useOffset=False)
    axes.grid(alpha=0.3)
    return lines


def running_mean(values: np.ndarray, count: int) -> np.ndarray:
    """The mean of each value and of those before it, `count` in all where there are as many."""
    if count < 2:
        return values
    sums = np.cumsum(values)
    sums[count:] -= sums[:-count].copy()
    return sums / np.minimum(np.arange(1, len(values) + 1), count)


def matrix_picture(title: str, values: np.ndarray, names: list[str]) -> Image.Image:
    """Values (n, n), colored from 0 to 1, with the names of rows and columns, as a Pillow image.

    Few values are written as numbers, too.
    """
    few = len(names) <= 24
    cell = 0.32 if few else 0.16                  # inches
    side = cell * len(names)
    figure = make_figure(side + 1.7, side + 1.7)
    from matplotlib.colors import ListedColormap
    axes = figure.add_subplot()
    axes.imshow(values, ListedColormap(RAMP / 255), vmin=0, vmax=1)
    axes.set_title(plain(title), loc='left', fontsize=10)
    axes.set_xticks(range(len(names)), map(plain, names), rotation=90, fontsize=8)
    axes.set_yticks(range(len(names)), map(plain, names), fontsize=8)
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    if few:
        for (row, column), value in np.ndenumerate(values):
            color = 'black' if value > 0.6 else 'white'
            text = f'{round(value, 2) + 0.:.2f}'  # + 0. turns -0.00 into 0.00
            axes.text(column, row, text, color=color, ha='center', va='center', fontsize=7)
    file = io.BytesIO()
    # The title may be longer than the matrix.
    figure.savefig(file, bbox_inches='tight')
    return Image.open(file).convert('RGB')

"""The maps of one photo as a page: Fig. 4 of the paper (`infer.py --maps`).

The first row is the photo, the heat map (Eq. 1), the maps of the best two people (Eq. 2), the map
of their largest part (Eq. 3) and the parsing. Below it are the maps of the other people, of all
other categories (those that were found come first), of each point of `--at`, and the correlations
of the kernels, A_ins of the people and A_cate of the categories (Eq. 6).
"""
import re

import numpy as np
import torch
from PIL import Image, ImageDraw

from correlation import correlate
from data import Geometry, input_geometry
from util.charts import matrix_picture
from util.config import Config
from util.pictures import heat_picture, join, overlay, titled_row
from util.results import Parsing

# Pictures in a row of the page.
COLUMNS = 6

# Pixels of the network's input along each side of a cell of F_ins and F_cate.
STRIDE = 4


def read_points(texts: list[str], size: tuple[int, int], scale: float = 1.0) -> list[tuple]:
    """Points 'X,Y' of --at, in pixels of a photo of that size (width, height) -> list of
    (text, x, y), in pixels of the photo times scale. ValueError for anything else, and for points
    outside the photo."""
    points = []
    for text in texts:
        if not re.fullmatch(r'\d{1,9},\d{1,9}', text):
            raise ValueError(f'--at {text[:40]!r} is no point; give a column and a row in pixels, '
                             'such as --at 240,300')
        x, y = map(int, text.split(','))
        if x >= size[0] or y >= size[1]:
            raise ValueError(f'--at {text} is outside the photo; its columns are 0 to '
                             f'{size[0] - 1}, its rows 0 to {size[1] - 1}')
        points.append((text, x * scale, y * scale))
    return points


@torch.no_grad()
def draw_maps(model, out: dict, photo: Image.Image, found: Parsing, points=(),
              height: int = 400) -> Image.Image:
    """The page of a photo, whose maps are `height` pixels high.

    out: the network's outputs for the photo; found: its Parsing; points: (text, x, y) in pixels of
    the photo, see `read_points`.
    """
    config = model.config
    geometry = input_geometry(photo, config)
    panel = PanelMaker(photo, geometry)

    # The heat map, and the maps of people and of categories.
    k_ins = people_kernels(out, found, geometry, config.grid)
    q_ins = correlate(k_ins, out['f_ins'][0], config.space)                     # (N, h, w)  Eq. (2)
    q_cate = correlate(out['k_cate'], out['f_cate'][0], config.space)           # (K, h, w)  Eq. (3)
    heatmap = panel('heat map', out['heatmap'][0, 0].sigmoid())                 # Eq. (1)
    people = [panel(f'person {n}', values) for n, values in enumerate(q_ins, 1)]
    parts = [panel(name, values) for name, values in zip(model.class_names[1:], q_cate)]

    # The largest part of the best two people; the other parts by their area in all people.
    largest = int(part_areas(found.parsing[:2], model).argmax())
    order = np.argsort(-part_areas(found.parsing, model), kind='stable')
    other_parts = [parts[c] for c in order if c != largest]

    # As many rows of pictures as each group needs.
    parsing = ('parsing', overlay(photo, found.parsing, unknown=False))
    first = [('photo', photo), heatmap, *people[:2], parts[largest], parsing]
    pointed = []
    for point in points:
        pointed += point_maps(panel, out, point, config)
    width = round(photo.width * height / photo.height)
    width = min(max(1, width), 10 * height)
    rows = []
    for group in (first, people[2:], other_parts, pointed):
        for k in range(0, len(group), COLUMNS):
            rows.append(titled_row(group[k:k + COLUMNS], (width, height)))

    # The matrices A of Eq. (6).
    matrices = []
    if len(k_ins):
        names = [f'person {n}' for n in range(1, len(k_ins) + 1)]
        title = 'A_ins: cosines of the kernels of the people'
        matrices.append(matrix_picture(title, gram(k_ins), names))
    title = 'A_cate: cosines of the kernels of the categories'
    matrices.append(matrix_picture(title, gram(out['k_cate']), model.class_names[1:]))
    return join([*rows, join(matrices, across=True, gap=40)])


class PanelMaker:
    """Makes the pictures of a photo's maps: panel(name, values (h, w), mark) -> (name, picture).

    A picture is cut to the photo, without the padding. mark: a point (x, y) of the photo, drawn as
    a cross.
    """

    def __init__(self, photo: Image.Image, geometry: Geometry):
        self.photo = photo
        self.padded = geometry.padded
        self.size = geometry.size

    def __call__(self, name: str, values: torch.Tensor, mark=None) -> tuple[str, Image.Image]:
        picture = heat_picture(values.clamp(0, 1).cpu().numpy(), self.padded[::-1])
        picture = picture.crop((0, 0, self.size[1], self.size[0]))
        if mark:
            self.draw_cross(picture, *self.place(*mark))
        return name, picture

    def draw_cross(self, picture: Image.Image, x: float, y: float) -> None:
        """A white cross with a black edge, which shows on every color."""
        arm = max(self.size) / 40
        draw = ImageDraw.Draw(picture)
        for color, width in (('black', 5), ('white', 2)):
            draw.line([x - arm, y, x + arm, y], color, width)
            draw.line([x, y - arm, x, y + arm], color, width)

    def place(self, x: float, y: float) -> tuple[float, float]:
        """A pixel of the photo -> its middle in pixels of the network's input."""
        height, width = self.size
        return (x + 0.5) / self.photo.width * width, (y + 0.5) / self.photo.height * height


def people_kernels(out: dict, found: Parsing, geometry: Geometry, grid: int) -> torch.Tensor:
    """Kernels (N, C) of the people found, from the cells of their centers."""
    # Pixels of the photo -> shares of the padded input -> cells (column, row) of the S x S grid.
    scale = np.array(geometry.size[::-1]) / geometry.photo[::-1] / geometry.padded[::-1]
    cells = (grid * found.centers * scale).astype(int)                          # (N, 2)
    column, row = cells.T
    index = row * grid + column
    return out['k_ins'][0].flatten(1).T[index]


def part_areas(parsing: np.ndarray, model) -> np.ndarray:
    """Label maps (N, H, W) -> the pixels of each part 1..K, (K,)."""
    return np.bincount(parsing.ravel(), minlength=256)[1:len(model.class_names)]


def point_maps(panel: PanelMaker, out: dict, point: tuple, config: Config) -> list[tuple]:
    """Two panels: the correlations of the features with the one under the point (text, x, y), as in
    Eqs. (2) and (3)."""
    text, *mark = point
    x, y = panel.place(*mark)
    panels = []
    for title, name in (('people', 'f_ins'), ('categories', 'f_cate')):
        f = out[name][0]                                                        # (C, h, w)
        row = min(int(y / STRIDE), f.shape[1] - 1)
        column = min(int(x / STRIDE), f.shape[2] - 1)
        kernel = f[:, row, column]
        values = correlate(kernel[None], f, config.space)[0]
        panels.append(panel(f'at {text}, among {title}', values, mark))
    return panels


def gram(kernels: torch.Tensor) -> np.ndarray:
    """Kernels (n, C) -> their products (n, n): the matrices A of Eq. (6)."""
    return (kernels @ kernels.T).cpu().numpy()

"""The maps of one photo as a page: Fig. 4 of the paper (`infer.py --maps`).

The first row is the photo, the heat map (Eq. 1), the maps of the best two people (Eq. 2), the map of their largest part
(Eq. 3) and the parsing. Below it are the maps of the other people, of all other categories (those that were found come
first), of each point of `--at`, and the correlations of the kernels, A_ins of the people and A_cate of the categories
(Eq. 6).
"""
import re

import numpy as np
import torch
from PIL import ImageDraw

from correlation import correlate
from data import input_geometry
from util.pictures import heat_picture, join, matrix_picture, overlay, titled_row

COLUMNS = 6


def read_points(texts, size, scale=1.0):
    """Points 'X,Y' of --at, in pixels of a photo of that size (width, height) -> list of (text, x, y), in pixels of the
    photo times scale. ValueError for anything else, also outside the photo."""
    points = []
    for text in texts:
        if not re.fullmatch(r'\d{1,9},\d{1,9}', text):
            raise ValueError(f'--at {text[:40]!r} is no point; give a column and a row in pixels, such as --at 240,300')
        x, y = map(int, text.split(','))
        if x >= size[0] or y >= size[1]:
            raise ValueError(f'--at {text} is outside the photo; its columns are 0 to {size[0] - 1}, its rows 0 to '
                             f'{size[1] - 1}')
        points.append((text, x * scale, y * scale))
    return points


@torch.no_grad()
def draw_maps(model, out, photo, found, points=(), height=400):
    """The page of a photo, whose maps are `height` pixels high. out: the network's outputs; found: the photo's Parsing;
    points: (text, x, y) in pixels of the photo."""
    config, panel = model.config, PanelMaker(photo, model.config)
    k_ins = people_kernels(out, photo, found, config)
    q_ins = correlate(k_ins, out['f_ins'][0], config.space)                  # (N, h, w)  Eq. (2)
    q_cate = correlate(out['k_cate'], out['f_cate'][0], config.space)        # (K, h, w)  Eq. (3)
    people = [panel(f'person {n}', values) for n, values in enumerate(q_ins, 1)]
    areas, best = (part_areas(p, model) for p in (found.parsing, found.parsing[:2]))
    largest = int(best.argmax())
    parts = {c: panel(model.class_names[c + 1], q_cate[c]) for c in (largest, *np.argsort(-areas, kind='stable'))}
    first = [('photo', photo), panel('heat map', out['heatmap'][0, 0].sigmoid()), *people[:2], parts.pop(largest),
             ('parsing', overlay(photo, found.parsing))]
    pointed = [p for point in points for p in point_maps(panel, out, point, config)]
    width = min(max(1, round(photo.width * height / photo.height)), 10 * height)
    rows = [row[k:k + COLUMNS] for row in (first, people[2:], [*parts.values()], pointed)
            for k in range(0, len(row), COLUMNS)]
    matrices = [matrix_picture('A_cate: cosines of the kernels of the categories', gram(out['k_cate']),
                               model.class_names[1:])]
    if len(k_ins):
        names = [f'person {n + 1}' for n in range(len(k_ins))]
        matrices.insert(0, matrix_picture('A_ins: cosines of the kernels of the people', gram(k_ins), names))
    return join([*(titled_row(row, (width, height)) for row in rows), join(matrices, across=True, gap=40)])


class PanelMaker:
    """panel(name, values (h, w), mark) -> (name, picture) of a map, cut to the photo; mark: a point (x, y) of it."""

    def __init__(self, photo, config):
        geometry = input_geometry(photo, config)
        self.photo = photo
        self.padded = geometry.padded
        self.size = geometry.size

    def __call__(self, name, values, mark=None):
        picture = heat_picture(values.clamp(0, 1).cpu().numpy(), self.padded[::-1])
        picture = picture.crop((0, 0, self.size[1], self.size[0]))
        if mark:
            (x, y), arm = self.place(*mark), max(self.size) / 40
            for color, width in ('black', 5), ('white', 2):
                ImageDraw.Draw(picture).line([x - arm, y, x + arm, y], color, width)
                ImageDraw.Draw(picture).line([x, y - arm, x, y + arm], color, width)
        return name, picture

    def place(self, x, y):
        """A pixel of the photo -> its middle in pixels of the network's input."""
        return (x + 0.5) / self.photo.width * self.size[1], (y + 0.5) / self.photo.height * self.size[0]


def people_kernels(out, photo, found, config):
    """Kernels (N, C) of the people found, from the cells of their centers."""
    geometry = input_geometry(photo, config)
    scale = np.array(geometry.size[::-1]) / photo.size / geometry.padded[::-1]
    grid = config.grid * found.centers * scale
    return out['k_ins'][0].flatten(1).T[grid.astype(int) @ (1, config.grid)]              # row * S + column


def part_areas(parsing, model):
    return np.bincount(parsing.ravel(), minlength=256)[1:len(model.class_names)]


def point_maps(panel, out, point, config):
    """Two panels: the correlations of the features with the one under the point, as Eqs. (2) and (3)."""
    text, *mark = point
    x, y = panel.place(*mark)
    for title, name in ('people', 'f_ins'), ('categories', 'f_cate'):
        f = out[name][0]                                                                   # (C, h, w)
        kernel = f[:, min(int(y / 4), f.shape[1] - 1), min(int(x / 4), f.shape[2] - 1)]
        yield panel(f'at {text}, among {title}', correlate(kernel[None], f, config.space)[0], mark)


def gram(kernels):
    """Kernels (n, C) -> their products (n, n): the matrices A of Eq. (6)."""
    return (kernels @ kernels.T).cpu().numpy()

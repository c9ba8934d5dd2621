"""Masks as polygons, and polygons as masks. Needs no torch.

A polygon's coordinates are those of COCO: pixel (x, y) is the square from (x, y) to (x + 1, y + 1).
A mask holds the pixels whose middle lies in the polygon, so `fill_polygon` undoes `trace_polygons`
exactly.
"""
from collections.abc import Iterator

import numpy as np

# Pixels. An outline runs through the middles of pixel edges: no middle of a pixel is nearer to it
# than the root of 1/8, which is 0.354. An outline moved by less holds the same pixels.
TOLERANCE = 0.35
AROUND = np.ones((3, 3), bool)                    # a background pixel touches its eight neighbors
STEPS = (1, 0), (0, 1), (-1, 0), (0, -1)          # right, down, left, up, in (x, y)


# ---- polygon -> mask ---------------------------------------------------------------------------


def fill_polygon(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The pixels whose middle lies in a polygon: bool (H, W).

    points (n, 2): x, y in pixels; parts outside of the photo are cut off. Where the outline crosses
    itself, what lies inside twice is outside. size: (width, height). Raises a ValueError for fewer
    than three points and for coordinates that are no numbers.
    """
    points = np.asarray(points, float)
    if len(points) < 3 or not np.isfinite(points).all():
        raise ValueError(f'a polygon has three points or more, and each is two numbers; this one '
                         f'has {len(points)}')
    width, height = size
    ends = np.roll(points, -1, axis=0)
    low = np.minimum(points[:, 1], ends[:, 1])
    high = np.maximum(points[:, 1], ends[:, 1])

    # The rows whose middle an edge crosses, one after the other.
    first = np.ceil(low - 0.5).clip(0, height).astype(int)
    last = np.ceil(high - 0.5).clip(0, height).astype(int)
    numbers = last - first
    edge = np.repeat(np.arange(len(points)), numbers)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(numbers) - numbers, numbers) + first[edge]

    # Each crossing turns inside and outside from there to the right.
    x, y = points[edge].T
    slope = (ends[edge, 0] - x) / (ends[edge, 1] - y)
    column = np.ceil(x + (row + 0.5 - y) * slope - 0.5).clip(0, width).astype(int)
    turns = np.bincount(row * (width + 1) + column, minlength=height * (width + 1))
    turns = turns.reshape(height, width + 1)[:, :width]
    return turns.cumsum(1) % 2 == 1


# ---- mask -> polygons --------------------------------------------------------------------------


def trace_polygons(mask: np.ndarray) -> list[np.ndarray]:
    """The outlines of a mask (H, W) bool, the largest first: arrays (n, 2) of x, y in half pixels.

    COCO's polygons cannot have holes. A region with holes is cut through them into regions without,
    so its outlines are several, side by side.
    """
    regions = sorted(regions_without_holes(mask), key=lambda found: -np.count_nonzero(found[0]))
    return [simplify(trace(region)) + [x, y] for region, y, x in regions]


def regions_without_holes(mask: np.ndarray) -> Iterator[tuple[np.ndarray, int, int]]:
    """(region, y, x) for connected regions without holes that make up the mask.

    region (h, w) bool; (y, x) is its place in the mask.
    """
    from scipy import ndimage                     # here: tools/onnx_parse.py works without scipy
    left = [(mask, 0, 0)]
    while left:
        piece, y, x = left.pop()
        numbers, _ = ndimage.label(piece)         # pixels are connected by their sides
        for number, place in enumerate(ndimage.find_objects(numbers), 1):
            region = numbers[place] == number
            top = y + place[0].start
            start = x + place[1].start
            hole = first_hole(region)
            if hole is None:
                yield region, top, start
                continue
            # A cut along a row of the hole opens it to both sides.
            cut = (hole.start + hole.stop) // 2
            left.append((region[:cut], top, start))
            left.append((region[cut:], top + cut, start))


def first_hole(region: np.ndarray) -> slice | None:
    """The rows of a hole of a connected region (h, w) bool; None if it has none."""
    from scipy import ndimage
    holes = ndimage.binary_fill_holes(region, AROUND) & ~region
    if not holes.any():
        return None
    numbers, _ = ndimage.label(holes, AROUND)
    return ndimage.find_objects(numbers, 1)[0][0]


def trace(region: np.ndarray) -> np.ndarray:
    """The outline of a connected region (h, w) bool without holes: the middles of its pixels' outer
    edges in their order, (n, 2) x, y."""
    inside = np.pad(region, 1)
    # outer[d][y, x]: an outer edge leads from the corner (x, y) into direction d, region on its
    # right.
    here = inside[1:, 1:]
    above = inside[:-1, 1:]
    before = inside[1:, :-1]
    across = inside[:-1, :-1]
    outer = [edges.tolist() for edges in
             (here & ~above, before & ~here, across & ~before, above & ~across)]

    # From the first pixel of the first row, clockwise. At a corner where two pixels touch, the
    # outline turns right and stays with its pixel.
    x = int(np.flatnonzero(region[0])[0])
    y = 0
    direction = 0
    start = x, y, direction
    points = []
    while not points or (x, y, direction) != start:
        dx, dy = STEPS[direction]
        points.append((x + dx / 2, y + dy / 2))
        x += dx
        y += dy
        turns = (direction + 1) % 4, direction, (direction + 3) % 4
        direction = next(d for d in turns if outer[d][y][x])
    return np.array(points)


def simplify(ring: np.ndarray, tolerance: float = TOLERANCE) -> np.ndarray:
    """A closed outline (n, 2) with fewer points, none of the others farther than `tolerance` from
    it (Ramer 1972; Douglas and Peucker 1973)."""
    opposite = int(np.square(ring - ring[0]).sum(1).argmax())
    closed = np.concatenate([ring, ring[:1]])
    kept = {0, opposite}
    left = [(0, opposite), (opposite, len(ring))]
    while left:
        first, last = left.pop()
        if last - first < 2:
            continue
        distances = distances_to(closed[first + 1:last], closed[first], closed[last])
        farthest = int(distances.argmax())
        if distances[farthest] > tolerance:
            middle = first + 1 + farthest
            kept.add(middle)
            left += [(first, middle), (middle, last)]
    return ring[sorted(kept)]


def distances_to(points: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Distances of points (n, 2) to the line from start to end."""
    along = end - start
    length = along @ along
    if not length:
        return np.hypot(*(points - start).T)
    share = ((points - start) @ along / length).clip(0, 1)
    return np.hypot(*(points - start - share[:, None] * along).T)

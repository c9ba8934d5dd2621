"""Pictures: palettes, overlays, legends, cut-outs. Needs no torch."""
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from util.files import UNKNOWN
from util.masks import box_of

# Dark blue, violet, orange, yellow, at 0, 96, 176 and 255 of 255.
RAMP = np.stack([np.interp(np.arange(256), (0, 96, 176, 255), channel) for channel in (
    (10, 110, 235, 255), (10, 25, 110, 250), (50, 120, 40, 200))], 1).astype(np.uint8)
NUM_COLORS = 140                                  # of a palette; then they repeat
OPACITY = 0.55                                    # of the colors over the photo


# ---- colors ------------------------------------------------------------------------------------


@lru_cache
def palette(num_classes: int) -> np.ndarray:
    """Colors (256, 3) uint8 of the labels; the same array serves all callers.

    0 is black, each of 1..num_classes is as far as possible from those before it, the rest is gray.
    """
    # Candidates: a grid of colors without gray and dark ones, which would not show.
    grid = np.stack(np.meshgrid(*[range(0, 256, 51)] * 3), -1).reshape(-1, 3)
    bright = grid @ [0.3, 0.59, 0.11] > 80
    colorful = np.ptp(grid, 1) > 100
    grid = grid[colorful & bright]

    # Distances as seen: CIELAB, from black, gray and white on.
    points = np.concatenate([[[v] * 3 for v in (0, 128, 255)], grid])
    linear = (points / 255) ** 2.2
    xyz = linear @ [[0.434, 0.213, 0.018], [0.376, 0.715, 0.109], [0.190, 0.072, 0.873]]
    lab = np.cbrt(xyz) @ [[0, 500, 0], [116, -500, 200], [0, 0, -200]]
    count = min(num_classes, 254)
    order = [0, 1, 2]
    for _ in range(min(count, len(grid))):
        nearest = np.linalg.norm(lab[:, None] - lab[order], axis=2).min(1)
        order.append(nearest.argmax())

    colors = np.full((256, 3), 128, np.uint8)
    colors[0] = 0
    colors[UNKNOWN] = 225
    colors[1:count + 1] = np.resize(points[order[3:]], (count, 3))  # repeats after 140 colors
    colors.flags.writeable = False
    return colors


def palette_image(labels: np.ndarray, colors: np.ndarray) -> Image.Image:
    """Label map (H, W) uint8 -> palette image: its palette has the colors (256, 3). One of more
    labels, uint16, has none."""
    image = Image.fromarray(np.ascontiguousarray(labels))
    if labels.dtype != np.uint8:
        return image
    image.putpalette(colors.tobytes())
    return image


def heat_picture(values: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Values (h, w) in 0..1 -> picture of size (width, height) in the colors of RAMP."""
    image = Image.fromarray((values * 255).astype(np.uint8)).resize(size, Image.BILINEAR)
    return Image.fromarray(RAMP[np.asarray(image)])


# ---- people on photos --------------------------------------------------------------------------


def overlay(image, parsing: np.ndarray, class_names: list[str] | None = None,
            ignore: np.ndarray | None = None, colors: np.ndarray | None = None,
            unknown: bool = True) -> Image.Image:
    """A photo with its parts in color and a white line around each person.

    image: (H, W, 3) uint8 or Pillow RGB; parsing (N, H, W). ignore (H, W) bool: is striped.
    class_names: adds a legend of the present classes below. colors (256, 3): default `palette`.
    unknown: whether pixels of unknown parts (255) are gray; else they are only outlined.
    """
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image)
    if colors is None:
        colors = palette(len(class_names) - 1 if class_names else 58)
    crops = []                                    # labels in the person's box, and its corner
    counts = np.zeros(256, int)                   # pixels of each label
    for person in np.asarray(parsing, np.uint8):
        if person.any():
            x, y, w, h = box_of(person)
            labels = person[y:y + h, x:x + w]
            counts += palette_image(labels, colors).histogram()
            crops.append((labels, (x, y)))
    if not unknown:
        counts[UNKNOWN] = 0

    # The photo, with its legend: one copy of a large photo is enough.
    if class_names:
        canvas = add_legend(image, colors, class_names, np.flatnonzero(counts))
    else:
        canvas = image.copy()
    width = max(1, round(min(image.size) / 500))  # of the line
    for labels, corner in crops:
        picture = palette_image(labels, colors).convert('RGB')
        paint_person(canvas, labels, picture, corner, width, unknown)
    if ignore is not None:
        rows = np.arange(ignore.shape[0])[:, None]
        columns = np.arange(ignore.shape[1])
        stripes = (rows + columns) // 4 % 2 > 0
        dark = canvas.crop((0, 0, *image.size)).point(lambda v: v // 2)
        canvas.paste(dark, mask=Image.fromarray(ignore & stripes))
    return canvas


def paint_person(canvas: Image.Image, labels: np.ndarray, picture: Image.Image,
                 corner: tuple[int, int], width: int, unknown: bool = True):
    """Paints the picture of the labels (h, w) onto the canvas, at the corner (x, y).

    Its colors show where the labels are not 0, with a white line of that width inside the outline.
    Pillow's operations on colors take a tenth of the time of numpy's on large photos, and a mask of
    bits a third of the time of a mask of bytes. unknown: see `overlay`.
    """
    some = labels > 0
    core = erode(some, width)
    below = canvas.crop((*corner, corner[0] + picture.width, corner[1] + picture.height))
    canvas.paste((255, 255, 255), corner, Image.fromarray(some & ~core))
    if not unknown:
        # Inside the line, the photo shows where the part is unknown.
        core &= labels != UNKNOWN
    canvas.paste(Image.blend(below, picture, OPACITY), corner, Image.fromarray(core))


def erode(mask: np.ndarray, width: int) -> np.ndarray:
    """The pixels of a mask bool (h, w) whose neighborhood of that width is all the mask's."""
    mask = np.pad(mask, width)
    size = 2 * width + 1
    # Each value stands for the square below and to the right of it, of side 1, then 2, 4 .., size.
    reach = 1
    while reach < size:
        step = min(reach, size - reach)
        mask = mask[:-step] & mask[step:]
        mask = mask[:, :-step] & mask[:, step:]
        reach += step
    return mask


def overlay_people(image, parsing: np.ndarray, ids: list[int]) -> Image.Image:
    """A photo with each person in the color of the id and a white line around. image, parsing: see
    `overlay`; ids: from 1 on."""
    colors = palette(NUM_COLORS)
    painted = [(labels > 0) * np.uint8((i - 1) % NUM_COLORS + 1)
               for labels, i in zip(parsing, ids)]
    return overlay(image, np.array(painted, np.uint8), colors=colors)


def add_ids(image: Image.Image, parsing: np.ndarray, ids: list[int]):
    """Writes the id of each person of parsing (N, H, W) above the head, in place."""
    font = ImageFont.load_default(max(11, max(image.size) // 40))
    draw = ImageDraw.Draw(image)
    for labels, i in zip(parsing, ids):
        rows, columns = np.nonzero(labels)
        if len(rows):
            # The upper tenth of the pixels, without the first hundredth, which may be stray ones.
            first = len(rows) // 100
            x = np.median(columns[first:first + len(rows) // 10 + 1])
            # Below the top edge of the frame, where the person begins there.
            place = x, max(int(rows[first]), font.size + 4)
            draw.text(place, str(i), 'white', font, 'ms', stroke_width=2, stroke_fill='black')


def add_legend(image: Image.Image, colors: np.ndarray, class_names: list[str],
               present: np.ndarray) -> Image.Image:
    """Pillow image with the colors and names of the present class ids below it."""
    size = max(11, image.width // 60)
    line = int(1.6 * size)                        # its height
    places = []                                   # entry and its corner (x, y)
    x = 0
    y = image.height
    for c in (int(c) for c in present if c):
        name = class_names[c] if c < len(class_names) else 'part unknown'
        entry = legend_entry(name, tuple(colors[c].tolist()), size, line)
        if x and x + entry.width > image.width:   # a new line
            x = 0
            y += line
        places.append((entry, (x, y + line // 4)))
        x += entry.width
    sheet = Image.new('RGB', (image.width, y + 2 * line if places else y), 'white')
    sheet.paste(image)
    for entry, corner in places:
        sheet.paste(entry, corner)
    return sheet


@lru_cache(maxsize=64)
def legend_entry(name: str, color: tuple[int, int, int], size: int, line: int) -> Image.Image:
    """A class of a legend: its color, and its name in letters of that size, in a picture of that
    height. Photos of a folder share their entries."""
    font = ImageFont.load_default(size)
    entry = Image.new('RGB', (int(font.getlength(name)) + 2 * line, line), 'white')
    draw = ImageDraw.Draw(entry)
    x = line // 2
    y = line // 2 - line // 4
    draw.rectangle([x, y, x + size, y + size], color, 'black')
    draw.text((x + line, y + size / 2), name, 'black', font, 'lm')
    return entry


def cutout(photo: Image.Image, mask: np.ndarray, box: list[int]) -> Image.Image:
    """RGBA picture of the box [x, y, width, height], transparent outside the mask (H, W)."""
    x, y, w, h = box
    image = photo.crop((x, y, x + w, y + h)).convert('RGBA')
    image.putalpha(Image.fromarray(mask[y:y + h, x:x + w].astype(np.uint8) * 255))
    return image


def compare_labels(image: np.ndarray, parsings: list[np.ndarray],
                   class_names: list[str]) -> Image.Image:
    """Photo (H, W, 3) uint8 and parsings (N, H, W) of it -> photo, overlays, one legend."""
    panels = [Image.fromarray(image), *(overlay(image, parsing) for parsing in parsings)]
    sheet = Image.new('RGB', (sum(p.width for p in panels), panels[0].height))
    for k, panel in enumerate(panels):
        sheet.paste(panel, (k * panel.width, 0))
    counts = sum(np.bincount(np.asarray(p, np.uint8).ravel(), minlength=256) for p in parsings)
    colors = palette(len(class_names) - 1)
    return add_legend(sheet, colors, class_names, np.flatnonzero(counts))


# ---- sheets ------------------------------------------------------------------------------------


def titled_row(panels: list[tuple[str, Image.Image]], size: tuple[int, int]) -> Image.Image:
    """(title, image) -> a row of pictures of size (width, height), titles above."""
    width, height = size
    sheet = Image.new('RGB', (len(panels) * (width + 6) - 6, height + 24), 'white')
    draw = ImageDraw.Draw(sheet)
    for k, (title, image) in enumerate(panels):
        left = k * (width + 6)
        sheet.paste(image.resize(size, Image.BILINEAR), (left, 24))
        draw.text((left, 4), title, 'black', ImageFont.load_default(14))
    return sheet


def join(pictures: list[Image.Image], across: bool = False, gap: int = 6) -> Image.Image:
    """Pillow images one below the other, or side by side, on white."""
    widths = [picture.width for picture in pictures]
    heights = [picture.height for picture in pictures]
    gaps = gap * (len(pictures) - 1)
    if across:
        size = sum(widths) + gaps, max(heights)
    else:
        size = max(widths), sum(heights) + gaps
    sheet = Image.new('RGB', size, 'white')
    at = 0
    for picture in pictures:
        sheet.paste(picture, (at, 0) if across else (0, at))
        at += (picture.width if across else picture.height) + gap
    return sheet

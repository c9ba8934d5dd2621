"""Pictures: palettes, overlays, legends, cut-outs, charts. Needs no torch."""
import math
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

from util.files import UNKNOWN
from util.masks import box_of

RAMP = np.stack([np.interp(np.arange(256), (0, 96, 176, 255), c) for c in      # dark blue, violet, orange, yellow
                 ((10, 110, 235, 255), (10, 25, 110, 250), (50, 120, 40, 200))], 1).astype(np.uint8)


@lru_cache
def palette(num_classes):
    """Colors (256, 3) uint8: 0 is black, each of 1..num_classes is as far as possible from those before it, the rest is
    gray."""
    grid = np.stack(np.meshgrid(*[range(0, 256, 51)] * 3), -1).reshape(-1, 3)
    grid = grid[(np.ptp(grid, 1) > 100) & (grid @ [0.3, 0.59, 0.11] > 80)]     # gray and dark would not show
    points = np.concatenate([[[v] * 3 for v in (0, 128, 255)], grid])
    xyz = (points / 255) ** 2.2 @ [[0.434, 0.213, 0.018], [0.376, 0.715, 0.109], [0.190, 0.072, 0.873]]
    lab = np.cbrt(xyz) @ [[0, 500, 0], [116, -500, 200], [0, 0, -200]]        # CIELAB: distances as seen
    order, count = [0, 1, 2], min(num_classes, 254)
    for _ in range(min(count, len(grid))):
        order.append(np.linalg.norm(lab[:, None] - lab[order], axis=2).min(1).argmax())
    colors = np.full((256, 3), 128, np.uint8)
    colors[0], colors[UNKNOWN] = 0, 225
    colors[1:count + 1] = np.resize(points[order[3:]], (count, 3))            # repeats after 140 colors
    colors.flags.writeable = False                # the same array serves all callers
    return colors


def overlay(image, parsing, class_names=None, ignore=None, colors=None, unknown=True):
    """Photo (H, W, 3) uint8 or Pillow RGB, parsing (N, H, W) -> Pillow RGB: parts in color, a white line
    around each person, stripes over ignore, and, given class_names, a legend of the present classes below. colors
    (256, 3): default `palette`. unknown: whether pixels of unknown parts (255) are gray; else they are only
    outlined."""
    canvas, width = Image.fromarray(np.array(image)), max(1, round(min(np.shape(image)[:2]) / 500))
    colors = palette(len(class_names) - 1 if class_names else 58) if colors is None else colors
    counts = np.zeros(256, int)
    for person in np.asarray(parsing, np.uint8):
        if person.any():
            x, y, w, h = box_of(person)
            labels = palette_image(person[y:y + h, x:x + w], colors)
            counts += labels.histogram()
            paint_person(canvas, labels, (x, y), width, unknown)
    counts[UNKNOWN] *= unknown
    if ignore is not None:
        stripes = np.add.outer(*map(np.arange, ignore.shape)) // 4 % 2 > 0
        canvas.paste(canvas.point(lambda v: v // 2), mask=Image.fromarray(ignore & stripes))
    return add_legend(canvas, colors, class_names, np.flatnonzero(counts)) if class_names else canvas


def paint_person(canvas, labels, corner, width, unknown=True):
    """Paints a palette image of labels onto the canvas at the corner (x, y): its colors where it is not 0, and a white
    line of that width inside its outline. Pillow's operations take a tenth of the time of numpy's on large photos, and
    a mask of bits a third of the time of a mask of bytes."""
    some = np.asarray(labels) > 0
    below = canvas.crop((*corner, corner[0] + labels.width, corner[1] + labels.height))
    mask = ImageOps.expand(Image.fromarray(some * np.uint8(255)), width).filter(ImageFilter.BoxBlur(width))
    core = mask.crop((width, width, width + labels.width, width + labels.height)).point([0] * 255 + [255], '1')
    canvas.paste((255, 255, 255), corner, Image.fromarray(some))
    if not unknown:
        clear = Image.fromarray((np.asarray(labels) == UNKNOWN) & (np.asarray(core) > 0))
        canvas.paste(below, corner, clear)
        core = Image.fromarray((np.asarray(labels) != UNKNOWN) & (np.asarray(core) > 0))
    canvas.paste(Image.blend(below, labels.convert('RGB'), 0.55), corner, core)


def add_legend(image, colors, class_names, present):
    """Pillow image with the colors and names of the present class ids below it."""
    font = ImageFont.load_default(max(11, image.width // 60))
    line, places, x, y = int(1.6 * font.size), [], 0, image.height
    for c in (int(c) for c in present if c):
        name = class_names[c] if c < len(class_names) else 'part unknown'
        length = int(font.getlength(name)) + 2 * line
        x, y = (0, y + line) if x and x + length > image.width else (x, y)
        places.append((x + line // 2, y + line // 2, tuple(colors[c].tolist()), name))
        x += length
    sheet = Image.new('RGB', (image.width, y + 2 * line if places else y), 'white')
    sheet.paste(image)
    draw = ImageDraw.Draw(sheet)
    for x, y, color, name in places:
        draw.rectangle([x, y, x + font.size, y + font.size], color, 'black')
        draw.text((x + line, y + font.size / 2), name, 'black', font, 'lm')
    return sheet


def palette_image(labels, colors):
    """Label map (H, W) uint8 -> palette image: its values are the ids, its palette the colors (256, 3)."""
    image = Image.fromarray(np.ascontiguousarray(labels))
    image.putpalette(colors.tobytes())
    return image


def cutout(photo, mask, box):
    """RGBA picture of the box, transparent outside the mask."""
    x, y, w, h = box
    image = photo.crop((x, y, x + w, y + h)).convert('RGBA')
    image.putalpha(Image.fromarray(mask[y:y + h, x:x + w].astype(np.uint8) * 255))
    return image


def draw_panel(canvas, left, title, x_name, y_name, curves):
    """A chart of 720 x 720 pixels with both axes 0..1. curves: [(name, color, xs, ys)]."""
    draw, font, top, size = ImageDraw.Draw(canvas), ImageFont.load_default(26), 110, 720
    gray, black = (120, 120, 120), (30, 30, 30)

    def at(x, y):
        return left + x * size, top + (1 - y) * size
    for tick in np.linspace(0, 1, 6):
        draw.line([at(tick, 0), at(tick, 1)], (228, 228, 228), 2)
        draw.line([at(0, tick), at(1, tick)], (228, 228, 228), 2)
        draw.text((at(tick, 0)[0], top + size + 12), f'{tick:.1f}', gray, font, 'ma')
        draw.text((left - 14, at(0, tick)[1]), f'{tick:.1f}', gray, font, 'rm')
    draw.line([at(0, 1), at(0, 0), at(1, 0)], gray, 3)
    draw.text((left, top - 80), title, black, ImageFont.load_default(30))
    draw.text((left + size / 2, top + size + 52), x_name, black, font, 'ma')
    draw.text((left, top - 10), y_name, black, font, 'lb')
    for i, (name, color, xs, ys) in enumerate(curves):
        points = [at(x, y) for x, y in zip(xs, ys) if not math.isnan(y)]
        draw.line(points or [at(0, 0)] * 2, color, 6, joint='curve')
        for x, y in points if len(points) < 12 else ():
            draw.ellipse([x - 8, y - 8, x + 8, y + 8], color)
        y = top + size + 104 + 36 * i                        # below the axis: nothing covers the curves
        draw.line([left, y, left + 48, y], color, 6)
        draw.text((left + 64, y), name, black, font, 'lm')


def compare_labels(image, parsings, class_names):
    """Photo (H, W, 3) uint8 and several parsings (N, H, W) of it -> photo and overlays in a row, one legend below."""
    panels = [Image.fromarray(image), *(overlay(image, parsing) for parsing in parsings)]
    sheet = Image.new('RGB', (sum(p.width for p in panels), panels[0].height))
    for k, panel in enumerate(panels):
        sheet.paste(panel, (k * panel.width, 0))
    present = np.flatnonzero(sum(np.bincount(np.asarray(p, np.uint8).ravel(), minlength=256) for p in parsings))
    return add_legend(sheet, palette(len(class_names) - 1), class_names, present)


def heat_picture(values, size):
    """Values (h, w) in 0..1 -> picture of size (width, height): dark blue, violet, orange, yellow."""
    image = Image.fromarray((values * 255).astype(np.uint8)).resize(size, Image.BILINEAR)
    return Image.fromarray(RAMP[np.asarray(image)])


def titled_row(panels, size):
    """[(title, Pillow image)] -> one picture of them in a row, each of size (width, height), titles above."""
    width, height = size
    sheet = Image.new('RGB', (len(panels) * (width + 6) - 6, height + 24), 'white')
    for k, (title, image) in enumerate(panels):
        sheet.paste(image.resize(size, Image.BILINEAR), (k * (width + 6), 24))
        ImageDraw.Draw(sheet).text((k * (width + 6), 4), title, 'black', ImageFont.load_default(14))
    return sheet


def join(pictures, across=False, gap=6):
    """Pillow images one below the other, or side by side, on white."""
    widths, heights = [p.width for p in pictures], [p.height for p in pictures]
    between = gap * (len(pictures) - 1)
    size = (sum(widths) + between, max(heights)) if across else (max(widths), sum(heights) + between)
    sheet, at = Image.new('RGB', size, 'white'), 0
    for picture in pictures:
        sheet.paste(picture, (at, 0) if across else (0, at))
        at += (picture.width if across else picture.height) + gap
    return sheet


def matrix_picture(title, values, names):
    """Values (n, n), colored from 0 to 1, with the names of rows and columns; numbers too if there are few."""
    cell, font = 32 if len(names) <= 24 else 16, ImageFont.load_default(12)
    margin, side = 12 + int(max(map(font.getlength, names))), len(names) * cell
    sheet = Image.new('RGB', (max(margin + side, int(font.getlength(title)) + 60), margin + side + 32), 'white')
    draw = ImageDraw.Draw(sheet)
    draw.text((0, 4), title, 'black', ImageFont.load_default(14))
    colors = Image.fromarray(RAMP[(np.clip(values, 0, 1) * 255).astype(np.uint8)])
    sheet.paste(colors.resize((side, side), Image.NEAREST), (margin, margin + 32))
    for k, name in enumerate(names):
        draw.text((margin - 6, margin + 32 + (k + 0.5) * cell), name, 'black', font, 'rm')
        label = Image.new('RGB', (margin, cell), 'white')
        ImageDraw.Draw(label).text((6, cell / 2), name, 'black', font, 'lm')
        sheet.paste(label.rotate(90, expand=True), (margin + k * cell, 32))
    for (row, column), value in np.ndenumerate(values) if cell > 16 else ():
        place = margin + (column + 0.5) * cell, margin + 32 + (row + 0.5) * cell
        color = 'black' if value > 0.6 else 'white'
        draw.text(place, f'{round(value, 2) + 0.:.2f}', color, ImageFont.load_default(11), 'mm')
    return sheet

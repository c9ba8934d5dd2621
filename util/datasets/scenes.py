"""Scenes of several people, composed from photos of single people.

`compose` reads no files. Its `source`, such as `CCP`, has for photo k

    annotation(k)    three Pillow images: labels (0 = background), body parts, ignored bystanders
    labels(annotation, parts, flip) -> label map (h, w) uint8
    photo(k, draft)  Pillow RGB, possibly decoded smaller
    background(rng)  another photo as the stage and the ids of its people (Pillow RGB and L; 0 =
                     nobody, 255 = crowd), or None
    chances          None, or the probability of each photo's person to be drawn
    things           the share of scenes with things (`cut_thing`)

All randomness comes from `rng`, so a scene is a function of its seed: the order of the draws must
not change.
"""
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageOps

ASPECTS = 4 / 3, 2 / 3, 5 / 4, 3 / 4              # width / height of scene i: ASPECTS[i % 4]
NUM_PEOPLE = 0.10, 0.26, 0.27, 0.19, 0.11, 0.07   # share of scenes with 1, 2, .. 6 people
CAST = 13                                         # photos for a scene, some of no use
VISIBLE = 0.15                                    # share of a person that must be in view

Size = tuple[int, int]                                        # (width, height) in pixels


class Layer(NamedTuple):
    """A person or a thing in a scene."""
    label: np.ndarray                             # (h, w) uint8
    alpha: Image.Image
    image: Image.Image | None                     # None if only labels are wanted
    x: int                                        # of the top left corner
    y: int
    feet: float                                   # row of the ground under it
    pasted: bool                                  # from another photo: it needs a shadow
    thing: bool = False


class Stage(NamedTuple):
    """The place where people stand."""
    image: Image.Image | None                     # Pillow RGB; None if only labels are wanted
    ignore: np.ndarray                            # (H, W) bool
    layers: list[Layer]                           # people who are there already
    horizon: float                                # its row
    camera: float                                 # its height in heights of a person
    tall: float                                   # pixels of a person in the first row
    seams: list[int]                              # columns where the mirrored margins begin


def compose(source: Any, count: int, more: int, size: Size, rng: np.random.Generator,
            paint: bool = True):
    """A scene of photos 0..count - 1, and of `more` after them whose people are only pasted.

    Returns image (H, W, 3) uint8 (only if paint), a list of label maps (H, W) uint8, one per
    person, and ignore (H, W) bool.
    """
    # Looks have a generator of their own: places are the same with and without painting.
    look = rng.spawn(1)[0]
    cast = draw_cast(count, source.chances, rng)
    if more:                                      # the stage is one of the first photos
        others = draw_cast(count + more, source.chances, rng)
        cast[1:] = np.setdiff1d(others, cast[:1], True)[:CAST - 1]

    background = source.background(rng)
    if background:
        photo, ids = background
        stage = open_background(photo, ids, size, rng, paint)
    else:
        stage = open_photo(source, cast[0], size, rng, look, paint)

    layers = stage.layers + add_people(source, stage, cast[1:], size, rng, look)
    if source.things and rng.random() < source.things:
        number = rng.integers(1, 4)
        layers += [cut_thing(source, k, size, rng, paint) for k in cast[-number:]]

    layers.sort(key=lambda layer: layer.feet)     # higher in the image is farther away
    image = paint and np.asarray(paint_layers(stage.image, layers))
    people, ignore = flatten_layers(layers, stage.ignore)
    return image, people, ignore


def draw_cast(count: int, chances: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    """CAST different photos of 0..count - 1."""
    if chances is not None:
        chances = chances[:count] / chances[:count].sum()
    return rng.choice(count, CAST, replace=False, p=chances)


# ---- the stage -------------------------------------------------------------------------------


def open_background(photo: Image.Image, ids: Image.Image, size: Size, rng: np.random.Generator,
                    paint: bool) -> Stage:
    """A photo as the stage; its people, if any, have no parts.

    The position of its ground is a guess.
    """
    image = ImageOps.fit(photo, size, Image.BILINEAR) if paint else None
    horizon, tall = rng.uniform((0.3, 0.6), (0.5, 1.0)) * size[1]
    ids = np.asarray(ImageOps.fit(ids, size, Image.NEAREST))
    layers = []
    for person in np.flatnonzero(np.bincount(ids.ravel(), minlength=256)[1:255]) + 1:
        label = (ids == person) * np.uint8(255)
        feet = np.flatnonzero(label.any(1))[-1] + 1
        layers.append(Layer(label, Image.fromarray(label), image, 0, 0, feet, False))
    return Stage(image, ids == 255, layers, horizon, rng.uniform(0.5, 0.62), tall, [])


def open_photo(source: Any, k: int, size: Size, rng: np.random.Generator, look: np.random.Generator,
               paint: bool) -> Stage:
    """Photo k as the stage, with its person or without.

    The ground is the one under that person's feet.
    """
    keep = rng.random() < 0.6
    camera = rng.uniform(0.5, 0.62)
    annotation = source.annotation(k)
    full = np.array(annotation[0].size)
    box = annotation[0].getbbox()                 # of the person: left, top, right, bottom
    horizon = box[3] - camera * (box[3] - box[1])
    zoom, left, top = choose_view(full, box, horizon, size, keep, rng)

    # The strip that the scene shows: the photo's full width, as high as the scene.
    strip = round(full[0] * zoom), size[1]
    y0 = top / zoom / full[1]
    y1 = min(1, (top + size[1]) / zoom / full[1])

    def warp(image, resample):
        return image.resize(strip, resample, (0, y0 * image.height, image.width, y1 * image.height))

    ccp_layer, parts_layer, ignore_layer = annotation
    ccp = np.asarray(warp(ccp_layer, Image.NEAREST))
    parts = np.asarray(warp(parts_layer, Image.NEAREST))
    ignore = np.asarray(warp(ignore_layer, Image.NEAREST))
    image = warp(source.photo(k, full * zoom), Image.BILINEAR) if paint else None

    # Scenes wider than the photo continue with its margins, mirrored.
    mask = Image.fromarray((ccp > 0) * np.uint8(255))
    x0, _, x1, _ = mask.getbbox()
    margins = (x0, strip[0] - x1) if keep else (strip[0], strip[0])
    columns = mirror_margins(left, size[0], strip[0], *margins)

    layers = []
    tall = (box[3] - box[1]) * zoom
    horizon = horizon * zoom - top
    if keep:
        alpha = mask.filter(ImageFilter.BoxBlur(1))
        label = source.labels(ccp, parts)
        layers = [Layer(label, alpha, image, -left, 0, box[3] * zoom - top, False)]
    else:                                         # pasted people stand farther back, heads in view
        tall *= rng.uniform(0.7, 1) if size[1] > size[0] else rng.uniform(0.45, 0.85)
        tall = min(tall, (horizon + 0.05 * size[1]) / (1 - camera))
        if paint:
            image = remove_person(image, mask, look)
    if paint:
        image = Image.fromarray(np.asarray(image).take(columns, 1))
    seams = [x for x in (-left, strip[0] - left) if 0 < x < size[0]]
    return Stage(image, ignore[:, columns] > 0, layers, horizon, camera, tall, seams)


def choose_view(full: np.ndarray, box: tuple, horizon: float, size: Size, keep: bool,
                rng: np.random.Generator) -> tuple[float, int, int]:
    """What a scene shows of a photo of size full: its zoom, and left, top in the zoomed photo.

    High scenes show nearly all of it. Wide scenes crop its height and may be wider than the photo.
    """
    if size[1] > size[0]:
        shares = 0.85, 1
    elif keep:
        shares = 0.58, 0.75
    else:
        shares = 0.5, 0.75
    view = full[1] * rng.uniform(*shares)
    zoom = size[1] / view
    top = box[1] - rng.uniform(0.03, 0.2) * view if keep else horizon - rng.uniform(0.4, 0.6) * view
    left = (box[0] + box[2]) / 2 * zoom - rng.uniform(0.25, 0.75) * size[0]
    left = np.clip(left, *sorted((0, full[0] * zoom - size[0])))
    top = np.clip(top, 0, full[1] - view) * zoom
    return zoom, round(left), round(top)


def bounce(distance: np.ndarray, margin: int) -> np.ndarray:
    """0, 1, 2, .. -> 0, 1, .., margin - 1, margin - 1, .., 1, 0, 0, 1, .."""
    margin = max(margin, 8)
    distance = distance % (2 * margin)
    return np.minimum(distance, 2 * margin - 1 - distance)


def mirror_margins(first: int, count: int, width: int, left: int, right: int) -> np.ndarray:
    """Columns first, first + 1, .. of a photo that continues with its mirrored margins."""
    columns = np.arange(first, first + count)
    columns = np.where(columns < 0, bounce(-1 - columns, left), columns)
    beyond = width - 1 - bounce(columns - width, right)
    return np.where(columns >= width, beyond, columns).clip(0, width - 1)


def remove_person(image: Image.Image, mask: Image.Image, look: np.random.Generator) -> Image.Image:
    """Fills the person with the mirrored sides of the image; blurs half of the images."""
    x0, _, x1, _ = mask.getbbox()
    width, height = image.size
    pixels = np.asarray(image)
    columns = np.arange(x1 - x0)
    left = pixels.take((x0 - 1 - bounce(columns, x0)).clip(0), 1)
    right = pixels.take((x1 + bounce(columns[::-1], width - x1)).clip(0, width - 1), 1)
    # From the left fill to the right one, over the middle half.
    ramp = (255 * (2 * columns / (x1 - x0) - 0.5)).clip(0, 255).astype(np.uint8)
    ramp = Image.fromarray(np.tile(ramp, (height, 1)))
    fill = Image.composite(Image.fromarray(right), Image.fromarray(left), ramp)
    soft = mask.filter(ImageFilter.BoxBlur(height / 60))
    soft = soft.point([min(255, 8 * v) for v in range(256)])
    soft = soft.filter(ImageFilter.BoxBlur(height / 120))
    image.paste(fill, (x0, 0), soft.crop((x0, 0, x1, height)))
    return image.filter(ImageFilter.BoxBlur(max(0, look.uniform(-1, 1)) * height / 100))


# ---- people and things -----------------------------------------------------------------------


def add_people(source: Any, stage: Stage, cast: np.ndarray, size: Size, rng: np.random.Generator,
               look: np.random.Generator) -> list[Layer]:
    """Pasted layers: how many people, how far away, and where: away from others, or over a seam."""
    count = rng.choice(6, p=NUM_PEOPLE) + 1 - len(stage.layers)
    layers = []
    # Columns of the middles of people who are there already.
    taken = [layer.x + np.mean(layer.alpha.getbbox()[::2]) for layer in stage.layers]
    if rng.random() < 0.5:                        # all about as near as the first row
        nearest = 1.08
        farthest = 0.92
    else:
        nearest = 1.1
        farthest = 0.5 if stage.layers else 0.7
    for k in cast:
        if len(layers) >= count:
            break
        tall = np.clip(stage.tall * rng.uniform(farthest, nearest), 0.25 * size[1], 1.5 * size[1])
        feet = stage.horizon + stage.camera * tall            # all stand on one ground
        person = take_person(source, k, tall * rng.uniform(0.95, 1.05), stage.image, rng, look)
        spots = [*stage.seams, *rng.uniform(0, size[0], rng.integers(1, 5))]
        if person:
            label, alpha, image = person
            spot = max(spots, key=lambda x: min((abs(x - t) for t in taken), default=0))
            taken.append(spot)
            x = round(spot - alpha.width / 2)
            y = round(feet) - alpha.getbbox()[3]
            layers.append(Layer(label, alpha, image, x, y, feet, True))
    return layers


def take_person(source: Any, k: int, tall: float, scene: Image.Image | None,
                rng: np.random.Generator, look: np.random.Generator) -> tuple | None:
    """The person of photo k, tall pixels high: label, alpha, image.

    None if the photo's frame cuts the person, or so few pixels are left that all are edge.
    """
    ccp, parts, _ = source.annotation(k)
    stretch = rng.uniform(0.85, 1.15)
    angle = np.clip(rng.normal(0, 3), -15, 15)
    flip = rng.random() < 0.5
    x0, y0, x1, y1 = ccp.getbbox()
    width, height = ccp.size
    if min(x0, y0) < 2 or x1 > width - 2 or y1 > height - 2:
        return None

    zoom = tall / (y1 - y0)
    warp = affine((x0 - 3, y0 - 3, x1 + 3, y1 + 3), width, zoom * stretch, zoom, angle, flip)
    ccp = np.asarray(warp(ccp, Image.NEAREST))
    parts = np.asarray(warp(parts, Image.NEAREST))
    label = source.labels(ccp, parts, flip)
    alpha = Image.fromarray((ccp > 0) * np.uint8(255)).filter(ImageFilter.BoxBlur(1))
    alpha = alpha.point([max(0, 2 * v - 255) for v in range(256)])  # within the edge: no halos
    if not alpha.getbbox():
        return None
    if not scene:
        return label, alpha, None
    photo = source.photo(k, (0.8 * width * zoom, 0.8 * height * zoom))
    return label, alpha, adapt(warp(photo, Image.BILINEAR), photo, scene, look)


def cut_thing(source: Any, k: int, size: Size, rng: np.random.Generator, paint: bool) -> Layer:
    """A thing: a blob from the middle of photo k's person, mostly clothes, enlarged and turned.

    It is nobody.
    """
    ccp, _, _ = source.annotation(k)
    x0, y0, x1, y1 = ccp.getbbox()
    x = (x0 + x1) / 2
    y = y0 + (y1 - y0) * rng.uniform(0.25, 0.7)
    half = (y1 - y0) * rng.uniform(0.04, 0.12)
    zoom = size[1] * rng.uniform(0.1, 0.5) / (2 * half)
    narrow = rng.uniform(0.5, 1)
    angle = rng.uniform(-45, 45)
    warp = affine((x - half, y - half, x + half, y + half), ccp.width, zoom * narrow, zoom, angle,
                  False)

    # A rounded polygon of 12 corners, at random distances from the middle.
    alpha = Image.new('L', warp(ccp, Image.NEAREST).size)
    turns = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    circle = np.column_stack([np.cos(turns), np.sin(turns)])
    corners = (circle * rng.uniform(0.5, 1, (12, 1)) + 1) / 2 * alpha.size
    ImageDraw.Draw(alpha).polygon(corners.ravel().tolist(), 255)
    alpha = alpha.filter(ImageFilter.BoxBlur(max(alpha.size) / 12))
    alpha = alpha.point([255 * (v > 127) for v in range(256)])

    left, top = (rng.random(2) * size - np.divide(alpha.size, 2)).astype(int).tolist()
    feet = size[1] * rng.uniform(0, 1.2)          # behind people or in front of them
    image = warp(source.photo(k), Image.BILINEAR) if paint else None
    return Layer(np.zeros(alpha.size[::-1], np.uint8), alpha, image, left, top, feet, False,
                 thing=True)


def affine(box: tuple, width: int, zoom_x: float, zoom_y: float, angle: float,
           flip: bool) -> Callable:
    """warp(image, resample): crops the box from a photo of that width, scales, turns, flips it.

    The image may be a smaller copy of the photo.
    """
    cos = np.cos(np.radians(angle))
    sin = np.sin(np.radians(angle))
    w = (box[2] - box[0]) * zoom_x
    h = (box[3] - box[1]) * zoom_y
    size = max(8, round(cos * w + abs(sin) * h)), max(8, round(abs(sin) * w + cos * h))
    # Pillow wants the way back: from pixels of the result to pixels of the photo.
    matrix = np.array([[cos, sin], [-sin, cos]]) / [[-zoom_x if flip else zoom_x], [zoom_y]]
    shift = np.add(box[:2], box[2:]) / 2 - matrix @ size / 2

    def warp(image, resample):
        rows = np.column_stack([matrix, shift]) * (image.width / width)
        return image.transform(size, Image.AFFINE, rows.ravel().tolist(), resample)
    return warp


def adapt(image: Image.Image, photo: Image.Image, scene: Image.Image,
          look: np.random.Generator) -> Image.Image:
    """Moves a person's colors half of the way to those of the scene; blurs half of the people."""
    def mean_color(picture):
        return np.asarray(picture.resize((16, 16), Image.NEAREST)).mean((0, 1)) + 20

    ratio = np.clip(np.sqrt(mean_color(scene) / mean_color(photo)), 0.75, 1.3)
    r, g, b = ratio * look.uniform(0.95, 1.05)
    image = image.convert('RGB', (r, 0, 0, 0, 0, g, 0, 0, 0, 0, b, 0))
    return image.filter(ImageFilter.BoxBlur(max(0, look.uniform(-0.7, 0.7)) * scene.height / 480))


# ---- layers to one picture -------------------------------------------------------------------


def paint_layers(image: Image.Image, layers: list[Layer]) -> Image.Image:
    """Paints far to near; pasted people get a soft shadow where the feet touch the ground."""
    for layer in layers:
        if layer.pasted:
            width, tall = layer.alpha.size
            foot = layer.alpha.crop((0, tall - tall // 10, width, tall))
            foot = foot.resize((width, tall // 20 + 1))
            foot = ImageOps.expand(foot, tall // 25 + 2).filter(ImageFilter.BoxBlur(tall / 50))
            place = layer.x - (foot.width - width) // 2, round(layer.feet) - foot.height * 2 // 3
            image.paste((15, 15, 20), place, foot.point([v * 3 // 5 for v in range(256)]))
        image.paste(layer.image, (layer.x, layer.y), layer.alpha)
    return image


def flatten_layers(layers: list[Layer], ignore: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """Layers, far to near -> label maps (H, W) of the people's visible pixels, and ignore (H, W).

    People with less than VISIBLE of their pixels in view are ignored. Things only cover others.
    """
    owner = Image.new('L', ignore.shape[::-1])    # number of the nearest layer, from 1 on
    labels = Image.new('L', ignore.shape[::-1])
    areas = []                                    # of whole people, in pixels
    for number, layer in enumerate(layers, 1):
        solid = Image.fromarray((np.asarray(layer.alpha) > 127) * np.uint8(255))
        owner.paste(number, (layer.x, layer.y), solid)
        labels.paste(Image.fromarray(layer.label), (layer.x, layer.y), solid)
        areas.append(np.count_nonzero(np.asarray(solid) & layer.label))

    owner = np.asarray(owner)
    labels = np.asarray(labels)
    people = []
    ignore = ignore & (owner == 0)
    for number, (layer, area) in enumerate(zip(layers, areas), 1):
        if layer.thing:
            continue
        seen = owner == number
        person = seen * labels
        if np.count_nonzero(person) < VISIBLE * area:
            ignore |= seen
        else:
            people.append(person)
    return people, ignore

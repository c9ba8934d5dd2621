"""Scenes of several people, composed from photos of single people, and drawn people.

`compose` reads no files. Its `source` has, for photo k: annotation(k) -> three Pillow images, the labels (0 =
background), body parts, and ignored bystanders; labels(annotation, parts, flip) -> uint8 label map; photo(k, draft) ->
Pillow RGB, possibly decoded smaller; and background(rng) -> another photo as the stage and the ids of its people
(Pillow RGB and L, ids as in `datasets.CCP`), or None. All randomness comes from `rng`, so a scene is a function of its
seed. Two options of training: chances: None, or the probability of each photo's person to be drawn; things: the share
of scenes with things (`cut_thing`).
"""
from collections import namedtuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageOps

ASPECTS = 4 / 3, 2 / 3, 5 / 4, 3 / 4                          # width / height of scene i: ASPECTS[i % 4]
NUM_PEOPLE = 0.10, 0.26, 0.27, 0.19, 0.11, 0.07               # share of scenes with 1, 2, .. 6 people

# The place where people stand. image: Pillow RGB, or None if only labels are wanted; ignore (H, W) bool; layers: the
# photo's own person, if kept; horizon: its row; camera: its height in heights of a person; tall: pixels of a person in
# the first row; seams: columns where mirroring begins.
Stage = namedtuple('Stage', 'image ignore layers horizon camera tall seams')
# A person or a thing. label (h, w) uint8; alpha, image: Pillow; x, y: the top left corner; feet: the row of the ground.
Layer = namedtuple('Layer', 'label alpha image x y feet pasted thing', defaults=[False])


def compose(source, count, more, size, rng, paint=True):
    """A scene of size (w, h) from photos 0..count - 1, and `more` after them whose people are only pasted -> image
    (H, W, 3) uint8 (only if paint), list of label maps (H, W) uint8, one per person, ignore (H, W) bool."""
    look = rng.spawn(1)[0]                        # its own generator: the same places with and without painting
    cast = draw_cast(count, source.chances, rng)
    if more:
        cast[1:] = np.setdiff1d(draw_cast(count + more, source.chances, rng), cast[:1], True)[:12]
    background = source.background(rng)
    if background:
        stage = open_background(*background, size, rng, paint)
    else:
        stage = open_photo(source, cast[0], size, rng, look, paint)
    layers = stage.layers + add_people(source, stage, cast[1:], size, rng, look)
    if source.things and rng.random() < source.things:
        layers += [cut_thing(source, k, size, rng, paint) for k in cast[-rng.integers(1, 4):]]
    layers.sort(key=lambda layer: layer.feet)     # higher in the image is farther away
    return paint and np.asarray(paint_layers(stage.image, layers)), *flatten_layers(layers, stage.ignore)


def draw_cast(count, chances, rng):
    """13 different photos of 0..count - 1."""
    if chances is not None:
        chances = chances[:count] / chances[:count].sum()
    return rng.choice(count, 13, replace=False, p=chances)


def open_background(photo, ids, size, rng, paint):
    """A photo as the stage; its people, if any, have no parts. The position of its ground is a guess."""
    image = ImageOps.fit(photo, size, Image.BILINEAR) if paint else None
    horizon, tall = rng.uniform((0.3, 0.6), (0.5, 1.0)) * size[1]
    ids, layers = np.asarray(ImageOps.fit(ids, size, Image.NEAREST)), []
    for person in np.flatnonzero(np.bincount(ids.ravel(), minlength=256)[1:255]) + 1:
        label = (ids == person) * np.uint8(255)
        feet = np.flatnonzero(label.any(1))[-1] + 1
        layers.append(Layer(label, Image.fromarray(label), image, 0, 0, feet, False))
    return Stage(image, ids == 255, layers, horizon, rng.uniform(0.5, 0.62), tall, [])


def open_photo(source, k, size, rng, look, paint):
    """Photo k as the stage, with its person or without. The ground is the one under that person's feet."""
    keep, camera, annotation = rng.random() < 0.6, rng.uniform(0.5, 0.62), source.annotation(k)
    full, box = np.array(annotation[0].size), annotation[0].getbbox()
    horizon = box[3] - camera * (box[3] - box[1])
    zoom, left, top = choose_view(full, box, horizon, size, keep, rng)
    strip = round(full[0] * zoom), size[1]    # the photo's full width, as high as the scene
    y0, y1 = top / zoom / full[1], min(1, (top + size[1]) / zoom / full[1])

    def warp(image, resample):
        return image.resize(strip, resample, (0, y0 * image.height, image.width, y1 * image.height))

    ccp, parts, ignore = (np.asarray(warp(a, Image.NEAREST)) for a in annotation)
    image = warp(source.photo(k, full * zoom), Image.BILINEAR) if paint else None
    mask = Image.fromarray((ccp > 0) * np.uint8(255))
    x0, _, x1, _ = mask.getbbox()
    margins = (x0, strip[0] - x1) if keep else (strip[0], strip[0])
    columns = mirror_margins(left, size[0], strip[0], *margins)
    layers, tall, horizon = [], (box[3] - box[1]) * zoom, horizon * zoom - top
    if keep:
        alpha = mask.filter(ImageFilter.BoxBlur(1))
        layers = [Layer(source.labels(ccp, parts), alpha, image, -left, 0, box[3] * zoom - top, False)]
    else:                                     # pasted people stand farther back, with their heads in view
        tall *= rng.uniform(0.7, 1) if size[1] > size[0] else rng.uniform(0.45, 0.85)
        tall = min(tall, (horizon + 0.05 * size[1]) / (1 - camera))
        image = image and remove_person(image, mask, look)
    image = image and Image.fromarray(np.asarray(image).take(columns, 1))
    seams = [x for x in (-left, strip[0] - left) if 0 < x < size[0]]
    return Stage(image, ignore[:, columns] > 0, layers, horizon, camera, tall, seams)


def add_people(source, stage, cast, size, rng, look):
    """Pasted layers: how many people, how far away, and where: away from others, or over a seam."""
    count, layers = rng.choice(6, p=NUM_PEOPLE) + 1 - len(stage.layers), []
    taken = [layer.x + np.mean(layer.alpha.getbbox()[::2]) for layer in stage.layers]
    nearest, farthest = (1.08, 0.92) if rng.random() < 0.5 else (1.1, 0.5 if stage.layers else 0.7)
    for k in cast:
        if len(layers) >= count:
            break
        tall = np.clip(stage.tall * rng.uniform(farthest, nearest), 0.25 * size[1], 1.5 * size[1])
        feet = stage.horizon + stage.camera * tall            # all stand on one ground
        person = take_person(source, k, tall * rng.uniform(0.95, 1.05), stage.image, rng, look)
        spots = [*stage.seams, *rng.uniform(0, size[0], rng.integers(1, 5))]
        if person:
            alpha = person[1]
            taken.append(max(spots, key=lambda x: min((abs(x - t) for t in taken), default=0)))
            place = round(taken[-1] - alpha.width / 2), round(feet) - alpha.getbbox()[3]
            layers.append(Layer(*person, *place, feet, True))
    return layers


def take_person(source, k, tall, scene, rng, look):
    """The person of photo k, tall pixels high -> label, alpha, image; None if the photo's frame cuts the person, or
    so few pixels are left that all are edge."""
    ccp, parts, _ = source.annotation(k)
    stretch, angle, flip = rng.uniform(0.85, 1.15), np.clip(rng.normal(0, 3), -15, 15), rng.random() < 0.5
    (x0, y0, x1, y1), (width, height) = ccp.getbbox(), ccp.size
    if min(x0, y0) < 2 or x1 > width - 2 or y1 > height - 2:
        return None
    zoom = tall / (y1 - y0)
    warp = affine((x0 - 3, y0 - 3, x1 + 3, y1 + 3), width, zoom * stretch, zoom, angle, flip)
    ccp, parts = (np.asarray(warp(a, Image.NEAREST)) for a in (ccp, parts))
    label = source.labels(ccp, parts, flip)
    alpha = Image.fromarray((ccp > 0) * np.uint8(255)).filter(ImageFilter.BoxBlur(1))
    alpha = alpha.point([max(0, 2 * v - 255) for v in range(256)])        # within the edge: no halos
    if not alpha.getbbox():
        return None
    photo = source.photo(k, (0.8 * width * zoom, 0.8 * height * zoom)) if scene else None
    image = photo and adapt(warp(photo, Image.BILINEAR), photo, scene, look)
    return label, alpha, image


def cut_thing(source, k, size, rng, paint):
    """A thing: a blob from the middle of photo k's person, mostly clothes, enlarged and turned. It is nobody."""
    ccp = source.annotation(k)[0]
    x0, y0, x1, y1 = ccp.getbbox()
    x, y, half = (x0 + x1) / 2, y0 + (y1 - y0) * rng.uniform(0.25, 0.7), (y1 - y0) * rng.uniform(0.04, 0.12)
    zoom = size[1] * rng.uniform(0.1, 0.5) / (2 * half)
    warp = affine((x - half, y - half, x + half, y + half), ccp.width, zoom * rng.uniform(0.5, 1), zoom,
                  rng.uniform(-45, 45), False)
    alpha = Image.new('L', warp(ccp, Image.NEAREST).size)
    turns = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    corners = (np.column_stack([np.cos(turns), np.sin(turns)]) * rng.uniform(0.5, 1, (12, 1)) + 1) / 2 * alpha.size
    ImageDraw.Draw(alpha).polygon(corners.ravel().tolist(), 255)
    alpha = alpha.filter(ImageFilter.BoxBlur(max(alpha.size) / 12)).point([255 * (v > 127) for v in range(256)])
    left, top = (rng.random(2) * size - np.divide(alpha.size, 2)).astype(int).tolist()
    feet = size[1] * rng.uniform(0, 1.2)                                     # behind people or in front of them
    image = warp(source.photo(k), Image.BILINEAR) if paint else None
    return Layer(np.zeros(alpha.size[::-1], np.uint8), alpha, image, left, top, feet, False, thing=True)


def choose_view(full, box, horizon, size, keep, rng):
    """The part of a photo of size full that a scene shows: its zoom, and left, top in the zoomed photo.

    High scenes show nearly all of it; wide scenes crop its height and may be wider than the photo."""
    low, high = (0.85, 1) if size[1] > size[0] else (0.58, 0.75) if keep else (0.5, 0.75)
    view = full[1] * rng.uniform(low, high)
    zoom = size[1] / view
    top = box[1] - rng.uniform(0.03, 0.2) * view if keep else horizon - rng.uniform(0.4, 0.6) * view
    left = (box[0] + box[2]) / 2 * zoom - rng.uniform(0.25, 0.75) * size[0]
    left = np.clip(left, *sorted((0, full[0] * zoom - size[0])))
    return zoom, round(left), round(np.clip(top, 0, full[1] - view) * zoom)


def affine(box, width, zoom_x, zoom_y, angle, flip):
    """A function that crops the box from a photo of that width, or from a smaller copy, and scales, turns, flips it."""
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    w, h = (box[2] - box[0]) * zoom_x, (box[3] - box[1]) * zoom_y
    size = max(8, round(cos * w + abs(sin) * h)), max(8, round(abs(sin) * w + cos * h))
    matrix = np.array([[cos, sin], [-sin, cos]]) / [[-zoom_x if flip else zoom_x], [zoom_y]]
    shift = np.add(box[:2], box[2:]) / 2 - matrix @ size / 2

    def warp(image, resample):
        rows = np.column_stack([matrix, shift]) * (image.width / width)
        return image.transform(size, Image.AFFINE, rows.ravel().tolist(), resample)
    return warp


def bounce(distance, margin):
    """0, 1, 2, .. -> 0, 1, .., margin - 1, margin - 1, .., 1, 0, 0, 1, .."""
    distance = distance % (2 * max(margin, 8))
    return np.minimum(distance, 2 * max(margin, 8) - 1 - distance)


def mirror_margins(first, count, width, left, right):
    """Columns first, first + 1, .. of a photo that continues beyond its ends with its mirrored margins."""
    columns = np.arange(first, first + count)
    columns = np.where(columns < 0, bounce(-1 - columns, left), columns)
    return np.where(columns >= width, width - 1 - bounce(columns - width, right), columns).clip(0, width - 1)


def remove_person(image, mask, look):
    """Fills the person with the mirrored image on its left and right; half of the time blurs the whole image."""
    (x0, _, x1, _), (width, height), pixels = mask.getbbox(), image.size, np.asarray(image)
    columns = np.arange(x1 - x0)
    left = pixels.take((x0 - 1 - bounce(columns, x0)).clip(0), 1)
    right = pixels.take((x1 + bounce(columns[::-1], width - x1)).clip(0, width - 1), 1)
    ramp = (255 * (2 * columns / (x1 - x0) - 0.5)).clip(0, 255).astype(np.uint8)
    fill = Image.composite(*map(Image.fromarray, (right, left, np.tile(ramp, (height, 1)))))
    soft = mask.filter(ImageFilter.BoxBlur(height / 60)).point([min(255, 8 * v) for v in range(256)])
    image.paste(fill, (x0, 0), soft.filter(ImageFilter.BoxBlur(height / 120)).crop((x0, 0, x1, height)))
    return image.filter(ImageFilter.BoxBlur(max(0, look.uniform(-1, 1)) * height / 100))


def adapt(image, photo, scene, look):
    """Moves a person's colors half of the way from its photo to the scene; blurs half of the people."""
    own, other = (np.asarray(a.resize((16, 16), Image.NEAREST)).mean((0, 1)) + 20 for a in (photo, scene))
    r, g, b = np.clip(np.sqrt(other / own), 0.75, 1.3) * look.uniform(0.95, 1.05)
    image = image.convert('RGB', (r, 0, 0, 0, 0, g, 0, 0, 0, 0, b, 0))
    return image.filter(ImageFilter.BoxBlur(max(0, look.uniform(-0.7, 0.7)) * scene.height / 480))


def paint_layers(image, layers):
    """Paints far to near; pasted people get a soft shadow where the feet touch the ground."""
    for layer in layers:
        if layer.pasted:
            width, tall = layer.alpha.size
            foot = layer.alpha.crop((0, tall - tall // 10, width, tall)).resize((width, tall // 20 + 1))
            foot = ImageOps.expand(foot, tall // 25 + 2).filter(ImageFilter.BoxBlur(tall / 50))
            place = layer.x - (foot.width - width) // 2, round(layer.feet) - foot.height * 2 // 3
            image.paste((15, 15, 20), place, foot.point([v * 3 // 5 for v in range(256)]))
        image.paste(layer.image, (layer.x, layer.y), layer.alpha)
    return image


def flatten_layers(layers, ignore):
    """Layers, far to near -> list of label maps (H, W) of the visible pixels, one per person, ignore. People with less
    than 15 % of their pixels visible are ignored; things only cover others."""
    owner, labels = (Image.new('L', ignore.shape[::-1]) for _ in range(2))
    people, whole = [], []
    for number, layer in enumerate(layers, 1):
        solid = Image.fromarray((np.asarray(layer.alpha) > 127) * np.uint8(255))
        owner.paste(number, (layer.x, layer.y), solid)
        labels.paste(Image.fromarray(layer.label), (layer.x, layer.y), solid)
        whole.append(np.count_nonzero(np.asarray(solid) & layer.label))
    owner, labels = np.asarray(owner), np.asarray(labels)
    ignore = ignore & (owner == 0)
    for number, (layer, area) in enumerate(zip(layers, whole), 1):
        if layer.thing:
            continue
        seen = owner == number
        people.append(seen * labels)
        if np.count_nonzero(people[-1]) < 0.15 * area:
            people.pop()
            ignore |= seen
    return people, ignore


def draw(width, height, rng, crowd=False):
    """Drawn people on a textured background -> image, list of label maps, ignore, as `compose` returns them. crowd: 4
    to 8 dressed people, near and far, instead of 1 to 3."""
    coarse = rng.integers(30, 226, (*rng.integers(2, 9, 2), 3), np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(5)):          # things other than people
        corner, color = rng.uniform(0, 1, 2) * (width, height), tuple(rng.integers(0, 256, 3).tolist())
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape([*corner, *(corner + rng.uniform(0.05, 0.4, 2) * height)], color)
    count, person = (rng.integers(4, 9), draw_dressed) if crowd else (rng.integers(1, 4), draw_person)
    layers = [person((k + rng.uniform(0.1, 0.9)) * width / count, height, rng) for k in range(count)]
    layers.sort(key=lambda layer: layer.feet)
    image = paint_layers(image, layers) + rng.integers(-14, 15, (height, width, 3), np.int16)
    return image.clip(0, 255).astype(np.uint8), *flatten_layers(layers, np.zeros((height, width), bool))


class Figure:
    """The label map of a person in the making. Lengths are in heights of the person, x counts from the middle."""

    def __init__(self, tall):
        self.tall, self.label = tall, Image.new('L', (int(1.1 * tall), int(tall)))
        self.draw, self.middle = ImageDraw.Draw(self.label), self.label.width / 2

    def limb(self, part, x, y, angle, length, thickness):
        x, y, length = self.middle + x * self.tall, y * self.tall, length * self.tall
        end = x + np.sin(angle) * length, y + np.cos(angle) * length
        self.draw.line([x, y, *end], part, round(thickness * self.tall))

    def oval(self, part, left, top, right, bottom):
        left, right = (self.middle + x * self.tall for x in (left, right))
        self.draw.ellipse([left, top * self.tall, right, bottom * self.tall], part)

    def stand(self, colors, x, feet):
        """The Layer of the person around column x, in the colors (number of parts + 1, 3)."""
        label = np.asarray(self.label)
        alpha, image = Image.fromarray((label > 0) * np.uint8(255)), Image.fromarray(colors.astype(np.uint8)[label])
        return Layer(label, alpha, image, round(x - self.middle), round(feet - self.tall), feet, False)


def draw_person(x, height, rng):
    """A Layer: a person around column x, in plain colors, arms and legs at random angles."""
    tall = rng.uniform(0.6, 0.95) * height
    figure = Figure(tall)
    for side, leg, arm in (1, 5, 3), (-1, 6, 4):
        figure.limb(leg, side * 0.075, 0.55, side * rng.uniform(0, 0.35), 0.45, 0.13)
        figure.limb(arm, side * 0.14, 0.25, side * rng.uniform(0, 1.4), 0.32, 0.11)
    figure.limb(2, 0, 0.2, 0, 0.4, 0.27)
    figure.oval(1, -0.09, 0, 0.09, 0.2)
    skin, (shirt, legs) = rng.integers(90, 230) * np.array([1, 0.8, 0.65]), rng.integers(0, 256, (2, 3))
    arms = skin if rng.random() < 0.5 else shirt * 0.8
    colors = np.array([shirt, skin, shirt, arms, arms, legs, legs])
    return figure.stand(colors, x, rng.uniform(0.75, 1.05) * height + 0.1 * (tall - height))


def draw_dressed(x, height, rng):
    """A Layer: a smaller person in the clothes of `datasets.Crowd`. The farther away, the smaller and the higher."""
    near = rng.random()
    figure, feet = Figure((0.5 + 0.3 * near) * height), (0.65 + 0.35 * near) * height
    hat, skirt = rng.random() < 0.2, rng.random() < 0.3
    for side, leg, arm in (1, 8, 6), (-1, 9, 7):
        x0, lean, lift = side * 0.09, side * rng.uniform(0, 0.25), side * rng.uniform(0, 1.2)
        figure.limb(leg if skirt else 4, x0, 0.55, lean, 0.42, 0.15)
        foot = x0 + np.sin(lean) * 0.38
        figure.oval(leg + 2, foot - 0.09, 0.87, foot + 0.09, 1)
        figure.limb(arm, side * 0.15, 0.27, lift, 0.34, 0.13)
    figure.limb(3, 0, 0.22, 0, 0.38, 0.3)
    if skirt:
        figure.limb(5, 0, 0.53, 0, 0.2, 0.38)
    figure.oval(2, -0.13, 0, 0.13, 0.24)
    figure.oval(12, -0.08, 0.08, 0.08, 0.24)
    if hat:
        figure.oval(1, -0.16, 0, 0.16, 0.11)
    skin, colors = rng.integers(90, 230) * np.array([1, 0.8, 0.65]), rng.integers(0, 256, (13, 3))
    colors[[8, 9, 12]], colors[11] = skin, colors[10]
    colors[6:8] = skin if rng.random() < 0.5 else colors[3] * 0.8
    return figure.stand(colors, x, feet)

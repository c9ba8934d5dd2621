"""Drawn people on textured backgrounds. They need no files.

The people face the camera: left arms are on the right of the image.
"""
import numpy as np
from PIL import Image, ImageDraw

from util.datasets.base import Example, Labels, Photos
from util.datasets.scenes import Layer, flatten_layers, paint_layers
from util.masks import stack_people


class Synthetic(Photos):
    """1 to 3 people of six parts.

    train is endless: an image is drawn from (seed, epoch, index). val has 100 fixed images.

    long_side  in pixels, at 4:3
    samples    images per epoch of train; 0: 1000
    """
    class_names = 'background', 'head', 'torso', 'left-arm', 'right-arm', 'left-leg', 'right-leg'
    flip_pairs = (3, 4), (5, 6)
    splits = 'train', 'val'
    crowd = False

    def __init__(self, root: str | None = None, split: str = 'train', long_side: int = 128,
                 samples: int = 0):
        self.val = split == 'val'
        self.long_side = long_side
        number = 100 if self.val else samples or 1000
        self.ids = [f'{split}_{i:04d}' for i in range(number)]

    def size(self, i: int) -> tuple[int, int]:
        return self.long_side, max(1, self.long_side * 3 // 4)

    def read_parsing(self, i: int, seed: int = 0, epoch: int = 0) -> Labels:
        _, parsing, ignore = self.read(i, seed, epoch)
        return parsing, ignore

    def read(self, i: int, seed: int = 0, epoch: int = 0) -> Example:
        rng = np.random.default_rng((3, i, 0, 0) if self.val else (2, seed, epoch, i))
        width, height = self.size(i)
        image, people, ignore = draw(width, height, rng, self.crowd)
        return image, stack_people(people, ignore.shape[::-1]), ignore


class Crowd(Synthetic):
    """4 to 8 small dressed people who overlap, for twins of the paper's tables."""
    class_names = tuple('''background hat hair upper-clothes pants skirt left-arm right-arm
        left-leg right-leg left-shoe right-shoe face'''.split())
    flip_pairs = (6, 7), (8, 9), (10, 11)
    crowd = True


def draw(width: int, height: int, rng: np.random.Generator, crowd: bool = False):
    """Drawn people -> image (H, W, 3) uint8, list of label maps (H, W), ignore (H, W).

    crowd: 4 to 8 dressed people, near and far, instead of 1 to 3. The image is a function of the
    random generator's seed: the order of the draws must not change.
    """
    # A texture of random colors.
    cells = rng.integers(2, 9, 2)
    coarse = rng.integers(30, 226, (*cells, 3), np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.BICUBIC)

    # Things other than people.
    canvas = ImageDraw.Draw(image)
    for _ in range(rng.integers(5)):
        corner = rng.uniform(0, 1, 2) * (width, height)
        color = tuple(rng.integers(0, 256, 3).tolist())
        shape = canvas.ellipse if rng.random() < 0.5 else canvas.rectangle
        opposite = corner + rng.uniform(0.05, 0.4, 2) * height
        shape([*corner, *opposite], color)

    # People in a row, each in a column of its own.
    count = rng.integers(4, 9) if crowd else rng.integers(1, 4)
    draw_one = draw_dressed if crowd else draw_person
    layers = []
    for k in range(count):
        x = (k + rng.uniform(0.1, 0.9)) * width / count
        layers.append(draw_one(x, height, rng))
    layers.sort(key=lambda layer: layer.feet)     # higher in the image is farther away

    noise = rng.integers(-14, 15, (height, width, 3), np.int16)
    image = np.asarray(paint_layers(image, layers)) + noise
    people, ignore = flatten_layers(layers, np.zeros((height, width), bool))
    return image.clip(0, 255).astype(np.uint8), people, ignore


class Figure:
    """The label map of a person in the making.

    Lengths are in heights of the person; x counts from the middle, y from the top.
    """

    def __init__(self, tall: float):
        self.tall = tall                          # pixels
        self.label = Image.new('L', (int(1.1 * tall), int(tall)))
        self.canvas = ImageDraw.Draw(self.label)
        self.middle = self.label.width / 2

    def limb(self, part: int, x: float, y: float, angle: float, length: float, thickness: float):
        """A line from (x, y); angle in radians from straight down."""
        x = self.middle + x * self.tall
        y = y * self.tall
        length = length * self.tall
        end = x + np.sin(angle) * length, y + np.cos(angle) * length
        self.canvas.line([x, y, *end], part, round(thickness * self.tall))

    def oval(self, part: int, left: float, top: float, right: float, bottom: float):
        left = self.middle + left * self.tall
        right = self.middle + right * self.tall
        self.canvas.ellipse([left, top * self.tall, right, bottom * self.tall], part)

    def stand(self, colors: np.ndarray, x: float, feet: float) -> Layer:
        """The Layer of the person around column x, in the colors (number of parts + 1, 3)."""
        label = np.asarray(self.label)
        alpha = Image.fromarray((label > 0) * np.uint8(255))
        image = Image.fromarray(colors.astype(np.uint8)[label])
        left = round(x - self.middle)
        top = round(feet - self.tall)
        return Layer(label, alpha, image, left, top, feet, False)


def random_skin(rng: np.random.Generator) -> np.ndarray:
    """A color (3,) of skin, dark or light."""
    return rng.integers(90, 230) * np.array([1, 0.8, 0.65])


def draw_person(x: float, height: int, rng: np.random.Generator) -> Layer:
    """A person of `Synthetic` around column x, in plain colors, arms and legs at random angles."""
    head, torso, left_arm, right_arm, left_leg, right_leg = range(1, 7)
    tall = rng.uniform(0.6, 0.95) * height
    figure = Figure(tall)
    for side, leg, arm in (1, left_leg, left_arm), (-1, right_leg, right_arm):
        figure.limb(leg, side * 0.075, 0.55, side * rng.uniform(0, 0.35), 0.45, 0.13)
        figure.limb(arm, side * 0.14, 0.25, side * rng.uniform(0, 1.4), 0.32, 0.11)
    figure.limb(torso, 0, 0.2, 0, 0.4, 0.27)
    figure.oval(head, -0.09, 0, 0.09, 0.2)
    skin = random_skin(rng)
    shirt, trousers = rng.integers(0, 256, (2, 3))
    sleeves = skin if rng.random() < 0.5 else shirt * 0.8
    # by part, from 0 on
    colors = np.array([shirt, skin, shirt, sleeves, sleeves, trousers, trousers])
    return figure.stand(colors, x, rng.uniform(0.75, 1.05) * height + 0.1 * (tall - height))


def draw_dressed(x: float, height: int, rng: np.random.Generator) -> Layer:
    """A smaller person in the clothes of `Crowd` around column x.

    The farther away, the smaller and the higher.
    """
    hat, hair, shirt, pants, skirt, left_arm, right_arm = range(1, 8)
    left_leg, right_leg, left_shoe, right_shoe, face = range(8, 13)
    near = rng.random()
    figure = Figure((0.5 + 0.3 * near) * height)
    feet = (0.65 + 0.35 * near) * height
    has_hat = rng.random() < 0.2
    has_skirt = rng.random() < 0.3
    sides = (1, left_leg, left_shoe, left_arm), (-1, right_leg, right_shoe, right_arm)
    for side, leg, shoe, arm in sides:
        hip = side * 0.09
        lean = side * rng.uniform(0, 0.25)
        lift = side * rng.uniform(0, 1.2)
        figure.limb(leg if has_skirt else pants, hip, 0.55, lean, 0.42, 0.15)
        foot = hip + np.sin(lean) * 0.38
        figure.oval(shoe, foot - 0.09, 0.87, foot + 0.09, 1)
        figure.limb(arm, side * 0.15, 0.27, lift, 0.34, 0.13)
    figure.limb(shirt, 0, 0.22, 0, 0.38, 0.3)
    if has_skirt:
        figure.limb(skirt, 0, 0.53, 0, 0.2, 0.38)
    figure.oval(hair, -0.13, 0, 0.13, 0.24)
    figure.oval(face, -0.08, 0.08, 0.08, 0.24)
    if has_hat:
        figure.oval(hat, -0.16, 0, 0.16, 0.11)
    skin = random_skin(rng)
    colors = rng.integers(0, 256, (13, 3))
    colors[[left_leg, right_leg, face]] = skin
    colors[right_shoe] = colors[left_shoe]
    colors[[left_arm, right_arm]] = skin if rng.random() < 0.5 else colors[shirt] * 0.8
    return figure.stand(colors, x, feet)

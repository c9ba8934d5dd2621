"""What labels look like, and the way from a photo to a batch.

    python data.py --data MHP --root data/LV-MHP-v2 --split train     # checks, draws samples.png

All data sets, losses and metrics share two arrays. parsing: uint8 (N, H, W), one map per person; 0
= not this person, 1..K = part, 255 = this person, part unknown. ignore: bool (H, W), pixels about
which nothing is known. A person with a hat (1 in CIHP) and an unlabeled coat is a map of 0, 1 and
255. The data sets themselves are in util/datasets/.
"""
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageEnhance
from tqdm import tqdm

import released
from util.beyond import degrade
from util.config import Config
from util.cli import CommandParser, add_shared, filled, refuse_given, start
from util.datasets import DATASETS, open_dataset, swap_sides
from util.files import check_target, counted, printable, user_errors, write_png
from util.images import read_photo, to_rgb, upright
from util.pictures import add_legend, overlay, palette
from util.workers import BadSample

# ImageNet, RGB in 0..1.
MEAN = 0.485, 0.456, 0.406
STD = 0.229, 0.224, 0.225
# Images that --skip-bad may skip in a row.
MOST_SKIPPED = 9


# -------------------------------------------------------------------------------------------------
# Sizes


def scaled_size(width: int, height: int, short_side: int, long_side: int) -> tuple[int, int]:
    """(width, height) with the short side at short_side, or less where the long side would pass
    long_side."""
    scale = min(short_side / min(width, height), long_side / max(width, height))
    return max(1, int(width * scale + 0.5)), max(1, int(height * scale + 0.5))


@dataclass(frozen=True)
class Geometry:
    """Sizes (height, width) of a photo on its way through the network, in pixels."""
    photo: tuple                        # as given
    size: tuple                         # resized
    # The network's input: size, padded right and below to multiples of 32.
    padded: tuple

    def cell_centers(self, cells: torch.Tensor, grid: int) -> torch.Tensor:
        """The centers (x, y) of cells (N,) = row * S + column of the network's input, in pixels of
        the photo: (N, 2)."""
        x = (2 * (cells % grid) + 1) / (2 * grid) * self.padded[1] / self.size[1] * self.photo[1]
        y = (2 * (cells // grid) + 1) / (2 * grid) * self.padded[0] / self.size[0] * self.photo[0]
        return torch.stack([x, y], dim=1)

    def cells_at(self, centers: torch.Tensor, grid: int) -> torch.Tensor:
        """The cells (N,) in which points (N, 2), (x, y) in pixels of the photo, lie."""
        x, y = centers.T
        column = (x / self.photo[1] * self.size[1] / self.padded[1] * grid).long()
        row = (y / self.photo[0] * self.size[0] / self.padded[0] * grid).long()
        return row * grid + column


def input_geometry(photo: Image.Image, config: Config) -> Geometry:
    """The sizes of a Pillow image in inference."""
    w, h = scaled_size(photo.width, photo.height, config.test_short_side, config.long_side)
    return Geometry((photo.height, photo.width), (h, w), (round_up(h), round_up(w)))


def round_up(length: int) -> int:
    """To a multiple of 32, the stride of the network's coarsest features."""
    return -(-length // 32) * 32


# -------------------------------------------------------------------------------------------------
# Transforms of images, parsing and ignore, in training


def resize_photo(photo: Image.Image, size: tuple) -> Image.Image:
    """Pillow image -> size (width, height), bilinear; antialiased where it shrinks."""
    return photo.resize(size, Image.BILINEAR)


def resize_labels(parsing: np.ndarray, ignore: np.ndarray,
                  size: tuple) -> tuple[np.ndarray, np.ndarray]:
    """Nearest: the label under the middle of each new pixel. size: (width, height)."""
    people = [np.asarray(Image.fromarray(person).resize(size, Image.NEAREST)) for person in parsing]
    parsing = np.array(people, np.uint8).reshape(-1, *size[::-1])
    ignore = Image.fromarray(ignore.astype(np.uint8)).resize(size, Image.NEAREST)
    return parsing, np.asarray(ignore) > 0


def resize_sample(image: np.ndarray, parsing: np.ndarray, ignore: np.ndarray, size: tuple,
                  config: Config) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The photo and its labels, to size (width, height)."""
    if size == image.shape[1::-1]:
        return image, parsing, ignore
    resize = config.choose(resize_photo, released.resize_photo)
    image = np.asarray(resize(Image.fromarray(image), size))
    parsing, ignore = config.choose(resize_labels, released.resize_labels)(parsing, ignore, size)
    return image, parsing, ignore


def random_crop(image, parsing, ignore, rng, smallest=0.5):
    """A window of `smallest` to 1 times the width and of `smallest` to 1 times the height."""
    window = []
    for side in ignore.shape:
        length = max(1, round(side * rng.uniform(smallest, 1)))
        start = rng.integers(side - length + 1)
        window.append(slice(start, start + length))
    rows, cols = window
    return image[rows, cols], parsing[:, rows, cols], ignore[rows, cols]


def color_jitter(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Brightness, contrast and saturation, each times 1 - strength .. 1 + strength."""
    image = Image.fromarray(image)
    for enhance in ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color:
        image = enhance(image).enhance(rng.uniform(max(0, 1 - strength), 1 + strength))
    return np.asarray(image)


def train_transform(image: np.ndarray, parsing: np.ndarray, ignore: np.ndarray, flip_pairs,
                    config: Config, rng: np.random.Generator) -> tuple:
    """Random crop, scale, flip and colors. People without a remaining pixel are dropped. In and out
    as `dataset.read` returns them."""
    if rng.random() < config.crop:
        image, parsing, ignore = random_crop(image, parsing, ignore, rng, config.crop_min)
        image = np.ascontiguousarray(image)
        parsing = np.ascontiguousarray(parsing)
        ignore = np.ascontiguousarray(ignore)

    # Two values are a range, other numbers are choices.
    sides = config.short_side
    short_side = rng.integers(sides[0], sides[1] + 1) if len(sides) == 2 else rng.choice(sides)
    height, width = ignore.shape
    size = scaled_size(width, height, short_side, config.long_side)
    image, parsing, ignore = resize_sample(image, parsing, ignore, size, config)

    if rng.random() < config.flip:
        image = image[:, ::-1]
        parsing = swap_sides(parsing[:, :, ::-1], flip_pairs)
        ignore = ignore[:, ::-1]
    if config.color_jitter:
        image = color_jitter(image, config.color_jitter, rng)
    if config.degrade:
        image = degrade(image, config.degrade, rng)
    # Indexing copies parsing, as torch.from_numpy needs it.
    return image, parsing[parsing.any((1, 2))], ignore


# -------------------------------------------------------------------------------------------------
# From a photo to the network's input


def network_input(photo: Image.Image, config: Config,
                  geometry: Geometry | None = None) -> torch.Tensor:
    """Pillow image -> the network's input (1, 3, H, W) float32, padded with zeros. geometry:
    `input_geometry`'s, if it is known already."""
    geometry = geometry or input_geometry(photo, config)
    h, w = geometry.size
    resize = config.choose(resize_photo, released.resize_photo)
    # float32 even if the default dtype is another.
    image = torch.zeros(1, 3, *geometry.padded, dtype=torch.float32)
    image[0, :, :h, :w] = normalize(resize(photo, (w, h)))
    return image


def normalize(image) -> torch.Tensor:
    """(H, W, 3) uint8 RGB -> tensor (3, H, W) float32 with ImageNet's mean and deviation taken
    out."""
    image = torch.from_numpy(np.array(image)).permute(2, 0, 1).to(torch.float32)
    mean = torch.tensor(MEAN, dtype=torch.float32).view(3, 1, 1)
    std = torch.tensor(STD, dtype=torch.float32).view(3, 1, 1)
    return (image / 255 - mean) / std


def list_photos(photos) -> list:
    """One photo, a list of them, or an array or tensor of four dimensions -> a list of photos, each
    as `to_photo` takes it."""
    single = not isinstance(photos, (list, tuple)) and getattr(photos, 'ndim', 0) < 4
    return [photos] if single else list(photos)


def path_of(photo) -> str | os.PathLike | None:
    """The path of a photo, None of one from memory."""
    return photo if isinstance(photo, (str, os.PathLike)) else None


def to_photo(photo) -> Image.Image:
    """Path, PIL image, array or tensor -> upright RGB PIL image."""
    if path_of(photo) is not None:
        if os.path.isdir(photo):
            raise ValueError(f'{printable(photo)} is a folder; give its photos one by one')
        return read_photo(photo)
    if isinstance(photo, Image.Image):
        return to_rgb(upright(photo))
    if isinstance(photo, torch.Tensor) and photo.ndim == 3:
        if photo.is_floating_point() and photo.numel() and 0 <= photo.min() and photo.max() <= 1:
            photo = (photo * 255).round().to(torch.uint8)
        photo = photo.permute(1, 2, 0).cpu().numpy()
    is_image = (isinstance(photo, np.ndarray) and photo.dtype == np.uint8 and photo.ndim in (2, 3)
                and photo.shape[2:] in ((), (3,)) and photo.size)
    if not is_image:
        kind = type(photo).__name__
        if isinstance(photo, np.ndarray):
            kind = f'{photo.dtype} {photo.shape}'
        raise ValueError('a photo is a path, a PIL image, an array (H, W, 3) or (H, W) uint8 or a '
                         f'tensor (3, H, W) uint8 or float in 0..1, not {kind}')
    return to_rgb(Image.fromarray(photo))


# -------------------------------------------------------------------------------------------------
# Samples and batches of training


class Samples:
    """Tensors for training.

    samples[epoch, index] -> dict: image (3, H, W) float32, parsing (N, H, W) uint8, ignore (H, W)
    bool, info: dict of id, index, size (H0, W0) before resizing, bad: the errors of images skipped
    before it. A function of (config.seed, epoch, index) alone. A BadSample where an image cannot be
    read.
    """

    def __init__(self, dataset, config: Config):
        self.dataset = dataset
        self.config = config
        # What each worker reads, and the skipped images that were named: see util/workers.py.
        self.busy = None
        self.named = set()

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, key):
        epoch, index = key
        try:
            chosen, sample, bad = self.read(index, epoch)
        except ValueError as error:
            return BadSample(str(error))
        rng = np.random.default_rng((4, self.config.seed, epoch, index))
        info = dict(id=self.dataset.ids[chosen], index=chosen, size=sample[2].shape, bad=bad)
        return dict(self.tensors(*sample, rng), info=info)

    def read(self, index, epoch):
        """Index and content of image `index`, or of its replacement where --skip-bad skipped it,
        and the errors."""
        rng = np.random.default_rng((6, self.config.seed, epoch, index))
        worker = torch.utils.data.get_worker_info()
        bad = []
        chosen = index
        while True:
            if worker and self.busy is not None:
                self.busy[worker.id] = torch.tensor([os.getpid(), chosen])
            try:
                return chosen, self.dataset.read(chosen, self.config.seed, epoch), bad
            except (OSError, ValueError) as error:
                if not self.dataset.skip_bad or len(bad) == MOST_SKIPPED:
                    others = f'; {len(bad)} other images cannot be read either' if bad else ''
                    raise ValueError(f'{error}{others}') from None
                bad.append(str(error))
                chosen = int(rng.integers(len(self)))

    def tensors(self, image, parsing, ignore, rng):
        """What `dataset.read` returns, augmented -> dict of tensors, as `collate` takes it."""
        image, parsing, ignore = train_transform(image, parsing, ignore, self.dataset.flip_pairs,
                                                 self.config, rng)
        return dict(image=normalize(image), parsing=torch.from_numpy(parsing),
                    ignore=torch.from_numpy(np.array(ignore)))

    def groups(self):
        """Arrays of indices whose images may share a batch: landscape ones, and all others."""
        wide = self.dataset.landscape
        return np.flatnonzero(wide), np.flatnonzero(~wide)

    @staticmethod
    def collate(samples):
        return collate(samples)


def collate(samples: list[dict]) -> dict:
    """-> images (B, 3, H, W) float32, parsings: list of (N_i, H, W) uint8, ignores (B, H, W) bool,
    infos. All are padded with zeros, right and below, to a common size, a multiple of 32:
    the padding is background, not ignored."""
    height = round_up(max(sample['ignore'].shape[0] for sample in samples))
    width = round_up(max(sample['ignore'].shape[1] for sample in samples))
    images = samples[0]['image'].new_zeros(len(samples), 3, height, width)
    ignores = samples[0]['ignore'].new_zeros(len(samples), height, width)
    parsings = []
    for k, sample in enumerate(samples):
        h, w = sample['ignore'].shape
        parsing = sample['parsing'].new_zeros(len(sample['parsing']), height, width)
        parsing[:, :h, :w] = sample['parsing']
        parsings.append(parsing)
        images[k, :, :h, :w] = sample['image']
        ignores[k, :h, :w] = sample['ignore']
    infos = [sample['info'] for sample in samples]
    return dict(images=images, parsings=parsings, ignores=ignores, infos=infos)


# -------------------------------------------------------------------------------------------------
# The check of a download


@dataclass
class Inspected:
    """What was found in an image."""
    people: int = 0
    # (256,): people who have each label
    parts: np.ndarray | None = None
    error: str | None = None


def inspect(dataset, i) -> Inspected:
    """Reads all of image i."""
    try:
        _, parsing, _ = dataset.read(i)
    except (OSError, ValueError) as error:
        return Inspected(error=str(error))
    parts = np.zeros(256, int)
    for person in parsing:
        parts += np.bincount(person.ravel(), minlength=256) > 0
    return Inspected(len(parsing), parts)


def check(dataset, out) -> int:
    """Reads all files, prints counts and the first bad files, draws samples -> number of bad
    images."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = pool.map(lambda i: inspect(dataset, i), range(len(dataset)))
        found = list(tqdm(jobs, total=len(dataset), unit=' images', disable=None))
    good = [i for i, image in enumerate(found) if not image.error]
    errors = [image.error for image in found if image.error]

    people = [found[i].people for i in good]
    counts = np.bincount(people, minlength=1)
    parts = sum((found[i].parts for i in good), np.zeros(256, int))
    by_number = ', '.join(f'{n}: {count}' for n, count in enumerate(counts) if count)
    by_part = ', '.join(f'{name} {n}' for name, n in zip(dataset.class_names[1:], parts[1:]))
    print(f'{counted(len(good), "readable image")}, {counted(sum(people), "person", "people")}')
    print('images by people:', by_number)
    print('people by part:', by_part)
    if good:
        # At most twelve of them, spread over the set.
        number = min(12, len(good))
        chosen = [good[k * len(good) // number] for k in range(number)]
        draw_samples(dataset, chosen, out)
    for error in errors[:10]:
        print('bad:', error, file=sys.stderr)
    return len(errors)


def draw_samples(dataset, indices: list[int], out, columns: int = 4, side: int = 400):
    """Picture of images and labels as training sees them: cropped, flipped, in other colors."""
    config = Config(short_side=(side,), long_side=side, crop=0.3, color_jitter=0.2)
    rows = -(-len(indices) // columns)
    sheet = Image.new('RGB', (columns * side, rows * side), 'white')
    seen = set()
    for k, i in enumerate(indices):
        rng = np.random.default_rng(i)
        image, parsing, ignore = train_transform(*dataset.read(i), dataset.flip_pairs, config, rng)
        place = k % columns * side, k // columns * side
        sheet.paste(overlay(image, parsing, None, ignore), place)
        seen |= set(np.unique(parsing))
    legend = add_legend(sheet, palette(58), dataset.class_names, sorted(seen))
    write_png(out, legend)
    print(f'samples as training sees them: {out}')


def main(argv=None):
    parser = CommandParser('Checks a data set: reads all files, counts, draws samples.')
    add_shared(parser, 'data', choices=list(DATASETS), required=True)
    add_shared(parser, 'root')
    add_shared(parser, 'split')
    add_shared(parser, 'licenses')
    parser.add_argument('--parts', type=filled,
                        help='COCO: folder of label maps, written by tools.keypoints')
    parser.add_argument('--out', type=filled, default='samples.png',
                        help='picture of some samples, PNG (default: %(default)s)')
    args = parser.parse_args(argv)
    with user_errors():
        # Before minutes of reading.
        check_target(args.out)
        options = {}
        if args.data == 'COCO':
            options = dict(licenses=args.licenses, parts=args.parts)
        else:
            refuse_given(args, ('licenses', 'parts'), 'is for --data COCO; leave it out')
        dataset = open_dataset(args.data, args.root, args.split, **options)
        if bad := check(dataset, args.out):
            raise ValueError(f'{bad} of {counted(len(dataset), "image")} cannot be read')


if __name__ == '__main__':
    start(main)

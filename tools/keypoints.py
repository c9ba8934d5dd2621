"""Labels the parts of COCO's people where their keypoints and a model are sure.

    python -m tools.keypoints --root coco --split train --out parts/ --weights uniparser.pt
    python train.py --data COCO --root coco --parts parts/

The keypoints say which classes can be at a pixel (`skeleton.can_be`), and which arm or leg is the
left one. Among these classes the model chooses: it sees every person alone, once as it is and once
mirrored, inside the known mask. A pixel gets a label where both images agree with a posterior of at
least --certain, and where the classes that can be there have at least --mass of the posterior of
all. Other pixels stay unknown. PHOTO_ANNOTATION.png is the label map of one person, of the photo's
size: 0 where nothing is known.
"""
import os
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from tqdm import tqdm

from correlation import correlate
from data import input_geometry, network_input
from infer import add_model_flags, check_classes, load_model
from util.beyond import mixture
from util.cli import Between, CommandParser, Ending, add_shared, filled, refuse_given, start
from util.datasets import COCO, open_dataset
from util.datasets.coco import Person
from util.datasets.coco_file import KEYPOINTS
from util.files import check_target, counted, index_folder, user_errors, write_png
from util.masks import box_of
from util.person_counts import percent
from util.pictures import add_legend, overlay, palette, palette_image
from util.skeleton import CLASSES, VISIBLE, can_be, class_ids, labels_at

MARGIN = 0.15                                     # of the box around a person, on each side
SHEET_PEOPLE = 40                                 # people on the sheet, if it is not given
SIDE = 320                                        # long side of the network's input, in pixels
PAIRS = COCO.flip_pairs
DRESS = CLASSES.index('dress')
COAT = CLASSES.index('coat')
PANTS = CLASSES.index('pants')
LEGS = CLASSES.index('left-leg'), CLASSES.index('right-leg')


# ---- one person --------------------------------------------------------------------------------


def person_window(mask: np.ndarray, share: float = MARGIN) -> tuple[slice, slice]:
    """Rows and columns of a person's box with a margin, inside the photo. mask (H, W) bool."""
    x, y, w, h = box_of(mask)
    margin = round(share * max(w, h))
    rows = slice(max(0, y - margin), y + h + margin)
    columns = slice(max(0, x - margin), x + w + margin)
    return rows, columns


@torch.no_grad()
def posteriors(model, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Posterior of each class at each pixel of one person: (K, h, w) float32, from
    `beyond.mixture`. image (h, w, 3) uint8 and mask (h, w) bool: the person's window."""
    config = model.config
    photo = Image.fromarray(image)
    geometry = input_geometry(photo, config)
    rows, columns = geometry.padded
    high, wide = geometry.size
    out = model.outputs(network_input(photo, config, geometry))
    q_cate = correlate(out['k_cate'], out['f_cate'][0], config.space)   # (K, rows/4, columns/4)

    # The mask at the size of the correlations, a cell wider, so that the posteriors reach its edge.
    small = Image.fromarray(mask * np.uint8(255)).resize((wide, high), Image.NEAREST)
    small = small.filter(ImageFilter.MaxFilter(7))
    gate = torch.zeros(rows, columns, dtype=torch.bool)
    gate[:high, :wide] = torch.from_numpy(np.array(small) > 0)
    gate = gate[2::4, 2::4].to(q_cate.device)
    maps, _ = mixture(q_cate, gate, 0.0)

    # Back to the window's size, without the padding.
    maps = F.interpolate(maps[None], (rows, columns), mode='bilinear')[:, :, :high, :wide]
    return F.interpolate(maps, image.shape[:2], mode='bilinear')[0].cpu().numpy()


def mirrored(values: np.ndarray) -> np.ndarray:
    """(K, h, w) of a mirror image -> of the image itself: left and right classes change places."""
    order = list(range(len(values)))
    for left, right in PAIRS:
        order[left - 1] = right - 1
        order[right - 1] = left - 1
    return values[order][:, :, ::-1]


def either_side(values: np.ndarray) -> np.ndarray:
    """(K, h, w): left and right classes both get the sum of both. The model knows limbs better than
    sides."""
    values = values.copy()
    for left, right in PAIRS:
        both = values[left - 1] + values[right - 1]
        values[left - 1] = both
        values[right - 1] = both
    return values


def choose_garment(values: np.ndarray, allowed: np.ndarray, garments: str, share: float = 0.6,
                   least: float = 0.3) -> list[int]:
    """Decides for the whole person between garments that are easily taken for each other.

    The one with `share` of their posterior wins. It gets that of the others, in place, where it has
    at least `least` of it. Without a winner none of them has a label. values (K, h, w): posteriors
    of classes that can be there; allowed (K, h, w) bool. Returns the losers, ids without the
    background.
    """
    ids = np.array(class_ids(garments)) - 1
    group = values[ids].sum(0)
    sums = values[ids].sum((1, 2))
    best = ids[sums.argmax()]
    clear = sums.max() >= share * max(sums.sum(), 1e-6) and sums.max() > 0
    won = clear & (values[best] >= least * group) & allowed[best]
    values[ids] = np.where(won, 0, values[ids])
    values[best] = np.where(won, group, values[best])
    return [c for c in ids.tolist() if not (clear and c == best)]


def choose(values: np.ndarray, allowed: np.ndarray, mass: float) -> tuple[np.ndarray, np.ndarray]:
    """The best class among those that can be there, and its posterior among these.

    Returns ids (h, w), 0 where `choose_garment` rules the class out; and posteriors (h, w), 0 where
    the classes that can be there have less than `mass` of the whole. values (K, h, w); allowed (K,
    h, w) bool.
    """
    some = either_side(values) * allowed
    total = some.sum(0)
    lost = choose_garment(some, allowed, 'upper-clothes dress coat')
    lost += choose_garment(some, allowed, 'pants skirt')
    share = some.max(0) / total.clip(1e-6)
    best = some.argmax(0)
    names = np.where(np.isin(best, lost), 0, best + 1)
    return names, share * (total >= mass)


def label_person(model, image: np.ndarray, mask: np.ndarray, points: np.ndarray, certain: float,
                 mass: float) -> np.ndarray:
    """Label map (h, w) uint8 of one person's window: 0 where nothing is known. points (17, 3) in
    its pixels."""
    allowed = can_be(points, mask)[1:]            # (K, h, w)
    if not allowed.any():
        return np.zeros(mask.shape, np.uint8)
    plain = posteriors(model, image, mask)
    image = np.ascontiguousarray(image[:, ::-1])
    other = mirrored(posteriors(model, image, np.ascontiguousarray(mask[:, ::-1])))

    # What both images agree on, and both are certain of.
    first, sure = choose(plain, allowed, mass)
    second, also = choose(other, allowed, mass)
    kept = (first == second) & (np.minimum(sure, also) >= certain) & mask
    labels = (first * kept).astype(np.uint8)
    return without_halves(labels, allowed)


def without_halves(labels: np.ndarray, allowed: np.ndarray, least: float = 0.15) -> np.ndarray:
    """The label map without half garments.

    A dress or coat of which less than a share `least` lies where only tops can be is a pair of
    trousers, a skirt or a leg. A dress of which less than `least` lies on the legs is a shirt or a
    jacket. labels (h, w), allowed (K, h, w) bool.
    """
    below = allowed[PANTS - 1]
    legs = allowed[LEGS[0] - 1] | allowed[LEGS[1] - 1]
    for garment in (DRESS, COAT):
        pixels = labels == garment
        area = max(np.count_nonzero(pixels), 1)
        has_no_top = np.count_nonzero(pixels & below) > (1 - least) * area
        has_no_bottom = garment == DRESS and np.count_nonzero(pixels & legs) < least * area
        if has_no_top or has_no_bottom:
            labels = np.where(pixels, np.uint8(0), labels)
    return labels


# ---- many people -------------------------------------------------------------------------------


def check_keypoints(labels: np.ndarray, points: np.ndarray) -> list[tuple[str, int, bool]]:
    """Name, label, and whether it can be there, of each visible keypoint that has a label in a
    label map (H, W). points (17, 3)."""
    found = []
    for name, (x, y, v) in zip(KEYPOINTS, points):
        row = int(y)
        column = int(x)
        if v < VISIBLE or not (0 <= row < labels.shape[0] and 0 <= column < labels.shape[1]):
            continue
        label = int(labels[row, column])
        if label:
            found.append((name, label, label in labels_at(name)))
    return found


def label_photo(model, dataset: COCO, k: int,
                args: Namespace) -> Iterator[tuple[str, np.ndarray, Person]]:
    """(name, label map (H, W), Person) of each person of photo k that has keypoints and is not too
    small."""
    image = np.array(dataset.read_photo(dataset.photos[k]))
    people, _ = dataset.persons(k)
    for person in people:
        if person.keypoints is None or np.count_nonzero(person.mask) < args.smallest:
            continue
        window = person_window(person.mask)
        # Keypoints, mask and pixels of the window.
        points = person.keypoints - [window[1].start, window[0].start, 0]
        mask = np.ascontiguousarray(person.mask[window])
        pixels = np.ascontiguousarray(image[window])
        labels = np.zeros(person.mask.shape, np.uint8)
        labels[window] = label_person(model, pixels, mask, points, args.certain, args.mass)
        yield f'{dataset.stems[k]}_{person.id}', labels, person


@dataclass
class Tally:
    """What the labels of many people cover."""

    people: int = 0
    pixels: int = 0
    known: int = 0                                # pixels with a label
    visible: int = 0                              # keypoints
    labeled: int = 0                              # visible keypoints with a label
    right: int = 0                                # of these: with one that can be there

    def add(self, labels: np.ndarray, person: Person):
        checks = check_keypoints(labels, person.keypoints)
        self.people += 1
        self.pixels += np.count_nonzero(person.mask)
        self.known += np.count_nonzero(labels)
        self.visible += np.count_nonzero(person.keypoints[:, 2] >= VISIBLE)
        self.labeled += len(checks)
        self.right += sum(fits for _, _, fits in checks)

    def summary(self) -> str:
        people = counted(self.people, 'person', 'people')
        return (f'{people}: {percent(self.known, self.pixels)} of the pixels have a label; '
                f'{self.labeled} of {self.visible} visible keypoints have one, and '
                f'{percent(self.right, self.labeled)} of these can be there')


def label_split(model, dataset: COCO, args: Namespace):
    """Writes the label maps of all people, and prints how many keypoints agree. ValueError if all
    people are too small."""
    tally = Tally()
    for k in tqdm(range(len(dataset)), unit='photo', disable=None):
        for name, labels, person in label_photo(model, dataset, k, args):
            write_png(Path(args.out, f'{name}.png'), palette_image(labels, palette(19)))
            tally.add(labels, person)
    if not tally.people:
        raise ValueError(f'no person with keypoints has {args.smallest} pixels; lower --smallest')
    print(f'{tally.summary()} -> {os.path.join(args.out, "")}')


# ---- a look at them ----------------------------------------------------------------------------


def pick_people(dataset: COCO, count: int) -> list[tuple[int, Person]]:
    """`count` labeled people, each with the number of the photo, spread over the data set and over
    the larger half of their sizes."""
    found = []
    photos = np.linspace(0, len(dataset) - 1, min(6 * count, len(dataset))).astype(int)
    for k in photos.tolist():
        people, _ = dataset.persons(k)
        for person in people:
            if f'{dataset.stems[k]}_{person.id}' in dataset.parts:
                found.append((k, person))
    found.sort(key=lambda row: -np.count_nonzero(row[1].mask))
    step = max(1, len(found) // (2 * count))
    return found[:step * count:step]


def draw_people(dataset: COCO, path: str, count: int, columns: int = 4, side: int = 300):
    """A sheet of people, the photo beside the labels; unknown parts are gray."""
    chosen = pick_people(dataset, count)
    rows = -(-len(chosen) // columns)
    sheet = Image.new('RGB', (2 * columns * side, max(1, rows) * side), 'white')
    seen = set()
    for n, (k, person) in enumerate(chosen):
        window = person_window(person.mask)
        image = np.array(dataset.read_photo(dataset.photos[k]))[window]
        labels = dataset.labels(k, person)[window]
        seen |= set(np.unique(labels))
        x = 2 * side * (n % columns)
        y = side * (n // columns)
        sheet.paste(enlarged(Image.fromarray(image), side - 4), (x, y))
        sheet.paste(enlarged(overlay(image, labels[None]), side - 4), (x + side, y))
    write_png(path, add_legend(sheet, palette(58), dataset.class_names, sorted(seen)))


def enlarged(image: Image.Image, side: int) -> Image.Image:
    """The image whose long side has `side` pixels."""
    scale = side / max(image.size)
    size = [max(1, round(scale * length)) for length in image.size]
    return image.resize(size, Image.BILINEAR)


# ---- the command -------------------------------------------------------------------------------


def parse_arguments(argv=None):
    parser = CommandParser(__doc__)
    parser.add_argument('--root', type=filled, required=True, help='folder of COCO, as downloaded')
    add_shared(parser, 'split', default='fit', choices=COCO.splits,
               help='split, see docs/data.md')
    add_shared(parser, 'licenses')
    parser.add_argument('--out', type=filled, required=True, help='folder for the label maps')
    parser.add_argument('--certain', type=Between(0.01, 1, float), default=0.6, metavar='VALUE',
                        help="smallest posterior of a pixel's class (default: %(default)s)")
    parser.add_argument('--mass', type=Between(0, 1, float), default=0.3, metavar='VALUE',
                        help='smallest posterior of all classes that can be there '
                             '(default: %(default)s)')
    parser.add_argument('--smallest', type=Between(0, 10 ** 9), default=1500, metavar='PIXELS',
                        help='leave out smaller people (default: %(default)s)')
    parser.add_argument('--sheet', type=Ending('.png'), metavar='PNG',
                        help='also draw a sheet of people')
    parser.add_argument('--sheet-people', type=Between(1, 1000), metavar='N',
                        help=f'people on the sheet (default: {SHEET_PEOPLE})')
    parser.add_argument('--sheet-only', action='store_true',
                        help='draw the sheet of labels written before')
    add_model_flags(parser, test_short_side=SIDE, long_side=SIDE)
    return parser.parse_args(argv)


def check_people(dataset: COCO, args: Namespace):
    """ValueError where nobody has keypoints, or where the classes are not those of CIHP."""
    if dataset.class_names != CLASSES:
        raise ValueError(f'{args.root} has other classes than CIHP, and keypoints say where those '
                         'of CIHP can be; give a folder of COCO 2017')
    if not any(a.keypoints is not None for found in dataset.people for a in found):
        raise ValueError(f'{args.root} has no person with keypoints in the split {args.split}; '
                         'unpack annotations/person_keypoints_*.json of COCO 2017 there')


def main(argv=None):
    args = parse_arguments(argv)
    with user_errors():
        if args.sheet:
            check_target(args.sheet)
        else:
            refuse_given(args, ('sheet_only', 'sheet_people'),
                         'is for a sheet of people; name its file with --sheet')
        dataset = open_dataset('COCO', args.root, args.split, licenses=args.licenses)
        if not args.sheet_only:
            check_people(dataset, args)
            model = load_model(args, args.device)
            check_classes(model, args.weights, 'COCO', dataset.class_names)
            label_split(model, dataset, args)
        if args.sheet:
            advice = 'label the people first, without --sheet-only'
            dataset.parts = index_folder(args.out, ('.png',), advice)
            if not dataset.has_label_maps:
                raise ValueError(f'{args.out} has no label map of a person of the split '
                                 f'{args.split}; label them first, without --sheet-only')
            draw_people(dataset, args.sheet, args.sheet_people or SHEET_PEOPLE)


if __name__ == '__main__':
    start(main)

"""Labels the parts of COCO's people, where their keypoints and a model are sure: pseudo labels for
training.

    python -m util.keypoints --root coco --split fit --out parts/ --weights uniparser.pt
    python train.py --data COCO --root coco --parts parts/

The keypoints say which classes can be at a pixel (`skeleton.can_be`), and which arm or leg is the
left one. Among these classes the model chooses: it sees every person alone, once as it is and once
mirrored, inside the known mask. A pixel gets a label where both images agree with a posterior of at
least --certain, and where the classes that can be there have at least --mass of the posterior of
all. Other pixels stay unknown. PHOTO_ANNOTATION.png is the label map of one person, of the photo's
size: 0 where nothing is known.
"""

import preflight

preflight.require('data', 'infer', 'uniparser', 'util')

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from tqdm import tqdm

from data import input_size, network_input
from infer import add_model_flags, check_classes, load_model
from uniparser import correlate
from util.beyond import mixture
from util.coco import KEYPOINTS
from util.datasets import COCO, open_dataset
from util.files import check_target, index_folder, read_stored, user_errors, write_png
from util.masks import box_of
from util.person_counts import percent
from util.pictures import add_legend, overlay, palette, palette_image
from util.skeleton import CLASSES, VISIBLE, can_be, class_ids, labels_at

MARGIN = 0.15  # of the box around a person, on each side
SIDE = 320  # long side of the network's input, in pixels
PAIRS = COCO.flip_pairs
DRESS, COAT, PANTS = (CLASSES.index(name) for name in ('dress', 'coat', 'pants'))
LEGS = CLASSES.index('left-leg'), CLASSES.index('right-leg')


# ---- one person ----------------------------------------------------------------------------------


def person_window(mask, share=MARGIN):
    """Rows and columns of a person's box with a margin, inside the photo. mask (H, W) bool."""
    x, y, w, h = box_of(mask)
    margin = round(share * max(w, h))
    return slice(max(0, y - margin), y + h + margin), slice(max(0, x - margin), x + w + margin)


@torch.no_grad()
def posteriors(model, image, mask):
    """Posterior of each class at each pixel of one person -> (K, h, w) float32, from
    `beyond.mixture`. image (h, w, 3) uint8 and mask (h, w) bool: the person's window."""
    config, photo = model.config, Image.fromarray(image)
    out = model.outputs(network_input(photo, config))
    q_cate = correlate(out['k_cate'], out['f_cate'][0], config.space)  # (K, h/4, w/4)
    (rows, columns), (high, wide) = input_size(photo, config)
    # The mask at the size of the correlations, a cell wider, so that the posteriors reach its edge.
    small = (
        Image.fromarray(mask * np.uint8(255))
        .resize((wide, high), Image.NEAREST)
        .filter(ImageFilter.MaxFilter(7))
    )
    gate = torch.zeros(rows, columns, dtype=torch.bool)
    gate[:high, :wide] = torch.from_numpy(np.array(small) > 0)
    gate = gate[2::4, 2::4].to(q_cate.device)
    maps, _ = mixture(q_cate, gate, 0.0)
    maps = F.interpolate(maps[None], (rows, columns), mode='bilinear')[:, :, :high, :wide]
    return F.interpolate(maps, image.shape[:2], mode='bilinear')[0].cpu().numpy()


def mirrored(values):
    """(K, h, w) of a mirror image -> of the image itself: left and right classes change places."""
    order = list(range(len(values)))
    for left, right in PAIRS:
        order[left - 1], order[right - 1] = right - 1, left - 1
    return values[order][:, :, ::-1]


def either_side(values):
    """(K, h, w): left and right classes both get the sum of both. The model knows limbs better than
    sides."""
    values = values.copy()
    for left, right in PAIRS:
        values[left - 1] = values[right - 1] = values[left - 1] + values[right - 1]
    return values


def settle(values, allowed, garments, share=0.6, least=0.3):
    """Decides for the whole person between garments that are easily taken for each other, in place:
    the one with `share` of their posterior wins, and gets that of the others where it has at least
    `least` of it. Without a winner none of them has a label. values (K, h, w): posteriors of
    classes that can be there; allowed (K, h, w) bool."""
    ids = np.array(class_ids(garments)) - 1
    group = values[ids].sum(0)
    sums = values[ids].sum((1, 2))
    best = ids[sums.argmax()]
    clear = sums.max() >= share * max(sums.sum(), 1e-6) and sums.max() > 0
    won = clear & (values[best] >= least * group) & allowed[best]
    values[ids] = np.where(won, 0, values[ids])
    values[best] = np.where(won, group, values[best])
    return [c for c in ids.tolist() if not (clear and c == best)]


def choose(values, allowed, mass):
    """The best class among those that can be there -> ids (h, w), 0 where it is one that `settle`
    rules out, and its posterior among these (h, w), 0 where they have less than `mass` of the
    whole. values (K, h, w); allowed (K, h, w) bool."""
    some = either_side(values) * allowed
    total = some.sum(0)
    lost = settle(some, allowed, 'upper-clothes dress coat') + settle(some, allowed, 'pants skirt')
    share = some.max(0) / total.clip(1e-6)
    best = some.argmax(0)
    names = np.where(np.isin(best, lost), 0, best + 1)
    return names, share * (total >= mass)


def label_person(model, image, mask, points, certain, mass):
    """Label map (h, w) uint8 of one person's window: 0 where nothing is known. points (17, 3) in
    its pixels."""
    allowed = can_be(points, mask)[1:]  # (K, h, w)
    if not allowed.any():
        return np.zeros(mask.shape, np.uint8)
    plain = posteriors(model, image, mask)
    other = mirrored(
        posteriors(model, np.ascontiguousarray(image[:, ::-1]), np.ascontiguousarray(mask[:, ::-1]))
    )
    first, sure = choose(plain, allowed, mass)
    second, also = choose(other, allowed, mass)
    kept = (first == second) & (np.minimum(sure, also) >= certain) & mask
    labels = (first * kept).astype(np.uint8)
    return without_halves(labels, allowed)


def without_halves(labels, allowed, least=0.15):
    """The label map without half garments. A dress or coat of which less than a share `least` lies
    where only tops can be is a pair of trousers, a skirt or a leg. A dress of which less than
    `least` lies on the legs is a shirt or a jacket. labels (h, w), allowed (K, h, w) bool."""
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


# ---- many people ---------------------------------------------------------------------------------


def check_keypoints(labels, points):
    """Visible keypoints of a person that lie on a label map (H, W) -> list of (name, label, whether
    it can be there); keypoints without a label are left out."""
    found = []
    for name, (x, y, v) in zip(KEYPOINTS, points):
        row, column = int(y), int(x)
        if v < VISIBLE or not (0 <= row < labels.shape[0] and 0 <= column < labels.shape[1]):
            continue
        label = int(labels[row, column])
        if label:
            found.append((name, label, label in labels_at(name)))
    return found


def label_photo(model, dataset, k, args):
    """(name, label map (H, W), Person) of each person of photo k that has keypoints and is not too
    small."""
    image = np.array(read_stored(dataset.photos[k]))
    for person in dataset.persons(k)[0]:
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
    known: int = 0  # pixels with a label
    visible: int = 0  # keypoints
    labelled: int = 0  # visible keypoints with a label
    right: int = 0  # of these: with one that can be there

    def add(self, labels, person):
        checks = check_keypoints(labels, person.keypoints)
        self.people += 1
        self.pixels += np.count_nonzero(person.mask)
        self.known += np.count_nonzero(labels)
        self.visible += np.count_nonzero(person.keypoints[:, 2] >= VISIBLE)
        self.labelled += len(checks)
        self.right += sum(fits for _, _, fits in checks)

    def summary(self):
        return (
            f'{self.people} people: {percent(self.known, self.pixels)} of their pixels have a '
            f'label; {self.labelled} of {self.visible} visible keypoints have one, and '
            f'{percent(self.right, self.labelled)} of these can be there'
        )


def run(model, dataset, args):
    """Writes the label maps of all people, and prints how many keypoints agree."""
    tally = Tally()
    for k in tqdm(range(len(dataset)), unit='photo'):
        for name, labels, person in label_photo(model, dataset, k, args):
            write_png(Path(args.out, f'{name}.png'), palette_image(labels, palette(19)))
            tally.add(labels, person)
    print(f'{tally.summary()} -> {os.path.join(args.out, "")}')


# ---- a look at them ------------------------------------------------------------------------------


def pick_people(dataset, count):
    """`count` labelled people, spread over the data set and over the larger half of their sizes ->
    list of (number of the photo, Person)."""
    found = []
    for k in np.linspace(0, len(dataset) - 1, min(6 * count, len(dataset))).astype(int).tolist():
        for person in dataset.persons(k)[0]:
            if f'{dataset.stems[k]}_{person.id}' in dataset.parts:
                found.append((k, person))
    found.sort(key=lambda row: -np.count_nonzero(row[1].mask))
    step = max(1, len(found) // (2 * count))
    return found[: step * count : step]


def draw_people(dataset, path, count, columns=4, side=300):
    """A sheet of people, the photo beside the labels; unknown parts are gray."""
    chosen = pick_people(dataset, count)
    rows = -(-len(chosen) // columns)
    sheet = Image.new('RGB', (2 * columns * side, max(1, rows) * side), 'white')
    seen = set()
    for n, (k, person) in enumerate(chosen):
        window = person_window(person.mask)
        image = np.array(read_stored(dataset.photos[k]))[window]
        labels = dataset.labels(k, person)[window]
        seen |= set(np.unique(labels))
        x, y = 2 * side * (n % columns), side * (n // columns)
        sheet.paste(enlarged(Image.fromarray(image), side - 4), (x, y))
        sheet.paste(enlarged(overlay(image, labels[None]), side - 4), (x + side, y))
    write_png(path, add_legend(sheet, palette(58), dataset.class_names, sorted(seen)))


def enlarged(image, side):
    """A Pillow image whose long side has `side` pixels."""
    scale = side / max(image.size)
    return image.resize([max(1, round(scale * length)) for length in image.size], Image.BILINEAR)


def parse_arguments(argv=None):
    parser = preflight.CommandParser(__doc__)
    parser.add_argument('--root', required=True, help='folder of COCO, as downloaded')
    parser.add_argument(
        '--split', default='fit', choices=COCO.splits, help='default: fit, see docs/data.md'
    )
    parser.add_argument(
        '--licenses', default='', help="keep photos with these licenses: free, or ids such as 4,5"
    )
    parser.add_argument('--out', required=True, help='folder for the label maps')
    parser.add_argument(
        '--certain',
        type=preflight.Between(0.01, 1, float),
        default=0.6,
        metavar='VALUE',
        help="smallest posterior of a pixel's class; default 0.6",
    )
    parser.add_argument(
        '--mass',
        type=preflight.Between(0, 1, float),
        default=0.3,
        metavar='VALUE',
        help='smallest posterior of all classes that can be there; default 0.3',
    )
    parser.add_argument(
        '--smallest',
        type=preflight.Between(0, 10**9),
        default=1500,
        metavar='PIXELS',
        help='leave out smaller people; default 1500',
    )
    parser.add_argument('--sheet', metavar='PNG', help='also draw a sheet of people')
    parser.add_argument(
        '--sheet-people', type=preflight.Between(1, 1000), default=40, help='default 40'
    )
    parser.add_argument(
        '--sheet-only', action='store_true', help='draw the sheet of labels written before'
    )
    add_model_flags(parser)
    parser.set_defaults(test_short_side=SIDE, long_side=SIDE)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_arguments(argv)
    with user_errors():
        if args.sheet:
            check_target(args.sheet)
        dataset = open_dataset('COCO', args.root, args.split, licenses=args.licenses)
        if not args.sheet_only:
            model = load_model(args, args.device)
            check_classes(model, args.weights, 'COCO', COCO.class_names)
            run(model, dataset, args)
        if args.sheet:
            dataset.parts = index_folder(args.out, ('.png',))
            draw_people(dataset, args.sheet, args.sheet_people)


if __name__ == '__main__':
    preflight.start(main)

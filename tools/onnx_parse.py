"""Parses photos without torch: an ONNX file of tools.export, onnxruntime, numpy and Pillow.

    python -m tools.export --weights weights/uniparser_ccp.pt --out uniparser.onnx
    python -m tools.onnx_parse photo.jpg holiday/ --weights uniparser.onnx --out results/

The files in --out are those of infer.py. Sizes, thresholds and class names are in the metadata of
the ONNX file. To port the method to another language, port `parse` and the functions below it, in
this order; they are arithmetic on arrays:

    photo -> image (1, 3, H, W), RGB                     network_input
    image -> scores (P,), centers (P, 2),                the ONNX file  Eqs. (1)-(3)
             q_ins (P, h, w), q_cate (K, h, w)
    scores -> people: centers above theta_center         find_people    Eq. (2), WHERE
    q_ins, q_cate -> their final scores                  rank_people
    q_ins -> a person's pixels: above theta_mask         paint_parts    Sec. 3.4, index
    q_cate -> the classes that are clear in the person   mixture, part_scores, unsure_sides
           -> label map (H0, W0) of the photo's size     paint_paper

h = H / 4 and w = W / 4. The functions of the same names in uniparser.py and util/beyond.py say why;
`paint_released` is for files of recipe `released`, such as the authors'.
"""
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
from PIL import Image

from util.cli import CommandParser, filled, start
from util.files import (UNKNOWN, check_failures, check_target, counted, find_photos, make_folder,
                        printable, result_names, short, user_errors)
from util.images import read_photo
from util.index import write_index
from util.results import Parsing, check_cutouts

STRIDE = 32                                       # H and W are multiples of it
ENDINGS = '_parts.png', '_people.png', '_overlay.jpg', '.json'          # of the results
ADVICE = 'write one with python -m tools.export --out uniparser.onnx'
# Of `util.beyond.mixture`.
TEMPERATURE = 0.1
ROUNDS = 10
POWER = 0.5


# -------------------------------------------------------------------------------------------------
# The ONNX file


class Model(NamedTuple):
    session: object                               # onnxruntime.InferenceSession
    settings: SimpleNamespace                     # the metadata


def open_model(path: str | Path) -> Model:
    """The UniParser in an ONNX file. ModuleNotFoundError without onnxruntime; OSError or ValueError
    for any other file."""
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise ModuleNotFoundError('an ONNX file needs onnxruntime; pip install '
                                  'onnxruntime') from None
    if not os.path.isfile(path):
        raise FileNotFoundError(f'{path} does not exist; {ADVICE}')
    try:
        session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
        metadata = session.get_modelmeta().custom_metadata_map
        settings = {name: json.loads(value) for name, value in metadata.items()}
    except Exception as error:                    # onnxruntime raises a dozen types
        if Path(path).suffix != '.onnx':
            raise ValueError(f'{path} is not an ONNX file; {ADVICE}') from None
        raise ValueError(f'{path} cannot be read ({short(error, 200)}); {ADVICE}') from None
    if settings.get('system') != 'uniparser':
        raise ValueError(f'{path} is not a UniParser file of this version; {ADVICE}')
    return Model(session, SimpleNamespace(**settings))


def parse(model: Model, photo: Image.Image, path: Path | None = None) -> Parsing:
    """An upright RGB photo -> the people with visible parts, as of `UniParser.predict`. path: of
    the photo, for the results."""
    settings = model.settings
    image, size = network_input(photo, settings)
    scores, centers, q_ins, q_cate = model.session.run(None, {'image': image})
    people = find_people(scores, centers, q_ins, settings)
    people = rank_people(people, q_cate, settings)
    parsing = paint_parts(people, q_cate, size, photo.size[::-1], settings)
    # Centers are pixels of the image; both sides of the photo have a scale of their own.
    centers = people.centers * photo.size / size[::-1]
    return Parsing(parsing, people.scores, centers, settings.class_names, photo, path).visible()


# -------------------------------------------------------------------------------------------------
# From a photo to the network's input


def network_input(photo: Image.Image, settings) -> tuple[np.ndarray, tuple[int, int]]:
    """RGB photo -> image (1, 3, H, W) float32, and the (height, width) of the photo in it."""
    # The short side becomes test_short_side, unless the long side would pass long_side.
    width, height = photo.size
    scale = min(settings.test_short_side / min(photo.size), settings.long_side / max(photo.size))
    w = max(1, int(width * scale + 0.5))
    h = max(1, int(height * scale + 0.5))
    if settings.recipe == 'released':
        # Plain bilinear, without antialiasing.
        steps = width / w, 0, 0, 0, height / h, 0
        photo = photo.transform((w, h), Image.AFFINE, steps, Image.BILINEAR)
    else:
        photo = photo.resize((w, h), Image.BILINEAR)

    # Normalized; then zeros to the right and below, up to multiples of the stride.
    pixels = np.asarray(photo, np.float32) / 255
    pixels = (pixels - np.float32(settings.mean)) / np.float32(settings.std)
    padded = -(-h // STRIDE) * STRIDE, -(-w // STRIDE) * STRIDE
    image = np.zeros((1, 3, *padded), np.float32)
    image[0, :, :h, :w] = pixels.transpose(2, 0, 1)
    return image, (h, w)


# -------------------------------------------------------------------------------------------------
# From the network's outputs to people


class People(NamedTuple):
    """People found in a photo, best first."""
    scores: np.ndarray                            # (N,) in 0..1
    centers: np.ndarray                           # (N, 2) pixels (x, y) of the image
    q_ins: np.ndarray                             # (N, h, w)

    def take(self, kept) -> 'People':
        """The people with these indices, in this order."""
        return People(self.scores[kept], self.centers[kept], self.q_ins[kept])


def find_people(scores: np.ndarray, centers: np.ndarray, q_ins: np.ndarray, settings) -> People:
    """The peaks of the heat map that are people, each person once."""
    # Eq. (2), WHERE. The file keeps local maxima alone, best first.
    people = People(scores, centers, q_ins).take(scores > settings.theta_center)
    return people.take(distinct(people.q_ins > settings.theta_mask, settings.theta_same))


def distinct(masks: np.ndarray, theta: float) -> list[int]:
    """Indices of masks (N, h, w), best first, without those whose IoU with a better one that is
    kept is above theta."""
    if theta >= 1:
        return list(range(len(masks)))
    kept = []
    for n, mask in enumerate(masks):
        is_new = True
        for k in kept:
            shared = (mask & masks[k]).sum()
            union = (mask | masks[k]).sum()
            if shared > theta * union:
                is_new = False
        if is_new:
            kept.append(n)
    return kept


def rank_people(people: People, q_cate: np.ndarray, settings) -> People:
    """Leaves unclear people out, and sorts the rest by the clarity of their parts, as far as the
    settings ask for it."""
    inside = people.q_ins > settings.theta_mask                 # (N, h, w)
    area = np.maximum(inside.sum((1, 2)), 1)
    if settings.theta_person:
        # The mean correlation of the person's pixels, times the root of the center's score.
        clear = (inside * people.q_ins).sum((1, 2)) / area * np.sqrt(people.scores)
        kept = clear > settings.theta_person
        people = people.take(kept)
        inside = inside[kept]
        area = area[kept]
    if settings.score == 'center':
        return people
    # The mean over the person's pixels of its correlation times that of the best class.
    quality = (inside * people.q_ins * q_cate.max(0)).sum((1, 2))
    scores = np.maximum(quality, 0) / area
    order = np.argsort(-scores, kind='stable')
    order = order[scores[order] > settings.theta_score]
    return people._replace(scores=scores).take(order)


# -------------------------------------------------------------------------------------------------
# From people to their parts


def paint_parts(people: People, q_cate: np.ndarray, size: tuple[int, int], shape: tuple[int, int],
                settings) -> np.ndarray:
    """Label maps (N, H0, W0) uint8 of the people. size: (height, width) of the photo in the image;
    shape: (H0, W0)."""
    theta_paint = settings.theta_paint or settings.theta_mask
    paint = paint_released if settings.recipe == 'released' else paint_paper
    unsure = unsure_sides(q_cate, settings.flip_pairs, settings.theta_side)
    parsing = np.zeros((len(people.scores), *shape), np.uint8)
    for labels, q_ins in zip(parsing, people.q_ins):
        # Sec. 3.4, index: the person's map selects from the maps of the categories.
        inside = q_ins > settings.theta_mask                    # (h, w)
        if settings.assign == 'mixture':
            maps, clear = mixture(q_cate, inside, settings.theta_part)
        else:
            maps = q_cate
            clear = part_scores(q_cate, inside, theta_paint)
        if settings.theta_side:
            maps = np.where(unsure, np.float32(0), maps)
        classes = np.flatnonzero(clear > settings.theta_part)
        if len(classes):
            paint(labels, inside * maps[classes], classes, size, theta_paint)
        if settings.whole:
            # The person's pixels without a class.
            mask = np.zeros(shape, np.uint8)
            paint_paper(mask, q_ins[None], np.array([0]), size, settings.theta_mask)
            labels[(labels == 0) & (mask > 0)] = UNKNOWN
    return parsing


def unsure_sides(q_cate: np.ndarray, flip_pairs: list, theta: float) -> np.ndarray:
    """Where a left part and the right one correlate alike, within theta: bool (K, h, w), True for
    both. flip_pairs: their labels (left, right), from 1."""
    unsure = np.zeros(q_cate.shape, bool)
    for left, right in flip_pairs:
        close = np.abs(q_cate[left - 1] - q_cate[right - 1]) < theta
        unsure[left - 1] = close
        unsure[right - 1] = close
    return unsure


def part_scores(q_cate: np.ndarray, inside: np.ndarray, theta: float) -> np.ndarray:
    """How clear each class is in a person, (K,): the sum of its correlations above theta over the
    number of those above 0.1. q_cate (K, h, w), inside (h, w) bool."""
    q = q_cate[:, inside]                                       # (K, pixels)
    return (q * (q > theta)).sum(1) / ((q > 0.1).sum(1) + 1e-5)


def mixture(q_cate: np.ndarray, inside: np.ndarray, theta: float) -> tuple[np.ndarray, np.ndarray]:
    """Posteriors (K, h, w) of the classes of a person's pixels, 0 elsewhere, and how clear each
    class is (K,): its mean posterior where it wins. Only classes above theta take part."""
    maps = np.zeros_like(q_cate)
    if not inside.any():
        return maps, np.zeros(len(q_cate))

    # Expectation maximization of the classes' shares, from equal ones.
    logits = q_cate[:, inside] / TEMPERATURE                    # (K, pixels)
    log_shares = np.zeros((len(logits), 1), np.float32)
    for _ in range(ROUNDS):
        shares = softmax(logits + log_shares).mean(1, keepdims=True)
        log_shares = POWER * np.log(np.maximum(shares, 1e-6))
    logits = logits + log_shares

    # The mean posterior of the pixels that each class wins.
    posteriors = softmax(logits)
    winner = posteriors.argmax(0)
    number = np.bincount(winner, minlength=len(logits))
    total = np.bincount(winner, posteriors.max(0), minlength=len(logits))
    clear = total / np.maximum(number, 1)

    # Posteriors among the clear classes.
    kept = clear > theta
    if kept.any():
        logits[~kept] = -np.inf
        maps[:, inside] = softmax(logits)
    return maps, clear


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the first axis."""
    exponentials = np.exp(logits - logits.max(0))
    return exponentials / exponentials.sum(0)


# ---- painting


def paint_paper(labels: np.ndarray, maps: np.ndarray, classes: np.ndarray, size: tuple[int, int],
                theta: float):
    """Writes a person's labels into labels (H0, W0): the class of the largest value where that is
    above theta. maps (k, h, w) of the classes (k,) from 0, 0 outside the person; size: (height,
    width) of the photo in the image, whose cells alone are enlarged."""
    x0, x1, wx = bilinear(maps.shape[2], size[1] / 4, labels.shape[1])
    y0, y1, wy = bilinear(maps.shape[1], size[0] / 4, labels.shape[0])
    # A pixel above theta lies beside a cell above theta: other rows and columns stay 0.
    above = (maps > theta).any(0)                               # (h, w)
    rows = above[y0].any(1) | above[y1].any(1)
    columns = above[:, x0].any(0) | above[:, x1].any(0)
    x0, x1, wx = x0[columns], x1[columns], wx[columns]
    for row in np.flatnonzero(rows):
        upper = maps[:, y0[row]]
        line = upper + wy[row] * (maps[:, y1[row]] - upper)     # (k, w)
        left = line[:, x0]
        values = left + wx * (line[:, x1] - left)               # (k, columns)
        found = classes[values.argmax(0)] + 1
        labels[row, columns] = np.where(values.max(0) > theta, found, 0)


def paint_released(labels: np.ndarray, maps: np.ndarray, classes: np.ndarray,
                   size: tuple[int, int], theta: float):
    """The same as the released code does it: to the size of the photo in the image; then on to a
    smaller photo, or the labels, by nearest, to a larger one."""
    maps = enlarge(maps, (4 * maps.shape[1], 4 * maps.shape[2]))[:, :size[0], :size[1]]
    pixels = maps.shape[1] * maps.shape[2]
    if labels.size < pixels:
        maps = enlarge(maps, labels.shape)
    found = np.where(maps.max(0) > theta, classes[maps.argmax(0)] + 1, 0)
    if labels.size > pixels:
        rows = np.arange(labels.shape[0]) * found.shape[0] // labels.shape[0]
        columns = np.arange(labels.shape[1]) * found.shape[1] // labels.shape[1]
        found = found[rows[:, None], columns]
    labels[:] = found


def enlarge(maps: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Maps (k, h, w) -> (k, *shape), bilinear."""
    y0, y1, wy = bilinear(maps.shape[1], maps.shape[1], shape[0])
    x0, x1, wx = bilinear(maps.shape[2], maps.shape[2], shape[1])
    rows = maps[:, y0] + wy[:, None] * (maps[:, y1] - maps[:, y0])
    return rows[..., x0] + wx * (rows[..., x1] - rows[..., x0])


def bilinear(cells: int, used: float, pixels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each pixel along one axis: the cell before, the cell behind, and the weight of the
    latter. `used` of the map's cells (a real number) cover the pixels, centers on centers."""
    source = (np.arange(pixels) + 0.5) * (used / pixels) - 0.5
    source = source.clip(0, cells - 1)
    before = source.astype(int)
    return before, np.minimum(before + 1, cells - 1), (source - before).astype(np.float32)


# -------------------------------------------------------------------------------------------------
# The command


def parse_files(args):
    """Parses the photos of the arguments into args.out. ValueError at the end if some could not be
    parsed."""
    paths = find_photos(args.photos)
    model = open_model(args.weights)
    make_folder(args.out)
    inputs = {os.path.realpath(path) for path in paths}
    people = 0
    failed = 0
    for path, name in zip(paths, result_names(paths)):
        try:
            people += parse_file(model, path, name, Path(args.out), inputs, args.cutouts)
        except (OSError, ValueError) as error:
            print(f'error: {error}', file=sys.stderr)
            failed += 1
    print(f'{len(paths) - failed:,} of {counted(len(paths), "photo")}, '
          f'{counted(people, "person", "people")} -> {args.out}/')
    write_index(args.out)
    check_failures(failed)


def parse_file(model: Model, path: Path, name: str, folder: Path, inputs: set[str],
               cutouts: bool) -> int:
    """Parses a photo and writes its results -> the number of people."""
    for ending in ENDINGS:
        check_target(folder / f'{name}{ending}', inputs)
    check_cutouts(folder / f'{name}_cutouts', inputs)
    found = parse(model, read_photo(path), path)
    found.save(folder, name, cutouts)
    number = len(found.scores)
    message = counted(number, 'person', 'people') if number else 'found no person'
    print(f'{printable(path)}: {message}')
    return number


def parse_arguments(argv=None):
    parser = CommandParser(__doc__)
    parser.add_argument('photos', nargs='+', help='files, folders (searched for photos) and globs')
    parser.add_argument('--weights', type=filled, required=True, metavar='FILE',
                        help='an ONNX file of tools.export')
    parser.add_argument('--out', type=filled, default='results',
                        help='folder for the results (default: %(default)s)')
    parser.add_argument('--cutouts', action='store_true',
                        help='also write each person and part as an RGBA picture')
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_arguments(argv)
    with user_errors():
        parse_files(args)


if __name__ == '__main__':
    start(main)

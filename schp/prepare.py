"""schp prepare: sets with merged labels in the layout of LIP, made from downloads.

    DeepFashion      DeepFashion-MultiModal: images, segm, densepose; split into train and val
    LIP, CCP         as `schp train` reads them, with their own train and val
"""
import argparse
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from PIL import Image
from tqdm import tqdm

from schp.data import LIP, flatten, open_dataset
from schp.merged import (SCHEMES, SEGM, cihp_to_merged, deepfashion_to_merged, find_scheme,
                         lip_to_merged)
from util.cli import Between, add_shared, filled
from util.datasets import Photos
from util.files import index_folder, make_folder, writing
from util.images import load_image, read_labels, read_stored

# Training images of DeepFashion's 12,701, as in the README of ViWear's fork.
NUM_TRAIN = 2500
DEFAULT_SCHEMES = dict(DeepFashion='sep', LIP='sans_torso', CCP='sans_torso')

# Of the JPEG files that are written.
QUALITY = 95

# Returns a photo (RGB) and its merged labels (uint8), images of one size.
Reader = Callable[[], tuple[Image.Image, Image.Image]]

# {split: {id: its reader}}.
Splits = dict[str, dict[str, Reader]]


# ---- DeepFashion-MultiModal --------------------------------------------------------------------


def find_files(root: str) -> tuple[dict, int]:
    """-> {id: paths of its photo, segmentation and DensePose map}, and the number of segmentations
    without one of the other two."""
    photos = index_folder(os.path.join(root, 'images'))
    segm = index_folder(os.path.join(root, 'segm'))
    parts = index_folder(os.path.join(root, 'densepose'))
    ids = [name.removesuffix('_segm') for name in segm if name.endswith('_segm')]
    files = {}
    for i in ids:
        if i in photos and f'{i}_densepose' in parts:
            files[i] = photos[i], segm[f'{i}_segm'], parts[f'{i}_densepose']
    if not files:
        raise FileNotFoundError(f'{root} holds no images/ID.jpg with segm/ID_segm.png and '
                                'densepose/ID_densepose.png; unpack the three archives of '
                                'DeepFashion-MultiModal there')
    return files, len(ids) - len(files)


def choose(ids: list, num_train: int, num_val: int | None, seed: int) -> tuple[list, list]:
    """Disjoint lists (train, val) in random order. num_val None: all that train leaves."""
    if num_val is None:
        num_val = len(ids) - num_train
    if num_train < 1 or num_val < 1 or num_train + num_val > len(ids):
        raise ValueError(f'{num_train} images for training and {num_val} for validation cannot be '
                         f'taken out of {len(ids)}; choose other numbers with --samples and '
                         '--val-samples')
    order = [ids[i] for i in np.random.default_rng(seed).permutation(len(ids))]
    return order[:num_train], order[num_train:num_train + num_val]


def read_parts(path: str) -> np.ndarray:
    """DensePose's parts (H, W), uint8: channel 2 of an RGB picture."""
    picture = np.asarray(load_image(path))
    if picture.ndim != 3 or picture.dtype != np.uint8 or picture.shape[2] < 3:
        raise ValueError(f'{path} is no DensePose map of three channels; get the file again')
    return picture[..., 2]


def read_deepfashion(files: tuple, scheme: str) -> tuple[Image.Image, Image.Image]:
    """A Reader, from the three files of an id."""
    photo = read_stored(files[0])
    segm = read_labels(files[1], len(SEGM) - 1)
    parts = read_parts(files[2])
    if segm.shape != photo.size[::-1] or parts.shape != segm.shape:
        raise ValueError(f'{files[0]}, {files[1]} and {files[2]} differ in size; get the files '
                         'again')
    try:
        return photo, Image.fromarray(deepfashion_to_merged(segm, parts, scheme))
    except ValueError as error:
        # The labels of the segmentation have been checked, so it is a label of DensePose's.
        raise ValueError(f'{files[2]}: {error}') from None


def split_deepfashion(root: str, scheme: str, samples: int, val_samples: int,
                      seed: int) -> tuple[Splits, int]:
    """-> the splits, and the number of images left out. The fork draws val from all images, so that
    it overlaps train; here the two are disjoint."""
    files, left_out = find_files(root)
    train, val = choose(list(files), samples or NUM_TRAIN, val_samples or None, seed)
    splits = {}
    for split, ids in (('train', train), ('val', val)):
        splits[split] = {i: partial(read_deepfashion, files[i], scheme) for i in ids}
    return splits, left_out


# ---- sets of single people ---------------------------------------------------------------------


def read_single(dataset: Photos, i: int, scheme: str) -> tuple[Image.Image, Image.Image]:
    """A Reader, for image i of a data set with the labels of LIP or of CIHP."""
    image, parsing, ignore = dataset.read(i)
    is_lip = dataset.class_names == LIP.class_names
    to_merged = lip_to_merged if is_lip else cihp_to_merged
    merged = to_merged(flatten(parsing, ignore), scheme)
    return Image.fromarray(image), Image.fromarray(merged)


def split_singles(name: str, root: str, scheme: str, samples: int, val_samples: int) -> Splits:
    """The first images of each split, as the fork takes them."""
    splits = {}
    for split, most in (('train', samples), ('val', val_samples)):
        dataset = open_dataset(name, root, split)
        count = min(len(dataset), most or len(dataset))
        splits[split] = {dataset.ids[i]: partial(read_single, dataset, i, scheme)
                         for i in range(count)}
    return splits


# ---- writing -----------------------------------------------------------------------------------


def prepare(data: str, root: str, out: str, scheme: str | None = None, samples: int = 0,
            val_samples: int = 0, seed: int = 0) -> dict:
    """Makes the folder `out` with merged labels: {train,val}_images/ID.jpg, {train,val}_
    segmentations/ID.png, {train,val}_id.txt. It appears when it is complete.

    data: one of DEFAULT_SCHEMES, in the folder `root`
    scheme: one of merged.SCHEMES; by default sep of DeepFashion, sans_torso of the others
    samples: training images; 0 = 2500 of DeepFashion, all of the others
    val_samples: validation images; 0 = all that are left
    seed: of the split of DeepFashion

    Returns dict(train, val, left_out): numbers of images. Left out are those that lack a file.
    OSError or ValueError with one sentence for what cannot be done."""
    scheme = scheme or DEFAULT_SCHEMES[data]
    find_scheme(scheme)
    if os.path.lexists(out):
        raise FileExistsError(f'{out} exists; choose another folder, or remove it')
    left_out = 0
    if data == 'DeepFashion':
        splits, left_out = split_deepfashion(root, scheme, samples, val_samples, seed)
    else:
        splits = split_singles(data, root, scheme, samples, val_samples)

    # A hidden folder beside `out`, which is renamed at the end.
    parent = os.path.dirname(os.path.abspath(out))
    make_folder(parent)
    with writing(parent):
        folder = tempfile.TemporaryDirectory(prefix='.prepare-', dir=parent)
    with folder as temporary:
        made = os.path.join(temporary, 'set')
        for split, readers in splits.items():
            write_split(made, split, readers)
        with writing(out):
            os.rename(made, out)
    counts = {split: len(readers) for split, readers in splits.items()}
    return dict(counts, left_out=left_out)


def write_split(folder: str, split: str, readers: dict[str, Reader]):
    """One split of `prepare`, several images at a time."""
    images = os.path.join(folder, f'{split}_images')
    labels = os.path.join(folder, f'{split}_segmentations')
    make_folder(images)
    make_folder(labels)

    def write(i):
        photo, merged = readers[i]()
        with writing(folder):
            photo.save(os.path.join(images, f'{i}.jpg'), quality=QUALITY)
            merged.save(os.path.join(labels, f'{i}.png'))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(tqdm(pool.map(write, readers), split, len(readers), disable=None))
    with writing(folder), open(os.path.join(folder, f'{split}_id.txt'), 'w') as file:
        file.writelines(f'{i}\n' for i in readers)


# ---- the command -------------------------------------------------------------------------------


def add_flags(parser: argparse.ArgumentParser):
    add_shared(parser, 'data', choices=list(DEFAULT_SCHEMES), default='DeepFashion')
    add_shared(parser, 'root', required=True)
    parser.add_argument('--out', type=filled, required=True,
                        help='folder of the prepared set, which does not exist yet')
    parser.add_argument('--scheme', choices=list(SCHEMES),
                        help='scheme of the merged labels (default: sep of DeepFashion, else '
                             'sans_torso)')
    parser.add_argument('--samples', type=Between(0, 10 ** 9), default=0,
                        help='training images (default: 2500 of DeepFashion, all of the others)')
    parser.add_argument('--val-samples', type=Between(0, 10 ** 9), default=0,
                        help='validation images (default: all that are left)')
    parser.add_argument('--seed', type=Between(0, 2 ** 32), default=0,
                        help="seed of DeepFashion's split (default: %(default)s)")


def command(args: argparse.Namespace):
    """`python -m schp prepare`."""
    counts = prepare(args.data, args.root, args.out, args.scheme, args.samples, args.val_samples,
                     args.seed)
    if counts['left_out']:
        print(f'{counts["left_out"]} images without photo or DensePose map are left out')
    scheme = args.scheme or DEFAULT_SCHEMES[args.data]
    name = 'merged-sep' if scheme == 'sep' else 'merged'
    print(f'{counts["train"]} training and {counts["val"]} validation images -> {args.out}/; '
          f'next: python -m schp train --network segformer --data {name} --root {args.out}')

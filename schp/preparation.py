"""Sets with merged labels in the layout of LIP, made from downloads: `python -m schp prepare`.

    DeepFashion      DeepFashion-MultiModal: images, segm, densepose; its images are split into train and val
    LIP, CCP         as `schp train` reads them, with their own train and val
"""
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from PIL import Image
from tqdm import tqdm

from util.cli import Between
from util.files import index_folder, make_folder, writing
from util.images import load_image, read_labels, read_stored
from util.labelmaps import SCHEMES, SEGM, cihp_to_merged, deepfashion_to_merged, find_scheme, lip_to_merged
from schp.semantic import flatten
from schp.data import LIP, open_dataset

NUM_TRAIN = 2500                                          # of DeepFashion's 12,701 images, as in the fork's README
DEFAULT_SCHEMES = dict(DeepFashion='sep', LIP='sans_torso', CCP='sans_torso')


# ---- DeepFashion-MultiModal --------------------------------------------------------------------------------


def read_parts(path):
    """DensePose's parts, which are channel 2 of an RGB picture: uint8 (H, W)."""
    picture = np.asarray(load_image(path))
    if picture.ndim != 3 or picture.dtype != np.uint8 or picture.shape[2] < 3:
        raise ValueError(f'{path} is no DensePose map of three channels; get the file again')
    return picture[..., 2]


def find_files(root):
    """({id: paths of its photo, segmentation and DensePose map}, number of segmentations that lack one of these)."""
    photos, segm, parts = (index_folder(os.path.join(root, name)) for name in ('images', 'segm', 'densepose'))
    ids = [name.removesuffix('_segm') for name in segm if name.endswith('_segm')]
    files = {i: (photos[i], segm[f'{i}_segm'], parts[f'{i}_densepose']) for i in ids
             if i in photos and f'{i}_densepose' in parts}
    if not files:
        raise FileNotFoundError(f'{root} holds no images/ID.jpg with segm/ID_segm.png and densepose/ID_densepose.png; '
                                'unpack the three archives of DeepFashion-MultiModal there')
    return files, len(ids) - len(files)


def choose(ids, num_train, num_val, seed):
    """Disjoint lists (train, val) in random order. num_val None: all that train leaves."""
    num_val = len(ids) - num_train if num_val is None else num_val
    if num_train < 1 or num_val < 1 or num_train + num_val > len(ids):
        raise ValueError(f'{num_train} images for training and {num_val} for validation cannot be taken out of '
                         f'{len(ids)}; choose other numbers with --samples and --val-samples')
    order = [ids[i] for i in np.random.default_rng(seed).permutation(len(ids))]
    return order[:num_train], order[num_train:num_train + num_val]


def read_deepfashion(files, scheme):
    """(photo RGB, merged labels uint8), Pillow images of one size, from the three files of an id."""
    photo, segm, parts = read_stored(files[0]), read_labels(files[1], len(SEGM) - 1), read_parts(files[2])
    if segm.shape != photo.size[::-1] or parts.shape != segm.shape:
        raise ValueError(f'{files[0]}, {files[1]} and {files[2]} differ in size; get the files again')
    try:
        return photo, Image.fromarray(deepfashion_to_merged(segm, parts, scheme))
    except ValueError as error:                           # the segmentation's labels are checked, so it is DensePose's
        raise ValueError(f'{files[2]}: {error}') from None


def split_deepfashion(root, scheme, samples, val_samples, seed):
    """({split: {id: function that reads it}}, number of images left out). The fork draws val from all images, so that
    it overlaps train; here the two are disjoint."""
    files, left_out = find_files(root)
    lists = choose(list(files), samples or NUM_TRAIN, val_samples or None, seed)
    return {split: {i: partial(read_deepfashion, files[i], scheme) for i in ids}
            for split, ids in zip(('train', 'val'), lists)}, left_out


# ---- sets of single people ---------------------------------------------------------------------------------


def read_single(dataset, i, scheme):
    """The same for image i of a data set with LIP's or CIHP's labels."""
    image, parsing, ignore = dataset.read(i)
    labels = flatten(parsing, ignore)
    to_merged = lip_to_merged if dataset.class_names == LIP.class_names else cihp_to_merged
    return Image.fromarray(image), Image.fromarray(to_merged(labels, scheme))


def split_singles(name, root, scheme, samples, val_samples):
    """({split: {id: function that reads it}}, 0) with the first images of each split, as the fork takes them."""
    splits = {}
    for split, count in ('train', samples), ('val', val_samples):
        dataset = open_dataset(name, root, split)
        splits[split] = {dataset.ids[i]: partial(read_single, dataset, i, scheme)
                         for i in range(min(len(dataset), count or len(dataset)))}
    return splits, 0


# ---- writing -----------------------------------------------------------------------------------------------


def prepare(data, root, out, scheme=None, samples=0, val_samples=0, seed=0):
    """Makes the folder `out` with merged labels: {train,val}_images/ID.jpg (quality 95), {train,val}_segmentations/
    ID.png, {train,val}_id.txt. It appears when it is complete.

    data: one of DEFAULT_SCHEMES, in the folder `root`; scheme: one of labelmaps.SCHEMES, by default sep of DeepFashion
    and sans_torso of the others; samples, val_samples: numbers of images, 0 = 2500 of DeepFashion and the rest, or all;
    seed: of DeepFashion's split. Returns dict(train, val, left_out): numbers of images; left out are those that lack a
    file. OSError or ValueError with one sentence for what cannot be done."""
    scheme = scheme or DEFAULT_SCHEMES[data]
    find_scheme(scheme)
    if os.path.lexists(out):
        raise FileExistsError(f'{out} exists; choose another folder, or remove it')
    if data == 'DeepFashion':
        splits, left_out = split_deepfashion(root, scheme, samples, val_samples, seed)
    else:
        splits, left_out = split_singles(data, root, scheme, samples, val_samples)
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
    return dict({split: len(readers) for split, readers in splits.items()}, left_out=left_out)


def write_split(folder, split, readers):
    """One split of `prepare`, several images at a time. readers: {id: function that returns its photo and labels}."""
    images, labels = (os.path.join(folder, f'{split}_{kind}') for kind in ('images', 'segmentations'))
    make_folder(images), make_folder(labels)

    def write(i):
        photo, merged = readers[i]()
        with writing(folder):
            photo.save(os.path.join(images, f'{i}.jpg'), quality=95)
            merged.save(os.path.join(labels, f'{i}.png'))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(tqdm(pool.map(write, readers), split, len(readers), disable=None))
    with writing(folder), open(os.path.join(folder, f'{split}_id.txt'), 'w') as f:
        f.writelines(f'{i}\n' for i in readers)


# ---- command -----------------------------------------------------------------------------------------------


def add_flags(parser):
    parser.add_argument('--data', choices=list(DEFAULT_SCHEMES), default='DeepFashion')
    parser.add_argument('--root', required=True, help='folder of the data set, as downloaded')
    parser.add_argument('--out', required=True, help='folder of the prepared set, which does not exist yet')
    parser.add_argument('--scheme', choices=list(SCHEMES), help='default: sep of DeepFashion, else sans_torso')
    parser.add_argument('--samples', type=Between(0, 10 ** 9), default=0,
                        help='training images; default: 2500 of DeepFashion, all of the others')
    parser.add_argument('--val-samples', type=Between(0, 10 ** 9), default=0,
                        help='validation images; default: all that are left')
    parser.add_argument('--seed', type=Between(0, 2 ** 32), default=0, help="of DeepFashion's split")


def command(args):
    """`python -m schp prepare`."""
    counts = prepare(args.data, args.root, args.out, args.scheme, args.samples, args.val_samples, args.seed)
    if counts['left_out']:
        print(f'{counts["left_out"]} images without photo or DensePose map are left out')
    name = 'merged-sep' if (args.scheme or DEFAULT_SCHEMES[args.data]) == 'sep' else 'merged'
    print(f'{counts["train"]} training and {counts["val"]} validation images -> {args.out}/; next: python -m schp '
          f'train --network segformer --data {name} --root {args.out}')

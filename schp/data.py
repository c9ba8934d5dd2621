"""Data sets of single people, read from their folders, and the way from a photo to SCHP's batches.

    LIP      {train,val}_images/ID.jpg, {train,val}_segmentations/ID.png, {train,val}_id.txt; or the
             official download with TrainVal_images and TrainVal_parsing_annotations
    ATR      JPEGImages/ID.jpg, SegmentationClassAug/ID.png, {train,val,test}_id.txt, which the
             download lacks
    Pascal   Pascal-Person-Part: JPEGImages/ID.jpg, pascal_person_part_gt/ID.png,
             pascal_person_part_trainval_list/{train,val}.txt
    CIHP     the crops of CIHP's people: in training another person of each photo in each epoch,
             else the largest one
    CCP      the photos of Clothing Co-Parsing as they are, in CIHP's classes

ATR, Pascal and any data of your own are read in LIP's first layout, too. Labels are 0..K, 255 =
unknown.
"""
import os

import numpy as np
import torch
from PIL import Image

import data
from schp.crops import crop, crop_matrix, warp
from schp.crowd import enlarge
from util import datasets
from util.datasets import swap_sides
from util.files import index_folder, naming, pick_files
from util.labels import LABEL_SETS
from util.masks import box_of


# ---- data sets ---------------------------------------------------------------------------------


# Of SCHP: folders of photos and of label maps, and the list of ids, by split.
LAYOUT = ('{}_images', '{}_segmentations', '{}_id.txt')


class Single(datasets.Photos):
    """A data set of photos and label maps. layouts: those that are known, each as LAYOUT."""

    layouts = (LAYOUT,)

    def __init__(self, root: str | os.PathLike, split: str):
        layout = self.find_layout(root, split)
        photos = os.path.join(root, layout[0].format(split))
        labels = os.path.join(root, layout[1].format(split))
        ids = os.path.join(root, layout[2].format(split))
        if os.path.isfile(ids):
            self.ids = read_ids(ids)
        elif '{}' in layout[0]:
            # A folder of this split alone needs no list.
            self.ids = list(index_folder(photos))
        else:
            raise FileNotFoundError(f'{ids} is missing; write the ids of the split, one in a line')
        self.photos = pick_files(photos, self.ids)
        paths = pick_files(labels, self.ids, ('.png',))
        self.people = {i: [path] for i, path in zip(self.ids, paths)}

    def find_layout(self, root: str | os.PathLike, split: str) -> tuple:
        """The first layout whose two folders exist; FileNotFoundError where there is none."""
        known = []
        for layout in self.layouts:
            folders = [part.format(split) for part in layout[:2]]
            if all(os.path.isdir(os.path.join(root, folder)) for folder in folders):
                return layout
            known.append(' and '.join(folders))
        if len(known) == 1:
            raise FileNotFoundError(f'{root} lacks {known[0]}')
        raise FileNotFoundError(f'{root} has neither {" nor ".join(known)}')


def read_ids(path: str | os.PathLike) -> list[str]:
    """Ids of a list: the stem of the first word of each line, each once. Lists of the field hold
    names or paths."""
    ids = []
    with naming(path), open(path) as file:
        for line in file.read().splitlines():
            if line.strip():
                name = os.path.basename(line.split()[0])
                ids.append(os.path.splitext(name)[0])
    return list(dict.fromkeys(ids))


class LIP(Single):
    class_names = LABEL_SETS['lip'].names
    flip_pairs = LABEL_SETS['lip'].flip_pairs
    layouts = (LAYOUT, ('TrainVal_images/{}_images',
                        'TrainVal_parsing_annotations/{}_segmentations',
                        'TrainVal_images/{}_id.txt'))


class ATR(Single):
    class_names = LABEL_SETS['atr'].names
    flip_pairs = LABEL_SETS['atr'].flip_pairs
    layouts = (LAYOUT, ('JPEGImages', 'SegmentationClassAug', '{}_id.txt'))


class Pascal(Single):
    class_names = LABEL_SETS['pascal'].names
    flip_pairs = LABEL_SETS['pascal'].flip_pairs
    layouts = (LAYOUT, ('JPEGImages', 'pascal_person_part_gt',
                        'pascal_person_part_trainval_list/{}.txt'))


class CIHP(datasets.CIHP):
    """Crops of CIHP's people: the box of a person, enlarged by 1.2 as in SCHP's extension. Other
    people in it keep their labels. Pixels of people without labels are unknown."""

    class_names = LABEL_SETS['cihp'].names
    flip_pairs = LABEL_SETS['cihp'].flip_pairs
    splits = 'train', 'val'

    def __init__(self, root: str | os.PathLike, split: str):
        super().__init__(root, split)
        self.training = split == 'train'

    def read(self, i, seed=0, epoch=0):
        image, parsing, ignore = super().read(i, seed, epoch)
        if not len(parsing):
            return image, parsing, ignore
        areas = (parsing > 0).sum((1, 2))
        person = areas.argmax()
        if self.training:
            person = np.random.default_rng((7, seed, epoch, i)).integers(len(areas))
        x0, y0, x1, y1 = enlarge(box_of(parsing[person]), ignore.shape)
        rows = slice(y0, y1 + 1)
        columns = slice(x0, x1 + 1)
        return image[rows, columns], parsing[:, rows, columns], ignore[rows, columns]


class CCP(datasets.CCP):
    class_names = LABEL_SETS['cihp'].names
    flip_pairs = LABEL_SETS['cihp'].flip_pairs
    splits = 'train', 'val'

    def __init__(self, root: str | os.PathLike, split: str):
        super().__init__(root, f'{split}_photos')


class Merged(Single):
    """What `schp prepare` writes."""

    class_names = LABEL_SETS['merged'].names
    flip_pairs = LABEL_SETS['merged'].flip_pairs


class MergedSep(Single):
    """What `schp prepare --scheme sep` writes."""

    class_names = LABEL_SETS['merged-sep'].names
    flip_pairs = LABEL_SETS['merged-sep'].flip_pairs


DATASETS = {'LIP': LIP, 'ATR': ATR, 'Pascal': Pascal, 'CIHP': CIHP, 'CCP': CCP, 'merged': Merged,
            'merged-sep': MergedSep}


def open_dataset(name: str, root: str | os.PathLike | None, split: str) -> datasets.Photos:
    """A data set of this module, as `util.datasets.open_dataset` opens its own."""
    return datasets.open_dataset(name, root, split, sets=DATASETS)


def check_classes(path: str | os.PathLike, model, name: str, dataset: datasets.Photos):
    """ValueError where the network of a file has other classes than the data set `name`."""
    own = [label.lower() for label in model.class_names]
    wanted = [label.lower() for label in dataset.class_names]
    if len(own) != len(wanted):
        raise ValueError(f'{path} has {len(own)} classes, {name} has {len(wanted)}; use weights of '
                         'that set')
    for a, b in zip(own, wanted):
        if a != b:
            labels = name.lower() if name.lower() in LABEL_SETS else 'cihp'
            raise ValueError(f'{path} is read with the class {a} where {name} has {b}; give '
                             f'--labels {labels}, or weights of that set')


def open_sets(config, root: str | os.PathLike | None, skip_bad: bool) -> list:
    """The training and the validation set of an SCHPConfig."""
    train_set = open_dataset(config.data, root, 'train')
    val_set = open_dataset(config.data, root, 'val')
    train_set.skip_bad = skip_bad
    val_set.skip_bad = skip_bad
    if config.samples:
        train_set.ids = train_set.ids[:config.samples]
    if config.keep:
        return [Reduced(train_set, config.size), Reduced(val_set, config.size)]
    return [train_set, val_set]


class Reduced:
    """A data set whose photos are kept in memory, at 4/3 of the size (height, width) of the crops:
    reading large photos again takes longer than a small network. They are reduced as crops are,
    without antialiasing."""

    def __init__(self, dataset: datasets.Photos, size: tuple):
        self.dataset = dataset
        self.size = size
        self.kept = {}

    def __getattr__(self, name):
        # While it is unpickled, it has no data set yet.
        if name in ('dataset', '__setstate__'):
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __len__(self):
        return len(self.dataset)

    def read(self, i, seed=0, epoch=0):
        if i not in self.kept:
            self.kept[i] = self.reduce(*self.dataset.read(i, seed, epoch))
        return self.kept[i]

    def reduce(self, image, parsing, ignore):
        labels = flatten(parsing, ignore)
        height, width = labels.shape
        scale = max(width / self.size[1], height / self.size[0]) * 3 / 4
        if scale > 1:
            size = max(1, round(width / scale)), max(1, round(height / scale))
            matrix = (width / size[0], 0, 0, 0, height / size[1], 0)
            image = resample(image, size, matrix, Image.BILINEAR)
            labels = resample(labels, size, matrix, Image.NEAREST)
        return image, labels[None], labels == 255


def resample(array, size, matrix, mode):
    return np.asarray(Image.fromarray(array).transform(size, Image.AFFINE, matrix, mode))


# ---- batches -----------------------------------------------------------------------------------


def flatten(parsing: np.ndarray, ignore: np.ndarray) -> np.ndarray:
    """People (N, H, W) and ignore (H, W) -> one label map (H, W), uint8, 255 = unknown."""
    labels = np.zeros(ignore.shape, np.uint8)
    if len(parsing):
        labels = parsing.max(0)
    return np.where(ignore, 255, labels).astype(np.uint8)


def augment(image: np.ndarray, labels: np.ndarray, size: tuple, flip_pairs: tuple,
            rng: np.random.Generator, scale: float = 0.25,
            rotation: float = 30.0) -> tuple[torch.Tensor, torch.Tensor]:
    """image (H, W, 3) and labels (H, W), uint8 -> the network's input (3, *size), float32, and
    labels (*size), uint8, 255 outside the photo.

    As in the released code: the scale is N(1, `scale`), within 1 -+ `scale`; in 60 % of the photos
    the rotation is N(0, `rotation`) degrees, within twice of it; every second photo is mirrored,
    with left and right swapped."""
    factor = np.clip(rng.normal(1, scale), 1 - scale, 1 + scale)
    turn = 0
    if rng.random() < 0.6:
        turn = np.clip(rng.normal(0, rotation), -2 * rotation, 2 * rotation)
    if rng.random() < 0.5:
        image = image[:, ::-1].copy()
        labels = swap_sides(labels[:, ::-1], flip_pairs)
    matrix = crop_matrix(labels.shape, size, factor, turn)
    labels = torch.tensor(labels)[None].float()
    labels = warp(labels, matrix, size, 'nearest', fill=255)[0].to(torch.uint8)
    return crop(image, matrix, size), labels


def sparse(labels: torch.Tensor, stride: int) -> torch.Tensor:
    """labels (H, W) -> (H / stride, W / stride): rows and columns at equal distances, with the
    first and the last one, because logits are resized with aligned corners."""
    if stride == 1:
        return labels
    rows = equal_steps(labels.shape[0], stride)
    columns = equal_steps(labels.shape[1], stride)
    return labels[rows][:, columns]


def equal_steps(n: int, stride: int) -> torch.Tensor:
    """ceil(n / stride) of the indices 0..n-1, at equal distances up to rounding."""
    count = -(-n // stride)
    return torch.linspace(0, n - 1, count).round().long()


class Samples(data.Samples):
    """samples[epoch, index] -> dict: image (3, *size), float32; labels at every loss_stride-th
    pixel, uint8; info. config: an SCHPConfig."""

    def tensors(self, image, parsing, ignore, rng):
        c = self.config
        labels = flatten(parsing, ignore)
        image, labels = augment(image, labels, c.size, self.dataset.flip_pairs, rng, c.scale,
                                c.rotation)
        return dict(image=image, labels=sparse(labels, c.loss_stride))

    def groups(self):
        # All crops have one size, so any of them may share a batch.
        return (np.arange(len(self)),)

    @staticmethod
    def collate(samples):
        """-> images (B, 3, *size), labels (B, ..), infos."""
        return dict(images=torch.stack([s['image'] for s in samples]),
                    labels=torch.stack([s['labels'] for s in samples]),
                    infos=[s['info'] for s in samples])

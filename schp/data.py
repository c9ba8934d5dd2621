"""Data sets of single people, read from their folders, and the way from a photo to SCHP's batches.

    LIP      {train,val}_images/ID.jpg, {train,val}_segmentations/ID.png, {train,val}_id.txt; or the official download
             with TrainVal_images and TrainVal_parsing_annotations
    ATR      JPEGImages/ID.jpg, SegmentationClassAug/ID.png, {train,val,test}_id.txt, which the download lacks
    Pascal   Pascal-Person-Part: JPEGImages/ID.jpg, pascal_person_part_gt/ID.png,
             pascal_person_part_trainval_list/{train,val}.txt
    CIHP     the crops of CIHP's people: in training another person of each photo in each epoch, else the largest one
    CCP      the photos of Clothing Co-Parsing as they are, in CIHP's classes

ATR, Pascal and any data of your own are read in LIP's first layout, too. Labels are 0..K, 255 = unknown.
"""
import os

import numpy as np
import torch
from PIL import Image

import data
from util import datasets
from schp.crowd import enlarge
from util.files import index_folder, naming, pick_files
from util.labels import LABEL_SETS
from util.masks import box_of
from schp.crops import crop, crop_matrix, warp

LAYOUT = '{}_images', '{}_segmentations', '{}_id.txt'    # of SCHP: folders of photos and of labels, list of ids


def flatten(parsing, ignore):
    """People (N,H,W) and ignore (H,W) -> one label map uint8 (H,W), 255 = unknown."""
    labels = parsing.max(0) if len(parsing) else np.zeros(ignore.shape, np.uint8)
    return np.where(ignore, 255, labels).astype(np.uint8)

class Single(datasets.Photos):
    """A data set of photos and label maps. layouts: the known ones, each as LAYOUT."""
    layouts = (LAYOUT,)

    def __init__(self, root, split):
        for layout in self.layouts:
            photos, labels, ids = (os.path.join(root, part.format(split)) for part in layout)
            if os.path.isdir(photos) and os.path.isdir(labels):
                break
        else:
            known = ' nor '.join(' and '.join(part.format(split) for part in layout[:2]) for layout in self.layouts)
            raise FileNotFoundError(f'{root} has neither {known}' if len(self.layouts) > 1 else f'{root} lacks {known}')
        if not os.path.isfile(ids) and '{}' not in layout[0]:
            raise FileNotFoundError(f'{ids} is missing; write the ids of the split, one in a line')
        self.ids = read_ids(ids) if os.path.isfile(ids) else list(index_folder(photos))
        self.photos = pick_files(photos, self.ids)
        self.people = {i: [path] for i, path in zip(self.ids, pick_files(labels, self.ids, ('.png',)))}


def read_ids(path):
    """Ids of a list: the stem of the first word of each line, each once. Lists of the field hold names or paths."""
    with naming(path), open(path) as f:
        words = (line.split()[0] for line in f.read().splitlines() if line.strip())
        return list(dict.fromkeys(os.path.splitext(os.path.basename(word))[0] for word in words))


class LIP(Single):
    class_names, _, flip_pairs = LABEL_SETS['lip']
    layouts = LAYOUT, tuple(map(os.path.join, ('TrainVal_images', 'TrainVal_parsing_annotations', 'TrainVal_images'),
                                LAYOUT))


class ATR(Single):
    class_names, _, flip_pairs = LABEL_SETS['atr']
    layouts = LAYOUT, ('JPEGImages', 'SegmentationClassAug', '{}_id.txt')


class Pascal(Single):
    class_names, _, flip_pairs = LABEL_SETS['pascal']
    layouts = LAYOUT, ('JPEGImages', 'pascal_person_part_gt', 'pascal_person_part_trainval_list/{}.txt')


class CIHP(datasets.CIHP):
    """Crops of CIHP's people, the box enlarged by 1.2 as SCHP's extension does; other people in it keep their labels,
    pixels of people without labels are unknown."""
    class_names, _, flip_pairs = LABEL_SETS['cihp']
    splits = 'train', 'val'

    def __init__(self, root, split):
        super().__init__(root, split)
        self.training = split == 'train'

    def read(self, i, seed=0, epoch=0):
        image, parsing, ignore = super().read(i, seed, epoch)
        if not len(parsing):
            return image, parsing, ignore
        areas = (parsing > 0).sum((1, 2))
        person = np.random.default_rng((7, seed, epoch, i)).integers(len(areas)) if self.training else areas.argmax()
        x0, y0, x1, y1 = enlarge(box_of(parsing[person]), ignore.shape)
        window = slice(y0, y1 + 1), slice(x0, x1 + 1)
        return image[window], parsing[:, *window], ignore[window]


class CCP(datasets.CCP):
    class_names, _, flip_pairs = LABEL_SETS['cihp']
    splits = 'train', 'val'

    def __init__(self, root, split):
        super().__init__(root, f'{split}_photos')


class Merged(Single):
    """What schp.preparation writes."""
    class_names, _, flip_pairs = LABEL_SETS['merged']


class MergedSep(Single):
    class_names, _, flip_pairs = LABEL_SETS['merged-sep']


DATASETS = {'LIP': LIP, 'ATR': ATR, 'Pascal': Pascal, 'CIHP': CIHP, 'CCP': CCP, 'merged': Merged,
            'merged-sep': MergedSep}


def open_dataset(name, root, split):
    """A data set of this module, as util.datasets.open_dataset opens its own."""
    return datasets.open_dataset(name, root, split, sets=DATASETS)


class Reduced:
    """A data set whose photos are kept in memory, at 4/3 of the size (H, W) of the network's input: reading large
    photos again takes longer than a small network. They are reduced as crops are, without antialiasing."""

    def __init__(self, dataset, size):
        self.dataset, self.size, self.kept = dataset, size, {}

    def __getattr__(self, name):
        if name in ('dataset', '__setstate__'):              # not there yet while unpickling
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __len__(self):
        return len(self.dataset)

    def read(self, i, seed=0, epoch=0):
        if i not in self.kept:
            self.kept[i] = self.reduce(*self.dataset.read(i, seed, epoch))
        return self.kept[i]

    def reduce(self, image, parsing, ignore):
        labels, (height, width) = flatten(parsing, ignore), ignore.shape
        scale = max(width / self.size[1], height / self.size[0]) * 3 / 4
        if scale > 1:
            size = max(1, round(width / scale)), max(1, round(height / scale))
            matrix = (width / size[0], 0, 0, 0, height / size[1], 0)
            image = np.asarray(Image.fromarray(image).transform(size, Image.AFFINE, matrix, Image.BILINEAR))
            labels = np.asarray(Image.fromarray(labels).transform(size, Image.AFFINE, matrix, Image.NEAREST))
        return image, labels[None], labels == 255


def augment(image, labels, size, flip_pairs, rng, scale=0.25, rotation=30.0):
    """image (H,W,3) and labels (H,W) uint8 -> the network's input (3,*size) and labels (*size), 255 outside the photo.

    As the released code: scale N(1, `scale`), within 1 -+ `scale`; in 60 % a rotation N(0, `rotation`) degrees, within
    twice of it; every second photo mirrored, left and right swapped."""
    factor = np.clip(rng.normal(1, scale), 1 - scale, 1 + scale)
    turn = np.clip(rng.normal(0, rotation), -2 * rotation, 2 * rotation) if rng.random() < 0.6 else 0
    if rng.random() < 0.5:
        image, labels = image[:, ::-1].copy(), datasets.swap_sides(labels[:, ::-1], flip_pairs)
    matrix = crop_matrix(labels.shape, size, factor, turn)
    labels = torch.tensor(labels)[None].float()
    return crop(image, matrix, size), warp(labels, matrix, size, 'nearest', fill=255)[0].to(torch.uint8)


def sparse(labels, stride):
    """labels (H,W) -> (H/stride,W/stride): rows and columns at equal distances, with the first and the last one, as
    logits are resized with corners aligned."""
    rows, columns = (torch.linspace(0, n - 1, -(-n // stride)).round().long() for n in labels.shape)
    return labels if stride == 1 else labels[rows][:, columns]


class Samples(data.Samples):
    """samples[epoch, index] -> dict: image (3, *size) float32, labels uint8 at every loss_stride-th pixel, info."""

    def tensors(self, image, parsing, ignore, rng):
        c = self.config
        image, labels = augment(image, flatten(parsing, ignore), c.size, self.dataset.flip_pairs, rng, c.scale,
                                c.rotation)
        return dict(image=image, labels=sparse(labels, c.loss_stride))

    def groups(self):
        return (np.arange(len(self)),)                   # all have one size

    @staticmethod
    def collate(samples):
        """-> images (B,3,*size) float32, labels (B,*size) uint8, infos; an error among them is returned alone."""
        for error in (s for s in samples if isinstance(s, Exception)):
            return error
        images, labels, infos = ([s[key] for s in samples] for key in ('image', 'labels', 'info'))
        return dict(images=torch.stack(images), labels=torch.stack(labels), infos=infos)


def open_sets(config, root, skip_bad):
    """Training and validation set of a config."""
    sets = [open_dataset(config.data, root, split) for split in ('train', 'val')]
    for dataset in sets:
        dataset.skip_bad = skip_bad
    sets[0].ids = sets[0].ids[:config.samples or None]
    return [Reduced(dataset, config.size) for dataset in sets] if config.keep else sets

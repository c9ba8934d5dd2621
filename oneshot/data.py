"""The data sets of one-shot parsing, read from their folders, and their episodes on the way to a
batch.

    ATR, LIP, CIHP   {ATR,LIP,CIHP}_OS: list/meta_{train,test}_id.txt, trainval_images/ID.jpg,
                     trainval_classes/ID.png; support/meta_{train,test}_NAME_supports.pkl or .json:
                     pools (see `oneshot.episodes`); support/NAME_meta_test_list.txt or .json: test
                     episodes
    CCP              Clothing Co-Parsing as downloaded, its photos in CIHP's classes

Pools and lists that are missing are made from the label maps. The released code also reads mirrored
label maps, Category_rev_ids. They are not needed, because `flip` swaps left and right itself.
"""
import os
from functools import cached_property

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from data import Samples
from oneshot.config import Config
from oneshot.episodes import (FOLDS, IGNORE, Episode, Fold, Pools, kway_pairs, make_pools, merge,
                              meta_test_list, oneway_pairs, read_episodes, read_pools, write_pools)
from util.datasets import CCP, swap_sides
from util.files import inside, pick_files, read_list
from util.images import read_labels, read_stored

KEPT = 1000                             # photos that stay in memory
NUM_QUERIES = dict(train=7500, test=200)            # in the released lists; the rest are supports


# -------------------------------------------------------------------------------------------------
# Data sets


class OneShotPhotos:
    """Photos of a list with their label maps. split: train | test."""

    def __init__(self, name: str, root: str, split: str, fold: int):
        self.name = name.lower()
        self.split = split
        self.fold = FOLDS[self.name, fold]
        self.root = inside(root, f'{name}_OS')
        self.ids = read_list(os.path.join(self.root, 'list', f'meta_{split}_id.txt'))
        photos = os.path.join(self.root, 'trainval_images')
        self.photos = pick_files(photos, self.ids, ('.jpg',))
        maps = os.path.join(self.root, 'trainval_classes')
        self.maps = pick_files(maps, self.ids, ('.png',))

    def __len__(self):
        return len(self.ids)

    @property
    def num_queries(self) -> int:
        """Photos before this index are queries. At most half, because lists may be short."""
        return min(NUM_QUERIES[self.split], len(self) // 2)

    def labels(self, i: int) -> np.ndarray:
        """uint8 (H,W): labels as drawn, 255 = unknown."""
        return read_labels(self.maps[i], self.fold.num_labels - 1)

    def read(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """image uint8 RGB (H,W,3), labels uint8 (H,W) as drawn."""
        image = np.array(read_stored(self.photos[i]))
        labels = self.labels(i)
        if image.shape[:2] != labels.shape:
            raise ValueError(f'{self.photos[i]} is of size {image.shape[1::-1]}, its labels are of '
                             f'size {labels.shape[::-1]}; unpack the download again')
        return image, labels

    def support_file(self, name: str) -> str | None:
        """The path of the first of name.pkl, name.txt and name.json that exists, or None."""
        for ending in ('.pkl', '.txt', '.json'):
            path = os.path.join(self.root, 'support', name + ending)
            if os.path.isfile(path):
                return path
        return None

    @cached_property
    def pools(self) -> Pools:
        """Pools from the download. Where it has none, they are made from the label maps and kept in
        its folder as JSON, if it can be written to."""
        name = f'meta_{self.split}_{self.name}_supports'
        path = self.support_file(name)
        if path:
            return self.check_pools(read_pools(path, self.fold), path)
        presence = []
        for i in tqdm(range(len(self)), 'classes of the photos', leave=False, disable=None):
            presence.append((i, set(np.unique(self.labels(i)).tolist())))
        pools = make_pools(presence, self.fold, self.num_queries)
        folder = os.path.join(self.root, 'support')
        if os.path.isdir(folder) and os.access(folder, os.W_OK):
            write_pools(os.path.join(folder, name + '.json'), pools)
        return pools

    def check_pools(self, pools: Pools, path) -> Pools:
        """The pools; ValueError where they are those of a longer list."""
        indices = [i for side in pools.values() for pool in side.values() for i in pool]
        last = max(indices, default=0)
        if last >= len(self):
            raise ValueError(f'{path} names photo {last}, but the list has {len(self)}; get files '
                             'of one version')
        return pools

    def training_pairs(self, way: str, seed) -> list[Episode]:
        """Training episodes, drawn with this seed."""
        if way == '1way':
            return oneway_pairs(self.pools, self.fold, seed)
        return kway_pairs(len(self), seed, self.num_queries)

    def test_episodes(self) -> list[Episode]:
        """Test episodes from the download, or made from the pools."""
        path = self.support_file(f'{self.name}_meta_test_list')
        if path:
            return self.check_episodes(read_episodes(path), path)
        return meta_test_list(self.pools, self.fold)

    def check_episodes(self, episodes: list[Episode], path) -> list[Episode]:
        """The episodes; ValueError where they are those of another set."""
        classes = self.fold.all[1:]
        for query, support, c in episodes:
            known = isinstance(c, int) and c in classes
            for i in (query, support):
                known = known and isinstance(i, int) and 0 <= i < len(self)
            if not known:
                raise ValueError(f'{path} has the episode {(query, support, c)}, which this set '
                                 f'has not: its photos are 0..{len(self) - 1}, its classes '
                                 f'{list(classes)}')
        return episodes


class CCPOneShot(OneShotPhotos):
    """CCP-OS, ours: CCP's 798 training and 100 validation photos of single people, half of them
    queries. Classes share test photos, because there are few."""

    def __init__(self, name: str, root: str, split: str, fold: int):
        self.name = 'ccp'
        self.split = split
        self.fold = FOLDS['ccp', fold]
        self.root = root
        self.ccp = CCP(root, 'train_photos' if split == 'train' else 'val_photos')
        self.ids = self.ccp.ids
        self.photos = self.ccp.photos

    @property
    def num_queries(self) -> int:
        return len(self) // 2

    def labels(self, i: int) -> np.ndarray:
        parsing, ignore = self.ccp.read_parsing(i)
        labels = parsing.max(0, initial=0)
        labels[ignore & (labels == 0)] = IGNORE
        return labels

    def test_episodes(self) -> list[Episode]:
        return meta_test_list(self.pools, self.fold, reuse=True)


def open_photos(name: str, root: str, split: str, fold: int) -> OneShotPhotos:
    """The photos of a data set; one sentence where something is wrong."""
    if not root:
        raise ValueError(f'{name} is read from files; give the folder of the unpacked download '
                         'with --root')
    if not os.path.isdir(root):
        raise FileNotFoundError(f'{root} is not a folder; --root is the folder of the unpacked '
                                'download')
    if (name.lower(), fold) not in FOLDS:
        raise ValueError(f'--fold is {fold}; the folds are 1 and 2')
    kind = CCPOneShot if name == 'CCP' else OneShotPhotos
    photos = kind(name, root, split, fold)
    if len(photos) < 2:
        raise ValueError(f'{root} has {len(photos)} photos in its {split} list; unpack the '
                         'download again')
    return photos


# -------------------------------------------------------------------------------------------------
# Photos and label maps on their way into the network


def reduce_photo(photo: Image.Image, long_side: int) -> Image.Image:
    """A Pillow photo whose longer side has at most `long_side` pixels."""
    scale = long_side / max(photo.size)
    if scale >= 1:
        return photo
    size = [max(1, round(side * scale)) for side in photo.size]
    return photo.resize(size, Image.BILINEAR)


def reduce_pair(image: np.ndarray, labels: np.ndarray,
                long_side: int) -> tuple[np.ndarray, np.ndarray]:
    """The same for an image (H,W,3) and its labels (H,W); long_side 0 = as they are."""
    if not 0 < long_side < max(labels.shape):
        return image, labels
    photo = reduce_photo(Image.fromarray(image), long_side)
    labels = Image.fromarray(labels).resize(photo.size, Image.NEAREST)
    return np.asarray(photo), np.asarray(labels)


def normalize(image: np.ndarray) -> np.ndarray:
    """uint8 RGB (H,W,3) -> float32 BGR (3,H,W) in -1..1, the network's input."""
    bgr = image[..., ::-1].transpose(2, 0, 1)
    return np.ascontiguousarray(bgr * np.float32(2 / 255) - 1)


def flip(image: np.ndarray, labels: np.ndarray, pairs) -> tuple[np.ndarray, np.ndarray]:
    """Mirrors (H,W,3) and (H,W) and swaps the left and right ids of `pairs`: only for labels before
    `merge`."""
    return image[:, ::-1], swap_sides(labels[:, ::-1], pairs)


def scale_and_crop(image: np.ndarray, labels: np.ndarray, rng: np.random.Generator,
                   size: int = 512) -> tuple[np.ndarray, np.ndarray]:
    """Scales height and width by independent factors of 0.5..2 and cuts out a random square ->
    (size,size,3) and (size,size). What is missing at the right and the bottom is black and
    IGNORE."""
    factors = rng.uniform(0.5, 2, 2)
    height, width = [max(1, round(side * f)) for side, f in zip(labels.shape, factors)]
    top = int(rng.integers(max(0, height - size) + 1))
    left = int(rng.integers(max(0, width - size) + 1))
    box = (left, top, left + size, top + size)
    image = Image.fromarray(np.ascontiguousarray(image))
    image = image.resize((width, height), Image.BILINEAR).crop(box)
    labels = Image.fromarray(np.ascontiguousarray(labels))
    labels = labels.resize((width, height), Image.NEAREST).crop(box)
    # Pillow fills with 0: black is right for the photo, but the labels are unknown there.
    labels = np.array(labels)
    labels[height - top:] = IGNORE
    labels[:, width - left:] = IGNORE
    return np.array(image), labels


def augment(image: np.ndarray, labels: np.ndarray, fold: Fold, rng: np.random.Generator,
            size: int = 512) -> tuple[np.ndarray, np.ndarray]:
    """Training's changes to a photo, query or support, and its labels as read -> image and merged
    labels; `normalize` is next."""
    if rng.random() < 0.5:
        image, labels = flip(image, labels, fold.merges.items())
    return scale_and_crop(image, merge(labels, fold), rng, size)


# -------------------------------------------------------------------------------------------------
# Training samples


class EpisodePairs:
    """A training set of episodes. Those of the released recipe are drawn once; else each epoch
    draws its supports."""
    skip_bad = False

    def __init__(self, photos: OneShotPhotos, config: Config):
        self.photos = photos
        self.config = config
        self.drawn = {}       # {epoch: episodes} of the epoch that was asked for last
        self.kept = {}        # {index: photo and labels}
        self.ids = []
        for query, support, _ in self.pairs(0):
            self.ids.append(f'{photos.ids[query]} by {photos.ids[support]}')

    def pairs(self, epoch: int) -> list[Episode]:
        """The episodes of an epoch, the same at every call."""
        if self.config.recipe == 'released':
            epoch = 0
        if epoch not in self.drawn:
            seed = (self.config.seed, epoch)
            self.drawn = {epoch: self.photos.training_pairs(self.config.way, seed)}
        return self.drawn[epoch]

    def __len__(self):
        return len(self.ids)

    def photo(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """image (H,W,3), labels (H,W) as drawn, reduced to the config's long_side. Small ones stay
        in memory."""
        if i in self.kept:
            return self.kept[i]
        pair = reduce_pair(*self.photos.read(i), self.config.long_side)
        if self.config.long_side and len(self.kept) < KEPT:
            self.kept[i] = pair
        return pair

    def read(self, i: int, seed: int = 0, epoch: int = 0) -> tuple:
        """query, support: images; their labels as drawn; 1-way's class, else 0; the epoch."""
        query, support, c = self.pairs(epoch)[i]
        query, query_labels = self.photo(query)
        support, support_labels = self.photo(support)
        return query, support, query_labels, support_labels, c, epoch


class EpisodeSamples(Samples):
    """samples[epoch, index] -> dict of tensors: query and support (3,S,S) as of `normalize`;
    query_labels and support_labels (S,S) uint8, merged; classes: 1-way's class, else 0; epoch,
    info."""

    def tensors(self, query, support, query_labels, support_labels, c, epoch, rng):
        sample = dict(classes=c, epoch=epoch)
        for name, image, labels in (('query', query, query_labels),
                                    ('support', support, support_labels)):
            image, labels = augment(image, labels, self.dataset.photos.fold, rng, self.config.size)
            sample[name] = torch.from_numpy(normalize(image))
            sample[f'{name}_labels'] = torch.from_numpy(np.ascontiguousarray(labels))
        return sample

    def groups(self):
        return [np.arange(len(self))]

    @staticmethod
    def collate(samples):
        batch = {}
        for name in ('query', 'support', 'query_labels', 'support_labels'):
            batch[name] = torch.stack([sample[name] for sample in samples])
        batch['classes'] = torch.tensor([sample['classes'] for sample in samples])
        batch['epoch'] = samples[0]['epoch']
        batch['infos'] = [sample['info'] for sample in samples]
        return batch

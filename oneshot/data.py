"""The data sets of one-shot human parsing, read from their folders, and their episodes on the way to a batch.

    ATR, LIP, CIHP   {ATR,LIP,CIHP}_OS: list/meta_{train,test}_id.txt, trainval_images/ID.jpg, trainval_classes/ID.png,
                     support/meta_{train,test}_NAME_supports.pkl: pools (see `oneshot.episodes`), also as .json, and
                     support/NAME_meta_test_list.txt or .json: test episodes
    CCP              Clothing Co-Parsing as downloaded, its photos in CIHP's classes

Pools and lists that are missing are made from the label maps. The released code also reads mirrored label maps,
Category_rev_ids; they are not needed, because `augment.flip` swaps left and right itself.
"""
import os
from functools import cached_property

import numpy as np
import torch
from tqdm import tqdm

from data import Samples
from oneshot.augment import augment, normalize, reduced_pair
from util.datasets import CCP
from oneshot.episodes import (FOLDS, IGNORE, kway_pairs, make_pools, meta_test_list, oneway_pairs,
                           read_episodes, read_pools, write_pools)
from util.files import inside, pick_files, read_list
from util.images import read_labels, read_stored

NAMES = 'ATR', 'LIP', 'CIHP', 'CCP'
KEPT = 1000                                           # photos
SPLITS = dict(train=7500, test=200)                   # photos of a list that are queries, in the released pools


class OneShotPhotos:
    """Photos of a list with their label maps. split: train | test."""

    def __init__(self, name, root, split, fold):
        self.name, self.split, self.fold = name.lower(), split, FOLDS[name.lower(), fold]
        self.root = inside(root, f'{name}_OS')
        self.ids = read_list(os.path.join(self.root, 'list', f'meta_{split}_id.txt'))
        self.photos, self.maps = (pick_files(os.path.join(self.root, folder), self.ids, endings) for folder, endings in
                                  (('trainval_images', ('.jpg',)), ('trainval_classes', ('.png',))))

    def __len__(self):
        return len(self.ids)

    @property
    def queries(self):
        """The number of photos that are queries; the rest are supports. At most half, because lists may be short."""
        return min(SPLITS[self.split], len(self) // 2)

    def labels(self, i):
        """uint8 (H,W): labels as drawn, 255 = unknown."""
        return read_labels(self.maps[i], self.fold.num_labels - 1)

    def read(self, i):
        """image uint8 RGB (H,W,3), labels uint8 (H,W) as drawn."""
        image, labels = np.array(read_stored(self.photos[i])), self.labels(i)
        if image.shape[:2] != labels.shape:
            raise ValueError(f'{self.photos[i]} is of size {image.shape[1::-1]}, its labels are of size '
                             f'{labels.shape[::-1]}; unpack the download again')
        return image, labels

    def support_file(self, name):
        """The path of the first of name.pkl, name.txt and name.json that exists, or None."""
        paths = (os.path.join(self.root, 'support', name + ending) for ending in ('.pkl', '.txt', '.json'))
        return next((path for path in paths if os.path.isfile(path)), None)

    @cached_property
    def pools(self):
        """Pools from the download; made from the label maps where it has none, and kept beside the lists as JSON."""
        name = f'meta_{self.split}_{self.name}_supports'
        if path := self.support_file(name):
            return self.checked(read_pools(path, self.fold), path)
        photos = tqdm(range(len(self)), 'classes of the photos', leave=False)
        pools = make_pools([(i, set(np.unique(self.labels(i)).tolist())) for i in photos], self.fold, self.queries)
        folder = os.path.join(self.root, 'support')
        if os.path.isdir(folder) and os.access(folder, os.W_OK):
            write_pools(os.path.join(folder, name + '.json'), pools)
        return pools

    def checked(self, pools, path):
        last = max((i for side in pools.values() for pool in side.values() for i in pool), default=0)
        if last >= len(self):
            raise ValueError(f'{path} names photo {last}, but the list has {len(self)}; get files of one version')
        return pools

    def training_pairs(self, way, seed):
        """Episodes of `oneshot.episodes`."""
        if way == '1way':
            return oneway_pairs(self.pools, self.fold, seed)
        return kway_pairs(len(self), seed, self.queries)

    def test_episodes(self):
        path = self.support_file(f'{self.name}_meta_test_list')
        return self.check_episodes(read_episodes(path), path) if path else meta_test_list(self.pools, self.fold)

    def check_episodes(self, episodes, path):
        """ValueError where a list of test episodes is of another set."""
        for query, support, c in episodes:
            if not (isinstance(c, int) and c in self.fold.all[1:] and
                    all(isinstance(i, int) and 0 <= i < len(self) for i in (query, support))):
                raise ValueError(f'{path} has the episode {(query, support, c)}, which this set has not: its photos '
                                 f'are 0..{len(self) - 1}, its classes {list(self.fold.all[1:])}')
        return episodes


class CCPOneShot(OneShotPhotos):
    """CCP-OS, ours: CCP's 798 training and 100 validation photos of single people, half of them queries. Classes share
    test photos, because there are few."""

    def __init__(self, name, root, split, fold):
        self.name, self.split, self.fold, self.root = 'ccp', split, FOLDS['ccp', fold], root
        self.ccp = CCP(root, dict(train='train_photos', test='val_photos')[split])
        self.ids, self.photos = self.ccp.ids, self.ccp.photos

    @property
    def queries(self):
        return len(self) // 2

    def labels(self, i):
        parsing, ignore = self.ccp.read_parsing(i)
        labels = parsing.max(0, initial=0)
        labels[ignore & (labels == 0)] = IGNORE
        return labels

    def test_episodes(self):
        return meta_test_list(self.pools, self.fold, reuse=True)


def open_photos(name, root, split, fold):
    """The photos of a data set; one sentence where something is wrong."""
    if not root:
        raise ValueError(f'{name} is read from files; give the folder of the unpacked download with --root')
    if not os.path.isdir(root):
        raise FileNotFoundError(f'{root} is no folder; --root is the folder of the unpacked download')
    if (name.lower(), fold) not in FOLDS:
        raise ValueError(f'--fold is {fold}; the folds are 1 and 2')
    photos = (CCPOneShot if name == 'CCP' else OneShotPhotos)(name, root, split, fold)
    if len(photos) < 2:
        raise ValueError(f'{root} has {len(photos)} photos in its {split} list; unpack the download again')
    return photos


class EpisodePairs:
    """A training set of episodes. Those of the released recipe are drawn once; else each epoch draws its supports."""
    skip_bad = False

    def __init__(self, photos, config):
        self.photos, self.config, self.drawn, self.kept = photos, config, {}, {}
        self.ids = [f'{photos.ids[query]} by {photos.ids[support]}' for query, support, _ in self.pairs(0)]

    def pairs(self, epoch):
        seed = (self.config.seed, 0 if self.config.recipe == 'released' else epoch)
        if seed not in self.drawn:
            self.drawn = {seed: self.photos.training_pairs(self.config.way, seed)}
        return self.drawn[seed]

    def __len__(self):
        return len(self.ids)

    def photo(self, i):
        """image (H,W,3), labels (H,W) as drawn, reduced to the config's long_side. Small ones stay in memory."""
        if i in self.kept:
            return self.kept[i]
        pair = reduced_pair(*self.photos.read(i), self.config.long_side)
        if self.config.long_side and len(self.kept) < KEPT:
            self.kept[i] = pair
        return pair

    def read(self, i, seed=0, epoch=0):
        """query, support: images; their labels as drawn; 1-way's class, else 0; the epoch."""
        query, support, c = self.pairs(epoch)[i]
        (query, query_labels), (support, support_labels) = map(self.photo, (query, support))
        return query, support, query_labels, support_labels, c, epoch


class EpisodeSamples(Samples):
    """samples[epoch, index] -> dict of tensors: query and support (3,S,S) as of `augment.normalize`, query_labels and
    support_labels (S,S) uint8, merged; classes: 1-way's class, else 0; epoch, info."""

    def tensors(self, query, support, query_labels, support_labels, c, epoch, rng):
        sample, fold, config = dict(classes=c, epoch=epoch), self.dataset.photos.fold, self.config
        for name, image, labels in (('query', query, query_labels), ('support', support, support_labels)):
            image, labels = augment(image, labels, fold, rng, config.size)
            sample[name] = torch.from_numpy(normalize(image))
            sample[name + '_labels'] = torch.from_numpy(np.ascontiguousarray(labels))
        return sample

    def groups(self):
        return [np.arange(len(self))]

    @staticmethod
    def collate(samples):
        for error in (s for s in samples if isinstance(s, Exception)):
            return error
        batch = {name: torch.stack([s[name] for s in samples])
                 for name in ('query', 'support', 'query_labels', 'support_labels')}
        return dict(batch, classes=torch.tensor([s['classes'] for s in samples]), epoch=samples[0]['epoch'],
                    infos=[s['info'] for s in samples])

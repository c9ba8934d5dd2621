"""From one label set to another, by tables: docs/labels.md.

KINDS leads from MHP, CIHP, LIP and ATR to coarser sets. The names of the labels are in util/labels.py. Needs no torch.
"""
from functools import lru_cache

import numpy as np
from scipy.ndimage import distance_transform_edt

from util.datasets import MHP
from util.files import UNKNOWN
from util.labels import LABEL_SETS
from util.masks import CroppedMap, as_label_maps, box_of
from util.submissions import Prediction

SETS = 'mhp', 'cihp', 'lip', 'atr', 'pascal', 'merged'   # the columns of KINDS
SOURCES, TARGETS = SETS[:4], SETS[1:]
# What a row names is one kind of thing; `-` is background, and of `A or B` a pixel takes the nearer one of its side.
# A class that stands in several rows is converted by the first.
KINDS = (
    ('cap/hat, helmet, headwear', 'hat', 'Hat', 'Hat', 'Head', 'Upper-face'),
    ('hair', 'hair', 'Hair', 'Hair', 'Head', 'Upper-face'),
    ('face', 'face', 'Face', 'Face', 'Head', 'Face'),
    ('sunglasses, eyewear', 'sunglasses', 'Sunglasses', 'Sunglasses', 'Head', 'Face'),
    ('t-shirt, polo-shirt, sweater, singlet, bikini/bra, tie, other-upper-body-clothes', 'upper-clothes',
     'Upper-clothes', 'Upper-clothes', 'Torso', 'Upper-clothes'),
    ('jacket/windbreaker/hoodie, coat', 'coat', 'Coat', 'Upper-clothes', 'Torso', 'Upper-clothes'),
    ('dress, robe, other-full-body-clothes', 'dress', 'Dress', 'Dress', 'Torso', 'One-piece'),
    ('jumpsuits', 'dress', 'Jumpsuits', 'Dress', 'Torso', 'One-piece'),
    ('scarf', 'scarf', 'Scarf', 'Scarf', 'Torso', 'Upper-clothes'),
    ('torso-skin', 'torso-skin', '-', '-', 'Torso', '-'),
    ('pants, shorts/swimshorts, other-lower-body-clothes', 'pants', 'Pants', 'Pants', 'Upper Legs', 'Lower-clothes'),
    ('belt', 'pants', 'Pants', 'Belt', 'Upper Legs', 'Lower-clothes'),
    ('skirt', 'skirt', 'Skirt', 'Skirt', 'Upper Legs', 'Lower-clothes'),
    ('socks, stockings', 'socks', 'Socks', 'Left-leg or Right-leg', 'Lower Legs', 'Leg'),
    ('gloves', 'glove', 'Glove', 'Left-arm or Right-arm', 'Lower Arms', 'Arm'),
    ('watch, wristband', 'left-arm or right-arm', 'Left-arm or Right-arm', 'Left-arm or Right-arm', 'Lower Arms',
     'Arm'),
    ('left-arm, left-hand', 'left-arm', 'Left-arm', 'Left-arm', 'Lower Arms', 'Arm'),
    ('right-arm, right-hand', 'right-arm', 'Right-arm', 'Right-arm', 'Lower Arms', 'Arm'),
    ('left-leg, left-foot', 'left-leg', 'Left-leg', 'Left-leg', 'Lower Legs', 'Leg'),
    ('right-leg, right-foot', 'right-leg', 'Right-leg', 'Right-leg', 'Lower Legs', 'Leg'),
    ('left-shoe, left-boot, left-highheel, left-sandal', 'left-shoe', 'Left-shoe', 'Left-shoe', 'Lower Legs', 'Shoe'),
    ('right-shoe, right-boot, right-highheel, right-sandal', 'right-shoe', 'Right-shoe', 'Right-shoe', 'Lower Legs',
     'Shoe'),
    ('backpack, carrybag, cases, wallet/purse', '-', '-', 'Bag', '-', '-'),
    ('protector, ball, bats, bottle, umbrella, other-accessaries', '-', '-', '-', '-', '-'))


# ---- between label sets ------------------------------------------------------------------------------------


def names_of(name):
    """The class names of one of SETS, the background first; those of TARGETS as in util/labels.py."""
    return MHP.class_names if name == 'mhp' else LABEL_SETS[name].names


def find_set(class_names, labels):
    """The one of SOURCES that has these names, in any case; ValueError where there is no table from them to `labels`,
    one of TARGETS."""
    if labels not in TARGETS:
        raise ValueError(f'labels {labels!r} is unknown; choose one of {", ".join(TARGETS)}')
    for name in SOURCES:
        if [n.lower() for n in names_of(name)] == [n.lower() for n in class_names]:
            return name
    raise ValueError(f'no table leads from the classes {", ".join(class_names[1:4])}, .. to {labels}; the tables begin '
                     f'with the classes of {", ".join(SOURCES)}')


@lru_cache
def find_tables(source, target):
    """The target's ids of the source's ids 0..K: one tuple for a person's left side, one for the right. They differ in
    classes without a side, such as gloves, where the target has sides."""
    names, others = ([name.lower() for name in names_of(s)] for s in (source, target))
    found = {'background': (0, 0)}
    if source == target:
        return (tuple(range(len(names))),) * 2
    for row in KINDS:
        there = row[SETS.index(target)].lower().split(' or ')
        for name in row[SETS.index(source)].split(', '):
            found.setdefault(name.lower(), [others.index(n) if n != '-' else 0 for n in (there[0], there[-1])])
    return tuple(zip(*(found[name] for name in names)))


def relabel(labels, table):
    """uint8 array of labels -> uint8 array of table[label]; 255 (unknown) stays. ValueError for a label outside."""
    lookup = np.arange(256, dtype=np.uint8)
    lookup[:len(table)] = table
    strange = (labels >= len(table)) & (labels != UNKNOWN)
    if strange.any():
        raise ValueError(f'the label {labels[strange][0]} is none of 0 to {len(table) - 1}; is it of another data set?')
    return lookup[labels]


def convert(labels, source, target):
    """Label map uint8 (H, W) of a person in the set `source` -> in the set `target`; 255 (unknown) stays. A class
    without a side takes that of the nearest pixel with a side; without any it becomes background."""
    left, right = (relabel(labels, table) for table in find_tables(source, target))
    unsure = left != right
    if not unsure.any():
        return left
    x, y, w, h = box_of(labels)
    box = slice(y, y + h), slice(x, x + w)
    sides = np.zeros(256, np.uint8)
    for pair in LABEL_SETS[target].flip_pairs:
        sides[list(pair)] = 1, 2
    side = np.where(unsure, 0, sides[left])[box]
    if side.any():
        nearest = distance_transform_edt(side == 0, return_distances=False, return_indices=True)
        side = side[tuple(nearest)]
    left[box] = np.where(unsure[box], np.choose(side, (0, left[box], right[box])), left[box])
    return left


def convert_any(label_map, source, target):
    """`convert` of an array (H, W) or a CroppedMap."""
    if isinstance(label_map, CroppedMap):
        return label_map.relabel(convert(label_map.labels, source, target), len(names_of(target)))
    return convert(np.asarray(label_map, np.uint8), source, target)


class ConvertedSet:
    """A data set whose ground truth is in the classes of another label set, for `evaluate.Job`."""

    def __init__(self, dataset, labels):
        self.dataset, self.tables = dataset, (find_set(dataset.class_names, labels), labels)
        self.ids, self.class_names, self.read_parsing = dataset.ids, names_of(labels), dataset.read_parsing

    def __len__(self):
        return len(self.ids)

    def truth(self, i, parsing, ignore):
        """Parts and humans are those of the converted people, because some have merged and some are gone."""
        truth = self.dataset.truth(i, parsing, ignore)
        maps = [convert_any(m, *self.tables) for m in truth.parsing]
        semantic = None if truth.semantic is None else convert_any(truth.semantic, *self.tables)
        return truth._replace(parsing=as_label_maps(maps, ignore.shape), semantic=semantic, parts=None, humans=None)


class ConvertedPredictions:
    """Predictions (see `submissions.open_predictions`) in the set `source`, read in the classes of `target`, without
    people without pixels there."""

    def __init__(self, predictions, source, target):
        self.predictions, self.tables = predictions, (source, target)
        self.ids, self.source = predictions.ids, predictions.source
        self.unknown_metrics = predictions.unknown_metrics
        if source != target and 'AP' in self.unknown_metrics: # parts without people cannot merge
            self.unknown_metrics = tuple({*self.unknown_metrics, 'APr'})

    def read(self, image, shape, num_classes):
        source, target = self.tables
        try:
            found = self.predictions.read(image, shape, len(names_of(source)) - 1)
        except ValueError as error:
            raise ValueError(f'{error} (read as labels of {source}; --predicted-labels names another set)') from None
        if source == target:
            return found
        semantic = None if found.semantic is None else convert_any(found.semantic, source, target)
        maps = [convert_any(m, source, target) for m in found.parsing]
        kept = [i for i, m in enumerate(maps) if (m.area if isinstance(m, CroppedMap) else m.any())]
        return Prediction([maps[i] for i in kept], [found.scores[i] for i in kept], semantic, lost=found.lost)

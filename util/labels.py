"""Label sets: names, colors, left and right, and the tables from one set to another.

docs/labels.md shows the tables. Needs no torch.
"""
import reprlib
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from util.datasets.mhp import MHP
from util.files import UNKNOWN
from util.masks import box_of

LIP = ('Background', 'Hat', 'Hair', 'Glove', 'Sunglasses', 'Upper-clothes', 'Dress', 'Coat',
       'Socks', 'Pants', 'Jumpsuits', 'Scarf', 'Skirt', 'Face', 'Left-arm', 'Right-arm',
       'Left-leg', 'Right-leg', 'Left-shoe', 'Right-shoe')
CIHP = (*LIP[:10], 'Torso-skin', *LIP[11:])
ATR = ('Background', 'Hat', 'Hair', 'Sunglasses', 'Upper-clothes', 'Skirt', 'Pants', 'Dress',
       'Belt', 'Left-shoe', 'Right-shoe', 'Face', 'Left-leg', 'Right-leg', 'Left-arm',
       'Right-arm', 'Bag', 'Scarf')
# As the parser of IDM-VTON and OOTDiffusion writes it: there, the neck is what ATR's network calls
# face and LIP's does not.
ATR_NECK = (*ATR, 'Neck')
PASCAL = ('Background', 'Head', 'Torso', 'Upper Arms', 'Lower Arms', 'Upper Legs', 'Lower Legs')
MERGED = ('Background', 'Upper-face', 'Face', 'Arm', 'Leg', 'Upper-clothes', 'One-piece',
          'Lower-clothes', 'Shoe')
# Of the scheme `sep` in schp/merged.py.
MERGED_SEP = ('Background', 'Upper-face', 'Face', 'Hands', 'Feet', 'Upper-body', 'One-piece',
              'Lower-body', 'Shoe')


class LabelSet(NamedTuple):
    names: tuple[str, ...]              # of the classes, the background first
    size: tuple[int, int]               # (H, W) of the network's input
    flip_pairs: tuple = ()              # ids that swap when the image is mirrored


# As the released code of SCHP defines them; the merged ones as ViWear's fork of it does; ATR with a
# neck for results alone.
LABEL_SETS = {
    'lip': LabelSet(LIP, (473, 473), ((14, 15), (16, 17), (18, 19))),
    'atr': LabelSet(ATR, (512, 512), ((9, 10), (12, 13), (14, 15))),
    'atr-neck': LabelSet(ATR_NECK, (512, 512), ((9, 10), (12, 13), (14, 15))),
    'pascal': LabelSet(PASCAL, (512, 512)),
    'cihp': LabelSet(CIHP, (473, 473), ((14, 15), (16, 17), (18, 19))),
    'merged': LabelSet(MERGED, (512, 384)),
    'merged-sep': LabelSet(MERGED_SEP, (512, 384)),
}
RELEASED = {20: 'lip', 18: 'atr', 7: 'pascal', 9: 'merged'}  # by number of classes; CIHP has 20 too

# The classes of one-shot parsing: ids of ATR and LIP, equal classes under one id. CIHP has LIP's,
# but for one.
ONESHOT_NAMES = {
    'atr': {0: 'background', 1: 'hat', 2: 'hair', 4: 'upper-clothes', 5: 'skirt', 6: 'pants',
            7: 'dress', 9: 'shoe', 11: 'face', 12: 'leg', 14: 'arm', 16: 'bag'},
    'lip': {0: 'background', 1: 'hat', 2: 'hair', 5: 'upper-clothes', 6: 'dress', 7: 'coat',
            9: 'pants', 10: 'jumpsuits', 12: 'skirt', 13: 'face', 14: 'arms', 16: 'legs',
            18: 'shoes'},
}


# ---- one label set -----------------------------------------------------------------------------


def choose_labels(num_classes: int, labels: str | LabelSet | None = None,
                  path: str = 'the network') -> LabelSet:
    """The label set of a network with num_classes outputs, in the file path.

    labels: a name of LABEL_SETS, a LabelSet, or None for the released set with as many classes.
    Raises a ValueError if they do not agree.
    """
    if labels is None:
        labels = RELEASED.get(num_classes)
    if labels is None:
        raise ValueError(f'no released label set has {num_classes} classes; give a LabelSet as '
                         'labels')
    if isinstance(labels, str) and labels not in LABEL_SETS:
        raise ValueError(f'labels {labels!r} is unknown; choose from {", ".join(LABEL_SETS)} or '
                         'give a LabelSet')
    chosen = LABEL_SETS[labels] if isinstance(labels, str) else LabelSet(*labels)
    if len(chosen.names) != num_classes:
        raise ValueError(f'{path} has {num_classes} classes, the label set {len(chosen.names)} '
                         f'({", ".join(chosen.names[:4])}, ..); choose other --labels')
    return chosen


def check_flip_pairs(pairs: tuple, num_classes: int):
    """ValueError where pairs are not of two ids of classes each, all different."""
    try:
        ids = [i for left, right in pairs for i in (left, right)]
        good = all(type(i) is int and 0 < i < num_classes for i in ids)
        good = good and len(set(ids)) == len(ids)
    except (TypeError, ValueError):
        good = False
    if not good:
        raise ValueError(f'its flip_pairs are {reprlib.repr(pairs)}; they are pairs of ids of '
                         f'classes from 1 to {num_classes - 1}')


def flip_order(num_classes: int, pairs: tuple) -> list[int]:
    """Channel order of a mirrored image's logits: left and right swapped."""
    order = list(range(num_classes))
    for left, right in pairs:
        order[left] = right
        order[right] = left
    return order


def voc_palette(num_classes: int = 256) -> np.ndarray:
    """The colors of Pascal VOC, uint8 (num_classes, 3).

    Bits 0, 1, 2 of the id, then bits 3, 4, 5 and so on, are the bits of red, green and blue from
    the highest down.
    """
    ids = np.arange(num_classes)[:, None]
    colors = np.zeros((num_classes, 3), int)
    for place in range(8):
        bits = (ids >> (3 * place + np.arange(3))) & 1
        colors |= bits << (7 - place)
    return colors.astype(np.uint8)


# ---- from one set to another -------------------------------------------------------------------

SETS = 'mhp', 'cihp', 'lip', 'atr', 'pascal', 'merged'        # the columns of KINDS
SOURCES = SETS[:4]
TARGETS = *SETS[1:], 'atr-neck'

# Each row names one kind of thing in every set. `-` is background, and of `A or B` a pixel takes
# the nearer one of its side. A class that stands in several rows is converted by the first.
KINDS = (
    ('cap/hat, helmet, headwear', 'hat', 'Hat', 'Hat', 'Head', 'Upper-face'),
    ('hair', 'hair', 'Hair', 'Hair', 'Head', 'Upper-face'),
    ('face', 'face', 'Face', 'Face', 'Head', 'Face'),
    ('sunglasses, eyewear', 'sunglasses', 'Sunglasses', 'Sunglasses', 'Head', 'Face'),
    ('t-shirt, polo-shirt, sweater, singlet, bikini/bra, tie, other-upper-body-clothes',
     'upper-clothes', 'Upper-clothes', 'Upper-clothes', 'Torso', 'Upper-clothes'),
    ('jacket/windbreaker/hoodie, coat', 'coat', 'Coat', 'Upper-clothes', 'Torso', 'Upper-clothes'),
    ('dress, robe, other-full-body-clothes', 'dress', 'Dress', 'Dress', 'Torso', 'One-piece'),
    ('jumpsuits', 'dress', 'Jumpsuits', 'Dress', 'Torso', 'One-piece'),
    ('scarf', 'scarf', 'Scarf', 'Scarf', 'Torso', 'Upper-clothes'),
    ('torso-skin', 'torso-skin', '-', '-', 'Torso', '-'),
    ('pants, shorts/swimshorts, other-lower-body-clothes', 'pants', 'Pants', 'Pants', 'Upper Legs',
     'Lower-clothes'),
    ('belt', 'pants', 'Pants', 'Belt', 'Upper Legs', 'Lower-clothes'),
    ('skirt', 'skirt', 'Skirt', 'Skirt', 'Upper Legs', 'Lower-clothes'),
    ('socks, stockings', 'socks', 'Socks', 'Left-leg or Right-leg', 'Lower Legs', 'Leg'),
    ('gloves', 'glove', 'Glove', 'Left-arm or Right-arm', 'Lower Arms', 'Arm'),
    ('watch, wristband', 'left-arm or right-arm', 'Left-arm or Right-arm', 'Left-arm or Right-arm',
     'Lower Arms', 'Arm'),
    ('left-arm, left-hand', 'left-arm', 'Left-arm', 'Left-arm', 'Lower Arms', 'Arm'),
    ('right-arm, right-hand', 'right-arm', 'Right-arm', 'Right-arm', 'Lower Arms', 'Arm'),
    ('left-leg, left-foot', 'left-leg', 'Left-leg', 'Left-leg', 'Lower Legs', 'Leg'),
    ('right-leg, right-foot', 'right-leg', 'Right-leg', 'Right-leg', 'Lower Legs', 'Leg'),
    ('left-shoe, left-boot, left-highheel, left-sandal', 'left-shoe', 'Left-shoe', 'Left-shoe',
     'Lower Legs', 'Shoe'),
    ('right-shoe, right-boot, right-highheel, right-sandal', 'right-shoe', 'Right-shoe',
     'Right-shoe', 'Lower Legs', 'Shoe'),
    ('backpack, carrybag, cases, wallet/purse', '-', '-', 'Bag', '-', '-'),
    ('protector, ball, bats, bottle, umbrella, other-accessaries', '-', '-', '-', '-', '-'),
)


def names_of(name: str) -> tuple[str, ...]:
    """The class names of one of SETS, the background first."""
    return MHP.class_names if name == 'mhp' else LABEL_SETS[name].names


def same_names(names: Sequence[str], others: Sequence[str]) -> bool:
    """Whether two lists of class names are equal, in any case."""
    return [name.lower() for name in names] == [name.lower() for name in others]


def name_of(class_names: Sequence[str]) -> str:
    """The name of the label set with these names, in any case; of others the first classes."""
    for name in dict.fromkeys((*SETS, *LABEL_SETS)):
        if same_names(names_of(name), class_names):
            return name
    return f'{", ".join(class_names[1:4])}, ..'


def find_set(class_names: list[str], labels: str) -> str:
    """The one of SOURCES that has these names, in any case.

    Raises a ValueError if there is no table from them to labels, one of TARGETS.
    """
    if labels not in TARGETS:
        raise ValueError(f'labels {labels!r} is unknown; choose one of {", ".join(TARGETS)}')
    for source in SOURCES:
        if same_names(names_of(source), class_names):
            if labels == 'atr-neck' and 'torso-skin' not in map(str.lower, class_names):
                raise ValueError('atr-neck makes the neck from torso-skin, which is no class of '
                                 f'{source}; choose atr')
            return source
    raise ValueError(f'no table leads from the classes {", ".join(class_names[1:4])}, .. to '
                     f'{labels}; the tables begin with the classes of {", ".join(SOURCES)}')


@lru_cache
def find_tables(source: str, target: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The target's ids of the source's ids 0..K: for a person's left side, for the right side.

    They differ in classes without a side, such as gloves, where the target has sides.
    """
    names = [name.lower() for name in names_of(source)]
    if source == target:
        same = tuple(range(len(names)))
        return same, same
    targets = {name.lower(): i for i, name in enumerate(names_of(target))} | {'-': 0}
    left = {'background': 0}
    right = {'background': 0}
    column = SETS.index('atr' if target == 'atr-neck' else target)
    for row in KINDS:
        there = row[column].lower().split(' or ')
        if target == 'atr-neck' and row[SETS.index('cihp')] == 'torso-skin':
            there = ['neck']
        for name in row[SETS.index(source)].lower().split(', '):
            left.setdefault(name, targets[there[0]])          # the first row of a class counts
            right.setdefault(name, targets[there[-1]])
    return tuple(left[name] for name in names), tuple(right[name] for name in names)


def relabel(labels: np.ndarray, table: tuple[int, ...]) -> np.ndarray:
    """uint8 array of labels -> uint8 array of table[label]; 255 (unknown) stays.

    Raises a ValueError for a label that the table does not have.
    """
    lookup = np.arange(256, dtype=np.uint8)
    lookup[:len(table)] = table
    strange = (labels >= len(table)) & (labels != UNKNOWN)
    if strange.any():
        raise ValueError(f'the label {labels[strange][0]} is none of 0 to {len(table) - 1}; is it '
                         'of another data set?')
    return lookup[labels]


def convert(labels: np.ndarray, source: str, target: str) -> np.ndarray:
    """Label map uint8 (H, W) of a person in the set source -> in the set target.

    255 (unknown) stays. A class without a side takes that of the nearest pixel with a side;
    without any such pixel it becomes background.
    """
    left_table, right_table = find_tables(source, target)
    left = relabel(labels, left_table)
    right = relabel(labels, right_table)
    unsure = left != right
    if not unsure.any():
        return left

    # Here: tools/onnx_parse.py works without scipy.
    from scipy.ndimage import distance_transform_edt

    # The side of each pixel in the person's box: 1 left, 2 right, 0 none.
    x, y, w, h = box_of(labels)
    box = slice(y, y + h), slice(x, x + w)
    side_of_label = np.zeros(256, np.uint8)
    for left_label, right_label in LABEL_SETS[target].flip_pairs:
        side_of_label[left_label] = 1
        side_of_label[right_label] = 2
    side = np.where(unsure, 0, side_of_label[left])[box]
    if side.any():
        nearest = distance_transform_edt(side == 0, return_distances=False, return_indices=True)
        side = side[tuple(nearest)]
    decided = np.choose(side, (0, left[box], right[box]))
    left[box] = np.where(unsure[box], decided, left[box])
    return left

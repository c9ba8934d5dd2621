"""Label sets of single-person parsing: class names in the order of their ids, sizes of the
networks' inputs, left/right pairs, colors. Needs no torch."""
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

LIP = ('Background', 'Hat', 'Hair', 'Glove', 'Sunglasses', 'Upper-clothes', 'Dress', 'Coat',
       'Socks', 'Pants', 'Jumpsuits', 'Scarf', 'Skirt', 'Face', 'Left-arm', 'Right-arm', 'Left-leg',
       'Right-leg', 'Left-shoe', 'Right-shoe')
ATR = ('Background', 'Hat', 'Hair', 'Sunglasses', 'Upper-clothes', 'Skirt', 'Pants', 'Dress',
       'Belt', 'Left-shoe', 'Right-shoe', 'Face', 'Left-leg', 'Right-leg', 'Left-arm', 'Right-arm',
       'Bag', 'Scarf')
PASCAL = ('Background', 'Head', 'Torso', 'Upper Arms', 'Lower Arms', 'Upper Legs', 'Lower Legs')
# LIP's, but for class 10.
CIHP = (*LIP[:10], 'Torso-skin', *LIP[11:])
MERGED = ('Background', 'Upper-face', 'Face', 'Arm', 'Leg', 'Upper-clothes', 'One-piece',
          'Lower-clothes', 'Shoe')
# Of the scheme `sep` in schp/merged.py.
MERGED_SEP = ('Background', 'Upper-face', 'Face', 'Hands', 'Feet', 'Upper-body', 'One-piece',
              'Lower-body', 'Shoe')


class LabelSet(NamedTuple):
    names: tuple                        # of the classes, the background first
    size: tuple                         # (height, width) of the network's input
    flip_pairs: tuple = ()              # ids that swap when the image is mirrored


# As the released code of SCHP defines them; the merged ones as ViWear's fork does.
LABEL_SETS = {
    'lip': LabelSet(LIP, (473, 473), ((14, 15), (16, 17), (18, 19))),
    'atr': LabelSet(ATR, (512, 512), ((9, 10), (12, 13), (14, 15))),
    'pascal': LabelSet(PASCAL, (512, 512)),
    'cihp': LabelSet(CIHP, (473, 473), ((14, 15), (16, 17), (18, 19))),
    'merged': LabelSet(MERGED, (512, 384)),
    'merged-sep': LabelSet(MERGED_SEP, (512, 384))}

# The set of a released file, by its number of classes. Files of CIHP have 20, too.
RELEASED = {20: 'lip', 18: 'atr', 7: 'pascal', 9: 'merged'}

# The classes of one-shot parsing: ids of ATR and LIP, equal classes under one id.
ONESHOT_NAMES = {
    'atr': {0: 'background', 1: 'hat', 2: 'hair', 4: 'upper-clothes', 5: 'skirt', 6: 'pants',
            7: 'dress', 9: 'shoe', 11: 'face', 12: 'leg', 14: 'arm', 16: 'bag'},
    'lip': {0: 'background', 1: 'hat', 2: 'hair', 5: 'upper-clothes', 6: 'dress', 7: 'coat',
            9: 'pants', 10: 'jumpsuits', 12: 'skirt', 13: 'face', 14: 'arms', 16: 'legs',
            18: 'shoes'}}


def choose_labels(num_classes: int, labels: str | LabelSet | None = None,
                  path: str = 'the network') -> LabelSet:
    """The LabelSet of a network with `num_classes` outputs, in the file `path`.

    labels: a name in LABEL_SETS, a LabelSet, or None for the released set with as many classes.
    ValueError where they do not agree."""
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


def flip_order(num_classes: int, pairs: Sequence[tuple]) -> list[int]:
    """The order of the channels of a mirrored image's logits, with left and right swapped."""
    order = list(range(num_classes))
    for left, right in pairs:
        order[left] = right
        order[right] = left
    return order


def voc_palette(num_classes: int = 256) -> np.ndarray:
    """The colors of Pascal VOC, uint8 (num_classes, 3). Bits 0, 1, 2 of the id, then bits 3, 4, 5
    and so on, are the bits of red, green and blue from the highest down."""
    ids = np.arange(num_classes)[:, None]
    colors = np.zeros((num_classes, 3), int)
    for place in range(8):
        bits = (ids >> (3 * place + np.arange(3))) & 1
        colors |= bits << (7 - place)
    return colors.astype(np.uint8)

"""Nine merged labels for virtual try-on, from those of LIP, CIHP and DeepFashion-MultiModal (ViWear's fork of SCHP).

    0 background   1 upper-face (hat, hair)   2 face       3 arm       4 leg
    5 upper-clothes   6 one-piece             7 lower-clothes         8 shoe

Under the scheme `sep`, which follows CatVTON, 3 is hands, 4 feet, 5 upper body and 7 lower body: clothes with the skin
beside them. DeepFashion-MultiModal calls all skin one thing; DensePose's parts decide which skin it is. The names of
the labels are in util/labels.py.
"""
import numpy as np
from scipy.ndimage import distance_transform_edt

from util.files import UNKNOWN

SKIN = 15                                                 # "ask DensePose"; DeepFashion's own number of skin
GROW = 10                                                 # pixels by which DensePose's parts are enlarged

# Labels of a data set in their order: merged label.
LIP = dict(background=0, hat=1, hair=1, glove=3, sunglasses=2, upper_clothes=5, dress=6, coat=5, socks=4, pants=7,
           jumpsuits=6, scarf=5, skirt=7, face=2, left_arm=3, right_arm=3, left_leg=4, right_leg=4, left_shoe=8,
           right_shoe=8)
SEGM = dict(background=0, top=5, outer=5, skirt=7, dress=6, pants=7, leggings=7, headwear=1, eyeglass=2, neckwear=2,
            belt=7, footwear=8, bag=0, hair=1, face=2, skin=SKIN, ring=3, wrist_wearing=3, socks=4, gloves=3,
            necklace=2, rompers=6, earrings=2, tie=5)


def dense(torso, hands=3, feet=4, legs=4, arms=3, face=2):
    """Merged labels of DensePose's parts 0..24, in their order."""
    return 0, *[torso] * 2, *[hands] * 2, *[feet] * 2, *[legs] * 8, *[arms] * 8, *[face] * 2


LIP_TO_MERGED = tuple(LIP.values())
SCHEMES = {                                               # (24 DeepFashion labels, 25 DensePose parts) -> merged
    'sans_torso': (tuple(SEGM.values()), dense(torso=0)),                # as LIP, where the torso's skin is background
    'with_torso': (tuple(SEGM.values()), dense(torso=3)),                # the README says upper-clothes, its file arm
    'sep': (tuple({**SEGM, 'wrist_wearing': 5, 'socks': 7}.values()), dense(torso=5, legs=7, arms=5))}


def find_scheme(scheme):
    if scheme not in SCHEMES:
        raise ValueError(f'the mapping scheme {scheme!r} is unknown; choose one of {", ".join(SCHEMES)}')
    return SCHEMES[scheme]


def relabel(labels, table):
    """uint8 array of labels -> uint8 array of table[label]; 255 (unknown) stays. ValueError for a label outside."""
    lookup = np.arange(256, dtype=np.uint8)
    lookup[:len(table)] = table
    strange = (labels >= len(table)) & (labels != UNKNOWN)
    if strange.any():
        raise ValueError(f'the label {labels[strange][0]} is none of 0 to {len(table) - 1}; is it of another data set?')
    return lookup[labels]


def lip_to_merged(labels, scheme='sans_torso'):
    """LIP's labels 0..19, any shape -> merged labels. LIP has no torso skin, so two schemes are the same."""
    check_scheme(scheme)
    return relabel(labels, LIP_TO_MERGED)


def cihp_to_merged(labels, scheme='sans_torso'):
    """CIHP's labels 0..19, any shape, which are CCP's too -> merged labels. They are LIP's but for 10, torso skin."""
    return relabel(labels, (*LIP_TO_MERGED[:10], check_scheme(scheme)[1][1], *LIP_TO_MERGED[11:]))


def check_scheme(scheme):
    """`find_scheme` for the labels of LIP and CIHP. The scheme `sep` separates hands from arms and feet from legs;
    these labels cannot."""
    if scheme == 'sep':
        raise ValueError('the labels of LIP and CIHP do not separate hands from arms, so the scheme sep cannot be made '
                         'from them; take sans_torso or with_torso')
    return find_scheme(scheme)


def grow(labels, distance=GROW):
    """Background within `distance` pixels of a label takes the nearest one. (H, W) -> (H, W)."""
    if not labels.any():
        return labels
    far, nearest = distance_transform_edt(labels == 0, return_indices=True)
    return np.where(far <= distance, labels[tuple(nearest)], labels)


def deepfashion_to_merged(segm, parts, scheme='sep'):
    """DeepFashion-MultiModal's segmentation (H, W), 0..23, and DensePose's parts (H, W), 0..24 -> merged labels (H, W)
    uint8. Skin takes the label of the nearest part within 10 pixels, else background."""
    segm_table, dense_table = find_scheme(scheme)
    merged, skin = relabel(segm, segm_table), segm == SKIN
    if skin.any():
        merged[skin] = grow(relabel(parts, dense_table))[skin]
    return merged

"""The nine merged labels of ViWear's fork of SCHP, for virtual try-on, and the ways to them.

    0 background   1 upper-face (hat, hair)   2 face       3 arm       4 leg
    5 upper-clothes   6 one-piece             7 lower-clothes         8 shoe

Under the scheme `sep`, which follows CatVTON, 3 is hands, 4 feet, 5 upper body and 7 lower body:
clothes with the skin beside them. Names are in util/labels.py.

DeepFashion-MultiModal has one label for all skin. DensePose's parts decide which skin it is.
"""
import numpy as np
from scipy.ndimage import distance_transform_edt

from util.labels import find_tables, relabel

# Skin in DeepFashion's labels, and in SEGM: "ask DensePose".
SKIN = 15

# Pixels by which DensePose's parts are enlarged.
GROW = 10

# DeepFashion's labels 0..23, in their order: merged label.
SEGM = dict(background=0, top=5, outer=5, skirt=7, dress=6, pants=7, leggings=7, headwear=1,
            eyeglass=2, neckwear=2, belt=7, footwear=8, bag=0, hair=1, face=2, skin=SKIN, ring=3,
            wrist_wearing=3, socks=4, gloves=3, necklace=2, rompers=6, earrings=2, tie=5)


def dense(torso: int, hands: int = 3, feet: int = 4, legs: int = 4, arms: int = 3,
          face: int = 2) -> tuple:
    """The merged labels of DensePose's parts 0..24, in their order."""
    counts = ((0, 1), (torso, 2), (hands, 2), (feet, 2), (legs, 8), (arms, 8), (face, 2))
    return tuple(label for label, count in counts for _ in range(count))


# scheme: (merged labels of DeepFashion's 24 labels, of DensePose's 25 parts).
SCHEMES = {
    # As LIP, where the skin of the torso is background.
    'sans_torso': (tuple(SEGM.values()), dense(torso=0)),
    # The fork's README says upper-clothes, its file arm.
    'with_torso': (tuple(SEGM.values()), dense(torso=3)),
    'sep': (tuple({**SEGM, 'wrist_wearing': 5, 'socks': 7}.values()),
            dense(torso=5, legs=7, arms=5))}

LIP_TO_MERGED = find_tables('lip', 'merged')[0]

# Torso skin in CIHP's labels, the only one that differs from LIP's.
TORSO_SKIN = 10


def find_scheme(scheme: str) -> tuple:
    """One of SCHEMES, or a ValueError."""
    if scheme not in SCHEMES:
        raise ValueError(f'the mapping scheme {scheme!r} is unknown; choose one of '
                         f'{", ".join(SCHEMES)}')
    return SCHEMES[scheme]


def lip_to_merged(labels: np.ndarray, scheme: str = 'sans_torso') -> np.ndarray:
    """LIP's labels 0..19, any shape -> merged labels. LIP has no torso skin, so the two schemes
    without `sep` are the same."""
    check_scheme(scheme)
    return relabel(labels, LIP_TO_MERGED)


def cihp_to_merged(labels: np.ndarray, scheme: str = 'sans_torso') -> np.ndarray:
    """CIHP's labels 0..19, which are CCP's, too, any shape -> merged labels."""
    _, parts = check_scheme(scheme)
    table = list(LIP_TO_MERGED)
    # Part 1 of DensePose is the torso.
    table[TORSO_SKIN] = parts[1]
    return relabel(labels, table)


def check_scheme(scheme: str) -> tuple:
    """`find_scheme` for the labels of LIP and CIHP. The scheme `sep` separates hands from arms and
    feet from legs; these labels cannot."""
    if scheme == 'sep':
        raise ValueError('the labels of LIP and CIHP do not separate hands from arms, so the '
                         'scheme sep cannot be made from them; take sans_torso or with_torso')
    return find_scheme(scheme)


def deepfashion_to_merged(segm: np.ndarray, parts: np.ndarray, scheme: str = 'sep') -> np.ndarray:
    """DeepFashion-MultiModal's segmentation (H, W), 0..23, and DensePose's parts (H, W), 0..24 ->
    merged labels (H, W), uint8. Skin takes the label of the nearest part within 10 pixels, else it
    is background. ValueError for other labels, and for maps of two sizes."""
    if segm.shape != parts.shape:
        raise ValueError(f'the segmentation has the shape {segm.shape}, the parts {parts.shape}; '
                         'give maps of one size')
    segm_table, dense_table = find_scheme(scheme)
    merged = relabel(segm, segm_table)
    skin = segm == SKIN
    if skin.any():
        merged[skin] = grow(relabel(parts, dense_table))[skin]
    return merged


def grow(labels: np.ndarray) -> np.ndarray:
    """Labels (H, W) whose background within GROW pixels of a label takes the nearest one."""
    if not labels.any():
        return labels
    far, nearest = distance_transform_edt(labels == 0, return_indices=True)
    return np.where(far <= GROW, labels[tuple(nearest)], labels)

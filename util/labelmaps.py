"""The nine merged labels for virtual try-on (ViWear's fork of SCHP), from several data sets.

    0 background   1 upper-face (hat, hair)   2 face       3 arm       4 leg
    5 upper-clothes   6 one-piece             7 lower-clothes         8 shoe

Under the scheme `sep`, which follows CatVTON, 3 is hands, 4 feet, 5 upper body and 7 lower body:
clothes with the skin beside them. DeepFashion-MultiModal calls all skin one thing; DensePose's
parts decide which skin it is. Needs no torch.
"""
import numpy as np
from scipy.ndimage import distance_transform_edt

from util.labels import find_tables, relabel

SKIN = 15                               # DeepFashion's own number of skin: DensePose's parts decide
GROW = 10                               # pixels by which DensePose's parts are enlarged

# Labels of DeepFashion in their order: merged label.
SEGM = dict(background=0, top=5, outer=5, skirt=7, dress=6, pants=7, leggings=7, headwear=1,
            eyeglass=2, neckwear=2, belt=7, footwear=8, bag=0, hair=1, face=2, skin=SKIN, ring=3,
            wrist_wearing=3, socks=4, gloves=3, necklace=2, rompers=6, earrings=2, tie=5)


def dense(torso: int, hands: int = 3, feet: int = 4, legs: int = 4, arms: int = 3,
          face: int = 2) -> tuple[int, ...]:
    """Merged labels of DensePose's parts 0..24, in their order."""
    return (0, *[torso] * 2, *[hands] * 2, *[feet] * 2, *[legs] * 8, *[arms] * 8, *[face] * 2)


LIP_TO_MERGED, _ = find_tables('lip', 'merged')
SCHEMES = {  # (24 labels of DeepFashion, 25 parts of DensePose) -> merged
    # As LIP, where the torso's skin is background.
    'sans_torso': (tuple(SEGM.values()), dense(torso=0)),
    # The README of the fork says upper-clothes, its file arm.
    'with_torso': (tuple(SEGM.values()), dense(torso=3)),
    'sep': (tuple((SEGM | dict(wrist_wearing=5, socks=7)).values()),
            dense(torso=5, legs=7, arms=5)),
}


def find_scheme(scheme: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if scheme not in SCHEMES:
        raise ValueError(f'the mapping scheme {scheme!r} is unknown; choose one of '
                         f'{", ".join(SCHEMES)}')
    return SCHEMES[scheme]


def check_scheme(scheme: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """`find_scheme` for the labels of LIP and CIHP.

    The scheme `sep` separates hands from arms and feet from legs; these labels cannot.
    """
    if scheme == 'sep':
        raise ValueError('the labels of LIP and CIHP do not separate hands from arms, so the '
                         'scheme sep cannot be made from them; take sans_torso or with_torso')
    return find_scheme(scheme)


def lip_to_merged(labels: np.ndarray, scheme: str = 'sans_torso') -> np.ndarray:
    """LIP's labels 0..19, any shape -> merged labels.

    LIP has no torso skin, so two schemes are the same.
    """
    check_scheme(scheme)
    return relabel(labels, LIP_TO_MERGED)


def cihp_to_merged(labels: np.ndarray, scheme: str = 'sans_torso') -> np.ndarray:
    """CIHP's labels 0..19, any shape, which are CCP's too -> merged labels.

    They are LIP's but for 10, torso skin.
    """
    _, parts = check_scheme(scheme)
    torso = parts[1]
    return relabel(labels, (*LIP_TO_MERGED[:10], torso, *LIP_TO_MERGED[11:]))


def grow(labels: np.ndarray, distance: float = GROW) -> np.ndarray:
    """Background within `distance` pixels of a label takes the nearest one. (H, W) -> (H, W)."""
    if not labels.any():
        return labels
    far, nearest = distance_transform_edt(labels == 0, return_indices=True)
    return np.where(far <= distance, labels[tuple(nearest)], labels)


def deepfashion_to_merged(segm: np.ndarray, parts: np.ndarray, scheme: str = 'sep') -> np.ndarray:
    """DeepFashion-MultiModal -> merged labels (H, W) uint8.

    segm: its segmentation (H, W), 0..23; parts: DensePose's (H, W), 0..24. Skin takes the label of
    the nearest part within 10 pixels, else background.
    """
    segm_table, dense_table = find_scheme(scheme)
    merged = relabel(segm, segm_table)
    skin = segm == SKIN
    if skin.any():
        merged[skin] = grow(relabel(parts, dense_table))[skin]
    return merged

"""Nine merged labels for virtual try-on, from those of LIP, CIHP and DeepFashion-MultiModal (ViWear's fork of SCHP).

    0 background   1 upper-face (hat, hair)   2 face       3 arm       4 leg
    5 upper-clothes   6 one-piece             7 lower-clothes         8 shoe

Under the scheme `sep`, which follows CatVTON, 3 is hands, 4 feet, 5 upper body and 7 lower body: clothes with the skin
beside them. DeepFashion-MultiModal calls all skin one thing; DensePose's parts decide which skin it is.
"""
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image
from scipy.ndimage import distance_transform_edt
from tqdm import tqdm

from util.files import UNKNOWN, index_folder, load_image, make_folder, read_labels, read_stored, writing

MERGED = 'background', 'upper-face', 'face', 'arm', 'leg', 'upper-clothes', 'one-piece', 'lower-clothes', 'shoe'
MERGED_SEP = 'background', 'upper-face', 'face', 'hands', 'feet', 'upper-body', 'one-piece', 'lower-body', 'shoe'
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


def lip_to_merged(labels):
    """LIP's labels 0..19, any shape -> merged labels."""
    return relabel(labels, LIP_TO_MERGED)


def cihp_to_merged(labels, scheme='sans_torso'):
    """CIHP's labels 0..19, any shape, which are CCP's too -> merged labels. They are LIP's but for 10, torso skin. The
    scheme `sep` separates hands from arms and feet from legs, which these labels cannot."""
    torso = find_scheme(scheme)[1][1]
    if scheme == 'sep':
        raise ValueError("CIHP's labels do not separate hands from arms, so the scheme sep cannot be made from them; "
                         'take sans_torso or with_torso')
    return relabel(labels, (*LIP_TO_MERGED[:10], torso, *LIP_TO_MERGED[11:]))


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


# ---------------------------------------------------------------------------------------------------------------
# A prepared set: DeepFashion-MultiModal as downloaded -> the layout of LIP


def read_parts(path):
    """DensePose's parts, which are channel 2 of an RGB picture: uint8 (H, W)."""
    picture = np.asarray(load_image(path))
    if picture.ndim != 3 or picture.dtype != np.uint8 or picture.shape[2] < 3:
        raise ValueError(f'{path} is no DensePose map of three channels; get the file again')
    return picture[..., 2]


def find_files(root):
    """({id: paths of its photo, segmentation and DensePose map}, number of segmentations that lack one of these)."""
    photos, segm, parts = (index_folder(os.path.join(root, name)) for name in ('images', 'segm', 'densepose'))
    ids = [name.removesuffix('_segm') for name in segm if name.endswith('_segm')]
    files = {i: (photos[i], segm[f'{i}_segm'], parts[f'{i}_densepose']) for i in ids
             if i in photos and f'{i}_densepose' in parts}
    if not files:
        raise FileNotFoundError(f'{root} holds no images/ID.jpg with segm/ID_segm.png and densepose/ID_densepose.png; '
                                'unpack the three archives of DeepFashion-MultiModal there')
    return files, len(ids) - len(files)


def choose(ids, num_train, num_val, seed):
    """Disjoint lists (train, val) in random order. num_val None: all that train leaves."""
    num_val = len(ids) - num_train if num_val is None else num_val
    if num_train < 1 or num_val < 1 or num_train + num_val > len(ids):
        raise ValueError(f'{num_train} images for training and {num_val} for validation cannot be taken out of '
                         f'{len(ids)}; choose other numbers')
    order = [ids[i] for i in np.random.default_rng(seed).permutation(len(ids))]
    return order[:num_train], order[num_train:num_train + num_val]


def convert(files, scheme):
    """(photo RGB, merged labels uint8), Pillow images of one size, from the three files of an id."""
    photo, segm, parts = read_stored(files[0]), read_labels(files[1], len(SEGM) - 1), read_parts(files[2])
    if segm.shape != photo.size[::-1] or parts.shape != segm.shape:
        raise ValueError(f'{files[0]}, {files[1]} and {files[2]} differ in size; get the files again')
    try:
        return photo, Image.fromarray(deepfashion_to_merged(segm, parts, scheme))
    except ValueError as error:                           # the segmentation's labels are checked, so it is DensePose's
        raise ValueError(f'{files[2]}: {error}') from None


def prepare(root, out, scheme='sep', num_train=2500, num_val=None, seed=0):
    """Makes the folder `out` of DeepFashion-MultiModal in `root` (images, segm, densepose) with merged labels:
    {train,val}_images/ID.jpg (quality 95), {train,val}_segmentations/ID.png, {train,val}_id.txt. It appears when it is
    complete. Returns dict(train, val, left_out): numbers of images; left out are those without photo or DensePose map.

    The fork draws val from all images, so that it overlaps train, and names labels ID_segm.png; here the two sets are
    disjoint, and the names are those of LIP. OSError or ValueError with one sentence for what cannot be done.
    """
    find_scheme(scheme)
    if os.path.lexists(out):
        raise FileExistsError(f'{out} exists; choose another folder, or remove it')
    files, left_out = find_files(root)
    lists = dict(zip(('train', 'val'), choose(list(files), num_train, num_val, seed)))
    parent = os.path.dirname(os.path.abspath(out))
    make_folder(parent)
    with writing(parent):
        folder = tempfile.TemporaryDirectory(prefix='.prepare-', dir=parent)
    with folder as temporary:
        made = os.path.join(temporary, 'set')
        for name, ids in lists.items():
            write_split(made, name, {i: files[i] for i in ids}, scheme)
        with writing(out):
            os.rename(made, out)
    return dict(train=len(lists['train']), val=len(lists['val']), left_out=left_out)


def write_split(folder, name, files, scheme):
    """One of the two halves of `prepare`, several images at a time."""
    images, labels = (os.path.join(folder, f'{name}_{kind}') for kind in ('images', 'segmentations'))
    make_folder(images), make_folder(labels)

    def write(i):
        photo, merged = convert(files[i], scheme)
        with writing(folder):
            photo.save(os.path.join(images, f'{i}.jpg'), quality=95)
            merged.save(os.path.join(labels, f'{i}.png'))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(tqdm(pool.map(write, files), name, len(files)))
    with writing(folder), open(os.path.join(folder, f'{name}_id.txt'), 'w') as f:
        f.writelines(f'{i}\n' for i in files)

"""The data sets, read from their folders as downloaded, and the way from a photo to a batch.

    python data.py --data MHP --root data/LV-MHP-v2 --split train     # checks a download, draws samples.png

    MHP        list/*.txt, {train,val}/{images,parsing_annos}, test/images
    CIHP       {Training,Validation,Testing}/{Images,Category_ids,Human_ids}, or the tree of Parsing R-CNN and
               UniParser: {train,val}_{img,parsing} and, where there is one, {CIHP,CHIP}_{train,val}.json
    DensePose  annotations/DensePose_COCO/densepose_coco_2014_*.json, train2014, val2014
    CCP        photos, annotations/pixel-level of github.com/bearpaw/clothing-co-parsing: single people, which
               are composed into scenes of several
    synthetic  drawn people, no files

One label for everything. parsing: uint8 (N, H, W), one map a person; 0 = not this person, 1..K = part,
255 = this person, part unknown. ignore: bool (H, W), pixels about which nothing is known. Somebody in a hat
(1 in CIHP) and a coat that nobody labelled is a map of 0, 1 and 255. Torch is imported only where tensors are
made.
"""
import argparse
import atexit
import io
import json
import os
import re
import signal
import sys
import warnings
import weakref
import zipfile
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from errno import EINVAL
from functools import cached_property, lru_cache
from types import SimpleNamespace

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFont, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from util import scenes

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)      # ImageNet, RGB in 0..1
warnings.filterwarnings('ignore', module='PIL')               # of files that are odd but can be read
UNKNOWN = 255
PHOTOS = '.jpg', '.jpeg', '.png'
FORMATS = 'JPEG', 'PNG', 'WEBP', 'BMP', 'GIF', 'TIFF'         # Pillow knows more, and starts Ghostscript for one
CCP_LAYERS = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'assets', 'ccp_layers.zip')


# ------------------------------------------------------------------------------------------------------------
# Files


def printable(text):
    """Names of files may hold line breaks, codes that move the cursor and bytes that are no text."""
    return ''.join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


@contextmanager
def naming(path, advice='--root is the folder of the unpacked download'):
    """Whatever goes wrong with a file becomes one sentence that names it and tells what to do."""
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(f'{printable(path)} does not exist; {advice}') from None
    except Image.DecompressionBombError:
        most = 2 * Image.MAX_IMAGE_PIXELS // 10 ** 6
        raise ValueError(f'{printable(path)} has more than {most} million pixels; make it smaller') from None
    except UnidentifiedImageError:
        reason = f'no {", ".join(FORMATS)}' if os.path.getsize(path) else 'empty'
        raise ValueError(f'{printable(path)} cannot be read (it is {reason}); get the file again') from None
    except Exception as error:                    # Pillow, scipy and json have a dozen classes of them
        system = isinstance(error, OSError) and error.strerror
        raise ValueError(f'{printable(path)} cannot be read ({system or printable(error) or type(error).__name__}); '
                         + ('check it' if system else 'get the file again')) from None


@contextmanager
def open_image(path):
    """Pillow image whose pixels are not yet decoded."""
    if os.path.exists(path) and not os.path.isfile(path):
        kind = 'a folder without photos, or that may not be read' if os.path.isdir(path) else 'no regular file'
        raise OSError(EINVAL, f'it is {kind}')                # opening a pipe would wait for ever
    with Image.open(path, formats=FORMATS) as image:
        yield image


def load(path, draft=None):
    """Decoded Pillow image, of several the first. A JPEG may come at a half, quarter or eighth if that covers
    draft (w, h)."""
    with naming(path, 'check its name'), open_image(path) as image:
        if draft is not None:
            image.draft('RGB', tuple(max(1, int(v)) for v in draft))
        image.load()
        return image


def to_rgb(image):
    """Pillow image of any mode -> RGB, turned the way its EXIF tag says."""
    if image.getexif().get(0x0112, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith('I'):                # 16 bits, which Pillow would clip
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    return image if image.mode == 'RGB' else image.convert('RGB')


def read_photo(path, draft=None):
    """RGB Pillow image of a file, the way it is meant to be seen."""
    image = load(path, draft)
    with naming(path):
        return to_rgb(image)


def photo_size(path):
    """(width, height) after the EXIF turn, from the header alone."""
    with naming(path), open_image(path) as image:
        turned = image.getexif().get(0x0112) in (5, 6, 7, 8)
        return image.size[::-1] if turned else image.size


def read_labels(path, num_classes=UNKNOWN):
    """Label PNG -> uint8 (H, W): channel 0 of a color image (MHP's are RGB), the indices of a palette."""
    image = load(path)
    if image.mode not in ('1', 'L', 'P', 'LA', 'PA', 'RGB', 'RGBA'):
        raise ValueError(f'{path} is no 8-bit label map (mode {image.mode}); unpack it again')
    labels = np.asarray(image.getchannel(0) if len(image.getbands()) > 1 else image).astype(np.uint8)
    if labels.max(initial=0) > num_classes:
        strange = labels[(labels > num_classes) & (labels != UNKNOWN)]
        if len(strange):
            raise ValueError(f'{path} has the label {strange[0]}, but there are only {num_classes} classes; '
                             'is it of another data set?')
    return labels


def index_folder(folder, endings=PHOTOS):
    """{name without ending: path} of a folder's files, sorted. One look: a glob an image takes minutes."""
    with naming(folder):
        files = sorted((e.name, e.path) for e in os.scandir(folder) if not e.name.startswith('.'))
    return {os.path.splitext(n)[0]: path for n, path in files if n.lower().endswith(endings)}


def pick_files(folder, ids, endings=PHOTOS):
    """Paths of the files named by ids; FileNotFoundError with the first missing one and their number."""
    files = index_folder(folder, endings)
    missing = [i for i in ids if i not in files]
    if missing:
        raise FileNotFoundError(f'{folder} lacks {len(missing)} of {len(ids)} files, the first is '
                                f'{missing[0]}{endings[0]}; unpack the download again')
    return [files[i] for i in ids]


def pick_all(folder):
    """index_folder; FileNotFoundError where there is no photo."""
    files = index_folder(folder)
    if not files:
        raise FileNotFoundError(f'{folder} holds no photos ({", ".join(PHOTOS)})')
    return files


def read_list(path):
    with naming(path), open(path) as f:
        return list(dict.fromkeys(f.read().split()))


def inside(root, name):
    """root/name where there is such a folder, else root: people give either."""
    return os.path.join(root, name) if os.path.isdir(os.path.join(root, name)) else root


def stack_people(maps, size):
    """Label maps (H, W) -> uint8 (N, H, W), without people who have no pixel (as in MHP's evaluator)."""
    return np.array([m for m in maps if m.any()], np.uint8).reshape(-1, size[1], size[0])


# ------------------------------------------------------------------------------------------------------------
# Data sets of files


class Photos:
    """What all data sets share. ids: unique names; photos: paths; people: {id: paths of label maps},
    or None if the split has no labels: then all pixels are ignored. seed, epoch: for drawn images."""
    splits = 'train', 'val', 'test'
    skip_bad = False                              # what cannot be read is left out instead of an error

    def __len__(self):
        return len(self.ids)

    def size(self, i):
        """(width, height) of image i, without decoding it."""
        return photo_size(self.photos[i])

    @cached_property
    def landscape(self):
        """bool (len,): which images are wider than high."""
        return np.array([self.is_wide(i) for i in range(len(self))], bool)

    def is_wide(self, i):
        try:
            width, height = self.size(i)
        except (OSError, ValueError):
            if not self.skip_bad:
                raise
            return False                          # who reads the rest of it says what is wrong
        return width > height

    def read(self, i, seed=0, epoch=0):
        """image (H, W, 3) uint8 RGB, parsing (N, H, W) uint8, ignore (H, W) bool."""
        image, (parsing, ignore) = np.array(read_photo(self.photos[i])), self.read_parsing(i)
        if image.shape[:2] != ignore.shape:
            raise ValueError(f'{self.photos[i]} is of size {image.shape[1::-1]}, its labels are of size '
                             f'{ignore.shape[::-1]}; unpack the download again')
        return image, parsing, ignore

    def read_parsing(self, i, seed=0, epoch=0):
        """parsing (N, H, W) uint8, ignore (H, W) bool; decodes no photo."""
        paths = self.people[self.ids[i]] if self.people is not None else []
        maps = [read_labels(path, len(self.class_names) - 1) for path in paths]
        size = maps[0].shape[::-1] if maps else self.size(i)
        for path, labels in zip(paths, maps):
            if labels.shape != maps[0].shape:
                raise ValueError(f'{path} and {paths[0]} differ in size; unpack the download again')
        return stack_people(maps, size), np.full(size[::-1], self.people is None)


class MHP(Photos):
    """LV-MHP-v2 (Zhao et al. 2018), 58 parts. parsing_annos/ID_NN_KK.png is person KK of NN in a photo."""
    class_names = tuple('''background cap/hat helmet face hair left-arm right-arm left-hand right-hand
        protector bikini/bra jacket/windbreaker/hoodie t-shirt polo-shirt sweater singlet torso-skin pants
        shorts/swimshorts skirt stockings socks left-boot right-boot left-shoe right-shoe left-highheel
        right-highheel left-sandal right-sandal left-leg right-leg left-foot right-foot coat dress robe
        jumpsuits other-full-body-clothes headwear backpack ball bats belt bottle carrybag cases sunglasses
        eyewear gloves scarf umbrella wallet/purse watch wristband tie other-accessaries
        other-upper-body-clothes other-lower-body-clothes'''.split())
    flip_pairs = (5, 6), (7, 8), (22, 23), (24, 25), (26, 27), (28, 29), (30, 31), (32, 33)

    def __init__(self, root, split):
        root = inside(root, 'LV-MHP-v2')
        self.ids = read_list(os.path.join(root, 'list', ('test_all' if split == 'test' else split) + '.txt'))
        self.photos = pick_files(os.path.join(root, split, 'images'), self.ids)
        self.people = None if split == 'test' else defaultdict(list)
        if split != 'test':
            folder = os.path.join(root, split, 'parsing_annos')
            for name, path in index_folder(folder, ('.png',)).items():
                self.people[name.rsplit('_', 2)[0]].append(path)
            if self.ids and not any(i in self.people for i in self.ids):
                raise FileNotFoundError(f'{folder} has no label map of any photo; unpack the download again')


class CIHP(Photos):
    """Crowd Instance-level Human Parsing (Gong et al. 2018), 19 parts, in either of its two trees."""
    class_names = tuple('''background hat hair glove sunglasses upper-clothes dress coat socks pants
        torso-skin scarf skirt face left-arm right-arm left-leg right-leg left-shoe right-shoe'''.split())
    flip_pairs = (14, 15), (16, 17), (18, 19)

    def __init__(self, root, split):
        root, self.maps, self.people = inside(root, 'instance-level_human_parsing'), None, None
        release = {'train': 'Training', 'val': 'Validation', 'test': 'Testing'}[split]
        if os.path.isdir(os.path.join(root, release)):
            self.open_release(os.path.join(root, release), split)
        elif os.path.isdir(os.path.join(root, f'{split}_img')):
            self.open_per_person(root, split)
        else:
            raise FileNotFoundError(f'{root} has neither {release} (the official release) nor {split}_img '
                                    '(Parsing R-CNN); --root is the folder of the unpacked download')

    def open_release(self, folder, split):
        lists = [os.path.join(f, f'{split}_id.txt') for f in (folder, os.path.dirname(folder))]
        lists, photos = [path for path in lists if os.path.isfile(path)], os.path.join(folder, 'Images')
        self.ids = read_list(lists[0]) if lists else list(index_folder(photos))
        self.photos = pick_files(photos, self.ids)
        if split != 'test':
            folders = [os.path.join(folder, name) for name in ('Category_ids', 'Human_ids')]
            self.maps = [pick_files(f, self.ids, ('.png',)) for f in folders]

    def open_per_person(self, root, split):
        labels, self.people = os.path.join(root, f'{split}_parsing'), defaultdict(list)
        lists = [os.path.join(root, folder, f'{name}_{split}.json')
                 for folder in ('', 'annotations') for name in ('CIHP', 'CHIP')]
        lists = [path for path in lists if os.path.isfile(path)]
        if lists:
            with naming(lists[0]), open(lists[0]) as f:
                coco = json.load(f)
                stems = {image['id']: os.path.splitext(image['file_name'])[0] for image in coco['images']}
                self.ids = list(stems.values())
                for person in coco['annotations']:
                    self.people[stems[person['image_id']]].append(os.path.join(labels, person['parsing']))
        else:                                     # it is not part of CIHP, and UniParser's was not published
            self.ids = list(index_folder(os.path.join(root, f'{split}_img')))
            for name, path in index_folder(labels, ('.png',)).items():
                self.people[name.rsplit('-', 1)[0]].append(path)
        self.photos = pick_files(os.path.join(root, f'{split}_img'), self.ids)

    def read_parsing(self, i, seed=0, epoch=0):
        if self.maps is None:
            return super().read_parsing(i)
        category, human = read_labels(self.maps[0][i], 19), read_labels(self.maps[1][i])
        if category.shape != human.shape:
            raise ValueError(f'{self.maps[0][i]} and {self.maps[1][i]} differ in size; unpack them again')
        people = [category * (human == h) for h in np.flatnonzero(np.bincount(human.ravel())) if h]
        return stack_people(people, human.shape[::-1]), (category > 0) & (human == 0)


class DensePose(Photos):
    """DensePose-COCO (Guler et al. 2018), 14 body parts. Who has no part masks is ignored, not background."""
    class_names = tuple('''background torso right-hand left-hand left-foot right-foot right-upper-leg
        left-upper-leg right-lower-leg left-lower-leg left-upper-arm right-upper-arm left-lower-arm
        right-lower-arm head'''.split())
    flip_pairs = (3, 2), (4, 5), (7, 6), (9, 8), (10, 11), (12, 13)
    splits = 'train', 'valminusminival', 'val', 'test'

    def __init__(self, root, split):
        name = f'densepose_coco_2014_{"minival" if split == "val" else split}.json'
        path = os.path.join(root, 'annotations', 'DensePose_COCO', name)
        with naming(path), open(path) as f:
            coco = json.load(f)
            names = {image['id']: os.path.splitext(image['file_name'])[0] for image in coco['images']}
            self.people = defaultdict(list) if coco.get('annotations') else None
            for a in coco.get('annotations', ()):             # only what is needed stays in memory
                masks = [mask and mask['counts'] for mask in a.get('dp_masks') or ()]
                self.people[names[a['image_id']]].append((a['bbox'], masks, a.get('segmentation')))
        self.ids = [i for i in names.values()
                    if self.people is None or any(any(masks) for _, masks, _ in self.people[i])]
        self.photos = [os.path.join(root, i.split('_')[1], i + '.jpg') for i in self.ids]  # COCO_val2014_..
        missing = [photo for photo in self.photos if not os.path.isfile(photo)]
        if missing:
            raise FileNotFoundError(f'{len(missing)} of the {len(self)} photos in {path} are missing, the '
                                    f'first is {missing[0]}; unpack COCO 2014 beside annotations')

    def read_parsing(self, i, seed=0, epoch=0):
        size, maps = self.size(i), []
        ignore = np.full(size[::-1], self.people is None)
        for box, masks, segmentation in self.people[self.ids[i]] if self.people is not None else ():
            with naming(f'the annotation of {self.ids[i]}'):
                if any(masks):
                    maps.append(paste_masks(masks, box, size))
                else:
                    ignore |= coco_mask(segmentation, size)
        return stack_people(maps, size), ignore


def paste_masks(masks, box, size):
    """14 run-length masks of 256x256 ([]: absent) -> label map (H, W), scaled to box (x, y, w, h), pixels."""
    labels, full = np.zeros((256, 256), np.uint8), np.zeros(size[::-1], np.uint8)
    for part, counts in enumerate(masks, 1):
        if counts:
            labels[decode_rle(counts, 256, 256)] = part
    x0, y0, w, h = map(int, box)
    x1, y1 = min(x0 + w, size[0]), min(y0 + h, size[1])           # as in DensePose's notebook
    if x1 > x0 and y1 > y0:
        full[y0:y1, x0:x1] = Image.fromarray(labels).resize((x1 - x0, y1 - y0), Image.NEAREST)
    return full


def coco_mask(segmentation, size):
    """COCO's polygons [[x, y, x, y, ..], ..] or run lengths -> bool (H, W)."""
    if isinstance(segmentation, dict):
        return decode_rle(segmentation['counts'], *size)
    mask = Image.new('1', size)
    for polygon in segmentation or ():
        ImageDraw.Draw(mask).polygon(polygon, fill=1)
    return np.array(mask)


def decode_rle(counts, width, height):
    """COCO's run lengths -> bool (H, W). The runs go down the columns; the first is of zeros.

    In a compressed string a character less 48 holds five bits; 32 says that more follow, 16 in the last is
    the sign; every number after the third is the difference to the last but one.
    """
    if not isinstance(counts, list):
        text, counts, value, shift = counts, [], 0, 0
        for c in text.encode():
            value |= (c - 48 & 31) << shift
            shift += 5
            if not c - 48 & 32:
                value -= (c - 48 & 16) << shift - 4
                counts.append(value + (counts[-2] if len(counts) > 2 else 0))
                value = shift = 0
    if sum(counts) != width * height or min(counts) < 0:       # or a few letters would ask for all memory
        raise ValueError(f'run lengths of {sum(counts)} pixels for {width}x{height}')
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(width, height).T


# ------------------------------------------------------------------------------------------------------------
# Data sets of scenes (scenes.py): people of Clothing Co-Parsing, drawn people


class CCP(Photos):
    """Clothing Co-Parsing (Yang et al. 2014) in the 19 classes of CIHP.

    train_photos and val_photos are the photos as they are, one labelled person each. train and val are
    scenes: people cut out of photos join another photo's person, or stand where that person was removed. val
    is always the same 100 scenes. Faces, limbs, left and right, and the bystanders to ignore are pseudo
    labels: see README.txt in CCP_LAYERS. Options for train: long_side of the scenes in pixels; samples: scenes
    in an epoch, 0 = one a photo; and photos to stand in, backgrounds: a folder of some without people, for a
    fifth of the scenes; people: a folder of images/ID.jpg and instances/ID.png (0 = nobody, 255 = crowd, else
    a person, whose parts are unknown), for a tenth.
    """
    class_names, flip_pairs = CIHP.class_names, CIHP.flip_pairs
    splits = 'train', 'val', 'train_photos', 'val_photos'

    def __init__(self, root, split, long_side=640, backgrounds=None, people=None, samples=0):
        root, kind = inside(root, 'clothing-co-parsing'), split.split('_')[0]
        with naming(CCP_LAYERS), zipfile.ZipFile(CCP_LAYERS) as archive:
            self.files = {name: archive.read(name) for name in archive.namelist()}
        self.names = self.files[f'{kind}.txt'].decode().split()
        self.photos = pick_files(os.path.join(root, 'photos'), self.names)
        self.mats = pick_files(os.path.join(root, 'annotations', 'pixel-level'), self.names, ('.mat',))
        mapping = json.loads(self.files['mapping.json'])
        rows = [row['cihp'] for row in mapping['map']]            # a class of CIHP, or {part: class of CIHP}
        self.table = np.array([[row.get(part, UNKNOWN) if isinstance(row, dict) else row
                                for part in mapping['parts']] for row in rows], np.uint8)         # (59, 13)
        self.val, self.long_side = split == 'val', 640 if split == 'val' else long_side
        self.backgrounds = self.crowds = []
        if backgrounds and not self.val:
            self.backgrounds = list(pick_all(backgrounds).values())
        if people and not self.val:
            crowds = pick_all(os.path.join(people, 'images'))
            ids = pick_files(os.path.join(people, 'instances'), list(crowds), ('.png',))
            self.crowds = list(zip(crowds.values(), ids))
        scenes = range(samples if samples and not self.val else len(self.names))
        self.ids = [f'{split}_{i:04d}' for i in scenes] if split == kind else self.names

    def size(self, i):
        if self.ids is self.names:
            return photo_size(self.photos[i])
        aspect, side = scenes.ASPECTS[i % len(scenes.ASPECTS)], self.long_side
        return (side, round(side / aspect)) if aspect > 1 else (round(side * aspect), side)

    def read(self, i, seed=0, epoch=0):
        return super().read(i) if self.ids is self.names else self.compose(i, seed, epoch)

    def read_parsing(self, i, seed=0, epoch=0):
        if self.ids is not self.names:
            return self.compose(i, seed, epoch, paint=False)[1:]
        ccp, *layers = self.annotation(i)
        parts, ignore = (np.asarray(layer.resize(ccp.size, Image.NEAREST)) for layer in layers)
        ccp = np.asarray(ccp)
        return stack_people([self.labels(ccp, parts)], ccp.shape[::-1]), ignore & (ccp == 0)

    def annotation(self, k):
        """Photo k: CCP's label map, and our parts and ignore (of long side 640), Pillow images."""
        from scipy.io import loadmat
        with naming(self.mats[k]):
            labels = loadmat(self.mats[k])['groundtruth']
            if labels.max() >= len(self.table):
                raise ValueError(f'it has the label {labels.max()}, but there are only {len(self.table)} classes')
            ccp = Image.fromarray(labels)
        layers = (self.files.get(f'{kind}/{self.names[k]}.png') for kind in ('parts', 'ignore'))
        return ccp, *(Image.open(io.BytesIO(png)) if png else Image.new('1', (1, 1)) for png in layers)

    def labels(self, ccp, parts, flip=False):
        """CIHP's labels. Bags become 0: they hide what is behind them, but CIHP does not label them."""
        labels = self.table.take(ccp * np.uint16(self.table.shape[1]) + parts)
        return swap_sides(labels, self.flip_pairs) if flip else labels

    def photo(self, k, draft=None):
        return read_photo(self.photos[k], draft)

    def background(self, rng):
        """For some scenes another photo to stand in, and the ids of its people: Pillow RGB and L; else None."""
        if self.crowds and rng.random() < 0.1:
            photo, ids = self.crowds[rng.integers(len(self.crowds))]
            image, people = read_photo(photo), Image.fromarray(read_labels(ids))
            if image.size != people.size:
                raise ValueError(f'{photo} and {ids} differ in size; get them again')
            return image, people
        if self.backgrounds and rng.random() < 0.2:
            photo = read_photo(self.backgrounds[rng.integers(len(self.backgrounds))])
            return photo, Image.new('L', photo.size)

    def compose(self, i, seed=0, epoch=0, paint=True):
        """Scene i, of (seed, epoch, i) alone -> image (H, W, 3) uint8 (only if paint), parsing, ignore."""
        rng = np.random.default_rng((1, i, 0, 0) if self.val else (0, seed, epoch, i))
        image, people, ignore = scenes.compose(self, len(self.names), self.size(i), rng, paint)
        return image, stack_people(people, ignore.shape[::-1]), ignore


class Synthetic(Photos):
    """Drawn people of six parts on textured backgrounds. They face the camera: left arms are on the right.

    train has no end: an image is drawn from (seed, epoch, index). val is always the same 100 images.
    long_side: in pixels, at 4:3; samples: images in an epoch of train, 0 = 1000.
    """
    class_names = 'background', 'head', 'torso', 'left-arm', 'right-arm', 'left-leg', 'right-leg'
    flip_pairs = (3, 4), (5, 6)
    splits = 'train', 'val'

    def __init__(self, root=None, split='train', long_side=128, samples=0):
        self.val, self.long_side = split == 'val', long_side
        self.ids = [f'{split}_{i:04d}' for i in range(100 if self.val else samples or 1000)]

    def size(self, i):
        return self.long_side, self.long_side * 3 // 4

    def read_parsing(self, i, seed=0, epoch=0):
        return self.read(i, seed, epoch)[1:]

    def read(self, i, seed=0, epoch=0):
        rng = np.random.default_rng((3, i, 0, 0) if self.val else (2, seed, epoch, i))
        image, people, ignore = scenes.draw(*self.size(i), rng)
        return image, stack_people(people, ignore.shape[::-1]), ignore


# ------------------------------------------------------------------------------------------------------------
# From a sample to a batch


def scaled_size(width, height, short_side, long_side):
    """(width, height) with the short side at short_side, or less where the long side would pass long_side."""
    scale = min(short_side / min(width, height), long_side / max(width, height))
    return max(1, int(width * scale + 0.5)), max(1, int(height * scale + 0.5))


def resize_photo(photo, size, recipe='paper'):
    """Pillow image -> size (width, height), bilinear; antialiased where it shrinks, but not in the released code."""
    if recipe == 'released':
        scale = photo.width / size[0], 0, 0, 0, photo.height / size[1], 0
        return photo.transform(size, Image.AFFINE, scale, Image.BILINEAR)
    return photo.resize(size, Image.BILINEAR)


def resize(image, parsing, ignore, size, recipe='paper'):
    """size: (width, height). Photo bilinear, labels nearest: the pixel under the middle of the new one, in the released
    code under its upper left corner."""
    if size == image.shape[1::-1]:
        return image, parsing, ignore
    image = np.asarray(resize_photo(Image.fromarray(image), size, recipe))
    if recipe == 'released':
        rows, cols = [np.arange(new) * old // new for new, old in zip(size[::-1], ignore.shape)]
        return image, parsing[:, rows[:, None], cols], ignore[rows[:, None], cols]
    maps = (Image.fromarray(m).resize(size, Image.NEAREST) for m in (ignore.astype(np.uint8), *parsing))
    ignore, *people = map(np.asarray, maps)
    return image, np.array(people, np.uint8).reshape(-1, *size[::-1]), ignore > 0


def swap_sides(parsing, flip_pairs):
    """Left becomes right and right becomes left: what a mirrored label map needs besides mirroring."""
    table = np.arange(256, dtype=np.uint8)
    for left, right in flip_pairs:
        table[left], table[right] = right, left
    return table.take(parsing)


def random_crop(image, parsing, ignore, rng):
    """A window of 0.5 to 1 times the width and of 0.5 to 1 times the height."""
    window = []
    for side in ignore.shape:
        length = max(1, round(side * rng.uniform(0.5, 1)))
        start = rng.integers(side - length + 1)
        window.append(slice(start, start + length))
    ys, xs = window
    return image[ys, xs], parsing[:, ys, xs], ignore[ys, xs]


def color_jitter(image, strength, rng):
    """Brightness, contrast and saturation, each times 1 - strength .. 1 + strength."""
    image = Image.fromarray(image)
    for enhance in ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color:
        image = enhance(image).enhance(rng.uniform(max(0, 1 - strength), 1 + strength))
    return np.asarray(image)


def train_transform(image, parsing, ignore, flip_pairs, config, rng):
    """Random crop, scale, flip and colors; who has no pixel left is dropped. In and out as in `read`."""
    if rng.random() < config.crop:
        image, parsing, ignore = (np.ascontiguousarray(a) for a in random_crop(image, parsing, ignore, rng))
    sides = config.short_side                     # a range, or values to choose from
    short = rng.integers(sides[0], sides[1] + 1) if len(sides) == 2 else rng.choice(sides)
    size = scaled_size(*ignore.shape[::-1], short, config.long_side)
    image, parsing, ignore = resize(image, parsing, ignore, size, config.recipe)
    if rng.random() < config.flip:
        image, parsing, ignore = image[:, ::-1], swap_sides(parsing[:, :, ::-1], flip_pairs), ignore[:, ::-1]
    if config.color_jitter:
        image = color_jitter(image, config.color_jitter, rng)
    return image, parsing[parsing.any((1, 2))], ignore           # this copies: no stride is negative


def normalize(image):
    """(H, W, 3) uint8 RGB -> tensor (3, H, W) float32 with ImageNet's mean and deviation taken out."""
    import torch
    image, out = np.asarray(image), np.empty((3, *np.shape(image)[:2]), np.float32)
    for c, table in enumerate(normal_values()):
        table.take(image[..., c], out=out[c], mode='clip')               # clip: without it numpy copies `out`
    return torch.from_numpy(out)


@lru_cache
def normal_values():
    """(3, 256) float32: what becomes of each value of each channel. A look is cheaper than two passes of arithmetic."""
    mean, std = (np.array(v, np.float32)[:, None] for v in (MEAN, STD))
    return (np.arange(256, dtype=np.float32) / 255 - mean) / std


class Samples:
    """Tensors for training.

    samples[epoch, index] -> dict: image (3, H, W) float32, parsing (N, H, W) uint8, ignore (H, W) bool, info:
    dict of id, index, size (H0, W0) before resizing, bad: what was skipped before it. A function of (config.seed,
    epoch, index) alone. Where something cannot be read, the error is returned: raised in a worker, it would arrive as
    a traceback.
    """

    def __init__(self, dataset, config):
        self.dataset, self.config = dataset, config
        self.busy, self.named = None, set()       # see `loader` and `read_batches`

    def __len__(self):
        return len(self.dataset)

    def read(self, index, epoch):
        """Index and content of image `index`, or of another where bad ones are skipped; and the reasons."""
        import torch
        rng, bad, chosen = np.random.default_rng((6, self.config.seed, epoch, index)), [], index
        worker = torch.utils.data.get_worker_info()
        while True:
            if worker and self.busy is not None:
                self.busy[worker.id] = torch.tensor([os.getpid(), chosen])
            try:
                return chosen, self.dataset.read(chosen, self.config.seed, epoch), bad
            except (OSError, ValueError) as error:
                if not self.dataset.skip_bad or len(bad) == 9:
                    raise ValueError(f'{error}; so are 9 others' if bad else str(error)) from None
                bad.append(str(error))
                chosen = int(rng.integers(len(self)))

    def __getitem__(self, key):
        import torch
        (epoch, index), config = key, self.config
        try:
            chosen, sample, bad = self.read(index, epoch)
        except ValueError as error:
            return error
        info = dict(id=self.dataset.ids[chosen], index=chosen, size=sample[2].shape, bad=bad)
        rng = np.random.default_rng((4, config.seed, epoch, index))
        image, parsing, ignore = train_transform(*sample, self.dataset.flip_pairs, config, rng)
        parsing, ignore = torch.from_numpy(parsing), torch.from_numpy(np.array(ignore))
        return dict(image=normalize(image), parsing=parsing, ignore=ignore, info=info)


def collate(samples):
    """-> images (B, 3, H, W) float32, parsings: list of (N_i, H, W) uint8, ignores (B, H, W) bool, infos.

    All are padded with zeros, right and below, to a common size: a multiple of 32. An error
    among them comes back alone.
    """
    for error in (s for s in samples if isinstance(s, Exception)):
        return error
    height, width = (-(-max(s['ignore'].shape[d] for s in samples) // 32) * 32 for d in (0, 1))
    first, infos = samples[0], [s['info'] for s in samples]
    images = first['image'].new_zeros(len(samples), 3, height, width)
    ignores = first['ignore'].new_zeros(len(samples), height, width)
    parsings = [s['parsing'].new_zeros(len(s['parsing']), height, width) for s in samples]
    for k, s in enumerate(samples):
        h, w = s['ignore'].shape
        images[k, :, :h, :w], ignores[k, :h, :w], parsings[k][:, :h, :w] = s['image'], s['ignore'], s['parsing']
    return dict(images=images, parsings=parsings, ignores=ignores, infos=infos)


def batches(dataset, batch_size, seed, epoch, rank=0, world=1):
    """The batches of one process in an epoch, lists of (epoch, index): all wide or all high, in random order.

    All processes have equally many, and different images, except those that fill up the last batches.
    """
    rng, chunks = np.random.default_rng((5, seed, epoch)), []
    for group in np.flatnonzero(dataset.landscape), np.flatnonzero(~dataset.landscape):
        order = np.resize(rng.permutation(group), -(-len(group) // batch_size) * batch_size)    # wraps around
        chunks += order.reshape(-1, batch_size).tolist()
    order = np.resize(rng.permutation(len(chunks)), -(-len(chunks) // world) * world)
    return [[(epoch, index) for index in chunks[k]] for k in order[rank::world]]


class EpochBatches:
    """Batch sampler; set_epoch(epoch, start) goes to batch `start` of an epoch, total() counts all."""

    def __init__(self, *arguments):               # dataset, batch_size, seed, rank, world
        self.arguments = arguments
        self.set_epoch(0)

    def set_epoch(self, epoch, start=0):
        dataset, batch_size, seed, rank, world = self.arguments
        self.batches, self.start = batches(dataset, batch_size, seed, epoch, rank, world), start

    def total(self):
        return len(self.batches)

    def __len__(self):
        return len(self.batches) - self.start

    def __iter__(self):
        return iter(self.batches[self.start:])


def ignore_signals(worker):
    """A stop is the main process's business: it saves, then the workers end."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def loader(samples, config, batch_size, rank=0, world=1, device='cpu'):
    """Torch DataLoader of Samples; before each epoch, loader.batch_sampler.set_epoch(epoch, start)."""
    import torch
    samples.busy = torch.zeros(config.workers, 2, dtype=torch.long).share_memory_()      # process, index of its image
    loader = torch.utils.data.DataLoader(
        samples, batch_sampler=EpochBatches(samples.dataset, batch_size, config.seed, rank, world),
        collate_fn=collate, num_workers=config.workers, persistent_workers=config.workers > 0,
        worker_init_fn=ignore_signals,
        pin_memory=torch.device(device).type == 'cuda', generator=torch.Generator())      # not the global one
    atexit.register(lambda loader: end_workers(loader()), weakref.ref(loader))
    return loader


def end_workers(loader):
    """At its end Python would end the workers by SIGTERM, which they ignore, and wait."""
    if loader is not None and loader._iterator is not None:
        loader._iterator._shutdown_workers()
        for worker in loader._iterator._workers:
            worker.kill()


def read_batches(loader):
    """The batches of a loader. What was skipped is named, once; an error in place of a batch is raised."""
    for batch in loader:
        if isinstance(batch, Exception):
            raise batch
        for sentence in (s for info in batch['infos'] for s in info['bad'] if s not in loader.dataset.named):
            loader.dataset.named.add(sentence)
            tqdm.write(f'skipped: {sentence}', file=sys.stderr)
        yield batch


@contextmanager
def workers_of(loader):
    """Ends the workers, whatever happens; of one that died it tells what it was reading."""
    try:
        yield
    except RuntimeError as error:                 # torch raises it wherever the main process is just then
        found = re.match(r'DataLoader worker \(pid\D* ([\d, ]+)\)', str(error))
        if not found:
            raise
        dead, samples = set(map(int, found[1].split(','))), loader.dataset
        names = [str(samples.dataset.ids[index]) for pid, index in samples.busy.tolist() if pid in dead]
        raise ValueError(f'a worker process died while it read {" and ".join(names) or "its first image"}; if the '
                         'machine ran out of memory, take fewer --workers, else look at that image') from None
    finally:
        end_workers(loader)


# ------------------------------------------------------------------------------------------------------------
# Pictures


@lru_cache
def palette(num_classes):
    """(256, 3) uint8: 0 black, 1..num_classes each as far as can be from those before it, the rest gray."""
    grid = np.stack(np.meshgrid(*[range(0, 256, 51)] * 3), -1).reshape(-1, 3)
    grid = grid[(np.ptp(grid, 1) > 100) & (grid @ [0.3, 0.59, 0.11] > 80)]     # gray and dark would not show
    points = np.concatenate([[[v] * 3 for v in (0, 128, 255)], grid])
    xyz = (points / 255) ** 2.2 @ [[0.434, 0.213, 0.018], [0.376, 0.715, 0.109], [0.190, 0.072, 0.873]]
    lab = np.cbrt(xyz) @ [[0, 500, 0], [116, -500, 200], [0, 0, -200]]        # CIELAB: distances as seen
    order, count = [0, 1, 2], min(num_classes, 254)
    for _ in range(min(count, len(grid))):
        order.append(np.linalg.norm(lab[:, None] - lab[order], axis=2).min(1).argmax())
    colors = np.full((256, 3), 128, np.uint8)
    colors[0], colors[UNKNOWN] = 0, 225
    colors[1:count + 1] = np.resize(points[order[3:]], (count, 3))            # repeats after 140 colors
    colors.flags.writeable = False                # the same array serves all callers
    return colors


def box_of(mask):
    """Smallest box [x, y, width, height] in pixels around a mask (H, W) that is not empty."""
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [int(cols[0]), int(rows[0]), int(cols[-1] - cols[0] + 1), int(rows[-1] - rows[0] + 1)]


def overlay(image, parsing, class_names=None, ignore=None):
    """Photo (H, W, 3) uint8 or Pillow RGB, parsing (N, H, W) -> Pillow RGB: parts in color, a white line
    around each person, stripes over ignore, and below, given class_names, a legend of what occurs."""
    canvas, colors = np.array(image), palette(len(class_names) - 1 if class_names else 58)
    width = max(1, round(min(canvas.shape[:2]) / 500))
    for person in np.asarray(parsing):
        if not person.any():
            continue
        x, y, w, h = box_of(person)
        box = slice(y, y + h), slice(x, x + w)
        part, labels = canvas[box], person[box]              # a view: writing to it paints the canvas
        core = inside = labels > 0
        part[inside] = 0.45 * part[inside] + 0.55 * colors[labels[inside]]
        for _ in range(width):
            wide = np.pad(core, 1)
            core = core & wide[:-2, 1:-1] & wide[2:, 1:-1] & wide[1:-1, :-2] & wide[1:-1, 2:]
        part[inside & ~core] = 255
    if ignore is not None:
        stripes = np.add.outer(*map(np.arange, ignore.shape)) // 4 % 2 > 0
        canvas[ignore & stripes] //= 2
    image = Image.fromarray(canvas)
    present = np.flatnonzero(np.bincount(np.asarray(parsing, np.uint8).ravel(), minlength=1))
    return add_legend(image, colors, class_names, present) if class_names else image


def add_legend(image, colors, class_names, present):
    """Pillow image with the colors and names of the present class ids below it."""
    font = ImageFont.load_default(max(11, image.width // 60))
    line, places, x, y = int(1.6 * font.size), [], 0, image.height
    for c in (int(c) for c in present if c):
        name = class_names[c] if c < len(class_names) else 'part unknown'
        length = int(font.getlength(name)) + 2 * line
        x, y = (0, y + line) if x and x + length > image.width else (x, y)
        places.append((x + line // 2, y + line // 2, tuple(colors[c].tolist()), name))
        x += length
    sheet = Image.new('RGB', (image.width, y + 2 * line if places else y), 'white')
    sheet.paste(image)
    draw = ImageDraw.Draw(sheet)
    for x, y, color, name in places:
        draw.rectangle([x, y, x + font.size, y + font.size], color, 'black')
        draw.text((x + line, y + font.size / 2), name, 'black', font, 'lm')
    return sheet


# ------------------------------------------------------------------------------------------------------------
# All data sets, and the check of a download

DATASETS = {'MHP': MHP, 'CIHP': CIHP, 'DensePose': DensePose, 'CCP': CCP, 'synthetic': Synthetic}


def open_dataset(name, root=None, split='train', **options):
    """The data set of that name in the folder root; what cannot be is a FileNotFoundError or ValueError."""
    if name not in DATASETS:
        raise ValueError(f'unknown data set {name!r}; choose one of {", ".join(DATASETS)}')
    if split not in DATASETS[name].splits:
        raise ValueError(f'{name} has no split {split!r}; choose one of {", ".join(DATASETS[name].splits)}')
    if name != 'synthetic' and not root:
        raise ValueError(f'{name} is read from files; give the folder of the unpacked download with --root')
    if name != 'synthetic' and not os.path.isdir(root):
        raise FileNotFoundError(f'{root} is no folder; --root is the folder of the unpacked download')
    dataset = DATASETS[name](root, split, **options)
    if not len(dataset):
        raise ValueError(f'{root} has no image of the split {split}; unpack the download again')
    return dataset


def inspect(dataset, i):
    """Reads all of image i -> number of people, how many of them have each label (256,), error or None."""
    parts = np.zeros(256, int)
    try:
        _, parsing, _ = dataset.read(i)
    except (OSError, ValueError) as error:
        return 0, parts, str(error)
    return len(parsing), sum((np.bincount(p.ravel(), minlength=256) > 0 for p in parsing), parts), None


def check(dataset, out):
    """Reads all files, prints counts and the first bad files, draws samples -> number of bad images."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = pool.map(lambda i: inspect(dataset, i), range(len(dataset)))
        people, parts, errors = zip(*tqdm(jobs, total=len(dataset), unit=' images'))
    good, parts = [i for i, error in enumerate(errors) if not error], sum(parts)
    counts = np.bincount([people[i] for i in good], minlength=1)
    print(f'{len(good)} good images, {sum(people)} people')
    print('images by people:', ', '.join(f'{n}: {count}' for n, count in enumerate(counts) if count))
    print('people by part:', ', '.join(f'{name} {n}' for name, n in zip(dataset.class_names[1:], parts[1:])))
    if good:
        draw_samples(dataset, [good[k * len(good) // 12] for k in range(12)][:len(good)], out)
    for error in [error for error in errors if error][:10]:
        print('bad:', error, file=sys.stderr)
    return len(dataset) - len(good)


def draw_samples(dataset, indices, out, columns=4, side=400):
    """Picture of images and labels as training sees them: cropped, flipped, in other colors."""
    config = SimpleNamespace(recipe='paper', short_side=(side,), long_side=side, crop=0.3, flip=0.5, color_jitter=0.2)
    sheet, seen = Image.new('RGB', (columns * side, -(-len(indices) // columns) * side), 'white'), set()
    for k, i in enumerate(indices):
        rng = np.random.default_rng(i)
        image, parsing, ignore = train_transform(*dataset.read(i), dataset.flip_pairs, config, rng)
        sheet.paste(overlay(image, parsing, None, ignore), (k % columns * side, k // columns * side))
        seen |= set(np.unique(parsing))
    add_legend(sheet, palette(58), dataset.class_names, sorted(seen)).save(out)
    print(f'samples as training sees them: {out}')


def main(argv=None):
    parser = argparse.ArgumentParser(description='Checks a data set: reads all files, counts, draws samples.')
    parser.add_argument('--data', required=True, choices=list(DATASETS))
    parser.add_argument('--root', help='folder of the unpacked download')
    parser.add_argument('--split', default='val')
    parser.add_argument('--out', default='samples.png', help='picture of some samples')
    args = parser.parse_args(argv)
    try:
        dataset = open_dataset(args.data, args.root, args.split)
        bad = check(dataset, args.out)
        message = f'{bad} of {len(dataset)} images are bad' if bad else ''
    except (OSError, ValueError) as error:
        message = str(error)
    if message:
        print(f'error: {message}', file=sys.stderr)
        sys.exit(2)


if __name__ == '__main__':
    main()

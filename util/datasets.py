"""The data sets, read from their folders as downloaded.

    MHP        list/*.txt, {train,val}/{images,parsing_annos}, test/images
    CIHP       {Training,Validation,Testing}/{Images,Category_ids,Human_ids}, or the tree of Parsing R-CNN and
               UniParser: {train,val}_{img,parsing} and, where there is one, {CIHP,CHIP}_{train,val}.json
    DensePose  annotations/DensePose_COCO/densepose_coco_2014_*.json, train2014, val2014
    CCP        photos, annotations/pixel-level of github.com/bearpaw/clothing-co-parsing: single people, which
               are composed into scenes of several
    COCO       train2017, val2017, annotations/person_keypoints_*.json or instances_*.json: people without parts
    synthetic  drawn people, no files
"""
import io
import json
import os
import zipfile
from collections import defaultdict, namedtuple
from contextlib import suppress
from functools import cached_property

import numpy as np
from PIL import Image
from scipy.io import loadmat

from util import scenes
from util.coco import CocoPhotos, MixedPhotos
from util.files import (UNKNOWN, check_name, index_folder, inside, naming, pick_all, pick_files, read_labels,
                        read_list, read_stored, stored_size)
from util.masks import box_of, coco_mask, paste_masks, split_map, stack_people

CCP_LAYERS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'assets', 'ccp_layers.zip')

# What an evaluator compares predictions with. parsing (M, H, W) uint8; ignore (H, W) bool, None where the official
# evaluator ignores no pixels; semantic, parts, humans: cropped maps from official files, None = those of parsing.
GroundTruth = namedtuple('GroundTruth', 'parsing ignore semantic parts humans', defaults=(None,) * 4)


class Photos:
    """The base of all data sets. A subclass sets class_names (the background first), flip_pairs, and in
    __init__(root, split) ids: unique names; photos: paths; people: {id: paths of label maps}, or None if the split has
    no labels, so that all pixels are ignored. seed and epoch matter only for drawn images."""
    splits = 'train', 'val', 'test'
    skip_bad = False                              # unreadable images are left out instead of raising an error

    def __len__(self):
        return len(self.ids)

    def size(self, i):
        """(width, height) of image i, without decoding it."""
        return stored_size(self.photos[i])

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
            return False                          # reading its pixels raises the error
        return width > height

    def read(self, i, seed=0, epoch=0):
        """image (H, W, 3) uint8 RGB, parsing (N, H, W) uint8, ignore (H, W) bool."""
        image, (parsing, ignore) = np.array(read_stored(self.photos[i])), self.read_parsing(i)
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

    def truth(self, i, parsing, ignore):
        """The labels of image i, as read -> GroundTruth as the official evaluator of the set defines it."""
        return GroundTruth(parsing, ignore)


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

    def truth(self, i, parsing, ignore):
        return GroundTruth(parsing)


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
                self.ids = list(dict.fromkeys(stems.values()))
                for person in coco['annotations']:
                    self.people[stems[person['image_id']]].append(os.path.join(labels, person['parsing']))
        else:                                     # the list is neither part of CIHP nor published
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

    def truth(self, i, parsing, ignore):
        """With the maps that CIHP's own evaluators read: in the release Category_ids, Human_ids and Instance_ids (value
        v is class v - 20 * k of person k + 1); in the tree of Parsing R-CNN the class maps of val_seg, if there."""
        folder, name = os.path.split(os.path.splitext(self.photos[i])[0] + '.png')

        def read(kind):
            path = os.path.join(os.path.dirname(folder), kind, name)
            labels = read_labels(path)
            if labels.shape != ignore.shape:
                raise ValueError(f'{path} and {self.photos[i]} differ in size; unpack the download again')
            return labels
        if self.maps is None:
            seg = os.path.basename(folder).replace('_img', '_seg')
            found = os.path.isdir(os.path.join(os.path.dirname(folder), seg))
            return GroundTruth(parsing, semantic=read(seg) if found else None)
        ids = read('Instance_ids')
        parts = [np.where((ids > v) & (ids < v + 20), ids - v, 0).astype(np.uint8)
                 for v in range(0, int(ids.max()) + 1, 20)]
        humans, _, _ = split_map(read('Human_ids'), [(v, 1., 1) for v in range(1, 256)], len(self.class_names))
        return GroundTruth(parsing, semantic=read('Category_ids'), parts=parts, humans=humans)


class DensePose(Photos):
    """DensePose-COCO (Guler et al. 2018), 14 body parts. People without part masks are ignored, not taught as
    background."""
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
        self.ids = [i for i in dict.fromkeys(names.values())
                    if self.people is None or any(any(masks) for _, masks, _ in self.people[i])]
        check_ids(self.ids, path)
        self.photos = [os.path.join(root, (i.split('_') + [''])[1], i + '.jpg') for i in self.ids]     # COCO_val2014_..
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


CCP_CLASSES = 59                                  # with the background
SMALLEST = 16                                     # long side of a scene of CCP; people vanish in smaller ones


def read_layers():
    """The files of CCP_LAYERS: {name: content}."""
    with naming(CCP_LAYERS), zipfile.ZipFile(CCP_LAYERS) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


class CCP(Photos):
    """Clothing Co-Parsing (Yang et al. 2014) in the 19 classes of CIHP.

    train_photos and val_photos are the photos as they are, one labelled person each. train and val are scenes: people
    are cut out of photos and pasted beside another photo's person, or where that person was removed. val is always
    the same 100 scenes. val_crops shows each person of val_photos up close, whole and its upper half. tune and test,
    tune_photos, .. are the same of the two halves of val's people, one to choose with and one to report. Faces, limbs,
    left and right, and ignored bystanders are pseudo labels, described by README.txt in CCP_LAYERS.

    Options of train: long_side of the scenes in pixels; samples: scenes per epoch, 0 = one per photo; backgrounds: a
    folder of photos without people, used for a fifth of the scenes; people: a folder of images/ID.jpg and
    instances/ID.png (0 = nobody, 255 = crowd, else a person with unknown parts), used for a tenth;
    tagged: a folder of label maps ID.png of photos without pixel labels (util/tagged.py), whose people are pasted, too;
    rare: 0, or the share of people below which a class counts as rare (`repeats`); things: the share of scenes with
    blobs, mostly of clothes, that are nobody (`scenes.cut_thing`).
    """
    class_names, flip_pairs = CIHP.class_names, CIHP.flip_pairs
    splits = tuple(kind + form for kind in ('train', 'val', 'tune', 'test') for form in ('', '_photos', '_crops'))

    def __init__(self, root, split, long_side=640, backgrounds=None, people=None, tagged=None, samples=0,
                 rare=0, things=0):
        root, kind = inside(root, 'clothing-co-parsing'), split.split('_')[0]
        self.files = read_layers()
        self.names = self.files['train.txt' if kind == 'train' else 'val.txt'].decode().split()
        if kind in ('tune', 'test'):
            self.names = self.names[kind == 'test'::2]
        self.photos = pick_files(os.path.join(root, 'photos'), self.names)
        self.mats = pick_files(os.path.join(root, 'annotations', 'pixel-level'), self.names, ('.mat',))
        mapping = json.loads(self.files['mapping.json'])
        rows = [row['cihp'] for row in mapping['map']]            # a class of CIHP, or {part: class of CIHP}
        self.table = np.array([[row.get(part, UNKNOWN) if isinstance(row, dict) else row
                                for part in mapping['parts']] for row in rows], np.uint8)         # (59, 13)
        direct = np.array([*range(1, 20), UNKNOWN], np.uint8)         # ids 59.. are classes of CIHP themselves
        self.table = np.vstack([self.table, np.repeat(direct[:, None], self.table.shape[1], 1)])      # (79, 13)
        self.fixed = kind != 'train'                                  # scenes
        if not self.fixed and long_side < SMALLEST:
            raise ValueError(f'--long-side is {long_side}; scenes of CCP have at least {SMALLEST} pixels')
        self.long_side = 640 if self.fixed else long_side
        self.backgrounds = self.crowds = []
        if backgrounds and not self.fixed:
            self.backgrounds = list(pick_all(backgrounds).values())
        if people and not self.fixed:
            crowds = pick_all(os.path.join(people, 'images'))
            ids = pick_files(os.path.join(people, 'instances'), list(crowds), ('.png',))
            self.crowds = list(zip(crowds.values(), ids))
        self.tagged = []                                              # label maps of photos len(names), ..
        if tagged and not self.fixed:
            maps = index_folder(tagged, ('.png',), 'give the folder that util.tagged wrote')
            known, self.tagged = index_folder(os.path.join(root, 'photos')), list(maps.values())
            labelled = {name for part in ('train.txt', 'val.txt') for name in self.files[part].decode().split()}
            strange = [path for name, path in maps.items() if name not in known or name in labelled]
            if strange or not maps:
                raise ValueError(f'{strange[0] if maps else tagged} is of no photo with tags in {root}; give the '
                                 'folder that util.tagged wrote')
            self.photos = self.photos + [known[name] for name in maps]
        self.form = split[len(kind):]
        self.chances = self.repeats(rare) if rare and split == 'train' else None
        self.things = 0 if self.fixed else things
        scenes = range(100 if self.fixed else samples or len(self.names))
        self.ids = {'': [f'{split}_{i:04d}' for i in scenes], '_photos': self.names,
                    '_crops': [f'{name}_{part}' for name in self.names for part in ('person', 'upper')]}[self.form]

    def size(self, i):
        if self.form == '_photos':
            return stored_size(self.photos[i])
        if self.form == '_crops':
            return self.read_parsing(i)[1].shape[::-1]
        aspect, side = scenes.ASPECTS[i % len(scenes.ASPECTS)], self.long_side
        return (side, round(side / aspect)) if aspect > 1 else (round(side * aspect), side)

    def read(self, i, seed=0, epoch=0):
        if self.form == '_photos':
            return super().read(i)
        if self.form == '_crops':
            window, *labels = self.crop(i)
            return np.ascontiguousarray(np.array(read_stored(self.photos[i // 2]))[window]), *labels
        return self.compose(i, seed, epoch)

    def read_parsing(self, i, seed=0, epoch=0):
        if self.form == '_photos':
            return self.person(i)
        if self.form == '_crops':
            return tuple(self.crop(i)[1:])
        return self.compose(i, seed, epoch, paint=False)[1:]

    def person(self, k):
        """parsing (1, H, W) and ignore (H, W) of photo k."""
        ccp, *layers = self.annotation(k)
        if self.form == '_crops' and ccp.size != stored_size(self.photos[k]):
            raise ValueError(f'{self.photos[k]} and its labels differ in size; unpack the download again')
        parts, ignore = (np.asarray(layer.resize(ccp.size, Image.NEAREST)) for layer in layers)
        ccp = np.asarray(ccp)
        return stack_people([self.labels(ccp, parts)], ccp.shape[::-1]), ignore & (ccp == 0)

    def repeats(self, rare):
        """How often each photo's person is drawn, relative to others: max(1, sqrt(rare / share of the people with a
        class)) of its rarest class, the repeat factor of LVIS (Gupta et al. 2019), as a share of all. A label map that
        cannot be read is left to the scene that needs it."""
        classes = np.arange(1, len(self.class_names))
        worn = np.zeros((len(self.photos), len(classes)), bool)
        for k in range(len(worn)):
            with suppress(ValueError, OSError):
                worn[k] = np.isin(classes, self.person(k)[0])
        factors = np.where(worn, np.sqrt(rare / worn.mean(0).clip(1e-9)), 1).max(1).clip(1)
        return factors / factors.sum()

    def crop(self, i):
        """Rows and columns of crop i in photo i // 2, its parsing and its ignore. Crops are the person's box with a
        margin of 10 pixels, and its upper half."""
        parsing, ignore = self.person(i // 2)
        x, y, w, h = box_of(parsing[0])
        bottom = y + h // 2 if i % 2 else y + h + 10
        window = slice(max(0, y - 10), bottom), slice(max(0, x - 10), x + w + 10)
        return window, np.ascontiguousarray(parsing[:, *window]), np.ascontiguousarray(ignore[window])

    def annotation(self, k):
        """Photo k: its label map in rows of `table`, and our parts and ignore (of long side 640), Pillow images."""
        if k >= len(self.names):
            path = self.tagged[k - len(self.names)]
            labels = read_labels(path, 19)
            if labels.shape[::-1] != stored_size(self.photos[k]) or not labels.any():
                raise ValueError(f'{path} shows nobody or differs in size from {self.photos[k]}; write it again with '
                                 'util.tagged')
            rows = np.minimum(labels, 20) + np.uint8(CCP_CLASSES - 1) * (labels > 0)
            return Image.fromarray(rows), Image.new('1', (1, 1)), Image.new('1', (1, 1))
        with naming(self.mats[k]):
            labels = loadmat(self.mats[k])['groundtruth']
            if labels.max() >= CCP_CLASSES:
                raise ValueError(f'it has the label {labels.max()}, but there are only {CCP_CLASSES} classes')
            ccp = Image.fromarray(labels)
        layers = (self.files.get(f'{kind}/{self.names[k]}.png') for kind in ('parts', 'ignore'))
        return ccp, *(Image.open(io.BytesIO(png)) if png else Image.new('1', (1, 1)) for png in layers)

    def labels(self, ccp, parts, flip=False):
        """CIHP's labels. Bags become 0: they cover the person, and CIHP does not label them."""
        labels = self.table.take(ccp * np.uint16(self.table.shape[1]) + parts)
        return swap_sides(labels, self.flip_pairs) if flip else labels

    def photo(self, k, draft=None):
        return read_stored(self.photos[k], draft)

    def background(self, rng):
        """For some scenes another photo as the stage, and the ids of its people: Pillow RGB and L; else None."""
        if self.crowds and rng.random() < 0.1:
            photo, ids = self.crowds[rng.integers(len(self.crowds))]
            image, people = read_stored(photo), Image.fromarray(read_labels(ids))
            if image.size != people.size:
                raise ValueError(f'{photo} and {ids} differ in size; get them again')
            return image, people
        if self.backgrounds and rng.random() < 0.2:
            photo = read_stored(self.backgrounds[rng.integers(len(self.backgrounds))])
            return photo, Image.new('L', photo.size)

    def compose(self, i, seed=0, epoch=0, paint=True):
        """Scene i, of (seed, epoch, i) alone -> image (H, W, 3) uint8 (only if paint), parsing, ignore."""
        rng = np.random.default_rng((1, i, 0, 0) if self.fixed else (0, seed, epoch, i))
        image, people, ignore = scenes.compose(self, len(self.names), len(self.tagged), self.size(i), rng, paint)
        return image, stack_people(people, ignore.shape[::-1]), ignore


class COCO(CocoPhotos, Photos):
    """COCO 2017's people (Lin et al. 2014), whose parts are unknown, in the 19 classes of CIHP; see util/coco.py."""
    class_names, flip_pairs = CIHP.class_names, CIHP.flip_pairs


class Mixed(MixedPhotos, Photos):
    """Several data sets of the same classes as one."""


class Synthetic(Photos):
    """Drawn people of six parts on textured backgrounds. They face the camera: left arms are on the right.

    train is endless: an image is drawn from (seed, epoch, index). val is always the same 100 images.
    long_side: in pixels, at 4:3; samples: images per epoch of train, 0 = 1000.
    """
    class_names = 'background', 'head', 'torso', 'left-arm', 'right-arm', 'left-leg', 'right-leg'
    flip_pairs = (3, 4), (5, 6)
    splits, crowd = ('train', 'val'), False

    def __init__(self, root=None, split='train', long_side=128, samples=0):
        self.val, self.long_side = split == 'val', long_side
        self.ids = [f'{split}_{i:04d}' for i in range(100 if self.val else samples or 1000)]

    def size(self, i):
        return self.long_side, max(1, self.long_side * 3 // 4)

    def read_parsing(self, i, seed=0, epoch=0):
        return self.read(i, seed, epoch)[1:]

    def read(self, i, seed=0, epoch=0):
        rng = np.random.default_rng((3, i, 0, 0) if self.val else (2, seed, epoch, i))
        image, people, ignore = scenes.draw(*self.size(i), rng, self.crowd)
        return image, stack_people(people, ignore.shape[::-1]), ignore


class Crowd(Synthetic):
    """Drawn crowds for the twins of the paper's tables (util/ablate.py): 4 to 8 small people who overlap, in 12
    classes. Left arms are on the right."""
    class_names = tuple('''background hat hair upper-clothes pants skirt left-arm right-arm left-leg right-leg left-shoe
        right-shoe face'''.split())
    flip_pairs = (6, 7), (8, 9), (10, 11)
    crowd = True


def swap_sides(parsing, flip_pairs):
    """Swaps left and right labels, as a mirrored label map needs."""
    table = np.arange(256, dtype=np.uint8)
    for left, right in flip_pairs:
        table[left], table[right] = right, left
    return table.take(parsing)


DATASETS = {'MHP': MHP, 'CIHP': CIHP, 'DensePose': DensePose, 'CCP': CCP, 'COCO': COCO, 'synthetic': Synthetic,
            'crowd': Crowd}
DRAWN = 'synthetic', 'crowd'                      # need no files


def open_dataset(name, root=None, split='train', sets=DATASETS, **options):
    """The data set of that name in the folder root; FileNotFoundError or ValueError with one sentence otherwise."""
    if name not in sets:
        raise ValueError(f'unknown data set {name!r}; choose one of {", ".join(sets)}')
    if split not in sets[name].splits:
        raise ValueError(f'{name} has no split {split!r}; choose one of {", ".join(sets[name].splits)}')
    if name not in DRAWN and not root:
        raise ValueError(f'{name} is read from files; give the folder of the unpacked download with --root')
    if name not in DRAWN and not os.path.isdir(root):
        raise FileNotFoundError(f'{root} is no folder; --root is the folder of the unpacked download')
    dataset = sets[name](root, split, **options)
    if not len(dataset):
        raise ValueError(f'{root} has no image of the split {split}; unpack the download again')
    check_ids(dataset.ids, root)
    return dataset


def check_ids(ids, source):
    """ValueError where an id, after which files are named, would leave its folder."""
    for i in ids:
        check_name(i, f'{source} has the image id', 'check the annotations')

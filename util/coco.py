"""COCO's people (Lin et al. 2014), read from the official folders, and windows of its photos for
training.

    train2017/, val2017/                              the photos
    annotations/person_keypoints_train2017.json       people, with keypoints where COCO has them
    annotations/instances_train2017.json              read instead where the file above is missing

COCO says where people are, but not what they wear: its people are 255 in `parsing` (this person,
part unknown). Labels of parts may lie beside it in a folder of their own (util/keypoints.py). The
classes are those of CIHP. Needs no torch and no pycocotools. `datasets.COCO` is the data set; this
file has what it does.
"""

import json
import math
import os
from collections import defaultdict, namedtuple

import numpy as np
from scipy import ndimage

from util.files import (
    UNKNOWN,
    index_folder,
    naming,
    printable,
    read_labels,
    read_stored,
    stored_size,
)
from util.masks import box_of, coco_mask, stack_people

FOLDERS = {'train': ('train2017',), 'val': ('val2017',)}  # other splits: a share of both
BOTH = 'train2017', 'val2017'
FREE = 4, 5, 7  # COCO's licences that allow reuse and changes: BY, BY-SA, no known restrictions
SMALLEST = 100  # pixels; smaller people are ignored
KEYPOINTS = (
    'nose left_eye right_eye left_ear right_ear left_shoulder right_shoulder left_elbow '
    'right_elbow left_wrist right_wrist left_hip right_hip left_knee right_knee left_ankle '
    'right_ankle'
).split()

# One person. id: of the annotation; mask (H, W) bool; keypoints (17, 3) float32: x, y in pixels and
# 0 = not given, 1 = hidden, 2 = visible, or None; pseudo: the mask was not drawn by people.
Person = namedtuple('Person', 'id mask keypoints pseudo')
# One annotation as it is kept in memory. outline: polygons as float32 arrays, or run lengths.
Annotation = namedtuple('Annotation', 'id outline keypoints crowd pseudo')


# ---- annotations ---------------------------------------------------------------------------------


def read_licenses(text):
    """'free', '' or ids such as '4,5' -> tuple of ids; () = all licences. ValueError for anything
    else."""
    if not text:
        return ()
    if text == 'free':
        return FREE
    words = text.split(',')
    if not all(word.strip().isdigit() for word in words):
        raise ValueError(
            f'--licenses is {text[:40]!r}; give free, or ids of the annotation file with commas, '
            'as 4,5'
        )
    return tuple(int(word) for word in words)


def find_annotations(root, folder):
    """Path of the annotation file of train2017 or val2017; FileNotFoundError where there is
    none."""
    names = [f'{kind}_{folder}.json' for kind in ('person_keypoints', 'instances')]
    paths = [os.path.join(root, 'annotations', name) for name in names]
    for path in paths:
        if os.path.isfile(path):
            return path
    raise FileNotFoundError(
        f'{printable(root)} has neither annotations/{names[0]} nor {names[1]}; unpack the '
        'annotations of COCO 2017 there'
    )


def read_annotations(path):
    """Annotation file -> images: {id: its record}, people: {image id: list of Annotation}. People
    alone are kept. ValueError where the file is broken or not of this form."""
    people = defaultdict(list)
    with naming(path), open(path) as file:
        coco = json.load(file)
        images = {image['id']: image for image in coco['images']}
        person = [category['id'] for category in coco['categories'] if category['name'] == 'person']
        for a in coco['annotations']:
            if a['category_id'] in person:
                people[a['image_id']].append(read_annotation(a))
        strange = [i for i in people if i not in images]
        if strange:
            raise ValueError(f'it has a person of image {strange[0]}, which it does not list')
    return images, people


def read_annotation(record):
    """A record of the annotation file -> Annotation."""
    outline = record['segmentation']
    if isinstance(outline, list):  # float32 arrays take a tenth of the memory of lists
        outline = [np.array(polygon, np.float32) for polygon in outline]
    points = None
    if any(record.get('keypoints', ())):
        points = np.array(record['keypoints'], np.float32).reshape(len(KEYPOINTS), 3)
    return Annotation(
        record['id'], outline, points, bool(record.get('iscrowd')), bool(record.get('pseudo_mask'))
    )


def outline_mask(outline, size):
    """Polygons or run lengths -> bool (H, W); size: (width, height)."""
    if isinstance(outline, dict):
        if list(outline['size']) != [size[1], size[0]]:
            raise ValueError(
                f'it has {outline["size"]} rows and columns, the photo {[size[1], size[0]]}'
            )
        return coco_mask(outline, size)
    return coco_mask([polygon.tolist() for polygon in outline], size)


def unsure_edge(mask, share=0.04):
    """bool (H, W): the pixels near the outline of a mask, up to `share` of the root of its area on
    both sides."""
    width = max(1, round(share * math.sqrt(np.count_nonzero(mask))))
    x, y, w, h = box_of(mask)
    window = slice(max(0, y - width), y + h + width), slice(max(0, x - width), x + w + width)
    inner = ndimage.binary_erosion(mask[window], iterations=width)
    outer = ndimage.binary_dilation(mask[window], iterations=width)
    edge = np.zeros_like(mask)
    edge[window] = outer & ~inner
    return edge


# ---- the data set --------------------------------------------------------------------------------


class CocoPhotos:
    """What `datasets.COCO` does; it adds class names and flip pairs.

    Splits: train and val are COCO's own. fit is four fifths of both, held the fifth whose id is
    divisible by 5; tune and test are the two halves of held, one to choose with and one to report.

    Options: licenses: see `read_licenses`; parts: a folder of label maps PHOTO_ANNOTATION.png in
    the classes of CIHP, 0 or 255 where the part is unknown; pseudo: whether masks marked
    `pseudo_mask` are people, with an ignored edge, or ignored as a whole; the default is to use
    them in train and fit alone; samples: 0 = every photo as it is, else this many random windows
    per epoch (`draw_window`)."""

    splits = 'train', 'val', 'fit', 'held', 'tune', 'test'

    def __init__(self, root, split, licenses='', parts=None, pseudo=None, samples=0):
        self.people, self.sizes, self.stems, self.photos = [], [], [], []
        self.pseudo = split in ('train', 'fit') if pseudo is None else pseudo
        for folder in FOLDERS.get(split, BOTH):
            self.add_folder(root, folder, read_licenses(licenses))
        self.choose(split)
        if not self.stems:
            raise ValueError(
                f'{printable(root)} has no photo of people with these licenses in the split '
                f'{split}; leave out --licenses or unpack the download again'
            )
        self.parts = (
            index_folder(parts, ('.png',), 'give the folder that util.keypoints wrote')
            if parts
            else {}
        )
        self.samples = samples
        self.ids = [f'window_{i:06d}' for i in range(samples)] if samples else self.stems

    def add_folder(self, root, folder, licenses):
        """Adds the photos of people of train2017 or val2017."""
        path = find_annotations(root, folder)
        images, people = read_annotations(path)
        # Photos of crowds alone teach nothing: every person in them is ignored.
        kept = [i for i, found in people.items() if not all(a.crowd for a in found)]
        if licenses:
            kept = [i for i in kept if images[i].get('license') in licenses]
        files = index_folder(os.path.join(root, folder))
        with naming(path):
            names = [os.path.splitext(images[i]['file_name'])[0] for i in kept]
            sizes = [(int(images[i]['width']), int(images[i]['height'])) for i in kept]
        missing = [name for name in names if name not in files]
        if missing:
            raise FileNotFoundError(
                f'{printable(os.path.join(root, folder))} lacks {len(missing)} of {len(names)} '
                f'photos of {path}, the first is {missing[0]}.jpg; unpack the download again'
            )
        self.stems += names
        self.sizes += sizes
        self.photos += [files[name] for name in names]
        self.people += [people[i] for i in kept]

    def choose(self, split):
        """Keeps the photos of a split that is a share of both folders."""
        if split in FOLDERS:
            return
        held = [k for k, stem in enumerate(self.stems) if int(stem) % 5 == 0]
        kept = {
            'fit': sorted(set(range(len(self.stems))) - set(held)),
            'held': held,
            'tune': held[0::2],
            'test': held[1::2],
        }[split]
        for name in ('stems', 'sizes', 'photos', 'people'):
            setattr(self, name, [getattr(self, name)[k] for k in kept])

    def size(self, i):
        """(width, height) of photo i, from the annotation file. Not for windows, whose size is
        drawn."""
        return self.sizes[i]

    def is_wide(self, i):
        """Whether image i is wider than high. Two of three windows are."""
        if self.samples:
            return i % 3 > 0
        return self.sizes[i][0] > self.sizes[i][1]

    def persons(self, k):
        """The people of photo k -> list of Person, ignore (H, W) bool: crowds, people of less than
        SMALLEST pixels, and edges of pseudo masks, or the whole of them. A person's pixels are
        never ignored because of a crowd."""
        width, height = self.sizes[k]
        people, ignore, edges = [], np.zeros((height, width), bool), np.zeros((height, width), bool)
        for a in self.people[k]:
            with naming(f'annotation {a.id} of {self.photos[k]}', 'unpack the annotations again'):
                mask = outline_mask(a.outline, (width, height))
            if a.crowd or np.count_nonzero(mask) < SMALLEST or a.pseudo and not self.pseudo:
                ignore |= mask
                continue
            if a.pseudo:
                edges |= unsure_edge(mask)
            people.append(Person(a.id, mask, a.keypoints, a.pseudo))
        for person in people:
            ignore &= ~person.mask
        return people, ignore | edges

    def labels(self, k, person):
        """Label map (H, W) uint8 of a Person of photo k: 255, or parts where the folder of parts
        knows them."""
        labels = person.mask * np.uint8(UNKNOWN)
        path = self.parts.get(f'{self.stems[k]}_{person.id}')
        if path:
            parts = read_labels(path, len(self.class_names) - 1)
            if parts.shape != labels.shape:
                raise ValueError(
                    f'{path} and {self.photos[k]} differ in size; write the labels again with '
                    'util.keypoints'
                )
            labels = np.where(person.mask & (parts > 0), parts, labels)
        return labels

    def read_parsing(self, i, seed=0, epoch=0):
        """parsing (N, H, W) uint8, ignore (H, W) bool of image i."""
        if self.samples:
            return self.read(i, seed, epoch)[1:]
        people, ignore = self.persons(i)
        return stack_people([self.labels(i, person) for person in people], self.sizes[i]), ignore

    def read(self, i, seed=0, epoch=0):
        """image (H, W, 3) uint8 RGB, parsing (N, H, W) uint8, ignore (H, W) bool: photo i, or
        window i of an epoch."""
        if not self.samples:
            return super().read(i)
        rng = np.random.default_rng((7, seed, epoch, i))
        k = int(rng.integers(len(self.photos)))
        people, ignore = self.persons(k)
        if stored_size(self.photos[k]) != self.sizes[k]:
            raise ValueError(
                f'{self.photos[k]} is not of the size in the annotations; unpack the download again'
            )
        parsing = stack_people([self.labels(k, person) for person in people], self.sizes[k])
        window = draw_window(self.sizes[k], parsing, self.is_wide(i), rng)
        image = np.array(read_stored(self.photos[k]))[window]
        return np.ascontiguousarray(image), *cut(parsing, ignore, window)


# ---- windows -------------------------------------------------------------------------------------


def draw_window(size, parsing, wide, rng, whole=0.35):
    """Rows and columns of a random part of a photo of size (width, height), wider than high or
    higher than wide.

    A share `whole` of the photos of that form are shown whole. The other windows are as high as one
    person divided by 0.3 to 1.6: from small people to head and shoulders. The person's middle, or
    at times the head, lies in the window. parsing (N, H, W) uint8."""
    width, height = size
    if not len(parsing) or rng.random() < whole and (width > height) == wide:
        return slice(0, height), slice(0, width)
    x, y, w, h = box_of(parsing[rng.integers(len(parsing))] > 0)
    # The window's height and width, no larger than the photo.
    aspect = rng.uniform(1.15, 1.6)
    aspect = aspect if wide else 1 / aspect
    rows = max(h, 0.6 * w) / math.exp(rng.uniform(math.log(0.3), math.log(1.6)))
    rows = min(max(rows, 96), height, width / aspect)
    rows, columns = round(rows), round(rows * aspect)
    # A point of the person, and where in the window it lies.
    focus_x, focus_y = x + w / 2, y + h * rng.uniform(0.1, 0.6)
    left = focus_x - rng.uniform(0.25, 0.75) * columns
    top = focus_y - rng.uniform(0.25, 0.75) * rows
    left = round(min(max(left, 0), width - columns))
    top = round(min(max(top, 0), height - rows))
    return slice(top, top + rows), slice(left, left + columns)


def cut(parsing, ignore, window, least=0.05):
    """parsing (N, H, W) and ignore (H, W) of a window. People of whom less than a share `least` or
    less than SMALLEST pixels are left are ignored."""
    inside = np.ascontiguousarray(parsing[:, *window])
    areas = (parsing > 0).sum((1, 2))
    left = (inside > 0).sum((1, 2))
    kept = left >= np.maximum(least * areas, SMALLEST)
    ignore = ignore[window] | (inside[~kept] > 0).any(0)
    return inside[kept], ignore


# ---- mixtures ------------------------------------------------------------------------------------


class MixedPhotos:
    """Several data sets of the same classes as one; `datasets.Mixed` adds the rest. Their images
    follow each other."""

    def __init__(self, parts):
        self.parts = parts
        self.class_names = parts[0].class_names
        self.flip_pairs = parts[0].flip_pairs
        self.ids = [i for part in parts for i in part.ids]
        self.starts = np.cumsum([0] + [len(part) for part in parts])

    def place(self, i):
        """The data set that has image i, and its number there."""
        n = int(np.searchsorted(self.starts, i, side='right')) - 1
        return self.parts[n], int(i - self.starts[n])

    def size(self, i):
        part, k = self.place(i)
        return part.size(k)

    def is_wide(self, i):
        part, k = self.place(i)
        return part.is_wide(k)

    def read(self, i, seed=0, epoch=0):
        part, k = self.place(i)
        return part.read(k, seed, epoch)

    def read_parsing(self, i, seed=0, epoch=0):
        part, k = self.place(i)
        return part.read_parsing(k, seed, epoch)

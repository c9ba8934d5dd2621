"""COCO 2017 (Lin et al. 2014): ordinary photos of people, without parts.

    train2017/, val2017/                              the photos
    annotations/person_keypoints_train2017.json       people, with keypoints where COCO has them
    annotations/instances_train2017.json              read instead where the file above is missing

COCO says where people are, but not what they wear: its people are 255 in `parsing` (this person,
part unknown). Labels of parts may lie beside it in a folder of their own (tools/keypoints.py). The
classes are those of CIHP.
"""
import json
import math
import os
from collections import defaultdict
from typing import NamedTuple

import numpy as np

from util.datasets.base import Example, Labels, Photos
from util.datasets.cihp import CIHP
from util.files import UNKNOWN, index_folder, naming, printable
from util.images import read_labels, read_stored, stored_size
from util.masks import box_of, coco_mask, stack_people

FOLDERS = {'train': ('train2017',), 'val': ('val2017',)}      # other splits: a share of both
BOTH = 'train2017', 'val2017'
FREE = 4, 5, 7                                    # licenses: BY, BY-SA, no known restrictions
SMALLEST = 100                                    # pixels; smaller people are ignored
KEYPOINTS = '''nose left_eye right_eye left_ear right_ear left_shoulder right_shoulder left_elbow
    right_elbow left_wrist right_wrist left_hip right_hip left_knee right_knee left_ankle
    right_ankle'''.split()


class Person(NamedTuple):
    """One person of a photo."""
    id: int                                       # of the annotation
    mask: np.ndarray                              # (H, W) bool
    # (17, 3) float32: x, y in pixels and 0 = not given, 1 = hidden, 2 = visible; or None.
    keypoints: np.ndarray | None
    pseudo: bool                                  # the mask was not drawn by people


class Annotation(NamedTuple):
    """An annotation as it is kept in memory."""
    id: int
    outline: list | dict                          # polygons as float32 arrays, or run lengths
    keypoints: np.ndarray | None
    crowd: bool
    pseudo: bool


# ---- annotations -------------------------------------------------------------------------------


def read_licenses(text: str) -> tuple[int, ...]:
    """'free', '' or ids such as '4,5' -> ids; () = all licenses. ValueError for anything else."""
    if not text:
        return ()
    if text == 'free':
        return FREE
    words = text.split(',')
    if not all(word.strip().isdigit() for word in words):
        raise ValueError(f'--licenses is {text[:40]!r}; give free, or ids of the annotation file '
                         'with commas, as 4,5')
    return tuple(int(word) for word in words)


def find_annotations(root: str, folder: str) -> str:
    """Path of the annotation file of train2017 or val2017; FileNotFoundError if there is none."""
    names = [f'{kind}_{folder}.json' for kind in ('person_keypoints', 'instances')]
    paths = [os.path.join(root, 'annotations', name) for name in names]
    for path in paths:
        if os.path.isfile(path):
            return path
    raise FileNotFoundError(f'{printable(root)} has neither annotations/{names[0]} nor {names[1]}; '
                            'unpack the annotations of COCO 2017 there')


def read_annotations(path: str) -> tuple[dict, dict]:
    """Annotation file -> {image id: its record}, {image id: list of Annotation}.

    People alone are kept. Raises a ValueError if the file is broken or not of this form.
    """
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


def read_annotation(record: dict) -> Annotation:
    """A record of the annotation file."""
    outline = record['segmentation']
    if isinstance(outline, list):                 # arrays take a tenth of the memory of lists
        outline = [np.array(polygon, np.float32) for polygon in outline]
    points = None
    if any(record.get('keypoints', ())):
        points = np.array(record['keypoints'], np.float32).reshape(len(KEYPOINTS), 3)
    crowd = bool(record.get('iscrowd'))
    return Annotation(record['id'], outline, points, crowd, bool(record.get('pseudo_mask')))


def outline_mask(outline: list | dict, size: tuple[int, int]) -> np.ndarray:
    """Polygons or run lengths -> bool (H, W); size: (width, height)."""
    if isinstance(outline, dict):
        shape = [size[1], size[0]]
        if list(outline['size']) != shape:
            raise ValueError(f'it has {outline["size"]} rows and columns, the photo {shape}')
        return coco_mask(outline, size)
    return coco_mask([polygon.tolist() for polygon in outline], size)


def unsure_edge(mask: np.ndarray, share: float = 0.04) -> np.ndarray:
    """The pixels near the outline of a mask: bool (H, W), up to `share` of the root of its area on
    both sides."""
    from scipy import ndimage                     # here: tools/onnx_parse.py works without scipy

    width = max(1, round(share * math.sqrt(np.count_nonzero(mask))))
    x, y, w, h = box_of(mask)
    rows = slice(max(0, y - width), y + h + width)
    columns = slice(max(0, x - width), x + w + width)
    window = rows, columns
    inner = ndimage.binary_erosion(mask[window], iterations=width)
    outer = ndimage.binary_dilation(mask[window], iterations=width)
    edge = np.zeros_like(mask)
    edge[window] = outer & ~inner
    return edge


# ---- the data set ------------------------------------------------------------------------------


class COCO(Photos):
    """COCO's people, in the 19 classes of CIHP.

    Splits: train and val are COCO's own. held is the fifth of both whose ids are divisible by 5;
    tune and test are its halves, one to choose with and one to report; fit is everything else.

    licenses: see `read_licenses`. parts: a folder of label maps PHOTO_ANNOTATION.png in the classes
    of CIHP, 0 or 255 where the part is unknown. pseudo: whether masks marked `pseudo_mask` are
    people, with an ignored edge, or ignored as a whole; by default they are people in train and
    fit. samples: that many random windows per epoch (`draw_window`); 0 = every photo as it is.
    """
    class_names = CIHP.class_names
    flip_pairs = CIHP.flip_pairs
    splits = 'train', 'val', 'fit', 'held', 'tune', 'test'

    def __init__(self, root: str, split: str, licenses: str = '', parts: str | None = None,
                 pseudo: bool | None = None, samples: int = 0):
        self.stems = []                           # of each photo: its name without .jpg
        self.photos = []                          # its path
        self.sizes = []                           # (width, height) in the annotation file
        self.people = []                          # list of Annotation
        self.pseudo = split in ('train', 'fit') if pseudo is None else pseudo
        for folder in FOLDERS.get(split, BOTH):
            self.add_folder(root, folder, read_licenses(licenses))
        self.choose(split)
        if not self.stems:
            raise ValueError(f'{printable(root)} has no photo of people with these licenses in the '
                             f'split {split}; leave out --licenses or unpack the download again')
        self.parts = {}                           # {PHOTO_ANNOTATION: path of its label map}
        if parts:
            advice = 'give the folder that tools.keypoints wrote'
            self.parts = index_folder(parts, ('.png',), advice)
        self.samples = samples
        self.ids = [f'window_{i:06d}' for i in range(samples)] if samples else self.stems

    def add_folder(self, root: str, folder: str, licenses: tuple[int, ...]):
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
            raise FileNotFoundError(f'{printable(os.path.join(root, folder))} lacks {len(missing)} '
                                    f'of {len(names)} photos of {path}, the first is '
                                    f'{missing[0]}.jpg; unpack the download again')
        self.stems += names
        self.sizes += sizes
        self.photos += [files[name] for name in names]
        self.people += [people[i] for i in kept]

    def choose(self, split: str):
        """Keeps the photos of a split that is a share of both folders."""
        if split in FOLDERS:
            return
        numbers = range(len(self.stems))
        held = [k for k in numbers if int(self.stems[k]) % 5 == 0]
        if split == 'fit':
            kept = sorted(set(numbers) - set(held))
        else:
            kept = {'held': held, 'tune': held[0::2], 'test': held[1::2]}[split]
        for name in ('stems', 'sizes', 'photos', 'people'):
            values = getattr(self, name)
            setattr(self, name, [values[k] for k in kept])

    def size(self, i: int) -> tuple[int, int]:
        """(width, height) of photo i, from the annotation file; windows have no size before they
        are drawn."""
        return self.sizes[i]

    def is_wide(self, i: int) -> bool:
        """Whether image i is wider than high. Two of three windows are."""
        if self.samples:
            return i % 3 > 0
        width, height = self.sizes[i]
        return width > height

    def persons(self, k: int) -> tuple[list[Person], np.ndarray]:
        """The people of photo k, and ignore (H, W) bool.

        Ignored are crowds, people of less than SMALLEST pixels, and edges of pseudo masks, or the
        whole of them. A person's pixels are never ignored because of a crowd.
        """
        width, height = self.sizes[k]
        people = []
        ignore = np.zeros((height, width), bool)
        edges = np.zeros((height, width), bool)
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

    def labels(self, k: int, person: Person) -> np.ndarray:
        """Label map (H, W) uint8 of a person of photo k: 255, and the parts that are known."""
        labels = person.mask * np.uint8(UNKNOWN)
        path = self.parts.get(f'{self.stems[k]}_{person.id}')
        if not path:
            return labels
        parts = read_labels(path, len(self.class_names) - 1)
        if parts.shape != labels.shape:
            raise ValueError(f'{path} and {self.photos[k]} differ in size; write the labels again '
                             'with tools.keypoints')
        return np.where(person.mask & (parts > 0), parts, labels)

    def read_parsing(self, i: int, seed: int = 0, epoch: int = 0) -> Labels:
        if self.samples:
            _, parsing, ignore = self.read(i, seed, epoch)
            return parsing, ignore
        people, ignore = self.persons(i)
        maps = [self.labels(i, person) for person in people]
        return stack_people(maps, self.sizes[i]), ignore

    def read(self, i: int, seed: int = 0, epoch: int = 0) -> Example:
        """Photo i, or window i of an epoch."""
        if not self.samples:
            return super().read(i)
        rng = np.random.default_rng((7, seed, epoch, i))
        k = int(rng.integers(len(self.photos)))
        people, ignore = self.persons(k)
        if stored_size(self.photos[k]) != self.sizes[k]:
            raise ValueError(f'{self.photos[k]} is not of the size in the annotations; unpack the '
                             'download again')
        maps = [self.labels(k, person) for person in people]
        parsing = stack_people(maps, self.sizes[k])
        window = draw_window(self.sizes[k], parsing, self.is_wide(i), rng)
        image = np.array(read_stored(self.photos[k]))[window]
        parsing, ignore = cut(parsing, ignore, window)
        return np.ascontiguousarray(image), parsing, ignore


# ---- windows -----------------------------------------------------------------------------------


def draw_window(size: tuple[int, int], parsing: np.ndarray, wide: bool, rng: np.random.Generator,
                whole: float = 0.35) -> tuple[slice, slice]:
    """Rows and columns of a random part of a photo, wider than high or higher than wide.

    A share `whole` of the photos of that form are shown whole. The other windows are as high as one
    person divided by 0.3 to 1.6: from small people to head and shoulders. The person's middle, or
    at times the head, lies in the window. size: (width, height); parsing (N, H, W) uint8.
    """
    width, height = size
    if not len(parsing) or rng.random() < whole and (width > height) == wide:
        return slice(0, height), slice(0, width)
    x, y, w, h = box_of(parsing[rng.integers(len(parsing))] > 0)

    # The window's height and width, no larger than the photo.
    aspect = rng.uniform(1.15, 1.6)
    aspect = aspect if wide else 1 / aspect
    rows = max(h, 0.6 * w) / math.exp(rng.uniform(math.log(0.3), math.log(1.6)))
    rows = min(max(rows, 96), height, width / aspect)
    columns = round(rows * aspect)
    rows = round(rows)

    # A point of the person, and where in the window it lies.
    focus_x = x + w / 2
    focus_y = y + h * rng.uniform(0.1, 0.6)
    left = focus_x - rng.uniform(0.25, 0.75) * columns
    top = focus_y - rng.uniform(0.25, 0.75) * rows
    left = round(min(max(left, 0), width - columns))
    top = round(min(max(top, 0), height - rows))
    return slice(top, top + rows), slice(left, left + columns)


def cut(parsing: np.ndarray, ignore: np.ndarray, window: tuple[slice, slice],
        least: float = 0.05) -> Labels:
    """parsing (N, H, W) and ignore (H, W) of a window. A person is ignored if it shows less than a
    share `least` of the person's pixels, or less than SMALLEST pixels."""
    inside = np.ascontiguousarray(parsing[:, *window])
    areas = (parsing > 0).sum((1, 2))
    left = (inside > 0).sum((1, 2))
    kept = left >= np.maximum(least * areas, SMALLEST)
    ignore = ignore[window] | (inside[~kept] > 0).any(0)
    return inside[kept], ignore

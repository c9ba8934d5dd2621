"""COCO 2017 (Lin et al. 2014): ordinary photos of people, without parts. And files of parts.

    train2017/, val2017/                              the photos
    annotations/person_keypoints_train2017.json       people, with keypoints where COCO has them
    annotations/instances_train2017.json              read instead where the file above is missing

COCO says where people are, but not what they wear: its people are 255 in `parsing` (this person,
part unknown). Labels of parts may lie beside it in a folder of their own (tools/keypoints.py). The
classes are those of CIHP.

    annotations.json                                  as infer.py --format coco writes it
    annotations/instances_default.json                as CVAT exports it
    result.json                                       of other tools

A folder with one of these has people with parts, in the classes that the file names. The photos lie
where the file says, or in the folder itself, in images/ or in images/default/.
"""
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from util.datasets.base import Example, Labels, Photos
from util.datasets.cihp import CIHP
from util.datasets.coco_file import (Annotation, AnnotationFile, pair_sides, read_parts,
                                     read_people)
from util.files import UNKNOWN, check_name, index_folder, naming, printable, result_names, short
from util.images import read_labels, read_photo, read_stored
from util.masks import box_of, coco_mask, stack_people

FOLDERS = {'train': ('train2017',), 'val': ('val2017',)}      # other splits: a share of both
BOTH = 'train2017', 'val2017'
OF_PARTS = 'annotations.json', 'annotations/instances_default.json', 'result.json'
PHOTOS_OF_PARTS = '', 'images', 'images/default'
FREE = 4, 5, 7                                    # licenses: BY, BY-SA, no known restrictions
SMALLEST = 100                                    # pixels; smaller people are ignored


class Person(NamedTuple):
    """One person of a photo."""
    id: int                                       # of the first annotation
    mask: np.ndarray                              # (H, W) bool
    # (17, 3) float32: x, y in pixels and 0 = not given, 1 = hidden, 2 = visible; or None.
    keypoints: np.ndarray | None
    pseudo: bool                                  # the mask was not drawn by people
    labels: np.ndarray | None = None              # (H, W) uint8: parts, 255 = part unknown


# ---- files and outlines ------------------------------------------------------------------------


def read_licenses(text: str | None) -> tuple[int, ...]:
    """'free' or ids such as '4,5' -> ids; '' or None -> (), all licenses. ValueError for anything
    else."""
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
    if os.path.isdir(os.path.join(root, '..', 'annotations')):
        raise FileNotFoundError(f'{printable(root)} holds no annotations of COCO; give the folder '
                                'above it')
    raise FileNotFoundError(f'{printable(root)} has neither annotations/{names[0]} nor {names[1]}, '
                            f'and no {OF_PARTS[0]}; unpack the annotations of COCO 2017 there, '
                            'or give the results of infer.py --format coco')


def find_parts(root: str) -> str | None:
    """Path of the annotation file of parts; None if there is none."""
    paths = [os.path.join(root, name) for name in OF_PARTS]
    return next((path for path in paths if os.path.isfile(path)), None)


def find_listed(root: str, path: str, folder: str, names: list[str]) -> list[str]:
    """Paths of the photos that an annotation file of parts lists.

    folder: where they lie, seen from the file; ''. FileNotFoundError if some are missing.
    """
    places = [os.path.join(root, *place.split('/')) for place in PHOTOS_OF_PARTS]
    if folder:
        places.insert(0, os.path.normpath(os.path.join(os.path.dirname(path), folder)))
    found = [place for place in places if names and os.path.isfile(os.path.join(place, names[0]))]
    place = found[0] if found else places[0]
    photos = [os.path.join(place, name) for name in names]
    missing = [name for name, photo in zip(names, photos) if not os.path.isfile(photo)]
    if missing:
        raise FileNotFoundError(f'{printable(place)} lacks {len(missing)} of {len(names)} photos '
                                f'of {printable(path)}, the first is {short(missing[0])}; put '
                                f'{os.path.basename(path)} into their folder')
    return photos


def outline_mask(outline: list | dict, size: tuple[int, int]) -> np.ndarray:
    """Polygons or run lengths -> bool (H, W); size: (width, height)."""
    if isinstance(outline, dict):
        shape = [size[1], size[0]]
        if list(outline['size']) != shape:
            raise ValueError(f'it has {outline["size"]} rows and columns, the photo {shape}')
    return coco_mask(outline, size)


def group_people(annotations: list[Annotation]) -> list[list[Annotation]]:
    """The annotations of each person, in the order of their first ones."""
    people = {}
    for number, annotation in enumerate(annotations):
        people.setdefault(annotation.person or number, []).append(annotation)
    return list(people.values())


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
    """COCO's people, in the 19 classes of CIHP; or people with parts, in the classes of their file.

    Splits: train and val are COCO's own. held is the fifth of both whose ids are divisible by 5;
    tune and test are its halves, one to choose with and one to report; fit is everything else. Of
    people with parts train is all photos, held every fifth of them, from the first on, and val the
    same.

    licenses: see `read_licenses`. parts: a folder of label maps PHOTO_ANNOTATION.png, 0 or 255
    where the part is unknown; ValueError where none is of a person of the split. pseudo: whether
    masks marked `pseudo_mask` are people, with an ignored edge, or ignored as a whole; by default
    they are people in train and fit. samples: that many random windows per epoch (`draw_window`); 0
    = every photo as it is.
    """
    class_names = CIHP.class_names
    flip_pairs = CIHP.flip_pairs
    splits = 'train', 'val', 'fit', 'held', 'tune', 'test'

    def __init__(self, root: str, split: str, licenses: str | None = None,
                 parts: str | None = None, pseudo: bool | None = None, samples: int = 0):
        self.stems = []                           # of each photo: its name without .jpg
        self.photos = []                          # its path
        self.sizes = []                           # (width, height) in the annotation file
        self.people = []                          # list of Annotation
        self.pseudo = split in ('train', 'fit') if pseudo is None else pseudo
        self.smallest = SMALLEST
        self.read_photo = read_stored
        path = find_parts(root)
        if path:
            self.add_parts(root, path, read_licenses(licenses))
            self.choose(split, range(0, len(self.stems), 5))
        else:
            ids = []
            for folder in FOLDERS.get(split, BOTH):
                ids += self.add_folder(root, folder, read_licenses(licenses))
            if split not in FOLDERS:
                held = [k for k, i in enumerate(ids) if i % 5 == 0]
                self.choose(split, held)
        if not self.stems:
            raise ValueError(f'{printable(root)} has no photo of people with these licenses in the '
                             f'split {split}; leave out --licenses or unpack the download again')
        self.parts = {}                           # {PHOTO_ANNOTATION: path of its label map}
        if parts:
            advice = 'give the folder that tools.keypoints wrote'
            self.parts = index_folder(parts, ('.png',), advice)
            if not self.has_label_maps:
                raise ValueError(f'{printable(parts)} has no label map of a person of the split '
                                 f'{split}; label that split with tools.keypoints --split')
        self.samples = samples
        self.ids = [f'window_{i:06d}' for i in range(samples)] if samples else self.stems

    def add_folder(self, root: str, folder: str, licenses: tuple[int, ...]) -> list[int]:
        """Adds the photos of people of train2017 or val2017. Returns their ids in the annotation
        file."""
        path = find_annotations(root, folder)
        file = read_people(path)
        # Photos of crowds alone teach nothing: every person in them is ignored.
        kept = [i for i, found in file.annotations.items() if not all(a.crowd for a in found)]
        if licenses:
            kept = [i for i in kept if file.images[i].get('license') in licenses]
        files = index_folder(os.path.join(root, folder))
        with naming(path):
            names = [os.path.splitext(file.images[i]['file_name'])[0] for i in kept]
            ids = [int(i) for i in kept]
        missing = [name for name in names if name not in files]
        if missing:
            raise FileNotFoundError(f'{printable(os.path.join(root, folder))} lacks {len(missing)} '
                                    f'of {len(names)} photos of {path}, the first is '
                                    f'{missing[0]}.jpg; unpack the download again')
        self.add(path, file, kept, names, [files[name] for name in names])
        return ids

    def add_parts(self, root: str, path: str, licenses: tuple[int, ...]):
        """Adds the photos of a file of parts, also those of nobody, and takes its classes.

        Its labels were drawn on upright photos, as people and tools see them.
        """
        file = read_parts(path)
        self.class_names = file.class_names
        self.flip_pairs = pair_sides(file.class_names)
        self.smallest = 1                         # a part may be as small as it is
        self.read_photo = read_photo
        kept = [i for i, image in file.images.items()
                if not licenses or image.get('license') in licenses]
        with naming(path):
            names = [file.images[i]['file_name'] for i in kept]
            for name in names:
                check_name(name, 'it lists the photo', 'list files of its folder', folders=True)
        photos = find_listed(root, path, file.photos, names)
        stems = result_names([Path(name) for name in names])
        self.add(path, file, kept, stems, photos)

    def add(self, path: str, file: AnnotationFile, kept: list[int], stems: list[str],
            photos: list[str]):
        """Adds photos, with the annotations of the images `kept`."""
        with naming(path):
            self.sizes += [(int(file.images[i]['width']), int(file.images[i]['height']))
                           for i in kept]
        self.stems += stems
        self.photos += photos
        self.people += [file.annotations.get(i, []) for i in kept]

    def choose(self, split: str, held: Sequence[int]):
        """Keeps the photos of a split that is a share of all. held: numbers of photos."""
        everything = range(len(self.stems))
        shares = {
            'held': held,
            'val': held,
            'tune': held[0::2],
            'test': held[1::2],
            'fit': sorted(set(everything) - set(held)),
        }
        kept = shares.get(split, everything)
        for name in ('stems', 'sizes', 'photos', 'people'):
            values = getattr(self, name)
            setattr(self, name, [values[k] for k in kept])

    @property
    def has_parts(self) -> bool:
        """Whether the file has an annotation of a part, or the folder `parts` one of its people."""
        labels = (a.label for found in self.people for a in found)
        return self.has_label_maps or any(label != UNKNOWN for label in labels)

    @property
    def has_label_maps(self) -> bool:
        """Whether the folder `parts` has a label map of one of these people."""
        return any(f'{stem}_{a.id}' in self.parts
                   for stem, found in zip(self.stems, self.people) for a in found)

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
        for annotations in group_people(self.people[k]):
            first = annotations[0]
            labels = self.paint(k, annotations)
            mask = labels > 0
            unsure = first.pseudo and not self.pseudo
            if first.crowd or np.count_nonzero(mask) < self.smallest or unsure:
                ignore |= mask
                continue
            if first.pseudo:
                edges |= unsure_edge(mask)
            people.append(Person(first.id, mask, first.keypoints, first.pseudo, labels))
        for person in people:
            ignore &= ~person.mask
        return people, ignore | edges

    def paint(self, k: int, annotations: list[Annotation]) -> np.ndarray:
        """Label map (H, W) uint8 of a person of photo k. Later annotations cover earlier ones, and
        parts cover the person."""
        labels = np.zeros(self.sizes[k][::-1], np.uint8)
        for a in sorted(annotations, key=lambda a: a.label != UNKNOWN):
            with naming(f'annotation {a.id} of {self.photos[k]}', 'unpack the annotations again'):
                labels[outline_mask(a.outline, self.sizes[k])] = a.label
        return labels

    def labels(self, k: int, person: Person) -> np.ndarray:
        """Label map (H, W) uint8 of a person of photo k: 255, and the parts that are known."""
        labels = person.labels
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
        photo = self.read_photo(self.photos[k])
        if photo.size != self.sizes[k]:
            raise ValueError(f'{self.photos[k]} is of size {photo.size}, the annotations say '
                             f'{self.sizes[k]}; get both again')
        maps = [self.labels(k, person) for person in people]
        parsing = stack_people(maps, self.sizes[k])
        window = draw_window(self.sizes[k], parsing, self.is_wide(i), rng)
        image = np.array(photo)[window]
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

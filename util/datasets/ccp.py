"""Clothing Co-Parsing (Yang et al. 2014) in the 19 classes of CIHP.

    photos, annotations/pixel-level    of github.com/bearpaw/clothing-co-parsing

Its photos show single people; util/datasets/scenes.py composes them into scenes of several. Faces,
limbs, left and right, and ignored bystanders are pseudo labels in assets/ccp_layers.zip, whose
README.txt describes them.
"""
import io
import json
import os
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

import util.datasets.scenes as scenes
from util.datasets.base import Example, Labels, Photos, swap_sides
from util.datasets.cihp import CIHP
from util.files import UNKNOWN, index_folder, inside, naming, pick_all, pick_files
from util.images import read_labels, read_stored, stored_size
from util.masks import box_of, stack_people

CCP_LAYERS = Path(__file__).resolve().parents[2] / 'assets' / 'ccp_layers.zip'
CCP_CLASSES = 59                                  # of its own labels, with the background
SMALLEST = 16                                     # pixels of a scene's long side
MARGIN = 10                                       # pixels around the person of a crop


def read_layers() -> dict[str, bytes]:
    """The files of CCP_LAYERS: {name: content}."""
    with naming(CCP_LAYERS), zipfile.ZipFile(CCP_LAYERS) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def mat_shape(path: str, variable: str) -> tuple[int, ...]:
    """The shape that a .mat file claims for a variable, read without its content."""
    from scipy.io import whosmat                  # here: tools/onnx_parse.py works without scipy

    shapes = {name: shape for name, shape, _ in whosmat(path)}
    if variable not in shapes:
        raise ValueError(f'it has no variable {variable}')
    return shapes[variable]


def read_mat(path: str, variable: str) -> np.ndarray:
    """A variable of a .mat file, which holds integers from 0 on; MATLAB stores them as any type.

    Other variables, of any size, are not read."""
    from scipy.io import loadmat                  # here: tools/onnx_parse.py works without scipy

    values = loadmat(path, variable_names=[variable])[variable]
    if values.dtype.kind not in 'buif' or not (values == np.round(values)).all():
        raise ValueError(f'{variable} holds no integers')
    if values.min(initial=0) < 0:
        raise ValueError(f'{variable} holds {values.min()}, which is below 0')
    return values


class CCP(Photos):
    """Clothing Co-Parsing. Its splits are kinds of people in three forms.

    train, val             798 and 100 people
    tune, test             the two halves of val's people: one to choose with, one to report
    train, val, ..         scenes: people are cut out of photos and pasted beside another photo's
                           person, or where that person was removed; those of val, tune and test
                           are always the same 100
    train_photos, ..       the photos as they are, one labeled person each
    val_crops, ..          each person up close, whole and its upper half

    Options of train:

    long_side    of the scenes, in pixels
    samples      scenes per epoch; 0: one per photo
    backgrounds  folder of photos without people, used for a fifth of the scenes
    people       folder of images/ID.jpg and instances/ID.png (0 = nobody, 255 = crowd, else a
                 person with unknown parts), used for a tenth of the scenes
    tagged       folder of label maps ID.png of photos without pixel labels (tools/tagged.py),
                 whose people are pasted, too
    rare         0, or the share of people below which a class counts as rare (`repeats`)
    things       share of the scenes with blobs, mostly of clothes, that are nobody
                 (`scenes.cut_thing`)
    """
    class_names = CIHP.class_names
    flip_pairs = CIHP.flip_pairs
    splits = tuple(kind + form for kind in ('train', 'val', 'tune', 'test')
                   for form in ('', '_photos', '_crops'))

    def __init__(self, root: str, split: str, long_side: int = 640, backgrounds: str | None = None,
                 people: str | None = None, tagged: str | None = None, samples: int = 0,
                 rare: float = 0, things: float = 0):
        root = inside(root, 'clothing-co-parsing')
        kind = split.split('_')[0]
        self.form = split[len(kind):]
        self.fixed = kind != 'train'              # scenes without options, the same in every epoch
        self.files = read_layers()
        self.names = self.files['train.txt' if kind == 'train' else 'val.txt'].decode().split()
        if kind == 'tune':
            self.names = self.names[0::2]
        if kind == 'test':
            self.names = self.names[1::2]
        self.photos = pick_files(os.path.join(root, 'photos'), self.names)
        self.mats = pick_files(os.path.join(root, 'annotations', 'pixel-level'), self.names,
                               ('.mat',))
        self.table = label_table(json.loads(self.files['mapping.json']))

        if not self.fixed and long_side < SMALLEST:
            raise ValueError(f'--long-side is {long_side}; scenes of CCP have at least {SMALLEST} '
                             'pixels')
        self.long_side = 640 if self.fixed else long_side
        self.things = 0 if self.fixed else things
        self.backgrounds = []                     # paths of photos without people
        self.crowds = []                          # paths of photos, of the ids of their people
        self.tagged = []                          # label maps of the photos after those of names
        if not self.fixed:
            self.add_sources(root, backgrounds, people, tagged)
        self.chances = self.repeats(rare) if rare and split == 'train' else None

        if self.form == '_photos':
            self.ids = self.names
        elif self.form == '_crops':
            self.ids = [f'{name}_{part}' for name in self.names for part in ('person', 'upper')]
        else:
            number = 100 if self.fixed else samples or len(self.names)
            self.ids = [f'{split}_{i:04d}' for i in range(number)]

    # ---- other sources of people and backgrounds -----------------------------------------------

    def add_sources(self, root: str, backgrounds: str | None, people: str | None,
                    tagged: str | None):
        """Opens the folders of the options."""
        if backgrounds:
            self.backgrounds = list(pick_all(backgrounds).values())
        if people:
            photos = pick_all(os.path.join(people, 'images'))
            advice = '--people is a folder with images/ID.jpg and instances/ID.png'
            ids = pick_files(os.path.join(people, 'instances'), list(photos), ('.png',), advice)
            self.crowds = list(zip(photos.values(), ids))
        if tagged:
            self.add_tagged(root, tagged)

    def add_tagged(self, root: str, folder: str):
        """Appends the photos of the label maps in the folder."""
        maps = index_folder(folder, ('.png',), 'give the folder that tools.tagged wrote')
        known = index_folder(os.path.join(root, 'photos'))
        labeled = {name for part in ('train.txt', 'val.txt')
                    for name in self.files[part].decode().split()}
        strange = [path for name, path in maps.items() if name not in known or name in labeled]
        if strange or not maps:
            raise ValueError(f'{strange[0] if maps else folder} is of no photo with tags in '
                             f'{root}; give the folder that tools.tagged wrote')
        self.tagged = list(maps.values())
        self.photos = self.photos + [known[name] for name in maps]

    def repeats(self, rare: float) -> np.ndarray:
        """The probability of each photo's person to be drawn.

        It is proportional to max(1, sqrt(rare / share of the people with a class)) of the person's
        rarest class: the repeat factor of LVIS (Gupta et al. 2019). A label map that cannot be read
        is left to the scene that needs it.
        """
        classes = np.arange(1, len(self.class_names))
        worn = np.zeros((len(self.photos), len(classes)), bool)
        for k in range(len(worn)):
            with suppress(ValueError, OSError):
                parsing, _ = self.person(k)
                worn[k] = np.isin(classes, parsing)
        share = worn.mean(0).clip(1e-9)
        factors = np.where(worn, np.sqrt(rare / share), 1).max(1).clip(1)
        return factors / factors.sum()

    # ---- images --------------------------------------------------------------------------------

    def size(self, i: int) -> tuple[int, int]:
        if self.form == '_photos':
            return stored_size(self.photos[i])
        if self.form == '_crops':
            _, ignore = self.read_parsing(i)
            return ignore.shape[::-1]
        aspect = scenes.ASPECTS[i % len(scenes.ASPECTS)]
        if aspect > 1:
            return self.long_side, round(self.long_side / aspect)
        return round(self.long_side * aspect), self.long_side

    def read(self, i: int, seed: int = 0, epoch: int = 0) -> Example:
        if self.form == '_photos':
            return super().read(i)
        if self.form == '_crops':
            window, parsing, ignore = self.crop(i)
            photo = np.array(read_stored(self.photos[i // 2]))
            return np.ascontiguousarray(photo[window]), parsing, ignore
        return self.compose(i, seed, epoch)

    def read_parsing(self, i: int, seed: int = 0, epoch: int = 0) -> Labels:
        if self.form == '_photos':
            return self.person(i)
        if self.form == '_crops':
            _, parsing, ignore = self.crop(i)
            return parsing, ignore
        _, parsing, ignore = self.compose(i, seed, epoch, paint=False)
        return parsing, ignore

    def person(self, k: int) -> Labels:
        """parsing (1, H, W) and ignore (H, W) of photo k."""
        ccp, parts, ignore = self.annotation(k)
        parts = np.asarray(parts.resize(ccp.size, Image.NEAREST))
        ignore = np.asarray(ignore.resize(ccp.size, Image.NEAREST))
        ccp = np.asarray(ccp)
        parsing = stack_people([self.labels(ccp, parts)], ccp.shape[::-1])
        return parsing, ignore & (ccp == 0)

    def crop(self, i: int) -> tuple[tuple[slice, slice], np.ndarray, np.ndarray]:
        """Rows and columns of crop i in photo i // 2, its parsing and its ignore.

        Even crops show the person's box with a margin, odd ones its upper half.
        """
        parsing, ignore = self.person(i // 2)
        x, y, w, h = box_of(parsing[0])
        bottom = y + h // 2 if i % 2 else y + h + MARGIN
        rows = slice(max(0, y - MARGIN), bottom)
        columns = slice(max(0, x - MARGIN), x + w + MARGIN)
        cut = np.ascontiguousarray(parsing[:, rows, columns])
        return (rows, columns), cut, np.ascontiguousarray(ignore[rows, columns])

    def compose(self, i: int, seed: int = 0, epoch: int = 0, paint: bool = True):
        """Scene i, a function of (seed, epoch, i): image (only if paint), parsing, ignore."""
        rng = np.random.default_rng((1, i, 0, 0) if self.fixed else (0, seed, epoch, i))
        image, people, ignore = scenes.compose(self, len(self.names), len(self.tagged),
                                               self.size(i), rng, paint)
        return image, stack_people(people, ignore.shape[::-1]), ignore

    # ---- what scenes.compose asks for ----------------------------------------------------------

    def annotation(self, k: int) -> tuple[Image.Image, Image.Image, Image.Image]:
        """Photo k: its label map in rows of `table`, our parts, our ignore (of long side 640)."""
        empty = Image.new('1', (1, 1))
        if k >= len(self.names):
            return self.tagged_labels(k), empty, empty
        with naming(self.mats[k]):
            shape = mat_shape(self.mats[k], 'groundtruth')
        if shape != stored_size(self.photos[k])[::-1]:
            raise ValueError(f'{self.photos[k]} and its labels differ in size; unpack the download '
                             'again')
        with naming(self.mats[k]):
            labels = read_mat(self.mats[k], 'groundtruth')
            if labels.max() >= CCP_CLASSES:
                raise ValueError(f'it has the label {labels.max()}, but there are only '
                                 f'{CCP_CLASSES} classes')
            ccp = Image.fromarray(labels.astype(np.uint8))
        parts = self.files.get(f'parts/{self.names[k]}.png')
        ignore = self.files.get(f'ignore/{self.names[k]}.png')
        return (ccp, Image.open(io.BytesIO(parts)) if parts else empty,
                Image.open(io.BytesIO(ignore)) if ignore else empty)

    def tagged_labels(self, k: int) -> Image.Image:
        """The label map of tools/tagged.py in rows of `table`: from 59 on, classes of CIHP."""
        path = self.tagged[k - len(self.names)]
        labels = read_labels(path, 19)
        if labels.shape[::-1] != stored_size(self.photos[k]) or not labels.any():
            raise ValueError(f'{path} shows nobody or differs in size from {self.photos[k]}; write '
                             'it again with tools.tagged')
        rows = np.minimum(labels, 20) + np.uint8(CCP_CLASSES - 1) * (labels > 0)
        return Image.fromarray(rows)

    def labels(self, ccp: np.ndarray, parts: np.ndarray, flip: bool = False) -> np.ndarray:
        """CIHP's labels. Bags become 0: they cover the person, and CIHP does not label them."""
        labels = self.table.take(ccp * np.uint16(self.table.shape[1]) + parts)
        return swap_sides(labels, self.flip_pairs) if flip else labels

    def photo(self, k: int, draft: tuple[float, float] | None = None) -> Image.Image:
        return read_stored(self.photos[k], draft)

    def background(self, rng: np.random.Generator) -> tuple[Image.Image, Image.Image] | None:
        """Another photo as the stage and the ids of its people (RGB and L), for some scenes."""
        if self.crowds and rng.random() < 0.1:
            photo, ids = self.crowds[rng.integers(len(self.crowds))]
            image = read_stored(photo)
            people = Image.fromarray(read_labels(ids))
            if image.size != people.size:
                raise ValueError(f'{photo} and {ids} differ in size; get them again')
            return image, people
        if self.backgrounds and rng.random() < 0.2:
            photo = read_stored(self.backgrounds[rng.integers(len(self.backgrounds))])
            return photo, Image.new('L', photo.size)
        return None


def label_table(mapping: dict) -> np.ndarray:
    """mapping.json -> table (79, 13) uint8: [CCP's label, our body part] -> class of CIHP.

    Rows 59 .. 77 are classes 1 .. 19 of CIHP themselves, row 78 is unknown.
    """
    rows = []
    for row in mapping['map']:
        target = row['cihp']                      # a class of CIHP, or {part: class of CIHP}
        by_part = isinstance(target, dict)
        rows.append([target.get(part, UNKNOWN) if by_part else target for part in mapping['parts']])
    direct = np.array([*range(1, 20), UNKNOWN], np.uint8)
    direct = np.repeat(direct[:, None], len(mapping['parts']), 1)
    return np.vstack([np.array(rows, np.uint8), direct])

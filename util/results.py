"""Results of a photo: people and their parts, in memory and as files. Needs no torch.

    result = model.predict('photo.jpg')[0]
    result.people[0].parts['hair'].mask            # bool (H, W); also .area, .box, .rle
    result.overlay().show()
    result.convert('atr').save('results')          # the files of infer.py, in the classes of ATR

docs/python.md describes all of it, and the JSON file.
"""
import json
import os
import re
from collections import namedtuple
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from util import pictures
from util.agnostic import agnostic_mask
from util.files import (MARK, UNKNOWN, by_number, check_name, check_target, is_ours, printable,
                        result_names, write_jpeg, write_png, write_result)
from util.labels import convert, find_set, names_of, voc_palette
from util.masks import box_of, encode_rle, flatten_people, without_unknown
from util.pictures import cutout, palette, palette_image

MOST_BYTES = 150                                  # of a part in the name of a file
CUTOUT = re.compile(r'person\d+(_.+)?\.png', re.DOTALL)           # names of cut-outs


# ---- people and parts --------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Part:
    """The pixels of one class of a person."""
    id: int
    name: str
    area: int                                      # pixels
    box: list[int]                                 # [x, y, width, height] in pixels of the photo
    labels: np.ndarray = field(repr=False)         # of the person, (H, W)

    @property
    def mask(self) -> np.ndarray:
        """bool (H, W)"""
        return self.labels == self.id

    @property
    def rle(self) -> dict:
        """The mask in COCO's compressed run lengths: {size, counts}."""
        x, y, w, h = self.box
        return encode_rle(self.labels[y:y + h, x:x + w] == self.id, x, y, self.labels.shape)


@dataclass(frozen=True, eq=False)
class Person:
    """A person. Ids are 1, 2, .. by score."""
    id: int
    score: float
    center: tuple[float, float]                    # (x, y) in pixels
    labels: np.ndarray = field(repr=False)         # uint8 (H, W), class ids
    class_names: list[str] = field(repr=False)

    @property
    def mask(self) -> np.ndarray:
        """bool (H, W)"""
        return self.labels > 0

    @property
    def area(self) -> int:
        """Number of pixels."""
        return sum(part.area for part in self.part_list)

    @property
    def rle(self) -> dict:
        """The person's mask, with pixels of unknown parts, in COCO's compressed run lengths: {size,
        counts}."""
        x, y, w, h = self.box
        return encode_rle(self.labels[y:y + h, x:x + w] > 0, x, y, self.labels.shape)

    @cached_property
    def box(self) -> list[int]:
        """[x, y, width, height] in pixels; zeros if the person has no pixel."""
        return box_of(self.labels) if self.labels.any() else [0] * 4

    @cached_property
    def part_list(self) -> list[Part]:
        """The parts with pixels, by id."""
        x, y, w, h = self.box
        crop = self.labels[y:y + h, x:x + w]
        areas = np.bincount(crop.ravel()).tolist()
        parts = []
        for c, place in enumerate(ndimage.find_objects(crop) if crop.size else (), 1):
            if place is None:                      # no pixel of this class
                continue
            rows, columns = place
            name = self.class_names[c] if c < len(self.class_names) else 'part unknown'
            box = [x + columns.start, y + rows.start,
                   columns.stop - columns.start, rows.stop - rows.start]
            parts.append(Part(c, name, areas[c], box, self.labels))
        return parts

    @property
    def parts(self) -> dict[str, Part]:
        """{name: Part} of the parts with pixels."""
        return {part.name: part for part in self.part_list}


class Parsing(namedtuple('Parsing', 'parsing scores centers')):
    """People of one photo, best first.

    parsing  (N, H0, W0) uint8, class ids
    scores   (N,) in 0..1
    centers  (N, 2) pixels (x, y)

    What `predict` returns also has photo (Pillow, RGB), path (None: the photo came from memory),
    class_names, and colors ((256, 3) uint8; None: `palette`).
    """
    photo = path = class_names = colors = None

    def attach(self, photo: Image.Image, class_names: list[str], path: str | Path | None = None,
               colors: np.ndarray | None = None) -> 'Parsing':
        """Sets what belongs to the people; returns self."""
        self.photo = photo
        self.class_names = class_names
        self.path = path
        self.colors = colors
        return self

    def _replace(self, **changes) -> 'Parsing':
        changed = super()._replace(**changes)
        return changed.attach(self.photo, self.class_names, self.path, self.colors)

    def select(self, keep: np.ndarray) -> 'Parsing':
        """The people of an index array or a bool array (N,)."""
        return self._replace(parsing=self.parsing[keep], scores=self.scores[keep],
                             centers=self.centers[keep])

    def labelled(self) -> 'Parsing':
        """The people for an evaluator: without pixels of unknown parts (255), and without people
        that consist of such pixels alone."""
        if not (self.parsing == UNKNOWN).any():
            return self
        return self._replace(parsing=without_unknown(self.parsing)).visible()

    def visible(self) -> 'Parsing':
        """The people with visible pixels."""
        some = self.parsing.any((1, 2))
        return self if some.all() else self.select(some)      # no copy if not needed

    @cached_property
    def people(self) -> list[Person]:
        """List of Person, best first."""
        return list_people(self, self.class_names or ())

    def convert(self, labels: str) -> 'Parsing':
        """The same people in another label set, one of `labels.TARGETS` such as 'atr' or 'lip'.

        People without pixels there are left out. Needs class_names; raises a ValueError if no
        table leads there.
        """
        source = find_set(self.class_names, labels)
        parsing = np.array([convert(person, source, labels) for person in self.parsing], np.uint8)
        found = self._replace(parsing=parsing.reshape(self.parsing.shape))
        found.attach(self.photo, list(names_of(labels)), self.path, voc_palette())
        return found.visible()

    def agnostic(self, kind: str, person: int | str = 'largest') -> np.ndarray:
        """Where a try-on network is to draw garments anew, bool (H, W).

        kind: 'upper', 'lower' or 'overall'; person: an id, 'largest' or 'all'. Raises a ValueError
        for classes without garments. See docs/tryon.md.
        """
        return agnostic_mask(self.parsing, self.class_names or (), kind, person)

    def overlay(self) -> Image.Image:
        """The photo with colored parts, outlines and a legend."""
        return pictures.overlay(self.photo, self.parsing, self.class_names, colors=self.colors,
                                unknown=False)

    def save(self, folder: str | Path, name: str | None = None, cutouts: bool = False):
        """Writes the files of infer.py to the folder, called after the photo or `name`.

        See `write_results`.
        """
        if not name:
            name = result_names([Path(self.path)])[0] if self.path else 'photo'
        check_name(name, 'the results have the name', 'give the folder first')
        write_results(Path(folder), name, self.path or name, self.photo, self.visible(),
                      self.class_names, cutouts, self.colors)


def list_people(found: Parsing, class_names: list[str]) -> list[Person]:
    """The people of a Parsing, best first."""
    people = []
    for n, (labels, score, center) in enumerate(zip(*found), 1):
        people.append(Person(n, float(score), tuple(map(float, center)), labels, class_names))
    return people


def as_one_person(labels: np.ndarray, probability: np.ndarray) -> Parsing:
    """The labels of a whole photo as those of one person; of nobody if no pixel has a label.

    labels       (H, W) uint8, class ids; 0 is background
    probability  (H, W) in 0..1, that a pixel is a person's; its mean over the person is the score
    """
    rows, columns = np.nonzero(labels)
    if not len(rows):
        return Parsing(labels[None], np.zeros(1), np.zeros((1, 2))).visible()
    score = probability[labels > 0].mean()
    center = [columns.mean() + 0.5, rows.mean() + 0.5]
    return Parsing(labels[None], np.array([score]), np.array([center])).visible()


# ---- files -------------------------------------------------------------------------------------


def keep_parts(parsing: np.ndarray, class_names: list[str], only: str) -> np.ndarray:
    """Sets all parts to 0 except the named ones.

    only: names of parts, in any case, with commas between them. Raises a ValueError for unknown
    names.
    """
    wanted = [name.strip() for name in only.split(',')]
    names = [name.lower() for name in class_names]
    if not all(wanted):
        raise ValueError(f'--only is {only!r}, where a name is empty; give names with single '
                         'commas, as hair,dress')
    unknown = [name for name in wanted if name.lower() not in names[1:]]
    if unknown:
        raise ValueError(f'--only: unknown part {unknown[0]!r}; the parts are '
                         f'{", ".join(class_names[1:])}')
    kept = [names.index(name.lower()) for name in wanted]
    table = np.zeros(256, np.uint8)
    table[kept] = kept
    return table[parsing]


def describe_people(found: Parsing, class_names: list[str]) -> list[dict]:
    """The people of a Parsing as dictionaries for the JSON file, best first; ids from 1."""
    records = []
    for person in list_people(found, class_names):
        parts = [{'id': part.id, 'name': part.name, 'area': part.area, 'box': part.box,
                  'rle': part.rle} for part in person.part_list if part.id != UNKNOWN]
        center = [round(value, 1) for value in person.center]
        records.append({'id': person.id, 'score': round(person.score, 4), 'center': center,
                        'box': person.box, 'area': person.area, 'rle': person.rle,
                        'parts': parts})
    return records


def write_results(folder: Path, name: str, path: str | Path, photo: Image.Image, found: Parsing,
                  class_names: list[str], cutouts: bool, colors: np.ndarray | None = None):
    """Writes the files of one photo.

    found: its visible people; colors (256, 3): default `palette`. Raises a ValueError instead of
    replacing a file that this program did not write.
    """
    colors = palette(256) if colors is None else colors
    parts, people = flatten_people(found.parsing)
    picture = pictures.overlay(photo, found.parsing, class_names, colors=colors, unknown=False)
    write_png(folder / f'{name}_parts.png', palette_image(without_unknown(parts), colors))
    write_png(folder / f'{name}_people.png', palette_image(people, palette(256)))
    write_jpeg(folder / f'{name}_overlay.jpg', picture)
    record = {'software': MARK, 'photo': str(path), 'width': photo.width, 'height': photo.height,
              'people': describe_people(found, class_names)}
    cutout_folder = folder / f'{name}_cutouts'
    remove_cutouts(cutout_folder)
    if cutouts:
        write_cutouts(cutout_folder, photo, found, record['people'])
    # The JSON file comes last: where it exists, the photo is done.
    write_result(folder / f'{name}.json', json.dumps(record))


def find_cutouts(folder: Path) -> list[Path]:
    """The files of a folder that have the name of a cut-out, such as person1_hair.png."""
    paths = folder.iterdir() if folder.is_dir() else ()
    found = [path for path in paths if CUTOUT.fullmatch(path.name)]
    return sorted(found, key=by_number)


def check_cutouts(folder: Path, inputs: set[str] = frozenset()):
    """Raises a ValueError if cut-outs in this folder could replace files of the user's. inputs: see
    `check_target`."""
    if os.path.lexists(folder) and not folder.is_dir():
        raise ValueError(f'{printable(folder)} exists and is no folder; choose another --out')
    for path in find_cutouts(folder):
        check_target(path, inputs)


def remove_cutouts(folder: Path):
    """Removes the cut-outs of an earlier run of the same photo, and their folder if it is empty."""
    found = find_cutouts(folder)
    for path in found:
        if is_ours(path):
            path.unlink()
    if found and not any(folder.iterdir()):
        folder.rmdir()


def cutout_name(person: int, part: str = '') -> str:
    """The name of the file of a cut-out: of the person with this id, or of one of its parts."""
    if not part:
        return f'person{person}.png'
    part = re.sub(r'[/ \0]', '-', part)
    while len(part.encode()) > MOST_BYTES:
        part = part[:-1]
    return f'person{person}_{part}.png'


def write_cutouts(folder: Path, photo: Image.Image, found: Parsing, people: list[dict]):
    """Writes an RGBA picture of each person and of each of its parts."""
    for person, labels in zip(people, found.parsing):
        path = folder / cutout_name(person['id'])
        write_png(path, cutout(photo, labels > 0, person['box']))
        for part in person['parts']:
            path = folder / cutout_name(person['id'], part['name'])
            write_png(path, cutout(photo, labels == part['id'], part['box']))

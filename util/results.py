"""Results of a photo: people and their parts, in memory and as files. Needs no torch.

    result = model.predict('photo.jpg')[0]
    result.people[0].parts['hair'].mask            # bool (H, W); also .area, .box, .rle; a person has these, too
    result.overlay().show()
    result.convert('atr').save('results')          # the files of infer.py, in the classes of ATR

docs/python.md describes all of it, and the JSON file.
"""
import glob
import json
import re
from collections import namedtuple
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from scipy import ndimage

from util import pictures
from util.files import MARK, UNKNOWN, check_name, is_ours, result_names, write_png, write_result
from util.labelmaps import SETS, convert, find_set, names_of
from util.labels import voc_palette
from util.masks import box_of, encode_rle, flatten_people
from util.pictures import cutout, palette, palette_image
from util.whole import without_unknown


# ---- people and parts --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Part:
    """The pixels of one class of a person. box: [x, y, width, height] in pixels of the photo."""
    id: int
    name: str
    area: int
    box: list
    labels: np.ndarray = field(repr=False)         # of the person, (H, W)

    @property
    def mask(self):
        """bool (H, W)"""
        return self.labels == self.id

    @property
    def rle(self):
        """The mask in COCO's compressed run lengths: {size, counts}."""
        x, y, w, h = self.box
        return encode_rle(self.labels[y:y + h, x:x + w] == self.id, x, y, self.labels.shape)


@dataclass(frozen=True, eq=False)
class Person:
    """A person. id: 1, 2, .. by score; center: (x, y) in pixels; labels: uint8 (H, W), class ids."""
    id: int
    score: float
    center: tuple
    labels: np.ndarray = field(repr=False)
    class_names: list = field(repr=False)

    @property
    def mask(self):
        """bool (H, W)"""
        return self.labels > 0

    @property
    def area(self):
        return sum(part.area for part in self.part_list)

    @property
    def rle(self):
        """The person's mask in COCO's compressed run lengths, pixels of unknown parts included: {size, counts}."""
        x, y, w, h = self.box
        return encode_rle(self.labels[y:y + h, x:x + w] > 0, x, y, self.labels.shape)

    @cached_property
    def box(self):
        """[x, y, width, height] in pixels; zeros where the person has no pixel."""
        return box_of(self.labels) if self.labels.any() else [0] * 4

    @cached_property
    def part_list(self):
        """The parts with pixels, by id."""
        x, y, w, h = self.box
        crop, parts = self.labels[y:y + h, x:x + w], []
        areas = np.bincount(crop.ravel()).tolist()
        for c, place in enumerate(ndimage.find_objects(crop) if crop.size else (), 1):
            if place:
                (top, bottom), (left, right) = ((side.start, side.stop) for side in place)
                name = self.class_names[c] if c < len(self.class_names) else 'part unknown'
                parts.append(Part(c, name, areas[c], [x + left, y + top, right - left, bottom - top], self.labels))
        return parts

    @property
    def parts(self):
        """{name: Part} of the parts with pixels."""
        return {part.name: part for part in self.part_list}


class Parsing(namedtuple('Parsing', 'parsing scores centers')):
    """People of one photo, best first. parsing (N, H0, W0) uint8, scores (N,) in 0..1, centers (N, 2) pixels (x, y).

    What `predict` returns also has photo (Pillow, RGB), path (None: the photo came from memory), class_names, and
    colors ((256, 3) uint8; None: `palette`).
    """
    photo = path = class_names = colors = None

    def attach(self, photo, class_names, path=None, colors=None):
        """Sets what belongs to the people -> self."""
        self.photo, self.class_names, self.path, self.colors = photo, class_names, path, colors
        return self

    def _replace(self, **changes):
        return super()._replace(**changes).attach(self.photo, self.class_names, self.path, self.colors)

    def select(self, keep):
        """The people of an index array or a bool array (N,)."""
        return self._replace(parsing=self.parsing[keep], scores=self.scores[keep], centers=self.centers[keep])

    def labelled(self):
        """The same people without pixels of unknown parts (255), and without people who have no others: for an
        evaluator."""
        if not (self.parsing == UNKNOWN).any():
            return self
        return self._replace(parsing=without_unknown(self.parsing)).visible()

    def visible(self):
        """The people with visible pixels."""
        some = self.parsing.any((1, 2))
        return self if some.all() else self.select(some)                     # no copy if not needed

    @cached_property
    def people(self):
        """List of Person, best first."""
        return list_people(self, self.class_names or ())

    def convert(self, labels):
        """The same people in another label set, one of `labelmaps.TARGETS` such as 'atr' or 'lip', without those
        without pixels there. Needs class_names; ValueError where no table leads there."""
        source = find_set(self.class_names, labels)
        parsing = np.array([convert(person, source, labels) for person in self.parsing], np.uint8)
        found = self._replace(parsing=parsing.reshape(self.parsing.shape))
        return found.attach(self.photo, list(names_of(labels)), self.path, voc_palette()).visible()

    def overlay(self):
        """Pillow picture: the photo with colored parts, outlines and a legend."""
        return pictures.overlay(self.photo, self.parsing, self.class_names, colors=self.colors, unknown=False)

    def save(self, folder, name=None, cutouts=False):
        """Writes the files of infer.py to the folder, called after the photo or `name`; see `write_results`."""
        name = name or (result_names([Path(self.path)])[0] if self.path else 'photo')
        check_name(name, 'the results have the name', 'give the folder first')
        write_results(Path(folder), name, self.path or name, self.photo, self.visible(), self.class_names, cutouts,
                      self.colors)


def list_people(found, class_names):
    """Parsing -> list of Person, best first."""
    return [Person(n, float(score), tuple(map(float, center)), labels, class_names)
            for n, (labels, score, center) in enumerate(zip(*found), 1)]


# ---- files -------------------------------------------------------------------------------------------------


def keep_parts(parsing, class_names, only):
    """Sets all parts to 0 except the named ones, in any case; ValueError on unknown names."""
    wanted, names = [name.strip() for name in only.split(',')], [name.lower() for name in class_names]
    if not all(wanted):
        raise ValueError(f'--only is {only!r}, where a name is empty; give names with single commas, as hair,dress')
    unknown = [name for name in wanted if name.lower() not in names[1:]]
    if unknown:
        raise ValueError(f'--only: unknown part {unknown[0]!r}; the parts are {", ".join(class_names[1:])}')
    kept = [names.index(name.lower()) for name in wanted]
    table = np.zeros(256, np.uint8)
    table[kept] = kept
    return table[parsing]


def describe_people(found, class_names):
    """Parsing -> list of dictionaries for the JSON file, best person first; ids from 1."""
    return [{'id': person.id, 'score': round(person.score, 4), 'center': [round(v, 1) for v in person.center],
             'box': person.box, 'area': person.area, 'rle': person.rle,
             'parts': [{'id': part.id, 'name': part.name, 'area': part.area, 'box': part.box, 'rle': part.rle}
                       for part in person.part_list if part.id != UNKNOWN]}
            for person in list_people(found, class_names)]


def write_results(folder, name, path, photo, found, class_names, cutouts, colors=None):
    """Writes the files of one photo. found: its Parsing, of visible people; colors (256, 3): default `palette`. Files
    that this program did not write are not replaced: ValueError."""
    colors, (parts, people) = palette(256) if colors is None else colors, flatten_people(found.parsing)
    write_png(folder / f'{name}_parts.png', palette_image(without_unknown(parts), colors))
    write_png(folder / f'{name}_people.png', palette_image(people, palette(256)))
    picture = pictures.overlay(photo, found.parsing, class_names, colors=colors, unknown=False)
    write_png(folder / f'{name}_overlay.png', picture)
    record = {'software': MARK, 'photo': str(path), 'width': photo.width, 'height': photo.height,
              'people': describe_people(found, class_names)}
    remove_cutouts(folder, name, class_names)
    if cutouts:
        write_cutouts(folder, name, photo, found, record['people'])
    write_result(folder / f'{name}.json', json.dumps(record))                # last: where it exists, the photo is done


def remove_cutouts(folder, name, class_names):
    """Removes the cut-outs of an earlier run of the same photo, whatever its label set."""
    names = {file_part(n) for names in (class_names, *map(names_of, SETS)) for n in names}
    for path in folder.glob(f'{glob.escape(name)}_person*.png'):
        part = re.fullmatch(r'\d+(?:_(.+))?', path.stem[len(name) + len('_person'):])
        if part and (part[1] is None or part[1] in names) and is_ours(path):
            path.unlink()


def file_part(name):
    """The name of a part as it stands in file names."""
    return name.replace('/', '-').replace(' ', '-')


def write_cutouts(folder, name, photo, found, people):
    """Writes an RGBA picture of each person and of each of its parts."""
    for person, labels in zip(people, found.parsing):
        stem = f'{name}_person{person["id"]}'
        write_png(folder / f'{stem}.png', cutout(photo, labels > 0, person['box']))
        for part in person['parts']:
            path = folder / f'{stem}_{file_part(part["name"])}.png'
            write_png(path, cutout(photo, labels == part['id'], part['box']))

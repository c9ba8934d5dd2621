"""Results of a photo: people and their parts, in memory and as files. Needs no torch.

    result = model.predict('photo.jpg')[0]
    print(result)                                  # 3 people: hair, dress, coat
    for person in result:                          # len(result) people, best first
        person.select('hair', 'face')              # bool (H, W)
        person.parts['coat'].mask                  # the same of one part; also .area, .box, .rle
        person.crop().save('person.png')           # an RGBA cut-out
    result.labels                                  # uint8 (H, W), class ids of all people
    result.convert('atr').save('results')          # the files of infer.py, in the classes of ATR

docs/python.md describes all of it, and the JSON file.
"""
import difflib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from util import pictures
from util.agnostic import agnostic_mask
from util.files import (MARK, UNKNOWN, by_number, check_name, check_target, counted, is_ours,
                        printable, result_names, unique_names, write_jpeg, write_png, write_result)
from util.labels import convert, find_set, names_of, voc_palette
from util.masks import box_of, flatten_people, without_unknown
from util.pictures import cutout, palette, palette_image
from util.rle import Runs, encode_runs

PART_UNKNOWN = 'part unknown'                     # name of a person's pixels without a class
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
    rle: dict = field(repr=False)                  # COCO's compressed run lengths: {size, counts}
    labels: np.ndarray = field(repr=False)         # of the person, (H, W)

    @property
    def mask(self) -> np.ndarray:
        """bool (H, W)"""
        return self.labels == self.id

    def to_dict(self) -> dict:
        """The part in the JSON file."""
        return {'id': self.id, 'name': self.name, 'area': self.area, 'box': self.box,
                'rle': self.rle}


@dataclass(frozen=True, eq=False)
class Person:
    """A person. Ids are 1, 2, .. by score."""
    id: int
    score: float
    center: tuple[float, float]                    # (x, y) in pixels
    labels: np.ndarray = field(repr=False)         # uint8 (H, W), class ids
    class_names: Sequence[str] = field(repr=False)
    photo: Image.Image | None = field(default=None, repr=False)

    @property
    def mask(self) -> np.ndarray:
        """bool (H, W)"""
        return self.labels > 0

    @property
    def area(self) -> int:
        """Number of pixels."""
        return self.runs.area

    @property
    def rle(self) -> dict:
        """The person's mask, with pixels of unknown parts, in COCO's compressed run lengths: {size,
        counts}."""
        return encode_runs([self.runs])[0]

    @cached_property
    def box(self) -> list[int]:
        """[x, y, width, height] in pixels; zeros if the person has no pixel."""
        return box_of(self.labels) if self.labels.any() else [0] * 4

    @cached_property
    def runs(self) -> Runs:
        """The runs of the labels, from which areas, boxes and run lengths follow."""
        x, y, w, h = self.box
        return Runs(self.labels[y:y + h, x:x + w], x, y, self.labels.shape)

    @cached_property
    def part_list(self) -> list[Part]:
        """The parts with pixels, by id."""
        found = self.runs.split()
        parts = []
        for (c, runs), rle in zip(found.items(), encode_runs(list(found.values()))):
            name = self.class_names[c] if c < len(self.class_names) else PART_UNKNOWN
            parts.append(Part(c, name, runs.area, runs.box, rle, self.labels))
        return parts

    @property
    def parts(self) -> dict[str, Part]:
        """{name: Part} of the parts with pixels."""
        return {part.name: part for part in self.part_list}

    def select(self, *names: str) -> np.ndarray:
        """The pixels of all parts with these names, in any case: bool (H, W). A part that the
        person lacks adds none. Raises a ValueError for a name that the model does not have."""
        return np.isin(self.labels, part_ids(names, self.class_names))

    def crop(self, *names: str) -> Image.Image:
        """RGBA picture of the person's box, transparent outside the person. names: only of these
        parts, and their box. Raises a ValueError where there is nothing to cut out."""
        if self.photo is None:
            raise ValueError('this result came without a photo; use one of predict')
        mask = self.select(*names) if names else self.mask
        if not mask.any():
            raise ValueError(f'person {self.id} has no {" or ".join(names) or "pixel"}')
        return cutout(self.photo, mask, box_of(mask))

    def to_dict(self) -> dict:
        """The person in the JSON file."""
        center = [round(value, 1) for value in self.center]
        parts = [part.to_dict() for part in self.part_list if part.id != UNKNOWN]
        return {'id': self.id, 'score': round(self.score, 4), 'center': center, 'box': self.box,
                'area': self.area, 'rle': self.rle, 'parts': parts}


@dataclass(frozen=True, eq=False, repr=False)
class Parsing:
    """People of one photo, best first: a sequence of Person.

    What `predict` returns has all of the fields but path and colors, which may be None.
    """
    parsing: np.ndarray                            # uint8 (N, H, W), class ids
    scores: np.ndarray                             # (N,) in 0..1
    centers: np.ndarray                            # (N, 2), (x, y) in pixels
    class_names: Sequence[str] = ()                # by id, the background first
    photo: Image.Image | None = None               # RGB
    path: str | Path | None = None                 # None: the photo came from memory
    colors: np.ndarray | None = None               # uint8 (256, 3); None: `palette`

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Person]:
        return iter(self.people)

    def __getitem__(self, index):
        return self.people[index]

    def __str__(self) -> str:
        """'3 people: hair, dress, coat', the parts by id."""
        number = len(self)
        if not number:
            return 'no people'
        names = {part.id: part.name for person in self for part in person.part_list}
        text = counted(number, 'person', 'people')
        return f'{text}: {", ".join(names[i] for i in sorted(names))}' if names else text

    def __repr__(self) -> str:
        return f'<{type(self).__name__}: {self}>'

    @cached_property
    def people(self) -> list[Person]:
        """The people, best first; ids are 1, 2, .."""
        return [Person(n, float(score), tuple(map(float, center)), labels, self.class_names,
                       self.photo)
                for n, (labels, score, center)
                in enumerate(zip(self.parsing, self.scores, self.centers), 1)]

    @cached_property
    def flat(self) -> tuple[np.ndarray, np.ndarray]:
        """The class map and the person map of `flatten_people`."""
        return flatten_people(self.parsing)

    @cached_property
    def labels(self) -> np.ndarray:
        """uint8 (H, W), class ids: those of the best person where people overlap, 0 where the part
        is unknown. The pixels of NAME_parts.png."""
        return without_unknown(self.flat[0])

    def take(self, kept: np.ndarray | list | slice) -> 'Parsing':
        """The people of an index array, a bool array (N,) or a slice."""
        return replace(self, parsing=self.parsing[kept], scores=self.scores[kept],
                       centers=self.centers[kept])

    def labeled(self) -> 'Parsing':
        """The people for an evaluator: without pixels of unknown parts (255), and without people
        that consist of such pixels alone."""
        if not (self.parsing == UNKNOWN).any():
            return self
        return replace(self, parsing=without_unknown(self.parsing)).visible()

    def visible(self) -> 'Parsing':
        """The people with visible pixels."""
        some = self.parsing.any((1, 2))
        return self if some.all() else self.take(some)        # no copy if not needed

    def convert(self, labels: str) -> 'Parsing':
        """The same people in another label set, one of `labels.TARGETS` such as 'atr' or 'lip'.

        People without pixels there are left out. Needs class_names; raises a ValueError if no
        table leads there.
        """
        source = find_set(self.class_names, labels)
        parsing = np.array([convert(person, source, labels) for person in self.parsing], np.uint8)
        found = replace(self, parsing=parsing.reshape(self.parsing.shape),
                        class_names=list(names_of(labels)), colors=voc_palette())
        return found.visible()

    def agnostic(self, kind: str, person: int | str = 'largest') -> np.ndarray:
        """Where a try-on network is to draw garments anew, bool (H, W).

        kind: 'upper', 'lower' or 'overall'; person: an id, 'largest' or 'all'. Raises a ValueError
        for classes without garments. See docs/tryon.md.
        """
        return agnostic_mask(self.parsing, self.class_names or (), kind, person)

    def overlay(self, people: bool = False) -> Image.Image:
        """The photo with outlines, and colored parts and a legend, or colored people and their
        ids."""
        if people:
            ids = list(range(1, len(self) + 1))
            picture = pictures.overlay_people(self.photo, self.parsing, ids)
            pictures.add_ids(picture, self.parsing, ids)
            return picture
        return pictures.overlay(self.photo, self.parsing, self.class_names, colors=self.colors,
                                unknown=False)

    def to_dict(self) -> dict:
        """The content of the JSON file, see docs/python.md."""
        height, width = self.parsing.shape[1:]
        return {'software': MARK, 'photo': str(self.path or 'photo'), 'width': width,
                'height': height, 'people': [person.to_dict() for person in self]}

    def save(self, folder: str | Path, name: str | None = None, cutouts: bool = False,
             people: bool = False):
        """Writes the files of infer.py to the folder, called after the photo or `name`.

        See `write_results`.
        """
        if not name:
            name = result_names([Path(self.path)])[0] if self.path else 'photo'
        check_name(name, 'the results have the name', 'give the folder first')
        found = self if self.path else replace(self, path=name)
        write_results(Path(folder), name, found.visible(), cutouts, people)


def as_one_person(labels: np.ndarray, probability: np.ndarray | None = None,
                  **about) -> Parsing:
    """The labels of a whole photo as those of one person; of nobody if no pixel has a label.

    labels       (H, W) uint8, class ids; 0 is background
    probability  (H, W) in 0..1, that a pixel is a person's; its mean over the person is the score,
                 which is 1 without it
    about        the other fields, such as class_names
    """
    rows, columns = np.nonzero(labels)
    if not len(rows):
        return Parsing(labels[None], np.zeros(1), np.zeros((1, 2)), **about).visible()
    score = 1.0 if probability is None else probability[labels > 0].mean()
    center = [columns.mean() + 0.5, rows.mean() + 0.5]
    return Parsing(labels[None], np.array([score]), np.array([center]), **about)


def part_ids(names: Sequence[str], class_names: Sequence[str]) -> list[int]:
    """The ids of parts with these names, in any case, with spaces or hyphens; PART_UNKNOWN is one
    of them. Raises a ValueError for unknown names."""
    known = {plain(PART_UNKNOWN): UNKNOWN}
    known |= {plain(name): c for c, name in enumerate(class_names) if c and name}
    unknown = [name for name in names if plain(name) not in known]
    if unknown:
        parts = [name for name in class_names[1:] if name]
        similar = ', '.join(similar_names(unknown[0], parts))
        hint = f' (did you mean {similar}?)' if similar else ''
        raise ValueError(f'unknown part {unknown[0]!r}{hint}; the parts are {", ".join(parts)}')
    return [known[plain(name)] for name in names]


def plain(name: str) -> str:
    """What the spellings of a part share: 'Upper clothes' and 'upper-clothes'."""
    return name.lower().replace(' ', '-')


def similar_names(name: str, parts: list[str]) -> list[str]:
    """The parts that a user may have meant: left-shoe and right-shoe for 'shoes'; hair for
    'hairs'."""
    word = plain(name).removesuffix('s')
    longer = [part for part in parts if word and word in plain(part)]
    return longer or difflib.get_close_matches(plain(name), parts)


# ---- files -------------------------------------------------------------------------------------


def keep_parts(parsing: np.ndarray, class_names: Sequence[str], only: str) -> np.ndarray:
    """Sets all parts to 0 except the named ones.

    only: names of parts, in any case, with commas between them. Raises a ValueError for unknown
    names.
    """
    wanted = [name.strip() for name in only.split(',')]
    if not all(wanted):
        raise ValueError(f'--only is {only!r}, where a name is empty; give names with single '
                         'commas, as hair,dress')
    try:
        kept = part_ids(wanted, class_names)
    except ValueError as error:
        raise ValueError(f'--only: {error}') from None
    table = np.zeros(256, np.uint8)
    table[kept] = kept
    return table[parsing]


def write_results(folder: Path, name: str, found: Parsing, cutouts: bool = False,
                  people: bool = False):
    """Writes the files of one photo.

    found: its visible people. people: see `Parsing.overlay`. Raises a ValueError instead of
    replacing a file that this program did not write.
    """
    colors = palette(256) if found.colors is None else found.colors
    write_png(folder / f'{name}_parts.png', palette_image(found.labels, colors))
    write_png(folder / f'{name}_people.png', palette_image(found.flat[1], palette(256)))
    write_jpeg(folder / f'{name}_overlay.jpg', found.overlay(people))
    write_record(folder, name, found, cutouts)


def write_record(folder: Path, name: str, found: Parsing, cutouts: bool = False):
    """Writes the cut-outs of a photo's people and its JSON file."""
    cutout_folder = folder / f'{name}_cutouts'
    remove_cutouts(cutout_folder)
    if cutouts:
        write_cutouts(cutout_folder, found)
    # The JSON file comes last: where it exists, the photo is done.
    write_result(folder / f'{name}.json', json.dumps(found.to_dict()))


def find_cutouts(folder: Path) -> list[Path]:
    """The files of a folder that have the name of a cut-out, such as person1_hair.png."""
    paths = folder.iterdir() if folder.is_dir() else ()
    found = [path for path in paths if CUTOUT.fullmatch(path.name)]
    return sorted(found, key=by_number)


def check_cutouts(folder: Path, inputs: set[str] = frozenset()):
    """Raises a ValueError if cut-outs in this folder could replace files of the user's. inputs: see
    `check_target`."""
    if os.path.lexists(folder) and not folder.is_dir():
        raise ValueError(f'{printable(folder)} exists and is not a folder; choose another --out')
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
    """The name of the file of a cut-out: of the person with this id, or of one of its parts, one of
    `file_parts`."""
    return f'person{person}_{part}.png' if part else f'person{person}.png'


def file_parts(class_names: list[str]) -> list[str]:
    """The names of the classes as they stand in names of files: each is another one, also where
    capitals are ignored."""
    parts = []
    for name in class_names:
        name = re.sub(r'[/ \0]', '-', name)
        while len(name.encode()) > MOST_BYTES:
            name = name[:-1]
        parts.append(name)
    return unique_names(parts)


def write_cutouts(folder: Path, found: Parsing):
    """Writes an RGBA picture of each person and of each of its parts."""
    names = file_parts(found.class_names)
    for person in found:
        write_png(folder / cutout_name(person.id), person.crop())
        for part in person.part_list:
            if part.id != UNKNOWN:
                path = folder / cutout_name(person.id, names[part.id])
                write_png(path, cutout(found.photo, part.mask, part.box))

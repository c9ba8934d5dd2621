"""One COCO file of the results of many photos: for tools that label, and for `--data COCO`.

An annotation per part of each person. Its category is the class, its field and its attribute
`person` the number of the person in the photo, its score the person's. What is known to be a
person's, but of no known part, has the category `person`. `util/datasets/coco_file.py` reads the
file. Needs no torch.
"""
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from util.files import MARK, check_target, printable, replacing, writing
from util.masks import box_of, coco_mask
from util.polygons import trace_polygons
from util.rle import encode_rle

NAME = 'annotations.json'
CHUNK = 2 ** 20                                   # bytes
PERSON = 'person'                                 # the category of unknown parts, and the field


class Result(NamedTuple):
    """A photo and the JSON file of its results."""
    photo: str | Path
    record: str | Path


class Counts(NamedTuple):
    """What a file holds."""
    photos: int
    people: int
    parts: int


def write_annotations(folder: str | Path, results: list[Result], class_names: list[str],
                      polygons: bool = False) -> Counts:
    """Writes annotations.json to the folder, photo after photo.

    class_names: of the results, the background first. polygons: outlines instead of run lengths. A
    file of that name is replaced if this program wrote it and nobody changed it. Raises a
    ValueError otherwise, and for a class called `person`.
    """
    path = Path(folder) / NAME
    check_unchanged(path)
    categories = make_categories(class_names)
    place = common_folder([result.photo for result in results])
    info = {'description': MARK, 'photos': relative(place, folder)}
    images = []
    people = 0
    number = 0
    with writing(path), replacing(path) as temporary, open(temporary, 'wb') as file:
        output = Signed(file)
        # Annotations first: they are written as they come. The images follow, a line for each.
        output.write(f'{{\n "info": {json.dumps(info)},\n "licenses": [],\n'
                     f' "categories": [{lines(categories)}],\n "annotations": [')
        for i, result in enumerate(results, 1):
            record = json.loads(Path(result.record).read_text())
            size = record['width'], record['height']
            image = {'id': i, 'file_name': relative(result.photo, place), 'width': size[0],
                     'height': size[1]}
            images.append(image)
            people += len(record['people'])
            for person in record['people']:
                for part in annotate(person, size, categories[-1]['id'], polygons):
                    output.write(',\n  ' if number else '\n  ')
                    number += 1
                    output.write(json.dumps({'id': number, 'image_id': i, **part}))
        output.write(f'\n ],\n "images": [{lines(images)}],\n')
        output.sign()
    return Counts(len(images), people, number)


# ---- corrected files are kept ------------------------------------------------------------------


class Signed:
    """Text that is written to a binary file, with its SHA-256 as the last entry of the JSON."""

    def __init__(self, file: BinaryIO):
        self.file = file
        self.digest = hashlib.sha256()

    def write(self, text: str):
        content = text.encode()
        self.digest.update(content)
        self.file.write(content)

    def sign(self):
        self.file.write(last_entry(self.digest))


def last_entry(digest) -> bytes:
    return f' "sha256": "{digest.hexdigest()}"\n}}\n'.encode()


def check_unchanged(path: str | Path):
    """Raises a ValueError if `write_annotations` would replace a file that it did not write, or one
    that was corrected since."""
    check_target(path)
    if not os.path.lexists(path):
        return
    digest = hashlib.sha256()
    left = os.path.getsize(path) - len(last_entry(digest))
    with open(path, 'rb') as file:
        while left > 0:
            content = file.read(min(left, CHUNK))
            digest.update(content)
            left -= len(content)
        unchanged = file.read() == last_entry(digest)
    if not unchanged:
        raise ValueError(f'{printable(path)} was changed since this program wrote it, so it is '
                         'kept; move it or choose another --out')


# ---- people as annotations ---------------------------------------------------------------------


def lines(records: list[dict]) -> str:
    """The records of a JSON list, one in a line."""
    return ','.join(f'\n  {json.dumps(record)}' for record in records) + '\n '


def make_categories(class_names: list[str]) -> list[dict]:
    """The classes without the background, and `person` at the end."""
    names = [(c, name) for c, name in enumerate(class_names) if c and name]
    if PERSON in [name.lower() for _, name in names]:
        raise ValueError('one of the classes is called person, which stands for people of unknown '
                         'parts in this form; use weights of parts')
    names.append((len(class_names), PERSON))
    return [{'id': c, 'name': name, 'supercategory': PERSON} for c, name in names]


def annotate(person: dict, size: tuple[int, int], unknown: int, polygons: bool) -> Iterator[dict]:
    """The annotations of one person of a photo's JSON file, without their ids.

    size: (width, height). unknown: id of the category of pixels of no known part.
    """
    more = {'iscrowd': 0, 'score': person['score'], PERSON: person['id'],
            'attributes': {PERSON: person['id']}}
    for part in person['parts']:
        outline = part['rle']
        if polygons:
            outline = as_polygons(coco_mask(outline, size), part['box'])
        yield {'category_id': part['id'], 'bbox': part['box'], 'area': part['area'],
               'segmentation': outline, **more}

    # What is left of the person's mask.
    left = person['area'] - sum(part['area'] for part in person['parts'])
    if left:
        mask = coco_mask(person['rle'], size)
        for part in person['parts']:
            mask &= ~coco_mask(part['rle'], size)
        box = box_of(mask)
        x, y, w, h = box
        outline = encode_rle(mask[y:y + h, x:x + w], x, y, mask.shape)
        if polygons:
            outline = as_polygons(mask, box)
        yield {'category_id': unknown, 'bbox': box, 'area': left, 'segmentation': outline, **more}


def as_polygons(mask: np.ndarray, box: list[int]) -> list[list[float]]:
    """Outlines of a mask (H, W) in its box, as [x, y, x, y, ..]."""
    x, y, w, h = box
    rings = trace_polygons(mask[y:y + h, x:x + w])
    return [(ring + [x, y]).ravel().tolist() for ring in rings]


# ---- places ------------------------------------------------------------------------------------


def common_folder(photos: list[str | Path]) -> str:
    """The folder in which, or in whose folders, all photos lie."""
    return os.path.commonpath([os.path.dirname(os.path.abspath(photo)) for photo in photos])


def relative(path: str | Path, folder: str | Path) -> str:
    """The path seen from a folder, with slashes on every system."""
    return Path(os.path.relpath(path, folder)).as_posix()

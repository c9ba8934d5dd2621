"""COCO's annotation files: photos, people and their outlines.

An official file says where people are: its category `person`, one annotation per person. A file of
parts, as `infer.py --format coco` writes it and tools for labeling edit it, has one annotation per
part. Its categories are the classes, and the field `person`, or CVAT's attribute of that name, is
the number of the person in the photo. There the category `person` stands for pixels of a person
whose part is unknown.
"""
import json
from collections import defaultdict
from typing import NamedTuple

import numpy as np

from util.datasets.cihp import CIHP
from util.datasets.mhp import MHP
from util.files import UNKNOWN, naming, printable, short

KEYPOINTS = '''nose left_eye right_eye left_ear right_ear left_shoulder right_shoulder left_elbow
    right_elbow left_wrist right_wrist left_hip right_hip left_knee right_knee left_ankle
    right_ankle'''.split()
PERSON = 'person'                                 # the category of people, and the field
MOST_CLASSES = UNKNOWN - 1


class Annotation(NamedTuple):
    """An annotation as it is kept in memory."""
    id: int
    outline: list | dict                          # polygons as float32 arrays, or run lengths
    keypoints: np.ndarray | None
    crowd: bool
    pseudo: bool                                  # the mask was not drawn by people
    label: int = UNKNOWN                          # the part's class id; 255: the part is unknown
    person: str = ''                              # number in the photo; '': a person of its own


class AnnotationFile(NamedTuple):
    """What an annotation file holds."""
    images: dict[int, dict]                       # {image id: its record}
    annotations: dict[int, list[Annotation]]      # {image id: of people and their parts}
    class_names: tuple[str, ...]                  # the background first
    photos: str                                   # the photos' folder, from the file's; '': unknown


# ---- reading -----------------------------------------------------------------------------------


def read_people(path: str) -> AnnotationFile:
    """An official annotation file: its people alone are kept.

    Raises a ValueError if the file is broken or not of this form.
    """
    with naming(path):
        coco = load(path)
        images = {image['id']: image for image in coco['images']}
        labels = {category['id']: UNKNOWN for category in coco['categories']
                  if category['name'] == PERSON}
        annotations = defaultdict(list)
        for record in coco['annotations']:
            if record['category_id'] in labels:
                annotations[record['image_id']].append(read_annotation(record))
    file = AnnotationFile(images, annotations, CIHP.class_names, '')
    check_images(file, path)
    return file


def read_parts(path: str) -> AnnotationFile:
    """An annotation file of parts.

    Its classes are its categories without `person`, see `order_classes`. A file of people alone has
    those of CIHP. Raises a ValueError if the file is broken or says too little.
    """
    with naming(path):
        coco = load(path)
        images = {image['id']: image for image in coco['images']}
        names = {c['id']: str(c['name']) for c in sorted(coco['categories'], key=lambda c: c['id'])}
        rows = [(record, names.get(record['category_id']), person_of(record))
                for record in coco['annotations']]
        photos = str((coco.get('info') or {}).get('photos') or '')
    parts = [name for name in names.values() if name.lower() != PERSON]
    class_names = order_classes(parts, path)
    labels = {name.lower(): label for label, name in enumerate(class_names)}
    labels[PERSON] = UNKNOWN

    annotations = defaultdict(list)
    for record, name, person in rows:
        check_part(record, name, person, path)
        with naming(path):
            annotation = read_annotation(record, labels[name.lower()], person)
            annotations[record['image_id']].append(annotation)
    for found in annotations.values():            # person 2 comes before person 10
        found.sort(key=lambda annotation: annotation.person.zfill(9))
    file = AnnotationFile(images, annotations, class_names, photos)
    check_images(file, path)
    return file


def load(path: str) -> dict:
    with open(path, encoding='utf-8') as file:
        return json.load(file)


def read_annotation(record: dict, label: int = UNKNOWN, person: str = '') -> Annotation:
    """A record of the annotation file."""
    outline = record['segmentation']
    if isinstance(outline, list):                 # arrays take a tenth of the memory of lists
        outline = [np.array(polygon, np.float32) for polygon in outline]
    points = None
    if any(record.get('keypoints') or ()):        # some tools write null
        points = np.array(record['keypoints'], np.float32).reshape(len(KEYPOINTS), 3)
    # CVAT exports every mask with iscrowd = 1; a crowd has no number.
    crowd = bool(record.get('iscrowd')) and not person
    pseudo = bool(record.get('pseudo_mask'))
    return Annotation(record['id'], outline, points, crowd, pseudo, label, person)


def person_of(record: dict) -> str:
    """The number of a record's person, in its field or in the attribute: '1' for 1, 1.0 and '1'; ''
    if there is none. ValueError if the two differ."""
    found = set()
    for source in (record, record.get('attributes') or {}):
        value = source.get(PERSON)
        text = '' if value is None else str(value).strip()
        if text:
            found.add(text.removesuffix('.0'))
    if len(found) > 1:
        raise ValueError(f'annotation {record["id"]} has two numbers of a person, '
                         f'{" and ".join(map(short, sorted(found)))}')
    return found.pop() if found else ''


# ---- what a file must say ----------------------------------------------------------------------


def check_images(file: AnnotationFile, path: str):
    """ValueError for an annotation of an image that the file does not list."""
    strange = [i for i in file.annotations if i not in file.images]
    if strange:
        raise ValueError(f'{printable(path)} has an annotation of image {short(strange[0])}, which '
                         'it does not list; get the file again')


def check_part(record: dict, name: str | None, person: str, path: str):
    """ValueError for an annotation of no category, of no person, or without an outline."""
    start = f'{printable(path)}: annotation {short(record.get("id"))}'
    if name is None:
        raise ValueError(f'{start} is of category {short(record["category_id"])}, which the file '
                         'does not list; get the file again')
    if name.lower() != PERSON and not person:
        raise ValueError(f'{start}, {short(name)}, says of no person that it is a part; write the '
                         "person's number in the photo to its field or attribute `person`")
    if not record.get('segmentation'):
        raise ValueError(f'{start}, {short(name)}, has no outline, perhaps a box alone; draw a '
                         'polygon or a mask, or remove it')


def order_classes(names: list[str], path: str) -> tuple[str, ...]:
    """The classes of a file with these categories: the background, and then the names as they are.

    The names of CIHP or MHP, in any case and order, have the order of that set: tools for labeling
    renumber them. No names at all are CIHP's. Raises a ValueError if two are equal.
    """
    lower = [name.lower() for name in names]
    for known in (CIHP, MHP):
        if sorted(lower) in ([], sorted(known.class_names[1:])):
            return known.class_names
    if len(set(lower)) < len(lower) or len(lower) > MOST_CLASSES:
        raise ValueError(f'{printable(path)} has {len(lower)} categories, {len(set(lower))} of '
                         f'different names; give up to {MOST_CLASSES}, each once')
    return 'background', *names


def pair_sides(class_names: tuple[str, ...]) -> tuple[tuple[int, int], ...]:
    """Ids of left and right classes: `left-arm` and `right-arm`, `Left leg` and `Right leg`."""
    ids = {name.lower(): i for i, name in enumerate(class_names)}
    pairs = []
    for name, i in ids.items():
        other = ids.get('right' + name.removeprefix('left'))
        if name.startswith('left') and other:
            pairs.append((i, other))
    return tuple(pairs)

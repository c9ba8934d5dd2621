"""Results of a photo as files: label maps, picture, JSON, cut-outs. Needs no torch."""
import glob
import json
import re

import numpy as np
from scipy import ndimage

from util.files import MARK, is_ours, write_png, write_result
from util.masks import box_of, encode_rle, flatten_people
from util.pictures import cutout, overlay, palette, palette_image


def keep_parts(parsing, class_names, only):
    """Sets all parts to 0 except the named ones; ValueError on unknown names."""
    wanted = [name.strip() for name in only.split(',')]
    unknown = [name for name in wanted if name not in class_names[1:]]
    if unknown:
        raise ValueError(f'--only: unknown part {unknown[0]!r}; these weights have {", ".join(class_names[1:])}')
    table = np.zeros(256, np.uint8)
    for name in wanted:
        table[class_names.index(name)] = class_names.index(name)
    return table[parsing]


def describe_people(found, class_names):
    """Parsing -> list of dictionaries for the JSON file, best person first; ids from 1."""
    people = []
    for n, (labels, score, center) in enumerate(zip(*found), 1):
        box, parts = box_of(labels), []
        x, y, w, h = box
        crop = labels[y:y + h, x:x + w]
        areas = np.bincount(crop.ravel()).tolist()
        for c, place in enumerate(ndimage.find_objects(crop), 1):
            if place:
                (top, bottom), (left, right) = ((side.start, side.stop) for side in place)
                parts.append({'id': c, 'name': class_names[c], 'area': areas[c],
                              'box': [x + left, y + top, right - left, bottom - top],
                              'rle': encode_rle(crop[place] == c, x + left, y + top, labels.shape)})
        people.append({'id': n, 'score': round(float(score), 4), 'center': [round(float(v), 1) for v in center],
                       'box': box, 'area': sum(areas[1:]), 'parts': parts})
    return people


def write_results(folder, name, path, photo, found, class_names, cutouts):
    """Writes the files of one photo; found: its Parsing."""
    parts, people = flatten_people(found.parsing)
    colors = palette(256)
    write_png(folder / f'{name}_parts.png', palette_image(parts, colors))
    write_png(folder / f'{name}_people.png', palette_image(people, colors))
    write_png(folder / f'{name}_overlay.png', overlay(np.asarray(photo), found.parsing, class_names))
    record = {'software': MARK, 'photo': str(path), 'width': photo.width, 'height': photo.height,
              'people': describe_people(found, class_names)}
    remove_cutouts(folder, name, class_names)
    if cutouts:
        write_cutouts(folder, name, photo, found, record['people'])
    write_result(folder / f'{name}.json', json.dumps(record))                # last: where it exists, the photo is done


def remove_cutouts(folder, name, class_names):
    """Removes the cut-outs of an earlier run of the same photo."""
    for path in folder.glob(f'{glob.escape(name)}_person*.png'):
        part = re.fullmatch(r'\d+(?:_(.+))?', path.stem[len(name) + len('_person'):])
        if part and (part[1] is None or part[1] in map(file_part, class_names)) and is_ours(path):
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

"""Folders of predictions, read and written in four formats. Needs no torch.

    instances  instances.json = {image: [{file, score}]} and instances/*.png, one full-size label map per person
    mhp        the MHP challenge: global_seg, global_tag, results.txt
    cihp       the CIHP challenge: global_parsing, instance_parsing, instance_segmentation or global_tag
    coco       a list of {image_id, score, parsing: file} and the files
"""
import json
import os
from collections import namedtuple
from pathlib import Path

import numpy as np
from PIL import Image

from util.files import (check_name, is_ours, printable, read_prediction, read_rows, short, write_file, write_pair,
                        write_png)
from util.masks import CroppedMap, as_label_maps, split_map

FORMS = 'instances', 'mhp', 'cihp', 'coco'
INDICES = dict(instances=('instances.json', 'instances'), coco=('parsing.json', 'instances'),
               mhp=('results.txt', 'global_seg'))        # which carry no mark, and the pictures that do

# parsing: label maps (H, W) uint8, 0..K, one per person; scores (N,). A folder may also hold semantic, a class map
# (H, W); parts and humans, (cropped maps, scores) each. lost: the number of listed people and parts without pixels.
Prediction = namedtuple('Prediction', 'parsing scores semantic parts humans lost', defaults=[None] * 3 + [0])


def as_pair(prediction):
    """(parsing, scores), or anything with these attributes -> the two."""
    return (prediction.parsing, prediction.scores) if hasattr(prediction, 'parsing') else prediction


class InstanceMaps:
    """instances: one full-size label map per person in instances/, `instances.json` = {image: [{file, score}]} and
    optional class maps semantic/ID.png. coco: a list of {image_id, score, parsing: file}. If every image_id is an id of
    the data set, they are ids; else they are positions in it, counted from 1, as in UniParser's lists."""
    unknown_metrics = ()

    def __init__(self, path, ids=()):
        files = [path] if path.is_file() else [path / 'instances.json', *sorted(path.glob('*.json'))]
        self.source = next((f for f in files if f.is_file()), files[0])
        places = {str(i): image for i, image in enumerate(ids, 1)}
        try:
            index = json.loads(self.source.read_text())
            self.rows, rows = {}, index
            if isinstance(index, dict):
                self.rows = {image: [] for image in index}
                rows = [dict(p, image_id=image, parsing=p['file']) for image in index for p in index[image]]
            if isinstance(index, dict) or {str(row['image_id']) for row in rows} <= set(ids):
                places = {}
            for row in rows:
                image = places.get(str(row['image_id']), str(row['image_id']))
                self.rows.setdefault(image, []).append((row['parsing'], float(row['score'])))
                if not isinstance(row['parsing'], str):
                    raise ValueError(f'the file of image {image} is not text')
        except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            reason = 'it is no text' if isinstance(error, UnicodeDecodeError) else short(repr(error))
            raise ValueError(f'{printable(self.source)} should be {{image: [{{"file": .., "score": ..}}]}} or a list '
                             f'of {{"image_id": .., "score": .., "parsing": file}} ({reason})') from None
        for file, _ in (person for people in self.rows.values() for person in people):
            check_name(file, f'{printable(self.source)} lists the file', 'list files of its folder', folders=True)
        first, folder = next((p[0][0] for p in self.rows.values() if p), ''), self.source.parent
        folders = [folder / 'instances', folder, *sorted(folder.iterdir())]
        self.folder = next((f for f in folders if os.path.isfile(f / first)), folders[0])
        self.semantic, self.ids = folder / 'semantic', set(self.rows)

    def read(self, image, shape, num_classes):
        people, path = self.rows.get(image, ()), self.semantic / f'{image}.png'
        maps = [read_prediction(self.folder / file, shape, num_classes) for file, _ in people]
        semantic = read_prediction(path, shape, num_classes) if path.exists() else None
        return Prediction(maps, [score for _, score in people], semantic)


class MHPSubmission:
    """mhp: the MHP challenge. global_seg/ID.png (classes), global_tag/ID.png (person ids), results.txt with
    a line `ID person score person score ...` per image."""
    unknown_metrics = ()

    def __init__(self, path, ids=()):
        self.folder, self.source, self.rows = path, path / 'results.txt', {}
        for image, people in read_rows(self.source, self.parse, '`ID person score person score ...`'):
            if image in self.rows:
                raise ValueError(f'{printable(self.source)} lists image {short(image)} twice; write one line per image')
            self.rows[image] = people
        self.ids = set(self.rows)

    @staticmethod
    def parse(words):
        pairs = zip(words[1::2], words[2::2], strict=True)
        return words[0], [(int(person), float(score), 1) for person, score in pairs]

    def read(self, image, shape, num_classes):
        path, rows = self.folder / 'global_seg' / f'{image}.png', self.rows.get(image)
        classes = read_prediction(path, shape, num_classes) if rows or path.exists() else None
        if not rows:
            return Prediction([], [], classes)
        # A person without pixels is dropped; one with pixels of class 0 alone is a detection.
        tags, n = read_prediction(self.folder / 'global_tag' / path.name, shape), num_classes + 1
        masks, scores, lost = split_map(tags, rows, n)
        maps = [m.relabel(m.labels * classes[m.box], n) for m in masks]
        return Prediction(maps, scores, classes, lost=lost)


class CIHPSubmission:
    """cihp: the CIHP challenge. global_parsing/ID.png (classes); instance_parsing/ID.png, whose value i is
    the part of line i of ID.txt, `class score`; and, for AP^p and AP^h, instance_segmentation or global_tag
    with a line per person, `score y1 x1 y2 x2`, or CIHP_PGN's `1, area`, where the area serves as score."""

    def __init__(self, path, ids=()):
        folders = [path / name for name in ('instance_segmentation', 'global_tag', 'instance_parsing')]
        *people, self.parts = (folder if folder.is_dir() else None for folder in folders)
        self.people, self.classes, self.source = people[0] or people[1], path / 'global_parsing', path
        self.ids = {file.stem for file in self.classes.glob('*.png')}
        if not self.ids:
            raise FileNotFoundError(f'{printable(self.classes)} holds no .png; this form has a class map per image')
        self.unknown_metrics = () if self.people else ('AP', 'PCP', 'APh', *(() if self.parts else ('APr',)))

    def read(self, image, shape, num_classes):
        if image not in self.ids:
            return Prediction([], [], parts=([], []) if self.parts else None)
        name, n, maps, humans, parts, lost = f'{image}.png', num_classes + 1, [], ([], []), None, 0
        classes = read_prediction(self.classes / name, shape, num_classes)
        if self.people:
            *humans, lost = self.split(self.people / name, shape, n, '`score y1 x1 y2 x2`',
                                       lambda words: (float(words[len(words) == 2]), 1))
            maps = [m.relabel(m.labels * classes[m.box], n) for m in humans[0]]
        if self.parts:
            labels = {str(label): label for label in range(1, n)}
            *parts, more = self.split(self.parts / name, shape, n, f'`class score`, class 1..{num_classes}',
                                      lambda words: (float(words[1]), labels[words[0]]))
            lost += more
        return Prediction(maps, humans[1], classes, parts, humans, lost)

    @staticmethod
    def split(path, shape, n, form, parse):
        rows = read_rows(path.with_suffix('.txt'), parse, form)
        return split_map(read_prediction(path, shape), [(i, *row) for i, row in enumerate(rows, 1)], n)


def open_predictions(path, form=None, ids=()):
    """Folder (or .json) of predictions -> object with `ids`, its images, and read(image, (H, W), num_classes)
    -> Prediction. ids: the images of the data set in their order. form: one of FORMS; default: guessed from the
    files."""
    path, signs = Path(path), ('instances.json', 'results.txt', 'global_parsing', '*.json')
    if not path.exists():
        raise FileNotFoundError(f'{printable(path)} is missing; --predictions is the folder that holds the predictions')
    if not form:
        found = [form for form, sign in zip(FORMS, signs) if path.is_file() or any(path.glob(sign))]
        if not found:
            raise ValueError(f'{printable(path)} holds no predictions: these are instances.json, results.txt with '
                             'global_seg and global_tag, global_parsing, or a COCO-style .json')
        form = found[0]
    results = [file for file in path.glob('*.json') if form == 'coco' and is_ours(file)]
    if results:
        raise ValueError(f'{printable(path)} holds results of photos such as {printable(results[0].name)}, not '
                         'predictions of a data set; write these with infer.py --data')
    return dict(mhp=MHPSubmission, cihp=CIHPSubmission).get(form, InstanceMaps)(path, ids)


class PredictionWriter:
    """Writes the predictions of one image after the other, and the index at the end, if no error occurred.

        with PredictionWriter('results', 'instances') as writer:        # or 'coco', 'mhp', 'cihp'
            writer.add('0001', (parsing, scores))                       # as for ParsingMetrics.add

    The challenge forms, mhp and cihp, have one class per pixel: where people overlap the higher score wins, and people
    without visible pixels are left out. Files have no palette: other evaluators read palette images wrongly.
    """

    def __init__(self, folder, form='instances'):
        if form not in FORMS:
            raise ValueError(f'there is no format {form!r} of predictions; choose one of {", ".join(FORMS)}')
        self.folder, self.form, self.index = Path(folder), form, {}
        index, pictures = INDICES.get(form, ('', ''))
        if index and (self.folder / index).exists() and not any(map(is_ours, (self.folder / pictures).glob('*.png'))):
            raise ValueError(f'{printable(self.folder / index)} exists and this program did not write it; choose '
                             'another --out')

    def __enter__(self):
        return self

    def __exit__(self, error, *_):
        if error is None:
            self.close()

    def save(self, name, labels, text=None):
        image = Image.fromarray(labels.astype(np.uint16 if labels.max() > 255 else np.uint8))
        write_png(self.folder / name, image) if text is None else write_pair(self.folder / name, image, text)

    def add(self, image, prediction):
        check_name(str(image), 'the predictions are of the image', 'give its id')
        parsing, scores = as_pair(prediction)
        parsing, scores = as_label_maps(parsing, np.shape(parsing)[1:]), [float(score) for score in scores]
        if self.form in ('instances', 'coco'):
            files = [f'{image}_{i:02d}.png' for i in range(len(scores))]
            for file, labels in zip(files, parsing):
                self.save(f'instances/{file}', labels)
            self.index[str(image)] = [dict(file=f, score=s) for f, s in zip(files, scores)]
            return
        classes, owner = np.zeros((2, *parsing.shape[1:]), np.uint16)          # owner: 1, 2 .. or 0
        for i in np.argsort(scores, kind='stable'):
            mask = parsing[i] > 0
            classes[mask], owner[mask] = parsing[i][mask], i + 1
        people = [(i, owner == i, scores[i - 1]) for i in np.unique(owner[owner > 0])]
        if self.form == 'mhp':
            self.save(f'global_seg/{image}.png', classes)
            self.save(f'global_tag/{image}.png', owner)
            self.index[str(image)] = [f'{i} {score!r}' for i, _, score in people]
            return
        humans, parts = [], []
        for _, mask, score in people:
            box = CroppedMap(mask.astype(np.uint8), 2)
            humans.append((mask, f'{score!r} {box.y0} {box.x0} {box.y1 - 1} {box.x1 - 1}\n'))
            parts += [(mask & (classes == c), f'{c} {score!r}\n') for c in np.unique(classes[mask])]
        self.save(f'global_parsing/{image}.png', classes)
        for name, rows in (('instance_segmentation', humans), ('instance_parsing', parts)):
            ids = sum((i * mask for i, (mask, _) in enumerate(rows, 1)), np.zeros(classes.shape, np.uint16))
            self.save(f'{name}/{image}.png', ids, ''.join(line for _, line in rows))

    def close(self):
        """Writes the index, without which a folder holds no predictions."""
        if self.form == 'instances':
            write_file(self.folder / 'instances.json', json.dumps(self.index, indent=0))
        elif self.form == 'coco':
            rows = [dict(image_id=image, category_id=1, score=p['score'], parsing=p['file'])
                    for image, people in self.index.items() for p in people]
            write_file(self.folder / 'parsing.json', json.dumps(rows, indent=0))
        elif self.form == 'mhp':
            lines = [' '.join([image, *people]) + '\n' for image, people in self.index.items()]
            write_file(self.folder / 'results.txt', ''.join(lines))



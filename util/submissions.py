"""Folders of predictions, read and written in four forms. Needs no torch.

    instances     instances.json = {image: [{file, score}]} and instances/*.png, one full-size label
                  map per person; infer.py adds classes.json, the names of their classes
    mhp           the MHP challenge: global_seg, global_tag, results.txt
    cihp          the CIHP challenge: global_parsing, instance_parsing, instance_segmentation or
                  global_tag
    coco-results  a list of {image_id, score, parsing: file} and the files
"""
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from util.datasets.base import GroundTruth, Photos
from util.files import (MARK, check_name, check_target, is_ours, naming, printable, read_rows,
                        read_score, short, write_file, write_pair, write_png, write_result,
                        writing)
from util.images import read_prediction
from util.labels import convert, find_set, name_of, names_of, same_names
from util.masks import CroppedMap, as_label_maps, split_map

SIGNS = {                                         # files that show the form of a folder
    'instances': 'instances.json',
    'mhp': 'results.txt',
    'cihp': 'global_parsing',
    'coco-results': '*.json',
}
FORMS = tuple(SIGNS)
SUBMITTED = {'MHP': 'mhp', 'CIHP': 'cihp'}        # the forms that the challenges take
INDICES = {                                       # files without a mark, and the pictures with one
    'instances': ('instances.json', 'instances'),
    'coco-results': ('parsing.json', 'instances'),
    'mhp': ('results.txt', 'global_seg'),
}
CLASSES = 'classes.json'                          # class names, beside instances.json
UNFINISHED = 'unfinished.txt'                     # is in a folder of cihp while it is written
Shape = tuple[int, int]                           # (H, W) in pixels


class Prediction(NamedTuple):
    """What a folder holds of an image. Maps are arrays (H, W) uint8 or cropped."""
    parsing: list                                 # a map of labels 0..K per person
    scores: list[float]                           # of the people
    semantic: np.ndarray | None = None            # (H, W), the classes of all people
    parts: tuple | None = None                    # (cropped maps, scores), one part in a map
    humans: tuple | None = None                   # (cropped maps, scores), one mask per person
    lost: int = 0                                 # listed people and parts that have no pixels


def as_pair(prediction) -> tuple:
    """(parsing, scores), or anything with these attributes -> the two."""
    if hasattr(prediction, 'parsing'):
        return prediction.parsing, prediction.scores
    return prediction


# ---- reading -----------------------------------------------------------------------------------


class InstanceMaps:
    """The forms instances and coco-results.

    instances: one full-size label map per person in instances/, `instances.json` = {image:
    [{file, score}]}, and optional class maps semantic/ID.png. coco-results: a list of {image_id,
    score, parsing: file}; if every image_id is a position in the data set, counted from 1 as in
    UniParser's lists, and not all are ids of it, they are positions, else they are ids.
    """
    unknown_metrics = ()

    def __init__(self, path: Path, ids: list[str] = ()):
        files = [path, path / 'instances.json', *sorted(path.glob('*.json'))]
        self.source = next((file for file in files if file.is_file()), files[1])
        self.rows = self.read_index(ids)          # {image: [(file, score)]}
        self.ids = set(self.rows)
        listed = [file for people in self.rows.values() for file, _ in people]
        for file in listed:
            check_name(file, f'{printable(self.source)} lists the file',
                       'list files of its folder', folders=True)

        # The files lie in instances/, beside the list, or in another folder there.
        folder = self.source.parent
        first = listed[0] if listed else ''
        folders = [folder / 'instances', folder, *sorted(folder.iterdir())]
        self.folder = next((f for f in folders if os.path.isfile(f / first)), folders[0])
        self.semantic = folder / 'semantic'
        self.class_names = read_class_names(folder / CLASSES)

    def read_index(self, ids: list[str]) -> dict[str, list[tuple[str, float]]]:
        try:
            index = json.loads(self.source.read_text())
            places = {}                           # {position: image}
            if isinstance(index, dict):
                rows = [(image, person['file'], person['score'])
                        for image in index for person in index[image]]
            else:
                rows = [(str(row['image_id']), row['parsing'], row['score']) for row in index]
                places = {str(i): image for i, image in enumerate(ids, 1)}
                images = {image for image, _, _ in rows}
                if images <= set(ids) or not images <= set(places):
                    places = {}                   # ids, perhaps with some of another data set
            people = {image: [] for image in index} if isinstance(index, dict) else {}
            for image, file, score in rows:
                image = places.get(image, image)
                if not isinstance(file, str):
                    raise ValueError(f'the file of image {image} is not text')
                people.setdefault(image, []).append((file, read_score(score)))
            return people
        except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError,
                RecursionError) as error:
            no_text = isinstance(error, UnicodeDecodeError)
            reason = 'it is no text' if no_text else short(repr(error))
            raise ValueError(f'{printable(self.source)} should be {{image: [{{"file": .., "score": '
                             f'..}}]}} or a list of {{"image_id": .., "score": .., "parsing": '
                             f'file}} ({reason})') from None

    def read(self, image: str, shape: Shape, num_classes: int) -> Prediction:
        people = self.rows.get(image, ())
        maps = [read_prediction(self.folder / file, shape, num_classes) for file, _ in people]
        path = self.semantic / f'{image}.png'
        semantic = read_prediction(path, shape, num_classes) if path.exists() else None
        return Prediction(maps, [score for _, score in people], semantic)


def read_class_names(path: Path) -> list[str]:
    """The names that PredictionWriter recorded; none where another program, or an earlier version
    of this one, wrote the predictions."""
    if not is_ours(path):
        return []
    with naming(path):
        return [str(name) for name in json.loads(path.read_text())['class_names']]


class MHPSubmission:
    """mhp: the MHP challenge.

    global_seg/ID.png (classes), global_tag/ID.png (person ids), and results.txt with a line
    `ID person score person score ...` per image.
    """
    unknown_metrics = ()
    class_names = ()                              # not recorded in this form

    def __init__(self, path: Path, ids: list[str] = ()):
        self.folder = path
        self.source = path / 'results.txt'
        self.rows = {}                            # {image: [(person, score, 1)]}
        form = '`ID person score person score ...`'
        for image, people in read_rows(self.source, self.parse, form):
            if image in self.rows:
                raise ValueError(f'{printable(self.source)} lists image {short(image)} twice; '
                                 'write one line per image')
            self.rows[image] = people
        self.ids = set(self.rows)

    @staticmethod
    def parse(words: list[str]) -> tuple[str, list[tuple[int, float, int]]]:
        pairs = zip(words[1::2], words[2::2], strict=True)
        return words[0], [(int(person), read_score(score), 1) for person, score in pairs]

    def read(self, image: str, shape: Shape, num_classes: int) -> Prediction:
        path = self.folder / 'global_seg' / f'{image}.png'
        rows = self.rows.get(image)
        classes = read_prediction(path, shape, num_classes) if rows or path.exists() else None
        if not rows:
            return Prediction([], [], classes)
        # A person without pixels is dropped; one with pixels of class 0 alone is a detection.
        tags = read_prediction(self.folder / 'global_tag' / path.name, shape)
        masks, scores, lost = split_map(tags, rows, num_classes + 1)
        maps = [m.relabel(m.labels * classes[m.box], num_classes + 1) for m in masks]
        return Prediction(maps, scores, classes, lost=lost)


class CIHPSubmission:
    """cihp: the CIHP challenge.

    global_parsing/ID.png (classes); instance_parsing/ID.png, whose value i is the part of line i
    of ID.txt, `class score`; and, for AP^p and AP^h, instance_segmentation or global_tag with a
    line per person, `score y1 x1 y2 x2`, or CIHP_PGN's `1, area`, where the area serves as score.
    """
    class_names = ()                              # not recorded in this form

    def __init__(self, path: Path, ids: list[str] = ()):
        def find(*names):
            return next((path / name for name in names if (path / name).is_dir()), None)

        if (path / UNFINISHED).exists():
            raise ValueError(f'{printable(path)} holds incomplete predictions: their command was '
                             'stopped or could not read all images; write them again')
        self.source = path
        self.classes = path / 'global_parsing'
        self.people = find('instance_segmentation', 'global_tag')
        self.parts = find('instance_parsing')
        self.ids = {file.stem for file in self.classes.glob('*.png')}
        if not self.ids:
            raise FileNotFoundError(f'{printable(self.classes)} holds no .png; this form has a '
                                    'class map per image')
        if self.people:
            self.unknown_metrics = ()
        else:
            self.unknown_metrics = 'AP', 'PCP', 'APh', *(() if self.parts else ('APr',))

    def read(self, image: str, shape: Shape, num_classes: int) -> Prediction:
        if image not in self.ids:
            return Prediction([], [], parts=([], []) if self.parts else None)
        name = f'{image}.png'
        n = num_classes + 1                       # with the background
        classes = read_prediction(self.classes / name, shape, num_classes)
        maps = []
        humans = [], []
        parts = None
        lost = 0
        if self.people:
            masks, scores, lost = self.split(self.people / name, shape, n, '`score y1 x1 y2 x2`',
                                             lambda words: (read_score(words[len(words) == 2]), 1))
            humans = masks, scores
            maps = [m.relabel(m.labels * classes[m.box], n) for m in masks]
        if self.parts:
            labels = {str(label): label for label in range(1, n)}
            form = f'`class score`, class 1..{num_classes}'
            masks, scores, missing = self.split(
                self.parts / name, shape, n, form,
                lambda words: (read_score(words[1]), labels[words[0]]))
            parts = masks, scores
            lost += missing
        return Prediction(maps, humans[1], classes, parts, humans, lost)

    @staticmethod
    def split(path: Path, shape: Shape, n: int, form: str, parse: Callable) -> tuple:
        """Cropped maps and scores of a map of ids and its list, and the number of ids without
        pixels.

        parse(words) -> (score, label) of a line.
        """
        lines = read_rows(path.with_suffix('.txt'), parse, form)
        rows = [(i, score, label) for i, (score, label) in enumerate(lines, 1)]
        return split_map(read_prediction(path, shape), rows, n)


READERS = {
    'instances': InstanceMaps,
    'mhp': MHPSubmission,
    'cihp': CIHPSubmission,
    'coco-results': InstanceMaps,
}


def open_predictions(path: str | Path, form: str | None = None, ids: list[str] = ()):
    """A folder of predictions, or a list in COCO's form (.json).

    Returns an object with `ids`, its images, `class_names`, empty where they are not recorded, and
    read(image, (H, W), num_classes) -> Prediction.
    ids: the images of the data set in their order. form: one of FORMS; None: guessed from the
    files.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f'{printable(path)} is missing; --predictions is the folder that '
                                'holds the predictions')
    if not form:
        found = [form for form, sign in SIGNS.items() if path.is_file() or any(path.glob(sign))]
        if not found:
            raise ValueError(f'{printable(path)} holds no predictions: these are instances.json, '
                             'results.txt with global_seg and global_tag, global_parsing, or a '
                             'COCO-style .json')
        form = found[0]
    if form == 'coco-results':
        results = [file for file in path.glob('*.json') if is_ours(file)]
        if results:
            raise ValueError(f'{printable(path)} holds results of photos such as '
                             f'{printable(results[0].name)}, not predictions of a data set; write '
                             'these with infer.py --data')
    return READERS[form](path, ids)


# ---- in another label set ----------------------------------------------------------------------


def check_recorded(predictions, class_names: Sequence[str], data: str):
    """ValueError where the recorded classes of predictions are not those of the data set."""
    recorded = predictions.class_names
    if recorded and not same_names(recorded, class_names):
        raise ValueError(f'{printable(predictions.source)} holds predictions in the classes of '
                         f'{name_of(recorded)}, {data} has those of {name_of(class_names)}; '
                         'compare both in one label set, with --labels')


def predicted_set(predictions, labels: str, given: str | None = None) -> str:
    """The label set of predictions that are to be compared in the set `labels`: the recorded one,
    or else the given one, or else `labels`. ValueError where the given set is not the recorded one,
    or where no table leads from that to `labels`."""
    recorded = predictions.class_names
    source = printable(predictions.source)
    if not recorded:
        return given or labels
    if given and not same_names(recorded, names_of(given)):
        raise ValueError(f'{source} holds predictions in the classes of {name_of(recorded)}, not '
                         f'of {given}; leave out --predicted-labels')
    if same_names(recorded, names_of(labels)):
        return labels
    try:
        return find_set(recorded, labels)
    except ValueError as error:
        raise ValueError(f'{source}: {error}') from None


def convert_any(label_map: np.ndarray | CroppedMap, source: str, target: str):
    """`convert` of an array (H, W) or a CroppedMap."""
    if isinstance(label_map, CroppedMap):
        labels = convert(label_map.labels, source, target)
        return label_map.relabel(labels, len(names_of(target)))
    return convert(np.asarray(label_map, np.uint8), source, target)


class ConvertedSet:
    """A data set whose ground truth is in the classes of another label set, for `evaluate.Job`."""

    def __init__(self, dataset: Photos, labels: str):
        self.dataset = dataset
        self.source = find_set(dataset.class_names, labels)
        self.target = labels
        self.ids = dataset.ids
        self.class_names = names_of(labels)
        self.read_parsing = dataset.read_parsing

    def __len__(self) -> int:
        return len(self.ids)

    def truth(self, i: int, parsing: np.ndarray, ignore: np.ndarray) -> GroundTruth:
        """Parts and humans are those of the converted people: some have merged, some are gone."""
        truth = self.dataset.truth(i, parsing, ignore)
        maps = [convert_any(m, self.source, self.target) for m in truth.parsing]
        semantic = truth.semantic
        if semantic is not None:
            semantic = convert_any(semantic, self.source, self.target)
        return truth._replace(parsing=as_label_maps(maps, ignore.shape), semantic=semantic,
                              parts=None, humans=None)


class ConvertedPredictions:
    """Predictions in the label set `labels`, read in the classes of `target`.

    predictions: see `open_predictions`. People without pixels in the target are left out.
    """

    def __init__(self, predictions, labels: str, target: str):
        self.predictions = predictions
        self.labels = labels
        self.target = target
        self.ids = predictions.ids
        self.source = predictions.source
        self.unknown_metrics = predictions.unknown_metrics
        if labels != target and 'AP' in self.unknown_metrics:  # parts without people cannot merge
            self.unknown_metrics = tuple({*self.unknown_metrics, 'APr'})

    def read(self, image: str, shape: Shape, num_classes: int) -> Prediction:
        try:
            found = self.predictions.read(image, shape, len(names_of(self.labels)) - 1)
        except ValueError as error:
            raise ValueError(f'{error} (read as labels of {self.labels}; --predicted-labels names '
                             'another set)') from None
        if self.labels == self.target:
            return found
        semantic = found.semantic
        if semantic is not None:
            semantic = convert_any(semantic, self.labels, self.target)
        maps = []
        scores = []
        for label_map, score in zip(found.parsing, found.scores):
            converted = convert_any(label_map, self.labels, self.target)
            visible = converted.area if isinstance(converted, CroppedMap) else converted.any()
            if visible:
                maps.append(converted)
                scores.append(score)
        return Prediction(maps, scores, semantic, lost=found.lost)


# ---- writing -----------------------------------------------------------------------------------


def mark_unfinished(folder: str | Path):
    """Before the first picture of the form cihp, which has no index: what is written in part, or
    over the pictures of an earlier run, is not taken for complete."""
    write_result(Path(folder, UNFINISHED), f'Incomplete predictions of {MARK}\n')


def mark_finished(folder: str | Path):
    """Behind the last picture."""
    Path(folder, UNFINISHED).unlink(missing_ok=True)


class PredictionWriter:
    """Writes the predictions of one image after the other and, without an error, an index at the
    end.

        with PredictionWriter('results', 'instances') as writer:  # or another one of FORMS
            writer.add('0001', (parsing, scores))                 # as for ParsingMetrics.add

    The challenge forms, mhp and cihp, have one class per pixel: where people overlap the higher
    score wins, and people without visible pixels are left out. Files have no palette: other
    evaluators read palette images wrongly. The form instances records the class names of
    predictions that have some.
    """

    def __init__(self, folder: str | Path, form: str = 'instances'):
        if form not in FORMS:
            raise ValueError(f'there is no format {form!r} of predictions; choose one of '
                             f'{", ".join(FORMS)}')
        self.folder = Path(folder)
        self.form = form
        self.index = {}                           # {image: its entry in the index}
        self.class_names = []                     # of the predictions, where they have some
        self.begun = False
        if form == 'instances':
            check_target(self.folder / CLASSES)
        if form in INDICES:
            index, pictures = INDICES[form]
            ours = any(map(is_ours, (self.folder / pictures).glob('*.png')))
            if (self.folder / index).exists() and not ours:
                raise ValueError(f'{printable(self.folder / index)} exists and this program did '
                                 'not write it; choose another --out')

    def __enter__(self):
        return self

    def __exit__(self, error, *_):
        if error is None:
            self.close()

    def add(self, image: str, prediction):
        """prediction: (parsing uint8 (N, H, W), scores (N,)), or an object with the two."""
        check_name(str(image), 'the predictions are of the image', 'give its id')
        self.begin(image)
        self.class_names = list(getattr(prediction, 'class_names', ()))
        parsing, scores = as_pair(prediction)
        parsing = as_label_maps(parsing, np.shape(parsing)[1:])
        scores = [float(score) for score in scores]
        if self.form in ('instances', 'coco-results'):
            self.add_instances(image, parsing, scores)
            return
        # One class and one person per pixel: the best person is pasted last.
        classes = np.zeros(parsing.shape[1:], np.uint16)
        owner = np.zeros(parsing.shape[1:], np.uint16)        # 1, 2 .. or 0
        for i in np.argsort(scores, kind='stable'):
            mask = parsing[i] > 0
            classes[mask] = parsing[i][mask]
            owner[mask] = i + 1
        people = [(i, owner == i, scores[i - 1]) for i in np.unique(owner[owner > 0])]
        if self.form == 'mhp':
            self.add_mhp(image, classes, owner, people)
        else:
            self.add_cihp(image, classes, people)

    def begin(self, image: str):
        """Before the first picture: no index of an earlier run lists pictures of this one."""
        if self.begun:
            return
        if self.form == 'cihp':
            check_target(self.folder / 'global_parsing' / f'{image}.png')
            mark_unfinished(self.folder)
        else:
            for index, pictures in INDICES.values():
                if pictures == INDICES[self.form][1]:
                    with writing(self.folder / index):
                        (self.folder / index).unlink(missing_ok=True)
            if is_ours(self.folder / CLASSES):
                (self.folder / CLASSES).unlink()
        self.begun = True

    def add_instances(self, image: str, parsing: np.ndarray, scores: list[float]):
        files = [f'{image}_{i:02d}.png' for i in range(len(scores))]
        for file, labels in zip(files, parsing):
            self.save(f'instances/{file}', labels)
        self.index[str(image)] = [dict(file=f, score=s) for f, s in zip(files, scores)]

    def add_mhp(self, image: str, classes: np.ndarray, owner: np.ndarray, people: list):
        self.save(f'global_seg/{image}.png', classes)
        self.save(f'global_tag/{image}.png', owner)
        self.index[str(image)] = [f'{i} {score!r}' for i, _, score in people]

    def add_cihp(self, image: str, classes: np.ndarray, people: list):
        humans = []                               # (mask, line of the list)
        parts = []
        for _, mask, score in people:
            box = CroppedMap(mask.astype(np.uint8), 2)
            humans.append((mask, f'{score!r} {box.y0} {box.x0} {box.y1 - 1} {box.x1 - 1}\n'))
            for c in np.unique(classes[mask]):
                parts.append((mask & (classes == c), f'{c} {score!r}\n'))
        self.save(f'global_parsing/{image}.png', classes)
        for name, rows in (('instance_segmentation', humans), ('instance_parsing', parts)):
            ids = np.zeros(classes.shape, np.uint16)
            for i, (mask, _) in enumerate(rows, 1):
                ids[mask] = i                     # masks of a list do not overlap
            self.save(f'{name}/{image}.png', ids, ''.join(line for _, line in rows))

    def save(self, name: str, labels: np.ndarray, text: str | None = None):
        """Writes a label map, and a list beside it."""
        image = Image.fromarray(labels.astype(np.uint16 if labels.max() > 255 else np.uint8))
        if text is None:
            write_png(self.folder / name, image)
        else:
            write_pair(self.folder / name, image, text)

    def close(self):
        """Writes the index, without which a folder holds no predictions. That of cihp has none: the
        sign of incomplete ones goes."""
        if self.form == 'instances':
            if self.class_names:
                record = dict(software=MARK, class_names=self.class_names)
                write_result(self.folder / CLASSES, json.dumps(record, indent=0))
            write_file(self.folder / 'instances.json', json.dumps(self.index, indent=0))
        elif self.form == 'coco-results':
            rows = [dict(image_id=image, category_id=1, score=p['score'], parsing=p['file'])
                    for image, people in self.index.items() for p in people]
            write_file(self.folder / 'parsing.json', json.dumps(rows, indent=0))
        elif self.form == 'mhp':
            lines = [' '.join([image, *people]) + '\n' for image, people in self.index.items()]
            write_file(self.folder / 'results.txt', ''.join(lines))
        else:
            mark_finished(self.folder)

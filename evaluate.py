"""The numbers of multi-human parsing: AP^p, PCP, mIoU and, for CIHP, AP^r and AP^h. Needs no torch.

    python evaluate.py --data MHP --root data/LV-MHP-v2 --split val --predictions results/
    python evaluate.py --data CIHP --root DIR --labels atr --predictions results/     # other labels

    metrics = parsing_metrics(predictions, ground_truths, num_classes)  # arrays in memory
    metrics['APvol'], metrics['PCP50'], metrics['mIoU']

The rules are those of the official evaluators, to the last bit: MHPv2's eval_mhp.py and voc_eval.py
(AP^p, PCP), CIHP_PGN's test_inst_part_ap.py (AP^r), QANet's computeAPh (AP^h). n = num_classes + 1,
with background.

1. A detection is a person: a label map of the image's size and a score. The detections of all
   images are ranked together; equal scores keep the order of images, then of the file (the official
   sort is not stable).
2. The IoU of two people is the mean over the classes 0..n-1 that either has, *background
   included*: an empty detection is worth something. Ground-truth pixels labeled >= n (255) are in
   no class; empty people are skipped.
3. A detection can match only the first person of the largest IoU. It is a true positive at t
   if that IoU > t and no better ranked one took that person at t. It gets no second choice.
4. AP^p at t: area under the precision envelope. PCP at t: mean over all people of the share of
   their parts with IoU > t, 0 for people not found at t. "vol" is the mean over t = 0.1, 0.2 ..
   0.9.
5. mIoU: one confusion matrix of all listed images, classes in neither map left out. The class map
   of a prediction is the folder's own if it has one, else its people pasted by ascending score.
6. AP^r: a part is one class of one person; its IoU is the best over parts of its class. A part may
   be found twice, as in the official code, so AP^r can pass 1. Classes in neither count 0, classes
   only predicted are left out.
7. AP^h: as 6, for whole people, t = 0.50, 0.55 .. 0.95.

Pixels under `ignore` are left out, and so is a detection with more than half of its pixels there.
The official evaluators of MHP and CIHP have no such pixels, so these two are scored without
`ignore`.
"""
import math
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from util.charts import check_chart, write_chart
from util.cli import Between, CommandParser, Ending, add_shared, filled, start
from util.datasets import GroundTruth, Photos, open_dataset
from util.files import short, user_errors, write_file, write_json
from util.labels import SOURCES, TARGETS
from util.masks import CroppedMap, as_label_maps
from util.reports import per_image, plot, table
from util.submissions import (FORMS, ConvertedPredictions, ConvertedSet, Prediction, as_pair,
                              check_recorded, open_predictions, predicted_set)

THRESHOLDS = [i / 10 for i in range(1, 10)]       # not np.arange: its third is 0.30000000000000004
HUMAN_THRESHOLDS = [i / 100 for i in range(50, 100, 5)]

# ------------------------------------------------------------------------------------------------
# One image: integer statistics of every pair of label maps


class Joint(NamedTuple):
    """What IoUs need of the confusion matrices of M maps of the ground truth with N predicted ones.

    int64, in pixels; n classes with the background.
    """
    diag: np.ndarray                              # (M, N, n) of equal label
    row: np.ndarray                               # (M, 1, n) of each label in the ground truth
    col: np.ndarray                               # (M, N, n) of each label in the prediction
    shared: np.ndarray                            # (M, N) labeled in both
    gts: list[CroppedMap]
    preds: list[CroppedMap]


def shared_pixels(g: CroppedMap, p: CroppedMap, n: int) -> tuple:
    """What two cropped maps share.

    Returns the pixels of equal label (n,), the labels of p where g's is >= n (n,), and the number
    of pixels labeled in both.
    """
    # Where the two boxes overlap.
    y0 = max(g.y0, p.y0)
    y1 = min(g.y1, p.y1)
    x0 = max(g.x0, p.x0)
    x1 = min(g.x1, p.x1)
    if y0 >= y1 or x0 >= x1:
        return 0, 0, 0
    in_g = slice(y0 - g.y0, y1 - g.y0), slice(x0 - g.x0, x1 - g.x0)
    in_p = slice(y0 - p.y0, y1 - p.y0), slice(x0 - p.x0, x1 - p.x0)
    truth = g.labels[in_g]
    found = p.labels[in_p]
    both = g.mask[in_g] & p.mask[in_p]
    same = np.bincount(found[(truth == found) & both], minlength=n)
    hidden = np.bincount(found[(truth >= n) & both], minlength=n) if g.unknown else 0
    return same, hidden, np.count_nonzero(both)


def compare(gts: list[CroppedMap], preds: list[CroppedMap], n: int, num_pixels: int,
            share: Callable = shared_pixels, merge: bool = False) -> Joint:
    """The Joint of M and N cropped maps of an image of num_pixels.

    The background follows by subtraction, so only labeled pixels are read. merge: the maps of a
    list do not overlap and form one class map.
    """
    diag = np.zeros((len(gts), len(preds), n), np.int64)
    hidden = np.zeros((len(gts), len(preds), n), np.int64)    # predicted where the truth is unknown
    shared = np.zeros((len(gts), len(preds)), np.int64)
    for i, g in enumerate(gts):
        for j, p in enumerate(preds):
            diag[i, j], hidden[i, j], shared[i, j] = share(g, p, n)
    row = np.array([g.counts for g in gts], np.int64).reshape(-1, 1, n)
    col = np.array([p.counts for p in preds], np.int64).reshape(1, -1, n)
    unknown = np.array([g.unknown for g in gts], np.int64).reshape(-1, 1)
    if merge:
        diag = diag.sum((0, 1), keepdims=True)
        hidden = hidden.sum((0, 1), keepdims=True)
        row = row.sum((0, 1), keepdims=True)
        col = col.sum((0, 1), keepdims=True)
        shared = shared.sum(keepdims=True)
        unknown = unknown.sum(keepdims=True)
    col = col - hidden
    valid = num_pixels - unknown
    row[..., 0] = valid - row.sum(-1)
    col[..., 0] = valid - col.sum(-1)
    diag[..., 0] = row[..., 0] + col[..., 0] - valid + shared - hidden.sum(-1)
    return Joint(diag, row, col, shared, gts, preds)


def divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a / b in float64, nan for 0 / 0."""
    with np.errstate(invalid='ignore', divide='ignore'):
        return np.true_divide(a, b)


def nan_mean(x: np.ndarray, axis: int = -1) -> np.ndarray:
    """np.nanmean, to the bit: the whole row is summed, with 0 for nan.

    The sum of the present classes alone rounds differently in one row of seven, and
    0.7000000000000001 > 0.7.
    """
    present = ~np.isnan(x)
    return divide(np.where(present, x, 0.).sum(axis), present.sum(axis))


def class_iou(joint: Joint) -> np.ndarray:
    """IoU of each class (M, N, n); nan for a class in neither map."""
    return divide(joint.diag, joint.row + joint.col - joint.diag)


def match_people(joint: Joint) -> dict[str, np.ndarray]:
    """Matches detections with people (rules 2 and 3).

    person     of each detection the first person of the largest IoU (N,), -1 for none
    iou        that IoU (N,); -inf for none
    hits       the number of parts of that person with IoU > t (N, 9)
    num_parts  of each person (M,)
    """
    num_detections = len(joint.preds)
    num_parts = np.count_nonzero(joint.row[:, 0, 1:], axis=1)
    if not joint.gts:
        return dict(person=np.full(num_detections, -1), iou=np.full(num_detections, -np.inf),
                    hits=np.zeros((num_detections, len(THRESHOLDS)), int), num_parts=num_parts)
    part_iou = class_iou(joint)
    iou = nan_mean(part_iou)
    iou = np.where(np.isnan(iou), -np.inf, iou)
    person = iou.argmax(0)
    each = np.arange(num_detections)
    hits = (part_iou[person, each, 1:, None] > THRESHOLDS).sum(1)
    return dict(person=person, iou=iou[person, each], hits=hits, num_parts=num_parts)


def match_parts(joint: Joint, scores: np.ndarray, n: int) -> dict[str, np.ndarray]:
    """Matches parts, that is, classes in predicted maps, with parts of the ground truth (rule 6).

    part_class, part_scores, part_iou  class, score and best IoU of each predicted part (P,)
    part_counts                        the number of parts of each class in the ground truth (n,)
    """
    person, label = np.nonzero(np.array([p.counts for p in joint.preds]).reshape(-1, n))
    best = np.nan_to_num(class_iou(joint)).max(0, initial=0.)                    # (N, n)
    counts = np.array([g.counts > 0 for g in joint.gts]).reshape(-1, n).sum(0)
    return dict(part_class=label, part_scores=scores[person], part_iou=best[person, label],
                part_counts=counts)


def match_humans(joint: Joint, scores: np.ndarray) -> dict[str, np.ndarray]:
    """Matches masks of people (rule 7).

    human_scores, human_iou  score and best IoU of each predicted mask (N,)
    num_humans               the number of masks in the ground truth
    """
    true_area = np.array([g.area for g in joint.gts], int)
    area = np.array([p.area for p in joint.preds], int)
    union = true_area[:, None] + area - joint.shared
    iou = np.nan_to_num(divide(joint.shared, union)).max(0, initial=0.)
    return dict(human_scores=scores, human_iou=iou, num_humans=len(true_area))


def uncovered(maps: list[CroppedMap], shape: tuple[int, int], n: int) -> list[CroppedMap]:
    """The maps without the pixels that later ones cover, as if pasted one over the other."""
    covered = np.zeros(shape, bool)
    seen = []
    for m in reversed(maps):
        above = covered[m.box]                    # a view
        if (above & m.mask).any():
            m = m.relabel(np.where(above, np.uint8(0), m.labels), n)
        above |= m.mask
        seen.append(m)
    return seen


def crop_maps(maps: list, ignore: np.ndarray | None, n: int) -> list[CroppedMap]:
    """Label maps, cropped or not -> cropped maps with the pixels under `ignore` set to 0."""
    maps = [m if isinstance(m, CroppedMap) else CroppedMap(m, n) for m in maps]
    if ignore is None:
        return maps
    return [m.relabel(np.where(ignore[m.box], np.uint8(0), m.labels), n) for m in maps]


def image_statistics(prediction: Prediction, gt: GroundTruth, n: int) -> dict[str, np.ndarray]:
    """The few hundred numbers of an image that the metrics need; n classes with the background."""
    shape = gt.parsing.shape[1:]
    share = cache(shared_pixels)                  # people, parts and pixels compare the same maps
    ignore = gt.ignore if gt.ignore is not None and np.any(gt.ignore) else None
    num_pixels = math.prod(shape) - (0 if ignore is None else np.count_nonzero(ignore))

    # People with pixels, and detections with at least half of their pixels outside `ignore`.
    gts = [g for g in crop_maps(gt.parsing, ignore, n) if g.area]
    full = crop_maps(prediction.parsing, None, n)
    if any(p.unknown for p in full):
        strange = max(p.labels.max() for p in full)
        raise ValueError(f'the label {strange} is not one of 0..{n - 1}')
    preds = crop_maps(full, ignore, n)
    keep = [i for i, p in enumerate(preds) if 2 * p.area >= full[i].area]
    preds = [preds[i] for i in keep]
    scores = prediction.scores[keep]
    people = compare(gts, preds, n, num_pixels, share)

    def compare_others(true_maps, predicted):
        """Joint and scores of parts or humans: those of the people, unless files hold others."""
        if true_maps is None and predicted is None:
            return people, scores
        maps, own_scores = preds, scores
        if predicted is not None:
            maps = crop_maps(predicted[0], ignore, n)
            own_scores = np.asarray(predicted[1], float)
        true_maps = gts if true_maps is None else crop_maps(true_maps, ignore, n)
        return compare(true_maps, maps, n, num_pixels, share), own_scores

    # Class maps (rule 5).
    if gt.semantic is None:
        truth = uncovered(gts, shape, n)
    else:
        truth = crop_maps([gt.semantic], ignore, n)
    if prediction.semantic is None:
        ascending = np.argsort(scores, kind='stable')
        classes = uncovered([preds[i] for i in ascending], shape, n)
    else:
        classes = crop_maps([prediction.semantic], ignore, n)
    pixels = compare(truth, classes, n, num_pixels, share, merge=True)

    parts, part_scores = compare_others(gt.parts, prediction.parts)
    humans, human_scores = compare_others(gt.humans, prediction.humans)
    return dict(match_people(people), **match_parts(parts, part_scores, n),
                **match_humans(humans, human_scores), scores=scores, lost=prediction.lost,
                pixels=np.concatenate([pixels.diag[0], pixels.row[0], pixels.col[0]]))


# ------------------------------------------------------------------------------------------------
# All images: rank, match, average


def average_precision(true_positive: np.ndarray, count: int) -> float:
    """AP over all points (voc_eval.py) of detections in rank order, bool (N,).

    count: the number of things to find; nan if it is 0.
    """
    if count == 0:
        return math.nan
    found = np.cumsum(true_positive)
    recall = np.concatenate(([0.], found / count, [1.]))
    precision = np.concatenate(([0.], found / np.arange(1, len(found) + 1), [0.]))
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    step = np.flatnonzero(recall[1:] != recall[:-1])
    return float(np.sum((recall[step + 1] - recall[step]) * precision[step + 1]))


def true_positives(iou: np.ndarray, person: np.ndarray, t: float) -> np.ndarray:
    """The first detection of each person with IoU > t, bool (N,). iou, person: in rank order."""
    candidates = np.flatnonzero(iou > t)
    _, first = np.unique(person[candidates], return_index=True)
    found = np.zeros(len(iou), bool)
    found[candidates[first]] = True
    return found


class Ranking(NamedTuple):
    """All detections of all images, best first; people are numbered over all images."""
    order: np.ndarray                             # (N,) their places before ranking
    iou: np.ndarray                               # (N,)
    person: np.ndarray                            # (N,)
    hits: np.ndarray                              # (N, 9)
    num_parts: np.ndarray                         # (M,) of each person


class ParsingMetrics:
    """Takes one image at a time and keeps a few kB per image. Objects can be pickled and merged.

        metrics = ParsingMetrics(num_classes=58)                  # parts, without background
        metrics.add(index, (parsing, scores), ground_truth)
        metrics.merge(other)
        metrics.result()['APvol']

    `index` is the place of the image in the data set. It orders equal scores, so any split over
    processes gives the same bits, and an image added twice (by a padded distributed sampler) counts
    once. People under `score_threshold` are left out; the official MHPv2 evaluator has none,
    Parsing R-CNN's is 0.001.
    """

    thresholds = THRESHOLDS
    human_thresholds = HUMAN_THRESHOLDS

    def __init__(self, num_classes: int, score_threshold: float = -math.inf):
        self.num_classes = num_classes
        self.score_threshold = score_threshold
        self.records = {}                         # {index: statistics of the image}

    def add(self, index: int, prediction, ground_truth):
        """Adds an image.

        prediction: (parsing uint8 (N, H, W), scores (N,)), or an object with these attributes.
        ground_truth: uint8 (M, H, W), 0 not this person, 1..num_classes part, above (255) part
        unknown; or a tuple of that and `ignore`, bool (H, W). Raises a ValueError for impossible
        sizes, labels or scores.
        """
        try:
            self.records[index] = self.statistics(prediction, ground_truth)
        except ValueError as error:
            raise ValueError(f'image {index}: {error}') from None

    def statistics(self, prediction, ground_truth) -> dict[str, np.ndarray]:
        """`image_statistics` of what `add` takes."""
        known = isinstance(ground_truth, tuple)
        gt = GroundTruth(*ground_truth) if known else GroundTruth(ground_truth)
        gt = gt._replace(parsing=as_label_maps(gt.parsing))
        if not isinstance(prediction, Prediction):
            parsing, scores = as_pair(prediction)
            prediction = Prediction(as_label_maps(parsing, gt.parsing.shape[1:]), scores)
        scores = np.asarray(prediction.scores, float).reshape(-1)
        if len(scores) != len(prediction.parsing) or not np.isfinite(scores).all():
            raise ValueError(f'{len(prediction.parsing)} predicted people need as many finite '
                             'scores')
        keep = np.flatnonzero(scores >= self.score_threshold)
        parsing = [prediction.parsing[i] for i in keep]
        prediction = prediction._replace(parsing=parsing, scores=scores[keep])
        return image_statistics(prediction, gt, self.num_classes + 1)

    def merge(self, other: 'ParsingMetrics'):
        """Adds the images of another ParsingMetrics."""
        self.records.update(other.records)

    def column(self, name: str) -> np.ndarray:
        """One statistic of all images, concatenated in the order of their index."""
        return np.concatenate([self.records[index][name] for index in sorted(self.records)])

    def total(self, name: str):
        """The sum of one statistic over all images."""
        return sum(record[name] for record in self.records.values())

    def ranking(self) -> Ranking:
        records = [self.records[index] for index in sorted(self.records)]
        num_people = [len(record['num_parts']) for record in records]
        num_detections = [len(record['person']) for record in records]
        first_person = np.cumsum([0] + num_people)[:-1]       # of each image
        person = self.column('person') + np.repeat(first_person, num_detections)
        order = np.argsort(-self.column('scores'), kind='stable')
        return Ranking(order, self.column('iou')[order], person[order],
                       self.column('hits')[order], self.column('num_parts'))

    def found_at(self, t: float) -> np.ndarray:
        """The detections that are true positives at t, bool (N,), in rank order."""
        ranking = self.ranking()
        return true_positives(ranking.iou, ranking.person, t)

    def result(self) -> dict:
        """Floats and lists of floats in 0..1 (AP^r can pass 1), by threshold or by class.

        Without detections they are 0, without ground truth nan.
        """
        if not self.records:
            raise ValueError('there is no image to evaluate')
        out = dict(images=len(self.records), people=len(self.column('num_parts')),
                   detections=len(self.column('scores')), **self.people_metrics(),
                   **self.pixel_metrics(), **self.part_metrics(), APh=self.human_ap())
        for name, at_50 in (('AP', 4), ('PCP', 4), ('APr', 4), ('APh', 0)):
            out[name + '50'] = out[name][at_50]
            out[name + 'vol'] = float(np.mean(out[name]))
        return out

    def people_metrics(self) -> dict:
        """AP^p and PCP at each threshold (rule 4)."""
        ranking = self.ranking()
        num_people = len(ranking.num_parts)
        ap = []
        pcp = []
        for k, t in enumerate(THRESHOLDS):
            found = true_positives(ranking.iou, ranking.person, t)
            # Matches in rank order, then zeros: the mean of another order rounds differently.
            share = np.zeros(num_people)
            num_parts = ranking.num_parts[ranking.person[found]]
            share[:found.sum()] = ranking.hits[found, k] / np.maximum(num_parts, 1)
            ap.append(average_precision(found, num_people))
            pcp.append(float(share.mean()) if num_people else math.nan)
        return dict(AP=ap, PCP=pcp)

    def pixel_metrics(self) -> dict:
        """mIoU and accuracies (rule 5)."""
        diag, row, col = self.total('pixels')
        iou = divide(diag, row + col - diag)
        accuracy = divide(diag, row)
        return dict(mIoU=float(nan_mean(iou)), mean_accuracy=float(nan_mean(accuracy)),
                    IoU=iou.tolist(), accuracy=accuracy.tolist(),
                    pixel_accuracy=float(divide(diag.sum(), row.sum())))

    def part_metrics(self) -> dict:
        """AP^r at each threshold, and by class (rule 6)."""
        label = self.column('part_class')
        scores = self.column('part_scores')
        iou = self.column('part_iou')
        counts = self.total('part_counts')
        table = np.zeros((self.num_classes, len(THRESHOLDS)))
        for c in np.unique(label):
            mine = np.flatnonzero(label == c)
            # As in the official code, equal scores are reversed.
            mine = mine[np.argsort(scores[mine], kind='stable')[::-1]]
            table[c - 1] = [average_precision(iou[mine] > t, counts[c]) for t in THRESHOLDS]
        return dict(APr=nan_mean(table, axis=0).tolist(), APr_class=table.tolist())

    def human_ap(self) -> list[float]:
        """AP^h at each threshold (rule 7)."""
        order = np.argsort(self.column('human_scores'), kind='stable')[::-1]
        iou = self.column('human_iou')[order]
        num_humans = self.total('num_humans')
        return [average_precision(iou > t, num_humans) for t in HUMAN_THRESHOLDS]


def parsing_metrics(predictions: list, ground_truths: list, num_classes: int,
                    score_threshold: float = -math.inf) -> dict:
    """The metrics of lists with one entry per image, as ParsingMetrics.add takes them.

    Returns a dict: AP (9), AP50, APvol, PCP (9), PCP50, PCPvol, mIoU, IoU (num_classes + 1),
    accuracy, APr (9), APr_class (num_classes, 9), APh (10) ..
    """
    if len(predictions) != len(ground_truths):
        raise ValueError(f'there are {len(predictions)} predictions for {len(ground_truths)} '
                         'images')
    metrics = ParsingMetrics(num_classes, score_threshold)
    for index, (prediction, ground_truth) in enumerate(zip(predictions, ground_truths)):
        metrics.add(index, prediction, ground_truth)
    return metrics.result()


# ------------------------------------------------------------------------------------------------
# A whole split


class Job:
    """What a worker does with image i of a split: read, compare, keep the statistics."""

    def __init__(self, dataset: Photos | ConvertedSet, predictions,
                 score_threshold: float = -math.inf):
        self.dataset = dataset
        self.predictions = predictions            # of `open_predictions`
        self.metrics = ParsingMetrics(len(dataset.class_names) - 1, score_threshold)

    def __call__(self, i: int) -> tuple[int, dict]:
        parsing, ignore = self.dataset.read_parsing(i)
        truth = self.dataset.truth(i, parsing, ignore)
        image = self.dataset.ids[i]
        prediction = self.predictions.read(image, ignore.shape, self.metrics.num_classes)
        try:
            return i, self.metrics.statistics(prediction, truth)
        except ValueError as error:
            raise ValueError(f'{self.predictions.source}, image {short(image)}: {error}') from None


def hold_ctrl_c(held: bool):
    """Keeps Ctrl-C back, for new processes too, or lets it through; Windows has no such mask."""
    if hasattr(signal, 'pthread_sigmask'):
        how = signal.SIG_BLOCK if held else signal.SIG_UNBLOCK
        signal.pthread_sigmask(how, {signal.SIGINT})


def ignore_ctrl_c():
    """Run first in each worker: Ctrl-C is for the main process alone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def evaluate(job: Job, workers: int = 1) -> ParsingMetrics:
    """All images of the job's data set; the same bits for any number of workers."""
    indices = range(len(job.dataset))
    records = job.metrics.records
    progress = dict(total=len(indices), desc='evaluate', unit='image', disable=None)
    if workers == 1:
        records.update(tqdm(map(job, indices), **progress))
        return job.metrics

    # Workers ignore Ctrl-C, which ends the main process. A worker that does not ignore it yet
    # would print a traceback, so it is held back until all have started.
    hold_ctrl_c(True)
    with multiprocessing.Pool(workers, initializer=ignore_ctrl_c) as pool:
        hold_ctrl_c(False)
        # Few chunks: each one pickles the job.
        chunksize = len(indices) // (32 * workers) + 1
        chunks = pool.imap_unordered(job, indices, chunksize=chunksize)
        # A list first: the job is pickled now.
        records.update(list(tqdm(chunks, **progress)))
        # Workers end by themselves: one that is terminated just after its last result may still
        # hold the lock of the queue, and the pool would wait for that lock without end.
        pool.close()
        pool.join()
    return job.metrics


def warn(images: list[str], what: str):
    """Prints the number of images with a problem, and the first of them."""
    if images:
        print(f'warning: {len(images)} {what}; the first is {short(min(images))}', file=sys.stderr)


def check_outputs(args):
    """ValueError where an output would replace a predicted file; and the errors of `check_chart`.
    """
    predictions = os.path.realpath(args.predictions)
    for path in (args.json, args.per_image, args.plot):
        if not path or not os.path.lexists(path):
            continue
        if os.path.commonpath([os.path.realpath(path), predictions]) == predictions:
            raise ValueError(f'{short(path)} is a file among the predictions; choose another name')
    if args.plot:
        check_chart(args.plot)


def run(args):
    check_outputs(args)
    if args.predicted_labels and not args.labels:
        raise ValueError('--predicted-labels is converted to --labels; give both')
    dataset = open_dataset(args.data, args.root, args.split)
    if not dataset.has_truth:
        raise ValueError(f'{args.data} {args.split} has no ground truth to compare with; choose '
                         'another --split, or submit the predictions to the challenge')
    predictions = open_predictions(args.predictions, args.format, dataset.ids)
    if args.labels:
        dataset = ConvertedSet(dataset, args.labels)
        source = predicted_set(predictions, args.labels, args.predicted_labels)
        predictions = ConvertedPredictions(predictions, source, args.labels)
    else:
        check_recorded(predictions, dataset.class_names, args.data)

    # Images of the split without predictions, and predictions of other images.
    listed = set(dataset.ids)
    if not listed & predictions.ids:
        raise ValueError(f'{args.predictions} has none of the {len(listed)} images of {args.data} '
                         f'{args.split}; check --data, --split and --predictions')
    warn(listed - predictions.ids,
         f'of {len(listed)} images have no prediction and count as empty')
    warn(predictions.ids - listed, 'predicted images are not in the list and are left out')

    metrics = evaluate(Job(dataset, predictions, args.score_threshold), args.workers)
    lost = [dataset.ids[i] for i, record in metrics.records.items() if record['lost']]
    warn(lost, 'images list people or parts without pixels, which are left out')
    result = metrics.result()
    if not result['people']:
        print('warning: the ground truth has no person, so AP^p and PCP are not defined',
              file=sys.stderr)
    for name in predictions.unknown_metrics:
        result[name] = [math.nan] * len(result[name])
        result[name + '50'] = math.nan
        result[name + 'vol'] = math.nan
    write_numbers(args, dataset, metrics, result)


def write_numbers(args, dataset: Photos | ConvertedSet, metrics: ParsingMetrics, result: dict):
    """Prints the table and writes the files that the flags name."""
    class_names = dataset.class_names if args.per_class else ()
    print(table(metrics, result, class_names, args.data == 'CIHP'))
    if args.json:
        names = dict(data=args.data, split=args.split, predictions=str(args.predictions),
                     class_names=dataset.class_names, thresholds=THRESHOLDS)
        write_json(args.json, names | result)
    if args.per_image:
        write_file(args.per_image, per_image(metrics, dataset.ids))
    if args.plot:
        write_chart(args.plot, plot(metrics, result, f'{args.data} {args.split}'))


# ------------------------------------------------------------------------------------------------
# Command line


def parse_arguments(argv: list[str] | None = None):
    parser = CommandParser(__doc__)
    add_shared(parser, 'data', default='MHP',
               help='data set: MHP, CIHP, DensePose, CCP or synthetic')
    add_shared(parser, 'root')
    add_shared(parser, 'split')
    parser.add_argument('--predictions', type=filled, required=True,
                        help='folder of the predictions, or a COCO-style .json')
    parser.add_argument('--format', choices=FORMS,
                        help='form of the predictions (default: guessed from the files)')
    parser.add_argument('--labels', choices=TARGETS,
                        help='compare in this label set, see docs/labels.md')
    parser.add_argument('--predicted-labels', choices=SOURCES,
                        help='with --labels: the set of the predictions (default: the one that '
                             'infer.py recorded with them, or else --labels)')
    parser.add_argument('--score-threshold', type=Between(-math.inf, math.inf, float),
                        default=-math.inf, help='leave out people below this score (default: none)')
    parser.add_argument('--workers', type=Between(1, 1000), default=min(8, os.cpu_count()),
                        help='processes (default: the CPU cores, up to 8)')
    parser.add_argument('--json', type=Ending('.json'), metavar='FILE',
                        help='write all numbers to it')
    parser.add_argument('--per-class', action='store_true', help='print the numbers of each class')
    parser.add_argument('--per-image', type=Ending('.csv'), metavar='FILE.csv',
                        help='write the match of every detection')
    parser.add_argument('--plot', type=Ending('.png', '.svg'), metavar='FILE',
                        help='draw the precision-recall curve and AP, as FILE.png or FILE.svg '
                             '(pip install matplotlib)')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None):
    args = parse_arguments(argv)
    with user_errors():
        run(args)


if __name__ == '__main__':
    start(main)

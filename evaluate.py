"""The numbers of multi-human parsing: AP^p, PCP, mIoU and, for CIHP, AP^r and AP^h. Needs no torch.

    python evaluate.py --data MHP --root data/LV-MHP-v2 --split val --predictions results/
    python evaluate.py --data CIHP --root DIR --labels atr --predictions results/         # in another label set
    python -m tools.benchmark evaluate                                      # its speed on this machine

    metrics = parsing_metrics(predictions, ground_truths, num_classes)     # arrays in memory
    metrics['APvol'], metrics['PCP50'], metrics['mIoU']

The rules are those of the official evaluators, to the last bit: MHPv2's eval_mhp.py and voc_eval.py (AP^p,
PCP), CIHP_PGN's test_inst_part_ap.py (AP^r), QANet's computeAPh (AP^h). n = num_classes + 1, with background.

1. A detection is a person: a label map of the image's size and a score. The detections of all images are
   ranked together; equal scores keep the order of images, then of the file (the official sort is not stable).
2. IoU of two people = mean over the classes 0..n-1 that either has, *background included*: an empty detection
   is worth something. Ground-truth pixels labelled >= n (255) are in no class; empty people are skipped.
3. A detection sees only the first person of the largest IoU. It is a true positive at t if that IoU > t and
   no better ranked one took that person at t. It gets no second choice.
4. AP^p at t: area under the precision envelope. PCP at t: mean over all people of the share of their parts
   with IoU > t, 0 for people not found at t. "vol" is the mean over t = 0.1, 0.2 .. 0.9.
5. mIoU: one confusion matrix of all listed images, classes in neither map left out. The class map of a
   prediction is the folder's own if it has one, else its people pasted by ascending score.
6. AP^r: a part is one class of one person; its IoU is the best over parts of its class. A part may be found
   twice, as in the official code, so AP^r can pass 1. Classes in neither count 0, classes only predicted are left
   out.
7. AP^h: as 6, for whole people, t = 0.50, 0.55 .. 0.95.

Pixels under `ignore` are left out, and so is a detection with more than half of its pixels there. The official
evaluators of MHP and CIHP have no such pixels, so these two are scored without `ignore`.
"""
import math
import multiprocessing
import os
import signal
import sys
from collections import namedtuple
from functools import cache

import numpy as np
from tqdm import tqdm

from util.cli import Between, CommandParser, start
from util.datasets import GroundTruth, open_dataset
from util.files import short, user_errors, write_file, write_json
from util.labelmaps import SOURCES, TARGETS, ConvertedPredictions, ConvertedSet
from util.masks import CroppedMap, as_label_maps
from util.reports import per_image, plot, table
from util.submissions import FORMS, Prediction, as_pair, open_predictions

THRESHOLDS = [i / 10 for i in range(1, 10)]          # not np.arange, whose third value is 0.30000000000000004
HUMAN_THRESHOLDS = [i / 100 for i in range(50, 100, 5)]

Joint = namedtuple('Joint', 'diag row col shared gts preds')


# ------------------------------------------------------------------------------------------------------------
# One image: integer statistics of every pair of label maps

def shared_pixels(g, p, n):
    """Cropped maps -> pixels of equal label (n,), labels of p where g's is >= n (n,), number labelled in both."""
    y0, y1, x0, x1 = max(g.y0, p.y0), min(g.y1, p.y1), max(g.x0, p.x0), min(g.x1, p.x1)
    if y0 >= y1 or x0 >= x1:
        return 0, 0, 0
    in_g = slice(y0 - g.y0, y1 - g.y0), slice(x0 - g.x0, x1 - g.x0)
    in_p = slice(y0 - p.y0, y1 - p.y0), slice(x0 - p.x0, x1 - p.x0)
    a, b, both = g.labels[in_g], p.labels[in_p], g.mask[in_g] & p.mask[in_p]
    same = np.bincount(b[(a == b) & both], minlength=n)
    hidden = np.bincount(b[(a >= n) & both], minlength=n) if g.unknown else 0
    return same, hidden, np.count_nonzero(both)


def compare(gts, preds, n, num_pixels, share=shared_pixels, merge=False):
    """M and N cropped maps -> Joint: diagonal (M, N, n) and marginals (M, 1, n), (M, N, n) of the confusion matrix of
    every pair, and the pixels labelled in both (M, N), int64. That is all that IoUs need; the background follows by
    subtraction, so only labelled pixels are read. merge: maps that do not overlap form one class map."""
    diag, hidden = np.zeros((2, len(gts), len(preds), n), np.int64)
    shared = np.zeros((len(gts), len(preds)), np.int64)
    for i, g in enumerate(gts):
        for j, p in enumerate(preds):
            diag[i, j], hidden[i, j], shared[i, j] = share(g, p, n)
    row = np.array([g.counts for g in gts], np.int64).reshape(-1, 1, n)
    col = np.array([p.counts for p in preds], np.int64).reshape(1, -1, n)
    unknown = np.array([g.unknown for g in gts], np.int64).reshape(-1, 1)
    if merge:
        diag, hidden, row, col = (x.sum((0, 1), keepdims=True) for x in (diag, hidden, row, col))
        shared, unknown = shared.sum(keepdims=True), unknown.sum(keepdims=True)
    col, valid = col - hidden, num_pixels - unknown
    row[..., 0] = valid - row.sum(-1)
    col[..., 0] = valid - col.sum(-1)
    diag[..., 0] = row[..., 0] + col[..., 0] - valid + shared - hidden.sum(-1)
    return Joint(diag, row, col, shared, gts, preds)


def divide(a, b):
    """a / b in float64, nan for 0 / 0."""
    with np.errstate(invalid='ignore', divide='ignore'):
        return np.true_divide(a, b)


def nan_mean(x, axis=-1):
    """np.nanmean, to the bit: the whole row is summed, with 0 for nan. The sum of the present classes alone rounds
    differently in one row of seven, and 0.7000000000000001 > 0.7."""
    present = ~np.isnan(x)
    return divide(np.where(present, x, 0.).sum(axis), present.sum(axis))


def class_iou(joint):
    return divide(joint.diag, joint.row + joint.col - joint.diag)                # (M, N, n)


def match_people(joint):
    """-> person: of each detection the first person of the largest IoU (N,), -1 for none; iou: that IoU (N,);
    hits: the parts of that person with IoU > t (N, 9); num_parts of each person (M,)."""
    part_iou, num_detections = class_iou(joint), len(joint.preds)
    num_parts = np.count_nonzero(joint.row[:, 0, 1:], axis=1)
    if not joint.gts:
        person, hits = np.full(num_detections, -1), np.zeros((num_detections, len(THRESHOLDS)), int)
        return dict(person=person, iou=person * np.inf, hits=hits, num_parts=num_parts)
    iou = nan_mean(part_iou)
    iou = np.where(np.isnan(iou), -np.inf, iou)
    person, each = iou.argmax(0), np.arange(num_detections)
    hits = (part_iou[person, each, 1:, None] > THRESHOLDS).sum(1)
    return dict(person=person, iou=iou[person, each], hits=hits, num_parts=num_parts)


def match_parts(joint, scores, n):
    """-> class, score and best IoU of each part, that is, of each class in a predicted map (P,); the number of
    parts of each class in the ground truth (n,)."""
    person, label = np.nonzero(np.array([p.counts for p in joint.preds]).reshape(-1, n))
    best = np.nan_to_num(class_iou(joint)).max(0, initial=0.)                    # (N, n)
    counts = np.array([g.counts > 0 for g in joint.gts]).reshape(-1, n).sum(0)
    return dict(part_class=label, part_scores=scores[person], part_iou=best[person, label], part_counts=counts)


def match_humans(joint, scores):
    """-> score and best IoU of each predicted mask (N,), the number of masks in the ground truth."""
    area_g, area_p = (np.array([m.area for m in maps], int) for maps in (joint.gts, joint.preds))
    iou = np.nan_to_num(divide(joint.shared, area_g[:, None] + area_p - joint.shared)).max(0, initial=0.)
    return dict(human_scores=scores, human_iou=iou, num_humans=len(area_g))


def uncovered(maps, shape, n):
    """Cropped maps -> the same without the pixels that later ones cover, as if pasted one over the other."""
    covered, seen = np.zeros(shape, bool), []
    for m in reversed(maps):
        above = covered[m.box]
        if (above & m.mask).any():
            m = m.relabel(np.where(above, np.uint8(0), m.labels), n)
        above |= m.mask
        seen.append(m)
    return seen


def crop_maps(maps, ignore, n):
    """Label maps, cropped or not -> cropped maps with the pixels under `ignore` set to 0."""
    maps = [m if isinstance(m, CroppedMap) else CroppedMap(m, n) for m in maps]
    if ignore is None:
        return maps
    return [m.relabel(np.where(ignore[m.box], np.uint8(0), m.labels), n) for m in maps]


def image_statistics(prediction, gt, n):
    """Prediction and GroundTruth of one image -> the few hundred numbers that the metrics need: a dict of arrays."""
    shape, share = gt.parsing.shape[1:], cache(shared_pixels)
    ignore = gt.ignore if gt.ignore is not None and np.any(gt.ignore) else None
    num_pixels = math.prod(shape) - (0 if ignore is None else np.count_nonzero(ignore))
    gts, full = [g for g in crop_maps(gt.parsing, ignore, n) if g.area], crop_maps(prediction.parsing, None, n)
    if any(p.unknown for p in full):
        raise ValueError(f'the label {max(p.labels.max() for p in full)} is not one of 0..{n - 1}')
    preds = crop_maps(full, ignore, n)
    keep = [i for i, p in enumerate(preds) if 2 * p.area >= full[i].area]
    preds, scores = [preds[i] for i in keep], prediction.scores[keep]
    people = compare(gts, preds, n, num_pixels, share)

    def joint_of(gt_maps, pair):
        """Parts and humans are those of the people, unless files hold others."""
        if gt_maps is None and pair is None:
            return people, scores
        p, s = (preds, scores) if pair is None else (crop_maps(pair[0], ignore, n), np.asarray(pair[1], float))
        return compare(gts if gt_maps is None else crop_maps(gt_maps, ignore, n), p, n, num_pixels, share), s
    if gt.semantic is None:
        truth = uncovered(gts, shape, n)
    else:
        truth = crop_maps([gt.semantic], ignore, n)
    if prediction.semantic is None:
        classes = uncovered([preds[i] for i in np.argsort(scores, kind='stable')], shape, n)
    else:
        classes = crop_maps([prediction.semantic], ignore, n)
    pixels = compare(truth, classes, n, num_pixels, share, merge=True)
    return dict(match_people(people), **match_parts(*joint_of(gt.parts, prediction.parts), n),
                **match_humans(*joint_of(gt.humans, prediction.humans)), scores=scores, lost=prediction.lost,
                pixels=np.concatenate([pixels.diag[0], pixels.row[0], pixels.col[0]]))


# ------------------------------------------------------------------------------------------------------------
# All images: rank, match, average

def average_precision(true_positive, count):
    """AP over all points (voc_eval.py): bool (N,) in rank order, `count` things to find. nan if none are."""
    if count == 0:
        return math.nan
    found = np.cumsum(true_positive)
    recall = np.concatenate(([0.], found / count, [1.]))
    precision = np.concatenate(([0.], found / np.arange(1, len(found) + 1), [0.]))
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    step = np.flatnonzero(recall[1:] != recall[:-1])
    return float(np.sum((recall[step + 1] - recall[step]) * precision[step + 1]))


def true_positives(iou, person, t):
    """IoU and person of detections in rank order -> bool (N,): the first of each person with IoU > t."""
    candidates = np.flatnonzero(iou > t)
    tp = np.zeros(len(iou), bool)
    tp[candidates[np.unique(person[candidates], return_index=True)[1]]] = True
    return tp


class ParsingMetrics:
    """Takes one image at a time and keeps a few kB per image. Objects can be pickled and merged.

        metrics = ParsingMetrics(num_classes=58)                  # parts, without background
        metrics.add(index, (parsing, scores), ground_truth)
        metrics.merge(other)
        metrics.result()['APvol']

    `index` is the place of the image in the data set. It orders equal scores, so any split over processes
    gives the same bits, and an image added twice (by a padded distributed sampler) counts once. People under
    `score_threshold` are left out; the official MHPv2 evaluator has none, Parsing R-CNN's is 0.001.
    """

    thresholds, human_thresholds = THRESHOLDS, HUMAN_THRESHOLDS

    def __init__(self, num_classes, score_threshold=-math.inf):
        self.num_classes, self.score_threshold, self.records = num_classes, score_threshold, {}

    def add(self, index, prediction, ground_truth):
        """prediction: (parsing uint8 (N, H, W), scores (N,)), or an object with these attributes.
        ground_truth: uint8 (M, H, W), 0 not this person, 1..num_classes part, above (255) part unknown; or a
        tuple of that and `ignore`, bool (H, W). ValueError for impossible sizes, labels or scores."""
        try:
            self.records[index] = self.statistics(prediction, ground_truth)
        except ValueError as error:
            raise ValueError(f'image {index}: {error}') from None

    def statistics(self, prediction, ground_truth):
        gt = GroundTruth(*ground_truth) if isinstance(ground_truth, tuple) else GroundTruth(ground_truth)
        gt = gt._replace(parsing=as_label_maps(gt.parsing))
        if not isinstance(prediction, Prediction):
            parsing, scores = as_pair(prediction)
            prediction = Prediction(as_label_maps(parsing, gt.parsing.shape[1:]), scores)
        scores = np.asarray(prediction.scores, float).reshape(-1)
        if len(scores) != len(prediction.parsing) or not np.isfinite(scores).all():
            raise ValueError(f'{len(prediction.parsing)} predicted people need as many finite scores')
        keep = np.flatnonzero(scores >= self.score_threshold)
        prediction = prediction._replace(parsing=[prediction.parsing[i] for i in keep], scores=scores[keep])
        return image_statistics(prediction, gt, self.num_classes + 1)

    def merge(self, other):
        """Adds the images of another ParsingMetrics."""
        self.records.update(other.records)

    def column(self, name):
        """One statistic of all images, concatenated in the order of their index."""
        return np.concatenate([self.records[index][name] for index in sorted(self.records)])

    def total(self, name):
        return sum(record[name] for record in self.records.values())

    def ranking(self):
        """All detections -> rank order (N,); IoU, person, hits in that order; parts of each person."""
        records = [self.records[index] for index in sorted(self.records)]
        first = np.cumsum([0] + [len(r['num_parts']) for r in records])[:-1]
        person = self.column('person') + np.repeat(first, [len(r['person']) for r in records])
        order, num_parts = np.argsort(-self.column('scores'), kind='stable'), self.column('num_parts')
        return order, self.column('iou')[order], person[order], self.column('hits')[order], num_parts

    def found_at(self, t):
        """bool (N,), in rank order: the detections that are true positives at t."""
        _, iou, person, _, _ = self.ranking()
        return true_positives(iou, person, t)

    def result(self):
        """-> dict of floats and lists of floats in 0..1 (AP^r can pass 1), by threshold or by class. Without
        detections 0, without ground truth nan."""
        if not self.records:
            raise ValueError('there is no image to evaluate')
        out = dict(images=len(self.records), people=len(self.column('num_parts')),
                   detections=len(self.column('scores')), **self.people_metrics(), **self.pixel_metrics(),
                   **self.part_metrics(), APh=self.human_ap())
        for name, middle in (('AP', 4), ('PCP', 4), ('APr', 4), ('APh', 0)):
            out |= {name + '50': out[name][middle], name + 'vol': float(np.mean(out[name]))}
        return out

    def people_metrics(self):
        _, iou, person, hits, num_parts = self.ranking()
        ap, pcp = [], []
        for k, t in enumerate(THRESHOLDS):
            tp = true_positives(iou, person, t)
            # Matches in rank order, then zeros: the mean of another order rounds differently.
            share = np.zeros(len(num_parts))
            share[:tp.sum()] = hits[tp, k] / np.maximum(num_parts[person[tp]], 1)
            ap.append(average_precision(tp, len(num_parts)))
            pcp.append(float(share.mean()) if len(share) else math.nan)
        return dict(AP=ap, PCP=pcp)

    def pixel_metrics(self):
        diag, row, col = self.total('pixels')
        iou, accuracy = divide(diag, row + col - diag), divide(diag, row)
        return dict(mIoU=float(nan_mean(iou)), mean_accuracy=float(nan_mean(accuracy)), IoU=iou.tolist(),
                    accuracy=accuracy.tolist(), pixel_accuracy=float(divide(diag.sum(), row.sum())))

    def part_metrics(self):
        label, scores, iou = (self.column(name) for name in ('part_class', 'part_scores', 'part_iou'))
        counts = self.total('part_counts')
        table = np.zeros((self.num_classes, len(THRESHOLDS)))
        for c in np.unique(label):
            mine = np.flatnonzero(label == c)
            mine = mine[np.argsort(scores[mine], kind='stable')[::-1]]      # as the official code: ties are reversed
            table[c - 1] = [average_precision(iou[mine] > t, counts[c]) for t in THRESHOLDS]
        return dict(APr=nan_mean(table, axis=0).tolist(), APr_class=table.tolist())

    def human_ap(self):
        iou = self.column('human_iou')[np.argsort(self.column('human_scores'), kind='stable')[::-1]]
        return [average_precision(iou > t, self.total('num_humans')) for t in HUMAN_THRESHOLDS]


def parsing_metrics(predictions, ground_truths, num_classes, score_threshold=-math.inf):
    """Lists with one entry per image, as ParsingMetrics.add takes them -> dict: AP (9), AP50, APvol, PCP (9),
    PCP50, PCPvol, mIoU, IoU (num_classes + 1), accuracy, APr (9), APr_class (num_classes, 9), APh (10) ..."""
    if len(predictions) != len(ground_truths):
        raise ValueError(f'there are {len(predictions)} predictions for {len(ground_truths)} images')
    metrics = ParsingMetrics(num_classes, score_threshold)
    for index, pair in enumerate(zip(predictions, ground_truths)):
        metrics.add(index, *pair)
    return metrics.result()


# ------------------------------------------------------------------------------------------------------------
# A whole split

class Job:
    """What a worker does with image i of a split: read, compare, keep the statistics."""

    def __init__(self, dataset, predictions, score_threshold=-math.inf):
        self.dataset, self.predictions = dataset, predictions
        self.metrics = ParsingMetrics(len(dataset.class_names) - 1, score_threshold)

    def __call__(self, i):
        parsing, ignore = self.dataset.read_parsing(i)
        truth = self.dataset.truth(i, parsing, ignore)
        prediction = self.predictions.read(self.dataset.ids[i], ignore.shape, self.metrics.num_classes)
        try:
            return i, self.metrics.statistics(prediction, truth)
        except ValueError as error:
            raise ValueError(f'{self.predictions.source}, image {short(self.dataset.ids[i])}: {error}') from None


def hold_ctrl_c(held):
    """Keeps Ctrl-C back, for new processes too, or lets it through; Windows has no such mask."""
    if hasattr(signal, 'pthread_sigmask'):
        signal.pthread_sigmask(signal.SIG_BLOCK if held else signal.SIG_UNBLOCK, {signal.SIGINT})


def evaluate(job, workers=1):
    """-> ParsingMetrics of all images of the job's data set; the same bits for any number of workers."""
    indices, records = range(len(job.dataset)), job.metrics.records
    progress = dict(total=len(indices), desc='evaluate', unit='image', disable=None)
    if workers == 1:
        records.update(tqdm(map(job, indices), **progress))
        return job.metrics
    ignore = signal.signal, (signal.SIGINT, signal.SIG_IGN)   # of Ctrl-C, which ends the main process
    hold_ctrl_c(True)                                         # a worker that does not ignore it yet has a traceback
    with multiprocessing.Pool(workers, *ignore) as pool:      # few chunks: each one pickles the job
        hold_ctrl_c(False)
        chunks = pool.imap_unordered(job, indices, chunksize=len(indices) // (32 * workers) + 1)
        records.update(list(tqdm(chunks, **progress)))        # a list first: meanwhile the job is pickled
    return job.metrics


def warn(images, what):
    if images:
        print(f'warning: {len(images)} {what}; the first is {short(min(images))}', file=sys.stderr)


def run(args):
    if args.predicted_labels and not args.labels:
        raise ValueError('--predicted-labels is converted to --labels; give both')
    dataset = open_dataset(args.data, args.root, args.split)
    predictions = open_predictions(args.predictions, args.format, dataset.ids)
    if args.labels:
        dataset = ConvertedSet(dataset, args.labels)
        predictions = ConvertedPredictions(predictions, args.predicted_labels or args.labels, args.labels)
    listed = set(dataset.ids)
    if not listed & predictions.ids:
        raise ValueError(f'{args.predictions} has none of the {len(listed)} images of {args.data} '
                         f'{args.split}; check --data, --split and --predictions')
    warn(listed - predictions.ids, f'of {len(listed)} images have no prediction and count as empty')
    warn(predictions.ids - listed, 'predicted images are not in the list and are left out')
    metrics = evaluate(Job(dataset, predictions, args.score_threshold), args.workers)
    warn([dataset.ids[i] for i, record in metrics.records.items() if record['lost']],
         'images list people or parts without pixels, which are left out')
    result = metrics.result()
    if not result['people']:
        print('warning: the ground truth has no person, so AP^p and PCP are not defined', file=sys.stderr)
    for name in predictions.unknown_metrics:
        result |= {name: [math.nan] * len(result[name]), name + '50': math.nan, name + 'vol': math.nan}
    print(table(metrics, result, dataset.class_names if args.per_class else (), args.data == 'CIHP'))
    if args.json:
        names = dict(data=args.data, split=args.split, predictions=str(args.predictions),
                     class_names=dataset.class_names, thresholds=THRESHOLDS)
        write_json(args.json, names | result)
    if args.per_image:
        write_file(args.per_image, per_image(metrics, dataset.ids))
    if args.plot:
        write_file(args.plot, plot(metrics, result, f'{args.data} {args.split}'))


# ------------------------------------------------------------------------------------------------------------
# Command line


def parse_arguments(argv=None):
    parser = CommandParser(__doc__)
    parser.add_argument('--data', default='MHP', help='MHP, CIHP, DensePose, CCP or synthetic')
    parser.add_argument('--root', help='folder of the data set, as downloaded')
    parser.add_argument('--split', default='val')
    parser.add_argument('--predictions', required=True, help='folder of the predictions, or a COCO-style .json')
    parser.add_argument('--format', choices=FORMS, help='form of the predictions; default: guessed from the files')
    parser.add_argument('--labels', choices=TARGETS, help='compare in this label set, see docs/labels.md')
    parser.add_argument('--predicted-labels', choices=SOURCES,
                        help='with --labels: the set of the predictions; default: --labels, as infer.py writes them')
    parser.add_argument('--score-threshold', type=Between(-math.inf, math.inf, float), default=-math.inf,
                        help='leave out people below this score')
    parser.add_argument('--workers', type=Between(1, 1000), default=min(8, os.cpu_count()), help='processes')
    parser.add_argument('--json', metavar='FILE', help='write all numbers')
    parser.add_argument('--per-class', action='store_true', help='print the numbers of each class')
    parser.add_argument('--per-image', metavar='FILE.csv', help='write the match of every detection')
    parser.add_argument('--plot', metavar='FILE.png', help='draw the precision-recall curve and AP')
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_arguments(argv)
    with user_errors():
        run(args)


if __name__ == '__main__':
    start(main)

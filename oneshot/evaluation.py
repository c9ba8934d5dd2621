"""Test episodes of one-shot human parsing: a model's label maps against the labels, and the tables of the field.

A model has `look(photo)`, what it sees in a query; `study(photo, labels, fold)`, what a support teaches it; and
`find(seen, taught, c, size, heads)` -> {head: label map (H,W) uint8}; for 1-way's class c of 0 and 1, for k-way,
where c is None, of the fold's labels.
"""
import os
from collections import Counter

import numpy as np
import torch
from tqdm import tqdm

from oneshot.data import open_photos
from oneshot.episodes import IGNORE, merge, read_episodes, write_episodes
from oneshot.eopnet import EOPNet
from oneshot.models import load_model
from oneshot.prototypes import known_labels
from util.files import write_json

ROWS = ('novel', 'novel classes'), ('base', 'base classes'), ('human', 'all classes')
WITHOUT = dict(base='base_parts', human='human_parts')


def count_pixels(model, photos, episodes, way, heads=('npm',), stopped=lambda: False):
    """Confusions over the episodes: {head: (K,K)}, 1-way (K,2,2) by class; None where `stopped` became true.

    Of the query's labels those remain that the support has at a quarter of its size, as released; the rest is
    background. What a query or a support gives is computed once, while the released code does so in each episode; and
    episodes that short pools repeat are counted as often as they occur.
    """
    fold, num = photos.fold, photos.fold.num_labels
    counts = {head: np.zeros((num, 2, 2) if way == '1way' else (num, num), np.int64) for head in heads}
    supports, current, one = {}, None, way == '1way'
    distinct = Counter((query, support, c if one else None) for query, support, c in episodes)
    ordered = sorted(distinct.items(), key=lambda item: item[0][0])         # one query after the other
    for (query, support, c), times in tqdm(ordered, 'test episodes', unit='pair', leave=False, disable=None):
        if stopped():
            return None
        if query != current:
            image, labels = photos.read(query)
            labels, seen, current = merge(labels, fold), model.look(image), query
        if support not in supports:
            image, example = photos.read(support)
            example = merge(example, fold)
            known = known_labels(torch.from_numpy(example)[None], fold.all, num)[0].numpy()
            supports[support] = model.study(image, example, fold), known
        taught, known = supports[support]
        truth = np.where(known[labels] | (labels == IGNORE), labels, 0)
        if one:
            truth = np.where(truth == IGNORE, IGNORE, truth == c)
        for head, found in model.find(seen, taught, c, labels.shape, heads).items():
            own = counts[head][c] if one else counts[head]              # a view
            own += times * confusion(truth, found, len(own))
    return counts


def scores(counts, fold):
    """Counts of one head -> `oneshot.episodes.kway_scores` or `oneway_scores`."""
    if counts.ndim == 2:
        return kway_scores(counts, fold)
    return oneway_scores({c: counts[c] for c in fold.all if counts[c].any()}, fold)


def table(results, fold):
    """{head: scores} -> text: IoU by class, means with and without the background, novel classes marked."""
    width = max(len(name) for name in fold.names.values()) + 2
    lines = [' ' * (width + 9) + ''.join(f'{head.upper():>8}' for head in results)]

    def row(name, values):
        lines.append(f'{name:<{width + 9}}' + ''.join(f'{value:8.1f}' for value in values))
    for c, name in fold.names.items():
        row(f'{name}{" (novel)" * (c in fold.novel)}', [r['iou'][c] for r in results.values()])
    for key, name in ROWS:
        row(f'{key} mIoU', [r[key] for r in results.values()])
        if key in WITHOUT:
            row('  without background', [r[WITHOUT[key]] for r in results.values()])
    if all('binary' in r for r in results.values()):
        row('binary IoU', [r['binary'] for r in results.values()])
    return '\n'.join(lines)


# ---------------------------------------------------------------------------------------------------------------
# Metrics, in percent


def confusion(truth, prediction, num_labels):
    """Label maps -> counts (num_labels, num_labels), row = truth. Pixels with IGNORE in the truth are left out."""
    valid = truth != IGNORE
    pairs = truth[valid].astype(np.int64) * num_labels + prediction[valid]
    return np.bincount(pairs, minlength=num_labels ** 2).reshape(num_labels, num_labels)


def class_iou(counts):
    """Counts (..., K, K) -> IoU (..., K) in percent; nan where a class has no pixel in truth or prediction."""
    hits = np.diagonal(counts, axis1=-2, axis2=-1)
    union = counts.sum(-1) + counts.sum(-2) - hits
    return np.where(union > 0, 100 * hits / np.maximum(union, 1), np.nan)


def kway_scores(counts, fold):
    """Counts (K,K) over all test episodes -> `mean_iou` of their classes."""
    return mean_iou(class_iou(counts), fold)


def mean_iou(iou, fold):
    """IoU (K) -> dict of means over the classes that occur: novel; base and human with the background, as the released
    code averages; base_parts and human_parts without it; and iou per class id."""
    groups = dict(novel=fold.novel, base=fold.base, human=fold.all, base_parts=fold.base[1:], human_parts=fold.all[1:])
    found = {name: [iou[c] for c in ids if not np.isnan(iou[c])] for name, ids in groups.items()}
    means = {name: float(np.mean(values)) if values else float('nan') for name, values in found.items()}
    return dict(means, iou={c: float(iou[c]) for c in fold.all})


def oneway_scores(counts, fold):
    """Counts {class: (2,2)} over each class's test episodes -> `mean_iou`, the background's IoU being its mean over the
    classes; and binary: mean IoU of background and class over all episodes (released code: over every tenth)."""
    pairs, iou = class_iou(np.stack(list(counts.values()))), np.full(fold.num_labels, np.nan)
    iou[list(counts)], iou[0] = pairs[:, 1], np.nanmean(pairs[:, 0])
    return dict(mean_iou(iou, fold), binary=float(np.mean(class_iou(sum(counts.values())))))


# ---------------------------------------------------------------------------------------------------------------
# The command


def check_way(model, args, photos):
    """ValueError where an EOPNet cannot parse the episodes of the arguments."""
    if not isinstance(model, EOPNet):
        if args.agm:
            raise ValueError('--agm: UniParser has no AGM head; leave it out')
    elif model.config.way != args.way:
        raise ValueError(f'{args.weights} is of --way {model.config.way}, not {args.way}')
    elif model.config.num_labels != photos.fold.num_labels:
        raise ValueError(f'{args.weights} has {model.config.num_labels} labels, but {args.data}-OS has '
                         f'{photos.fold.num_labels}; give weights of that set')


def evaluate(args):
    model, photos = load_model(args.weights, args.device), open_photos(args.data, args.root, 'test', args.fold)
    check_way(model, args, photos)
    known = args.list and os.path.exists(args.list)
    episodes = photos.check_episodes(read_episodes(args.list), args.list) if known else photos.test_episodes()
    if args.list and not known:
        write_episodes(args.list, episodes)
    counts = count_pixels(model, photos, episodes, args.way, ('npm', 'agm')[:1 + args.agm])
    results = {head: scores(pixels, photos.fold) for head, pixels in counts.items()}
    print(f'{args.data}-OS, fold {args.fold}, {args.way}: {len(episodes)} test episodes, {args.weights}')
    print(table(results, photos.fold))
    if args.json:
        write_json(args.json, dict(data=args.data, fold=args.fold, way=args.way, weights=str(args.weights),
                                   episodes=len(episodes), **results))

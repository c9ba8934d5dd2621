"""Test episodes of one-shot human parsing: a model's label maps against the labels, and the tables of the field.

A model has `look(photo)`, what it sees in a query; `study(photo, labels, fold)`, what a support teaches it; and
`find(seen, taught, c, size, heads)` -> {head: label map (H,W) uint8}; for 1-way's class c of 0 and 1, for k-way,
where c is None, of the fold's labels.
"""
from collections import Counter

import numpy as np
import torch
from tqdm import tqdm

from oneshot.episodes import IGNORE, confusion, kway_scores, merge, oneway_scores
from oneshot.prototypes import known_labels

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

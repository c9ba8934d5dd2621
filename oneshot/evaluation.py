"""Test episodes: a model's label maps against the labels, and the numbers and tables of the field.
"""
import os
from collections import Counter

import numpy as np
import torch
from tqdm import tqdm

from oneshot.data import OneShotPhotos, open_photos
from oneshot.episodes import IGNORE, Episode, Fold, merge, read_episodes, write_episodes
from oneshot.models import load_model
from oneshot.network import ExampleNetwork
from oneshot.prototypes import known_labels
from oneshot.stages import photos_of_stage
from util.files import write_json
from util.metrics import confusion_matrix

MEANS = 'novel', 'base', 'human'
WITHOUT_BACKGROUND = dict(base='base_parts', human='human_parts')


# -------------------------------------------------------------------------------------------------
# Counting pixels


def count_pixels(model, photos: OneShotPhotos, episodes: list[Episode], one_way: bool,
                 heads=('npm',), stopped=lambda: False) -> dict[str, np.ndarray] | None:
    """Confusions of a model, see oneshot/models.py, over the episodes: {head: (K,K)}; 1-way
    (K,2,2), by class. None where `stopped` became true.

    What a query or a support gives is computed once, while the released code does so in each
    episode. Episodes that short pools repeat are counted as often as they occur.
    """
    fold = photos.fold
    num = fold.num_labels
    shape = (num, 2, 2) if one_way else (num, num)
    counts = {head: np.zeros(shape, np.int64) for head in heads}
    supports = {}         # {index: what it gives, and the labels that it has}
    current = None        # index of the query that `seen` and `labels` are of
    distinct = Counter((query, support, c if one_way else None) for query, support, c in episodes)
    # One query after the other: only one is in memory.
    ordered = sorted(distinct.items(), key=lambda item: item[0][0])
    progress = tqdm(ordered, 'test episodes', unit='pair', leave=False, disable=None)
    for (query, support, c), times in progress:
        if stopped():
            return None
        if query != current:
            image, labels = photos.read(query)
            labels = merge(labels, fold)
            seen = model.encode_query(image)
            current = query
        if support not in supports:
            image, support_labels = photos.read(support)
            support_labels = merge(support_labels, fold)
            known = known_labels(torch.from_numpy(support_labels)[None], fold.all, num)[0].numpy()
            supports[support] = model.encode_support(image, support_labels, fold), known
        taught, known = supports[support]
        # As released: labels that the support has at a quarter of its size; the rest is background.
        truth = np.where(known[labels] | (labels == IGNORE), labels, 0)
        if one_way:
            truth = np.where(truth == IGNORE, IGNORE, truth == c)
        found = model.predict_episode(seen, taught, c, labels.shape, heads)
        for head, label_map in found.items():
            own = counts[head][c] if one_way else counts[head]
            own += times * confusion_matrix(label_map, truth, len(own), IGNORE)
    return counts


# -------------------------------------------------------------------------------------------------
# Scores, in percent


def scores(counts: np.ndarray, fold: Fold) -> dict:
    """Counts of one head, as of `count_pixels` -> its means and IoU, see `mean_iou`."""
    if counts.ndim == 2:
        return kway_scores(counts, fold)
    return oneway_scores({c: counts[c] for c in fold.all if counts[c].any()}, fold)


def class_iou(counts: np.ndarray) -> np.ndarray:
    """Counts (..,K,K) -> IoU (..,K); nan where a class has no pixel in truth or prediction."""
    hits = np.diagonal(counts, axis1=-2, axis2=-1)
    union = counts.sum(-1) + counts.sum(-2) - hits
    return np.where(union > 0, 100 * hits / np.maximum(union, 1), np.nan)


def mean_iou(iou: np.ndarray, fold: Fold) -> dict:
    """IoU (K) -> dict of means over the classes that occur: novel; base and human with the
    background, as the released code averages; base_parts and human_parts without it; and iou, by
    class id."""
    groups = dict(novel=fold.novel, base=fold.base, human=fold.all, base_parts=fold.base[1:],
                  human_parts=fold.all[1:])
    means = {}
    for name, ids in groups.items():
        values = [iou[c] for c in ids if not np.isnan(iou[c])]
        means[name] = float(np.mean(values)) if values else float('nan')
    return dict(means, iou={c: float(iou[c]) for c in fold.all})


def kway_scores(counts: np.ndarray, fold: Fold) -> dict:
    """Counts (K,K) over all test episodes -> `mean_iou` of their classes."""
    return mean_iou(class_iou(counts), fold)


def oneway_scores(counts: dict[int, np.ndarray], fold: Fold) -> dict:
    """Counts {class: (2,2)} over each class's test episodes -> `mean_iou`, the background's IoU
    being its mean over the classes; and binary: mean IoU of background and class over all episodes
    (released code: over every tenth)."""
    pairs = class_iou(np.stack(list(counts.values())))             # (classes, 2)
    iou = np.full(fold.num_labels, np.nan)
    iou[list(counts)] = pairs[:, 1]
    iou[0] = np.nanmean(pairs[:, 0])
    binary = float(np.mean(class_iou(sum(counts.values()))))
    return dict(mean_iou(iou, fold), binary=binary)


def table(results: dict[str, dict], fold: Fold) -> str:
    """{head: scores} -> text: IoU by class, means with and without the background, novel classes
    marked."""
    width = max(len(name) for name in fold.names.values()) + len(' (novel)') + 3
    lines = [' ' * width + ''.join(f'{head.upper():>8}' for head in results)]

    def add_row(name, values):
        lines.append(f'{name:<{width}}' + ''.join(f'{value:8.1f}' for value in values))

    for c, name in fold.names.items():
        mark = ' (novel)' if c in fold.novel else ''
        add_row(f'{name}{mark}', [result['iou'][c] for result in results.values()])
    for key in MEANS:
        if key == 'novel' and not fold.novel:
            continue
        add_row(f'{key} mIoU', [result[key] for result in results.values()])
        if key in WITHOUT_BACKGROUND:
            without = WITHOUT_BACKGROUND[key]
            add_row('  without background', [result[without] for result in results.values()])
    if all('binary' in result for result in results.values()):
        add_row('binary IoU', [result['binary'] for result in results.values()])
    return '\n'.join(lines)


# -------------------------------------------------------------------------------------------------
# The command


def evaluate(args):
    model = load_model(args.weights, args.device)
    photos = open_photos(args.data, args.root, 'test', args.fold)
    one_way = args.way == '1way'
    if isinstance(model, ExampleNetwork):
        photos = photos_of_stage(photos, model.config)
        one_way = model.config.one_way
    check_model(model, args, photos.fold)
    # --list is read where it exists, else written.
    if args.list and os.path.exists(args.list):
        episodes = photos.check_episodes(read_episodes(args.list), args.list)
    else:
        episodes = photos.test_episodes()
        if args.list:
            write_episodes(args.list, episodes)
    heads = (model.head, 'agm') if args.agm else (model.head,)
    counts = count_pixels(model, photos, episodes, one_way, heads)
    results = {head: scores(pixels, photos.fold) for head, pixels in counts.items()}
    print(f'{args.data}-OS, fold {args.fold}, {args.way}: {len(episodes)} test episodes, '
          f'{args.weights}')
    print(table(results, photos.fold))
    if args.json:
        record = dict(data=args.data, fold=args.fold, way=args.way, weights=str(args.weights),
                      episodes=len(episodes), **results)
        write_json(args.json, record)


def check_model(model, args, fold: Fold):
    """ValueError where a model cannot parse the episodes of the arguments."""
    if not isinstance(model, ExampleNetwork):
        if args.agm:
            raise ValueError('--agm: UniParser has no AGM head; leave it out')
        return
    config = model.config
    if config.way != args.way:
        raise ValueError(f'{args.weights} is of --way {config.way}, not {args.way}')
    # POPNet's released classes have no row for ATR's last label, which no class of the folds is.
    if config.num_labels not in (fold.num_labels, max(fold.all) + 1):
        raise ValueError(f'{args.weights} has {config.num_labels} labels, but {args.data}-OS has '
                         f'{fold.num_labels}; give weights of that set')

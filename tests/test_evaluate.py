"""evaluate.py.

Claimed: its numbers are those of the official evaluators, to the last bit, from arrays and from
folders of every form; they are those of the rules, restated slowly; they keep their properties
under any order, split and number of workers; wrong predictions get one sentence.
"""
import csv
import json
import lzma
import math
import os
import pickle
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import evaluate as ev
from evaluate import ParsingMetrics, parsing_metrics
from util.datasets import GroundTruth
from util.images import read_prediction
from util.submissions import PredictionWriter, open_predictions

HERE = Path(__file__).resolve().parent
FIXTURE = HERE / 'fixtures' / 'metrics'
CODE = Path(ev.__file__).parent


# ------------------------------------------------------------------------------------------------------------
# The fixture: synthetic people and what the official evaluators print for them

Scenes = namedtuple('Scenes', 'num_classes ids gts predictions expected')


def load_fixture():
    """name -> Scenes. official.json lists per image [id, H, W, number of people, scores]; people.xz holds the
    label maps one after the other, the ground truth of an image first, then its predictions."""
    blob, at, sets = lzma.decompress((FIXTURE / 'people.xz').read_bytes()), 0, {}

    def take(count, h, w):
        nonlocal at
        at += count * h * w
        return np.frombuffer(blob, np.uint8, count * h * w, at - count * h * w).reshape(count, h, w)
    for name, entry in json.loads((FIXTURE / 'official.json').read_text()).items():
        images = [(key, take(m, h, w), (take(len(s), h, w), np.array(s)))
                  for key, h, w, m, s in entry.pop('images')]
        sets[name] = Scenes(entry['num_classes'], *zip(*images), entry)
    return sets


OFFICIAL = load_fixture()
BIG = 'mhp', 'ties', 'cihp'


def same(ours, official):
    """Equal to the last bit; null is nan."""
    if isinstance(official, list):
        return len(ours) == len(official) and all(map(same, ours, official))
    return math.isnan(ours) if official is None else ours == official


def assert_official(ours, expected):
    wrong = [k for k in expected if k in ours and not same(ours[k], expected[k])]
    assert not wrong, {k: (ours[k], expected[k]) for k in wrong}


class Memory:
    """A data set in memory, as evaluate.Job takes it."""

    def __init__(self, scenes):
        self.class_names, self.ids, self.gts = ('',) * (scenes.num_classes + 1), list(scenes.ids), scenes.gts

    def __len__(self):
        return len(self.ids)

    def read_parsing(self, i):
        return self.gts[i], np.zeros(self.gts[i].shape[1:], bool)

    def truth(self, i, parsing, ignore):
        return GroundTruth(parsing, ignore)


def write(folder, scenes, form):
    with PredictionWriter(folder, form) as writer:
        for image, prediction in zip(scenes.ids, scenes.predictions):
            writer.add(image, prediction)


def evaluate_folder(folder, scenes, form=None, workers=1):
    dataset = Memory(scenes)
    return ev.evaluate(ev.Job(dataset, open_predictions(folder, form, dataset.ids)), workers).result()


def patch_part_scores(folder):
    """The official numbers belong to parts whose score depends on their size."""
    for text in (folder / 'instance_parsing').glob('*.txt'):
        ids, lines = np.asarray(Image.open(text.with_suffix('.png'))), []
        for i, line in enumerate(text.read_text().splitlines(), 1):
            label, score = line.split()
            share = float((ids == i).sum()) / ids.size
            lines.append(f'{label} {round(float(score) * (.7 + share / (share + .01) * .3) * 1e9) / 1e9!r}\n')
        text.write_text(''.join(lines))


@pytest.mark.parametrize('name', BIG)
def test_arrays_give_the_official_numbers_to_the_last_bit(name):
    scenes = OFFICIAL[name]
    ours = parsing_metrics(scenes.predictions, scenes.gts, scenes.num_classes)
    assert_official(ours, scenes.expected['instances'])


def test_score_threshold_gives_the_official_numbers():
    scenes = OFFICIAL['cihp']
    ours = parsing_metrics(scenes.predictions, scenes.gts, 19, score_threshold=0.5)
    assert_official(ours, scenes.expected['threshold_half'])


@pytest.mark.parametrize('name, form', [
    ('mhp', 'instances'), ('cihp', 'coco-results'), ('mhp', 'mhp'), ('ties', 'mhp')])
def test_folders_give_the_official_numbers_to_the_last_bit(name, form, tmp_path):
    write(tmp_path, OFFICIAL[name], form)
    expected = OFFICIAL[name].expected['instances' if form == 'coco-results' else form]
    assert_official(evaluate_folder(tmp_path, OFFICIAL[name]), expected)


def test_cihp_submission_gives_the_official_apr_and_aph(tmp_path):
    write(tmp_path, OFFICIAL['cihp'], 'cihp')
    patch_part_scores(tmp_path)
    ours = evaluate_folder(tmp_path, OFFICIAL['cihp'])
    assert_official(ours, OFFICIAL['cihp'].expected['cihp'])
    assert same(ours['APr_class'], OFFICIAL['cihp'].expected['cihp']['APr_class'])


@pytest.mark.parametrize('name', [n for n in OFFICIAL if n not in BIG])
def test_corner_of_the_rules(name):
    scenes, expected = OFFICIAL[name], OFFICIAL[name].expected['instances']
    predictions = scenes.predictions
    if name == 'size_mismatch':
        predictions = [(np.pad(p, ((0, 0), (0, 4), (0, 0))), s) for p, s in predictions]
    if 'error' in expected:
        with pytest.raises(ValueError, match='image 0: .*(label|ground truth)'):
            parsing_metrics(predictions, scenes.gts, scenes.num_classes)
    else:
        assert_official(parsing_metrics(predictions, scenes.gts, scenes.num_classes), expected)


def rewrite_results(folder, line):
    (folder / 'results.txt').write_text(line + '\n')


def tag_without_label(folder):
    tags = np.array(Image.open(folder / 'global_tag' / '5.png'))
    tags[20:24, 40:46] = 3
    Image.fromarray(tags).save(folder / 'global_tag' / '5.png')
    rewrite_results(folder, '5 1 0.9 2 0.8 3 0.95')


PATCHES = dict(tag_zero_listed=lambda folder: rewrite_results(folder, '5 0 0.95 1 0.9 2 0.8'),
               tag_absent=lambda folder: rewrite_results(folder, '5 1 0.9 7 0.99 2 0.8'),
               tag_without_label=tag_without_label)


@pytest.mark.parametrize('name', [n for n, s in OFFICIAL.items() if n not in BIG and 'mhp' in s.expected])
def test_corner_of_the_mhp_form(name, tmp_path):
    write(tmp_path, OFFICIAL[name], 'mhp')
    PATCHES.get(name, lambda folder: None)(tmp_path)
    assert_official(evaluate_folder(tmp_path, OFFICIAL[name]), OFFICIAL[name].expected['mhp'])


def test_16_bit_tags_and_a_person_listed_twice(tmp_path):
    scenes = OFFICIAL['perfect']
    write(tmp_path, scenes, 'mhp')
    tags = np.array(Image.open(tmp_path / 'global_tag' / '5.png')).astype(np.uint16)
    tags[tags == 2] = 700
    Image.fromarray(tags).save(tmp_path / 'global_tag' / '5.png')
    rewrite_results(tmp_path, '5 1 0.9 700 0.8')
    assert evaluate_folder(tmp_path, scenes)['AP'] == [1.] * 9
    rewrite_results(tmp_path, '5 1 0.9 1 0.85 700 0.8')
    assert evaluate_folder(tmp_path, scenes)['AP50'] == 0.5 + 0.5 * 2 / 3


def split_part(folder):
    """A part of class 5 becomes two halves, both found."""
    png, text = folder / 'instance_parsing' / '0000001.png', folder / 'instance_parsing' / '0000001.txt'
    ids, lines = np.array(Image.open(png)), text.read_text().splitlines()
    part = [i for i, line in enumerate(lines, 1) if line.startswith('5 ')][0]
    xs = np.nonzero(ids == part)[1]
    ids[(ids == part) & (np.arange(ids.shape[1]) >= (xs.min() + xs.max() + 1) // 2)] = len(lines) + 1
    Image.fromarray(ids).save(png)
    text.write_text('\n'.join([*lines, '5 0.5']) + '\n')


@pytest.mark.parametrize('name', ['apr_split_part', 'apr_class_only_in_pred', 'apr_no_pred_image'])
def test_corner_of_apr(name, tmp_path):
    write(tmp_path, OFFICIAL[name], 'cihp')
    patch_part_scores(tmp_path)
    if name == 'apr_split_part':
        split_part(tmp_path)
    ours = evaluate_folder(tmp_path, OFFICIAL[name])
    assert_official(ours, OFFICIAL[name].expected['cihp'])
    assert name != 'apr_split_part' or ours['APr_class'][4][0] == 2.0          # the official quirk: AP 200 %


def test_part_listed_without_pixel_is_left_out(tmp_path):
    scenes = OFFICIAL['apr_txt_line_without_pixels']
    write(tmp_path, scenes, 'cihp')
    before = evaluate_folder(tmp_path, scenes)
    with open(tmp_path / 'instance_parsing' / '0000001.txt', 'a') as f:
        f.write('5 0.99\n')
    np.testing.assert_equal(evaluate_folder(tmp_path, scenes), before)
    record = ev.Job(Memory(scenes), open_predictions(tmp_path))(0)[1]
    assert record['lost'] == 1


# ------------------------------------------------------------------------------------------------------------
# The rules once more, slow and obvious

def slow_part_iou(gt, pred, n):
    known = gt < n
    hist = np.bincount(n * gt[known].astype(int) + pred[known], minlength=n * n).reshape(n, n)
    with np.errstate(invalid='ignore'):
        return np.diag(hist) / (hist.sum(1) + hist.sum(0) - np.diag(hist))


def slow_average_precision(tp, count):
    tp, fp = np.cumsum(tp), np.cumsum(1 - np.array(tp, int))
    recall, precision = [0., *(tp / count), 1.], [0., *(tp / np.maximum(tp + fp, 1e-16)), 0.]
    for i in range(len(precision) - 2, -1, -1):
        precision[i] = max(precision[i], precision[i + 1])
    steps = [i for i in range(1, len(recall)) if recall[i] != recall[i - 1]]
    return np.sum([(recall[i] - recall[i - 1]) * precision[i] for i in steps])


def slow_people(predictions, gts, n, t):
    ranked = [(s, image, k) for image, (_, scores) in enumerate(predictions) for k, s in enumerate(scores)]
    ranked.sort(key=lambda row: -row[0])
    people = {(image, m): gt for image, maps in enumerate(gts) for m, gt in enumerate(maps) if gt.any()}
    taken, tps, shares = set(), [], []
    for _, image, k in ranked:
        best, best_iou, best_parts = None, -np.inf, None
        for key, gt in people.items():
            if key[0] == image:
                part_iou = slow_part_iou(gt, predictions[image][0][k], n)
                if np.nanmean(part_iou) > best_iou:
                    best, best_iou, best_parts = key, np.nanmean(part_iou), part_iou
        tps.append(best_iou > t and best not in taken)
        if tps[-1]:
            taken.add(best)
            labels = [c for c in np.unique(people[best]) if 0 < c < n]
            shares.append(sum(best_parts[1:] > t) / len(labels) if labels else 0)
    shares += [0] * (len(people) - len(taken))
    return (slow_average_precision(tps, len(people)) if people else math.nan,
            np.mean(shares) if people else math.nan)


def slow_pixels(predictions, gts, n):
    hist = np.zeros((n, n))
    for (maps, scores), people in zip(predictions, gts):
        gt, pred = np.zeros(people.shape[1:], np.uint8), np.zeros(people.shape[1:], np.uint8)
        for m in people:
            gt[m > 0] = m[m > 0]
        for k in np.argsort(scores, kind='stable'):
            pred[maps[k] > 0] = maps[k][maps[k] > 0]
        known = gt < n
        hist += np.bincount(n * gt[known].astype(int) + pred[known], minlength=n * n).reshape(n, n)
    with np.errstate(invalid='ignore'):
        iou = np.diag(hist) / (hist.sum(1) + hist.sum(0) - np.diag(hist))
        return np.nanmean(iou), np.nanmean(np.diag(hist) / hist.sum(1)), np.diag(hist).sum() / hist.sum()


def slow_masks(predicted, truth, t):
    """predicted: [(score, image, mask)], truth: [(image, mask)]; one true mask may be found twice."""
    ranked = sorted(reversed(predicted), key=lambda row: -row[0])
    ious = [max([(m & g).sum() / (m | g).sum() for where, g in truth if where == image], default=0)
            for _, image, m in ranked]
    if not ranked:
        return 0.
    return slow_average_precision([iou > t for iou in ious], len(truth)) if truth else math.nan


def random_scene(rng, n, unknown=False, empty=True):
    """People of rectangles; predictions shifted, relabeled, doubled, missing, invented or empty."""
    h, w = rng.integers(14, 34, 2)

    def person(count):
        m = np.zeros((h, w), np.uint8)
        y, x = rng.integers(0, h - 8), rng.integers(0, w - 8)
        for _ in range(count):
            a, b = y + rng.integers(0, 6), x + rng.integers(0, 6)
            m[a:a + rng.integers(1, 9), b:b + rng.integers(1, 9)] = rng.integers(1, n)
        return m
    gts = [person(rng.integers(1, 5)) for _ in range(rng.integers(0, 4))]
    predictions = [person(3) for _ in range(rng.integers(0, 2))]
    predictions += [np.zeros((h, w), np.uint8)] if rng.random() < .2 else []
    for gt in gts:
        for _ in range(rng.integers(0, 3)):
            m = np.roll(gt, rng.integers(-2, 3, 2), (0, 1))
            m[(rng.random((h, w)) < .1 * rng.random()) & (m > 0)] = rng.integers(1, n)
            predictions.append(m)
        if unknown:
            gt[(rng.random((h, w)) < .15)] = 255
    if empty and rng.random() < .3:
        gts.append(np.zeros((h, w), np.uint8))
    maps = np.array(predictions, np.uint8).reshape(-1, h, w)
    return (maps, np.round(rng.random(len(maps)), 1)), np.array(gts, np.uint8).reshape(-1, h, w)


def random_scenes(seed, count, n, **options):
    rng = np.random.default_rng(seed)
    return map(list, zip(*[random_scene(rng, n, **options) for _ in range(count)]))


@pytest.mark.parametrize('seed', range(6))
def test_matches_a_slow_restatement_of_the_rules_bit_for_bit(seed):
    n = (5, 20, 59)[seed % 3]
    predictions, gts = random_scenes(seed, 12, n, unknown=seed % 2 == 1)
    ours = parsing_metrics(predictions, gts, n - 1)
    for k, t in enumerate(ev.THRESHOLDS):
        assert (ours['AP'][k], ours['PCP'][k]) == slow_people(predictions, gts, n, t)
    assert (ours['mIoU'], ours['mean_accuracy'], ours['pixel_accuracy']) == slow_pixels(predictions, gts, n)


@pytest.mark.parametrize('seed', range(3))
def test_apr_and_aph_match_a_slow_restatement_bit_for_bit(seed):
    n = 12
    predictions, gts = random_scenes(seed, 10, n)
    ours = parsing_metrics(predictions, gts, n - 1)
    people = [(image, m) for image, maps in enumerate(gts) for m in maps if m.any()]
    found = [(s, image, m) for image, pair in enumerate(predictions) for m, s in zip(*pair)]
    for k, t in enumerate(ev.HUMAN_THRESHOLDS):
        masks = [(s, i, m > 0) for s, i, m in found]
        assert ours['APh'][k] == slow_masks(masks, [(i, m > 0) for i, m in people], t)
    table = [[slow_masks([(s, i, m == c) for s, i, m in found if (m == c).any()],
                         [(i, m == c) for i, m in people if (m == c).any()], t)
              for t in ev.THRESHOLDS] for c in range(1, n)]
    assert same(ours['APr'], np.nanmean(table, axis=0).tolist())       # as the official code averages: axis 0


# ------------------------------------------------------------------------------------------------------------
# Properties

def untie(predictions, rng):
    return [(maps, rng.permutation(1000)[:len(maps)] / 1000 + i * 1e-6)
            for i, (maps, _) in enumerate(predictions)]


def test_order_of_people_and_images_does_not_matter_without_ties():
    rng = np.random.default_rng(0)
    predictions, gts = random_scenes(1, 20, 8)
    predictions = untie(predictions, rng)
    want = parsing_metrics(predictions, gts, 7)
    pairs = []
    for i in rng.permutation(len(gts)):
        order, people = rng.permutation(len(predictions[i][1])), rng.permutation(len(gts[i]))
        pairs.append(((predictions[i][0][order], predictions[i][1][order]), gts[i][people]))
    ours = parsing_metrics(*zip(*pairs), 7)
    assert [ours[k] for k in ('AP', 'PCP', 'APr', 'APh')] == [want[k] for k in ('AP', 'PCP', 'APr', 'APh')]


def test_any_split_and_order_of_merging_gives_the_same_bits():
    rng = np.random.default_rng(0)
    predictions, gts = random_scenes(2, 17, 8)                         # with tied scores
    want = parsing_metrics(predictions, gts, 7)
    for parts in (2, 3, 17):
        owner = rng.integers(0, parts, len(gts))
        metrics = [ParsingMetrics(7) for _ in range(parts)]
        for i in rng.permutation(len(gts)):
            for rank in {owner[i], (owner[i] + (i % 3 == 0)) % parts}:      # a padded sampler repeats images
                metrics[rank].add(int(i), predictions[i], gts[i])
        total = ParsingMetrics(7)
        for k in rng.permutation(parts):
            total.merge(pickle.loads(pickle.dumps(metrics[k])))
        np.testing.assert_equal(total.result(), want)


def test_state_of_an_image_is_small():
    scenes = OFFICIAL['mhp']
    metrics = ParsingMetrics(58)
    for i, pair in enumerate(zip(scenes.predictions, scenes.gts)):
        metrics.add(i, *pair)
    assert len(pickle.dumps(metrics)) / len(scenes.ids) < 8000


@pytest.mark.parametrize('score', [0.01, 0.55, 0.99])
def test_false_positive_never_raises_ap(score):
    predictions, gts = random_scenes(3, 15, 8)
    before = parsing_metrics(predictions, gts, 7)
    nobody = np.zeros((0, 9, 9), np.uint8)
    stray = np.zeros((1, 9, 9), np.uint8)
    stray[0, 3:6] = 2
    after = parsing_metrics([*predictions, (stray, [score])], [*gts, nobody], 7)
    assert all(a <= b for a, b in zip(after['AP'], before['AP'])) and after['PCP'] == before['PCP']
    last = parsing_metrics([*predictions, (stray, [-1])], [*gts, nobody], 7)
    assert last['AP'] == before['AP']                                   # below all others it costs nothing


def test_perfect_prediction_scores_one():
    scenes = OFFICIAL['mhp']
    perfect = [(gt, np.linspace(0.1, 0.9, len(gt))) for gt in scenes.gts]
    ours = parsing_metrics(perfect, scenes.gts, 58)
    assert ours['AP'] == ours['PCP'] == [1.] * 9 and ours['APh'] == [1.] * 10
    assert ours['APvol'] == ours['PCPvol'] == ours['AP50'] == ours['PCP50'] == 1


def test_no_detection_is_zero_and_no_person_is_nan():
    empty, gt = np.zeros((0, 6, 6), np.uint8), np.full((1, 6, 6), 2, np.uint8)
    ours = parsing_metrics([(empty, [])], [gt], 3)
    assert ours['AP'] == ours['PCP'] == [0.] * 9 and ours['APr50'] == ours['APhvol'] == 0
    assert parsing_metrics([([], [])], [gt], 3)['AP50'] == 0
    ours = parsing_metrics([(gt, [.5])], [empty], 3)
    assert all(math.isnan(ours[k]) for k in ('AP50', 'APvol', 'PCP50', 'PCPvol', 'APhvol'))
    with pytest.raises(ValueError, match='no image'):
        parsing_metrics([], [], 3)


def test_ignored_pixels_change_nothing():
    rng = np.random.default_rng(5)
    predictions, gts = random_scenes(4, 15, 8, empty=False)
    plain = parsing_metrics(predictions, gts, 7)
    nothing = [(g, np.zeros(g.shape[1:], bool)) for g in gts]
    np.testing.assert_equal(parsing_metrics(predictions, nothing, 7), plain)
    np.testing.assert_equal(parsing_metrics(predictions, [(g, None) for g in gts], 7), plain)
    ignores = [np.zeros(g.shape[1:], bool) for g in gts]
    for ignore in ignores:
        ignore[:3], ignore[:, :2] = True, True
    want = parsing_metrics(predictions, list(zip(gts, ignores)), 7)
    for (maps, _), gt, ignore in zip(predictions, gts, ignores):
        for m in [*maps, *gt]:
            inside = ignore & (m > 0)                       # the share under `ignore` stays as it is
            m[inside] = rng.integers(1, 8, inside.sum())
    np.testing.assert_equal(parsing_metrics(predictions, list(zip(gts, ignores)), 7), want)


def test_ignore_equals_cutting_the_pixels_off():
    predictions, gts = random_scenes(6, 15, 8, empty=False)
    def pad(maps, value):
        return np.pad(maps, ((0, 0), (0, 5), (3, 0)), constant_values=value)

    wide = [(pad(maps, 0), scores) for maps, scores in predictions]
    ignores = [pad(np.zeros((1, *g.shape[1:]), bool), True)[0] for g in gts]
    np.testing.assert_equal(parsing_metrics(wide, [(pad(g, 0), i) for g, i in zip(gts, ignores)], 7),
                            parsing_metrics(predictions, gts, 7))


def test_detection_mostly_under_ignore_is_no_false_positive():
    gt, ignore = np.zeros((1, 10, 10), np.uint8), np.zeros((10, 10), bool)
    gt[0, :, :3], ignore[:, 6:] = 1, True
    bystander = np.zeros((10, 10), np.uint8)
    bystander[:, 5:9] = 2                                   # three of its four columns are ignored
    ours = parsing_metrics([(np.stack([gt[0], bystander]), [.5, .9])], [(gt, ignore)], 3)
    assert ours['AP50'] == 1 and ours['detections'] == 1
    assert parsing_metrics([(np.stack([gt[0], bystander]), [.5, .9])], [gt], 3)['AP50'] == 0.5


def test_predictions_may_be_any_object_with_parsing_and_scores():
    Parsing = namedtuple('Parsing', 'parsing scores centers')
    predictions, gts = random_scenes(7, 6, 8)
    objects = [Parsing(maps.astype(np.int64), list(scores), None) for maps, scores in predictions]
    np.testing.assert_equal(parsing_metrics(objects, gts, 7), parsing_metrics(predictions, gts, 7))


@pytest.mark.parametrize('maps, scores, message', [
    (np.full((1, 4, 4), 9, np.uint8), [.5], 'label 9'),
    (np.full((1, 4, 4), 300), [.5], 'integers 0..255'),
    (np.ones((1, 4, 4)), [.5], 'integers 0..255'),
    (np.ones((1, 4, 5), np.uint8), [.5], r'\(4, 5\)'),
    (np.ones((2, 4, 4), np.uint8), [.5], 'scores'),
    (np.ones((1, 4, 4), np.uint8), [math.nan], 'finite scores')])
def test_impossible_arrays_are_refused_with_the_image(maps, scores, message):
    gt = np.ones((1, 4, 4), np.uint8)
    with pytest.raises(ValueError, match=f'image 1: .*{message}'):
        parsing_metrics([(gt, [.5]), (maps, scores)], [gt, gt], 3)


# ------------------------------------------------------------------------------------------------------------
# Folders

def apart(seed, count, n):
    """Scenes whose people do not overlap, which every form can express."""
    predictions, gts = random_scenes(seed, count, n, empty=False)
    pairs = []
    for maps, scores in predictions:
        maps, free = maps.copy(), np.ones(maps.shape[1:], bool)
        for m in maps:
            m[~free] = 0
            free &= m == 0
        seen = maps.any((1, 2))
        pairs.append((maps[seen], scores[seen]))
    return Scenes(n - 1, [f'{i:04d}' for i in range(count)], gts, pairs, {})


@pytest.mark.parametrize('form', ev.FORMS)
def test_written_predictions_read_back_to_the_same_numbers(form, tmp_path):
    scenes = apart(8, 12, 8)
    write(tmp_path, scenes, form)
    want = parsing_metrics(scenes.predictions, scenes.gts, 7)
    np.testing.assert_equal(evaluate_folder(tmp_path, scenes), want)
    if form in ('instances', 'coco-results'):                                   # these two keep overlaps, too
        overlapping = OFFICIAL['cihp']
        write(tmp_path / 'b', overlapping, form)
        assert_official(evaluate_folder(tmp_path / 'b', overlapping), overlapping.expected['instances'])


def test_more_than_255_people_or_parts_fit_the_challenge_forms(tmp_path):
    maps = np.zeros((300, 20, 30), np.uint8)
    maps.reshape(300, -1)[np.arange(300), np.arange(300)] = 1 + np.arange(300) % 3
    scenes = Scenes(3, ['a'], [maps], [(maps, np.linspace(0, 1, 300))], {})
    for form in ('mhp', 'cihp'):
        write(tmp_path / form, scenes, form)
        prediction = open_predictions(tmp_path / form).read('a', (20, 30), 3)
        assert [30 * p.y0 + p.x0 for p in prediction.parsing] == list(range(300))
        assert [p.counts[1:].tolist() for p in prediction.parsing] == 100 * np.eye(3).tolist()
        assert prediction.parts is None or len(prediction.parts[0]) == 300


def test_coco_rows_name_images_by_place_as_in_uniparsers_lists(tmp_path):
    scenes = apart(9, 6, 8)
    write(tmp_path, scenes, 'coco-results')
    rows = json.loads((tmp_path / 'parsing.json').read_text())
    for row in rows:
        row['image_id'] = scenes.ids.index(row['image_id']) + 1
    (tmp_path / 'parsing.json').write_text(json.dumps(rows))
    np.testing.assert_equal(evaluate_folder(tmp_path / 'parsing.json', scenes),
                            parsing_metrics(scenes.predictions, scenes.gts, 7))


@pytest.mark.parametrize('ids', [['10', '2', '7'], ['3', '1', '2'], ['1', '2', '9']])
def test_one_coincidental_id_does_not_turn_positions_into_ids(tmp_path, ids):
    """Rows 1..3 are positions unless all of them are ids: of ['10', '2', '7'] only 2 is."""
    rows = [dict(image_id=i, score=0.5, parsing=f'{i}.png') for i in (1, 2, 3)]
    for i in (1, 2, 3):
        Image.fromarray(np.full((2, 2), i, np.uint8)).save(tmp_path / f'{i}.png')
    (tmp_path / 'rows.json').write_text(json.dumps(rows))
    predictions = open_predictions(tmp_path / 'rows.json', ids=ids)
    found = {image: int(predictions.read(image, (2, 2), 5).parsing[0][0, 0]) for image in ids}
    assert found == ({i: int(i) for i in ids} if set(ids) == {'1', '2', '3'} else dict(zip(ids, (1, 2, 3))))


def test_class_maps_next_to_instances_decide_miou(tmp_path):
    scenes = apart(10, 5, 8)
    write(tmp_path, scenes, 'instances')
    (tmp_path / 'semantic').mkdir()
    for image, gt in zip(scenes.ids, scenes.gts):
        classes = np.zeros(gt.shape[1:], np.uint8)
        for m in gt:
            np.copyto(classes, m, where=m > 0)
        Image.fromarray(classes).save(tmp_path / 'semantic' / f'{image}.png')
    ours = evaluate_folder(tmp_path, scenes)
    assert ours['mIoU'] == ours['pixel_accuracy'] == 1
    assert ours['AP'] == parsing_metrics(scenes.predictions, scenes.gts, 7)['AP']


def test_rgb_and_palette_files_are_read_by_channel_0_and_index(tmp_path):
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    image = Image.fromarray(labels)
    Image.merge('RGB', [image, image.point(lambda v: 255 - v), image]).save(tmp_path / 'rgb.png')
    palette = image.convert('P')
    palette.putdata(labels.ravel().tolist())
    palette.putpalette([(v * 37 + 11) % 256 for v in range(768)])
    palette.save(tmp_path / 'palette.png')
    for name in ('rgb', 'palette'):
        assert (read_prediction(tmp_path / f'{name}.png', (3, 4), 11) == labels).all()


def cut_off(folder):
    path = folder / 'instances/0000_00.png'
    path.write_bytes(path.read_bytes()[:60])


def overwrite(name, content):
    return lambda folder: (folder / name).write_text(content)


def remove(name):
    return lambda folder: (folder / name).unlink()


def redraw(size, label):
    return lambda folder: Image.new('L', size, label).save(folder / 'instances/0000_00.png')


BROKEN = {
    'truncated png': ('instances', cut_off, '0000_00.png cannot be read'),
    'no png': ('instances', remove('instances/0000_00.png'), '0000_00.png is missing'),
    'text for a png': ('mhp', overwrite('global_seg/0000.png', 'x'), 'global_seg/0000.png cannot be read'),
    'another size': ('instances', redraw((3, 5), 0), '0000_00.png is 3x5 pixels, .* truth is 20x20'),
    'a label too high': ('instances', redraw((20, 20), 99), '0000_00.png holds the label 99'),
    'no json': ('instances', overwrite('instances.json', '{'), 'instances.json should be'),
    'no score': ('instances', overwrite('instances.json', '{"0000": [{"file": "a.png"}]}'), 'json should be'),
    'nan': ('instances', overwrite('instances.json', '{"0000": [{"file": "0000_00.png", "score": NaN}]}'),
            'instances.json should be .*a score is nan'),
    'odd words': ('mhp', overwrite('results.txt', '0000 1\n'), 'results.txt, line 1'),
    'no number': ('mhp', overwrite('results.txt', '0000 1 high\n'), 'results.txt, line 1'),
    'listed twice': ('mhp', overwrite('results.txt', '0000 1 .5\n0000 1 .5\n'), 'results.txt lists'),
    'no results.txt': ('mhp', remove('results.txt'), 'results.txt is missing'),
    'no tags': ('mhp', remove('global_tag/0000.png'), 'global_tag/0000.png is missing'),
    'class too high': ('cihp', overwrite('instance_parsing/0000.txt', '99 .5\n'), '0000.txt, line 1'),
    'no text': ('cihp', remove('instance_parsing/0000.txt'), '0000.txt is missing'),
    'no class maps': ('cihp', lambda d: os.rename(d / 'global_parsing', d / 'x'), 'global_parsing holds'),
    'coco, no file': ('coco-results', overwrite('parsing.json', '[{"image_id": 1, "score": 1}]'), 'json should be')}


@pytest.mark.parametrize('case', BROKEN)
def test_broken_predictions_are_refused_in_one_sentence_that_names_the_file(case, tmp_path):
    form, damage, message = BROKEN[case]
    gt = np.zeros((1, 20, 20), np.uint8)
    gt[0, 5:15, 5:15] = 2
    scenes = Scenes(3, ['0000'], [gt], [(gt, [.5])], {})
    write(tmp_path, scenes, form)
    damage(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        evaluate_folder(tmp_path, scenes, form)
    assert '\n' not in str(error.value)


def test_a_folder_without_predictions_is_refused(tmp_path):
    with pytest.raises(ValueError, match='holds no predictions'):
        open_predictions(tmp_path)
    with pytest.raises(FileNotFoundError, match='nowhere is missing'):
        open_predictions(tmp_path / 'nowhere')


# ------------------------------------------------------------------------------------------------------------
# The command

def write_mhp_tree(root, scenes):
    for folder in ('list', 'val/images', 'val/parsing_annos'):
        (root / folder).mkdir(parents=True)
    (root / 'list/val.txt').write_text('\n'.join(scenes.ids) + '\n')
    for image, gt in zip(scenes.ids, scenes.gts):
        Image.new('RGB', gt.shape[:0:-1]).save(root / f'val/images/{image}.jpg')
        for k, m in enumerate(gt, 1):
            label = Image.fromarray(m)
            rgb = Image.merge('RGB', [label, label.point(lambda v: v // 2), label])
            (rgb if k % 2 else label).save(root / f'val/parsing_annos/{image}_{len(gt):02d}_{k:02d}.png')


def write_cihp_tree(root, scenes):
    root = root / 'Validation'
    for folder in ('Images', 'Category_ids', 'Human_ids', 'Instance_ids'):
        (root / folder).mkdir(parents=True)
    (root / 'val_id.txt').write_text('\n'.join(scenes.ids) + '\n')
    for image, gt in zip(scenes.ids, scenes.gts):
        Image.new('RGB', gt.shape[:0:-1]).save(root / f'Images/{image}.jpg')
        human = sum(k * (m > 0).astype(int) for k, m in enumerate(gt, 1))
        category = gt.astype(int).sum(0)
        parts = (human - 1) * 20 * (human > 0) + category
        for folder, ids in dict(Category_ids=category, Human_ids=human, Instance_ids=parts).items():
            Image.fromarray(ids.astype(np.uint8)).save(root / folder / f'{image}.png')


def command(*arguments):
    return subprocess.run([sys.executable, str(CODE / 'evaluate.py'), *map(str, arguments)],
                          capture_output=True, text=True, cwd=CODE)


def test_command_prints_and_writes_the_official_numbers(tmp_path):
    scenes, results, table, picture = OFFICIAL['mhp'], *(tmp_path / f'o.{e}' for e in ('json', 'csv', 'png'))
    write_mhp_tree(tmp_path / 'data', scenes)
    write(tmp_path / 'pred', scenes, 'instances')
    outputs = []
    for workers in (1, 2):
        done = command('--data', 'MHP', '--root', tmp_path / 'data', '--predictions', tmp_path / 'pred',
                       '--workers', workers, '--per-class', '--json', results, '--per-image', table,
                       '--plot', picture)
        assert done.returncode == 0, done.stderr
        outputs.append((done.stdout, results.read_bytes(), table.read_bytes(), picture.read_bytes()))
    assert outputs[0] == outputs[1]                         # the same bits for any number of workers
    assert 'AP^p_50 40.06   AP^p_vol 41.24   PCP_50 41.11   mIoU 41.45' in done.stdout
    assert 'backpack' in done.stdout
    assert_official(json.loads(results.read_text()), scenes.expected['instances'])
    rows = list(csv.DictReader(table.open()))
    hits = sum(row['true_positive_50'] == '1' for row in rows)
    assert sum(row['detection'] != '' for row in rows) == sum(len(s) for _, s in scenes.predictions)
    assert hits + sum(row['detection'] == '' for row in rows) == sum(map(len, scenes.gts))
    assert Image.open(picture).size == (920, 520)


def test_command_gives_the_official_apr_and_aph_from_the_cihp_files(tmp_path):
    scenes, results = OFFICIAL['cihp'], tmp_path / 'o.json'
    write_cihp_tree(tmp_path / 'data', scenes)
    write(tmp_path / 'pred', scenes, 'cihp')
    patch_part_scores(tmp_path / 'pred')
    done = command('--data', 'CIHP', '--root', tmp_path / 'data', '--predictions', tmp_path / 'pred',
                   '--json', results)
    assert done.returncode == 0 and 'AP^r     38.40  52.28' in done.stdout, done.stderr
    assert_official(json.loads(results.read_text()), scenes.expected['cihp'])


def test_command_says_nothing_about_what_the_predictions_do_not_tell(tmp_path):
    scenes, results = OFFICIAL['apr_no_pred_image'], tmp_path / 'o.json'
    write_cihp_tree(tmp_path / 'data', scenes)
    write(tmp_path / 'pred', scenes, 'cihp')
    os.rename(tmp_path / 'pred/instance_segmentation', tmp_path / 'elsewhere')
    done = command('--data', 'CIHP', '--root', tmp_path / 'data', '--predictions', tmp_path / 'pred',
                   '--json', results, '--plot', tmp_path / 'o.png')
    assert done.returncode == 0, done.stderr
    result = json.loads(results.read_text())
    assert result['AP'] == [None] * 9 and result['APhvol'] is None and result['APr50'] > 0


def test_command_warns_and_refuses_in_one_line(tmp_path):
    scenes = OFFICIAL['no_pred_for_image']
    write_mhp_tree(tmp_path / 'data', scenes)
    write(tmp_path / 'pred', scenes, 'instances')
    arguments = '--data', 'MHP', '--root', tmp_path / 'data', '--predictions', tmp_path / 'pred', '--workers'
    index = tmp_path / 'pred/instances.json'
    index.write_text(json.dumps({'5': json.loads(index.read_text())['5'], '99': [], '98': []}))
    done = command(*arguments, 1)
    assert done.returncode == 0
    assert 'warning: 1 of 2 images have no prediction and count as empty; the first is 6' in done.stderr
    assert 'warning: 2 predicted images are not in the list and are left out; the first is 98' in done.stderr
    (tmp_path / 'pred/instances/5_00.png').unlink()
    index.write_text(json.dumps({'5': [dict(file='5_00.png', score=.5)]}))
    for workers in (1, 2):
        done = command(*arguments, workers)
        assert done.returncode == 2 and done.stdout == '' and 'Traceback' not in done.stderr
        assert done.stderr.count('error: ') == 1 and '5_00.png is missing' in done.stderr.splitlines()[-1]
    index.write_text('{"1": []}')
    done = command(*arguments, 1)
    assert done.returncode == 2 and 'has none of the 2 images of MHP val' in done.stderr


def test_evaluate_never_imports_torch():
    code = 'import sys, evaluate; evaluate.parse_arguments(["--predictions", "x"]); print("torch" in sys.modules)'
    done = subprocess.run([sys.executable, '-c', code], cwd=CODE, capture_output=True, text=True)
    assert done.stdout.strip() == 'False', done.stderr

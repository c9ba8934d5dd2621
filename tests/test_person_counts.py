"""The counts of people, keypoints and sides follow their definitions on drawn cases. python -m
pytest"""

from types import SimpleNamespace

import numpy as np

from util.datasets.coco import Person
from util.datasets.coco_file import KEYPOINTS
from util.masks import mask_ious
from util.person_counts import CountMetrics, Counts, count_photo
from util.skeleton import CLASSES, labels_at

SHAPE = 50, 100


def label_map(name, rows, columns):
    labels = np.zeros(SHAPE, np.uint8)
    labels[slice(*rows), slice(*columns)] = CLASSES.index(name)
    return labels


def person(rows, columns, **visible):
    """visible: {keypoint: (x, y)}."""
    mask = np.zeros(SHAPE, bool)
    mask[slice(*rows), slice(*columns)] = True
    points = np.zeros((17, 3), np.float32)
    for name, place in visible.items():
        points[KEYPOINTS.index(name)] = *place, 2
    return Person(1, mask, points if visible else None, False)


NOTHING = np.zeros(SHAPE, bool)


def test_a_person_is_found_above_half_an_iou_and_a_detection_is_false_up_to_it():
    known = [person((0, 40), (0, 20))]
    exact = label_map('dress', (0, 40), (0, 20))[None]
    half = label_map('dress', (0, 20), (0, 20))[None]  # an IoU of exactly 0.5
    assert count_photo(exact, known, NOTHING) == Counts(1, 1, 1, 1, 0)
    assert count_photo(half, known, NOTHING) == Counts(1, 1, 0, 1, 1)
    assert count_photo(half[:0], known, NOTHING) == Counts(1, 1, 0, 0, 0)
    assert count_photo(exact, [], NOTHING) == Counts(1, 0, 0, 1, 1)


def test_a_detection_that_is_half_ignored_is_not_false():
    ignore = NOTHING.copy()
    ignore[:20] = True
    found = label_map('dress', (0, 40), (50, 70))[None]
    assert count_photo(found, [], ignore).false == 0
    ignore[19] = False
    assert count_photo(found, [], ignore).false == 1


def test_small_people_are_not_counted_but_make_no_detection_false():
    small = [person((0, 7), (0, 7))]  # 49 of 5000 pixels
    found = label_map('dress', (0, 7), (0, 7))[None]
    assert count_photo(found, small, NOTHING) == Counts(1, 0, 0, 1, 0)


def test_two_detections_of_one_person_are_one_found_and_none_false():
    known = [person((0, 40), (0, 20))]
    twice = np.repeat(label_map('dress', (0, 40), (0, 20))[None], 2, 0)
    assert count_photo(twice, known, NOTHING) == Counts(1, 1, 1, 2, 0)


def test_keypoints_are_right_where_the_label_can_be_there():
    known = [person((0, 40), (0, 20), nose=(5, 5), left_knee=(5, 30), right_wrist=(15, 20))]
    labels = label_map('pants', (0, 40), (0, 20))
    labels[:10] = CLASSES.index('face') * (labels[:10] > 0)
    counts = count_photo(labels[None], known, NOTHING)
    assert (counts.keypoints, counts.right) == (3, 2)  # trousers cannot be at a wrist
    lost = count_photo(labels[None] * 0, known, NOTHING)
    assert (lost.keypoints, lost.right, lost.found) == (3, 0, 0)


def test_an_unknown_part_is_not_right():
    known = [person((0, 40), (0, 20), nose=(5, 5))]
    whole = np.where(known[0].mask, np.uint8(255), np.uint8(0))
    counts = count_photo(whole[None], known, NOTHING)
    assert (counts.found, counts.keypoints, counts.right, counts.sided) == (1, 1, 0, 0)


def test_sides_are_those_of_the_person():
    known = [person((0, 40), (0, 20), left_elbow=(5, 5), right_elbow=(15, 5), left_ankle=(5, 35), left_hip=(5, 20))]
    labels = label_map('left-arm', (0, 40), (0, 20))
    labels[30:, :20] = CLASSES.index('right-shoe')
    labels[18:22, :20] = CLASSES.index('right-leg')  # a hip is no place where sides are judged
    counts = count_photo(labels[None], known, NOTHING)
    assert (counts.sided, counts.own_side) == (3, 1) and (counts.keypoints, counts.right) == (4, 1)


def test_the_label_table_is_the_one_of_the_definition():
    names = [CLASSES[c] for c in labels_at('right_ankle')]
    assert names == ['right-leg', 'right-shoe', 'socks', 'pants']
    assert [CLASSES[c] for c in labels_at('nose')] == ['face', 'sunglasses', 'scarf']
    assert CLASSES.index('left-arm') not in labels_at('right_wrist')


def test_ious_agree_with_a_loop():
    rng = np.random.default_rng(0)
    a, b = rng.random((3, 8, 9)) < 0.4, rng.random((4, 8, 9)) < 0.4
    expected = [[(x & y).sum() / (x | y).sum() for y in b] for x in a]
    assert np.allclose(mask_ious(a, b), expected)
    assert mask_ious(a[:0], b).shape == (0, 4) and mask_ious(a, b[:0]).shape == (3, 0)


def test_counts_add_up_and_read_well():
    both = Counts(1, 2, 1, 3, 1, 10, 5, 4, 3) + Counts(1, 2, 1, 1, 0, 10, 1, 0, 0)
    assert both.summary() == (
        '2 photos: found 50.0 % of 4 people, 1 of 4 detections false (90 per 180 photos), '
        'keypoints right 30.0 % of 20, side right 75.0 % of 4'
    )
    assert 'found none of 0 people' in Counts(photos=1).summary()


def test_metrics_of_a_split_are_shares_and_an_image_counts_once():
    known = [person((0, 40), (0, 20), nose=(5, 5), left_ankle=(5, 35))]
    right = SimpleNamespace(parsing=label_map('face', (0, 40), (0, 20))[None])
    nobody = SimpleNamespace(parsing=label_map('dress', (0, 40), (60, 80))[None])
    first, second = CountMetrics(), CountMetrics()
    first.add(0, right, (known, NOTHING))
    second.add(1, nobody, (known, NOTHING))
    second.add(0, right, (known, NOTHING))  # by a padded sampler, for example
    first.merge(second)
    first.merge(first)
    result = first.result()
    assert (result['found'], result['keypoints_right'], result['false_per_180']) == (0.5, 0.25, 90)
    assert np.isnan(result['side_right'])  # a face has no side
    alone = CountMetrics()
    alone.add(0, nobody, ([], NOTHING))
    assert np.isnan(alone.result()['found']) and alone.result()['false_per_180'] == 180

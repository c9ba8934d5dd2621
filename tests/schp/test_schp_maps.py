"""Label sets, crops, the fusion of several people and metrics: parity with SCHP's released code (fixtures/schp)."""
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from schp import crops, crowd
from schp.evaluation import semantic_metrics
from tests.helpers import HERE
from tests.seeded import blobs, noise, photo
from util.labels import LABEL_SETS, choose_labels, voc_palette
from util.metrics import confusion_matrix

torch.set_num_threads(1)
FIXTURES = HERE / 'tests' / 'fixtures' / 'schp'


def read_json(name):
    return json.loads((FIXTURES / name).read_text())


# ---- labels


def test_label_sets_have_the_published_classes_sizes_and_pairs():
    assert {k: (len(v.names), v.size) for k, v in LABEL_SETS.items()} == {
        'lip': (20, (473, 473)), 'atr': (18, (512, 512)), 'atr-neck': (19, (512, 512)), 'pascal': (7, (512, 512)), 'cihp': (20, (473, 473)),
        'merged': (9, (512, 384)), 'merged-sep': (9, (512, 384))}
    for labels in LABEL_SETS.values():
        swaps = [(labels.names[a], labels.names[b]) for a, b in labels.flip_pairs]
        assert all(a.replace('Left', 'Right') == b != a for a, b in swaps)
        assert len(swaps) == sum(name.lower().startswith('left') for name in labels.names)
    different = [(a, b) for a, b in zip(LABEL_SETS['lip'].names, LABEL_SETS['cihp'].names) if a != b]
    assert different == [('Jumpsuits', 'Torso-skin')]


def test_palette_is_that_of_pascal_voc():
    assert voc_palette(20).tolist() == [
        [0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128], [128, 0, 128], [0, 128, 128],
        [128, 128, 128], [64, 0, 0], [192, 0, 0], [64, 128, 0], [192, 128, 0], [64, 0, 128], [192, 0, 128],
        [64, 128, 128], [192, 128, 128], [0, 64, 0], [128, 64, 0], [0, 192, 0], [128, 192, 0]]
    assert len(np.unique(voc_palette(), axis=0)) == 256


# ---- crops


@pytest.mark.parametrize('name', ['tall473', 'wide512', 'viwear'])
def test_crops_and_ways_back_equal_those_of_cv2(name):
    case, expected = read_json('affine.json')[name], np.load(FIXTURES / 'affine.npz')
    (h, w), (size_h, size_w) = case['hw'], case['size']
    matrix = crops.crop_matrix((h, w), case['size'])
    back = crops.invert(matrix)
    np.testing.assert_allclose(matrix, case['M'], rtol=0, atol=1e-12)
    np.testing.assert_allclose(back, case['Minv'], rtol=0, atol=1e-12)
    image = torch.from_numpy(photo(5, h, w)).permute(2, 0, 1).float()
    crop = crops.warp(image, matrix, case['size'])[:, ::4, ::4].permute(1, 2, 0)
    assert np.abs(crop.numpy() - expected[f'{name}_crop']).max() <= 0.51         # of 255; cv2 rounds
    logits = torch.from_numpy(noise(6, (size_h // 4, size_w // 4, 5))).permute(2, 0, 1)[None]
    logits = F.interpolate(logits, case['size'], mode='bilinear', align_corners=False)[0]
    assert np.array_equal(crops.label_map(logits, back, (h, w)), expected[f'{name}_argmax'])
    labels = torch.from_numpy(blobs(7, size_h, size_w, 20))[None].float()
    assert np.array_equal(crops.warp(labels, back, (h, w), 'nearest')[0], expected[f'{name}_nearest'])


def test_rotated_and_scaled_crop_equals_the_released_one():
    case = read_json('affine.json')['rot']
    matrix = crops.crop_matrix(case['hw'], case['size'], case['scale'][0] / 299, case['rot'])
    np.testing.assert_allclose(matrix, case['M'], rtol=0, atol=1e-5)             # its coordinates are float32


def test_warp_fills_outside_and_keeps_labels():
    labels = torch.full((1, 20, 40), 7.)
    matrix = crops.crop_matrix((20, 40), (40, 40), rotation=20)
    filled = crops.warp(labels, matrix, (40, 40), 'nearest', fill=255)
    assert set(filled.unique().tolist()) == {7, 255} and (filled[0, 0] == 255).all() and filled[0, 20, 20] == 7


@pytest.mark.parametrize('size', [(1, 1), (1, 30), (30, 1)])
def test_thin_photos_have_crops(size):
    matrix = crops.crop_matrix(size, (65, 49))
    image = torch.full((1, *size), 5.)
    crop = crops.warp(image, matrix, (65, 49))
    assert np.isfinite(matrix).all() and crop.max() == pytest.approx(5, abs=1e-3)
    back = crops.warp(torch.ones(1, 65, 49), crops.invert(matrix), size)
    torch.testing.assert_close(back, torch.ones(1, *size), atol=1e-4, rtol=0)


def test_label_map_in_bands_equals_the_whole(monkeypatch):
    logits, size = torch.from_numpy(noise(8, (3, 30, 20))), (2 ** 15, 70)
    matrix = np.array([[3.5, 0, 0], [0, 1100., 5]])
    assert np.array_equal(crops.label_map(logits, matrix, size), crops.warp(logits, matrix, size).argmax(0))


# ---- several people


def enlarged_noise(seed, h, w):
    logits = torch.from_numpy(3 * noise(seed, (h // 4 + 1, w // 4 + 1, 20))).permute(2, 0, 1)[None]
    return F.interpolate(logits, (h, w), mode='bilinear', align_corners=False)[0].permute(1, 2, 0).numpy()


def test_fusion_of_two_people_equals_that_of_the_released_code():
    case, expected = read_json('crowd.json'), np.load(FIXTURES / 'crowd.npz')
    crops = [((x0, y0, x1, y1), enlarged_noise(41 + i, y1 - y0 + 1, x1 - x0 + 1))
             for i, (x0, y0, x1, y1) in enumerate(case['boxes'])]
    logits = crowd.fuse_logits(enlarged_noise(40, case['H'], case['W']), crops)
    result = crowd.parse_people(logits, expected['mask'], case['scores'])
    assert np.array_equal(result.parsing, expected['global_parsing'])
    assert np.array_equal(result.parts, expected['instance_parsing'])
    assert np.array_equal(result.people, expected['global_tag'])
    lines = [line.split() for line in case['txt']['instance_parsing'].splitlines()]
    assert result.part_classes == [int(c) for c, _ in lines] and result.part_people == [1] * 19 + [2] * 19
    np.testing.assert_allclose(result.confidences, [float(c) for _, c in lines], rtol=0, atol=1e-5)


def logits_of(parsing, classes):
    return np.eye(classes, dtype=np.float32)[np.asarray(parsing)]


def test_people_without_visible_pixels_do_not_drop_others():
    parsing, people = [[0, 1, 1, 2]], np.array([[1, 2, 3, 3]])
    result = crowd.parse_people(logits_of(parsing, 3), people, [0.9, 0.8, 0.5])
    assert result.people.tolist() == [[0, 2, 3, 3]] and result.parts.tolist() == [[0, 1, 2, 3]]
    assert result.part_people == [2, 3, 3] and result.part_classes == [1, 1, 2]
    np.testing.assert_allclose(result.confidences, [0.8, 0.5, 0.5])


def test_parts_grow_through_their_class_alone():
    parsing = np.array([[1, 1, 1, 0, 1], [0, 0, 0, 1, 0], [1, 0, 2, 2, 2]])
    people = np.array([[1, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 2]])
    result = crowd.parse_people(logits_of(parsing, 3), people, [1, 1])
    assert result.parts.tolist() == [[1, 1, 1, 0, 1], [0, 0, 0, 1, 0], [0, 0, 2, 2, 2]]        # diagonals connect
    assert np.array_equal(result.people, result.parts) and result.part_classes == [1, 2]


def test_crowd_without_people_and_with_many():
    empty = crowd.parse_people(crowd.fuse_logits(noise(1, (5, 6, 3)), []), np.zeros((5, 6), int), [])
    assert not empty.parsing.any() and not empty.parts.any() and empty.confidences == []
    nobody = crowd.parse_people(logits_of([[1, 2]], 3), np.zeros((1, 2), int), [])
    assert nobody.parsing.tolist() == [[1, 2]] and not nobody.people.any() and nobody.part_classes == []
    parsing = np.tile(np.arange(1, 20), (20, 1))          # 20 people of 19 parts
    people = np.repeat(np.arange(1, 21)[:, None], 19, 1)
    many = crowd.parse_people(logits_of(parsing, 20), people, np.ones(20))
    assert many.parts.dtype == np.uint16 and np.array_equal(many.parts, np.arange(1, 381).reshape(20, 19))
    for call in (lambda: crowd.parse_people(logits_of([[1]], 2), np.array([[2]]), [0.5]),
                 lambda: crowd.fuse_logits(np.zeros((4, 4, 2)), [((0, 0, 3, 3), np.zeros((3, 4, 2)))])):
        with pytest.raises(ValueError):
            call()


# ---- metrics


@pytest.mark.parametrize('centers', ['int_centers', 'float_centers'])
def test_metrics_equal_those_of_the_released_evaluation(centers):
    arrays, expected, total = np.load(FIXTURES / 'miou.npz'), read_json('miou.json')[centers], 0
    for i in range(3):
        truth = arrays[f'gt{i}']
        matrix = crops.crop_matrix(truth.shape, (473, 473), integer_center=centers == 'int_centers')
        prediction = torch.from_numpy(arrays[f'pred{i}'])[None].float()
        prediction = crops.warp(prediction, crops.invert(matrix), truth.shape, 'nearest')[0].numpy()
        total = total + confusion_matrix(prediction, truth, 20)
    metrics = semantic_metrics(total)
    np.testing.assert_allclose([100 * v for v in metrics['IoU']], [expected[n] for n in LABEL_SETS['lip'].names])
    for ours, theirs in (('mIoU', 'Mean IU'), ('pixel_accuracy', 'Pixel accuracy'), ('mean_accuracy', 'Mean accuracy')):
        assert 100 * metrics[ours] == pytest.approx(expected[theirs], abs=1e-9)


def test_metrics_by_hand_and_refusals():
    truth, prediction = np.array([[0, 0, 1, 255]], np.uint8), np.array([[0, 1, 1, 2]], np.uint8)
    matrix = confusion_matrix(prediction, truth, 3)
    assert matrix.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
    metrics = semantic_metrics(matrix)
    assert metrics['IoU'] == [0.5, 0.5, 0] and metrics['mIoU'] == pytest.approx(1 / 3)        # an absent class counts 0
    assert metrics['pixel_accuracy'] == pytest.approx(2 / 3) and metrics['mean_accuracy'] == pytest.approx(0.5)
    for wrong, sentence in ((prediction[:, :3], 'shape'), (prediction + 2, 'the prediction has labels')):
        with pytest.raises(ValueError, match=sentence):
            confusion_matrix(wrong, truth, 3)
    with pytest.raises(ValueError, match='no released label set'):
        choose_labels(8)


@pytest.mark.parametrize('box, size, expected', [
    ((20, 20, 10, 10), (100, 100), (19, 19, 31, 31)), ((0, 3, 10, 7), (100, 100), (0, 2, 11, 11)),
    ((15, 25, 15, 25), (60, 40), (14, 22, 32, 52)), ((30, 50, 10, 10), (60, 40), (29, 49, 39, 59)),
    ((0, 0, 1, 1), (1, 1), (0, 0, 0, 0))])
def test_the_crops_of_people_are_those_of_the_released_code(box, size, expected):
    """x - w / 10 and x + w + w / 10, rounded, halves to even; the released function agreed on 100,000 random boxes."""
    assert crowd.enlarge(box, size) == expected

"""Labels from keypoints: what can be where, on a drawn figure; left and right; what the model
decides and what stays unknown; and the program, whose label maps the data set reads back. python -m
pytest"""

import json

import numpy as np
import pytest
from PIL import Image

from tests.helpers import call, tiny_model, write_photo
from tests.test_coco import SIZE, person_of, plain_counts, write_coco
from tools import keypoints
from util.datasets.coco_file import KEYPOINTS
from util.datasets import CIHP, open_dataset
from util.images import read_labels
from util.skeleton import CLASSES, Body, can_be, side_of

HEIGHT = 240  # of the figure, which stands in the middle of 160 x 260 pixels
SHAPE = 260, 160
# A figure that faces the camera: its left is on the right. x from the middle and y, in heights of
# the figure.
FIGURE = {
    'nose': (0, 0.09),
    'left_eye': (0.022, 0.07),
    'right_eye': (-0.022, 0.07),
    'left_ear': (0.045, 0.08),
    'right_ear': (-0.045, 0.08),
    'left_shoulder': (0.11, 0.19),
    'right_shoulder': (-0.11, 0.19),
    'left_elbow': (0.17, 0.35),
    'right_elbow': (-0.17, 0.35),
    'left_wrist': (0.2, 0.49),
    'right_wrist': (-0.2, 0.49),
    'left_hip': (0.06, 0.49),
    'right_hip': (-0.06, 0.49),
    'left_knee': (0.07, 0.73),
    'right_knee': (-0.07, 0.73),
    'left_ankle': (0.08, 0.94),
    'right_ankle': (-0.08, 0.94),
}
MASK = np.ones(SHAPE, bool)


def figure(**changes):
    """Keypoints (17, 3) of the figure, all visible. changes: {keypoint: (x, y), or None = not
    given}."""
    places = {**FIGURE, **changes}
    points = np.zeros((17, 3), np.float32)
    for name, place in places.items():
        if place:
            points[KEYPOINTS.index(name)] = 80 + place[0] * HEIGHT, 10 + place[1] * HEIGHT, 2
    return points


def turned(points):
    """The same figure seen from behind: left and right change places, and no face."""
    points = points.copy()
    order = [KEYPOINTS.index(name.replace('left', 'x').replace('right', 'left').replace('x', 'right')) for name in KEYPOINTS]
    points = points[order]
    points[:3] = 0
    return points


def classes_at(allowed, points, name, down=0.0):
    """Names of the classes that can be at a keypoint, or `down` heights below it."""
    x, y, _ = points[KEYPOINTS.index(name)]
    column = allowed[:, int(y + down * HEIGHT), int(x)]
    return {CLASSES[c] for c in np.flatnonzero(column)}


def test_the_classes_are_those_of_cihp():
    assert tuple(CLASSES) == CIHP.class_names
    assert [side_of(c) for c in (14, 15, 16, 19, 13, 255)] == ['left', 'right', 'left', 'right', None, None]


def test_the_height_of_a_figure_is_found_also_when_it_sits():
    assert Body(figure()).height == pytest.approx(HEIGHT, rel=0.12)
    sitting = figure(left_knee=(0.07, 0.55), right_knee=(-0.07, 0.55), left_ankle=(0.07, 0.8), right_ankle=(-0.07, 0.8))
    assert Body(sitting).height == pytest.approx(HEIGHT, rel=0.12)
    assert Body(np.zeros((17, 3))).height == 0 and not can_be(np.zeros((17, 3)), MASK).any()


def test_what_can_be_where_on_a_figure():
    points = figure()
    allowed = can_be(points, MASK)
    assert classes_at(allowed, points, 'nose') == {'face', 'sunglasses'}
    assert classes_at(allowed, points, 'left_eye', -0.09) == {'hair', 'hat'}
    assert {'hair', 'face'} <= classes_at(allowed, points, 'left_ear')
    assert classes_at(allowed, points, 'left_elbow') == {'left-arm', 'upper-clothes', 'dress', 'coat'}
    assert classes_at(allowed, points, 'right_knee') == {'right-leg', 'pants', 'skirt', 'dress', 'coat'}
    assert classes_at(allowed, points, 'right_ankle', -0.04) == {'right-leg', 'pants'}
    assert classes_at(allowed, points, 'right_ankle', 0.04) == {'right-leg', 'right-shoe', 'socks'}
    chest = allowed[:, 10 + int(0.3 * HEIGHT), 80]
    assert {CLASSES[c] for c in np.flatnonzero(chest)} == {'upper-clothes', 'dress', 'coat', 'torso-skin', 'scarf', 'hair'}
    assert not allowed[:, 100, 2].any()  # far from every joint


def test_left_is_the_persons_own_left_also_from_behind():
    points = turned(figure())
    allowed = can_be(points, MASK)
    assert points[KEYPOINTS.index('left_elbow'), 0] < 80
    assert 'left-arm' in classes_at(allowed, points, 'left_elbow')
    assert 'right-arm' not in classes_at(allowed, points, 'left_elbow')
    head = allowed[:, 10 + int(0.08 * HEIGHT), 80]
    assert {CLASSES[c] for c in np.flatnonzero(head)} == {'hair', 'hat'}


def test_where_legs_cross_the_side_is_open():
    points = figure(left_knee=(0.0, 0.73), right_knee=(0.0, 0.73))
    found = classes_at(can_be(points, MASK), points, 'left_knee')
    assert 'pants' in found and not found & {'left-leg', 'right-leg'}


def test_hidden_joints_make_no_limb():
    points = figure()
    points[KEYPOINTS.index('left_wrist'), 2] = 1
    assert 'left-arm' not in classes_at(can_be(points, MASK), points, 'left_wrist')


def test_labels_stay_inside_the_mask():
    mask = MASK.copy()
    mask[:, :80] = False
    allowed = can_be(figure(), mask)
    assert allowed.any() and not allowed[:, :, :80].any()


# ---- the model's share ---------------------------------------------------------------------------


def posterior(**shares):
    """(19, 1, 1): shares of classes, whose names have _ in place of -."""
    values = np.zeros((19, 1, 1), np.float32)
    for name, share in shares.items():
        values[CLASSES.index(name.replace('_', '-')) - 1] = share
    return values


def allow(*names):
    return np.array([name in names for name in CLASSES[1:]])[:, None, None]


def chosen(values, allowed, mass=0.3):
    best, sure = keypoints.choose(values, allowed, mass)
    return CLASSES[int(best[0, 0])], float(sure[0, 0])


def test_the_model_chooses_among_what_can_be_there():
    values = posterior(pants=0.5, left_leg=0.3, coat=0.2)
    assert chosen(values, allow('left-leg', 'pants')) == ('pants', pytest.approx(0.5 / 0.8))
    assert chosen(values, allow('left-leg')) == ('left-leg', 1.0)
    assert chosen(values, allow('face'))[1] == 0


def test_the_keypoints_decide_the_side():
    values = posterior(left_arm=0.6, upper_clothes=0.4)  # the model has the sides wrong
    assert chosen(values, allow('right-arm', 'upper-clothes'))[0] == 'right-arm'


def test_little_of_the_posterior_is_not_enough():
    values = posterior(face=0.2, pants=0.8)
    assert chosen(values, allow('face'), mass=0.3) == ('face', 0.0)
    assert chosen(values, allow('face'), mass=0.1) == ('face', 1.0)


def test_a_top_that_is_no_clear_winner_stays_unknown():
    tops = allow('upper-clothes', 'dress', 'coat')
    assert chosen(posterior(upper_clothes=0.5, coat=0.4, dress=0.1), tops)[0] == 'background'
    assert chosen(posterior(upper_clothes=0.7, coat=0.3), tops) == ('upper-clothes', 1.0)


def test_half_a_dress_is_none():
    below = np.array([[False], [False], [True], [True]])  # trousers can be in the lower half
    legs = np.array([[False], [False], [False], [True]])
    allowed = np.zeros((19, 4, 1), bool)
    allowed[CLASSES.index('pants') - 1], allowed[CLASSES.index('left-leg') - 1] = below, legs
    dress, coat = (np.full((4, 1), CLASSES.index(name), np.uint8) for name in ('dress', 'coat'))

    def kept(labels):
        return bool(keypoints.without_halves(labels, allowed).any())

    assert (keypoints.without_halves(dress, allowed) == dress).all()
    assert not kept(dress * below)  # trousers
    assert not kept(dress * ~below)  # a shirt
    assert not kept(dress * ~legs)  # a long shirt
    assert not kept(coat * below)
    assert kept(coat * ~below)


def test_mirrored_posteriors_come_back():
    values = np.random.default_rng(0).random((19, 4, 6)).astype(np.float32)
    once = keypoints.mirrored(values)
    assert (keypoints.mirrored(once) == values).all()
    assert (once[13] == values[14][:, ::-1]).all() and (once[0] == values[0][:, ::-1]).all()


@pytest.fixture(scope='module')
def model():
    return tiny_model('cihp', channels=16, test_short_side=96, long_side=128).eval()


def test_a_photo_and_its_mirror_image_get_mirrored_labels(model):
    image = np.random.default_rng(1).integers(0, 256, (*SHAPE, 3), np.uint8)
    points, mask = figure(), MASK.copy()
    mask[:, :30] = mask[:, 130:] = False
    labels = keypoints.label_person(model, image, mask, points, 0.1, 0.05)
    other = turned(points)
    other[:3] = points[[0, 2, 1]]
    other[:, 0] = np.where(other[:, 2] > 0, SHAPE[1] - 1 - other[:, 0], 0)
    flipped = keypoints.label_person(
        model, np.ascontiguousarray(image[:, ::-1]), np.ascontiguousarray(mask[:, ::-1]), other, 0.1, 0.05
    )
    swapped = keypoints.mirrored(np.array([flipped == c for c in range(1, 20)]))
    again = np.where(swapped.any(0), swapped.argmax(0) + 1, 0)
    assert np.count_nonzero(labels) > 500
    assert (again == labels)[labels > 0].mean() > 0.95


def test_the_program_writes_what_the_data_set_reads(model, tmp_path):
    person = {'id': 3, 'image_id': 8, 'category_id': 1, 'iscrowd': 0}
    mask = np.zeros((40, 60), bool)
    mask[2:38, 20:44] = True
    points = figure() * [0.15, 0.15, 1] + [20, 0, 0]
    with_points = {**person, 'segmentation': plain_counts(mask), 'keypoints': points.ravel().tolist()}
    without = {**person, 'id': 4, 'segmentation': plain_counts(~mask)}
    write_coco(tmp_path / 'coco', {8: (4, [with_points, without])}, 'train2017')
    write_coco(tmp_path / 'coco', {9: (4, [])})
    model.save(tmp_path / 'tiny.pt')
    done = call(
        keypoints,
        '--root',
        tmp_path / 'coco',
        '--split',
        'train',
        '--weights',
        tmp_path / 'tiny.pt',
        '--device',
        'cpu',
        '--out',
        tmp_path / 'parts',
        '--smallest',
        '100',
        '--certain',
        '0.05',
        '--mass',
        '0',
        '--sheet',
        tmp_path / 'sheet.png',
    )
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / 'parts').iterdir()] == ['000000000008_3.png']
    assert '1 person: ' in done.stdout and (tmp_path / 'sheet.png').exists()
    labels = read_labels(tmp_path / 'parts' / '000000000008_3.png', 19)
    assert labels.shape == (40, 60) and labels.any() and not labels[~mask].any()
    _, parsing, _ = open_dataset('COCO', tmp_path / 'coco', 'train', parts=tmp_path / 'parts').read(0)
    assert (parsing[0] == np.where(labels > 0, labels, 255 * mask)).all() and set(np.unique(parsing[1])) == {0, 255}


def test_people_without_keypoints_cannot_be_labeled(model, tmp_path):
    """Two of COCO's own files, and one of parts, in the classes of CIHP and in others."""
    model.save(tmp_path / 'tiny.pt')
    write_coco(tmp_path / 'instances', {8: (4, person_of(8))}, kind='instances')
    write_coco(tmp_path / 'zeros', {8: (4, [{**person_of(8)[0], 'keypoints': [0] * 51}])})
    for folder, names in (('cihp', CLASSES[1:]), ('other', ['head', 'torso'])):
        write_photo(tmp_path / folder / 'a.jpg', size=SIZE)
        content = {'images': [{'id': 1, 'file_name': 'a.jpg', 'width': SIZE[0], 'height': SIZE[1]}],
                   'categories': [{'id': i, 'name': name} for i, name in enumerate(names, 1)],
                   'annotations': [{**person_of(1)[0], 'person': 1}]}
        (tmp_path / folder / 'annotations.json').write_text(json.dumps(content))
    for folder, sentence in (('instances', 'has no person with keypoints in the split val; unpack annotations/person_keypoints_*.json'),
                             ('zeros', 'has no person with keypoints'),
                             ('cihp', 'has no person with keypoints'),
                             ('other', 'has other classes than CIHP, and keypoints say where those of CIHP can be')):
        done = call(keypoints, '--root', folder, '--split', 'val', '--weights', 'tiny.pt', '--device', 'cpu', '--out', 'new', cwd=tmp_path)
        assert done.returncode == 2 and done.stdout == '' and not (tmp_path / 'new').exists()
        assert done.stderr.splitlines()[-1].startswith(f'error: {folder} {sentence}'), done.stderr


def test_people_who_are_all_too_small_are_said(model, tmp_path):
    model.save(tmp_path / 'tiny.pt')
    write_coco(tmp_path / 'coco', {8: (4, [{**person_of(8)[0], 'keypoints': figure().ravel().tolist()}])})
    done = call(keypoints, '--root', 'coco', '--split', 'val', '--weights', 'tiny.pt', '--device', 'cpu', '--out', 'new', cwd=tmp_path)
    assert done.returncode == 2 and 'error: no person with keypoints has 1500 pixels; lower --smallest' in done.stderr, done.stderr


def test_a_sheet_needs_label_maps_of_these_people(tmp_path):
    write_coco(tmp_path / 'coco', {8: (4, person_of(8))})
    (tmp_path / 'parts').mkdir()
    for out, sentence in (('none', 'none does not exist; label the people first, without --sheet-only'),
                          ('parts', 'parts has no label map of a person of the split val; label them first, without --sheet-only')):
        done = call(keypoints, '--root', 'coco', '--split', 'val', '--out', out, '--sheet', 'a.png', '--sheet-only', cwd=tmp_path)
        assert done.returncode == 2 and f'error: {sentence}' in done.stderr and not (tmp_path / 'a.png').exists(), done.stderr
    Image.new('L', SIZE, 1).save(tmp_path / 'parts' / '000000000008_8.png')
    done = call(keypoints, '--root', 'coco', '--split', 'val', '--out', out, '--sheet', 'a.png', '--sheet-only', cwd=tmp_path)
    assert done.returncode == 0 and (tmp_path / 'a.png').exists(), done.stderr


def test_keypoints_are_checked_against_labels():
    points = figure()
    labels = np.zeros(SHAPE, np.uint8)
    x, y = points[KEYPOINTS.index('nose'), :2].astype(int)
    labels[y, x] = CLASSES.index('pants')
    x, y = points[KEYPOINTS.index('left_ankle'), :2].astype(int)
    labels[y, x] = CLASSES.index('left-shoe')
    assert keypoints.check_keypoints(labels, points) == [('nose', 9, False), ('left_ankle', 18, True)]

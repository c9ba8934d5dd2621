"""People of a video keep their ids (util/tracking.py). Needs no PyAV.

Claimed: the assignment is the best of all; the camera's motion is found; people keep their ids past each other, after a
second out of sight, and through a pan by more than their width; kernels separate people of the same colors; the kernels
are those that found the people.
"""
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data import input_geometry, network_input
from tests.helpers import call, tiny_model
from tools import tracking as tool
from uniparser import decode, find_people, kernels_at, rank_people
from util.pictures import add_ids, overlay_people, palette
from util.tracking import MEMORY, Tracker, camera_shift, choose, move

HEIGHT, WIDTH = 90, 120
RED, GREEN, BLUE, WHITE = (230, 20, 20), (20, 230, 20), (20, 20, 230), (240, 240, 240)


def texture(seed=0, size=(HEIGHT, WIDTH)):
    return np.random.default_rng(seed).integers(60, 140, (*size, 3)).astype(np.uint8)


def frame(people, order=None, stage=None):
    """Rectangles (color, left, top) of 20 x 50 pixels on a still stage, far to near -> photo, parsing in this order."""
    image = (texture() if stage is None else stage).copy()
    owner = np.zeros(image.shape[:2], int)
    for n, (color, x, y) in enumerate(people, 1):
        rows, columns = slice(max(0, y), max(0, y + 50)), slice(max(0, x), max(0, x + 20))
        image[rows, columns], owner[rows, columns] = color, n
    order = range(len(people)) if order is None else order
    masks = np.array([(owner == n + 1) * np.uint8(5) for n in order], np.uint8).reshape(-1, *owner.shape)
    return Image.fromarray(image), masks


def follow(tracker, time, people, order=None, kernels=None):
    """{color: id} of the people in sight."""
    order = list(range(len(people)) if order is None else order)
    photo, masks = frame(people, order)
    seen = [k for k, mask in enumerate(masks) if mask.any()]
    ids = tracker.follow(photo, masks[seen], time, kernels)
    return {people[order[k]][0]: i for k, i in zip(seen, ids)}


# ---- the parts -------------------------------------------------------------------------------------------------


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 10 ** 6))
def test_the_chosen_pairs_are_the_best_of_all(rows, columns, seed):
    likeness = np.random.default_rng(seed).random((rows, columns))
    pairs = choose(likeness, 0.4)
    assert all(likeness[pair] > 0.4 for pair in pairs)
    assert len({r for r, _ in pairs}) == len({c for _, c in pairs}) == len(pairs)
    allowed, size = np.zeros((4, 4)), max(rows, columns)
    allowed[:rows, :columns] = np.where(likeness > 0.4, likeness, 0)
    best = max(sum(allowed[r, c] for r, c in enumerate(order)) for order in permutations(range(size)))
    assert abs(sum(likeness[pair] for pair in pairs) - best) < 1e-9


@pytest.mark.parametrize('shift', [(0, 0), (0, 17), (0, -40), (9, 0), (-13, 22)])
@pytest.mark.parametrize('size', [(90, 120), (91, 97)])
def test_the_motion_of_the_camera_is_found(shift, size):
    wide = np.random.default_rng(0).integers(0, 256, (220, 300)).astype(float)
    windows = [wide[60 - y:60 - y + size[0], 80 - x:80 - x + size[1]] for y, x in ((0, 0), shift)]
    assert camera_shift(*windows) == shift
    mask = np.zeros(size, bool)
    mask[30:50, 40:52] = True
    y, x = shift
    expected = np.zeros((3 * size[0], 3 * size[1]), bool)
    expected[size[0] + 30 + y:size[0] + 50 + y, size[1] + 40 + x:size[1] + 52 + x] = True
    assert np.array_equal(move(mask, shift), expected[size[0]:2 * size[0], size[1]:2 * size[1]])


def test_cells_are_found_again_from_their_centers():
    model = tiny_model(test_short_side=48)
    for size in (64, 48), (37, 111), (500, 333):
        geometry = input_geometry(Image.new('RGB', size), model.config)
        cells = torch.arange(model.config.grid ** 2)
        assert torch.equal(geometry.cells_at(geometry.cell_centers(cells, model.config.grid), model.config.grid), cells)


@pytest.mark.parametrize('changes', [{}, dict(space='sigmoid_before'), dict(score='parsing', theta_score=0.0)])
def test_the_kernels_are_those_that_found_the_people(changes):
    model = tiny_model(theta_center=0.0, theta_part=0.0, theta_mask=0.1, theta_same=1.0, max_people=5, test_short_side=48,
                       **changes)
    config = model.config
    photo = Image.fromarray(texture(3, (70, 50)))
    geometry = input_geometry(photo, config)
    out = model.outputs(network_input(photo, config, geometry))
    found = decode(out, 0, geometry, config, model.fusion)
    kernels = kernels_at(out, 0, found.centers, geometry, config)
    q_cate = torch.einsum('kc,chw->khw', out['k_cate'], out['f_cate'][0])
    people = rank_people(find_people(out, 0, config), q_cate, config)
    assert len(kernels) == len(found.scores) > 1 and np.allclose(np.linalg.norm(kernels, axis=1), 1, atol=1e-5)
    centers = geometry.cell_centers(people.cells, config.grid).numpy().tolist()
    for center, kernel in zip(found.centers.tolist(), kernels):
        n = centers.index(center)
        expected = out['k_ins'][0].flatten(1).T[people.cells[n]]
        assert np.allclose(kernel, expected / expected.norm(), atol=1e-6)


# ---- ids -------------------------------------------------------------------------------------------------------


def test_people_who_walk_past_each_other_keep_their_ids():
    tracker = Tracker()
    rng = np.random.default_rng(0)
    for k in range(25):
        people = [(RED, 5 + 4 * k, 20), (GREEN, 100 - 4 * k, 24), (BLUE, 50, 30)]
        ids = follow(tracker, k / 12, people, rng.permutation(3) if k else None)        # the better score is first
        assert all(ids.get(color, i) == i for color, i in {RED: 1, GREEN: 2, BLUE: 3}.items()), k
    assert len(ids) == 3


def test_who_is_away_for_a_second_keeps_the_id_and_later_gets_a_new_one():
    for pause, expected in (0.9 * MEMORY, 2), (1.1 * MEMORY, 3):
        tracker = Tracker()
        assert follow(tracker, 0, [(RED, 5, 20), (GREEN, 60, 20)]) == {RED: 1, GREEN: 2}
        for k in range(1, 11):
            assert follow(tracker, pause * k / 11, [(RED, 5, 20)]) == {RED: 1}
        assert follow(tracker, pause, [(RED, 5, 20), (GREEN, 95, 30)]) == {RED: 1, GREEN: expected}
    # With few frames per second it is three frames.
    for pause, expected in (3, 2), (4, 3):
        tracker = Tracker()
        follow(tracker, 0, [(RED, 5, 20), (GREEN, 60, 20)])
        for k in range(1, pause):
            follow(tracker, 5 * k, [(RED, 5, 20)])
        assert follow(tracker, 5 * pause, [(RED, 5, 20), (GREEN, 60, 20)])[GREEN] == expected


def test_another_person_in_the_same_place_gets_another_id():
    tracker = Tracker()
    assert follow(tracker, 0.0, [(RED, 40, 20)]) == {RED: 1}
    follow(tracker, 0.1, [])
    assert follow(tracker, 0.2, [(GREEN, 40, 20)]) == {GREEN: 2}
    assert follow(tracker, 0.3, [(GREEN, 40, 20), (RED, 80, 20)]) == {GREEN: 2, RED: 1}


@pytest.mark.parametrize('step', [7, 31, -31])
def test_a_pan_by_more_than_a_body_keeps_the_ids(step):
    """All wear white, so that only places differ. A body is 20 pixels wide, the next stands 23 to 40 pixels away."""
    stage = texture(1, (HEIGHT, 600))
    places = 200, 228, 262, 285, 325, 352, 385
    photo, masks = frame([(WHITE, x, 20) for x in places], stage=stage)
    tracker, known = Tracker(), {}
    for k in range(4):
        left = 240 - step * k if step < 0 else 220 + step * k
        window = slice(left, left + WIDTH)
        seen = [n for n, mask in enumerate(masks) if mask[:, window].any()]
        ids = tracker.follow(Image.fromarray(np.asarray(photo)[:, window]), masks[seen][:, :, window], k / 5)
        for n, i in zip(seen, ids):
            assert known.setdefault(n, i) == i, (k, known)
        assert len(set(ids)) == len(ids) > 2


def test_kernels_separate_people_of_the_same_colors():
    """Two in white walk by a body's width, so that one stands where the other stood."""
    for kernels, expected in (None, [2, 1]), (np.eye(2, dtype=np.float32), [1, 2]):
        tracker = Tracker()
        for k, x in enumerate((30, 52)):
            photo, masks = frame([(WHITE, x, 20), (WHITE, x + 20, 20)])
            ids = tracker.follow(photo, masks, k / 10, kernels)
            assert ids == (expected if k else [1, 2])


def test_frames_without_people_and_people_without_pixels_are_no_error():
    tracker = Tracker()
    photo, masks = frame([(RED, 5, 20)])
    assert tracker.follow(photo, masks[:0], 0.0) == []
    assert tracker.follow(photo, masks, 0.1) == [1] and tracker.follow(photo, masks[:0], 0.2) == []
    large = Image.new('RGB', (640, 480))
    dot = np.zeros((1, 480, 640), np.uint8)
    dot[0, 3, 3] = 1                                          # no pixel is left of it at a fourth of the size
    tracker = Tracker()
    assert [tracker.follow(large, dot, k / 10, np.ones((1, 1), np.float32)) for k in range(2)][0] == [1]


# ---- the overlay -----------------------------------------------------------------------------------------------


def test_people_have_the_colors_of_their_ids_and_the_ids_above(ids=(3, 141 + 6)):
    photo, masks = frame([(RED, 20, 30), (GREEN, 80, 30)])
    masks[1][masks[1] > 0] = 255                              # of unknown parts
    picture = np.asarray(overlay_people(photo, masks, ids), float)
    for mask, i in zip(masks, (3, 7)):                        # 140 colors
        inside = np.zeros_like(mask)
        inside[35:75] = mask[35:75]
        inside &= np.roll(inside, 4, 1) & np.roll(inside, -4, 1)
        expected = 0.45 * np.asarray(photo)[inside > 0] + 0.55 * palette(140)[i]
        assert inside.any() and np.abs(picture[inside > 0] - expected).max() < 2
    assert np.array_equal(picture[:25], np.asarray(photo)[:25])
    numbered = overlay_people(photo, masks, ids)
    add_ids(numbered, masks, ids)
    changed = (np.asarray(numbered) != picture).any(2)
    rows, columns = changed.nonzero()
    assert 10 < rows.min() and rows.max() < 34 and set(columns // 60) == {0, 1}
    masks[1, 10:12, 2:4] = 1                                  # a stray piece moves the number by less than a pixel
    moved = Image.new('RGB', photo.size)
    add_ids(moved, masks[1:], ids[1:])
    columns = (np.asarray(moved) > 0).any((0, 2)).nonzero()[0]
    assert abs(columns.mean() - 89.5) < 1.5
    cut = Image.new('RGB', (40, 60))
    add_ids(cut, np.ones((1, 60, 40), np.uint8), [1])         # at the edge, and in sight
    assert np.asarray(cut)[:20].max() > 200


# ---- the command -----------------------------------------------------------------------------------------------


def test_switches_and_kept_ids_are_counted_as_by_hand():
    count = tool.Count()
    for people in {0: 1, 1: 2}, {0: 1, 1: 3}, {1: 3}, {0: 3, 1: 3}, {0: 3}:
        count.add(people)
    assert (count.switches, count.kept, count.pairs) == (2, 4, 5)
    total = tool.Count()
    total.merge(count)
    total.merge(count)
    assert (total.switches, total.kept, total.pairs) == (4, 8, 10)


def test_a_pan_shows_all_of_the_photo_and_its_people():
    photo, masks = frame([(RED, 5, 20), (GREEN, 90, 20)])
    frames = list(tool.pan(photo, masks > 0, 60, 13))
    assert len(frames) == 13 and frames[0][1][0].any() and not frames[0][1][1].any()
    for k, (image, truth) in enumerate(frames):
        assert np.array_equal(np.asarray(image), np.asarray(photo)[:, 5 * k:5 * k + 60])
        assert np.array_equal(truth, masks[:, :, 5 * k:5 * k + 60] > 0)


def test_the_command_prints_a_table_and_says_what_it_needs(checkpoint, tmp_path):
    frame([(RED, 5, 20), (GREEN, 60, 20)])[0].save(tmp_path / 'group.png')
    done = call(tool, '--photo', tmp_path / 'group.png', '--weights', checkpoint, '--device', 'cpu')
    title, pan, fast, need = done.stdout.splitlines()
    assert done.returncode == 0 and title.split() == 'clip frames neighbors keep id id switches'.split(), done.stderr
    assert pan.split()[:2] == ['pan', '36'] and fast.split()[:2] == ['fast', '6'] and '--root' in need

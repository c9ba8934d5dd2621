"""People whose clothes are unsure stay whole people: 255 where no class is painted, in results but
not for evaluators; the filter that looks at maps; the tables of lost people. python -m pytest"""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from data import Geometry
from tests.helpers import call, random_out, tiny_config, tiny_model
from tests.test_coco import person_of, write_coco
from tools import count_people, oracle
from tools.oracle import STAGES, cells_of, stages_of_photo
from uniparser import decode
from util.beyond import keep_whole, map_quality, unsure_sides
from util.datasets.coco import Person
from util.fast import paint
from util.masks import without_unknown
from util.pictures import overlay
from util.results import Parsing, write_results

NAMES = ['background', 'head', 'torso']
PHOTO = Image.fromarray(np.full((20, 30, 3), 100, np.uint8))


def test_pixels_without_a_class_become_unknown():
    labels = np.zeros((1, 4), np.uint8)
    keep_whole(labels, torch.tensor([[0.9, 0.8, 0.1, 0.2]]), (4, 16), 0.5)
    assert labels.tolist() == [[255, 255, 0, 0]]
    paint(labels, torch.tensor([[[0.1, 0.9, 0.1, 0.9]]]), torch.tensor([1]), (4, 16), 0.5)
    assert labels.tolist() == [[255, 2, 0, 2]]
    assert without_unknown(labels).tolist() == [[0, 2, 0, 2]]


def test_decode_keeps_people_whole_and_leaves_their_parts_alone():
    config = tiny_config('ccp', theta_center=0.0, theta_score=0.0, theta_mask=0.85, theta_paint=0.3, theta_part=0.3)
    out = {name: value.detach() for name, value in random_out(1, 64, 96, config).items()}
    size = SimpleNamespace(width=96, height=64)
    parts, whole = (
        decode(out, 0, size, replace(config, test_short_side=64, long_side=96, whole=value)) for value in (False, True)
    )
    assert (whole.parsing == 255).any() and not (parts.parsing == 255).any()
    by_center = {tuple(center): labels for center, labels in zip(parts.centers.tolist(), parts.parsing)}
    for center, labels in zip(whole.centers.tolist(), whole.parsing):
        alone = by_center.get(tuple(center), np.zeros_like(labels))
        assert (without_unknown(labels) == alone).all()
    assert (whole.labeled().parsing == parts.parsing).all()


def test_a_side_needs_a_lead():
    q = torch.tensor([[[0.9, 0.5, 0.1]], [[0.5, 0.4, 0.9]], [[0.5, 0.5, 0.5]]])
    unsure = unsure_sides(q, torch.tensor([[1, 2]]), 0.3)
    assert unsure[0].tolist() == unsure[1].tolist() == [[False, True, False]] and not unsure[2].any()


def test_decode_leaves_out_unsure_sides_and_nothing_else():
    config = tiny_config('ccp', theta_center=0.0, theta_score=0.0, theta_mask=0.85, theta_part=0.0, theta_paint=0.2,
                         whole=True, test_short_side=64, long_side=96)
    out = {name: value.detach() for name, value in random_out(1, 64, 96, config).items()}
    out['flip_pairs'] = torch.tensor([[1, 2]])
    size = SimpleNamespace(width=96, height=64)
    plain, sure, none = (decode(out, 0, size, replace(config, theta_side=value)).parsing for value in (0, 0.2, 2))
    # Nobody loses more than an outline: a painted class reaches half a cell beyond the person's map.
    for labels in (sure, none):
        assert ((labels > 0) <= (plain > 0)).all() and (labels > 0).sum() > 0.8 * (plain > 0).sum()
    sides = np.isin(plain, [1, 2])
    assert sides.any() and not np.isin(none, [1, 2]).any()
    assert 0 < np.isin(sure, [1, 2]).sum() < sides.sum()
    assert (sure == plain)[~sides].mean() > 0.98


def test_evaluators_see_no_unknown_pixels_and_no_people_without_parts():
    maps = np.array([[[255, 1]], [[255, 0]]], np.uint8)
    found = Parsing(maps, np.array([0.9, 0.8]), np.zeros((2, 2)))
    assert found.labeled().parsing.tolist() == [[[0, 1]]] and found.labeled().scores.tolist() == [0.9]
    plain = Parsing(maps[:, :, 1:] * 0, found.scores, found.centers)
    assert plain.labeled() is plain


def test_the_filter_of_people_looks_at_center_and_map():
    q_ins = torch.tensor([[[0.9, 0.7, 0.1]], [[0.6, 0.2, 0.1]]])
    quality = map_quality(q_ins > 0.5, q_ins, torch.tensor([0.81, 0.25]))
    assert quality.tolist() == pytest.approx([0.8 * 0.9, 0.6 * 0.5])
    config = tiny_config(
        'ccp', theta_center=0.0, theta_score=0.0, theta_mask=0.85, theta_part=0.0, test_short_side=64, long_side=96
    )
    out = {name: value.detach() for name, value in random_out(1, 64, 96, config).items()}
    size = SimpleNamespace(width=96, height=64)
    counts = [len(decode(out, 0, size, replace(config, theta_person=value, whole=True)).scores) for value in (0, 0.7, 0.8, 1)]
    assert counts == sorted(counts, reverse=True) and counts[0] > counts[2] > counts[3] == 0


def test_results_show_the_whole_person_but_name_only_known_parts(tmp_path):
    labels = np.zeros((1, 20, 30), np.uint8)
    labels[0, 2:18, 5:25], labels[0, 2:8, 5:25] = 255, 1
    found = Parsing(labels, np.array([0.7]), np.array([[15.0, 10.0]]), NAMES, PHOTO)
    write_results(tmp_path, 'a', found)
    parts, people = (np.asarray(Image.open(tmp_path / f'a_{kind}.png')) for kind in ('parts', 'people'))
    assert ((people == 1) == (labels[0] > 0)).all() and ((parts == 1) == (labels[0] == 1)).all() and parts.max() == 1
    (person,) = json.loads((tmp_path / 'a.json').read_text())['people']
    assert person['area'] == 16 * 20 and person['box'] == [5, 2, 20, 16] and len(person['parts']) == 1
    assert person['rle']['size'] == [20, 30]
    # The overlay has the outline of the person, and the photo where the part is unknown.
    picture = np.asarray(overlay(PHOTO, labels, unknown=False))
    assert (picture[13, 10] == 100).all() and (picture[17, 10] == 255).all() and (picture[5, 10] != 100).any()
    assert (np.asarray(overlay(PHOTO, labels))[13, 10] != 100).any()


def test_cells_lie_in_a_person_where_their_middles_do():
    mask = np.zeros((40, 60), bool)
    mask[10:20, 30:60] = True
    # Cells of 8 pixels, padded right and below.
    cells = cells_of(mask, Geometry((40, 60), (40, 60), (64, 64)), 8)
    assert np.argwhere(cells).tolist() == [[1, 4], [1, 5], [1, 6]]
    double = cells_of(mask, Geometry((40, 60), (80, 120), (128, 128)), 8)
    assert (double == cells).all()


def test_the_stages_of_a_model(tmp_path):
    model = tiny_model('cihp', theta_center=0.0, theta_mask=0.0, test_short_side=64, long_side=96)
    whole = Person(1, np.ones((64, 96), bool), None, False)
    small = Person(2, np.zeros((64, 96), bool), None, False)
    small.mask[:5, :5] = True
    passed = stages_of_photo(model, Image.new('RGB', (96, 64), 'gray'), [whole, small], np.zeros((64, 96), bool))
    assert passed.shape == (1, len(STAGES)) and passed[0, :3].all()  # every cell's map is the whole photo
    strict = tiny_model('cihp', theta_center=1.0, test_short_side=64, long_side=96)
    assert not stages_of_photo(strict, Image.new('RGB', (96, 64)), [whole], np.zeros((64, 96), bool))[0, [0, 2, 3]].any()


def test_the_programs_run_on_a_split_of_coco(tmp_path):
    write_coco(tmp_path, {5: (4, person_of(5)), 7: (4, person_of(7))})
    write_coco(tmp_path, {8: (4, person_of(8))}, 'train2017')
    tiny_model('cihp', test_short_side=64, long_side=96, theta_center=0.0).save(tmp_path / 'tiny.pt')
    common = ('--data', 'COCO', '--root', tmp_path, '--weights', tmp_path / 'tiny.pt', '--device', 'cpu')
    done = call(count_people, *common, '--split', 'val')
    assert done.returncode == 0 and '2 photos: found ' in done.stdout, done.stderr
    done = call(count_people, *common, '--curve', 'theta_person', '--whole')
    assert done.returncode == 0 and '--theta-person 0.95: 1 photos' in done.stdout, done.stderr
    done = call(oracle, 'where', *common, '--split', 'val')
    assert done.returncode == 0 and done.stdout.count('of 2 people') == len(STAGES), done.stderr
    for program, words, sentence in (
        (oracle, ('where', '--data', 'CIHP'), 'where is for --data COCO'),
        (oracle, ('people', *common), 'people writes predictions; name their folder with --out'),
        (count_people, (), 'give a folder of photos, or --data COCO'),
    ):
        done = call(program, *words)
        assert done.returncode == 2 and sentence in done.stderr

"""The rows of the paper's tables: training, resuming, skipping, Matrix NMS, and the tables as text. python -m pytest"""
import itertools
import json
import math

import numpy as np
import pytest
import torch

import infer
import train
from tests.helpers import call, run, stop_at_step, tiny_config, tiny_model, weights, write_tiny_mhp
from uniparser import Config, Parsing, find_centers, get_config
from tools import ablate
from tools.ablate import TABLES, TRAININGS, Row, SuppressingUniParser, markdown, replace_tables
from util.datasets import open_dataset
from util.masks import matrix_nms
from util.reports import mean_and_spread
from util.cli import as_flags, given_settings

TINY = ['--samples', '12', '--val-images', '2', '--channels', '8', '--neck-channels', '16', '--depth', '1', '--center-depth', '1',
        '--warmup', '2', '--lr', '1e-3', '--device', 'cpu']


def numbers(path):
    return json.loads(path.read_text())


def test_two_rows_are_trained_once_and_make_a_table(tmp_path, monkeypatch):
    command = ['--table', '5', *TINY, '--out', tmp_path, '--json', tmp_path / 'all.json']
    (tmp_path / 'all.json').write_text('{"runs": 1}')
    done = call(ablate, *command)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / 'crowd'
    rows = {name: numbers(folder / f'{name}-0' / 'metrics.json') for name in ('base', 'no_parsing')}
    assert numbers(folder / 'base-0' / 'config.json')['lambda_par'] == 3 and rows['base']['seconds'] > 0
    assert numbers(folder / 'no_parsing-0' / 'config.json')['lambda_par'] == 0
    text = (folder / 'results.md').read_text()
    for title, name, paper in ('| parsing loss |  ', 'base', '42.8 / 46.3 / 46.7'), \
            ('| no parsing loss | `--lambda-par 0` ', 'no_parsing', '30.1 / 41.5 / 34.3'):
        cells = ' | '.join(f'{rows[name][k]:.1f}' for k in ablate.METRICS)
        assert f'{title}| {paper} | {cells} | 1 |' in text
    saved = numbers(tmp_path / 'all.json')
    assert saved['runs'] == 1 and saved['ablation']['crowd'] == numbers(folder / 'results.json')
    section = saved['ablation']['crowd']
    assert section['rows']['base']['0']['mIoU'] == rows['base']['mIoU'] > 0
    assert section['command'].startswith('python -m tools.ablate --table 5 --data crowd --samples 12 --val-images 2 ')

    monkeypatch.setattr(train, 'train', None)                                # what is finished is not trained again
    assert call(ablate, *command).returncode == 0
    done = call(ablate, *command, '--epochs', '2')
    assert done.returncode == 2 and 'was made with other settings' in done.stderr and 'Traceback' not in done.stderr


def test_what_a_study_reads_is_checked_before_it_trains(tmp_path, monkeypatch):
    monkeypatch.setattr(train, 'train', None)
    common = ['--table', '5', *TINY, '--out', tmp_path]
    (tmp_path / 'list.json').write_text('[1]')
    for flags, message in ((['--page', tmp_path / 'no.md'], 'no.md does not exist; --page is'),
                           (['--json', tmp_path / 'list.json'], 'list.json cannot be read (it holds no object)'),
                           (['--json', tmp_path / 'photo.jpg'], 'give a name that ends in .json')):
        done = call(ablate, *common, *flags)
        assert done.returncode == 2 and message in done.stderr and done.stderr.count('\n') == 1
    folder = tmp_path / 'crowd' / 'base-0'
    folder.mkdir(parents=True)
    for text in '', '{', '[]', '{"AP50": 1}':
        (folder / 'metrics.json').write_text(text)
        done = call(ablate, *common)
        assert done.returncode == 2 and 'metrics.json' in done.stderr and done.stderr.count('\n') == 1


def test_a_stopped_row_is_resumed_exactly(tmp_path, monkeypatch):
    command = ['--table', 'filter', *TINY, '--seeds', '3', '--out']
    assert call(ablate, *command, tmp_path / 'whole').returncode == 0
    with monkeypatch.context() as patch:
        stop_at_step(patch, 2)
        done = call(ablate, *command, tmp_path / 'parts')
    assert done.returncode == 130 and done.stderr == 'stopped; the same command continues\n'
    folder = tmp_path / 'parts' / 'crowd' / 'base-3'
    assert (folder / 'last.pt').exists() and not (folder / 'metrics.json').exists()
    done = call(ablate, *command, tmp_path / 'parts')
    assert done.returncode == 0, done.stderr
    ours, theirs = (weights(tmp_path / run / 'crowd' / 'base-3') for run in ('parts', 'whole'))
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
    for name in 'base-3', 'base+theta_part=0.0-3':
        ours, theirs = (numbers(tmp_path / run / 'crowd' / name / 'metrics.json') for run in ('parts', 'whole'))
        assert [ours[k] for k in ablate.METRICS] == [theirs[k] for k in ablate.METRICS]


def test_a_row_whose_metrics_were_not_written_is_measured(tmp_path, monkeypatch):
    command = ['--table', '5', *TINY, '--out', tmp_path]
    assert call(ablate, *command).returncode == 0
    path = tmp_path / 'crowd' / 'base-0' / 'metrics.json'
    before = numbers(path)
    path.unlink()
    assert call(ablate, *command).returncode == 0
    assert all(numbers(path)[k] == before[k] for k in ablate.METRICS)


def test_a_row_that_diverges_counts_as_zero(tmp_path, monkeypatch):
    def diverge(args):
        raise train.Diverged('a spike')
    monkeypatch.setattr(train, 'train', diverge)
    assert call(ablate, '--table', 'filter', *TINY, '--out', tmp_path).returncode == 0
    text = (tmp_path / 'crowd' / 'results.md').read_text()
    assert '| part filter |  | not published | 0.0 | 0.0 | 0.0 | 0.0 | 1, 1 diverged |' in text


def test_data_sets_without_a_recipe_or_samples_have_fewer_rows():
    def trainings(*flags):
        return set(ablate.Study(ablate.parse_arguments(['--table', 'all', *flags])).trainings)
    assert trainings() == set(TRAININGS)
    assert trainings('--data', 'MHP') == set(TRAININGS) - {'released_time'}
    assert trainings('--data', 'CCP') == set(TRAININGS) - {'released_time', 'released'}


def test_processes_share_the_trainings_of_a_data_set(tmp_path):
    write_tiny_mhp(tmp_path)
    command = ['--table', '5', '--data', 'MHP', '--root', tmp_path, '--out', tmp_path / 'out', '--epochs', '1', '--backbone',
               'resnet10', '--pretrained', '', '--no-dcn', '--batch-size', '2', '--short-side', '64', '--long-side', '96',
               '--test-short-side', '64', '--workers', '0', *TINY[2:]]
    done = run('python', '-m', 'torch.distributed.run', '--nproc-per-node', '2', '--standalone', '-m', 'tools.ablate', *command)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / 'out' / 'MHP'
    rows = {name: numbers(folder / f'{name}-0' / 'metrics.json') for name in ('base', 'no_parsing')}
    assert {name: row['0']['mIoU'] for name, row in numbers(folder / 'results.json')['rows'].items()} \
        == {name: row['mIoU'] for name, row in rows.items()}
    assert done.stdout.count('base, seed 0: ') == done.stdout.count('no_parsing, seed 0: ') == 1


def test_a_data_set_without_its_folder_is_refused(tmp_path):
    done = call(ablate, '--table', '5', '--data', 'MHP', '--out', tmp_path)
    assert done.returncode == 2 and done.stderr.startswith('error: MHP is read from files') and done.stderr.count('\n') == 1


@pytest.mark.parametrize('row', {row.name: row for _, rows in TABLES.values() for row in rows}.values(), ids=lambda row: row.name)
def test_every_row_has_settings_that_exist(row):
    assert row.training in TRAININGS and row.nms in ('', 'gaussian', 'linear') and len(row.paper) in (0, 3)
    words = row.flags.strip('`').split()
    test, training = (as_flags(changes).split() for changes in (row.test, TRAININGS[row.training]))
    assert words == training + test
    args = train.parse_arguments(training)
    changes = dict(given_settings(args, Config), **({'recipe': args.recipe} if args.recipe else {}))
    assert changes == TRAININGS[row.training]
    given = vars(infer.parse_arguments(['photo.jpg', *test]))
    assert all(given[k] == v for k, v in row.test.items())
    assert (changes or row.test or row.name == 'base') and get_config('crowd', **changes, **row.test)


def test_flags_of_settings_are_read_back():
    changes = dict(light=True, dcn=False, grid=20, sigma=0.1, fusion='multi', short_side=(96, 128), lambda_par=0.0)
    assert given_settings(train.parse_arguments(as_flags(changes).split()), Config) == changes


# ---- Matrix NMS ------------------------------------------------------------------------------------------------


def iou(a, b):
    return (a & b).sum() / max((a | b).sum(), 1)


@pytest.mark.parametrize('kernel', ['gaussian', 'linear'])
def test_matrix_nms_equals_its_definition(kernel):
    """SOLOv2, Eq. (5): decay_j = min over i better than j of f(iou_ij) / f(iou_.i), iou_.i = max over k better than i."""
    rng = np.random.default_rng(0)
    masks = rng.random((7, 6, 8)) < rng.uniform(0.2, 0.8, (7, 1, 1))
    masks[4] = masks[1]
    scores = np.sort(rng.random(7))[::-1]
    f = {'gaussian': lambda x: math.exp(-2 * x * x), 'linear': lambda x: max(1 - x, 1e-9)}[kernel]
    expected = []
    for j in range(7):
        own = [max((iou(masks[k], masks[i]) for k in range(i)), default=0) for i in range(j)]
        expected.append(scores[j] * min((f(iou(masks[i], masks[j])) / f(own[i]) for i in range(j)), default=1))
    found = matrix_nms(masks, scores, kernel)
    assert np.allclose(found, expected, atol=1e-6) and found[0] == scores[0]
    assert found[4] < {'gaussian': 0.6, 'linear': 1e-6}[kernel] * scores[4]
    assert matrix_nms(masks[:0], scores[:0], kernel).shape == (0,)


def test_suppression_drops_copies_and_sorts_again():
    model = SuppressingUniParser(tiny_config('crowd', theta_center=0.3))
    model.kernel = 'linear'
    parsing = np.zeros((3, 8, 8), np.uint8)
    parsing[:2, :4], parsing[2, 4:] = 3, 5
    found = model.suppress(Parsing(parsing, np.array([0.9, 0.8, 0.7]), np.arange(6).reshape(3, 2)))
    assert found.scores.tolist() == [0.9, 0.7] and np.array_equal(found.parsing, parsing[[0, 2]])
    assert found.centers.tolist() == [[0, 1], [4, 5]]


# ---- peaks and tables ------------------------------------------------------------------------------------------


def test_without_the_maximum_every_cell_above_the_threshold_is_a_center():
    heatmap = torch.full((12, 12), -9.0)
    heatmap[3, 3:6], heatmap[9, 9] = torch.tensor([1.0, 2.0, 1.5]), 0.5
    cells = {n: find_centers(heatmap, tiny_config(peaks=n, theta_center=0.5))[0].tolist() for n in (1, 5)}
    assert cells[5] == [40, 117] and cells[1] == [40, 41, 39, 117]
    with pytest.raises(ValueError, match='--peaks is 2; choose one of 1, 3, 5, 7'):
        tiny_config(peaks=2)


def test_tables_show_mean_spread_and_number_of_seeds():
    assert mean_and_spread([31.4]) == '31.4' and mean_and_spread([1.0, 2.0, 3.0]) == '2.0 \N{PLUS-MINUS SIGN} 1.0'
    seed = dict(zip(ablate.METRICS, (1.0, 2.0, 3.0, 4.0)))
    tables = {'x': ('Title', [Row('two', 'base', {}, '', (1, 2, 3)), Row('none', 'light')])}
    text = markdown('x', {'base': {'0': seed, '1': {k: v + 2 for k, v in seed.items()}}}, tables)
    spread = '\N{PLUS-MINUS SIGN} 1.4'
    assert text.splitlines()[-2:] == [
        f'| two |  | 1.0 / 2.0 / 3.0 | 2.0 {spread} | 3.0 {spread} | 4.0 {spread} | 5.0 {spread} | 2 |',
        '| none | `--light` | not published | not run | not run | not run | not run | 0 |']
    page = 'Text.\n\n    python -m tools.ablate --table x --seeds 0\n\n| old |\n| --- |\n\nMore. --table x\n\n| other |\n'
    new = replace_tables(page, {}, tables)
    assert new.startswith(page[:51]) and new.endswith('\n\nMore. --table x\n\n| other |\n') and 'old' not in new
    assert new.count('| two |  | 1.0 / 2.0 / 3.0 | not run |') == 1 and replace_tables(new, {}, tables) == new


# ---- drawn crowds ----------------------------------------------------------------------------------------------


def test_drawn_crowds_are_crowds():
    crowd, simple = open_dataset('crowd', split='val'), open_dataset('synthetic', split='val')
    names, counts, overlaps, seen = crowd.class_names, [], 0, np.zeros(len(crowd.class_names), int)
    for i in range(30):
        image, parsing, ignore = crowd.read(i)
        assert image.shape == (96, 128, 3) and parsing.shape[1:] == ignore.shape == (96, 128)
        again = crowd.read(i)
        assert np.array_equal(image, again[0]) and np.array_equal(parsing, again[1])
        counts.append(len(parsing))
        boxes = [np.nonzero(p.any(0))[0][[0, -1]] for p in parsing]
        overlaps += sum(a[0] <= b[1] and b[0] <= a[1] for a, b in itertools.combinations(boxes, 2))
        seen += np.bincount([c for p in parsing for c in np.unique(p)], minlength=len(names))
        for person in parsing:
            left, right = (np.nonzero(person == names.index(f'{side}-shoe'))[1] for side in ('left', 'right'))
            assert not len(left) or not len(right) or left.mean() > right.mean()
    assert 4 <= np.mean(counts) <= 8 and max(counts) <= 8 and overlaps > 60
    assert seen[1:].all() and seen[names.index('hat')] < 0.4 * sum(counts)
    assert max(len(simple.read(i)[1]) for i in range(30)) <= 3


def test_crowds_train_a_step_with_every_fusion():
    for fusion in 'index', 'convs', 'multi':
        assert len(tiny_model('crowd', fusion=fusion).predict(open_dataset('crowd').read(0)[0])) == 1

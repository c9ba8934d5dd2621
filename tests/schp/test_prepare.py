"""schp prepare, and the three steps of the fork's README on tiny files in the original layouts."""
import os

import numpy as np
import pytest
import torch
from PIL import Image

from schp import SCHP, merged
from schp import __main__ as schp
from schp.data import flatten, open_dataset
from schp.prepare import prepare
from schp.segformer import SegFormer
from tests.helpers import call
from tests.seeded import blobs, photo
from util.labels import LABEL_SETS

torch.set_num_threads(1)
TINY = ['--network', 'segformer', '--size', '64', '48', '--blocks', '1', '1', '1', '1', '--width', '8', '--epochs', '2',
        '--warmup', '1', '--cycle-start', '1', '--cycle-epochs', '1', '--batch-size', '2', '--workers', '0',
        '--val-every', '2', '--device', 'cpu']


def write_deepfashion(root, count=6, size=(40, 30)):
    """A download of `count` images in the original layout; returns {id: (segm, parts)}."""
    maps = {}
    for folder in ('images', 'segm', 'densepose'):
        (root / folder).mkdir(parents=True)
    for k in range(count):
        name, segm, parts = f'WOMEN-Dresses-id_{k:08}-01_4_full', blobs(k, *size, 24), blobs(50 + k, *size, 25)
        maps[name] = segm, parts
        Image.fromarray(photo(k, *size)).save(root / 'images' / f'{name}.jpg')
        Image.fromarray(segm).save(root / 'segm' / f'{name}_segm.png')
        Image.fromarray(np.dstack([blobs(90 + k, *size, 200), blobs(80 + k, *size, 200), parts])).save(
            root / 'densepose' / f'{name}_densepose.png')
    return maps


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}


def test_prepared_set_has_disjoint_halves_in_the_layout_of_lip(tmp_path):
    maps, out = write_deepfashion(tmp_path / 'raw'), tmp_path / 'made' / 'sep'
    Image.new('L', (30, 40)).save(tmp_path / 'raw' / 'segm' / 'without_photo_segm.png')
    assert prepare('DeepFashion', tmp_path / 'raw', out, 'sep', samples=4) == dict(train=4, val=2, left_out=1)
    ids = {name: (out / f'{name}_id.txt').read_text().split() for name in ('train', 'val')}
    assert len(ids['train']) == 4 and sorted(ids['train'] + ids['val']) == sorted(maps)
    for name, members in ids.items():
        assert sorted(os.listdir(out / f'{name}_images')) == sorted(f'{i}.jpg' for i in members)
        assert sorted(os.listdir(out / f'{name}_segmentations')) == sorted(f'{i}.png' for i in members)
        for i in members:
            labels = np.asarray(Image.open(out / f'{name}_segmentations' / f'{i}.png'))
            np.testing.assert_array_equal(labels, merged.deepfashion_to_merged(*maps[i], 'sep'))
            difference = np.asarray(Image.open(out / f'{name}_images' / f'{i}.jpg'), float) - photo(
                list(maps).index(i), 40, 30)
            assert np.abs(difference).mean() < 4                             # JPEG, twice
    assert os.listdir(tmp_path / 'made') == ['sep']


def test_preparing_repeats_exactly_and_the_seed_decides(tmp_path):
    write_deepfashion(tmp_path / 'raw', 8)
    for name, seed in (('a', 0), ('b', 0), ('c', 1)):
        prepare('DeepFashion', tmp_path / 'raw', tmp_path / name, 'with_torso', 3, 2, seed)
    assert contents(tmp_path / 'a') == contents(tmp_path / 'b') != contents(tmp_path / 'c')
    assert len((tmp_path / 'a' / 'val_id.txt').read_text().split()) == 2


def damage(kind, root):
    first = sorted((root / 'segm').iterdir())[0].name.removesuffix('_segm.png')
    if kind == 'photo':
        (root / 'images' / f'{first}.jpg').write_bytes(b'\xff\xd8\xff')
    elif kind == 'label':
        Image.fromarray(np.full((40, 30), 24, np.uint8)).save(root / 'segm' / f'{first}_segm.png')
    elif kind == 'part':
        Image.fromarray(np.full((40, 30, 3), 25, np.uint8)).save(root / 'densepose' / f'{first}_densepose.png')
        Image.fromarray(np.full((40, 30), 15, np.uint8)).save(root / 'segm' / f'{first}_segm.png')
    elif kind == 'gray':
        Image.new('L', (30, 40)).save(root / 'densepose' / f'{first}_densepose.png')
    elif kind == 'size':
        Image.new('RGB', (31, 40)).save(root / 'densepose' / f'{first}_densepose.png')
    return first


@pytest.mark.parametrize('kind', ['photo', 'label', 'part', 'gray', 'size'])
def test_damaged_file_is_named_and_nothing_is_left_behind(kind, tmp_path):
    write_deepfashion(tmp_path / 'raw')
    first = damage(kind, tmp_path / 'raw')
    with pytest.raises((ValueError, OSError)) as error:
        prepare('DeepFashion', tmp_path / 'raw', tmp_path / 'out', samples=4)
    assert first in str(error.value) and '\n' not in str(error.value)
    assert os.listdir(tmp_path) == ['raw']


def test_impossible_wishes_of_prepare_get_one_sentence(tmp_path):
    write_deepfashion(tmp_path / 'raw')
    (tmp_path / 'taken').mkdir()
    (tmp_path / 'empty').mkdir()
    for root, out, options, words in (
            ('raw', 'taken', {}, 'taken exists'), ('raw', 'out', dict(samples=6), 'choose other numbers'),
            ('raw', 'out', dict(samples=5, val_samples=2), 'choose other numbers'),
            ('raw', 'out', dict(scheme='none'), 'map.* scheme'), ('empty', 'out', {}, 'images'),
            ('nowhere', 'out', {}, 'nowhere')):
        with pytest.raises((ValueError, OSError), match=words):
            prepare('DeepFashion', tmp_path / root, tmp_path / out, **{'samples': 4, **options})
    assert sorted(os.listdir(tmp_path)) == ['empty', 'raw', 'taken']


# ---- LIP and CCP


def write_lip(root, counts=dict(train=5, val=3), size=(40, 30)):
    """LIP's layout with drawn people; returns {split: {id: labels}}."""
    maps = {}
    for split, count in counts.items():
        for folder in ('images', 'segmentations'):
            (root / f'{split}_{folder}').mkdir(parents=True)
        ids = {f'{100 + k}_{split}': k + (50 if split == 'val' else 0) for k in range(count)}
        maps[split] = {i: blobs(k, *size, 20, ignore=3) for i, k in ids.items()}
        for i, k in ids.items():
            Image.fromarray(photo(k, *size)).save(root / f'{split}_images' / f'{i}.jpg')
            Image.fromarray(maps[split][i]).save(root / f'{split}_segmentations' / f'{i}.png')
        (root / f'{split}_id.txt').write_text(''.join(f'{i}\n' for i in ids))
    return maps


def test_lip_is_merged_in_its_own_splits(tmp_path):
    maps = write_lip(tmp_path / 'LIP')
    counts = prepare('LIP', tmp_path / 'LIP', tmp_path / 'merged', samples=4)
    assert counts == dict(train=4, val=3, left_out=0)
    for split, count in (('train', 4), ('val', 3)):
        dataset = open_dataset('merged', tmp_path / 'merged', split)
        assert dataset.ids == list(maps[split])[:count]                      # the first ones, as the fork takes them
        assert dataset.class_names == LABEL_SETS['merged'].names
        for i, name in enumerate(dataset.ids):
            image, *labels = dataset.read(i)
            expected = merged.lip_to_merged(maps[split][name])
            np.testing.assert_array_equal(flatten(*labels), expected)
            assert (expected == 255).any() and image.shape == (40, 30, 3)
    with pytest.raises(ValueError, match='hands'):
        prepare('LIP', tmp_path / 'LIP', tmp_path / 'sep', scheme='sep')
    assert sorted(os.listdir(tmp_path)) == ['LIP', 'merged']


@pytest.mark.skipif('UNIPARSER_CCP' not in os.environ, reason='UNIPARSER_CCP names no folder of Clothing Co-Parsing')
def test_photos_of_ccp_are_merged(tmp_path):
    assert prepare('CCP', os.environ['UNIPARSER_CCP'], tmp_path / 'out', 'with_torso', 1, 2) == dict(
        train=1, val=2, left_out=0)
    image, *labels = open_dataset('merged', tmp_path / 'out', 'val').read(1)
    raw, *truth = open_dataset('CCP', os.environ['UNIPARSER_CCP'], 'val').read(1)
    np.testing.assert_array_equal(flatten(*labels), merged.cihp_to_merged(flatten(*truth), 'with_torso'))
    assert np.abs(image.astype(float) - raw).mean() < 4


# ---- the fork's README, step by step


@pytest.fixture(scope='module')
def steps(tmp_path_factory):
    """Results of the commands in turn: prepare, train on LIP, both phases on DeepFashion, evaluate."""
    root = tmp_path_factory.mktemp('steps')
    write_lip(root / 'LIP')
    write_deepfashion(root / 'DeepFashion', 9)
    torch.manual_seed(0)
    backbone = SegFormer(range(9), blocks=(1, 1, 1, 1), width=8).backbone.state_dict()
    torch.save({**backbone, 'head.weight': torch.zeros(1000, 64), 'head.bias': torch.zeros(1000)}, root / 'mit.pth')
    train = ['train', '--data', 'merged-sep', '--root', 'sep', *TINY, '--recipe', 'released', '--samples', '4']
    commands = dict(
        prepare=['prepare', '--data', 'DeepFashion', '--root', 'DeepFashion', '--out', 'sep', '--samples', '6'],
        prepare_lip=['prepare', '--data', 'LIP', '--root', 'LIP', '--out', 'lip', '--samples', '4'],
        lip=['train', '--data', 'merged', '--root', 'lip', *TINY, '--pretrained', 'mit.pth', '--out', 'runs/lip'],
        phase_1=[*train, '--phase', '1', '--weights', 'runs/lip/cycle_2.pt', '--reset-cycle', '--out', 'runs/1'],
        phase_2=[*train, '--phase', '2', '--weights', 'runs/1/cycle_2.pt', '--reset-cycle', '--out', 'runs/2'],
        evaluate=['evaluate', '--data', 'merged-sep', '--root', 'sep', '--weights', 'runs/2/cycle_2.pt', '--labels',
                  'merged-sep', '--device', 'cpu'],
        extract=['extract', 'sep/val_images', '--weights', 'runs/2/cycle_2.pt', '--out', 'parsed', '--device', 'cpu'])
    results = {}
    for name, command in commands.items():
        results[name] = call(schp, *command, cwd=root)
        assert results[name].returncode == 0, (name, results[name].stderr)
    return root, results


def test_steps_of_the_readme_print_what_they_did(steps):
    root, results = steps
    assert results['prepare'].stdout.startswith('6 training and 3 validation images -> sep/; next: python -m schp train')
    assert '--data merged-sep' in results['prepare'].stdout and '--data merged ' in results['prepare_lip'].stdout
    for name in ('lip', 'phase_1', 'phase_2'):
        out = results[name].stdout
        assert '4 training and 3 validation images' in out and 'network=segformer' in out
        assert 'cycle 1: ' in out and 'cycle 2: ' in out and out.splitlines()[-1].split(':')[1].startswith(' mIoU 0.')
    table = results['evaluate'].stdout
    trained, evaluated = (float(text.split('mIoU ')[-1].split()[0]) for text in (results['phase_2'].stdout, table))
    assert abs(trained - evaluated / 100) < 0.001         # the same model: that of the last cycle
    assert all(name in table for name in LABEL_SETS['merged-sep'].names)
    assert results['extract'].stdout.splitlines()[-1] == '3 of 3 photos -> parsed/'
    maps = {name: np.asarray(Image.open(root / 'parsed' / name)) for name in os.listdir(root / 'parsed') if '.png' in name}
    assert len(maps) == 3 and all(m.shape == (40, 30) and m.max() < 9 for m in maps.values())


@pytest.mark.parametrize('recipe', ['paper', 'released'])
def test_a_resumed_run_equals_one_without_a_stop(steps, recipe):
    root, _ = steps
    command = ['train', '--data', 'merged-sep', '--root', 'sep', *TINY, '--recipe', recipe, '--samples', '4', '--phase', '2',
               '--weights', 'runs/1/cycle_2.pt', '--reset-cycle', '--cycle-start', '2', '--out']
    runs = [[*command, f'runs/{recipe}_once', '--epochs', '3'], [*command, f'runs/{recipe}_twice', '--epochs', '1'],
            ['train', '--resume', f'runs/{recipe}_twice', '--epochs', '3', '--device', 'cpu']]
    for arguments in runs:
        done = call(schp, *arguments, cwd=root)
        assert done.returncode == 0, done.stderr
    once, twice = (torch.load(root / 'runs' / f'{recipe}_{name}' / 'last.pt', weights_only=True) for name in ('once', 'twice'))
    assert once['cycle'] == twice['cycle'] == 2
    for part in ('model', 'averaged'):
        assert all(torch.equal(value, twice[part][key]) for key, value in once[part].items())


def test_weights_bring_their_cycle_unless_it_is_reset(steps):
    root, _ = steps
    command = ['train', '--data', 'merged-sep', '--root', 'sep', *TINY, '--samples', '4', '--epochs', '1', '--weights',
               'runs/1/cycle_2.pt', '--out']
    for name, more, cycle in (('kept', [], 2), ('reset', ['--reset-cycle'], 0)):
        assert call(schp, *command, f'runs/{name}', *more, cwd=root).returncode == 0
        assert torch.load(root / 'runs' / name / 'last.pt', weights_only=True)['cycle'] == cycle
        log = (root / 'runs' / name / 'log.jsonl').read_text()
        assert ('kl_fusion' in log) == (cycle > 0) and ('ce_fusion' in log) == (cycle == 0)


@pytest.mark.parametrize('arguments, words', [
    (['--data', 'merged', '--root', 'lip', *TINY, '--weights', 'sep/train_id.txt'], 'sep/train_id.txt'),
    (['--data', 'merged', '--root', 'lip', *TINY, '--phase', '3'], 'phase is 3'),
    (['--data', 'merged', '--root', 'lip', *TINY, '--network', 'ace2p', '--phase', '1'], 'phase is 1'),
    (['--data', 'LIP', '--root', 'LIP', *TINY, '--weights', 'runs/1/cycle_2.pt'], '9 classes'),
    (['--data', 'merged', '--root', 'lip', *TINY, '--width', '16', '--weights', 'runs/1/cycle_2.pt'], 'does not fit'),
    (['--data', 'merged', '--root', 'LIP', *TINY], 'there are only 8 classes'),
    (['--data', 'merged', '--root', 'lip', *TINY, '--pretrained', 'runs/1/cycle_2.pt'], 'runs/1/cycle_2.pt'),
    (['--data', 'merged', '--root', 'lip', *TINY, '--samples', '-1'], 'samples is -1')])
def test_wrong_settings_get_one_sentence(steps, arguments, words):
    root, _ = steps
    done = call(schp, 'train', *arguments, cwd=root)
    assert done.returncode == 2 and done.stderr.startswith('error: ') and done.stderr.count('\n') == 1
    assert words in done.stderr, done.stderr


def test_phase_1_leaves_the_backbone_as_it_was_and_phase_2_does_not(steps):
    root, _ = steps
    runs = [SCHP.from_pretrained(root / 'runs' / name / 'cycle_2.pt').state_dict() for name in ('lip', '1', '2')]
    for key in runs[0]:
        if key.startswith('backbone.'):
            assert torch.equal(runs[0][key], runs[1][key])
    assert not torch.equal(runs[0]['head.linear_pred.weight'], runs[1]['head.linear_pred.weight'])
    assert not torch.equal(runs[1]['backbone.block1.0.attn.q.weight'], runs[2]['backbone.block1.0.attn.q.weight'])

"""SCHP's commands: train and resume, evaluate, extract, IntegratedPIFu, fuse, export; bad input."""
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import map_coordinates

import evaluate
import infer
from schp import SCHP
from schp import __main__ as schp
from schp import data as single_person
from schp import fuse
from schp.evaluation import semantic_metrics
from tests.helpers import call, run, stop_at_step, weights, write_photo, write_video
from tests.seeded import blobs, seeded
from tools import export
from util import video
from util.labels import LABEL_SETS, convert, voc_palette
from util.rle import decode_rle
from util.metrics import confusion_matrix
from util.submissions import open_predictions

torch.set_num_threads(1)
SHORT = ['--size', '48', '40', '--blocks', '1', '1', '1', '1', '--width', '4', '--batch-size', '4', '--epochs', '4',
         '--warmup', '0', '--cycle-start', '2', '--cycle-epochs', '1', '--val-every', '4', '--workers', '0', '--lr',
         '0.02', '--device', 'cpu']


def test_phase_1_needs_a_backbone(tmp_path):
    """It trained the heads on a random one."""
    done = call(schp, 'train', '--network', 'segformer', '--phase', '1', '--root', tmp_path, '--out', tmp_path / 'a')
    assert done.returncode == 2 and done.stderr.startswith('error: --phase 1 trains the heads on a backbone that stays')
    assert not (tmp_path / 'a').exists()


def write_lip(root, count=8, classes=20, size=(60, 50)):
    """Photos whose colors are their labels, in LIP's layout."""
    colors = voc_palette()
    for split, ids in (('train', range(count)), ('val', range(count, count + 2))):
        for i in ids:
            labels = blobs(i, *size, classes, n=8)
            for kind, image in (('images', Image.fromarray(colors[labels])),
                                ('segmentations', Image.fromarray(labels))):
                folder = root / f'{split}_{kind}'
                folder.mkdir(parents=True, exist_ok=True)
                image.save(folder / f'{i}.{"jpg" if kind == "images" else "png"}')
        (root / f'{split}_id.txt').write_text(''.join(f'{i}\n' for i in ids))


@pytest.fixture(scope='module')
def lip(tmp_path_factory):
    root = tmp_path_factory.mktemp('data') / 'LIP'
    write_lip(root)
    return root


@pytest.fixture(scope='module')
def trained(lip, tmp_path_factory):
    """A run through two averages: its folder."""
    out = tmp_path_factory.mktemp('runs') / 'lip'
    done = call(schp, 'train', '--data', 'LIP', '--root', lip, '--out', out, *SHORT)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope='module')
def pascal(tmp_path_factory):
    """Untrained weights of Pascal-Person-Part."""
    path = tmp_path_factory.mktemp('weights') / 'pascal.pt'
    torch.manual_seed(0)
    SCHP(LABEL_SETS['pascal'].names, (48, 40), (), (1, 1, 1, 1), 4).save(path)
    return path


# ---- train


def test_a_run_leaves_its_cycles_pictures_and_an_averaged_best(trained):
    assert {'config.json', 'log.jsonl', 'last.pt', 'best.pt', 'cycle_1.pt', 'cycle_2.pt', 'cycle_3.pt'} <= {
        p.name for p in trained.iterdir()}
    assert len(list((trained / 'val').glob('*.png'))) == 2
    best, last = SCHP.from_pretrained(trained / 'best.pt'), SCHP.from_pretrained(trained / 'cycle_3.pt')
    torch.testing.assert_close(best.state_dict(), last.state_dict(), rtol=0, atol=0)
    assert best.class_names == LABEL_SETS['lip'].names and best.size == (48, 40) and best.flip_pairs[0] == (14, 15)
    records = [json.loads(line) for line in (trained / 'log.jsonl').read_text().splitlines()]
    assert 'ce_parsing' in records[0] and any('kl_parsing' in r for r in records)
    assert {'mIoU', 'pixel_accuracy', 'mean_accuracy'} <= set(records[-1])


@pytest.mark.parametrize('recipe', ['paper', 'released'])
def test_a_stopped_run_continues_bit_by_bit(lip, tmp_path, monkeypatch, recipe):
    """Stopped in a cycle, where dropout, the averaged model and its soft labels matter."""
    whole, parts = tmp_path / 'whole', tmp_path / 'parts'
    flags = ['train', '--data', 'LIP', '--root', lip, '--recipe', recipe, *SHORT]
    assert call(schp, *flags, '--out', whole).returncode == 0

    count = stop_at_step(monkeypatch, 5)
    assert 'stopped' in call(schp, *flags, '--out', parts).stdout and len(count) == 5
    state = torch.load(parts / 'last.pt', weights_only=True)
    assert (state['epoch'], state['position'], state['cycle']) == (2, 1, 1)
    assert call(schp, 'train', '--resume', parts, '--device', 'cpu').returncode == 0 and len(count) == 8
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(parts)[name]), name
    pair = [torch.load(folder / 'last.pt', weights_only=True)['averaged'] for folder in (whole, parts)]
    assert all(torch.equal(pair[0][name], pair[1][name]) for name in pair[0])


def test_labels_stay_as_they_are_without_correction(lip, tmp_path):
    done = call(schp, 'train', '--data', 'LIP', '--root', lip, '--out', tmp_path / 'r', *SHORT, '--no-correct-labels')
    assert done.returncode == 0 and 'kl_parsing' not in (tmp_path / 'r' / 'log.jsonl').read_text()
    assert (tmp_path / 'r' / 'cycle_3.pt').exists()


def test_augmentation_without_scale_and_rotation_is_the_crop_or_its_mirror_image():
    labels = blobs(3, 60, 50, 20)
    image = voc_palette()[labels]
    plain = single_person.crop(image, single_person.crop_matrix((60, 50), (48, 40)), (48, 40))
    pairs, seen = LABEL_SETS['lip'].flip_pairs, set()
    for seed in range(6):
        rng = np.random.default_rng(seed)
        x, y = single_person.augment(image, labels, (48, 40), pairs, rng, scale=0, rotation=0)
        mirrored = not torch.allclose(x, plain)
        seen.add(mirrored)
        torch.testing.assert_close(x.flip(2) if mirrored else x, plain, atol=1e-3, rtol=0)
    assert seen == {False, True}
    swapped = single_person.datasets.swap_sides(np.uint8([[13, 14, 15, 255]]), pairs)
    assert swapped.tolist() == [[13, 15, 14, 255]]


@pytest.mark.parametrize('name, layout', [
    ('ATR', ('JPEGImages', 'SegmentationClassAug', 'train_id.txt')),
    ('Pascal', ('JPEGImages', 'pascal_person_part_gt', 'pascal_person_part_trainval_list/train.txt')),
    ('LIP', ('TrainVal_images/train_images', 'TrainVal_parsing_annotations/train_segmentations',
             'TrainVal_images/train_id.txt'))])
def test_official_layouts_are_read(tmp_path, name, layout):
    photos, labels, ids = (tmp_path / part for part in layout)
    write_photo(photos / 'a.jpg')
    labels.mkdir(parents=True)
    Image.fromarray(np.full((40, 60), 3, np.uint8)).save(labels / 'a.png')
    ids.parent.mkdir(parents=True, exist_ok=True)
    ids.write_text('/JPEGImages/a.jpg /labels/a.png\n')
    image, parsing, ignore = single_person.open_dataset(name, tmp_path, 'train').read(0)
    assert image.shape == (40, 60, 3) and (parsing == 3).all() and not ignore.any()


def test_cihp_gives_crops_of_another_person_in_each_epoch(tmp_path):
    human = np.zeros((40, 80), np.uint8)
    human[10:30, 5:25], human[10:38, 50:70] = 1, 2
    for kind, image in (('Images', np.zeros((40, 80, 3), np.uint8)), ('Human_ids', human), ('Category_ids', human * 5)):
        for split in ('Training', 'Validation'):
            (tmp_path / split / kind).mkdir(parents=True)
            Image.fromarray(image).save(tmp_path / split / kind / ('a.jpg' if kind == 'Images' else 'a.png'))
    train_set, val_set = (single_person.open_dataset('CIHP', tmp_path, split) for split in ('train', 'val'))
    sizes = {train_set.read(0, 0, epoch)[0].shape[:2] for epoch in range(8)}
    image, parsing, ignore = val_set.read(0)
    assert len(sizes) == 2 and image.shape[:2] in sizes and image.shape[:2] == ignore.shape == (33, 25)
    assert set(np.unique(parsing)) == {0, 10}                 # the larger one


# ---- evaluate


def test_evaluation_equals_that_of_its_own_label_maps(lip, trained, tmp_path):
    model, dataset = SCHP.from_pretrained(trained / 'best.pt'), single_person.open_dataset('LIP', lip, 'val')
    matrix, result = 0, {}
    (tmp_path / 'maps').mkdir()
    for i, name in enumerate(dataset.ids):
        image, parsing, _ = dataset.read(i)
        labels = model.predict([image], centers='int', flip=True, scales=(1, 0.75))[0].labels
        Image.fromarray(labels).save(tmp_path / 'maps' / f'{name}.png')
        matrix = matrix + confusion_matrix(labels, parsing.max(0), 20)
    sources = {'model': ('--weights', trained / 'best.pt', '--centers', 'int', '--flip', '--scales', '1', '0.75'),
               'maps': ('--predictions', tmp_path / 'maps')}
    for name, flags in sources.items():
        done = call(schp, 'evaluate', '--data', 'LIP', '--root', lip, *flags, '--device', 'cpu', '--json',
                    tmp_path / f'{name}.json')
        assert done.returncode == 0, done.stderr
        result[name] = json.loads((tmp_path / f'{name}.json').read_text())
    expected = semantic_metrics(matrix)
    assert result['maps']['mIoU'] == expected['mIoU'] and result['maps']['IoU'] == expected['IoU']
    assert result['model']['mIoU'] == pytest.approx(expected['mIoU'], abs=1e-3)           # folded
    assert f'mIoU {100 * expected["mIoU"]:.2f}' in done.stdout and 'Right-shoe' in done.stdout


# ---- extract


def test_extract_writes_palette_logits_and_overlay_and_goes_past_broken_photos(trained, tmp_path):
    write_photo(tmp_path / 'in' / 'a b.jpg', 1)
    write_photo(tmp_path / 'in' / 'sub' / 'thin.png', 2, (1, 1))
    (tmp_path / 'in' / 'broken.jpeg').write_text('no photo')
    done = call(schp, 'extract', 'in', '--weights', trained / 'best.pt', '--out', 'out', '--logits', '--device', 'cpu',
                '--batch-size', '2', cwd=tmp_path)
    assert done.returncode == 2 and 'broken.jpeg' in done.stderr and '2 of 3 photos' in done.stdout
    assert 'Traceback' not in done.stderr
    labels, logits = Image.open(tmp_path / 'out' / 'a b.png'), np.load(tmp_path / 'out' / 'a b.npy')
    assert labels.mode == 'P' and labels.size == (60, 40)
    assert labels.getpalette() == voc_palette().ravel().tolist()
    assert logits.shape == (40, 60, 20) and logits.dtype == np.float32
    assert (logits.argmax(2) == np.asarray(labels)).mean() > 0.999
    assert Image.open(tmp_path / 'out' / 'overlays' / 'a b.jpg').mode == 'RGB'
    assert Image.open(tmp_path / 'out' / 'thin.png').size == (1, 1)
    model = SCHP.from_pretrained(trained / 'best.pt')
    expected = model.predict([Image.open(tmp_path / 'in' / 'a b.jpg')])[0].labels
    assert (np.asarray(labels) == expected).mean() > 0.99
    done = call(schp, 'extract', 'in/sub/thin.png', '--weights', trained / 'best.pt', '--out', 'in/sub', cwd=tmp_path)
    assert done.returncode == 2 and 'thin.png exists and this program did not write it' in done.stderr


def test_extract_writes_the_json_and_the_cutouts_of_infer(trained, tmp_path):
    write_photo(tmp_path / 'a.png', 1)
    start = 'extract', tmp_path / 'a.png', '--weights', trained / 'best.pt', '--out', tmp_path / 'out', '--device', 'cpu'
    done = call(schp, *start, '--cutouts')
    assert done.returncode == 0, done.stderr
    out = tmp_path / 'out'
    result, = SCHP.from_pretrained(trained / 'best.pt').fold().predict(tmp_path / 'a.png')
    assert json.loads((out / 'a.json').read_text()) == json.loads(json.dumps(result.to_dict()))
    labels = np.asarray(Image.open(out / 'a.png'))
    assert np.array_equal(labels, result.labels) and result[0].score == 1 and labels.any()
    parts = result[0].parts
    assert {path.stem for path in (out / 'a_cutouts').iterdir()} == {'person1', *(f'person1_{name}' for name in parts)}
    for name, part in parts.items():
        alpha = np.asarray(Image.open(out / 'a_cutouts' / f'person1_{name}.png'))[..., 3]
        assert (alpha > 0).sum() == part.area == (labels == part.id).sum()
    assert 'a_cutouts/person1.png' in (out / 'index.html').read_text()
    # The next run without the flag removes them.
    assert call(schp, *start).returncode == 0 and not (out / 'a_cutouts').exists()


def test_extract_converts_to_another_label_set(trained, tmp_path):
    write_photo(tmp_path / 'a.png', 1)
    start = 'extract', tmp_path / 'a.png', '--weights', trained / 'best.pt', '--device', 'cpu', '--logits'
    for name, more in (('lip', []), ('atr', ['--to', 'atr'])):
        done = call(schp, *start, '--out', tmp_path / name, *more)
        assert done.returncode == 0, done.stderr
    lip, atr = (np.asarray(Image.open(tmp_path / name / 'a.png')) for name in ('lip', 'atr'))
    assert np.array_equal(atr, convert(lip, 'lip', 'atr')) and (atr != lip).any()
    record = json.loads((tmp_path / 'atr' / 'a.json').read_text())
    assert all(LABEL_SETS['atr'].names[part['id']] == part['name'] for part in record['people'][0]['parts'])
    assert np.array_equal(np.load(tmp_path / 'lip' / 'a.npy'), np.load(tmp_path / 'atr' / 'a.npy'))


def test_extract_refuses_what_it_would_ignore_or_cannot_convert(pascal, trained, tmp_path):
    write_photo(tmp_path / 'a.png')
    for arguments, sentence in (
            (['a.png', '--weights', pascal, '--to', 'atr'], 'no table leads from the classes'),
            (['--integratedpifu', '.', '--weights', pascal, '--cutouts'], '--cutouts is for photos'),
            (['--integratedpifu', '.', '--weights', pascal, '--to', 'atr'], '--to is for photos')):
        done = call(schp, 'extract', *arguments, '--device', 'cpu', cwd=tmp_path)
        assert done.returncode == 2 and sentence in done.stderr and done.stderr.count('\n') == 1, done.stderr
    for arguments, sentence in (
            (['fuse', 'a.png', '--weights', pascal, '--split', 'val'], '--split is for a data set'),
            (['fuse', 'a.png', '--weights', pascal, '--people', '.', '--people-weights', 'x'], '--people-weights is for'),
            (['evaluate', '--predictions', '.', '--flip'], '--flip is for --weights'),
            (['evaluate', '--predictions', '.', '--centers', 'float'], '--centers is for --weights')):
        done = call(schp, *arguments, cwd=tmp_path)
        assert done.returncode == 2 and done.stderr.startswith(f'error: {sentence}'), done.stderr


def test_processes_share_a_folder(trained, tmp_path):
    for k in range(3):
        write_photo(tmp_path / 'in' / f'{k}.png', k)
    done = run('python', '-m', 'torch.distributed.run', '--nproc-per-node', '2', '--standalone', '-m', 'schp',
               'extract', tmp_path / 'in', '--weights', trained / 'best.pt', '--out', tmp_path / 'out', '--device', 'cpu')
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(list((tmp_path / 'out').glob('*.png'))) == 3


def test_two_processes_train_through_the_cycles(tmp_path):
    write_lip(tmp_path / 'LIP')
    done = run('python', '-m', 'torch.distributed.run', '--nproc-per-node', '2', '--standalone', '-m', 'schp', 'train',
               '--data', 'LIP', '--root', tmp_path / 'LIP', '--out', tmp_path / 'run', *SHORT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert '2 x cpu' in done.stdout and done.stdout.count('epoch 4: mIoU') == 1
    state = torch.load(tmp_path / 'run' / 'last.pt', weights_only=True)
    assert state['cycle'] == 3 and (tmp_path / 'run' / 'cycle_3.pt').exists()
    assert all(torch.isfinite(v).all() for k in ('model', 'averaged') for v in state[k].values())


def test_integratedpifu_gets_its_codes_for_both_lists(pascal, trained, tmp_path):
    root = tmp_path / 'pifu'
    for subject, split in (('0001', 'train'), ('0412', 'test')):
        folder = root / 'rendering_script' / 'buffer_fixed_full_mesh' / subject
        for k in (0, 10):
            rgb = np.random.default_rng(k).integers(0, 256, (40, 40, 4), np.uint8)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rgb).save(folder / f'rendered_image_{k:03d}.png')
            Image.fromarray(rgb[..., 0]).save(folder / f'rendered_mask_{k:03d}.png')
        (root / f'{split}_set_list.txt').write_text(subject + '\n')
    done = call(schp, 'extract', '--integratedpifu', root, '--weights', pascal, '--device', 'cpu', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    out = tmp_path / 'render_human_parse_results'
    assert sorted(str(p.relative_to(out)) for p in out.rglob('*') if p.is_file()) == [
        f'{s}/rendered_parse_{k:03d}.npy' for s in ('0001', '0412') for k in (0, 10)]
    codes, model = np.load(out / '0412' / 'rendered_parse_010.npy'), SCHP.from_pretrained(pascal)
    assert codes.dtype == np.float32 and codes.shape == (40, 40)
    photo = Image.open(root / 'rendering_script/buffer_fixed_full_mesh/0412/rendered_image_010.png').convert('RGB')
    labels, table = model.predict([photo])[0].labels, [0, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    for label in range(7):                                    # IntegratedPIFu compares float32 with these literals
        assert ((codes == np.float32(table[label])) == (labels == label)).mean() > 0.99
    (root / 'test_set_list.txt').write_text('0412\n0999\n')
    done = call(schp, 'extract', '--integratedpifu', root, '--weights', pascal, '--out', tmp_path / 'again', '--device', 'cpu')
    assert done.returncode == 2 and '0999' in done.stderr and '4 of 5' in done.stdout
    done = call(schp, 'extract', '--integratedpifu', root, '--weights', trained / 'best.pt', '--device', 'cpu')
    assert done.returncode == 2 and 'IntegratedPIFu needs the 7' in done.stderr


# ---- fuse


@pytest.fixture(scope='module')
def crowd(tmp_path_factory):
    """CIHP's layout with one photo of two people, and their id map with scores."""
    root = tmp_path_factory.mktemp('cihp')
    human = np.zeros((60, 90), np.uint8)
    human[10:50, 10:40], human[12:55, 50:80] = 1, 2
    photo = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    images = dict(Images=photo, Human_ids=human, Category_ids=human * 5, Instance_ids=human * 25 - 20 * (human > 0))
    for kind, image in images.items():
        (root / 'Validation' / kind).mkdir(parents=True)
        Image.fromarray(image.astype(np.uint8)).save(root / 'Validation' / kind / ('a.png' if kind != 'Images' else 'a.jpg'))
    (root / 'people').mkdir()
    Image.fromarray(human).save(root / 'people' / 'a.png')
    (root / 'people' / 'a.txt').write_text('0.6 10 10 49 39\n0.9 12 50 54 79\n')
    return root


def test_fused_people_go_into_evaluate_unchanged(crowd, trained, tmp_path):
    done = call(schp, 'fuse', crowd / 'Validation' / 'Images' / 'a.jpg', '--weights', trained / 'best.pt', '--local-weights',
                trained / 'cycle_2.pt', '--people', crowd / 'people', '--out', tmp_path / 'out', '--device', 'cpu')
    assert done.returncode == 0 and '2 people' in done.stdout, done.stderr
    classes, parts, people = (np.asarray(Image.open(tmp_path / 'out' / kind / 'a.png'))
                              for kind in ('global_parsing', 'instance_parsing', 'global_tag'))
    lines = (tmp_path / 'out' / 'instance_parsing' / 'a.txt').read_text().splitlines()
    assert len(lines) == parts.max()
    for i, line in enumerate(lines, 1):
        assert set(np.unique(classes[parts == i])) == {int(line.split()[0])}
    tags = (tmp_path / 'out' / 'global_tag' / 'a.txt').read_text().splitlines()
    assert [line.split()[0] for line in tags] == ['0.9', '0.6'] and tags[0].split()[1:] == ['12', '50', '54', '79']
    assert set(np.unique(people)) <= {0, 1, 2} and Image.open(tmp_path / 'out' / 'global_tag' / 'a.png').mode == 'P'
    done = call(evaluate, '--data', 'CIHP', '--root', crowd, '--predictions', tmp_path / 'out', '--workers', '1', '--json',
                tmp_path / 'm.json')
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / 'm.json').read_text())
    assert result['detections'] == 2 and result['people'] == 2 and None not in result['APr']
    again = call(schp, 'fuse', crowd / 'Validation' / 'Images' / 'a.jpg', '--weights', trained / 'best.pt', '--people',
                 tmp_path / 'out', '--out', tmp_path / 'again', '--device', 'cpu')      # its own people, as a submission
    assert again.returncode == 0, again.stderr
    assert len((tmp_path / 'again' / 'global_tag' / 'a.txt').read_text().splitlines()) == len(np.unique(people)) - 1


def test_fuse_parses_a_split_as_its_photos(crowd, trained, tmp_path):
    common = ['--weights', trained / 'best.pt', '--people', crowd / 'people', '--device', 'cpu', '--labels', 'cihp', '--out']
    photo = call(schp, 'fuse', crowd / 'Validation' / 'Images' / 'a.jpg', *common, tmp_path / 'photo')
    split = call(schp, 'fuse', '--data', 'CIHP', '--root', crowd, *common, tmp_path / 'split')
    assert photo.returncode == split.returncode == 0, photo.stderr + split.stderr
    assert (tmp_path / 'photo' / 'a.json').exists() and not (tmp_path / 'split' / 'a.json').exists()
    files = sorted(p.relative_to(tmp_path / 'photo') for p in (tmp_path / 'photo').glob('*/*.*'))
    assert len(files) == 6
    assert all((tmp_path / 'split' / f).read_bytes() == (tmp_path / 'photo' / f).read_bytes() for f in files)
    again = call(schp, 'fuse', '--data', 'CIHP', '--root', crowd, *common, tmp_path / 'split')
    assert again.returncode == 0, again.stderr                # its own results are replaced
    (crowd / 'Validation' / 'Images' / 'a.jpg').rename(crowd / 'kept')
    (crowd / 'Validation' / 'Images' / 'a.jpg').write_text('no photo')
    broken = call(schp, 'fuse', '--data', 'CIHP', '--root', crowd, *common, tmp_path / 'split')
    (crowd / 'kept').replace(crowd / 'Validation' / 'Images' / 'a.jpg')
    assert broken.returncode == 2 and 'a.jpg cannot be read' in broken.stderr
    with pytest.raises(ValueError, match='incomplete predictions'):       # those of the run before are still there
        open_predictions(tmp_path / 'split')
    other = call(schp, 'fuse', '--data', 'CIHP', '--root', crowd, '--weights', trained / 'best.pt', '--device', 'cpu')
    assert other.returncode == 2 and 'jumpsuits where CIHP has torso-skin; give --labels cihp' in other.stderr
    assert f'{crowd}/Validation/Images/a.jpg: 2 people' in photo.stdout and 'a: 2 people' in split.stdout


def test_fused_people_have_json_cut_outs_and_another_label_set(crowd, trained, tmp_path):
    photo = crowd / 'Validation' / 'Images' / 'a.jpg'
    common = ['fuse', photo, '--weights', trained / 'best.pt', '--people', crowd / 'people', '--labels', 'cihp', '--device', 'cpu']
    done = call(schp, *common, '--cutouts', '--out', tmp_path / 'own')
    assert done.returncode == 0, done.stderr
    out = tmp_path / 'own'
    record = json.loads((out / 'a.json').read_text())
    classes, owners = (np.asarray(Image.open(out / kind / 'a.png')) for kind in ('global_parsing', 'global_tag'))
    assert [person['score'] for person in record['people']] == [0.9, 0.6]
    parts = 0
    for person in record['people']:
        assert Image.open(out / 'a_cutouts' / f'person{person["id"]}.png').size == tuple(person['box'][2:])
        for part in person['parts']:
            assert part['area'] == ((classes == part['id']) & (owners == person['id'])).sum() > 0
            assert part['name'] == LABEL_SETS['cihp'].names[part['id']]
            parts += 1
    assert parts and f'{len(list((out / "a_cutouts").iterdir()))} cut-outs' in (out / 'index.html').read_text()

    # Another label set, in all but the folders of CIHP's form; no cut-outs of the run before.
    done = call(schp, *common, '--to', 'merged', '--out', out)
    assert done.returncode == 0 and not (out / 'a_cutouts').exists(), done.stderr
    assert np.array_equal(classes, np.asarray(Image.open(out / 'global_parsing' / 'a.png')))
    merged = convert(classes, 'cihp', 'merged')
    found = {(p['id'], part['name']): part['area'] for p in json.loads((out / 'a.json').read_text())['people'] for part in p['parts']}
    assert found == {(i, LABEL_SETS['merged'].names[c]): ((merged == c) & (owners == i)).sum() for i in (1, 2)
                     for c in np.unique(merged[owners == i]) if c}

    for flags, sentence in ((['--data', 'CIHP', '--cutouts'], '--cutouts is for photos, not for a data set'),
                            ([photo, '--people', out, '--out', out], '--people would be replaced')):
        done = call(schp, 'fuse', *flags, '--weights', trained / 'best.pt', '--device', 'cpu')
        assert done.returncode == 2 and sentence in done.stderr, done.stderr
    (out / 'a.json').write_text('{}')                         # a user's own file stays
    done = call(schp, *common, '--out', out)
    assert done.returncode == 2 and 'a.json' in done.stderr and (out / 'a.json').read_text() == '{}'


def test_fuse_that_is_stopped_leaves_no_predictions(crowd, trained, tmp_path, monkeypatch):
    """Half of its pictures would lie among those of the run before."""
    common = ['fuse', crowd / 'Validation' / 'Images' / 'a.jpg', '--weights', trained / 'best.pt', '--people', crowd / 'people',
              '--out', tmp_path / 'out', '--device', 'cpu']
    assert call(schp, *common).returncode == 0 and open_predictions(tmp_path / 'out').ids == {'a'}

    def stop(*_):
        raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr(fuse.FusePipeline, 'write', stop)
        assert call(schp, *common).returncode == 130
    with pytest.raises(ValueError, match='incomplete predictions'):
        open_predictions(tmp_path / 'out')
    assert call(schp, *common).returncode == 0 and open_predictions(tmp_path / 'out').ids == {'a'}
    done = call(schp, *common, '--people', tmp_path / 'out')
    assert done.returncode == 2 and '--people would be replaced' in done.stderr
    (crowd / 'people' / 'a.txt').rename(crowd / 'kept')
    (crowd / 'people' / 'a.txt').write_text('nan\n0.9\n')
    done = call(schp, *common)
    (crowd / 'kept').replace(crowd / 'people' / 'a.txt')
    assert done.returncode == 2 and "a.txt, line 1 is 'nan'" in done.stderr


def test_fuse_takes_uniparsers_people(trained, checkpoint, tmp_path):
    write_photo(tmp_path / 'a.png')
    done = call(schp, 'fuse', tmp_path / 'a.png', '--local-weights', trained / 'best.pt', '--people-weights', checkpoint,
                '--min-score', '0', '--out', tmp_path / 'out', '--device', 'cpu')
    assert done.returncode == 0, done.stderr
    people = np.asarray(Image.open(tmp_path / 'out' / 'global_tag' / 'a.png'))
    assert people.max() <= len((tmp_path / 'out' / 'global_tag' / 'a.txt').read_text().splitlines()) > 0


# ---- videos


def frames_of(path):
    """Writes the frames of a video beside it; returns their files."""
    opened = video.Video(path)
    files = []
    for frame in opened:
        files.append(path.with_name(f'{frame.number}.png'))
        frame.photo.save(files[-1])
    opened.close()
    return files


def read_frame(line):
    """A line of NAME.jsonl -> {id: label map (H, W)}."""
    record = json.loads(line)
    maps = {}
    for person in record['people']:
        maps[person['id']] = np.zeros((record['height'], record['width']), np.uint8)
        for part in person['parts']:
            mask = decode_rle(part['rle']['counts'], record['width'], record['height'])
            maps[person['id']][mask] = part['id']
    return maps


def test_extract_parses_videos_as_the_photos_of_their_frames(pascal, tmp_path):
    pytest.importorskip('av', reason='videos need PyAV: pip install av')
    files = frames_of(write_video(tmp_path / 'a.mov', codec='png', ticks=range(3)))
    (tmp_path / 'b.mp4').write_text('no video')
    common = ['--weights', pascal, '--out', tmp_path / 'out', '--device', 'cpu']
    done = call(schp, 'extract', tmp_path / 'b.mp4', tmp_path / 'a.mov', *files, *common)
    assert done.returncode == 2 and '3 of 3 photos' in done.stdout and '1 of 2 videos' in done.stdout
    assert 'b.mp4 cannot be read as a video' in done.stderr and '1 file was not parsed' in done.stderr
    lines = (tmp_path / 'out' / 'a.jsonl').read_text().splitlines()
    for file, line in zip(files, lines, strict=True):
        people = read_frame(line)
        labels = np.asarray(Image.open(tmp_path / 'out' / file.name))
        assert list(people) == [1] and np.array_equal(people[1], labels) and labels.any()
    assert (tmp_path / 'out' / 'a_overlay.mp4').is_file()
    refused = call(schp, 'extract', tmp_path / 'a.mov', '--logits', *common)
    assert refused.returncode == 2 and '--logits is for photos' in refused.stderr


def test_fuse_parses_videos_as_the_photos_of_their_frames(pascal, checkpoint, crowd, tmp_path):
    pytest.importorskip('av', reason='videos need PyAV: pip install av')
    files = frames_of(write_video(tmp_path / 'a.mov', codec='png', ticks=range(3)))
    common = ['--local-weights', pascal, '--people-weights', checkpoint, '--min-score', '0', '--out', tmp_path / 'out',
              '--device', 'cpu']
    done = call(schp, 'fuse', tmp_path / 'a.mov', *files, *common, '--no-track')
    assert done.returncode == 0 and '1 of 1 video' in done.stdout, done.stderr
    lines = (tmp_path / 'out' / 'a.jsonl').read_text().splitlines()
    found = 0
    for file, line in zip(files, lines, strict=True):
        classes, owners = (np.asarray(Image.open(tmp_path / 'out' / kind / file.name))
                           for kind in ('global_parsing', 'global_tag'))
        expected = [classes * (owners == i) for i in np.unique(owners[owners > 0])]
        people = read_frame(line)
        assert list(people) == list(range(1, len(expected) + 1))
        assert all(np.array_equal(people[i], labels) for i, labels in enumerate(expected, 1))
        found += len(people)
    assert found
    tracked = call(schp, 'fuse', tmp_path / 'a.mov', *common, '--fps', '10')
    assert tracked.returncode == 0 and len((tmp_path / 'out' / 'a.jsonl').read_text().splitlines()) == 1
    refused = call(schp, 'fuse', tmp_path / 'a.mov', '--local-weights', pascal, '--people', crowd / 'people')
    assert refused.returncode == 2 and '--people has masks of photos' in refused.stderr


# ---- export


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    """A model that finds many classes, and onnxruntime's session of its exported file."""
    onnxruntime = pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    folder = tmp_path_factory.mktemp('onnx')
    model = SCHP(LABEL_SETS['pascal'].names, (48, 40), (), (1, 1, 1, 1), 4).eval()
    model.load_state_dict({k: torch.from_numpy(seeded(k, v.shape)) for k, v in model.state_dict().items()})
    model.save(folder / 'm.pt')
    done = call(export, '--weights', folder / 'm.pt', '--out', folder / 'm.onnx')
    assert done.returncode == 0, done.stderr
    return model, onnxruntime.InferenceSession(folder / 'm.onnx', providers=['CPUExecutionProvider'])


def test_onnx_file_gives_the_same_logits(exported):
    model, session = exported
    images = torch.randn(3, 3, 48, 40)
    metadata = {k: json.loads(v) for k, v in session.get_modelmeta().custom_metadata_map.items()}
    assert metadata['size'] == [48, 40] and metadata['labels'] == list(LABEL_SETS['pascal'].names)
    assert [output.name for output in session.get_outputs()] == ['parsing', 'fusion', 'edge']
    with torch.inference_mode():
        expected = model(images)
    for name, found in zip(expected, session.run(None, {'input.1': images.numpy()}), strict=True):
        np.testing.assert_allclose(found, expected[name], rtol=1e-4, atol=1e-4)


def as_in_try_on(session, photo, size, rounded):
    """The steps of `onnx_inference` in preprocess/humanparsing/parsing_api.py of IDM-VTON, with scipy's bilinear samples in
    place of cv2.warpAffine, which gives integers (rounded)."""
    bgr = np.asarray(photo)[:, :, [2, 1, 0]].astype(float)
    height, width = bgr.shape[:2]
    k = (size[1] - 1) / max(width - 1, (height - 1) * size[1] / size[0])

    def warp(planes, shape, source, scale):
        places = [(np.arange(n) - (n - 1) / 2) * scale + (m - 1) / 2 for n, m in zip(shape, source)]
        grid = np.meshgrid(*places, indexing='ij')
        return np.stack([map_coordinates(plane, grid, order=1, mode='grid-constant') for plane in planes])

    crop = warp(bgr.transpose(2, 0, 1), size, (height, width), 1 / k)
    crop = crop.round() if rounded else crop
    mean, std = np.array([0.406, 0.456, 0.485]), np.array([0.225, 0.224, 0.229])
    image = (crop / 255 - mean[:, None, None]) / std[:, None, None]
    output = session.run(None, {'input.1': image[None].astype(np.float32)})
    upsample = torch.nn.Upsample(size=size, mode='bilinear', align_corners=True)
    logits = upsample(torch.from_numpy(output[1][0]).unsqueeze(0))[0].numpy()
    return warp(logits, (height, width), size, k).argmax(0)


@pytest.mark.parametrize('size', [(150, 90), (60, 200), (40, 48)])
def test_onnx_file_works_where_try_on_programs_read_it(exported, size):
    model, session = exported
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (7, 5, 3), np.uint8)).resize(size, Image.BICUBIC)
    expected = model.predict([photo])[0].labels
    assert len(np.unique(expected)) > 3
    shares = [(as_in_try_on(session, photo, (48, 40), rounded) == expected).mean() for rounded in (False, True)]
    assert shares[0] > 0.999 and shares[1] > 0.98


# ---- bad input


@pytest.mark.parametrize('break_it, sentence', [
    (lambda root: (root / 'train_images').rename(root / 'x'), 'train_images and train_segmentations'),
    (lambda root: (root / 'train_segmentations' / '1.png').unlink(), 'lacks 1 of 8 files'),
    (lambda root: Image.fromarray(np.full((60, 50), 77, np.uint8)).save(root / 'train_segmentations' / '1.png'),
     'has the label 77'),
    (lambda root: Image.fromarray(np.zeros((9, 9), np.uint8)).save(root / 'train_segmentations' / '1.png'), '9, 9'),
    (lambda root: (root / 'train_images' / '1.jpg').write_text('x'), '1.jpg cannot be read'),
    (lambda root: (root / 'train_id.txt').write_text(''), 'no image of the split train')])
def test_broken_data_sets_get_a_sentence(tmp_path, break_it, sentence):
    write_lip(tmp_path / 'LIP')
    break_it(tmp_path / 'LIP')
    done = call(schp, 'train', '--data', 'LIP', '--root', tmp_path / 'LIP', '--out', tmp_path / 'run', *SHORT)
    assert done.returncode == 2 and sentence in done.stderr and done.stderr.count('\n') == 1, done.stderr


def test_photos_without_people_and_of_one_pixel_train(tmp_path):
    write_lip(tmp_path, count=4)
    for i, size in ((0, (60, 50)), (1, (1, 1)), (2, (1, 40))):
        Image.fromarray(np.zeros(size, np.uint8)).save(tmp_path / 'train_segmentations' / f'{i}.png')
        Image.fromarray(np.zeros((*size, 3), np.uint8)).save(tmp_path / 'train_images' / f'{i}.jpg')
    done = call(schp, 'train', '--data', 'LIP', '--root', tmp_path, '--out', tmp_path / 'run', *SHORT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('flags, sentence', [
    (('--batch-size', '1'), 'two images at least'), (('--blocks', '1', '1'), 'give 4 numbers'),
    (('--size', '40'), 'give 2 numbers'), (('--size', '0', '40'), '--size is 0; give a value from 1 to 4096'),
    (('--cycle-epochs', '0'), '--cycle-epochs is 0')])
def test_impossible_settings_get_a_sentence(lip, tmp_path, flags, sentence):
    done = call(schp, 'train', '--data', 'LIP', '--root', lip, '--out', tmp_path / 'run', *SHORT, *flags)
    assert done.returncode == 2 and sentence in done.stderr and 'Traceback' not in done.stderr


def test_files_of_the_other_system_name_the_command(checkpoint, trained, lip, tmp_path):
    write_photo(tmp_path / 'a.png')
    for program, flags, sentence in (
            (infer, (tmp_path / 'a.png', '--weights', trained / 'best.pt'), 'use python -m schp extract'),
            (schp, ('extract', tmp_path / 'a.png', '--weights', checkpoint), 'use python infer.py'),
            (schp, ('evaluate', '--data', 'ATR', '--root', lip, '--weights', trained / 'best.pt'), 'has 20 classes, ATR has 18'),
            (schp, ('extract', tmp_path / 'a.png'), '--weights'),
            (schp, ('fuse', tmp_path / 'a.png'), 'give --weights'),
            (schp, ('evaluate', '--data', 'LIP', '--root', lip, '--predictions', tmp_path / 'no'), 'is not a folder')):
        done = call(program, *flags, cwd=tmp_path)
        assert done.returncode == 2 and sentence in done.stderr and 'Traceback' not in done.stderr, done.stderr


# ---- with the released files


GOLDEN = {                                                # label counts of the released demo, by the released maps
    'lip': {0: 1768548, 2: 56008, 5: 16926, 7: 655872, 13: 76115, 14: 34375, 15: 58156},
    'atr': {0: 1755159, 2: 64833, 4: 668072, 6: 18644, 10: 180, 11: 69886, 15: 85788, 16: 3438},
    'pascal': {0: 1767686, 1: 140102, 2: 371231, 3: 120390, 4: 266591}}


@pytest.mark.skipif('SCHP_WEIGHTS' not in os.environ, reason='SCHP_WEIGHTS: folder of the released *.pth and demo.jpg')
@pytest.mark.parametrize('name', GOLDEN)
def test_released_weights_parse_the_demo_photo_as_published(name):
    """More than 99.5 % of the pixels: cv2's quantized weights and the JPEG decoder leave small differences."""
    folder = Path(os.environ['SCHP_WEIGHTS'])
    files = [p for p in sorted(folder.glob('*.pth')) if name in p.name]
    if not files:
        pytest.skip(f'{folder} has no file of {name}')
    labels = SCHP.from_pretrained(files[0]).fold().predict([Image.open(folder / 'demo.jpg')])[0].labels
    assert labels.shape == (1333, 2000)
    counts = dict(enumerate(np.bincount(labels.ravel(), minlength=20).tolist()))
    wrong = sum(abs(counts[c] - GOLDEN[name].get(c, 0)) for c in counts)
    assert wrong / 2 < 0.005 * labels.size, counts


CROWD = dict(global_parsing={0: 510830, 2: 19365, 5: 293763, 7: 31434, 9: 157668, 10: 13897, 13: 34676, 14: 9006, 15: 9361},
             global_tag={1: 161816, 2: 159219, 3: 112094, 4: 136041})


@pytest.mark.skipif('SCHP_WEIGHTS' not in os.environ, reason='SCHP_WEIGHTS: folder of the released files')
def test_released_weights_parse_the_demo_of_several_people_as_published(tmp_path):
    """mhp_demo.jpg is the released demo photo of several people; people/mhp_demo.png its person ids, best first."""
    folder = Path(os.environ['SCHP_WEIGHTS'])
    files = [folder / f'exp_schp_multi_cihp_{kind}.pth' for kind in ('global', 'local')]
    if missing := [p for p in (*files, folder / 'mhp_demo.jpg', folder / 'people' / 'mhp_demo.png') if not p.exists()]:
        pytest.skip(f'{missing[0]} does not exist')
    done = call(schp, 'fuse', folder / 'mhp_demo.jpg', '--weights', files[0], '--local-weights', files[1], '--labels',
                'cihp', '--people', folder / 'people', '--out', tmp_path, '--device', 'cpu')
    assert done.returncode == 0, done.stderr
    for kind, expected in CROWD.items():
        labels = np.asarray(Image.open(tmp_path / kind / 'mhp_demo.png'))
        counts = dict(enumerate(np.bincount(labels.ravel()).tolist()))
        wrong = sum(abs(counts.get(c, 0) - expected.get(c, 0)) for c in {*counts, *expected} if c or kind != 'global_tag')
        assert labels.shape == (900, 1200) and wrong / 2 < 0.005 * labels.size, (kind, counts)

"""data.py, the data sets and scenes, against slow, obvious code.

Claimed: every folder layout, written in miniature, is read to the pixel; broken files are named;
labels stay on the photo through every change; samples, batches and scenes are functions of seed,
epoch and index alone; drawn and composed people have their left on the right.
"""
import io
import json
import os
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

import data
from util import datasets, images, pictures, workers
from util.config import Config
from util.datasets import open_dataset, scenes
from util.datasets.ccp import CCP_LAYERS
from util.files import write_png
from util.rle import decode_rle

torch.set_num_threads(1)
HERE = os.path.dirname(os.path.abspath(data.__file__))
needs_ccp = pytest.mark.skipif('UNIPARSER_CCP' not in os.environ,
                               reason='UNIPARSER_CCP does not name a clone of clothing-co-parsing')
PLAIN = dict(recipe='paper', short_side=(40,), long_side=1000, crop=0.0, crop_min=0.5, flip=0.0, color_jitter=0.0, degrade=0.0,
             seed=3, workers=0, test_short_side=48)


def settings(**changes):
    return Config(**{**PLAIN, **changes})


def random_labels(rng, height, width, num_classes):
    """Blocks of labels, so that every class covers more than single pixels."""
    small = rng.integers(0, num_classes + 1, (-(-height // 4), -(-width // 4)))
    return np.kron(small, np.ones((4, 4), int))[:height, :width].astype(np.uint8)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def photo(path, height, width, seed=0):
    save(path, np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def write_mhp(root, split='val', newline='\n', ids=('7', '12', '3')):
    """Two people an image, one RGB map, one palette map -> {id: [maps]}"""
    rng, truth = np.random.default_rng(1), {}
    for n, name in enumerate(ids):
        height, width = 20 + n, 24
        photo(root / split / 'images' / f'{name}.jpg', height, width)
        first, second = random_labels(rng, height, width, 58), random_labels(rng, height, width, 58)
        second[0, 0] = 255
        rgb = np.stack([first, first // 2, np.full_like(first, 9)], -1)
        save(root / split / 'parsing_annos' / f'{name}_03_01.png', rgb)
        colored = Image.fromarray(second)
        palette = Image.new('P', colored.size)
        palette.putdata(second.ravel().tolist())
        palette.putpalette([(7 * v) % 256 for v in range(768)])
        palette.save(root / split / 'parsing_annos' / f'{name}_03_02.png')
        save(root / split / 'parsing_annos' / f'{name}_03_03.png', np.zeros_like(first))
        truth[name] = [first, second]
    (root / 'list').mkdir(exist_ok=True)
    (root / 'list' / f'{split}.txt').write_bytes((newline.join(ids) + newline).encode())
    return truth


def write_cihp_release(root, folder='Validation', split='val'):
    """-> {id: (category, human)}"""
    rng, truth, base = np.random.default_rng(2), {}, root / 'instance-level_human_parsing' / folder
    for name in '0000001', '0000004':
        human = np.repeat([[0, 1, 2]], 20, 0).repeat(8, 1).astype(np.uint8)
        category = random_labels(rng, 20, 24, 19)
        photo(base / 'Images' / f'{name}.jpg', 20, 24)
        save(base / 'Category_ids' / f'{name}.png', category)
        save(base / 'Human_ids' / f'{name}.png', human)
        truth[name] = category, human
    (base / f'{split}_id.txt').write_text('\n'.join(truth))
    return truth


def write_cihp_per_person(root, truth, listing=None, split='val'):
    images, annotations = [], []
    for number, (name, (category, human)) in enumerate(truth.items(), 1):
        photo(root / f'{split}_img' / f'{name}.jpg', *category.shape)
        images.append(dict(id=number, file_name=f'{name}.jpg'))
        for h in 1, 2:
            save(root / f'{split}_parsing' / f'{name}-{h}.png', category * (human == h))
            annotations.append(dict(image_id=number, parsing=f'{name}-{h}.png'))
    if listing:
        text = json.dumps(dict(images=images, annotations=annotations))
        (root / f'{listing}_{split}.json').write_text(text)


def encode_rle(mask):
    """COCO's run lengths of a mask, plain and compressed; a transcript of maskApi.c."""
    counts, last = [], 0
    for v in mask.T.ravel().astype(int).tolist():
        if not counts:
            counts = [0]
        if v != last:
            counts.append(0)
            last = v
        counts[-1] += 1
    text = ''
    for i, x in enumerate(counts):
        if i > 2:
            x -= counts[i - 2]
        more = True
        while more:
            c = x & 0x1f
            x >>= 5
            more = x != -1 if c & 0x10 else x != 0
            text += chr((c | 0x20 if more else c) + 48)
    return counts, text


def write_densepose(root):
    """A person with part masks, one with a polygon only, a crowd of run lengths -> labels, crowd."""
    rng, name = np.random.default_rng(3), 'COCO_val2014_000000000042'
    photo(root / 'val2014' / f'{name}.jpg', 60, 80)
    labels, crowd = random_labels(rng, 256, 256, 14), random_labels(rng, 60, 80, 1) > 0
    masks = [dict(size=[256, 256], counts=encode_rle(labels == c)[1]) for c in range(1, 15)]
    labels[labels == 5] = 0
    masks[4] = []
    people = [dict(image_id=42, bbox=[10.4, 5.6, 32.9, 16.2], dp_masks=masks, segmentation=[]),
              dict(image_id=42, bbox=[60, 30, 10, 10], segmentation=[[60, 30, 69, 30, 69, 39, 60, 39]]),
              dict(image_id=42, bbox=[0, 0, 80, 60],
                   segmentation=dict(size=[60, 80], counts=encode_rle(crowd)[0]))]
    coco = dict(images=[dict(id=42, file_name=f'{name}.jpg')], annotations=people)
    folder = root / 'annotations' / 'DensePose_COCO'
    folder.mkdir(parents=True)
    (folder / 'densepose_coco_2014_minival.json').write_text(json.dumps(coco))
    return labels, crowd


def write_ccp(root, monkeypatch, count=14):
    """A tiny clone and its archive of layers: people of hair, dress, arms, legs and a bag."""
    from scipy.io import savemat
    ids, archive = [f'{i:04d}' for i in range(1, count + 1)], root / 'layers.zip'
    real = zipfile.ZipFile(CCP_LAYERS)
    with zipfile.ZipFile(archive, 'w') as layers:
        layers.writestr('mapping.json', real.read('mapping.json'))
        layers.writestr('train.txt', '\n'.join(ids))
        layers.writestr('val.txt', '\n'.join(ids))
        for k, name in enumerate(ids):
            ccp, parts = np.zeros((2, 90, 60), np.uint8)
            ccp[8:20, 24:36], ccp[20:60, 20:40], ccp[60:84, 22:38] = 19, 14, 41            # hair, dress, skin
            ccp[24:50, 16:20] = ccp[24:50, 40:44] = 41
            ccp[50:60, 42:50] = 2                                                           # bag
            parts[24:50, 16:20], parts[24:50, 40:44], parts[60:84, 22:29], parts[60:84, 31:38] = 4, 3, 8, 7
            folder = root / 'annotations' / 'pixel-level'
            folder.mkdir(parents=True, exist_ok=True)
            savemat(folder / f'{name}.mat', dict(groundtruth=ccp), do_compression=True)
            photo(root / 'photos' / f'{name}.jpg', 90, 60, k)
            buffer = io.BytesIO()
            Image.fromarray(parts).save(buffer, 'PNG')
            layers.writestr(f'parts/{name}.png', buffer.getvalue())
    monkeypatch.setattr('util.datasets.ccp.CCP_LAYERS', str(archive))


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a, b))


# Files


def test_the_data_sets_import_no_torch():
    """The evaluator reads ground truth through them and runs without torch."""
    code = "import util.datasets, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, '-c', code], cwd=HERE).returncode == 0


def test_mhp_reads_rgb_and_palette_maps_and_skips_empty_people(tmp_path):
    truth = write_mhp(tmp_path, newline='\r\n')
    dataset = open_dataset('MHP', tmp_path, 'val')
    assert dataset.ids == ['7', '12', '3'] and len(dataset.class_names) == 59
    for i, name in enumerate(dataset.ids):
        image, parsing, ignore = dataset.read(i)
        assert np.array_equal(parsing, truth[name]) and parsing.dtype == np.uint8 and not ignore.any()
        assert image.shape == (*parsing.shape[1:], 3) and dataset.size(i) == parsing.shape[:0:-1]


def test_image_without_people_and_split_without_labels(tmp_path):
    write_mhp(tmp_path)
    for path in (tmp_path / 'val' / 'parsing_annos').glob('12_*'):
        path.unlink()
    parsing, ignore = open_dataset('MHP', tmp_path, 'val').read_parsing(1)
    assert parsing.shape == (0, 21, 24) and not ignore.any()
    photo(tmp_path / 'test' / 'images' / '5.jpg', 10, 12)
    (tmp_path / 'list' / 'test_all.txt').write_text('5')
    image, parsing, ignore = open_dataset('MHP', tmp_path, 'test').read(0)
    assert len(parsing) == 0 and ignore.all() and image.shape == (10, 12, 3)


@pytest.mark.parametrize('listing', ['CIHP', 'CHIP', None])
def test_both_cihp_trees_give_the_same_people(tmp_path, listing):
    truth = write_cihp_release(tmp_path)
    write_cihp_per_person(tmp_path / 'other', truth, listing)
    release = open_dataset('CIHP', tmp_path, 'val')
    inner = open_dataset('CIHP', tmp_path / 'instance-level_human_parsing', 'val')
    other = open_dataset('CIHP', tmp_path / 'other', 'val')
    assert release.ids == inner.ids == other.ids == list(truth)
    for i, (category, human) in enumerate(truth.values()):
        slow = np.array([[[c if h == person else 0 for c, h in zip(*rows)] for rows in zip(category, human)]
                         for person in (1, 2)])
        assert np.array_equal(release.read(i)[1], slow) and np.array_equal(other.read(i)[1], slow)
        assert np.array_equal(release.read_parsing(i)[1], (category > 0) & (human == 0))


def test_run_lengths_match_a_slow_decoder():
    rng = np.random.default_rng(0)
    for height, width in (1, 1), (5, 7), (64, 48), (256, 256):
        for share in 0, 0.3, 1:
            mask = rng.random((height, width)) < share
            counts, text = encode_rle(mask)
            assert np.array_equal(decode_rle(counts, width, height), mask)
            assert np.array_equal(decode_rle(text, width, height), mask)


def test_densepose_pastes_masks_and_ignores_who_has_none(tmp_path):
    labels, crowd = write_densepose(tmp_path)
    dataset = open_dataset('DensePose', tmp_path, 'val')
    image, parsing, ignore = dataset.read(0)
    expected = np.zeros((60, 80), np.uint8)
    for y in range(16):
        for x in range(32):
            expected[5 + y, 10 + x] = labels[16 * y + 8, 8 * x + 4]
    assert np.array_equal(parsing, expected[None])
    crowd[30:40, 60:70] = True
    assert np.array_equal(ignore, crowd)


def test_photos_are_turned_and_converted(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / 'turned.png', exif=exif)
    assert images.stored_size(tmp_path / 'turned.png') == (12, 8)
    assert np.array_equal(images.read_photo(tmp_path / 'turned.png'), np.rot90(pixels, -1))
    Image.fromarray(np.array([[0, 32768, 65535]], np.uint16)).save(tmp_path / 'deep.png')
    assert np.asarray(images.to_rgb(images.load_image(tmp_path / 'deep.png')))[0, :, 1].tolist() == [0, 128, 255]
    for mode in 'RGBA', 'LA', 'P', 'CMYK', '1':
        assert data.to_rgb(Image.new(mode, (3, 2))).mode == 'RGB'


def test_an_exif_turn_moves_neither_the_photo_nor_its_labels(tmp_path):
    """Labels are drawn on the stored pixels: a 180-degree tag must not turn the photo away from them."""
    write_mhp(tmp_path)
    path = tmp_path / 'val' / 'images' / '7.jpg'
    pixels, tag = np.zeros((20, 24, 3), np.uint8), Image.Exif()
    pixels[:10, :12] = 255
    tag[0x0112] = 3
    Image.fromarray(pixels).save(path, exif=tag, quality=100)
    dataset = open_dataset('MHP', tmp_path, 'val')
    image, parsing, ignore = dataset.read(0)
    assert np.abs(image.astype(int) - pixels).mean() < 10 and dataset.size(0) == (24, 20)
    assert np.abs(np.asarray(images.read_photo(path))[::-1, ::-1].astype(int) - pixels).mean() < 10     # a user's photo turns


def break_photo(root):
    (root / 'val' / 'images' / '12.jpg').write_bytes(b'no jpeg')
    return '12.jpg'


def break_map(root):
    path = root / 'val' / 'parsing_annos' / '12_03_02.png'
    path.write_bytes(path.read_bytes()[:60])
    return '12_03_02.png'


def break_size(root):
    save(root / 'val' / 'parsing_annos' / '12_03_02.png', np.ones((9, 9), np.uint8))
    return '12_03_02.png'


def break_class(root):
    save(root / 'val' / 'parsing_annos' / '12_03_02.png', np.full((21, 24), 77, np.uint8))
    return '12_03_02.png'


def break_photo_size(root):
    photo(root / 'val' / 'images' / '12.jpg', 9, 9)
    return '12.jpg'


@pytest.mark.parametrize('damage', [break_photo, break_map, break_size, break_class, break_photo_size])
def test_a_broken_file_is_named(tmp_path, damage):
    write_mhp(tmp_path)
    name, dataset = damage(tmp_path), open_dataset('MHP', tmp_path, 'val')
    with pytest.raises(ValueError, match=name):
        dataset.read(1)
    dataset.read(0)


@pytest.mark.parametrize('name, root, split, message', [
    ('MHQ', '.', 'val', 'unknown data set'), ('MHP', '.', 'evening', 'no split'),
    ('MHP', None, 'val', '--root'), ('MHP', 'nowhere', 'val', 'nowhere'),
    ('MHP', '.', 'val', 'val.txt'), ('CIHP', '.', 'val', 'Validation'),
    ('DensePose', '.', 'val', 'minival.json'), ('CCP', '.', 'val', 'photos')])
def test_a_wrong_folder_is_one_sentence(tmp_path, monkeypatch, name, root, split, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        open_dataset(name, root, split)


def test_missing_photos_are_counted(tmp_path):
    write_mhp(tmp_path)
    for name in '12', '3':
        (tmp_path / 'val' / 'images' / f'{name}.jpg').unlink()
    with pytest.raises(FileNotFoundError, match='lacks 2 of 3 files, the first is 12.jpg'):
        open_dataset('MHP', tmp_path, 'val')


def test_check_counts_draws_and_names_bad_files(tmp_path):
    write_mhp(tmp_path)
    out = str(tmp_path / 's.png')
    command = [sys.executable, 'data.py', '--data', 'MHP', '--root', str(tmp_path), '--out', out]
    run = subprocess.run(command, cwd=HERE, capture_output=True, text=True)
    assert run.returncode == 0 and '3 readable images, 6 people' in run.stdout and Image.open(out).width
    break_map(tmp_path)
    run = subprocess.run(command, cwd=HERE, capture_output=True, text=True)
    assert run.returncode == 2 and '12_03_02.png' in run.stderr and '1 of 3 images cannot be read' in run.stderr
    run = subprocess.run([*command[:5], 'nowhere'], cwd=HERE, capture_output=True, text=True)
    assert run.returncode == 2 and run.stderr.startswith('error: nowhere') and 'Traceback' not in run.stderr


# From a sample to a batch


def test_class_names_and_flip_pairs_agree():
    for dataset in datasets.DATASETS.values():
        names, pairs = dataset.class_names, dict(dataset.flip_pairs)
        lefts = {i for i, name in enumerate(names) if 'left' in name}
        assert names[0] == 'background' and len(set(names)) == len(names) and set(pairs) == lefts
        assert all(names[right] == names[left].replace('left', 'right') for left, right in pairs.items())
    numbers = {name: len(dataset.class_names) - 1 for name, dataset in datasets.DATASETS.items()}
    known = dict(MHP=58, CIHP=19, DensePose=14, CCP=19, COCO=19, synthetic=6, crowd=12)
    assert known.items() <= numbers.items()


def test_flip_swaps_left_and_right():
    rng = np.random.default_rng(0)
    image, ignore = rng.integers(0, 256, (40, 50, 3), np.uint8), rng.random((40, 50)) < 0.5
    parsing = rng.integers(0, 20, (2, 40, 50), np.uint8)
    parsing[:, :, 0] = 255
    flipped = data.train_transform(image, parsing, ignore, datasets.CIHP.flip_pairs, settings(flip=1.0), rng)
    swap = {14: 15, 15: 14, 16: 17, 17: 16, 18: 19, 19: 18}
    slow = [[[swap.get(v, v) for v in reversed(row)] for row in person] for person in parsing.tolist()]
    assert np.array_equal(flipped[1], slow)
    assert np.array_equal(flipped[0], image[:, ::-1]) and np.array_equal(flipped[2], ignore[:, ::-1])
    again = data.train_transform(*flipped, datasets.CIHP.flip_pairs, settings(flip=1.0), rng)
    assert same(again, (image, parsing, ignore))


@pytest.mark.parametrize('size, short, long, expected', [
    ((100, 50), 25, 1000, (50, 25)), ((50, 100), 25, 40, (20, 40)), ((640, 427), 800, 1333, (1199, 800)),
    ((7, 3), 3, 99, (7, 3)), ((1000, 1), 10, 100, (100, 1))])
def test_scaled_size(size, short, long, expected):
    assert data.scaled_size(*size, short, long) == expected


def test_labels_stay_on_the_photo():
    """Image, labels and ignore are made of one map; after crop, scale and flip they still agree."""
    rng = np.random.default_rng(4)
    labels = np.kron(rng.integers(0, 4, (6, 8)), np.ones((20, 20), int)).astype(np.uint8)
    for _ in range(20):
        config = settings(short_side=(60, 200), crop=0.7, flip=0.5)
        sample = np.stack([labels * 60] * 3, -1), labels[None], labels == 3
        image, parsing, ignore = data.train_transform(*sample, (), config, rng)
        seen = parsing[0] if len(parsing) else np.zeros(ignore.shape, np.uint8)
        assert image.shape[:2] == ignore.shape and 60 <= min(ignore.shape) <= 200
        assert (np.rint(image[..., 0] / 60) == seen).mean() > 0.9 and ((seen == 3) == ignore).mean() > 0.9


def test_short_side_is_drawn_from_a_range_or_from_values():
    empty = np.zeros((50, 60, 3), np.uint8), np.zeros((0, 50, 60), np.uint8), np.zeros((50, 60), bool)

    def sides(short_side):
        rng, config = np.random.default_rng(0), settings(short_side=short_side)
        return {min(data.train_transform(*empty, (), config, rng)[2].shape) for _ in range(200)}

    assert sides((40, 44)) == {40, 41, 42, 43, 44}
    assert sides((40, 50, 60)) == {40, 50, 60} and sides((33,)) == {33}


def test_people_cropped_away_are_dropped():
    parsing = np.zeros((2, 60, 60), np.uint8)
    parsing[0, :4, :4], parsing[1, 25:35, 25:35] = 1, 2
    counts = set()
    for seed in range(20):
        sample = np.zeros((60, 60, 3), np.uint8), parsing, np.zeros((60, 60), bool)
        _, people, _ = data.train_transform(*sample, (), settings(crop=1.0), np.random.default_rng(seed))
        assert people.any((1, 2)).all()
        counts.add(len(people))
    assert {1, 2} <= counts


def test_normalize_is_that_of_imagenet():
    image = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)[:, ::-1]
    slow = (image / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    tensor = data.normalize(image)
    assert tensor.dtype == torch.float32 and np.allclose(tensor.numpy(), slow.transpose(2, 0, 1), atol=1e-6)


def test_collate_pads_right_and_below_with_nothing():
    samples = data.Samples(open_dataset('synthetic'), settings(short_side=(30, 50)))
    parts = [samples[0, i] for i in range(3)]
    batch = data.collate(parts)
    _, _, height, width = batch['images'].shape
    assert height % 32 == width % 32 == 0 and batch['ignores'].shape == (3, height, width)
    for k, part in enumerate(parts):
        h, w = part['ignore'].shape
        for key in 'image', 'parsing', 'ignore':
            whole = batch[key + 's'][k]
            assert torch.equal(whole[..., :h, :w], part[key])
            assert not whole[..., h:, :].any() and not whole[..., w:].any()
        assert batch['infos'][k]['index'] == k and batch['infos'][k]['size'] == (96, 128)


def test_samples_depend_on_seed_epoch_and_index_alone():
    dataset = open_dataset('synthetic')
    config = settings(crop=0.5, flip=0.5, color_jitter=0.3, short_side=(30, 60))
    first, again = data.Samples(dataset, config), pickle.loads(pickle.dumps(data.Samples(dataset, config)))
    again[0, 5], again[7, 2]
    assert torch.equal(first[2, 9]['image'], again[2, 9]['image'])
    others = first[3, 9], first[2, 8], data.Samples(dataset, settings(seed=4))[2, 9]
    assert all(not torch.equal(first[2, 9]['image'], other['image']) for other in others)


def test_batches_are_alike_disjoint_and_equally_many():
    landscape = np.arange(37) % 3 > 0
    groups = np.flatnonzero(landscape), np.flatnonzero(~landscape)
    ranks = [workers.batches(groups, 4, 0, 2, rank, 3) for rank in range(3)]
    assert len({len(r) for r in ranks}) == 1 and ranks[1] == workers.batches(groups, 4, 0, 2, 1, 3)
    seen = [index for r in ranks for batch in r for epoch, index in batch]
    assert set(seen) == set(range(37)) and len(seen) < 37 + 2 * 4 + 3 * 4
    for batch in sum(ranks, []):
        assert len({landscape[i] for _, i in batch}) == 1 and len(batch) == 4
    assert workers.batches(groups, 4, 0, 3) != workers.batches(groups, 4, 0, 2) != workers.batches(groups, 4, 1, 2)
    assert len(workers.batches([np.array([0]), np.array([], int)], 2, 0, 0, 3, 4)) == 1


def test_loader_resumes_in_the_middle_whatever_the_workers():
    dataset = open_dataset('synthetic', samples=24)
    alone = workers.open_loader(data.Samples(dataset, settings()), settings(), 4)
    by_two = workers.open_loader(data.Samples(dataset, settings()), settings(workers=2), 4)
    for epoch in 0, 1:
        alone.batch_sampler.set_epoch(epoch)
        by_two.batch_sampler.set_epoch(epoch, start=4)
        whole, rest = list(alone), list(by_two)
        assert len(whole) == alone.batch_sampler.total() == 6 and len(rest) == len(by_two) == 2
        assert all(torch.equal(a['images'], b['images']) for a, b in zip(whole[4:], rest))


# Drawn people and scenes


def test_synthetic_people_have_their_left_on_the_right():
    dataset = open_dataset('synthetic', None, 'val')
    sides = []
    for i in range(30):
        image, parsing, ignore = dataset.read(i)
        assert image.shape == (96, 128, 3) and parsing.shape[1:] == ignore.shape == (96, 128)
        assert (parsing > 0).sum(0).max() <= 1                    # who is behind is hidden
        for p in parsing:
            if (p == 3).any() and (p == 4).any():
                sides.append(np.nonzero(p == 3)[1].mean() > np.nonzero(p == 4)[1].mean())
    assert np.mean(sides) > 0.9


def test_val_is_fixed_and_train_never_repeats():
    val, train = (open_dataset('synthetic', None, split) for split in ('val', 'train'))
    assert same(val.read(3), val.read(3, seed=9, epoch=9)) and same(train.read(3, 1, 2), train.read(3, 1, 2))
    assert len({train.read(3, seed, epoch)[0].tobytes() for seed in range(3) for epoch in range(3)}) == 9
    assert not same(val.read(0), train.read(0)) and len(open_dataset('synthetic', samples=7)) == 7


def test_ccp_photo_labels_by_hand(tmp_path, monkeypatch):
    write_ccp(tmp_path, monkeypatch)
    image, parsing, ignore = open_dataset('CCP', tmp_path, 'val_photos').read(0)
    assert parsing.shape == (1, 90, 60) and not ignore.any()
    expected = {(10, 30): 2, (30, 30): 6, (30, 18): 15, (30, 41): 14, (70, 25): 17, (70, 35): 16,
                (55, 45): 0, (70, 30): 255}       # the bag is nobody's; skin of no known part is unknown
    assert {at: parsing[0][at] for at in expected} == expected


def test_crops_show_people_whole_and_without_legs(tmp_path, monkeypatch):
    write_ccp(tmp_path, monkeypatch)
    crops, whole = (open_dataset('CCP', tmp_path, f'val_{form}') for form in ('crops', 'photos'))
    assert len(crops) == 2 * len(whole) and crops.ids[:3] == ['0001_person', '0001_upper', '0002_person']
    image, parsing, ignore = whole.read(1)                    # the person: rows 8..83, columns 16..43
    for i, rows in ((2, slice(0, 90)), (3, slice(0, 46))):
        expected = image[rows, 6:54], parsing[:, rows, 6:54], ignore[rows, 6:54]
        assert same(crops.read(i), expected) and same(crops.read_parsing(i), expected[1:])
        assert crops.size(i) == expected[0].shape[1::-1]
    assert {2, 6, 16} < set(np.unique(crops.read(2)[1])) and 16 not in crops.read(3)[1]


def test_scenes_are_functions_of_seed_epoch_and_index(tmp_path, monkeypatch):
    write_ccp(tmp_path, monkeypatch)
    train, val = (open_dataset('CCP', tmp_path, split) for split in ('train', 'val'))
    other = open_dataset('CCP', tmp_path, 'val', long_side=99, samples=5)
    assert same(val.read(2), other.read(2, 5, 6)) and len(other) == len(val) and val.size(0) == (640, 480)
    train = pickle.loads(pickle.dumps(open_dataset('CCP', tmp_path, 'train', long_side=160, samples=20)))
    smallest = open_dataset('CCP', tmp_path, 'train', long_side=16, samples=20)
    assert all(max(smallest.read(i)[0].shape) == 16 for i in range(20))
    with pytest.raises(ValueError, match='--long-side is 15; scenes of CCP have at least 16'):
        open_dataset('CCP', tmp_path, 'train', long_side=15)
    assert len(train) == len(set(train.ids)) == 20
    for i in range(8):
        image, parsing, ignore = train.read(i, 1, 2)
        assert image.shape[1::-1] == parsing.shape[:0:-1] == train.size(i) and max(train.size(i)) == 160
        assert same((parsing, ignore), train.read_parsing(i, 1, 2)) and len(parsing) <= 6
        assert not same(train.read(i, 1, 3), (image, parsing))
        assert (parsing > 0).sum(0).max(initial=0) <= 1 and not (ignore & (parsing > 0).any(0)).any()


def test_scenes_stand_in_other_photos(tmp_path, monkeypatch):
    write_ccp(tmp_path, monkeypatch)
    photo(tmp_path / 'empty' / 'a.jpg', 60, 90, 1)
    photo(tmp_path / 'coco' / 'images' / 'b.jpg', 60, 90, 2)
    ids = np.zeros((60, 90), np.uint8)
    ids[10:50, 10:30], ids[10:50, 40:60], ids[:, 80:] = 1, 7, 255
    (tmp_path / 'coco' / 'instances').mkdir()
    Image.fromarray(ids).save(tmp_path / 'coco' / 'instances' / 'b.png')
    options = dict(backgrounds=tmp_path / 'empty', people=tmp_path / 'coco')
    train = open_dataset('CCP', tmp_path, 'train', long_side=90, samples=200, **options)
    kinds = [train.background(np.random.default_rng(i)) for i in range(1000)]
    crowds = [kind for kind in kinds if kind and kind[1].getextrema() == (0, 255)]
    assert 60 < len(crowds) < 140 and 130 < sum(map(bool, kinds)) - len(crowds) < 230
    monkeypatch.setattr(scenes, 'NUM_PEOPLE', (1, 0, 0, 0, 0, 0))      # one or two are in the photo: nobody joins
    monkeypatch.setattr(train, 'background', lambda rng: crowds[0])
    image, parsing, ignore = train.read(0)                             # 4:3 of a 3:2 photo: its sides are cut
    assert parsing.shape == (2, 68, 90) and set(np.unique(parsing)) == {0, 255} and not ignore[:, :80].any()
    assert ignore[:, -5:].all() and (parsing[0] > 0).sum() == pytest.approx(20 * 40 * (68 / 60) ** 2, rel=0.1)
    assert same((parsing, ignore), train.read_parsing(0))
    monkeypatch.setattr(scenes, 'NUM_PEOPLE', (0, 0, 0, 0, 0, 1))
    assert {255} < set(np.unique(train.read(4)[1])) - {0}
    val = open_dataset('CCP', tmp_path, 'val', **options)
    assert not any(val.background(np.random.default_rng(i)) for i in range(50))
    with pytest.raises(FileNotFoundError, match='holds no photos'):
        datasets.CCP(tmp_path, 'train', backgrounds=tmp_path)
    Image.fromarray(ids[:50]).save(tmp_path / 'coco' / 'instances' / 'b.png')
    monkeypatch.undo()
    with pytest.raises(ValueError, match='b.jpg.*b.png differ in size'):
        [train.background(np.random.default_rng(i)) for i in range(50)]


def test_hidden_people_are_ignored_not_labeled():
    def layer(x, value, size=20):
        label = np.full((size, size), value, np.uint8)
        return scenes.Layer(label, Image.new('L', (size, size), 255), None, x, 0, 0, True)

    ignore = np.zeros((20, 60), bool)
    ignore[:, 50:] = ignore[:, 5] = True
    layers = [layer(0, 1), layer(2, 2), layer(30, 3), layer(-18, 4), layer(44, 5)]
    parsing, left = scenes.flatten_layers(layers, ignore)
    assert [set(np.unique(p)) - {0} for p in parsing] == [{2}, {3}, {5}]
    assert left[:, :2].all() and not left[:, 2:60].any()          # 10 % of 1 and of 4 are seen: ignored


def test_missing_ccp_photos_are_counted(tmp_path, monkeypatch):
    write_ccp(tmp_path, monkeypatch)
    (tmp_path / 'photos' / '0004.jpg').unlink()
    with pytest.raises(FileNotFoundError, match='photos lacks 1 of 14 files, the first is 0004.jpg'):
        open_dataset('CCP', tmp_path, 'train')


def test_the_archive_of_layers_is_small_and_complete():
    with zipfile.ZipFile(CCP_LAYERS) as archive:
        names, readme = set(archive.namelist()), archive.read('README.txt').decode()
        lists = [archive.read(f'{split}.txt').decode().split() for split in ('train', 'val')]
    assert os.path.getsize(CCP_LAYERS) < 2e6 and 'PSEUDO' in readme
    assert [len(ids) for ids in lists] == [798, 100] and not set(lists[0]) & set(lists[1])
    assert all(f'parts/{i}.png' in names for ids in lists for i in ids)


@needs_ccp
def test_real_scenes_are_the_same_in_every_process():
    code = ("import os, zlib; from util.datasets import open_dataset;"
            "d = open_dataset('CCP', os.environ['UNIPARSER_CCP'], 'val');"
            "print([zlib.crc32(a.tobytes()) for i in (0, 57) for a in d.read(i)], len(d))")
    command = [sys.executable, '-c', code]
    first, second = (subprocess.check_output(command, cwd=HERE, text=True) for _ in range(2))
    assert first == second and first.endswith('100\n')


@needs_ccp
def test_real_people_have_their_left_on_the_right():
    dataset = open_dataset('CCP', os.environ['UNIPARSER_CCP'], 'train', long_side=320)
    sides = []
    for i in range(12):
        for p in dataset.read_parsing(i)[0]:
            sides += [np.nonzero(p == left)[1].mean() > np.nonzero(p == right)[1].mean()
                      for left, right in dataset.flip_pairs if (p == left).any() and (p == right).any()]
    assert np.mean(sides) > 0.9


# Pictures


def test_palette_tells_classes_apart():
    for num_classes in 6, 14, 19, 58:
        colors = pictures.palette(num_classes).astype(int)
        used = colors[1:num_classes + 1]
        assert colors.shape == (256, 3) and not colors[0].any()
        assert len(np.unique(used, axis=0)) == num_classes
        assert np.abs(np.diff(used, axis=0)).sum(1).min() > 100


@pytest.mark.parametrize('width', [1, 2, 3, 6, 9])
def test_the_core_of_a_mask_is_what_a_minimum_filter_keeps(width):
    rng = np.random.default_rng(width)
    mask = np.kron(rng.random((9, 11)) < 0.8, np.ones((8, 7))) > 0
    padded = Image.fromarray(np.pad(mask, width).astype(np.uint8))
    kept = np.asarray(padded.filter(ImageFilter.MinFilter(2 * width + 1)))
    assert np.array_equal(pictures.erode(mask, width), kept[width:-width, width:-width] > 0)


def test_label_maps_are_stored_by_their_runs(tmp_path):
    y, x = np.mgrid[:300, :400]
    labels = (np.hypot(y - 150, x - 180) // 20 % 9).astype(np.uint8)
    image = pictures.palette_image(labels, pictures.palette(9))
    write_png(tmp_path / 'a.png', image)
    image.save(tmp_path / 'b.png', compress_level=1)
    assert np.array_equal(np.asarray(Image.open(tmp_path / 'a.png')), labels)
    assert (tmp_path / 'a.png').stat().st_size < (tmp_path / 'b.png').stat().st_size


def test_stripes_and_legend_go_together():
    image = np.full((60, 90, 3), 100, np.uint8)
    parsing = np.zeros((1, 60, 90), np.uint8)
    parsing[0, 5:20, 5:40] = 1
    ignore = np.zeros((60, 90), bool)
    ignore[30:] = True
    plain = np.asarray(pictures.overlay(image, parsing, ignore=ignore))
    named = np.asarray(pictures.overlay(image, parsing, ['background', 'hat'], ignore, pictures.palette(58)))
    assert np.array_equal(named[:60], plain) and (plain[30:] == 50).any() and (plain[:30] != 50).all()
    assert len(named) > 60 and (named[60:] == 255).any()


def test_overlay_colors_people_and_names_classes():
    image, parsing = np.full((80, 200, 3), 100, np.uint8), np.zeros((2, 80, 200), np.uint8)
    parsing[0, 10:30, 10:30], parsing[1, 40:70, 50:90] = 1, 255
    before = image.copy()
    plain = np.array(pictures.overlay(image, parsing))
    assert plain.shape == image.shape and np.array_equal(image, before) and (plain[0] == 100).all()
    assert (plain[10, 10:30] == 255).all()
    assert np.abs(plain[20, 20] - (45 + 0.55 * pictures.palette(58)[1])).max() < 1
    named = pictures.overlay(Image.fromarray(image), parsing, datasets.Synthetic.class_names)
    assert named.width == 200 and named.height > 80
    assert pictures.overlay(image, parsing[:0], datasets.Synthetic.class_names).size == (200, 80)


@pytest.mark.parametrize('change, message', [
    (lambda m: m.astype(np.int16) - 3, 'groundtruth holds -3, which is below 0'),
    (lambda m: m.astype(np.int8) - 1, 'groundtruth holds -1, which is below 0'),
    (lambda m: m + 0.5, 'groundtruth holds no integers'), (lambda m: m * np.nan, 'groundtruth holds no integers'),
    (lambda m: np.zeros((9000, 9000), np.uint8), 'and its labels differ in size'),
    (lambda m: np.array(['x']), 'and its labels differ in size'), (lambda m: m + np.int64(40), 'it has the label 81'),
    (lambda m: None, 'it has no variable groundtruth'),
    (lambda m: m.astype(np.float64), None), (lambda m: m.astype(np.int8), None), (lambda m: m.astype(np.int64), None)])
def test_labels_of_ccp_are_integers_of_any_type_or_refused_by_name(tmp_path, monkeypatch, change, message):
    from scipy.io import loadmat, savemat
    write_ccp(tmp_path, monkeypatch)
    dataset, path = open_dataset('CCP', tmp_path, 'val_photos'), tmp_path / 'annotations' / 'pixel-level' / '0001.mat'
    expected = dataset.read(0)
    changed = change(loadmat(path)['groundtruth'])
    savemat(path, {} if changed is None else dict(groundtruth=changed), do_compression=True)
    if message is None:
        assert same(dataset.read(0), expected)
        return
    with pytest.raises(ValueError, match=message) as refused:
        dataset.read(0)
    assert '0001' in str(refused.value)


def test_other_variables_of_a_mat_file_are_not_read(tmp_path, monkeypatch):
    import tracemalloc
    from scipy.io import loadmat, savemat
    write_ccp(tmp_path, monkeypatch)
    dataset, path = open_dataset('CCP', tmp_path, 'val_photos'), tmp_path / 'annotations' / 'pixel-level' / '0001.mat'
    expected, truth = dataset.read(0), loadmat(path)['groundtruth']
    savemat(path, dict(large=np.zeros((4 * 10 ** 8,), np.uint8), groundtruth=truth), do_compression=True)
    tracemalloc.start()
    assert same(dataset.read(0), expected)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * 10 ** 8                                                # scipy inflates a block of 128 kB at once

"""Bad input and faults: what docs/robustness.md promises.

Claimed: every photo of every mode is read or refused in one sentence, and the others are parsed;
damage to data sets and weights is named; a training that is killed at any moment goes on to the
same bits; a full disk, a dead worker or a dead process ends with a sentence and no half files.

The long versions, in one process each, print what they saw:

    python -m tests.robustness.test_faults --headers 10000     # mutated JPEG and PNG headers through read_photo
    python -m tests.robustness.test_faults --fuzz 2000         # drawn shapes, modes, labels and configurations, photo to metric
    python -m tests.robustness.test_faults --soak 2000         # photos of mixed sizes through infer.py
    python -m tests.robustness.test_faults --kills 50          # kill -9 of a training at random moments, resumed to the end
"""
import argparse
import io
import json
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import unicodedata
import zlib
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

import data
import infer
import train
import uniparser
from evaluate import ParsingMetrics
from losses import uniparser_loss
from tests.helpers import SHORT, call, run, tiny_config, tiny_model, weights, write_photo, write_tiny_mhp
from tools import export
from tools.benchmark import __main__ as benchmark
from uniparser import UniParser
from util import datasets
from util.checkpoints import read_checkpoint
from util.datasets import open_dataset
from util.files import find_photos, printable, result_names
from util.images import read_labels, read_photo, read_prediction, stored_size, to_rgb
from util.masks import flatten_people
from util.rle import decode_rle
from util.workers import open_loader

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings('ignore:::PIL')                      # data.py's own filter is not pytest's
HERE = Path(__file__).resolve().parents[2]
STREET = HERE / 'assets' / 'street.jpg'
RGB = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))


def resident():
    """MB of memory that this process holds."""
    return int(Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE') / 1e6


# ---- photos ------------------------------------------------------------------------------------------------------------


def modes(folder):
    """Every mode that Pillow writes to a format of photos -> {name: path}"""
    deep = Image.fromarray(np.random.default_rng(1).integers(0, 65536, (40, 60)).astype(np.uint16))
    real = Image.fromarray(np.random.default_rng(2).random((40, 60)).astype(np.float32) * 255)
    files, other = {}, {'F': real, 'I;16': deep, 'I': deep.convert('I')}
    for ending, names in dict(png='1 L LA P RGB RGBA I;16', jpg='L RGB CMYK YCbCr', bmp='1 L P RGB', gif='1 L P RGB',
                              webp='RGB RGBA', tif='1 L LA P PA RGB RGBA CMYK YCbCr LAB I I;16 F').items():
        for mode in names.split():
            path = folder / f'{mode.replace(";", "")}.{ending}'
            (other.get(mode) or RGB.convert(mode)).save(path)
            files[path.name] = path
    return files


def test_every_mode_becomes_rgb(tmp_path):
    files = modes(tmp_path)
    assert len(files) == 34
    for name, path in files.items():
        photo = read_photo(path)
        assert photo.mode == 'RGB' and photo.size == stored_size(path) == (60, 40), name
        assert np.asarray(photo).std() > 20, name                            # something is to be seen
    for name in 'RGB.png', 'RGBA.png', 'RGB.tif':
        assert np.array_equal(read_photo(files[name]), RGB), name
    gray = np.asarray(RGB.convert('L'))
    for name in 'L.png', 'LA.png', 'L.bmp', 'L.tif':
        assert np.array_equal(np.asarray(read_photo(files[name]))[..., 1], gray), name


def test_transparency_is_dropped_and_the_color_below_it_stays(tmp_path):
    clear = RGB.convert('RGBA')
    clear.putalpha(0)
    clear.save(tmp_path / 'a.png'), clear.save(tmp_path / 'a.webp', lossless=True, exact=True)
    colors = RGB.convert('P')
    colors.save(tmp_path / 'b.png', transparency=3), colors.save(tmp_path / 'c.png', transparency=bytes(range(256)))
    for name in 'a.png', 'a.webp':
        assert np.array_equal(read_photo(tmp_path / name), RGB), name
    for name in 'b.png', 'c.png':
        assert np.array_equal(read_photo(tmp_path / name), colors.convert('RGB')), name


@pytest.mark.parametrize('orientation', [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 65535])
def test_photos_are_turned_as_their_tag_says(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in 'a.jpg', 'a.png':
        RGB.save(tmp_path / name, exif=exif)
        photo = read_photo(tmp_path / name)
        assert photo.size == ((40, 60) if 5 <= orientation <= 8 else (60, 40)) and stored_size(tmp_path / name) == (60, 40)
    how = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
    assert np.array_equal(photo, RGB.transpose(how[orientation]) if orientation in how else RGB)


def test_a_tag_that_is_no_number_turns_nothing(tmp_path):
    for name, exif in ('a', b'Exif\0\0MM\0\x2a' + bytes(range(200))), ('b', b'Exif\0\0no tags'):
        RGB.save(tmp_path / f'{name}.jpg', exif=exif)
        assert read_photo(tmp_path / f'{name}.jpg').size == stored_size(tmp_path / f'{name}.jpg') == (60, 40)


@pytest.mark.parametrize('size', [(1, 1), (2, 1), (20000, 1), (1, 20000), (20000, 7), (7, 20000)])
def test_the_smallest_and_the_longest_photos_parse(checkpoint, tmp_path, size):
    Image.new('RGB', size, 'red').save(tmp_path / 'a.png')
    done = call(infer, tmp_path / 'a.png', '--weights', checkpoint, '--out', tmp_path / 'out', '--maps', '--cutouts')
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / 'out' / 'a_parts.png').size == size
    assert Image.open(tmp_path / 'out' / 'a_maps.png').width <= 6 * 4006     # not 400 times as wide as the photo


def test_of_several_pictures_the_first_is_taken(tmp_path):
    frames = [Image.fromarray(np.full((20, 30, 3), v, np.uint8)) for v in (60, 120, 180)]
    for name in 'a.gif', 'a.webp', 'a.png', 'a.tif':
        options = dict(lossless=True) if name == 'a.webp' else {}
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
        assert Image.open(tmp_path / name).n_frames == 3
        assert np.unique(read_photo(tmp_path / name)).tolist() == [60], name


def png(width, height, content=zlib.compress(bytes(1000))):
    chunks = (b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)), (b'IDAT', content), (b'IEND', b'')
    return b'\x89PNG\r\n\x1a\n' + b''.join(
        struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body)) for kind, body in chunks)


EPS = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\n(ran) print\n%%EOF\n'


def write_bad(folder):
    """Photos that cannot be parsed -> {name: a part of its sentence}"""
    folder.mkdir(parents=True)
    jpg, whole = io.BytesIO(), io.BytesIO()
    RGB.save(jpg, 'JPEG'), RGB.save(whole, 'PNG')
    jpg, whole = jpg.getvalue(), whole.getvalue()
    files = {'cut.jpg': (jpg[:len(jpg) // 2], 'truncated'), 'cut.png': (whole[:len(whole) // 2], 'truncated'),
             'head.jpg': (jpg[:30], 'cannot be read'), 'empty.jpg': (b'', 'is empty'), 'text.jpg': (b'hello', 'not a JPEG'),
             'page.jpg': (EPS, 'not a JPEG'), 'bomb.png': (png(30000, 30000), 'more than 178 million pixels'),
             'endless.png': (png(2 ** 31 - 1, 2 ** 31 - 1), 'more than 178'), 'flat.png': (png(0, 9), 'cannot be read'),
             'large.png': (png(12000, 9000), 'truncated'), 'two\nlines.jpg': (b'', 'is empty')}
    for name, (content, _) in files.items():
        (folder / name).write_bytes(content)
    os.mkfifo(folder / 'pipe.jpg')
    (folder / 'broken.jpg').symlink_to('nowhere'), (folder / 'loop.jpg').symlink_to('loop.jpg')
    return {name: part for name, (_, part) in files.items()} | {
        'pipe.jpg': 'not a regular file', 'broken.jpg': 'does not exist', 'loop.jpg': 'symbolic links'}


def test_each_bad_photo_gets_one_sentence_and_the_others_are_parsed(checkpoint, tmp_path):
    bad = write_bad(tmp_path / 'in')
    names = ['-dash.jpg', '--out.jpg', 'sp ace.jpg', 'h\u00e9 \u4e2d\u6587 \U0001f600.jpg', '[x]*?.jpg', 'a.jpg',
             'sub/a.jpg', 'sub/A.png',
             'sub2/a.jpg', 'l' * 250 + '.jpg', '\u4e2d' * 83 + '.jpg', os.fsdecode(b'latin\xe9.jpg'),
             'dir.jpg/b.JPEG']
    for k, name in enumerate(names):
        write_photo(tmp_path / 'in' / name, k)
    done = call(infer, 'in', '--weights', checkpoint, '--out', 'out', '--cutouts', cwd=tmp_path)
    lines = done.stderr.splitlines()
    assert done.returncode == 2 and f'{len(names)} of {len(names) + len(bad)} photos' in done.stdout
    assert len(lines) == len(bad) + 1 and lines[-1] == f'error: {len(bad)} photos were not parsed'
    for name, part in bad.items():
        sentence, = [line for line in lines if line.startswith(f'error: in/{printable(name)} ')]
        assert part in sentence, sentence
    records = [json.loads(p.read_text()) for p in (tmp_path / 'out').glob('*.json')]
    assert sorted(r['photo'] for r in records) == sorted(f'in/{name}' for name in names)
    for record in records:
        whole = Image.open(tmp_path / record['photo'])
        assert (record['width'], record['height']) == whole.size and record['people']


def test_arguments_that_are_no_photos_stop_nobody(checkpoint, tmp_path):
    """An empty folder, a missing file, a name that looks like a flag."""
    (tmp_path / 'empty').mkdir(), write_photo(tmp_path / '-dash.jpg'), write_photo(tmp_path / 'b.jpg')
    done = call(infer, '--weights', checkpoint, '--out', 'out', '--', 'empty', 'no.jpg', 'no*.png', '-dash.jpg', 'b.jpg',
                cwd=tmp_path)
    assert done.returncode == 2 and '2 of 5 photos' in done.stdout and '3 photos were not parsed' in done.stderr
    assert 'empty cannot be read (it is a folder without photos' in done.stderr and done.stderr.count('\n') == 4


def test_a_folder_that_may_not_be_read_is_reported_when_its_turn_comes(tmp_path, monkeypatch):
    def walk(top, onerror):                              # root may read everything
        yield top, ['b'], ['a.jpg', 'notes.txt']
        onerror(PermissionError(13, 'Permission denied', f'{top}/b'))
        yield f'{top}/c', [], ['d.png']
    monkeypatch.setattr(os, 'walk', walk)
    assert find_photos([str(tmp_path)]) == [tmp_path / 'a.jpg', tmp_path / 'b', tmp_path / 'c' / 'd.png']


def test_names_that_a_file_system_takes_for_one_are_told_apart():
    names = result_names([Path('a/\u00e9.jpg'), Path('b/e\u0301.jpg'), Path('c/E\u0301.png'), Path('x.jpg')])
    folded = {unicodedata.normalize('NFC', name).casefold() for name in names}
    assert len(folded) == 4 and names[3] == 'x'


@pytest.mark.skipif(os.geteuid() == 0, reason='root may read everything')
def test_a_photo_that_may_not_be_read(checkpoint, tmp_path):
    write_photo(tmp_path / 'a.jpg'), write_photo(tmp_path / 'b.jpg')
    (tmp_path / 'a.jpg').chmod(0)
    done = call(infer, tmp_path, '--weights', checkpoint, '--out', tmp_path / 'out')
    assert done.returncode == 2 and 'a.jpg cannot be read (Permission denied); check the path' in done.stderr


def test_a_photo_refused_by_the_system_is_named(checkpoint, tmp_path, monkeypatch):
    """What a permission does to users who are not root."""
    write_photo(tmp_path / 'a.jpg'), write_photo(tmp_path / 'b.jpg')
    opened = Image.open

    def refuse(path, **options):
        if str(path).endswith('a.jpg'):
            raise PermissionError(13, 'Permission denied', str(path))
        return opened(path, **options)
    monkeypatch.setattr(Image, 'open', refuse)
    done = call(infer, tmp_path, '--weights', checkpoint, '--out', tmp_path / 'out')
    assert done.returncode == 2 and 'a.jpg cannot be read (Permission denied); check the path' in done.stderr
    assert '1 of 2 photos' in done.stdout


def test_nothing_but_sentences_is_printed_and_a_terminal_may_lack_letters(checkpoint, tmp_path, monkeypatch):
    write_photo(tmp_path / 'h\u00e9.jpg')
    RGB.save(tmp_path / 'tags.jpg', exif=b'Exif\0\0MM\0\x2a' + bytes(range(200)))                # Pillow warns of these
    RGB.convert('P').save(tmp_path / 'clear.png', transparency=bytes(range(256)))
    monkeypatch.setenv('PYTHONIOENCODING', 'ascii')
    done = run('python', HERE / 'infer.py', tmp_path, '--weights', checkpoint, '--out', tmp_path / 'out')
    assert done.returncode == 0 and 'h\\xe9.jpg: 4 people' in done.stdout and done.stderr == ''


def full(*_):
    raise OSError(28, 'No space left on device')


def test_a_full_disk_leaves_no_half_files(checkpoint, tmp_path, monkeypatch):
    write_photo(tmp_path / 'a.jpg')
    done = call(infer, tmp_path / 'a.jpg', '--weights', checkpoint, '--out', tmp_path / 'out')
    before = {p.name: p.read_bytes() for p in (tmp_path / 'out').iterdir()}

    def half(path, content):
        with open(path, 'wb') as f:
            f.write(content[:len(content) // 2])
        full()
    monkeypatch.setattr(Path, 'write_bytes', half)
    done = call(infer, tmp_path / 'a.jpg', '--weights', checkpoint, '--out', tmp_path / 'out')
    assert done.returncode == 2 and 'a_parts.png cannot be written (No space left on device)' in done.stderr
    assert {p.name: Path.read_bytes(p) for p in (tmp_path / 'out').iterdir()} == before and len(before) == 5


def test_results_that_have_no_place(checkpoint, tmp_path):
    write_photo(tmp_path / 'a.jpg'), (tmp_path / 'file').write_text('')
    for program, arguments in (infer, (tmp_path / 'a.jpg', '--weights', checkpoint)), (train, SHORT):
        done = call(program, *arguments, '--out', tmp_path / 'file')
        assert done.returncode == 2 and 'file cannot be made a folder (File exists); choose another' in done.stderr


# ---- data sets ---------------------------------------------------------------------------------------------------------


NET = ['--backbone', 'resnet10', '--neck-channels', '16', '--channels', '8', '--depth', '1', '--center-depth', '1', '--grid', '8',
       '--pretrained', '', '--no-dcn', '--short-side', '48', '--test-short-side', '48', '--batch-size', '2', '--warmup', '2',
       '--val-images', '2', '--device', 'cpu']


@pytest.fixture
def mhp(tmp_path):
    write_tiny_mhp(tmp_path / 'mhp')
    return tmp_path / 'mhp'


def cut_photo(root):
    path = root / 'train' / 'images' / '2.jpg'
    path.write_bytes(path.read_bytes()[:-300])
    return '2.jpg cannot be read (image file is truncated'


def empty_photo(root):
    (root / 'train' / 'images' / '2.jpg').write_bytes(b'')
    return '2.jpg cannot be read (it is empty)'


def cut_label(root):
    path = sorted((root / 'train' / 'parsing_annos').glob('2_*.png'))[0]
    path.write_bytes(path.read_bytes()[:60])
    return f'{path.name} cannot be read'


def strange_label(root):
    path = sorted((root / 'train' / 'parsing_annos').glob('2_*.png'))[0]
    labels = np.array(Image.open(path))
    labels[0, 0] = 77
    Image.fromarray(labels).save(path)
    return f'{path.name} has the label 77, but there are only 58 classes'


def other_size(root):
    path = sorted((root / 'train' / 'parsing_annos').glob('2_*.png'))[0]
    Image.open(path).resize((30, 30), Image.NEAREST).save(path)
    return 'size'


@pytest.mark.parametrize('damage, workers', [
    (cut_photo, 0), (cut_photo, 2), (empty_photo, 0), (cut_label, 0), (strange_label, 0), (other_size, 0)])
def test_a_bad_sample_stops_the_run_with_its_file_or_is_skipped(mhp, tmp_path, damage, workers):
    message, command = damage(mhp), ['--data', 'MHP', '--root', mhp, *NET, '--epochs', '2', '--workers', workers]
    done = call(train, *command, '--out', tmp_path / 'a')
    assert done.returncode == 2 and message in done.stderr and done.stderr.count('\n') == 1, done.stderr
    done = call(train, *command, '--out', tmp_path / 'b', '--skip-bad')
    lines = done.stderr.splitlines()
    assert done.returncode == 0 and len(lines) == 1 and lines[0].startswith('skipped: ') and message in lines[0]
    assert all(torch.isfinite(v).all() for v in weights(tmp_path / 'b').values())


def test_a_bad_image_in_the_validation_is_named_or_skipped(mhp, tmp_path):
    command = ['--data', 'MHP', '--root', mhp, *NET, '--epochs', '1', '--workers', '0']
    (mhp / 'val' / 'images' / '2.jpg').write_bytes(b'')
    done = call(train, *command, '--out', tmp_path / 'a')
    assert done.returncode == 2 and '2.jpg cannot be read (it is empty)' in done.stderr and (tmp_path / 'a' / 'last.pt').exists()
    done = call(train, '--resume', tmp_path / 'a', '--skip-bad', '--device', 'cpu')
    assert done.returncode == 0 and done.stderr.startswith('skipped: ') and done.stderr.count('\n') == 1


def test_a_replacement_depends_on_seed_epoch_and_index_alone(mhp):
    cut_photo(mhp)
    drawn = []
    for workers in 0, 2, 2:
        config = tiny_config(short_side=(48,), workers=workers, seed=3)
        dataset = open_dataset('MHP', mhp, 'train')
        dataset.skip_bad = True
        loader = open_loader(data.Samples(dataset, config), config, 2)
        for epoch in range(3):
            loader.batch_sampler.set_epoch(epoch)
            drawn.append([(info['id'], bool(info['bad'])) for batch in loader for info in batch['infos']])
    assert drawn[:3] == drawn[3:6] == drawn[6:] and all(sum(bad for _, bad in epoch) == 1 for epoch in drawn)
    assert all(name != '2' for epoch in drawn for name, _ in epoch) and drawn[0] != drawn[1]


def test_a_set_of_bad_photos_alone_is_an_error(mhp, tmp_path):
    for path in (mhp / 'train' / 'images').iterdir():
        path.write_bytes(b'')
    done = call(train, '--data', 'MHP', '--root', mhp, *NET, '--out', tmp_path / 'a', '--skip-bad', '--workers', '0')
    assert done.returncode == 2 and 'it is empty' in done.stderr and '9 other images cannot be read either' in done.stderr


@pytest.mark.parametrize('damage, message', [
    (lambda root: shutil.rmtree(root / 'train'), 'does not exist'),
    (lambda root: [p.unlink() for p in (root / 'train' / 'images').iterdir()], 'lacks 4 of 4 files'),
    (lambda root: (root / 'list' / 'train.txt').write_text(''), 'no image of the split'),
    (lambda root: (root / 'list' / 'train.txt').write_text('1\n99\n'), 'lacks 1 of 2 files, the first is 99.jpg'),
    (lambda root: (root / 'list' / 'train.txt').unlink(), 'train.txt does not exist'),
    (lambda root: (root / 'list' / 'train.txt').write_bytes(b'\xff\xfe1\x00'), 'train.txt cannot be read')])
def test_folders_and_lists_that_are_wrong_get_one_sentence(mhp, tmp_path, damage, message):
    damage(mhp)
    done = call(train, '--data', 'MHP', '--root', mhp, *NET, '--out', tmp_path / 'a', '--skip-bad')
    assert done.returncode == 2 and message in done.stderr and done.stderr.count('\n') == 1, done.stderr


def test_lists_may_end_their_lines_as_windows_does(mhp, tmp_path):
    plain = open_dataset('MHP', mhp, 'train').ids
    (mhp / 'list' / 'train.txt').write_bytes(b'1\r\n2\r\n\r\n3\r\n4')
    assert open_dataset('MHP', mhp, 'train').ids == plain == ['1', '2', '3', '4']


def test_three_hundred_people_and_nobody_in_one_batch(mhp, tmp_path):
    folder, rng = mhp / 'train' / 'parsing_annos', np.random.default_rng(0)
    for path in folder.iterdir():
        path.unlink()                                    # 2, 3 and 4 are photos without people
    height, width = Image.open(mhp / 'train' / 'images' / '1.jpg').size[::-1]
    for n in range(1, 301):
        labels, (y, x) = np.zeros((height, width), np.uint8), rng.integers(0, (height - 20, width - 12))
        labels[y:y + 20, x:x + 12] = rng.integers(1, 59)
        Image.fromarray(labels).save(folder / f'1_300_{n:03d}.png')
    _, parsing, _ = open_dataset('MHP', mhp, 'train').read(0)
    assert parsing.shape == (300, height, width)
    done = call(train, '--data', 'MHP', '--root', mhp, *NET, '--batch-size', '4', '--epochs', '1', '--out', tmp_path / 'a',
                '--workers', '0')
    assert done.returncode == 0, done.stderr
    metrics = ParsingMetrics(58)
    metrics.add(0, (parsing, np.linspace(1, 0.1, 300)), parsing)
    assert metrics.result()['AP50'] > 0.99
    parts, people = flatten_people(parsing[:255])
    assert len(np.unique(people)) > 100 and people.dtype == np.uint8
    with pytest.raises(ValueError, match='--max-people is 300; give a value from 1 to 255'):        # a pixel of _people.png
        uniparser.get_config(max_people=300)


def test_no_annotation_at_all_is_not_a_set_of_photos_without_people(mhp, tmp_path):
    for path in (mhp / 'train' / 'parsing_annos').iterdir():
        path.unlink()
    done = call(train, '--data', 'MHP', '--root', mhp, *NET, '--out', tmp_path / 'a')
    assert done.returncode == 2 and 'parsing_annos has no label map of any photo' in done.stderr, done.stderr


def test_a_bad_sample_stops_the_benchmark_too(mhp):
    sentence = cut_photo(mhp)
    done = call(benchmark, 'train', '--data', 'MHP', '--root', mhp, *NET, '--workers', '0')
    assert done.returncode == 2 and sentence in done.stderr and 'Traceback' not in done.stderr, done.stderr


@pytest.mark.parametrize('key', [*train.STATE, 'optimizer of nothing', 'another version'])
def test_a_run_without_its_whole_state_is_not_resumed(tmp_path, key):
    model = tiny_model()
    optimizer = train.make_optimizer(model, model.config)
    model.save(tmp_path / 'last.pt', optimizer=optimizer.state_dict(), scaler={}, root=None, paths={}, world=1, amp='None',
               best=0.0, epoch=0, position=0)
    state = torch.load(tmp_path / 'last.pt', weights_only=True)
    if key == 'optimizer of nothing':
        state['optimizer'] = {}
    elif key == 'another version':
        state['format'] = 'uniparser 2'
    else:
        del state[key]
    torch.save(state, tmp_path / 'last.pt')
    done = call(train, '--resume', tmp_path, '--device', 'cpu')
    assert done.returncode == 2 and 'last.pt holds no' in done.stderr and 'Traceback' not in done.stderr, done.stderr


@pytest.mark.parametrize('counts', [[10 ** 12], [1, -1, 4], 'o' * 50, [3], [], '~~~'])
def test_run_lengths_that_cannot_be_take_no_memory(counts):
    with pytest.raises(ValueError, match='run lengths of'):
        decode_rle(counts, 2, 2)


# ---- checkpoints -------------------------------------------------------------------------------------------------------


STRANGE = {                                              # what a file holds -> what is said about it
    'another backbone': (dict(config=dict(backbone='resnet50')), 'does not fit'),
    'unknown backbone': (dict(config=dict(backbone='../../x')), 'unknown backbone'),
    'more classes': (dict(config=dict(num_classes=19)), '19 classes need 20 names'),
    'more classes and names': (dict(config=dict(num_classes=19), class_names=['x'] * 20), 'k_cate'),
    'a newer format': (dict(format='uniparser 2'), "its \"format\" is 'uniparser 2'"),
    'a newer setting': (dict(config=dict(warp=9)), "unknown fields such as ['warp']"),
    'endless channels': (dict(config=dict(channels=10 ** 9)), 'no model that can be built'),
    'many channels': (dict(config=dict(channels=2 ** 20)), '--channels is 1048576; give a value from 1 to 4096'),
    'endless depth': (dict(config=dict(depth=10 ** 9)), '--depth is 1000000000; give a value from 1 to 50'),
    'endless grid': (dict(config=dict(grid=10 ** 6)), '--grid is 1000000; give a value from 2 to 1000'),
    'endless photos': (dict(config=dict(test_short_side=10 ** 9)),
                       '--test-short-side is 1000000000; give a value from 1 to 10000'),
    'text for a number': (dict(config=dict(grid='a')), "its setting grid is 'a'"),
    'negative channels': (dict(config=dict(channels=-4)), 'no model that can be built'),
    'names of nothing': (dict(class_names=5), 'no model that can be built'),
    'no weights': (dict(model=None), 'its model is of type NoneType, not a dictionary'),
    'text for weights': (dict(model={'a': 'b'}), 'does not fit'),
    'no format': (dict(format=None), 'not a UniParser checkpoint')}


@pytest.mark.parametrize('case', list(STRANGE))
def test_a_strange_checkpoint_gets_one_sentence(checkpoint, tmp_path, case):
    state, (changes, message) = torch.load(checkpoint, weights_only=True), STRANGE[case]
    changes = dict(changes, config={**state['config'], **changes.get('config', {})})
    torch.save({**state, **changes}, tmp_path / 'a.pt')
    done = call(infer, STREET, '--weights', tmp_path / 'a.pt', '--out', tmp_path / 'out')
    assert done.returncode == 2 and message in done.stderr and 'a.pt' in done.stderr and done.stderr.count('\n') == 1, done.stderr


def test_every_key_of_a_checkpoint_is_missed(checkpoint, tmp_path):
    state = torch.load(checkpoint, weights_only=True)
    for key in set(state) - {'system'}:                                      # files of earlier versions have none
        torch.save({k: v for k, v in state.items() if k != key}, tmp_path / 'a.pt')
        with pytest.raises(ValueError, match=r'a\.pt .*' + key):
            UniParser.from_pretrained(tmp_path / 'a.pt')


def test_weights_that_are_not_finite_are_told_before_the_first_photo(checkpoint, tmp_path):
    state = torch.load(checkpoint, weights_only=True)
    state['model']['fpn.layer_blocks.0.0.weight'][0, 0, 0, 0] = float('nan')
    torch.save(state, tmp_path / 'a.pt')
    done = call(infer, 'no.jpg', '--weights', tmp_path / 'a.pt', '--out', tmp_path / 'out')
    assert done.returncode == 2 and 'NaN or infinite' in done.stderr and 'fpn.layer_blocks.0.0.weight' in done.stderr
    assert 'no.jpg' not in done.stderr and not (tmp_path / 'out').exists()


def test_a_checkpoint_cut_anywhere_is_refused(checkpoint, tmp_path):
    whole, rng = checkpoint.read_bytes(), np.random.default_rng(0)
    for size in [0, 1, 100, *rng.integers(0, len(whole), 30).tolist(), len(whole) - 1]:
        (tmp_path / 'a.pt').write_bytes(whole[:size])
        with pytest.raises(ValueError, match='a.pt is not a readable'):
            UniParser.from_pretrained(tmp_path / 'a.pt')


@pytest.mark.parametrize('place', ['whole', 'model', 'config', 'state_dict'])
@pytest.mark.parametrize('zipped', [True, False])
def test_code_in_a_checkpoint_does_not_run(checkpoint, tmp_path, place, zipped):
    """The payload would make a folder. Everything that reads weights is asked."""
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / 'ran'),)
    state = dict(torch.load(checkpoint, weights_only=True), **{place: Payload()})
    run_folder = tmp_path / 'run'
    run_folder.mkdir()
    torch.save(Payload() if place == 'whole' else state, run_folder / 'last.pt', _use_new_zipfile_serialization=zipped)
    evil = run_folder / 'last.pt'
    for program, arguments in ((infer, (STREET, '--weights', evil)), (train, ('--resume', run_folder)),
                               (train, (*SHORT, '--out', tmp_path / 'new', '--pretrained', evil)),
                               (export, ('--weights', evil, '--out', tmp_path / 'b.pt'))):
        done = call(program, *arguments)
        assert done.returncode == 2 and 'last.pt' in done.stderr and done.stderr.count('\n') == 1
    assert not (tmp_path / 'ran').exists()
    torch.load(evil, weights_only=False)
    assert (tmp_path / 'ran').exists()                   # it would have


# ---- training ----------------------------------------------------------------------------------------------------------


RUN = [*SHORT, '--epochs', '2', '--val-images', '1', '--workers', '0']


def fork(function, output=os.devnull, **environment):
    """function in a process of its own that need not import anything -> its id. Torch may refuse to differentiate in a
    fork after what test_uniparser.py does: run these first, as pytest's own order does."""
    sys.stdout.flush(), sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        sys.stdout = sys.stderr = open(2, 'w', closefd=False)
        os.environ.update(environment)
        function()
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def end_of(pid):
    """Exit code, or minus the signal."""
    for _ in range(1200):                                # two minutes: a test that would hang fails
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    raise AssertionError(f'process {pid} does not end; it was at {os.waitpid(pid, 0)}')


def kill_and_resume(folder, kills, seed=0):
    """A training that saves after every step is killed at random moments, until `kills` of them met it with a last.pt,
    and each time resumed, by two processes at once, both of which are killed -> its weights at the end, those of a run
    that was left alone, all kills."""
    rng, whole, parts, met, tried = random.Random(seed), folder / 'whole', folder / 'parts', 0, 0

    def resume(output=os.devnull):
        return fork(lambda: train.main(['--resume', str(parts), '--device', 'cpu']), output)
    train.SAVE_SECONDS, former = 0, train.SAVE_SECONDS
    try:
        start = time.time()
        assert end_of(fork(lambda: train.main([*RUN, '--out', str(whole)]))) == 0
        longest = time.time() - start
        while True:
            begun, last = (parts / 'last.pt').exists(), met >= kills
            pid = resume() if begun else fork(lambda: train.main([*RUN, '--out', str(parts)]))
            rival = resume(folder / 'log') if begun and not last else None           # one of the two gets the folder
            if not last:
                time.sleep(rng.uniform(0, longest / 2))
                os.kill(pid, signal.SIGKILL)
                tried += 1
            if rival:
                time.sleep(rng.uniform(0, longest / 10))
                os.kill(rival, signal.SIGKILL)
            code, others = end_of(pid), end_of(rival) if rival else 0
            assert code in (0, 2 * bool(rival), -signal.SIGKILL) and others in (0, 2, -signal.SIGKILL), (code, others)
            if (parts / 'last.pt').exists():
                read_checkpoint(parts / 'last.pt')
                met += code != 0
            if last:
                return weights(parts), weights(whole), tried
            if code == 0:                                # done before it was killed: from the start
                shutil.rmtree(parts)
    finally:
        train.SAVE_SECONDS = former


def test_a_clock_that_is_set_back_delays_no_save(tmp_path, monkeypatch):
    now, saves, save = [1e9], [], train.Trainer.save

    def backwards():
        now[0] -= 60
        return now[0]
    monkeypatch.setattr(time, 'time', backwards)
    monkeypatch.setattr(train, 'SAVE_SECONDS', 0)
    monkeypatch.setattr(train.Trainer, 'save', lambda self: saves.append(self.position) or save(self))
    assert call(train, *SHORT, '--epochs', '1', '--val-every', '2', '--out', tmp_path / 'a').returncode == 0
    assert saves[:2] == [1, 2]


def test_a_run_killed_at_random_moments_ends_with_the_same_bits(tmp_path):
    parts, whole, _ = kill_and_resume(tmp_path, 3)
    assert all(torch.equal(parts[name], value) for name, value in whole.items())
    assert len(list((tmp_path / 'parts').glob('*.tmp'))) == 0


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp('finished') / 'a'
    assert call(train, *RUN, '--epochs', '1', '--out', folder).returncode == 0
    return folder


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_ends_and_loses_nothing(tmp_path, monkeypatch, number):
    step, count = train.train_step, []

    def stop(*arguments):
        count.append(1)
        if len(count) == 2:
            os.kill(os.getpid(), number)
        return step(*arguments)
    monkeypatch.setattr(train, 'train_step', stop)
    pid = fork(lambda: train.main([*RUN, '--out', str(tmp_path / 'a'), '--workers', '1']), tmp_path / 'log')
    assert end_of(pid) == 0 and f'continue with --resume {tmp_path / "a"}' in (tmp_path / 'log').read_text()
    state = read_checkpoint(tmp_path / 'a' / 'last.pt')
    assert (state['epoch'], state['position']) == (0, 2)


def test_a_stop_before_training_is_one_sentence(tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt
    monkeypatch.setattr(train, 'open_dataset', interrupt)
    done = call(train, *RUN, '--out', tmp_path / 'a')
    assert done.returncode == 130 and done.stderr == 'stopped before training began\n'


@pytest.mark.parametrize('how', ['system', 'torch'])
def test_a_full_disk_keeps_the_old_weights(finished, tmp_path, monkeypatch, how):
    shutil.copytree(finished, tmp_path / 'a')
    before = {p.name: p.read_bytes() for p in (tmp_path / 'a').glob('*.pt')}

    def half(state, file):
        file.write(b'half of it')
        if how == 'system':
            full()
        raise RuntimeError('[enforce fail at inline_container.cc:671] . unexpected pos 64 vs 0')
    monkeypatch.setattr(torch, 'save', half)
    done = call(train, '--resume', tmp_path / 'a', '--epochs', '2', '--device', 'cpu')
    assert done.returncode == 2 and done.stderr.count('\n') == 1
    assert 'last.pt cannot be written' in done.stderr and 'the old file is kept' in done.stderr
    assert before == {p.name: p.read_bytes() for p in (tmp_path / 'a').iterdir() if '.pt' in p.name}


def test_a_full_disk_under_the_log_is_named(finished, tmp_path):
    shutil.copytree(finished, tmp_path / 'a')
    (tmp_path / 'a' / 'log.jsonl').unlink(), (tmp_path / 'a' / 'log.jsonl').symlink_to('/dev/full')
    done = call(train, '--resume', tmp_path / 'a', '--epochs', '2', '--device', 'cpu')
    assert done.returncode == 2 and 'log.jsonl cannot be written (No space left on device)' in done.stderr
    assert read_checkpoint(tmp_path / 'a' / 'last.pt')['epoch'] == 1


def die_at(index):
    """A data set whose image `index` kills the process that reads it."""
    read = datasets.Synthetic.read
    return lambda self, i, *rest: os.kill(os.getpid(), signal.SIGKILL) if i == index else read(self, i, *rest)


def test_a_script_that_leaves_workers_behind_ends():
    code = ('import data, uniparser; from util.datasets import open_dataset;'
            'from util.workers import open_loader;'
            'config = uniparser.get_config("synthetic", workers=1);'
            'loader = open_loader(data.Samples(open_dataset("synthetic"), config), config, 2);'
            'print(next(iter(loader))["images"].shape)')
    done = subprocess.run([sys.executable, '-c', code], cwd=HERE, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and '[2, 3, 96, 128]' in done.stdout, done.stderr


@pytest.mark.parametrize('workers', [1, 2])
def test_a_worker_that_dies_is_reported_with_its_image(tmp_path, monkeypatch, workers):
    monkeypatch.setattr(datasets.Synthetic, 'read', die_at(7))
    pid = fork(lambda: train.main([*RUN, '--out', str(tmp_path / 'a'), '--workers', str(workers)]), tmp_path / 'log')
    assert end_of(pid) == 2
    sentence = (tmp_path / 'log').read_text().splitlines()[-1]
    assert sentence.startswith('error: a worker process died while it read train_0007') and '--workers' in sentence


def test_what_is_not_finite_ends_a_run_and_its_workers(tmp_path, monkeypatch):
    """Workers ignore SIGTERM: a run that left them to Python would wait for them for ever."""
    monkeypatch.setattr(data, 'normalize', lambda image: torch.full((3, *np.asarray(image).shape[:2]), float('nan')))
    pid = fork(lambda: train.main([*RUN, '--out', str(tmp_path / 'a'), '--workers', '2']), tmp_path / 'log')
    assert end_of(pid) == 2
    sentence = (tmp_path / 'log').read_text().splitlines()[-1]
    assert 'is not finite' in sentence and 'total' in sentence and 'train_0' in sentence


def test_memory_that_ends_on_the_device_is_one_sentence(tmp_path, monkeypatch):
    def exhaust(*_):
        raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB.')
    monkeypatch.setattr(train, 'train_step', exhaust)
    done = call(train, *RUN, '--out', tmp_path / 'a')
    assert done.returncode == 2 and done.stderr.startswith('error: CUDA out of memory; ') and '--accumulate' in done.stderr


@pytest.mark.parametrize('how', ['kill', 'error'])
def test_when_one_of_two_processes_dies_the_other_ends_with_a_message(tmp_path, monkeypatch, how):
    step, count = train.train_step, []

    def die(*arguments):
        count.append(1)
        if len(count) == 2 and os.environ['RANK'] == '1':
            if how == 'kill':
                os.kill(os.getpid(), signal.SIGKILL)
            raise train.Diverged('total is not finite')
        return step(*arguments)
    monkeypatch.setattr(train, 'train_step', die)
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = str(free.getsockname()[1])
    processes = [fork(lambda: train.main([*RUN, '--out', str(tmp_path / 'a')]), tmp_path / f'log{rank}', RANK=str(rank),
                      LOCAL_RANK=str(rank), WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=port) for rank in (0, 1)]
    assert [end_of(pid) for pid in processes] == [2, -signal.SIGKILL if how == 'kill' else 2]
    sentence = (tmp_path / 'log0').read_text().splitlines()[-1]
    assert sentence.startswith('error: another process of this run has ended') and '--resume' in sentence


# ---- fuzz --------------------------------------------------------------------------------------------------------------


class Drawn(datasets.Photos):
    """One image, held in memory."""
    class_names, flip_pairs, ids, skip_bad = datasets.Synthetic.class_names, datasets.Synthetic.flip_pairs, ['drawn'], False

    def __init__(self, sample):
        self.sample = sample

    def read(self, i, seed=0, epoch=0):
        return self.sample


def choices(name):
    return next(f.metadata['choices'] for f in fields(uniparser.Config) if f.name == name)


LAMBDAS = [f.name for f in fields(uniparser.Config) if f.name.startswith('lambda_')]
ELSEWHERE = {                                     # of the training loop, the data set or the labels
    'data', 'num_classes', 'pretrained', 'pretrained_stages', 'batch_size', 'accumulate', 'epochs', 'milestones', 'optimizer',
    'lr', 'backbone_lr', 'schedule', 'warmup', 'weight_decay', 'clip', 'samples', 'backgrounds', 'people', 'tagged',
    'rare', 'things', 'coco', 'coco_share', 'licenses', 'parts', 'pseudo', 'val_every', 'val_images', 'workers', 'seed'}
SETTINGS = st.fixed_dictionaries(dict(
    recipe=st.sampled_from(['paper', 'released']), space=st.sampled_from(choices('space')),
    fusion=st.sampled_from(choices('fusion')), light=st.booleans(), dcn=st.booleans(), grid=st.integers(2, 20),
    center_radius=st.integers(0, 2), sigma=st.sampled_from([0.0, 0.2, 3.0]), crop=st.sampled_from([0.0, 1.0]),
    crop_min=st.sampled_from([0.0, 0.5]), color_jitter=st.sampled_from([0.0, 0.5]), degrade=st.sampled_from([0.0, 1.0]),
    score=st.sampled_from(choices('score')), assign=st.sampled_from(choices('assign')),
    theta_score=st.sampled_from([0.0, 0.3]), flip_test=st.booleans(),
    theta_person=st.sampled_from([0.0, 0.3]), theta_side=st.sampled_from([0.0, 0.2]), whole=st.booleans(),
    short_side=st.sampled_from([(8,), (1, 40), (16, 32, 48)]),
    long_side=st.integers(1, 90), test_short_side=st.integers(1, 60), max_people=st.integers(1, 20),
    theta_center=st.sampled_from([0.0, 0.1, 1.0]), theta_mask=st.sampled_from([0.0, 0.3, 1.0]),
    theta_paint=st.sampled_from([0.0, 0.2]), peaks=st.sampled_from(choices('peaks')),
    theta_part=st.sampled_from([0.0, 0.3]), theta_same=st.sampled_from([0.0, 0.6, 1.0]),
    category_coords=st.booleans(), share_compression=st.booleans(),
    compress_kernel=st.sampled_from([1, 3]), neck_channels=st.sampled_from([8, 16]), channels=st.sampled_from([4, 8]),
    depth=st.integers(1, 3), center_depth=st.integers(1, 3), flip=st.sampled_from([0.0, 0.5, 1.0]),
    backbone=st.sampled_from(['resnet10', 'resnet18']),
    **{name: st.sampled_from([0.0, 1.0]) for name in LAMBDAS}))


@st.composite
def images(draw):
    """A photo of any mode and size with any label maps: Pillow image, parsing, ignore."""
    height, width, people = draw(st.integers(1, 70)), draw(st.integers(1, 70)), draw(st.integers(0, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2 ** 32)))
    photo = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
    photo = photo.convert(draw(st.sampled_from(['1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'CMYK', 'YCbCr', 'I', 'F'])))
    cell, share = draw(st.sampled_from([1, 5, 30])), draw(st.sampled_from([0.02, 0.5, 1.0]))
    coarse = rng.choice([*range(7), 255], (people, -(-height // cell), -(-width // cell)))
    parsing = np.kron(coarse, np.ones((1, cell, cell), int))[:, :height, :width].astype(np.uint8)
    parsing[rng.random(parsing.shape) > share] = 0
    return photo, parsing[parsing.any((1, 2))], rng.random((height, width)) < draw(st.sampled_from([0.0, 0.1, 1.0]))


def photo_to_metric(image, changes):
    photo, parsing, ignore = image
    pixels = np.array(to_rgb(photo))
    dataset, model = Drawn((pixels, parsing, ignore)), tiny_model(num_classes=6, **changes)
    batch = data.collate([data.Samples(dataset, model.config)[0, 0], data.Samples(dataset, model.config)[1, 0]])
    assert batch['images'].shape[2] % 32 == batch['images'].shape[3] % 32 == 0 and len(batch['parsings']) == 2
    terms = uniparser_loss(model.train()(batch['images']), batch['parsings'], batch['ignores'], model.config,
                           model.fusion)
    if terms['total'].requires_grad:
        terms['total'].backward()
    assert all(torch.isfinite(v) for v in terms.values())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    found = model.predict(photo)[0]
    assert found.parsing.shape[1:] == ignore.shape and found.parsing.dtype == np.uint8 and found.parsing.max(initial=0) <= 6
    assert len(found.parsing) == len(found.scores) == len(found.centers) <= model.config.max_people
    metrics = ParsingMetrics(6)
    metrics.add(0, found, (parsing, ignore)), metrics.add(1, (parsing % 255, np.ones(len(parsing))), (parsing, ignore))
    values = metrics.result()
    assert all(0 <= values[name] <= 1 or np.isnan(values[name]) for name in train.UniParserTask.reported)
    for person in found.visible():
        for part in person.to_dict()['parts']:
            mask = decode_rle(part['rle']['counts'], *ignore.shape[::-1])
            assert mask.sum() == part['area']


def fuzz(count):
    """photo_to_metric on `count` examples; how many ran."""
    ran = []

    @settings(max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck),
              phases=[Phase.generate], report_multiple_bugs=True)   # shrinking takes minutes
    @given(images(), SETTINGS)
    def check(image, changes):
        ran.append(1)
        if changes['fusion'] != 'index':
            changes = dict(changes, flip_test=False, assign='correlation')
        photo_to_metric(image, changes)
    check()
    return len(ran)


def test_every_setting_is_fuzzed_or_belongs_elsewhere():
    fuzzed = set(SETTINGS.mapping) if hasattr(SETTINGS, 'mapping') else set(SETTINGS.wrapped_strategy.mapping)
    assert fuzzed | ELSEWHERE == {f.name for f in fields(uniparser.Config)} and not fuzzed & ELSEWHERE


def test_any_image_any_labels_any_settings():
    assert fuzz(20) >= 20


def headers():
    """Small photos of several kinds, and for each how many bytes come before its pixels."""
    files, exif = [], Image.Exif()
    exif[0x0112], exif[0x010e] = 6, 'a photo'
    for mode, options in (('RGB', dict(exif=exif)), ('RGB', dict(progressive=True)), ('L', {}), ('CMYK', {})):
        files.append(('jpg', mode, dict(options, format='JPEG')))
    for mode, options in (('RGB', dict(exif=exif)), ('P', dict(transparency=1)), ('1', {}), ('LA', {}), ('I;16', {})):
        files.append(('png', mode, dict(options, format='PNG')))
    for ending, mode, options in files:
        buffer = io.BytesIO()
        (Image.new('I;16', (60, 40), 999) if mode == 'I;16' else RGB.convert(mode)).save(buffer, **options)
        content = buffer.getvalue()
        yield ending, content, content.index(b'\xff\xda' if ending == 'jpg' else b'IDAT')


def mend_png(content):
    """The checksums of a PNG's chunks made right, so that what was changed is read."""
    content, at = bytearray(content), 8
    while at + 12 <= len(content):
        end = at + 8 + int.from_bytes(content[at:at + 4], 'big')
        if end + 4 > len(content):
            break
        content[end:end + 4] = struct.pack('>I', zlib.crc32(content[at + 4:end]))
        at = end + 4
    return bytes(content)


def mutate(rng, ending, content, length):
    """Bytes of the header set, inserted, removed or cut, at random."""
    content = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 4, 10])):
        at, kind = rng.randrange(length), rng.randrange(8)
        if kind < 5:
            flipped = content[at] ^ 1 << rng.randrange(8)
            content[at:at + 1] = bytes([rng.choice([0, 1, 127, 128, 255, rng.randrange(256), flipped])])
        elif kind == 5:
            content[at:at] = rng.randbytes(rng.randrange(1, 20))
        elif kind == 6:
            del content[at:at + rng.randrange(1, 20)]
        elif rng.random() < 0.3:
            del content[at:]
        length = max(1, min(length, len(content)))
        if not content:
            break
    return mend_png(content) if ending == 'png' and rng.random() < 0.7 else bytes(content)


def check_photo(path):
    photo = read_photo(path)
    assert photo.mode == 'RGB' and stored_size(path) in (photo.size, photo.size[::-1])


def check_labels(path):
    assert read_labels(path).dtype == np.uint8


def check_prediction(path):
    """As evaluate.py reads it, in the size that the unharmed files have."""
    assert read_prediction(path, RGB.size[::-1]).shape == RGB.size[::-1]


def mutated_headers(count, folder, seed=0, check=check_photo):
    """(read, refused, slowest in seconds, MB after each tenth) of `count` photos with mutated headers."""
    rng, sources, good, slowest, memory = random.Random(seed), list(headers()), 0, 0.0, []
    for i in range(count):
        ending, content, length = rng.choice(sources)
        path, start = folder / f'photo.{ending}', time.time()
        path.write_bytes(mutate(rng, ending, content, length))
        try:
            check(path)
            good += 1
        except ValueError as error:
            assert str(error).startswith(str(path)) and str(error).isprintable(), error
        slowest = max(slowest, time.time() - start)
        if (i + 1) % max(1, count // 10) == 0:
            memory.append(round(resident()))
    return good, count - good, slowest, memory


@pytest.mark.parametrize('check', [check_photo, check_labels, check_prediction])
def test_mutated_headers_are_read_or_refused(tmp_path, check):
    good, refused, _, memory = mutated_headers(500, tmp_path, check=check)
    assert good > 50 and refused > 50 and memory[-1] < memory[2] + 300


# ---- a soak: photos of mixed sizes through infer.py in one process -----------------------------------------------------


def soak(count, folder, weights, largest):
    """(MB before, MB at the end of every tenth of the photos, results)"""
    rng, photos, out, sizes, done = np.random.default_rng(0), folder / 'photos', folder / 'out', [], threading.Event()
    photos.mkdir()
    with Image.open(STREET) as street:
        for i in range(count):
            size = np.exp(rng.uniform(np.log(16), np.log(largest), 2)).astype(int).tolist()
            x, y = rng.integers(0, 200, 2).tolist()
            street.crop((x, y, x + 280, y + 440)).resize(size).save(photos / f'{i:05d}.{("jpg", "png", "webp")[i % 3]}')
            sizes.append(size)
    marks = [count * k // 10 - 1 for k in range(1, 11)]

    def watch(found=()):
        while not done.wait(0.05):
            if marks[len(samples):] and (out / f'{marks[len(samples)]:05d}.json').exists():
                samples.append(round(resident()))

    samples, before, watcher = [], round(resident()), threading.Thread(target=watch)
    watcher.start()
    result = call(infer, photos, '--weights', weights, '--out', out, '--device', 'cpu')
    samples.append(round(resident()))
    done.set(), watcher.join()
    assert result.returncode == 0 and f'{count} of {count} photos' in result.stdout, result.stderr[-2000:]
    assert len(list(out.iterdir())) == 4 * count + 1          # index.html
    for i, size in enumerate(sizes):
        record = json.loads((out / f'{i:05d}.json').read_text())
        assert [record['width'], record['height']] == size
    return before, samples


def test_a_soak_of_photos(checkpoint, tmp_path):
    soak(12, tmp_path, checkpoint, 200)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in 'headers', 'fuzz', 'soak', 'kills':
        parser.add_argument(f'--{name}', type=int, default=0, metavar='COUNT')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        if args.headers:
            good, refused, slowest, memory = mutated_headers(args.headers, folder)
            print(f'{args.headers} headers: {good} read, {refused} refused, none slower than {slowest:.1f} s; '
                  f'{memory} MB after each tenth')
        if args.fuzz:
            print(f'{fuzz(args.fuzz)} examples from photo to metric')
        if args.kills:
            parts, whole, tried = kill_and_resume(folder, args.kills)
            same = all(torch.equal(parts[name], value) for name, value in whole.items())
            print(f'{tried} kills, after {args.kills} of them a last.pt was there; all loaded; the same bits at the end: {same}')
        if args.soak:
            before, samples = soak(args.soak, folder, infer.WEIGHTS, 1200)
            print(f'{args.soak} photos: {before} MB before, {samples} MB after each tenth and at the end')


if __name__ == '__main__':
    main()

"""Hostile files and careless commands: more of what docs/robustness.md promises.

Claimed: nothing of the user's is lost; no file takes the memory of the machine or runs code;
everything that is printed is short, escaped and says what to do.
"""
import io
import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import time
import unicodedata
import zipfile
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from tqdm import tqdm

import data
import evaluate
import infer
import oneshot
import schp
import train
from tests.robustness.test_faults import end_of, fork
from tests.test_commands import BASES, RUNS_WITHOUT_FILES
from tests.helpers import HERE, SHORT, call, run, tiny_model, write_photo
from tools import export
from uniparser import Config, UniParser, get_config
from util import files, images
from util.checkpoints import check_settings, read_checkpoint
from util.cli import start
from util.datasets import open_dataset
from util.results import Parsing, file_parts, write_results
from util.run import thread_advice
from util.submissions import FORMS, PredictionWriter, open_predictions


# ---- loss of data ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """A run of one epoch."""
    folder = tmp_path_factory.mktemp('finished') / 'a'
    assert call(train, *SHORT, '--epochs', '1', '--out', folder).returncode == 0
    return folder


@pytest.mark.parametrize('name, content', [('config.json', '{"mine": 1}'), ('log.jsonl', 'mine'), ('best.pt', 'mine'),
                                           ('cycle_3.pt', 'mine')])
def test_a_run_replaces_no_file_of_the_user(tmp_path, finished, name, content):
    out, hidden = tmp_path / 'new', ('.notes.2024', '.last.pt.2024')
    out.mkdir()
    for file in name, *hidden:
        (out / file).write_text(content)
    done = call(train, *SHORT, '--epochs', '1', '--out', out)
    assert done.returncode == 2 and f'{name} exists and this program did not write it' in done.stderr
    assert all((out / file).read_text() == content for file in (name, *hidden)) and not (out / 'last.pt').exists()
    if name != 'log.jsonl':                                                  # a log is only appended to
        shutil.copytree(finished, tmp_path / 'old')
        (tmp_path / 'old' / name).write_text(content)
        done = call(train, '--resume', tmp_path / 'old', '--epochs', '2', '--device', 'cpu')
        assert done.returncode == 2 and f'{name} exists and this program did not write it' in done.stderr
        assert (tmp_path / 'old' / name).read_text() == content


def test_the_weights_of_a_run_make_its_folder_taken(tmp_path, finished):
    """best.pt was replaced once last.pt was gone, even where it was the input."""
    folder = shutil.copytree(finished, tmp_path / 'a')
    (folder / 'last.pt').unlink()
    before = (folder / 'best.pt').read_bytes()
    done = call(train, *SHORT, '--epochs', '1', '--out', folder, '--pretrained', folder / 'best.pt')
    assert done.returncode == 2 and done.stderr.endswith('a holds a run already; choose another --out\n')
    assert (folder / 'best.pt').read_bytes() == before


def test_an_export_replaces_an_export_and_nothing_else(tmp_path, finished):
    write_photo(tmp_path / 'photo.jpg'), shutil.copy(finished / 'last.pt', tmp_path / 'last.pt')
    (tmp_path / 'mine.pt').write_text('mine'), (tmp_path / 'mine.onnx').write_text('mine')
    shutil.copy(finished / 'best.pt', tmp_path / 'best.pt')
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for weights, out, message in (('best.pt', 'photo.jpg', 'its ending is .onnx, .pt or .safetensors'),
                                  ('last.pt', 'last.pt', 'last.pt is an input'), ('best.pt', 'last.pt', 'belongs to a run'),
                                  ('best.pt', 'mine.pt', 'did not write it'), ('best.pt', 'mine.onnx', 'did not write it')):
        done = call(export, '--weights', weights, '--out', out, '--half', cwd=tmp_path)
        assert done.returncode == 2 and message in done.stderr and done.stderr.count('\n') == 1, (out, done.stderr)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    for _ in range(2):
        assert call(export, '--weights', 'last.pt', '--out', 'new.pt', '--half', cwd=tmp_path).returncode == 0


def test_the_outputs_of_an_evaluation_replace_no_predictions_and_not_each_other(tmp_path):
    people = np.ones((1, 4, 4), np.uint8), [0.9]
    with PredictionWriter(tmp_path / 'p') as writer:
        writer.add('7', people)
    index = tmp_path / 'p' / 'instances.json'
    before = index.read_bytes()
    for flag, path, message in (('--json', index, 'is a file among the predictions'),
                                ('--plot', index, 'give a name that ends in .png'),
                                ('--json', tmp_path / 'photo.jpg', 'give a name that ends in .json'),
                                ('--per-image', '/dev/null', 'give a name that ends in .csv')):
        done = call(evaluate, '--data', 'synthetic', '--predictions', tmp_path / 'p', flag, path)
        assert done.returncode == 2 and message in done.stderr and done.stderr.count('\n') == 1
    assert index.read_bytes() == before


def test_an_output_replaces_files_alone(tmp_path):
    """root's /dev/null would become a file."""
    os.mkfifo(tmp_path / 'device')
    with pytest.raises(OSError, match='device cannot be written .it is not a regular file'):
        files.write_file(tmp_path / 'device', 'x')
    assert not (tmp_path / 'device').is_file()


def test_a_run_removes_the_temporary_files_of_killed_runs_alone(tmp_path, finished):
    folder = shutil.copytree(finished, tmp_path / 'a')
    (folder / '.lock').write_text('mine')
    for name in '.notes.2024', '.last.pt.123', '.cycle_2.pt.123', '.config.json.123', '.last.pt.mine':
        (folder / name).write_text('x')
    assert call(train, '--resume', folder, '--epochs', '2', '--device', 'cpu').returncode == 0
    assert {p.name for p in folder.glob('.*')} == {'.notes.2024', '.last.pt.mine', '.lock'}
    assert (folder / '.lock').read_text() == 'mine'


def test_results_replace_results_and_nothing_else(tmp_path):
    picture = Image.new('RGB', (3, 2), 'red')
    files.write_png(tmp_path / 'a.png', picture)
    files.write_png(tmp_path / 'a.png', Image.new('P', (3, 2)))              # ours: replaced
    assert Image.open(tmp_path / 'a.png').mode == 'P'
    picture.save(tmp_path / 'b.png')
    (tmp_path / 'folder.png').mkdir(), (tmp_path / 'link.png').symlink_to('nowhere')
    before = (tmp_path / 'b.png').read_bytes()
    for name in 'b.png', 'folder.png', 'link.png':
        with pytest.raises(ValueError, match=f'{name} exists and this program did not write it'):
            files.write_png(tmp_path / name, picture)
    assert (tmp_path / 'b.png').read_bytes() == before and not list(tmp_path.glob('.*'))


def test_arrays_carry_the_mark_and_numpy_reads_them(tmp_path):
    for shape in (3, 4), (2999, 40, 20), (1,), (100, 100):
        array = np.random.default_rng(0).random(shape, np.float32)
        for _ in range(2):                                                   # the second time it is ours
            files.write_array(tmp_path / 'a.npy', array)
        assert files.is_ours(tmp_path / 'a.npy') and (tmp_path / 'a.npy').stat().st_size == 128 + array.nbytes
        assert np.array_equal(np.load(tmp_path / 'a.npy'), array)
        assert np.array_equal(np.load(tmp_path / 'a.npy', mmap_mode='r'), array)
    np.save(tmp_path / 'b.npy', array)
    with pytest.raises(ValueError, match='b.npy exists and this program did not write it'):
        files.write_array(tmp_path / 'b.npy', array)


def test_a_text_beside_a_picture_is_replaced_where_the_picture_is_ours(tmp_path):
    picture = Image.new('L', (3, 2))
    for text in 'one', 'two':
        files.write_pair(tmp_path / 'a.png', picture, text)
    assert (tmp_path / 'a.txt').read_text() == 'two'
    (tmp_path / 'b.txt').write_text('mine'), (tmp_path / 'c.txt').write_text('mine'), picture.save(tmp_path / 'c.png')
    for name in 'b', 'c':
        with pytest.raises(ValueError, match=f'{name}.txt exists and this program did not write it'):
            files.write_pair(tmp_path / f'{name}.png', picture, 'ours')
        assert (tmp_path / f'{name}.txt').read_text() == 'mine'
    assert not (tmp_path / 'b.png').exists()


@pytest.mark.parametrize('form', FORMS)
def test_predictions_replace_predictions_and_nothing_else(tmp_path, form, monkeypatch):
    """Half of a label map on a full disk leaves the former one."""
    people = np.array([[[0, 1], [1, 1]], [[2, 0], [0, 0]]], np.uint8), [0.9, 0.5]
    for k in range(2):
        with PredictionWriter(tmp_path / 'a', form) as writer:
            writer.add('7', (people[0][k:], people[1][k:]))
    found = open_predictions(tmp_path / 'a', form, ['7']).read('7', (2, 2), 5)
    assert len(found.parsing) == 1 and list(found.scores) == [0.5]
    before = {p: p.read_bytes() for p in (tmp_path / 'a').rglob('*') if p.is_file()}
    write = Path.write_bytes
    monkeypatch.setattr(Path, 'write_bytes', lambda path, content: write(path, content[:9]) and path.rename('/no/where'))
    with pytest.raises(OSError, match='cannot be written'), PredictionWriter(tmp_path / 'a', form) as writer:
        writer.add('7', people)
    monkeypatch.undo()
    left = {p: p.read_bytes() for p in (tmp_path / 'a').rglob('*') if p.is_file()}
    assert left == {p: content for p, content in before.items() if p.name not in ('instances.json', 'parsing.json', 'results.txt')}
    for path in before:                                                      # another program's folder of the same form
        other = tmp_path / 'b' / path.relative_to(tmp_path / 'a')
        other.parent.mkdir(parents=True, exist_ok=True)
        Image.new('L', (2, 2)).save(other) if path.suffix == '.png' else other.write_text('mine')
    theirs = {p: p.read_bytes() for p in (tmp_path / 'b').rglob('*') if p.is_file()}
    with pytest.raises(ValueError, match='exists and this program did not write it'):
        with PredictionWriter(tmp_path / 'b', form) as writer:
            writer.add('7', people)
    assert {p: p.read_bytes() for p in (tmp_path / 'b').rglob('*') if p.is_file()} == theirs


@pytest.mark.parametrize('form', FORMS)
def test_a_second_run_that_is_stopped_leaves_no_predictions(tmp_path, form):
    """Half of its pictures lay beside the index of the first run and were scored as complete."""
    people = np.ones((1, 4, 4), np.uint8), [0.9]
    ids = ['7', '8']
    with PredictionWriter(tmp_path, form) as writer:
        for image in ids:
            writer.add(image, people)
    open_predictions(tmp_path, form, ids)
    with pytest.raises(KeyboardInterrupt), PredictionWriter(tmp_path, form) as writer:
        writer.add('7', people)
        raise KeyboardInterrupt
    for wanted in form, None:
        with pytest.raises((ValueError, FileNotFoundError)) as refused:
            open_predictions(tmp_path, wanted, ids)
        assert str(tmp_path) in str(refused.value)
    with PredictionWriter(tmp_path, form) as writer:
        for image in ids:
            writer.add(image, people)
    assert open_predictions(tmp_path, form, ids).ids == set(ids)


def test_a_failure_before_the_first_picture_keeps_the_index(tmp_path):
    people = np.ones((1, 4, 4), np.uint8), [0.9]
    with PredictionWriter(tmp_path) as writer:
        writer.add('7', people)
    with pytest.raises(ValueError), PredictionWriter(tmp_path) as writer:
        writer.add('../7', people)
    assert open_predictions(tmp_path, None, ['7']).ids == {'7'}


def test_one_strange_row_makes_no_ids_positions(tmp_path):
    def read(*names, ids=('3', '1', '2')):
        rows = [dict(image_id=name, score=0.5, parsing='a.png') for name in names]
        (tmp_path / 'a.json').write_text(json.dumps(rows))
        return open_predictions(tmp_path / 'a.json', None, list(ids)).ids
    assert read('3', '1') == {'3', '1'} and read(3, 4) == {'3', '4'}         # ids, one of them strange
    assert read(1, 2, ids=('a', 'b', 'c')) == {'a', 'b'}                      # positions
    assert read(1, 4, ids=('a', 'b', 'c')) == {'1', '4'}                      # a position that the set lacks: ids
    assert read('7', '1', ids=('7', '8', '9')) == {'7', '1'}


def test_the_check_of_a_download_replaces_its_own_picture_alone(tmp_path):
    arguments = '--data', 'synthetic', '--out', 'samples.png'
    for _ in range(2):
        assert call(data, *arguments, cwd=tmp_path).returncode == 0
    Image.new('RGB', (3, 2)).save(tmp_path / 'samples.png')
    before = (tmp_path / 'samples.png').read_bytes()
    done = call(data, *arguments, cwd=tmp_path)
    assert done.returncode == 2 and 'samples.png exists and this program did not write it' in done.stderr
    assert (tmp_path / 'samples.png').read_bytes() == before and os.listdir(tmp_path) == ['samples.png']


TRAINING = '''
import sys
sys.path.insert(0, sys.argv[1])
import infer
import train
train.SAVE_SECONDS = 0
train.main(sys.argv[2:])
'''


def start_training(*arguments):
    return subprocess.Popen([sys.executable, '-c', TRAINING, str(HERE), *map(str, arguments)], stdout=subprocess.DEVNULL,
                            stderr=subprocess.PIPE, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})


def test_two_processes_cannot_train_in_one_folder_and_a_killed_one_frees_it(tmp_path):
    folder = tmp_path / 'run'
    first = start_training(*SHORT, '--samples', '4000', '--epochs', '1', '--out', folder)
    for _ in range(600):
        if (folder / 'last.pt').exists() or first.poll() is not None:
            break
        time.sleep(0.1)
    assert (folder / 'last.pt').exists()
    second = start_training('--resume', folder, '--device', 'cpu')
    message = second.communicate(timeout=120)[1]
    assert second.returncode == 2 and message.strip().splitlines()[-1].startswith('error: another process trains in')
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    assert read_checkpoint(folder / 'last.pt')['epoch'] == 0                 # whole, whatever the kill cut off
    (folder / '.last.pt.99999').write_bytes(b'left by a killed process')
    third = start_training('--resume', folder, '--device', 'cpu')
    for _ in range(600):
        if not (folder / '.last.pt.99999').exists() or third.poll() is not None:
            break
        time.sleep(0.1)
    third.kill()
    assert not (folder / '.last.pt.99999').exists(), third.communicate()[1]


RANGES = {f.name: (f.metadata['low'], f.metadata['high']) for f in fields(Config) if f.metadata['low'] is not None}


# ---- settings ----------------------------------------------------------------------------------------------------------


def test_every_number_among_the_settings_has_a_range():
    numbers = {f.name for f in fields(Config) if type(f.default) in (int, float, tuple)}
    assert numbers == set(RANGES) | {f.name for f in fields(Config) if f.metadata['choices']} & numbers


@pytest.mark.parametrize('arguments', [
    ['--val-every', '0'], ['--short-side', '100', '50'], ['--seed', '-1'], ['--workers', '-1'], ['--channels', '0'],
    ['--clip', '-1'], ['--lr', '-1'], ['--sigma', 'nan'], ['--flip', 'nan'], ['--val-images', '-5'], ['--grid', '1'],
    ['--lr', 'inf'], ['--epochs', '0'], ['--lambda-cate', '-1'], ['--theta-part', '2']])
def test_a_setting_out_of_range_is_refused_by_its_flag_before_anything_runs(tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    done = call(train, *arguments, '--device', 'cpu')
    assert done.returncode == 2 and done.stderr.startswith(f'error: {arguments[0]} is ') and done.stderr.count('\n') == 1
    assert not os.listdir(tmp_path)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.sampled_from(sorted(RANGES)), st.one_of(st.integers(), st.floats()))
def test_any_value_is_taken_or_refused_by_its_flag(name, value):
    low, high = RANGES[name]
    value = (value,) if isinstance(getattr(Config, name), tuple) else value
    try:
        get_config(**{name: value})
    except ValueError as error:
        assert str(error).startswith('--' + name.replace('_', '-'))
    else:
        assert all(low <= v <= high for v in (value if isinstance(value, tuple) else (value,)))


@pytest.mark.parametrize('name', ['synthetic', 'crowd'])
def test_the_smallest_scenes_can_be_trained_on(tmp_path, name):
    low = str(RANGES['long_side'][0])
    done = call(train, *SHORT, '--data', name, '--long-side', low, '--short-side', str(RANGES['short_side'][0]), '--samples', '4',
                '--val-images', '1', '--epochs', '1', '--out', tmp_path / 'a')
    assert done.returncode == 0, done.stderr


def test_a_busy_machine_gets_advice_about_threads(monkeypatch):
    monkeypatch.setattr(os, 'cpu_count', lambda: 2)
    threads, load = [1], [0.1]
    monkeypatch.setattr(torch, 'get_num_threads', lambda: threads[0])
    monkeypatch.setattr(os, 'getloadavg', lambda: (load[0], 0, 0))
    assert thread_advice(torch.device('cpu')) == ''
    load[0] = 3.0
    assert thread_advice(torch.device('cpu')) == '' == thread_advice(torch.device('cuda'))
    threads[0] = 2
    assert 'OMP_NUM_THREADS=1' in thread_advice(torch.device('cpu'))


def test_clip_0_clips_nothing():
    layer = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD([dict(params=layer.parameters(), factor=1.0)], lr=1.0)
    before, scaler = layer.weight.clone(), torch.amp.GradScaler('cpu', enabled=False)
    train.train_step(layer, lambda net, x: dict(total=1e6 * net(x).sum()), [torch.ones(1, 2)], optimizer, scaler, 1.0, 0)
    assert torch.allclose(before - layer.weight, torch.full((1, 2), 1e6))


# ---- images ------------------------------------------------------------------------------------------------------------


def prediction_of(folder, image, name='a.png'):
    """A folder of predictions whose only person is this file."""
    (folder / 'instances').mkdir()
    if isinstance(image, Image.Image):
        image.save(folder / 'instances' / name)
    else:
        (folder / 'instances' / name).write_bytes(image)
    (folder / 'instances.json').write_text(json.dumps({'7': [dict(file=name, score=0.5)]}))
    return open_predictions(folder)


def test_a_page_named_png_starts_no_ghostscript(tmp_path):
    predictions = prediction_of(tmp_path, b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n')
    with pytest.raises(ValueError, match='a.png cannot be read'):
        predictions.read('7', (9, 9), 5)


def test_a_label_map_of_another_size_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    predictions = prediction_of(tmp_path, Image.new('L', (9000, 9000)))
    monkeypatch.setattr(Image.Image, 'load', lambda self: pytest.fail('decoded'))
    with pytest.raises(ValueError, match='is 9000x9000 pixels, but the ground truth is 9x9'):
        predictions.read('7', (9, 9), 5)


@pytest.mark.parametrize('dtype, value, message', [
    (np.int32, -250, 'no integers from 0 on'), (np.float32, 1.5, 'no integers from 0 on'), (np.int32, 300, 'label 300'),
    (np.uint16, 4, None), (np.int32, 4, None), (np.float32, 4.0, None)])
def test_deep_label_maps_are_read_exactly_or_refused(tmp_path, dtype, value, message):
    image = Image.fromarray(np.full((9, 9), value, dtype))
    predictions = prediction_of(tmp_path, image, 'a.tif')
    if message:
        with pytest.raises(ValueError, match=message):
            predictions.read('7', (9, 9), 5)
    else:
        assert (predictions.read('7', (9, 9), 5).parsing[0] == 4).all()


def many_scans(count, size=(64, 48)):
    """A progressive JPEG whose last scan is repeated."""
    file = io.BytesIO()
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8))
    photo.save(file, 'JPEG', progressive=True)
    content = file.getvalue()
    start = content.rindex(b'\xff\xda')
    return content[:-2] + content[start:-2] * count + content[-2:]


def test_a_jpeg_of_thousands_of_scans_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    (tmp_path / 'few.jpg').write_bytes(many_scans(20))
    assert images.read_photo(tmp_path / 'few.jpg').size == (64, 48)
    # A header that holds the bytes of many scans is none.
    plain = many_scans(0)
    header = b'\xff\xe5' + (2 + 4000).to_bytes(2, 'big') + b'\xff\xda' * 2000
    (tmp_path / 'header.jpg').write_bytes(plain[:2] + header + plain[2:])
    assert images.read_photo(tmp_path / 'header.jpg').size == (64, 48)
    (tmp_path / 'many.jpg').write_bytes(many_scans(3000))
    predictions = prediction_of(tmp_path, many_scans(3000), 'a.jpg')
    for load in Image.Image, JpegImageFile:
        monkeypatch.setattr(load, 'load', lambda self: pytest.fail('decoded'))
    with pytest.raises(ValueError, match='many.jpg cannot be read .it is a JPEG of more than 100 scans'):
        images.read_photo(tmp_path / 'many.jpg')
    with pytest.raises(ValueError, match='a.jpg cannot be read .* more than 100 scans'):
        predictions.read('7', (48, 64), 5)


# ---- weights -----------------------------------------------------------------------------------------------------------


def weights_with(tmp_path, change):
    state = dict(format='uniparser 1', **{})
    model = tiny_model()
    model.save(tmp_path / 'a.pt')
    state = torch.load(tmp_path / 'a.pt', weights_only=True)
    change(state)
    torch.save(state, tmp_path / 'a.pt')
    return tmp_path / 'a.pt'


def expand(state):
    state['model'] = {k: torch.zeros(1).expand(v.shape) if v.is_floating_point() else v for k, v in state['model'].items()}


def share(state):
    largest = torch.zeros(max(v.numel() for v in state['model'].values()))
    state['model'] = {k: largest[:v.numel()].view(v.shape) if v.is_floating_point() else v
                      for k, v in state['model'].items()}


@pytest.mark.parametrize('change, message', [
    (expand, 'claims weights of'), (share, 'claims weights of'),
    (lambda s: s['config'].update(channels=10 ** 6), '--channels is 1000000'),
    (lambda s: s['config'].update(grid=10 ** 6), '--grid is 1000000'),
    (lambda s: s['config'].update({'x\x1b[2J\n' + 'y' * 10 ** 5: 1}), 'unknown fields'),
    (lambda s: s['model'].update({'z\x1b[2J\n' * 10 ** 4: torch.zeros(1)}), 'unknown')])
def test_a_small_file_cannot_claim_a_large_model_nor_print_what_it_likes(tmp_path, change, message):
    path = weights_with(tmp_path, change)
    with pytest.raises(ValueError, match=message) as refused:
        UniParser.from_pretrained(path)
    assert len(str(refused.value)) < 2000 and str(refused.value).isprintable()


@pytest.mark.parametrize('name, values, message', [
    ('weight', lambda v: v.double() * 0 + 1e300, 'NaN or infinite numbers'),
    ('weight', lambda v: v.to(torch.int64), 'numbers of another type'), ('weight', lambda v: v > 0, 'numbers of another type'),
    ('weight', lambda v: v + 1j, 'numbers of another type'), ('running_var', lambda v: v - 9, 'negative variances')])
def test_numbers_that_no_network_has_are_told(tmp_path, name, values, message):
    """They gave "found no person" and exit code 0."""
    def change(state):
        key = [key for key in state['model'] if key.endswith(name)][-1]
        state['model'][key] = values(state['model'][key])
    path = weights_with(tmp_path, change)
    with pytest.raises(ValueError, match=f'a.pt holds {message} in 1 of'):
        UniParser.from_pretrained(path)


@pytest.mark.parametrize('number', [10 ** 400, 10 ** 5000, 1e300], ids=['400', '5000', '1e300'])
def test_large_numbers_are_printed_short(number):
    with pytest.raises(ValueError, match='--lr is') as refused:
        Config(lr=number)
    assert len(str(refused.value)) < 100


@pytest.mark.parametrize('name', ['config', 'model'])
@pytest.mark.parametrize('content', [None, [1]])
def test_what_is_no_dictionary_is_called_so(tmp_path, name, content):
    with pytest.raises(ValueError, match=f'its {name} is of type {type(content).__name__}, not a dictionary'):
        UniParser.from_pretrained(weights_with(tmp_path, lambda state: state.update({name: content})))


def test_a_compressed_archive_is_refused_before_it_is_unpacked(tmp_path):
    tiny_model().save(tmp_path / 'a.pt')
    with zipfile.ZipFile(tmp_path / 'a.pt') as archive, zipfile.ZipFile(tmp_path / 'b.pt', 'w', zipfile.ZIP_DEFLATED) as packed:
        for info in archive.infolist():
            packed.writestr(info.filename, archive.read(info.filename) + bytes(10 ** 6) * info.filename.endswith('data.pkl'))
    with pytest.raises(ValueError, match='b.pt unpacks to .* more than the file has'):
        read_checkpoint(tmp_path / 'b.pt')


@pytest.mark.parametrize('system', [['x'], {}, 7, 'x\x1b[2J' * 1000])
def test_an_unknown_system_gets_one_sentence(tmp_path, system):
    path = weights_with(tmp_path, lambda state: state.update(system=system))
    for load in UniParser.from_pretrained, schp.SCHP.from_pretrained, oneshot.load_model:
        with pytest.raises(ValueError, match='of a system that this version does not know') as refused:
            load(path, device='cpu')
        assert len(str(refused.value)) < 600 and str(refused.value).isprintable()


class Call:
    """Pickled as a call, and what is set afterwards."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


RECONSTRUCT = np.zeros(1).__reduce__()[0]


@pytest.mark.parametrize('call, message', [
    ((bytearray, (10 ** 9,)), 'holds .*bytearray, which could run code or fill the memory'),
    ((torch.ByteTensor, (10 ** 9,)), 'holds torch.ByteTensor, which'),
    ((torch.UntypedStorage, (10 ** 9,)), 'holds torch.storage.UntypedStorage, which'),
    ((RECONSTRUCT, (np.ndarray, (2 * 10 ** 8,), 'O')), 'not a readable'),
    ((RECONSTRUCT, (np.ndarray, (0,), b'b'), (1, (10 ** 9,), np.dtype('f8'), False, b'x')), 'not a readable'),
    ((np.ndarray, ((10 ** 9,),)), 'not a readable'),
    ((np.float64(1).__reduce__()[0], (np.dtype('V1000000000'),)), 'not a readable'),
    ((np.float64(1).__reduce__()[0], (np.dtype('U200000'), b'x')), 'not a readable')])
@pytest.mark.parametrize('zipped', [True, False])
def test_a_small_pickle_cannot_fill_the_memory(tmp_path, call, message, zipped):
    torch.save(dict(model=Call(*call)), tmp_path / 'a.pt', _use_new_zipfile_serialization=zipped)
    assert os.path.getsize(tmp_path / 'a.pt') < 2000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=message):
        read_checkpoint(tmp_path / 'a.pt')
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 10 ** 5         # kilobytes


def test_the_keys_of_storages_are_checked_too(tmp_path):
    """The fifth pickle of the old format."""
    torch.save({}, tmp_path / 'a.pt', _use_new_zipfile_serialization=False)
    whole = (tmp_path / 'a.pt').read_bytes()
    keys = pickle.dumps([], 2)
    assert whole.endswith(keys)
    call = b'\x80\x02c__builtin__\nbytearray\n' + pickle.dumps((3 * 10 ** 9,), 2)[2:-1] + b'R.'
    (tmp_path / 'a.pt').write_bytes(whole[:-len(keys)] + call)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match='holds .*bytearray, which could run code or fill the memory'):
        read_checkpoint(tmp_path / 'a.pt')
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 10 ** 5


def nested(depth):
    """Tuples of few bytes and of 2 ** depth paths."""
    value = ()
    for _ in range(depth):
        value = value, value
    return value


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('place', ['key', 'config', 'list'])
def test_tuples_of_tuples_take_no_time(tmp_path, zipped, place):
    """In a process of its own: the hash of such a key hears no signal."""
    value = pickle.dumps(nested(60), 2)[2:-1]
    name = pickle.dumps('config', 2)[2:-1]
    content = dict(key=b'\x80\x02}' + value + b'K\1s.', config=b'\x80\x02}' + name + value + b's.',
                   list=b'\x80\x02}' + name + b']' + value + b'as.')[place]
    torch.save({}, tmp_path / 'a.pt', _use_new_zipfile_serialization=zipped)
    if zipped:
        with zipfile.ZipFile(tmp_path / 'a.pt') as old:
            entries = {name: old.read(name) for name in old.namelist()}
        with zipfile.ZipFile(tmp_path / 'a.pt', 'w') as new:
            for name, entry in entries.items():
                new.writestr(name, content if name.endswith('data.pkl') else entry)
    else:
        whole, empty, keys = (tmp_path / 'a.pt').read_bytes(), pickle.dumps({}, 2), pickle.dumps([], 2)
        assert whole.endswith(empty + keys)
        (tmp_path / 'a.pt').write_bytes(whole[:-len(empty + keys)] + content + keys)
    program = ("from util.checkpoints import read_checkpoint\ntry:\n    print(read_checkpoint('a.pt'))\n"
               "except ValueError as error:\n    print(error)")
    done = run('python', '-c', program, cwd=tmp_path, timeout=60)
    assert done.stdout.startswith('a.pt is not a readable weights file'), done.stderr


def test_settings_that_cannot_be_are_printed_short_whatever_they_hold():
    value = []
    for _ in range(60):                                                      # lists may be filled later
        value = [value, value]
    with pytest.raises(ValueError, match='its setting grid is ') as refused:
        check_settings(dict(grid=value), Config)
    assert len(str(refused.value)) < 200


def test_a_damaged_archive_gets_one_sentence(tmp_path):
    tiny_model().save(tmp_path / 'a.pt')
    whole = bytearray((tmp_path / 'a.pt').read_bytes())
    rng = np.random.default_rng(0)
    directory = whole.index(b'PK\1\2')
    for _ in range(100):
        damaged = whole.copy()
        for place in rng.integers(directory, len(whole), 3):
            damaged[place] = rng.integers(256)
        (tmp_path / 'b.pt').write_bytes(damaged)
        try:
            UniParser.from_pretrained(tmp_path / 'b.pt')
        except ValueError as error:
            assert 'b.pt' in str(error)


@pytest.mark.parametrize('zipped', [True, False])
def test_numbers_and_arrays_beside_the_weights_are_read(tmp_path, zipped):
    numbers = dict(a=np.float64(0.1), b=np.int64(7), c=np.bool_(True), d=np.float32(2), e=np.str_('four'))
    arrays = dict(f=np.arange(6).reshape(2, 3), g=np.array(['a', 'bcd']))
    more = dict(i=torch.nn.Parameter(torch.ones(2)), j=torch.Size([3]), k=torch.bfloat16, m={1, 2})
    torch.save(dict(numbers, **arrays, **more), tmp_path / 'a.pt', _use_new_zipfile_serialization=zipped)
    found = read_checkpoint(tmp_path / 'a.pt')
    assert all(found[k] == v and type(found[k]) is type(v) for k, v in numbers.items())
    assert all(np.array_equal(found[k], v) and found[k].dtype == v.dtype for k, v in arrays.items())
    assert torch.equal(found['i'], more['i']) and [found[k] for k in 'jkm'] == [more[k] for k in 'jkm']


# ---- data sets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', ['../../escape', '/abs/escape', 'sub/escape', '..'])
def test_ids_that_leave_the_folder_are_refused_where_the_set_is_opened(tmp_path, name):
    folder = tmp_path / 'annotations' / 'DensePose_COCO'
    folder.mkdir(parents=True)
    coco = dict(images=[dict(id=1, file_name=f'{name}.jpg' if name != '..' else '..')], annotations=[])
    (folder / 'densepose_coco_2014_test.json').write_text(json.dumps(coco))
    with pytest.raises(ValueError, match='which is not a file name; check the annotations'):
        open_dataset('DensePose', tmp_path, 'test')


def test_a_photo_listed_twice_is_in_the_set_once(tmp_path):
    (tmp_path / 'val_img').mkdir(), (tmp_path / 'val_parsing').mkdir()
    Image.new('RGB', (8, 6)).save(tmp_path / 'val_img' / '1.jpg')
    Image.new('L', (8, 6), 5).save(tmp_path / 'val_parsing' / '1-1.png')
    listing = dict(images=[dict(id=1, file_name='1.jpg'), dict(id=2, file_name='1.jpg')],
                   annotations=[dict(image_id=1, parsing='1-1.png')])
    (tmp_path / 'CIHP_val.json').write_text(json.dumps(listing))
    assert open_dataset('CIHP', tmp_path, 'val').ids == ['1']


# ---- predict -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('photo', [5, None, np.zeros((0, 0, 3), np.uint8), np.zeros((4, 4, 3), np.float64), [None]])
def test_what_is_no_photo_is_refused_in_one_sentence(photo):
    with pytest.raises(ValueError, match='a photo is a path'):
        tiny_model().predict(photo)


def test_the_type_of_what_is_no_photo_is_named():
    with pytest.raises(ValueError, match='not int$'):
        tiny_model().predict(5)
    with pytest.raises(ValueError, match=r'not float64 \(4, 4\)$'):
        tiny_model().predict(np.zeros((4, 4)))


def test_no_photos_give_no_results_and_a_batch_has_a_photo():
    assert tiny_model().predict([]) == []
    with pytest.raises(ValueError, match='batch_size is -1'):
        tiny_model().predict(np.zeros((9, 9, 3), np.uint8), batch_size=-1)


@pytest.mark.skipif(torch.cuda.is_available(), reason='needs a machine without CUDA')
def test_a_missing_device_is_not_blamed_on_the_file():
    with pytest.raises(ValueError, match='--device cuda: this machine or this torch has none'):
        UniParser.from_pretrained(HERE / 'weights' / 'uniparser_ccp.pt', 'cuda')
    assert UniParser.from_pretrained(HERE / 'weights' / 'uniparser_ccp.pt', 'auto').device.type in ('cpu', 'mps')


def test_a_folder_as_weights_is_named_as_such(tmp_path):
    with pytest.raises(FileNotFoundError, match='is a folder; give the path of a weights file'):
        UniParser.from_pretrained(tmp_path)


@pytest.mark.parametrize('precision', ['half', 'bfloat16', 'double', 'autocast', 'default dtype'])
def test_every_precision_gives_the_same_people_and_nearly_the_same_labels(precision):
    """On the demo photo: at most 0.05 % of the labels differed, in bfloat16."""
    model = UniParser.from_pretrained(HERE / 'weights' / 'uniparser_ccp.pt')
    expected = model.predict(HERE / 'assets' / 'street.jpg')[0].parsing
    try:
        if precision == 'default dtype':
            torch.set_default_dtype(torch.float64)
        elif precision != 'autocast':
            getattr(model, precision)()
        with torch.autocast('cpu', torch.bfloat16, enabled=precision == 'autocast'):
            found = model.predict(HERE / 'assets' / 'street.jpg')[0].parsing
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.shape == expected.shape and (found != expected).mean() < 0.01


# ---- results of photos -------------------------------------------------------------------------------------------------


def parse(checkpoint, cwd, *arguments):
    return call(infer, *arguments, '--weights', checkpoint, '--device', 'cpu', cwd=cwd)


def test_results_replace_neither_photos_nor_annotations(checkpoint, tmp_path):
    """x.jpg's overlay would be x_overlay.jpg, which is a photo, and its JSON a LabelMe file."""
    for name in 'x.jpg', 'x_overlay.jpg', 'y.jpg', 'z.jpg':
        write_photo(tmp_path / name)
    (tmp_path / 'y.json').write_text('{"shapes": []}')
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    done = parse(checkpoint, tmp_path, '.', '--out', '.')
    assert done.returncode == 2 and '2 of 4 photos' in done.stdout and 'Traceback' not in done.stderr
    for name in 'x_overlay.jpg', 'y.json':
        assert f'{name} exists and this program did not write it' in done.stderr
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert not (tmp_path / 'x_parts.png').exists() and (tmp_path / 'z_parts.png').exists()
    again = parse(checkpoint, tmp_path, '.', '--out', '.')                   # leaves its own results out
    assert '2 of 4 photos' in again.stdout and not list(tmp_path.glob('z_parts_*'))
    done = parse(checkpoint, tmp_path, 'z.jpg', 'z_overlay.jpg', '--out', '.')
    lines = done.stderr.splitlines()
    assert done.returncode == 2 and 'error: z.jpg is left out: z_overlay.jpg is an input' in lines[0]
    assert lines[-1] == 'error: 1 photo was not parsed'


def test_cutouts_of_an_earlier_run_are_removed_and_those_of_others_stay(checkpoint, tmp_path):
    write_photo(tmp_path / 'a.png'), write_photo(tmp_path / 'b.png', 1)
    done = parse(checkpoint, tmp_path, 'a.png', 'b.png', '--out', 'out', '--cutouts')
    assert done.returncode == 0, done.stderr
    a, b = (tmp_path / 'out' / f'{name}_cutouts' for name in 'ab')
    assert (a / 'person1.png').exists() and (b / 'person1.png').exists()
    (a / 'notes.txt').write_text('mine')
    assert parse(checkpoint, tmp_path, 'a.png', '--out', 'out').returncode == 0
    assert [path.name for path in a.iterdir()] == ['notes.txt'] and (b / 'person1.png').exists()
    assert parse(checkpoint, tmp_path, 'b.png', '--out', 'out').returncode == 0
    assert not b.exists()


def test_cutouts_replace_no_file_of_the_users(checkpoint, tmp_path):
    write_photo(tmp_path / 'a.png'), write_photo(tmp_path / 'b.png', 1)
    (tmp_path / 'out' / 'a_cutouts').mkdir(parents=True), (tmp_path / 'out' / 'b_cutouts').write_text('mine')
    Image.new('RGBA', (3, 3)).save(tmp_path / 'out' / 'a_cutouts' / 'person9.png')
    done = parse(checkpoint, tmp_path, 'a.png', 'b.png', '--out', 'out', '--cutouts')
    assert done.returncode == 2 and 'Traceback' not in done.stderr
    assert 'a.png is left out: out/a_cutouts/person9.png exists and this program did not write it' in done.stderr
    assert 'b.png is left out: out/b_cutouts exists and is not a folder' in done.stderr
    assert sorted(path.name for path in (tmp_path / 'out').rglob('*')) == ['a_cutouts', 'b_cutouts', 'person9.png']
    # A cut-out may be parsed like any photo, and is not removed then.
    cut = tmp_path / 'cut' / 'c_cutouts' / 'person1.png'
    write_photo(tmp_path / 'c.png', 2)
    assert parse(checkpoint, tmp_path, 'c.png', '--out', 'cut', '--cutouts').returncode == 0
    before = cut.read_bytes()
    done = parse(checkpoint, tmp_path, 'c.png', cut, '--out', 'cut')
    assert done.returncode == 2 and 'person1.png is an input and would be replaced' in done.stderr
    assert cut.read_bytes() == before and (tmp_path / 'cut' / 'person1.json').exists()


def test_an_unknown_part_is_refused_before_the_first_photo(checkpoint, tmp_path):
    write_photo(tmp_path / 'a.png')
    done = parse(checkpoint, tmp_path, 'a.png', '--only', 'head,foo')
    assert done.returncode == 2 and "unknown part 'foo'" in done.stderr and not (tmp_path / 'results').exists()
    done = parse(checkpoint, tmp_path, 'a.png', '--only', 'head,')
    assert done.returncode == 2 and done.stderr.startswith("error: --only is 'head,', where a name is empty; give names")


@pytest.mark.parametrize('program, arguments, message', [
    (infer, ['a.png', '--weights', ''], '--weights is empty; give'), (infer, ['a.png', '--only', ''], '--only is empty'),
    (infer, [''], 'the name of a photo is empty; give'), (train, ['--resume', ''], '--resume is empty; give'),
    (train, ['--resume', 'no'], 'no/last.pt does not exist; --resume takes the folder of a run'),
    (train, ['--short-side', '100', '50', '--device', 'cpu'], '--short-side is 100 50; give a range, the smaller')])
def test_missing_names_and_mixed_up_values_get_one_sentence(tmp_path, program, arguments, message):
    done = call(program, *arguments, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith(f'error: {message}') and done.stderr.count('\n') == 1
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_place_of_the_folder_gets_one_advice(tmp_path):
    (tmp_path / 'a').write_text('')
    found = tiny_model().predict(np.zeros((9, 9, 3), np.uint8))[0]
    with pytest.raises(OSError, match=r'cannot be made a folder \([\w ]+\); choose another$'):
        found.save(tmp_path / 'a', 'x')


def test_photos_of_missing_formats_are_named_once_with_their_number(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(files, 'ENDINGS', set(files.ENDINGS) - set(files.MODERN))
    write_photo(tmp_path / 'a.png')
    for name in 'b.heic', 'c.HEIC', 'd.avif':
        (tmp_path / name).write_bytes(b'')
    assert files.find_photos([str(tmp_path)]) == [tmp_path / 'a.png']
    assert 'skipped: 3 photos such as' in capsys.readouterr().err


@pytest.mark.skipif('AVIF' not in files.FORMATS, reason='this Pillow reads no AVIF')
def test_avif_is_read_where_pillow_can(tmp_path):
    Image.new('RGB', (40, 30), 'red').save(tmp_path / 'a.avif')
    assert files.find_photos([str(tmp_path)]) == [tmp_path / 'a.avif']
    assert images.read_photo(tmp_path / 'a.avif').size == (40, 30)


def test_many_photos_of_one_name_take_few_looks(monkeypatch):
    """The n-th photo of a name begins where the last one ended: about two normalizations per photo."""
    paths, looks = [Path(f'{k}/same/a.jpg') for k in range(2000)], []
    normalize = unicodedata.normalize
    monkeypatch.setattr(unicodedata, 'normalize', lambda *arguments: looks.append(1) or normalize(*arguments))
    assert len(set(files.result_names(paths))) == 2000 and len(looks) < 6 * 2000


# ---- odd predictions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('content, message', [
    ('[' * 200_000 + ']' * 200_000, 'should be'), (b'\xff\xd8\xff' + bytes(range(256)) * 1000, 'should be'),
    ('[{"image_id": 1, "score": 0.5, "parsing": null}]', 'is not text'),
    ('[{"image_id": 1, "score": ' + '9' * 400 + ', "parsing": "a.png"}]', 'should be'),
    ('{"software": "UniParser in pure PyTorch", "photo": "x.jpg"}', 'results of photos such as x.json')])
def test_files_that_are_no_predictions_get_one_short_sentence(tmp_path, content, message):
    (tmp_path / 'x.json').write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message) as refused:
        open_predictions(tmp_path)
    assert len(str(refused.value)) < 600


@pytest.mark.parametrize('name', ['x' * 5000, 'a\0.png', '../../x.png', '/x.png', 'a/../../x.png', '..', ''])
@pytest.mark.parametrize('write', [lambda name: {'7': [dict(file=name, score=0.5)]},
                                   lambda name: [dict(image_id='7', score=0.5, parsing=name)]])
def test_predictions_name_files_of_their_folder(tmp_path, name, write):
    Image.new('L', (2, 2)).save(tmp_path / 'x.png')
    (tmp_path / 'a').mkdir()
    (tmp_path / 'a' / 'instances.json').write_text(json.dumps(write(name)))
    with pytest.raises(ValueError, match='lists the file .* which is not a file name') as refused:
        open_predictions(tmp_path / 'a')
    assert len(str(refused.value)) < 300 + len(str(tmp_path)) and str(refused.value).isprintable()
    (tmp_path / 'a' / 'instances.json').write_text(json.dumps(write('b/./x.png')))
    (tmp_path / 'a' / 'b').mkdir(), (tmp_path / 'x.png').rename(tmp_path / 'a' / 'b' / 'x.png')
    assert len(open_predictions(tmp_path / 'a').read('7', (2, 2), 5).parsing) == 1


def test_a_picture_as_predictions_is_no_text(tmp_path):
    write_photo(tmp_path / 'a.jpg')
    with pytest.raises(ValueError, match='a.jpg should be .*it is no text'):
        open_predictions(tmp_path / 'a.jpg')


def test_names_from_files_are_printed_short_and_escaped(tmp_path, capsys):
    name = 'x\x1b[2J\0' + 'y' * 5000
    (tmp_path / 'results.txt').write_text(f'{name}\n' * 2)
    for function in (lambda: files.pick_files(tmp_path, [name]), lambda: open_predictions(tmp_path),
                     lambda: images.read_prediction(tmp_path / 'a\0.png', (2, 2))):
        with pytest.raises((OSError, ValueError)) as refused:
            function()
        assert len(str(refused.value)) < 500 + len(str(tmp_path)) and str(refused.value).isprintable()
    evaluate.warn({name}, 'images')
    assert capsys.readouterr().err.strip().isprintable()
    with pytest.raises(SystemExit), files.user_errors():
        raise ValueError('one\x1b[2J\ntwo')
    assert capsys.readouterr().err == 'error: one\\x1b[2J\ntwo\n'


@pytest.mark.parametrize('name', ['../esc', '/esc', 'a/esc', '..', 'a\0'])
def test_results_are_written_inside_their_folder(tmp_path, name):
    found = tiny_model().predict(np.zeros((9, 9, 3), np.uint8))[0]
    with pytest.raises(ValueError, match='the results have the name .* not a file name'):
        found.save(tmp_path / 'out', name)
    with pytest.raises(ValueError, match='the predictions are of the image .* not a file name'):
        PredictionWriter(tmp_path / 'out').add(name, (found.parsing, found.scores))
    assert not list(tmp_path.rglob('*'))


@pytest.mark.parametrize('error', [MemoryError(), RuntimeError("can't start new thread"),
                                   RuntimeError('[enforce fail] DefaultCPUAllocator: not enough memory')])
def test_exhausted_machines_get_one_sentence_and_bugs_a_traceback(capsys, error):
    with pytest.raises(SystemExit) as stop, files.user_errors():
        raise error
    assert stop.value.code == 2 and 'used up' in capsys.readouterr().err
    with pytest.raises(RuntimeError, match='a bug'), files.user_errors():
        raise RuntimeError('a bug')


REAL = ('[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can\'t allocate memory: you tried to allocate '
        '4000000000000 bytes. Error code 12 (Cannot allocate memory)')


@pytest.mark.parametrize('error', [MemoryError(), RuntimeError("can't start new thread"), RuntimeError(REAL)])
def test_a_training_adds_advice_to_the_same_sentence(error):
    assert train.explain(error).startswith(files.explain(error)) and '--accumulate' in train.explain(error)
    assert train.explain(RuntimeError('a bug')) is None


def test_max_size_reduces_a_large_photo_and_its_results(checkpoint, tmp_path):
    write_photo(tmp_path / 'a.png', size=(90, 60)), write_photo(tmp_path / 'b.png', size=(30, 20))
    done = parse(checkpoint, tmp_path, 'a.png', 'b.png', '--out', 'out', '--max-size', '45')
    assert done.returncode == 0, done.stderr
    assert [Image.open(tmp_path / 'out' / f'{name}_parts.png').size for name in 'ab'] == [(45, 30), (30, 20)]
    record = json.loads((tmp_path / 'out' / 'a.json').read_text())
    assert (record['width'], record['height']) == (45, 30)
    done = parse(checkpoint, tmp_path, 'a.png', '--max-size', '0')
    assert done.returncode == 2 and '--max-size is 0' in done.stderr


# ---- output ------------------------------------------------------------------------------------------------------------


def unread_pipe():
    """The end to write to of a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def in_streams(program, arguments, log, streams):
    """Exit code of a command in a copy of this process with other streams.

    streams: {number: what it is: None for one that the shell has closed, the path of a file, or
    'left' for a pipe that nobody reads}. stderr goes into the file log, unless it is among them.
    """
    def command():
        for number, target in streams.items():
            if target is None:
                os.close(number)
            else:
                os.dup2(unread_pipe() if target == 'left' else os.open(target, os.O_WRONLY), number)
            # Python's start gives None for a closed one.
            name = ('stdin', 'stdout', 'stderr')[number]
            setattr(sys, name, open(number, 'w', closefd=False) if target else None)
        start(lambda: program.main([str(word) for word in arguments]))
    return end_of(fork(command, log))


def two_photos(checkpoint, folder):
    """The arguments of infer.py, and the files that it shall write."""
    write_photo(folder / 'a.png'), write_photo(folder / 'b.png', 1)
    arguments = [folder / 'a.png', folder / 'b.png', '--weights', checkpoint, '--out', folder / 'out', '--device', 'cpu']
    return arguments, [folder / 'out' / 'a.json', folder / 'out' / 'b.json']


@pytest.mark.parametrize('closed', [[1], [2], [1, 2], [0, 1, 2]])
def test_a_closed_stream_changes_no_result(checkpoint, tmp_path, closed):
    arguments, results = two_photos(checkpoint, tmp_path)
    assert in_streams(infer, arguments, tmp_path / 'log', dict.fromkeys(closed)) == 0
    assert (tmp_path / 'log').read_text() == ''
    assert [json.loads(path.read_text())['photo'] for path in results] == [str(path) for path in arguments[:2]]


@pytest.mark.parametrize('target, code, message', [
    ('left', 141, ''),
    ('/dev/full', 2, 'error: the output of this command cannot be written (No space left on device); make room\n')])
def test_an_output_without_a_reader_or_room_costs_no_result(checkpoint, tmp_path, target, code, message):
    """`| head` ended infer.py at the next photo."""
    arguments, results = two_photos(checkpoint, tmp_path)
    assert in_streams(infer, arguments, tmp_path / 'log', {1: target}) == code
    assert (tmp_path / 'log').read_text() == message and all(path.exists() for path in results)


@pytest.mark.parametrize('name', sorted(set(BASES) - set(RUNS_WITHOUT_FILES)))
def test_any_command_ends_as_usual_with_closed_streams(tmp_path, monkeypatch, name):
    program, arguments = BASES[name]
    monkeypatch.chdir(tmp_path)
    assert in_streams(program, arguments, tmp_path / 'log', {1: None, 2: None}) == 2
    assert (tmp_path / 'log').read_text() == ''


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_sentence_does_not_follow_a_progress_bar(monkeypatch):
    monkeypatch.setattr(sys, 'stderr', Terminal())
    bar = iter(tqdm([1, 2]))                              # is not closed by the error
    with pytest.raises(SystemExit), files.user_errors():
        next(bar)
        raise ValueError('a photo is broken')
    printed = sys.stderr.getvalue()
    assert '0/2' in printed and '\rerror: a photo is broken\n' in printed


def test_mac_os_puts_no_photos_beside_photos(tmp_path):
    write_photo(tmp_path / 'IMG.jpg')
    (tmp_path / '._IMG.jpg').write_bytes(b'\0\5\x16\7')
    assert files.find_photos([str(tmp_path)]) == [tmp_path / 'IMG.jpg']


NAMES = ['background', 'a\0b', 'x' * 300, '\u4e2d' * 200, 'T-shirt / top', 'x' * 299 + 'y', 'hat', 'Hat', 'hat']


def test_a_part_of_any_name_has_a_file_of_its_own(tmp_path):
    """Also on a disk that ignores capitals. Names that share their first bytes had one file."""
    parts = file_parts(NAMES)
    assert len({part.casefold() for part in parts}) == len(NAMES)
    assert all(0 < len(part.encode()) <= 152 and not set('/\0 ') & set(part) for part in parts)
    photo = Image.new('RGB', (9, 4))
    person = np.arange(36).reshape(1, 4, 9) % len(NAMES)
    found = Parsing(person.astype(np.uint8), np.ones(1), np.zeros((1, 2)), NAMES, photo)
    write_results(tmp_path, 'a', found, cutouts=True)
    assert len(list((tmp_path / 'a_cutouts').glob('person1_*.png'))) == len(NAMES) - 1
    write_results(tmp_path, 'a', found)
    assert not (tmp_path / 'a_cutouts').exists()


def test_results_of_300_people_have_300_ids(tmp_path):
    people = np.zeros((300, 20, 60), np.uint8)
    for k, person in enumerate(people):
        person[k // 30 * 2:k // 30 * 2 + 2, k % 30 * 2:k % 30 * 2 + 2] = 1
    photo = Image.new('RGB', (60, 20))
    write_results(tmp_path, 'a', Parsing(people, np.linspace(1, 0, 300), np.zeros((300, 2)), ['background', 'hat'], photo))
    ids = np.asarray(Image.open(tmp_path / 'a_people.png'))
    assert all((ids[people[k] > 0] == k + 1).all() for k in range(300))
    assert len(json.loads((tmp_path / 'a.json').read_text())['people']) == 300


def test_no_photo_lists_the_folder_of_the_results(tmp_path, monkeypatch):
    """For 100,000 photos that would take hours."""
    photo = Image.new('RGB', (9, 4))
    found = Parsing(np.ones((1, 4, 9), np.uint8), np.ones(1), np.zeros((1, 2)), ['background', 'hat'], photo)
    listed = []
    for name in 'listdir', 'scandir':
        former = getattr(os, name)
        monkeypatch.setattr(os, name, lambda path, former=former: listed.append(Path(path)) or former(path))
    for _ in range(2):
        write_results(tmp_path, 'a', found, cutouts=True)
    assert (tmp_path / 'a_cutouts' / 'person1_hat.png').exists() and tmp_path not in listed


@pytest.mark.parametrize('pairs', [[[0, 1]], [[1, 99]], [[1, 2], [2, 3]], [[1, 2, 3]], [[1.5, 2]], 5, ['ab'], [None]])
def test_impossible_flip_pairs_get_one_sentence(tmp_path, pairs):
    path = weights_with(tmp_path, lambda state: state.update(flip_pairs=pairs))
    with pytest.raises(ValueError, match='a.pt holds no model .*its flip_pairs are'):
        UniParser.from_pretrained(path)


@pytest.mark.parametrize('program', [infer, data, train, export])
def test_an_empty_out_is_refused(tmp_path, program):
    done = call(program, '--out', '', cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith('error: --out is empty') and not list(tmp_path.iterdir())

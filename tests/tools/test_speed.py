"""Every fast path gives what the slow one gives; the benchmarks and the ONNX export run. python -m pytest"""
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import data
import infer
import train
import uniparser
from data import network_input
from tests.helpers import HERE, tiny_model
from uniparser import UniParser, decode
from util import photos
from tools import export
from tools import benchmark
from torchvision.ops import deform_conv2d
from util.datasets import open_dataset
from util.masks import flatten_people
from util.run import Run

torch.set_num_threads(1)


# ---- folders ---------------------------------------------------------------------------------------------------


def write_photos(folder, count):
    rng = np.random.default_rng(0)
    for i in range(count):
        size = (60, 80, 3) if i % 3 else (80, 50, 3)
        Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(folder / f'{i:02d}.png')
    (folder / '04.png').write_bytes(b'no photo')


def parse_folder(checkpoint, folder, out, launcher=()):
    command = [sys.executable, *launcher, HERE / 'infer.py', folder, '--weights', checkpoint, '--out', out, '--device', 'cpu']
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)


def test_a_folder_gives_what_each_photo_gives_and_processes_share_it(tmp_path):
    model, photos = tiny_model(theta_center=0.0, theta_part=0.0, test_short_side=64), tmp_path / 'photos'
    model.save(tmp_path / 'w.pt')
    photos.mkdir()
    write_photos(photos, 9)
    done = parse_folder(tmp_path / 'w.pt', photos, tmp_path / 'all')
    assert done.returncode == 2 and '8 of 9 photos' in done.stdout and '04.png' in done.stderr, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith(str(photos))]
    assert [Path(line.split(':')[0]).stem for line in lines] == [f'{i:02d}' for i in range(9) if i != 4]
    for i in 0, 1, 8:
        found = model.predict(photos / f'{i:02d}.png')[0]
        record = json.loads((tmp_path / 'all' / f'{i:02d}.json').read_text())
        people = np.asarray(Image.open(tmp_path / 'all' / f'{i:02d}_people.png'))
        assert len(record['people']) == len(found.scores) > 0
        assert (people == flatten_people(found.parsing)[1]).mean() > 0.99      # folded: rounded otherwise
    for i in range(0, 8, 2):                              # the first process has nothing but these, and fails at once
        (photos / f'{i:02d}.png').write_bytes(b'no photo')
    launcher = '-m', 'torch.distributed.run', '--nproc-per-node', '2', '--standalone'
    done = parse_folder(tmp_path / 'w.pt', photos, tmp_path / 'two', launcher=launcher)
    assert done.returncode != 0 and '4 of 4 photos' in done.stdout and '1 of 5 photos' in done.stdout
    first, second = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ('all', 'two'))
    assert len(first) == 8 * 4 and len(second) == 5 * 4 and second.items() <= first.items()


def test_people_without_a_part_are_left_out(tmp_path, capsys):
    """`released` finds people of whom nothing is painted."""
    model = tiny_model('mhp_released', theta_center=0.0, theta_part=0.99, test_short_side=64)
    model.save(tmp_path / 'w.pt')
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)).save(tmp_path / 'a.png')
    found = model.predict(tmp_path / 'a.png')[0]
    assert len(found.scores) > 0 and not found.parsing.any()
    infer.main([str(tmp_path / 'a.png'), '--weights', str(tmp_path / 'w.pt'), '--out', str(tmp_path / 'out'), '--maps',
                '--device', 'cpu'])
    assert 'found no person' in capsys.readouterr().out
    assert json.loads((tmp_path / 'out' / 'a.json').read_text())['people'] == []


def test_what_goes_ahead_comes_in_order_and_never_far_ahead():
    from concurrent.futures import ThreadPoolExecutor
    started = []
    with ThreadPoolExecutor(4) as pool:
        for i, value in enumerate(photos.ahead(pool, lambda v: started.append(v) or v * v, iter(range(50)))):
            assert value == i * i and max(started) <= i + photos.AHEAD + 1
    assert sorted(started) == list(range(50))


# ---- benchmarks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('preset, people', [('mhp', 1), ('mhp', 10), ('mhp_released', 7), ('ccp', 30)])
def test_planted_people_are_decoded(preset, people):
    model = tiny_model(preset, grid=40, channels=64, test_short_side=96, long_side=128).fold()
    photo = Image.new('RGB', (128, 96))
    out = benchmark.plant_people(model.outputs(network_input(photo, model.config)), people, model.config)
    found = decode(out, 0, photo, model.config)
    assert len(found.scores) == people
    assert all(len(np.unique(p)) == 1 + benchmark.BANDS for p in found.parsing)
    left = [np.nonzero(p.any(0))[0].min() for p in found.parsing]
    assert left == sorted(left) and (found.parsing > 0).sum(0).max() == 1     # side by side, the first leftmost


def test_benchmark_of_inference_counts_and_measures(capsys):
    benchmark.main(['infer', '--preset', 'synthetic', '--size', '64', '96', '--decode', '3', '--device', 'cpu'])
    table = {line[:16].strip(): line[16:].split() for line in capsys.readouterr().out.splitlines()}
    assert {'load', 'preprocess', 'backbone', 'FPN', 'heads', 'network', 'decode 1', 'decode 3', 'save'} < set(table)
    adds = {name: float(table[name][4]) for name in ('backbone', 'FPN', 'heads', 'network', 'plain ResNet-50')}
    assert adds['network'] == pytest.approx(adds['backbone'] + adds['FPN'] + adds['heads'], abs=0.2)
    assert float(table['network'][3]) == pytest.approx(float(table['backbone'][3]) + float(table['FPN'][3])
                                                       + float(table['heads'][3]), abs=0.02)
    assert float(table['plain ResNet-50'][2]) == 1 and float(table['plain ResNet-50'][3]) == 25.56


def test_benchmark_of_schp_counts_and_measures(capsys, monkeypatch):
    monkeypatch.setattr(benchmark, 'schp_preset', lambda *_: dict(data='LIP', blocks=(1, 1, 1, 1), width=8))
    benchmark.main(['schp', '--labels', 'pascal', '--repeats', '1', '--device', 'cpu'])
    table = {line[:16].strip(): line[16:].split() for line in capsys.readouterr().out.splitlines()}
    assert {'plain ResNet-101', 'all heads', 'folded, fusion'} < set(table)
    assert float(table['plain ResNet-101'][2]) == 1 and float(table['all heads'][3]) < float(table['plain ResNet-101'][3])


def test_impossible_counts_get_one_sentence(capsys):
    with pytest.raises(SystemExit) as stopped:
        benchmark.main(['infer', '--decode', '0', '--device', 'cpu'])
    assert stopped.value.code == 2 and '--decode is 0' in capsys.readouterr().err


def test_multiply_adds_are_counted():
    conv = torch.nn.Conv2d(3, 5, 3, padding=1)
    assert benchmark.multiply_adds(conv, torch.zeros(1, 3, 6, 7)) == 3 * 5 * 9 * 6 * 7
    x, offset, weight = torch.zeros(1, 4, 6, 7), torch.zeros(1, 18, 6, 7), torch.zeros(5, 4, 3, 3)
    assert benchmark.multiply_adds(deform_conv2d, x, offset, weight, None, 1, 1) == 5 * 4 * 9 * 6 * 7
    assert benchmark.multiply_adds(torch.mm, torch.zeros(2, 3), torch.zeros(3, 4)) == 24


def test_benchmark_of_training_measures(capsys):
    benchmark.main(['train', '--backbone', 'resnet10', '--samples', '12', '--batch-size', '4', '--device', 'cpu'])
    printed = capsys.readouterr().out
    assert printed.count('images/s') == 3 and 'both' in printed and 'batches of 4x3x96x128' in printed


def test_drawn_files_feed_the_benchmark_of_training(capsys, monkeypatch):
    monkeypatch.setattr(benchmark, 'time_training', lambda task, run: print(
        task.model.backbone.stages, task.config.pretrained, *next(iter(task.loader))['images'].shape))
    benchmark.main(['train', '--data', 'MHP', '--backbone', 'resnet18', '--workers', '0', '--batch-size', '2',
                    '--short-side', '64', '--device', 'cpu'])
    assert capsys.readouterr().out == '4 imagenet 2 3 64 96\n'


# ---- ONNX ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('preset, changes', [
    ('mhp', dict(dcn=True)), ('mhp', dict(light=True)), ('mhp_released', dict(dcn=True)), ('mhp_released', dict(light=True))])
def test_onnx_runtime_gets_the_same_correlations(preset, changes, tmp_path):
    pytest.importorskip('onnxscript', reason='the export needs onnx and onnxscript')
    runtime = pytest.importorskip('onnxruntime', reason='the check of the export needs onnxruntime')
    model = tiny_model(preset, max_people=9, channels=64, **changes).fold()      # of few channels lengths are near 0
    if model.config.dcn:
        torch.nn.init.normal_(model.backbone.layer3[0].conv2.conv_offset.weight, std=0.05)
    export.export_onnx(model, tmp_path / 'm.onnx')
    assert os.listdir(tmp_path) == ['m.onnx']
    session = runtime.InferenceSession(tmp_path / 'm.onnx', providers=['CPUExecutionProvider'])
    told = {k: json.loads(v) for k, v in session.get_modelmeta().custom_metadata_map.items()}
    assert told['class_names'] == model.class_names and told['theta_part'] == 0.3 and told['mean'] == list(data.MEAN)
    for size in (256, 320), (96, 64), (128, 288):
        image = torch.randn(1, 3, *size)
        with torch.no_grad():
            slow = export.Correlations(model)(image)
        for name, ours, theirs in zip(('scores', 'centers', 'q_ins', 'q_cate'), slow,
                                      session.run(None, dict(image=image.numpy()))):
            sure = slow[0].numpy() > 0 if len(ours) == 9 else slice(None)             # no peak: any cell may stand there
            assert ours.shape == theirs.shape and np.abs(ours.numpy() - theirs)[sure].max() < 1e-3, name
        assert (slow[0] > 0).any()


def test_missing_packages_for_the_export_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'onnxscript', None)
    with pytest.raises(SystemExit) as stopped:
        export.main(['--out', str(tmp_path / 'm.onnx')])
    assert stopped.value.code == 2 and 'pip install onnx onnxscript' in capsys.readouterr().err
    assert not os.listdir(tmp_path)

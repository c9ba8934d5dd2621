"""The benchmarks run, and count what they say they count."""
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import deform_conv2d

from data import network_input
from tests.helpers import tiny_model
from tools.benchmark import __main__ as benchmark
from tools.benchmark import schp, training
from tools.benchmark.clock import multiply_adds
from tools.benchmark.planted import BANDS, plant_people
from uniparser import decode


@pytest.mark.parametrize('preset, people', [('mhp', 1), ('mhp', 10), ('mhp_released', 7), ('ccp', 25)])
def test_planted_people_are_decoded(preset, people):
    model = tiny_model(preset, grid=40, channels=64, test_short_side=96, long_side=128).fold()
    photo = Image.new('RGB', (128, 96))
    out = plant_people(model.outputs(network_input(photo, model.config)), people, model.config)
    found = decode(out, 0, photo, model.config)
    assert len(found.scores) == people
    assert all(len(np.unique(p)) == 1 + BANDS for p in found.parsing)
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
    monkeypatch.setattr(schp, 'schp_preset', lambda *_: dict(data='LIP', blocks=(1, 1, 1, 1), width=8))
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
    assert multiply_adds(conv, torch.zeros(1, 3, 6, 7)) == 3 * 5 * 9 * 6 * 7
    x, offset, weight = torch.zeros(1, 4, 6, 7), torch.zeros(1, 18, 6, 7), torch.zeros(5, 4, 3, 3)
    assert multiply_adds(deform_conv2d, x, offset, weight, None, 1, 1) == 5 * 4 * 9 * 6 * 7
    assert multiply_adds(torch.mm, torch.zeros(2, 3), torch.zeros(3, 4)) == 24


def test_benchmark_of_training_measures(capsys):
    benchmark.main(['train', '--backbone', 'resnet10', '--samples', '12', '--batch-size', '4', '--device', 'cpu'])
    printed = capsys.readouterr().out
    assert printed.count('images/s') == 3 and 'both' in printed and 'batches of 4x3x96x128' in printed


def test_drawn_files_feed_the_benchmark_of_training(capsys, monkeypatch):
    monkeypatch.setattr(training, 'time_training', lambda task, run: print(
        task.model.backbone.stages, task.config.pretrained, *next(iter(task.loader))['images'].shape))
    benchmark.main(['train', '--data', 'MHP', '--backbone', 'resnet18', '--workers', '0', '--batch-size', '2',
                    '--short-side', '64', '--device', 'cpu'])
    assert capsys.readouterr().out == '4 imagenet 2 3 64 96\n'

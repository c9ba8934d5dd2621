"""Every fast path gives what the slow one gives; photos of a folder give what each photo gives."""
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
from torchvision.ops import deform_conv2d

import data
import infer
import train
import uniparser
from data import network_input
from tests.helpers import HERE, tiny_model
from uniparser import UniParser, decode
from util import photos
from util.datasets import open_dataset
from util.deform import deform_conv2d_cpu
from util.masks import flatten_people
from util.run import Run
from util.tensors import bilinear_taps

torch.set_num_threads(1)


# ---- deformable convolution ------------------------------------------------------------------------------------


@pytest.mark.parametrize('stride, spread, memory_format', [
    (1, 2, torch.contiguous_format), (2, 2, torch.channels_last), (1, 30, torch.channels_last), (2, 0, torch.contiguous_format)])
def test_deformable_convolution_and_its_gradients_are_those_of_torchvision(stride, spread, memory_format):
    """spread 30: most taps are outside the image; 0: all are on a pixel."""
    torch.manual_seed(0)
    x = torch.randn(2, 8, 11, 14).to(memory_format=memory_format).requires_grad_()
    weight, bias = torch.randn(5, 8, 3, 3).to(memory_format=memory_format).requires_grad_(), torch.randn(5)
    size = (11 + stride - 1) // stride, (14 + stride - 1) // stride
    offset = (spread * torch.randn(2, 18, *size)).requires_grad_()
    mask = torch.rand(2, 9, *size).requires_grad_()
    leaves = (x, mask, weight) + (offset,) * (spread > 0)                    # on a pixel the slope has two values
    theirs = deform_conv2d(x, offset, weight, bias, (stride, stride), (1, 1), mask=mask)
    ours = deform_conv2d_cpu(x, offset, mask, weight, bias, stride)
    assert torch.allclose(ours, theirs, atol=1e-5) and theirs.abs().max() > 1
    change = torch.randn_like(theirs)
    for a, b in zip(torch.autograd.grad(ours, leaves, change), torch.autograd.grad(theirs, leaves, change)):
        assert torch.allclose(a, b, atol=1e-4 * b.abs().max())


def test_broken_offsets_spoil_their_own_pixel_alone():
    torch.manual_seed(0)
    x, weight, mask = torch.randn(1, 4, 6, 7), torch.randn(3, 4, 3, 3), torch.ones(1, 9, 6, 7)
    offset = torch.zeros(1, 18, 6, 7)
    plain = deform_conv2d_cpu(x, offset, mask, weight, None, 1)
    offset[0, 0, 2, 3], offset[0, 1, 4, 4], offset[0, 2, 5, 5] = float('nan'), float('inf'), 1e30
    out = deform_conv2d_cpu(x, offset, mask, weight, None, 1)
    changed = (out != plain).any(1)[0].nonzero().tolist()
    assert changed == [[2, 3], [4, 4], [5, 5]] and out[0, :, 2, 3].isnan().all()


def test_deformable_convolution_trains_in_bfloat16_on_a_cpu():
    model = tiny_model(dcn=True)
    optimizer, scaler = train.make_optimizer(model, model.config), torch.amp.GradScaler('cpu', enabled=False)
    dataset = open_dataset('synthetic')
    batch = data.collate([data.Samples(dataset, model.config)[0, i] for i in range(2)])
    before = model.backbone.layer2[0].conv2.conv_offset.weight.clone()
    task, run = train.UniParserTask(model.config, model, None, None), Run('cpu', amp=True)
    losses = train.train_step(model.train(), lambda net, batch: task.loss(net, batch, run), [batch], optimizer, scaler,
                              1e-3, model.config.clip)
    assert run.amp == torch.bfloat16
    assert losses['total'].isfinite() and not torch.equal(before, model.backbone.layer2[0].conv2.conv_offset.weight)


# ---- data ------------------------------------------------------------------------------------------------------


def test_normalized_images_are_those_of_arithmetic():
    image = np.random.default_rng(0).integers(0, 256, (9, 256, 3), np.uint8)[:, ::-1]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (data.MEAN, data.STD))
    assert torch.equal(data.normalize(image), (torch.from_numpy(image.copy()).permute(2, 0, 1) / 255 - mean) / std)


# ---- decoding --------------------------------------------------------------------------------------------------


def paint_plainly(parsing, maps, classes, size, theta):
    """Every class, enlarged to the whole photo."""
    (y0, y1, wy), (x0, x1, wx) = ([torch.from_numpy(tap) for tap in bilinear_taps(cells, used / 4, pixels)]
                                  for cells, used, pixels in zip(maps.shape[1:], size, parsing.shape))
    rows = torch.lerp(maps[:, y0], maps[:, y1], wy[:, None])
    value, index = torch.lerp(rows[..., x0], rows[..., x1], wx).max(0)
    parsing[:] = torch.where(value > theta, classes[index] + 1, 0)


@pytest.mark.parametrize('size', [(480, 640), (300, 400), (1000, 1300)])
def test_labels_are_those_of_whole_maps(monkeypatch, size):
    """Bit for bit, with the shipped weights."""
    model = UniParser.from_pretrained(HERE / 'weights' / 'uniparser_ccp.pt', theta_center=0.02).fold()
    photo = Image.open(HERE / 'assets' / 'street.jpg').convert('RGB').resize(size)
    out = model.outputs(network_input(photo, model.config))
    found = decode(out, 0, photo, model.config)
    monkeypatch.setattr(uniparser, 'paint', paint_plainly)
    plain = decode(out, 0, photo, model.config)
    assert np.array_equal(found.parsing, plain.parsing) and np.array_equal(found.scores, plain.scores)
    assert len(found.scores) > 0


@pytest.mark.parametrize('seed', range(12))
def test_any_maps_are_painted_as_whole_maps(seed):
    """Ties, single cells, maps that are larger than the photo, and padding that no pixel depends on."""
    rng = np.random.default_rng(seed)
    count, height, width = rng.integers(1, [9, 30, 40])
    maps = torch.from_numpy(rng.random((count, height, width), np.float32))
    maps = (4 * maps).round() / 4 if seed % 3 == 0 else maps * (maps > rng.random())
    used = [int(rng.integers(4 * side - 3, 4 * side + 1)) // (1 + seed % 2) for side in (height, width)]
    fast, plain = np.zeros((2, *rng.integers(1, 300, 2)), np.uint8)
    classes = torch.arange(1, 2 * count, 2)
    uniparser.paint(fast, maps, classes, used, 0.5), paint_plainly(plain, maps, classes, used, 0.5)
    assert np.array_equal(fast, plain) and (plain.any() or seed % 3)


def test_maps_are_enlarged_as_torch_does():
    """Except where rounding decides."""
    maps, parsing = torch.rand(5, 20, 30, generator=torch.Generator().manual_seed(0)), np.zeros((200, 310), np.uint8)
    uniparser.paint(parsing, maps, torch.arange(5), (80, 120), 0.5)
    best, second = F.interpolate(maps[None], parsing.shape, mode='bilinear')[0].topk(2, dim=0)[0]
    index = F.interpolate(maps[None], parsing.shape, mode='bilinear')[0].argmax(0)
    clear = ((best - second > 1e-5) & ((best - 0.5).abs() > 1e-5)).numpy()
    assert clear.mean() > 0.999
    assert np.array_equal(parsing[clear], torch.where(best > 0.5, index + 1, 0).numpy()[clear])


def test_a_person_in_the_padding_alone_has_no_pixels():
    maps = torch.zeros(2, 8, 24)
    maps[:, 2:5, 20:] = 0.9
    parsing = np.zeros((32, 48), np.uint8)
    uniparser.paint(parsing, maps, torch.tensor([0, 3]), (32, 48), 0.5)      # 12 columns of cells are of the photo
    assert not parsing.any()


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

"""Every fast function gives what the plain one in its docstring gives: util/fast.py, with data.normalize."""
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.ops import deform_conv2d

import data
import train
import uniparser
from data import network_input
from tests.helpers import HERE, tiny_model
from uniparser import UniParser, decode
from util import fast
from util.datasets import open_dataset
from util.fast import (bilinear_taps, cell_sums, convolve_with_coordinates, deform_conv2d_cpu, paint,
                       part_sums)
from util.run import Run

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


# ---- coordinates and sums --------------------------------------------------------------------------------------


@pytest.mark.parametrize('size', [(7, 9), (1, 5), (1, 1)])
def test_coordinates_are_two_more_maps(size):
    torch.manual_seed(0)
    x = torch.randn(2, 6, *size)
    weight = torch.randn(5, 8, 3, 3)
    y_map, x_map = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in size), indexing='ij')
    more = torch.stack([x_map, y_map]).expand(2, 2, *size)
    plain = F.conv2d(torch.cat([x, more], 1), weight, padding=1)
    assert torch.allclose(convolve_with_coordinates(x, weight), plain, atol=1e-5)


def test_sums_of_cells_are_those_of_their_maps():
    torch.manual_seed(0)
    k, f, masks = torch.rand(30, 8), torch.rand(8, 77), (torch.rand(3, 77) > 0.5).float()
    known = (torch.rand(77) > 0.3).float()
    q = k @ f
    qt, qq = cell_sums(k, f, masks * known, known)
    assert torch.allclose(qt, q @ (masks * known).T, atol=1e-4)
    assert torch.allclose(qq, q.square() @ known, atol=1e-3)


def test_sums_of_parts_are_those_of_their_maps():
    torch.manual_seed(0)
    q_ins, q_cate = torch.rand(3, 77), torch.rand(5, 77)
    labels = torch.randint(0, 6, (3, 77))
    known = (torch.rand(3, 77) > 0.3).float()
    p = q_ins[:, None] * q_cate
    t = F.one_hot(labels, 6).movedim(2, 1)[:, 1:] * known[:, None]
    plain = (p * t).sum(2), (p.square() * known[:, None]).sum(2), t.sum(2)
    for ours, theirs in zip(part_sums(q_ins, q_cate, labels, known), plain):
        assert torch.allclose(ours, theirs, atol=1e-4)


# ---- decoding --------------------------------------------------------------------------------------------------


def paint_plainly(parsing, maps, classes, size, theta):
    """Every class, enlarged to the whole photo."""
    y0, y1, wy = bilinear_taps(maps.shape[1], size[0] / 4, parsing.shape[0]).part(0, None, 'cpu')
    x0, x1, wx = bilinear_taps(maps.shape[2], size[1] / 4, parsing.shape[1]).part(0, None, 'cpu')
    rows = torch.lerp(maps[:, y0], maps[:, y1], wy[:, None])
    value, index = torch.lerp(rows[..., x0], rows[..., x1], wx).max(0)
    above = (value > theta).numpy()
    parsing[above] = (classes[index] + 1).numpy()[above]


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
    paint(fast, maps, classes, used, 0.5), paint_plainly(plain, maps, classes, used, 0.5)
    assert np.array_equal(fast, plain) and (plain.any() or seed % 3)


def test_maps_are_enlarged_as_torch_does():
    """Except where rounding decides."""
    maps, parsing = torch.rand(5, 20, 30, generator=torch.Generator().manual_seed(0)), np.zeros((200, 310), np.uint8)
    paint(parsing, maps, torch.arange(5), (80, 120), 0.5)
    best, second = F.interpolate(maps[None], parsing.shape, mode='bilinear')[0].topk(2, dim=0)[0]
    index = F.interpolate(maps[None], parsing.shape, mode='bilinear')[0].argmax(0)
    clear = ((best - second > 1e-5) & ((best - 0.5).abs() > 1e-5)).numpy()
    assert clear.mean() > 0.999
    assert np.array_equal(parsing[clear], torch.where(best > 0.5, index + 1, 0).numpy()[clear])


def test_a_person_in_the_padding_alone_has_no_pixels():
    maps = torch.zeros(2, 8, 24)
    maps[:, 2:5, 20:] = 0.9
    parsing = np.zeros((32, 48), np.uint8)
    paint(parsing, maps, torch.tensor([0, 3]), (32, 48), 0.5)      # 12 columns of cells are of the photo
    assert not parsing.any()




def test_painting_holds_few_values_at_a_time(monkeypatch):
    """Also where two thin parts stand far apart: what lies between them is enlarged, too."""
    maps = torch.zeros(8, 84, 84)
    maps[0, :, 2] = maps[1, :, 80] = 0.9
    largest = 0
    lerp = torch.lerp

    def watched(*arguments):
        nonlocal largest
        found = lerp(*arguments)
        largest = max(largest, found.numel())
        return found

    monkeypatch.setattr(torch, 'lerp', watched)
    monkeypatch.setattr(fast, 'CPU_VALUES', 2 ** 15)
    parsing = np.zeros((840, 840), np.uint8)
    paint(parsing, maps, torch.arange(8), (336, 336), 0.5)
    assert set(np.unique(parsing)) == {0, 1, 2}
    # One row of cells at a time, if no more fit: ten rows of pixels for each of two classes.
    assert largest <= max(2 ** 15, 2 * 840 * 10)

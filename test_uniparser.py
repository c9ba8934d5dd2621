"""Claims about model, losses, training and inference, each against an independent reference. python -m pytest

The data sets are tested in test_data.py, the metrics in test_evaluate.py.
"""
import contextlib
import hashlib
import importlib.util
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image

import data
import evaluate
import infer
import losses
import predict
import train
import uniparser
from evaluate import parsing_metrics
from losses import uniparser_loss
from predict import decode, find_centers
from uniparser import PRESETS, Config, UniParser, correlate, get_config

torch.set_num_threads(1)            # on two busy cores two threads can be ten times slower than one
HERE = Path(__file__).resolve().parent
TINY = dict(backbone='resnet10', pretrained='', dcn=False, neck_channels=16, channels=8, depth=2, center_depth=1, grid=12)


def tiny_config(preset='synthetic', **changes):
    return get_config(preset, **{**TINY, **changes})


def tiny_model(preset='synthetic', seed=0, **changes):
    """Random weights of usual size: those of `init_weights` give features that are nearly all alike."""
    torch.manual_seed(seed)
    config = tiny_config(preset, **changes)
    model = UniParser(config, data.DATASETS[config.data].class_names if 'num_classes' not in changes else None,
                      data.DATASETS[config.data].flip_pairs)
    for name, p in model.named_parameters():
        if p.ndim == 4 and not name.startswith('backbone'):
            torch.nn.init.kaiming_normal_(p)
    return model


def two_people(height=64, width=96):
    """Two overlapping people of parts 1..3, one of them partly unknown, and an ignored corner."""
    parsing, ignore = torch.zeros(2, height, width, dtype=torch.uint8), torch.zeros(height, width, dtype=torch.bool)
    parsing[0, 8:24, 8:40], parsing[0, 24:48, 8:40] = 1, 2
    parsing[1, 16:40, 36:76], parsing[1, 40:60, 36:76], parsing[1, 16:20, 36:76] = 2, 3, 255
    ignore[:12, 80:] = True
    return parsing, ignore


def random_leaves(batch, height, width, config, seed=0, dtype=torch.float32):
    """What the model could return for images (height, width) before it is brought into `config.space`."""
    g, S, C = torch.Generator().manual_seed(seed), config.grid, config.channels
    shapes = dict(f_ins=(batch, C, height // 4, width // 4), k_ins=(batch, C, S, S), f_cate=(batch, C, height // 4, width // 4))
    leaves = {k: torch.rand(*shape, generator=g, dtype=dtype) + 0.01 for k, shape in shapes.items()}
    leaves.update(heatmap=torch.randn(batch, 1, S, S, generator=g, dtype=dtype),
                  k_cate=torch.randn(config.num_classes, C, generator=g, dtype=dtype))
    return {k: v.requires_grad_() for k, v in leaves.items()}


def in_space(leaves, config):
    return {k: v if k == 'heatmap' else uniparser.to_space(v, config.space) for k, v in leaves.items()}


def random_out(batch, height, width, config, seed=0):
    return in_space(random_leaves(batch, height, width, config, seed), config)


def run(*command, **options):
    """A command as a user gives it, in a process of its own."""
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(HERE)}
    command = [sys.executable if c == 'python' else str(c) for c in command]
    return subprocess.run(command, capture_output=True, text=True, env=environment, **options)


def call(program, *arguments, cwd='.'):
    """The same in this process, which spares the imports: program is a module with a main."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), contextlib.chdir(cwd):
        try:
            program.main([str(a) for a in arguments])
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
    return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())


# ---- configuration ---------------------------------------------------------------------------------------------


def test_presets_name_fields_and_data_sets():
    for name in PRESETS:
        config = get_config(name)
        assert config.num_classes == len(data.DATASETS[config.data].class_names) - 1
    assert get_config('mhp') == Config() and get_config('mhp_released').recipe == 'released'


def test_unknown_settings_are_refused_with_a_hint():
    with pytest.raises(ValueError, match="did you mean 'epochs'"):
        get_config('mhp', epoch=3)
    with pytest.raises(ValueError, match='unknown preset'):
        get_config('coco')
    with pytest.raises(ValueError, match='unknown backbone'):
        UniParser(tiny_config(backbone='vgg16'))


@pytest.mark.parametrize('preset, changes, count', [
    ('mhp_released', {}, 35_855_138 - 2_306), ('mhp_released', dict(backbone='resnet101'), 55_905_261 - 2_306),
    ('mhp_released', dict(backbone='resnet101', light=True), 50_138_093 - 2_306),
    ('cihp_released', {}, 50_133_101 - 2_306)])
def test_released_configurations_have_the_released_number_of_parameters(preset, changes, count):
    """But for ins_coord_conv (2,306 weights), which the released code never uses."""
    with torch.device('meta'):
        model = UniParser(get_config(preset, **changes))
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize('preset', list(PRESETS))
def test_every_preset_trains_a_step(preset):
    config = get_config(preset, **{**TINY, 'dcn': True, 'light': PRESETS[preset].get('light', False)})
    model = UniParser(config).train()
    out = model(torch.randn(1, 3, 64, 96))
    loss = uniparser_loss(out, [two_people()[0]], two_people()[1][None], config)
    loss['total'].backward()
    assert all(torch.isfinite(v) for v in loss.values())
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


# ---- backbone and neck -----------------------------------------------------------------------------------------


def slow_deform_conv(x, weight, offset, mask, stride):
    """Deformable convolution v2 of one image, output pixel by output pixel."""
    (_, H, W), (out_channels, _, _, _) = x.shape, weight.shape

    def pixel(y, z):
        return x[:, y, z] if 0 <= y < H and 0 <= z < W else torch.zeros(len(x))

    def sample(y, z):
        y0, z0 = int(np.floor(y)), int(np.floor(z))
        fy, fz = y - y0, z - z0
        return ((1 - fy) * (1 - fz) * pixel(y0, z0) + (1 - fy) * fz * pixel(y0, z0 + 1)
                + fy * (1 - fz) * pixel(y0 + 1, z0) + fy * fz * pixel(y0 + 1, z0 + 1))

    out = torch.zeros(out_channels, *offset.shape[1:])
    for i in range(out.shape[1]):
        for j in range(out.shape[2]):
            for tap in range(9):
                dy, dx = offset[2 * tap:2 * tap + 2, i, j].tolist()
                value = sample(i * stride - 1 + tap // 3 + dy, j * stride - 1 + tap % 3 + dx)
                out[:, i, j] += weight[:, :, tap // 3, tap % 3] @ value * mask[tap, i, j]
    return out


@pytest.mark.parametrize('stride', [1, 2])
def test_deformable_convolution_matches_its_definition(stride):
    torch.manual_seed(0)
    dcn = uniparser.ModulatedDeformConv2d(torch.nn.Conv2d(3, 4, 3, stride, bias=False)).eval()
    x = torch.randn(1, 3, 6, 7)
    assert torch.allclose(dcn(x), 0.5 * F.conv2d(x, dcn.weight, stride=stride, padding=1), atol=1e-6)     # as it starts
    torch.nn.init.normal_(dcn.conv_offset.weight, std=0.3)
    moved = dcn.conv_offset(x)[0].detach()
    slow = slow_deform_conv(x[0], dcn.weight.detach(), moved[:18], moved[18:].sigmoid(), stride)
    assert torch.allclose(dcn(x)[0], slow, atol=1e-5)


def test_neck_equals_the_convolution_over_concatenated_levels():
    torch.manual_seed(0)
    neck = uniparser.Neck(tiny_config())
    pyramid = [torch.randn(2, 16, 24 >> i, 32 >> i) for i in range(5)]
    levels = torch.cat([F.interpolate(p, size=(24, 32), mode='bilinear', align_corners=True) for p in pyramid], dim=1)
    assert torch.allclose(neck(pyramid), neck.conv(levels), atol=1e-5)


def test_tower_equals_the_convolution_over_concatenated_coordinates():
    torch.manual_seed(0)
    tower, x = uniparser.ConvTower(16, 8, 2, coords=True), torch.randn(2, 16, 5, 9)
    xs, ys = torch.linspace(-1, 1, 9).expand(2, 1, 5, 9), torch.linspace(-1, 1, 5)[:, None].expand(2, 1, 5, 9)
    slow = torch.cat([x, xs, ys], dim=1)                                     # x before y
    for module in tower.convs:
        slow = F.relu(module.gn(module.conv(slow)))
    assert torch.allclose(tower(x), slow, atol=1e-5)


def test_imagenet_weights_load_by_name_and_stay_frozen(tmp_path):
    torch.manual_seed(1)
    net = torchvision.models.resnet18()
    for norm in (m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.running_mean.normal_()
    torch.save(net.state_dict(), tmp_path / 'whole.pth')
    part = {k: v for k, v in net.state_dict().items() if not k.startswith(('layer4', 'fc'))}
    torch.save(part, tmp_path / 'part.pth')
    for file, stages in ('whole.pth', 4), ('part.pth', 3):
        model = UniParser(tiny_config(backbone='resnet18', dcn=True, pretrained=str(tmp_path / file)))
        model.load_imagenet()
        assert model.config.pretrained_stages == stages
        assert torch.equal(model.backbone.layer3[1].conv2.weight, net.layer3[1].conv2.weight)
        frozen = {n.split('.')[1] for n, p in model.named_parameters() if not p.requires_grad}
        assert frozen == {'conv1', 'bn1', 'layer1'}
        model.train()(torch.randn(1, 3, 64, 64))
        moved = {n.split('.')[0] for n, m in model.backbone.named_modules() if isinstance(m, torch.nn.BatchNorm2d)
                 and m.num_batches_tracked > 0}
        assert moved == (set() if stages == 4 else {'layer4'})
    with pytest.raises(ValueError, match='is not for resnet50'):
        UniParser(tiny_config(backbone='resnet50', pretrained=str(tmp_path / 'whole.pth'))).load_imagenet()


def test_without_pretraining_everything_learns():
    model = tiny_model().train()
    assert all(p.requires_grad for p in model.parameters()) and model.backbone.bn1.training


# ---- branches: Eqs. (1)-(3) ------------------------------------------------------------------------------------


def test_features_and_kernels_have_unit_length():
    out = tiny_model()(torch.randn(2, 3, 64, 96))
    assert out['heatmap'].shape == (2, 1, 12, 12) and out['f_ins'].shape == out['f_cate'].shape == (2, 8, 16, 24)
    assert out['k_ins'].shape == (2, 8, 12, 12) and out['k_cate'].shape == (6, 8)
    for x in out['f_ins'], out['f_cate'], out['k_ins'], out['k_cate']:
        length = x.norm(dim=1)
        assert torch.allclose(length[length > 0], torch.ones(()), atol=1e-5) and (length > 0).float().mean() > 0.9


def test_correlation_equals_cosine_similarity():
    g = torch.Generator().manual_seed(0)
    kernels, features = torch.randn(3, 8, generator=g), torch.randn(2, 8, 5, 7, generator=g)
    q = correlate(uniparser.to_space(kernels, 'cosine'), uniparser.to_space(features, 'cosine'), 'cosine')
    slow = torch.stack([F.cosine_similarity(k[None, :, None, None], features, dim=1) for k in kernels], dim=1)
    assert torch.allclose(q, slow, atol=1e-6)


def test_rival_spaces_of_table_4c():
    g = torch.Generator().manual_seed(0)
    kernels, features = torch.randn(3, 8, generator=g), torch.randn(8, 5, 7, generator=g)
    product = F.conv2d(features[None], kernels[:, :, None, None])[0]
    expected = dict(inner=product, sigmoid_after=product.sigmoid(),
                    sigmoid_before=F.conv2d(features.sigmoid()[None], kernels.sigmoid()[:, :, None, None])[0])
    for space, q in expected.items():
        ours = correlate(uniparser.to_space(kernels, space), uniparser.to_space(features[None], space)[0], space)
        assert torch.allclose(ours, q, atol=1e-5)


def test_a_cell_takes_the_feature_in_its_middle():
    model = tiny_model(grid=4)
    rows, cols = torch.meshgrid(torch.arange(16.), torch.arange(24.), indexing='ij')
    kernels = model.instance_builder.kernels(torch.stack([rows, cols])[None])[0]
    assert kernels[0, :, 0].tolist() == [2, 6, 10, 14] and kernels[1, 0].tolist() == [3, 9, 15, 21]


def test_fusion_of_exact_masks_is_the_exact_parsing():
    q_ins, q_cate = torch.zeros(2, 4, 6), torch.zeros(3, 4, 6)
    q_ins[0, :, :3], q_ins[1, :, 3:], q_cate[0, :2], q_cate[2, 2:] = 1, 1, 1, 1
    fused = uniparser.Fusion(tiny_config())(q_ins, q_cate, None)
    for n in range(2):
        for c in range(3):
            assert torch.equal(fused[n, c] > 0.5, (q_ins[n] > 0) & (q_cate[c] > 0))


@pytest.mark.parametrize('fusion', ['convs', 'multi'])
def test_fusions_with_convolutions_see_each_person_alone(fusion):
    model, g = tiny_model(fusion=fusion), torch.Generator().manual_seed(0)
    q_ins, q_cate, f_cate = (torch.rand(n, 6, 7, generator=g) for n in (3, 6, 8))
    together = model.fusion(q_ins, q_cate, f_cate)
    assert together.shape == (3, 6, 6, 7) and 0 <= together.min() and together.max() <= 1
    for n in range(3):
        assert torch.allclose(together[n], model.fusion(q_ins[n:n + 1], q_cate, f_cate)[0], atol=1e-6)


# ---- inference -------------------------------------------------------------------------------------------------


def test_fusing_for_inference_changes_no_number():
    model = tiny_model(dcn=True, category_coords=True).eval()
    for norm in (m for m in model.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        torch.nn.init.normal_(norm.running_mean, std=0.1), torch.nn.init.uniform_(norm.running_var, 0.5, 2)
        torch.nn.init.uniform_(norm.weight, 0.5, 2), torch.nn.init.normal_(norm.bias, std=0.1)
    images = [torch.randn(1, 3, 64, w) for w in (96, 64, 96)]
    before = [model(x) for x in images]
    model.fuse()
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules())
    for x, old in zip(images, before):                                       # the coordinates' cache follows the size
        new = model(x)
        for key in ('heatmap', 'f_ins', 'k_ins', 'f_cate', 'k_cate'):
            assert torch.allclose(new[key], old[key], atol=1e-4), key


def test_find_centers_by_hand():
    heatmap = torch.full((12, 12), -9.0)
    heatmap[2:5, 2:4], heatmap[3, 3] = 1.0, 2.0          # a rectangle of cells is one person, at its highest cell
    heatmap[10, 10], heatmap[0, 11] = 0.5, -3.0          # a second one; and one below theta_center = 0.1
    cells, scores = find_centers(heatmap, tiny_config())
    assert cells.tolist() == [3 * 12 + 3, 10 * 12 + 10]
    assert torch.allclose(scores, torch.tensor([2.0, 0.5]).sigmoid())
    assert find_centers(heatmap, tiny_config(max_people=1))[0].tolist() == [3 * 12 + 3]


def painted(parsing, config, K=6):
    """Model outputs that say exactly `parsing` (N, H, W): orthogonal features for every person and class."""
    N, (h, w), S = len(parsing), [n // 4 for n in parsing.shape[1:]], config.grid
    labels = parsing[:, 2::4, 2::4].long()
    f_ins, f_cate = torch.zeros(N + 1, h, w), torch.zeros(K + 1, h, w)
    owner = (labels > 0).int().argmax(0) + 1
    f_ins.scatter_(0, torch.where((labels > 0).any(0), owner, 0)[None], 1.0)
    f_cate.scatter_(0, labels.amax(0, keepdim=True), 1.0)
    heatmap, k_ins = torch.full((1, S, S), -9.0), torch.zeros(N + 1, S, S)
    center, _, _ = losses.barycenters(parsing)
    for n in range(N):
        row, col = (int(S * c[n] // size) for c, size in zip(center, parsing.shape[1:]))
        heatmap[0, row, col], k_ins[n + 1, row, col] = 3.0 - n, 1.0
    return dict(heatmap=heatmap[None], f_ins=f_ins[None], k_ins=k_ins[None], f_cate=f_cate[None],
                k_cate=torch.eye(K + 1)[1:], fuse=uniparser.Fusion(config))


def blocks(height=96, width=128):
    """Two people in 4x4 blocks, so that stride 4 loses nothing."""
    parsing = torch.zeros(2, height, width, dtype=torch.uint8)
    parsing[0, 8:40, 8:40], parsing[0, 40:80, 12:36], parsing[1, 16:64, 64:100], parsing[1, 64:92, 72:92] = 1, 2, 3, 6
    return parsing


def test_decoding_exact_features_gives_the_people_back():
    parsing, config = blocks(), tiny_config(theta_mask=0.49)            # 0.5 would be a tie between two cells
    found = decode(painted(parsing, config), 0, Image.new('RGB', (128, 96)), config)
    assert np.mean(found.parsing == parsing.numpy()) > 0.995 and found.scores[0] > found.scores[1] > 0.5
    box = parsing[1].nonzero().float().mean(0).flip(0)
    assert np.abs(found.centers[1] - box.numpy()).max() < 128 / 12           # within a cell
    assert found.parsing.dtype == np.uint8


def slow_decode(out, config, size, photo_size):
    """All N x K maps at the photo's full size, sampled by torch's grid_sample."""
    cells, _ = find_centers(out['heatmap'][0, 0], config)
    q_ins = correlate(out['k_ins'][0].flatten(1).T[cells], out['f_ins'][0], config.space)
    q_cate = correlate(out['k_cate'], out['f_cate'][0], config.space)
    (h, w), people = q_cate.shape[1:], []
    ys = ((torch.arange(photo_size[0]) + 0.5) * size[0] / photo_size[0] / (4 * h) * 2 - 1).double()
    xs = ((torch.arange(photo_size[1]) + 0.5) * size[1] / photo_size[1] / (4 * w) * 2 - 1).double()
    grid = torch.stack(torch.meshgrid(xs, ys, indexing='xy'), -1)[None]
    for q in q_ins:
        gated = (q > config.theta_mask) * q_cate
        mean = (gated * (gated > config.theta_mask)).sum((1, 2)) / ((gated > 0.1).sum((1, 2)) + 1e-5)
        gated[mean <= config.theta_part] = 0
        maps = F.grid_sample(gated[None].double(), grid, padding_mode='border', align_corners=False)[0]
        value, label = maps.max(0)
        people.append(torch.where(value > config.theta_mask, label + 1, 0))
    people = torch.stack(people).to(torch.uint8).numpy()
    return people[people.any((1, 2))]


@pytest.mark.parametrize('photo_size', [(90, 120), (45, 60), (300, 400)])
def test_decoding_in_boxes_and_strips_equals_whole_maps(photo_size):
    config = tiny_config(theta_center=0.3, theta_part=0.2, theta_mask=0.3, test_short_side=90)
    out = {k: v.detach() for k, v in random_out(1, 96, 128, config, seed=4).items()}
    smooth = F.interpolate(torch.rand(1, 8, 6, 8, generator=torch.Generator().manual_seed(1)), (24, 32), mode='bilinear')
    out['f_ins'] = out['f_cate'] = F.normalize(smooth - smooth.mean(1, keepdim=True) * 0.9, dim=1)
    out['k_ins'] = F.normalize(F.interpolate(out['f_ins'], (12, 12)), dim=1)
    out['k_cate'] = F.normalize(out['f_cate'][0, :, ::9, ::7].flatten(1).T[:6], dim=1)
    slow = slow_decode(out, config, (90, 120), photo_size)
    ours = decode(out, 0, Image.new('RGB', photo_size[::-1]), config).parsing
    assert len(slow) > 3 and ours.shape == slow.shape and (ours > 0).mean() > 0.02
    assert np.mean(ours != slow) < 1e-4                                      # ties of rounding alone


def test_a_batch_of_sizes_equals_single_photos_and_padding_changes_nothing():
    model = tiny_model(theta_center=0.0, theta_part=0.0, theta_mask=0.1, test_short_side=50, long_side=90).eval()
    rng = np.random.default_rng(0)
    photos = [Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8)) for h, w in ((40, 60), (60, 40), (41, 61), (99, 30))]
    together, alone = model.predict(photos), [model.predict(p)[0] for p in photos]
    for photo, a, b in zip(photos, together, alone):
        assert a.parsing.shape[1:] == (photo.height, photo.width) and len(a.scores) == len(b.scores) > 0
        assert np.allclose(a.scores, b.scores, atol=1e-5) and np.mean(a.parsing != b.parsing) < 1e-3
        assert np.all(np.diff(a.scores) <= 0)


def test_paths_images_arrays_and_tensors_are_the_same_photo(tmp_path):
    model = tiny_model(theta_center=0.0, theta_part=0.0, theta_mask=0.1, test_short_side=50).eval()
    array = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(array).save(tmp_path / 'a.png')
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    kinds = [str(tmp_path / 'a.png'), tmp_path / 'a.png', Image.fromarray(array), array, tensor, tensor / 255]
    for kind in kinds:
        assert np.array_equal(model.predict(kind)[0].parsing, model.predict(kinds)[0].parsing)
    assert len(model.predict(torch.stack([tensor, tensor]))) == 2 and model.predict([]) == []
    for wrong, message in ((np.zeros((4, 4, 7), np.uint8), 'array'), (np.zeros((4, 4)), 'array'), ('no.jpg', 'no.jpg'),
                           (tensor.float(), '0..1'), (tensor.long(), 'int64')):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            model.predict(wrong)


def test_training_and_inference_see_the_same_tensor():
    image = np.random.default_rng(0).integers(0, 256, (37, 53, 3), np.uint8)
    model = tiny_model(test_short_side=30, long_side=40)
    seen = []
    model.forward = lambda x: seen.append(x) or UniParser.forward(model, x)
    model.predict(image)
    ours = data.Samples([0], replace(model.config, short_side=(30, 30), flip=0.0, color_jitter=0.0))
    ours.dataset = type('One', (), dict(read=lambda *_: (image, np.zeros((0, 37, 53), np.uint8), np.zeros((37, 53), bool)),
                                        ids=['a'], flip_pairs=()))()
    assert torch.equal(data.collate([ours[0, 0]])['images'], seen[0])


# ---- losses: Eqs. (4)-(6) --------------------------------------------------------------------------------------


def test_focal_loss_matches_torchvision():
    logits, target = torch.randn(50), (torch.rand(50) > 0.7).float()
    expected = torchvision.ops.sigmoid_focal_loss(logits, target, alpha=0.25, gamma=2)
    assert torch.allclose(losses.sigmoid_focal_loss(logits, target), expected, atol=1e-6)


def test_center_target_by_hand():
    """An 80x80 image on an 8x8 grid: cells of 10 pixels."""
    parsing = torch.zeros(3, 80, 80, dtype=torch.uint8)
    parsing[0, 0:71, 10:31] = 1                          # rows 0-70, mean 35; columns 10-30, mean 20
    parsing[1, 40:50, 60:70] = 2                         # mean 44 (44.5 truncated), 64
    owner, cells, exists = losses.center_target(parsing, (80, 80), tiny_config(grid=8))
    expected = torch.zeros(8, 8)
    expected[2:5, 1:3] = 1                               # 35 +- 7 -> rows 28..42, cells 2-4; 20 +- 2 -> cells 1-2
    expected[4, 6] = 2                                   # 44 +- 0.9, 64 +- 0.9: its own cell
    assert torch.equal(owner, expected.long()) and cells.tolist() == [3 * 8 + 2, 4 * 8 + 6, 0]
    assert exists.tolist() == [True, True, False]
    owner, _, _ = losses.center_target(parsing, (80, 80), tiny_config(grid=8, sigma=0.8, center_radius=1))
    assert owner[:, 2].tolist() == [0, 0, 1, 1, 1, 0, 0, 0]                  # at most a cell away


def test_a_barycenter_keeps_its_cell_where_regions_overlap():
    parsing = torch.zeros(2, 80, 80, dtype=torch.uint8)
    parsing[0, 30:50, 30:50], parsing[1, :, :] = 1, 2
    owner, cells, _ = losses.center_target(parsing, (80, 80), tiny_config(grid=80, sigma=0.2))
    assert owner[39, 39] == 2 and owner[cells[0] // 80, cells[0] % 80] == owner.flatten()[cells[0]]
    parsing[1, :40] = 0
    owner, cells, _ = losses.center_target(parsing, (80, 80), tiny_config(grid=80, sigma=2.0))
    assert owner.flatten()[cells].tolist() == [1, 2]


def slow_terms(out, parsings, ignores, config):
    """Eqs. (5), (6) and Sec. 6.5 with every map made and every pair looped over."""
    K, terms = config.num_classes, dict(aux_ins=[], aux_cate=[], aux_neg=[], parsing=[], metric=[], pull=[])

    def dice(p, t, known):
        p, t = p * known, t.float() * known
        return 1 - (2 * (p * t).sum() + 0.002) / ((p * p).sum() + (t * t).sum() + 0.002)

    for i, (parsing, ignore) in enumerate(zip(parsings, ignores)):
        labels, certain = parsing[:, 2::4, 2::4], ~ignore[2::4, 2::4]
        owner, cells, exists = losses.center_target(parsing, parsing.shape[1:], config)
        maps = torch.einsum('cst,chw->sthw', out['k_ins'][i], out['f_ins'][i])
        q_cate = torch.einsum('kc,chw->khw', out['k_cate'], out['f_cate'][i])
        if config.space == 'sigmoid_after':
            maps, q_cate = maps.sigmoid(), q_cate.sigmoid()
        for row, col in owner.nonzero().tolist():
            person = labels[owner[row, col] - 1] > 0
            if (person & certain).any():
                terms['aux_ins'].append(dice(maps[row, col], person, certain))
        known = certain & ~(labels == 255).any(0)
        cate = neg = 0
        for c in range(K):
            t = (labels == c + 1).any(0) & known
            if t.any():
                cate = cate + dice(q_cate[c].clamp(min=0), t, known)
                f = out['f_cate'][i][:, t]
                terms['pull'].append(1 - (f.T @ f).mean())
            elif not (parsing == c + 1).any():
                neg = neg + q_cate[c][known].abs().mean()
        terms['aux_cate'].append(torch.as_tensor(cate / K)), terms['aux_neg'].append(torch.as_tensor(neg / K))
        people = [n for n in range(len(parsing)) if exists[n]]
        for n in people:
            sure = certain & (labels[n] != 255)
            for c in range(K):
                if ((labels[n] == c + 1) & sure).any():
                    q = maps.flatten(0, 1)[cells[n]] * q_cate[c].clamp(min=0)
                    terms['parsing'].append(dice(q, labels[n] == c + 1, sure))
        total = 0
        for kernels in out['k_cate'], out['k_ins'][i].flatten(1).T[cells[people]]:
            for a in range(len(kernels)):
                for b in range(len(kernels)):
                    total = total + (kernels[a] @ kernels[b] - int(a == b)).abs()
        terms['metric'].append(total / (K + len(people)))
    return {k: torch.stack(v).mean() for k, v in terms.items()}


@pytest.mark.parametrize('space', ['cosine', 'inner', 'sigmoid_after', 'sigmoid_before'])
def test_terms_and_gradients_equal_explicit_maps(space):
    config = tiny_config('cihp', num_classes=5, space=space)
    parsing, ignore = two_people()
    hidden = torch.cat([parsing, torch.zeros_like(parsing[:1])])             # and a person without a pixel
    leaves, batch = random_leaves(2, 64, 96, config), ([parsing, hidden], torch.stack([ignore, ignore]))
    out, leaves = in_space(leaves, config), list(leaves.values())
    ours, slow = uniparser_loss(out, *batch, config), slow_terms(out, *batch, config)
    for name, value in slow.items():
        assert torch.allclose(ours[name], value, atol=1e-5), name
        for a, b in zip(*(torch.autograd.grad(v, leaves, retain_graph=True, allow_unused=True) for v in (ours[name], value))):
            assert (a is None or not a.any()) if b is None else torch.allclose(a, b, atol=1e-5), name


@pytest.mark.parametrize('fusion', ['convs', 'multi'])
def test_parsing_loss_of_fusions_equals_explicit_maps(fusion):
    config, (parsing, ignore) = tiny_config(num_classes=5, fusion=fusion), two_people()
    model, out = tiny_model(num_classes=5, fusion=fusion), random_out(1, 64, 96, config)
    out['fuse'] = model.fusion
    ours = uniparser_loss(out, [parsing], ignore[None], config)['parsing']
    _, cells, _ = losses.center_target(parsing, (64, 96), config)
    q_ins = correlate(out['k_ins'][0].flatten(1).T[cells], out['f_ins'][0], 'cosine')
    q = model.fusion(q_ins, None, out['f_cate'][0])
    labels, terms = parsing[:, 2::4, 2::4], []
    for n in range(2):
        known = ~ignore[2::4, 2::4] & (labels[n] != 255)
        for c in range(5):
            t = ((labels[n] == c + 1) & known).float()
            if t.any():
                p = q[n, c] * known
                terms.append(1 - (2 * (p * t).sum() + 0.002) / ((p * p).sum() + t.sum() + 0.002))
    assert torch.allclose(ours, torch.stack(terms).mean(), atol=1e-5)


def test_total_is_the_weighted_sum_and_every_term_can_be_switched_off():
    parsing, ignore = two_people()
    config = tiny_config('cihp', num_classes=5, lambda_neg=2.0)
    out = random_out(1, 64, 96, config)
    names = dict(center='center', aux_ins='ins', aux_cate='cate', aux_neg='neg', parsing='par', metric='metric', pull='pull')
    whole = uniparser_loss(out, [parsing], ignore[None], config)
    weights = {term: getattr(config, f'lambda_{name}') for term, name in names.items()}
    assert torch.allclose(whole['total'], sum(w * whole[t] for t, w in weights.items()))
    for term, name in names.items():
        part = uniparser_loss(out, [parsing], ignore[None], replace(config, **{f'lambda_{name}': 0.0}))
        assert torch.allclose(part['total'], whole['total'] - weights[term] * whole[term], atol=1e-5)


def test_losses_are_zero_at_the_optimum():
    parsing = blocks()
    config = tiny_config(sigma=0.0)
    out = painted(parsing, config)
    out['heatmap'] = torch.where(out['heatmap'] > 0, 40.0, -40.0)
    loss = uniparser_loss(out, [parsing], torch.zeros(1, 96, 128, dtype=torch.bool), config)
    assert all(v.abs() < 1e-5 for v in loss.values()), loss


def test_each_person_is_paired_with_its_own_part():
    """A hat that only the second person wears must not be looked for on the first."""
    parsing, config = blocks(), tiny_config()
    parsing[1, 16:24, 64:100] = 5
    right = painted(parsing, config)
    wrong = dict(right, k_ins=right['k_ins'][:, [0, 2, 1]])
    clear = torch.zeros(1, 96, 128, dtype=torch.bool)
    assert uniparser_loss(right, [parsing], clear, config)['parsing'] < 1e-5
    assert uniparser_loss(wrong, [parsing], clear, config)['parsing'] > 0.9


def test_an_absent_category_is_pushed_to_zero():
    config, parsing = tiny_config(), blocks()
    out = random_out(1, 96, 128, config)
    clear = torch.zeros(1, 96, 128, dtype=torch.bool)
    loss = uniparser_loss(out, [parsing], clear, config)
    gradient, = torch.autograd.grad(loss['aux_neg'], out['k_cate'], retain_graph=True)
    assert gradient[3].any() and gradient[4].any() and not gradient[[0, 1, 2, 5]].any()      # 1, 2, 3, 6 are there
    off = uniparser_loss(out, [parsing], clear, replace(config, lambda_neg=0.0))
    assert off['total'] < loss['total']


def test_metric_loss_is_zero_for_orthogonal_kernels_and_grows_with_likeness():
    config, values = tiny_config(num_classes=2, channels=4), []
    for angle in (90, 60, 0):
        k = torch.tensor([[1, 0, 0, 0], [np.cos(np.radians(angle)), np.sin(np.radians(angle)), 0, 0]], dtype=torch.float32)
        out = dict(random_out(1, 64, 96, config), k_cate=k)
        values.append(losses.metric_loss(out, [dict(cells=torch.zeros(0, dtype=torch.long), exists=torch.zeros(0))], config))
    assert [round(v.item(), 4) for v in values] == [0.0, 0.5, 1.0]           # 2 cos / (N_cate + 0)


@pytest.mark.parametrize('recipe', ['paper', 'released'])
@pytest.mark.parametrize('case', ['nobody', 'no parts', 'one-pixel parts', 'empty person', 'all ignored'])
def test_nothing_to_learn_is_exactly_zero_with_finite_gradients(case, recipe):
    preset = 'cihp' if recipe == 'paper' else 'cihp_released'
    model = tiny_model(preset, num_classes=6, light=False)
    parsing, ignore = torch.zeros(2, 64, 96, dtype=torch.uint8), torch.zeros(1, 64, 96, dtype=torch.bool)
    if case == 'nobody':
        parsing = parsing[:0]
    elif case == 'no parts':
        parsing[:, 20:40, 30:60] = 255
    elif case == 'one-pixel parts':
        parsing[0, 5, 5], parsing[1, 7, 9] = 1, 2
    elif case == 'all ignored':
        parsing[:, 20:40, 30:60], ignore[:] = 3, True
    loss = uniparser_loss(model(torch.randn(1, 3, 64, 96)), [parsing], ignore, model.config)
    loss['total'].backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert torch.isfinite(loss['total'])
    silent = [k for k in ('aux_cate', 'parsing', 'pull') if k in loss and case != 'one-pixel parts']
    silent += ['aux_ins'] if case in ('nobody', 'empty person') else []
    assert all(loss[k] == 0 for k in silent), loss
    if case == 'nobody':
        assert loss['center'] > 0                        # that nobody is there is worth learning


def test_what_falls_between_the_pixels_of_stride_4_is_not_taught_as_absent():
    """A part two pixels wide lies between the sampled columns: its category is neither learnt nor denied. So a person
    of one pixel, or all under `ignore`, pulls no kernel."""
    config = tiny_config('cihp', num_classes=5, lambda_neg=3.0)
    parsing, ignore = torch.zeros(1, 64, 96, dtype=torch.uint8), torch.zeros(64, 96, dtype=torch.bool)
    parsing[0, 20:40, 40:60] = 1
    wide = uniparser_loss(random_out(1, 64, 96, config), [parsing], ignore[None], config)
    parsing[0, 20:40, 43:45] = 2
    out = random_out(1, 64, 96, config)
    thin = uniparser_loss(out, [parsing], ignore[None], config)
    q = uniparser.correlate(out['k_cate'], out['f_cate'][0], 'cosine').abs().mean((1, 2))
    assert torch.allclose(thin['aux_neg'], q[2:].sum() / 5) and thin['aux_neg'] < wide['aux_neg']
    assert thin['aux_cate'] == wide['aux_cate']
    dot = torch.zeros_like(parsing)
    dot[0, 21, 33] = 1
    assert uniparser_loss(out, [dot], ignore[None], config)['aux_ins'] == 0
    assert uniparser_loss(out, [parsing], ~ignore[None], config)['aux_ins'] == 0


def test_ignored_and_unknown_pixels_teach_nothing_about_what_is_unknown():
    parsing, ignore = two_people()
    config = tiny_config('cihp', num_classes=5, lambda_neg=3.0)
    out = random_out(1, 64, 96, config)
    loss = uniparser_loss(out, [parsing], ignore[None], config)
    hidden, unknown = ignore[2::4, 2::4], (parsing == 255).any(0)[2::4, 2::4]
    for term in ('aux_ins', 'aux_cate', 'aux_neg', 'parsing', 'pull'):
        for key in ('f_ins', 'f_cate'):
            gradient, = torch.autograd.grad(loss[term], out[key], retain_graph=True, allow_unused=True)
            if gradient is not None:
                assert not gradient[0][:, hidden].any(), (term, key)
                if term in ('aux_cate', 'aux_neg', 'pull'):
                    assert not gradient[0][:, unknown].any(), (term, key)
    gradient, = torch.autograd.grad(loss['aux_ins'], out['f_ins'])
    assert gradient[0][:, unknown].any()                 # that it is this person is known


def test_more_padding_changes_no_person_category_or_part():
    """Zero features under the padding, as zero labels: only the grid of the centers is another."""
    parsing, ignore = two_people()
    config = tiny_config(num_classes=5, lambda_center=0.0, lambda_neg=0.0, grid=16)
    out = {k: v.detach() for k, v in random_out(1, 64, 96, config).items()}
    wide = {k: F.pad(v, (0, 24, 0, 16)) if k.startswith('f_') else v for k, v in out.items()}
    before = losses.make_targets(parsing, ignore, (16, 24), config)
    after = losses.make_targets(F.pad(parsing, (0, 96, 0, 64)), F.pad(ignore, (0, 96, 0, 64)), (32, 48), config)
    assert after['labels'].sum() == before['labels'].sum() and torch.equal(after['labels'][:, :16, :24], before['labels'])
    maps = {k: dict(q_ins=torch.rand(2, 16, 24), q_cate=torch.rand(5, 16, 24)) for k in 'a'}
    wider = {k: F.pad(v, (0, 24, 0, 16)) for k, v in maps['a'].items()}
    args = losses.parsing_loss(out, [maps['a']], [before], config), losses.parsing_loss(wide, [wider], [after], config)
    assert torch.allclose(*args, atol=1e-6)


def test_gradients_are_right():
    """gradcheck in float64 of the total, on a tiny image."""
    config = tiny_config('cihp', num_classes=3, channels=4, grid=4, lambda_neg=1.0)
    parsing, ignore = two_people(32, 32)
    leaves = random_leaves(1, 32, 32, config, dtype=torch.float64)

    def total(*values):
        named = in_space(dict(zip(leaves, values)), config)
        targets = [losses.make_targets(parsing, ignore, (8, 8), config)]
        maps = [losses.make_maps(named, 0, targets[0], config)]
        parts = losses.auxiliary_loss(named, maps, targets, config)
        return (losses.center_loss(named['heatmap'], targets) + sum(parts) + losses.metric_loss(named, targets, config)
                + losses.parsing_loss(named, maps, targets, config) + losses.pull_loss(named, targets))

    assert torch.autograd.gradcheck(total, tuple(leaves.values()), atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs CUDA')
def test_the_loss_never_waits_for_the_device():
    parsing, ignore = (x.cuda() for x in two_people())
    config = tiny_config('cihp', num_classes=5, lambda_neg=1.0)
    out = {k: v.cuda() for k, v in random_out(1, 64, 96, config).items()}
    torch.cuda.set_sync_debug_mode('error')
    try:
        uniparser_loss(out, [parsing], ignore[None], config)['total'].backward()
    finally:
        torch.cuda.set_sync_debug_mode('default')


# ---- training --------------------------------------------------------------------------------------------------


def test_learning_rate_by_hand():
    config = replace(Config(), warmup=10, epochs=12)
    rates = [train.learning_rate(s, 100, config) for s in (0, 9, 10, 899, 900, 1099, 1100)]
    assert np.allclose(rates, [0.0005, 0.005, 0.005, 0.005, 0.0005, 0.0005, 0.00005])        # 8 x 6.25e-4; 9 and 11
    assert train.learning_rate(0, 100, replace(config, epochs=36, warmup=0)) == 0.005
    for epochs, milestones in (36, (27, 33)), (75, (50, 65)):
        config = get_config('cihp' if epochs == 75 else 'mhp', epochs=epochs, warmup=0)
        drops = [e for e in range(1, epochs) if train.learning_rate(e, 1, config) < 0.5 * train.learning_rate(e - 1, 1, config)]
        assert tuple(drops) == milestones
    cosine = [train.learning_rate(s, 1, replace(config, schedule='cosine', epochs=4, warmup=0)) for s in range(5)]
    assert np.allclose(np.array(cosine) / cosine[0], [1, 0.853553, 0.5, 0.146447, 0], atol=1e-6)


def test_overfits_one_scene():
    """The whole path, photo to metric: a drawn scene of several people is learnt by heart."""
    torch.manual_seed(0)
    dataset = data.open_dataset('synthetic', None, 'val')
    image, parsing, ignore = dataset.read(1)
    config = get_config('synthetic', grid=20)
    model = UniParser(config, dataset.class_names, dataset.flip_pairs).train()
    batch = dict(images=data.normalize(image)[None], parsings=[torch.from_numpy(parsing)],
                 ignores=torch.from_numpy(ignore)[None], infos=[{}])
    optimizer, scaler = train.make_optimizer(model, config), torch.amp.GradScaler('cpu', enabled=False)
    for _ in range(80):
        terms = train.train_step(model, [batch], optimizer, scaler, config, torch.device('cpu'), None, 3e-3)
    metrics = parsing_metrics(model.predict(image), [parsing], 6)
    assert len(parsing) > 1 and metrics['AP50'] == 1.0 and metrics['APvol'] > 0.6, (metrics['APvol'], terms)


SHORT = ['--backbone', 'resnet10', '--neck-channels', '16', '--channels', '8', '--depth', '1', '--center-depth', '1',
         '--batch-size', '4', '--samples', '12', '--val-images', '4', '--warmup', '2', '--device', 'cpu']


def weights(run_folder):
    return torch.load(Path(run_folder) / 'last.pt', weights_only=True)['model']


def test_resume_equals_uninterrupted(tmp_path, monkeypatch):
    """Stopped in the middle of an epoch and resumed with other workers, training gives the same bits."""
    whole, parts = tmp_path / 'whole', tmp_path / 'parts'
    train.main([*SHORT, '--epochs', '2', '--out', str(whole)])
    step, count = train.train_step, []

    def stop_after_four(*args):
        count.append(1)
        if len(count) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*args)
    monkeypatch.setattr(train, 'train_step', stop_after_four)
    train.main([*SHORT, '--epochs', '2', '--out', str(parts), '--workers', '1'])
    state = torch.load(parts / 'last.pt', weights_only=True)
    assert (state['epoch'], state['position']) == (1, 1) and len(count) == 4
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL                # nobody inherits the run's handler
    train.main(['--resume', str(parts), '--workers', '2', '--device', 'cpu'])
    assert len(count) == 6
    for (name, a), b in zip(weights(whole).items(), weights(parts).values()):
        assert torch.equal(a, b), name
    logs = [(f / 'log.jsonl').read_text().splitlines()[-1] for f in (whole, parts)]
    assert logs[0] == logs[1] and 'AP50' in logs[0]


def test_a_run_leaves_what_it_promises(tmp_path):
    done = call(train, *SHORT, '--epochs', '1', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / 'runs' / 'synthetic'
    assert {p.name for p in folder.iterdir()} >= {'config.json', 'log.jsonl', 'last.pt', 'best.pt', 'val'}
    assert len(list((folder / 'val').glob('*.png'))) == 4
    assert json.loads((folder / 'config.json').read_text())['channels'] == 8
    record = json.loads((folder / 'log.jsonl').read_text().splitlines()[0])
    assert {'center', 'aux_ins', 'aux_cate', 'aux_neg', 'parsing', 'metric', 'total', 'lr', 'images_per_second',
            'memory'} <= set(record)
    assert re.search(r'AP50 [\d.]+ APvol [\d.]+ PCP50 [\d.]+ mIoU [\d.]+$', done.stdout.strip().splitlines()[-1])
    model = UniParser.from_pretrained(folder / 'best.pt')
    assert model.class_names[1] == 'head' and model.flip_pairs == [[3, 4], [5, 6]] and not model.training
    assert not list(tmp_path.rglob('*.tmp*'))
    again = call(train, *SHORT, '--out', folder, cwd=tmp_path)
    assert again.returncode == 2 and 'holds a run already' in again.stderr and 'Traceback' not in again.stderr


def test_two_processes_train_together(tmp_path):
    done = run('python', '-m', 'torch.distributed.run', '--nproc-per-node', '2', '--standalone', HERE / 'train.py',
               *SHORT, '--epochs', '1', '--accumulate', '2', '--out', tmp_path / 'run')
    assert done.returncode == 0, done.stderr[-2000:]
    assert '2 x cpu' in done.stdout and done.stdout.count('epoch 1: AP50') == 1
    assert all(torch.isfinite(v).all() for v in weights(tmp_path / 'run').values())


def test_processes_share_the_gradients(tmp_path):
    """Two processes with half of a batch each take the step that one takes with all of it. (Terms are means over the
    images of a process, so each image is given the same label; BatchNorm keeps its statistics; the center loss, a sum
    over the positive cells + 1, is left out.)"""
    script = tmp_path / 'step.py'
    script.write_text('''
import sys, torch, torch.distributed as dist
sys.path.insert(0, sys.argv[1])
from test_uniparser import *
torch.manual_seed(0)
model, (parsing, ignore) = tiny_model(num_classes=5), two_people()
for norm in (m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)):
    norm.eval(), setattr(norm, 'train', lambda mode=True: norm)
images, rank, world, device = torch.randn(2, 3, 64, 96), *train.set_up_processes('cpu')
net = torch.nn.parallel.DistributedDataParallel(model) if world > 1 else model
share = slice(rank, rank + 1) if world > 1 else slice(0, 2)
batch = dict(images=images[share], parsings=[parsing] * len(images[share]), ignores=torch.stack([ignore] * 2)[share])
optimizer = train.make_optimizer(model, replace(model.config, optimizer='sgd'))
config, scaler = replace(model.config, lambda_center=0.0), torch.amp.GradScaler('cpu', enabled=False)
train.train_step(net, [batch], optimizer, scaler, config, device, None, 0.1)
if world > 1:                                     # who got a signal tells the other
    assert train.told_to_stop([1] if rank else [], 20, world, device) and not train.told_to_stop([], 40, world, device)
if rank == 0:
    torch.save(model.state_dict(), sys.argv[2])
if world > 1:
    dist.destroy_process_group()
''')
    one = run('python', script, HERE, tmp_path / 'one.pt')
    two = run('python', '-m', 'torch.distributed.run', '--nproc-per-node', '2', '--standalone', script, HERE,
              tmp_path / 'two.pt')
    assert one.returncode == two.returncode == 0, one.stderr[-1500:] + two.stderr[-1500:]
    first, second = (torch.load(tmp_path / name, weights_only=True) for name in ('one.pt', 'two.pt'))
    for name in first:
        assert torch.allclose(first[name], second[name], atol=1e-5), name


def test_a_loss_that_is_not_finite_stops_and_names_terms_and_images(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data, 'normalize', lambda image: torch.full((3, *np.asarray(image).shape[:2]), float('nan')))
    with pytest.raises(SystemExit) as stop:
        train.main([*SHORT, '--epochs', '1', '--out', str(tmp_path / 'run')])
    message = capsys.readouterr().err
    assert stop.value.code == 2 and 'not finite' in message and 'total' in message and 'train_00' in message
    assert not (tmp_path / 'run' / 'last.pt').exists()


def test_a_spike_of_the_loss_stops_and_names_terms_and_images():
    batches, scaler = [dict(infos=[dict(id='one')]), dict(infos=[dict(id='two')])], torch.amp.GradScaler('cpu', enabled=False)
    losses = dict(center=torch.tensor(3.0), total=torch.tensor(0.9 * train.SPIKE))
    assert train.check_finite(losses, batches, scaler)['center'] == 3
    losses['total'] *= 2
    with pytest.raises(train.NonFinite, match=r'above 10,000.*center.*images: one, two'):
        train.check_finite(losses, batches, scaler)


@pytest.mark.parametrize('arguments, message', [
    (['--data', 'MHP'], '--root'), (['--data', 'MHP', '--root', 'nowhere'], 'nowhere'),
    (['--batch-size', '3', '--accumulate', '2'], 'multiple of 2'), (['--backbone', 'vgg'], 'unknown backbone'),
    (['--batch-size', '0'], 'at least 1'), (['--short-side'], 'short_side'),
    (['--samples', '3', '--batch-size', '8', '--accumulate', '8'], 'too few'), (['--resume', 'nowhere'], 'nowhere'),
    (['--pretrained', 'nowhere.pth'], 'nowhere.pth')])
def test_mistakes_get_one_sentence(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        train.main([*arguments, '--device', 'cpu'])
    text = capsys.readouterr().err
    assert stop.value.code == 2 and message in text and text.startswith('error: ') and text.count('\n') == 1
    assert not (tmp_path / 'runs').exists()


@pytest.mark.parametrize('changes', [dict(space='cosin'), dict(fusion='idx'), dict(optimizer='adam'), dict(recipe='mine'),
                                     dict(schedule='cos'), dict(epochs=0)])
def test_settings_that_cannot_be_are_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        get_config(**changes)


@pytest.mark.parametrize('change', [['--lr', '1'], ['--optimizer', 'sgd'], ['--data', 'synthetic'], ['--out', 'x']])
def test_resume_keeps_the_settings_of_the_run(checkpoint, tmp_path, capsys, change):
    torch.save(dict(torch.load(checkpoint, weights_only=True), optimizer={}), tmp_path / 'last.pt')
    with pytest.raises(SystemExit):
        train.main(['--resume', str(tmp_path), *change])
    assert f'{change[0]} cannot change' in capsys.readouterr().err


def test_every_setting_is_a_flag():
    flags = vars(train.parse_arguments(['--short-side', '10', '20', '--no-dcn', '--light', '--lr', '0.1', '--epochs', '7']))
    config, *_ = train.prepare(train.parse_arguments(['--short-side', '10', '20', '--no-dcn', '--light', '--lr', '0.1']))
    assert config.short_side == (10, 20) and config.light and not config.dcn and config.lr == 0.1 and flags['epochs'] == 7
    help_text = call(train, '--help').stdout.replace(',', ' ').replace('\n', ' ')
    for field in fields(Config):
        if field.name not in ('data', 'recipe', 'num_classes', 'pretrained_stages'):
            assert f'--{field.name.replace("_", "-")} ' in help_text, field.name


# ---- checkpoints -----------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    """Weights that find somebody everywhere: random, with low thresholds."""
    path = tmp_path_factory.mktemp('weights') / 'model.pt'
    tiny_model(theta_center=0.0, theta_part=0.0, theta_mask=0.1, max_people=4, test_short_side=48).save(path)
    return path


def test_saving_and_loading_gives_the_same_model(checkpoint):
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    model = UniParser.from_pretrained(checkpoint)
    same = tiny_model(theta_center=0.0, theta_part=0.0, theta_mask=0.1, max_people=4, test_short_side=48)
    assert model.config == same.config and asdict(model.config)['max_people'] == 4
    assert np.array_equal(model.predict(image)[0].parsing, same.predict(image)[0].parsing)
    assert UniParser.from_pretrained(checkpoint, max_people=1).predict(image)[0].parsing.shape[0] <= 1


def test_a_fused_model_is_not_saved(checkpoint, tmp_path):
    model = UniParser.from_pretrained(checkpoint).fuse().fuse()
    with pytest.raises(ValueError, match='fused'):
        model.save(tmp_path / 'a.pt')


def test_broken_checkpoints_are_refused(checkpoint, tmp_path):
    state = torch.load(checkpoint, weights_only=True)
    cases = {'cut.pt': checkpoint.read_bytes()[:500], 'text.pt': b'no weights'}
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f'{name} is not a readable'):
            UniParser.from_pretrained(tmp_path / name)
    torch.save({'a': 1}, tmp_path / 'other.pt')
    torch.save([1], tmp_path / 'list.pt')
    torch.save(dict(state, model={**state['model'], 'extra': torch.zeros(1)}), tmp_path / 'extra.pt')
    torch.save(dict(state, config=dict(state['config'], channels=16)), tmp_path / 'shape.pt')
    torch.save(dict(state, config=dict(state['config'], warp=9)), tmp_path / 'newer.pt')
    for name, message in dict(other='not a UniParser', list='not a dictionary', extra='extra', shape='of another shape',
                              newer='warp').items():
        with pytest.raises(ValueError, match=message):
            UniParser.from_pretrained(tmp_path / f'{name}.pt')


def test_a_pickle_that_runs_code_does_not_run(tmp_path):
    class Payload:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / 'ran'),))
    torch.save(dict(model=Payload()), tmp_path / 'evil.pt')
    with pytest.raises(ValueError, match='not a readable weights file'):
        UniParser.from_pretrained(tmp_path / 'evil.pt')
    assert not (tmp_path / 'ran').exists()


# ---- infer.py --------------------------------------------------------------------------------------------------


def write_photo(path, seed=0, size=(60, 40)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)).save(path)


def test_a_folder_is_parsed_and_a_broken_photo_is_reported(checkpoint, tmp_path):
    for k, name in enumerate(('a b.png', 'sub/é.jpg', 'sub/a b.jpg', '-dash.png')):
        write_photo(tmp_path / 'in' / name, k)
    (tmp_path / 'in' / 'broken.jpg').write_text('not a photo')
    done = call(infer, 'in', '--weights', checkpoint, '--out', 'out', '--cutouts', cwd=tmp_path)
    assert done.returncode == 2 and 'broken.jpg' in done.stderr and '1 photo' in done.stderr
    assert 'Traceback' not in done.stderr and '4 of 5 photos' in done.stdout
    out = tmp_path / 'out'
    records = {p.stem: json.loads(p.read_text()) for p in out.glob('*.json')}
    assert len(records) == 4 and 'é' in records and len({r['photo'] for r in records.values()}) == 4
    for name, record in records.items():
        check_results(out, name, record)


def check_results(out, name, record):
    """Pictures, boxes and run lengths tell the same story."""
    parts, people = (np.asarray(Image.open(out / f'{name}_{kind}.png')) for kind in ('parts', 'people'))
    assert parts.shape == people.shape == (record['height'], record['width'])
    assert Image.open(out / f'{name}_parts.png').mode == 'P' and Image.open(out / f'{name}_overlay.png').mode == 'RGB'
    assert ((parts > 0) == (people > 0)).all() and record['people']
    for person in record['people']:
        whole = np.zeros(parts.shape, np.uint8)
        for part in person['parts']:
            mask = data.decode_rle(part['rle']['counts'], record['width'], record['height'])
            rows, cols = np.nonzero(mask)
            assert part['rle']['size'] == [record['height'], record['width']] and part['area'] == mask.sum()
            assert part['box'] == [cols.min(), rows.min(), np.ptp(cols) + 1, np.ptp(rows) + 1]
            assert part['name'] == data.Synthetic.class_names[part['id']]
            whole[mask] = part['id']
        mine = people == person['id']
        assert (parts[mine] == whole[mine]).all() and person['area'] == (whole > 0).sum()
        cut = Image.open(out / f'{name}_person{person["id"]}.png')
        assert cut.mode == 'RGBA' and cut.size == tuple(person['box'][2:])
        assert (np.asarray(cut)[..., 3] > 0).sum() == person['area']
        assert len(list(out.glob(f'{name}_person{person["id"]}_*.png'))) == len(person['parts'])


@pytest.mark.parametrize('seed', range(4))
def test_run_lengths_are_those_of_coco(seed):
    rng = np.random.default_rng(seed)
    for share in (0, 0.02, 0.5, 1):
        mask = rng.random((37, 53)) < share
        if share == 0.02:
            mask = np.kron(mask, np.ones((9, 9))) > 0
        for y, x, photo in (0, 0, mask), (3, 5, np.pad(mask, ((3, 9), (5, 0)))):
            rle = infer.encode_rle(mask, x, y, photo.shape)
            assert rle['size'] == list(photo.shape)
            assert np.array_equal(data.decode_rle(rle['counts'], photo.shape[1], photo.shape[0]), photo)


def test_maps_show_the_people_that_were_found(monkeypatch):
    """The panels of two people are drawn from the cells of their own peaks, whoever else the heat map shows."""
    model = tiny_model(theta_center=0.0, theta_part=0.0, theta_mask=0.1, test_short_side=96)
    torch.nn.init.normal_(model.center_locator.heatmap.weight)
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8))
    found = model.predict(photo)[0]
    assert len(found.scores) > 2
    kept = type(found)(*(field[1:] for field in found))                      # as if the best had no part
    out = predict.outputs(model, predict.prepare(photo, model.config))
    cells, scores = find_centers(out['heatmap'][0, 0], model.config)
    seen = []
    monkeypatch.setattr(infer, 'correlate', lambda k, f, space: seen.append(k) or correlate(k, f, space))
    infer.draw_maps(model, out, photo, kept)
    own = [cells[np.isclose(scores, score)][0] for score in kept.scores[:2]]
    assert torch.equal(seen[0], out['k_ins'][0].flatten(1).T[torch.stack(own)])
    assert infer.draw_maps(model, out, photo, type(found)(*(field[:0] for field in found))).width > 0


def test_results_among_the_photos_are_not_photos(checkpoint, tmp_path):
    write_photo(tmp_path / 'a.png')
    for _ in range(2):
        done = call(infer, tmp_path, '--weights', checkpoint, '--out', tmp_path / 'results')
        assert done.returncode == 0 and '1 of 1 photos' in done.stdout


def test_only_keeps_the_named_parts(checkpoint, tmp_path):
    write_photo(tmp_path / 'a.png')
    done = call(infer, tmp_path / 'a.png', '--weights', checkpoint, '--out', tmp_path, '--only',
               'head, left-arm')
    assert done.returncode == 0, done.stderr
    assert set(np.unique(np.asarray(Image.open(tmp_path / 'a_parts.png')))) <= {0, 1, 3}
    done = call(infer, tmp_path / 'a.png', '--weights', checkpoint, '--out', tmp_path, '--only', 'hat')
    assert done.returncode == 2 and "unknown part 'hat'" in done.stderr and 'left-leg' in done.stderr


def test_nobody_found_is_said_and_is_no_error(checkpoint, tmp_path):
    write_photo(tmp_path / 'a.png')
    done = call(infer, tmp_path / 'a.png', '--weights', checkpoint, '--out', tmp_path,
               '--theta-center', '0.999')
    assert done.returncode == 0 and 'nobody found' in done.stdout + done.stderr
    assert json.loads((tmp_path / 'a.json').read_text())['people'] == []
    assert not np.asarray(Image.open(tmp_path / 'a_parts.png')).any()


def test_names_of_results_are_unique():
    paths = [Path(p) for p in ('x/a.jpg', 'y/a.jpg', 'y/a.png', 'y/b.jpg', 'z/y/a.png')]
    names = infer.result_names(paths)
    assert len(set(names)) == 5 and names[3] == 'b'


@pytest.mark.parametrize('arguments, message', [
    ([], 'give photos'), (['nothing.jpg'], 'nothing.jpg does not exist'), (['no*.jpg'], 'no*.jpg does not exist'),
    (['.'], 'a folder without photos'), (['a.jpg', '--weights', 'no.pt'], 'no.pt does not exist'),
    (['--data', 'MHP'], 'other classes')])
def test_mistakes_in_infer_get_one_sentence(checkpoint, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    if '--data' in arguments:
        (tmp_path / 'list').mkdir(), (tmp_path / 'list' / 'val.txt').write_text('1')
        write_photo(tmp_path / 'val' / 'images' / '1.jpg'), write_photo(tmp_path / 'val' / 'parsing_annos' / '1_01_01.png')
        arguments = [*arguments, '--root', '.']
    with pytest.raises(SystemExit) as stop:
        infer.main([*(() if '--weights' in arguments else ('--weights', str(checkpoint))), *arguments, '--device', 'cpu'])
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_predictions_of_a_split_evaluate_to_what_training_reports(checkpoint, tmp_path):
    model = UniParser.from_pretrained(checkpoint)
    dataset = data.open_dataset('synthetic', None, 'val')
    expected = train.validate(model, dataset, model.config)
    done = call(infer, '--data', 'synthetic', '--weights', checkpoint, '--out', tmp_path / 'pred')
    assert done.returncode == 0, done.stderr
    done = call(evaluate, '--data', 'synthetic', '--predictions', tmp_path / 'pred', '--json',
               tmp_path / 'metrics.json')
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / 'metrics.json').read_text())
    for name in train.REPORTED:
        assert abs(found[name] - expected[name]) < 1e-4, name                # infer.py fuses BatchNorm: ties may turn


def test_with_the_truth_for_people_and_classes_little_is_left_to_get_wrong(monkeypatch):
    model, dataset, found = tiny_model(num_classes=6, test_short_side=96, long_side=128), data.open_dataset('synthetic'), []
    samples = [dataset.read(i) for i in range(4)]
    for sample in samples:
        with monkeypatch.context() as patch:
            patch.setattr(infer, 'decode', lambda out, *_: out)
            out = infer.predict_with_truth(model, 'classes', *sample)
            patch.undo()
            patch.setattr(infer, 'outputs', lambda *_: out)
            found.append(infer.predict_with_truth(model, 'people', *sample))
    metrics = parsing_metrics(found, [parsing for _, parsing, _ in samples], 6)
    assert metrics['people'] > 4 and metrics['AP50'] == 1.0 and metrics['APvol'] > 0.75
    centers = infer.predict_with_truth(model, 'centers', *samples[0])
    assert len(centers.scores) <= len(samples[0][1])


# ---- documents -------------------------------------------------------------------------------------------------

README = (HERE / 'README.md').read_text()


def readme_commands():
    """Every line of the README that starts a program, without its comment."""
    lines = [line.split('  #')[0].strip() for line in README.splitlines() if line.startswith('    ')]
    return [c for line in lines for c in line.split(' && ') if c.startswith(('python ', 'torchrun '))]


def write_tiny_mhp(root):
    """Four photos of a drawn scene each, in MHPv2's layout."""
    dataset = data.open_dataset('synthetic')
    for split in ('train', 'val'):
        (root / 'list').mkdir(parents=True, exist_ok=True)
        (root / 'list' / f'{split}.txt').write_text('1\n2\n3\n4\n')
        (root / split / 'parsing_annos').mkdir(parents=True)
        for i in range(1, 5):
            image, parsing, _ = dataset.read(i)
            write_photo(root / split / 'images' / f'{i}.jpg')
            Image.fromarray(image).save(root / split / 'images' / f'{i}.jpg')
            for n, labels in enumerate(parsing, 1):
                rgb = np.stack([labels] * 3, -1)
                Image.fromarray(rgb).save(root / split / 'parsing_annos' / f'{i}_{len(parsing):02d}_{n:02d}.png')


def test_every_command_of_the_readme_runs(tmp_path):
    """In order, in one folder, with a tiny data set and a tiny network in place of the real ones."""
    write_tiny_mhp(tmp_path / 'data' / 'LV-MHP-v2')
    write_photo(tmp_path / 'photo.jpg'), write_photo(tmp_path / 'holiday' / 'b.jpg')
    for folder in ('assets', 'weights'):
        (tmp_path / folder).symlink_to(HERE / folder)
    small = [*SHORT, '--pretrained', '', '--no-dcn', '--epochs', '1', '--grid', '8', '--short-side', '64',
             '--test-short-side', '64', '--workers', '0']
    commands = readme_commands()
    programs = {w for c in commands for w in shlex.split(c) if w.endswith('.py')}
    assert programs == {'train.py', 'infer.py', 'data.py', 'evaluate.py'}
    for command in commands:
        words = shlex.split(command.replace('DIR', 'data/LV-MHP-v2').replace('512 512', '64 64'))
        if '--export' in words and not importlib.util.find_spec('onnxscript'):
            continue
        if 'train.py' in command and '--resume' not in command:
            words += small
        if words[0] == 'torchrun':
            launcher = ['python', '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2']
            done = run(*launcher, HERE / words[3], *words[4:], cwd=tmp_path)
        elif words[1].endswith('.py'):
            done = call(globals()[words[1].removesuffix('.py')], *words[2:], cwd=tmp_path)
        assert done.returncode == 0, (command, done.stderr[-2000:])          # python -m pytest is running just now
    with contextlib.chdir(tmp_path):
        found = {}
        for code in re.findall(r'```python\n(.*?)```', README, re.S):
            exec(code, found)
    assert found['hair'].shape == found['parsing'].shape and found['hair'].dtype == bool


def test_the_readme_names_flags_and_functions_that_exist():
    parsers = ' '.join(call(module, '--help').stdout for module in (train, infer, data, evaluate))
    for flag in set(re.findall(r'(?<![\w-])--[a-z][a-z-]+', README)) - {'--nproc-per-node'}:
        assert flag in parsers or flag.replace('--no-', '--') in parsers, flag
    sources = ''.join((HERE / f'{name}.py').read_text() for name in ('uniparser', 'predict', 'losses', 'checkpoints'))
    table = README[README.index('| in the paper | here |'):README.index('Labels are the same everywhere')]
    for line in table.splitlines()[2:]:
        if line.startswith('|'):
            for name in re.findall(r'`(?:UniParser\.)?([A-Za-z_]+)`', line.split('|')[2]):
                assert re.search(rf'(class|def) {name}\b', sources) or name in PRESETS, name


@pytest.mark.parametrize('number, names', [
    (1, ['CenterLocator', 'find_centers']), (2, ['InstanceFeatureSpaceBuilder', 'correlate', 'decode']),
    (3, ['CategoryFeatureSpaceBuilder', 'correlate']), (4, ['uniparser_loss']), (5, ['auxiliary_loss']),
    (6, ['metric_loss'])])
def test_equations_are_tagged(number, names):
    sources = ''.join((HERE / f'{name}.py').read_text() for name in ('uniparser', 'predict', 'losses', 'checkpoints'))
    for name in names:
        body = re.search(rf'^( *)(class|def) {name}\b.*?(?=^\1(class|def|@) ?|\Z)', sources, re.S | re.M).group(0)
        assert re.search(rf'Eqs?\. (\(\d\)[ ,and]*)*\({number}\)', body), (name, number)


def test_the_readme_tells_the_size_of_every_file():
    for name, lines in re.findall(r'\| `(\w+\.py)` \| .* \| (\d+) \|', README):
        assert abs(int(lines) - len((HERE / name).read_text().splitlines())) <= 0.1 * int(lines), name


def test_code_is_ascii_and_not_wide():
    for path in HERE.glob('*.py'):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            test = path.name.startswith('test_')
            assert len(line) <= (130 if test else 120) and (test or line.isascii()), f'{path.name}:{number}'


def test_the_weights_are_those_of_their_card():
    card = (HERE / 'weights' / 'README.md').read_text()
    weights = HERE / 'weights' / 'uniparser_ccp.pt'
    assert hashlib.sha256(weights.read_bytes()).hexdigest() in card and weights.stat().st_size < 45e6
    config = UniParser.from_pretrained(weights).config
    assert config.data == 'CCP' and not os.path.dirname(config.pretrained)


def test_the_weights_that_ship_parse_the_demo_photo():
    found = UniParser.from_pretrained(HERE / 'weights' / 'uniparser_ccp.pt').fuse().predict(HERE / 'assets' / 'street.jpg')[0]
    names = data.CIHP.class_names
    person = found.parsing[0]
    assert len(found.scores) == 3 and found.parsing.shape == (3, 640, 480)
    columns = {side: np.nonzero(person == names.index(f'{side}-leg'))[1] for side in ('left', 'right')}
    hair, pants = (np.nonzero(found.parsing.max(0) == names.index(name))[0] for name in ('hair', 'pants'))
    assert hair.mean() < pants.mean() or not len(pants)                      # heads up
    assert not all(map(len, columns.values())) or columns['right'].mean() < columns['left'].mean()     # own left

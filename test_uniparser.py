"""Claims about the paper: model, decoding, losses, each against an independent reference. python -m pytest

Training, inference on files, metrics, data sets and documents are tested in tests/.
"""
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image

import data
import backbone
import losses
import uniparser
from losses import Correlations, make_loss, uniparser_loss
from tests.helpers import TINY, in_space, random_leaves, random_out, tiny_config, tiny_model, two_people
from uniparser import PRESETS, Config, UniParser, correlate, decode, find_centers, get_config
from util import datasets


# ---- configuration ---------------------------------------------------------------------------------------------


def test_presets_name_fields_and_data_sets():
    for name in PRESETS:
        config = get_config(name)
        assert config.num_classes == len(datasets.DATASETS[config.data].class_names) - 1
    assert get_config('mhp') == Config() and get_config('mhp_released').recipe == 'released'


def test_unknown_settings_are_refused_with_a_hint():
    with pytest.raises(ValueError, match="did you mean 'epochs'"):
        get_config('mhp', epoch=3)
    with pytest.raises(ValueError, match='unknown preset'):
        get_config('kitti')
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
    dcn = backbone.ModulatedDeformConv2d(torch.nn.Conv2d(3, 4, 3, stride, bias=False)).eval()
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
        model.load_pretrained()
        assert model.config.pretrained_stages == stages
        assert torch.equal(model.backbone.layer3[1].conv2.weight, net.layer3[1].conv2.weight)
        frozen = {n.split('.')[1] for n, p in model.named_parameters() if not p.requires_grad}
        assert frozen == {'conv1', 'bn1', 'layer1'}
        model.train()(torch.randn(1, 3, 64, 64))
        moved = {n.split('.')[0] for n, m in model.backbone.named_modules() if isinstance(m, torch.nn.BatchNorm2d)
                 and m.num_batches_tracked > 0}
        assert moved == (set() if stages == 4 else {'layer4'})
    with pytest.raises(ValueError, match='is not for resnet50'):
        UniParser(tiny_config(backbone='resnet50', pretrained=str(tmp_path / 'whole.pth'))).load_pretrained()


def test_without_pretraining_everything_learns():
    model = tiny_model().train()
    assert all(p.requires_grad for p in model.parameters()) and model.backbone.bn1.training


@pytest.mark.parametrize('recipe', ['paper', 'released'])
@pytest.mark.parametrize('share', [False, True])
def test_every_recipe_takes_either_compression(recipe, share):
    model = tiny_model(recipe=recipe, share_compression=share)
    model.init_weights()
    assert (model.category_neck is None) == share and model(torch.randn(1, 3, 64, 96))['f_cate'].shape == (1, 8, 16, 24)


def test_a_backbone_of_grouped_convolutions_runs_with_dcn():
    """ResNeXt on the CPU gives what torchvision's operator gives."""
    model = tiny_model(backbone='resnext50_32x4d', dcn=True).eval()
    conv = model.backbone.layer2[0].conv2
    torch.nn.init.normal_(conv.conv_offset.weight, std=0.05)
    assert conv.groups == 32 and conv.weight.shape == (256, 8, 3, 3)
    x = torch.randn(1, 256, 9, 7)
    with torch.no_grad():
        offset, mask = conv.conv_offset(x).split((18, 9), dim=1)
        theirs = torchvision.ops.deform_conv2d(x, offset, conv.weight, None, conv.stride, conv.padding, mask=mask.sigmoid())
        assert torch.allclose(conv(x), theirs, atol=1e-5) and offset.abs().max() > 0.5
        assert model(torch.randn(1, 3, 32, 32))['f_ins'].isfinite().all()


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
    parsing = uniparser.Fusion(tiny_config())(q_ins, q_cate, None)
    for n in range(2):
        for c in range(3):
            assert torch.equal(parsing[n, c] > 0.5, (q_ins[n] > 0) & (q_cate[c] > 0))


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
    model.fold()
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
                k_cate=torch.eye(K + 1)[1:])


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


def test_a_saturated_plateau_is_one_person():
    """The float32 sigmoid of all logits above 17 is 1: peaks are compared before it."""
    config = tiny_config(grid=12, theta_center=0.1)
    rows, cols = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing='ij')
    logits = 40 - (rows - 5).square() - (cols - 6).square()
    assert (logits.sigmoid() == 1).sum() > 20
    cells, scores = find_centers(logits, config)
    assert cells.tolist() == [5 * 12 + 6] and scores.tolist() == [1.0]


def test_of_two_detections_of_one_person_the_better_stays():
    """The first person is found three times, with mask IoU 0.8 and 1; the other person overlaps it by one pixel in ten."""
    masks = torch.zeros(4, 8, 8, dtype=torch.bool)
    masks[0, :4, :4] = masks[1, :4, 1:5] = masks[3, :4, :4] = True
    masks[1, :4, 0] = True
    masks[2, 3:7, 2:6] = True
    iou = [[float((a & b).sum() / (a | b).sum()) for b in masks] for a in masks]
    assert abs(iou[0][1] - 0.8) < 1e-6 and iou[0][3] == 1 and iou[0][2] < 0.1
    assert uniparser.distinct(masks, 0.6) == [0, 2] and uniparser.distinct(masks, 0.9) == [0, 1, 2]
    assert uniparser.distinct(masks[:0], 0.6) == [] and len(masks[uniparser.distinct(masks, 1.0)]) == 4


def owner_of(regions):
    """(N, S, S) bool without overlap -> (S, S): 1 + the person that the cell belongs to, 0 none."""
    assert (regions.sum(0) <= 1).all()
    return (regions * torch.arange(1, len(regions) + 1).view(-1, 1, 1)).sum(0)


def test_center_target_by_hand():
    """An 80x80 image on an 8x8 grid: cells of 10 pixels."""
    parsing = torch.zeros(3, 80, 80, dtype=torch.uint8)
    parsing[0, 0:71, 10:31] = 1                          # rows 0-70, mean 35; columns 10-30, mean 20
    parsing[1, 40:50, 60:70] = 2                         # mean 44 (44.5 truncated), 64
    regions, cells, exists = losses.center_target(parsing, (80, 80), tiny_config(grid=8))
    owner = owner_of(regions)
    expected = torch.zeros(8, 8)
    expected[2:5, 1:3] = 1                               # 35 +- 7 -> rows 28..42, cells 2-4; 20 +- 2 -> cells 1-2
    expected[4, 6] = 2                                   # 44 +- 0.9, 64 +- 0.9: its own cell
    assert torch.equal(owner, expected.long()) and cells.tolist() == [3 * 8 + 2, 4 * 8 + 6, 0]
    assert exists.tolist() == [True, True, False]
    regions, _, _ = losses.center_target(parsing, (80, 80), tiny_config(grid=8, sigma=0.8, center_radius=1))
    owner = owner_of(regions)
    assert owner[:, 2].tolist() == [0, 0, 1, 1, 1, 0, 0, 0]                  # at most a cell away


def test_a_barycenter_keeps_its_cell_where_regions_overlap():
    parsing = torch.zeros(2, 80, 80, dtype=torch.uint8)
    parsing[0, 30:50, 30:50], parsing[1, :, :] = 1, 2
    regions, cells, _ = losses.center_target(parsing, (80, 80), tiny_config(grid=80, sigma=0.2))
    owner = owner_of(regions)
    assert owner[39, 39] == 2 and owner[cells[0] // 80, cells[0] % 80] == owner.flatten()[cells[0]]
    parsing[1, :40] = 0
    regions, cells, _ = losses.center_target(parsing, (80, 80), tiny_config(grid=80, sigma=2.0))
    owner = owner_of(regions)
    assert owner.flatten()[cells].tolist() == [1, 2]


def slow_terms(out, parsings, ignores, config):
    """Eqs. (5), (6) and Sec. 6.5 with every map made and every pair looped over."""
    K, terms = config.num_classes, dict(aux_ins=[], aux_cate=[], aux_neg=[], parsing=[], metric=[], pull=[])

    def dice(p, t, known):
        p, t = p * known, t.float() * known
        return 1 - (2 * (p * t).sum() + 0.002) / ((p * p).sum() + (t * t).sum() + 0.002)

    for i, (parsing, ignore) in enumerate(zip(parsings, ignores)):
        labels, certain = parsing[:, 2::4, 2::4], ~ignore[2::4, 2::4]
        regions, cells, exists = losses.center_target(parsing, parsing.shape[1:], config)
        owner = owner_of(regions)
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
    ours = uniparser_loss(out, [parsing], ignore[None], config, model.fusion)['parsing']
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
    nobody = SimpleNamespace(cells=torch.zeros(0, dtype=torch.long), exists=torch.zeros(0))
    for angle in (90, 60, 0):
        k = torch.tensor([[1, 0, 0, 0], [np.cos(np.radians(angle)), np.sin(np.radians(angle)), 0, 0]], dtype=torch.float32)
        out = dict(random_out(1, 64, 96, config), k_cate=k)
        values.append(make_loss(config).metric_loss(out, [nobody]))
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
    before = make_loss(config).make_targets(parsing, ignore, (16, 24))
    after = make_loss(config).make_targets(F.pad(parsing, (0, 96, 0, 64)), F.pad(ignore, (0, 96, 0, 64)), (32, 48))
    assert after.labels.sum() == before.labels.sum() and torch.equal(after.labels[:, :16, :24], before.labels)
    maps = Correlations(torch.rand(2, 16, 24), torch.rand(5, 16, 24))
    wider = Correlations(*(F.pad(v, (0, 24, 0, 16)) for v in (maps.q_ins, maps.q_cate)))
    loss = make_loss(config)
    assert torch.allclose(loss.parsing_loss(out, [maps], [before]), loss.parsing_loss(wide, [wider], [after]), atol=1e-6)


def test_gradients_are_right():
    """gradcheck in float64 of the total, on a tiny image."""
    config = tiny_config('cihp', num_classes=3, channels=4, grid=4, lambda_neg=1.0)
    parsing, ignore = two_people(32, 32)
    leaves = random_leaves(1, 32, 32, config, dtype=torch.float64)

    def total(*values):
        named = in_space(dict(zip(leaves, values)), config)
        targets = [make_loss(config).make_targets(parsing, ignore, (8, 8))]
        maps = [make_loss(config).correlations(named, 0, targets[0])]
        loss = make_loss(config)
        auxiliary = loss.instance_loss(named, targets) + sum(loss.category_loss(maps, targets))
        return (loss.center_loss(named['heatmap'], targets) + auxiliary + loss.metric_loss(named, targets)
                + loss.parsing_loss(named, maps, targets) + loss.pull_loss(named['f_cate'], targets))

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

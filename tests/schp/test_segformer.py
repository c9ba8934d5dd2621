"""The SegFormer variant of SCHP: parity with ViWear's fork, its labels and its optimizers, and what users do wrong."""
import copy
import functools
import json
import lzma
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from schp import SCHP, learning_rate, merged, schp_loss, training
from schp.config import SCHPConfig
from schp.layers import InPlaceABN
from schp.segformer import CLASSIFIERS, SegFormer, load_mit
from tests.helpers import HERE, call
from tests.seeded import blobs, noise, seeded
from tools import export
from util.labels import choose_labels

torch.set_num_threads(1)
FIXTURES = HERE / 'tests' / 'fixtures' / 'segformer'
KEYS = json.loads(lzma.open(FIXTURES / 'keys.json.xz').read())               # [[key, shape], ..]
SCHEMES = json.loads((FIXTURES / 'schemes.json').read_text())
OPTIMIZERS = json.loads((FIXTURES / 'optimizers.json').read_text())
PHASES = {'adamw_custom': (0, 1e-2), 'phase_1': (1, 1e-3), 'phase_2': (2, 1e-3)}                  # names in the fixture
SMALL = dict(blocks=(1, 1, 1, 1), width=8)


def names(count):
    return tuple(f'class {i}' for i in range(count))


@functools.cache
def small_state(num_classes, width=8):
    with torch.device('meta'):
        model = SegFormer(names(num_classes), blocks=(1, 1, 1, 1), width=width)
    return {k: torch.from_numpy(seeded(k, v.shape)) for k, v in model.state_dict().items()}


def small(num_classes=9, width=8):
    """A network with one block in each stage and seeded weights, in eval mode."""
    model = SegFormer(names(num_classes), (64, 48), blocks=(1, 1, 1, 1), width=width)
    model.load_state_dict(small_state(num_classes, width))
    return model.eval()


def to_hub(weights):
    """Backbone weights as the hub's SegformerForImageClassification names them."""
    names = {'proj': 'proj', 'norm': 'layer_norm', 'norm1': 'layer_norm_1', 'norm2': 'layer_norm_2', 'attn.q':
             'attention.self.query', 'attn.sr': 'attention.self.sr', 'attn.norm': 'attention.self.layer_norm',
             'attn.proj': 'attention.output.dense', 'mlp.fc1': 'mlp.dense1', 'mlp.fc2': 'mlp.dense2',
             'mlp.dwconv.dwconv': 'mlp.dwconv.dwconv'}
    hub = {'classifier.weight': torch.zeros(1000, 512), 'classifier.bias': torch.zeros(1000)}
    for key, value in weights.items():
        top, *middle, kind = key.split('.')
        group, stage = top[:-1], int(top[-1]) - 1
        if group == 'norm':
            hub[f'segformer.encoder.layer_norm.{stage}.{kind}'] = value
        elif group == 'patch_embed':
            hub[f'segformer.encoder.patch_embeddings.{stage}.{names[middle[0]]}.{kind}'] = value
        else:
            block, module = f'segformer.encoder.block.{stage}.{middle[0]}', '.'.join(middle[1:])
            if module == 'attn.kv':
                hub[f'{block}.attention.self.key.{kind}'], hub[f'{block}.attention.self.value.{kind}'] = value.chunk(2)
            else:
                hub[f'{block}.{names[module]}.{kind}'] = value
    return hub


# ---- network


@pytest.fixture(scope='module')
def full(tmp_path_factory):
    """The whole network from a checkpoint as the fork writes it: keys with module., in a dictionary with the epoch."""
    path = tmp_path_factory.mktemp('segformer') / 'checkpoint.pth.tar'
    torch.save(dict(epoch=7, state_dict={f'module.{k}': torch.from_numpy(seeded(k, s)) for k, s in KEYS}), path)
    yield SCHP.from_pretrained(path)
    path.unlink()


def test_keys_shapes_and_size_are_those_of_the_fork(full):
    assert {k: list(v.shape) for k, v in full.state_dict().items()} == dict(KEYS)
    sizes = [sum(p.numel() for p in m.parameters()) for m in (full, full.backbone, full.head, full.edge, full.fusion)]
    assert sizes == [61_774_187, 60_842_688, 529_298, 137_232, 264_969]
    with torch.device('meta'):
        assert sum(p.numel() for p in SegFormer(names(20)).parameters()) == 61_781_260
    assert full.class_names == choose_labels(9, 'merged').names and full.size == (512, 384) and not full.flip_pairs


@torch.no_grad()
def test_logits_and_stage_maps_equal_the_fork_s(full):
    expected, images = np.load(FIXTURES / 'forward.npz'), torch.from_numpy(noise(3, (2, 3, 128, 96)))
    assert not full.training
    found = {k: v[..., ::2, ::2] for k, v in full(images).items()}
    found |= {f'c{i}': c[:, ::8] for i, c in enumerate(full.backbone(images), 1)}
    assert sorted(found) == sorted(expected)
    for name, value in found.items():
        np.testing.assert_allclose(value.numpy(), expected[name], rtol=0, atol=1e-4, err_msg=name)


@torch.no_grad()
@pytest.mark.parametrize('size', [(64, 64), (75, 53)])
def test_any_size_of_image_and_batch(size):
    model, images = small(4), torch.from_numpy(noise(1, (2, 3, *size)))
    out = model(images)
    quarter = [-(-s // 4) for s in size]
    assert {k: list(v.shape) for k, v in out.items()} == {
        'parsing': [2, 4, *quarter], 'fusion': [2, 4, *quarter], 'edge': [2, 2, *quarter]}
    for key, value in model(images[1:]).items():
        torch.testing.assert_close(value, out[key][1:], rtol=0, atol=1e-4)


@torch.no_grad()
def test_head_equals_fusing_the_concatenated_levels():
    head = small().head
    maps = [torch.from_numpy(noise(i, (1, c, 16 >> i, 12 >> i))) for i, c in enumerate((8, 16, 40))]
    maps.append(torch.from_numpy(noise(3, (1, 64, 2, 1))))
    levels = [F.conv2d(maps[i - 1], head.get_submodule(f'linear_c{i}').proj.weight[..., None, None],
                       head.get_submodule(f'linear_c{i}').proj.bias) for i in (4, 3, 2, 1)]
    levels = [F.interpolate(level, (16, 12), mode='bilinear', align_corners=False) for level in levels]
    torch.testing.assert_close(head(maps), head.linear_fuse(torch.cat(levels, 1)), rtol=0, atol=1e-4)


@torch.inference_mode()
def test_heads_alone_and_folded_equal_all_heads():
    model, images = small(5), torch.from_numpy(noise(5, (2, 3, 75, 53)))
    expected, folded = model(images), copy.deepcopy(model).fold()
    assert not any(isinstance(m, (InPlaceABN, nn.BatchNorm2d)) for m in folded.modules())
    for name in expected:
        alone = folded(images, heads=(name,))
        assert list(alone) == [name]
        torch.testing.assert_close(model(images, heads=(name,))[name], expected[name], rtol=0, atol=1e-6)
        torch.testing.assert_close(alone[name], expected[name], rtol=0, atol=1e-4)
    channels_last = folded.to(memory_format=torch.channels_last)(images)['fusion']
    torch.testing.assert_close(channels_last, expected['fusion'], rtol=0, atol=1e-4)


def test_a_step_of_training_reaches_every_weight_but_the_unused_one():
    torch.manual_seed(0)
    model = SegFormer(names(9), **SMALL).train()
    out = model(torch.from_numpy(noise(2, (2, 3, 64, 64))))
    sum((v ** 2).mean() for v in out.values()).backward()
    without = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()}
    assert without == {'head.conv_seg.weight', 'head.conv_seg.bias'}
    assert all(m.running_mean.abs().sum() > 0 for m in model.modules() if isinstance(m, InPlaceABN))


def test_layer_norms_have_the_fork_s_epsilons():
    with torch.device('meta'):
        backbone = SegFormer(names(9)).backbone
    epsilons = {name: m.eps for name, m in backbone.named_modules() if isinstance(m, nn.LayerNorm)}
    larger = {name for name, eps in epsilons.items() if eps == 1e-5}
    assert larger == {name for name in epsilons if name.startswith('patch_embed') or name.endswith('.attn.norm')}
    assert {epsilons[name] for name in set(epsilons) - larger} == {1e-6}


def test_stochastic_depth_grows_linearly_to_a_tenth():
    with torch.device('meta'):
        model = SegFormer(names(9))
    rates = [block.drop.p for i in '1234' for block in model.backbone.get_submodule(f'block{i}')]
    np.testing.assert_allclose(rates, np.linspace(0, 0.1, 41), atol=1e-12)


def test_reference_has_negative_scales(full):
    assert any((m.weight < 0).any() for m in full.modules() if isinstance(m, InPlaceABN))


# ---- files


@torch.no_grad()
@pytest.mark.parametrize('form', ['module', 'bare', 'state_dict', 'ours'])
def test_checkpoints_load_in_every_form(form, tmp_path):
    model, path = small(9), tmp_path / 'schp_6_checkpoint.pth.tar'
    state = model.state_dict()
    torch.save({'module': dict(cycle_n=6, state_dict={f'module.{k}': v for k, v in state.items()}),
                'bare': state, 'state_dict': dict(state_dict=state), 'ours': {}}[form], path)
    if form == 'ours':
        model.config = SCHPConfig(network='segformer', size=(64, 48), **SMALL)
        model.save(path)
    loaded = SCHP.from_pretrained(path)
    assert isinstance(loaded, SegFormer) and not loaded.training
    assert loaded.class_names == (model.class_names if form == 'ours' else choose_labels(9).names)
    assert loaded.size == ((64, 48) if form == 'ours' else (512, 384)) == loaded.config.size
    images = torch.from_numpy(noise(4, (1, 3, 64, 64)))
    for key, value in model(images).items():
        assert torch.equal(loaded(images)[key], value)


def test_labels_of_a_file_can_be_chosen(tmp_path):
    torch.save(dict(state_dict=small().state_dict()), tmp_path / 'schp.pth')
    assert SCHP.from_pretrained(tmp_path / 'schp.pth', 'merged-sep').class_names[3] == 'Hands'


@pytest.mark.parametrize('form', ['original', 'state_dict', 'backbone', 'hub', 'encoder'])
def test_backbone_weights_load_in_either_naming(form, tmp_path):
    source, model, path = small().backbone, small(), tmp_path / 'mit_b4.pth'
    weights = {k: (v + 0.125).half() for k, v in source.state_dict().items()}
    classifier = {'head.weight': torch.zeros(1000, 512), 'head.bias': torch.zeros(1000)}
    torch.save({'original': {**weights, **classifier}, 'state_dict': dict(state_dict={**weights, **classifier}),
                'backbone': {f'backbone.{k}': v for k, v in weights.items()}, 'hub': to_hub(weights),
                'encoder': {k.removeprefix('segformer.'): v for k, v in to_hub(weights).items()}}[form], path)
    load_mit(model, path)
    assert all(torch.equal(v, weights[k].float()) for k, v in model.backbone.state_dict().items())


def test_hub_names_cover_every_weight_of_b4():
    weights = {k.removeprefix('backbone.'): torch.zeros(s) for k, s in KEYS if k.startswith('backbone.')}
    hub = to_hub(weights)
    assert len(hub) == len(weights) + 2 * 41 + 2                             # keys and values apart, a classifier
    assert not [k for k in hub if not k.startswith(('segformer.encoder.', *CLASSIFIERS))]


@pytest.mark.parametrize('kind', ['missing', 'text', 'folder', 'array', 'list', 'pickled'])
def test_wrong_files_get_one_sentence_with_their_name(kind, tmp_path):
    path = tmp_path / 'wrong.pth'
    if kind == 'text':
        path.write_text('<html>quota exceeded</html>')
    elif kind == 'folder':
        path.mkdir()
    elif kind != 'missing':
        torch.save({'array': torch.zeros(3), 'list': [1], 'pickled': dict(state_dict={}, args=Path('x'))}[kind], path)
    with pytest.raises((ValueError, OSError)) as error:
        SCHP.from_pretrained(path)
    assert str(path) in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('kind', ['empty', 'numbers', 'nested', 'resnet', 'backbone', 'few', 'less', 'more', 'shape',
                                  'nan', 'scalar'])
def test_wrong_contents_get_one_sentence_with_the_file_s_name(kind, tmp_path):
    state = small_state(9)
    content = {
        'empty': {}, 'numbers': {1: torch.zeros(2)}, 'nested': dict(state_dict=[1]),
        'resnet': dict(state_dict={'module.conv1.weight': torch.zeros(2), 'module.decoder.conv4.bias': torch.zeros(2)}),
        'backbone': {k[9:]: v for k, v in state.items() if k.startswith('backbone.')},
        'few': {k: state[k] for k in ('backbone.patch_embed1.proj.weight', 'head.linear_pred.weight')},
        'less': {k: v for k, v in state.items() if k != 'fusion.1.bias'}, 'more': {**state, 'extra': torch.zeros(1)},
        'shape': {**state, 'edge.conv5.bias': torch.zeros(3)},
        'nan': {**state, 'edge.conv5.bias': torch.full((2,), torch.nan)},
        'scalar': {**state, 'head.linear_pred.weight': torch.zeros(())}}[kind]
    torch.save(content, tmp_path / 'wrong.pth')
    with pytest.raises(ValueError) as error:
        SCHP.from_pretrained(tmp_path / 'wrong.pth')
    assert 'wrong.pth' in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('change', [
    lambda w: w.pop('segformer.encoder.block.2.0.attention.self.value.weight'),
    lambda w: w.pop('segformer.encoder.layer_norm.3.bias'),
    lambda w: w.update({'segformer.encoder.block.0.0.attention.self.key.weight': torch.zeros(3, 3)}),
    lambda w: w.update({'decode_head.x': torch.zeros(1)}), lambda w: w.clear()])
def test_wrong_backbone_weights_get_one_sentence_with_their_name(change, tmp_path):
    model, path = small(), tmp_path / 'pytorch_model.bin'
    weights = to_hub({k: v.half() for k, v in model.backbone.state_dict().items()})
    change(weights)
    torch.save(weights, path)
    with pytest.raises(ValueError) as error:
        load_mit(model, path)
    assert str(path) in str(error.value) and '\n' not in str(error.value)


def test_onnx_runtime_gets_the_same_logits(tmp_path):
    pytest.importorskip('onnxscript', reason='the export needs onnx and onnxscript')
    runtime = pytest.importorskip('onnxruntime', reason='the check of the export needs onnxruntime')
    model, paths = small(), [tmp_path / name for name in ('model.pt', 'model.onnx')]
    model.config = SCHPConfig(network='segformer', size=(64, 48), **SMALL)
    model.save(paths[0])
    done = call(export, '--weights', paths[0], '--out', paths[1])
    assert done.returncode == 0, done.stderr
    session = runtime.InferenceSession(paths[1], providers=['CPUExecutionProvider'])
    assert json.loads(session.get_modelmeta().custom_metadata_map['size']) == [64, 48]
    for count in (1, 3):
        images = noise(count, (count, 3, 64, 48))
        with torch.inference_mode():
            expected = model(torch.from_numpy(images))
        for name, found in zip(expected, session.run(None, {'input.1': images}), strict=True):
            np.testing.assert_allclose(found, expected[name], rtol=0, atol=1e-4)


# ---- optimizers and loss


def set_rates(optimizer, epoch, lr, released):
    """As the trainer does it."""
    rate = learning_rate(epoch, lr)
    if released:
        training.set_factors(optimizer, rate, lr, epoch >= 100)
    return [rate * group['factor'] for group in optimizer.param_groups]


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_parameter_groups_and_rates_equal_the_fork_s(name):
    phase, decay = PHASES[name]
    with torch.device('meta'):
        model = SegFormer(names(9))
    optimizer = training.make_optimizer(model, phase, decay)
    found = [[len(g['params']), sum(p.numel() for p in g['params']), 6e-5 * g['factor'], g['weight_decay']]
             for g in optimizer.param_groups]
    np.testing.assert_allclose(found, OPTIMIZERS[name]['groups'], rtol=1e-12)
    assert {g['betas'] for g in optimizer.param_groups} == {(0.9, 0.999)}
    for epoch, rates in OPTIMIZERS[name]['lr_epoch'].items():
        assert [float(f'{rate:.4g}') for rate in set_rates(optimizer, int(epoch), 6e-5, True)] == rates, epoch


def test_mended_rates_keep_the_ratio_of_the_groups():
    with torch.device('meta'):
        model = SegFormer(names(9), **SMALL)
    optimizer, released = (training.make_optimizer(model, 2, 1e-3) for _ in range(2))
    for epoch in range(150):
        rates, literal = set_rates(optimizer, epoch, 6e-5, False), set_rates(released, epoch, 6e-5, True)
        np.testing.assert_allclose(np.divide(rates, rates[6]),
                                   np.repeat([0.7 ** 3, 0.7 ** 2, 0.7, 1, 10, 10, 10], 2))
        assert len(set(literal)) == (1 if epoch >= 100 or epoch == 0 else 5)
        assert epoch < 100 or rates[-1] > literal[-1] and rates[0] < literal[0]


def test_phase_1_freezes_the_backbone_and_phase_2_frees_it():
    torch.manual_seed(0)
    model, images = SegFormer(names(9), **SMALL).train(), torch.from_numpy(noise(6, (2, 3, 64, 64)))
    for phase, moves in ((1, False), (2, True), (0, True)):
        before = {k: v.clone() for k, v in model.named_parameters()}
        optimizer = training.make_optimizer(model, phase, 1e-3)
        for group in optimizer.param_groups:
            group['lr'] = 1e-4
        sum((v ** 2).mean() for v in model(images).values()).backward()
        optimizer.step()
        moved = {k.split('.')[0] for k, v in model.named_parameters() if not torch.equal(v, before[k])}
        assert moved == {'head', 'edge', 'fusion'} | ({'backbone'} if moves else set())
        assert all(p.requires_grad == moves for p in model.backbone.parameters())


def test_released_divergence_is_a_mean_over_pixels_and_c_times_that_of_schp():
    labels = torch.from_numpy(np.stack([blobs(1, 33, 25, 9, ignore=3), blobs(2, 33, 25, 9)]))
    out = {k: torch.from_numpy(noise(n, (2, c, 9, 7))) for n, (k, c) in enumerate(dict(parsing=9, fusion=9, edge=2).items())}
    soft = {k: torch.from_numpy(noise(5 + c, (2, c, 9, 7))) for k, c in dict(fusion=9, edge=2).items()}
    ours, schps = (schp_loss(out, labels, soft, 1, 'released', batchmean) for batchmean in (True, False))
    for name, factor in dict(kl_parsing=9, kl_fusion=9, kl_edge=2, lovasz_fusion=1).items():
        torch.testing.assert_close(ours[name], factor * schps[name])
    paper = [schp_loss(out, labels, soft, 1, 'paper', batchmean)['total'] for batchmean in (True, False)]
    assert paper[0] == paper[1]                           # which has a mean over pixels anyway


# ---- labels


def test_tables_equal_the_mapping_files():
    assert list(merged.LIP_TO_MERGED) == SCHEMES['lip_to_merged']
    assert set(merged.SCHEMES) == set(SCHEMES['schemes'])
    for name, (segm, dense) in merged.SCHEMES.items():
        assert dict(segm=list(segm), dense=list(dense)) == SCHEMES['schemes'][name]
    for name in ('merged', 'merged-sep'):
        labels = choose_labels(9, name)
        assert len(labels.names) == len(SCHEMES['merged']) and labels.size == (512, 384) and not labels.flip_pairs
    assert choose_labels(9) == choose_labels(9, 'merged') != choose_labels(9, 'merged-sep')


@pytest.mark.parametrize('scheme', merged.SCHEMES)
def test_deepfashion_maps_equal_the_fork_s(scheme):
    maps = np.load(FIXTURES / 'deepfashion.npz')
    found = merged.deepfashion_to_merged(maps['segm'], maps['dense'], scheme)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, maps[scheme])


def test_growing_takes_the_nearest_label_within_ten_pixels():
    labels = np.zeros((1, 40), np.uint8)
    labels[0, 5], labels[0, 12] = 3, 7
    grown = merged.grow(labels)
    expected = [3] * 9 + [7] * 14 + [0] * 17                                 # the border is halfway, the end 10 further
    assert grown.tolist() == [expected]
    assert not merged.grow(np.zeros((3, 3), np.uint8)).any()


def test_skin_far_from_every_part_is_background():
    segm, parts = np.full((30, 30), 15, np.uint8), np.zeros((30, 30), np.uint8)
    parts[0, 0] = 23
    found = merged.deepfashion_to_merged(segm, parts)
    assert found[0, 10] == 2 and found[0, 11] == 0 and found[29, 29] == 0
    assert not merged.deepfashion_to_merged(segm, 0 * parts).any()


def test_lip_and_cihp_labels_merge_and_unknown_stays():
    labels = np.array([[[0, 1, 2, 10, 13, 255]], [[5, 18, 16, 6, 12, 0]]], np.uint8)
    assert merged.lip_to_merged(labels).tolist() == [[[0, 1, 1, 6, 2, 255]], [[5, 8, 4, 6, 7, 0]]]
    assert merged.cihp_to_merged(labels)[0].tolist() == [[0, 1, 1, 0, 2, 255]]
    assert merged.cihp_to_merged(labels, 'with_torso')[0].tolist() == [[0, 1, 1, 3, 2, 255]]
    with pytest.raises(ValueError, match='hands'):
        merged.cihp_to_merged(labels, 'sep')
    with pytest.raises(ValueError, match='label 20'):
        merged.lip_to_merged(np.full((2, 2), 20, np.uint8))
    with pytest.raises(ValueError, match='sans_torso'):
        merged.deepfashion_to_merged(labels[0], labels[0], 'with_legs')


def test_images_that_are_too_small_and_maps_of_two_sizes_get_one_sentence():
    model = SegFormer(['a', 'b', 'c'], (16, 16), (), (1, 1, 1, 1), 8)
    with pytest.raises(ValueError, match='needs images of 32 pixels at least, not .16, 16.; choose a larger --size or --scales'):
        model.predict([np.zeros((9, 9, 3), np.uint8)])
    with pytest.raises(ValueError, match='give maps of one size'):
        merged.deepfashion_to_merged(np.full((4, 4), 15, np.uint8), np.ones((4, 5), np.uint8))


def test_a_failed_prediction_leaves_the_mode_of_the_model():
    model = SegFormer(['a', 'b', 'c'], (16, 16), (), (1, 1, 1, 1), 8).train()
    with pytest.raises(ValueError):
        model.predict([np.zeros((9, 9, 3), np.uint8)])
    assert model.training

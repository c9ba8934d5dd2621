"""SCHP: parity with the released code (fixtures/schp), checkpoints, losses, cycles, predictions."""
import copy
import json
import lzma

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image

from schp import HEADS, SCHP, average, learning_rate, losses, network, reestimate_norms, schp_loss
from schp.crops import crop
from schp.layers import EPS, InPlaceABN, conv_norm_pairs
from tests.helpers import HERE
from tests.seeded import blobs, noise, photo, seeded
from util.labels import LABEL_SETS, RELEASED, LabelSet, flip_order

torch.set_num_threads(1)
FIXTURES = HERE / 'tests' / 'fixtures' / 'schp'
SMALL = dict(blocks=(1, 2, 1, 1), width=8)
FOUR = LabelSet(('Background', 'Head', 'Left-arm', 'Right-arm'), (65, 49), ((2, 3),))


def read_json(name):
    return json.loads((FIXTURES / name).read_text())


def read_keys(classes):
    return dict(json.loads(lzma.open(FIXTURES / f'keys_{classes}.json.xz').read()))


def small_model(labels=FOUR):
    """Seeded weights, so a quarter of the norms' scales are negative."""
    model = SCHP(*labels, **SMALL)
    model.load_state_dict({k: torch.from_numpy(seeded(k, v.shape)) for k, v in model.state_dict().items()})
    return model.eval()


@pytest.fixture(scope='module')
def released(tmp_path_factory):
    """A released file of LIP, seeded weights under the original keys, and the model loaded from it."""
    path = tmp_path_factory.mktemp('schp') / 'exp-schp-201908261155-lip.pth'
    weights = {'module.' + k: torch.from_numpy(seeded(k, shape)) for k, shape in read_keys(20).items()}
    torch.save({'state_dict': weights}, path)
    del weights
    yield SCHP.from_pretrained(path)
    path.unlink()


# ---- norm


def test_norm_scales_by_absolute_weight_plus_eps():
    norm = InPlaceABN(3, None).eval()
    for name, value in (('weight', [-2., 0.5, 0.]), ('bias', [1., -1., 0.]), ('running_mean', [0.3, 0., 1.]),
                        ('running_var', [4., 1., 0.25])):
        getattr(norm, name).data.copy_(torch.tensor(value))
    x = torch.from_numpy(noise(0, (2, 3, 4, 5)))
    w, b, m, v = (getattr(norm, n)[:, None, None] for n in ('weight', 'bias', 'running_mean', 'running_var'))
    expected = (x - m) / (v + 1e-5).sqrt() * (w.abs() + 1e-5) + b
    torch.testing.assert_close(norm(x), expected)
    norm.activation = 'leaky_relu'
    torch.testing.assert_close(norm(x), F.leaky_relu(expected, 0.01))
    assert set(norm.state_dict()) == {'weight', 'bias', 'running_mean', 'running_var'}


def test_norm_trains_as_batch_norm_whose_weight_is_absolute():
    norm, plain = InPlaceABN(4, None), nn.BatchNorm2d(4)
    norm.weight.data.copy_(torch.tensor([-2., 0.5, -0.1, 3.]))
    plain.weight.data.copy_(norm.weight.abs() + EPS)
    x = torch.from_numpy(noise(1, (3, 4, 5, 6)))
    y, target = norm(x), plain(x)
    torch.testing.assert_close(y, target)
    (y ** 3).sum().backward()
    (target ** 3).sum().backward()
    torch.testing.assert_close(norm.weight.grad, plain.weight.grad * norm.weight.sign())
    torch.testing.assert_close(norm.bias.grad, plain.bias.grad)
    torch.testing.assert_close(norm.running_mean, plain.running_mean)
    torch.testing.assert_close(norm.running_var, plain.running_var)


def test_norm_refuses_to_train_on_one_value():
    with pytest.raises(ValueError, match='at least two images'):
        small_model().train()(torch.zeros(1, 3, 65, 49))


# ---- network


@pytest.mark.parametrize('name, classes, parameters', [
    ('lip', 20, 66_723_928), ('atr', 18, 66_722_900), ('pascal', 7, 66_717_246)])
def test_networks_have_the_released_keys_and_shapes(name, classes, parameters):
    with torch.device('meta'):
        model = SCHP(*LABEL_SETS[name])
    assert {k: list(v.shape) for k, v in model.state_dict().items()} == read_keys(classes)
    assert len(model.state_dict()) == 603 and sum(p.numel() for p in model.parameters()) == parameters
    assert model.num_classes == classes and model.class_names == LABEL_SETS[name].names


@torch.inference_mode()
def test_logits_equal_those_of_the_released_code(released):
    assert (released.blocks, released.width, released.size) == ((3, 4, 23, 3), 64, (473, 473))
    expected = np.load(FIXTURES / 'forward.npz')
    for head, logits in released(torch.from_numpy(noise(1, (2, 3, 97, 129)))).items():
        np.testing.assert_allclose(logits, expected[f'20a_{head}'], rtol=0, atol=1e-4)


@torch.inference_mode()
def test_folded_logits_equal_those_of_the_released_code_at_full_size(released):
    expected, folded = np.load(FIXTURES / 'forward.npz'), copy.deepcopy(released).fold()
    images = torch.from_numpy(noise(2, (1, 3, 473, 473))).to(memory_format=torch.channels_last)
    logits = folded(images, heads=('fusion',))['fusion']
    assert logits.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(logits[:, :, ::8, ::8], expected['20b_fusion_crop'], rtol=0, atol=2e-4)
    assert (logits.argmax(1).numpy() == expected['20b_argmax']).mean() > 0.9999


@torch.inference_mode()
def test_heads_alone_and_folded_equal_all_heads():
    model, images = small_model(), torch.from_numpy(noise(3, (2, 3, 65, 49)))
    everything, folded = model(images), copy.deepcopy(model).fold()
    assert not any(isinstance(m, InPlaceABN) for m in folded.modules())
    assert any(isinstance(m, InPlaceABN) for m in model.modules())
    for head in HEADS:
        alone = model(images, heads=(head,))
        assert list(alone) == [head]
        torch.testing.assert_close(alone[head], everything[head])
        torch.testing.assert_close(folded(images)[head], everything[head], atol=1e-5, rtol=1e-5)
    assert everything['fusion'].shape == (2, 4, 17, 13) and everything['edge'].shape == (2, 2, 17, 13)


def test_folding_is_done_once_and_a_folded_network_is_not_saved(tmp_path):
    model, images = small_model(), torch.from_numpy(noise(3, (2, 3, 65, 49)))
    folded = model.fold()
    expected = folded(images)['fusion']
    assert folded is model and torch.equal(model.fold()(images)['fusion'], expected)
    with pytest.raises(ValueError, match='before fold'):
        model.save(tmp_path / 'a.pt')


# ---- checkpoints


@pytest.mark.parametrize('wrap', [
    lambda w: w, lambda w: {'state_dict': w}, lambda w: {'epoch': 7, 'state_dict': w},
    lambda w: {'state_dict': {'module.' + k: v for k, v in w.items()}, 'cycle_n': 3},
    lambda w: {'module.' + k: v for k, v in w.items()}])
def test_every_wrapping_of_released_weights_loads(tmp_path, wrap):
    model = small_model()
    torch.save(wrap(model.state_dict()), tmp_path / 'schp.pth')
    loaded = SCHP.from_pretrained(tmp_path / 'schp.pth', labels=FOUR)
    assert not loaded.training and loaded.blocks == (1, 2, 1, 1) and loaded.width == 8
    assert loaded.class_names == FOUR.names and loaded.size == FOUR.size and loaded.flip_pairs == FOUR.flip_pairs
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)


def first_generation(model):
    """`model`'s numbers as a file of 2019, and the network of such files: plain BatchNorm, scales as they are."""
    plain, weights = copy.deepcopy(model), {}
    for key, value in model.state_dict().items():
        path, name = key.rsplit('.', 1)
        if isinstance(model.get_submodule(path), InPlaceABN):
            path += '' if path.startswith(('bn', 'layer')) else '.bn'
            weights[f'module.{path}.num_batches_tracked'] = torch.tensor(100)
        weights[f'module.{path}.{name}'] = value
    for parent, _, name in list(conv_norm_pairs(plain)):
        norm = getattr(parent, name)
        batch_norm = nn.BatchNorm2d(len(norm.weight))
        batch_norm.load_state_dict(norm.state_dict(), strict=False)
        setattr(parent, name, nn.Sequential(batch_norm, nn.LeakyReLU(0.01)) if norm.activation else batch_norm)
    return weights, plain.eval()


@torch.inference_mode()
def test_files_of_2019_are_plain_batch_norm(tmp_path):
    model, images = small_model(), torch.from_numpy(noise(4, (2, 3, 65, 49)))
    weights, plain = first_generation(model)
    torch.save(weights, tmp_path / 'schp.pth')
    out, expected = SCHP.from_pretrained(tmp_path / 'schp.pth', labels=FOUR)(images), plain(images)
    for head in HEADS:
        torch.testing.assert_close(out[head], expected[head], atol=2e-5, rtol=1e-5)
        assert (model(images)[head] - expected[head]).abs().max() > 0.1          # as a file of 2020 it is another one


@pytest.mark.parametrize('name', LABEL_SETS)
def test_class_count_decides_the_labels(tmp_path, name):
    torch.save(small_model(LABEL_SETS[name]).state_dict(), tmp_path / 'schp.pth')
    model = SCHP.from_pretrained(tmp_path / 'schp.pth', labels=None if name in RELEASED.values() else name)
    assert (model.class_names, model.size, model.flip_pairs) == LABEL_SETS[name]


def without(key):
    return lambda w: {k: v for k, v in w.items() if k != key}


@pytest.mark.parametrize('change, labels, sentence', [
    (without('fushion.3.weight'), FOUR, 'not a checkpoint of SCHP: it has no fushion.3.weight'),
    (without('edge.conv5.bias'), FOUR, '1 missing: edge.conv5.bias'),
    (lambda w: {**w, 'head.weight': torch.ones(2)}, FOUR, '1 unknown: head.weight'),
    (lambda w: {**w, 'bn1.bias': torch.ones(3)}, FOUR, '1 of another shape: bn1.bias'),
    (lambda w: {**w, 'bn1.bias': w['bn1.bias'] * np.nan}, FOUR, 'NaN'),
    (lambda w: w, None, 'no released label set has 4 classes'),
    (lambda w: w, 'lip', 'has 4 classes, the label set 20'),
    (lambda w: w, 'people', "labels 'people' is unknown"),
    (lambda w: {'model': 1}, None, 'not a checkpoint of SCHP')])
def test_wrong_files_get_a_sentence(tmp_path, change, labels, sentence):
    path = tmp_path / 'some.pth'
    torch.save(change(small_model().state_dict()), path)
    with pytest.raises(ValueError, match=sentence) as error:
        SCHP.from_pretrained(path, labels=labels)
    assert str(path) in str(error.value) and '\n' not in str(error.value)


def test_imagenet_weights_fill_the_backbone_alone(tmp_path):
    source, model = small_model(), SCHP(*FOUR, **SMALL)
    before = copy.deepcopy(model.state_dict())
    backbone = {k: v for k, v in source.state_dict().items() if k.startswith(('conv', 'bn', 'layer'))}
    torch.save({**backbone, 'fc.weight': torch.ones(1000, 256), 'fc.bias': torch.ones(1000)}, tmp_path / 'resnet.pth')
    network.load_imagenet(model, tmp_path / 'resnet.pth')
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, backbone.get(key, before[key]), rtol=0, atol=0)
    torch.save(without('layer4.0.bn3.bias')(backbone), tmp_path / 'cut.pth')
    with pytest.raises(ValueError, match='cut.pth does not fit: 1 missing: layer4.0.bn3.bias'):
        network.load_imagenet(model, tmp_path / 'cut.pth')


# ---- losses


def loss_inputs():
    labels = torch.from_numpy(np.stack([blobs(10, 65, 49, 20, ignore=5), blobs(11, 65, 49, 20)]))
    shapes = dict(parsing=(20, 20), fusion=(21, 20), edge=(22, 2))
    out = {k: torch.from_numpy(2 * noise(seed, (2, n, 17, 13))).requires_grad_() for k, (seed, n) in shapes.items()}
    shapes = dict(fusion=(23, 20), edge=(24, 2))
    soft = {k: torch.from_numpy(3 * noise(seed, (2, n, 17, 13))) for k, (seed, n) in shapes.items()}
    return out, labels, soft


@pytest.mark.parametrize('cycle', [0, 1])
def test_released_loss_and_gradients_equal_those_of_the_released_code(cycle):
    (out, labels, soft), expected = loss_inputs(), read_json('loss.json')
    before = labels.clone()
    terms = schp_loss(out, labels, soft if cycle else None, cycle, 'released')
    assert terms['total'].item() == pytest.approx(expected[f'total_cycle{cycle}'], abs=2e-6)
    assert 2 * terms['lovasz_parsing'].item() == pytest.approx(expected['lovasz_parsing'], abs=1e-6)
    if cycle == 0:
        assert 2 * terms['ce_parsing'].item() == pytest.approx(expected['ce_parsing'], abs=1e-6)
        assert terms['ce_edge'].item() == pytest.approx(expected['edge_wce'], abs=1e-6)
    terms['total'].backward()
    for head, name in (('parsing', 'P'), ('fusion', 'F'), ('edge', 'E')):
        gradient = np.load(FIXTURES / 'loss.npz')[f'grad{name}_cycle{cycle}']
        np.testing.assert_allclose(out[head].grad, gradient, rtol=0, atol=1e-8)
    assert torch.equal(labels, before)                    # the released code writes into them


def test_edges_equal_those_of_the_released_code():
    _, labels, _ = loss_inputs()
    assert np.array_equal(losses.edges(labels), np.load(FIXTURES / 'loss.npz')['edge'])
    assert not losses.edges(torch.tensor([[[3, 255, 5, 5]]])).any()                # no edge at unknown pixels


def test_recipes_agree_at_cycle_0_where_all_labels_are_known():
    out, labels, _ = loss_inputs()
    paper, released = (schp_loss(out, labels.clamp(max=19), recipe=r) for r in ('paper', 'released'))
    torch.testing.assert_close(paper, released)


@pytest.mark.parametrize('cycle', [0, 2])
def test_paper_recipe_learns_nothing_from_unknown_pixels(cycle):
    out, labels, soft = loss_inputs()
    labels[:, :, 24:] = 255
    schp_loss(out, labels, soft if cycle else None, cycle)['total'].backward()
    for logits in out.values():                           # column 6 of 13 lies on column 24 of 49, column 7 on 28
        assert (logits.grad[..., 7:] == 0).all() and (logits.grad[..., :6] != 0).any()
    schp_loss(out, labels, soft if cycle else None, cycle, 'released')['total'].backward()
    assert (out['edge'].grad[..., 7:] != 0).any()


@pytest.mark.parametrize('recipe', ['paper', 'released'])
def test_batch_without_known_pixels_has_finite_loss_and_gradients(recipe):
    out, labels, soft = loss_inputs()
    for cycle in (0, 1):
        loss = schp_loss(out, torch.full_like(labels, 255), soft if cycle else None, cycle, recipe)['total']
        loss.backward()
        assert loss.isfinite() and all(logits.grad.isfinite().all() for logits in out.values())
        assert recipe == 'released' or loss == 0


def test_paper_divergence_is_a_mean_over_pixels_of_mixed_probabilities():
    out, labels, soft = loss_inputs()
    labels = labels.long().clamp(max=19)
    target = losses.soft_target(soft['fusion'], labels, 3)
    up = F.interpolate(soft['fusion'], (65, 49), mode='bilinear', align_corners=True).softmax(1)
    torch.testing.assert_close(target, 0.75 * up + 0.25 * F.one_hot(labels, 20).permute(0, 3, 1, 2))
    logits = F.interpolate(out['fusion'], (65, 49), mode='bilinear', align_corners=True)
    by_hand = (target * (target.log() - logits.log_softmax(1))).sum() / labels.numel()
    torch.testing.assert_close(losses.kl_divergence(logits, target, labels), by_hand)
    torch.testing.assert_close(losses.kl_divergence(logits, target, labels, released=True), by_hand / 20)


def test_lovasz_softmax_interpolates_the_jaccard_loss():
    """At 0/1 probabilities it is the mean Jaccard loss of the classes present; in between, the sum that defines it."""
    labels = torch.from_numpy(blobs(12, 9, 7, 4))[None].long()
    guess = torch.from_numpy(blobs(13, 9, 7, 4))[None].long()
    hard = 1000. * F.one_hot(guess, 4).movedim(-1, 1)
    present = labels.unique()
    jaccard = [1 - ((labels == c) & (guess == c)).sum() / ((labels == c) | (guess == c)).sum() for c in present]
    torch.testing.assert_close(losses.lovasz_softmax(hard, labels), torch.stack(jaccard).mean())
    logits = torch.from_numpy(noise(14, (1, 4, 9, 7)))
    total = 0
    for c in present:
        truth = (labels == c).flatten().numpy()
        errors = np.abs(truth - logits.softmax(1)[0, c].flatten().numpy().astype(float))
        wrong, last = np.zeros(truth.size, bool), 0.
        for i in np.argsort(-errors):
            wrong[i] = True
            loss = 1 - (truth & ~wrong).sum() / (truth | wrong).sum()
            total, last = total + errors[i] * (loss - last), loss
    assert losses.lovasz_softmax(logits, labels).item() == pytest.approx(total / len(present), abs=1e-6)


def test_cycles_and_soft_labels_must_agree():
    out, labels, soft = loss_inputs()
    for given, cycle, sentence in ((soft, 0, 'takes no'), (None, 1, 'needs')):
        with pytest.raises(ValueError, match=sentence):
            schp_loss(out, labels, given, cycle)


# ---- schedule and cycles


def test_learning_rates_of_150_epochs_equal_those_of_the_released_code():
    expected = np.load(FIXTURES / 'loss.npz')['lr_150']
    np.testing.assert_allclose([learning_rate(e) for e in range(150)], expected, rtol=0, atol=1e-15)


def test_average_is_the_mean_of_all_cycles_parameters():
    models = [SCHP(*FOUR, **SMALL) for _ in range(3)]
    averaged = small_model()
    statistics = [b.clone() for b in averaged.buffers()]
    for cycle, model in enumerate(models):
        average(averaged, model, cycle)
        if cycle == 0:
            assert all(map(torch.equal, averaged.parameters(), model.parameters()))
    for mean, *each in zip(averaged.parameters(), *(m.parameters() for m in models)):
        torch.testing.assert_close(mean, torch.stack(each).mean(0), atol=1e-6, rtol=1e-5)
    assert all(map(torch.equal, averaged.buffers(), statistics))


def test_norm_statistics_are_means_weighted_by_batch_size():
    model, batches = small_model(), [torch.from_numpy(noise(s, (n, 3, 33, 33))) for s, n in ((15, 3), (16, 2), (17, 2))]
    parameters = [p.clone() for p in model.parameters()]
    reestimate_norms(model, iter(batches))
    with torch.no_grad():
        y = [model.conv1(images) for images in batches]
    mean = sum(len(b) * b.mean((0, 2, 3)) for b in y) / 7
    var = sum(len(b) * b.var((0, 2, 3)) for b in y) / 7
    torch.testing.assert_close((model.bn1.running_mean, model.bn1.running_var), (mean, var))
    assert all(map(torch.equal, model.parameters(), parameters))
    norms = [m for m in model.modules() if isinstance(m, InPlaceABN)]
    assert {m.momentum for m in norms} == {0.1} and not any(m.training for m in model.modules())
    old = {k: v for k, v in small_model().state_dict().items() if 'running' in k}
    assert not any(torch.equal(model.state_dict()[k], v) for k, v in old.items())              # every norm was reached
    with pytest.raises(ValueError, match='at least one batch'):
        reestimate_norms(model, [])


def test_a_small_network_learns_and_corrects_itself_through_two_cycles():
    torch.manual_seed(0)
    labels = torch.from_numpy(np.stack([blobs(s, 49, 33, 4, n=6) for s in (1, 2)]))
    images = F.one_hot(labels.long(), 4)[..., 1:].movedim(-1, 1).float() + 0.1 * torch.randn(2, 3, 49, 33)
    model = SCHP(*FOUR, blocks=(1, 1, 1, 1), width=8).train()
    averaged, optimizer = copy.deepcopy(model).eval(), torch.optim.SGD(model.parameters(), 0.02, 0.9)
    totals = []
    for step in range(45):
        cycle = max(0, step // 15 - 1)                    # 30 steps on the labels, then 15 on the corrected ones
        if step == 30:
            average(averaged, model, 0)
            reestimate_norms(averaged, [images])
        with torch.no_grad():
            soft = averaged(images) if cycle else None
        terms = schp_loss(model(images), labels, soft, cycle)
        optimizer.zero_grad()
        terms['total'].backward()
        optimizer.step()
        totals.append(terms['total'].item())
    assert totals[29] < 0.5 * totals[0] and totals[44] < totals[30]
    average(averaged, model, 1)
    reestimate_norms(averaged, [images])
    prediction = averaged.crop_logits(images).argmax(1)
    assert (prediction == labels).float().mean() > 0.85


# ---- predictions


def test_network_input_is_normalized_bgr():
    array = photo(3, 65, 49)
    image = crop(array, np.eye(2, 3), (65, 49)).numpy()
    for channel, (mean, std) in enumerate(((0.406, 0.225), (0.456, 0.224), (0.485, 0.229))):
        expected = (array[..., 2 - channel] / 255 - mean) / std
        np.testing.assert_allclose(image[channel], expected, rtol=0, atol=1e-4)


def test_predictions_have_the_photos_sizes_and_do_not_depend_on_the_batch():
    model, arrays = small_model().train(), [photo(1, 80, 50), photo(2, 33, 71), photo(3, 65, 49)]
    maps = model.predict_maps(arrays, batch_size=2)
    logits = model.predict_maps([Image.fromarray(a) for a in arrays], logits=True)
    assert model.training and model.predict([]) == []
    for array, labels, scores in zip(arrays, maps, logits):
        assert labels.shape == array.shape[:2] and labels.dtype == np.uint8 and len(np.unique(labels)) > 1
        assert scores.shape == (4, *labels.shape) and scores.dtype == np.float32
        assert (scores.argmax(0) == labels).mean() > 0.999
        assert (model.predict([array])[0].labels == labels).mean() > 0.999
    gray = Image.fromarray(arrays[0]).convert('L')
    assert np.array_equal(model.predict([gray])[0].labels, model.predict([np.stack([np.asarray(gray)] * 3, 2)])[0].labels)
    for wrong in (arrays[0] / 255, arrays[0][..., :2]):
        with pytest.raises(ValueError, match='uint8'):
            model.predict([wrong])


@torch.inference_mode()
def test_flip_test_is_symmetric_and_swaps_left_and_right():
    model, crops = small_model(), torch.from_numpy(noise(9, (2, 3, 65, 49)))
    plain, mirrored = model.crop_logits(crops), model.crop_logits(crops.flip(3))
    both, swap = model.crop_logits(crops, flip=True), [0, 1, 3, 2]
    torch.testing.assert_close(both, (plain + mirrored.flip(3)[:, swap]) / 2, atol=1e-5, rtol=1e-5)
    assert flip_order(4, FOUR.flip_pairs) == swap and not torch.allclose(both, plain)
    half = F.interpolate(crops, (32, 24), mode='bilinear', align_corners=True)
    half = F.interpolate(model(half)['fusion'], (65, 49), mode='bilinear', align_corners=True)
    torch.testing.assert_close(model.crop_logits(crops, scales=(1, 0.5)), (plain + half) / 2, atol=1e-5, rtol=1e-5)


def test_an_unknown_recipe_center_or_label_is_an_error():
    """Not the numbers of another one."""
    out = dict(parsing=torch.zeros(2, 3, 4, 4), fusion=torch.zeros(2, 3, 4, 4), edge=torch.zeros(2, 2, 4, 4))
    labels = torch.zeros(2, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match="recipe is 'literal'; it can be paper or released"):
        schp_loss(out, labels, recipe='literal')
    for strange in 3, 254:
        with pytest.raises(ValueError, match=f'the label {strange} is none of 0 to 2 and not 255'):
            schp_loss(out, labels + strange)
    assert schp_loss(out, labels + 255)['total'] == 0
    model = SCHP(['a', 'b', 'c'], (32, 32), (), (1, 1, 1, 1), 8)
    with pytest.raises(ValueError, match="centers is 'integer'; it can be None, int or float"):
        model.predict([np.zeros((9, 9, 3), np.uint8)], centers='integer')

"""EOP-Net gives the numbers of the released code, and its short cuts those of plain loops. Photos
of any form become label maps; files of any origin load, or are refused in a sentence."""
import functools
import json
import lzma
import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from oneshot import EOPNet, data
from oneshot.eopnet import screened
from oneshot.episodes import FOLDS
from oneshot.losses import contrast_loss, oneshot_loss
from oneshot.prototypes import (episode_labels, foreground, query_target,
                                smoothed_prototypes)
from oneshot.training import learning_rate
from tests.helpers import HERE
from tests.seeded import blobs, noise, photo, seeded

torch.set_num_threads(1)
FIXTURES = HERE / 'tests' / 'fixtures' / 'oneshot'
ATR = FOLDS['atr', 1].all
SMALL = dict(stem=8, middle=1, channels=16, high_level=False)
# Our names of the losses, and those of the released code.
LOSSES = dict(agm='agm', npm='npm', coarse='s1', contrast='contrast')


def fixture_images(seed):
    return torch.tanh(torch.from_numpy(noise(seed, (2, 3, 129, 97))))


def fixture_labels(seed, kept):
    labels = torch.from_numpy(blobs(seed, 129, 97, 18))
    return episode_labels(labels, tuple(kept))


@pytest.fixture(scope='module')
def episode():
    """query, support, query_labels, support_labels of the fixtures"""
    query_labels = torch.stack([fixture_labels(32, ATR), fixture_labels(33, ATR)])
    support_labels = torch.stack([fixture_labels(34, ATR),
                                  fixture_labels(35, [0, 1, 2, 6, 11, 14])])
    return fixture_images(30), fixture_images(31), query_labels, support_labels


@pytest.fixture(scope='module')
def reference():
    arrays = dict(np.load(os.path.join(FIXTURES, 'forward.npz')))
    with open(os.path.join(FIXTURES, 'loss.json')) as f:
        return dict(arrays, loss=json.load(f))


@functools.cache                                              # the two ways share most of them
def weight(key, shape):
    return torch.from_numpy(seeded(key, shape))


def released_state(way):
    with lzma.open(os.path.join(FIXTURES, f'keys_{way}_18.json.xz'), 'rt') as f:
        state = {key: weight(key, tuple(shape)) for key, shape in json.load(f)}
    state['prototype'][[0, 5, 6, 7]] = 0
    state['prototype'][[i for i in range(18) if i not in ATR]] = 0
    return state


@pytest.fixture(scope='module', params=['kway', '1way'])
def released(request, tmp_path_factory):
    """way, a model from a file in the released format, and the classes of the fixtures' episodes"""
    way = request.param
    path = tmp_path_factory.mktemp('eop') / f'{way}.pth'
    torch.save(released_state(way), path)
    classes = torch.tensor([6, 11]) if way == '1way' else None
    return way, EOPNet.from_pretrained(path), classes


def small(seed=0, **changes):
    """A small model with random weights, statistics and, for classes 1 to 3, stored prototypes"""
    torch.manual_seed(seed)
    model = EOPNet(**{**SMALL, 'num_labels': 7, **changes})
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith(('running_mean', 'bias')):
                value.normal_(0, 0.2)
            elif name.endswith('running_var'):
                value.uniform_(0.5, 1.5)
        model.prototype[1:4].normal_()
    return model.eval()


def small_episode(seed=0, size=(41, 36), num=7):
    """query, support, query_labels, support_labels. The second support lacks 2, and none has 4; the
    labels are 255 at the right."""
    images = [torch.tanh(torch.from_numpy(noise(seed + i, (2, 3, *size)))) for i in range(2)]
    labels = np.stack([blobs(seed + i, *size, num, ignore=0) for i in range(4)])
    labels = torch.from_numpy(labels).view(2, 2, *size)
    labels[1][labels[1] == 4] = 0
    labels[1, 1][labels[1, 1] == 2] = 3
    labels[..., -5:] = 255
    return *images, *labels


# -------------------------------------------------------------------------------------------------
# The released code's numbers


def test_released_files_give_the_released_outputs(released, episode, reference):
    way, model, classes = released
    query, support, query_labels, support_labels = episode
    number = sum(p.numel() for p in model.parameters())
    assert number == {'kway': 44_223_421, '1way': 44_223_417}[way]
    model.eval()
    with torch.no_grad():
        out = model(query, support, support_labels, classes, epoch=39)
        if way == 'kway':
            feature = model.mid_level(query)[:, ::8, ::2, ::2]
            np.testing.assert_allclose(feature, reference['kway_feature'], atol=1e-4)
    for name, key in (('agm', f'{way}_agm'), ('npm', f'{way}_npm'), ('coarse', 'kway_coarse')):
        assert out[name].shape[2:] == query.shape[2:]
        np.testing.assert_allclose(out[name][..., ::4, ::4], reference[key], atol=1e-4)
    target = query_target(query_labels, support_labels, classes, out['npm'].shape[1])
    np.testing.assert_array_equal(target, reference[f'{way}_target'][:, 0])
    losses = oneshot_loss(out, query_labels, support_labels, 39, 50)
    expected = reference['loss'][way]['eval_epoch39']
    for name, theirs in LOSSES.items():
        assert losses[name].item() == pytest.approx(expected[theirs], abs=2e-6)


def test_training_is_the_released_training(released, episode, reference):
    way, model, classes = released
    query, support, query_labels, support_labels = episode
    model.train()
    out = model(query, support, support_labels, classes, epoch=3)
    losses = oneshot_loss(out, query_labels, support_labels, 3, 50)
    losses['total'].backward()
    expected = reference['loss'][way]['train_epoch3']
    for name, theirs in dict(LOSSES, total='total').items():
        assert losses[name].item() == pytest.approx(expected[theirs], abs=3e-5)
    for stored, key in ((model.prototype, 'proto_norm'), (model.s1_prototype, 's1_proto_norm')):
        np.testing.assert_allclose(stored.norm(dim=1), expected[key], atol=3e-4)
    assert model.scaler.grad.item() == pytest.approx(expected['grad_scaler'], rel=1e-3)
    norm = model.s2_trans.weight.grad.norm().item()
    assert norm == pytest.approx(expected['grad_s2_trans_norm'], rel=1e-3)
    without = {name.split('.')[0] for name, p in model.named_parameters()
               if p.requires_grad and p.grad is None}
    assert sorted(without) == expected['no_grad']


def test_the_rate_falls_every_tenth_epoch():
    rates = [learning_rate(epoch) for epoch in range(50)]
    assert rates[:9] == [1e-3] * 9
    assert rates[9:19] == [1e-3 * (1 - 9 / 50) ** 0.9] * 10
    assert rates[49] == pytest.approx(1e-3 * 0.02 ** 0.9)


# -------------------------------------------------------------------------------------------------
# Against plain loops


def looped_agm(model, f2, cosines):
    """AGM as the released code runs it: all of its convolutions once per class"""
    classes = []
    rest = 0
    for c in cosines.split(1, 1):
        a = model.agm_class(model.decoder3(model.decoder2(c * f2 + f2)))
        classes.append(a[:, :1])
        rest = rest + a[:, 1:]
    return torch.cat([model.agm_bg_fusion(rest / cosines.shape[1]), *classes], 1)


@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize('absent', [(), (1, 4), (0, 1, 2, 3, 4, 5)])
def test_agm_equals_the_loop_over_classes(train, absent):
    present = torch.ones(6, dtype=bool)
    present[list(absent)] = False
    results = []
    for looped in (False, True):
        model = small().double().train(train)
        f2 = torch.from_numpy(noise(1, (2, 16, 9, 7))).double().requires_grad_()
        cosines = torch.tanh(torch.from_numpy(noise(2, (2, 6, 9, 7)))).double()
        cosines = cosines * present[:, None, None]
        cosines[1, 3] = 0                                     # one of the two supports lacks it
        if looped:
            out = looped_agm(model, f2, cosines)
        else:
            out = model.agm_head(f2, cosines, present)
        (out * torch.from_numpy(noise(3, out.shape))).sum().backward()
        state = [v for name, v in model.state_dict().items() if name.startswith('decoder3')]
        grads = [p.grad for name, p in model.named_parameters()
                 if name.startswith(('decoder', 'agm'))]
        results.append([out.detach(), f2.grad, *state, *grads])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('warm_up', [False, True])
@pytest.mark.parametrize('train', [False, True])
def test_smoothed_prototypes_are_the_released_loop(warm_up, train):
    model = small()
    static = torch.from_numpy(noise(4, (3, 6, 16)))
    static[0, 1] = static[1, 1] = static[2, 2] = static[:, 5] = 0
    stored = model.prototype.detach().clone()
    expected = torch.zeros_like(static)
    for c in range(6):
        for b in range(3):
            if static[b, c].sum() == 0:
                continue
            expected[b, c] = static[b, c]
            if not warm_up and stored[c + 1].sum() != 0:
                expected[b, c] = 0.999 * stored[c + 1] + 0.001 * static[b, c]
            if train:
                stored[c + 1] = expected[b, c]
    static.requires_grad_()
    rows = torch.arange(1, 7).expand(3, -1)
    used = smoothed_prototypes(model.prototype, static, rows, warm_up, update=train)
    torch.testing.assert_close(used.detach(), expected)
    torch.testing.assert_close(model.prototype.detach(), stored)
    used.sum().backward()
    if not warm_up:                                # the gradient goes through this episode's share
        torch.testing.assert_close(static.grad[0, 0], torch.full((16,), 0.001))


def test_contrast_is_the_released_loop():
    query = torch.from_numpy(noise(5, (2, 5, 8)))
    support = torch.from_numpy(noise(6, (2, 5, 8)))
    query[0, 3] = support[0, 1] = support[1, 3] = query[1, 2] = support[1, 2] = 0
    expected = []
    for q, s in zip(query, support):
        rows = [i for i in range(5) if q[i].any()]
        columns = [i for i in range(5) if s[i].any()]
        scores = F.cosine_similarity(q[rows][:, None], s[columns][None], dim=2) / 0.1 + 1e-6
        losses = []
        for k, i in enumerate(rows):
            log_probabilities = scores[k].log_softmax(0)
            own = -log_probabilities[columns.index(i)] if i in columns else torch.tensor(0.)
            losses.append(own)
        expected.append(torch.stack(losses).mean())
    torch.testing.assert_close(contrast_loss(query, support), torch.stack(expected).mean())
    query.requires_grad_()
    contrast_loss(query, torch.zeros_like(support)).backward()
    assert query.grad.isfinite().all()


def test_labels_of_an_episode():
    labels = torch.tensor([[[0, 1, 4, 255]], [[5, 4, 6, 255]]], dtype=torch.uint8)
    kept = episode_labels(labels, (0, 1, 5))
    assert kept.tolist() == [[[0, 1, 0, 255]], [[5, 0, 0, 255]]]
    alone = episode_labels(labels, torch.tensor([4, 6]))
    assert alone.tolist() == [[[0, 0, 1, 255]], [[0, 0, 1, 255]]]
    assert foreground(labels).tolist() == [[[0, 1, 1, 255]], [[1, 1, 1, 255]]]
    support = torch.tensor([[[1, 0, 0, 0, 5]], [[4, 4, 4, 4, 6]]], dtype=torch.uint8)
    target = query_target(labels, support, None, 7)
    assert target.tolist() == [[[0, 1, 0, 255]], [[0, 4, 0, 255]]]     # no 5, no 6


def test_classes_left_out_teach_nothing_but_people():
    """Novel pixels are background for the fine heads; the coarse head still sees people there."""
    query, support, query_labels, support_labels = small_episode()
    classes = 0, 1, 2, 3
    outs = []
    losses = []
    for drop in (False, True):
        model = small().train()
        seen = [query_labels, support_labels]
        if drop:
            seen = [episode_labels(labels, classes) for labels in seen]
        out = model(query, support, seen[1], classes=classes, epoch=30)
        outs.append(out)
        losses.append(oneshot_loss(out, *seen, 30, 50))
        assert not model.prototype[4:].any()
    assert torch.equal(outs[0]['npm'], outs[1]['npm'])
    assert losses[0]['agm'] == losses[1]['agm']
    assert not torch.equal(outs[0]['coarse'], outs[1]['coarse'])
    assert losses[0]['contrast'] != losses[1]['contrast']


@pytest.mark.parametrize('way', ['kway', '1way'])
def test_padding_weighs_nothing(way):
    """In the released 1-way training a padded pixel counted 255 times."""
    query, support, _, labels = small_episode()
    model = small(way=way)
    classes = torch.tensor([1, 3]) if way == '1way' else None
    with torch.no_grad():
        model.prototype.zero_()
        ignored = model(query, support, labels, classes)
        background = model(query, support, labels * (labels != 255), classes)
    torch.testing.assert_close(ignored['npm'], background['npm'])


def test_a_small_model_learns_classes_by_example():
    """Colored bars in random order"""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    model = EOPNet(**{**SMALL, 'middle': 0}, num_labels=4).train()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    history = []
    colors = np.array([[0, 0, 0], [250, 30, 30], [30, 250, 30], [30, 30, 250]], np.uint8)
    for _ in range(12):
        bars = [np.repeat(rng.permutation(4), 8)[None] for _ in range(4)]
        labels = np.stack([np.repeat(bar, 32, 0) for bar in bars]).astype(np.uint8)
        images = torch.from_numpy(np.stack([data.normalize(colors[x]) for x in labels]))
        labels = torch.from_numpy(labels)
        out = model(images[:2], images[2:], labels[2:], epoch=5)
        losses = oneshot_loss(out, labels[:2], labels[2:], 25, 50)
        optimizer.zero_grad()
        losses['total'].backward()
        optimizer.step()
        history.append(losses['npm'].item())
    assert np.mean(history[-3:]) < 0.8 * np.mean(history[:3])


# -------------------------------------------------------------------------------------------------
# Photos


def people(seed, size=(70, 52), ids=(1, 3, 6)):
    labels = np.array([0, *ids], np.uint8)
    return photo(seed, *size), labels[blobs(seed, *size, len(ids) + 1)]


@pytest.mark.parametrize('way, seed', [('kway', 5), ('1way', 2)])
def test_predict_is_forward_on_the_classes_of_the_support(way, seed):
    model = small(seed, way=way)
    support, mask = people(1)
    query = photo(2, 64, 47)
    inputs = [torch.from_numpy(data.normalize(x))[None] for x in (query, support)]
    labels = torch.from_numpy(mask)[None]
    with torch.no_grad():
        if way == 'kway':
            out = model(*inputs, labels)
            scores = out['npm'][:, [0, 1, 3, 6]]
        else:
            outs = [model(*inputs, labels, torch.tensor([c])) for c in (1, 3, 6)]
            out = outs[0]
            leads = [o['npm'][:, 1] - o['npm'][:, 0] for o in outs]
            scores = torch.stack([torch.zeros_like(leads[0]), *leads], 1)
    expected = torch.tensor([0, 1, 3, 6])[screened(dict(out, npm=scores))]
    found = model.predict(query, support, mask, stored=True).labels
    assert found.dtype == np.uint8 and found.shape == (64, 47) and len(np.unique(found)) > 1
    assert (found == expected[0].numpy()).mean() > 0.999      # but for ties in the last digit


@pytest.mark.parametrize('way', ['kway', '1way'])
def test_predict_takes_photos_of_any_size_and_several_supports(way):
    model = small(way=way)
    support, mask = people(1)
    query = Image.fromarray(photo(2, 90, 131))
    one = model.predict(query, support, mask, stored=True).labels
    assert one.shape == (90, 131) and set(np.unique(one)) <= {0, 1, 3, 6}
    twice = model.predict(query, [support, support], [mask, mask], stored=True).labels
    np.testing.assert_array_equal(twice, one)
    other, other_mask = people(3, (33, 110), (2, 6))
    both = model.predict(query.convert('RGBA'), [Image.fromarray(support), other],
                         [mask, Image.fromarray(other_mask)], stored=True).labels
    assert both.shape == (90, 131) and set(np.unique(both)) <= {0, 1, 2, 3, 6}
    assert model.predict(query, support, mask, long_side=40).labels.shape == (90, 131)


def test_predict_names_the_classes(tmp_path):
    support, mask = people(1)
    Image.fromarray(support).save(tmp_path / 'q.png')
    given = small().predict(tmp_path / 'q.png', support, mask, class_names=['', 'hat', '', 'coat', '', '', 'shoe'])
    assert given.path == tmp_path / 'q.png' and given.photo.size == support.shape[1::-1]
    assert set(given[0].parts) <= {'hat', 'coat', 'shoe'} and given[0].parts
    free = small().predict(support, support, mask)
    assert free.class_names == ['background', '1', '', '3', '', '', '6'] and set(free[0].parts) <= {'1', '3', '6'}
    stored = small().predict(support, support, mask, stored=True)
    assert set(stored[0].parts) <= set(stored.class_names) and not stored[0].parts.keys() & {'1', '3', '6'}


def test_free_ids_have_no_stored_prototypes():
    model = small()
    support, mask = people(1)
    query = photo(2, 64, 47)
    own = model.predict(query, support, mask, stored=False).labels
    renamed = np.zeros(256, np.uint8)
    renamed[[1, 3, 6]] = 10, 20, 254
    other = model.predict(query, support, renamed[mask], stored=False).labels
    np.testing.assert_array_equal(other, renamed[own])
    assert (model.predict(query, support, mask, stored=True).labels != own).any()
    with torch.no_grad():
        model.prototype.zero_()
    np.testing.assert_array_equal(model.predict(query, support, mask, stored=True).labels, own)


@pytest.mark.parametrize('change, sentence', [
    (dict(masks=[]), 'one mask for each'),
    (dict(masks=np.zeros((70, 52), np.uint8)), 'no mask has a class'),
    (dict(masks=np.full((70, 52), 7, np.uint8), stored=True), 'has 6 classes'),
    (dict(masks=np.ones((70, 51), np.uint8)), 'its mask'),
    (dict(masks=np.ones((70, 52))), 'label maps'),
    (dict(query=np.zeros((5, 5))), 'a photo is a path')])
def test_bad_input_is_a_sentence(change, sentence):
    support, mask = people(1)
    given = dict(query=support, supports=support, masks=mask) | change
    if isinstance(given['masks'], list):
        given['supports'] = [support]
    with pytest.raises(ValueError, match=sentence):
        small().predict(**given)


def test_a_support_with_too_little_of_a_class_gives_none_of_it():
    support, mask = people(1, ids=(1, 3))
    mask[1, 1] = 6                                # between the samples at a quarter of the size
    assert 6 not in small().predict(support, support, mask).labels


# -------------------------------------------------------------------------------------------------
# Files


@pytest.mark.parametrize('way, size', [('kway', SMALL), ('1way', dict(SMALL, stem=12, middle=3)),
                                       ('kway', dict(SMALL, high_level=True))])
def test_files_tell_their_configuration(tmp_path, way, size):
    model = small(way=way, **size)
    state = model.state_dict()
    torch.save({f'module.{key}': value for key, value in state.items()}, tmp_path / 'eop.pth')
    again = EOPNet.from_pretrained(str(tmp_path / 'eop.pth'))
    assert again.config == model.config and not again.training
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in state.items())


def test_wrong_files_are_a_sentence(tmp_path):
    path = str(tmp_path / 'x.pth')
    state = small().state_dict()
    with pytest.raises(FileNotFoundError, match='does not exist'):
        EOPNet.from_pretrained(path)
    extra = dict(state, more=torch.zeros(1))
    lacking = {k: v for k, v in state.items() if k != 'scaler'}
    for content, sentence in ((extra, 'does not fit.*more'),
                              (lacking, 'does not fit.*scaler'),
                              ([1], 'holds a list'),
                              ({'a': torch.zeros(1)}, 'no checkpoint of EOP-Net'),
                              (print, 'could run code'),
                              (dict(state, prototype=torch.zeros(4)), 'does not fit')):
        torch.save(content, path)
        with pytest.raises(ValueError, match=f'x.pth.*{sentence}'):
            EOPNet.from_pretrained(path)


def test_training_starts_from_deeplab(tmp_path):
    source = small(seed=1)
    model = small(seed=2)
    conv1 = 'xception_features.conv1.weight'
    names = ('xception_features', 'aspp', 'feature_projection')
    state = {f'module.{k}': v for k, v in source.state_dict().items() if k.startswith(names)}
    state[f'module.{conv1}'] = torch.zeros(1, 3, 3, 3)        # of another shape: stays out
    state['module.semantic.weight'] = torch.zeros(21, 256, 1, 1)
    torch.save(state, tmp_path / 'deeplab.pth')
    before = model.state_dict()[conv1].clone()
    copied = model.load_backbone(str(tmp_path / 'deeplab.pth'))
    assert conv1 not in copied and 'semantic.weight' not in copied
    assert torch.equal(model.state_dict()[conv1], before)
    assert len(copied) > 100
    assert all(torch.equal(model.state_dict()[k], source.state_dict()[k]) for k in copied)
    torch.save({'a': torch.zeros(1)}, tmp_path / 'other.pth')
    with pytest.raises(ValueError, match='other.pth.*no weight that fits'):
        model.load_backbone(str(tmp_path / 'other.pth'))


def test_training_needs_its_epoch_and_labels_of_the_network():
    """Without an epoch there was no warm-up; labels that the network lacks had a finite loss."""
    query, support, seen, labels = small_episode()
    model = small().train()
    with pytest.raises(ValueError, match='training needs the epoch'):
        model(query, support, labels)
    strange = labels.clone()
    strange[0, 0, 0] = model.config.num_labels
    message = f'the label {model.config.num_labels} is none of 0 to {model.config.num_labels - 1}'
    with pytest.raises(ValueError, match=message):
        model(query, support, strange, epoch=1)
    out = model(query, support, labels, epoch=1)
    with pytest.raises(ValueError, match=message):
        oneshot_loss(out, strange, labels, 1, 2)

"""EOP-Net against numbers of the released code, its short cuts against plain loops, episodes, pictures and metrics."""
import functools
import json
import lzma
import os
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tests.helpers import HERE
from tests.seeded import blobs, noise, photo, seeded

from oneshot import EOPNet, data, episodes, evaluation
from oneshot.eopnet import screened
from oneshot.episodes import FOLDS
from oneshot.losses import contrast_loss, oneshot_loss
from oneshot.prototypes import (episode_labels, foreground, query_target,
                                smoothed_prototypes)
from oneshot.training import learning_rate

torch.set_num_threads(1)
FIXTURES = HERE / 'tests' / 'fixtures' / 'oneshot'
ATR = FOLDS['atr', 1].all
SMALL = dict(stem=8, middle=1, channels=16, high_level=False)


def fixture_labels(seed, kept):
    labels = torch.from_numpy(blobs(seed, 129, 97, 18))
    return episode_labels(labels, tuple(kept)).numpy()


@pytest.fixture(scope='module')
def episode():
    """query, support, query_labels, support_labels of the fixtures"""
    images = [torch.tanh(torch.from_numpy(noise(seed, (2, 3, 129, 97)))) for seed in (30, 31)]
    labels = [fixture_labels(32, ATR), fixture_labels(33, ATR)], [fixture_labels(34, ATR),
                                                                 fixture_labels(35, [0, 1, 2, 6, 11, 14])]
    return *images, *(torch.from_numpy(np.stack(pair)) for pair in labels)


@pytest.fixture(scope='module')
def reference():
    with open(os.path.join(FIXTURES, 'loss.json')) as f:
        return dict(np.load(os.path.join(FIXTURES, 'forward.npz')), loss=json.load(f))


@functools.cache                                              # the two ways share most of them
def weight(key, shape):
    return torch.from_numpy(seeded(key, shape))


def released_state(way):
    with lzma.open(os.path.join(FIXTURES, f'keys_{way}_18.json.xz'), 'rt') as f:
        state = {key: weight(key, tuple(shape)) for key, shape in json.load(f)}
    state['prototype'][[0, 5, 6, 7, *(i for i in range(18) if i not in ATR)]] = 0
    return state


@pytest.fixture(scope='module', params=['kway', '1way'])
def released(request, tmp_path_factory):
    """way, a model from a file in the released format, and the classes of the fixtures' episodes"""
    path = tmp_path_factory.mktemp('eop') / f'{request.param}.pth'
    torch.save(released_state(request.param), path)
    return request.param, EOPNet.from_pretrained(path), torch.tensor([6, 11]) if request.param == '1way' else None


def small(seed=0, **changes):
    """A small model with random weights, statistics and, for the classes 1 to 3, stored prototypes"""
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
    """query, support, query_labels, support_labels; the second support lacks 2, and none has 4; 255 at the right"""
    images = [torch.tanh(torch.from_numpy(noise(seed + i, (2, 3, *size)))) for i in range(2)]
    labels = torch.from_numpy(np.stack([blobs(seed + i, *size, num, ignore=0) for i in range(4)])).view(2, 2, *size)
    labels[1][labels[1] == 4] = 0
    labels[1, 1][labels[1, 1] == 2] = 3
    labels[..., -5:] = 255
    return *images, *labels


# ---------------------------------------------------------------------------------------------------------------
# The released code's numbers


def test_released_files_give_the_released_outputs(released, episode, reference):
    way, model, classes = released
    query, support, query_labels, support_labels = episode
    assert sum(p.numel() for p in model.parameters()) == {'kway': 44_223_421, '1way': 44_223_417}[way]
    model.eval()
    with torch.no_grad():
        out = model(query, support, support_labels, classes, epoch=39)
        if way == 'kway':
            feature = model.mid_level(query)[:, ::8, ::2, ::2]
            np.testing.assert_allclose(feature, reference['kway_feature'], atol=1e-4)
    for name, expected in (('agm', f'{way}_agm'), ('npm', f'{way}_npm'), ('coarse', 'kway_coarse')):
        assert out[name].shape[2:] == query.shape[2:]
        np.testing.assert_allclose(out[name][..., ::4, ::4], reference[expected], atol=1e-4)
    target = query_target(query_labels, support_labels, classes, out['npm'].shape[1])
    np.testing.assert_array_equal(target, reference[f'{way}_target'][:, 0])
    losses, expected = oneshot_loss(out, query_labels, support_labels, 39, 50), reference['loss'][way]['eval_epoch39']
    for name, theirs in dict(agm='agm', npm='npm', coarse='s1', contrast='contrast').items():
        assert losses[name].item() == pytest.approx(expected[theirs], abs=2e-6)


def test_training_is_the_released_training(released, episode, reference):
    way, model, classes = released
    query, support, query_labels, support_labels = episode
    model.train()
    losses = oneshot_loss(model(query, support, support_labels, classes, epoch=3), query_labels, support_labels, 3, 50)
    losses['total'].backward()
    expected = reference['loss'][way]['train_epoch3']
    for name, theirs in dict(agm='agm', npm='npm', coarse='s1', contrast='contrast', total='total').items():
        assert losses[name].item() == pytest.approx(expected[theirs], abs=3e-5)
    np.testing.assert_allclose(model.prototype.norm(dim=1), expected['proto_norm'], atol=3e-4)
    np.testing.assert_allclose(model.s1_prototype.norm(dim=1), expected['s1_proto_norm'], atol=3e-4)
    assert model.scaler.grad.item() == pytest.approx(expected['grad_scaler'], rel=1e-3)
    assert model.s2_trans.weight.grad.norm().item() == pytest.approx(expected['grad_s2_trans_norm'], rel=1e-3)
    without = {name.split('.')[0] for name, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert sorted(without) == expected['no_grad']


# ---------------------------------------------------------------------------------------------------------------
# Against plain loops


def looped_agm(model, f2, cosines):
    """AGM as the released code runs it: all of its convolutions once a class"""
    classes, rest = [], 0
    for c in cosines.split(1, 1):
        a = model.agm_class(model.decoder3(model.decoder2(c * f2 + f2)))
        classes.append(a[:, :1])
        rest = rest + a[:, 1:]
    return torch.cat([model.agm_bg_fusion(rest / cosines.shape[1]), *classes], 1)


@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize('absent', [(), (1, 4), (0, 1, 2, 3, 4, 5)])
def test_agm_equals_the_loop_over_classes(train, absent):
    results = []
    for looped in (False, True):
        model = small().double().train(train)
        f2 = torch.from_numpy(noise(1, (2, 16, 9, 7))).double().requires_grad_()
        cosines, present = torch.tanh(torch.from_numpy(noise(2, (2, 6, 9, 7)))).double(), torch.ones(6, dtype=bool)
        present[list(absent)] = False
        cosines = cosines * present[:, None, None]
        cosines[1, 3] = 0                                     # lacking in one of the two supports
        out = looped_agm(model, f2, cosines) if looped else model.agm_head(f2, cosines, present)
        (out * torch.from_numpy(noise(3, out.shape))).sum().backward()
        state = [value for name, value in model.state_dict().items() if name.startswith('decoder3')]
        grads = [p.grad for name, p in model.named_parameters() if name.startswith(('decoder', 'agm'))]
        results.append([out.detach(), f2.grad, *state, *grads])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('warm_up', [False, True])
@pytest.mark.parametrize('train', [False, True])
def test_smoothed_prototypes_are_the_released_loop(warm_up, train):
    model = small().train(train)
    static = torch.from_numpy(noise(4, (3, 6, 16)))
    static[0, 1] = static[1, 1] = static[2, 2] = static[:, 5] = 0
    stored = model.prototype.detach().clone()
    expected = torch.zeros_like(static)
    for c in range(6):
        for b in range(3):
            if static[b, c].sum() == 0:
                continue
            fresh = warm_up or stored[c + 1].sum() == 0
            expected[b, c] = static[b, c] if fresh else 0.999 * stored[c + 1] + 0.001 * static[b, c]
            if train:
                stored[c + 1] = expected[b, c]
    static.requires_grad_()
    rows = torch.arange(1, 7).expand(3, -1)
    used = smoothed_prototypes(model.prototype, static, rows, warm_up, update=train)
    torch.testing.assert_close(used.detach(), expected)
    torch.testing.assert_close(model.prototype.detach(), stored)
    used.sum().backward()
    if not warm_up:                                           # the gradient goes through this episode's share alone
        torch.testing.assert_close(static.grad[0, 0], torch.full((16,), 0.001))


def test_contrast_is_the_released_loop():
    query, support = (torch.from_numpy(noise(seed, (2, 5, 8))) for seed in (5, 6))
    query[0, 3] = support[0, 1] = support[1, 3] = query[1, 2] = support[1, 2] = 0
    expected = []
    for q, s in zip(query, support):
        rows, columns = ([i for i in range(5) if x[i].any()] for x in (q, s))
        scores = F.cosine_similarity(q[rows][:, None], s[columns][None], dim=2) / 0.1 + 1e-6
        losses = [-scores[k].log_softmax(0)[columns.index(i)] if i in columns else torch.tensor(0.)
                  for k, i in enumerate(rows)]
        expected.append(torch.stack(losses).mean())
    torch.testing.assert_close(contrast_loss(query, support), torch.stack(expected).mean())
    query.requires_grad_()
    contrast_loss(query, torch.zeros_like(support)).backward()
    assert query.grad.isfinite().all()


def test_labels_of_an_episode():
    labels = torch.tensor([[[0, 1, 4, 255]], [[5, 4, 6, 255]]], dtype=torch.uint8)
    assert episode_labels(labels, (0, 1, 5)).tolist() == [[[0, 1, 0, 255]], [[5, 0, 0, 255]]]
    assert episode_labels(labels, torch.tensor([4, 6])).tolist() == [[[0, 0, 1, 255]], [[0, 0, 1, 255]]]
    assert foreground(labels).tolist() == [[[0, 1, 1, 255]], [[1, 1, 1, 255]]]
    support = torch.tensor([[[1, 0, 0, 0, 5]], [[4, 4, 4, 4, 6]]], dtype=torch.uint8)
    assert query_target(labels, support, None, 7).tolist() == [[[0, 1, 0, 255]], [[0, 4, 0, 255]]]     # no 5, no 6


def test_classes_left_out_teach_nothing_but_people():
    """Novel pixels are background for the fine heads, while the coarse head still sees people there"""
    query, support, query_labels, support_labels = small_episode()
    outs, losses = [], []
    for drop in (False, True):
        model, seen = small().train(), [query_labels, support_labels]
        seen = [episode_labels(x, (0, 1, 2, 3)) for x in seen] if drop else seen
        outs.append(model(query, support, seen[1], classes=(0, 1, 2, 3), epoch=30))
        losses.append(oneshot_loss(outs[-1], *seen, 30, 50))
        assert not model.prototype[4:].any()
    assert torch.equal(outs[0]['npm'], outs[1]['npm']) and losses[0]['agm'] == losses[1]['agm']
    assert not torch.equal(outs[0]['coarse'], outs[1]['coarse']) and losses[0]['contrast'] != losses[1]['contrast']


@pytest.mark.parametrize('way', ['kway', '1way'])
def test_padding_weighs_nothing(way):
    """In the released 1-way training a padded pixel counted 255 times"""
    query, support, _, labels = small_episode()
    model, classes = small(way=way), torch.tensor([1, 3]) if way == '1way' else None
    with torch.no_grad():
        model.prototype.zero_()
        ignored, background = (model(query, support, x, classes) for x in (labels, labels * (labels != 255)))
    torch.testing.assert_close(ignored['npm'], background['npm'])


def test_the_rate_falls_every_tenth_epoch():
    rates = [learning_rate(epoch) for epoch in range(50)]
    assert rates[:9] == [1e-3] * 9 and rates[9:19] == [1e-3 * (1 - 9 / 50) ** 0.9] * 10
    assert rates[49] == pytest.approx(1e-3 * 0.02 ** 0.9)


# ---------------------------------------------------------------------------------------------------------------
# Use


def people(seed, size=(70, 52), ids=(1, 3, 6)):
    return photo(seed, *size), np.array([0, *ids], np.uint8)[blobs(seed, *size, len(ids) + 1)]


@pytest.mark.parametrize('way, seed', [('kway', 5), ('1way', 2)])
def test_predict_is_forward_on_the_classes_of_the_support(way, seed):
    model, (support, mask), query = small(seed, way=way), people(1), photo(2, 64, 47)
    inputs = [torch.from_numpy(data.normalize(x))[None] for x in (query, support)]
    labels = torch.from_numpy(mask)[None]
    with torch.no_grad():
        if way == 'kway':
            out = model(*inputs, labels)
            scores = out['npm'][:, [0, 1, 3, 6]]
        else:
            outs = [model(*inputs, labels, torch.tensor([c])) for c in (1, 3, 6)]
            out, leads = outs[0], [o['npm'][:, 1] - o['npm'][:, 0] for o in outs]
            scores = torch.stack([torch.zeros_like(leads[0]), *leads], 1)
    expected = torch.tensor([0, 1, 3, 6])[screened(dict(out, npm=scores))]
    found = model.predict(query, support, mask, stored=True)
    assert found.dtype == np.uint8 and found.shape == (64, 47) and len(np.unique(found)) > 1
    assert (found == expected[0].numpy()).mean() > 0.999      # but for ties in the last digit


@pytest.mark.parametrize('way', ['kway', '1way'])
def test_predict_takes_photos_of_any_size_and_several_supports(way):
    model, (support, mask), query = small(way=way), people(1), Image.fromarray(photo(2, 90, 131))
    one = model.predict(query, support, mask, stored=True)
    assert one.shape == (90, 131) and set(np.unique(one)) <= {0, 1, 3, 6}
    np.testing.assert_array_equal(model.predict(query, [support, support], [mask, mask], stored=True), one)
    other, other_mask = people(3, (33, 110), (2, 6))
    both = model.predict(query.convert('RGBA'), [Image.fromarray(support), other], [mask, Image.fromarray(other_mask)],
                         stored=True)
    assert both.shape == (90, 131) and set(np.unique(both)) <= {0, 1, 2, 3, 6}
    assert model.predict(query, support, mask, long_side=40).shape == (90, 131)


def test_free_ids_have_no_stored_prototypes():
    model, (support, mask), query = small(), people(1), photo(2, 64, 47)
    own = model.predict(query, support, mask, stored=False)
    renamed = np.zeros(256, np.uint8)
    renamed[[1, 3, 6]] = 10, 20, 254
    np.testing.assert_array_equal(model.predict(query, support, renamed[mask], stored=False), renamed[own])
    assert (model.predict(query, support, mask, stored=True) != own).any()
    with torch.no_grad():
        model.prototype.zero_()
    np.testing.assert_array_equal(model.predict(query, support, mask, stored=True), own)


@pytest.mark.parametrize('change, sentence', [
    (dict(masks=[]), 'one mask for each'), (dict(masks=np.zeros((70, 52), np.uint8)), 'no mask has a class'),
    (dict(masks=np.full((70, 52), 7, np.uint8), stored=True), 'has 6 classes'),
    (dict(masks=np.ones((70, 51), np.uint8)), 'its mask'),
    (dict(masks=np.ones((70, 52))), 'label maps'), (dict(query=np.zeros((5, 5))), 'a photo is a path')])
def test_bad_input_is_a_sentence(change, sentence):
    support, mask = people(1)
    given = dict(query=support, supports=support, masks=mask, **{}) | change
    if isinstance(given['masks'], list):
        given['supports'] = [support]
    with pytest.raises(ValueError, match=sentence):
        small().predict(**given)


def test_a_support_with_too_little_of_a_class_gives_none_of_it():
    support, mask = people(1, ids=(1, 3))
    mask[1, 1] = 6                                            # between the samples at a quarter of the size
    assert 6 not in small().predict(support, support, mask)


@pytest.mark.parametrize('way, size', [('kway', SMALL), ('1way', dict(SMALL, stem=12, middle=3)),
                                       ('kway', dict(SMALL, high_level=True))])
def test_files_tell_their_configuration(tmp_path, way, size):
    model = small(way=way, **size)
    torch.save({f'module.{key}': value for key, value in model.state_dict().items()}, tmp_path / 'eop.pth')
    again = EOPNet.from_pretrained(str(tmp_path / 'eop.pth'))
    assert again.config == model.config and not again.training
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())


def test_wrong_files_are_a_sentence(tmp_path):
    path, state = str(tmp_path / 'x.pth'), small().state_dict()
    with pytest.raises(FileNotFoundError, match='does not exist'):
        EOPNet.from_pretrained(path)
    extra, lacking = dict(state, more=torch.zeros(1)), {k: v for k, v in state.items() if k != 'scaler'}
    for content, sentence in ((extra, 'does not fit.*more'), (lacking, 'does not fit.*scaler'), ([1], 'holds a list'),
                              ({'a': torch.zeros(1)}, 'no checkpoint of EOP-Net'), (print, 'could run code'),
                              (dict(state, prototype=torch.zeros(4)), 'does not fit')):
        torch.save(content, path)
        with pytest.raises(ValueError, match=f'x.pth.*{sentence}'):
            EOPNet.from_pretrained(path)


def test_training_starts_from_deeplab(tmp_path):
    source, model = small(seed=1), small(seed=2)
    names = ('xception_features', 'aspp', 'feature_projection')
    state = {f'module.{k}': v for k, v in source.state_dict().items() if k.startswith(names)}
    state['module.xception_features.conv1.weight'] = torch.zeros(1, 3, 3, 3)          # of another shape: stays out
    torch.save(dict(state, **{'module.semantic.weight': torch.zeros(21, 256, 1, 1)}), tmp_path / 'deeplab.pth')
    before = model.state_dict()['xception_features.conv1.weight'].clone()
    copied = model.load_backbone(str(tmp_path / 'deeplab.pth'))
    assert 'xception_features.conv1.weight' not in copied and 'semantic.weight' not in copied
    assert torch.equal(model.state_dict()['xception_features.conv1.weight'], before)
    assert all(torch.equal(model.state_dict()[k], source.state_dict()[k]) for k in copied) and len(copied) > 100
    torch.save({'a': torch.zeros(1)}, tmp_path / 'other.pth')
    with pytest.raises(ValueError, match='other.pth.*no weight that fits'):
        model.load_backbone(str(tmp_path / 'other.pth'))


def test_a_small_model_learns_classes_by_example():
    """Colored bars in random order"""
    torch.manual_seed(0)
    model, rng = EOPNet(**{**SMALL, 'middle': 0}, num_labels=4).train(), np.random.default_rng(0)
    optimizer, history = torch.optim.AdamW(model.parameters(), 3e-3), []
    colors = np.array([[0, 0, 0], [250, 30, 30], [30, 250, 30], [30, 30, 250]], np.uint8)
    for _ in range(12):
        labels = np.stack([np.repeat(np.repeat(rng.permutation(4), 8)[None], 32, 0) for _ in range(4)]).astype(np.uint8)
        images = torch.from_numpy(np.stack([data.normalize(colors[x]) for x in labels]))
        labels = torch.from_numpy(labels)
        out = model(images[:2], images[2:], labels[2:], epoch=5)
        losses = oneshot_loss(out, labels[:2], labels[2:], 25, 50)
        optimizer.zero_grad()
        losses['total'].backward()
        optimizer.step()
        history.append(losses['npm'].item())
    assert np.mean(history[-3:]) < 0.8 * np.mean(history[:3])


# ---------------------------------------------------------------------------------------------------------------
# Episodes


def test_folds_are_the_released_ones():
    bases = {('atr', 1): '0 1 2 4 9 11 12 14 16', ('atr', 2): '0 2 5 6 7 9 11 12 14',
             ('lip', 1): '0 1 2 5 7 10 13 14 16 18', ('lip', 2): '0 1 2 6 9 12 13 14 16 18',
             ('cihp', 1): '0 1 2 5 7 10 13 14 16 18', ('cihp', 2): '0 2 6 9 10 12 13 14 16 18'}
    for key, base in bases.items():
        assert ' '.join(map(str, FOLDS[key].base)) == base
    for fold in FOLDS.values():
        assert sorted(fold.base + fold.novel) == list(fold.all) and sorted(fold.order) == list(fold.all[1:])
        assert not set(fold.merges) & set(fold.all) and max(fold.all) < fold.num_labels
    assert not set(FOLDS['ccp', 1].novel) & set(FOLDS['ccp', 2].novel)


def test_merged_labels():
    merged = episodes.merge(np.array([[0, 14, 15, 17, 19, 3, 255]], np.uint8), FOLDS['cihp', 1])
    assert merged.tolist() == [[0, 14, 14, 16, 18, 3, 255]]   # 3, of no fold, is still a person's
    kept = episode_labels(torch.from_numpy(merged), FOLDS['cihp', 2].base)
    assert kept.tolist() == [[0, 14, 14, 16, 18, 0, 255]]


def presence(number, seed=0, fold=FOLDS['atr', 1]):
    rng = np.random.default_rng(seed)
    return [(f'2500_{i}', {0, *rng.choice(fold.num_labels, 9, replace=False).tolist()}) for i in range(number)]


def test_pools_follow_the_labels():
    fold, photos = FOLDS['atr', 1], presence(50)
    pools = episodes.make_pools(photos, fold, split=20)
    for c in fold.all[1:]:
        ids = {c, *(i for i, to in fold.merges.items() if to == c)}
        having = [k for k, (_, labels) in enumerate(photos) if labels & ids]
        assert pools['queries'][c] == [k for k in having if k <= 20]
        assert pools['supports'][c] == [k for k in having if k > 20]


@pytest.mark.parametrize('protocol, form', [(2, list), (4, tuple), (4, np.array),
                                            (4, lambda pool: [np.int64(i) for i in pool])])
def test_pools_are_read_from_pickles_and_json(tmp_path, protocol, form):
    fold = FOLDS['atr', 1]
    pools = episodes.make_pools(presence(50), fold, split=20)
    released = {c + add: form(pool) for add, side in ((0, 'queries'), (17, 'supports'))
                for c, pool in pools[side].items()}
    (tmp_path / 'x.pkl').write_bytes(pickle.dumps(released, protocol))
    assert episodes.read_pools(tmp_path / 'x.pkl', fold) == pools
    episodes.write_pools(tmp_path / 'x.json', pools)
    assert episodes.read_pools(tmp_path / 'x.json', fold) == pools


class Evil:
    def __reduce__(self):
        return os.mkdir, ('evil',)


@pytest.mark.parametrize('content', [Evil(), [Evil()], {1: np.array([Evil()])}, {1: print}, [], {1: [-1]}, {1: 'ab'},
                                     {'a': [1]}, [None]])
def test_pickles_of_anything_else_are_refused(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'x.pkl').write_bytes(pickle.dumps(content))
    for read in (lambda p: episodes.read_pools(p, FOLDS['atr', 1]), episodes.read_episodes):
        with pytest.raises(ValueError, match='x.pkl'):
            read(tmp_path / 'x.pkl')
    assert not (tmp_path / 'evil').exists()


@pytest.mark.parametrize('text', ['', '[]', '{"kind": "pools"}', '{"kind": "pools", "queries": {"a": [1]}}', '\xff'])
def test_broken_json_is_a_sentence(tmp_path, text):
    (tmp_path / 'x.json').write_bytes(text.encode('latin1'))
    for read in (lambda p: episodes.read_pools(p, FOLDS['atr', 1]), episodes.read_episodes):
        with pytest.raises(ValueError, match='x.json'):
            read(tmp_path / 'x.json')


def test_training_pairs():
    pairs = episodes.kway_pairs(15000)
    assert [q for q, _, _ in pairs] == list(range(7500)) and len({s for _, s, _ in pairs}) > 4000
    assert min(s for _, s, _ in pairs) >= 7500 and max(s for _, s, _ in pairs) < 15000
    assert pairs == episodes.kway_pairs(15000) != episodes.kway_pairs(15000, seed=1)
    fold = FOLDS['atr', 2]
    pools = episodes.make_pools(presence(300, fold=fold), fold, split=150)
    pairs = episodes.oneway_pairs(pools, fold, most=30)
    assert [c for _, _, c in pairs] == [c for c in fold.base[1:] for _ in range(30)]
    for c in fold.base[1:]:
        assert [q for q, _, k in pairs if k == c] == pools['queries'][c][:30]
    assert all(s in pools['supports'][c] for _, s, c in pairs)
    with pytest.raises(ValueError, match='no support photo has class 0|no support'):
        episodes.oneway_pairs({'queries': {2: [0]}, 'supports': {2: []}}, fold)


def test_the_meta_test_list_has_the_released_form(tmp_path):
    fold = FOLDS['atr', 1]
    pools = episodes.make_pools(presence(2706), fold, split=200)
    rows = episodes.meta_test_list(pools, fold)
    assert len(rows) == 1650 and len({q for q, _, _ in rows}) == 110 and len({s for _, s, _ in rows}) == 1650
    used = set()
    for k, c in enumerate(fold.order):                        # the released rule, class after class
        part = rows[150 * k:150 * k + 150]
        queries = [i for i in pools['queries'][c] if i not in used][:10]
        supports = [i for i in pools['supports'][c] if i not in used][:150]
        assert part == [(queries[i // 15], supports[i], c) for i in range(150)]
        used.update(queries + supports)
    episodes.write_episodes(tmp_path / 'x.json', rows)
    (tmp_path / 'x.pkl').write_bytes(pickle.dumps([list(column) for column in zip(*rows)]))
    assert episodes.read_episodes(tmp_path / 'x.json') == episodes.read_episodes(tmp_path / 'x.pkl') == rows


def test_short_pools_start_over():
    fold = FOLDS['ccp', 2]
    pools = episodes.make_pools([(i, {c}) for i, c in enumerate(fold.order * 3)], fold, split=11)
    rows = episodes.meta_test_list(pools, fold, queries=2, supports=6)
    assert rows[:6] == [(0, 12, 12), (0, 24, 12)] * 3 and len(rows) == 72        # one query, two supports
    shared = episodes.meta_test_list({side: {c: [1, 2] for c in fold.all} for side in pools}, fold, 2, 4, reuse=True)
    assert shared[-4:] == [(1, 1, 18), (1, 2, 18), (2, 1, 18), (2, 2, 18)]
    pools['supports'][6] = []
    with pytest.raises(ValueError, match='class 6, dress'):
        episodes.meta_test_list(pools, fold)


# ---------------------------------------------------------------------------------------------------------------
# Pictures


def test_the_network_reads_bgr_from_minus_one_to_one():
    image = np.zeros((2, 3, 3), np.uint8)
    image[0, 1] = 255, 51, 0
    x = data.normalize(image)
    assert x.dtype == np.float32 and x.shape == (3, 2, 3)
    np.testing.assert_allclose(x[:, 0, 1], [-1, -0.6, 1], atol=1e-6)
    assert (x[:, 1] == -1).all()


def test_a_flip_swaps_sides():
    labels = np.array([[14, 0, 15, 18, 255]], np.uint8)
    image = np.arange(15, dtype=np.uint8).reshape(1, 5, 3)
    mirrored, swapped = data.flip(image, labels, FOLDS['lip', 1].merges.items())
    assert swapped.tolist() == [[255, 19, 14, 0, 15]]
    np.testing.assert_array_equal(mirrored[0, 0], [12, 13, 14])
    again = data.flip(mirrored, swapped, FOLDS['lip', 1].merges.items())
    np.testing.assert_array_equal(again[0], image)
    np.testing.assert_array_equal(again[1], labels)


@pytest.mark.parametrize('shape', [(20, 24), (300, 20), (200, 260)])
def test_crops_keep_photo_and_labels_together(shape):
    """A photo whose gray value is its label"""
    labels = np.repeat(np.arange(shape[0])[:, None] // 30 % 8 + 10 * (np.arange(shape[1]) // 30 % 8), 1, 1)
    image = np.repeat(labels.astype(np.uint8)[..., None] + 40, 3, 2)
    sizes = set()
    for seed in range(20):
        crop, cropped = data.scale_and_crop(image, labels.astype(np.uint8), np.random.default_rng(seed), 64)
        assert crop.shape == (64, 64, 3) and cropped.shape == (64, 64)
        padding = cropped == 255
        assert not crop[padding].any() and crop[~padding].all()
        height, width = (~padding).any(1).sum(), (~padding).any(0).sum()
        assert padding.sum() == 64 * 64 - height * width and not padding[:height, :width].any()
        assert (crop[~padding][:, 0] == cropped[~padding] + 40).mean() > 0.6
        sizes.add((height, width))
    assert len(sizes) > 1 or min(shape) * 0.5 >= 64


def test_augmented_labels_are_merged():
    image, labels = photo(1, 40, 30), blobs(1, 40, 30, 20)
    results = [data.augment(image, labels, FOLDS['cihp', 1], np.random.default_rng(seed), 32) for seed in range(20)]
    assert not set(np.unique([x for _, x in results])) & {15, 17, 19}


# ---------------------------------------------------------------------------------------------------------------
# Metrics


def test_kway_scores():
    fold, rng = FOLDS['atr', 1], np.random.default_rng(0)
    truth, found = (rng.choice([c for c in fold.all if c != 16], (3, 40, 50)).astype(np.uint8) for _ in range(2))
    truth[:, :4] = 255
    counts = sum(evaluation.confusion(t, f, 18) for t, f in zip(truth, found))
    scores = evaluation.kway_scores(counts, fold)
    valid = truth != 255
    iou = {c: 100 * ((truth == c) & (found == c)).sum() / (((truth == c) | (found == c)) & valid).sum()
           for c in fold.all if c != 16}
    assert np.isnan(scores['iou'][16])                        # in neither: left out of all means
    assert all(scores['iou'][c] == pytest.approx(value) for c, value in iou.items())
    assert scores['novel'] == pytest.approx(np.mean([iou[c] for c in (5, 6, 7)]))
    assert scores['base'] == pytest.approx(np.mean([iou[c] for c in (0, 1, 2, 4, 9, 11, 12, 14)]))
    assert scores['base_parts'] == pytest.approx(np.mean([iou[c] for c in (1, 2, 4, 9, 11, 12, 14)]))
    assert scores['human'] == pytest.approx(np.mean(list(iou.values())))
    assert scores['human_parts'] == pytest.approx(np.mean([iou[c] for c in iou if c]))
    perfect = evaluation.kway_scores(np.diag(np.arange(18)), fold)
    assert perfect['novel'] == perfect['human'] == perfect['base_parts'] == 100


def test_oneway_scores():
    fold, rng = FOLDS['lip', 2], np.random.default_rng(1)
    counts = {c: rng.integers(1, 99, (2, 2)) for c in fold.all[1:] if c != 18}
    scores = evaluation.oneway_scores(counts, fold)
    inside = {c: 100 * m[1, 1] / (m[1, 1] + m[0, 1] + m[1, 0]) for c, m in counts.items()}
    outside = np.mean([100 * m[0, 0] / (m[0, 0] + m[0, 1] + m[1, 0]) for m in counts.values()])
    assert scores['iou'][0] == pytest.approx(outside) and np.isnan(scores['iou'][18])
    assert scores['novel'] == pytest.approx(np.mean([inside[c] for c in (5, 7, 10)]))
    assert scores['human'] == pytest.approx(np.mean([outside, *inside.values()]))
    assert scores['human_parts'] == pytest.approx(np.mean(list(inside.values())))
    total = sum(counts.values())
    errors = total[0, 1] + total[1, 0]
    assert scores['binary'] == pytest.approx(50 * sum(total[i, i] / (total[i, i] + errors) for i in range(2)))

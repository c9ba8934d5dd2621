"""POPNet gives the numbers of the released classes, in eval mode and in training, stage by stage.
Its stages train one after the other; mistakes are one sentence each."""
import json
import lzma

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from oneshot import EOPNet, POPNet, load_model, popnet_loss
from oneshot.episodes import FOLDS
from oneshot.popnet import RELEASED
from oneshot.prototypes import episode_labels
from oneshot.stages import GROUPS, stage_fold, stage_table
from tests.helpers import HERE
from tests.seeded import blobs, noise, photo, seeded

torch.set_num_threads(1)
FIXTURES = HERE / 'tests' / 'fixtures' / 'oneshot'
REFERENCE = dict(np.load(FIXTURES / 'pop_forward.npz'))
LOSSES = json.loads((FIXTURES / 'pop_loss.json').read_text())
ATR = FOLDS['atr', 1].all
ROWS = {'stage1': 2, 'stage2': 5}
SMALL = dict(stem=4, middle=0, channels=16, batch_size=2)


# -------------------------------------------------------------------------------------------------
# The released classes' numbers


def released_state(name, way='kway'):
    """A released state dict of random weights: stage1, stage2, stage3 or stageone_proto."""
    with lzma.open(FIXTURES / f'pop_keys_{way}_17.json.xz', 'rt') as f:
        state = {}
        for key, shape in json.load(f):
            if key == 'prototype':
                shape = ROWS.get(name, 17), shape[1]
            state[key] = torch.from_numpy(seeded(f'{name}.{key}', tuple(shape)))
    state['prototype'][0] = 0
    if len(state['prototype']) == 17:
        state['prototype'][[5, 6, 7]] = 0
        state['prototype'][[i for i in range(17) if i not in ATR]] = 0
    return state


@pytest.fixture(scope='module')
def images():
    # The last digit of tanh counts: it is numpy's, in float32.
    return [torch.from_numpy(np.tanh(noise(seed, (2, 3, 97, 81)))) for seed in (60, 61)]


@pytest.fixture(scope='module')
def labels():
    """{stage: (query labels, support labels)}, and raw."""
    raw = [torch.from_numpy(np.stack([blobs(seed + i, 97, 81, 18, ignore=5) for i in range(2)]))
           for seed in (62, 64)]
    fold = FOLDS['atr', 1]
    found = dict(raw=raw)
    for stage in (1, 2):
        table = torch.from_numpy(stage_table('ATR', fold, stage, 'all'))
        found[stage] = [table[x.long()] for x in raw]
    fine = [episode_labels(x, ATR) for x in raw]
    fine[1][1] = episode_labels(fine[1][1], (0, 1, 2, 6, 11, 14))
    found[3] = fine
    return found


@pytest.fixture(scope='module')
def released(tmp_path_factory, images):
    """{stage: a model of a released file}, and the features of each stage with those of the stage
    before; `one` is 1-way."""
    folder = tmp_path_factory.mktemp('pop')
    models = {}
    features = {0: [None, None]}
    for key, name, way in ((1, 'stage1', 'kway'), (2, 'stage2', 'kway'), (3, 'stage3', 'kway'),
                           ('one', 'stageone_proto', '1way')):
        torch.save(released_state(name, way), folder / f'{name}.pth')
        model = load_model(folder / f'{name}.pth', 'cpu')
        assert isinstance(model, POPNet)
        models[key] = model
        before = features[1 if key == 'one' else key - 1]
        with torch.no_grad():
            features[key] = [model.encode(x, f) for x, f in zip(images, before)]
    return models, features


@pytest.fixture(scope='module')
def features64(released, images):
    """Features of stages 1 and 2 in float64."""
    found = []
    previous = None, None
    for stage in (1, 2):
        model = released[0][stage]
        frozen = POPNet(model.config).double().eval()
        frozen.load_state_dict(model.state_dict())
        with torch.no_grad():
            previous = [frozen.encode(x.double(), f) for x, f in zip(images, previous)]
        found.append(previous)
    return found


def run(models, features, images, labels, key, **options):
    """forward of a model in eval mode with the features of the stage before."""
    previous = features[1 if key == 'one' else key - 1]
    previous = None if previous[0] is None else tuple(previous)
    with torch.no_grad():
        return models[key].eval()(*images, labels, previous, **options)


def same(out, name, agm=1e-4, ncm=1e-3):
    for head, atol in (('agm', agm), ('ncm', ncm)):
        found = out[head].detach()[..., ::8, ::8]
        np.testing.assert_allclose(found, REFERENCE[f'{name}_{head}'], atol=atol)


def test_released_files_tell_their_stage(released):
    models, _ = released
    assert [models[k].config.stage for k in (1, 2, 3, 'one')] == [1, 2, 3, 3]
    assert [models[k].config.way for k in (3, 'one')] == ['kway', '1way']
    assert sum(p.numel() for p in models[3].parameters()) == LOSSES['parameters_kway']['3']
    assert sum(p.numel() for p in models['one'].parameters()) == LOSSES['parameters_one_proto']
    assert len(models[3].state_dict()) == 934 and len(models['one'].state_dict()) == 928


def test_features_are_infused(released):
    _, features = released
    for key, name in ((1, 's1_feature'), (2, 's2_feature'), (3, 's3_feature')):
        np.testing.assert_allclose(features[key][0][:, :4, ::2, ::2], REFERENCE[f'{name}_query'],
                                   atol=1e-4)
    np.testing.assert_allclose(features[3][1][:, :4, ::2, ::2], REFERENCE['s3_feature_support'],
                               atol=1e-4)
    np.testing.assert_allclose(features['one'][0][:, :4, ::2, ::2], REFERENCE['one_proto_prev_query'],
                               atol=1e-4)


@pytest.mark.parametrize('stage, flag', [(1, 'static'), (1, 'stored'), (2, 'stored'),
                                         (3, 'static'), (3, 'stored')])
def test_outputs_in_eval_mode(released, images, labels, stage, flag):
    epoch = 0 if flag == 'static' else 39
    out = run(*released, images, labels[stage][1], stage, epoch=epoch)
    same(out, f's{stage}_eval_{flag}')
    found = popnet_loss(out, *labels[stage], 30, 50)
    for head, value in LOSSES[f's{stage}_eval_{flag}'].items():
        assert found[head].item() == pytest.approx(value, rel=1e-4)
    assert found['total'].item() == pytest.approx(
        0.4 * found['agm'].item() + 0.6 * found['ncm'].item(), rel=1e-6)


def test_smaller_features_of_the_stage_before_are_enlarged(released, images, labels):
    models, _ = released
    with torch.no_grad():
        small = [F.interpolate(x, (49, 41), mode='bilinear', align_corners=True) for x in images]
        previous = tuple(models[1].eval().encode(x) for x in small)
        out = models[2].eval()(*images, labels[2][1], previous)
        alone = models[2](*images, labels[2][1], (models[1].encode(images[0]), previous[1]))
    same(out, 's2_small')
    assert alone['ncm'].shape == out['ncm'].shape       # the released code fails here


def test_mode_ucs(released, images, labels):
    models, features = released
    support_labels = torch.where(labels[3][1] == 255, 0, labels[3][1])
    config = models[3].config
    models[3].config = type(config)(**{**vars(config), 'mode': 'ucs'})
    try:
        out = run(models, features, images, support_labels, 3, epoch=0)
        unlabeled = run(models, features, images, labels[3][1], 3, epoch=0)
    finally:
        models[3].config = config
    same(out, 's3_ucs')
    absent = [i for i in range(1, 17) if not (support_labels == i).any()]
    assert absent and not out['ncm'][:, absent].any() and not out['agm'][:, absent].any()
    assert unlabeled['ncm'].isfinite().all()            # 255 is no class


def test_1way(released, images, labels):
    classes = torch.tensor([6, 11])
    out = run(*released, images, labels['raw'][1], 'one', classes=classes)
    same(out, 'one_proto_eval')
    with pytest.raises(ValueError, match='1-way parsing needs classes'):
        run(*released, images, labels['raw'][1], 'one')


@pytest.mark.parametrize('key, epoch', [(1, 3), (1, 30), (3, 3), (3, 30), ('one', 3), ('one', 30)])
def test_training_in_float64(released, features64, images, labels, key, epoch):
    """Outputs, losses, gradients, running statistics and stored prototypes"""
    models, _ = released
    one = key == 'one'
    model = POPNet(models[key].config).double()
    model.load_state_dict(models[key].state_dict())
    model.train()
    images = [x.double() for x in images]
    previous = {1: None, 3: features64[1], 'one': features64[0]}[key]
    given = labels['raw'] if one else labels[key]
    classes = torch.tensor([6, 11]) if one else None
    out = model(*images, given[1], previous, classes, epoch)
    name = f'one_proto_train_epoch{epoch}' if one else f's{key}_train_epoch{epoch}'
    same(out, name, 1e-5, 1e-5)
    losses = popnet_loss(out, *given, epoch, 50)
    losses['total'].backward()
    expected = LOSSES[name]
    for head in ('agm', 'ncm', 'total'):
        assert losses[head].item() == pytest.approx(expected[head], rel=1e-4)
    np.testing.assert_allclose(model.prototype[:, ::8], REFERENCE[f'{name}_prototype'], atol=1e-5)
    np.testing.assert_allclose(model.prototype.norm(dim=1), expected['prototype_norm'], atol=1e-5)
    parameters = dict(model.named_parameters())
    for theirs, value in expected['grad'].items():
        grad = parameters[ours(theirs)].grad
        if value is None:
            assert grad is None
        else:
            found = grad.item() if theirs == 'scaler' else grad.norm().item()
            assert abs(found) == pytest.approx(abs(value), rel=1e-6), theirs
    for theirs, value in expected.get('running', {}).items():
        found = model.state_dict()[ours(theirs)].norm().item()
        assert found == pytest.approx(value, rel=1e-6), theirs
    if 'no_grad' in expected:
        without = {n.split('.')[0] for n, p in parameters.items() if p.grad is None}
        assert sorted(without) == expected['no_grad']


def ours(key):
    return next(iter(POPNet.rename({key: None})))


def test_released_names_are_all_known():
    names = {ours(key) for key in released_state('stage1')}
    assert names == set(POPNet(stage=1, num_labels=2).state_dict())
    assert set(RELEASED.values()) > {'agm_class', 'npm_class'}


# -------------------------------------------------------------------------------------------------
# Stages


def test_groups_cover_all_labels_once():
    for data, groups in GROUPS.items():
        fold = FOLDS[data, 1]
        ids = [i for group in groups.values() for i in group]
        assert sorted(ids) == list(range(1, fold.num_labels))
        for i, merged in fold.merges.items():                # left and right have one parent
            assert any(i in group and merged in group for group in groups.values())
        assert list(groups) == list(stage_fold(fold, 2).names.values())[1:]


def test_labels_of_the_stages():
    fold = FOLDS['cihp', 1]
    drawn = np.array([0, 2, 3, 6, 5, 15, 18, 255])           # 3 is dropped, 6 is novel
    person, parents, base = [stage_table('CIHP', fold, *given)[drawn].tolist()
                             for given in ((1, 'all'), (2, 'all'), (2, 'base'))]
    assert person == [0, 1, 1, 1, 1, 1, 1, 255]
    assert parents == [0, 1, 3, 2, 2, 3, 4, 255]
    assert base == [0, 1, 0, 0, 2, 3, 4, 255]
    assert stage_fold(fold, 3) is fold and stage_fold(fold, 1).base == (0, 1)


def chain(**changes):
    """A small POPNet of three stages, with random statistics and a few stored prototypes"""
    torch.manual_seed(0)
    model = POPNet(**{**SMALL, 'earlier': (1, 2), **changes})
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith(('running_mean', 'bias')):
                value.normal_(0, 0.2)
        model.prototype[1:4].normal_()
    return model.eval()


def episode(size=(41, 36), num=18):
    images = [torch.tanh(torch.from_numpy(noise(i, (2, 3, *size)))) for i in range(2)]
    labels = np.stack([blobs(i, *size, num, ignore=3) for i in range(4)])
    return *images, *torch.from_numpy(labels).view(2, 2, *size)


def test_a_file_holds_all_stages(tmp_path):
    model = chain()
    model.save(tmp_path / 'pop.pt')
    again = load_model(tmp_path / 'pop.pt', 'cpu')
    assert isinstance(again, POPNet) and again.config == model.config
    assert again.previous_stage.previous_stage.config.stage == 1
    assert [len(m.prototype) for m in (again, again.previous_stage,
                                       again.previous_stage.previous_stage)] == [18, 5, 2]
    query, support, _, labels = episode()
    with torch.no_grad():
        own = again(query, support, labels)
        first, second = again.previous_stage.previous_stage, again.previous_stage
        given = [second.encode(x, first.encode(x)) for x in (query, support)]
        assert torch.equal(own['ncm'], again(query, support, labels, given)['ncm'])
    with pytest.raises(ValueError, match='pop.pt is of --system popnet, not eopnet'):
        EOPNet.from_pretrained(tmp_path / 'pop.pt')
    EOPNet(**SMALL, num_labels=18).save(tmp_path / 'eop.pt')
    with pytest.raises(ValueError, match='eop.pt is of --system eopnet, not popnet'):
        POPNet.from_pretrained(tmp_path / 'eop.pt')


def test_stages_before_are_frozen():
    model = chain().train()
    before = {k: v.clone() for k, v in model.previous_stage.state_dict().items()}
    query, support, query_labels, support_labels = episode()
    out = model(query, support, support_labels, epoch=0)
    popnet_loss(out, query_labels, support_labels, 3, 50)['total'].backward()
    assert all(p.grad is None for p in model.previous_stage.parameters())
    assert not any(m.training for m in model.previous_stage.modules())
    assert all(torch.equal(v, before[k]) for k, v in model.previous_stage.state_dict().items())
    assert model.feature_fusion[0].atrous_convolution.depthwise.weight.grad.any()
    with pytest.raises(ValueError, match='two episodes or more'):
        model(query[:1], support[:1], support_labels[:1])


@pytest.mark.parametrize('changes', [{}, dict(way='1way'), dict(mode='ucs')])
def test_predict_gives_the_classes_of_the_masks(changes):
    model = chain(**changes)
    mask = blobs(7, 60, 44, 4)
    ids = np.array([0, 10, 20, 254], np.uint8)[mask]
    result = model.predict(photo(1, 50, 40), photo(2, 60, 44), ids)
    found = result.labels
    assert len(result) == 1 and result.class_names[10] == '10' and 0 < result[0].score <= 1
    assert found.shape == (50, 40) and found.dtype == np.uint8
    assert set(np.unique(found)) <= {0, 10, 20, 254} and len(np.unique(found)) > 1


def test_ucs_trains_with_the_prototypes_of_its_classes():
    """The released mode reads and writes rows of other classes; here they are those of fixed."""
    query, support, query_labels, support_labels = episode()
    stored = []
    for mode in ('fixed', 'ucs'):
        model = chain(mode=mode).train()
        out = model(query, support, support_labels, classes=(0, 2, 5, 9), epoch=30)
        losses = popnet_loss(out, query_labels, support_labels, 3, 50)
        losses['total'].backward()
        assert losses['total'].isfinite()
        stored.append(model.prototype.detach())
    assert torch.equal(*stored) and not stored[0][0].any()
    out = model(query, support, torch.full_like(support_labels, 255), classes=(0, 2), epoch=30)
    assert out['ncm'].isfinite().all()             # not a pixel of any class

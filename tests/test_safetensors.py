"""Weights as .safetensors.

Claimed: a model of each system, exported and loaded again, is the same in weights, settings, names and pairs; released names
without metadata load, too; a damaged file, and a missing package, get one sentence.
"""
import json
import sys

import numpy as np
import pytest
import torch

from oneshot import EOPNet, POPNet, load_model
from schp import SCHP, SegFormer
from schp.config import SCHPConfig
from tests.helpers import call, tiny_model
from tools import export
from uniparser import UniParser
from util.labels import LABEL_SETS

safetensors = pytest.importorskip('safetensors.torch', reason='needs safetensors')
SMALL = dict(stem=8, middle=1, channels=16, high_level=False)


def small_schp():
    atr = LABEL_SETS['atr']
    torch.manual_seed(0)
    return SCHP(atr.names, (48, 40), atr.flip_pairs, (1, 1, 1, 1), 4)


def small_segformer():
    model = SegFormer(LABEL_SETS['merged'].names, (64, 48), (), (1, 1, 1, 1), 8)
    model.config = SCHPConfig(network='segformer', size=(64, 48), blocks=(1, 1, 1, 1), width=8)
    return model


SYSTEMS = {
    'uniparser': (lambda: tiny_model(whole=True, milestones=(3, 5)), UniParser.from_pretrained),
    'schp': (small_schp, SCHP.from_pretrained),
    'segformer': (small_segformer, SCHP.from_pretrained),
    'eopnet': (lambda: EOPNet(num_labels=7, **SMALL), lambda path: load_model(path, 'cpu')),
    'popnet': (lambda: POPNet(stage=3, earlier=(1, 2), stem=8, middle=1, channels=16), lambda path: load_model(path, 'cpu')),
}


def rewrite(path, change):
    """Changes our JSON in the metadata and the tensors of a file: change(state, tensors)."""
    tensors = safetensors.load_file(path)
    with safetensors.safe_open(path, framework='pt') as file:
        state = json.loads(file.metadata()['checkpoint'])
    change(state, tensors)
    safetensors.save_file(tensors, path, {'checkpoint': json.dumps(state)})


@pytest.mark.parametrize('system', SYSTEMS)
def test_a_model_exported_and_loaded_again_is_the_same(system, tmp_path):
    make, load = SYSTEMS[system]
    make().save(tmp_path / 'a.pt')
    for _ in range(2):                                              # the second time it replaces its own file
        done = call(export, '--weights', tmp_path / 'a.pt', '--out', tmp_path / 'a.safetensors')
        assert done.returncode == 0, done.stderr
    first, second = load(tmp_path / 'a.pt'), load(tmp_path / 'a.safetensors')
    assert type(first) is type(second) and first.config == second.config and not second.training
    for name in ('class_names', 'labels', 'flip_pairs'):
        assert getattr(first, name, None) == getattr(second, name, None)
    states = first.state_dict(), second.state_dict()
    assert list(states[0]) == list(states[1]) and all(torch.equal(a, b) for a, b in zip(*(s.values() for s in states)))


def test_other_programs_read_the_tensors(tmp_path):
    model = tiny_model()
    model.half().save(tmp_path / 'a.safetensors')
    tensors = safetensors.load_file(tmp_path / 'a.safetensors')
    assert tensors.keys() == model.state_dict().keys() and tensors['category_builder.k_cate'].dtype == torch.float16
    assert np.array_equal(tensors['neck.conv.weight'], model.state_dict()['neck.conv.weight'])
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    again = UniParser.from_pretrained(tmp_path / 'a.safetensors')
    assert np.array_equal(again.predict(image)[0].parsing, model.float().predict(image)[0].parsing)


@pytest.mark.parametrize('make, load', [(small_schp, SCHP.from_pretrained), SYSTEMS['eopnet']])
def test_released_names_without_metadata_load(make, load, tmp_path):
    state = make().state_dict()
    safetensors.save_file({f'module.{name}': value for name, value in state.items()}, tmp_path / 'a.safetensors')
    found = load(tmp_path / 'a.safetensors').state_dict()
    assert all(torch.equal(value, found[name]) for name, value in state.items())


@pytest.mark.parametrize('change, sentence', [
    (lambda state, tensors: tensors.pop('neck.conv.bias'), '1 missing: neck.conv.bias'),
    (lambda state, tensors: tensors.update(more=torch.zeros(1)), '1 unknown: more'),
    (lambda state, tensors: tensors['neck.conv.bias'].fill_(torch.nan), 'NaN'),
    (lambda state, tensors: state['config'].update(warp=9), 'warp'),
    (lambda state, tensors: state['config'].update(channels='8'), 'channels'),
    (lambda state, tensors: state.update(class_names=['a']), 'names'),
    (lambda state, tensors: state.update(format='uniparser 0'), 'uniparser 0'),
    (lambda state, tensors: state.pop('config'), 'not a readable'),
    (lambda state, tensors: state.update(system='schp'), 'use python -m schp'),
])
def test_a_file_that_does_not_fit_is_a_sentence(change, sentence, tmp_path):
    path = tmp_path / 'a.safetensors'
    tiny_model().save(path)
    rewrite(path, change)
    with pytest.raises(ValueError, match=sentence) as error:
        UniParser.from_pretrained(path)
    assert str(path) in str(error.value) and '\n' not in str(error.value)


def test_a_damaged_file_is_a_sentence(tmp_path):
    path = tmp_path / 'a.safetensors'
    tiny_model().save(path)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], 'little')
    giant = b'{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}'
    for damaged in (b'', content[:5], content[:length // 2], content[:-1], content + b'x', (2 ** 60).to_bytes(8, 'little') + content[8:],
                    len(giant).to_bytes(8, 'little') + giant, b'\x80\x02' + content, content[:9] + b'\xff' + content[10:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match='a.safetensors is not a readable weights file'):
            UniParser.from_pretrained(path)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    tiny_model().save(tmp_path / 'a.pt')
    (tmp_path / 'b.safetensors').write_bytes(b'')
    monkeypatch.setitem(sys.modules, 'safetensors', None)
    for weights, out in (('a.pt', 'c.safetensors'), ('b.safetensors', 'c.pt')):
        done = call(export, '--weights', weights, '--out', out, cwd=tmp_path)
        assert done.returncode == 2 and done.stderr == 'error: a .safetensors file needs safetensors; pip install safetensors\n'
    assert {path.name for path in tmp_path.iterdir()} == {'a.pt', 'b.safetensors'}

"""Weights files of UniParser.

Claimed: saving and loading gives the same model; a shared file names no folder of this machine;
broken files, and pickles that would run code, are refused in one sentence. More in
tests/robustness.
"""
import os
from dataclasses import asdict

import numpy as np
import pytest
import torch

from tests.helpers import tiny_model
from uniparser import UniParser
from util import checkpoints


# ---- checkpoints -----------------------------------------------------------------------------------------------


def test_saving_and_loading_gives_the_same_model(checkpoint):
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    model = UniParser.from_pretrained(checkpoint)
    same = tiny_model(theta_center=0.0, theta_part=0.0, theta_mask=0.1, theta_same=1.0, max_people=4, test_short_side=48)
    assert model.config == same.config and asdict(model.config)['max_people'] == 4
    assert np.array_equal(model.predict(image)[0].parsing, same.predict(image)[0].parsing)
    assert UniParser.from_pretrained(checkpoint, max_people=1).predict(image)[0].parsing.shape[0] <= 1


def test_a_folded_model_is_not_saved(checkpoint, tmp_path):
    model = UniParser.from_pretrained(checkpoint).fold().fold()
    with pytest.raises(ValueError, match='folded'):
        model.save(tmp_path / 'a.pt')


def test_a_shared_file_names_no_folder_of_this_machine(tmp_path):
    model = tiny_model(pretrained='/home/someone/resnet18.pth', backgrounds='/data/backgrounds', people='/data/people')
    model.save(tmp_path / 'a.pt')
    config = UniParser.from_pretrained(tmp_path / 'a.pt').config
    assert (config.pretrained, config.backgrounds, config.people) == ('resnet18.pth', '', '')
    assert b'/home/someone' not in (tmp_path / 'a.pt').read_bytes() and b'/data/people' not in (tmp_path / 'a.pt').read_bytes()


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


@pytest.mark.parametrize('name, value, message', [
    ('layer1.0.conv1.weight', float('nan'), 'NaN or infinite'), ('bn1.running_var', -1.0, 'negative variances')])
def test_weights_to_start_from_are_checked_too(tmp_path, name, value, message):
    """Those of a backbone, which need not be whole."""
    backbone = tiny_model().backbone
    start = {key: tensor for key, tensor in backbone.state_dict().items() if 'layer4' not in key}
    torch.save(start, tmp_path / 'a.pt')
    assert backbone.load_imagenet(tmp_path / 'a.pt') == 3
    before = backbone.state_dict()[name].clone()
    start[name] = torch.full_like(start[name], value)
    torch.save(start, tmp_path / 'a.pt')
    with pytest.raises(ValueError, match=f'a.pt holds {message}'):
        backbone.load_imagenet(tmp_path / 'a.pt')
    assert torch.equal(backbone.state_dict()[name], before)


def test_a_file_that_may_not_be_read_is_not_called_damaged(checkpoint, monkeypatch):
    """What a permission does to users who are not root."""
    def refuse(*_):
        raise PermissionError(13, 'Permission denied', str(checkpoint))
    monkeypatch.setattr(checkpoints, 'check_pickles', refuse)
    with pytest.raises(ValueError, match=r'model.pt cannot be read .Permission denied.; check the path'):
        UniParser.from_pretrained(checkpoint)


def test_a_pickle_that_runs_code_does_not_run(tmp_path):
    class Payload:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / 'ran'),))
    torch.save(dict(model=Payload()), tmp_path / 'evil.pt')
    with pytest.raises(ValueError, match='not a readable weights file'):
        UniParser.from_pretrained(tmp_path / 'evil.pt')
    assert not (tmp_path / 'ran').exists()

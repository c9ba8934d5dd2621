"""The mean of two models: the ends are the models themselves, the middle is between. python -m
pytest"""

import pytest
import torch

from tests.helpers import call, tiny_model
from tools import mean
from uniparser import UniParser


def test_the_shares_are_those_of_each_model():
    first, second = tiny_model(seed=0), tiny_model(seed=1)
    a, b = first.state_dict(), second.state_dict()
    for share in (0.0, 0.25, 1.0):
        found = mean.mean_weights(first, second, share)
        for name, value in found.items():
            if value.is_floating_point():
                torch.testing.assert_close(value, (1 - share) * a[name] + share * b[name])
            else:
                assert torch.equal(value, b[name])


def test_the_command_writes_a_model(tmp_path):
    first, second = tiny_model(seed=0), tiny_model(seed=1, theta_center=0.2)
    first.save(tmp_path / 'a.pt'), second.save(tmp_path / 'b.pt')
    done = call(mean, tmp_path / 'a.pt', tmp_path / 'b.pt', '--share', '1', '--out', tmp_path / 'c.pt')
    assert done.returncode == 0, done.stderr
    found = UniParser.from_pretrained(tmp_path / 'c.pt')
    assert found.config.theta_center == 0.2
    assert torch.equal(found.category_builder.k_cate, second.category_builder.k_cate)


@pytest.mark.parametrize('changes, difference', [
    (dict(preset='cihp'), 'have different classes'),
    (dict(channels=12), 'are of different sizes; give two of one architecture'),
    (dict(depth=3), 'are of different sizes'),
    (dict(depth=1), 'are of different sizes')])
def test_models_that_differ_are_both_named(tmp_path, changes, difference):
    tiny_model().save(tmp_path / 'a.pt')
    tiny_model(**changes).save(tmp_path / 'b.pt')
    done = call(mean, 'a.pt', 'b.pt', '--out', 'c.pt', cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith(f'error: a.pt and b.pt {difference}'), done.stderr
    assert not (tmp_path / 'c.pt').exists()


def test_the_output_is_a_weights_file_of_either_form(tmp_path):
    tiny_model().save(tmp_path / 'a.pt')
    for name in 'm.xyz', 'm', 'a.jpg':
        done = call(mean, 'a.pt', 'a.pt', '--out', name, cwd=tmp_path)
        assert done.returncode == 2 and done.stderr == f"error: --out is '{name}'; give a name that ends in .pt or .safetensors\n"
        assert not (tmp_path / name).exists()
    pytest.importorskip('safetensors')
    assert call(mean, 'a.pt', 'a.pt', '--out', 'm.safetensors', cwd=tmp_path).returncode == 0
    first, second = (UniParser.from_pretrained(tmp_path / name).state_dict() for name in ('a.pt', 'm.safetensors'))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_no_file_is_replaced(tmp_path):
    for name in 'a.pt', 'b.pt', 'c.pt':
        tiny_model().save(tmp_path / name)
    before = (tmp_path / 'c.pt').read_bytes()
    done = call(mean, 'a.pt', 'b.pt', '--out', 'c.pt', cwd=tmp_path)
    assert done.returncode == 2 and done.stderr == 'error: c.pt exists; choose another --out\n'
    assert (tmp_path / 'c.pt').read_bytes() == before

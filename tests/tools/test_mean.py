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
    with pytest.raises(ValueError, match='different sizes'):
        mean.mean_weights(first, tiny_model(channels=12), 0.5)


def test_the_command_writes_a_model(tmp_path):
    first, second = tiny_model(seed=0), tiny_model(seed=1, theta_center=0.2)
    first.save(tmp_path / 'a.pt'), second.save(tmp_path / 'b.pt')
    done = call(mean, tmp_path / 'a.pt', tmp_path / 'b.pt', '--share', '1', '--out', tmp_path / 'c.pt')
    assert done.returncode == 0, done.stderr
    found = UniParser.from_pretrained(tmp_path / 'c.pt')
    assert found.config.theta_center == 0.2
    assert torch.equal(found.category_builder.k_cate, second.category_builder.k_cate)
    tiny_model('cihp').save(tmp_path / 'd.pt')
    done = call(mean, tmp_path / 'a.pt', tmp_path / 'd.pt', '--out', tmp_path / 'e.pt')
    assert done.returncode == 2 and 'different classes' in done.stderr

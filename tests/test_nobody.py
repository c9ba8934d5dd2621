"""Where nobody is found, the message names the threshold that held the best candidate back. python -m
pytest"""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import demo
import infer
from infer import advice, held_back
from tests.helpers import call, random_out, tiny_config, tiny_model, write_photo
from uniparser import decode
from util.datasets import CIHP
from util.results import Parsing

OPEN = dict(theta_center=0.0, theta_mask=0.5, theta_person=0.0, theta_score=0.0, theta_part=0.0, theta_paint=0.2)


@pytest.mark.parametrize('assign', ['mixture', 'correlation'])
@pytest.mark.parametrize('name', ['theta_center', 'theta_mask', 'theta_person', 'theta_score', 'theta_part', 'theta_paint'])
def test_lowering_the_named_threshold_below_the_value_finds_somebody(name, assign):
    """One threshold is out of reach: it is named, with the best value; below that value there is a
    person. Enlarging the maps of noise takes away up to a half of their peaks, so for theta_paint
    it is well below."""
    config = tiny_config('ccp', assign=assign, test_short_side=64, long_side=96, **{**OPEN, name: 1.0})
    out = {key: value.detach() for key, value in random_out(1, 64, 96, config).items()}
    size = SimpleNamespace(width=96, height=64)
    assert not len(decode(out, 0, size, config).scores)
    found, value = held_back(out, 0, config)
    assert found == name and 0 < value <= 1
    assert len(decode(out, 0, size, replace(config, **{name: (0.5 if name == 'theta_paint' else 0.98) * value})).scores)
    assert f'--{name.replace("_", "-")} asks for more than 1' in advice(out, 0, config)


def test_people_without_a_part_in_the_label_set_were_found(tmp_path, monkeypatch):
    """ATR has no skin of the torso: no threshold brings such a person back."""
    write_photo(tmp_path / 'a.jpg')
    tiny_model('cihp', test_short_side=64, long_side=96, theta_center=1.0).save(tmp_path / 'tiny.pt')
    command = infer, tmp_path / 'a.jpg', '--weights', tmp_path / 'tiny.pt', '--device', 'cpu', '--out', tmp_path / 'out', '--labels', 'atr'
    nobody = call(*command).stdout
    assert 'a.jpg: found no person; the best candidate has ' in nobody

    def one_torso(*_):
        parsing = np.zeros((1, 40, 60), np.uint8)
        parsing[0, 10:20, 10:20] = CIHP.class_names.index('torso-skin')
        return Parsing(parsing, np.ones(1), np.ones((1, 2)))

    monkeypatch.setattr(infer, 'decode', one_torso)
    assert 'a.jpg: found no person; the people in it have no part in the label set atr\n' in call(*command).stdout
    assert 'a.jpg: found no person with hair\n' in call(*command, '--only', 'hair').stdout


def test_the_page_names_the_threshold(tmp_path):
    """In the words of the command."""
    write_photo(tmp_path / 'a.jpg')
    tiny_model('cihp', test_short_side=64, long_side=96, theta_center=1.0).save(tmp_path / 'tiny.pt')
    done = call(infer, tmp_path / 'a.jpg', '--weights', tmp_path / 'tiny.pt', '--device', 'cpu', '--out', tmp_path / 'out')
    sentence = done.stdout.split('a.jpg: ')[1].split('\n')[0]
    options = SimpleNamespace(out=tmp_path / 'page', only=None, maps=False, max_size=None, labels=None, theta_score=0.0)
    pipeline = demo.choose_pipeline(demo.load(str(tmp_path / 'tiny.pt'), 'cpu'), options)
    picture, _, _ = demo.parse_photo(pipeline, str(tmp_path / 'a.jpg'), lambda share, desc: None)
    assert f'<p class="about">{sentence}</p>' in picture and 'where --theta-center asks for more than 1' in sentence


def test_the_command_names_the_threshold(tmp_path):
    write_photo(tmp_path / 'a.jpg')
    tiny_model('cihp', test_short_side=64, long_side=96, theta_center=1.0).save(tmp_path / 'tiny.pt')
    done = call(infer, tmp_path / 'a.jpg', '--weights', tmp_path / 'tiny.pt', '--device', 'cpu', '--out', tmp_path / 'out')
    assert done.returncode == 0
    assert 'a.jpg: found no person; the best candidate has ' in done.stderr + done.stdout
    assert 'where --theta-center asks for more than 1' in done.stderr + done.stdout

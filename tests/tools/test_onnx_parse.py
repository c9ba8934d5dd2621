"""Parsing without torch.

Claimed: the decoding in numpy gives the labels of `predict`, with every setting; with onnxruntime, and without torch,
torchvision, scipy and tqdm, a photo of any size gets the files that infer.py writes; bad files get one sentence.
"""
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import infer
from data import MEAN, STD
from tests.helpers import HERE, call, run, tiny_model, write_photo
from tools import export, onnx_parse
from uniparser import INFERENCE

STREET = HERE / 'assets' / 'street.jpg'
LOW = dict(theta_center=0.0, theta_part=0.1, theta_mask=0.45, theta_same=1.0, max_people=4, test_short_side=64, channels=16)


def drawn_photo(seed, size):
    """Large blots of random colors."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (7, 6, 3), np.uint8)).resize(size, Image.BICUBIC)


class Session:
    """In the place of onnxruntime's: the network that goes into the file."""

    def __init__(self, model):
        self.network = export.Correlations(model.eval())

    @torch.no_grad()
    def run(self, _, inputs):
        return [output.numpy() for output in self.network(torch.from_numpy(inputs['image']))]


def as_onnx(model):
    settings = {name: getattr(model.config, name) for name in INFERENCE}
    settings.update(recipe=model.config.recipe, mean=list(MEAN), std=list(STD), class_names=model.class_names,
                    flip_pairs=model.flip_pairs)
    return onnx_parse.Model(Session(model), SimpleNamespace(**settings))


def test_every_setting_of_inference_is_used():
    code = Path(onnx_parse.__file__).read_text()
    in_the_network = {'peaks', 'max_people', 'flip_test'}
    assert {name for name in INFERENCE if f'settings.{name}' not in code} == in_the_network


@pytest.mark.parametrize('preset, changes', [
    ('mhp', {}),
    ('mhp', dict(theta_same=0.3)),
    ('mhp', dict(assign='mixture', theta_part=0.2, theta_paint=0.3)),
    ('mhp', dict(score='parsing', theta_score=0.32)),
    ('mhp', dict(theta_person=0.105)),
    ('mhp', dict(whole=True, theta_paint=0.6)),
    ('mhp', dict(theta_side=0.3, assign='mixture', theta_part=0.2)),
    ('mhp', dict(theta_side=0.1, whole=True)),
    ('mhp', dict(flip_test=True)),
    ('mhp_released', {}),
    ('mhp_released', dict(light=True)),
    ('mhp_released', dict(assign='mixture', theta_part=0.2, whole=True)),
])
def test_the_decoding_gives_the_labels_of_predict(preset, changes):
    model = tiny_model(preset, **{**LOW, **changes}).eval()
    number = different = 0
    for seed, size in enumerate([(96, 64), (61, 203), (300, 40), (64, 64), (17, 5), (150, 333)]):
        photo = drawn_photo(seed, size)
        ours, theirs = onnx_parse.parse(as_onnx(model), photo), model.predict(photo)[0].visible()
        assert ours.parsing.shape == theirs.parsing.shape and ours.class_names == theirs.class_names
        assert np.abs(ours.scores - theirs.scores).max(initial=0) < 1e-5
        assert np.abs(ours.centers - theirs.centers).max(initial=0) < 1e-3
        number += np.count_nonzero(theirs.parsing)
        different += np.count_nonzero(ours.parsing != theirs.parsing)
    assert number > 1000 and different <= 1e-4 * number      # two correlations may be equal up to rounding


@pytest.fixture(scope='module')
def shipped(tmp_path_factory):
    """The shipped model as an ONNX file."""
    pytest.importorskip('onnxscript')
    pytest.importorskip('onnxruntime')
    path = tmp_path_factory.mktemp('onnx') / 'uniparser.onnx'
    done = call(export, '--out', path)
    assert done.returncode == 0, done.stderr
    return path


WITHOUT = """
import sys
MISSING = {'torch', 'torchvision', 'scipy', 'tqdm'}
class Finder:
    def find_spec(self, name, *_):
        if name.split('.')[0] in MISSING:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Finder())
from tools import onnx_parse
onnx_parse.main(sys.argv[1:])
assert not MISSING & {name.split('.')[0] for name in sys.modules}
"""


def test_photos_get_the_files_of_infer_without_torch(shipped, tmp_path):
    Image.open(STREET).save(tmp_path / 'street.png')
    for name, size in ('small', (331, 500)), ('large', (1003, 1401)), ('wide', (640, 97)):
        Image.open(STREET).resize(size).save(tmp_path / f'{name}.png')
    photos = ['street.png', 'small.png', 'large.png', 'wide.png']
    done = run('python', '-c', WITHOUT, *photos, '--weights', shipped, '--out', 'ours', '--cutouts', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    expected = call(infer, *photos, '--out', 'theirs', '--cutouts', '--device', 'cpu', cwd=tmp_path)
    # infer.py adds why it found nobody.
    lines = [line.split(';')[0] for line in expected.stdout.splitlines()]
    assert done.stdout.replace('ours/', 'theirs/').splitlines() == lines and 'street.png: 4 people' in done.stdout

    names = [sorted(str(path.relative_to(tmp_path / out)) for path in (tmp_path / out).rglob('*.*')) for out in ('ours', 'theirs')]
    assert names[0] == names[1] and len(names[0]) > 20
    for name in names[0]:
        ours, theirs = tmp_path / 'ours' / name, tmp_path / 'theirs' / name
        if name.endswith('.json'):
            ours, theirs = json.loads(ours.read_text()), json.loads(theirs.read_text())
            for a, b in zip(ours.pop('people'), theirs.pop('people'), strict=True):
                assert abs(a.pop('score') - b.pop('score')) < 2e-4
                assert np.abs(np.subtract(a.pop('center'), b.pop('center'))).max() < 0.11      # of one decimal
                assert a == b
            assert ours == theirs
        elif not name.endswith('.html'):                                    # its title is the folder's name
            pictures = np.asarray(Image.open(ours)), np.asarray(Image.open(theirs))
            assert np.array_equal(*pictures), name


def test_one_broken_photo_does_not_stop_the_others(shipped, tmp_path):
    write_photo(tmp_path / 'a.png'), (tmp_path / 'b.png').write_text('x'), write_photo(tmp_path / 'c.png')
    (tmp_path / 'out').mkdir(), write_photo(tmp_path / 'out' / 'c_parts.png')
    done = call(onnx_parse, 'a.png', 'b.png', 'c.png', '--weights', shipped, '--out', 'out', cwd=tmp_path)
    lines = done.stderr.splitlines()
    assert done.returncode == 2 and len(lines) == 3 and lines[2] == 'error: 2 photos were not parsed'
    assert 'b.png cannot be read' in lines[0] and 'c_parts.png exists and this program did not write it' in lines[1]
    assert 'a.png: ' in done.stdout and '1 of 3 photos' in done.stdout and (tmp_path / 'out' / 'a.json').is_file()


def test_bad_files_and_a_missing_package_get_one_sentence(shipped, tmp_path, monkeypatch):
    onnx = pytest.importorskip('onnx')
    write_photo(tmp_path / 'a.png')
    content = shipped.read_bytes()
    (tmp_path / 'text.onnx').write_text('x'), (tmp_path / 'w.pt').write_text('x'), (tmp_path / 'cut.onnx').write_bytes(content[:len(content) // 2])
    other = onnx.load(shipped)
    del other.metadata_props[:]
    onnx.save(other, tmp_path / 'other.onnx')
    for name, sentence in (('none.onnx', 'does not exist'), ('text.onnx', 'cannot be read'), ('cut.onnx', 'cannot be read'),
                           ('other.onnx', 'is not a UniParser file of this version'), ('w.pt', 'is not an ONNX file')):
        done = call(onnx_parse, 'a.png', '--weights', name, '--out', 'out', cwd=tmp_path)
        assert done.returncode == 2 and f'{name} {sentence}' in done.stderr and done.stderr.count('\n') == 1, done.stderr
        assert done.stderr.endswith('write one with python -m tools.export --out uniparser.onnx\n')
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    done = call(onnx_parse, 'a.png', '--weights', shipped, '--out', 'out', cwd=tmp_path)
    assert done.returncode == 2 and 'pip install onnxruntime' in done.stderr and not (tmp_path / 'out').exists()

"""The results of `predict` in Python and as JSON, and torch.hub."""
import contextlib
import copy
import json
import os
import pickle
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import infer
import schp
from tests.helpers import HERE, call, write_photo
from tests.test_docs import DOCS, link_project
from uniparser import UniParser, decode
from util.rle import decode_rle
from util.pictures import palette
from util.results import Parsing

PAGE = DOCS['docs/python.md']
SCHEMA, = [json.loads(block) for block in re.findall(r'```json\n(.*?)```', PAGE, re.S)]


@pytest.fixture
def model(checkpoint):
    return UniParser.from_pretrained(checkpoint).fold()


@pytest.fixture
def result(model, tmp_path):
    write_photo(tmp_path / 'a b.png', size=(90, 60))
    return model.predict(tmp_path / 'a b.png')[0]


def test_photos_are_one_argument_and_no_folder(model, tmp_path):
    with pytest.raises(ValueError, match='is a folder; give its photos one by one'):
        model.predict(tmp_path)
    with pytest.raises(TypeError, match='positional argument'):
        model.predict('a.jpg', 'b.jpg')


# ---- people and parts ------------------------------------------------------------------------------------------


def test_people_and_parts_agree_with_the_arrays(model, result):
    parsing, scores, centers = result.parsing, result.scores, result.centers
    assert len(result) == len(list(result)) == len(result.people) == len(scores) > 1 and result[0] is result.people[0] and result.class_names == model.class_names
    for n, person in enumerate(result.people):
        assert (person.id, person.score, person.center) == (n + 1, float(scores[n]), tuple(centers[n]))
        assert person.mask.dtype == bool and np.array_equal(person.mask, parsing[n] > 0)
        assert person.area == person.mask.sum() == sum(part.area for part in person.parts.values())
        assert {part.id for part in person.parts.values()} == set(np.unique(parsing[n])) - {0}
        for name, part in person.parts.items():
            assert name == part.name == model.class_names[part.id]
            assert part.mask.dtype == bool and np.array_equal(part.mask, parsing[n] == part.id)
            rows, cols = np.nonzero(part.mask)
            assert part.box == [cols.min(), rows.min(), np.ptp(cols) + 1, np.ptp(rows) + 1] and part.area == len(rows)
            assert np.array_equal(decode_rle(part.rle['counts'], 90, 60), part.mask) and part.rle['size'] == [60, 90]
        rows, cols = np.nonzero(person.mask)
        assert person.box == [cols.min(), rows.min(), np.ptp(cols) + 1, np.ptp(rows) + 1]
    assert 'nose' not in result.people[0].parts and 'labels' not in repr(person) + repr(part)


def test_a_result_prints_its_people_and_parts():
    labels = np.zeros((2, 4, 6), np.uint8)
    labels[0, :2] = 2
    labels[1, 2:] = 1
    labels[1, 3:] = 255
    found = Parsing(labels, np.array([0.9, 0.5]), np.zeros((2, 2)), ['background', 'hair', 'coat'])
    assert str(found) == '2 people: hair, coat, part unknown' and repr([found]) == f'[<Parsing: {found}>]'
    assert str(found.take([0])) == '1 person: coat' and str(found.take([])) == 'no people'
    assert [person.id for person in found] == [1, 2] and [person.id for person in found[1:]] == [2]
    assert found.labels.tolist() == [[2] * 6] * 2 + [[1] * 6] + [[0] * 6]


def test_pixels_of_an_unknown_part_have_a_name(result):
    labels = result.parsing.copy()
    labels[0][labels[0] == 6] = 255
    person = replace(result, parsing=labels)[0]
    assert (labels[0] == 255).any() and str(replace(result, parsing=labels)).endswith('part unknown')
    for name in 'part unknown', 'Part-Unknown':
        assert np.array_equal(person.select(name), labels[0] == 255)
    assert np.array_equal(person.parts['part unknown'].mask, labels[0] == 255)
    assert 'part unknown' not in [part['name'] for part in person.to_dict()['parts']]


def test_parts_are_selected_and_cut_out(result):
    absent = result.class_names[6]
    person = replace(result, parsing=np.where(result.parsing == 6, 0, result.parsing))[0]
    first, second = list(person.parts)[:2]
    parts = person.parts
    assert np.array_equal(person.select(first.upper(), second), parts[first].mask | parts[second].mask)
    assert not person.select(absent).any() and not person.select().any()
    assert np.array_equal(person.select(absent, first), parts[first].mask)
    for name in 'nose', 'background', '':
        with pytest.raises(ValueError, match=f"unknown part '{name}'; the parts are head, torso"):
            person.select(first, name)
    for word, similar in ('arms', 'left-arm, right-arm'), ('haed', 'head'):
        with pytest.raises(ValueError, match=rf"unknown part '{word}' \(did you mean {similar}\?\); the parts are head"):
            person.select(word)
    for names, mask in (((), person.mask), ((first,), parts[first].mask)):
        cut = person.crop(*names)
        rows, columns = np.nonzero(mask)
        box = np.s_[rows.min():rows.max() + 1, columns.min():columns.max() + 1]
        assert cut.mode == 'RGBA' and np.array_equal(np.asarray(cut)[..., 3], mask[box] * 255)
        assert np.array_equal(np.asarray(cut)[..., :3], np.asarray(result.photo)[box])
    with pytest.raises(ValueError, match=f'person 1 has no {absent}'):
        person.crop(absent)
    with pytest.raises(ValueError, match='came without a photo'):
        replace(result, photo=None)[0].crop()


def test_a_dictionary_is_what_the_json_file_holds(result, tmp_path):
    result.save(tmp_path)
    assert json.loads((tmp_path / 'a b.json').read_text()) == json.loads(json.dumps(result.to_dict()))
    assert result[0].to_dict() == result.to_dict()['people'][0]
    assert replace(result, path=None).to_dict()['photo'] == 'photo'


def test_people_without_pixels_and_unknown_parts_do_no_harm():
    parsing = np.zeros((2, 4, 6), np.uint8)
    parsing[0, 1:3, 2:5] = 255
    found = Parsing(parsing, np.array([0.5, 0.4]), np.zeros((2, 2)))
    unknown, empty = found.people
    assert unknown.parts['part unknown'].area == unknown.area == 6 and unknown.box == [2, 1, 3, 2]
    assert empty.box == [0, 0, 0, 0] and empty.area == 0 and empty.parts == {} and not empty.mask.any()
    assert len(found.visible().people) == 1 and len(found.take([1, 0]).people) == 2


def test_copies_keep_the_photo_and_the_names(result):
    fewer = result.take([0])
    for other in (fewer, result.visible(), replace(result, scores=result.scores), copy.deepcopy(result),
                  pickle.loads(pickle.dumps(result))):
        assert other.path == result.path and other.class_names == result.class_names and other.photo.size == (90, 60)
        assert [p.area for p in other.people] == [p.area for p in result.people][:len(other.scores)]
    assert len(fewer.people) == 1 and type(fewer) is Parsing and fewer.parsing.shape == (1, 60, 90)


def test_predict_attaches_the_photo_as_it_is_shown(model, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6                                     # turn by 90 degrees
    Image.new('RGB', (80, 50), 'red').save(tmp_path / 'turned.jpg', exif=exif)
    array = np.zeros((50, 80, 3), np.uint8)
    turned, drawn = model.predict([tmp_path / 'turned.jpg', array])
    assert turned.photo.size == (50, 80) and turned.parsing.shape[1:] == (80, 50) and turned.path == tmp_path / 'turned.jpg'
    assert drawn.path is None and drawn.photo.size == (80, 50)
    drawn.save(tmp_path / 'out')
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == [
        'photo.json', 'photo_overlay.jpg', 'photo_parts.png', 'photo_people.png']
    raw = decode(model.outputs(torch.zeros(1, 3, 64, 64)), 0, Image.new('RGB', (64, 64)), model.config, model.fusion)
    assert raw.photo is None and isinstance(raw.people, list)


def test_save_writes_what_infer_writes(checkpoint, result, tmp_path):
    done = call(infer, result.path, '--weights', checkpoint, '--out', tmp_path / 'infer', '--cutouts')
    assert done.returncode == 0, done.stderr
    result.save(tmp_path / 'save', cutouts=True)
    files = {folder: {p.relative_to(tmp_path / folder): p.read_bytes() for p in (tmp_path / folder).rglob('*.*')}
             for folder in ('infer', 'save')}
    assert files['infer'].pop(Path('index.html')) and files['infer'] == files['save'] and len(files['save']) > 6
    picture = np.asarray(result.overlay())
    saved = np.asarray(Image.open(tmp_path / 'save' / 'a b_overlay.jpg'))
    assert saved.shape == picture.shape
    # JPEG keeps the flat colors of the legend.
    assert np.abs(saved[62:].astype(int) - picture[62:]).mean() < 3
    assert (picture[60:] != 255).any() and picture.shape[0] > 60              # a legend below
    result.save(str(tmp_path / 'save'), 'anna')
    assert (tmp_path / 'save' / 'anna.json').exists()
    (tmp_path / 'mine').mkdir(), (tmp_path / 'mine' / 'a b.json').write_text('{}')
    with pytest.raises(ValueError, match='a b.json exists and this program did not write it'):
        result.save(tmp_path / 'mine')


def test_colors_of_the_overlay_are_those_of_the_ids(result):
    """Away from outlines, the overlay is 0.45 of the photo and 0.55 of the color of the class of the topmost person."""
    person = result.take([0])
    picture, photo = np.asarray(person.overlay())[:60].astype(float), np.asarray(result.photo)
    labels = person.parsing[0]
    expected = 0.45 * photo + 0.55 * palette(256)[labels]
    close = np.abs(picture - expected).max(2) < 2
    assert (close | (picture == 255).all(2))[labels > 0].all() and close[labels > 0].mean() > 0.3


# ---- the documents ---------------------------------------------------------------------------------------------


def test_the_snippets_of_the_page_run(tmp_path, monkeypatch):
    link_project(tmp_path)
    hub = torch.hub.load
    monkeypatch.setattr(torch.hub, 'load', lambda repo, *args: hub(str(HERE), *args, source='local'))
    found, (first, second) = {}, re.findall(r'```python\n(.*?)```', PAGE, re.S)
    with contextlib.chdir(tmp_path):
        exec(first, found), exec(second, found)
    result = found['result']
    assert found['pixels'].shape == (640, 480) and found['hair'].area == found['pixels'].sum() > 0
    assert found['person'].score == max(result.scores) and len(result) == len(found['record']['people']) == 4
    assert (tmp_path / 'results' / 'street.json').exists() and (tmp_path / 'results' / 'street_cutouts' / 'person1_hair.png').exists()
    names = [part['name'] for part in json.loads((tmp_path / 'atr' / 'street.json').read_text())['people'][0]['parts']]
    assert 'Hair' in names
    done = call(infer, 'assets/street.jpg', '--out', tmp_path / 'again', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    check_schema(json.loads((tmp_path / 'again' / 'street.json').read_text()), SCHEMA)


def check_schema(value, schema, at='$'):
    """ValueError where a value breaks a JSON Schema made of the words that docs/python.md uses."""
    if '$ref' in schema:
        return check_schema(value, SCHEMA['$defs'][schema['$ref'].removeprefix('#/$defs/')], at)
    kinds = dict(object=dict, array=list, string=str, integer=int, number=(int, float))
    known = {'$schema', '$defs', 'type', 'required', 'additionalProperties', 'properties', 'items', 'minItems', 'maxItems',
             'minimum', 'maximum', 'const', 'description'}
    fails = [not schema.keys() <= known, 'const' in schema and value != schema['const'],
             'type' in schema and not isinstance(value, kinds[schema['type']])]
    if not any(fails) and isinstance(value, dict):
        fails += [not set(schema['required']) <= value.keys(), not value.keys() <= schema['properties'].keys()]
    elif not any(fails) and isinstance(value, list):
        fails += [not schema.get('minItems', 0) <= len(value) <= schema.get('maxItems', len(value))]
    elif not any(fails) and isinstance(value, (int, float)):
        fails += [not schema.get('minimum', value) <= value <= schema.get('maximum', value)]
    if any(fails):
        raise ValueError(f'{at} is {str(value)[:60]}')
    for key, item in value.items() if isinstance(value, dict) else ():
        check_schema(item, schema['properties'][key], f'{at}.{key}')
    for i, item in enumerate(value) if isinstance(value, list) else ():
        check_schema(item, schema['items'], f'{at}[{i}]')


def test_real_results_follow_the_schema(result, model, tmp_path):
    result.save(tmp_path)
    record = json.loads((tmp_path / 'a b.json').read_text())
    check_schema(record, SCHEMA)
    assert record['people'] and record['photo'] == str(result.path)
    result.take([]).save(tmp_path, 'nobody')
    check_schema(json.loads((tmp_path / 'nobody.json').read_text()), SCHEMA)
    for change in (dict(width=0), dict(more=1), dict(people=[{}]), dict(software='another'), dict(photo=None)):
        with pytest.raises(ValueError):
            check_schema({**record, **change}, SCHEMA)
    record['people'][0]['parts'][0]['rle']['counts'] = [1, 2]
    with pytest.raises(ValueError, match=r'people\[0\].parts\[0\].rle.counts'):
        check_schema(record, SCHEMA)


# ---- torch.hub -------------------------------------------------------------------------------------------------

HUB = '''
import sys
{before}
import torch
path = list(sys.path)
model = torch.hub.load({repo!r}, 'uniparser', source='local')
assert sys.path == path and not model.training and model.folded
found = model.predict({photo!r})[0]
print(len(found.people), found.people[0].parts['hair'].area)
found.overlay(), found.save('out', cutouts=True), found.convert('atr').save('out')
{after}
'''
CLASH = '''
import data, util, util.files
assert (data.mine, util.mine, util.files.mine) == (1, 2, 3)
'''


def hub(folder, before='', after=''):
    """The script in a process of its own, started in the folder, with nothing of the project on the path."""
    code = HUB.format(before=before, after=after, repo=str(HERE), photo=str(HERE / 'assets' / 'street.jpg'))
    environment = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    done = subprocess.run([sys.executable, '-c', code], cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    people, hair = map(int, done.stdout.split())
    assert people == 4 and hair > 100 and (folder / 'out' / 'street.json').exists()


def test_hub_loads_the_shipped_model_into_an_empty_folder(tmp_path):
    hub(tmp_path, after='import pickle; assert len(pickle.loads(pickle.dumps(found)).people) == 4\n'
                        'import copy; copy.deepcopy(model)')


def test_hub_leaves_a_programs_own_modules_alone(tmp_path):
    """Those imported before (util), and those imported afterwards (data)."""
    (tmp_path / 'data.py').write_text('mine = 1'), (tmp_path / 'util').mkdir()
    (tmp_path / 'util' / '__init__.py').write_text('mine = 2'), (tmp_path / 'util' / 'files.py').write_text('mine = 3')
    (tmp_path / 'train').mkdir()                         # a folder is no module
    hub(tmp_path, 'import util, util.files', CLASH)


def test_hub_loads_the_neighbors(tmp_path, monkeypatch):
    torch.manual_seed(0)
    network = schp.SCHP([f'part {i}' for i in range(18)], (64, 48), blocks=(1, 1, 1, 1), width=8)
    torch.save({f'module.{k}': v for k, v in network.state_dict().items()}, tmp_path / 'atr.pth')
    model = torch.hub.load(str(HERE), 'schp', str(tmp_path / 'atr.pth'), source='local')
    assert model.class_names[16] == 'Bag' and not model.training
    assert model.predict(Image.new('RGB', (40, 60)))[0].labels.shape == (60, 40)
    model = torch.hub.load(str(HERE), 'oneshot', source='local')
    gray = Image.new('RGB', (40, 60), 'gray')
    found = model.predict(gray, gray, np.ones((60, 40), np.uint8), class_names=['background', 'shirt'])
    assert found.labels.shape == (60, 40) and found.class_names[1] == 'shirt'
    with pytest.raises(FileNotFoundError, match='no.pt does not exist'):
        torch.hub.load(str(HERE), 'oneshot', 'no.pt', source='local')
    with monkeypatch.context() as patch:
        patch.setattr(torch.hub, '_get_cache_or_reload', lambda *args, **options: str(HERE))           # list has no source
        assert torch.hub.list('OWNER/NAME') == ['oneshot', 'schp', 'uniparser']
        assert all('Args:' in torch.hub.help('OWNER/NAME', name) for name in ('uniparser', 'schp', 'oneshot'))

"""Label sets: from one to another.

Claimed: the tables of docs/labels.md are those of the code and reach every class; labels by hand
and by every table; results and metrics in another set are those of the converted people; --list
names the classes of every weights file.
"""
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
import infer
import oneshot
from evaluate import ParsingMetrics, parsing_metrics
from tests.helpers import HERE, call, tiny_model, write_photo
from tests.test_infer import check_pixels
from uniparser import UniParser
from util.datasets import CIHP, MHP, Synthetic, open_dataset
from util.labels import (ATR, KINDS, LIP, SETS, SOURCES, TARGETS, convert, find_set, find_tables, names_of,
                         voc_palette)
from util.masks import CroppedMap
from util.results import Parsing
from util.submissions import ConvertedPredictions, ConvertedSet, PredictionWriter, open_predictions

PAGE = (HERE / 'docs' / 'labels.md').read_text()


def ids(names, *wanted):
    return [list(names).index(name) for name in wanted]


# ---- tables ----------------------------------------------------------------------------------------------------


def test_the_page_shows_the_table():
    rows = [tuple(line.strip('| ').split(' | ')) for line in PAGE.splitlines() if line.count('|') == len(SETS) + 1]
    assert [name.lower() for name in rows[0]] == list(SETS) and tuple(rows[2:]) == KINDS
    sets = dict(re.findall(r'^\| `(\w[\w-]*)` \| (.*) \|$', PAGE, re.M))
    assert {name: tuple(text.split(', ')) for name, text in sets.items()} == {t: tuple(names_of(t)) for t in TARGETS}


@pytest.mark.parametrize('source, target', list(itertools.product(SOURCES, TARGETS)))
def test_every_class_goes_somewhere_and_keeps_its_side(source, target):
    left, right = find_tables(source, target)
    names, others = names_of(source), names_of(target)
    assert len(left) == len(right) == len(names) and left[0] == right[0] == 0 and max(left + right) < len(others)
    for name, a, b in zip(names, left, right):
        side, sided = name.lower().split('-')[0], {others[i].lower().split('-')[0] for i in (a, b)}
        if side in ('left', 'right'):
            assert a == b and (side in sided or not any('Left' in other for other in others)), name
        else:
            assert a == b or sided == {'left', 'right'}, name
    if source == target:
        assert left == right == tuple(range(len(names)))


def test_classes_of_the_same_name_are_the_same_class():
    for source, target in itertools.product(SOURCES, TARGETS):
        others = [name.lower() for name in names_of(target)]
        for name, i in zip(names_of(source), find_tables(source, target)[0]):
            if name.lower() in others and name not in ('coat', 'jacket/windbreaker/hoodie'):
                assert others[i] == name.lower(), (source, target)


def test_atr_neck_is_atr_with_a_neck_of_torso_skin():
    assert names_of('atr-neck') == (*ATR, 'Neck')
    for source, skin in ('mhp', 'torso-skin'), ('cihp', 'Torso-skin'):
        c = names_of(source).index(skin)
        for neck, plain in zip(find_tables(source, 'atr-neck'), find_tables(source, 'atr')):
            assert neck[c] == 18 and plain[c] == 0 and neck[:c] + neck[c + 1:] == plain[:c] + plain[c + 1:]
    for names in LIP, ATR:
        with pytest.raises(ValueError, match='from torso-skin, which is no class of (lip|atr); choose atr'):
            find_set(names, 'atr-neck')


def test_every_class_is_in_the_table():
    for place, name in enumerate(SETS[:4]):
        found = {n.lower() for row in KINDS for n in row[place].split(', ')}
        assert {n.lower() for n in names_of(name)[1:]} <= found, name


def test_sets_are_recognized_by_their_names():
    assert [find_set(names, 'atr') for names in (MHP.class_names, CIHP.class_names, LIP, ATR)] == list(SOURCES)
    with pytest.raises(ValueError, match='no table leads from the classes head, torso'):
        find_set(Synthetic.class_names, 'atr')
    with pytest.raises(ValueError, match="'atri' is unknown; choose one of cihp"):
        find_set(CIHP.class_names, 'atri')


def test_gloves_and_socks_take_the_side_of_the_person():
    glove, socks, left_arm, right_shoe, hair = ids(CIHP.class_names, 'glove', 'socks', 'left-arm', 'right-shoe', 'hair')
    person = np.zeros((40, 30), np.uint8)
    person[2:4], person[5:9, 20:22], person[9:11, 20:22] = hair, left_arm, glove
    person[30:34, 5:8], person[34:36, 5:8], person[20, 0] = socks, right_shoe, 255
    out = convert(person, 'cihp', 'atr')
    names = {c: ATR[c] for c in np.unique(out) if c < 255}
    assert [names[out[y, x]] for y, x in ((2, 0), (6, 20), (10, 21), (31, 6), (35, 6))] == [
        'Hair', 'Left-arm', 'Left-arm', 'Right-leg', 'Right-shoe'] and out[20, 0] == 255 and out.dtype == np.uint8
    assert set(np.unique(convert(np.where(np.isin(person, (glove, hair)), person, 0).astype(np.uint8), 'cihp', 'atr'))) == {0, 2}
    for name in ('lip', 'merged', 'pascal'):                                # no side is asked for
        assert (convert(person, 'cihp', name) > 0).sum() == (person > 0).sum()
    with pytest.raises(ValueError, match='label 20'):
        convert(np.full((2, 2), 20, np.uint8), 'cihp', 'atr')


def test_a_mirrored_person_is_converted_to_the_mirror_image():
    rng = np.random.default_rng(0)
    swap = np.arange(256, dtype=np.uint8)
    for left, right in CIHP.flip_pairs:
        swap[[left, right]] = right, left
    person = np.kron(rng.integers(0, 20, (9, 7)), np.ones((5, 5), int)).astype(np.uint8)
    there = convert(person, 'cihp', 'lip')
    assert np.array_equal(convert(swap[person[:, ::-1]], 'cihp', 'lip'), swap[there[:, ::-1]])        # LIP's pairs are CIHP's


# ---- infer.py --------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def cihp(tmp_path_factory):
    """Random weights in CIHP's classes that find somebody everywhere."""
    path = tmp_path_factory.mktemp('weights') / 'cihp.pt'
    model = tiny_model('cihp', theta_center=0.0, theta_part=0.0, theta_mask=0.1, theta_same=1.0, max_people=4,
                       test_short_side=48)
    model.class_names = list(CIHP.class_names)
    model.save(path)
    return path


@pytest.mark.parametrize('labels', TARGETS)
def test_results_in_another_set_agree_with_each_other(cihp, tmp_path, labels):
    write_photo(tmp_path / 'a.png')
    done = call(infer, tmp_path / 'a.png', '--weights', cihp, '--out', tmp_path / 'out', '--labels', labels, '--cutouts')
    assert done.returncode == 0, done.stderr
    record, names = json.loads((tmp_path / 'out' / 'a.json').read_text()), names_of(labels)
    check_pixels(tmp_path / 'out', 'a', record, names)
    parts = Image.open(tmp_path / 'out' / 'a_parts.png')
    assert np.array_equal(np.reshape(parts.getpalette(), (-1, 3))[:len(names)], voc_palette()[:len(names)])
    found = UniParser.from_pretrained(cihp).fold().predict(tmp_path / 'a.png')[0].convert(labels)
    assert [p['area'] for p in record['people']] == [p.area for p in found.people] and len(found.people)
    ids = {part['id'] for person in record['people'] for part in person['parts']}
    assert ids and max(ids) < len(names)


def test_only_takes_names_of_the_chosen_set(cihp, tmp_path):
    write_photo(tmp_path / 'a.png')
    flags = '--weights', cihp, '--out', tmp_path / 'out', '--labels', 'merged', '--cutouts'
    assert call(infer, tmp_path / 'a.png', *flags).returncode == 0
    done = call(infer, tmp_path / 'a.png', *flags, '--only', 'upper-face, Arm')
    assert done.returncode == 0, done.stderr
    assert set(np.unique(np.asarray(Image.open(tmp_path / 'out' / 'a_parts.png')))) - {0} <= {1, 3}
    cut = {path.stem.split('_', 1)[1] for path in (tmp_path / 'out' / 'a_cutouts').glob('person*_*.png')}
    assert cut and cut <= {'Upper-face', 'Arm'}                             # those of the run before are gone
    done = call(infer, tmp_path / 'a.png', *flags, '--only', 'hair')
    assert done.returncode == 2 and "unknown part 'hair'" in done.stderr and 'One-piece' in done.stderr


def test_mistakes_get_one_sentence(cihp, checkpoint, tmp_path):
    write_photo(tmp_path / 'a.png'), (tmp_path / 'text.pt').write_text('no weights')
    torch.save(dict(other=torch.zeros(1)), tmp_path / 'other.pt')
    for arguments, message in (
            (['a.png', '--weights', checkpoint, '--labels', 'atr'], 'no table leads from the classes head'),
            (['a.png', '--weights', cihp, '--labels', 'atr', '--maps'], 'leave out --labels'),
            (['--data', 'synthetic', '--weights', cihp, '--labels', 'atr'], 'no table leads'),
            (['--list', '--weights', 'text.pt'], 'is not a readable weights file'),
            (['--list', '--weights', 'other.pt'], 'is no weights file of UniParser, SCHP or one-shot parsing'),
            (['--list', '--weights', 'no.pt'], 'does not exist'),
            (['--list', '--weights', checkpoint, '--labels', 'lip'], 'no table leads')):
        done = call(infer, *arguments, cwd=tmp_path)
        assert done.returncode == 2 and message in done.stderr and done.stderr.count('\n') == 1, (arguments, done.stderr)


def test_the_classes_of_files_of_all_systems_are_listed(cihp, tmp_path):
    def listed(path, *more):
        done = call(infer, '--list', '--weights', path, *more)
        assert done.returncode == 0, done.stderr
        return [re.split(r'\s{2,}', line.strip()) for line in done.stdout.splitlines()]
    refused = call(infer, 'photo.jpg', '--list', '--weights', cihp)
    assert refused.returncode == 2 and 'leave out the photos' in refused.stderr
    rows = listed(cihp)
    assert [row[-1] for row in rows] == list(CIHP.class_names) and [int(row[0]) for row in rows] == list(range(20))
    rows = listed(cihp, '--labels', 'atr')
    assert rows[4] == ['4', '#000080', 'Upper-clothes', 'upper-clothes, coat']
    assert rows[12][-1] == 'socks, left-leg' and len(rows) == 18
    weights = {'module.fushion.3.weight': torch.zeros(18, 256, 1, 1)}
    torch.save(dict(state_dict=weights), tmp_path / 'atr.pth')
    rows = listed(tmp_path / 'atr.pth')
    assert [row[-1] for row in rows] == list(ATR) and rows[1][1] == '#800000'
    model = oneshot.EOPNet(stem=4, middle=0, channels=16)
    model.save(tmp_path / 'oneshot.pt'), torch.save(model.state_dict(), tmp_path / 'released.pth')
    assert listed(tmp_path / 'oneshot.pt') == listed(tmp_path / 'released.pth')
    assert ['4', 'upper-clothes'] in [[row[0], row[-1]] for row in listed(tmp_path / 'oneshot.pt')]


# ---- evaluate.py -----------------------------------------------------------------------------------------------


class Drawn:
    """Two photos of random people in CIHP's classes, as a data set."""
    class_names, ids, splits, has_truth = CIHP.class_names, ['1', '2'], ('val',), True

    def __init__(self, root=None, split='val'):
        rng = np.random.default_rng(1)
        self.maps = [np.kron(rng.integers(0, 20, (3, 8, 6)), np.ones((6, 6), int)).astype(np.uint8) for _ in self.ids]

    def __len__(self):
        return 2

    def read_parsing(self, i):
        return self.maps[i], np.zeros(self.maps[i].shape[1:], bool)

    def truth(self, i, parsing, ignore):
        return evaluate.GroundTruth(parsing)


def noisy(maps, seed=2):
    rng = np.random.default_rng(seed)
    blocks = np.kron(rng.random((len(maps), 8, 6)) < 0.3, np.ones((6, 6), bool))
    return np.where(blocks, rng.integers(0, 20, maps.shape), maps).astype(np.uint8)


@pytest.mark.parametrize('form', ['instances', 'mhp'])
@pytest.mark.parametrize('labels', TARGETS)
def test_converted_predictions_score_as_if_written_in_that_set(tmp_path, monkeypatch, labels, form):
    """evaluate.py on raw predictions, on converted ones, and the metrics of converted arrays agree."""
    monkeypatch.setitem(evaluate.open_dataset.__globals__['DATASETS'], 'Drawn', Drawn)
    dataset, pairs = Drawn(), []
    with PredictionWriter(tmp_path / 'raw', form) as a, PredictionWriter(tmp_path / 'own', form) as b:
        for i, name in enumerate(dataset.ids):
            people, scores = noisy(dataset.maps[i]), [0.9, 0.5, 0.7]
            if form == 'mhp':                            # one class per pixel: as the form shows them
                people *= np.arange(3)[:, None, None] == np.argmax(np.array(scores)[:, None, None] * (people > 0), axis=0)
            converted = np.array([convert(p, 'cihp', labels) for p in people])
            a.add(name, (people, scores)), b.add(name, (converted, scores))
            pairs.append((converted, scores))
    results = []
    for folder, more in (tmp_path / 'raw', ['--predicted-labels', 'cihp']), (tmp_path / 'own', []):
        done = call(evaluate, '--data', 'Drawn', '--root', tmp_path, '--predictions', folder, '--labels', labels, *more,
                    '--workers', '1', '--json', tmp_path / 'm.json', '--per-class')
        assert done.returncode == 0, done.stderr
        results.append(json.loads((tmp_path / 'm.json').read_text()))
    truths = [np.array([convert(p, 'cihp', labels) for p in maps]) for maps in dataset.maps]
    done = call(evaluate, '--data', 'Drawn', '--root', tmp_path, '--predictions', tmp_path / 'raw', '--labels', 'pascal',
                '--workers', '1')
    assert done.returncode == 2 and '--predicted-labels names another set' in done.stderr
    expected = parsing_metrics(pairs, truths, len(names_of(labels)) - 1)
    for result in results:
        assert result['class_names'] == list(names_of(labels))
        for name in ('AP50', 'APvol', 'PCP50', 'PCPvol', 'APrvol', 'APhvol') + (('mIoU',) if form == 'instances' else ()):
            assert result[name] == expected[name], name
    assert 0 < expected['APvol'] < 1


def test_recorded_class_names_decide_how_predictions_are_read(tmp_path, monkeypatch):
    """Predictions in CIHP's classes that are compared in those of LIP: with their names as with --predicted-labels cihp. Any
    other set is refused, and a later run leaves no names behind."""
    monkeypatch.setitem(evaluate.open_dataset.__globals__['DATASETS'], 'Drawn', Drawn)
    dataset = Drawn()

    def write(form, class_names):
        with PredictionWriter(tmp_path / 'p', form) as writer:
            for name, maps in zip(dataset.ids, dataset.maps):
                scores = np.array([0.9, 0.5, 0.7])
                writer.add(name, Parsing(noisy(maps), scores, np.zeros((3, 2)), class_names))

    def score(*flags):
        return call(evaluate, '--data', 'Drawn', '--root', tmp_path, '--predictions', tmp_path / 'p', '--workers', '1', *flags)

    write('instances', ())
    assert not (tmp_path / 'p' / 'classes.json').exists()
    misread = score('--labels', 'lip').stdout
    expected = score('--labels', 'lip', '--predicted-labels', 'cihp').stdout
    assert misread and expected and misread != expected

    write('instances', CIHP.class_names)
    assert score('--labels', 'lip').stdout == expected
    assert score('--labels', 'lip', '--predicted-labels', 'cihp').stdout == expected
    assert score().returncode == 0
    refused = score('--labels', 'lip', '--predicted-labels', 'atr')
    assert refused.returncode == 2 and 'in the classes of cihp, not of atr; leave out' in refused.stderr
    write('instances', names_of('pascal'))
    refused = score('--labels', 'lip')
    assert refused.returncode == 2 and 'p/instances.json: no table leads from the classes Head' in refused.stderr
    refused = score()
    assert refused.returncode == 2 and 'in the classes of pascal, Drawn has those of cihp' in refused.stderr
    (tmp_path / 'p' / 'classes.json').write_text('{"software": "UniParser in pure PyTorch"}')
    refused = score()
    assert refused.returncode == 2 and 'classes.json cannot be read' in refused.stderr

    write('coco-results', names_of('pascal'))
    assert score().returncode == 0 and not (tmp_path / 'p' / 'classes.json').exists()
    (tmp_path / 'p' / 'classes.json').write_text('mine')
    with pytest.raises(ValueError, match='did not write it'):
        PredictionWriter(tmp_path / 'p', 'instances')


def test_the_truth_against_itself_is_perfect_in_any_set(tmp_path):
    dataset = Drawn()
    with PredictionWriter(tmp_path, 'instances') as writer:
        for name, maps in zip(dataset.ids, dataset.maps):
            writer.add(name, (maps, [0.7, 0.8, 0.9]))         # the class map shows the last person on top, as the truth's
    for labels in TARGETS:
        job = evaluate.Job(ConvertedSet(dataset, labels),
                           ConvertedPredictions(open_predictions(tmp_path, None, dataset.ids), 'cihp', labels))
        result = evaluate.evaluate(job).result()
        assert result['AP50'] == result['APvol'] == result['mIoU'] == 1, labels


def test_predictions_in_the_form_of_cihp_are_converted(tmp_path):
    """Without people, AP^r is unknown: parts cannot merge."""
    dataset = Drawn()
    with PredictionWriter(tmp_path, 'cihp') as writer:
        for name, maps in zip(dataset.ids, dataset.maps):
            writer.add(name, (maps, [0.9, 0.8, 0.7]))
    predictions = ConvertedPredictions(open_predictions(tmp_path, None, dataset.ids), 'cihp', 'atr')
    found = predictions.read('1', dataset.maps[0].shape[1:], 17)
    assert found.parts is None and found.humans is None and all(isinstance(m, CroppedMap) for m in found.parsing)
    assert found.semantic.max() <= 17 and predictions.unknown_metrics == ()
    for path in tmp_path.glob('instance_segmentation/*'):
        path.unlink()
    (tmp_path / 'instance_segmentation').rmdir()
    predictions = ConvertedPredictions(open_predictions(tmp_path, None, dataset.ids), 'cihp', 'atr')
    assert set(predictions.unknown_metrics) == {'AP', 'PCP', 'APh', 'APr'}
    assert ParsingMetrics(17).statistics(predictions.read('1', dataset.maps[0].shape[1:], 17), dataset.maps[0] % 18)


def test_a_split_is_predicted_in_another_set_and_evaluated(cihp, tmp_path):
    root = tmp_path / 'LV-MHP-v2'
    for folder in ('list', 'val/parsing_annos'):
        (root / folder).mkdir(parents=True)
    (root / 'list' / 'val.txt').write_text('1\n2\n')
    rng = np.random.default_rng(0)
    for i in (1, 2):
        write_photo(root / 'val' / 'images' / f'{i}.jpg', i)
        labels = np.kron(rng.integers(0, 59, (4, 6)), np.ones((10, 10), int)).astype(np.uint8)
        Image.fromarray(labels).save(root / 'val' / 'parsing_annos' / f'{i}_01_01.png')
    done = call(infer, '--data', 'MHP', '--root', root, '--weights', cihp, '--labels', 'lip', '--out', tmp_path / 'p')
    assert done.returncode == 0, done.stderr
    words = done.stdout.split('evaluate.py ')[1].split()
    assert words[words.index('--labels') + 1] == 'lip'
    done = call(evaluate, *words, '--workers', '1', '--per-class')
    assert done.returncode == 0 and 'Jumpsuits' in done.stdout, done.stderr
    refused = call(evaluate, *words[:words.index('--labels')], '--predictions', tmp_path / 'p')
    assert refused.returncode == 2 and 'in the classes of lip, MHP has those of mhp; compare both in one' in refused.stderr
    done = call(evaluate, '--data', 'synthetic', '--labels', 'lip', '--predictions', tmp_path / 'p')
    assert done.returncode == 2 and 'no table leads from the classes head' in done.stderr
    done = call(evaluate, *words[:words.index('--labels')], '--predicted-labels', 'lip', '--predictions', tmp_path / 'p')
    assert done.returncode == 2 and 'give both' in done.stderr
    assert open_dataset('MHP', root, 'val').class_names == MHP.class_names


def test_the_snippet_of_the_page_runs(tmp_path, monkeypatch):
    code, = re.findall(r'```python\n(.*?)```', PAGE, re.S)
    labels = np.kron(np.arange(20, dtype=np.uint8).reshape(4, 5), np.ones((4, 4), np.uint8))
    monkeypatch.chdir(tmp_path)
    Path('parsing').mkdir()
    Image.fromarray(labels).save('parsing/photo.png')
    exec(code, {})
    assert np.array_equal(np.asarray(Image.open('photo_atr.png')), convert(labels, 'lip', 'atr'))

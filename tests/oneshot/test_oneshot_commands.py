"""oneshot train, evaluate and parse: data sets in their layouts, exact resumption, a table that a
plain loop confirms, results, names, and one sentence for each mistake."""
import json
import os
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from data import input_geometry, network_input
from oneshot import Config, EOPNet, UniParserByExample, episodes, evaluation, load_model
from oneshot import __main__ as commands
from oneshot.data import EpisodePairs, EpisodeSamples, normalize, open_photos
from oneshot.eopnet import screened
from oneshot.parse import read_masks, read_names
from oneshot.prototypes import query_target
from oneshot.training import OneShotTask, learning_rate
from tests.helpers import call, stop_at_step, tiny_model, weights, write_video
from tests.seeded import blobs
from uniparser import UniParser
from util import video
from util.checkpoints import write_checkpoint
from util.rle import decode_rle
from util.metrics import confusion_matrix

COLORS = np.random.default_rng(0).integers(0, 256, (256, 3), np.uint8)
SIZES = dict(stem=4, middle=0, channels=16, high_level=False)
TINY = ['--stem', '4', '--middle', '0', '--channels', '16', '--no-high-level', '--size', '32',
        '--epochs', '2', '--warm-up', '0', '--val-every', '1', '--workers', '0', '--device', 'cpu',
        '--lr', '0.01']
ATR_IDS = 0, 1, 3, 5, 6, 9, 10, 14, 15
EPISODES = [(0, 4, 1), (0, 5, 5), (1, 4, 6), (1, 6, 5), (1, 4, 6), (0, 4, 9)]


def draw(seed, ids, height=45, width=38):
    """A photo whose colors are its labels', and the labels"""
    labels = np.array(ids, np.uint8)[blobs(seed, height, width, len(ids))]
    return COLORS[labels], labels


def write_os(root, name='ATR', ids=ATR_IDS, size=8):
    """A tiny ATR_OS, LIP_OS or CIHP_OS, with a list of test episodes but without pools"""
    folder = root / f'{name}_OS'
    for sub in ('list', 'support', 'trainval_images', 'trainval_classes'):
        (folder / sub).mkdir(parents=True)
    for split, start in (('train', 0), ('test', 100)):
        names = [f'{start + i}_1' for i in range(size)]
        (folder / 'list' / f'meta_{split}_id.txt').write_text('\n'.join(names))
        for i, stem in enumerate(names):
            image, labels = draw(start + i, ids)
            photo = folder / 'trainval_images' / f'{stem}.jpg'
            Image.fromarray(image).save(photo, quality=95)
            Image.fromarray(labels).save(folder / 'trainval_classes' / f'{stem}.png')
    columns = [list(column) for column in zip(*EPISODES)]
    path = folder / 'support' / f'{name.lower()}_meta_test_list.txt'
    path.write_bytes(pickle.dumps(columns))
    return root


@pytest.fixture(scope='module')
def atr(tmp_path_factory):
    return write_os(tmp_path_factory.mktemp('data'))


def small(seed=0, **changes):
    """An EOPNet of random weights that finds people"""
    torch.manual_seed(seed)
    model = EOPNet(**{**SIZES, **changes})
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith(('running_mean', 'bias')):
                value.normal_(0, 0.2)
        model.s1_semantic.bias[1] += 3
    return model.eval()


@pytest.fixture(scope='module')
def eop(tmp_path_factory):
    path = tmp_path_factory.mktemp('weights') / 'eop.pt'
    small().save(path)
    return path


def is_one_sentence(done):
    return done.returncode == 2 and done.stderr.count('\n') == 1


# -------------------------------------------------------------------------------------------------
# Data


def test_photos_are_read_from_the_released_layout(atr):
    photos = open_photos('ATR', atr, 'train', 1)
    image, labels = photos.read(3)
    expected_image, expected_labels = draw(3, ATR_IDS)
    assert len(photos) == 8 and photos.ids[3] == '3_1'
    assert np.array_equal(labels, expected_labels)
    assert np.abs(image.astype(int) - expected_image).mean() < 25
    assert open_photos('ATR', atr / 'ATR_OS', 'test', 1).test_episodes() == EPISODES


def test_pools_are_made_of_the_labels_and_kept(tmp_path):
    photos = open_photos('CIHP', write_os(tmp_path, 'CIHP', (0, 1, 9, 14, 15)), 'train', 2)
    pools = photos.pools
    assert pools['queries'][9] == [0, 1, 2, 3, 4] and pools['supports'][14] == [5, 6, 7]
    assert not pools['queries'][5] and 15 not in pools['queries']
    stored = tmp_path / 'CIHP_OS' / 'support' / 'meta_train_cihp_supports.json'
    assert episodes.read_pools(stored, photos.fold) == pools
    # A pickle of the download goes first.
    released = {c: pool[:1] for c, pool in pools['queries'].items()}
    released.update({c + 19: pool[:1] for c, pool in pools['supports'].items()})
    stored.with_suffix('.pkl').write_bytes(pickle.dumps(released))
    assert open_photos('CIHP', tmp_path, 'train', 2).pools['queries'][9] == [0]
    released[1] = [99]
    stored.with_suffix('.pkl').write_bytes(pickle.dumps(released))
    with pytest.raises(ValueError, match='supports.pkl names photo 99, but the list has 8'):
        open_photos('CIHP', tmp_path, 'train', 2).pools


@pytest.mark.parametrize('way', ['kway', '1way'])
def test_samples_are_a_function_of_seed_epoch_and_index(atr, way):
    config = Config(way=way, size=32, long_side=30)
    photos = open_photos('ATR', atr, 'train', 1)
    samples = EpisodeSamples(EpisodePairs(photos, config), config)
    others = EpisodeSamples(EpisodePairs(photos, config), config)
    one = samples[3, 2]
    again = others[3, 2]
    later = samples[4, 2]
    for name in ('query', 'support', 'query_labels', 'support_labels'):
        assert torch.equal(one[name], again[name])
    assert not torch.equal(one['query'], later['query'])
    assert one['epoch'] == 3 and later['epoch'] == 4
    assert one['query'].shape == (3, 32, 32) and one['support_labels'].shape == (32, 32)
    seen = set()
    for epoch in range(4):
        for i in range(4):
            seen.update(samples[epoch, i]['query_labels'].flatten().tolist())
    # Novel and dropped labels stay, sides are merged.
    assert {1, 3, 5, 14} <= seen and not seen & {10, 13, 15}
    assert (one['classes'] > 0) == (way == '1way') and one['classes'] in photos.fold.base


def test_the_released_recipe_draws_pairs_once(atr):
    photos = open_photos('ATR', atr, 'train', 1)
    released = EpisodePairs(photos, Config(recipe='released'))
    assert released.pairs(0) == released.pairs(5)
    paper = EpisodePairs(photos, Config(recipe='paper'))
    assert paper.pairs(0) != paper.pairs(5)


CCP = os.environ.get('UNIPARSER_CCP')


@pytest.mark.skipif(not CCP, reason='UNIPARSER_CCP names no clone of clothing-co-parsing')
def test_ccp_is_a_one_shot_set():
    photos = open_photos('CCP', CCP, 'test', 1)
    rows = photos.test_episodes()
    assert len(photos) == 100 and len(rows) == 1800
    assert {c for _, _, c in rows} == set(photos.fold.all[1:])
    assert max(q for q, _, _ in rows) <= 50 < min(s for _, s, _ in rows)
    image, labels = photos.read(60)
    assert image.shape[:2] == labels.shape and {0, 5, 13} <= set(np.unique(labels))


# -------------------------------------------------------------------------------------------------
# train


@pytest.mark.parametrize('way, recipe', [('kway', 'paper'), ('1way', 'released')])
def test_resume_equals_uninterrupted(atr, tmp_path, monkeypatch, way, recipe):
    """Stopped in the middle of an epoch and resumed, training gives the same bits, prototypes
    too."""
    start = ['train', '--root', atr, '--way', way[0], '--recipe', recipe, *TINY, '--size', '64']
    assert call(commands, *start, '--out', tmp_path / 'whole').returncode == 0
    stop_at_step(monkeypatch, 3)
    done = call(commands, *start, '--out', tmp_path / 'parts')
    assert done.returncode == 0 and '--resume' in done.stdout, done.stderr
    done = call(commands, 'train', '--resume', tmp_path / 'parts', '--device', 'cpu')
    assert done.returncode == 0 and 'base' in done.stdout.splitlines()[-1], done.stderr
    whole = weights(tmp_path / 'whole')
    parts = weights(tmp_path / 'parts')
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())
    assert whole['prototype'].any()
    novel = list(open_photos('ATR', atr, 'train', 1).fold.novel)
    assert not whole['prototype'][novel].any()               # no training label ever named them
    logs = [(tmp_path / run / 'log.jsonl').read_text().splitlines()[-1]
            for run in ('whole', 'parts')]
    assert logs[0] == logs[1] and 'novel' in logs[0]
    config = EOPNet.from_pretrained(tmp_path / 'whole' / 'last.pt').config
    assert (config.way, config.recipe, config.num_labels) == (way, recipe, 18)


class PhotosStub:
    def test_episodes(self):
        return EPISODES


def task_of(recipe, epochs=40):
    return OneShotTask(Config(recipe=recipe, epochs=epochs), small(), None, PhotosStub())


def test_the_rates_of_the_two_recipes():
    paper = task_of('paper')
    assert paper.learning_rate(0, 5) == 1e-3
    assert paper.learning_rate(100, 5) == pytest.approx(1e-3 * 0.5 ** 0.9)
    assert paper.learning_rate(199, 5) == pytest.approx(1e-3 * 0.005 ** 0.9)
    released = task_of('released')
    rates = [released.learning_rate(5 * epoch, 5) for epoch in range(40)]
    assert rates == [learning_rate(epoch, 40) for epoch in range(40)]
    assert len(set(rates)) == 5


def test_the_released_recipe_forgets_momentum_at_epoch_nine():
    for recipe, kept in (('released', False), ('paper', True)):
        task = task_of(recipe)
        optimizer = task.optimizer()
        optimizer.state[task.model.scaler] = dict(momentum_buffer=torch.ones(()))
        task.end_epoch(7, None)
        assert optimizer.state
        task.end_epoch(8, None)
        assert bool(optimizer.state) == kept


def test_training_starts_from_another_file(atr, eop, tmp_path):
    done = call(commands, 'train', '--root', atr, *TINY, '--epochs', '1', '--lr', '0',
                '--weight-decay', '0', '--pretrained', eop, '--out', tmp_path / 'run')
    assert done.returncode == 0 and 'entries start from it' in done.stdout, done.stderr
    given = EOPNet.from_pretrained(eop).state_dict()
    for name, value in weights(tmp_path / 'run').items():
        if name.endswith('weight') and 'bn' not in name:
            assert torch.equal(value, given[name])


# -------------------------------------------------------------------------------------------------
# Stages of POPNet

POP = ['train', '--system', 'popnet', *[word for word in TINY if word != '--no-high-level']]


@pytest.fixture(scope='module')
def stages(atr, tmp_path_factory):
    """The folder of a run of all stages, and what it printed"""
    folder = tmp_path_factory.mktemp('pop')
    done = call(commands, *POP, '--root', atr, '--out', folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_all_stages_train_one_after_the_other(stages, atr):
    folder, printed = stages
    lines = [line for line in printed.splitlines() if line.startswith('epoch 2: ')]
    assert ['novel' in line for line in lines] == [False, False, True]
    files = [load_model(folder / f'stage{stage}' / 'best.pt', 'cpu') for stage in (1, 2, 3)]
    assert [(m.config.stage, m.config.earlier, m.config.num_labels) for m in files] == [
        (1, (), 2), (2, (1,), 5), (3, (1, 2), 18)]
    # A later file holds the earlier ones unchanged.
    for before, model in zip(files, files[1:]):
        kept = model.previous_stage.state_dict()
        assert all(torch.equal(value, kept[name]) for name, value in before.state_dict().items())
    novel = list(open_photos('ATR', atr, 'train', 1).fold.novel)
    assert files[2].prototype.any() and not files[2].prototype[novel].any()


def test_a_stage_is_the_same_alone(stages, atr, tmp_path):
    """By its own command, and stopped and resumed"""
    folder, _ = stages
    start = [*POP, '--root', atr, '--stage', '2', '--previous', folder / 'stage1' / 'best.pt']
    with pytest.MonkeyPatch.context() as patch:
        stop_at_step(patch, 3)
        done = call(commands, *start, '--out', tmp_path / 'run')
    assert done.returncode == 0 and '--resume' in done.stdout, done.stderr
    done = call(commands, 'train', '--resume', tmp_path / 'run', '--device', 'cpu')
    assert done.returncode == 0, done.stderr
    parts = weights(tmp_path / 'run')
    assert all(torch.equal(value, parts[name])
               for name, value in weights(folder / 'stage2').items())


def test_evaluate_and_parse_read_the_system_off_the_file(stages, atr, photos, tmp_path):
    folder, _ = stages
    for stage, words in ((1, ['person']), (2, ['head', 'legs']), (3, ['skirt (novel)'])):
        done = call(commands, 'evaluate', '--root', atr, '--weights',
                    folder / f'stage{stage}' / 'best.pt', '--agm', '--device', 'cpu', '--json',
                    tmp_path / 'scores.json')
        assert done.returncode == 0 and all(word in done.stdout for word in words), done.stderr
        assert 'NCM' in done.stdout and ('novel mIoU' in done.stdout) == (stage == 3)
        assert json.loads((tmp_path / 'scores.json').read_text())['ncm']['iou']['0'] >= 0
    done = call(commands, *start('--weights', folder / 'stage3' / 'best.pt'), cwd=photos)
    assert done.returncode == 0, done.stderr
    check_results(photos / 'out', 'q0', {2: '2', 7: '7', 9: '9'})


def test_1way_is_the_last_stage_alone(atr, tmp_path):
    done = call(commands, *POP, '--root', atr, '--way', '1', '--epochs', '1', '--out', tmp_path)
    assert done.returncode == 0, done.stderr
    model = load_model(tmp_path / 'stage3' / 'last.pt', 'cpu')
    assert model.config.one_way and not model.previous_stage.config.one_way
    done = call(commands, 'evaluate', '--root', atr, '--way', '1', '--weights',
                tmp_path / 'stage3' / 'last.pt', '--device', 'cpu')
    assert done.returncode == 0 and 'binary IoU' in done.stdout, done.stderr


@pytest.mark.parametrize('change, sentence', [
    (['--stage', '3', '--previous', 1], '--stage 3 needs the stages before it, 1 and 2; --previous '
                                        '{} has 1'),
    (['--stage', '2'], '--stage 2 needs the stages before it, 1; give the file of the last one'),
    (['--stage', '2', '--previous', 2], 'needs the stages before it, 1; --previous {} has 1 and 2'),
    (['--stage', '2', '--previous', 1, '--fold', '2'], '--previous {} is of --fold 1, not 2'),
    (['--stage', '2', '--previous', 1, '--way', '1'], '{} is of --way kway, not 1way'),
    (['--stage', '2', '--previous', 1, '--channels', '32'], '{} is of --channels 16, not 32'),
    (['--stage', '2', '--previous', 'eop'], 'eop.pt is of --system eopnet, not popnet'),
    (['--stage', '2', '--previous', 'no.pt'], 'no.pt does not exist'),
    (['--previous', 1], '--stage all begins without stages'),
    (['--stage', '1', '--batch-size', '1'], '--batch-size 1 with --accumulate 1: POPNet trains'),
    (['--stage', '1', '--no-high-level'], 'POPNet runs these modules'),
    (['--system', 'eopnet', '--stage', '2'], 'only POPNet has stages; add --system popnet')])
def test_wrong_stages_are_one_sentence(stages, atr, eop, tmp_path, change, sentence):
    files = {stage: stages[0] / f'stage{stage}' / 'best.pt' for stage in (1, 2)}
    files['eop'] = eop
    given = [word for word in change if word in files]
    words = [files.get(word, word) for word in change]
    done = call(commands, *POP, '--root', atr, *words, '--out', tmp_path / 'run')
    assert is_one_sentence(done), done.stderr
    assert sentence.format(*[files[word] for word in given]) in done.stderr, done.stderr
    assert not (tmp_path / 'run').exists()


def test_stages_may_be_left_out_to_compare(stages, atr, tmp_path):
    folder, _ = stages
    start = [*POP, '--root', atr, '--stage', '3', '--ablate', '--epochs', '1']
    for name, more, earlier in (('alone', [], ()),
                                ('first', ['--previous', folder / 'stage1' / 'best.pt'], (1,))):
        done = call(commands, *start, *more, '--out', tmp_path / name)
        assert done.returncode == 0, done.stderr
        assert load_model(tmp_path / name / 'last.pt', 'cpu').config.earlier == earlier


# -------------------------------------------------------------------------------------------------
# evaluate


def loop_over_forward(model, photos, way):
    """Confusions {head: (18,18) or, by class, (18,2,2)} as the released evaluation counts them:
    `forward` on whole photos, episode by episode"""
    fold = photos.fold
    num = 2 if way == '1way' else 18
    shape = (18, 2, 2) if way == '1way' else (18, 18)
    counts = {head: np.zeros(shape, int) for head in ('npm', 'agm')}
    for query, support, c in EPISODES:
        images = []
        labels = []
        for i in (query, support):
            image, drawn = photos.read(i)
            images.append(torch.from_numpy(normalize(image))[None])
            labels.append(torch.from_numpy(episodes.merge(drawn, fold))[None])
        classes = torch.tensor([c]) if way == '1way' else fold.all
        with torch.no_grad():
            out = model(*images, labels[1], classes)
        truth = query_target(*labels, classes, num)[0].numpy()
        absent = [i for i in range(1, 18) if i not in fold.all or not (labels[1] == i).any()]
        for head, sums in counts.items():
            found = screened(out, head)[0].numpy()
            if way == 'kway':                # absent classes tie; rounding decides which one wins
                found = np.where(np.isin(found, absent), absent[0], found)
            own = sums[c] if way == '1way' else sums
            own += confusion_matrix(found, truth, num)
    return counts


@pytest.mark.parametrize('way', ['kway', '1way'])
def test_the_table_is_that_of_a_plain_loop(atr, tmp_path, way):
    model = small(1, way=way)
    photos = open_photos('ATR', atr, 'test', 1)
    with torch.no_grad():
        model.prototype[[1, 9, 14]] = torch.randn(3, 16)
    model.save(tmp_path / 'eop.pt')
    done = call(commands, 'evaluate', '--root', atr, '--way', way, '--weights', tmp_path / 'eop.pt',
                '--agm', '--json', tmp_path / 'scores.json', '--device', 'cpu')
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / 'scores.json').read_text())
    names = ['novel', 'base', 'human', 'base_parts', 'human_parts']
    for head, sums in loop_over_forward(model, photos, way).items():
        if way == '1way':
            by_class = {c: sums[c] for c in (1, 5, 6, 9)}
            expected = evaluation.oneway_scores(by_class, photos.fold)
        else:
            expected = evaluation.kway_scores(sums, photos.fold)
        assert len(np.unique([v for v in expected['iou'].values() if v == v])) > 2
        for name in names + ['binary'] * (way == '1way'):
            assert result[head][name] == pytest.approx(expected[name], abs=0.3), (head, name)
            if 'parts' not in name:
                assert f'{result[head][name]:8.1f}' in done.stdout
    assert result['episodes'] == len(EPISODES)
    assert done.stdout.count('(novel)') == 3 and 'without background' in done.stdout


def test_a_list_of_episodes_is_written_and_read(atr, eop, tmp_path):
    listed = tmp_path / 'list.json'
    start = ['evaluate', '--root', atr, '--weights', eop, '--device', 'cpu', '--list']
    assert call(commands, *start, listed).returncode == 0
    assert episodes.read_episodes(listed) == EPISODES
    listed.rename(tmp_path / 'list.txt')                     # whatever its name
    assert episodes.read_episodes(tmp_path / 'list.txt') == EPISODES
    episodes.write_episodes(listed, EPISODES[:2])
    assert ': 2 test episodes' in call(commands, *start, listed).stdout
    for bad in ((0, 99, 1), (0, 1, 3), (0, -1, 1), ('a', 1, 1)):
        episodes.write_episodes(listed, [bad])
        done = call(commands, *start, listed)
        assert done.returncode == 2 and 'list.json has the episode' in done.stderr
        assert 'Traceback' not in done.stderr


def test_a_stopped_count_is_none(atr):
    photos = open_photos('ATR', atr, 'test', 1)
    counts = evaluation.count_pixels(small(), photos, EPISODES, False, stopped=lambda: True)
    assert counts is None


# -------------------------------------------------------------------------------------------------
# parse


@pytest.fixture
def photos(tmp_path):
    """support.png, mask.png of the ids 2, 7 and 9, and queries in a folder"""
    image, labels = draw(1, (0, 2, 7, 9), 60, 44)
    Image.fromarray(image).save(tmp_path / 'support.png')
    Image.fromarray(labels).save(tmp_path / 'mask.png')
    (tmp_path / 'more').mkdir()
    for k in range(2):
        query, _ = draw(k, (0, 2, 7, 9), 50 + k, 40)
        Image.fromarray(query).save(tmp_path / 'more' / f'q{k}.png')
    return tmp_path


def start(*more):
    return ('parse', 'more', '--support', 'support.png', '--support-mask', 'mask.png',
            '--out', 'out', '--device', 'cpu', *more)


def check_results(folder, stem, class_names):
    """Pictures and JSON agree -> the label map, the record."""
    parts = np.asarray(Image.open(folder / f'{stem}_parts.png'))
    people = np.asarray(Image.open(folder / f'{stem}_people.png'))
    record = json.loads((folder / f'{stem}.json').read_text())
    whole = np.zeros_like(parts)
    for person in reversed(record['people']):
        for part in person['parts']:
            mask = decode_rle(part['rle']['counts'], record['width'], record['height'])
            assert part['name'] == class_names[part['id']] and part['area'] == mask.sum()
            whole[mask] = part['id']
    assert np.array_equal(whole, parts) and ((people > 0) == (parts > 0)).all()
    assert Image.open(folder / f'{stem}_parts.png').mode == 'P'
    assert (folder / f'{stem}_overlay.jpg').is_file()
    return parts, record


def test_photos_are_parsed_into_the_classes_of_the_mask(photos, eop):
    done = call(commands, *start('--weights', eop, '--names', 'hair,dress,shoes', '--cutouts'),
                cwd=photos)
    assert done.returncode == 0 and '2 of 2 photos' in done.stdout, done.stderr
    model = EOPNet.from_pretrained(eop)
    names = {2: 'hair', 7: 'dress', 9: 'shoes'}
    support = Image.open(photos / 'support.png')
    mask = np.asarray(Image.open(photos / 'mask.png'))
    for k in range(2):
        query = Image.open(photos / 'more' / f'q{k}.png')
        parts, record = check_results(photos / 'out', f'q{k}', names)
        assert np.array_equal(parts, model.predict(query, support, mask, stored=False).labels)
        person, = record['people']                           # EOP-Net does not separate people
        assert 0.5 < person['score'] <= 1 and (photos / 'out' / f'q{k}_cutouts' / 'person1.png').is_file()
        assert set(np.unique(parts)) - {0} == {part['id'] for part in person['parts']}
    assert any(name in done.stdout for name in names.values())


def test_videos_are_parsed_as_the_photos_of_their_frames(photos, eop, checkpoint):
    pytest.importorskip('av', reason='videos need PyAV: pip install av')
    opened = video.Video(write_video(photos / 'a.mov', codec='png', ticks=range(3)))
    for frame in opened:
        frame.photo.save(photos / 'more' / f'f{frame.number}.png')
    opened.close()
    for file in eop, checkpoint:
        done = call(commands, *start('--weights', file), cwd=photos)
        assert done.returncode == 0, done.stderr
        given = ('parse', 'a.mov', *start('--weights', file, '--no-track')[2:])
        done = call(commands, *given, cwd=photos)
        assert done.returncode == 0 and '1 of 1 video' in done.stdout, done.stderr
        lines = (photos / 'out' / 'a.jsonl').read_text().splitlines()
        for k, line in enumerate(lines):
            record = json.loads((photos / 'out' / f'f{k}.json').read_text())
            assert json.loads(line)['people'] == record['people']
        assert len(lines) == 3
        assert call(commands, *[word for word in given if word != '--no-track'], cwd=photos).returncode == 0
    done = call(commands, *given, '--cutouts', cwd=photos)
    assert done.returncode == 2 and '--cutouts is for photos' in done.stderr


def test_several_supports_are_averaged(photos, eop):
    second, second_mask = draw(7, (0, 2, 7), 33, 50)
    Image.fromarray(second).save(photos / 'second.png')
    Image.fromarray(second_mask).save(photos / 'second_mask.png')
    done = call(commands, 'parse', 'more/q0.png', '--support', 'support.png', 'second.png',
                '--support-mask', 'mask.png', 'second_mask.png', '--weights', eop, '--out', 'out',
                '--device', 'cpu', cwd=photos)
    assert done.returncode == 0, done.stderr
    supports = [Image.open(photos / f'{name}.png') for name in ('support', 'second')]
    masks = [np.asarray(Image.open(photos / 'mask.png')), second_mask]
    query = Image.open(photos / 'more' / 'q0.png')
    expected = EOPNet.from_pretrained(eop).predict(query, supports, masks, stored=False).labels
    parts, _ = check_results(photos / 'out', 'q0', {2: '2', 7: '7', 9: '9'})
    assert np.array_equal(parts, expected)


def test_colors_and_palettes_are_masks(photos):
    labels = np.asarray(Image.open(photos / 'mask.png'))
    paletted = Image.fromarray(labels)
    paletted.putpalette(COLORS.tobytes())
    paletted.save(photos / 'palette.png')
    table = np.zeros((256, 3), np.uint8)
    table[[2, 7, 9, 255]] = (255, 0, 0), (0, 0, 128), (0, 200, 0), (9, 9, 9)
    Image.fromarray(table[labels]).save(photos / 'color.png')
    alpha = np.where(labels == 9, 0, 255).astype(np.uint8)
    Image.fromarray(np.dstack([table[labels], alpha])).save(photos / 'transparent.png')
    Image.fromarray(labels.astype(np.uint16)).save(photos / 'deep.png')
    Image.fromarray(np.stack([labels] * 3, 2)).save(photos / 'gray.png')
    for name in ('mask', 'palette', 'deep', 'gray'):
        maps, classes = read_masks([photos / f'{name}.png'])
        assert np.array_equal(maps[0], labels), name
        assert classes == {2: '2', 7: '7', 9: '9'}, name
    maps, classes = read_masks([photos / 'color.png'])
    assert classes == {1: '#000080', 2: '#00c800', 3: '#ff0000'}
    renamed = np.array([0, 0, 3, 0, 0, 0, 0, 1, 0, 2], np.uint8)
    assert np.array_equal(maps[0], renamed[labels])
    maps, classes = read_masks([photos / 'transparent.png', photos / 'color.png'])
    assert len(classes) == 3 and np.array_equal(maps[0] > 0, (labels > 0) & (labels != 9))


def test_names_come_from_a_list_or_a_file(tmp_path):
    classes = {2: '#00ff00', 4: '#ff0000'}
    path = tmp_path / 'names.json'
    assert read_names('skirt, hat', classes) == ['background', '', 'skirt', '', 'hat']
    assert read_names(None, classes)[4] == '#ff0000'
    for content in (['skirt', 'hat'],
                    ['Background', 'a', 'skirt', 'b', 'hat'],
                    {'2': 'skirt', '4': 'hat', '7': 'c'},
                    {'#00FF00': 'skirt', '#ff0000': 'hat'}):
        path.write_text(json.dumps(content))
        names = read_names(str(path), classes)
        assert [names[i] for i in (2, 4)] == ['skirt', 'hat'], content
    with pytest.raises(ValueError, match='1 names, but the masks have 2 classes: #00ff00, #ff0000'):
        read_names('a', classes)
    for text, sentence in (('{"2": "a"}', 'lacks #ff0000'), ('3', 'holds a int'),
                           ('{', 'names.json cannot be read')):
        path.write_text(text)
        with pytest.raises(ValueError, match=sentence):
            read_names(str(path), classes)


# -------------------------------------------------------------------------------------------------
# UniParser as the feature


def test_prototypes_stand_in_for_k_cate(checkpoint):
    """With K_cate itself as the prototypes, people and parts are UniParser's; what is like none of them is background."""
    model = UniParser.from_pretrained(checkpoint).fold()
    ours = UniParserByExample(UniParser.from_pretrained(checkpoint, whole=True, theta_side=0.3))
    image, _ = draw(3, (0, 1, 2, 3), 60, 80)
    photo = Image.fromarray(image)
    prototypes = torch.zeros(256, model.config.channels)
    prototypes[1:7] = model.category_builder.k_cate
    found = ours.people(ours.outputs(ours.prepare(photo)), photo, prototypes)
    expected = model.predict(photo)[0]
    assert len(expected.scores) and np.array_equal(found.parsing, expected.parsing)
    assert np.array_equal(found.centers, expected.centers)


def test_prototypes_are_mean_features(checkpoint):
    ours = UniParserByExample.from_pretrained(checkpoint)
    image, labels = draw(4, (0, 5, 200), 60, 80)
    photo = Image.fromarray(image)
    means = ours.prototypes(photo, labels)
    features = ours.outputs(network_input(photo, ours.config))['f_cate'][0]
    geometry = input_geometry(photo, ours.config)
    padded, (h, w) = geometry.padded, geometry.size
    canvas = np.zeros(padded, np.uint8)
    canvas[:h, :w] = np.asarray(Image.fromarray(labels).resize((w, h), Image.NEAREST))
    canvas = torch.from_numpy(canvas)[None, None].float()
    reduced = F.interpolate(canvas, features.shape[1:])[0, 0]
    for c in (5, 200):
        assert torch.allclose(means[c], features[:, reduced == c].mean(1), atol=1e-5)
    assert set(means.any(1).nonzero().flatten().tolist()) == {5, 200}
    # Each class is averaged over the supports that have it.
    fewer = np.where(labels == 5, 5, 0).astype(np.uint8)
    both = ours.learn([photo, photo], [labels, fewer])
    assert torch.allclose(both, means, atol=1e-6)


def test_uniparser_parses_and_is_evaluated(photos, atr, checkpoint):
    done = call(commands, *start('--weights', checkpoint, '--names', 'hair,dress,shoes'),
                cwd=photos)
    assert done.returncode == 0, done.stderr
    names = {2: 'hair', 7: 'dress', 9: 'shoes'}
    records = [check_results(photos / 'out', f'q{k}', names)[1] for k in range(2)]
    assert any(len(record['people']) > 1 for record in records)           # people are separated
    for way in ('kway', '1way'):
        done = call(commands, 'evaluate', '--root', atr, '--way', way, '--weights', checkpoint,
                    '--device', 'cpu')
        assert done.returncode == 0 and 'novel mIoU' in done.stdout
        assert ('binary' in done.stdout) == (way == '1way')


# -------------------------------------------------------------------------------------------------
# Mistakes


def spoil(path, case):
    """Makes the mask of a mistake."""
    labels = np.asarray(Image.open(path)).copy()
    if case == 'text':
        path.write_text('no picture')
        return
    if case == 'size':
        labels = labels[:-1]
    if case == 'empty':
        labels[labels != 255] = 0
    if case == 'many':
        labels = np.random.default_rng(0).integers(0, 255, (*labels.shape, 3), np.uint8)
    if case == 'deep':
        labels = labels.astype(np.uint16) * 100
    if case == 'small':
        labels = np.zeros_like(labels)
        labels[1, 1] = 7
    Image.fromarray(labels).save(path, format='JPEG' if case == 'jpeg' else 'PNG')


@pytest.mark.parametrize('case, sentence', [
    ('size', 'mask.png is 44x59 pixels, but support.png is 44x60; a mask has the size of its '
             'photo'),
    ('empty', 'mask.png has no class; label pixels'),
    ('many', 'but there are at most 254 classes'),
    ('deep', 'up to 900, but there are at most 254 classes'),
    ('text', 'mask.png cannot be read'),
    ('jpeg', 'mask.png is a JPEG'),
    ('small', 'too few pixels of 7 at the size of the network; label more')])
def test_wrong_masks_are_one_sentence(photos, eop, case, sentence):
    spoil(photos / 'mask.png', case)
    done = call(commands, *start('--weights', eop), cwd=photos)
    assert is_one_sentence(done) and sentence in done.stderr, done.stderr
    assert not (photos / 'out').exists()


@pytest.mark.parametrize('change, sentence', [
    (('--support-mask',), '1 --support photos and 0 --support-mask files'),
    (('--support', 'support.png', 'support.png'), '2 --support photos and 1 --support-mask'),
    (('--support', 'nothing.png'), 'nothing.png does not exist'),
    (('--names', 'a,b'), '2 names, but the masks have 3'),
    (('--weights', 'nothing.pt'), 'nothing.pt does not exist'),
    (('--weights', 'mask.png'), 'not a readable weights file')])
def test_wrong_arguments_are_one_sentence(photos, eop, change, sentence):
    done = call(commands, *start('--weights', eop), *change, cwd=photos)
    assert is_one_sentence(done) and sentence in done.stderr, done.stderr


def test_an_empty_folder_and_a_broken_photo_are_sentences(photos, eop):
    (photos / 'more' / 'q0.png').write_text('no picture')
    done = call(commands, *start('--weights', eop), cwd=photos)
    assert done.returncode == 2 and 'q0.png cannot be read' in done.stderr
    assert '1 of 2 photos' in done.stdout
    (photos / 'none').mkdir()
    done = call(commands, 'parse', 'none', *start('--weights', eop)[2:], cwd=photos)
    assert done.returncode == 2 and 'a folder without photos' in done.stderr
    assert 'Traceback' not in done.stderr


def test_weights_of_other_systems_are_a_sentence(photos, tmp_path, checkpoint, eop):
    write_checkpoint(tmp_path / 'schp.pt', 'schp', Config(), {'a': torch.zeros(1)})
    tiny_model(fusion='convs').save(tmp_path / 'convs.pt')
    deeplab = {'xception_features.conv1.weight': torch.zeros(4, 3, 3, 3)}
    torch.save(deeplab, tmp_path / 'deeplab.pth')
    for name, sentence in (('schp.pt', 'schp.pt is a file of SCHP'),
                           ('convs.pt', 'one-shot parsing needs cosine and index'),
                           ('deeplab.pth', 'a DeepLab file starts a training instead')):
        done = call(commands, *start('--weights', tmp_path / name), cwd=photos)
        assert done.returncode == 2 and sentence in done.stderr
    with pytest.raises(ValueError, match='of one-shot human parsing'):
        UniParser.from_pretrained(eop)
    with pytest.raises(ValueError, match='is a file of UniParser'):
        EOPNet.from_pretrained(checkpoint)


def test_weights_that_do_not_fit_the_episodes_are_one_sentence(atr, checkpoint, eop):
    for more, sentence in ((['--weights', eop, '--way', '1way'], 'is of --way kway, not 1way'),
                           (['--weights', checkpoint, '--agm'], 'UniParser has no AGM head')):
        done = call(commands, 'evaluate', '--root', atr, '--device', 'cpu', *more)
        assert is_one_sentence(done) and sentence in done.stderr, done.stderr


@pytest.mark.parametrize('change, sentence', [
    (('--root', 'nowhere'), 'nowhere is not a folder'),
    ((), 'give the folder of the unpacked download with --root'),
    (('--root', '.'), 'meta_train_id.txt does not exist'),
    (('--root', 'ATR', '--fold', '3'), '--fold is 3'),
    (('--root', 'ATR', '--stem', '1'), '--stem is 1'),
    (('--root', 'ATR', '--pretrained', 'nothing.pth'), 'nothing.pth')])
def test_wrong_trainings_are_one_sentence(atr, tmp_path, change, sentence):
    (tmp_path / 'ATR').symlink_to(atr)
    done = call(commands, 'train', *TINY, *change, cwd=tmp_path)
    assert done.returncode == 2 and sentence in done.stderr, done.stderr
    assert 'Traceback' not in done.stderr
    assert not (tmp_path / 'runs').exists()

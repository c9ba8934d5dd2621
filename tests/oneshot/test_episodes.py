"""Folds, pools, lists, crops and scores of one-shot parsing are those of the released code."""
import os
import pickle

import numpy as np
import pytest
import torch

from oneshot import data, episodes, evaluation
from oneshot.episodes import FOLDS
from oneshot.prototypes import episode_labels
from tests.seeded import blobs, photo
from util.metrics import confusion_matrix

# -------------------------------------------------------------------------------------------------
# Folds


def test_folds_are_the_released_ones():
    bases = {('atr', 1): '0 1 2 4 9 11 12 14 16', ('atr', 2): '0 2 5 6 7 9 11 12 14',
             ('lip', 1): '0 1 2 5 7 10 13 14 16 18', ('lip', 2): '0 1 2 6 9 12 13 14 16 18',
             ('cihp', 1): '0 1 2 5 7 10 13 14 16 18', ('cihp', 2): '0 2 6 9 10 12 13 14 16 18'}
    for key, base in bases.items():
        assert ' '.join(map(str, FOLDS[key].base)) == base
    for fold in FOLDS.values():
        assert sorted(fold.base + fold.novel) == list(fold.all)
        assert sorted(fold.order) == list(fold.all[1:])
        assert not set(fold.merges) & set(fold.all) and max(fold.all) < fold.num_labels
    assert not set(FOLDS['ccp', 1].novel) & set(FOLDS['ccp', 2].novel)


def test_merged_labels():
    labels = np.array([[0, 14, 15, 17, 19, 3, 255]], np.uint8)
    merged = episodes.merge(labels, FOLDS['cihp', 1])
    assert merged.tolist() == [[0, 14, 14, 16, 18, 3, 255]]   # 3, of no fold, is still a person's
    kept = episode_labels(torch.from_numpy(merged), FOLDS['cihp', 2].base)
    assert kept.tolist() == [[0, 14, 14, 16, 18, 0, 255]]


# -------------------------------------------------------------------------------------------------
# Pools and lists


def presence(number, seed=0, fold=FOLDS['atr', 1]):
    """Photos with nine random labels each"""
    rng = np.random.default_rng(seed)
    photos = []
    for i in range(number):
        ids = rng.choice(fold.num_labels, 9, replace=False).tolist()
        photos.append((f'2500_{i}', {0, *ids}))
    return photos


def test_pools_follow_the_labels():
    fold = FOLDS['atr', 1]
    photos = presence(50)
    pools = episodes.make_pools(photos, fold, split=20)
    for c in fold.all[1:]:
        ids = {c, *(i for i, to in fold.merges.items() if to == c)}
        having = [k for k, (_, labels) in enumerate(photos) if labels & ids]
        assert pools['queries'][c] == [k for k in having if k <= 20]
        assert pools['supports'][c] == [k for k in having if k > 20]


@pytest.mark.parametrize('protocol, form', [(2, list), (4, tuple), (4, np.array),
                                            (4, lambda pool: [np.int64(i) for i in pool])])
def test_pools_are_read_from_pickles_and_json(tmp_path, protocol, form):
    fold = FOLDS['atr', 1]
    pools = episodes.make_pools(presence(50), fold, split=20)
    released = {c: form(pool) for c, pool in pools['queries'].items()}
    released.update({c + 17: form(pool) for c, pool in pools['supports'].items()})
    (tmp_path / 'x.pkl').write_bytes(pickle.dumps(released, protocol))
    assert episodes.read_pools(tmp_path / 'x.pkl', fold) == pools
    episodes.write_pools(tmp_path / 'x.json', pools)
    assert episodes.read_pools(tmp_path / 'x.json', fold) == pools


def read_atr_pools(path):
    return episodes.read_pools(path, FOLDS['atr', 1])


class Evil:
    def __reduce__(self):
        return os.mkdir, ('evil',)


@pytest.mark.parametrize('content', [Evil(), [Evil()], {1: np.array([Evil()])}, {1: print}, [],
                                     {1: [-1]}, {1: 'ab'}, {'a': [1]}, [None]])
def test_pickles_of_anything_else_are_refused(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'x.pkl').write_bytes(pickle.dumps(content))
    for read in (read_atr_pools, episodes.read_episodes):
        with pytest.raises(ValueError, match='x.pkl'):
            read(tmp_path / 'x.pkl')
    assert not (tmp_path / 'evil').exists()


def doubled(value, times=60):
    for _ in range(times):
        value = type(value)((value, value))
    return value


def inside(value):
    """The opcodes of a value."""
    return pickle.dumps(value, 2)[2:-1]


@pytest.mark.parametrize('content, message', [
    (b']r\xff\xff\xff\x07', 'a memory of many places'),       # the list is number 2 ** 27 of it
    (b'}' + inside(doubled(())) + b'K\1s', 'values within values'),        # a key of 2 ** 60 paths
    (inside(doubled([])), 'holds no'),
    (b'cnumpy.core.multiarray\n_reconstruct\n' + inside((0, (10 ** 10,), 'b')) + b'R',
     'without content'),
    (b'cnumpy\nndarray\n' + inside(((10 ** 10,),)) + b'R', 'cannot be read')])
def test_a_small_pickle_takes_neither_memory_nor_time(tmp_path, content, message):
    (tmp_path / 'x.pkl').write_bytes(b'\x80\x02' + content + b'.')
    for read in (read_atr_pools, episodes.read_episodes):
        with pytest.raises(ValueError, match=f'x.pkl .*{message}') as refused:
            read(tmp_path / 'x.pkl')
        assert '\n' not in str(refused.value)


@pytest.mark.parametrize('text', ['', '[]', '{"kind": "pools"}', '{"a":' * 100_000,
                                  '{"kind": "pools", "queries": {"a": [1]}}', '\xff'])
def test_broken_json_is_a_sentence(tmp_path, text):
    (tmp_path / 'x.json').write_bytes(text.encode('latin1'))
    for read in (read_atr_pools, episodes.read_episodes):
        with pytest.raises(ValueError, match='x.json'):
            read(tmp_path / 'x.json')


def test_training_pairs():
    pairs = episodes.kway_pairs(15000)
    supports = {s for _, s, _ in pairs}
    assert [q for q, _, _ in pairs] == list(range(7500)) and len(supports) > 4000
    assert min(supports) >= 7500 and max(supports) < 15000
    assert pairs == episodes.kway_pairs(15000) != episodes.kway_pairs(15000, seed=1)
    fold = FOLDS['atr', 2]
    pools = episodes.make_pools(presence(300, fold=fold), fold, split=150)
    pairs = episodes.oneway_pairs(pools, fold, most=30)
    assert [c for _, _, c in pairs] == [c for c in fold.base[1:] for _ in range(30)]
    for c in fold.base[1:]:
        assert [q for q, _, k in pairs if k == c] == pools['queries'][c][:30]
    assert all(s in pools['supports'][c] for _, s, c in pairs)
    with pytest.raises(ValueError, match='no support photo has class 0|no support'):
        episodes.oneway_pairs({'queries': {2: [0]}, 'supports': {2: []}}, fold)


def test_the_meta_test_list_has_the_released_form(tmp_path):
    fold = FOLDS['atr', 1]
    pools = episodes.make_pools(presence(2706), fold, split=200)
    rows = episodes.meta_test_list(pools, fold)
    assert len(rows) == 1650
    assert len({q for q, _, _ in rows}) == 110 and len({s for _, s, _ in rows}) == 1650
    used = set()
    for k, c in enumerate(fold.order):                        # the released rule, class by class
        part = rows[150 * k:150 * k + 150]
        queries = [i for i in pools['queries'][c] if i not in used][:10]
        supports = [i for i in pools['supports'][c] if i not in used][:150]
        assert part == [(queries[i // 15], supports[i], c) for i in range(150)]
        used.update(queries + supports)
    episodes.write_episodes(tmp_path / 'x.json', rows)
    columns = [list(column) for column in zip(*rows)]
    (tmp_path / 'x.pkl').write_bytes(pickle.dumps(columns))
    assert episodes.read_episodes(tmp_path / 'x.json') == rows
    assert episodes.read_episodes(tmp_path / 'x.pkl') == rows


def test_short_pools_start_over():
    fold = FOLDS['ccp', 2]
    photos = [(i, {c}) for i, c in enumerate(fold.order * 3)]
    pools = episodes.make_pools(photos, fold, split=11)
    rows = episodes.meta_test_list(pools, fold, queries=2, supports=6)
    assert rows[:6] == [(0, 12, 12), (0, 24, 12)] * 3         # one query, two supports
    assert len(rows) == 72
    same = {side: {c: [1, 2] for c in fold.all} for side in pools}
    shared = episodes.meta_test_list(same, fold, 2, 4, reuse=True)
    assert shared[-4:] == [(1, 1, 18), (1, 2, 18), (2, 1, 18), (2, 2, 18)]
    pools['supports'][6] = []
    with pytest.raises(ValueError, match='class 6, dress'):
        episodes.meta_test_list(pools, fold)


# -------------------------------------------------------------------------------------------------
# Photos and labels on their way into the network


def test_the_network_reads_bgr_from_minus_one_to_one():
    image = np.zeros((2, 3, 3), np.uint8)
    image[0, 1] = 255, 51, 0
    x = data.normalize(image)
    assert x.dtype == np.float32 and x.shape == (3, 2, 3)
    np.testing.assert_allclose(x[:, 0, 1], [-1, -0.6, 1], atol=1e-6)
    assert (x[:, 1] == -1).all()


def test_a_flip_swaps_sides():
    pairs = FOLDS['lip', 1].merges.items()
    labels = np.array([[14, 0, 15, 18, 255]], np.uint8)
    image = np.arange(15, dtype=np.uint8).reshape(1, 5, 3)
    mirrored, swapped = data.flip(image, labels, pairs)
    assert swapped.tolist() == [[255, 19, 14, 0, 15]]
    np.testing.assert_array_equal(mirrored[0, 0], [12, 13, 14])
    again, labels_again = data.flip(mirrored, swapped, pairs)
    np.testing.assert_array_equal(again, image)
    np.testing.assert_array_equal(labels_again, labels)


@pytest.mark.parametrize('shape', [(20, 24), (300, 20), (200, 260)])
def test_crops_keep_photo_and_labels_together(shape):
    """A photo whose gray value is its label"""
    rows = np.arange(shape[0])[:, None] // 30 % 8
    columns = np.arange(shape[1]) // 30 % 8
    labels = (rows + 10 * columns).astype(np.uint8)
    image = np.repeat(labels[..., None] + 40, 3, 2)
    sizes = set()
    for seed in range(20):
        crop, cropped = data.scale_and_crop(image, labels, np.random.default_rng(seed), 64)
        assert crop.shape == (64, 64, 3) and cropped.shape == (64, 64)
        padding = cropped == 255
        assert not crop[padding].any() and crop[~padding].all()
        height = (~padding).any(1).sum()
        width = (~padding).any(0).sum()
        assert padding.sum() == 64 * 64 - height * width
        assert not padding[:height, :width].any()
        assert (crop[~padding][:, 0] == cropped[~padding] + 40).mean() > 0.6
        sizes.add((height, width))
    assert len(sizes) > 1 or min(shape) * 0.5 >= 64


def test_augmented_labels_are_merged():
    image = photo(1, 40, 30)
    labels = blobs(1, 40, 30, 20)
    found = set()
    for seed in range(20):
        rng = np.random.default_rng(seed)
        _, augmented = data.augment(image, labels, FOLDS['cihp', 1], rng, 32)
        found.update(np.unique(augmented))
    assert not found & {15, 17, 19}


# -------------------------------------------------------------------------------------------------
# Scores


def test_kway_scores():
    fold = FOLDS['atr', 1]
    rng = np.random.default_rng(0)
    classes = [c for c in fold.all if c != 16]
    truth = rng.choice(classes, (3, 40, 50)).astype(np.uint8)
    found = rng.choice(classes, (3, 40, 50)).astype(np.uint8)
    truth[:, :4] = 255
    counts = sum(confusion_matrix(f, t, 18) for t, f in zip(truth, found))
    scores = evaluation.kway_scores(counts, fold)
    valid = truth != 255
    iou = {}
    for c in classes:
        both = (truth == c) & (found == c)
        either = ((truth == c) | (found == c)) & valid
        iou[c] = 100 * both.sum() / either.sum()
    assert np.isnan(scores['iou'][16])                        # in neither: left out of all means
    assert all(scores['iou'][c] == pytest.approx(value) for c, value in iou.items())
    base = [1, 2, 4, 9, 11, 12, 14]
    assert scores['novel'] == pytest.approx(np.mean([iou[c] for c in (5, 6, 7)]))
    assert scores['base'] == pytest.approx(np.mean([iou[c] for c in (0, *base)]))
    assert scores['base_parts'] == pytest.approx(np.mean([iou[c] for c in base]))
    assert scores['human'] == pytest.approx(np.mean(list(iou.values())))
    assert scores['human_parts'] == pytest.approx(np.mean([iou[c] for c in iou if c]))
    perfect = evaluation.kway_scores(np.diag(np.arange(18)), fold)
    assert perfect['novel'] == perfect['human'] == perfect['base_parts'] == 100


def test_oneway_scores():
    fold = FOLDS['lip', 2]
    rng = np.random.default_rng(1)
    counts = {c: rng.integers(1, 99, (2, 2)) for c in fold.all[1:] if c != 18}
    scores = evaluation.oneway_scores(counts, fold)
    errors = {c: m[0, 1] + m[1, 0] for c, m in counts.items()}
    inside = {c: 100 * m[1, 1] / (m[1, 1] + errors[c]) for c, m in counts.items()}
    outside = np.mean([100 * m[0, 0] / (m[0, 0] + errors[c]) for c, m in counts.items()])
    assert scores['iou'][0] == pytest.approx(outside) and np.isnan(scores['iou'][18])
    assert scores['novel'] == pytest.approx(np.mean([inside[c] for c in (5, 7, 10)]))
    assert scores['human'] == pytest.approx(np.mean([outside, *inside.values()]))
    assert scores['human_parts'] == pytest.approx(np.mean(list(inside.values())))
    total = sum(counts.values())
    wrong = sum(errors.values())
    ious = [total[i, i] / (total[i, i] + wrong) for i in range(2)]
    assert scores['binary'] == pytest.approx(100 * np.mean(ious))

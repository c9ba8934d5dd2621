"""Options of ours that the paper does not have: util/beyond.py, and the program that counts people."""
import math
import os
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import data
from losses import make_loss, uniparser_loss
from tests.helpers import call, random_out, tiny_config, tiny_model, two_people
from tests.test_data import photo, write_ccp
from uniparser import UniParser, correlate, decode, get_config
from util import datasets
from tools import tagged
from tools import count_people
from util.beyond import averaged, balanced_cross_entropy, degrade, mixture, parsing_quality
from util.datasets import open_dataset, swap_sides
from util.files import write_png
from util.images import read_labels
from oneshot.by_uniparser import UniParserByExample

PAIRS = (3, 4), (5, 6)


# ---- inference -------------------------------------------------------------------------------------------------


def detached(out):
    return {k: v.detach() for k, v in out.items()}


def test_averaged_outputs_have_the_mean_logits_and_correlations():
    config = tiny_config()
    out, other = (random_out(2, 32, 48, config, seed) for seed in (0, 1))
    both = averaged(out, other, PAIRS)
    swapped = [0, 1, 3, 2, 5, 4]
    assert torch.allclose(both['heatmap'], (out['heatmap'] + other['heatmap'].flip(3)) / 2)
    for i in range(2):
        q, q_other = (correlate(o['k_cate'], o['f_cate'][i], 'cosine') for o in (out, other))
        mean = (q + q_other[swapped].flip(2)) / 2                              # left and right change places
        assert torch.allclose(correlate(both['k_cate'], both['f_cate'][i], 'cosine'), mean, atol=1e-6)
        k, k_other = out['k_ins'][i][:, 3, 2], other['k_ins'][i][:, 3, -3]
        q, q_other = (correlate(k[None], o['f_ins'][i], 'cosine') for k, o in ((k, out), (k_other, other)))
        found = correlate(both['k_ins'][i][:, 3, 2][None], both['f_ins'][i], 'cosine')
        assert torch.allclose(found, (q + q_other.flip(2)) / 2, atol=1e-6)
    assert torch.allclose(both['f_cate'].norm(dim=1), torch.ones(()), atol=1e-6)


def test_the_mirror_image_gives_the_mirrored_people():
    """With the flip, and only with it, left and right are treated alike."""
    photo = open_dataset('synthetic').read(3)[0]
    same = []
    for flip in True, False:
        model = tiny_model(flip_test=flip, theta_center=0.02, theta_mask=0.2, theta_part=0.1).fold()
        people, mirrored = model.predict([photo, photo[:, ::-1].copy()])
        assert len(people.scores)
        a = {labels.tobytes() for labels in people.parsing}
        b = {swap_sides(labels[:, ::-1], PAIRS).tobytes() for labels in mirrored.parsing}
        same.append(a == b)
    assert same == [True, False]


def test_the_flip_is_refused_with_a_learned_fusion():
    with pytest.raises(ValueError, match='--flip-test'):
        tiny_config(flip_test=True, fusion='convs')


def test_parsing_quality_is_the_mean_over_the_persons_pixels():
    g = torch.Generator().manual_seed(0)
    q_ins, q_cate = torch.rand(3, 5, 7, generator=g), torch.rand(4, 5, 7, generator=g)
    gate = q_ins > 0.5
    gate[2] = False
    found = parsing_quality(gate, q_ins, q_cate)
    for n in range(2):
        values = [(q_ins[n, y, x] * max(q_cate[:, y, x])).item() for y in range(5) for x in range(7) if gate[n, y, x]]
        assert abs(found[n].item() - sum(values) / len(values)) < 1e-6
    assert found[2] == 0


def test_people_are_ranked_by_score():
    config = tiny_config(theta_center=0.3, theta_mask=0.2, theta_part=0.1, theta_same=1.0)
    out, photo = detached(random_out(1, 64, 96, config)), Image.new('RGB', (96, 64))
    plain, ranked = (decode(out, 0, photo, tiny_config(**{**vars(config), 'score': s})) for s in ('center', 'parsing'))
    assert len(plain.scores) == len(ranked.scores) > 2
    assert (np.diff(ranked.scores) <= 0).all() and (ranked.scores > 0).all() and (ranked.scores < 1).all()

    def key(people):
        return sorted(zip(map(tuple, people.centers.tolist()), (p.tobytes() for p in people.parsing)))
    assert key(plain) == key(ranked)                                           # the same people in another order
    middle = float(ranked.scores[1])
    fewer = decode(out, 0, photo, tiny_config(**{**vars(config), 'score': 'parsing', 'theta_score': middle}))
    assert np.array_equal(fewer.scores, ranked.scores[ranked.scores > middle])


def test_the_paint_threshold_is_that_of_the_mask_unless_given():
    out, photo = detached(random_out(1, 64, 96, tiny_config())), Image.new('RGB', (96, 64))
    settings = dict(theta_center=0.3, theta_mask=0.4, theta_part=0.1)
    plain, same, lower = (decode(out, 0, photo, tiny_config(**settings, **more)).parsing
                          for more in ({}, dict(theta_paint=0.4), dict(theta_paint=0.2)))
    assert np.array_equal(plain, same) and np.count_nonzero(lower) > np.count_nonzero(plain)


# ---- training --------------------------------------------------------------------------------------------------


def mixture_by_hand(q, gate, theta):
    """`mixture` pixel by pixel, in probabilities."""
    K, pixels = len(q), [tuple(p) for p in gate.nonzero().tolist()]
    share = [1 / K] * K
    def posterior(p, classes):
        weights = [share[c] * math.exp(q[c][p].item() / 0.1) if c in classes else 0 for c in range(K)]
        return [w / sum(weights) if sum(weights) else 0 for w in weights]
    for _ in range(10):
        found = [posterior(p, range(K)) for p in pixels]
        share = [max(1e-6, sum(f[c] for f in found) / len(pixels)) ** 0.5 for c in range(K)]
    found = [posterior(p, range(K)) for p in pixels]
    best = [max(range(K), key=f.__getitem__) for f in found]
    means = [np.mean([f[c] for f, b in zip(found, best) if b == c] or [0]) for c in range(K)]
    maps = np.zeros(q.shape)
    for p in pixels:
        maps[(slice(None), *p)] = posterior(p, [c for c in range(K) if means[c] > theta])
    return maps, means


def test_mixture_equals_a_loop():
    g = torch.Generator().manual_seed(3)
    q, gate = torch.rand(4, 5, 6, generator=g) - 0.3, torch.rand(5, 6, generator=g) > 0.4
    for theta in 0, 0.5, 0.7, 1:
        maps, means = mixture(q, gate, theta)
        expected = mixture_by_hand(q, gate, theta)
        assert np.allclose(maps, expected[0], atol=1e-5) and np.allclose(means, expected[1], atol=1e-5), theta
    assert not mixture(q, gate, 1)[0].any() and not mixture(q, gate & False, 0)[0].any()


def test_mixture_removes_weak_patches_and_keeps_certain_ones():
    q, gate = torch.full((3, 8, 8), 0.1), torch.ones(8, 8, dtype=torch.bool)
    q[0], q[1, :2, :4], q[2, 7, 7] = 0.5, 0.55, 1.0          # a garment, a patch that is a little closer to another, a shoe
    assert q.argmax(0)[0, 0] == 1 and q.argmax(0)[7, 7] == 2
    labels = mixture(q, gate, 0.3)[0].argmax(0)
    assert not labels[:2, :4].any() and labels[7, 7] == 2


def test_decoding_by_a_mixture(tmp_path):
    """The people stay; where the classes are certain, so do the labels."""
    model = tiny_model('ccp').eval()
    photo = Image.fromarray(open_dataset('synthetic').read(0)[0])
    out = model.outputs(data.network_input(photo, model.config))
    out['f_cate'] = torch.zeros_like(out['f_cate'])
    out['f_cate'][:, 2, :, ::2], out['f_cate'][:, 5, :, 1::2] = 1, 1
    out['k_cate'] = torch.eye(19)[:, :out['f_cate'].shape[1]]
    config = replace(model.config, theta_center=0, theta_mask=0, theta_part=0.2)
    plain, mixed = (decode(out, 0, photo, replace(config, assign=a)) for a in ('correlation', 'mixture'))
    assert len(plain.scores) and set(np.unique(mixed.parsing)) == {0, 3, 6}
    assert np.array_equal(plain.scores, mixed.scores) and np.mean(plain.parsing == mixed.parsing) > 0.95
    with pytest.raises(ValueError, match='--flip-test and --assign mixture are for --fusion index'):
        tiny_config(fusion='multi', assign='mixture')


def test_balanced_cross_entropy_equals_a_loop():
    config = tiny_config(lambda_cross=1.0)
    parsing, ignore = two_people()
    out = random_out(2, 64, 96, config)
    targets = [make_loss(config).make_targets(p, ignore, (16, 24)) for p in (parsing, parsing[:0])]
    maps = [make_loss(config).correlations(out, i, t) for i, t in enumerate(targets)]
    rows, t = [], targets[0]
    for y in range(16):
        for x in range(24):
            labels = t.labels[:, y, x].tolist()
            if max(labels) and 255 not in labels and t.known[y, x]:
                logits = maps[0].q_cate[:, y, x] / 0.1
                rows.append((max(labels), (logits.logsumexp(0) - logits[max(labels) - 1]).item()))
    counts = {c: sum(label == c for label, _ in rows) for c in range(1, 7)}
    weights = [counts[label] ** -0.5 for label, _ in rows]
    expected = sum(w * loss for w, (_, loss) in zip(weights, rows)) / sum(weights)
    q_cates = [m.q_cate for m in maps]
    assert abs(balanced_cross_entropy(q_cates, targets).item() - expected) < 1e-4
    assert len({label for label, _ in rows}) == 3
    assert balanced_cross_entropy(q_cates[1:], targets[1:]) == 0                  # nobody


def test_the_cross_entropy_is_a_term_only_where_its_weight_is_set():
    parsing, ignore = two_people()
    config = tiny_config()
    out = random_out(1, 64, 96, config)
    plain, more = (uniparser_loss(out, [parsing], ignore[None], tiny_config(lambda_cross=w)) for w in (0.0, 0.5))
    assert 'cross' not in plain
    assert torch.allclose(more['total'], plain['total'] + 0.5 * more['cross'])


def test_degrade():
    image = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    assert np.array_equal(degrade(image, 0, np.random.default_rng(1)), image)
    once, again = (degrade(image, 1, np.random.default_rng(1)) for _ in range(2))
    assert np.array_equal(once, again) and once.shape == image.shape and once.dtype == np.uint8
    assert np.ptp(once.astype(int), 2).max() <= 8                              # gray, but for JPEG's rounding
    assert once.mean() < 0.9 * image.mean() and once.std() < image.std()       # darker, blurred


def test_crops_are_as_small_as_told():
    parsing, ignore = (x.numpy() for x in two_people())
    image, sides = np.zeros((64, 96, 3), np.uint8), {0.5: [], 0.2: []}
    for smallest, seen in sides.items():
        for seed in range(200):
            seen.append(data.random_crop(image, parsing, ignore, np.random.default_rng(seed), smallest)[2].shape)
    low, lower = (np.min(seen, 0) / (64, 96) for seen in (sides[0.5], sides[0.2]))
    assert (low >= 0.5 - 0.01).all() and (lower >= 0.2 - 0.01).all() and (lower < 0.25).all()


def test_a_training_starts_from_a_whole_model(tmp_path):
    start = tiny_model(seed=3)
    start.save(tmp_path / 'start.pt')
    model = UniParser(tiny_config(pretrained=str(tmp_path / 'start.pt')))
    model.load_pretrained()
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in start.state_dict().items())
    assert model.config.pretrained_stages == 0
    with pytest.raises(ValueError, match='start.pt does not fit'):
        UniParser(tiny_config(num_classes=7, pretrained=str(tmp_path / 'start.pt'))).load_pretrained()


# ---- splits and counts -----------------------------------------------------------------------------------------


@pytest.mark.skipif('UNIPARSER_CCP' not in os.environ, reason='UNIPARSER_CCP does not name a clone of CCP')
def test_one_half_of_the_validation_people_chooses_and_the_other_reports():
    tune, test, val = (open_dataset('CCP', os.environ['UNIPARSER_CCP'], s + '_photos').ids
                       for s in ('tune', 'test', 'val'))
    assert not set(tune) & set(test) and set(tune) | set(test) == set(val) and len(tune) == len(test) == 50
    scenes = [open_dataset('CCP', os.environ['UNIPARSER_CCP'], s) for s in ('tune', 'test')]
    assert [len(s) for s in scenes] == [100, 100]
    assert np.array_equal(scenes[1].read(7)[0], scenes[1].read(7, seed=5, epoch=9)[0])     # always the same


def test_people_are_matched_best_first():
    ids = np.zeros((10, 40), np.uint8)
    ids[:, :10], ids[:, 10:20], ids[:, 30:] = 1, 2, 255
    def box(a, b):
        mask = np.zeros((10, 40), bool)
        mask[:, a:b] = True
        return mask
    assert count_people.match([box(0, 9), box(0, 10), box(12, 20), box(31, 39), box(20, 30)], ids, 0.5) == (2, 2, 2)
    assert count_people.match([box(5, 20)], ids, 0.5) == (2, 1, 0)
    assert count_people.match([], ids, 0.5) == (2, 0, 0)


def test_counting_people_is_a_command(tmp_path):
    for name in 'images', 'instances':
        (tmp_path / name).mkdir()
    image, parsing, _ = open_dataset('synthetic').read(3)
    Image.fromarray(image).save(tmp_path / 'images' / 'a.png')
    Image.fromarray((parsing > 0).argmax(0).astype(np.uint8)).save(tmp_path / 'instances' / 'a.png')
    tiny_model().save(tmp_path / 'w.pt')
    common = ['--weights', tmp_path / 'w.pt', '--device', 'cpu']
    done = call(count_people, tmp_path / 'images', '--instances', tmp_path / 'instances', *common)
    assert done.returncode == 0 and done.stdout.startswith('1 photos: '), done.stderr
    Image.new('L', image.shape[1::-1], 1).save(tmp_path / 'instances' / 'a.png')       # people wherever one looks
    done = call(count_people, tmp_path / 'images', '--instances', tmp_path / 'instances', *common)
    assert done.returncode == 0 and done.stdout.endswith('none of the other pixels painted\n'), done.stderr
    (tmp_path / 'instances' / 'a.png').unlink()
    done = call(count_people, tmp_path / 'images', '--instances', tmp_path / 'instances', *common)
    assert done.returncode == 2 and 'lacks 1 of 1 files' in done.stderr


# ---- photos with tags ------------------------------------------------------------------------------------------


def write_tagged(root, monkeypatch, tags):
    """A tiny clone of CCP with two more photos, of these tags."""
    from scipy.io import savemat
    write_ccp(root, monkeypatch)
    (root / 'annotations' / 'image-level').mkdir()
    for name, ids in zip(('1001', '1002'), tags):
        photo(root / 'photos' / f'{name}.jpg', 90, 60, 7)
        savemat(root / 'annotations' / 'image-level' / f'{name}.mat', dict(tags=np.array([ids], np.uint8)))


def test_tags_allow_their_classes_and_the_body(tmp_path, monkeypatch):
    write_tagged(tmp_path, monkeypatch, [[0, 2, 13, 17, 42], [14, 53]])                # null, bag, coat, glasses, skirt
    paths = [tmp_path / 'annotations' / 'image-level' / f'{i}.mat' for i in (1001, 1002)]
    allowed = tagged.Tags().read(paths[0])
    names = {datasets.CIHP.class_names[c + 1] for c in np.flatnonzero(allowed)}
    assert names == {'coat', 'sunglasses', 'skirt', *tagged.ALWAYS} and allowed.shape == (19,)
    assert tagged.Tags().read(paths[1]) is None                                        # tights: no class of CIHP


def test_people_of_tagged_photos_join_the_scenes(tmp_path, monkeypatch):
    write_tagged(tmp_path, monkeypatch, [[0], [0]])
    labels = np.zeros((90, 60), np.uint8)
    labels[10:80, 20:40], labels[10:20, 20:40] = 12, 255                               # a skirt, and unknown
    for name in '1001', '1002':
        write_png(tmp_path / 'tagged' / f'{name}.png', Image.fromarray(labels))
    plain, more = (open_dataset('CCP', tmp_path, 'train', long_side=90, samples=60, tagged=folder)
                   for folder in (None, tmp_path / 'tagged'))
    seen = [np.unique(more.read_parsing(i)[0]) for i in range(60)]
    share = np.mean([12 in values for values in seen])
    assert 0.1 < share < 0.7 and not any(12 in np.unique(plain.read_parsing(i)[0]) for i in range(60))
    assert any({12, 255} <= set(values) for values in seen)
    assert all(np.array_equal(a, b) for a, b in zip(more.read(3)[1:], more.read_parsing(3)))
    fixed = open_dataset('CCP', tmp_path, 'val', tagged=tmp_path / 'tagged')
    assert np.array_equal(fixed.read(5)[0], open_dataset('CCP', tmp_path, 'val').read(5)[0])
    write_png(tmp_path / 'tagged' / '1002.png', Image.fromarray(labels[1:]))
    with pytest.raises(ValueError, match='1002.png shows nobody or differs in size from .*1002.jpg'):
        [more.read_parsing(i) for i in range(60)]


def test_a_wrong_folder_of_tagged_photos_is_one_sentence(tmp_path, monkeypatch):
    write_tagged(tmp_path, monkeypatch, [[0], [0]])
    (tmp_path / 'empty').mkdir()
    write_png(tmp_path / 'strange' / 'photo_parts.png', Image.new('L', (60, 90), 1))
    write_png(tmp_path / 'labeled' / '0001.png', Image.new('L', (60, 90), 1))           # has labels of its own
    write_png(tmp_path / 'nobody' / '1001.png', Image.new('L', (60, 90)))
    for name, sentence in dict(missing='missing does not exist; give the folder that tools.tagged wrote', nobody='shows nobody',
                               empty='empty is of no photo with tags', strange='photo_parts.png is of no photo with tags',
                               labeled='0001.png is of no photo with tags').items():
        with pytest.raises((ValueError, FileNotFoundError), match=sentence):
            train = open_dataset('CCP', tmp_path, 'train', long_side=90, samples=60, tagged=tmp_path / name)
            [train.read_parsing(i) for i in range(60)]
    tiny_model('ccp', fusion='convs').save(tmp_path / 'w.pt')
    done = call(tagged, '--root', tmp_path, '--out', tmp_path / 'out', '--weights', tmp_path / 'w.pt')
    assert done.returncode == 2 and 'tags can exclude classes with cosine and index alone' in done.stderr


def test_a_learned_fusion_leaves_out_the_mixture_of_a_preset():
    plain, learned = get_config('ccp'), get_config('ccp', fusion='multi')
    assert (plain.assign, plain.theta_part, plain.theta_paint) == ('mixture', 0.65, 0.45)
    assert (learned.assign, learned.theta_part, learned.theta_paint) == ('correlation', 0.3, 0)
    assert get_config('cihp_released', fusion='multi').theta_part == 0.275


def test_one_shot_parsing_uses_correlations(tmp_path):
    """With one class in the support, posteriors would paint it on all of a person."""
    model = tiny_model('ccp')
    assert model.config.assign == 'mixture'
    taught = UniParserByExample(model).config
    assert (taught.assign, taught.theta_part, taught.theta_paint) == ('correlation', 0.3, 0)


def test_labels_of_tagged_photos_obey_the_tags(tmp_path, monkeypatch):
    write_tagged(tmp_path, monkeypatch, [[0, 14], [0, 41]])                            # dress; skin
    model = tiny_model('ccp')
    torch.nn.init.constant_(model.center_locator.heatmap.bias, 3.0)
    model.save(tmp_path / 'w.pt')
    common = ['--root', tmp_path, '--weights', tmp_path / 'w.pt', '--device', 'cpu', '--theta-mask', '0', '--theta-part', '0']
    found = {}
    for name, score in (('free', 0), ('strict', 1)):
        done = call(tagged, *common, '--out', tmp_path / name, '--confident', score)
        assert done.returncode == 0, done.stderr
        found[name] = done.stdout
    assert '1001.jpg: left out' in found['strict'] and '\n0 of 2 photos labeled' in found['strict']
    labels = [read_labels(path) for path in sorted((tmp_path / 'free').iterdir())]
    assert len(labels) and f'\n{len(labels)} of 2 photos labeled' in found['free']
    body = {datasets.CIHP.class_names.index(name) for name in tagged.ALWAYS}
    assert all(set(np.unique(m)) <= body | {0, 6, 10, 255} and m.any() for m in labels)
    (tmp_path / 'photos' / '1001.jpg').write_bytes(b'broken')
    (tmp_path / 'annotations' / 'image-level' / '1002.mat').write_bytes(b'broken, too')
    done = call(tagged, *common, '--out', tmp_path / 'broken', '--confident', 0)
    assert done.returncode == 2 and '2 photos were not parsed' in done.stderr
    assert '1001.jpg' in done.stderr and '1002.mat' in done.stderr and not list((tmp_path / 'broken').iterdir())


def test_a_tagged_accessory_must_be_found(tmp_path):
    """A person whose gloves the model does not see teaches that gloves are arms."""
    model, labels = SimpleNamespace(config=get_config('ccp'), device=torch.device('cpu')), np.zeros((20, 10), np.uint8)
    labels[:10], labels[10:] = 5, 15
    found = SimpleNamespace(parsing=labels[None], scores=np.array([0.9]), centers=np.zeros((1, 2)))
    args = SimpleNamespace(confident=0.4, certain=0.6, out=tmp_path)
    def kept(names):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tagged, 'decode', lambda *_: found)
            allowed = np.isin(datasets.CIHP.class_names[1:], ['upper-clothes', *names, *tagged.ALWAYS])
            return tagged.LabelPipeline(model, args, {}).label(dict(k_cate=torch.ones(19, 4), geometry=None), allowed)
    assert np.array_equal(kept([]), labels) and kept(['glove']) is None and kept(['skirt']) is None
    assert np.array_equal(kept(['sunglasses']), labels)                # too small to be always seen
    labels[10:12] = 3
    assert np.array_equal(kept(['glove']), labels)


# ---- rare classes and things -----------------------------------------------------------------------------------


def test_people_with_rare_classes_are_drawn_more_often(tmp_path, monkeypatch):
    write_tagged(tmp_path, monkeypatch, [[0], [0]])
    labels = np.zeros((90, 60), np.uint8)
    labels[10:80, 20:40] = 12
    write_png(tmp_path / 'tagged' / '1001.png', Image.fromarray(labels))
    def share(rare):
        scenes = open_dataset('CCP', tmp_path, 'train', long_side=90, samples=150, tagged=tmp_path / 'tagged', rare=rare)
        return scenes.chances, np.mean([12 in scenes.read_parsing(i)[0] for i in range(150)])
    (none, plain), (chances, more) = share(0), share(1)
    assert none is None and more > 1.2 * plain
    n = len(chances)                                                   # one has a share of 1 / n, the others (n - 1) / n
    assert chances[-1] / chances[0] == pytest.approx((n - 1) ** 0.5) and chances.sum() == pytest.approx(1)
    with pytest.raises(ValueError, match='--rare'):
        get_config('ccp', rare=1.5)
    (tmp_path / 'tagged' / '1001.png').write_bytes(b'broken')            # is left to the scene that needs it: --skip-bad
    assert len(open_dataset('CCP', tmp_path, 'train', tagged=tmp_path / 'tagged', rare=1).chances) == n


def test_things_are_nobody(tmp_path, monkeypatch):
    write_ccp(tmp_path, monkeypatch)
    plain, more = (open_dataset('CCP', tmp_path, 'train', long_side=160, samples=30, things=share) for share in (0, 1))
    changed = 0
    for i in range(30):
        (image, parsing, _ignore), (other, hidden, _same) = plain.read(i), more.read(i)
        assert np.array_equal(more.read_parsing(i)[0], hidden) and all(m.any() for m in hidden)
        assert len(hidden) <= len(parsing) and not (hidden.any(0) & ~parsing.any(0)).any()     # they only cover
        changed += np.mean((image != other).any(2))
    assert 0.01 < changed / 30 < 0.6
    fixed = open_dataset('CCP', tmp_path, 'val', things=1, rare=1)
    assert np.array_equal(fixed.read(5)[0], open_dataset('CCP', tmp_path, 'val').read(5)[0])

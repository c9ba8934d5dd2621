"""Try-on: clothing-agnostic masks.

Claimed: the steps are those of a slow loop; garments and the skin beside them are drawn anew, but
never faces, hands, bare feet or other people; every label set with garments gives the same mask.
"""
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage
from scipy.spatial import Delaunay

import infer
from tests.helpers import HERE, call, write_photo
from uniparser import UniParser
from util.agnostic import (BARE, KINDS, WORN, agnostic_mask, check_garments, choose_people, dilate, grow_region, hull,
                           hulls, limb_ends, map_of_person, pick, soften, without_specks)
from util.datasets import CIHP, MHP, Synthetic
from util.labels import LABEL_SETS, convert

NAMES = list(CIHP.class_names)
SETS = {**{name: list(labels.names) for name, labels in LABEL_SETS.items()}, 'mhp': list(MHP.class_names)}
FACE, LEFT, RIGHT = (slice(20, 40), slice(50, 70)), (slice(50, 110), slice(81, 89)), (slice(50, 110), slice(31, 39))
# A person with a face of 20 pixels, 180 pixels tall: name, rows, columns.
BODY = (('hair', 10, 20, 48, 72), ('face', 20, 40, 50, 70), ('torso-skin', 40, 44, 55, 65), ('upper-clothes', 44, 100, 39, 81),
        ('left-arm', 50, 110, 81, 89), ('right-arm', 50, 110, 31, 39), ('pants', 100, 150, 42, 78), ('left-leg', 150, 170, 62, 76),
        ('right-leg', 150, 170, 44, 58), ('left-shoe', 170, 190, 62, 80), ('right-shoe', 170, 190, 40, 58))


def draw(*parts, names=NAMES, size=(200, 120)):
    """Boxes of parts on a label map; names that the set lacks are left out."""
    labels = np.zeros(size, np.uint8)
    lower = [name.lower() for name in names]
    for name, top, bottom, left, right in parts:
        if name in lower:
            labels[top:bottom, left:right] = lower.index(name)
    return labels


def without(*names):
    return [part for part in BODY if part[0] not in names]


def ends_of(labels, kind='overall', names=NAMES):
    return limb_ends(labels, pick(labels, names, {'face'}), names, kind, 180)


# ---- the steps, against slow loops -----------------------------------------------------------------------------


def slow_dilate(mask, radius):
    out = np.zeros_like(mask)
    for y, x in np.argwhere(mask):
        out[max(0, y - radius):y + radius + 1, max(0, x - radius):x + radius + 1] = True
    return out


def slow_parts(mask):
    """The connected parts of a mask, by a walk over its pixels."""
    left, parts = {tuple(p) for p in np.argwhere(mask).tolist()}, []
    while left:
        part, front = set(), [left.pop()]
        while front:
            y, x = front.pop()
            part.add((y, x))
            near = {(y + a, x + b) for a in (-1, 0, 1) for b in (-1, 0, 1)} & left
            left -= near
            front += near
        parts.append(part)
    return parts


def slow_hull(part, shape):
    corners = {(y + a, x + b) for y, x in part for a in (0, 1) for b in (0, 1)}
    inside = Delaunay(sorted(corners))
    return np.array([[inside.find_simplex((y + 0.5, x + 0.5), tol=1e-7) >= 0 for x in range(shape[1])] for y in range(shape[0])])


def slow_blur(mask, size):
    """OpenCV's kernel for this size, pixel by pixel, with the image mirrored about its border pixels."""
    radius, sigma = size // 2, 0.3 * ((size - 1) * 0.5 - 1) + 0.8
    weights = np.exp(-np.arange(-radius, radius + 1) ** 2 / (2 * sigma ** 2))
    kernel = np.outer(weights, weights) / weights.sum() ** 2
    padded = np.pad(mask.astype(float), radius, mode='reflect')
    return np.array([[(padded[y:y + size, x:x + size] * kernel).sum() for x in range(mask.shape[1])] for y in range(mask.shape[0])])


def blots(seed, size=(24, 30)):
    rng = np.random.default_rng(seed)
    return np.kron(rng.random((size[0] // 3, size[1] // 3)) < 0.12, np.ones((3, 3), bool)) | (rng.random(size) < 0.01)


@pytest.mark.parametrize('seed', range(6))
def test_each_step_equals_a_slow_loop(seed):
    mask = blots(seed)
    for radius in 0, 1, 3:
        assert np.array_equal(dilate(mask, radius), slow_dilate(mask, radius))
    parts = slow_parts(mask)
    assert np.array_equal(hulls(mask), np.logical_or.reduce([slow_hull(part, mask.shape) for part in parts]))
    large = [part for part in parts if len(part) >= 0.3 * max(map(len, parts))]
    assert {tuple(p) for p in np.argwhere(without_specks(mask, 0.3)).tolist()} == set().union(*large)
    for size in 1, 3, 7:
        assert np.array_equal(soften(mask, size), slow_blur(mask, size) >= 25 / 255)


def test_hulls_of_a_pixel_a_line_and_nothing():
    for mask in np.ones((1, 1), bool), np.ones((1, 5), bool), np.ones((4, 1), bool):
        assert np.array_equal(hull(mask), mask)
    assert not hulls(np.zeros((3, 3), bool)).any() and not without_specks(np.zeros((3, 3), bool)).any()


@pytest.mark.parametrize('kind', KINDS)
def test_a_mask_is_the_steps_of_a_slow_loop(kind):
    labels, others = draw(*BODY), draw(('hair', 30, 190, 92, 118)) > 0
    ends, face = ends_of(labels, kind), pick(labels, NAMES, {'face'})
    wanted = {c for c, name in enumerate(NAMES) if name in WORN[kind] | BARE[kind]}
    region = np.array([[c in wanted for c in row] for row in labels.tolist()]) & ~ends
    kept = (labels > 0) & ~region
    mask = np.logical_or.reduce([slow_hull(part, labels.shape) for part in slow_parts(slow_dilate(region, 3))])  # 180 / 64
    mask = slow_blur(mask & ~kept & ~others, 7) >= 25 / 255                                                    # 180 / 25
    fixed = ends | face | others
    assert np.array_equal(grow_region(labels, others, NAMES, kind), (mask | region) & ~fixed)                  # 180 / 250


# ---- what is drawn anew ----------------------------------------------------------------------------------------


def test_the_mask_of_a_drawn_person():
    """Each kind holds its garments and skin, and leaves the rest but for a narrow rim."""
    people = draw(*BODY)[None]
    upper, lower, overall = (agnostic_mask(people, NAMES, kind) for kind in KINDS)
    for mask in upper, lower, overall:
        assert mask.dtype == bool and mask.shape == people.shape[1:] and not mask[FACE].any() and not mask[10:20].any()
        assert not mask[:, :20].any() and not mask[:, 100:].any() and not mask[175:].any()
    assert upper[44:100, 39:81].all() and upper[50:88, 31:89].all() and upper[40:44, 55:65].all() and not upper[106:].any()
    assert lower[100:150, 42:78].all() and lower[150:168, 44:76].all() and not lower[:94].any()
    assert overall[44:150, 42:78].all() and overall[150:168, 44:76].all() and overall[50:88, 31:89].all()
    for mask in upper, overall:
        assert not mask[92:110, 81:89].any() and not mask[92:110, 31:39].any()                   # the hands
    assert not lower[50:94, 81:89].any()                                                        # the arms


def test_the_space_between_arms_and_torso_is_drawn_anew():
    arms = ('left-arm', 50, 58, 81, 100), ('left-arm', 50, 110, 92, 100)
    mask = agnostic_mask(draw(*without('left-arm'), *arms)[None], NAMES, 'upper')
    assert mask[60:86, 81:92].all()


def renamed(parts, names):
    """The parts under other names: pairs of words, those of CIHP and those of another set."""
    table = dict(pair.split(': ') for pair in names.split(', '))
    return [(table.get(name, name), *box) for name, *box in parts]


@pytest.mark.parametrize('name', ['lip', 'atr', 'atr-neck', 'merged'])
def test_every_set_with_garments_gives_the_same_mask(name):
    parts = without('torso-skin')
    if name == 'merged':
        parts = renamed(parts, 'hair: upper-face, pants: lower-clothes, left-arm: arm, right-arm: arm, left-leg: leg, '
                               'right-leg: leg, left-shoe: shoe, right-shoe: shoe')
    labels, plain = draw(*parts, names=SETS[name]), draw(*without('torso-skin'))
    assert np.array_equal(labels > 0, plain > 0)
    for kind in KINDS:
        assert np.array_equal(agnostic_mask(labels[None], SETS[name], kind), agnostic_mask(plain[None], NAMES, kind))


@pytest.mark.parametrize('name', ['mhp', 'merged-sep'])
def test_sets_with_hands_keep_these(name):
    """Otherwise the mask is that of estimated hands."""
    names = 'upper-clothes: t-shirt'
    if name == 'merged-sep':
        names = ('hair: upper-face, upper-clothes: upper-body, left-arm: upper-body, right-arm: upper-body, pants: lower-body, '
                 'left-leg: lower-body, right-leg: lower-body, left-shoe: shoe, right-shoe: shoe')
    hands = [('left-hand', 92, 110, 81, 89), ('right-hand', 92, 110, 31, 39)]
    hands += [('hands', *box) for _, *box in hands]
    labels = draw(*renamed(without('torso-skin'), names), *hands, names=SETS[name])
    plain = draw(*without('torso-skin'))
    assert np.array_equal(labels > 0, plain > 0)
    for kind in 'upper', 'overall':
        mask, other = agnostic_mask(labels[None], SETS[name], kind), agnostic_mask(plain[None], NAMES, kind)
        assert (mask & other).sum() / (mask | other).sum() > 0.95 and mask[44:89, 31:89].all()
        assert not mask[92:110, 81:89].any() and not mask[92:110, 31:39].any()


def test_a_converted_person_has_the_mask_of_the_set():
    labels = draw(*without('torso-skin'))
    for name in 'lip', 'atr', 'merged', 'atr-neck':
        there = convert(labels, 'cihp', name)
        for kind in KINDS:
            assert np.array_equal(agnostic_mask(there[None], SETS[name], kind), agnostic_mask(labels[None], NAMES, kind))
    necks = [agnostic_mask(convert(draw(*BODY), 'cihp', name)[None], SETS[name], 'upper')[38:44, 55:65] for name in ('atr', 'atr-neck')]
    assert necks[1][2:].all()


def test_sets_without_garments_get_a_sentence():
    for names in SETS['pascal'], Synthetic.class_names:
        for kind in KINDS:
            with pytest.raises(ValueError, match=f'have no garments, which --agnostic {kind} needs'):
                agnostic_mask(np.zeros((0, 4, 4), np.uint8), list(names), kind)
    with pytest.raises(ValueError, match="'hat' is unknown; choose one of upper, lower, overall"):
        check_garments(NAMES, 'hat')
    with pytest.raises(ValueError, match="person 'best' is unknown; give an id, 'largest' or 'all'"):
        agnostic_mask(np.zeros((1, 4, 4), np.uint8), NAMES, 'upper', 'best')


def test_every_class_of_every_set_is_meant_to_be_there():
    """The names of the tables are classes of a set, and each garment of each set has a kind."""
    known = {name.lower() for names in SETS.values() for name in names}
    assert WORN['overall'] | BARE['overall'] <= known
    left = known - WORN['overall'] - BARE['overall']
    assert not [name for name in left if any(word in name for word in ('cloth', 'dress', 'coat', 'skirt', 'pants', 'arm', 'leg'))
                and name not in ('upper arms', 'lower arms', 'upper legs', 'lower legs')]


# ---- hands and feet --------------------------------------------------------------------------------------------


def test_hands_are_the_ends_of_arms():
    ends = ends_of(draw(*BODY))
    for arm in LEFT, RIGHT:
        assert ends[arm][42:].all() and not ends[arm][:38].any()
    assert ends.sum() == ends[LEFT].sum() + ends[RIGHT].sum()                  # shoes cover the feet
    assert not ends_of(draw(*BODY, ('glove', 100, 110, 81, 89))).any()


def test_a_hand_at_the_chin_is_the_end_of_its_arm():
    """It is nearer to the shoulder than the elbow is, but the way to it is longer."""
    arm = ('left-arm', 50, 90, 81, 89), ('left-arm', 82, 90, 81, 100), ('left-arm', 30, 90, 92, 100)
    ends = ends_of(draw(*without('left-arm'), *arm))
    assert ends[30:48, 92:100].all() and not ends[60:92, 78:105].any()


def test_a_hand_out_of_a_sleeve_is_all_hand():
    arm = ('upper-clothes', 50, 95, 81, 89), ('left-arm', 95, 110, 81, 89)
    assert ends_of(draw(*without('left-arm'), *arm))[95:110, 81:89].all()


def test_a_strap_does_not_become_a_hand():
    """A bag hides the wrist; a stray pixel lies far away."""
    labels = draw(*BODY)
    labels[85:88, 81:89] = 0
    labels[120, 110] = NAMES.index('left-arm')
    ends = ends_of(labels)
    assert ends[92:110, 81:89].all() and not ends[50:85, 81:89].any() and not ends[120, 110]


def test_an_arm_cut_by_the_border_has_no_hand():
    labels = draw(*BODY)[:, :89]
    ends = ends_of(labels)
    assert not ends[:, 81:].any() and ends[RIGHT][42:].all()


def test_bare_feet_are_kept():
    feet = without('left-shoe', 'right-shoe') + [('left-leg', 170, 190, 62, 76), ('right-leg', 170, 190, 44, 58)]
    labels = draw(*feet)
    ends = ends_of(labels, 'lower')
    assert ends[174:190, 62:76].all() and ends[174:190, 44:58].all() and not ends[:168].any()
    assert not agnostic_mask(labels[None], NAMES, 'lower')[176:190, 44:76][:, [0, 13, 18, 31]].any()


def test_a_person_seen_from_behind_has_hands():
    ends = ends_of(draw(*without('face')))
    assert ends[LEFT][42:].all() and not ends[LEFT][:38].any()
    assert not ends_of(draw(('left-arm', 50, 110, 81, 89))).any()             # an arm alone


# ---- people ----------------------------------------------------------------------------------------------------


def group():
    """Three people side by side; the second is the largest, the third covers a part of it."""
    people = np.zeros((3, 200, 300), np.uint8)
    person = draw(*BODY)
    people[0, :100, 0:60] = person[::2, ::2]
    people[2, :, 60:180], people[1, :, 120:240] = person, person
    people[1, 44:100, 160:201] = NAMES.index('coat')
    return people


def test_people_are_chosen_by_their_ids():
    people = group()
    assert choose_people(people, 'all') == [0, 1, 2] and choose_people(people, 2) == [1]
    assert choose_people(people) == [1] and choose_people(people, 4) == [] and choose_people(people[:0]) == []
    assert choose_people(people[[0, 2]]) == [1]
    ids = np.where(people[0] > 0, 1, np.where(people[1] > 0, 2, np.where(people[2] > 0, 3, 0)))
    for k in 1, 2, 3:
        assert np.array_equal(map_of_person(people, k), np.where(ids == k, people[k - 1], 0))
    assert not map_of_person(people, 9).any() and map_of_person(people, 1).dtype == np.uint8
    unknown = people.copy()
    unknown[1, 44:50] = np.where(unknown[1, 44:50] > 0, 255, 0)
    assert not map_of_person(unknown, 2)[44:50].any()


def test_one_person_of_a_group_is_drawn_anew():
    people = group()
    ids = np.where(people[0] > 0, 1, np.where(people[1] > 0, 2, np.where(people[2] > 0, 3, 0)))
    masks = [agnostic_mask(people, NAMES, 'upper', k) for k in (1, 2, 3)]
    for k, mask in enumerate(masks, 1):
        assert mask.any() and not mask[(ids > 0) & (ids != k)].any()
    assert np.array_equal(agnostic_mask(people, NAMES, 'upper', 'all'), np.logical_or.reduce(masks))
    assert np.array_equal(agnostic_mask(people, NAMES, 'upper'), masks[1])
    assert not agnostic_mask(people, NAMES, 'upper', 7).any()
    assert not agnostic_mask(people[:0], NAMES, 'upper').any()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10 ** 6), st.sampled_from(KINDS), st.sampled_from(['cihp', 'atr', 'merged', 'mhp']),
       st.tuples(st.integers(1, 40), st.integers(1, 40)), st.integers(0, 4))
def test_no_pixel_of_anybody_else_is_drawn_anew(seed, kind, name, size, number):
    """And every pixel of a garment of the chosen person is."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(SETS[name]), (number, -(-size[0] // 4), -(-size[1] // 4)))
    labels *= rng.random(labels.shape) < 0.5
    people = np.kron(labels, np.ones((1, 4, 4), int))[:, :size[0], :size[1]].astype(np.uint8)
    people[:, rng.random(size) < 0.02] = 255
    shown = np.zeros(size, int)
    for n in reversed(range(number)):
        shown[people[n] > 0] = n + 1
    for person in (1, number, 'largest'):
        mask = agnostic_mask(people, SETS[name], kind, person)
        chosen = choose_people(people, person)
        assert mask.shape == size and not mask[(shown > 0) & ~np.isin(shown, np.add(chosen, 1))].any()
        for n in chosen:
            garments = pick(people[n], SETS[name], WORN[kind]) & (shown == n + 1)
            assert mask[garments].all()


def test_large_people_have_the_masks_of_small_ones():
    """People of more than 1,024 pixels are worked on at a part of their size."""
    small = draw(*BODY)[None]
    for kind in KINDS:
        large = agnostic_mask(small.repeat(12, 1).repeat(12, 2), NAMES, kind)
        mask = agnostic_mask(small.repeat(4, 1).repeat(4, 2), NAMES, kind)
        both = large[1::3, 1::3]
        assert (both & mask).sum() / (both | mask).sum() > 0.99


def test_pairs_of_kinds_are_disjoint_where_they_should_be():
    assert not WORN['overall'] & BARE['overall']
    for a, b in itertools.combinations(('upper', 'lower'), 2):
        assert WORN[a] & WORN[b] == {'dress', 'jumpsuits', 'one-piece', 'robe', 'other-full-body-clothes'}


# ---- commands --------------------------------------------------------------------------------------------------


def pixels(path, mode):
    with Image.open(path) as image:
        assert image.mode == mode, path
        return np.asarray(image)


def check_files(folder, name, photo, found, kind, person):
    """The files of --agnostic are those of the result object."""
    mask = pixels(folder / f'{name}_mask.png', 'L')
    assert np.array_equal(mask, 255 * found.agnostic(kind, person).astype(np.uint8))
    gray, photo = pixels(folder / f'{name}_agnostic.jpg', 'RGB').astype(int), np.asarray(photo).astype(int)
    inside, outside = ndimage.binary_erosion(mask > 0, iterations=16), ndimage.binary_erosion(mask == 0, iterations=16)
    if inside.any():
        assert abs(gray[inside] - 128).max() < 3
    assert abs(gray - photo)[outside].mean() < 5 and gray.shape == photo.shape
    return mask > 0


@pytest.fixture(scope='module')
def street():
    """The people of assets/street.jpg, found by the shipped weights."""
    return UniParser.from_pretrained(HERE / 'weights' / 'uniparser_ccp.pt').fold().predict(HERE / 'assets' / 'street.jpg')[0]


@pytest.mark.parametrize('kind, person', [('upper', 'largest'), ('lower', 2), ('overall', 'all')])
def test_the_street_photo(street, tmp_path, kind, person):
    done = call(infer, HERE / 'assets' / 'street.jpg', '--out', tmp_path, '--agnostic', kind, '--person', person)
    assert done.returncode == 0, done.stderr
    mask = check_files(tmp_path, 'street', street.photo, street, kind, person)
    people, parts = pixels(tmp_path / 'street_people.png', 'P'), pixels(tmp_path / 'street_parts.png', 'P')
    chosen = people > 0 if person == 'all' else people == (1 if person == 'largest' else person)
    assert not mask[(people > 0) & ~chosen].any()
    names = [name.lower() for name in street.class_names]
    wanted = [names.index(name) for name in names if name in WORN[kind]]
    assert mask[chosen & np.isin(parts, wanted)].all() and mask.any()
    assert mask[chosen & (parts == names.index('face'))].mean() < 0.02
    assert '_mask.png' in (tmp_path / 'index.html').read_text()


def test_a_single_person_is_written_as_a_label_map(street, tmp_path):
    done = call(infer, HERE / 'assets' / 'street.jpg', '--out', tmp_path, '--single', '--person', 3, '--labels', 'atr-neck')
    assert done.returncode == 0, done.stderr
    people, parts = pixels(tmp_path / 'street_people.png', 'P'), pixels(tmp_path / 'street_parts.png', 'P')
    single = pixels(tmp_path / 'street.png', 'P')
    assert np.array_equal(single, np.where(people == 3, parts, 0)) and single.any() and single.max() <= 18
    with Image.open(tmp_path / 'street.png') as image, Image.open(tmp_path / 'street_parts.png') as other:
        assert image.getpalette() == other.getpalette()
    assert not (tmp_path / 'street_mask.png').exists()


def test_photos_without_the_person_get_black_masks(tmp_path):
    Image.new('RGB', (90, 60), 'white').save(tmp_path / 'nobody.jpg')
    flags = '--out', tmp_path / 'out', '--agnostic', 'upper', '--single', '--person', 7
    done = call(infer, tmp_path / 'nobody.jpg', HERE / 'assets' / 'street.jpg', *flags)
    assert done.returncode == 0 and 'street.jpg: 4 people, but none has the id 7' in done.stdout
    for name in 'nobody', 'street':
        assert not pixels(tmp_path / 'out' / f'{name}_mask.png', 'L').any() and not pixels(tmp_path / 'out' / f'{name}.png', 'P').any()
    assert pixels(tmp_path / 'out' / 'nobody_mask.png', 'L').shape == (60, 90)


def test_nothing_of_the_users_is_replaced(tmp_path):
    write_photo(tmp_path / 'a.jpg')
    for ending in '_mask.png', '_agnostic.jpg', '.png':
        folder = tmp_path / ending.replace('.', '')
        write_photo(folder / f'a{ending}')
        before = (folder / f'a{ending}').read_bytes()
        done = call(infer, tmp_path / 'a.jpg', '--out', folder, '--agnostic', 'upper', '--single')
        assert done.returncode == 2 and f'a{ending} exists and this program did not write it' in done.stderr
        assert [path.name for path in folder.iterdir()] == [f'a{ending}'] and (folder / f'a{ending}').read_bytes() == before


def test_two_photos_do_not_share_a_result(tmp_path):
    """The label map of a_mask.jpg has the name of the mask of a.jpg."""
    write_photo(tmp_path / 'a.jpg'), write_photo(tmp_path / 'a_mask.jpg')
    done = call(infer, tmp_path / 'a.jpg', tmp_path / 'a_mask.jpg', '--out', tmp_path / 'out', '--agnostic', 'upper', '--single')
    assert done.returncode == 2 and 'a_mask.png would be a result of two photos; rename one' in done.stderr
    assert pixels(tmp_path / 'out' / 'a_mask.png', 'L').shape == (40, 60) and not (tmp_path / 'out' / 'a_mask.json').exists()
    done = call(infer, tmp_path / 'a.jpg', tmp_path / 'a_mask.jpg', '--out', tmp_path / 'other', '--agnostic', 'upper')
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('flags, sentence', [
    (['--person', '2'], '--person is for --agnostic and --single'),
    (['--single', '--person', 'all'], '--single is for one person; give --person an id, or largest'),
    (['--agnostic', 'upper', '--only', 'hair'], '--agnostic needs the parts that --only leaves out'),
    (['--agnostic', 'upper', '--labels', 'pascal'], 'have no garments, which --agnostic upper needs'),
    (['--agnostic', 'upper', '--person', '0'], '--person is 0; give largest, all, or the id of a person, from 1'),
    (['--agnostic', 'upper', '--person', '9' * 5000], '--person is 9'),
    (['--agnostic', 'upper', '--person', 'first'], '--person is first; give largest'),
    (['--agnostic', 'hat'], "invalid choice: 'hat'")])
def test_flags_that_do_not_go_together_get_one_sentence(tmp_path, flags, sentence):
    write_photo(tmp_path / 'a.jpg')
    done = call(infer, tmp_path / 'a.jpg', '--out', tmp_path / 'out', *flags)
    assert done.returncode == 2 and sentence in done.stderr and done.stderr.count('\n') == 1 and len(done.stderr) < 300
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('flags', [['--agnostic', 'upper'], ['--single'], ['--person', '1']])
def test_the_flags_are_for_photos(tmp_path, flags):
    done = call(infer, '--data', 'synthetic', '--out', tmp_path / 'out', *flags)
    assert done.returncode == 2 and f'{flags[0]} is for photos, not for a data set' in done.stderr
    if flags[0] != '--person':
        (tmp_path / 'a.mp4').write_bytes(b'')
        done = call(infer, tmp_path / 'a.mp4', '--out', tmp_path / 'out', *flags)
        assert done.returncode == 2 and f'{flags[0]} is for photos; parse the videos without it' in done.stderr

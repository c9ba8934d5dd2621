"""The noise of `tools.self_correction`, and its record."""
import numpy as np

from tests.helpers import call
from tools import self_correction
from util.labels import LABEL_SETS


def test_corruption_is_seeded_and_strikes_as_stated():
    labels = np.zeros((80, 60), np.uint8)
    labels[20:60, 20:40], labels[30:50, 10:20], labels[30:50, 40:50] = 5, 14, 15
    pairs, struck = LABEL_SETS['cihp'].flip_pairs, 0
    for i in range(400):
        first, again = (self_correction.corrupt(labels, pairs, np.random.default_rng((8, 0, i))) for _ in range(2))
        assert np.array_equal(first, again) and first.dtype == np.uint8
        if not np.array_equal(first, labels):
            struck += 1
            assert len(np.unique(first)) == 3                 # background and all parts but one
            for left, side in (14, first[:, 30:]), (15, first[:, :30]):
                assert left not in first or left in side      # sides are swapped
    assert abs(struck / 400 - 0.35) < 0.08
    moved = self_correction.shift(labels, (3, -4))
    assert np.array_equal(moved[3:, :-4], labels[:-3, 4:]) and not moved[:3].any() and not moved[:, -4:].any()


def test_numbers_of_another_training_set_are_not_mixed_in(tmp_path):
    for text, message in (('{"photos": 400}', 'was made with other --photos, 400'), ('[', 'cannot be read'), ('{}', 'None')):
        (tmp_path / 'results.json').write_text(text)
        done = call(self_correction, '--root', 'no', '--out', tmp_path, '--photos', '5')
        assert done.returncode == 2 and 'results.json' in done.stderr and message in done.stderr
        assert done.stderr.count('\n') == 1

"""tests/robustness/attack.py itself: it runs, it sees breaches, and docs/robustness.md has its counts."""
import json
import random
from pathlib import Path

import pytest

import demo
from tests.helpers import HERE
from tests.robustness import attack


def test_few_tries_of_each_attack_break_nothing():
    rows = attack.attack(seed=7, tries=2)
    assert len(rows) > 20 and {sum(counts) for counts in rows.values()} == {2, 2 * attack.QUICK}


def test_an_attack_sees_what_is_not_promised(monkeypatch):
    def fails_with(error):
        def read(path):
            if path.read_bytes() != b'good':
                raise error
        return read
    good = 'a', lambda path: path.write_bytes(b'good')
    for error in KeyError('a'), ValueError('no name'), ValueError('/tmp/a\nb'):
        with pytest.raises((KeyError, AssertionError)):
            attack.attack_file(random.Random(0), 5, *good, fails_with(error))
    with pytest.raises(AssertionError, match='of two times'):
        attack.attack_writer(random.Random(0), 1, 'a', lambda path, label: path.write_text('x'), lambda path: {1, 2})
    monkeypatch.setattr(demo.LocalRequests, 'is_local', lambda self, headers: True)
    with pytest.raises(AssertionError):
        attack.attack_page(random.Random(0), 1)
    monkeypatch.setattr(demo, 'uploaded_path', lambda gr, folder, payload: payload.path)
    with pytest.raises(AssertionError):
        attack.attack_uploads(random.Random(0), 1)


def test_the_page_has_the_counts_of_the_command():
    rows = json.loads(Path(__file__).with_name('attack.json').read_text())
    assert attack.table(rows) in (HERE / 'docs' / 'robustness.md').read_text()

"""docs/results.md and the README.

Claimed: every number in them is one of docs/results.json, where it stands with its command and its
date.
"""
import json
import re

import numpy as np
import pytest

from tests.helpers import HERE
from tests.test_docs import DOCS, README, section
from uniparser import UniParser
from tools import ablate
from tools.ablate import METRICS, TABLES, markdown

RESULTS = json.loads((HERE / 'docs' / 'results.json').read_text())
PAGE, CARD = DOCS['docs/results.md'], DOCS['weights/README.md']
EXPERIMENTS = DOCS['weights/experiments.md']
SPLITS = 'tune', 'tune_photos', 'test', 'test_photos', 'test_crops'
FOUND = RESULTS['ablation']['crowd']['rows']
LONGER = RESULTS['published']['longer']


def rows_of(text):
    """The rows of the tables in a text, as lists of cells, without the heads."""
    rows = [[cell.strip() for cell in line[1:-1].split('|')] for line in text.splitlines() if line.startswith('|')]
    heads = [k - 1 for k, row in enumerate(rows) if set(row[0]) == {'-'}]
    return [row for k, row in enumerate(rows) if k not in heads and k - 1 not in heads]


def percent(record):
    return [f'{record[k]:.1f}' for k in METRICS]


def test_the_runs_are_those_of_the_file():
    rows, runs = rows_of(section(PAGE, '## What was run')), list(RESULTS['runs'].values())
    assert rows == [[run['name'], run['images'], *percent(run), run['time']] for run in runs]


def test_the_oracle_experiments_are_those_of_the_file():
    rows = rows_of(section(PAGE, '## Oracle experiments'))
    assert rows == [[name, f'`{run["command"]}`', *percent(run)] for name, run in RESULTS['oracle'].items()]


def test_the_results_of_the_readme_are_those_of_the_file():
    rows, runs = rows_of(section(README, '## Results')), list(RESULTS['runs'].values())
    assert [row[2] for row in rows[:5]] == [' / '.join(percent(run)) for run in runs]
    assert [row[3] for row in rows[:5]] == [run['time'] for run in runs]
    cihp, = (paper for table, setting, _, paper in LONGER if setting == 'CIHP, R-50, 75 epochs')
    assert [row[2] for row in rows[5:]] == [' / '.join(f'{v:.1f}' for v in paper) for paper in (ablate.BASE, cihp)]


@pytest.mark.parametrize('name', list(TABLES))
def test_the_tables_of_the_paper_are_those_of_the_file(name):
    """Each with its command and a sentence after it."""
    table = markdown(name, FOUND).split('\n\n', 1)[1]
    part, = (part for part in re.split('^### ', PAGE, flags=re.M) if f' --table {name} ' in part and table in part)
    assert part.count('|\n|') == table.count('|\n|') and re.search(r'\|\n\n[A-Z]', part)


def test_every_finished_row_is_in_a_table():
    known = {row.name: row for _, rows in TABLES.values() for row in rows}
    assert FOUND and set(FOUND) <= set(known)
    for seeds in FOUND.values():
        assert set(seeds) <= {'0', '1', '2'} and all(0 <= numbers[k] <= 100 for numbers in seeds.values() for k in METRICS)


def test_the_other_published_numbers_are_those_of_the_file():
    rows = rows_of(section(PAGE, '### Tables 1, 3, 6 and 7: longer training, larger networks'))
    assert rows == [[table, setting, f'`{flags}`', ' / '.join(f'{v:.1f}' for v in paper)]
                    for table, setting, flags, paper in LONGER]
    models = RESULTS['published']['Table 2']
    assert rows_of(section(PAGE, '### Table 2: time and parameters')) == [
        [name, f'{paper["milliseconds"]} ms', f'{paper["parameters"]:.2f} M', f'{RESULTS["parameters"][name] / 1e6:.2f} M']
        for name, paper in models.items()]


def test_the_self_correction_is_that_of_the_file():
    rows = {name: [f'{v:.2f}' for v in (*values, np.mean(values))]
            for name, values in RESULTS['self_correction']['rows'].items()}
    table = rows_of(section(DOCS['schp/results.md'], '## Do the cycles correct noisy labels?'))
    assert {row[0].split('`')[1]: row[1:] for row in table} == rows


def test_the_settings_of_the_card_are_those_of_the_file():
    rows = rows_of(section(EXPERIMENTS, '## Settings of inference'))
    assert rows == [[name, *(' / '.join(percent(sets[s])) if s in sets else '' for s in SPLITS)]
                    for name, sets in RESULTS['settings']['rows'].items()]
    sets = RESULTS['settings']['rows']
    assert rows_of(section(CARD, '## Results')) == [
        [text, *percent(sets[name][split])] for text, name, split in RESULTS['settings']['reported']]


def test_the_levers_of_the_card_are_those_of_the_file():
    rows = rows_of(section(EXPERIMENTS, '## What each lever does'))
    assert rows == [[name, *(f'{row[split][k]:.1f}' for split in ('tune', 'tune_crops') for k in ('APvol', 'mIoU')),
                     str(row['found'])] for name, row in RESULTS['levers']['rows'].items()]


def test_the_photos_of_others_in_the_card_are_those_of_the_file():
    rows = rows_of(section(CARD, '## What it can and cannot do'))
    assert rows[-len(RESULTS['strangers']['rows']):] == [[name, *row] for name, row in RESULTS['strangers']['rows'].items()]


def test_the_ordinary_photos_of_the_card_are_those_of_the_file():
    parts = 'ordinary', 'ordinary_curve', 'ordinary_where'
    assert rows_of(section(CARD, '## Ordinary photos')) == [[name, *row] for part in parts for name, row in RESULTS[part]['rows'].items()]


@pytest.mark.parametrize('name, title', [('ordinary_means', '## Means of weights'), ('ordinary_thresholds', '## Thresholds for people and sides')])
def test_the_choices_of_the_shipped_model_are_those_of_the_file(name, title):
    assert rows_of(section(EXPERIMENTS, title)) == [[row, *cells] for row, cells in RESULTS[name]['rows'].items()]


def test_the_levers_on_ordinary_photos_are_those_of_the_file():
    tables = rows_of(section(EXPERIMENTS, '## Levers on ordinary photos'))
    rows = [[name, *row] for part in ('ordinary_levers', 'ordinary_settings') for name, row in RESULTS[part]['rows'].items()]
    assert tables == rows


def test_measured_numbers_name_their_command_and_date():
    sections = [RESULTS[name] for name in ('self_correction', 'settings', 'parameters', 'levers', 'strangers', 'ordinary', 'ordinary_curve',
                                       'ordinary_where', 'ordinary_levers', 'ordinary_settings', 'ordinary_means', 'ordinary_thresholds',
                                       'oneshot')]
    sections += [record for name in ('runs', 'oracle', 'ablation') for record in RESULTS[name].values()]
    for measured in sections:
        assert measured['command'].startswith('python ') and re.fullmatch(r'\d{4}-\d\d-\d\d', measured['measured'])


def test_sentences_hold_no_other_decimals():
    """In the text around the tables of the paper, a number with decimals is one of a table."""
    part = section(PAGE, "## The paper's tables")
    tables = [line for line in part.splitlines() if line.startswith('|')]
    text = '\n'.join(line for line in part.splitlines() if not line.startswith(('|', '    ')))
    for number in re.findall(r'(?<![\w.])\d+\.\d+', re.sub(r'`[^`]*`', '', text)):
        assert any(re.search(rf'(?<![\d.]){re.escape(number)}(?!\d)', line) for line in tables), number


def test_the_kernels_of_the_shipped_categories_are_orthogonal():
    kernels = UniParser.from_pretrained(HERE / 'weights' / 'uniparser_ccp.pt').category_builder.k_cate.detach().numpy()
    kernels = kernels / np.linalg.norm(kernels, axis=1, keepdims=True)
    assert np.abs(kernels @ kernels.T - np.eye(len(kernels))).max() < 0.005


def test_uniparser_among_the_one_shot_networks_is_that_of_the_file():
    rows = {row[0]: row[3] for row in rows_of(section(DOCS['oneshot/results.md'], '## EOP-Net and UniParser')) if len(row) == 4}
    assert rows == RESULTS['oneshot']['rows']

"""Folds of classes and lists of episodes. Needs no torch.

An episode is (query, support, label): two indices into a list of photos, and the class of 1-way
parsing, which is 0 for k-way. Pools hold the photos that may be queries or supports of a class:
{'queries': {class: [index]}, 'supports': {class: [index]}}.

Labels keep the ids of their data set. `merge` gives the benchmark's equal classes, left and right,
one id. Ids that belong to no fold stay in the label maps, because their pixels are people.
"""
import io
import json
import pickle
import re
from dataclasses import dataclass

import numpy as np

from util.files import naming, read_json, write_file
from util.labels import ONESHOT_NAMES
from util.pickles import STAND_INS, check_pickle

IGNORE = 255          # label of pixels about which nothing is known
SIDES = 'queries', 'supports'
Episode = tuple[int, int, int]                # query, support, class
Pools = dict[str, dict[int, list[int]]]       # side -> class -> photos


# -------------------------------------------------------------------------------------------------
# Folds


@dataclass(frozen=True)
class Fold:
    """The classes of a data set in one fold. The background, 0, is a base class."""
    names: dict[int, str]         # of all classes
    novel: tuple[int, ...]        # classes of no training episode
    merges: dict[int, int]        # id -> the id that stands for it
    num_labels: int               # K: ids of labels, with 0 and those that are merged or left out
    order: tuple[int, ...]        # of the classes in the list of test episodes

    @property
    def all(self) -> tuple[int, ...]:
        return tuple(self.names)

    @property
    def base(self) -> tuple[int, ...]:
        return tuple(i for i in self.names if i not in self.novel)


ATR = dict(names=ONESHOT_NAMES['atr'],
           merges={15: 14, 10: 9, 13: 12},              # right arm, shoe, leg -> left
           num_labels=18,
           order=(1, 7, 5, 16, 9, 4, 2, 6, 11, 12, 14))
LIP = dict(names=ONESHOT_NAMES['lip'],
           merges={15: 14, 17: 16, 19: 18},             # right arm, leg, shoe -> left
           num_labels=20,
           order=(10, 6, 12, 1, 2, 5, 7, 9, 13, 14, 16, 18))
CIHP = dict(names={**ONESHOT_NAMES['lip'], 10: 'torso-skin'},
            merges=LIP['merges'],
            num_labels=20,
            order=(12, 6, 1, 2, 5, 7, 9, 10, 13, 14, 16, 18))
FOLDS = {
    ('atr', 1): Fold(**ATR, novel=(5, 6, 7)),
    ('atr', 2): Fold(**ATR, novel=(1, 4, 16)),
    ('lip', 1): Fold(**LIP, novel=(6, 9, 12)),
    ('lip', 2): Fold(**LIP, novel=(5, 7, 10)),
    ('cihp', 1): Fold(**CIHP, novel=(6, 9, 12)),
    ('cihp', 2): Fold(**CIHP, novel=(1, 5, 7)),
    # CCP-OS, ours: CCP's photos in CIHP's classes. Fold 1 is CIHP's. In fold 2 shoes replace its
    # hats, which only 11 of CCP's 100 validation photos show. Of 898 photos 29 % show a dress,
    # 64 % pants, 17 % a skirt; 73 % upper-clothes, 51 % a coat, 98 % shoes.
    ('ccp', 1): Fold(**CIHP, novel=(6, 9, 12)),
    ('ccp', 2): Fold(**CIHP, novel=(5, 7, 18)),
}


def merge(labels: np.ndarray, fold: Fold) -> np.ndarray:
    """Label map uint8 -> with the benchmark's equal classes merged. IGNORE stays."""
    table = np.arange(256, dtype=np.uint8)
    table[list(fold.merges)] = list(fold.merges.values())
    return table[labels]


# -------------------------------------------------------------------------------------------------
# Pools and episodes


def make_pools(presence: list[tuple[str, set[int]]], fold: Fold, split: int) -> Pools:
    """Pools of a list of (photo, set of its label ids).

    Photos up to index `split` become queries, the others supports. The released pools of ATR-OS
    have the split 7500 for training and 200 for testing.
    """
    pools = {side: {c: [] for c in fold.all if c} for side in SIDES}
    for index, (_, ids) in enumerate(presence):
        side = 'queries' if index <= split else 'supports'
        merged = {fold.merges.get(i, i) for i in ids}
        for c in merged & pools[side].keys():
            pools[side][c].append(index)
    return pools


def kway_pairs(num_photos: int, seed=0, split: int = 7500) -> list[Episode]:
    """k-way training episodes: the queries 0..split-1, each with a random support of the rest.

    ValueError where there are too few photos for the split.
    """
    if not 0 < split < num_photos:
        raise ValueError(f'{num_photos} photos cannot be split at {split} into queries and '
                         'supports')
    supports = np.random.default_rng(seed).integers(split, num_photos, split)
    return [(query, int(support), 0) for query, support in enumerate(supports)]


def oneway_pairs(pools: Pools, fold: Fold, seed=0, most: int = 1500) -> list[Episode]:
    """1-way training episodes: for each base class its first `most` queries, each with a random
    support that has the class. ValueError where a class has queries but no supports."""
    rng = np.random.default_rng(seed)
    episodes = []
    for c in fold.base[1:]:
        queries = pools['queries'].get(c, [])[:most]
        supports = pools['supports'].get(c, [])
        if queries and not supports:
            raise ValueError(f'no support photo has class {c}, {fold.names[c]}; choose another '
                             'split')
        episodes += [(query, supports[rng.integers(len(supports))], c) for query in queries]
    return episodes


def meta_test_list(pools: Pools, fold: Fold, queries: int = 10, supports: int = 150,
                   reuse: bool = False) -> list[Episode]:
    """Test episodes: for each class, in the order of the fold, its first queries and supports that
    no earlier class has taken.

    Every query meets supports / queries of them: 15 as released, 1,650 episodes in ATR-OS. Short
    pools start over. With `reuse` classes share photos, because small sets have too few for all.
    ValueError where no photo of a class is left.
    """
    taken = {side: set() for side in SIDES}
    episodes = []
    for c in fold.order:
        picked = {}
        for side, most in (('queries', queries), ('supports', supports)):
            free = [i for i in pools[side].get(c, []) if reuse or i not in taken[side]]
            picked[side] = free[:most]
            taken[side].update(picked[side])
            if not picked[side]:
                raise ValueError(f'no photo of class {c}, {fold.names[c]}, is left for its test '
                                 'episodes')
        for i in range(supports):
            query = picked['queries'][i * queries // supports % len(picked['queries'])]
            support = picked['supports'][i % len(picked['supports'])]
            episodes.append((query, support, c))
    return episodes


# -------------------------------------------------------------------------------------------------
# Files: JSON of ours, and the pickles of the released code


def write_pools(path, pools: Pools):
    write_file(path, json.dumps({'kind': 'pools', **pools}))


def read_pools(path, fold: Fold) -> Pools:
    """Pools of a file of `write_pools`, or of a released pickle: {c: queries, c + S: supports},
    S = K - 1. ValueError for any other file."""
    if is_json(path):
        content = read_kind(path, 'pools')
        pools = {side: content.get(side) for side in SIDES}
    else:
        content = read_pickle(path)
        if not isinstance(content, dict) or not all(isinstance(key, int) for key in content):
            content = {}
        num_parts = fold.num_labels - 1
        pools = {side: {c: content[c + offset] for c in fold.all if c and c + offset in content}
                 for side, offset in zip(SIDES, (0, num_parts))}
    for pool in pools.values():
        if not isinstance(pool, dict) or not pool or not all(map(is_pool, pool.items())):
            raise ValueError(f'{path} holds no pools of queries and supports per class; get the '
                             'file again')
    return {side: {int(c): indices for c, indices in pool.items()} for side, pool in pools.items()}


def is_pool(item) -> bool:
    """Whether (key, value) is a class, a number or the digits of one, and a list of indices."""
    key, indices = item
    return (str(key).isdecimal() and isinstance(indices, list)
            and all(type(i) is int and i >= 0 for i in indices))


def write_episodes(path, episodes: list[Episode]):
    write_file(path, json.dumps({'kind': 'episodes', 'episodes': episodes}))


def read_episodes(path) -> list[Episode]:
    """Episodes of a file of `write_episodes`, or of a released pickle: [queries, supports,
    classes]. ValueError for any other file."""
    if is_json(path):
        rows = read_kind(path, 'episodes').get('episodes')
    else:
        columns = read_pickle(path)
        is_table = isinstance(columns, list) and all(isinstance(c, list) for c in columns)
        is_even = is_table and len(set(map(len, columns))) == 1
        rows = [list(row) for row in zip(*columns)] if is_even else None
    if (not rows or not isinstance(rows, list)
            or not all(isinstance(row, list) and len(row) == 3 for row in rows)):
        raise ValueError(f'{path} holds no list of episodes; get the file again')
    return [tuple(row) for row in rows]


def is_json(path) -> bool:
    """Whether a file is called .json or begins with a brace."""
    with naming(path, 'check its name'), open(path, 'rb') as file:
        return str(path).endswith('.json') or file.read(1) == b'{'


def read_kind(path, kind: str) -> dict:
    """The content of a JSON file of this kind; ValueError for any other file."""
    content = read_json(path)
    if content.get('kind') != kind:
        raise ValueError(f'{path} is no JSON file of {kind}; write it again')
    return content


class PlainUnpickler(pickle.Unpickler):
    """Reads containers, strings, numbers and numpy's arrays of numbers. Anything else could run
    code and is refused."""

    def find_class(self, module, name):
        if f'{module}.{name}' not in STAND_INS:
            raise pickle.UnpicklingError(f'it names {module}.{name}')
        return STAND_INS[f'{module}.{name}']


def read_pickle(path):
    """The content of a pickle, as plain dicts, lists, strings and numbers."""
    with naming(path, 'get the released file again'):
        with open(path, 'rb') as file:
            content = file.read()
        check_pickle(content, re.compile('.*'))   # the names are left to `find_class`
        return plain(PlainUnpickler(io.BytesIO(content)).load(), {})


def plain(value, seen: dict):
    """Arrays and tuples as lists, and numpy's numbers as Python's.

    seen: {id: (container, its result)}. One that stands in many places is done once: lists within
    lists unfold to giants.
    """
    if id(value) in seen:
        return seen[id(value)][1]
    if isinstance(value, dict):
        result = {plain(k, seen): plain(v, seen) for k, v in value.items()}
    elif isinstance(value, (np.ndarray, np.generic)):
        result = value.tolist()
    elif isinstance(value, (list, tuple)):
        result = [plain(v, seen) for v in value]
    elif isinstance(value, (str, int, float)):
        return value
    else:
        raise ValueError(f'it has a {type(value).__name__}')
    seen[id(value)] = value, result
    return result

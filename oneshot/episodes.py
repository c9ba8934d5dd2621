"""Episodes of one-shot human parsing: folds, lists of query and support photos, metrics. Needs no torch.

An episode is (query, support, label): two indices into a list of photos, and the class of 1-way parsing, 0 for k-way.
Pools say which photos may be queries and which supports of a class: {'queries': {class: [index]}, 'supports': ...}.

Labels keep the ids of their data set. `merge` gives the benchmark's equal classes (left and right) one id. Ids of no
fold stay in the label maps, because their pixels are people.
"""
import io
import json
import pickle
from dataclasses import dataclass

import numpy as np

from util.files import write_file
from util.labels import ONESHOT_NAMES

IGNORE = 255


# ---------------------------------------------------------------------------------------------------------------
# Folds


@dataclass(frozen=True)
class Fold:
    """The classes of a data set in one fold. The background 0 is a base class."""
    names: dict                                  # of all classes: id -> name
    novel: tuple                                 # in no training episode
    merges: dict                                 # id -> id that stands for it
    num_labels: int                              # K: ids of the labels, with 0 and those merged or left out
    order: tuple                                 # of the classes in the meta-test list

    @property
    def all(self):
        return tuple(self.names)

    @property
    def base(self):
        return tuple(i for i in self.names if i not in self.novel)


SIDES = {15: 14, 17: 16, 19: 18}                                   # LIP and CIHP: right arm, leg, shoe -> left
ATR = dict(merges={15: 14, 10: 9, 13: 12}, num_labels=18, order=(1, 7, 5, 16, 9, 4, 2, 6, 11, 12, 14),
           names=ONESHOT_NAMES['atr'])
LIP = dict(merges=SIDES, num_labels=20, order=(10, 6, 12, 1, 2, 5, 7, 9, 13, 14, 16, 18),
           names=ONESHOT_NAMES['lip'])
CIHP = dict(LIP, order=(12, 6, 1, 2, 5, 7, 9, 10, 13, 14, 16, 18), names={**LIP['names'], 10: 'torso-skin'})
FOLDS = {('atr', 1): Fold(**ATR, novel=(5, 6, 7)),
         ('atr', 2): Fold(**ATR, novel=(1, 4, 16)),
         ('lip', 1): Fold(**LIP, novel=(6, 9, 12)),
         ('lip', 2): Fold(**LIP, novel=(5, 7, 10)),
         ('cihp', 1): Fold(**CIHP, novel=(6, 9, 12)),
         ('cihp', 2): Fold(**CIHP, novel=(1, 5, 7)),
         # CCP-OS, ours: CCP's photos in CIHP's classes. Fold 1 is CIHP's. In fold 2 shoes replace its hats, which only
         # 11 of CCP's 100 validation photos show. Of 898 photos 29 % show a dress, 64 % pants, 17 % a skirt; 73 %
         # upper-clothes, 51 % a coat, 98 % shoes.
         ('ccp', 1): Fold(**CIHP, novel=(6, 9, 12)),
         ('ccp', 2): Fold(**CIHP, novel=(5, 7, 18))}


def merge(labels, fold):
    """Label map uint8 -> with the benchmark's equal classes merged. IGNORE stays."""
    table = np.arange(256, dtype=np.uint8)
    table[list(fold.merges)] = list(fold.merges.values())
    return table[labels]


def keep(labels, classes):
    """Label map uint8 -> with all but `classes` and IGNORE set to 0."""
    return np.where(np.isin(labels, [*classes, IGNORE]), labels, 0).astype(np.uint8)


# ---------------------------------------------------------------------------------------------------------------
# Pools


def make_pools(presence, fold, split):
    """Pools of a list of (photo, set of its label ids). Photos up to index `split` become queries, the rest supports.

    The released pools of ATR-OS have 7500 for training and 200 for testing.
    """
    pools = {side: {c: [] for c in fold.all if c} for side in ('queries', 'supports')}
    for index, (_, ids) in enumerate(presence):
        for c in {fold.merges.get(i, i) for i in ids} & pools['queries'].keys():
            pools['queries' if index <= split else 'supports'][c].append(index)
    return pools


class PlainUnpickler(pickle.Unpickler):
    """Reads containers, strings, numbers and numpy's arrays of numbers; anything else could run code and is refused."""
    core = (np._core if hasattr(np, '_core') else np.core).multiarray          # its name in numpy 2 and 1
    allowed = [(f'numpy.{module}.multiarray', name) for module in ('core', '_core')
               for name in ('_reconstruct', 'scalar')] + [('numpy', 'ndarray'), ('numpy', 'dtype')]

    def find_class(self, module, name):
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f'it names {module}.{name}')
        return getattr(np if module == 'numpy' else self.core, name)


def read_pickle(path):
    """What a pickle holds, as plain dicts, lists, strings and numbers."""
    with open(path, 'rb') as f:
        content = io.BytesIO(f.read())
    try:
        return plain(PlainUnpickler(content).load())
    except Exception as error:                                # a stranger's file: any type
        raise ValueError(f'{path} is no pickle of lists and numbers ({error}); get the released file again') from None


def plain(value):
    if isinstance(value, dict):
        return {plain(k): plain(v) for k, v in value.items()}
    if isinstance(value, (np.ndarray, np.generic)):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if not isinstance(value, (str, int, float)):
        raise ValueError(f'it has a {type(value).__name__}')
    return value


def read_pools(path, fold):
    """Pools of a file of `write_pools`, or of a released pickle: {c: queries, c + S: supports}, S = K - 1."""
    if is_json(path):
        content = read_json(path, 'pools')
        sides = [content.get(side) for side in ('queries', 'supports')]
    else:
        content, parts = read_pickle(path), fold.num_labels - 1
        content = content if isinstance(content, dict) and all(isinstance(k, int) for k in content) else {}
        sides = [{c: content[c + add] for c in fold.all if c and c + add in content} for add in (0, parts)]
    if not all(isinstance(side, dict) and side and all(map(is_pool, side.items())) for side in sides):
        raise ValueError(f'{path} holds no pools of queries and supports per class; get the file again')
    return {name: {int(c): pool for c, pool in side.items()} for name, side in zip(('queries', 'supports'), sides)}


def is_pool(item):
    return str(item[0]).isdecimal() and isinstance(item[1], list) and all(type(i) is int and i >= 0 for i in item[1])


def is_json(path):
    """Whether a file begins as those of `write_json`, whatever its name."""
    with open(path, 'rb') as f:
        return str(path).endswith('.json') or f.read(1) == b'{'


def read_json(path, kind):
    try:
        with open(path, encoding='utf-8') as f:
            content = json.load(f)
    except ValueError:
        content = None
    if not isinstance(content, dict) or content.get('kind') != kind:
        raise ValueError(f'{path} is no JSON file of {kind}; write it again')
    return content


def write_json(path, kind, content):
    write_file(path, json.dumps({'kind': kind, **content}))


def write_pools(path, pools):
    write_json(path, 'pools', pools)


# ---------------------------------------------------------------------------------------------------------------
# Episodes


def kway_pairs(num_photos, seed=0, split=7500):
    """Training episodes, one per query 0..split-1, each with a random support from split..num_photos-1."""
    if not 0 < split < num_photos:
        raise ValueError(f'{num_photos} photos cannot be split at {split} into queries and supports')
    supports = np.random.default_rng(seed).integers(split, num_photos, split)
    return [(query, int(support), 0) for query, support in enumerate(supports)]


def oneway_pairs(pools, fold, seed=0, most=1500):
    """Training episodes: per base class its first `most` queries, each with a random support that has the class."""
    rng, episodes = np.random.default_rng(seed), []
    for c in fold.base[1:]:
        queries, supports = pools['queries'].get(c, [])[:most], pools['supports'].get(c, [])
        if queries and not supports:
            raise ValueError(f'no support photo has class {c}, {fold.names[c]}; choose another split')
        episodes += [(query, supports[rng.integers(len(supports))], c) for query in queries]
    return episodes


def meta_test_list(pools, fold, queries=10, supports=150, reuse=False):
    """Test episodes: per class, in the order of the fold, its first queries and supports not taken before.

    Every query meets supports / queries of them: 15 as released, 1,650 episodes in ATR-OS. Short pools start over.
    `reuse` lets classes share photos, because small sets have too few for all.
    """
    taken, episodes = {'queries': set(), 'supports': set()}, []
    for c in fold.order:
        picked = {}
        for side, most in (('queries', queries), ('supports', supports)):
            picked[side] = [i for i in pools[side].get(c, []) if reuse or i not in taken[side]][:most]
            taken[side].update(picked[side])
        if not picked['queries'] or not picked['supports']:
            raise ValueError(f'no photo of class {c}, {fold.names[c]}, is left for its test episodes')
        episodes += [(picked['queries'][i * queries // supports % len(picked['queries'])],
                      picked['supports'][i % len(picked['supports'])], c) for i in range(supports)]
    return episodes


def write_episodes(path, episodes):
    write_json(path, 'episodes', {'episodes': episodes})


def read_episodes(path):
    """Episodes of a file of `write_episodes` (.json), or of a released pickle: [queries, supports, classes]."""
    if is_json(path):
        rows = read_json(path, 'episodes').get('episodes')
    else:
        columns = read_pickle(path)
        flat = isinstance(columns, list) and len(columns) == 3 and all(isinstance(c, list) for c in columns)
        rows = [list(row) for row in zip(*columns)] if flat and len(set(map(len, columns))) == 1 else None
    if not rows or not isinstance(rows, list) or not all(isinstance(r, list) and len(r) == 3 for r in rows):
        raise ValueError(f'{path} holds no list of episodes; get the file again')
    return [tuple(row) for row in rows]

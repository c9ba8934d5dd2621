"""The classes of a weights file of any system: ids, colors and names, for `infer.py --list`."""
import numpy as np

from util.checkpoints import SIGNS, find_system, read_checkpoint, reading
from util.datasets import CIHP, MHP
from util.files import short
from util.labels import ONESHOT_NAMES, choose_labels, find_set, find_tables, names_of, voc_palette
from util.pictures import palette


def list_classes(path: str, labels: str | None = None):
    """Prints id, color and name of the classes of a weights file. labels: prints those of this
    label set instead, each with the file's classes that become it."""
    names, colors = read_classes(path)
    origins = [''] * len(names)
    if labels:
        own = names
        names = names_of(labels)
        colors = voc_palette()
        origins = origins_of(own, labels)
    for c, name in enumerate(names):
        if name:
            color = bytes(colors[c]).hex()
            print(f'{c:3}  #{color}  {name:24}{origins[c]}'.rstrip())


def read_classes(path: str) -> tuple[list[str], np.ndarray]:
    """Class names of a weights file, the background first, and colors (256, 3) uint8."""
    state = read_checkpoint(path)
    system = find_system(state)
    with reading(path):
        if 'class_names' in state:
            names = state['class_names']
        elif system:
            names = released_names(system, state)
        else:
            raise ValueError(f'{path} is no weights file of UniParser, SCHP or one-shot parsing; '
                             'give one of these')
        names = [short(name) for name in names[:256]]
    colors = voc_palette() if system == 'schp' else palette(256)
    return names, colors


def released_names(system: str, state: dict) -> tuple | list:
    """Class names of a released file. It does not hold them; the number of its classes shows which
    they are."""
    weights = state.get('state_dict', state)
    weights = {str(key).removeprefix('module.'): value for key, value in weights.items()}
    if system == 'oneshot':
        num_labels = len(weights['prototype'])
        names = ONESHOT_NAMES['lip' if num_labels == 20 else 'atr']
        return [names.get(i, '') for i in range(num_labels)]
    sizes = [len(weights[sign]) for sign in SIGNS if sign in weights]
    if system == 'schp':
        return choose_labels(sizes[0]).names
    return {58: MHP, 19: CIHP}[sizes[0]].class_names


def origins_of(names: list[str], labels: str) -> list[str]:
    """For each class of the label set: those of `names` that become it, as text."""
    left, right = find_tables(find_set(names, labels), labels)
    origins = [[] for _ in names_of(labels)]
    for name, *ids in zip(names, left, right):
        for c in sorted(set(ids)):
            origins[c].append(name)
    return [', '.join(found) for found in origins]

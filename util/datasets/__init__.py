"""The data sets, read from their folders as downloaded.

Each has a file of its own here, whose docstring shows the folder tree. To add one, write a class
like `Photos` in such a file and enter it in DATASETS: docs/data.md has an example.
"""
import os

from util.datasets.base import GroundTruth, Photos, check_ids, swap_sides
from util.datasets.ccp import CCP, read_layers
from util.datasets.cihp import CIHP
from util.datasets.coco import COCO
from util.datasets.densepose import DensePose
from util.datasets.drawn import Crowd, Synthetic
from util.datasets.mhp import MHP
from util.datasets.mixed import Mixed

__all__ = ['CCP', 'CIHP', 'COCO', 'Crowd', 'DATASETS', 'DRAWN', 'DensePose', 'GroundTruth', 'MHP',
           'Mixed', 'Photos', 'Synthetic', 'check_ids', 'open_dataset', 'read_layers', 'swap_sides']

DATASETS = {
    'MHP': MHP,
    'CIHP': CIHP,
    'DensePose': DensePose,
    'CCP': CCP,
    'COCO': COCO,
    'synthetic': Synthetic,
    'crowd': Crowd,
}
DRAWN = 'synthetic', 'crowd'                      # these need no files


def open_dataset(name: str, root: str | None = None, split: str = 'train',
                 sets: dict[str, type[Photos]] = DATASETS, **options) -> Photos:
    """The data set of that name in the folder root.

    options are those of its class. Raises FileNotFoundError or ValueError, with one sentence, if
    the name or the split is unknown or something is missing.
    """
    if name not in sets:
        raise ValueError(f'unknown data set {name!r}; choose one of {", ".join(sets)}')
    if split not in sets[name].splits:
        raise ValueError(f'{name} has no split {split!r}; choose one of '
                         f'{", ".join(sets[name].splits)}')
    if name not in DRAWN and not root:
        raise ValueError(f'{name} is read from files; give the folder of the unpacked download '
                         'with --root')
    if name not in DRAWN and not os.path.isdir(root):
        raise FileNotFoundError(f'{root} is not a folder; --root is the folder of the unpacked '
                                'download')
    dataset = sets[name](root, split, **options)
    if not len(dataset):
        raise ValueError(f'{root} has no image of the split {split}; unpack the download again')
    check_ids(dataset.ids, root)
    return dataset

"""POPNet's stages: their labels, from coarse to fine. Needs no torch.

    stage   K    labels
    1       2    background and person: every label of the data set
    2       5    background and the parents: head, body and clothes, arms, legs
    3       K    the classes of the fold

The groups are those of the released code and of Grapy-ML, by the same first author. LIP has
CIHP's ids; ours of CCP, too.
"""
from dataclasses import dataclass

import numpy as np

from oneshot.episodes import FOLDS, IGNORE, Episode, Fold

FINE = 3              # the last stage
# {parent: ids as drawn}. Left and right have the same parent.
ATR = {'head': (1, 2, 3, 11),
       'body': (4, 5, 7, 8, 16, 17),
       'arms': (14, 15),
       'legs': (6, 9, 10, 12, 13)}
CIHP = {'head': (1, 2, 4, 13),
        'body': (5, 6, 7, 10, 11, 12),
        'arms': (3, 14, 15),
        'legs': (8, 9, 16, 17, 18, 19)}
GROUPS = {'atr': ATR, 'lip': CIHP, 'cihp': CIHP, 'ccp': CIHP}


def stage_fold(fold: Fold, stage: int) -> Fold:
    """The classes of a stage as a fold. Stages 1 and 2 have no novel ones, and nothing to merge."""
    if stage == FINE:
        return fold
    names = ['background', 'person'] if stage == 1 else ['background', *ATR]
    return Fold(names=dict(enumerate(names)), novel=(), merges={}, num_labels=len(names), order=())


def stage_table(data: str, fold: Fold, stage: int, parents: str) -> np.ndarray:
    """Table uint8 (256) from labels as drawn, or merged, to those of stage 1 or 2. IGNORE stays.

    parents: all = of each pixel of a person, also of novel and dropped classes; base = of the base
    classes alone, the rest is background.
    """
    table = np.zeros(256, np.uint8)
    for parent, ids in enumerate(GROUPS[data.lower()].values(), 1):
        for i in ids:
            if parents == 'all' or fold.merges.get(i, i) in fold.base:
                table[i] = parent
    if stage == 1:
        table = table.clip(max=1)
    table[IGNORE] = IGNORE
    return table


def fold_of(config) -> Fold:
    """The classes of a network's Config."""
    return stage_fold(FOLDS[config.data.lower(), config.fold], config.stage)


@dataclass
class StagePhotos:
    """Photos of a data set (`oneshot.data.OneShotPhotos`) with the labels of stage 1 or 2. Their
    episodes are k-way, also before a 1-way stage."""
    photos: object
    fold: Fold
    table: np.ndarray

    def __len__(self):
        return len(self.photos)

    @property
    def ids(self) -> list[str]:
        return self.photos.ids

    def read(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        image, labels = self.photos.read(i)
        return image, self.table[labels]

    def training_pairs(self, way: str, seed) -> list[Episode]:
        return self.photos.training_pairs('kway', seed)

    def test_episodes(self) -> list[Episode]:
        return self.photos.test_episodes()

    def check_episodes(self, episodes: list[Episode], path) -> list[Episode]:
        return self.photos.check_episodes(episodes, path)


def photos_of_stage(photos, config):
    """photos with the labels of the config's stage."""
    if config.stage == FINE:
        return photos
    table = stage_table(config.data, photos.fold, config.stage, config.parents)
    return StagePhotos(photos, stage_fold(photos.fold, config.stage), table)

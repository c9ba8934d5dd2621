"""Settings of SCHP's trainings: the defaults are the released training on LIP, presets are
differences from it."""
from dataclasses import dataclass

from schp.data import DATASETS
from util.cli import as_text, flag
from util.config import check_ranges, setting

MANY = 10 ** 6


@dataclass(frozen=True)
class SCHPConfig:
    recipe: str = setting('paper', "losses and cycles of the paper's text, or of the released code",
                          choices=('paper', 'released'))

    # ---- data
    data: str = setting('LIP', 'data set', choices=tuple(DATASETS))
    size: tuple = setting((473, 473), 'height and width of the crops, in pixels', 1, 4096)
    scale: float = setting(0.25, 'standard deviation of the random scale', 0, 0.99)
    rotation: float = setting(30.0, 'standard deviation of the random rotation, in degrees', 0, 180)
    loss_stride: int = setting(1, 'stride of the pixels in the losses; 2 makes them four times '
                                  'cheaper', 1, 4096)
    keep: bool = setting(False, 'keep the photos in memory, reduced: for small data sets and '
                                'networks')

    # ---- network
    network: str = setting('ace2p', "SCHP's own network or the SegFormer variant",
                           choices=('ace2p', 'segformer'))
    blocks: tuple = setting((3, 4, 23, 3), 'blocks of the four stages; the default is ResNet-101',
                            1, 100)
    width: int = setting(64, 'channels of the first convolution; all others in proportion', 2, 1024)
    pretrained: str = setting('', 'file of ImageNet weights')

    # ---- training
    phase: int = setting(0, 'phase of segformer: 0 trains all, 1 freezes the backbone, 2 lowers '
                            'the rates by stage', 0, 2)
    samples: int = setting(0, 'number of training images, from the first on; 0 = all', 0, 10 ** 9)
    batch_size: int = setting(48, 'images per step, over all processes', 1, MANY)
    accumulate: int = setting(1, 'passes per step, each with a share of its images', 1, MANY)
    epochs: int = setting(150, 'passes over the training images', 1, MANY)
    lr: float = setting(7e-3, 'learning rate of the whole batch', 1e-12, 1000)
    warmup: int = setting(10, 'epochs until the learning rate is full', 0, MANY)
    weight_decay: float = setting(5e-4, 'weight decay', 0, 1000)
    clip: float = setting(0.0, 'largest norm of the gradients; 0 = any, as released', 0, 10 ** 9)

    # ---- cycles
    cycle_start: int = setting(100, 'epochs before the first average; as many as --epochs: no '
                                    'cycles', 1, MANY)
    cycle_epochs: int = setting(10, 'epochs of a cycle', 1, MANY)
    correct_labels: bool = setting(True, 'correction of the labels from cycle 1 on; without it, '
                                         'only models are averaged')
    val_every: int = setting(10, 'epochs between two validations', 1, MANY)
    val_images: int = setting(0, 'images of a validation; 0 = all', 0, 10 ** 9)
    workers: int = setting(4, 'processes that read images', 0, 1000)
    seed: int = setting(0, 'seed of all random numbers', 0, 2 ** 32)

    def __post_init__(self):
        check_ranges(self)
        for name, count in (('size', 2), ('blocks', 4)):
            value = getattr(self, name)
            if len(value) != count:
                raise ValueError(f'{flag(name)} is {as_text(value)}; give {count} numbers')
        if self.phase and self.network != 'segformer':
            raise ValueError(f'--phase is {self.phase}; it is 0, and of the network segformer 0, 1 '
                             'or 2')


# ---- presets: differences from the defaults ----------------------------------------------------


LARGE = dict(size=(512, 512))
TALL = dict(size=(512, 384))

# A small network, for CPUs.
SMALL = dict(size=(160, 112), loss_stride=2, keep=True, rotation=10.0, blocks=(1, 1, 1, 1),
             width=16, batch_size=8, epochs=14, lr=0.02, warmup=0, cycle_start=10, cycle_epochs=2,
             val_every=2, workers=0)
PRESETS = {'LIP': {}, 'ATR': LARGE, 'Pascal': LARGE, 'CIHP': {}, 'CCP': SMALL, 'merged': TALL,
           'merged-sep': TALL}

# Of the network segformer, by phase, whatever the data: as in ViWear's fork.
FORK = dict(size=(512, 384), blocks=(3, 8, 27, 3), batch_size=4, lr=6e-5)
PHASES = {0: dict(FORK, weight_decay=1e-2),
          1: dict(FORK, weight_decay=1e-3),
          2: dict(FORK, weight_decay=1e-3)}


def preset(data: str, network: str, phase: int) -> dict:
    """The differences from the defaults for one of DATASETS; of the network segformer those of its
    phase."""
    if network == 'segformer' and phase in PHASES:
        return PHASES[phase]
    return PRESETS[data]

"""Settings of SCHP's trainings: the defaults are the released training on LIP; presets are differences from it."""
from dataclasses import dataclass

from util.run import check_ranges
from schp.data import DATASETS


@dataclass(frozen=True)
class SCHPConfig:
    recipe: str = 'paper'               # paper | released: how losses and cycles are computed, see `schp_loss`
    # data
    data: str = 'LIP'
    size: tuple = (473, 473)            # (H, W) of the network's input
    scale: float = 0.25                 # deviation of the random scale, see schp.data.augment
    rotation: float = 30.0              # deviation of the random rotation, degrees
    loss_stride: int = 1                # losses at every n-th pixel; 2 makes them four times cheaper
    keep: bool = False                  # keep the photos in memory, reduced: for small data sets and networks
    # network
    network: str = 'ace2p'              # ace2p | segformer, see segformer.py
    blocks: tuple = (3, 4, 23, 3)       # of the four stages: ResNet-101
    width: int = 64                     # channels of the first convolution; all others in proportion
    pretrained: str = ''                # file of ImageNet weights, see `load_imagenet`
    # training
    phase: int = 0                      # segformer: 1 backbone frozen, 2 rates fall by stage; see schp.finetuning
    samples: int = 0                    # the first training images alone; 0 = all
    batch_size: int = 48                # images per step, over all processes
    accumulate: int = 1                 # passes per step, each with a share of its images
    epochs: int = 150
    lr: float = 7e-3                    # for the whole batch
    warmup: int = 10                    # epochs
    weight_decay: float = 5e-4
    clip: float = 0.0                   # largest gradient norm; 0 = any, as released
    # cycles
    cycle_start: int = 100              # epochs before the first average; as many as `epochs`: no cycles
    cycle_epochs: int = 10
    correct_labels: bool = True         # from cycle 1 on; False: models are averaged, labels stay as they are
    val_every: int = 10                 # epochs
    val_images: int = 0                 # 0 = all
    workers: int = 4
    seed: int = 0

    def __post_init__(self):
        check_ranges(self, RANGES, CHOICES)
        for name, count in ('size', 2), ('blocks', 4):
            if len(getattr(self, name)) != count:
                raise ValueError(f'--{name} is {getattr(self, name)}; give {count} numbers')
        if self.phase and self.network != 'segformer':
            raise ValueError(f'--phase is {self.phase}; it is 0, and of the network segformer 0, 1 or 2')


CHOICES = dict(recipe=('paper', 'released'), network=('ace2p', 'segformer'), data=tuple(DATASETS))
RANGES = dict(
    size=(1, 4096), scale=(0, 0.99), rotation=(0, 180), loss_stride=(1, 4096), blocks=(1, 100), width=(2, 1024),
    phase=(0, 2), samples=(0, 10 ** 9), batch_size=(1, 10 ** 6), accumulate=(1, 10 ** 6), epochs=(1, 10 ** 6),
    lr=(1e-12, 1000), warmup=(0, 10 ** 6), weight_decay=(0, 1000), clip=(0, 10 ** 9), cycle_start=(1, 10 ** 6),
    cycle_epochs=(1, 10 ** 6), val_every=(1, 10 ** 6), val_images=(0, 10 ** 9), workers=(0, 1000), seed=(0, 2 ** 32))
PRESETS = {
    'LIP': {}, 'ATR': dict(size=(512, 512)), 'Pascal': dict(size=(512, 512)), 'CIHP': {},
    'merged': dict(size=(512, 384)), 'merged-sep': dict(size=(512, 384)),
    'CCP': dict(size=(160, 112), loss_stride=2, keep=True, rotation=10.0, blocks=(1, 1, 1, 1), width=16, batch_size=8,
                epochs=14, lr=0.02, warmup=0, cycle_start=10, cycle_epochs=2, val_every=2, workers=0)}
PHASES = [dict(size=(512, 384), blocks=(3, 8, 27, 3), batch_size=4, lr=6e-5, weight_decay=decay)
          for decay in (1e-2, 1e-3, 1e-3)]                # of the network segformer, as in ViWear's fork


def preset(data, network, phase):
    """The differences from the defaults; a network other than SCHP's own has those of its phase."""
    return PHASES[phase] if network == 'segformer' and phase in range(3) else PRESETS[data]

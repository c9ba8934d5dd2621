"""Settings of one-shot parsing. The defaults are those of EOP-Net's released training on ATR-OS.
POPNet's training was not released; its defaults are the same."""
from dataclasses import dataclass

from util.config import check_ranges, setting

DATASETS = 'ATR', 'LIP', 'CIHP', 'CCP'
MANY = 10 ** 6
MOST = 10 ** 9


@dataclass(frozen=True)
class Config:
    system: str = setting('eopnet', 'network to train', choices=('eopnet', 'popnet'))

    # ---- episodes
    data: str = setting('ATR', 'data set', choices=DATASETS)
    fold: int = setting(1, 'fold of novel classes: 1 or 2', 1, 2)
    way: str = setting('kway', 'all classes at once, or one class against the rest',
                       choices=('kway', '1way'))
    recipe: str = setting('paper', "the paper's text, or the released code: pairs are drawn once, "
                                   'and the rate falls at every tenth epoch',
                          choices=('paper', 'released'))

    # ---- network
    # K counts the background and the labels that are merged into others; the data set sets it.
    num_labels: int = setting(18, 'K, labels of the data set', 2, 255)
    stem: int = setting(32, "channels of the first convolution; the backbone's others are in "
                            'proportion', 4, 512)
    middle: int = setting(16, "blocks of the backbone's middle flow", 0, 100)
    channels: int = setting(256, 'C, channels of the decoder and the heads', 16, 4096)
    high_level: bool = setting(True, "modules of feature level 'high', which are in released "
                                     'files and never run')
    mode: str = setting('fixed', 'classes that take part: all, or (ucs) those of the supports',
                        choices=('fixed', 'ucs'))
    pretrained: str = setting('', 'file to begin with: deeplab_v3plus_v3.pth, or an EOP-Net')

    # ---- stages of POPNet, see oneshot/stages.py; an EOP-Net has the last alone
    stage: int = setting(3, 'stage of the network', 1, 3)
    earlier: tuple = setting((), 'the stages before it', 1, 2)
    parents: str = setting('all', 'labels of stages 1 and 2: of all pixels of people, or of base '
                                  'classes alone', choices=('all', 'base'))

    # ---- photos
    long_side: int = setting(0, 'longest side of a photo, in pixels; 0 = as it is, as released', 0,
                             10000)
    size: int = setting(512, 'side of the square crops in training, in pixels', 32, 4096)

    # ---- training
    warm_up: int = setting(25, 'last epoch, counted from 0, with static fine prototypes', -1, MANY)
    batch_size: int = setting(2, 'episodes per step, over all processes', 1, MANY)
    accumulate: int = setting(1, 'passes per step, each with a share of its episodes', 1, MANY)
    epochs: int = setting(50, 'passes over the training episodes', 1, MANY)
    optimizer: str = setting('sgd', 'optimizer', choices=('sgd', 'adamw'))
    lr: float = setting(1e-3, 'learning rate of the whole batch', 0, 1e6)
    backbone_lr: float = setting(1.0, "factor on the backbone's learning rate", 0, 1e6)
    weight_decay: float = setting(5e-4, 'weight decay', 0, 1e6)
    clip: float = setting(0.0, 'largest norm of the gradients; 0 = any, as released', 0, 1e9)
    val_every: int = setting(10, 'epochs between two validations', 1, MANY)
    val_images: int = setting(0, 'test episodes of a validation; 0 = all', 0, MOST)
    workers: int = setting(4, 'processes that read photos', 0, 1000)
    seed: int = setting(0, 'seed of all random numbers', 0, 2 ** 63 - 1)

    def __post_init__(self):
        check_ranges(self)
        if self.system == 'popnet':
            if self.batch_size // self.accumulate < 2:
                raise ValueError(f'--batch-size {self.batch_size} with --accumulate '
                                 f'{self.accumulate}: POPNet trains with two episodes or more per '
                                 'pass; give at least 2')
            if not self.high_level:
                raise ValueError('--no-high-level: POPNet runs these modules; leave it out')

    @property
    def one_way(self) -> bool:
        """Whether an episode has a single class: 1 against 0. Only the last stage may."""
        return self.way == '1way' and self.stage == 3

"""Settings of one-shot parsing: the defaults are the released ones on ATR-OS."""
from dataclasses import dataclass

from oneshot.data import NAMES
from util.run import check_ranges

CHOICES = dict(data=NAMES, way=('kway', '1way'), recipe=('paper', 'released'), optimizer=('sgd', 'adamw'))
RANGES = dict(fold=(1, 2), num_labels=(2, 255), stem=(4, 512), middle=(0, 100), channels=(16, 4096), size=(32, 4096),
              long_side=(0, 10000), warm_up=(-1, 10 ** 6), batch_size=(1, 10 ** 6), accumulate=(1, 10 ** 6),
              epochs=(1, 10 ** 6), lr=(0, 1e6), backbone_lr=(0, 1e6), weight_decay=(0, 1e6), clip=(0, 1e9),
              val_every=(1, 10 ** 6), val_images=(0, 10 ** 9), workers=(0, 1000), seed=(0, 2 ** 63 - 1))


@dataclass(frozen=True)
class Config:
    data: str = 'ATR'                        # ATR | LIP | CIHP | CCP
    fold: int = 1                            # 1 | 2
    way: str = 'kway'                        # kway | 1way
    recipe: str = 'paper'                    # released: pairs drawn once, the rate falls at every tenth epoch
    num_labels: int = 18                     # K
    stem: int = 32                           # channels of the first convolution; the backbone's others in proportion
    middle: int = 16                         # blocks of the backbone's middle flow
    channels: int = 256                      # of the decoder and the heads
    high_level: bool = True                  # keep the modules of feature level 'high': in released files, never run
    pretrained: str = ''                     # deeplab_v3plus_v3.pth or another EOP-Net to start from
    long_side: int = 0                       # photos are reduced to it; 0 = as they are, as released
    size: int = 512                          # of training's crops
    warm_up: int = 25                        # up to this epoch (0-based) fine prototypes are static
    batch_size: int = 2                      # episodes per step, over all processes
    accumulate: int = 1                      # passes per step, each with a share of its episodes
    epochs: int = 50
    optimizer: str = 'sgd'                   # sgd | adamw
    lr: float = 1e-3
    backbone_lr: float = 1.0                 # factor on the backbone's rate
    weight_decay: float = 5e-4
    clip: float = 0.0                        # largest gradient norm; 0 = any, as released
    val_every: int = 10                      # epochs
    val_images: int = 0                      # test episodes of a validation; 0 = all
    workers: int = 4
    seed: int = 0

    def __post_init__(self):
        check_ranges(self, RANGES, CHOICES)

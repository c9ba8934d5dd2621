"""POPNet (He et al., AAAI 2021, arXiv:2012.11810): people, then parents, then classes.

Each stage is a network of its own. It passes features on, and nothing else, so that at test time
only the last stage needs a support's labels:

    G1 = E1(x),   G2 = KIM2([G1, E2(x)]),   G3 = KIM3([G2, E3(x)])

for both photos x. E is a DeepLabv3+ and KIM the knowledge infusion. The heads of a stage see its
own G. `oneshot.stages` has the labels of each stage.
"""
from dataclasses import replace

import torch
import torch.nn as nn
from torch import Tensor

from oneshot.backbone import Atrous
from oneshot.config import Config
from oneshot.episodes import FOLDS
from oneshot.network import ExampleNetwork
from oneshot.stages import FINE, stage_fold
from util.tensors import resize_map

HEADS = 'agm', 'npm', 'feature_fusion'        # keep PyTorch's initial weights, as released
# Modules of released files -> ours, which have EOP-Net's names. 1-way has lists of one.
RELEASED = {'classifier_6.0': 'agm_class',
            'classifier_6': 'agm_class',
            'after_sim.0': 'npm_class',
            'after_sim_fg': 'npm_class_fg',
            'after_sim_bg': 'npm_class_bg',
            'bg_sim_fusion': 'npm_bg_fusion',
            'bg_att_fusion': 'agm_bg_fusion',
            'decoder3.0': 'decoder3'}


class POPNet(ExampleNetwork):
    """The network of a stage, with those of the stages before it in `previous_stage`.

    model(query, support, support_labels) -> dict of logits, see `forward`. Settings are those of
    `Config`, which may be given as keyword arguments: POPNet(stage=3, earlier=(1, 2)).
    """
    system = 'popnet'
    name = 'POPNet'
    head = 'ncm'
    sign = 'feature_fusion.0.atrous_convolution.depthwise.weight'

    def __init__(self, config: Config = Config(), **changes):
        config = replace(config, system='popnet', **changes)
        super().__init__(config)
        c = config.channels
        self.add_fine_heads()
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d) and not name.startswith(HEADS):
                nn.init.kaiming_normal_(module.weight)
        # KIM. Stage 1 has it, as released, and does not run it.
        self.feature_fusion = nn.Sequential(Atrous(2 * c, c), Atrous(c, c))
        # Last, so that a stage begins with the same weights with and without those before it.
        self.previous_stage = None
        if config.earlier:
            self.previous_stage = POPNet(config_before(config)).requires_grad_(False)

    def train(self, mode: bool = True) -> 'POPNet':
        """The stages before stay in eval mode."""
        super().train(mode)
        if self.previous_stage is not None:
            self.previous_stage.eval()
        return self

    def encode(self, images: Tensor, previous: Tensor | None = None) -> Tensor:
        """Images (B,3,H,W) as of `oneshot.data.normalize` -> G of this stage (B,C,h,w). previous:
        that of the stage before; None = of `previous_stage`, or no infusion."""
        own = self.high_level(images)
        if previous is None:
            if self.previous_stage is None:
                return own
            with torch.no_grad():
                previous = self.previous_stage.encode(images)
        # In the released code a support that differs alone is not resized, and fails.
        if previous.shape[2:] != own.shape[2:]:
            previous = resize_map(previous, own.shape[2:])
        return self.feature_fusion(torch.cat([previous, own], 1))

    def forward(self, query: Tensor, support: Tensor, support_labels: Tensor,
                previous: tuple[Tensor, Tensor] | None = None, classes=None,
                epoch: int | None = None) -> dict:
        """Photos (B,3,H,W) as of `oneshot.data.normalize` and the support's labels (B,H,W) of this
        stage -> dict of logits agm and ncm (B,K,H,W) at the query's size, 1-way (B,2,H,W), and
        `classes`.

        previous: G of query and support of the stage before; None = see `encode`. classes, epoch:
        as of `EOPNet.forward`. ValueError for a batch of one in training.
        """
        if self.training and len(query) == 1:
            raise ValueError('POPNet trains with two episodes or more per pass: with one, the '
                             'pyramid has a single value per channel to normalize')
        classes = self.check_classes(classes)

        # Features of both photos, infused with those of the stage before.
        of_query, of_support = previous or (None, None)
        q = self.encode(query, of_query)
        s = self.encode(support, of_support)

        # Prototypes, smoothed after the warm-up, and both heads, enlarged to the query's size.
        fine = self.episode_prototypes(s, support_labels, classes, epoch)
        out = self.fine_logits(q, fine, ('agm', 'ncm'))
        out = {name: resize_map(logits, query.shape[2:]) for name, logits in out.items()}
        return dict(out, classes=classes)

    @classmethod
    def rename(cls, weights: dict) -> dict:
        renamed = {}
        for key, value in weights.items():
            for theirs, ours in RELEASED.items():
                if key.startswith(f'{theirs}.'):
                    key = ours + key.removeprefix(theirs)
                    break
            renamed[key] = value
        return renamed

    @classmethod
    def released_config(cls, weights: dict, path) -> Config:
        """Released files hold one stage. The number of its labels shows which."""
        config = super().released_config(weights, path)
        return replace(config, system='popnet', stage={2: 1, 5: 2}.get(config.num_labels, FINE))


def config_before(config: Config) -> Config:
    """The Config of the stage before, `config.earlier[-1]`."""
    *earlier, stage = config.earlier
    fold = stage_fold(FOLDS[config.data.lower(), config.fold], stage)
    return replace(config, stage=stage, earlier=tuple(earlier), num_labels=fold.num_labels)

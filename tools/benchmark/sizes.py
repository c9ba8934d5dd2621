"""Numbers of parameters of all presets."""
from dataclasses import replace

from tools.benchmark.clock import count_weights
from uniparser import PRESETS, UniParser, get_config


def count_parameters(args):
    """Prints the number of parameters of each part of each model."""
    r101 = dict(backbone='resnet101')
    light = dict(light=True)
    models = [(name, {}) for name in PRESETS]
    models += [('mhp', light), ('mhp', r101), ('mhp', {**r101, **light})]
    models += [('mhp_released', r101), ('mhp_released', {**r101, **light})]
    print(f'{"preset":14} {"changes":25} {"backbone":>11} {"pyramid":>10} {"branches":>10} '
          f'{"all":>11} {"trained":>11}')
    for preset, changes in models:
        config = get_config(preset, **changes)
        # The norms of all stages stay frozen when ImageNet weights are loaded.
        model = UniParser(replace(config, pretrained_stages=4 if config.pretrained else 0))
        backbone = count_weights(model.backbone)
        pyramid = count_weights(model.fpn)
        every = count_weights(model)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        words = ' '.join(v if isinstance(v, str) else k for k, v in changes.items())
        print(f'{preset:14} {words:25} {backbone:11,} {pyramid:10,} '
              f'{every - backbone - pyramid:10,} {every:11,} {trained:11,}')

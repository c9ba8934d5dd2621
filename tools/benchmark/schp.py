"""SCHP's networks on a crop."""
import copy

import torch
import torchvision

from schp import build
from schp.config import SCHPConfig
from schp.config import preset as schp_preset
from tools.benchmark.clock import Clock, describe_machine, multiply_adds
from util.labels import LABEL_SETS
from util.run import find_device


@torch.inference_mode()
def benchmark_schp(args):
    """Prints the time of a network on a crop, as loaded and as it runs, in units of torchvision's
    plain ResNet-101."""
    device = torch.device(find_device(args.device))
    default = 'merged' if args.network == 'segformer' else 'lip'
    labels = LABEL_SETS[args.labels or default]
    settings = schp_preset('LIP', args.network, 0)
    config = SCHPConfig(**{**settings, 'network': args.network, 'size': labels.size})
    torch.manual_seed(0)
    model = build(config, labels).to(device).eval()
    images = torch.rand(1, 3, *labels.size, device=device)
    plain = torchvision.models.resnet101().eval().to(device)
    folded = copy.deepcopy(model).fold()
    fast_images = images.to(memory_format=torch.channels_last)
    steps = {
        'plain ResNet-101': lambda: plain(images),
        'all heads': lambda: model(images),
        'folded, fusion': lambda: folded(fast_images, heads=('fusion',)),
    }
    clock = Clock(device)
    for repeat in range(args.repeats + 1):
        if repeat == 1:                          # the first is not counted
            clock = Clock(device)
        for name, step in steps.items():
            clock(name, step)
    print(f'{describe_machine(labels.size, device)}; median of {args.repeats}')
    print(f'{"":16} {"ms":>9} {"CPU ms":>9} {"ResNet-101":>10} {"MACs G":>9}')
    for name, step in steps.items():
        wall, process = clock.median(name)
        units = clock.cost(name) / clock.cost('plain ResNet-101')
        print(f'{name:16} {wall:9.1f} {process:9.1f} {units:10.2f} '
              f'{multiply_adds(step) / 1e9:9.1f}')

"""SCHP's networks on a crop."""
import copy

import torch
import torchvision

from schp import build
from schp.config import SCHPConfig
from schp.config import preset as schp_preset
from tools.benchmark.clock import Clock, multiply_adds
from tools.benchmark.record import by, headline, write_record
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
    print(f'{headline(by(labels.size), device)}; median of {args.repeats}')
    print(f'{"":16} {"ms":>9} {"CPU ms":>9} {"ResNet-101":>10} {"MACs G":>9}')
    rows = []
    for name, step in steps.items():
        wall, process = clock.median(name)
        units = clock.cost(name) / clock.cost('plain ResNet-101')
        operations = multiply_adds(step)
        print(f'{name:16} {wall:9.1f} {process:9.1f} {units:10.2f} {operations / 1e9:9.1f}')
        rows.append(dict(step=name, ms=round(wall, 1), cpu_ms=round(process, 1),
                         units=round(units, 2), multiply_adds=operations, size=list(labels.size)))
    write_record(args.json, args.command, rows, device)

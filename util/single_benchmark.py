"""The CPU or GPU time of the networks for photos of one person.

    python -m util.single_benchmark --threads 1

The unit is the time of one forward pass of torchvision's ResNet-101 in float32 on an image of the same size, measured
alternately with the rest; on a CPU the process time of all threads.
"""
import argparse

import torch
import torchvision

from schp import NETWORKS, build
from util.benchmark import Clock, multiply_adds
from util.files import user_errors
from util.labels import LABEL_SETS
from util.run import find_device
from util.schp_config import SCHPConfig, preset

LABELS = {'ace2p': 'lip', 'segformer': 'merged'}


def measure(network, device, repeats):
    """Prints a row of times for one network, with untrained weights, at its own size."""
    config = SCHPConfig(network=network, **preset('LIP', network, 0))
    model = build(config, LABEL_SETS[LABELS[network]]).eval()
    variants = {'plain, all heads': (model, ('parsing', 'fusion', 'edge')),
                'folded, fusion alone': (model.folded(), ('fusion',)),
                'channels-last': (model.folded().to(memory_format=torch.channels_last), ('fusion',))}
    image, clock = torch.zeros(1, 3, *config.size), Clock(torch.device(device))
    unit = torchvision.models.resnet101().eval()
    with torch.inference_mode():
        operations = multiply_adds(lambda: model(image, heads=('fusion',)))
        for network_or_unit in (unit, *(m for m, _ in variants.values())):
            network_or_unit.to(device)
        for repeat in range(repeats + 1):
            if repeat == 1:                               # the first round warms up
                clock.wall, clock.process = {}, {}
            clock('unit', unit, image.to(device))
            for name, (m, heads) in variants.items():
                clock(name, m, image.to(device, memory_format=torch.channels_last), heads)
    print(f'{network} {config.size[0]}x{config.size[1]}: {operations / 1e9:.1f} G multiply-adds for fusion, unit '
          f'{clock.cost("unit"):.0f} ms; ' + ', '.join(
              f'{name} {clock.cost(name):.0f} ms = {clock.cost(name) / clock.cost("unit"):.2f} units' for name in variants))


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--network', choices=list(NETWORKS), action='append', help='default: all')
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--device', default='cpu', choices=['auto', 'cpu', 'cuda', 'mps'])
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_arguments(argv)
    torch.set_num_threads(args.threads)
    with user_errors():
        for network in args.network or NETWORKS:
            measure(network, find_device(args.device), args.repeats)


if __name__ == '__main__':
    main()

"""The weighted mean of the weights of two models of the same sizes and classes.

    python -m tools.mean first.pt second.pt --share 0.6 --out mean.pt     # 0.4 first + 0.6 second

If one was trained further from the other, the mean keeps more of what the first one knew (Wortsman
et al. 2022). Configuration, class names and settings of inference are those of the second.
"""
import os

import torch

from uniparser import UniParser
from util.checkpoints import SAFE
from util.cli import Between, CommandParser, Ending, start
from util.files import printable, user_errors


@torch.no_grad()
def mean_weights(first: UniParser, second: UniParser, share: float) -> dict:
    """State dict: (1 - share) times the weights and statistics of the first plus share times those
    of the second, in the types of the second. The two are alike, see `check_alike`."""
    first = first.state_dict()
    mean = {}
    for name, value in second.state_dict().items():
        if value.is_floating_point():
            value = torch.lerp(first[name].double(), value.double(), share).to(value.dtype)
        mean[name] = value
    return mean


def check_alike(first: UniParser, second: UniParser, files: str):
    """ValueError where the classes differ, or names or shapes of the weights. files: 'the first and
    the second', for the sentence."""
    if first.class_names != second.class_names:
        raise ValueError(f'{files} have different classes; give two of the same')
    shapes = [{name: value.shape for name, value in model.state_dict().items()}
              for model in (first, second)]
    if shapes[0] != shapes[1]:
        raise ValueError(f'{files} are of different sizes; give two of one architecture')


def parse_arguments(argv=None):
    parser = CommandParser(__doc__)
    parser.add_argument('first', help='weights file')
    parser.add_argument('second', help='weights file')
    parser.add_argument('--share', type=Between(0, 1, float), default=0.5,
                        help='share of the second (default: %(default)s)')
    parser.add_argument('--out', type=Ending('.pt', SAFE), required=True, metavar='FILE',
                        help='weights file to write')
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_arguments(argv)
    with user_errors():
        if os.path.lexists(args.out):
            raise ValueError(f'{printable(args.out)} exists; choose another --out')
        first = UniParser.from_pretrained(args.first)
        second = UniParser.from_pretrained(args.second)
        check_alike(first, second, f'{args.first} and {args.second}')
        second.load_state_dict(mean_weights(first, second, args.share))
        second.save(args.out)


if __name__ == '__main__':
    start(main)

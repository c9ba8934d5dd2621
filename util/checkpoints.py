"""Reading weights files: ours, torchvision's, and those of the authors' released code (an mmdetection build).

    python infer.py photo.jpg --weights UniParser_MHP_r101_light.pth          # a released file as it is
    python checkpoints.py UniParser_MHP_r101_light.pth --out uniparser.pt     # or once, into our own format
    python checkpoints.py runs/MHP/best.pt --half --out uniparser.pt          # without what only training needs

Of a released file, depth, light or full and the number of classes are read off the shapes.
"""
import argparse
import os
import re
import sys
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import asdict, replace

import numpy as np
import torch

import data

FORMAT = 'uniparser 1'                                                       # of our own files; see `UniParser.save`


def read_checkpoint(path):
    """torch.load on the CPU with weights_only, and sentences instead of tracebacks."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f'{path} does not exist; give the path of a weights file')
    try:
        with torch.serialization.safe_globals(numpy_types()):
            state = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:                            # torch raises many types on broken files
        if foreign := re.search(r'Unsupported (?:global: GLOBAL|class) ([\w.]+)', str(error)):
            raise ValueError(
                f'{path} holds {foreign[1]}, which could run code, so it is not loaded; if you trust its author, keep '
                f'its weights alone: python -c "import torch; s = torch.load({str(path)!r}, weights_only=False); '
                'torch.save(s[\'state_dict\'], \'weights.pt\')"') from None
        raise ValueError(f'{path} is not a readable weights file; give one of train.py or of the authors') from None
    if not isinstance(state, dict):
        raise ValueError(f'{path} holds a {type(state).__name__}, not a dictionary of weights')
    return state


@contextmanager
def reading(path):
    """Whatever is wrong with what a weights file holds becomes one sentence that names the file."""
    try:
        yield
    except Exception as error:                            # strangers' files: any type in any place
        if isinstance(error, (OSError, ValueError)) and str(path) in str(error):
            raise
        reason = str(error) if isinstance(error, ValueError) else f'{type(error).__name__}: {error}'
        raise ValueError(f'{path} holds no model that can be built ({" ".join(reason.split())}); get the file again, '
                         'or a newer version of this program') from None


def numpy_types():
    """What other programs leave in their files beside the weights, harmless: numpy's numbers and arrays, under the
    module names of numpy 1 and 2."""
    core = (np._core if hasattr(np, '_core') else np.core).multiarray
    functions = [(getattr(core, name), f'numpy.{module}.multiarray.{name}')
                 for name in ('scalar', '_reconstruct') for module in ('core', '_core')]
    dtypes = [type(np.dtype(kind)) for kind in ('?', 'i1', 'u1', 'i4', 'i8', 'f2', 'f4', 'f8', 'U')]
    return [*functions, *dtypes, np.dtype, np.ndarray]


def load_strictly(module, weights, path):
    """module.load_state_dict, with a sentence that names what does not fit."""
    own = module.state_dict()
    weights = {k: v for k, v in weights.items() if torch.is_tensor(v)}
    lists = {'missing': [k for k in own if k not in weights], 'unknown': [k for k in weights if k not in own],
             'of another shape': [k for k in own if k in weights and weights[k].shape != own[k].shape]}
    if any(lists.values()):
        raise ValueError(f'{path} does not fit: ' + '; '.join(
            f'{len(v)} {k}: {", ".join(v[:5])}' + ', ..' * (len(v) > 5) for k, v in lists.items() if v))
    if broken := [k for k, v in weights.items() if v.is_floating_point() and not v.isfinite().all()]:
        raise ValueError(f'{path} holds NaN or infinite numbers in {len(broken)} of {len(own)} entries, the first is '
                         f'{broken[0]}; take an earlier file')
    if any(v.is_meta for v in own.values()):
        module.to_empty(device='cpu')
    module.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in weights.items()})


def main(argv=None):
    from uniparser import UniParser, describe
    parser = argparse.ArgumentParser(description='Writes the weights of a run, or of the released code, to share them.')
    parser.add_argument('weights', help='a checkpoint of train.py or of the released code')
    parser.add_argument('--out', required=True, metavar='FILE')
    parser.add_argument('--half', action='store_true', help='in half precision: half the size')
    args = parser.parse_args(argv)
    try:
        model = UniParser.from_pretrained(args.weights)
        model.config = replace(model.config, pretrained=os.path.basename(model.config.pretrained))     # not its folder
        (model.half() if args.half else model).save(args.out)
    except (OSError, ValueError) as error:
        print(f'error: {error}', file=sys.stderr)
        sys.exit(2)
    print(f'{args.out}: {os.path.getsize(args.out) / 1e6:.1f} MB, {describe(model.config)}')


if __name__ == '__main__':
    main()

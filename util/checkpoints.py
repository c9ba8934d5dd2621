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
NAMES = [(re.compile(released), here) for released, here in (
    (r'^neck\.lateral_convs\.(\d)\.conv\.', r'fpn.inner_blocks.\1.0.'),
    (r'^neck\.fpn_convs\.(\d)\.conv\.', r'fpn.layer_blocks.\1.0.'),
    (r'^(backbone\..*\.conv2)_offset\.', r'\1.conv_offset.'),                # as mmcv wrote it before version 2
    (r'^mask_head\.dekr_convs\.', 'neck.conv.'),
    (r'^mask_head\.segment_converts\.', 'category_neck.conv.'),
    (r'^mask_head\.center_heatmap\.', 'center_locator.heatmap.'),
    (r'^mask_head\.center_convs\.', 'center_locator.tower.convs.'),
    (r'^mask_head\.instance_convs\.', 'instance_builder.tower.convs.'),
    (r'^mask_head\.semantic_convs\.', 'category_builder.tower.convs.'),
    (r'^mask_head\.seg_kernels$', 'category_builder.k_cate'))]
UNUSED = 'mask_head.ins_coord_conv.'                                         # 2,306 weights outside its forward
BLOCKS = {(2, 2, 2, 2): 'resnet18', (3, 4, 6, 3): 'resnet50', (3, 4, 23, 3): 'resnet101', (3, 8, 36, 3): 'resnet152'}
SETS = {58: data.MHP, 19: data.CIHP}                                         # by number of classes


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


def is_released(state):
    """Whether a checkpoint is the released code's: {meta, state_dict, optimizer}, or the state_dict alone."""
    return any(str(k).removeprefix('module.') == 'mask_head.seg_kernels' for k in state.get('state_dict', state))


def from_released(state, path):
    """A released checkpoint, as read from `path`, in our own format: see `UniParser.save`."""
    from uniparser import get_config
    weights = rename(state)
    shape = defaultdict(tuple, {k: tuple(v.shape) for k, v in weights.items()})
    num_classes, channels = shape['category_builder.k_cate']
    backbone = read_backbone(shape)
    if backbone is None or len(shape['neck.conv.weight']) != 4:
        raise ValueError(f'{path} looks like a checkpoint of the released UniParser but has no ResNet or no head')
    light, cihp = shape['neck.conv.weight'][2:] == (1, 1), num_classes == 19
    center = 0.1 if cihp else 0.3 if light else 0.2 if backbone == 'resnet50' else 0.1     # those of its configs
    config = get_config('cihp_released' if cihp else 'mhp_released', num_classes=num_classes, backbone=backbone,
                        light=light, theta_center=center, channels=channels, neck_channels=shape['neck.conv.weight'][0],
                        dcn=any('conv_offset' in k for k in weights), pretrained_stages=4)
    names = SETS.get(num_classes)
    return dict(format=FORMAT, config=asdict(config), class_names=names and names.class_names,
                flip_pairs=names.flip_pairs if names else (), model=weights)


def rename(state):
    """The weights by our names; those that no forward uses are left out."""
    weights = {}
    for key, value in state.get('state_dict', state).items():
        key = key.removeprefix('module.')
        for released, here in NAMES:
            key = released.sub(here, key)
        if not key.startswith(UNUSED):
            weights[key] = value
    return weights


def read_backbone(shape):
    """The ResNet whose stages have as many blocks; None if there is none."""
    blocks = [set(), set(), set(), set()]
    for key in shape:
        if match := re.match(r'backbone\.layer([1-4])\.(\d+)\.', key):
            blocks[int(match[1]) - 1].add(match[2])
    name = BLOCKS.get(tuple(map(len, blocks)))
    return 'resnet34' if name == 'resnet50' and 'backbone.layer1.0.conv3.weight' not in shape else name


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

"""Weights files: reading any, writing ours.

Ours are dictionaries with format, system (uniparser, schp, oneshot), config, class_names, flip_pairs and model, the
state dict. `last.pt` of a run holds the rest of the training state beside them.
"""
import os
import pickletools
import re
import zipfile
from contextlib import contextmanager
from dataclasses import asdict, fields
from pickle import UnpicklingError

import numpy as np
import torch

from util.files import replacing, short

FORMAT = 'uniparser 1'
HARMLESS = re.compile(                                   # what a pickle of weights needs, of the much that torch allows
    r'(__builtin__|builtins)\.set|collections\.(OrderedDict|Counter)|_codecs\.encode|torch\.(cuda\.)?[A-Z]\w+Storage'
    r'|torch\._utils\._rebuild_(tensor(_v2)?|parameter)|torch\.(Size|device|b?float\d+|u?int\d+|bool|complex\d+)'
    r'|torch\.nn\.parameter\.Parameter|numpy\.(dtype|ndarray|(_?core)\.multiarray\.(scalar|_reconstruct))'
    r'|(os|posix|nt|sys)\..*')                          # torch blocks the last four, with a sentence of its own
KINDS = '?', 'b1', 'i1', 'u1', 'i2', 'i4', 'i8', 'f2', 'f4', 'f8', 'U'       # dtypes of numpy
# Settings that may hold a folder of the user's machine.
PATHS = 'pretrained', 'backgrounds', 'people', 'tagged', 'coco', 'parts'


def read_checkpoint(path):
    """torch.load on the CPU with weights_only, and sentences instead of tracebacks."""
    if not os.path.isfile(path):
        reason = 'is a folder' if os.path.isdir(path) else 'does not exist'
        raise FileNotFoundError(f'{path} {reason}; give the path of a weights file')
    check_archive(path)
    try:
        check_globals(path)
        with torch.serialization.safe_globals(numpy_types()):
            state = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:                            # torch raises many types on broken files
        if foreign := re.search(r'Unsupported (?:global: GLOBAL|class) ([\w.]+)', str(error)):
            raise ValueError(
                f'{path} holds {foreign[1]}, which could run code or fill the memory, so it is not loaded; if you '
                f'trust its author, keep its weights alone: python -c "import torch; s = torch.load({str(path)!r}, '
                'weights_only=False); torch.save(s[\'state_dict\'], \'weights.pt\')"') from None
        raise ValueError(f'{path} is not a readable weights file; give one of train.py or of the released '
                         'code') from None
    if not isinstance(state, dict):
        raise ValueError(f'{path} holds a {type(state).__name__}, not a dictionary of weights')
    return state


def check_archive(path):
    """ValueError for a zip archive whose entries claim more bytes than the file has: unpacked, they could fill the
    memory. torch.save stores its entries as they are."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(info.file_size for info in archive.infolist())
        if unpacked > os.path.getsize(path):
            raise ValueError(f'{path} unpacks to {unpacked:,} bytes, more than the file has; torch.save does not '
                             'compress: get the file again')


def check_globals(path):
    """UnpicklingError for a pickle that names anything but HARMLESS things. weights_only allows more, such as bytearray
    and torch.ByteTensor, which allocate any size that they are told."""
    with open(path, 'rb') as file:
        if file.read(4) == b'PK\3\4':             # as torch decides it
            pickles = [torch._C.PyTorchFileReader(str(path)).get_record('data.pkl')]
        else:
            file.seek(0)
            pickles = [file] * 4                          # magic number, protocol, system, content
        for content in pickles:
            for opcode, argument, _ in pickletools.genops(content):
                if opcode.name == 'GLOBAL' and not HARMLESS.fullmatch(name := argument.replace(' ', '.')):
                    raise UnpicklingError(f'Unsupported global: GLOBAL {name}')


COMMANDS = dict(uniparser='of UniParser; use python infer.py PHOTO --weights FILE',
                schp='of SCHP, for photos of one person; use python schp.py extract PHOTO --weights FILE',
                oneshot='of one-shot human parsing; use python oneshot.py parse --weights FILE')
SIGNS = {'mask_head.seg_kernels': 'uniparser', 'fushion.3.weight': 'schp', 'head.linear_pred.weight': 'schp',
         'xception_features.conv1.weight': 'oneshot'}    # an entry of each system's released files


def find_system(state):
    """uniparser, schp, oneshot or an unknown name: the system that a file, as read, belongs to; None where nothing
    shows it."""
    if state.get('format') == FORMAT:
        system = state.get('system', 'uniparser')
        return short(system) if isinstance(system, str) else f'of the type {type(system).__name__}'
    weights = state.get('state_dict', state)
    keys = {str(key).removeprefix('module.') for key in weights} if isinstance(weights, dict) else ()
    return next((name for sign, name in SIGNS.items() if sign in keys), None)


def name_command(state, system):
    """Where a file, as read, belongs to another system than this one: 'is a file of ..; use ..'. Else None."""
    found = find_system(state)
    unknown = f'of a system that this version does not know ({found}); get a newer version of this program'
    return None if found in (system, None) else f'is a file {COMMANDS.get(found, unknown)}'


@contextmanager
def reading(path):
    """Turns any error about the content of a weights file into one sentence that names the file."""
    try:
        yield
    except Exception as error:                            # the content of an unknown file may be anything
        if isinstance(error, (OSError, ValueError)) and str(path) in str(error):
            raise
        reason = str(error) if isinstance(error, ValueError) else f'{type(error).__name__}: {error}'
        raise ValueError(f'{path} holds no model that can be built ({" ".join(reason.split())}); get the file again, '
                         'or a newer version of this program') from None


def numpy_types():
    """Harmless numbers and arrays of numpy, which other programs leave beside the weights, under the module names of
    numpy 1 and 2. Functions that take no more memory than the file has stand for numpy's own."""
    functions = [(function, f'numpy.{module}.multiarray.{name}') for module in ('core', '_core')
                 for name, function in dict(scalar=numpy_scalar, _reconstruct=empty_array).items()]
    types = [(type(np.dtype(kind)), f'of {kind}') for kind in KINDS]         # these names are in no file
    return [*functions, *types, (numpy_dtype, 'numpy.dtype'), (np.ndarray, 'of arrays'), (empty_array, 'numpy.ndarray')]


def numpy_dtype(kind, *_):
    """numpy.dtype as a pickle calls it: a number, or text."""
    if kind not in KINDS and not re.fullmatch(r'U\d{1,6}', kind):
        raise ValueError(f'no dtype of numbers: {short(kind)}')
    return np.dtype(kind)


def numpy_scalar(dtype, content):
    if isinstance(content, str):                          # of protocols before 3
        content = content.encode('latin1')
    if len(content) != dtype.itemsize:
        raise ValueError(f'{len(content)} bytes for one of {dtype.itemsize}')
    return np.frombuffer(content, dtype)[0]


def empty_array(_, shape, *__):
    """numpy's _reconstruct as a pickle calls it: an array whose content follows."""
    if shape != (0,):
        raise ValueError(f'an array of shape {short(shape)} without content')
    return np.empty(0, np.int8)


def load_strictly(module, weights, path):
    """module.load_state_dict in float32, with a sentence that names what does not fit."""
    if not isinstance(weights, dict):
        raise ValueError(f'{path}: its model is of type {type(weights).__name__}, not a dictionary; get it again')
    own = module.state_dict()
    weights = {k: v for k, v in weights.items() if torch.is_tensor(v)}
    stored = {v.untyped_storage().data_ptr(): v.untyped_storage().nbytes() for v in weights.values()}
    claimed = sum(v.numel() * v.element_size() for v in weights.values())
    if claimed > sum(stored.values()):                    # expanded or shared tensors: a small file, a large model
        raise ValueError(f'{path} claims weights of {claimed:,} bytes but holds {sum(stored.values()):,}; get it again')
    lists = {'missing': [k for k in own if k not in weights], 'unknown': [k for k in weights if k not in own],
             'of another shape': [k for k in own if k in weights and weights[k].shape != own[k].shape]}
    if any(lists.values()):
        raise ValueError(f'{path} does not fit: ' + '; '.join(
            f'{len(v)} {k}: {", ".join(map(short, v[:5]))}' + ', ..' * (len(v) > 5) for k, v in lists.items() if v))
    if broken := [k for k, v in weights.items() if v.is_floating_point() and not v.isfinite().all()]:
        raise ValueError(f'{path} holds NaN or infinite numbers in {len(broken)} of {len(own)} entries, the first is '
                         f'{short(broken[0])}; take an earlier file')
    if any(v.is_meta for v in own.values()):
        module.to_empty(device='cpu')
    module.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in weights.items()})


def check_settings(config, config_class):
    """ValueError where the config of a file, a dict, has unknown fields or values of another type."""
    if not isinstance(config, dict):
        raise ValueError(f'its config is of type {type(config).__name__}, not a dictionary')
    unknown = sorted(map(short, set(config) - {f.name for f in fields(config_class)}))
    if unknown:
        raise ValueError(f'its config has unknown fields such as {unknown[:3]}: another version wrote it')
    for name, value in config.items():
        default = getattr(config_class, name)
        if type(value) is not type(default) and (type(value), type(default)) != (int, float):
            raise ValueError(f'its setting {name} is {short(repr(value))}, but should be like {default!r}')


def load_pretrained(model, source):
    """Starts a UniParser from a whole model of the same sizes and classes, a file of ours, or from ImageNet weights of
    its backbone, see `load_imagenet`. Returns how many stages keep their ImageNet statistics."""
    state = {} if source == 'imagenet' else read_checkpoint(source)
    if state.get('format') != FORMAT:
        return model.backbone.load_imagenet(source)
    load_strictly(model, state['model'], source)
    model.backbone.freeze(state['config']['pretrained_stages'])
    return model.backbone.stages


def load_imagenet(backbone, source, name, optional=()):
    """Loads 'imagenet' (torchvision's download for the model `name`) or a file in the same layout into a ResNet. Its
    last stages may be missing, and entries with a name in `optional` too. Returns the number of stages loaded."""
    if source == 'imagenet':
        try:
            from torchvision.models import get_model_weights
            state = get_model_weights(name).IMAGENET1K_V1.get_state_dict(check_hash=True)
        except OSError as error:
            raise ConnectionError(
                f'the ImageNet weights of {name} cannot be downloaded ({error}); give a file in the layout of '
                'torchvision (--pretrained FILE) or start without (--pretrained "")') from None
    else:
        state = read_checkpoint(source)
    state = {k: v for k, v in state.items() if torch.is_tensor(v) and not str(k).startswith('fc.')}
    own = {k: v for k, v in backbone.state_dict().items() if not any(word in k for word in ('num_batches', *optional))}
    wrong = [k for k, v in state.items() if 'num_batches' not in k and (k not in own or own[k].shape != v.shape)]
    missing = {k.split('.')[0] for k in own if k not in state}
    if wrong or missing - {'layer2', 'layer3', 'layer4'}:
        raise ValueError(f'{source} is not for {name}: it has {len(wrong)} entries of other names or shapes '
                         f'{wrong[:1]} and lacks {sorted(missing)}')
    backbone.load_state_dict(state, strict=False)
    return min([int(m[-1]) for m in missing], default=5) - 1


def without_paths(config):
    """asdict(config) without the folders of this machine: a file name stays, a folder becomes ''."""
    config = asdict(config)
    for name in PATHS:
        if name in config:
            config[name] = os.path.basename(config[name]) if name == 'pretrained' else ''
    return config


def write_checkpoint(path, system, config, model, **more):
    """Writes a weights file of ours under a temporary name and renames it. `more` is stored beside the weights."""
    state = dict(format=FORMAT, system=system, config=without_paths(config), model=model, **more)
    try:
        with replacing(path) as temporary, open(temporary, 'wb') as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:              # torch raises its own for a full disk
        reason = getattr(error, 'strerror', None) or 'probably the disk is full'
        raise OSError(f'{path} cannot be written ({reason}); make room: the old file is kept') from None

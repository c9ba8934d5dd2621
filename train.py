"""Trains UniParser.

    python train.py                                          # drawn people, CPU, about three minutes
    python train.py --data MHP --root data/LV-MHP-v2         # the paper's recipe
    python train.py --data CIHP --root data/CIHP --recipe released
    torchrun --nproc-per-node 8 train.py --data MHP --root data/LV-MHP-v2 --backbone resnet101 --epochs 36
    python train.py --resume runs/MHP                        # goes on where it stopped, exactly

Every field of `uniparser.Config` is a flag. A run writes runs/NAME/: config.json, log.jsonl, last.pt, best.pt and
val/*.png; its last line is its metrics.
"""
import argparse
import json
import math
import os
import signal
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path

import torch
import torch.distributed as dist
from PIL import Image
from tqdm import tqdm

import data
from util.benchmark import benchmark_training, drawn_photos, memory
from util.checkpoints import FORMAT, load_strictly, read_checkpoint, reading
from evaluate import ParsingMetrics
from losses import uniparser_loss
from util.submissions import make_folder, write_file, writing
from uniparser import CHOICES, Config, UniParser, describe, find_device, get_config

LOG_SECONDS, SAVE_SECONDS, PICTURES = 10, 600, 8
STATE = 'format', 'config', 'model', 'optimizer', 'scaler', 'root', 'world', 'best', 'epoch', 'position'
SPIKE = 10_000                                       # total loss; an untrained network has about 10
REPORTED = 'AP50', 'APvol', 'PCP50', 'mIoU'
RESUMABLE = 'epochs', 'milestones', 'workers', 'val_every', 'val_images'      # what --resume may change


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', choices=list(data.DATASETS), help='default: synthetic')
    parser.add_argument('--root', help='folder of the data set, as downloaded')
    parser.add_argument('--recipe', choices=CHOICES['recipe'], help='default: paper')
    parser.add_argument('--out', help='folder of the run; default runs/NAME, the first that is free')
    parser.add_argument('--resume', metavar='RUN', help='folder of a run to continue')
    parser.add_argument('--device', default='auto', choices=['auto', 'cpu', 'cuda', 'mps'])
    parser.add_argument('--amp', action=argparse.BooleanOptionalAction, help='half precision; default: on CUDA')
    parser.add_argument('--benchmark', action='store_true',
                        help='measure the speed of data and steps on this machine; MHP without --root: on drawn files')
    parser.add_argument('--skip-bad', action='store_true', help='leave out images that cannot be read, and name them')
    group = parser.add_argument_group('settings (the defaults are those of the preset)')
    for field in fields(Config):
        if field.name in ('data', 'recipe', 'num_classes', 'pretrained_stages'):
            continue
        flag, kind = '--' + field.name.replace('_', '-'), type(field.default)
        if kind is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS)
        elif kind is tuple:
            group.add_argument(flag, type=int, nargs='*', default=argparse.SUPPRESS, metavar='N')
        else:
            group.add_argument(flag, type=kind, default=argparse.SUPPRESS, choices=CHOICES.get(field.name),
                               metavar=None if field.name in CHOICES else kind.__name__.upper())
    return parser.parse_args(argv)


# ---------------------------------------------------------------------------------------------------------------
# Schedule


def learning_rate(step, steps_per_epoch, config):
    """Rate of the given step (0-based) for the whole batch: linear warm-up, then steps (divided by 10 at each
    milestone) or a half cosine to zero."""
    rate, epoch = config.lr * config.batch_size, step / steps_per_epoch
    if config.schedule == 'cosine':
        rate *= 0.5 * (1 + math.cos(math.pi * min(1.0, epoch / config.epochs)))
    else:
        milestones = config.milestones or (config.epochs * 3 // 4, config.epochs * 11 // 12)
        rate *= 0.1 ** sum(epoch >= m for m in milestones)
    return rate * min(1.0, (step + 1) / max(1, config.warmup))


def make_optimizer(model, config):
    backbone = [p for p in model.backbone.parameters() if p.requires_grad]
    ids = {id(p) for p in backbone}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in ids]
    groups = [dict(params=backbone, factor=config.backbone_lr), dict(params=rest, factor=1.0)]
    if config.optimizer == 'adamw':
        return torch.optim.AdamW(groups, lr=1.0, weight_decay=config.weight_decay)
    return torch.optim.SGD(groups, lr=1.0, momentum=0.9, weight_decay=config.weight_decay)


# ---------------------------------------------------------------------------------------------------------------
# One step


class NonFinite(RuntimeError):
    pass


def train_step(model, batches, optimizer, scaler, config, device, amp, rate):
    """Forward and backward of `batches` (the passes of one step), one update. Returns the mean of each loss term, on
    the device: reading them would make the host wait."""
    for group in optimizer.param_groups:
        group['lr'] = rate * group['factor']
    optimizer.zero_grad(set_to_none=True)
    total = {}
    for k, batch in enumerate(batches):
        images = batch['images'].to(device, non_blocking=True, memory_format=torch.channels_last)
        parsings = [p.to(device, non_blocking=True) for p in batch['parsings']]
        ignores = batch['ignores'].to(device, non_blocking=True)
        if hasattr(model, 'require_backward_grad_sync'):                     # DDP: exchange gradients once a step
            model.require_backward_grad_sync = k == len(batches) - 1
        with torch.autocast(device.type, amp or None, enabled=bool(amp)):
            out = model(images)
        losses = uniparser_loss(out, parsings, ignores, config)
        scaler.scale(losses['total'] / len(batches)).backward()
        for name, value in losses.items():
            total[name] = total.get(name, 0) + value.detach() / len(batches)
    scaler.unscale_(optimizer)
    total['grad_norm'] = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
    scaler.step(optimizer)
    scaler.update()
    return total


def check_finite(losses, batches, scaler):
    """Loss terms as numbers. NonFinite, with the terms and the images, where one is not finite or the total is a spike;
    but a float16 gradient may overflow, the scaler skips it."""
    values = {k: float(v) for k, v in losses.items()}
    bad = [k for k, v in values.items() if not math.isfinite(v) and not (k == 'grad_norm' and scaler.is_enabled())]
    if bad or values['total'] > SPIKE:
        wrong = f'{", ".join(bad)} is not finite' if bad else f'the total is above {SPIKE:,}; lower --lr'
        names = ', '.join(str(info['id']) for batch in batches for info in batch['infos'])
        raise NonFinite(f'{wrong}; all terms: {values}; images: {names}')
    return values


# ---------------------------------------------------------------------------------------------------------------
# Validation


def validate(model, dataset, config, rank=0, world=1, pictures=None, seen=()):
    """AP^p, PCP and mIoU on the data set, each process its share; pictures: folder for the first few. None where a lone
    process has `seen` a signal."""
    count = min(len(dataset), config.val_images or len(dataset))
    metrics = ParsingMetrics(config.num_classes)
    for i in tqdm(range(rank, count, world), desc='validation', leave=False, disable=rank > 0 or None):
        if seen and world == 1:
            return None
        try:
            image, parsing, ignore = dataset.read(i)
        except (OSError, ValueError) as error:
            if not dataset.skip_bad:
                raise
            tqdm.write(f'skipped: {error}', file=sys.stderr)
            continue
        prediction = model.predict(image)[0]
        metrics.add(i, prediction, (parsing, ignore))
        if pictures and i < PICTURES:
            save_picture(pictures / f'{i:02d}_{dataset.ids[i]}.png', image, parsing, prediction.parsing, dataset)
    if world > 1:
        parts = [None] * world
        dist.all_gather_object(parts, metrics)
        metrics = parts[0]
        for part in parts[1:]:
            metrics.merge(part)
    return metrics.result()


def save_picture(path, image, truth, found, dataset):
    """Photo, ground truth and prediction, side by side."""
    panels = [Image.fromarray(image), data.overlay(image, truth, dataset.class_names),
              data.overlay(image, found, dataset.class_names)]
    sheet = Image.new('RGB', (sum(p.width for p in panels), max(p.height for p in panels)))
    x = 0
    for panel in panels:
        sheet.paste(panel, (x, 0))
        x += panel.width
    make_folder(path.parent)
    with writing(path):
        sheet.save(path)


def summary(result):
    return ' '.join(f'{name} {result[name]:.3f}' for name in REPORTED)


# ---------------------------------------------------------------------------------------------------------------
# The run


def prepare(args):
    """Arguments -> config, folder, state of the run to continue (or None), root."""
    names = {f.name for f in fields(Config)} - {'data', 'recipe'}
    changes = {k: tuple(v) if isinstance(v, list) else v for k, v in vars(args).items() if k in names}
    if args.resume:
        state = read_checkpoint(os.path.join(args.resume, 'last.pt'))
        fixed = [k for k in ('data', 'recipe', 'out') if getattr(args, k)] + [k for k in changes if k not in RESUMABLE]
        if fixed:
            flag = fixed[0].replace('_', '-')
            raise ValueError(f'--resume goes on with the settings of the run: --{flag} cannot change')
        if any(key not in state for key in STATE) or state['format'] != FORMAT:
            raise ValueError(f'{args.resume}/last.pt holds no training state to resume from; give the folder of a run '
                             'of this version')
        with reading(os.path.join(args.resume, 'last.pt')):
            return replace(Config(**state['config']), **changes), Path(args.resume), state, args.root or state['root']
    preset = (args.data or 'synthetic').lower() + ('_released' if args.recipe == 'released' else '')
    config = get_config(preset, **changes)
    if args.out and os.path.exists(os.path.join(args.out, 'last.pt')):
        raise ValueError(f'{args.out} holds a run already; go on with --resume {args.out} or choose another --out')
    return config, args.out and Path(args.out), None, args.root


def train(args):
    config, folder, state, root = prepare(args)
    rank, world, device = set_up_processes(args.device)
    if config.batch_size % (world * config.accumulate):
        raise ValueError(f'--batch-size {config.batch_size} cannot be shared by {world} processes with '
                         f'--accumulate {config.accumulate}; choose a multiple of {world * config.accumulate}')
    if state and state['world'] != world:
        raise ValueError(f'{folder} was trained by {state["world"]} processes; go on with as many')
    torch.manual_seed(config.seed)
    drawn = dict(long_side=config.long_side, samples=config.samples) if config.data in ('CCP', 'synthetic') else {}
    if config.data == 'CCP':
        drawn.update(backgrounds=config.backgrounds, people=config.people)
    train_set = data.open_dataset(config.data, root, 'train', **drawn)
    val_set = data.open_dataset(config.data, root, 'val')
    train_set.skip_bad = val_set.skip_bad = args.skip_bad
    samples = data.Samples(train_set, config)
    loader = data.loader(samples, config, config.batch_size // world // config.accumulate, rank, world, device)
    if loader.batch_sampler.total() < config.accumulate:
        raise ValueError(f'{len(train_set)} training images are too few for --batch-size {config.batch_size} with '
                         f'--accumulate {config.accumulate}')
    model = UniParser(config, train_set.class_names, train_set.flip_pairs)
    if state:
        load_strictly(model, state['model'], folder / 'last.pt')
    elif args.benchmark:
        model.backbone.freeze(4 if config.pretrained else 0)
    elif config.pretrained:
        model.load_imagenet()
        config = model.config
        if config.pretrained_stages < 4 and rank == 0:
            print(f'{config.pretrained} ends at stage {config.pretrained_stages}; the rest starts from scratch')
    model.to(device, memory_format=torch.channels_last)
    if args.benchmark:
        with data.workers_of(loader):
            return benchmark_training(model, loader, config, device, choose_amp(args.amp, device))
    if folder is None:
        folder = [free_folder(config.data)]
        if world > 1:
            dist.broadcast_object_list(folder)
        folder = folder[0]
    run = Run(folder, rank)
    run.best = state['best'] if state else -1.0
    if rank == 0:
        write_file(run.folder / 'config.json', json.dumps(asdict(config), indent=1) + '\n')
    run.log(f'{run.folder}: {len(train_set)} training and {len(val_set)} validation images, {world} x {device}, '
            f'{sum(p.numel() for p in model.parameters()):,} parameters')
    run.log(f'settings: {describe(config)}')
    with signals() as seen, data.workers_of(loader):
        return fit(model, config, loader, val_set, run, state, root, rank, world, device, args.amp, seen)


def fit(model, config, loader, val_set, run, state, root, rank, world, device, amp, seen):
    optimizer = make_optimizer(model, config)
    amp = choose_amp(amp, device)
    scaler = torch.amp.GradScaler(device.type, enabled=amp == torch.float16)
    epoch, position = 0, 0
    if state:
        with reading(run.folder / 'last.pt'):
            optimizer.load_state_dict(state['optimizer'])
            scaler.load_state_dict(state['scaler'])
        epoch, position = state['epoch'], state['position']
    net = model
    if world > 1:
        net = torch.nn.parallel.DistributedDataParallel(model, [device.index] if device.type == 'cuda' else None)
    steps = loader.batch_sampler.total() // config.accumulate

    def save(epoch, position):
        if rank == 0:
            model.save(run.folder / 'last.pt', optimizer=optimizer.state_dict(), scaler=scaler.state_dict(), root=root,
                       world=world, best=run.best, epoch=epoch, position=position)

    result, saved = {}, time.time()
    for epoch in range(epoch, config.epochs):
        loader.batch_sampler.set_epoch(epoch, start=position * config.accumulate)
        net.train()
        iterator, shown, pending = data.read_batches(loader), (time.time(), position), None
        for position in tqdm(range(position, steps), initial=position, total=steps, desc=f'epoch {epoch + 1}',
                             leave=False, disable=rank > 0 or None):
            batches = [next(iterator) for _ in range(config.accumulate)]
            rate = learning_rate(epoch * steps + position, steps, config)
            losses = train_step(net, batches, optimizer, scaler, config, device, amp, rate)
            if pending:                                  # one step late, so that the host does not wait for the device
                check_finite(*pending)
            pending = losses, batches, scaler
            last, stop = position == steps - 1, told_to_stop(seen, position, world, device)
            save_now = stop or (not last and time.time() - saved > SAVE_SECONDS)
            if last or save_now or time.time() - shown[0] > LOG_SECONDS:
                losses = check_finite(*pending)
                speed = (position + 1 - shown[1]) * config.batch_size / (time.time() - shown[0])
                shown = time.time(), position + 1
                run.log(f'epoch {epoch + 1} iter {position + 1}/{steps} | '
                        + ' '.join(f'{k} {v:.4f}' for k, v in losses.items())
                        + f' | lr {rate:.2e} | {speed:.1f} images/s | {memory(device):.1f} GB', epoch=epoch + 1,
                        iter=position + 1, lr=rate, images_per_second=speed, memory=memory(device), **losses)
            if save_now:
                save(epoch, position + 1)
                saved = time.time()
            if stop:
                run.log(f'stopped; continue with --resume {run.folder}')
                return result
        position = 0
        if (epoch + 1) % config.val_every == 0 or epoch + 1 == config.epochs:
            save(epoch, steps)                           # who stops it now resumes with the validation
            result = validate(model, val_set, config, rank, world, run.folder / 'val', seen)
            if result is None:
                run.log(f'stopped; continue with --resume {run.folder}')
                return {}
            run.log(f'epoch {epoch + 1}: {summary(result)}', epoch=epoch + 1, **{k: result[k] for k in REPORTED})
            if result['AP50'] > run.best:
                run.best = result['AP50']
                if rank == 0:
                    model.save(run.folder / 'best.pt')
        save(epoch + 1, 0)
    run.log(f'{run.folder}: ' + (summary(result) if result else 'complete; a larger --epochs goes on'))
    return result


def explain(error):
    """A sentence about an error that is no mistake of the program; None about others."""
    if isinstance(error, (OSError, ValueError, NonFinite)):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return 'stopped before training began'
    if isinstance(error, torch.OutOfMemoryError):
        return f'{str(error).split(".")[0]}; the same step in less memory: a larger --accumulate'
    if isinstance(error, dist.DistError) or '/gloo/' in str(error):
        return 'another process of this run has ended or cannot be reached; its message says why; go on with --resume'


def main(argv=None):
    try:
        args = parse_arguments(argv)
        if args.benchmark and args.data == 'MHP' and not args.root:
            with drawn_photos() as args.root:
                train(args)
        else:
            train(args)
    except (Exception, KeyboardInterrupt) as error:
        if not explain(error):
            raise
        print(f'error: {explain(error)}', file=sys.stderr)
        sys.exit(2)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == '__main__':
    main()

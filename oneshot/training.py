"""Training: episodes of base classes through the loop of train.py, for POPNet stage by stage."""
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import torch

from oneshot.config import Config
from oneshot.data import EpisodePairs, EpisodeSamples, OneShotPhotos, open_photos
from oneshot.eopnet import EOPNet
from oneshot.evaluation import count_pixels, scores
from oneshot.losses import oneshot_loss, popnet_loss
from oneshot.network import ExampleNetwork
from oneshot.popnet import POPNet
from oneshot.stages import FINE, fold_of, photos_of_stage
from train import Start, Task, make_loader, start_run, train_task
from util.cli import flag, given_settings
from util.run import Run


class OneShotTask(Task):
    """Episodes of base classes. A validation is over test episodes; best.pt is chosen by the base
    classes, so that novel ones choose nothing."""
    reported = 'base', 'novel', 'human'

    def __init__(self, config: Config, model: ExampleNetwork, loader, test_photos: OneShotPhotos,
                 root=None):
        super().__init__(config, model, loader, root)
        self.criterion = popnet_loss if config.system == 'popnet' else oneshot_loss
        if config.stage != FINE:
            # No class of the stages before is novel.
            self.reported = 'base', 'human'
        self.photos = test_photos
        episodes = test_photos.test_episodes()
        wanted = config.val_images or len(episodes)
        self.episodes = episodes[::max(1, len(episodes) // wanted)]

    def loss(self, net, batch: dict, run: Run) -> dict:
        images = [batch[name].to(run.device, non_blocking=True, memory_format=torch.channels_last)
                  for name in ('query', 'support')]
        labels = [batch[name].to(run.device, non_blocking=True)
                  for name in ('query_labels', 'support_labels')]
        if self.config.one_way:
            classes = batch['classes'].to(run.device)
        else:
            classes = self.photos.fold.base
        epoch = batch['epoch']
        with run.autocast():
            out = net(*images, labels[1], classes=classes, epoch=epoch)
        return self.criterion(out, *labels, epoch, self.config.epochs)

    def validate(self, run: Run) -> dict | None:
        head = self.model.head
        counts = count_pixels(self.model, self.photos, self.episodes, self.config.one_way, (head,),
                              stopped=lambda: run.seen)
        if counts is None:
            return None
        return scores(counts[head], self.photos.fold)

    def optimizer(self):
        self.sgd = super().optimizer()
        return self.sgd

    def learning_rate(self, step: int, steps_per_epoch: int) -> float:
        """Falls to zero with the power 0.9 after each step; recipe `released`: every ten epochs."""
        config = self.config
        if config.recipe == 'released':
            return learning_rate(step // steps_per_epoch, config.epochs, config.lr)
        return config.lr * (1 - step / (steps_per_epoch * config.epochs)) ** 0.9

    def end_epoch(self, epoch: int, run: Run):
        # The released code makes a new SGD here, which has no momentum yet.
        if self.config.recipe == 'released' and (epoch + 2) % 10 == 0:
            self.sgd.state.clear()


def learning_rate(epoch: int, epochs: int = 50, lr: float = 1e-3) -> float:
    """The released schedule: the rate falls, with the power 0.9, at the epochs 9, 19, .."""
    start = (epoch + 1) // 10 * 10 - 1
    return lr if start < 0 else lr * (1 - start / epochs) ** 0.9


# -------------------------------------------------------------------------------------------------
# The command


def train(args):
    if args.resume and args.previous:
        raise ValueError('--resume goes on with the stages of the run: --previous cannot change')
    if args.resume or getattr(args, 'system', 'eopnet') != 'popnet':
        return train_stage(args, Run(args.device, args.amp))
    if getattr(args, 'stage', 'all') == 'all':
        return train_all(args)
    return train_stage(args, Run(args.device, args.amp))


def train_all(args):
    """POPNet's stages one after the other, in folders stage1, stage2, stage3 of --out."""
    if args.previous:
        raise ValueError('--stage all begins without stages: leave --previous out, or give --stage '
                         '2 or 3')
    folder = Path(args.out or Run(args.device, args.amp).free_folder(args.data or 'ATR'))
    previous = None
    for stage in range(1, FINE + 1):
        out = folder / f'stage{stage}'
        given = dict(vars(args), stage=stage, previous=previous, out=str(out))
        result = train_stage(Namespace(**given), Run(args.device, args.amp))
        previous = str(out / 'best.pt')
        if not result:
            # A signal ended it.
            if stage < FINE:
                print(f'then go on with --stage {stage + 1} --previous {previous}')
            return


def train_stage(args, run: Run) -> dict:
    """A training of EOP-Net, or of one stage of POPNet -> its last metrics."""
    if run.world > 1:
        raise ValueError('the prototypes of earlier episodes belong to one process; start it '
                         'without torchrun')
    previous = None if args.resume else load_previous(args)
    begin = start_run(args, run, Config, 'oneshot', lambda args: fresh_config(args, previous))
    task = make_task(begin, run, args.skip_bad, previous)
    counts = f'{len(task.loader.dataset)} training and {len(task.episodes)} test episodes'
    return train_task(task, run, begin.folder, begin.state, counts)


def fresh_config(args, previous: POPNet | None = None) -> Config:
    """The settings of a new run. ValueError where the stages before do not fit them."""
    given = given_settings(args, Config)
    if previous is not None:
        before = previous.config
        given['earlier'] = (*before.earlier, before.stage)
    config = Config(**given, data=args.data or 'ATR', recipe=args.recipe or 'paper')
    if previous is None:
        return config
    for name in ('data', 'fold', 'way', 'parents', 'stem', 'middle', 'channels'):
        theirs = getattr(before, name)
        if theirs != getattr(config, name):
            raise ValueError(f'--previous {args.previous} is of {flag(name)} {theirs}, not '
                             f'{getattr(config, name)}; give a file of the same')
    return config


def load_previous(args) -> POPNet | None:
    """The network of the stage before. ValueError where the stages 1, 2, .. up to it are not all
    there, unless --ablate allows it."""
    if getattr(args, 'system', 'eopnet') != 'popnet':
        for name in ('stage', 'previous', 'ablate'):
            if getattr(args, name, None):
                raise ValueError(f'--{name}: only POPNet has stages; add --system popnet')
        return None
    wanted = list(range(1, args.stage))
    needed = ' and '.join(map(str, wanted)) or 'none'
    sentence = f'--stage {args.stage} needs the stages before it, {needed}'
    if not args.previous:
        if wanted and not args.ablate:
            raise ValueError(f'{sentence}; give the file of the last one with --previous')
        return None
    previous = POPNet.from_pretrained(args.previous)
    there = [*previous.config.earlier, previous.config.stage]
    # Without one of them is an ablation; more of them is never right.
    if not set(there) <= set(wanted) or (there != wanted and not args.ablate):
        raise ValueError(f'{sentence}; --previous {args.previous} has '
                         f'{" and ".join(map(str, there))}')
    return previous


def make_task(begin: Start, run: Run, skip_bad: bool,
              previous: POPNet | None = None) -> OneShotTask:
    """The task of a new or resumed run. skip_bad: unreadable photos are left out and named.
    previous: the network of the stage before, of a new run."""
    config = begin.config
    photos, test_photos = [
        photos_of_stage(open_photos(config.data, begin.root, split, config.fold), config)
        for split in ('train', 'test')]
    config = replace(config, num_labels=fold_of(config).num_labels)
    pairs = EpisodePairs(photos, config)
    pairs.skip_bad = skip_bad
    loader = make_loader(EpisodeSamples(pairs, config), config, run)
    model = POPNet(config) if config.system == 'popnet' else EOPNet(config)
    if config.pretrained and not begin.state:
        copied = model.load_backbone(config.pretrained)
        print(f'{config.pretrained}: {len(copied)} of {len(model.state_dict())} entries start '
              'from it')
    if previous is not None:
        model.previous_stage.load_state_dict(previous.state_dict())
    return OneShotTask(config, model, loader, test_photos, begin.root)

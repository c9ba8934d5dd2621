"""Training: episodes of base classes through the loop of train.py."""
from dataclasses import replace

import torch

from oneshot.config import Config
from oneshot.data import EpisodePairs, EpisodeSamples, OneShotPhotos, open_photos
from oneshot.eopnet import EOPNet
from oneshot.evaluation import count_pixels, scores
from oneshot.losses import oneshot_loss
from train import Start, Task, make_loader, start_run, train_task
from util.cli import given_settings
from util.run import Run


class OneShotTask(Task):
    """Episodes of base classes. A validation is over test episodes; best.pt is chosen by the base
    classes, so that novel ones choose nothing."""
    reported = 'base', 'novel', 'human'

    def __init__(self, config: Config, model: EOPNet, loader, test_photos: OneShotPhotos,
                 root=None):
        super().__init__(config, model, loader, root)
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
            out = net(*images, labels[1], classes, epoch)
        return oneshot_loss(out, *labels, epoch, self.config.epochs)

    def validate(self, run: Run) -> dict | None:
        counts = count_pixels(self.model, self.photos, self.episodes, self.config.way,
                              stopped=lambda: run.seen)
        if counts is None:
            return None
        return scores(counts['npm'], self.photos.fold)

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
    run = Run(args.device, args.amp)
    if run.world > 1:
        raise ValueError('the prototypes of earlier episodes belong to one process; start it '
                         'without torchrun')
    begin = start_run(args, run, Config, 'oneshot', fresh_config)
    task = make_task(begin, run, args.skip_bad)
    counts = f'{len(task.loader.dataset)} training and {len(task.episodes)} test episodes'
    return train_task(task, run, begin.folder, begin.state, counts)


def fresh_config(args) -> Config:
    """The settings of a new run."""
    return Config(**given_settings(args, Config), data=args.data or 'ATR',
                  recipe=args.recipe or 'paper')


def make_task(begin: Start, run: Run, skip_bad: bool) -> OneShotTask:
    """The task of a new or resumed run. skip_bad: unreadable photos are left out and named."""
    config = begin.config
    photos = open_photos(config.data, begin.root, 'train', config.fold)
    test_photos = open_photos(config.data, begin.root, 'test', config.fold)
    config = replace(config, num_labels=photos.fold.num_labels)
    pairs = EpisodePairs(photos, config)
    pairs.skip_bad = skip_bad
    loader = make_loader(EpisodeSamples(pairs, config), config, run)
    model = EOPNet(config)
    if config.pretrained and not begin.state:
        copied = model.load_backbone(config.pretrained)
        print(f'{config.pretrained}: {len(copied)} of {len(model.state_dict())} entries start '
              'from it')
    return OneShotTask(config, model, loader, test_photos, begin.root)

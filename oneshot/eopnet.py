"""EOP-Net: the network, its files, and photos and test episodes in the classes of examples."""
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

from oneshot.backbone import Atrous, DeepLab, pass_norm, read_weights, upsample
from oneshot.config import Config
from oneshot.data import as_photo, normalize, reduced
from oneshot.episodes import FOLDS, IGNORE
from oneshot.prototypes import class_masks, cosine, episode_labels, foreground, static_prototypes
from uniparser import Parsing
from util.checkpoints import (FORMAT, check_settings, load_strictly, name_command, read_checkpoint, reading,
                              write_checkpoint)

ALPHA = 0.001                                # of this episode's prototype in a smoothed one
LONG_SIDE = 1024                                      # of photos, where the config does not say


class EOPNet(DeepLab):
    """model(query, support, support_labels) -> dict of logits; see `forward`. Config fields are keyword arguments."""

    def __init__(self, config=Config(), **changes):
        config = replace(config, **changes)
        c, rows = config.channels, config.num_labels
        super().__init__(config.stem, config.middle, c, config.high_level)
        self.config = config
        self.scaler = nn.Parameter(torch.tensor(10.0))
        self.prototype = nn.Parameter(torch.zeros(rows, c), requires_grad=False)
        self.s1_prototype = nn.Parameter(torch.zeros(2, c), requires_grad=False)
        self.s1_trans, self.s2_trans = nn.Conv2d(c, c, 1), nn.Conv2d(c, c, 1)
        self.add_heads(c)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def add_heads(self, c):
        def pair():                                           # without a ReLU between them, as released
            return nn.Sequential(nn.Conv2d(c, c, 3, padding=1), nn.Conv2d(c, c, 3, padding=1))
        self.s1_conv1, self.s1_conv2, self.s1_semantic = pair(), Atrous(c, c), nn.Conv2d(c, 2, 1)
        self.decoder2, self.decoder3, self.agm_class = pair(), Atrous(c, c), nn.Conv2d(c, 2, 1)
        if self.config.way == '1way':
            self.npm_class = nn.Conv2d(1, 2, 1)
        else:
            self.npm_class_fg, self.npm_class_bg = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)
            self.npm_bg_fusion, self.agm_bg_fusion = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)

    def features(self, images):
        """Images (B,3,H,W) -> coarse feature f1 and fine feature f2, (B,C,h,w) each."""
        x = self.mid_level(images)
        return self.s1_trans(x), self.s2_trans(x)

    def smoothed(self, stored, static, rows, warm_up):
        """Static prototypes (B,R,C) mixed with the rows (B,R) of `stored`, of earlier episodes -> (B,R,C).

        A class that the support lacks stays zero. One without a stored prototype, such as a novel one, has its static
        one, and so has every class during the warm-up. In training the result is stored, image after image.
        """
        used = []
        for own, row in zip(static, rows):
            before, present = stored[row], own.detach().any(1, keepdim=True)
            mixed = torch.where(before.any(1, keepdim=True), (1 - ALPHA) * before + ALPHA * own, own)
            used.append(own if warm_up else torch.where(present, mixed, own))
            if self.training:
                with torch.no_grad():
                    stored[row] = torch.where(present, used[-1], before)
        return torch.stack(used)

    def coarse_head(self, f1, prototype):
        """f1 (B,C,h,w), the people's prototype (B,1,C) -> logits (B,2,h,w) of background and people."""
        x = cosine(f1, prototype) * f1 + f1
        return self.s1_semantic(self.s1_conv2(self.s1_conv1(x)))

    def npm_head(self, cosines):
        """Cosines (B,K-1,h,w) to the prototypes -> logits (B,K,h,w); 1-way: (B,1,h,w) -> (B,2,h,w)."""
        if self.config.way == '1way':
            return self.scaler * self.npm_class(cosines)
        flat = cosines.flatten(0, 1)[:, None]
        people, rest = (conv(x).view_as(cosines) for conv, x in
                        ((self.npm_class_fg, flat), (self.npm_class_bg, 1 - flat)))
        return self.scaler * torch.cat([self.npm_bg_fusion(rest.mean(1, keepdim=True)), people], 1)

    def agm_head(self, f2, cosines, present):
        """Like npm_head, from f2 (B,C,h,w) too. present (K-1): the classes that any support of the batch has.

        The released code runs its convolutions once a class. Here the present classes go through them together, and the
        absent ones, whose cosines are 0, share one pass; statistics of BatchNorm are those of the loop.
        """
        if self.config.way == '1way':
            return self.agm_tower((f2 * cosines)[:, None], [0])[:, 0]
        passes = [cosines[:, present]] + [torch.zeros_like(cosines[:, :1])] * (not present.all())
        of_class = torch.where(present, present.cumsum(0) - 1, present.sum()).tolist()
        together = len(of_class) if self.training or f2.is_cuda else 1            # one stays in a CPU's cache
        x = torch.cat([self.agm_tower(f2[:, None] * (1 + part)[:, :, None], of_class)
                       for part in torch.cat(passes, 1).split(together, 1)], 1)[:, of_class]
        return torch.cat([self.agm_bg_fusion(x[:, :, 1].mean(1, keepdim=True)), x[:, :, 0]], 1)

    def agm_tower(self, x, of_class):
        """x (B,P,C,h,w) -> logits (B,P,2,h,w) of P passes; of_class: the pass of each class, in the loop's order."""
        batch, conv = x.shape[:2], self.decoder3.atrous_convolution
        x = self.decoder2(x.flatten(0, 1))
        x = F.relu(pass_norm(conv.depthwise_bn, conv.depthwise(x), batch, of_class))
        x = F.relu(pass_norm(conv.pointwise_bn, conv.pointwise(x), batch, of_class))
        return self.agm_class(x).unflatten(0, batch)

    def forward(self, query, support, support_labels, classes=None, epoch=None):
        """Images (B,3,H,W) as of `normalize`, support_labels (B,H,W) -> dict of logits at the query's size.

        agm, npm: (B,K,H,W), 1-way (B,2,H,W); coarse: (B,2,H,W). classes: k-way, the ids to keep (None = all); 1-way, a
        tensor (B,) of each image's class. epoch: None = after the warm-up. The dict also holds `classes` and, for the
        contrast of k-way training, `f2`: the fine features of query and support.
        """
        one = self.config.way == '1way'
        if one and not torch.is_tensor(classes):
            raise ValueError('1-way parsing needs classes, a tensor with the class of each image')
        classes = classes if one or classes is None else tuple(int(c) for c in classes)
        (f1, f2), (s1, s2) = self.features(query), self.features(support)
        labels, num = episode_labels(support_labels, classes), 2 if one else self.config.num_labels
        static = static_prototypes(s2, class_masks(labels, num, s2.shape[2:]))[:, 1:]
        people = static_prototypes(s1.detach(), class_masks(foreground(support_labels), 2, s1.shape[2:]))
        rows = classes.view(-1, 1) if one else torch.arange(1, num).expand(len(labels), -1)
        # the released code passes `epoch` as the coarse warm-up flag, so only epoch 0 smooths
        people = self.smoothed(self.s1_prototype, people, torch.arange(2).expand(len(labels), -1), epoch != 0)
        fine = self.smoothed(self.prototype, static, rows, epoch is not None and epoch <= self.config.warm_up)
        out = {name: upsample(x, query.shape[2:]) for name, x in self.heads(f1, f2, people[:, 1:], fine).items()}
        return dict(out, classes=classes, **({'f2': (f2, s2)} if self.training and not one else {}))

    def heads(self, f1, f2, people, fine, names=('agm', 'npm')):
        """Features (B,C,h,w), prototypes of people (B,1,C) and classes (B,R,C) -> dict of logits (B,..,h,w): those
        named, and coarse."""
        cosines, present = cosine(f2, fine), fine.detach().any(2).any(0)
        out = dict(npm=self.npm_head(cosines)) if 'npm' in names else {}
        if 'agm' in names:
            out['agm'] = self.agm_head(f2, cosines, present)
        return dict(out, coarse=self.coarse_head(f1, people))

    @property
    def device(self):
        return self.scaler.device

    @property
    def backbone(self):
        return self.xception_features

    def save(self, path, **more):
        """Writes weights, config and class names to one file, atomically; `more` is stored beside them."""
        fold = FOLDS[self.config.data.lower(), self.config.fold]
        names = [fold.names.get(i, '') for i in range(self.config.num_labels)]
        write_checkpoint(path, 'oneshot', self.config, self.state_dict(), class_names=names, **more)

    @classmethod
    def from_pretrained(cls, path, device='cpu'):
        """The model in a file of `save` or in a released state dict, whose way, labels and sizes are read off it."""
        state = read_checkpoint(path)
        if command := name_command(state, 'oneshot'):
            raise ValueError(f'{path} {command}')
        with reading(path):
            if 'format' in state:
                if state['format'] != FORMAT:
                    raise ValueError(f'{path} has the format {state["format"]!r}, which this version does not know; '
                                     'give a file of oneshot train or of the authors')
                check_settings(state['config'], Config)
                config, weights = Config(**state['config']), state['model']
            else:
                weights = read_weights(path)
                config = released_config(weights, path)
            with torch.device('meta'):                        # no time for initial weights
                model = cls(config)
            load_strictly(model, weights, path)
            return model.to(device).eval()

    # photos and test episodes

    def predict(self, query, supports, masks, stored=False, long_side=1024):
        """Parse a photo into the classes that the label maps of one or several support photos name.

        query, supports: Pillow images or uint8 RGB arrays (H,W,3) of any size, reduced to a longer side of `long_side`
        pixels at most; several supports are averaged. masks: their label maps (H,W), 0 background, 255 ignore. They
        should label whole people, because the coarse head learns from all labels together what people look like.
        stored: the ids are those of the training set, and base classes use the stored prototypes; else ids are free and
        only the supports count. Returns a label map uint8 (H,W) of the query's size. The model is left in eval mode.
        """
        supports, masks = (supports, masks) if isinstance(supports, (list, tuple)) else ([supports], [masks])
        if len(supports) != len(masks) or not masks:
            raise ValueError(f'there are {len(supports)} support photos and {len(masks)} masks; give one mask for each')
        photo, masks = as_photo(query), [np.asarray(mask) for mask in masks]
        example = self.learn([as_photo(support) for support in supports], masks, stored, long_side)
        return self.label_map(self.outputs(self.prepare(photo, long_side)), photo.size[::-1], example)[0]

    @torch.inference_mode()
    def learn(self, supports, masks, stored=False, long_side=None):
        """What Pillow photos with label maps teach, as `predict` takes them -> Example."""
        ids, rows = label_rows(masks, self.config.num_labels - 1, stored)
        self.eval()
        long_side = long_side or self.config.long_side or LONG_SIDE
        statics = zip(*(self.support_prototypes(p, rows[m], long_side) for p, m in zip(supports, masks)))
        people, fine = (sum(s) / sum(p.any(2, keepdim=True) for p in s).clamp(min=1) for s in map(list, statics))
        fine = self.smoothed(self.prototype, fine, torch.arange(1, self.config.num_labels)[None], not stored)
        ids = [i for i in ids if fine[0, rows[i] - 1].any()]  # some are too small at a quarter of the size
        return Example(ids, rows[ids].tolist(), people, fine)

    def learned(self, example):
        """The ids of the classes with a prototype."""
        return example.ids

    def prepare(self, photo, long_side=None):
        """A Pillow photo -> the network's input."""
        return self.to_input(photo, long_side or self.config.long_side or LONG_SIDE)

    @torch.inference_mode()
    def outputs(self, image):
        return self.eval().features(image.to(self.device))

    @torch.inference_mode()
    def label_map(self, features, size, example):
        """Features of a query -> label map uint8 (H,W) of this size, and the probability of people (H,W)."""
        (f1, f2), (ids, rows, people, fine) = features, example
        scores, coarse = self.class_scores(cosine(f2, fine), rows), self.coarse_head(f1, people)
        scores, coarse = (upsample(x, size)[0] for x in (scores, coarse))
        found = scores.argmax(0) * coarse.argmax(0)           # screened: background where there are no people
        return np.array([0, *ids], np.uint8)[found.cpu().numpy()], coarse.softmax(0)[1].cpu().numpy()

    def people(self, features, photo, example):
        """Features of a photo -> Parsing: all of its people as one, because EOP-Net does not separate them. Its score
        is the mean probability of people in its pixels."""
        return as_one_person(*self.label_map(features, photo.size[::-1], example))

    def support_prototypes(self, photo, mask, long_side=None):
        """Static prototypes of a photo with a mask of rows: people (1,1,C) and classes (1,K-1,C)."""
        if mask.shape != photo.size[::-1]:
            raise ValueError(f'a support photo has {photo.size[::-1]} pixels, but its mask {mask.shape}')
        labels = torch.from_numpy(mask).to(self.device)[None]
        f1, f2 = self.features(self.to_input(photo, long_side))
        return [static_prototypes(f, class_masks(x, num, f.shape[2:]))[:, 1:]
                for f, x, num in ((f1, foreground(labels), 2), (f2, labels, self.config.num_labels))]

    def class_scores(self, cosines, rows):
        """NPM logits (1,1+n,h,w) of background and the classes of `rows`; 1-way: the leads over the background."""
        if self.config.way == 'kway':
            return self.npm_head(cosines)[:, [0, *rows]]
        logits = self.npm_head(cosines.transpose(0, 1))
        lead = (logits[:, 1] - logits[:, 0])[[row - 1 for row in rows]]
        return torch.cat([torch.zeros_like(logits[:1, 0]), lead])[None]

    def to_input(self, photo, long_side=None):
        """A Pillow photo, reduced to `long_side` or the config's, as a batch of one on the model's device."""
        long_side = long_side or self.config.long_side or max(photo.size)
        return torch.from_numpy(normalize(np.asarray(reduced(photo, long_side)))).to(self.device)[None]

    # test episodes, see oneshot/scores.py

    @torch.inference_mode()
    def look(self, photo):
        return self.eval().features(self.to_input(as_photo(photo)))

    @torch.inference_mode()
    def study(self, photo, labels, fold):
        people, fine = self.eval().support_prototypes(as_photo(photo), labels)
        dropped = [c - 1 for c in range(1, self.config.num_labels) if c not in fold.all]
        fine[:, dropped] = 0                                  # of no fold, but people's pixels
        return people, fine

    @torch.inference_mode()
    def find(self, seen, taught, c, size, names):
        (f1, f2), (people, fine) = seen, taught
        rows = torch.arange(1, self.config.num_labels)[None]
        if self.config.way == '1way':
            fine, rows = fine[:, c - 1:c], rows[:, c - 1:c]
        fine = self.smoothed(self.prototype, fine, rows, False)
        present = fine[0].any(1)
        kept = present | ((~present).cumsum(0) == 1)          # all absent classes have the logits of the first one
        shown = F.pad(kept, (1, 0), value=True).nonzero()[:, 0].cpu()
        out = self.heads(f1, f2, people, fine, names)
        out = {name: x if name == 'coarse' else x[:, shown] for name, x in out.items()}
        out = {name: upsample(x.contiguous(memory_format=torch.channels_last), size) for name, x in out.items()}
        screen = out['coarse'].max(1)[1][0].cpu()
        return {name: (shown[out[name].max(1)[1][0].cpu()] * screen).to(torch.uint8).numpy() for name in names}


def released_config(weights, path):
    """The Config of a released state dict."""
    if not {'prototype', 's2_trans.weight', 'xception_features.conv1.weight'} <= weights.keys():
        raise ValueError(f'{path} is no checkpoint of EOP-Net; a DeepLab file starts a training instead, with '
                         '--pretrained')
    if weights['prototype'].ndim != 2:
        raise ValueError(f'{path} does not fit: its prototypes have the shape {tuple(weights["prototype"].shape)}')
    blocks = {key.split('.')[1] for key in weights if key.startswith('xception_features.block')}
    rows, channels = weights['prototype'].shape
    return Config(data='LIP' if rows == 20 else 'ATR', way='1way' if 'npm_class.weight' in weights else 'kway',
                  num_labels=rows, channels=channels, stem=len(weights['xception_features.conv1.weight']),
                  middle=len(blocks) - 4, high_level='aspp1.bn.weight' in weights)


def screened(out, head='npm'):
    """out of `EOPNet.forward` -> the head's labels (B,H,W), background where the coarse head sees no people."""
    return out[head].argmax(1) * out['coarse'].argmax(1)


# ---------------------------------------------------------------------------------------------------------------
# Examples


class Example(NamedTuple):
    """What supports teach: class ids, the row of each in the logits, prototypes of people and of classes."""
    ids: list
    rows: list
    people: torch.Tensor                     # (1,1,C)
    fine: torch.Tensor                       # (1,K-1,C)


def as_one_person(labels, probability):
    """Label map and probability of people (H,W) -> Parsing of one person, whose score is the mean probability in its
    pixels; of none where no pixel has a label."""
    ys, xs = np.nonzero(labels)
    center = [xs.mean() + 0.5, ys.mean() + 0.5] if len(xs) else [0, 0]
    score = probability[labels > 0].mean() if len(xs) else 0
    return Parsing(labels[None], np.array([score]), np.array([center])).visible()


def label_rows(masks, most, stored):
    """The ids that uint8 label maps name, and a table (256) from id to row of the prototypes, 255 -> 255.

    The model has `most` classes. With `stored`, rows are the ids; else the ids in their order have the rows 1, 2, ..
    """
    for mask in masks:
        if mask.ndim != 2 or mask.dtype != np.uint8:
            raise ValueError(f'a mask has the form {mask.shape} {mask.dtype}; give label maps (H,W) of uint8')
    ids = [int(i) for i in np.unique(np.concatenate([np.unique(mask) for mask in masks])) if 0 < i < IGNORE]
    if not ids:
        raise ValueError('no mask has a class; label pixels of the support photo with ids from 1')
    if (max(ids) if stored else len(ids)) > most:
        raise ValueError(f'the masks name the ids {ids}; this model has {most} classes')
    rows = np.zeros(256, np.uint8)
    rows[ids], rows[IGNORE] = ids if stored else range(1, len(ids) + 1), IGNORE
    return ids, rows

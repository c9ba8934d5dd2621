"""EOP-Net: a photo in the classes of an example. The network, its files, and its use.

`forward` follows the paper: features of both photos, prototypes of the support, the coarse head,
which finds people, and the fine heads, which find classes.
"""
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from data import to_photo
from oneshot.backbone import Atrous, read_weights
from oneshot.config import Config
from oneshot.data import normalize, reduce_photo
from oneshot.episodes import FOLDS, IGNORE, Fold
from oneshot.heads import FineHeads, conv_pair
from oneshot.prototypes import (check_labels, class_masks, cosine, episode_labels, foreground,
                                mean_prototypes, smoothed_prototypes, static_prototypes)
from util.checkpoints import (FORMAT, check_settings, load_strictly, name_command, read_checkpoint,
                              reading, write_checkpoint)
from util.results import Parsing, as_one_person
from util.tensors import resize_map

LONG_SIDE = 1024      # of users' photos, where the config has none


class Example(NamedTuple):
    """What an EOPNet has learned from supports."""
    ids: list[int]    # of the classes
    rows: list[int]   # the channel of each class in the logits
    people: Tensor    # (1,1,C), prototype of people
    fine: Tensor      # (1,K-1,C), prototypes of the classes


class EOPNet(FineHeads):
    """model(query, support, support_labels) -> dict of logits, see `forward`.

    Settings are those of `Config`, which may be given as keyword arguments:
    EOPNet(num_labels=20).
    """

    def __init__(self, config: Config = Config(), **changes):
        config = replace(config, **changes)
        super().__init__(config)
        c = config.channels
        # Smoothed prototypes of earlier episodes, of classes and of people. No gradient moves them.
        self.prototype = nn.Parameter(torch.zeros(config.num_labels, c), requires_grad=False)
        self.s1_prototype = nn.Parameter(torch.zeros(2, c), requires_grad=False)
        # From the decoder's feature to the coarse and the fine one.
        self.s1_trans = nn.Conv2d(c, c, 1)
        self.s2_trans = nn.Conv2d(c, c, 1)
        # The coarse head.
        self.s1_conv1 = conv_pair(c)
        self.s1_conv2 = Atrous(c, c)
        self.s1_semantic = nn.Conv2d(c, 2, 1)
        self.add_fine_heads()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    @property
    def device(self):
        return self.scaler.device

    @property
    def backbone(self):
        """The part that the setting `backbone_lr` is about."""
        return self.xception_features

    # ---- the network ----------------------------------------------------------------------------

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B,3,H,W) as of `oneshot.data.normalize` -> coarse feature f1 and fine feature f2,
        (B,C,h,w) each."""
        x = self.mid_level(images)
        return self.s1_trans(x), self.s2_trans(x)

    def coarse_head(self, f1: Tensor, prototype: Tensor) -> Tensor:
        """f1 (B,C,h,w), the prototype of people (B,1,C) -> logits (B,2,h,w) of background and
        people."""
        x = cosine(f1, prototype) * f1 + f1
        return self.s1_semantic(self.s1_conv2(self.s1_conv1(x)))

    def heads(self, f1: Tensor, f2: Tensor, people: Tensor, fine: Tensor,
              names=('agm', 'npm')) -> dict[str, Tensor]:
        """Features (B,C,h,w), prototypes of people (B,1,C) and of classes (B,R,C) -> dict of logits
        (B,..,h,w): those of the fine heads named, and coarse."""
        out = {}
        cosines = cosine(f2, fine)                                             # (B,R,h,w)
        if 'npm' in names:
            out['npm'] = self.npm_head(cosines)
        if 'agm' in names:
            present = fine.detach().any(2).any(0)                              # (R,)
            out['agm'] = self.agm_head(f2, cosines, present)
        out['coarse'] = self.coarse_head(f1, people)
        return out

    def forward(self, query: Tensor, support: Tensor, support_labels: Tensor, classes=None,
                epoch: int | None = None) -> dict:
        """Photos (B,3,H,W) as of `oneshot.data.normalize` and the support's labels (B,H,W) -> dict
        of logits at the query's size: agm and npm (B,K,H,W), 1-way (B,2,H,W); coarse (B,2,H,W).

        classes: k-way, the ids that the episode keeps (None = all); 1-way, a tensor (B,) of each
        image's class. epoch: needed in training mode; None = after the warm-up. The dict also
        holds `classes` and, for the contrast of k-way training, `f2`: the fine features of query
        and support.
        """
        one_way = self.config.one_way
        if one_way and not torch.is_tensor(classes):
            raise ValueError('1-way parsing needs classes, a tensor with the class of each image')
        if not one_way and classes is not None:
            classes = tuple(int(c) for c in classes)
        if self.training and epoch is None:
            raise ValueError('training needs the epoch: the first ones are a warm-up')
        check_labels(support_labels, self.config.num_labels)
        batch = len(support_labels)

        # Features of both photos.
        f1, f2 = self.encode(query)
        s1, s2 = self.encode(support)

        # Prototypes of the classes that the episode keeps, smoothed after the warm-up.
        num_labels = 2 if one_way else self.config.num_labels
        labels = episode_labels(support_labels, classes)
        fine = static_prototypes(s2, class_masks(labels, num_labels, s2.shape[2:]))[:, 1:]
        rows = classes.view(-1, 1) if one_way else torch.arange(1, num_labels).expand(batch, -1)
        warm_up = epoch is not None and epoch <= self.config.warm_up
        fine = smoothed_prototypes(self.prototype, fine, rows, warm_up, self.training)

        # Prototypes of background and people. The released code passes `epoch` in the place of its
        # warm-up flag, so only epoch 0 smooths.
        masks = class_masks(foreground(support_labels), 2, s1.shape[2:])
        people = static_prototypes(s1.detach(), masks)
        people = smoothed_prototypes(self.s1_prototype, people, torch.arange(2).expand(batch, -1),
                                     epoch != 0, self.training)

        # Logits, enlarged to the query's size.
        out = {name: resize_map(logits, query.shape[2:])
               for name, logits in self.heads(f1, f2, people[:, 1:], fine).items()}
        out['classes'] = classes
        if self.training and not one_way:
            out['f2'] = f2, s2
        return out

    # ---- files ----------------------------------------------------------------------------------

    def save(self, path, **more):
        """Writes weights, config and class names to one file, atomically; `more` is stored beside
        them."""
        fold = FOLDS[self.config.data.lower(), self.config.fold]
        names = [fold.names.get(i, '') for i in range(self.config.num_labels)]
        write_checkpoint(path, 'oneshot', self.config, self.state_dict(), class_names=names, **more)

    @classmethod
    def from_pretrained(cls, path, device='cpu') -> 'EOPNet':
        """The model, in eval mode, of a file of `save` or of a released state dict, whose way,
        labels and sizes are read off it. FileNotFoundError; ValueError for any other file."""
        state = read_checkpoint(path)
        command = name_command(state, 'oneshot')
        if command:
            raise ValueError(f'{path} {command}')
        with reading(path):
            if 'format' in state:
                if state['format'] != FORMAT:
                    raise ValueError(f'{path} has the format {state["format"]!r}, which this '
                                     'version does not know; give a file of oneshot train or of '
                                     'the authors')
                check_settings(state['config'], Config)
                config = Config(**state['config'])
                weights = state['model']
            else:
                weights = read_weights(path)
                config = released_config(weights, path)
            # No time for initial weights, and no memory, whatever sizes the file claims.
            with torch.device('meta'):
                model = cls(config)
            load_strictly(model, weights, path)
            return model.to(device).eval()

    # ---- photos ---------------------------------------------------------------------------------

    def predict(self, query, supports, masks, stored: bool = False,
                long_side: int = LONG_SIDE) -> np.ndarray:
        """Parses a photo into the classes that the label maps of one or several supports name.

        query, supports: photos, see `data.to_photo`, of any size; they are reduced to a longer side
        of `long_side` pixels at most. Several supports are averaged. masks: their label maps (H,W),
        0 background, 255 ignore. They should label whole people, because the coarse head learns
        from all labels together what people look like. stored: the ids are those of the training
        set, and base classes use the stored prototypes; else ids are free and only the supports
        count.

        Returns a label map uint8 (H,W) of the query's size. The model is left in eval mode.
        ValueError where photos and masks do not fit each other or the model.
        """
        if not isinstance(supports, (list, tuple)):
            supports = [supports]
            masks = [masks]
        if len(supports) != len(masks) or not masks:
            raise ValueError(f'there are {len(supports)} support photos and {len(masks)} masks; '
                             'give one mask for each')
        photo = to_photo(query)
        supports = [to_photo(support) for support in supports]
        masks = [np.asarray(mask) for mask in masks]
        example = self.learn(supports, masks, stored, long_side)
        features = self.outputs(self.prepare(photo, long_side))
        labels, _ = self.label_map(features, photo.size[::-1], example)
        return labels

    @torch.inference_mode()
    def learn(self, supports: list[Image.Image], masks: list[np.ndarray], stored: bool = False,
              long_side: int | None = None) -> Example:
        """What Pillow photos with label maps teach, as `predict` takes them."""
        self.eval()
        ids, rows = label_rows(masks, self.config.num_labels - 1, stored)
        people = []
        fine = []
        long_side = long_side or self.config.long_side or LONG_SIDE
        for photo, mask in zip(supports, masks):
            of_people, of_classes = self.support_prototypes(photo, rows[mask], long_side)
            people.append(of_people)
            fine.append(of_classes)
        people = mean_prototypes(people)
        # Free ids are no ids of the training set: then no class has a stored prototype.
        all_rows = torch.arange(1, self.config.num_labels)[None]
        fine = smoothed_prototypes(self.prototype, mean_prototypes(fine), all_rows, not stored,
                                   False)
        # A class may be too small to have a pixel at a quarter of the size.
        ids = [i for i in ids if fine[0, rows[i] - 1].any()]
        return Example(ids, rows[ids].tolist(), people, fine)

    def learned(self, example: Example) -> list[int]:
        """The ids of the classes with a prototype."""
        return example.ids

    def prepare(self, photo: Image.Image, long_side: int | None = None) -> Tensor:
        """A user's photo -> the network's input (1,3,H,W)."""
        return self.to_input(photo, long_side or self.config.long_side or LONG_SIDE)

    def to_input(self, photo: Image.Image, long_side: int) -> Tensor:
        """A Pillow photo, reduced to `long_side` (0 = as it is), as a batch of one on the model's
        device."""
        photo = reduce_photo(photo, long_side or max(photo.size))
        return torch.from_numpy(normalize(np.asarray(photo))).to(self.device)[None]

    @torch.inference_mode()
    def outputs(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """`encode` in eval mode, on the model's device."""
        return self.eval().encode(image.to(self.device))

    def support_prototypes(self, photo: Image.Image, rows: np.ndarray,
                           long_side: int) -> tuple[Tensor, Tensor]:
        """A photo and its mask of rows (H,W) -> static prototypes of people (1,1,C) and classes
        (1,K-1,C). ValueError where they differ in size."""
        if rows.shape != photo.size[::-1]:
            raise ValueError(f'a support photo has {photo.size[::-1]} pixels, but its mask '
                             f'{rows.shape}')
        labels = torch.from_numpy(rows).to(self.device)[None]
        f1, f2 = self.encode(self.to_input(photo, long_side))
        people = static_prototypes(f1, class_masks(foreground(labels), 2, f1.shape[2:]))
        fine = static_prototypes(f2, class_masks(labels, self.config.num_labels, f2.shape[2:]))
        return people[:, 1:], fine[:, 1:]

    @torch.inference_mode()
    def label_map(self, features: tuple[Tensor, Tensor], size: tuple[int, int],
                  example: Example) -> tuple[np.ndarray, np.ndarray]:
        """Features of a query -> label map uint8 of this size (H,W), and the probability of people
        (H,W)."""
        f1, f2 = features
        scores = self.class_scores(cosine(f2, example.fine), example.rows)     # (1,1+n,h,w)
        coarse = self.coarse_head(f1, example.people)                          # (1,2,h,w)
        out = dict(npm=resize_map(scores, size), coarse=resize_map(coarse, size))
        ids = np.array([0, *example.ids], np.uint8)
        labels = ids[screened(out)[0].cpu().numpy()]
        return labels, out['coarse'][0].softmax(0)[1].cpu().numpy()

    def class_scores(self, cosines: Tensor, rows: list[int]) -> Tensor:
        """Cosines (1,K-1,h,w) -> NPM logits (1,1+n,h,w) of background and the classes of `rows`;
        1-way: their leads over the background."""
        if not self.config.one_way:
            return self.npm_head(cosines)[:, [0, *rows]]
        logits = self.npm_head(cosines.transpose(0, 1))                        # (K-1,2,h,w)
        lead = (logits[:, 1] - logits[:, 0])[[row - 1 for row in rows]]        # (n,h,w)
        return torch.cat([torch.zeros_like(logits[:1, 0]), lead])[None]

    def people(self, features: tuple[Tensor, Tensor], photo: Image.Image,
               example: Example) -> Parsing:
        """Features of a photo -> its people: all as one, because EOP-Net does not separate them.
        The score is the mean probability of people in its pixels."""
        return as_one_person(*self.label_map(features, photo.size[::-1], example))

    # ---- test episodes, see oneshot/models.py ---------------------------------------------------

    def encode_query(self, photo: np.ndarray) -> tuple[Tensor, Tensor]:
        """A query (H,W,3) -> its coarse and fine feature."""
        return self.outputs(self.to_input(to_photo(photo), self.config.long_side))

    @torch.inference_mode()
    def encode_support(self, photo: np.ndarray, labels: np.ndarray,
                       fold: Fold) -> tuple[Tensor, Tensor]:
        """A support (H,W,3) and its labels (H,W) -> static prototypes of people and classes."""
        self.eval()
        people, fine = self.support_prototypes(to_photo(photo), labels, self.config.long_side)
        # Ids of no fold are people's pixels, but no classes.
        dropped = [c - 1 for c in range(1, self.config.num_labels) if c not in fold.all]
        fine[:, dropped] = 0
        return people, fine

    @torch.inference_mode()
    def predict_episode(self, query: tuple[Tensor, Tensor], support: tuple[Tensor, Tensor],
                        c: int | None, size: tuple[int, int], heads) -> dict[str, np.ndarray]:
        """What both give -> {head: label map (H,W)}; c: the class of 1-way."""
        f1, f2 = query
        people, fine = support
        rows = torch.arange(1, self.config.num_labels)[None]
        if self.config.one_way:
            fine = fine[:, c - 1:c]
            rows = rows[:, c - 1:c]
        # Base classes have a stored prototype; novel ones have the support's alone.
        fine = smoothed_prototypes(self.prototype, fine, rows, False, False)
        logits = self.heads(f1, f2, people, fine, heads)
        # All absent classes have the logits of the first of them: the others are not enlarged.
        present = fine[0].any(1)
        first_absent = (~present).cumsum(0) == 1
        shown = F.pad(present | first_absent, (1, 0), value=True).nonzero()[:, 0].cpu()
        screen = most_likely(logits['coarse'], size)
        maps = {}
        for head in heads:
            classes = shown[most_likely(logits[head][:, shown], size)]
            maps[head] = (classes * screen).to(torch.uint8).numpy()
        return maps


def most_likely(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits (1,N,h,w) -> the channel of the largest at this size (H,W), on the CPU. In the memory
    format channels_last enlarging and comparing are faster."""
    logits = resize_map(logits.contiguous(memory_format=torch.channels_last), size)
    return logits.max(1)[1][0].cpu()


def screened(out: dict, head: str = 'npm') -> Tensor:
    """out of `EOPNet.forward` -> the head's labels (B,H,W), background where the coarse head sees
    no people."""
    return out[head].argmax(1) * out['coarse'].argmax(1)


def released_config(weights: dict, path) -> Config:
    """The Config of a released state dict. ValueError where it is none of EOP-Net."""
    if not {'prototype', 's2_trans.weight', 'xception_features.conv1.weight'} <= weights.keys():
        raise ValueError(f'{path} is no checkpoint of EOP-Net; a DeepLab file starts a training '
                         'instead, with --pretrained')
    prototype = weights['prototype']
    if prototype.ndim != 2:
        raise ValueError(f'{path} does not fit: its prototypes have the shape '
                         f'{tuple(prototype.shape)}')
    rows, channels = prototype.shape
    blocks = {key.split('.')[1] for key in weights if key.startswith('xception_features.block')}
    return Config(data='LIP' if rows == 20 else 'ATR',
                  way='1way' if 'npm_class.weight' in weights else 'kway',
                  num_labels=rows,
                  channels=channels,
                  stem=len(weights['xception_features.conv1.weight']),
                  middle=len(blocks) - 4,
                  high_level='aspp1.bn.weight' in weights)


def label_rows(masks: list[np.ndarray], most: int,
               stored: bool) -> tuple[list[int], np.ndarray]:
    """The ids that uint8 label maps name, and a table (256) from id to row of the prototypes,
    255 -> 255.

    The model has `most` classes. With `stored` rows are the ids; else the ids in their order have
    the rows 1, 2, .. ValueError where the masks are no label maps, or have no or too many classes.
    """
    for mask in masks:
        if mask.ndim != 2 or mask.dtype != np.uint8:
            raise ValueError(f'a mask has the form {mask.shape} {mask.dtype}; give label maps '
                             '(H,W) of uint8')
    present = np.unique(np.concatenate([np.unique(mask) for mask in masks]))
    ids = [int(i) for i in present if 0 < i < IGNORE]
    if not ids:
        raise ValueError('no mask has a class; label pixels of the support photo with ids from 1')
    if (max(ids) if stored else len(ids)) > most:
        raise ValueError(f'the masks name the ids {ids}; this model has {most} classes')
    rows = np.zeros(256, np.uint8)
    rows[ids] = ids if stored else range(1, len(ids) + 1)
    rows[IGNORE] = IGNORE
    return ids, rows

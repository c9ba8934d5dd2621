"""What a trained EOP-Net is used for: any photos in the classes of examples, and test episodes."""
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from oneshot.augment import as_photo, label_rows, normalize, reduced
from oneshot.prototypes import class_masks, cosine, foreground, static_prototypes
from oneshot.xception import upsample
from util.results import as_one_person

LONG_SIDE = 1024                                      # of photos, where the config does not say


class Example(NamedTuple):
    """What supports teach: class ids, the row of each in the logits, prototypes of people and of classes."""
    ids: list
    rows: list
    people: torch.Tensor                     # (1,1,C)
    fine: torch.Tensor                       # (1,K-1,C)


class ByExample:
    """Methods of `oneshot.EOPNet`."""

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

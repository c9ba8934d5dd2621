"""DensePose-COCO (Guler et al. 2018), 14 body parts.

    annotations/DensePose_COCO/densepose_coco_2014_*.json, train2014, val2014

People without part masks are ignored, not taught as background.
"""
import json
import os
from collections import defaultdict

import numpy as np

from util.datasets.base import Labels, Photos, check_ids
from util.files import naming
from util.masks import coco_mask, paste_masks, stack_people


class DensePose(Photos):
    class_names = tuple('''background torso right-hand left-hand left-foot right-foot
        right-upper-leg left-upper-leg right-lower-leg left-lower-leg left-upper-arm
        right-upper-arm left-lower-arm right-lower-arm head'''.split())
    flip_pairs = (3, 2), (4, 5), (7, 6), (9, 8), (10, 11), (12, 13)
    splits = 'train', 'valminusminival', 'val', 'test'

    def __init__(self, root: str, split: str):
        part = 'minival' if split == 'val' else split
        path = os.path.join(root, 'annotations', 'DensePose_COCO',
                            f'densepose_coco_2014_{part}.json')
        names = self.read_annotations(path)
        self.ids = [i for i in dict.fromkeys(names) if self.people is None or self.is_labeled(i)]
        check_ids(self.ids, path)
        # COCO_val2014_000000000042 lies in val2014.
        self.photos = [os.path.join(root, (i.split('_') + [''])[1], i + '.jpg') for i in self.ids]
        missing = [photo for photo in self.photos if not os.path.isfile(photo)]
        if missing:
            raise FileNotFoundError(f'{len(missing)} of the {len(self)} photos in {path} are '
                                    f'missing, the first is {missing[0]}; unpack COCO 2014 beside '
                                    'annotations')

    def read_annotations(self, path: str) -> list[str]:
        """Sets people, {id: [(box, run lengths of parts, COCO's mask)]}; returns all ids."""
        with naming(path), open(path) as f:
            coco = json.load(f)
            names = {image['id']: os.path.splitext(image['file_name'])[0]
                     for image in coco['images']}
            self.people = defaultdict(list) if coco.get('annotations') else None
            for person in coco.get('annotations', ()):        # only what is needed stays in memory
                masks = [mask and mask['counts'] for mask in person.get('dp_masks') or ()]
                photo = names[person['image_id']]
                self.people[photo].append((person['bbox'], masks, person.get('segmentation')))
        return list(names.values())

    def is_labeled(self, photo: str) -> bool:
        return any(any(masks) for _, masks, _ in self.people[photo])

    def read_parsing(self, i: int, seed: int = 0, epoch: int = 0) -> Labels:
        size = self.size(i)
        maps = []
        ignore = np.full(size[::-1], self.people is None)
        people = self.people[self.ids[i]] if self.people is not None else ()
        for box, masks, segmentation in people:
            with naming(f'the annotation of {self.ids[i]}'):
                if any(masks):
                    maps.append(paste_masks(masks, box, size))
                else:
                    ignore |= coco_mask(segmentation, size)
        return stack_people(maps, size), ignore

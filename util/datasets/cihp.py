"""Crowd Instance-level Human Parsing (Gong et al. 2018), 19 parts, in either of its two trees.

The official release, with class maps and person maps of whole photos:

    {Training,Validation,Testing}/{Images,Category_ids,Human_ids,Instance_ids}

The tree of Parsing R-CNN and UniParser, with a label map per person:

    {train,val}_{img,parsing} and, where there is one, {CIHP,CHIP}_{train,val}.json
"""
import json
import os
from collections import defaultdict

import numpy as np

from util.datasets.base import GroundTruth, Labels, Photos
from util.files import index_folder, inside, naming, pick_files, read_list
from util.images import read_labels
from util.masks import split_map, stack_people

RELEASE = {'train': 'Training', 'val': 'Validation', 'test': 'Testing'}      # folders of the splits
MOST_PARTS = 20                                   # Instance_ids: 20 k + c is class c of person k


class CIHP(Photos):
    class_names = tuple('''background hat hair glove sunglasses upper-clothes dress coat socks
        pants torso-skin scarf skirt face left-arm right-arm left-leg right-leg left-shoe
        right-shoe'''.split())
    flip_pairs = (14, 15), (16, 17), (18, 19)

    def __init__(self, root: str, split: str):
        root = inside(root, 'instance-level_human_parsing')
        self.maps = None                          # of the release: Category_ids, Human_ids (paths)
        self.people = None                        # of the other tree: {id: paths of label maps}
        if os.path.isdir(os.path.join(root, RELEASE[split])):
            self.open_release(os.path.join(root, RELEASE[split]), split)
        elif os.path.isdir(os.path.join(root, f'{split}_img')):
            self.open_per_person(root, split)
        else:
            raise FileNotFoundError(f'{root} has neither {RELEASE[split]} (the official release) '
                                    f'nor {split}_img (Parsing R-CNN); --root is the folder of the '
                                    'unpacked download')

    @property
    def has_truth(self) -> bool:
        return self.maps is not None or self.people is not None

    def open_release(self, folder: str, split: str):
        # Some downloads have the list in the folder of the split, others beside it, others nowhere.
        lists = [os.path.join(f, f'{split}_id.txt') for f in (folder, os.path.dirname(folder))]
        lists = [path for path in lists if os.path.isfile(path)]
        photos = os.path.join(folder, 'Images')
        self.ids = read_list(lists[0]) if lists else list(index_folder(photos))
        self.photos = pick_files(photos, self.ids)
        if split != 'test':
            categories = pick_files(os.path.join(folder, 'Category_ids'), self.ids, ('.png',))
            humans = pick_files(os.path.join(folder, 'Human_ids'), self.ids, ('.png',))
            self.maps = categories, humans

    def open_per_person(self, root: str, split: str):
        photos = os.path.join(root, f'{split}_img')
        labels = os.path.join(root, f'{split}_parsing')
        self.people = defaultdict(list)
        lists = [os.path.join(root, folder, f'{name}_{split}.json')
                 for folder in ('', 'annotations') for name in ('CIHP', 'CHIP')]
        lists = [path for path in lists if os.path.isfile(path)]
        if lists:
            self.read_annotations(lists[0], labels)
        else:                                     # the list is neither part of CIHP nor published
            self.ids = list(index_folder(photos))
            for name, path in index_folder(labels, ('.png',)).items():
                photo = name.rsplit('-', 1)[0]
                self.people[photo].append(path)
        self.photos = pick_files(photos, self.ids)

    def read_annotations(self, path: str, labels: str):
        """ids and people of a list in COCO's form; labels: the folder of its label maps."""
        with naming(path), open(path) as f:
            coco = json.load(f)
            stems = {image['id']: os.path.splitext(image['file_name'])[0]
                     for image in coco['images']}
            self.ids = list(dict.fromkeys(stems.values()))
            for person in coco['annotations']:
                photo = stems[person['image_id']]
                self.people[photo].append(os.path.join(labels, person['parsing']))

    def read_parsing(self, i: int, seed: int = 0, epoch: int = 0) -> Labels:
        if self.maps is None:
            return super().read_parsing(i)
        categories, humans = self.maps
        category = read_labels(categories[i], 19)
        human = read_labels(humans[i])
        if category.shape != human.shape:
            raise ValueError(f'{categories[i]} and {humans[i]} differ in size; unpack them again')
        present = [h for h in np.flatnonzero(np.bincount(human.ravel())) if h]
        people = [category * (human == h) for h in present]
        ignore = (category > 0) & (human == 0)    # a class, but of nobody
        return stack_people(people, human.shape[::-1]), ignore

    def truth(self, i: int, parsing: np.ndarray, ignore: np.ndarray) -> GroundTruth:
        """The maps that CIHP's own evaluators read.

        In the release these are Category_ids, Human_ids and Instance_ids; in the tree of Parsing
        R-CNN the class maps of val_seg, if they are there.
        """
        stem, _ = os.path.splitext(self.photos[i])
        folder, name = os.path.split(f'{stem}.png')
        parent, images = os.path.split(folder)

        def read(kind):
            path = os.path.join(parent, kind, name)
            labels = read_labels(path)
            if labels.shape != ignore.shape:
                raise ValueError(f'{path} and {self.photos[i]} differ in size; unpack the download '
                                 'again')
            return labels

        if self.maps is None:
            seg = images.replace('_img', '_seg')
            found = os.path.isdir(os.path.join(parent, seg))
            return GroundTruth(parsing, semantic=read(seg) if found else None)

        ids = read('Instance_ids')
        parts = []
        for first in range(0, int(ids.max()) + 1, MOST_PARTS):
            mine = (ids > first) & (ids < first + MOST_PARTS)
            parts.append(np.where(mine, ids - first, 0).astype(np.uint8))
        rows = [(human, 1., 1) for human in range(1, 256)]
        humans, _, _ = split_map(read('Human_ids'), rows, len(self.class_names))
        return GroundTruth(parsing, semantic=read('Category_ids'), parts=parts, humans=humans)

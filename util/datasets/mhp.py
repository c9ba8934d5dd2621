"""LV-MHP-v2 (Zhao et al. 2018), 58 parts.

    list/*.txt, {train,val}/{images,parsing_annos}, test/images

parsing_annos/ID_NN_KK.png is the label map of person KK of NN in a photo.
"""
import os
from collections import defaultdict

import numpy as np

from util.datasets.base import GroundTruth, Photos
from util.files import index_folder, inside, pick_files, read_list


class MHP(Photos):
    class_names = tuple('''
        background cap/hat helmet face hair left-arm right-arm left-hand right-hand protector
        bikini/bra jacket/windbreaker/hoodie t-shirt polo-shirt sweater singlet torso-skin pants
        shorts/swimshorts skirt stockings socks left-boot right-boot left-shoe right-shoe
        left-highheel right-highheel left-sandal right-sandal left-leg right-leg left-foot
        right-foot coat dress robe jumpsuits other-full-body-clothes headwear backpack ball bats
        belt bottle carrybag cases sunglasses eyewear gloves scarf umbrella wallet/purse watch
        wristband tie other-accessaries other-upper-body-clothes
        other-lower-body-clothes'''.split())
    flip_pairs = (5, 6), (7, 8), (22, 23), (24, 25), (26, 27), (28, 29), (30, 31), (32, 33)

    def __init__(self, root: str, split: str):
        root = inside(root, 'LV-MHP-v2')
        list_name = 'test_all' if split == 'test' else split
        self.ids = read_list(os.path.join(root, 'list', f'{list_name}.txt'))
        self.photos = pick_files(os.path.join(root, split, 'images'), self.ids)
        self.people = None
        if split != 'test':
            self.people = self.find_people(os.path.join(root, split, 'parsing_annos'))

    def find_people(self, folder: str) -> dict[str, list[str]]:
        """{id: paths of its label maps}. A photo without label maps is one without people."""
        people = defaultdict(list)
        for name, path in index_folder(folder, ('.png',)).items():
            photo = name.rsplit('_', 2)[0]
            people[photo].append(path)
        if self.ids and not any(i in people for i in self.ids):
            raise FileNotFoundError(f'{folder} has no label map of any photo; unpack the download '
                                    'again')
        return people

    def truth(self, i: int, parsing: np.ndarray, ignore: np.ndarray) -> GroundTruth:
        return GroundTruth(parsing)               # MHP's evaluator ignores no pixels

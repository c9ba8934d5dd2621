"""Where people are lost between the heat map and the result, for people whose masks are known
(`oracle where`)."""

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from data import input_size, network_input
from uniparser import correlate, decode, find_centers, paint_person
from util.files import read_stored
from util.person_counts import IOU, SMALLEST_SHARE, mask_ious, percent

STAGES = (
    'a peak of the heat map lies in the person',
    'the map of the best cell in the person has an IoU above 0.5',
    'the map of some peak has an IoU above 0.5',
    'a person of the result has an IoU above 0.5',
)


def photo_masks(q_ins, size, shape, theta):
    """Maps (N, h, w) at the network's size -> masks (N, H, W) bool at the photo's, as `decode`
    paints them."""
    photo = Image.new('1', shape[::-1])
    masks = [paint_person(q, photo, size, theta) for q in q_ins]
    return np.array(masks, bool).reshape(-1, *shape)


def cells_of(mask, size, padded, grid):
    """bool (S, S): the cells of the heat map whose middle lies in a person's mask (H, W). size,
    padded: (h, w) of the network's input without and with padding, in pixels."""
    inside = np.zeros((grid, grid), bool)
    middles = [
        (2 * np.arange(grid) + 1) * whole / (2 * grid) * length / own
        for whole, own, length in zip(padded, size, mask.shape)
    ]
    rows, columns = (middle.astype(int) for middle in middles)
    there = np.ix_(rows < mask.shape[0], columns < mask.shape[1])
    inside[there] = mask[np.ix_(rows[rows < mask.shape[0]], columns[columns < mask.shape[1]])]
    return inside


@torch.no_grad()
def stages_of_photo(model, photo, people, ignore):
    """bool (number of people of at least 1 % of the photo, len(STAGES)): which stages each of them
    passes."""
    config = model.config
    people = [
        person for person in people if np.count_nonzero(person.mask) >= SMALLEST_SHARE * ignore.size
    ]
    passed = np.zeros((len(people), len(STAGES)), bool)
    if not people:
        return passed
    out = model.outputs(network_input(photo, config))
    padded, size = input_size(photo, config)
    masks = np.array([person.mask for person in people])
    k_ins = out['k_ins'][0].flatten(1).T  # (S*S, C)
    cells, _ = find_centers(out['heatmap'][0, 0], config)

    def ious_of(chosen):
        q_ins = correlate(k_ins[chosen], out['f_ins'][0], config.space)
        return mask_ious(photo_masks(q_ins, size, ignore.shape, config.theta_mask), masks)

    peaks = ious_of(cells)
    result = mask_ious(decode(out, 0, photo, config, model.fusion).parsing > 0, masks)
    heat = out['heatmap'][0, 0].flatten()
    for n, person in enumerate(people):
        own = torch.from_numpy(np.flatnonzero(cells_of(person.mask, size, padded, config.grid)))
        passed[n, 0] = np.isin(cells.cpu().numpy(), own.numpy()).any()
        if len(own):
            best = own[heat[own.to(heat.device)].argmax().cpu()]
            passed[n, 1] = ious_of(best[None])[0, n] > IOU
        passed[n, 2] = peaks[:, n].max(initial=0) > IOU
        passed[n, 3] = result[:, n].max(initial=0) > IOU
    return passed


def print_where(model, dataset):
    """Prints the share of the people of a split of COCO that pass each stage."""
    rows = [
        stages_of_photo(model, read_stored(dataset.photos[k]), *dataset.persons(k))
        for k in tqdm(range(len(dataset)), unit='photo')
    ]
    rows = np.concatenate(rows)
    for name, passed in zip(STAGES, rows.sum(0).tolist()):
        print(f'{percent(passed, len(rows)):>8} of {len(rows)} people: {name}')

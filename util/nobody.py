"""Why a photo has no person: the threshold that held the best candidate back."""

from dataclasses import replace

import torch

from uniparser import correlate, find_centers, part_scores
from util.beyond import distinct, map_quality, mixture, parsing_quality


@torch.no_grad()
def held_back(out, i, config):
    """For image i of a network's outputs, in which `decode` finds nobody with fusion index -> the
    name of the first setting that no candidate passes, and the best candidate's value, which is at
    most the setting's. None where the candidates pass each threshold, but lose all their pixels at
    the photo's size."""
    cells, scores = find_centers(out['heatmap'][i, 0], replace(config, theta_center=0.0))
    if not len(scores) or scores[0] <= config.theta_center:
        return 'theta_center', float(scores[:1].sum())
    passed = scores > config.theta_center
    cells, scores = cells[passed], scores[passed]
    q_ins = correlate(out['k_ins'][i].flatten(1).T[cells], out['f_ins'][i], config.space)
    q_cate = correlate(out['k_cate'], out['f_cate'][i], config.space)
    gate = q_ins > config.theta_mask
    if not gate.any():
        return 'theta_mask', float(q_ins.max())
    # The filters of people, in the order of `decode`.
    kept = distinct(gate, config.theta_same)
    scores, gate, q_ins = scores[kept], gate[kept], q_ins[kept]
    if config.theta_person:
        quality = map_quality(gate, q_ins, scores)
        if quality.max() <= config.theta_person:
            return 'theta_person', float(quality.max())
        gate, q_ins = gate[quality > config.theta_person], q_ins[quality > config.theta_person]
    if config.score == 'parsing':
        quality = parsing_quality(gate, q_ins, q_cate)
        if quality.max() <= config.theta_score:
            return 'theta_score', float(quality.max())
        gate = gate[quality > config.theta_score]
    return part_held_back(gate, q_cate, config)


def part_held_back(gate, q_cate, config):
    """The same for the parts of people, all of which the filters of people let pass. gate (N, h, w)
    bool."""
    theta_paint = config.theta_paint or config.theta_mask
    if config.assign == 'mixture':
        found = [mixture(q_cate, person, config.theta_part) for person in gate]
        mean = max(float(means.max()) for _, means in found)
        if mean <= config.theta_part:
            return 'theta_part', mean
        value = max(float(maps.max()) for maps, _ in found)
        return ('theta_paint', value) if value <= theta_paint else None
    # Here the mean of a part counts only what is above theta_paint.
    value = float((gate[:, None] * q_cate).max())
    if value <= theta_paint:
        return 'theta_paint', value
    mean = float(part_scores(gate, q_cate, theta_paint).max())
    return ('theta_part', mean) if mean <= config.theta_part else None


def advice(out, i, config):
    """A sentence for a photo without people; '' where no threshold can be named."""
    found = held_back(out, i, config) if config.fusion == 'index' else None
    if not found:
        return ''
    name, value = found
    flag = '--' + name.replace('_', '-')
    asked = getattr(config, name)
    return f'; the best candidate has {value:.2f} where {flag} asks for more than {asked:g}'

"""The three optimizers of ViWear's fork and the learning rate of SCHP's schedule, group by group.

    adamw_custom       everything; the heads at ten times the rate
    segce2p_phase_1    the heads alone, the backbone is frozen
    segce2p_phase_2    everything; each earlier stage of the backbone at 0.7 times the rate of the next
"""
import math

import torch

HEADS = tuple(((name,), 10) for name in ('head.', 'edge.', 'fusion.'))
STAGES = tuple((tuple(f'backbone.{name}{s}.' for name in ('patch_embed', 'block', 'norm')), 0.7 ** (4 - s))
               for s in (1, 2, 3, 4))
RECIPES = {                                               # (starts of names, factor of the rate) of each part
    'adamw_custom': ((('backbone.',), 1), (('head.', 'edge.', 'fusion.'), 10)),
    'segce2p_phase_1': HEADS,
    'segce2p_phase_2': (*STAGES, *HEADS)}


def decays(name, parameter, recipe):
    """Whether a parameter, by its name inside its module of the recipe, gets weight decay. The two phases go by that
    name alone, so the scales of InPlaceABN and of the norm behind each stage do get it, as in the released code."""
    if recipe == 'adamw_custom':
        return parameter.ndim > 1
    return not (name.endswith('bias') or 'norm' in name or 'bn' in name)


def parameter_groups(model, recipe, lr=6e-5, weight_decay=1e-3):
    """Groups for AdamW: of each part of the recipe, first the parameters that decay, then the others."""
    if recipe not in RECIPES:
        raise ValueError(f'the optimizer {recipe!r} is unknown; choose one of {", ".join(RECIPES)}')
    groups = []
    for starts, factor in RECIPES[recipe]:
        part = [(decays(name.removeprefix(start), p, recipe), p) for name, p in model.named_parameters()
                for start in starts if name.startswith(start)]
        for decay in (True, False):
            groups.append(dict(params=[p for d, p in part if d == decay], lr=lr * factor, base_lr=lr * factor,
                               weight_decay=weight_decay if decay else 0.0))
    return groups


def make_optimizer(model, recipe, lr=6e-5, weight_decay=1e-3):
    """AdamW over the recipe's groups. Parameters in no group are frozen, those in one are not."""
    groups = parameter_groups(model, recipe, lr, weight_decay)
    model.requires_grad_(False)
    for parameter in (p for group in groups for p in group['params']):
        parameter.requires_grad_(True)
    return torch.optim.AdamW(groups)


def learning_rate(epoch, base_lr, lr, literal=False, start=100, warmup=10, cycle=10):
    """Rate of an epoch (0-based) for a group of rate base_lr in a run of rate lr: linear warm-up from lr / 100, half a
    cosine down to lr / 100 until epoch `start`, then SCHP's cycles, half a cosine each, from half the rate.

    literal: in the cycles, the released code gives every group the rate of one with base_lr = lr, so the heads fall to
    a twentieth and early stages rise above their own rate. The default keeps the ratio of the groups.
    """
    low = lr / 100
    if epoch < warmup:
        return low + epoch / warmup * (base_lr - low)
    if epoch < start:
        return low + (base_lr - low) * (1 + math.cos(math.pi * (epoch - warmup) / (start - warmup))) / 2
    rate = low + (lr / 2 - low) * (1 + math.cos(math.pi * ((epoch - start) % cycle) / cycle)) / 2
    return rate if literal else rate * (base_lr / lr)


def set_learning_rates(optimizer, epoch, lr, **schedule):
    for group in optimizer.param_groups:
        group['lr'] = learning_rate(epoch, group['base_lr'], lr, **schedule)

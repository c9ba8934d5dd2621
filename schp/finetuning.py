"""The three optimizers of ViWear's fork of SCHP, by the phase of its training.

    phase 0   adamw_custom      everything; the heads at ten times the rate
    phase 1   segce2p_phase_1   the heads alone; the backbone is frozen
    phase 2   segce2p_phase_2   everything; each earlier stage of the backbone at 0.7 times the rate of the next
"""
import torch

HEADS = tuple(((name,), 10.0) for name in ('head.', 'edge.', 'fusion.'))
STAGES = tuple((tuple(f'backbone.{name}{s}.' for name in ('patch_embed', 'block', 'norm')), 0.7 ** (4 - s))
               for s in (1, 2, 3, 4))
PHASES = (                                                # (starts of names, factor of the rate) of each part
    ((('backbone.',), 1.0), (('head.', 'edge.', 'fusion.'), 10.0)),
    HEADS,
    (*STAGES, *HEADS))


def decays(name, parameter, phase):
    """Whether a parameter, by its name inside its part, gets weight decay. Phases 1 and 2 go by that name alone, so the
    scales of InPlaceABN and of the norm behind each stage do get it, as in the released code."""
    if phase == 0:
        return parameter.ndim > 1
    return not (name.endswith('bias') or 'norm' in name or 'bn' in name)


def parameter_groups(model, phase, weight_decay):
    """Groups for AdamW: of each part of the phase, first the parameters that decay, then the others. `factor` is what
    the trainer multiplies the schedule's rate by; `share` is its value before `set_factors`."""
    groups = []
    for starts, share in PHASES[phase]:
        part = [(decays(name.removeprefix(start), p, phase), p) for name, p in model.named_parameters()
                for start in starts if name.startswith(start)]
        for decay in (True, False):
            groups.append(dict(params=[p for d, p in part if d == decay], factor=share, share=share,
                               weight_decay=weight_decay if decay else 0.0))
    return groups


def make_optimizer(model, phase, weight_decay):
    """AdamW over the groups of the phase. Parameters in no group are frozen, and so is `conv_seg`, which no forward
    uses: with several processes, DDP waits for the gradients of all others."""
    groups = parameter_groups(model, phase, weight_decay)
    model.requires_grad_(False)
    for parameter in (p for group in groups for p in group['params']):
        parameter.requires_grad_(True)
    model.head.conv_seg.requires_grad_(False)
    return torch.optim.AdamW(groups, lr=1.0)


def set_factors(optimizer, rate, lr, cycling):
    """The factors of the groups in the released code, where the schedule gives `rate` to a group of share 1, base lr.

    There, all groups come from and go down to lr / 100, and in the cycles each gets the rate of share 1: the heads fall
    to a twentieth of their rate and early stages rise above their own. Ours keeps the shares all the time."""
    low = lr / 100
    for group in optimizer.param_groups:
        own = low + (group['share'] * lr - low) * (rate - low) / (lr - low)
        group['factor'] = 1.0 if cycling else own / rate

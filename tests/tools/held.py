"""Functions for test processes. It imports nothing: what a process imports counts as its memory."""


def make_holder(megabytes):
    """-> a function that holds these megabytes for a moment, and more if asked."""
    def hold(more=0):
        block = b'x' * ((megabytes + more) * 2 ** 20)
        return len(block) // 2 ** 20
    return hold


def make_failing():
    def fail():
        raise ValueError('the photo is no photo')
    return fail


def make_dying():
    def die():
        raise SystemExit(1)
    return die

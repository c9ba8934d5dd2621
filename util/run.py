"""A run: its processes, device, folder and log."""



class Run:
    """The folder of a run and its log, which the first process alone writes; best: AP50 so far."""

    def __init__(self, folder, rank):
        self.folder, self.rank, self.best = Path(folder), rank, -1.0
        make_folder(self.folder)

    def log(self, text, **record):
        if self.rank:
            return
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()
        if record:
            with writing(self.folder / 'log.jsonl'), open(self.folder / 'log.jsonl', 'a') as f:
                f.write(json.dumps(record) + '\n')


def free_folder(name):
    """runs/NAME, or runs/NAME-2, ... : the first that does not exist."""
    n = 1
    while Path('runs', name if n == 1 else f'{name}-{n}').exists():
        n += 1
    return Path('runs', name if n == 1 else f'{name}-{n}')


@contextmanager
def signals():
    """A list that is no longer empty after SIGINT or SIGTERM."""
    seen = []
    former = {n: signal.signal(n, lambda *_: seen.append(n)) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield seen
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def told_to_stop(seen, position, world, device):
    """Whether this or another process got a signal. All must stop after the same step: they ask every fifth."""
    if world == 1:
        return bool(seen)
    if position % 5:
        return False
    flag = torch.tensor(len(seen), device=device)
    dist.all_reduce(flag)
    return flag.item() > 0


def choose_amp(amp, device):
    """--amp, --no-amp or None -> the type of half precision, or False."""
    if not (device.type == 'cuda' if amp is None else amp):
        return False
    return torch.float16 if device.type == 'cuda' and not torch.cuda.is_bf16_supported() else torch.bfloat16


def set_up_processes(wanted):
    """(rank, number of processes, device) from torchrun's environment and --device."""
    wanted = find_device(wanted)
    if 'RANK' not in os.environ:
        return 0, 1, torch.device(wanted)
    device = torch.device(wanted, int(os.environ['LOCAL_RANK']) if wanted == 'cuda' else None)
    if wanted == 'cuda':
        torch.cuda.set_device(device)
    dist.init_process_group('nccl' if wanted == 'cuda' else 'gloo')
    return dist.get_rank(), dist.get_world_size(), device


def find_device(name):
    """'auto', 'cpu', 'cuda' or 'mps' -> one that this machine has, or ValueError."""
    if name == 'auto':
        return 'cuda' if torch.cuda.is_available() else 'mps' if torch.backends.mps.is_available() else 'cpu'
    if name == 'cuda' and not torch.cuda.is_available() or name == 'mps' and not torch.backends.mps.is_available():
        raise ValueError(f'--device {name}: this machine or this torch has none; use --device cpu')
    return name

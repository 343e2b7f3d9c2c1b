"""What the processes of a run say to each other; with one process nothing is said at all.

All of them run the same program. The first one writes the work directory and the screen; the others
tell it what it must know. Each function here must be reached by all processes in the same order.
"""

import contextlib
import json
import os

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

SETTINGS = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')


def start():
    """Joins the processes of a run; to be called before anything touches a device.

    JAX finds the others by itself on TPU pods (GCE, GKE), under Slurm and Open MPI, and on
    Kubernetes with the package `kubernetes`; elsewhere all of SETTINGS must be in the environment.

    Raises ValueError where there is neither, or only a part of SETTINGS.
    """
    given = {name: os.environ[name] for name in SETTINGS if os.environ.get(name)}
    explicit = {}
    if given.keys() & set(SETTINGS[1:]):  # an address alone is what some clusters set
        missing = [name for name in SETTINGS if name not in given]
        numbers = [given.get(name, '0') for name in SETTINGS[1:]]
        if missing or not all(number.isdecimal() for number in numbers):
            raise ValueError(
                f'--multihost: the environment has {given}; it must have all of '
                f'{", ".join(SETTINGS)} (HOST:PORT of the first process, and two numbers) or, on '
                'a cluster that JAX knows, none'
            )
        address, count, number = (given[name] for name in SETTINGS)
        explicit = {'num_processes': int(count), 'process_id': int(number)}
        explicit['coordinator_address'] = address
    jax.config.update('jax_enable_preemption_service', False)  # signals are ours: see stop.py
    try:
        jax.distributed.initialize(**explicit)
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f'--multihost: the processes did not find each other ({str(error).splitlines()[0]}); '
            'on one machine leave the flag out, on a cluster that JAX does not know set '
            f'{", ".join(SETTINGS)}'
        ) from error


def alone():
    """Whether this process is the only one."""
    return jax.process_count() == 1


def first():
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


@contextlib.contextmanager
def one_voice():
    """Within it, standard output is the first process's only; errors are everybody's."""
    if first():
        yield
        return
    with open(os.devnull, 'w', encoding='utf-8') as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def gathered(value):
    """What each process gave, a list in their order; `value` is what JSON can hold."""
    if alone():
        return [value]
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.array(len(data), np.int32))
    size = max(256, 1 << (int(lengths.max()) - 1).bit_length())  # few sizes: each is compiled once
    rows = multihost_utils.process_allgather(np.pad(data, (0, size - len(data))))
    return [
        json.loads(row[:length].tobytes()) for row, length in zip(rows, lengths.flat, strict=True)
    ]


def told(value):
    """What the first process gave."""
    return gathered(value if first() else None)[0]


def on_first(do):
    """Calls `do` in the first process -> what it returned there, for JSON.

    Raises ValueError in all processes where it raises one.
    """
    if alone():
        return do()
    result, fault, trouble = None, None, None
    if first():
        try:
            result = do()
        except ValueError as error:
            trouble, fault = error, str(error)
    result, fault = told([result, fault])
    if fault is not None:
        raise ValueError(fault) from trouble
    return result


class Ear:
    """Lets all processes hear of a signal at the same step, though only one may have got it.

    Each step's question goes to the devices behind the step itself, and is answered one step later,
    so nobody waits for it.
    """

    def __init__(self):
        self._asked = None
        if not alone():
            mesh = Mesh(np.array(jax.devices()), ('devices',))
            self._split = NamedSharding(mesh, PartitionSpec('devices'))
            self._loudest = jax.jit(
                lambda numbers: numbers.max(), out_shardings=NamedSharding(mesh, PartitionSpec())
            )

    def __call__(self, signal):
        """The signal (a number or None) that some process had at the call before this one.

        With one process: `signal` itself.
        """
        if alone():
            return signal
        asked, shape = self._asked, (jax.device_count(),)
        here = jax.make_array_from_callback(
            shape, self._split, lambda _: np.array([signal or 0], np.int32)
        )
        self._asked = self._loudest(here)
        return (int(asked) or None) if asked is not None else None

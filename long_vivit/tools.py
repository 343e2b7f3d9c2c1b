"""What all stages of a run share."""

from dataclasses import dataclass

from long_vivit.ledger import BadSteps, Ledger


@dataclass
class Tools:
    """What all stages of a run share. `writers` get every line of the curves.

    Of several processes only the first writes: in the others `curves` is None, `writers` is empty,
    and nothing is added to the ledgers.
    """

    run: object
    workdir: object
    tokenizer: object
    mesh: object
    curves: object
    writers: tuple
    start_up: object
    broken: Ledger
    bad_steps: BadSteps
    threads: int
    profile: object  # `profiler.Profile`
    signals: object  # `stop.Signals`
    images: object = None  # the Source of eval.images
    say: object = print

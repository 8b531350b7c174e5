"""Few-shot tuning of a delta on each target task, for each batch size and learning rate; tests the best step.

Step "downstream performance" of the paper. The shell scripts in scripts/ call it with the paper's settings:

    bash scripts/adapter.sh                                             from random init
    bash scripts/adapter.sh --train_checkpoint checkpoints/Loss         from the ensembles in a folder
"""

from pewe.command import main

from pewe.tuning.config import TuneConfig


def run(config: TuneConfig) -> None:
    """As pewe.tuning.tune, which loads the model's code."""
    from pewe.tuning.tune import tune

    tune(config)


if __name__ == "__main__":
    main(run, TuneConfig, __doc__)

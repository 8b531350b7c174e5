"""The paper's experiment as one grid: delta x seed x init x task, its similarities, ensembles, few-shot runs and tables.

Steps (pewe/grid/steps.py) that are done are skipped; a cell that fails is listed at the end with its cause, and the others go on.
The results of all steps that hold today are gathered in results/<suite>/ (pewe/reporting/page.py).
"""

from pewe.cli import main
from pewe.grid.config import Config


def run(config: Config) -> None:
    """As pewe.grid.run, which loads what the steps need."""
    from pewe.grid.run import run

    run(config)


if __name__ == "__main__":
    main(run, Config, __doc__)

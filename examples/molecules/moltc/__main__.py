"""`python -m moltc STAGE`: the stages of dvc.yaml, and what a person asks for by hand."""

import argparse
import logging
import sys
import warnings
from pathlib import Path

from recalign.common.errors import RecalignError

STAGES = ("prepare", "base", "baselines", "describe", "interact", "text", "prefer", "evaluate")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 0, or 2 where the input is at fault."""
    parser = argparse.ArgumentParser(prog="python -m moltc", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for stage in STAGES:
        commands.add_parser(stage, help=f"the stage {stage} of dvc.yaml")
    commands.add_parser("joint", help="learn the pairs of another project too (joint in params.yaml), after 'describe'")
    curve = commands.add_parser("curve", help="train on more and more pairs; reports/curve.csv")
    curve.add_argument("pairs", type=int, nargs="+", help="training pairs, e.g. 100 400 1600")
    commands.add_parser("simulate", help="write the bundled simulated pairs again")
    commands.add_parser("register", help="register the trained model in MLflow; serve it with 'mlflow models serve'")
    given = parser.parse_args(arguments)
    warnings.filterwarnings("ignore", category=FutureWarning)  # the libraries talk to their developers
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for own in ("recalign", "moltc"):
        logging.getLogger(own).setLevel(logging.INFO)
    try:
        _run(given)
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "rdkit":
            raise
        print("error: RDKit is missing; install it with pip install -e '.[molecules]'", file=sys.stderr)
        return 2
    except RecalignError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _run(given: argparse.Namespace) -> None:
    from moltc import project, stages
    from moltc.params import load_params

    if given.command == "simulate":
        from moltc.simulator import write_simulated

        write_simulated(project.SIMULATED)
        return
    if given.command == "register":
        from moltc.serving import MODEL, register

        print(f"models:/{MODEL}/{register(load_params(Path('params.yaml')))}")
        return
    if given.command == "curve":
        from moltc.curve import write_curve

        write_curve(load_params(Path("params.yaml")), given.pairs)
        return
    getattr(stages, given.command)(load_params(Path("params.yaml")))


if __name__ == "__main__":
    sys.exit(main())

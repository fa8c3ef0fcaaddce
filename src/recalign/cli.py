"""The command line: one subcommand a stage of dvc.yaml, one a thing that a user does. Thin: it parses and calls.

Exit codes: 0 well; 1 a finding, where a command judges, and nothing else; 2 something the user can fix, or an
unforeseen fault, whose stack trace is kept in a file (one line either way); 130 interrupted; 141 nobody reads on.
"""

import argparse
import errno
import importlib
import logging
import os
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from recalign import __version__, uncollected
from recalign.common import console
from recalign.common.errors import RecalignError
from recalign.pipeline import STAGES, check_version

# stages of many runs, and what names one
OF_MANY = {"align": "objective", "baselines": "system", "llara": "teacher", "rank": "system"}
BAD_INPUT, INTERRUPTED, CLOSED_PIPE = 2, 130, 141  # the last two as shells count signals: 128 + SIGINT, + SIGPIPE
DEBUG_VARIABLE = "RECALIGN_DEBUG"
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FAULTS = Path("data/cache/faults")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit code."""
    console.prepare()
    try:
        try:
            return _run(argv)
        finally:
            console.flush()
    except BrokenPipeError:  # as with `| head`: whoever read has enough
        console.mute()
        return CLOSED_PIPE
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):  # rich makes it an exit with 1, which here means a finding
            return CLOSED_PIPE
        raise
    except OSError as error:
        console.mute()
        print(f"recalign: the output cannot be written ({error}); make room, or send it elsewhere", file=sys.stderr)
        return BAD_INPUT


def _run(argv: Sequence[str] | None) -> int:
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("recalign").setLevel(logging.INFO)
    warnings.filterwarnings("ignore", category=FutureWarning)  # the libraries talk to their developers
    debug = arguments.debug or os.environ.get(DEBUG_VARIABLE, "") not in ("", "0")
    try:
        code = arguments.run(arguments)
        return code if isinstance(code, int) else 0  # a number where a command judges; others return what they did
    except KeyboardInterrupt:
        said, code = "interrupted; nothing half-written is left", INTERRUPTED
    except BrokenPipeError:
        raise
    except RecalignError as error:
        said, code = str(error), BAD_INPUT
    except Exception as error:
        if debug:
            raise
        said, code = _unforeseen(arguments.command, error), BAD_INPUT
    print(f"recalign {arguments.command}: {' '.join(said.splitlines())}", file=sys.stderr)
    return code


def _unforeseen(command: str, error: Exception) -> str:
    """What is said of an error that no code foresaw: a bug, a machine's trouble, or input of a new kind of badness."""
    what = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    if isinstance(error, MemoryError):
        return f"the memory is not enough ({what}); take fewer or shorter cases, or a machine with more of it"
    if isinstance(error, OSError) and (error.filename is not None or error.errno in FULL_DISK):
        return f"{error.filename or 'the output'}: {error.strerror}; check the path, its permissions and the free space"
    return f"unforeseen fault ({what}); {_kept(command)}"


def _kept(command: str) -> str:
    """Keep the stack trace in a file of the project, or of the temporary folder, and say where."""
    place = FAULTS if Path("params.yaml").is_file() else Path(tempfile.gettempdir())
    file = place / f"recalign-{command}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    told = f"recalign {__version__}, Python {sys.version.split()[0]}\n{' '.join(sys.argv)}\n\n{traceback.format_exc()}"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(told, encoding="utf-8", errors="backslashreplace")
    except OSError:
        return "'recalign --debug' in place of 'recalign' shows the stack trace"
    return f"the stack trace is in {file}: please report it, and look whether the input is what the command expects"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="recalign",
        description="From an interaction log to a preference-aligned LLM recommender. `dvc repro` runs the stages in "
        "their order; params.yaml holds every parameter.",
    )
    parser.add_argument("--version", action="version", version=f"recalign {__version__}")
    shown = f"show the stack trace of an unforeseen fault (or {DEBUG_VARIABLE}=1)"
    parser.add_argument("--debug", action="store_true", help=shown)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, stage in STAGES.items():
        if name == "rank":  # which ranks anyone's lists, too
            _add_rank(commands)
            continue
        parser_of_stage = commands.add_parser(name, help=stage.summary, description=f"Stage {name}: {stage.summary}.")
        parser_of_stage.set_defaults(run=_run_stage)
        if stage.option:
            parser_of_stage.add_argument(f"--{stage.option}", required=True, help=stage.option_help)
    _add_init(commands)
    _add_graph(commands)
    _add_simulate(commands)
    _add_registry(commands)
    _add_recommend(commands)
    _add_explain(commands)
    _add_batch(commands)
    _add_doctor(commands)
    _add_estimate(commands)
    _add_audit(commands)
    _add_compare(commands)
    _add_table(commands)
    _add_export(commands)
    _add_profile(commands)
    _add_dpo4rec(commands)
    return parser


def subcommands() -> dict[str, argparse.ArgumentParser]:
    """Every subcommand's parser by its name, in the order of `recalign --help`."""
    (action,) = (action for action in _parser()._actions if isinstance(action, argparse._SubParsersAction))
    return dict(action.choices)


def _call(name: str, room: str = "commands", module: str = "") -> Callable[..., int | None]:
    """A command's function; imported here, so that `--help` imports none of the heavy libraries."""
    with uncollected():
        found = importlib.import_module(f"recalign.{room}.{module or name}")
    function: Callable[..., int | None] = getattr(found, name)
    return function


def _params():  # type: ignore[no-untyped-def]  # its type would import pydantic for --help
    from recalign.params.load import load_params

    return load_params()


def _run_stage(arguments: argparse.Namespace) -> None:
    from recalign.common.run_log import noted
    from recalign.recommenders.roster import check_systems

    chosen = STAGES[arguments.command].option
    options = {chosen: getattr(arguments, chosen)} if chosen else {}
    check_version(__version__)
    params = _params()
    check_systems(params.recommenders.systems)
    with noted("@".join([arguments.command, *options.values()])):
        _call(arguments.command, "stages")(params, **options)


Commands = argparse._SubParsersAction


def _add_init(commands: Commands) -> None:
    init = commands.add_parser("init", help="write a new project, which runs the installed recalign, into a folder")
    init.add_argument("folder", type=Path, help="a new folder, or an empty one")
    init.set_defaults(run=lambda a: _call("init")(a.folder))


def _add_graph(commands: Commands) -> None:
    judged = "exit code: 0 up to date, 1 out of date, 2 bad input"
    graph = commands.add_parser("graph", help="what dvc.yaml lacks of the modules that stages import", epilog=judged)
    graph.add_argument("--write", action="store_true", help="write them into dvc.yaml; its comments stay")
    graph.set_defaults(run=lambda a: _call("graph")(write=a.write))


def _add_simulate(commands: Commands) -> None:
    simulate = commands.add_parser("simulate", help="write the simulated log to data/raw/simulated")
    simulate.add_argument("--days", type=int, help="days of log (default: simulator.days); more only adds events")
    simulate.set_defaults(run=lambda a: _call("simulate")(_params(), days=a.days))


def _add_registry(commands: Commands) -> None:
    register = commands.add_parser("register", help="log an adapter or the fusion to MLflow, judged by the gate")
    register.add_argument(
        "--objective",
        help="whose adapter (one of evaluate.adapters, too), or fusion (default: what registry.system says)",
    )
    register.set_defaults(run=lambda a: _call("register")(_params(), a.objective))
    promote = commands.add_parser("promote", help="make a registered version the champion")
    promote.add_argument("version", help="version number in the registry")
    promote.add_argument("--reason", required=True, help="why; kept with the version")
    _add_force(promote, "even if it broke a guard or does not answer; what is overruled is kept with the version")
    promote.set_defaults(
        run=lambda a: _call("promote", module="champion")(_params(), a.version, a.reason, force=a.force)
    )
    rollback = commands.add_parser("rollback", help="give the alias champion back to the previous champion")
    rollback.add_argument("--reason", required=True, help="why; kept with the version")
    _add_force(rollback, "even if that one does not answer; what is overruled is kept with the version")
    rollback.set_defaults(run=lambda a: _call("rollback", module="champion")(_params(), a.reason, force=a.force))


def _add_force(parser: argparse.ArgumentParser, told: str) -> None:
    parser.add_argument("--force", action="store_true", help=told)


def _add_recommend(commands: Commands) -> None:
    recommend = commands.add_parser("recommend", help="rank the catalogue for a user or for some titles")
    whom = recommend.add_mutually_exclusive_group(required=True)
    whom.add_argument("--user", help="user id, as the log writes it")
    whom.add_argument("--titles", nargs="+", metavar="TITLE", help="liked titles, oldest first")
    recommend.add_argument("--adapter", help="adapter folder or models:/ URI (default: champion, else challenger)")
    recommend.add_argument("-k", type=int, default=10, help="how many (default: 10)")
    told = "rank the new items of this CSV (item_id,title and the catalogue's attributes) in its place"
    recommend.add_argument("--items", type=Path, metavar="CSV", help=told)
    _add_json(recommend)
    recommend.set_defaults(
        run=lambda a: _call("recommend")(
            _params(), a.titles if a.user is None else a.user, adapter=a.adapter, k=a.k, items=a.items, as_json=a.json
        )
    )


def _add_explain(commands: Commands) -> None:
    explain = commands.add_parser(
        "explain",
        help="what a sequence model knows of a user, in words (RecInterpreter)",
        description="A frozen language model reads the recommender's state by an adapter that is trained at the first "
        "call and kept in data/cache. What it recovers is reading accuracy, no recommendation.",
    )
    explain.add_argument("--user", required=True, help="user id, as the log writes it")
    explain.add_argument(
        "--teacher", metavar="NAME", help="sasrec, gru4rec or caser (default: the first that is fitted)"
    )
    _add_json(explain)
    explain.set_defaults(run=lambda a: _call("explain")(_params(), a.user, a.teacher, as_json=a.json))


def _add_batch(commands: Commands) -> None:
    batch = commands.add_parser(
        "batch",
        help="write the best items for every user of the log to one file",
        description="Columns: user, rank, item, title, score, reason, version, made_at. What a user has met is left "
        "out, and so is what is not available yet.",
    )
    batch.add_argument("--k", "-k", type=int, default=20, help="items a user (default: 20)")
    batch.add_argument("--users", type=Path, metavar="FILE", help="user ids, one a line (default: all of the log)")
    batch.add_argument("--out", type=Path, help="FILE.parquet or FILE.csv (default: data/batch/top.parquet)")
    batch.add_argument(
        "--system", metavar="NAME", help="an ID recommender, or fusion: its ID part (default: the best on validation)"
    )
    batch.add_argument("--shard", default="1/1", metavar="I/N", help="the users of shard I of N, by a hash of the id")
    batch.add_argument("--allow", type=Path, metavar="FILE", help="item ids, one a line: recommend only these")
    batch.add_argument("--deny", type=Path, metavar="FILE", help="item ids, one a line: recommend none of these")
    for option, what in (("--where", "only items with it: of one attribute any, of several all"), ("--not-where",
                         "no item with it")):  # fmt: skip
        batch.add_argument(option, action="append", default=[], metavar="ATTRIBUTE=VALUE", help=f"{what} (repeatable)")
    batch.add_argument("--rerank-users", type=Path, metavar="FILE", help="for these the language model reranks")
    batch.add_argument("--rerank-depth", type=int, default=50, help="first-stage items that it reranks (default: 50)")
    batch.add_argument("--adapter", help="the language model that reranks (default: as in recommend)")
    batch.set_defaults(run=_run_batch)


def _run_batch(arguments: argparse.Namespace) -> None:
    from recalign.commands.batch import Rerank, Wanted
    from recalign.ranking.item_filters import ItemFilters

    a = arguments
    if a.adapter and not a.rerank_users:
        raise RecalignError(
            "--adapter names what reranks, and needs --rerank-users; --system names what ranks everyone"
        )
    filters = ItemFilters(a.allow, a.deny, a.where, a.not_where)
    rerank = Rerank(a.rerank_users, a.rerank_depth, a.adapter) if a.rerank_users else None
    _call("batch")(_params(), Wanted(a.k, a.users, a.system, filters, rerank), out=a.out, part=a.shard)


def _add_rank(commands: Commands) -> None:
    rank = commands.add_parser(
        "rank",
        help="rank the frozen test cases with one system, or anyone's candidate lists (JSONL)",
        description="With --system: the stage of dvc.yaml, on the project's frozen cases. Else: anyone's lists, with "
        "--cases, --items and --out.",
    )
    system = rank.add_mutually_exclusive_group(required=True)
    system.add_argument("--system", metavar="NAME", help="a system of the project's table: item_knn, llm-sft, …")
    system.add_argument("--adapter", help="adapter folder or models:/ URI")
    system.add_argument("--recommender", metavar="NAME", help="an ID recommender: popularity, item_knn, ease, …")
    system.add_argument("--fusion", action="store_true", help="the project's fusion, its weights as they were fitted")
    rank.add_argument("--train", type=Path, help="interactions CSV (user_id,item_id[,timestamp]) that ID ones learn")
    rank.add_argument("--cases", type=Path, help="JSONL: case, user_id, history, candidates, target")
    rank.add_argument("--items", type=Path, help="CSV: item_id,title and, in further columns, attributes")
    rank.add_argument("--out", type=Path, help="JSONL to write: case, rank, ranked")
    _add_json(rank)
    rank.set_defaults(run=lambda a: _run_stage(a) if a.system else _rank_lists(rank, a))


def _rank_lists(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    missing = [f"--{name}" for name in ("cases", "items", "out") if getattr(arguments, name) is None]
    if missing:
        parser.error(f"the following arguments are required without --system: {', '.join(missing)}")
    from recalign.commands.rank import Named

    named = Named(arguments.adapter, arguments.recommender, arguments.train, arguments.fusion)
    _call("rank")(_params(), arguments.cases, arguments.items, arguments.out, named, as_json=arguments.json)


def _add_doctor(commands: Commands) -> None:
    doctor = commands.add_parser("doctor", help="what is wrong with machine, project or your own table, and the fix")
    what = doctor.add_mutually_exclusive_group()
    what.add_argument("file", type=Path, nargs="?", help="your log (CSV or Parquet): what it lacks, and its params")
    what.add_argument("--speed", action="store_true", help="measure tokens/s in fp32, bf16 and NF4 instead")
    doctor.add_argument("--items", type=Path, help="the log's table of items, where titles have a file of their own")
    _add_json_file(doctor, "json_file")
    doctor.set_defaults(run=lambda a: _call("doctor")(a.file, items=a.items, speed=a.speed, json_file=a.json_file))


def _add_estimate(commands: Commands) -> None:
    estimate = commands.add_parser("estimate", help="whether a language model can pay on a log: a probe of seconds")
    estimate.add_argument("file", type=Path, nargs="?", help="your log (CSV or Parquet); none: the prepared data")
    estimate.add_argument("--items", type=Path, help="the log's table of items, where titles have a file of their own")
    estimate.add_argument(
        "--curve", type=int, nargs="*", metavar="N",
        help="train on N histories each and say what all would give (default: 40 80 160; some ten minutes)",
    )  # fmt: skip
    estimate.add_argument(
        "--epochs", type=int, nargs="+", metavar="E", help="of --curve: passes over the histories (default: sft.epochs)"
    )
    estimate.add_argument("--csv", type=Path, metavar="FILE", help="write the curve there, for dvc plots")
    _add_json_file(estimate, "json_file")
    estimate.set_defaults(run=_run_estimate)


def _run_estimate(arguments: argparse.Namespace) -> int | None:
    curve = arguments.curve if arguments.curve is None else arguments.curve or [40, 80, 160]
    how = {"items": arguments.items, "json_file": arguments.json_file, "curve": curve, "epochs": arguments.epochs}
    return _call("estimate")(arguments.file, **how, csv_file=arguments.csv)


def _add_audit(commands: Commands) -> None:
    codes = "exit code: 0 clean, 1 leak, 2 bad input"
    audit = commands.add_parser("audit", help="look for leaks in anyone's candidate lists (JSONL)", epilog=codes)
    audit.add_argument("--cases", type=Path, required=True, help="JSONL: history, candidates, target[, case, user_id]")
    audit.add_argument("--fit", type=Path, help="JSONL of other cases (train, validation) that a system may learn from")
    audit.add_argument("--interactions", type=Path, help="CSV that systems are fitted on: user_id,item_id[,timestamp]")
    audit.add_argument("--items", type=Path, help="CSV: item_id,title; checks every id, and the titles' lengths")
    audit.add_argument("--split", choices=("user", "time"), default="user", help="what splits part (default: user)")
    _add_json_file(audit, "json")
    audit.set_defaults(run=lambda a: _call("audit")(a.cases, a.fit, a.interactions, a.items, a.split, a.json))


def _add_compare(commands: Commands) -> None:
    compare = commands.add_parser("compare", help="paired differences of two runs or registered versions")
    for which in ("first", "second"):
        compare.add_argument(which, metavar="RUN", help="a project's folder (with data/ranks), or models:/recalign/3")
    _add_json(compare)
    compare.set_defaults(run=lambda a: _call("compare")(_params(), a.first, a.second, as_json=a.json))


def _add_export(commands: Commands) -> None:
    export = commands.add_parser("export", help="write the preference pairs for another trainer")
    export.add_argument("--trl", type=Path, required=True, metavar="FILE", help="JSON lines: prompt, chosen, rejected")
    export.add_argument(
        "--split", choices=("train", "validation"), default="train", help="which pairs (default: train)"
    )
    export.set_defaults(run=lambda a: _call("export")(_params(), a.trl, a.split))


def _add_profile(commands: Commands) -> None:
    profile = commands.add_parser(
        "profile",
        help="what is claimed of a user and why, and what the user says of it",
        description="Edits are kept in data/ledger/edits.json, apart from what is inferred: no rerun overwrites them.",
    )
    profile.add_argument("user", metavar="USER", nargs="?", help="user id, as the log writes it")
    told = "forbid ATTRIBUTE=VALUE, change ATTRIBUTE=VALUE ATTRIBUTE=VALUE, or undo ATTRIBUTE=VALUE"
    profile.add_argument("--edit", nargs="+", metavar="WORD", help=f"{told}; shows recommendations before and after")
    told = ".parquet or .json: write the claims of USER, or of everybody in the log, instead"
    profile.add_argument("--export", type=Path, metavar="FILE", help=told)
    profile.add_argument("-k", type=int, default=10, help="how many recommendations (default: 10)")
    _add_json(profile)
    profile.set_defaults(
        run=lambda a: _call("profile")(_params(), a.user, edit=a.edit, export=a.export, k=a.k, as_json=a.json)
    )


def _add_dpo4rec(commands: Commands) -> None:
    dpo4rec = commands.add_parser(
        "dpo4rec",
        help="write texts about tastes, measure what they help, align their writer (docs/dpo4rec.md)",
        description="In no default run. Reads data/prepared and data/models/base, writes data/dpo4rec.",
    )
    dpo4rec.set_defaults(run=lambda a: _call("dpo4rec", "stages")(_params()))


def _add_table(commands: Commands) -> None:
    table = commands.add_parser("table", help="the main table of the last run again")
    _add_json(table).add_argument("--markdown", action="store_true", help="print it as a table of Markdown instead")
    table.set_defaults(run=lambda a: _call("table")(markdown=a.markdown, as_json=a.json))


def _add_json(command: argparse.ArgumentParser) -> argparse._MutuallyExclusiveGroup:
    """--json of a command that prints a table: one document on standard output in its place."""
    either = command.add_mutually_exclusive_group()
    either.add_argument("--json", action="store_true", help="print one JSON document instead, and nothing else")
    return either


def _add_json_file(command: argparse.ArgumentParser, name: str) -> None:
    """--json of a command that can also write the document into a file, beside its table."""
    told = "write what was found as JSON, too; without FILE: print it instead of the table"
    command.add_argument("--json", type=Path, dest=name, nargs="?", const=console.STDOUT, metavar="FILE", help=told)

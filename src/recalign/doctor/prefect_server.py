"""Does a Prefect server answer at an address, and if not, which address would be right?"""

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from recalign.common.errors import RecalignError

VARIABLE = "PREFECT_API_URL"
DEFAULT = "http://127.0.0.1:4200/api"
SECONDS = 5.0


@dataclass(frozen=True)
class Fault:
    """Why there is no server at an address, and what to do; `away`: nothing answers there at all."""

    found: str
    fix: str
    away: bool = False


def configured_url(root: Path = Path()) -> str:
    """The address that Prefect's commands take in a project: the environment's, else that of pyproject.toml.

    Raises RecalignError where pyproject.toml is not readable.
    """
    if VARIABLE in os.environ:
        return os.environ[VARIABLE]
    try:
        tree = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return DEFAULT
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecalignError(f"{root / 'pyproject.toml'} is not readable TOML: {error}") from None
    return str(tree.get("tool", {}).get("prefect", {}).get("api", {}).get("url", DEFAULT))


def server_fault(url: str | None) -> Fault | None:
    """What is wrong with the address of a Prefect API; None where a server answers there."""
    if not url or not url.strip():
        return Fault(f"{VARIABLE} is empty", f"unset it, or set it to {_shown(DEFAULT)}")
    url = url.strip()
    if "://" not in url:
        return Fault(f"{VARIABLE} is {_shown(url)}, without http://", f"set it to {_shown(f'http://{url}')}")
    answer = _answer(url)
    if answer == "":
        return None
    right = next((near for near in _near(url) if _answer(near) == ""), None)
    if right is not None:
        adds = ": add /api" if right == f"{url.rstrip('/')}/api" else ""
        return Fault(f"no Prefect API at {_shown(url)} ({answer})", f"set {VARIABLE} to {_shown(right)}{adds}")
    if answer.startswith("HTTP 4") and answer != "HTTP 404":
        return Fault(f"{_shown(url)} answers {answer}", "set PREFECT_API_KEY to a key that this server takes")
    return Fault(f"no Prefect server at {_shown(url)} ({answer})", "run 'prefect server start' first", away=True)


def _answer(url: str) -> str:
    """ "" where a Prefect API answers, else in a few words what does."""
    import httpx

    try:
        answer = httpx.get(f"{url.rstrip('/')}/health", headers=_headers(), timeout=SECONDS)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        return " ".join(str(error).split()) or type(error).__name__
    if answer.is_error:
        return f"HTTP {answer.status_code}"
    if answer.text.strip() != "true":  # the pages of the server's own site answer to everything
        return f"it answers, but not as an API: {answer.headers.get('content-type', 'no content type')}"
    return ""


def _headers() -> dict[str, str]:
    key = os.environ.get("PREFECT_API_KEY")
    return {"Authorization": f"Bearer {key}"} if key else {}


def _near(url: str) -> list[str]:
    """Addresses that may be meant: /api after the path or a part of it, the other scheme, and the usual one."""
    parts = urlsplit(url)
    folders = [part for part in parts.path.split("/") if part]
    paths = ["/".join(["", *folders[:count], "api"]) for count in range(len(folders), -1, -1)]
    schemes = (parts.scheme, "https" if parts.scheme == "http" else "http")
    return [urlunsplit((scheme, parts.netloc, path, "", "")) for scheme in schemes for path in paths] + [DEFAULT]


def _shown(url: str) -> str:
    """An address without its user and password."""
    scheme, separator, rest = url.rpartition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"

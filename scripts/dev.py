"""Make the project's environments and run commands in them. Needs a Python of 3.10 or newer, and nothing installed.

dev.py test               lint, types, layers, and each kind of suite on the oldest or the newest Python at hand
dev.py long               the tests that take minutes
dev.py tox                the whole matrix: every Python at hand, with each kind of suite
dev.py tox ARGS...        tox, with every Python at hand on its PATH
dev.py run ENV COMMAND... a command in one of ENVIRONMENTS
dev.py node               servers of the tests that come from npm, once; tox asks for them itself
dev.py constraints        write the files of constraints anew (--upgrade: with the newest versions)
"""

from __future__ import annotations

import ast
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pythons

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".venv"
CONSTRAINTS = "constraints.txt"
SUITES = ("core", "stores", "mlflow2", "mlflow3", "azureml")
WITHOUT_ONCE = "not long and not once"
PINNED = {
    CONSTRAINTS: ["--all-extras", "--group", "dev"],
    "constraints-mlflow2.txt": ["--extra", "all", "--group", "test", "--group", "mlflow2"],
    "constraints-official-azureml.txt": [
        *("--extra", "azureml", "--extra", "testing", "--group", "test", "--group", "official-azureml")
    ],
}
OLDEST_UV = (0, 8)

ENVIRONMENTS = {
    "tox": ["--group", "tox"],
    "demo": ["--editable", ".[demo,fast]"],
    "torture": ["--editable", ".[fast,s3,az,azureml,mlflow,testing]", "--group", "bench"],
    "bench": ["--editable", ".[fast,s3,az,azureml,mlflow]", "--group", "bench"],
}

# uv reads none of pip's settings, and a machine behind a mirror has only those.
PIP_TO_UV = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "no-index": "UV_NO_INDEX",
    "trusted-host": "UV_INSECURE_HOST",
    "cert": "SSL_CERT_FILE",
}


def main(arguments: list[str]) -> None:
    match arguments:
        case ["test", *rest]:
            # Meanwhile: npm waits for the network for the most part, and what needs it comes late and waits for it.
            subprocess.Popen([sys.executable, __file__, "node"])
            sys.exit(short(rest))
        case ["long", *rest]:
            suites = [name for name in short_list() if name.endswith(("core", "stores", "mlflow2", "mlflow3"))]
            sys.exit(tox(["run", "-e", ",".join(suites), "--", "-m", "long", *rest]))
        case ["tox"]:
            others = [f"{python}-{suite}" for python in names() for suite in SUITES]
            others = [name for name in others if name not in short_list()]
            failed = short([])
            sys.exit((side_by_side(others, ["--", "-m", WITHOUT_ONCE]) if others else 0) or failed)
        case ["tox", *rest]:
            sys.exit(tox(rest))
        case ["run", name, command, *rest] if name in ENVIRONMENTS:
            folder = environment(name) / "bin"
            path = f"{folder}{os.pathsep}{os.environ['PATH']}"
            replace_process([str(folder / command), *rest], {**os.environ, "PATH": path})
        case ["node"]:
            node()
        case ["constraints", *rest]:
            constraints(rest)
        case _:
            sys.exit(__doc__)


def short(arguments: list[str]) -> int:
    """Run the short list. What is about a store and not about Python runs on the newest one alone."""
    oldest, newest = names()[0], names()[-1]
    # pytest takes the last -m: one among the arguments wins.
    lean = ["--override", f"testenv:{oldest}-core.set_env+=PYTEST_ADDOPTS=-m '{WITHOUT_ONCE}'"]
    return side_by_side(short_list(), [*(lean if oldest != newest else ()), *arguments])


def short_list() -> list[str]:
    """Name the tox environments that a change must pass: every check, and every kind of suite.

    What needs no extra runs on both ends of the range; of the others each runs on one, and old goes with old.
    """
    found = names()
    oldest, newest = found[0], found[-1]
    core = dict.fromkeys([f"{oldest}-core", f"{newest}-core"])
    servers = [f"{newest}-stores", f"{oldest}-mlflow2", f"{newest}-mlflow3", f"{newest}-azureml", "official-azureml"]
    return ["lint", "types", "layers", *core, *servers, "coverage"]


def names() -> list[str]:
    """Return what tox calls the Pythons at hand, the oldest first."""
    found = [f"py{major}{minor}" for major, minor in pythons.find()]
    if not found:
        sys.exit(
            f"{sys.executable} is not CPython, or lacks ssl, sqlite3, ctypes or zlib; try another: make PYTHON=..."
        )
    return found


def side_by_side(environments: list[str], arguments: list[str]) -> int:
    """Run several environments, one for each core: each waits for servers, for its slowest file, for its packages."""
    return tox(["run-parallel", "-p", "auto", "--parallel-no-spinner", "-e", ",".join(environments), *arguments])


def tox(arguments: list[str]) -> int:
    # Their own folders come first, for a version manager's shims may hide interpreters that are there.
    folders = [str(path.parent) for path in pythons.find().values()]
    path = os.pathsep.join([*folders, os.environ["PATH"]])
    command = [str(environment("tox") / "bin/tox"), *arguments]
    return subprocess.run(
        command, cwd=ROOT, env={**uv_settings(), "PATH": path, "UV_PYTHON_DOWNLOADS": "never"}
    ).returncode


def environment(name: str) -> Path:
    """Return the environment ``name``, made anew when what it is made of has changed."""
    folder = HOME / name
    stamp = folder / ".stamp"
    made_of = hashlib.sha256(repr((sys.version, ENVIRONMENTS[name])).encode())
    for file in ("pyproject.toml", CONSTRAINTS):
        made_of.update((ROOT / file).read_bytes())
    if stamp.exists() and stamp.read_text() == made_of.hexdigest():
        return folder
    print(f"Making .venv/{name} ...", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    uv, settings = find_uv(), uv_settings()
    run([uv, "venv", "--quiet", "--python", sys.executable, str(folder)], settings)
    pins = ["--constraints", CONSTRAINTS, "--build-constraints", CONSTRAINTS]
    python = ["--python", str(folder / "bin/python")]
    run([uv, "pip", "install", "--quiet", *python, *pins, *ENVIRONMENTS[name]], settings)
    stamp.write_text(made_of.hexdigest())
    return folder


def node() -> None:
    """Install what tests/node/package-lock.json names. Without Node.js say what it means; in CI that is an error."""
    folder = ROOT / "tests/node"
    stamp = folder / "node_modules/.stamp"
    if os.environ.get("AZURITE_BLOB"):
        return
    npm = shutil.which("npm")
    if npm is None:
        message = "No npm on PATH: tests against Azurite skip. Install Node.js 20 or newer, and they run."
        if os.environ.get("CI"):
            sys.exit(message)
        print(message, file=sys.stderr)
        return
    made_of = hashlib.sha256((folder / "package.json").read_bytes() + (folder / "package-lock.json").read_bytes())
    lock = os.open(folder, os.O_RDONLY)  # several environments of `tox -p` may come here at once
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if stamp.exists() and stamp.read_text() == made_of.hexdigest():
            return
        print("Making tests/node/node_modules ...", file=sys.stderr)
        lean = ["--ignore-scripts", "--omit=optional", "--omit=dev", "--no-audit", "--no-fund", "--loglevel=error"]
        run([npm, "ci", "--prefix", str(folder), "--prefer-offline", *lean], os.environ)
        stamp.write_text(made_of.hexdigest())
    finally:
        os.close(lock)


def constraints(arguments: list[str]) -> None:
    """Resolve every extra and group for all Pythons at once, from the package index alone; once more with MLflow 2."""
    settings = {key: value for key, value in uv_settings().items() if key not in ("UV_INDEX", "UV_FIND_LINKS")}
    uv = find_uv()
    # Neither addresses nor paths: the file says what is installed, the machine says where it comes from.
    plain = ["--python-version", "3.10", "--no-header", "--no-annotate", "--no-emit-index-url", "--quiet"]
    for file, wanted in PINNED.items():
        command = [uv, "pip", "compile", "pyproject.toml", "--universal", *wanted, *plain, *arguments]
        run([*command, "--output-file", file], settings)


def find_uv() -> str:
    """Return a uv that works: the one on PATH, or one that pip brings."""
    own = HOME / "bootstrap/bin/uv"
    for candidate in (shutil.which("uv"), str(own)):
        if candidate and uv_works(candidate):
            return candidate
    print("Fetching uv ...", file=sys.stderr)
    shutil.rmtree(own.parent.parent, ignore_errors=True)
    fetch_uv(own.parent.parent)
    return str(own)


def uv_works(uv: str) -> bool:
    try:
        answer = subprocess.run([uv, "--version"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return False
    version = re.match(r"uv (\d+)\.(\d+)", answer.stdout)
    return answer.returncode == 0 and version is not None and tuple(map(int, version.groups())) >= OLDEST_UV


def fetch_uv(folder: Path) -> None:
    install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--constraint", CONSTRAINTS]
    venv = subprocess.run([sys.executable, "-m", "venv", str(folder)], cwd=ROOT, capture_output=True, text=True)
    if venv.returncode == 0:
        run([str(folder / "bin/python"), *install, "uv"], os.environ)
    elif pip_works():
        # A Python without ensurepip; --target is allowed even where the system manages its packages.
        shutil.rmtree(folder, ignore_errors=True)
        run([sys.executable, *install, "--target", str(folder), "uv"], os.environ)
    else:
        sys.exit(
            f"{sys.executable} can make no virtual environment: its venv or ensurepip module is missing.\n"
            "Install them (on Debian and Ubuntu: apt-get install python3-venv), or install uv, "
            "or name another Python: make PYTHON=/path/to/python3"
        )


def pip_works() -> bool:
    return subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode == 0


def uv_settings() -> dict[str, str]:
    """Return this process's environment, with pip's settings in uv's words unless uv has its own."""
    settings = dict(os.environ)
    if not settings.keys().isdisjoint({"UV_DEFAULT_INDEX", "UV_INDEX", "UV_INDEX_URL", "UV_EXTRA_INDEX_URL"}):
        return settings
    python = HOME / "bootstrap/bin/python"
    pip = [str(python if python.exists() else sys.executable), "-m", "pip", "config", "list"]
    lines = subprocess.run(pip, capture_output=True, text=True, cwd=ROOT).stdout.splitlines()
    values = {key: value for key, found, value in (line.partition("=") for line in lines) if found}
    for section in (":env:", "install", "global"):  # the strongest first
        for option, variable in PIP_TO_UV.items():
            if f"{section}.{option}" in values:
                words = str(ast.literal_eval(values[f"{section}.{option}"])).split()
                settings.setdefault(variable, ("," if variable == "UV_FIND_LINKS" else " ").join(words))
    if "UV_INDEX" in settings:
        # As pip does: all indexes are equal. uv would stop at the first that has the name at all.
        settings.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")
    return settings


def run(command: list[str], settings: os._Environ[str] | dict[str, str]) -> None:
    code = subprocess.run(command, cwd=ROOT, env=settings).returncode
    if code:
        sys.exit(code)


def replace_process(command: list[str], settings: dict[str, str]) -> NoReturn:
    os.chdir(ROOT)
    os.execve(command[0], command, settings)


if __name__ == "__main__":
    main(sys.argv[1:])

#!/usr/bin/env bash
# Build the documentation into docs/_build/html; a warning is an error.
#
#   docs/build.sh           from a clean clone: makes .venv if there is none, and .venv-docs beside it
#   docs/build.sh --tour    first run docs/tour.ipynb again and store its outputs
#
# Sphinx refuses the version of requests that torchattacks pins. It therefore has an environment of its own, which
# borrows the packages of the first one. PYTHON names a first one other than .venv, DOCS_VENV the place of the second.
set -euo pipefail
cd "$(dirname "$0")/.."

export PIP_DISABLE_PIP_VERSION_CHECK=1 OMP_NUM_THREADS=1 PYTHONPATH=$PWD
python=${PYTHON:-.venv/bin/python}
second=${DOCS_VENV:-.venv-docs}
if [ ! -x "$python" ] && [ -z "${PYTHON:-}" ]; then
    python3 -m venv .venv
    "$python" -m pip install -q -c constraints.txt -e '.[all]'
fi
packages='import sysconfig; print(sysconfig.get_paths()["purelib"])'
if [ ! -e "$second/complete" ]; then
    "$python" -m venv --clear "$second"
    "$python" -c "$packages" > "$("$second/bin/python" -c "$packages")/borrowed.pth"
    # What the extra "docs" resolves to; with dependencies pip would complain of torchattacks' requests.
    "$second/bin/python" -m pip install -q --no-deps -r docs/constraints.txt
    touch "$second/complete"
fi
if [ "${1:-}" = --tour ]; then
    "$second/bin/python" - docs/tour.ipynb <<'CODE'
import sys

import nbformat
from nbclient import NotebookClient

notebook = nbformat.read(sys.argv[1], 4)
NotebookClient(notebook, timeout=600, kernel_name="python3", record_timing=False).execute()
nbformat.write(notebook, sys.argv[1])
CODE
fi
exec "$second/bin/python" -m sphinx -W --keep-going -q -E -b html docs docs/_build/html

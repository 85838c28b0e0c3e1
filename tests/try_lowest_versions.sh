#!/usr/bin/env bash
# Installs the lowest version of each dependency (tests/lowest_versions.txt) and runs the suite on them.
#
#     bash tests/try_lowest_versions.sh [pytest's arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
environment=$(mktemp -d)
trap 'rm -rf "$environment"' EXIT
python3 -m venv "$environment"
source "$environment/bin/activate"
# a later cfn-lint, of moto's server, wants a newer sympy than torch 2.6 does: pip would try them one by one
pip install --quiet --disable-pip-version-check -c tests/lowest_versions.txt -e ".[test]" "cfn-lint<1.50"
# types are those of the newest versions
pytest --deselect tests/whole/test_code.py::test_types "$@"

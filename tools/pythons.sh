#!/usr/bin/env bash
# Run the tests on every Python version that pyproject.toml allows and this machine has, each in its own environment
# .venv-X.Y (6 GB). Arguments after `--` are passed to pytest:
#
#     tools/pythons.sh
#     tools/pythons.sh -- tests/hcp -k boxes
#
# Ends with one line per version. Exit code 1 if a test fails; a missing version is not a failure.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
[ "${1:-}" = -- ] && shift

# A `pythonX.Y` on the PATH can be a shim of pyenv for a version that is not active, so it is run to check it.
interpreter() {
    local name
    "python$1" -c "import sys; print(sys.executable)" 2>/dev/null && return
    name=$(pyenv versions --bare 2>/dev/null | grep -E "^${1/./\\.}\.[0-9]+$" | tail -n 1)
    [ -n "$name" ] && echo "$(pyenv prefix "$name")/bin/python"
}

range=$(sed -nE 's/^requires-python = ">=3\.([0-9]+),<3\.([0-9]+)"$/\1 \2/p' pyproject.toml)
[ -n "$range" ] || { echo "requires-python of pyproject.toml is not >=3.x,<3.y" >&2; exit 1; }
read -r first end <<<"$range"

status=0
summary=""
for ((minor = first; minor < end; minor++)); do
    version=3.$minor
    if ! python=$(interpreter "$version"); then
        summary+="$version  missing on this machine"$'\n'
        continue
    fi
    log=.venv-$version/test.log
    mkdir -p "$(dirname "$log")"
    make PYTHON="$python" VENV=".venv-$version" PYTEST_ARGS="$(printf '%q ' "$@")" test 2>&1 | tee "$log" || status=1
    counts=$(grep -E '^[0-9]+ .* in [0-9.]+s|^no tests ran' "$log" | tail -n 1)
    summary+="$version  ${counts:-stopped before the tests: $log}"$'\n'
done
printf '\n%s' "$summary"
exit $status

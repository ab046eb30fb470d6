#!/usr/bin/env bash
# Makes .venv with the pinned set of requirements/cpu.txt and the project itself, or finds that it is there already.
#
# 1. Two stamps in .venv hold what was installed: the set (and the folder, because virtual environments cannot be moved)
#    and pyproject.toml. A stamp is written after its step has succeeded, so an interrupted set-up is done again.
# 2. A changed set makes .venv anew; a changed pyproject.toml only installs the project again (seconds).
# 3. torch's CPU build is asked for where pip looks anyway, and at PyTorch's own index only where that does not have it.
# 4. What pip says goes to .cache/setup.log; its last lines are shown when a step fails.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

requirements=requirements/cpu.txt
torch_index=https://download.pytorch.org/whl/cpu
log=.cache/setup.log
set_stamp=.venv/installed-set.txt
project_stamp=.venv/installed-project.txt

pins() { grep -E '^[a-z0-9]' "$requirements"; }
wanted_set() { pwd && pins; }
wanted_project() { cat pyproject.toml; }
is_stamped() { [ -x .venv/bin/python ] && [ -f "$1" ] && [ "$(cat "$1")" = "$($2)" ]; }
is_done() { is_stamped "$set_stamp" wanted_set && is_stamped "$project_stamp" wanted_project; }

find_python() {
    local candidate candidates=(python3.11 python3 python)
    [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "mtrl-ray needs Python 3.11 with its venv module, and ${candidates[*]} is not that: install it (Debian, Ubuntu:" \
        "apt-get install python3.11-venv; anywhere: uv python install 3.11) or name one: make PYTHON=/path/to/python3.11 …" >&2
    return 1
}

step() {
    local title=$1 began=$SECONDS
    shift
    printf '%s … ' "$title"
    if "$@" >>"$log" 2>&1 </dev/null; then
        printf 'done (%d s)\n' $((SECONDS - began))
    else
        printf 'failed. The last lines of %s:\n' "$log"
        tail -n 20 "$log"
        return 1
    fi
}

pip_install() { .venv/bin/python -m pip install --no-deps --disable-pip-version-check --progress-bar off "$@"; }

install_torch() {
    local torch
    torch=$(pins | grep -E '^torch==')
    pip_install "$torch" || pip_install --index-url "$torch_index" "$torch"
}

if is_done; then
    exit 0
fi
unset PYTHONHOME PYTHONPATH
export PIP_USER=0
mkdir -p .cache
if command -v flock >/dev/null; then
    exec 9<"$requirements"
    flock -n 9 || { echo "another set-up of this folder is going on; waiting for it" && flock 9; }
fi

: >"$log"
if ! is_stamped "$set_stamp" wanted_set; then
    python=$(find_python)
    rm -f "$set_stamp" "$project_stamp"
    step "virtual environment ($python)" "$python" -m venv --clear .venv
    step "torch (CPU build, 200 MB)" install_torch
    step "$(pins | wc -l) pinned packages (a few minutes)" pip_install -r "$requirements"
    wanted_set >"$set_stamp"
fi
if ! is_stamped "$project_stamp" wanted_project; then
    step "mtrl-ray itself" pip_install --no-build-isolation --no-index --editable .
    wanted_project >"$project_stamp"
fi

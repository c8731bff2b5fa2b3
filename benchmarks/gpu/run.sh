#!/usr/bin/env bash
# One run on a GPU machine; RUNBOOK.md says how it is planned.
#   here:   run.sh pack mnist|cifar10|digits DATASETS [FOLDER] [COMMIT]    the folder that travels (default .gpu)
#   there:  run.sh first                   set-up, smoke checks, benchmark, then cells, which go on after the command
#           run.sh cells                   cells, or what is left of them
#           run.sh more                    waits for the cells and collects their results
#           run.sh networks [PATTERN ...]  trained networks in pieces
set -uo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
start=$(date +%s)
PY="${PY:-python3}"
export WORK="${WORK:-/tmp/gnime-gpu}" PYTHONUNBUFFERED=1
export OUT="${OUT:-$WORK/out}" MPLCONFIGDIR="${MPLCONFIGDIR:-$WORK/mpl}"
[ "${1:-}" = pack ] && project="$here/../.." || project="$WORK/project"
kit="$project/benchmarks/gpu"
export PYTHONPATH="$WORK/site:$project:$project/benchmarks${PYTHONPATH:+:$PYTHONPATH}"

pack() { # target, datasets, folder, commit
  local folder="${3:-$project/.gpu}"
  "$PY" "$kit/pack.py" pack "$folder" "$1" "$2" ${4:+"$4"} || return 1
  cp "$here/run.sh" "$folder/"
  if [ "${WHEELS:-1}" = 1 ] && [ ! -d "$folder/whl" ]; then
    local pip=(python3 -m pip download -q --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.12
      --implementation cp)
    for system in manylinux_2_28_x86_64 manylinux_2_17_x86_64 manylinux2014_x86_64 manylinux1_x86_64; do
      pip+=(--platform "$system")
    done
    "${pip[@]}" -d "$folder/whl" hickle==5.0.3 pytorch-msssim==1.0.0 sortedcontainers==2.4.0 || return 1
    "${pip[@]}" -d "$folder/whl-extra" h5py==3.16.0 hypothesis==6.170.17 || return 1
  fi
  du -sh --apparent-size "$folder"* # less than 64 MiB each
}

setup() { # the project, the packages that the machine lacks, the data
  mkdir -p "$WORK/project" "$OUT" && cp "$here/run.sh" "$WORK/" 2>/dev/null
  tar -xf "$here/project.tar" -C "$WORK/project" || return 1
  for wheel in "$here"/whl/*.whl; do # pure Python: unpacking is enough
    [ ! -f "$wheel" ] || "$PY" -m zipfile -e "$wheel" "$WORK/site" || return 1
  done
  for wheel in "$here"/whl-extra/*.whl; do
    name="$(basename "$wheel")"
    "$PY" -c "import ${name%%-*}" 2>/dev/null || [ ! -f "$wheel" ] || "$PY" -m zipfile -e "$wheel" "$WORK/site" || return 1
  done
  "$PY" "$kit/pack.py" unpack "$here" || return 1
  { date; nvidia-smi; nproc; free -g; df -h /tmp
    cd "$WORK" && "$PY" -c 'from gnime.system import provenance; print(provenance("-"))'; } >"$OUT/env.txt" 2>&1
  tail -n 1 "$OUT/env.txt"
  ("$PY" -c 'import matplotlib.font_manager' >/dev/null 2>&1 &) # its list of fonts, once for all processes
}

cells() { # in a session of their own, so that they outlive the command
  rm -f "$WORK/cells.done"
  DEADLINE=$((start + ${TOTAL:-${LIMIT:-570}})) setsid nohup "$PY" "$kit/cells.py" >>"$WORK/cells.txt" 2>&1 </dev/null &
  "$PY" "$kit/collect.py" wait $((DEADLINE - $(date +%s) - 8))
  tail -n 30 "$WORK/cells.txt"
}

export DEADLINE=$((start + ${LIMIT:-570}))
case "${1:-}" in
  pack) shift; pack "$@" ;;
  first)
    setup || exit 1
    if [ "${SMOKE:-80}" != 0 ]; then
      # shellcheck disable=SC2086
      "$PY" "$kit/smoke.py" "${SMOKE:-80}" ${CHECKS:-} 2>&1 | tee "$OUT/smoke.txt"
    fi
    if [ "${BENCH:-}" != none ]; then
      # shellcheck disable=SC2086
      timeout "${BENCH_SECONDS:-110}" "$PY" "$kit/bench.py" ${BENCH:-} 2>&1 | tee "$OUT/bench.txt"
    fi
    if [ "${CELLS:-}" = none ]; then "$PY" "$kit/collect.py" results; else cells; fi ;;
  cells)
    mkdir -p "$OUT"
    [ -z "${IN:-}" ] || "$PY" "$kit/pack.py" unpack "$IN" || exit 1
    cells ;;
  more)
    mkdir -p "$OUT"
    "$PY" "$kit/collect.py" wait "${LIMIT:-120}"
    tail -n 30 "$WORK/cells.txt" ;;
  networks) shift; "$PY" "$kit/collect.py" networks "$@" ;;
  *) sed -n 2,8p "$0"; exit 2 ;;
esac

# Sourced by the launch scripts: makes or reuses .venv in the repository root.
#
#   source launch/setup_env.sh
#   ensure_env test        # extras to install, "" for none; sets $REPO and $PYTHON
#
# Packages are installed again only when setup.py, the extras, the interpreter or the location of
# the repository changed since the last complete install; a stamp in .venv records that.

REPO="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
PYTHON="$REPO/.venv/bin/python"

_fail() {
  echo "ehrwear_jax: $*" >&2
  exit 1
}

# Prints the first interpreter on PATH that is new enough. Each candidate is run, since a name on
# PATH may be a version manager's shim with nothing behind it.
_find_python() {
  local candidate
  for candidate in "${EHRWEAR_PYTHON:-}" python3 python3.13 python3.12 python3.11 python3.14 python; do
    if [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 &&
      "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      echo "$candidate"
      return 0
    fi
  done
  return 1
}

_stamp_content() {
  "$PYTHON" - "$REPO" <<'PY'
import hashlib, pathlib, sys
repo = pathlib.Path(sys.argv[1])
print(hashlib.sha256((repo / "setup.py").read_bytes()).hexdigest(), sys.version.split()[0], repo)
PY
}

ensure_env() {
  local extras="${1:-}" target stamp found
  target="$REPO${extras:+[$extras]}"
  stamp="$REPO/.venv/.installed${extras:+-$extras}"

  if ! "$PYTHON" -m pip --version >/dev/null 2>&1; then
    found="$(_find_python)" ||
      _fail "no Python 3.11 or newer found on PATH; install one, or set EHRWEAR_PYTHON to its path."
    echo "Creating .venv with $("$found" --version 2>&1)"
    "$found" -m venv --clear "$REPO/.venv" >/dev/null 2>&1 ||
      _fail "$found could not create $REPO/.venv; its venv module may be missing (Debian and Ubuntu: apt-get install python3-venv) or the folder not writable."
  fi

  if [ "$(cat "$stamp" 2>/dev/null)" != "$(_stamp_content)" ]; then
    echo "Installing ehrwear_jax${extras:+[$extras]} into .venv (a few minutes the first time)"
    rm -f "$stamp"
    "$PYTHON" -m pip install --quiet --disable-pip-version-check -e "$target" ||
      _fail "pip could not install ehrwear_jax${extras:+[$extras]}; its message is above."
    _stamp_content >"$stamp"
  fi

  # Compiled programs are kept between runs, so that only the first one pays for compilation. They
  # hold machine code, so homes shared by unlike machines keep one cache per set of CPU features.
  local features
  features="$( (grep -m1 -iE '^(flags|features)' /proc/cpuinfo 2>/dev/null || uname -m) | cksum)"
  export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/ehrwear_jax/jax-${features%% *}}"
  export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="${JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS:-0.3}"
}

# libtpu, the TPU compiler, as the installed JAX pins it, for tests that compile kernels without a TPU. It stays beside
# the other packages: wherever libtpu can be imported, every start of JAX looks for a TPU and complains.
ensure_libtpu() {
  local folder="$REPO/.venv/libtpu" wanted
  wanted="$("$PYTHON" -c 'import importlib.metadata as m, re
found = (re.match(r"[\w.=*]+", r.replace(" ", ""))[0] for r in m.requires("jax") if r.startswith("libtpu"))
print(next(found, "libtpu"))')"
  if [ "$(cat "$folder/.installed" 2>/dev/null)" = "$wanted" ]; then return 0; fi
  rm -rf "$folder"
  if "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-deps --target "$folder" "$wanted"; then
    echo "$wanted" >"$folder/.installed"
  else
    echo "No $wanted for this machine: the tests that compile for TPUs will be skipped." >&2
  fi
}

#!/usr/bin/env bash
# Tests and benchmarks on one GPU in under 8 minutes, without internet: see benchmarks/gpu.py for what it measures.
#
#   benchmarks/gpu.sh                          # the whole run; results in $OUT, or outputs/gpu
#   benchmarks/gpu.sh --device cpu --tiny      # every part with tiny sizes on the CPU, in about a minute
#   CIFAR10=FOLDER benchmarks/gpu.sh           # CIFAR-10 as parquet files (train-*.parquet, test-*.parquet)
#   WHEELS=FOLDER benchmarks/gpu.sh            # install what is missing from wheel files, without a registry
#   PYTHON=/path/to/python benchmarks/gpu.sh   # else .venv/bin/python where there is one, else python3
#
# It needs a Python of 3.11 or newer with a PyTorch of 2.6 or newer that sees the GPU. What else is missing is installed
# into $ENVIRONMENT (outputs/gpu-environment): from WHEELS if set, else with pip if a registry answers. PyTorch itself is
# never installed. CIFAR-10 is looked for in $CIFAR10, shared/data/cifar10 and ../shared/data/cifar10; without it the
# digits inside the package take its place. denoising-diffusion-pytorch is measured if it is installed.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

OUT=${OUT:-outputs/gpu}
ENVIRONMENT=${ENVIRONMENT:-outputs/gpu-environment}
if [ -z "${PYTHON:-}" ]; then
  PYTHON=python3
  [ -x .venv/bin/python ] && PYTHON=.venv/bin/python
fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

# The packages (by their names in a registry) whose modules this Python does not find.
missing() {
  "$PYTHON" - <<'PYTHON_END'
import importlib.util as util

modules = {
    "diffusers": "diffusers>=0.33.1", "transformers": "transformers>=4.48", "accelerate": "accelerate>=1.2",
    "datasets": "datasets>=3.0", "safetensors": "safetensors", "jinja2": "jinja2", "yaml": "pyyaml",
    "psutil": "psutil", "PIL": "pillow", "numpy": "numpy", "scipy": "scipy", "matplotlib": "matplotlib",
    "pytest": "pytest",
}
print(*(package for module, package in modules.items() if util.find_spec(module) is None))
PYTHON_END
}

if ! "$PYTHON" -c "import importlib.util as util; raise SystemExit(util.find_spec('torch') is None)"; then
  echo "error: $PYTHON has no PyTorch. Set PYTHON to a Python with torch 2.6 or newer that sees the GPU." >&2
  exit 2
fi
site=$ENVIRONMENT/site
[ -d "$site" ] && export PYTHONPATH="$PYTHONPATH:$PWD/$site"
if [ -n "${WHEELS:-}" ] && [ ! -d "$site" ]; then
  "$PYTHON" -m pip install -q --no-index --no-deps --target "$site" "$WHEELS"/*.whl || exit 2
  export PYTHONPATH="$PYTHONPATH:$PWD/$site"
fi
packages=$(missing)
if [ -n "$packages" ]; then
  echo "Installing $packages into $ENVIRONMENT"
  # With the packages of this Python in sight, so that its PyTorch stays.
  if "$PYTHON" -m venv --system-site-packages "$ENVIRONMENT/venv" && PIP_RETRIES=1 PIP_TIMEOUT=10 \
    timeout 180 "$ENVIRONMENT/venv/bin/python" -m pip install -q --disable-pip-version-check $packages; then
    PYTHON=$ENVIRONMENT/venv/bin/python
  else
    echo "error: these packages are missing and no registry answers: $packages" >&2
    echo "Install them, or put their wheel files (and those they need) into a folder and set WHEELS to it." >&2
    exit 2
  fi
fi
exec "$PYTHON" benchmarks/gpu.py --output "$OUT" "$@"

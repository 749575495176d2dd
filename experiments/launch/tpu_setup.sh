#!/usr/bin/env bash
# Install bdjax, as this checkout has it, on a host of a Cloud TPU, into ~/bdjax-env. Run it on every host; running it again is harmless.
#
#   bash bdjax/experiments/launch/tpu_setup.sh
#
# The machine's own Python may be older than bdjax needs, so uv brings one.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python3 -m pip install --quiet uv
python3 -m uv venv --quiet --allow-existing --python 3.12 "$HOME/bdjax-env"
python3 -m uv pip install --quiet --python "$HOME/bdjax-env/bin/python" ".[tpu,remote]" gcsfs

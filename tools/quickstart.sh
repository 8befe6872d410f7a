#!/usr/bin/env bash
# Synthesise MiniSpeech, train CIF on it, score unseen voices, draw a picture.
set -euo pipefail
cd "$(dirname "$0")/.."
data=data/MiniSpeech
run=results/MiniSpeech/cif/1986

python recipes/MiniSpeech/mini_prepare.py "$data"
python recipes/LibriSpeech/train.py recipes/MiniSpeech/hparams/cif.yaml --data_folder "$data"
python tools/plot_alignment.py "$run" --split test-clean-mini --out "$run/fires.png"
python tools/quickstart_summary.py cif="$run"

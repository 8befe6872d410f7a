"""A training of a Transformer language model, from its yaml to its perplexity."""

from speechbrain.utils.distributed import if_main_process, run_on_main

from cif_lobes.decoding.language_model import TokenText, check_text
from cif_lobes.runs.stages import assemble, finish, fit_tokens, load_settings
from cif_lobes.storage.run_files import keep_tokenizer
from cif_lobes.training.language_model import LanguageModelBrain


def run(hparams_file, run_opts, overrides):
    """Read the text, train, and measure the best checkpoint's perplexity.

    See `cif_lobes.runs`; the figures are those of `fit_tokens`, and how much text it was.
    """
    hparams = load_settings(hparams_file, run_opts, overrides)
    tokenizer = hparams["tokenizer"]
    paths = {"train": hparams["train_text"], "valid": [hparams["valid_text"]]}
    texts = {name: TokenText(files, tokenizer) for name, files in paths.items()}
    for name, text in texts.items():
        check_text(
            text, f"{name}_text", hparams["device_batch_tokens"], hparams["max_oov"]
        )
        if if_main_process():
            print(
                f"{name}: {len(text):,} sentences, {len(text.tokens):,} tokens, "
                f"{text.oov_rate:.2f} % unknown"
            )
    run_on_main(keep_tokenizer, args=[hparams])
    brain = assemble(LanguageModelBrain, hparams, run_opts, hparams["modules"])
    figures = fit_tokens(brain, hparams_file, hparams, texts)
    figures |= {
        "sentences": len(texts["valid"]),
        "tokens": len(texts["valid"].tokens),
        "oov_rate": texts["valid"].oov_rate,
    }
    if if_main_process():
        print(
            f"valid: {brain.describe(figures)} over {figures['tokens']:,} tokens, "
            f"{figures['oov_rate']:.2f} % unknown; {hparams['output_folder']}"
        )
    hparams["record"].result("valid", figures, tokenizer=tokenizer.fingerprint)
    finish()
    return figures

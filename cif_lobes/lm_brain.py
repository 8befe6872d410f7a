"""Training of a Transformer language model, from its yaml to its perplexity."""

import math
from typing import NamedTuple

import torch
from speechbrain.utils.distributed import if_main_process, run_on_main
from torch import Tensor

from cif_lobes.experiment import (
    assemble,
    finish,
    fit_batches,
    load_settings,
)
from cif_lobes.language_model import BEST_KEY, TokenText, check_text, loader_options
from cif_lobes.run_files import keep_tokenizer
from cif_lobes.training_brain import TrainingBrain


class Predictions(NamedTuple):
    """What the language model says about a batch."""

    logits: Tensor  # [B, U, V]
    tokens: Tensor  # [B, U] true tokens, end of sentence included, padded with blank


class LanguageModelBrain(TrainingBrain):
    """Trains a language model to predict each token from those before it.

    Reads from the yaml, besides `modules` (`lm`): `tokenizer`, `lr_scheduler`,
    `number_of_epochs`, `num_checkpoints`, `seed`.
    """

    best_key = BEST_KEY

    def compute_forward(self, batch, stage):
        """Logits of every token; see `Predictions`."""
        tokens, _ = batch.to(self.device, non_blocking=True).tokens
        previous = tokens.roll(1, dims=1)
        previous[:, 0] = self.hparams.tokenizer.bos_index
        return Predictions(self.modules.lm(previous), tokens)

    def compute_objectives(self, predictions, batch, stage):
        """Cross-entropy in nats, summed over the batch; keeps the ledger."""
        loss = torch.nn.functional.cross_entropy(
            predictions.logits.float().transpose(1, 2),
            predictions.tokens,
            # PaddedBatch pads with 0, the blank: never a token of a text.
            ignore_index=self.hparams.tokenizer.blank_index,
            reduction="sum",
        )
        self.ledger.add({"ce": (1.0, loss)}, self.count_units(predictions))
        return loss

    def count_units(self, predictions):
        """Tokens of a batch, ends of sentences included."""
        return int((predictions.tokens != self.hparams.tokenizer.blank_index).sum())

    def scores(self):
        """Perplexity of a token, end of sentence included."""
        return {BEST_KEY: math.exp(self.ledger.summary()["loss"])}

    def describe(self, figures):
        """The perplexity in words."""
        return f"perplexity {figures[BEST_KEY]:.1f}"


def run(hparams_file, run_opts, overrides):
    """Read the text, train, and measure the best checkpoint's perplexity.

    Arguments
    ---------
    hparams_file : str
        The recipe's yaml.
    run_opts : dict
        SpeechBrain's run options.
    overrides : str or dict
        Settings of the command line.

    Returns
    -------
    dict
        Figures of the validation text.
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
    valid_options = loader_options(texts["valid"], hparams["device_batch_tokens"])
    fit_batches(
        brain,
        hparams_file,
        hparams,
        texts,
        loader_options(
            texts["train"],
            hparams["batch_tokens"],
            hparams["device_batch_tokens"],
            hparams["seed"],
        ),
        valid_options,
    )
    brain.evaluate(texts["valid"], min_key=BEST_KEY, test_loader_kwargs=valid_options)
    figures = {
        **brain.test_figures,
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

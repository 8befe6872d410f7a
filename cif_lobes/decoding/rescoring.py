"""The hypotheses of a beam, ranked again by a causal language model from HuggingFace.

With SpeechBrain's RescorerBuilder, and its HuggingFaceLMRescorer, mended. That one sets the
logits of all pieces from the pad token's id on to minus infinity: where the pad is the end
of sentence, every hypothesis is impossible, and where its id is 0 there is no language
model left; it says neither. It also needs a begin of sentence, which Qwen has not.
"""

import pathlib

import torch
from speechbrain.decoders import scorer as sb_scorer
from torch.nn.utils.rnn import pad_sequence

TEXTS = 64  # read by the language model at a time


class HuggingFaceLMRescorer(sb_scorer.HuggingFaceLMRescorer):
    """Log-probability of whole texts, begin to end of sentence.

    Arguments
    ---------
    source : str
        Folder or hub name of a causal language model and its tokenizer.
    device : str

    Raises
    ------
    ValueError
        If there is none, or it has no end of sentence.
    """

    def __init__(self, source, device="cpu"):
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

        try:
            config = AutoConfig.from_pretrained(source)
            self.tokenizer = self.lm = None
            if _is_causal(config):
                self.tokenizer = AutoTokenizer.from_pretrained(source)
                load = AutoModelForCausalLM.from_pretrained
                self.lm = load(source, dtype=torch.float32)
        except (OSError, ValueError) as error:
            why = (
                "no language model and tokenizer in this folder"
                if pathlib.Path(source).is_dir()
                else "no such folder, and no such name in the cache of the hub"
            )
            said = str(error).splitlines()[0]
            raise ValueError(
                f"--rescore {source}: {why}. Give a folder that transformers loads, such as "
                f"GPT-2's ({said})"
            ) from None
        if self.lm is None:
            raise ValueError(
                f"--rescore {source}: {config.model_type} is no causal language model. "
                "Give one like GPT-2, Qwen or SmolLM2"
            )
        self.end = self.tokenizer.eos_token_id
        if self.end is None:
            raise ValueError(
                f"--rescore {source}: its tokenizer has no end of sentence"
            )
        begin = self.tokenizer.bos_token_id
        # GPT-2 and Qwen begin a text behind the end of another.
        self.begin = self.end if begin is None else begin
        self.known = {}
        self.to_device(device)

    def to_device(self, device=None):
        """Move the model."""
        self.lm.eval().to(device or "cpu")

    def preprocess_func(self, topk_hyps):
        """Pieces of texts, as list of torch.Tensor."""
        pieces = self.tokenizer(
            [self.normalize_text(text) for text in topk_hyps], add_special_tokens=False
        )["input_ids"]
        return [torch.tensor([self.begin, *ids, self.end]) for ids in pieces]

    @torch.no_grad()
    def rescore_hyps(self, topk_hyps):
        """Log-probabilities of the texts of several beams, one after the other.

        Arguments
        ---------
        topk_hyps : list of list of str

        Returns
        -------
        torch.Tensor, [texts], float32
            In nats. A text that comes again is not read again.
        """
        texts = [text for beam in topk_hyps for text in beam]
        new = sorted({*texts} - self.known.keys(), key=len)
        for start in range(0, len(new), TEXTS):
            some = new[start : start + TEXTS]
            rows = self.preprocess_func(some)
            lengths = torch.tensor([len(row) for row in rows])
            ids = pad_sequence(rows, batch_first=True, padding_value=self.end)
            real = torch.arange(ids.shape[1]) < lengths[:, None]
            ids, real = ids.to(self.lm.device), real.to(self.lm.device)
            logits = self.lm(ids, attention_mask=real.long()).logits[:, :-1].float()
            log_probs = logits.log_softmax(-1).gather(2, ids[:, 1:, None])[:, :, 0]
            sums = log_probs.masked_fill(~real[:, 1:], 0.0).sum(1)
            self.known.update(zip(some, sums.tolist(), strict=True))
        return torch.tensor([self.known[text] for text in texts])


class RescoringSearcher(torch.nn.Module):
    """A beam search whose hypotheses are ranked again as texts.

    The score becomes that of the search + weight * log p of the language model.

    Arguments
    ---------
    searcher : cif_lobes.decoding.searcher.BeamSearcher
    decode : callable
        From token ids to the text, a tokenizer's `decode`.
    rescorer : HuggingFaceLMRescorer
    weight : float
    """

    def __init__(self, searcher, decode, rescorer, weight):
        super().__init__()
        self.searcher = searcher
        self.decode = decode
        self.builder = sb_scorer.RescorerBuilder({"huggingfacelm": weight}, [rescorer])

    @property
    def beam_size(self):
        """Hypotheses that are ranked."""
        return self.searcher.beam_size

    @property
    def eos_threshold(self):
        """Where a hypothesis may end."""
        return self.searcher.eos_threshold

    def forward(self, vectors, lengths, encoded=None, x_lengths=None):
        """The best hypothesis of each utterance; see `BeamSearcher.forward`."""
        beams = []
        for hypotheses in self.searcher.nbest(vectors, lengths, encoded, x_lengths):
            texts = {}
            for ids, score in hypotheses:  # best first
                texts.setdefault(self.decode(ids), (ids, score))
            beams.append(texts)
        ranked, scores = self.builder.rescore(
            [list(beam) for beam in beams],
            [[score for _, score in beam.values()] for beam in beams],
        )
        best = [beam[texts[0]][0] for beam, texts in zip(beams, ranked, strict=True)]
        return best, torch.tensor([row[0] for row in scores])


def _is_causal(config):
    from transformers.models.auto import modeling_auto

    # BERT and its kind have a causal head, too, for those who train one.
    masked = type(config) in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING
    causal = type(config) in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING
    return causal and not masked and not config.is_encoder_decoder

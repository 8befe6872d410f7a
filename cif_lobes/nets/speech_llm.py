"""CIF vectors as words of a frozen causal language model: X-LLM's speech interface.

Chen et al., https://arxiv.org/abs/2305.04160, 3.2: an adapter carries the vectors that a
recogniser fires, one per token, into the space of a language model's own embeddings, where
they stand in a prompt in place of text. The model, which never heard speech and is never
trained, then writes the transcript in its own pieces.
"""

import hashlib
import pathlib
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from cif_lobes.storage.parameters import hash_parameters

SPEECH = "{speech}"  # its place in a prompt
NO_LOSS = -100


class Written(NamedTuple):
    """A text that a language model has written."""

    ids: list
    """list of int: pieces, and the end of sentence unless it wrote on and on."""
    log_probs: list
    """list of float: of each of them, in nats."""


class LinearAdapter(nn.Module):
    """One linear layer from CIF vectors to embeddings.

    Arguments
    ---------
    input_size, output_size : int
        Widths of a CIF vector and of the language model.
    """

    def __init__(self, input_size, output_size):
        super().__init__()
        self.linear = nn.Linear(input_size, output_size)

    def forward(self, vectors, lengths):
        """[B, U, D] to [B, U, H]."""
        return self.linear(vectors)


class TransformerAdapter(nn.Module):
    """A small Transformer encoder between two linear layers, as X-LLM has a BERT.

    Arguments
    ---------
    input_size, output_size : int
        Widths of a CIF vector and of the language model.
    d_model, num_layers, nhead, d_ffn : int
        Sizes of the encoder.
    dropout : float

    Example
    -------
    >>> adapter = TransformerAdapter(8, 12, d_model=16, num_layers=1, nhead=2, d_ffn=32)
    >>> adapter(torch.rand(2, 3, 8), torch.tensor([3, 0])).shape
    torch.Size([2, 3, 12])
    """

    def __init__(
        self,
        input_size,
        output_size,
        d_model=256,
        num_layers=2,
        nhead=4,
        d_ffn=1024,
        dropout=0.1,
    ):
        super().__init__()
        self.enter = nn.Linear(input_size, d_model)
        layer = nn.TransformerEncoderLayer(
            d_model, nhead, d_ffn, dropout, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(
            layer, num_layers, nn.LayerNorm(d_model), enable_nested_tensor=False
        )
        self.leave = nn.Linear(d_model, output_size)

    def forward(self, vectors, lengths):
        """[B, U, D] to [B, U, H]; no vector sees padding."""
        places = torch.arange(vectors.shape[1], device=vectors.device)
        # One vector always is seen, or an utterance of none would be NaN.
        padding_mask = places >= lengths[:, None].clamp(min=1)
        x = torch.relu(self.enter(vectors))
        x = self.layers(x, src_key_padding_mask=padding_mask)
        return self.leave(x)


class SpeechLLM(nn.Module):
    """A frozen causal language model that reads CIF vectors in a prompt.

    Always in eval mode and without gradients of its own, but for those of
    `cif_lobes.nets.lora.LoRA`; keep it out of a Brain's modules.

    Arguments
    ---------
    source : str
        Folder with a HuggingFace model and its tokenizer, or a name on the hub.
    prompt : str
        What is said around the speech, which stands at "{speech}".
    chat : bool
        Whether the prompt is put into the model's chat template, as the user's words.
    random : int, optional
        Seed of weights as before any training, in place of the model's, for comparison:
        what does the text bring?

    Attributes
    ----------
    width : int
        Of an embedding.
    memory : str or None
        What the model calls its keys and values; None if it remembers anything else, and
        is asked row by row.
    identity : dict
        What an adapter has been trained for: prompt, width, hashes of the tokenizer and
        of the weights.

    Raises
    ------
    ValueError
        If there is no causal language model, the prompt has no place for speech, or the
        tokenizer lacks what is needed.
    """

    def __init__(self, source, prompt=SPEECH, chat=False, random=None):
        super().__init__()
        from transformers import (
            AutoConfig,
            AutoModelForCausalLM,
            AutoTokenizer,
            GenerationConfig,
        )

        if prompt.count(SPEECH) != 1:
            raise ValueError(f"prompt {prompt!r} must have {SPEECH} once")
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(source)
            if random is not None:
                config = AutoConfig.from_pretrained(source)
                with torch.random.fork_rng(devices=()):
                    torch.manual_seed(random)
                    self.lm = AutoModelForCausalLM.from_config(config)
            else:
                self.lm = AutoModelForCausalLM.from_pretrained(source)
        except (OSError, ValueError) as error:
            is_folder = pathlib.Path(source).is_dir()
            raise ValueError(
                f"llm {source}: {'folder lacks' if is_folder else 'no such folder:'} a "
                f"causal language model and its tokenizer ({str(error).splitlines()[0]})"
            ) from None
        self.lm.float().requires_grad_(False).eval()
        self.end = self.tokenizer.eos_token_id
        if self.end is None:
            raise ValueError(f"llm {source}: its tokenizer has no end of sentence")
        # Not the model's own: some sample, or punish what is said twice.
        self.lm.generation_config = GenerationConfig(
            eos_token_id=self.end, pad_token_id=self.end
        )
        begin = self.tokenizer.bos_token_id
        begin = [self.end if begin is None else begin]
        text = prompt
        if chat:
            if self.tokenizer.chat_template is None:
                raise ValueError(
                    f"llm {source} has no chat template: --chat False puts the prompt "
                    "before it as it is"
                )
            text = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}],
                tokenize=False,
                add_generation_prompt=True,
            )
            begin = []  # the template's own
        before, after = text.split(SPEECH)
        self.before = torch.tensor(begin + self._split(before), dtype=torch.long)
        self.after = torch.tensor(self._split(after), dtype=torch.long)
        self.embed = self.lm.get_input_embeddings()
        self.width = self.embed.embedding_dim
        self.memory = self._find_memory()
        tokenizer = self.tokenizer.backend_tokenizer.to_str()
        self.identity = {
            "prompt": text,
            "width": self.width,
            "tokenizer": hashlib.sha256(tokenizer.encode()).hexdigest()[:16],
            "weights": hash_parameters(dict(self.lm.named_parameters())),
        }

    def train(self, mode=True):
        """Stays in eval mode."""
        return super().train(False)

    def pieces(self, text):
        """Ids of a transcript, without end of sentence."""
        return self._split(text)

    def decode(self, ids):
        """What ids say, spaces at the begin included."""
        options = {"clean_up_tokenization_spaces": False}  # it joins what was apart
        return self.tokenizer.decode(ids, skip_special_tokens=True, **options)

    def text(self, ids):
        """Transcript of ids."""
        return self.decode(ids).strip()

    def forward(self, embeddings, lengths, texts):
        """Cross-entropy of transcripts.

        Arguments
        ---------
        embeddings : torch.Tensor, [B, U, H]
            From an adapter.
        lengths : torch.Tensor, [B], int64, on the CPU
            Of each utterance.
        texts : list of str
            Transcripts.

        Returns
        -------
        loss : torch.Tensor, []
            In nats, summed over the pieces, end of sentence included.
        correct : torch.Tensor, []
            Pieces that are the most probable ones.
        total : int
            Pieces.
        """
        cache, read = self._read_before(len(texts), embeddings.device)
        rows, targets = [], []
        for speech, text in zip(self._prompts(embeddings, lengths), texts, strict=True):
            ids = torch.tensor([*self.pieces(text), self.end], device=speech.device)
            # The last piece is not read.
            rows.append(torch.cat([speech[read:], self.embed(ids[:-1])]))
            silent = ids.new_full((len(speech) - read - 1,), NO_LOSS)
            targets.append(torch.cat([silent, ids]))
        total = sum(int((t != NO_LOSS).sum()) for t in targets)
        # Behind a text, where a causal model does not look: no mask is needed.
        rows = pad_sequence(rows, batch_first=True)
        targets = pad_sequence(targets, batch_first=True, padding_value=NO_LOSS)
        # No logits are needed where all rows have their prompt.
        first = len(self.before) - read + int(lengths.min()) + len(self.after) - 1
        kept = rows.shape[1] - first
        logits = self.lm(
            inputs_embeds=rows, logits_to_keep=kept, **cache
        ).logits.float()
        targets = targets[:, first:]
        loss = nn.functional.cross_entropy(
            logits.transpose(1, 2), targets, ignore_index=NO_LOSS, reduction="sum"
        )
        return loss, (logits.argmax(-1) == targets).sum(), total

    def transcribe(self, embeddings, lengths, beam_size=1):
        """Transcripts that the model writes, as list of str.

        Arguments
        ---------
        embeddings : torch.Tensor, [B, U, H]
        lengths : torch.Tensor, [B], int64, on the CPU
        beam_size : int

        Returns
        -------
        list of str
        """
        prompts = list(self._prompts(embeddings, lengths))
        beams = self._generate(prompts, lengths.tolist(), beam_size)
        return [self.text(beam[0]) for beam in beams]

    @torch.no_grad()
    def nbest(self, embeddings, lengths, beam_size=1):
        """Transcripts with the probabilities of their pieces.

        Arguments
        ---------
        embeddings, lengths, beam_size
            As of `transcribe`.

        Returns
        -------
        list of list of Written
            Of each utterance, the most probable first.
        """
        prompts = list(self._prompts(embeddings, lengths))
        beams = self._generate(prompts, lengths.tolist(), beam_size)
        return [
            [Written(ids, self._log_probs(speech, ids)) for ids in beam]
            for speech, beam in zip(prompts, beams, strict=True)
        ]

    def _generate(self, prompts, lengths, beam_size):
        """Ids of each text of the beam behind each prompt [S, H]."""
        said = [i for i, length in enumerate(lengths) if length]
        # A beam is a batch already, and what it finds depends on its limit of pieces.
        together = beam_size == 1 and self.memory is not None and said
        batches = [said] if together else [[i] for i in said]
        # Nothing was said, whatever such a model would make of it.
        beams = [[[]] for _ in lengths]
        for batch in batches:
            limits = [4 * lengths[i] + 8 for i in batch]
            rows = self._write([prompts[i] for i in batch], max(limits), beam_size)
            for i, limit, beam in zip(batch, limits, rows, strict=True):
                # Behind their ends rows are padded, with ends.
                ends = [(*ids, self.end).index(self.end) + 1 for ids in beam]
                ends = [min(end, limit) for end in ends]
                beams[i] = [ids[:end] for ids, end in zip(beam, ends, strict=True)]
        return beams

    @torch.no_grad()
    def _write(self, prompts, limit, beam_size):
        """At most `limit` ids of each text of the beam behind each prompt."""
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        places = torch.arange(int(lengths.max()))
        mask = places >= places.shape[0] - lengths[:, None]
        options = {"length_penalty": 0.0} if beam_size > 1 else {}  # log-probabilities
        rows = self.lm.generate(
            inputs_embeds=pad_sequence(prompts, batch_first=True, padding_side="left"),
            attention_mask=mask.long().to(prompts[0].device),
            max_new_tokens=limit,
            num_beams=beam_size,
            num_return_sequences=beam_size,
            do_sample=False,
            **options,
        ).tolist()
        return [rows[i : i + beam_size] for i in range(0, len(rows), beam_size)]

    def _log_probs(self, speech, ids):
        """Log-probability of each id behind a prompt [S, H]."""
        if not ids:
            return []
        ids = torch.tensor(ids, device=speech.device)
        rows = torch.cat([speech, self.embed(ids[:-1])])[None]
        logits = self.lm(inputs_embeds=rows, logits_to_keep=len(ids)).logits[0].float()
        return logits.log_softmax(-1).gather(1, ids[:, None])[:, 0].tolist()

    @torch.no_grad()
    def _find_memory(self):
        """What the model calls its keys and values, if they are all that it remembers.

        They can be repeated for a batch, and padding be masked; of a recurrent model's state
        neither is known.
        """
        from transformers import cache_utils

        one = self.embed(torch.tensor([[self.end]]))
        said = self.lm(inputs_embeds=one, use_cache=True)
        # In transformers 5.0, and what it is called later.
        name = "cache" if "cache" in said else "past_key_values"
        cache = said.get(name)
        known = cache_utils.DynamicLayer, cache_utils.DynamicSlidingWindowLayer
        if type(cache) is not cache_utils.DynamicCache:
            return None
        return name if all(type(layer) in known for layer in cache.layers) else None

    def _read_before(self, batch, device):
        """Keys and values of what all prompts begin with, read once, and its pieces.

        Its last piece is left, which may have to say the first of a text.
        """
        read = len(self.before) - 1
        if read < 1 or self.memory is None:
            return {}, 0
        before = self.embed(self.before[:read].to(device))[None]
        said = self.lm(inputs_embeds=before, use_cache=True, logits_to_keep=1)
        cache = said[self.memory]
        cache.batch_repeat_interleave(batch)
        return {self.memory: cache}, read

    def _prompts(self, embeddings, lengths):
        """Prompt with speech [S, H] of each utterance."""
        device = embeddings.device
        before, after = (self.embed(x.to(device)) for x in (self.before, self.after))
        for speech, length in zip(embeddings, lengths.tolist(), strict=True):
            yield torch.cat([before, speech[:length].to(before), after])

    def _split(self, text):
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

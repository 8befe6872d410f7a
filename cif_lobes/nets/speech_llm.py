"""CIF vectors as words of a frozen causal language model: X-LLM's speech interface.

Chen et al., https://arxiv.org/abs/2305.04160, 3.2: an adapter carries the vectors that a
recogniser fires, one per token, into the space of a language model's own embeddings, where
they stand in a prompt in place of text. The model, which never heard speech and is never
trained, then writes the transcript in its own pieces.
"""

import functools
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from cif_lobes.nets.pretrained_llm import find_end, identify, load_llm, render

SPEECH = "{speech}"  # its place in a prompt
NO_LOSS = -100


class Written(NamedTuple):
    """A text that a language model has written."""

    ids: list
    """list of int: pieces, and the end of sentence unless it wrote on and on."""
    log_probs: list
    """list of float: of each of them, in nats."""


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
    dtype : str
        Of its weights: float32 or bfloat16.
    text : str, optional
        The prompt in its template, as it was before. Templates may say today's date, and
        an adapter has learnt to follow that of its training.

    Attributes
    ----------
    width : int
        Of an embedding.
    end : int
        The piece that ends a text.
    memory : str or None
        What the model calls its keys and values; None if it remembers anything else, and
        is asked row by row.
    identity : dict
        What an adapter has been trained for: prompt, width, hashes of the tokenizer and
        of the weights.

    Raises
    ------
    ValueError
        As `load_llm` and `render`, or if the prompt has no place for speech.
    """

    def __init__(
        self,
        source,
        prompt=SPEECH,
        chat=False,
        random=None,
        dtype="float32",
        text=None,
    ):
        super().__init__()
        from transformers import GenerationConfig

        if prompt.count(SPEECH) != 1:
            raise ValueError(f"prompt {prompt!r} must have {SPEECH} once")
        self.lm, self.tokenizer = load_llm(source, dtype, random)
        self.prompt, self.chat = prompt, chat
        self.text_around = text
        if text is None:
            self.text_around = (
                render(self.tokenizer, prompt, source) if chat else prompt
            )
        self.end = find_end(self.tokenizer) if chat else self.tokenizer.eos_token_id
        # Not the model's own: some sample, or punish what is said twice.
        self.lm.generation_config = GenerationConfig(
            eos_token_id=self.end, pad_token_id=self.end
        )
        begin = self.tokenizer.bos_token_id
        begin = [self.tokenizer.eos_token_id if begin is None else begin]
        if chat:
            begin = []  # the template's own
        before, after = self.text_around.split(SPEECH)
        self.before = torch.tensor(begin + self._split(before), dtype=torch.long)
        self.after = torch.tensor(self._split(after), dtype=torch.long)
        self.embed = self.lm.get_input_embeddings()
        self.width = self.embed.embedding_dim
        self.memory = self._find_memory()

    @functools.cached_property
    def identity(self):
        """See above. It reads all weights: ask for it once, in one process."""
        return {
            "prompt": self.prompt,
            "chat": self.chat,
            "end": self.tokenizer.convert_ids_to_tokens(self.end),
            "width": self.width,
            **identify(self.lm, self.tokenizer),
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
        ids = [piece for piece in ids if piece != self.end]  # which may not be special
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
        logits = self.lm(inputs_embeds=rows, logits_to_keep=kept, **cache).logits
        targets = targets[:, first:]
        # Of a vocabulary of 150,000 every row counts: padding and prompts have none.
        said = targets != NO_LOSS
        logits, targets = logits[said].float(), targets[said]
        loss = nn.functional.cross_entropy(logits, targets, reduction="sum")
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
            list(map(Written, beam, self._log_probs(speech, beam)))
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

    def _log_probs(self, speech, beam):
        """Log-probabilities of the ids of each text of a beam behind a prompt [S, H]."""
        texts = [torch.tensor(ids, device=speech.device) for ids in beam]
        longest = max(map(len, texts))
        if not longest:
            return [[] for _ in texts]
        # Behind a text, where a causal model does not look: no mask is needed.
        rows = [torch.cat([speech, self.embed(ids[:-1])]) for ids in texts]
        rows = pad_sequence(rows, batch_first=True)
        logits = self.lm(inputs_embeds=rows, logits_to_keep=longest).logits
        return [
            row[: len(ids)]
            .float()
            .log_softmax(-1)
            .gather(1, ids[:, None])[:, 0]
            .tolist()
            for row, ids in zip(logits, texts, strict=True)
        ]

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

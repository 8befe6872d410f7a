"""A frozen teacher gives one state per recognition token, whatever the text."""

import shutil

import pytest
import torch
import transformers
from tiny_teacher import SMALL, VOCAB, Units, characters, make_teacher

from cif_lobes.data.tokens import SentencePieceTokenizer, WordPieceTokenizer
from cif_lobes.teachers.text import TextTeacher, token_batches

TRICKY = [
    "今天天气好",
    "",
    " ",
    "买iphone吗",
    "iphone",
    "买36一tv",
    "ＡＢ１２",
    "龘龖𠀀😀",
    "\u0301今",
    "今\u200b天",
    "㎏½ﬁ",
    "é",
    "，。..",
    "the cats don't run",
    "[SEP]今[PAD]",
    "\u3000今\t天\n",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def teacher(folder):
    return TextTeacher(folder)


def encode(teacher, texts, tokenizer=characters):
    """States by text, computed in one batch."""
    aligned = teacher.align({text: f"id of {text}" for text in texts}, tokenizer)
    states = teacher(aligned).split([len(a.ranges) for a in aligned])
    return dict(zip([a.text for a in aligned], states, strict=True))


def hidden_states(folder, text, layer):
    """The plain way: one text, no padding."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        inputs = tokenizer(text, return_tensors="pt")
        return model(**inputs, output_hidden_states=True).hidden_states[layer][0]


# --- which states ---


def test_characters_are_one_to_one_without_cls_and_with_sep(folder, teacher):
    states = encode(teacher, ["今天天气好", "买房"])
    for text in states:
        expected = hidden_states(folder, text, -1)[1:]
        torch.testing.assert_close(states[text], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layer", [0, 2, -1, -4])
def test_any_layer(folder, layer):
    states = encode(TextTeacher(folder, layer), ["今天天气"])["今天天气"]
    expected = hidden_states(folder, "今天天气", layer)[1:]
    torch.testing.assert_close(states, expected, atol=1e-5, rtol=1e-5)


def test_several_layers_are_an_axis(folder):
    teacher = TextTeacher(folder, [1, -1])
    assert teacher.layer == [1, 3] and teacher.state_shape == (2, 16)
    states = encode(teacher, ["今天天气", "好"])
    for i, layer in enumerate((1, 3)):
        torch.testing.assert_close(
            states["今天天气"][:, i],
            hidden_states(folder, "今天天气", layer)[1:],
            atol=1e-5,
            rtol=1e-5,
        )
    assert TextTeacher(folder, [2]).state_shape == (1, 16)


def test_letters_share_their_word_and_words_average_their_pieces(folder, teacher):
    text = "买iphone吗"
    pieces = hidden_states(folder, text, -1)[1:]  # 买 iphone 吗 [SEP]
    letters = encode(teacher, [text])[text]
    expected = torch.stack([pieces[i] for i in [0] + 6 * [1] + [2, 3]])
    torch.testing.assert_close(letters, expected, atol=1e-5, rtol=1e-5)

    text = "the cats run"  # the | cat ##s | run | [SEP]
    pieces = hidden_states(folder, text, -1)[1:]
    words = Units(lambda text: [(0, 3), (4, 8), (9, 12)])
    expected = torch.stack([pieces[0], pieces[1:3].mean(0), pieces[3], pieces[4]])
    actual = encode(teacher, [text], words)[text]
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_the_teachers_own_wordpieces_are_one_to_one(folder, teacher, tmp_path):
    texts = ["the cats don't run", "running, cat.", "㎏ 36 xyz", ""]
    tokenizer = WordPieceTokenizer(
        tmp_path / "pieces.txt", 30, "en", f"{folder}/vocab.txt"
    ).fit(texts)
    for text, states in encode(teacher, texts, tokenizer).items():
        expected = hidden_states(folder, text, -1)[1:]
        torch.testing.assert_close(states, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("text", TRICKY)
def test_every_token_has_a_state(teacher, text):
    states = encode(teacher, [text])[text]
    assert states.shape == (len(text) + 1, 16)
    assert states.isfinite().all()


def test_every_sentencepiece_has_a_state(teacher, tmp_path):
    texts = ["the cats don't run", "cats  and running the cat", "é 龘 ok", ""]
    tokenizer = SentencePieceTokenizer(tmp_path / "p.model", 40, "en").fit(texts)
    texts = [tokenizer.normalize(text) for text in texts]
    for text, states in encode(teacher, texts, tokenizer).items():
        assert len(states) == len(tokenizer.encode(text)) + 1


def test_batch_and_padding_change_nothing(teacher):
    together = encode(teacher, TRICKY)
    assert set(together) == set(TRICKY)
    for text in TRICKY:
        alone = encode(teacher, [text])[text]
        torch.testing.assert_close(together[text], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.gpu
def test_a_gpu_gives_the_same_states(folder, teacher):
    on_gpu = encode(TextTeacher(folder, device="cuda"), TRICKY)
    for text, states in encode(teacher, TRICKY).items():
        torch.testing.assert_close(on_gpu[text].cpu(), states, atol=1e-3, rtol=1e-3)


def test_batches_bound_padded_pieces_and_are_complete(teacher):
    texts = {"今天" * n: str(n) for n in (1, 9, 3, 3, 20, 5, 2, 8)}
    texts["好房"] = "as long as another"
    aligned = teacher.align(texts, characters)
    batches = list(token_batches(aligned, batch_tokens=30))
    assert sum(batches, []) == aligned
    assert len(batches[0]) == 1  # 42 pieces, more than the budget
    for batch in batches[1:]:
        assert len(batch) * len(batch[0].piece_ids) <= 30
        assert len(batch[0].piece_ids) == max(len(a.piece_ids) for a in batch)
    shuffled = dict(reversed(texts.items()))
    assert [a.text for a in teacher.align(shuffled, characters)] == [
        a.text for a in aligned
    ]


# --- frozen ---


def test_it_cannot_be_trained(teacher):
    torch.nn.ModuleList([teacher]).train()
    teacher.train()
    assert not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())
    first, second = (encode(teacher, ["今天"])["今天"] for _ in range(2))
    assert torch.equal(first, second) and not first.requires_grad


def test_hashes_tell_teachers_apart(folder, teacher, tmp_path):
    same = TextTeacher(folder, layer=1)
    assert same.weights_hash == teacher.weights_hash
    assert same.tokenizer_hash == teacher.tokenizer_hash
    other = TextTeacher(make_teacher(tmp_path / "weights", seed=1))
    assert other.weights_hash != teacher.weights_hash
    assert other.tokenizer_hash == teacher.tokenizer_hash
    vocab = [*VOCAB[:5], *reversed(VOCAB[5:])]
    other = TextTeacher(make_teacher(tmp_path / "vocab", vocab=vocab))
    assert other.weights_hash == teacher.weights_hash
    assert other.tokenizer_hash != teacher.tokenizer_hash


def test_half_precision_checkpoints_without_pooler_compute_in_float32(
    folder, teacher, tmp_path
):
    model = transformers.AutoModel.from_pretrained(folder)
    model.pooler = None
    model.half().save_pretrained(tmp_path)
    teacher.tokenizer.save_pretrained(tmp_path)
    loaded = [TextTeacher(tmp_path) for _ in range(2)]
    assert loaded[0].weights_hash == loaded[1].weights_hash
    assert encode(loaded[0], ["今天"])["今天"].dtype == torch.float32


# --- other kinds ---


def test_a_roberta_drops_s_and_counts_positions_from_its_padding(tmp_path, teacher):
    sizes = {**SMALL, "vocab_size": len(VOCAB), "intermediate_size": 32}
    config = transformers.RobertaConfig(
        **sizes, max_position_embeddings=12, pad_token_id=0
    )
    transformers.RobertaModel(config).save_pretrained(tmp_path)
    teacher.tokenizer.save_pretrained(tmp_path)
    roberta = TextTeacher(tmp_path)
    assert encode(roberta, ["今" * 9])["今" * 9].shape == (10, 16)
    with pytest.raises(ValueError, match="12 teacher pieces, .* reads 11 at most"):
        encode(roberta, ["今" * 10])


def test_of_an_encoder_decoder_the_encoder_is_used(tmp_path, teacher):
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    config = transformers.T5Config(vocab_size=len(VOCAB), **sizes)
    transformers.T5Model(config).save_pretrained(tmp_path)
    teacher.tokenizer.save_pretrained(tmp_path)
    states = encode(TextTeacher(tmp_path), ["今天天气"])
    assert states["今天天气"].shape == (5, 16)


# --- refusals ---


def test_a_text_beyond_the_position_limit_names_the_utterance(teacher):
    assert encode(teacher, ["今" * 62])["今" * 62].shape == (63, 16)
    with pytest.raises(ValueError, match="utterance long: 65 teacher pieces.*64 at"):
        teacher.align({"今天": "short", "今" * 63: "long"}, characters)


def test_a_tokenizer_that_miscounts_names_the_utterance(teacher):
    wrong = Units(characters.offsets)
    wrong.encode = lambda text: list(range(len(text) + 1))
    with pytest.raises(ValueError, match="utterance u1: 3 tokens but 2 character"):
        teacher.align({"今天": "u1"}, wrong)


@pytest.mark.parametrize("layer", [4, -5, [1, 4]])
def test_a_layer_that_does_not_exist(folder, layer):
    with pytest.raises(ValueError, match=r"layers 0 \(embeddings\) to 3, layer is"):
        TextTeacher(folder, layer)


def test_a_folder_that_does_not_exist(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        TextTeacher(tmp_path / "nowhere")


def test_a_folder_without_tokenizer_is_refused(folder, tmp_path):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(f"{folder}/{name}", tmp_path)
    message = r"no tokenizer \(tokenizer.json, vocab.txt\).*copy the files"
    with pytest.raises(FileNotFoundError, match=message):
        TextTeacher(tmp_path)


@pytest.mark.parametrize("text", ["今[SEP]天", "[MASK]", "the [UNK] cat", "[CLS]"])
def test_special_pieces_in_a_transcript_are_its_characters(teacher, text):
    (aligned,) = teacher.align({text: "u1"}, characters)
    special = set(teacher.tokenizer.all_special_ids) - {teacher.tokenizer.unk_token_id}
    assert not special & set(aligned.piece_ids[1:-1].tolist())
    assert teacher.count_unknown([aligned])[0] >= 3  # [ MASK ]


def make_t5(folder):
    """A Unigram vocabulary, in which special pieces are pieces like any other."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    pieces += [(letter, -3.0) for letter in "<>/sunkcat"]
    transformers.T5Tokenizer(vocab=pieces, extra_ids=0).save_pretrained(folder)
    config = transformers.T5Config(
        vocab_size=len(pieces), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2
    )
    transformers.T5Model(config).save_pretrained(folder)
    return TextTeacher(folder)


@pytest.mark.parametrize("special", ["</s>", "<unk>"])
def test_special_pieces_that_cannot_be_told_from_text_are_refused(tmp_path, special):
    teacher = make_t5(tmp_path)
    (aligned,) = teacher.align({"cat x": "u1"}, characters)
    assert teacher.count_unknown([aligned]) == (1, 6, aligned)
    with pytest.raises(ValueError, match=f"utterance u2: '{special}' in 'a{special}'"):
        teacher.align({f"a{special}": "u2"}, characters)


def test_missing_weights_are_not_made_up(folder, teacher, tmp_path):
    model = transformers.AutoModel.from_pretrained(folder)
    weights = {k: v for k, v in model.state_dict().items() if "layer.1." not in k}
    model.save_pretrained(tmp_path, state_dict=weights)
    teacher.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="16 weights are not in the checkpoint"):
        TextTeacher(tmp_path)


def test_a_tokenizer_without_offsets_is_refused(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(transformers.BertTokenizer, "is_fast", False)
    with pytest.raises(ValueError, match="no character offsets. Use a teacher with a"):
        TextTeacher(folder)


def test_a_tokenizer_without_an_end_of_sentence_is_refused(folder, tmp_path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.post_processor = None
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, pad_token="[PAD]"
    )
    tokenizer.save_pretrained(tmp_path)
    transformers.AutoModel.from_pretrained(folder).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no state for end of sentence"):
        TextTeacher(tmp_path)

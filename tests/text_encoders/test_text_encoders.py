"""The text encoders: properties that all share, and each compared with an independent implementation."""

import json
import random
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import TruncatedSVD
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn

from cyclic_cli import registry
from cyclic_cli.errors import CyclicError, UsageError
from cyclic_cli.modalities import text as modality
from cyclic_cli.modalities.text import Config, Samples
from cyclic_cli.text_encoders import bag
from cyclic_cli.text_encoders._decoding import Decoder
from cyclic_cli.text_encoders._vocabulary import END, SPECIAL, START

NO_DATASET: Any = None
WORDS = "a clear effusion film heart left lung no nodule normal of right small the".split()
SMALL = {"bag": {"latent": 16, "hidden": 8}, "transformer": {"width": 32}, "hub": {"width": 32}}


def index(count: int = 80) -> dict[str, np.ndarray]:
    generator = random.Random(0)
    texts = [" ".join(generator.choices(WORDS, k=generator.randint(3, 12))) for _ in range(count)]
    return {"text": np.array(texts, object), "patient": np.array([f"p{n}" for n in range(count)], object)}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny BERT of random weights, as `save_pretrained` writes it."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("secret") / "bert"
    words = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    torch.manual_seed(1)
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=40, initializer_range=0.5,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(params=registry.names("text_encoders"))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def made(name: str, request: pytest.FixtureRequest) -> tuple[Any, Tensor]:
    """An initialised encoder in training mode, and the tokens (80, 24) of its texts."""
    return initialised(name, {"folder": str(request.getfixturevalue("bert"))} if name == "hub" else {})


def initialised(name: str, settings: dict[str, Any]) -> tuple[Any, Tensor]:
    torch.manual_seed(0)
    config = Config(arch=name, model=SMALL[name] | settings, length=24)
    facts = modality.fit(NO_DATASET, index(), config)
    encoder = modality.Encoder(config, facts).encoder.train()
    tokens = Samples(NO_DATASET, index(), config, facts).load(np.arange(80))
    encoder.initialise(iter(tokens.split(16)))
    return encoder, tokens


# ---------------------------------------------------------------------------------------------- all encoders


def test_a_result_does_not_depend_on_the_other_texts(made: tuple[Any, Tensor]) -> None:
    encoder, tokens = made
    lengths = (tokens != 0).sum(1)
    shortest = tokens[lengths.argmin()][None, : int(lengths.min())]
    together = torch.cat([nn.functional.pad(shortest, (0, 24 - shortest.shape[1])), tokens[:5]])
    code = encoder.encode(shortest)
    torch.testing.assert_close(encoder.encode(together)[:1], code, rtol=1e-4, atol=1e-5)
    codes = torch.cat([code, torch.randn(5, encoder.code)])
    torch.testing.assert_close(
        encoder.errors(codes, together)[:1], encoder.errors(code, shortest), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        encoder.soft_decode(codes)[0].sum(), encoder.soft_decode(code)[0].sum(), rtol=1e-4, atol=1e-5
    )


def test_a_cycle_through_decoded_texts_has_a_gradient(made: tuple[Any, Tensor]) -> None:
    encoder, tokens = made
    code = encoder.encode(tokens[:6]).detach().requires_grad_()
    cycled = encoder.encode(encoder.soft_decode(code))
    assert cycled.shape == code.shape
    cycled[:, 0].sum().backward()
    assert code.grad is not None
    assert code.grad.isfinite().all()
    assert (code.grad.abs().sum(1) > 0).all()


def test_the_initialisation_is_no_worse_than_the_frequencies(made: tuple[Any, Tensor]) -> None:
    encoder, tokens = made
    with torch.no_grad():
        error = float(encoder.errors(encoder.encode(tokens), tokens).mean())
    assert error == pytest.approx(1, abs=0.1) if encoder_generates(encoder) else error < 0.95


def encoder_generates(encoder: Any) -> bool:
    return bool(sys.modules[type(encoder).__module__].GENERATES)


def test_hidden_tokens_are_not_read_but_count_in_the_errors(made: tuple[Any, Tensor]) -> None:
    encoder, tokens = made
    hidden = tokens[:9].clone()
    hidden[:, 2:] *= -1
    torch.testing.assert_close(encoder.encode(hidden), encoder.encode(tokens[:9, :2]), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(encoder.encode(hidden), encoder.encode(tokens[:9]))
    code = torch.randn(9, encoder.code)
    assert torch.equal(encoder.errors(code, hidden), encoder.errors(code, tokens[:9]))


def test_training_draws_no_random_numbers(made: tuple[Any, Tensor]) -> None:
    encoder, tokens = made
    before = torch.random.get_rng_state()
    code = encoder.encode(tokens[:4])
    encoder.errors(code, tokens[:4]), encoder.soft_decode(code)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_empty_texts_have_codes_and_errors(made: tuple[Any, Tensor]) -> None:
    encoder, _ = made
    empty = torch.tensor([[END, 0], [0, 0]])
    code = encoder.encode(empty)
    assert code.isfinite().all()
    assert encoder.errors(code, empty).isfinite().all()
    assert encoder.errors(code[:0], empty[:0]).shape == (0,)
    assert encoder.encode(empty[:0]).shape == (0, encoder.code)


def test_weights_and_facts_rebuild_an_encoder(name: str, made: tuple[Any, Tensor]) -> None:
    encoder, tokens = made
    folder = getattr(encoder, "folder", "")
    config = Config(arch=name, model=SMALL[name] | ({"folder": folder} if folder else {}), length=24)
    facts = json.dumps(modality.fit(NO_DATASET, index(), config))
    assert not folder or folder not in facts
    again = modality.Encoder(modality.portable(config), json.loads(facts)).encoder
    again.load_state_dict(encoder.state_dict())
    assert torch.equal(again.encode(tokens), encoder.encode(tokens))
    assert torch.equal(again.errors(encoder.encode(tokens), tokens), encoder.errors(encoder.encode(tokens), tokens))


# ------------------------------------------------------------------------------------------------------- bag


def test_the_frequencies_have_an_error_of_1() -> None:
    config = Config(length=24, model={"latent": 4})
    facts = modality.fit(NO_DATASET, index(), config)
    tokens = Samples(NO_DATASET, index(), config, facts).load(np.arange(80))
    # Before its initialisation, the encoder predicts the frequencies.
    encoder = bag.Encoder(bag.Config(latent=4), facts, len(facts["frequencies"]))
    share = torch.tensor(facts["frequencies"]).log()
    nats = [float(-share[row[row > 0]].mean()) for row in tokens]
    errors = encoder.errors(torch.randn(80, 4), tokens).detach()
    torch.testing.assert_close(errors, torch.tensor(nats) / facts["nats"])
    assert float(errors.mean()) == pytest.approx(1, abs=1e-5)


def test_the_bag_is_initialised_as_latent_semantic_analysis() -> None:
    encoder, tokens = initialised("bag", {})
    counts = np.stack([np.bincount(row, minlength=len(encoder.weights)) for row in tokens.numpy()])
    counts[:, 0] = 0
    rows = np.log1p(counts) * encoder.weights.numpy()
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    # Only the first 10 of the 16 singular values are clearly different, so only their vectors are determined.
    codes = TruncatedSVD(10, algorithm="arpack").fit_transform(rows)
    with torch.no_grad():
        mine = encoder.encode(tokens).numpy()[:, :10]
    np.testing.assert_allclose(np.abs(mine), np.abs(codes), atol=2e-3)


def test_the_bag_decodes_to_texts_of_mean_length() -> None:
    encoder, tokens = initialised("bag", {})
    counts = encoder.soft_decode(torch.randn(5, encoder.code))
    assert (counts >= 0).all()
    torch.testing.assert_close(counts.sum(1), torch.full((5,), float((tokens > 0).sum(1).double().mean())))


# ---------------------------------------------------------------------------------------------- transformer


def decoder(vocabulary: int, limit: int, seed: int = 0) -> Decoder:
    """A decoder with large random weights. Its next token depends on the code and earlier tokens, not on position."""
    torch.manual_seed(seed)
    facts = {"limit": limit, "nats": 1.0, "frequencies": [1 / vocabulary] * vocabulary}
    made = Decoder(3, 16, 2, 2, 2, facts, vocabulary)
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    for parameter, factor in ((made.positions, 0), (made.bias, 0), (made.norm.weight, 0.1), (made.norm.bias, 0.1)):
        parameter.data *= factor
    return made


def mean_log_likelihoods(one: Decoder, code: Tensor, texts: list[tuple[int, ...]]) -> Tensor:
    """The mean log-likelihoods (N, T) per token of T texts, given codes (N, 3)."""
    columns = []
    for text in texts:
        rows = torch.tensor([text] * len(code))
        with torch.no_grad():
            columns.append(one.logits(code, rows).log_softmax(2).gather(2, rows[:, :, None]).mean((1, 2)))
    return torch.stack(columns, 1)


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("seed", [1, 3])
def test_wide_beam_search_finds_the_best_of_all_texts(seed: int, ends: bool) -> None:
    one, code = decoder(6, 4, seed), 3 * torch.randn(40, 3)
    if not ends:
        one.bias.data[END] = -30
    words = range(SPECIAL, 6)
    whole = [(*text, END) for size in range(4) for text in product(words, repeat=size)]
    whole += list(product(words, repeat=4))  # truncated texts
    best = [whole[number] for number in mean_log_likelihoods(one, code, whole).argmax(1).tolist()]
    found = one.generate(code, 40, 4)  # as many beams as texts of three tokens
    assert [tuple(text) for text in found] == best
    assert found != one.generate(code, 1, 4)


@pytest.mark.parametrize("seed", range(5))
def test_greedy_search_takes_the_most_likely_token_each_time(seed: int) -> None:
    one, code = decoder(9, 12, seed), torch.randn(1, 3)
    tokens: list[int] = []
    while len(tokens) < 12 and END not in tokens:
        with torch.no_grad():
            tokens.append(int(one.logits(code, torch.tensor([[*tokens, END]]))[0, -1].argmax()))
    assert one.generate(code, 1, 12) == [tokens]
    assert one.generate(code, 1, 4) == [tokens[:4]]
    wider, greedy = mean_log_likelihoods(one, code, [tuple(one.generate(code, 4, 12)[0]), tuple(tokens)])[0]
    assert wider >= greedy - 1e-5
    assert START not in tokens


def test_soft_decoded_texts_are_encoded_like_their_tokens() -> None:
    encoder, tokens = initialised("transformer", {})
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.4)
    code = encoder.encode(tokens[:6])
    decoded, found = encoder.soft_decode(code), encoder.decode(code)
    assert torch.equal(decoded.detach().argmax(2) * (decoded.detach().sum(2) > 0), found)
    torch.testing.assert_close(encoder.encode(decoded), encoder.encode(found), rtol=1e-4, atol=1e-5)


def test_the_gradient_of_soft_decoding_is_that_of_the_softmax() -> None:
    one, code, weight = decoder(9, 5), torch.randn(2, 3, requires_grad=True), torch.randn(9)
    decoded = one.soft_decode(code)
    present = decoded.detach().sum(2, keepdim=True)
    assert set(decoded.detach().unique().tolist()) == {0.0, 1.0}
    soft = one.logits(code, decoded.detach().argmax(2)).softmax(2)
    expected = torch.autograd.grad((soft * present * weight).sum(), code, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad((decoded * weight).sum(), code), expected)


def test_a_transformer_learns_eight_texts_by_heart() -> None:
    encoder, tokens = initialised("transformer", {"width": 64, "layers": 1})
    tokens = tokens[:8]
    optimiser = torch.optim.AdamW(encoder.parameters(), 5e-3)
    for _ in range(150):
        optimiser.zero_grad()
        encoder.errors(encoder.encode(tokens), tokens).mean().backward()
        nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimiser.step()
    expected = [[token for token in row if token] for row in tokens.tolist()]
    with torch.no_grad():
        assert float(encoder.errors(encoder.encode(tokens), tokens).mean()) < 0.05
        for beams in (1, 3):
            assert encoder.generate(encoder.encode(tokens), beams, 24) == expected


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(UsageError, match="heads"):
        initialised("transformer", {"heads": 3})


# ------------------------------------------------------------------------------------------------------- hub


def test_codes_are_the_mean_of_the_last_vectors_of_transformers(bert: Path) -> None:
    transformers = pytest.importorskip("transformers")
    encoder, tokens = initialised("hub", {"folder": str(bert)})
    reader = transformers.PreTrainedTokenizerFast(tokenizer_file=str(bert / "tokenizer.json"), pad_token="[PAD]")
    batch = reader(index()["text"].tolist(), padding=True, return_tensors="pt")
    with torch.no_grad():
        last = transformers.BertModel.from_pretrained(bert).eval()(**batch).last_hidden_state
        there = batch["attention_mask"][:, :, None]
        torch.testing.assert_close(encoder.encode(tokens), (last * there).sum(1) / there.sum(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_encoder_has_no_gradient(frozen: bool, bert: Path) -> None:
    encoder, tokens = initialised("hub", {"folder": str(bert), "frozen": frozen})
    encoder.errors(encoder.encode(tokens), tokens).mean().backward()
    given = [parameter.grad is not None for parameter in encoder.encoder.parameters()]
    assert not any(given) if frozen else sum(given) >= len(given) - 1  # the token embedding may have no gradient
    assert encoder.decoder.enter.weight.grad is not None


def test_a_tokenizer_without_special_tokens_around_a_text(bert: Path, tmp_path: Path) -> None:
    folder = Path(copied(bert, tmp_path / "bare", ""))
    description = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**description, "post_processor": None}))
    encoder, tokens = initialised("hub", {"folder": str(folder)})
    assert encoder.before == encoder.behind == []
    text = tokens[:1, : int((tokens[0] > END).sum())]
    torch.testing.assert_close(encoder.encode(tokens[:1]), encoder.encode(text))
    assert encoder.encode(torch.tensor([[END], [0]])).isfinite().all()
    assert encoder.encode(encoder.soft_decode(encoder.encode(text))).isfinite().all()


def copied(bert: Path, to: Path, without: str) -> str:
    to.mkdir()
    for path in bert.iterdir():
        if path.name != without:
            (to / path.name).write_bytes(path.read_bytes())
    return str(to)


def test_unusable_folders_are_refused(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs a pretrained model"):
        initialised("hub", {"folder": ""})
    with pytest.raises(CyclicError, match="no folder"):
        initialised("hub", {"folder": str(tmp_path / "nowhere")})
    with pytest.raises(CyclicError, match=r"tokenizer\.json"):
        initialised("hub", {"folder": copied(bert, tmp_path / "a", "tokenizer.json")})
    with pytest.raises(CyclicError, match="does not contain a model"):
        initialised("hub", {"folder": copied(bert, tmp_path / "b", "config.json")})
    pickled = Path(copied(bert, tmp_path / "c", "model.safetensors"))
    (pickled / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(CyclicError, match="safetensors"):
        initialised("hub", {"folder": str(pickled)})
    (pickled / "model.safetensors").write_bytes((bert / "model.safetensors").read_bytes()[:-9])
    with pytest.raises(CyclicError, match="incomplete or damaged"):
        initialised("hub", {"folder": str(pickled)})


def test_texts_longer_than_the_model_reads_are_refused(bert: Path) -> None:
    config = Config(arch="hub", model={"folder": str(bert)}, length=40)
    with pytest.raises(UsageError, match="reads 40 tokens, not 41"):
        modality.Encoder(config, modality.fit(NO_DATASET, index(), config))


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(CyclicError, match="transformers") as raised:
        initialised("hub", {})
    assert "cyclic-cli[hub]" in raised.value.hint

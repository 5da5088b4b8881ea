"""Tokens are counted as the model's own tokenizer counts them, without torch and transformers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from medsyn.data.check import check_tables
from medsyn.models.tokenizer import token_count
from medsyn.models.weights import embedded_directory

TEXTS = (
    "CT: a chest, in 3 planes; 12x14 mm!",
    "X-Ray: Röntgen-Thorax, beidseitige Pleuraergüsse",
    "MRI: 脑部核磁共振 T2 加权",
    "it's the patient's own OCT; don't, we'll, I'm",
    "Fundus: ___ [**name**] naïve é ﬁne µm ½",
    "カタカナ 😀 a\u00a0b",
    "",
)
LONG = "CT: " + "a chest, 3 " * 40


@pytest.fixture
def model(tmp_path: Path) -> Path:
    for part in ("tokenizer", "text_encoder"):
        shutil.copytree(embedded_directory() / part, tmp_path / "model" / part)
    settings = tmp_path / "model" / "text_encoder" / "config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"max_position_embeddings": 40}))
    return tmp_path / "model"


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(str(embedded_directory() / "tokenizer"))


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_are_those_of_the_tokenizer_that_tasks_use(text: str, tokenizer: CLIPTokenizer) -> None:
    tokens = token_count("embedded")
    assert tokens is not None
    assert tokens.count(text) + 2 == len(tokenizer(text).input_ids)


def test_chinese_letters_are_words_of_their_own_as_the_tokenizer_has_them(tmp_path: Path, model: Path) -> None:
    vocabulary, merges = model / "tokenizer" / "vocab.json", model / "tokenizer" / "merges.txt"
    known = json.loads(vocabulary.read_text())
    pair = "\u00b8 \u00e7"  # a last byte and a first one, as byte-level vocabularies write them
    vocabulary.write_text(json.dumps(known | {pair.replace(" ", ""): len(known)}))
    lines = merges.read_text().splitlines()
    merges.write_text("\n".join([lines[0], pair, *lines[1:]]) + "\n")
    text, tokens = "核磁共振" * 3, token_count(str(model))
    assert tokens is not None
    assert tokens.count(text) + 2 == len(CLIPTokenizer.from_pretrained(str(model / "tokenizer"))(text).input_ids)


def test_the_limit_is_the_text_encoders(model: Path, tmp_path: Path, tokenizer: CLIPTokenizer) -> None:
    tokens = token_count(str(model))
    (tmp_path / "prompts.csv").write_text(f'prompt\n"{LONG}"\nCT: chest\n"{LONG} at last"\n')
    [problem] = check_tables(tmp_path / "prompts.csv", tokens=tokens)
    most = len(tokenizer(f"{LONG} at last").input_ids)
    assert most > 77
    assert problem.reason == (
        f"too long: up to {most} tokens, and the model's text encoder reads 40 (with those of begin and end); the rest "
        "is ignored, unless data.text_chunks is higher (2 rows: 2, 4)"
    )


@pytest.mark.parametrize("chunks", [1, 2, 3])
def test_a_text_of_exactly_the_limit_is_not_too_long(chunks: int, model: Path) -> None:
    tokens = token_count(str(model), chunks)
    assert tokens is not None
    digits = ["1"] * 38 * chunks  # of one token each
    assert tokens.too_many(" ".join(digits)) is None
    assert tokens.too_many(" ".join([*digits, "1"])) == 38 * chunks + 3


@pytest.mark.parametrize(
    ("name", "content"),
    [("tokenizer/vocab.json", "{"), ("tokenizer/merges.txt", None), ("text_encoder/config.json", "[]")],
)
def test_a_model_that_cannot_be_read_counts_nothing(model: Path, name: str, content: str | None) -> None:
    (model / name).unlink()
    if content is not None:
        (model / name).write_text(content)
    assert token_count(str(model)) is None
    assert token_count("no/such/model") is None


def test_counting_imports_neither_torch_nor_transformers() -> None:
    code = "import sys; from medsyn.models.tokenizer import token_count; print(token_count('embedded').count('a'))\n"
    code += "sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code], check=False, stdout=subprocess.DEVNULL).returncode == 0

"""CLIP's tokenizer from a model's own files, to count tokens on a login node: without torch and transformers."""

from __future__ import annotations

from functools import lru_cache

from medsyn.data.tables.token_count import TokenCount
from medsyn.models import model_folder
from medsyn.models.weights import locate

# What CLIP's tokenizer does before byte-pair encoding: words, single digits, runs of marks.
_PIECES = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_ENDS = 2  # tokens that mark begin and end
_UNKNOWN = "<|endoftext|>"


def token_count(source: str, chunks: int = 1) -> TokenCount | None:
    """How the model that `source` names counts tokens, when its text encoder reads so many chunks of a text.

    None if the model or the `tokenizers` library is not on this machine, or cannot be read: `model_folder.problems`
    says what is wrong with a model.
    """
    base = locate(source)
    if base is None:
        return None
    try:
        from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

        limit = model_folder.text_positions(base)
        names = (str(base / "tokenizer" / name) for name in ("vocab.json", "merges.txt"))
        vocabulary, merges = models.BPE.read_file(*names)
        encoding = models.BPE(vocabulary, merges, end_of_word_suffix="</w>", unk_token=_UNKNOWN)
    except Exception:  # no library, or files that are absent or damaged: it raises errors of its own kinds
        return None
    tokenizer = Tokenizer(encoding)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.BertNormalizer(handle_chinese_chars=True, strip_accents=False, lowercase=True)]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(_PIECES), "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )

    @lru_cache(maxsize=1 << 16)
    def of_word(word: str) -> int:
        return len(tokenizer.encode(word).ids)

    limit = chunks * (limit - _ENDS) + _ENDS
    return TokenCount(limit, lambda text: sum(map(of_word, text.split())))  # no token spans a space

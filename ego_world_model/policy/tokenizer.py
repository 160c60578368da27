"""The tokenizer of a policy without a published language model: the words of its training data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.trainers import WordLevelTrainer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

PAD, UNKNOWN = "[PAD]", "[UNK]"


def word_tokenizer(instructions: Iterable[str]) -> PreTrainedTokenizerFast:
    """A tokenizer of whole lower-case words; a word that no instruction has is ``UNKNOWN``."""
    tokenizer = Tokenizer(WordLevel(unk_token=UNKNOWN))
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = Whitespace()
    trainer = WordLevelTrainer(special_tokens=[PAD, UNKNOWN])
    tokenizer.train_from_iterator(sorted(set(instructions)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, unk_token=UNKNOWN, padding_side="right"
    )


def with_vocabulary(vlm: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Arguments of a ``SmolVLMConfig`` whose language model reads what ``tokenizer`` writes."""
    words = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    return {**vlm, "text_config": vlm.get("text_config", {}) | words}

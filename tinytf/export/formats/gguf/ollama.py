"""A Modelfile for Ollama, for the models that it reads right.

It runs the arch ``qwen3`` in an engine of its own, which cuts words by Qwen's pattern whatever the file names, and
knows no tokenizer by character: it would drop blanks and line feeds, and end texts at id 0. The arch ``llama`` it hands
to llama.cpp. This is read in its source (model/models/qwen3, fs/ggml), not run.
"""

from __future__ import annotations

from tinytf.data.examples.chat import Chat
from tinytf.data.tokenizer import is_by_character
from tinytf.errors import UserError
from tinytf.export.formats import end_of_turn_id
from tinytf.export.formats.gguf import pre_tokenizer_name
from tinytf.weights.checkpoint import LoadedModel

NAME = "Modelfile"
PROMPT, RESPONSE = "{{ .Prompt }}", "{{ .Response }}"


def modelfile(loaded: LoadedModel, file: str) -> str | None:
    """The text of a Modelfile for a GGUF file beside it; None if Ollama would read other tokens than the model's."""
    of_qwen = loaded.model.config.qk_norm
    if of_qwen and is_by_character(loaded.tokenizer):
        return None
    notes = []
    if of_qwen and pre_tokenizer_name(loaded.tokenizer) != "qwen2":
        notes = ["# Ollama cuts words as Qwen does, whatever the file says: numbers are read digit by digit."]
    lines = [f"FROM ./{file}", f"PARAMETER num_ctx {loaded.model.config.max_seq_len}"]
    if (template := _template(loaded)) is not None:
        lines.append(f'TEMPLATE """{template}"""')
    turn = end_of_turn_id(loaded)
    if turn is not None:
        lines.append(f'PARAMETER stop "{loaded.tokenizer.id_to_token(turn)}"')
    return "\n".join([*notes, *lines, ""])


def _template(loaded: LoadedModel) -> str | None:
    """One turn, in Ollama's words: the prompt alone, or what the chat template writes around it and around the answer.

    None if that cannot be said so; Ollama then looks for the file's own template among those that it knows.
    """
    if loaded.chat_template is None:
        return PROMPT
    turn = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": RESPONSE}]
    try:
        text = Chat.of(loaded.chat_template, loaded.tokenizer).render(turn, add_generation_prompt=False)
    except UserError:
        return None
    plain = text.count("{{") == 2 and text.count(PROMPT) == text.count(RESPONSE) == 1 and '"""' not in text
    return text if plain else None

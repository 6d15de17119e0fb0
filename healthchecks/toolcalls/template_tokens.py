"""The marks by which chat templates tell turns, tools and calls apart; no text of a reply should hold one."""

from __future__ import annotations

import re

# Hermes and Qwen, Qwen-Agent, Qwen3-Coder, Mistral, Gemma; any `<|token|>` of Llama, ChatML, Harmony,
# DeepSeek.
TEMPLATE_TOKEN = re.compile(
    r"</?tool_call>|</?tools>|</?tool_response>|✿(?:FUNCTION|ARGS|RESULT|RETURN)✿|<function=|\[TOOL_CALLS\]"
    r"|\[/?(?:AVAILABLE_TOOLS|TOOL_RESULTS|INST)\]|<(?:start|end)_of_turn>|</?function_call>"
    r"|<[|\uff5c][\w\u2581]{1,40}[|\uff5c]>"
)

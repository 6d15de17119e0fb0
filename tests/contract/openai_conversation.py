"""Holds conversations through whichever official `openai` client the Python that runs this has: 1.x or newer.

A program of its own, since two versions fit into no environment. Standard input is an object with `base_url`,
`model`, `database` (a file) and `conversations`: each has `system`, `tools`, the texts of `user`. It prints
`version`, and as `plain` and `stream` every reply of each conversation, put together as programs do.
"""

from __future__ import annotations

import json
import sqlite3
import sys
from typing import Any

import openai

MOST_REPLIES = 6


def main() -> None:
    given = json.load(sys.stdin)
    client = openai.OpenAI(base_url=given["base_url"], api_key="none", max_retries=0, timeout=60)
    talks = {
        mode: [hold(client, given, talk, mode) for talk in given["conversations"]]
        for mode in ("plain", "stream")
    }
    print(json.dumps({"version": openai.__version__, **talks}))


def hold(client: Any, given: Any, talk: Any, mode: str) -> list[Any]:
    """All replies of one conversation; every call is answered, also several of one reply."""
    messages: list[Any] = [{"role": "system", "content": talk["system"]}]
    replies: list[Any] = []
    for text in talk["user"]:
        messages.append({"role": "user", "content": text})
        while len(replies) < MOST_REPLIES:
            request = {"model": given["model"], "messages": messages, "tools": talk["tools"]}
            request |= {"temperature": 0, "seed": 1, "max_tokens": 256}
            reply = ask_plain(client, request) if mode == "plain" else ask_streamed(client, request)
            replies.append(reply)
            message = {"role": "assistant", "content": reply["content"]}
            messages.append({**message, "tool_calls": reply["calls"]} if reply["calls"] else message)
            for call in reply["calls"]:
                result = answer(call["function"], given["database"])
                messages.append({"role": "tool", "tool_call_id": call["id"], "content": result})
            if not reply["calls"]:
                break
    return replies


def ask_plain(client: Any, request: Any) -> Any:
    """One reply at once."""
    choice = client.chat.completions.create(**request).choices[0]
    calls = [call.model_dump(include={"id", "type", "function"}) for call in choice.message.tool_calls or ()]
    return {"content": choice.message.content, "calls": calls, "finish": choice.finish_reason}


def ask_streamed(client: Any, request: Any) -> Any:
    """One reply from its chunks: calls by their index, as the documentation of the client shows."""
    content, calls, finish, usage = "", {}, None, None
    options = {"stream": True, "stream_options": {"include_usage": True}}
    for chunk in client.chat.completions.create(**request, **options):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            finish = choice.finish_reason or finish
            content += choice.delta.content or ""
            for part in choice.delta.tool_calls or ():
                if part.index not in calls:
                    function = {"name": part.function.name, "arguments": ""}
                    calls[part.index] = {"id": part.id, "type": part.type, "function": function}
                calls[part.index]["function"]["arguments"] += part.function.arguments or ""
    in_order = [calls[index] for index in sorted(calls)]
    return {
        "content": content or None,
        "calls": in_order,
        "finish": finish,
        "usage": usage and usage.total_tokens,
    }


def answer(function: Any, database: str) -> str:
    """What a program does with a call."""
    arguments = json.loads(function["arguments"])
    if function["name"] != "ask_database":
        return f"12 degrees in {arguments['location']}"
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        return str(connection.execute(arguments["query"]).fetchall())


if __name__ == "__main__":
    main()

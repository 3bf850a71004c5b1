"""The agent of configs/agent_quickstart.yaml: a program of a user, with the `openai` client and a tool of its own."""

import json
import re
import sys

from openai import OpenAI, OpenAIError

CALCULATOR = {
    "type": "function",
    "function": {
        "name": "python",
        "description": "Work out a sum.",
        "parameters": {"type": "object", "properties": {"code": {"type": "string"}}, "required": ["code"]},
    },
}


def calculate(code: str) -> str:
    """Add and subtract. The text is the policy's, so it is never evaluated."""
    if not re.fullmatch(r"\d+([+-]\d+)*", code):
        return "error: write a sum, such as 12+34-5"
    return str(sum(int(term) for term in re.findall(r"[+-]?\d+", code)))


row, client = json.load(sys.stdin), OpenAI(max_retries=0)
messages = [{"role": "user", "content": row["prompt"]}]
try:
    while True:
        choice = client.chat.completions.create(model="policy", messages=messages, tools=[CALCULATOR]).choices[0]
        messages.append(choice.message.model_dump(exclude_none=True))
        if not choice.message.tool_calls:
            break
        for call in choice.message.tool_calls:
            result = calculate(json.loads(call.function.arguments).get("code", ""))
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    print(json.dumps({"answer": choice.message.content}))
except OpenAIError:  # A limit of the conversation. A mistake of the policy is no error of this program.
    print(json.dumps({"reward": 0}))

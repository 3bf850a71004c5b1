"""The judge of configs/judge_quickstart.yaml: an OpenAI-style server that decides by a rule, in place of a model.

python configs/judge_quickstart.py [PORT]
"""

import json
import re
import sys
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_TEXT = re.compile(r"^\[\[(\w+) ([A-Z0-9 ]+)\]\]\n(.*?)\n\[\[\1 END\]\]$", re.S | re.M)


def is_right(prompt: str, answer: str) -> bool:
    """Whether an answer states the result of the sum in the prompt. The texts are a policy's: nothing is evaluated."""
    stated = re.findall(r"<answer>\s*(-?\d{1,9})\s*</answer>", answer)
    return bool(stated) and int(stated[-1]) == sum(int(term) for term in re.findall(r"[+-]?\d+", prompt))


def reply(question: str, asked: Mapping[str, Any]) -> str:
    """Answer a question in the form that it asks for."""
    texts = {name: text for _, name, text in _TEXT.findall(question)}
    right = {name[7:]: is_right(texts["PROMPT"], text) for name, text in texts.items() if name.startswith("ANSWER")}
    if "choice" in asked:
        answer: Any = {"choice": "right" if right[""] else "wrong"}
    elif "better" in asked:
        answer = {"better": "tie" if right["1"] == right["2"] else "1" if right["1"] else "2"}
    elif "ranking" in asked:
        answer = {"ranking": [[name for name, is_so in right.items() if is_so is wanted] for wanted in (True, False)]}
    else:
        return "The answer is as it should be." if "CRITIQUE" not in texts else texts["ANSWER"]
    return json.dumps({"reason": "by the rule", **answer})


class Judge(BaseHTTPRequestHandler):
    """Answers Chat Completions."""

    protocol_version, wbufsize = "HTTP/1.1", -1

    def log_message(self, format: str, *values: Any) -> None:
        """Say nothing about single requests."""

    def do_POST(self) -> None:
        """Answer a question."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        asked = body.get("response_format", {}).get("json_schema", {}).get("schema", {}).get("properties", {})
        message = {"role": "assistant", "content": reply(body["messages"][-1]["content"], asked)}
        usage = {"prompt_tokens": sum(len(each["content"]) // 4 for each in body["messages"]), "completion_tokens": 10}
        content = json.dumps({"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 8765), Judge)
    print(f"http://127.0.0.1:{server.server_address[1]}/v1  (Ctrl-C stops the judge)", flush=True)
    server.serve_forever()

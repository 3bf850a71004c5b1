"""Small rows in the shapes of published data sets whose answers are texts, and the config that describes them."""

from __future__ import annotations

from typing import Any, NamedTuple


class Shape(NamedTuple):
    """A row of a published data set, and the config lines for it.

    Attributes:
        row: the row.
        keys: keys of `data`.
        verifier: keys of the verifier.
        text: what the policy reads, with a chat template of `[user:...][bot:`.
        right: a completion that is `correct`.
        wrong: a completion that is `wrong`.
        spoiled: columns with a gold answer that no verifier can accept.
        golds: number of gold answers that the row has; 0 if it has tests but no solution.
    """

    row: dict[str, Any]
    keys: dict[str, Any]
    verifier: dict[str, Any]
    text: str
    right: str
    wrong: str
    spoiled: dict[str, Any]
    golds: int = 1


ASKED = [{"role": "user", "content": "What is 2+3?"}]
SOLUTION = "First $2+2=\\boxed{4}$ is not it. The sum is $\\boxed{\\frac{10}{2}}$."
MATH = {"use": "math"}
BROKEN = {"answer": "\\frac{1}{"}
SHAPES: dict[str, Shape] = {
    "gsm8k": Shape(
        {"question": "What is 2+3?", "answer": "2 and 3 are <<2+3=5>>5.\n#### 5"},
        {"prompt": "question", "reference_after": "####"},
        MATH, "[user:What is 2+3?][bot:", "\\boxed{5}", "\\boxed{6}", {"answer": "#### \\frac{1}{"},
    ),
    "math": Shape(
        {"problem": "What is 2+3?", "level": "Level 1", "type": "Algebra", "solution": SOLUTION},
        {"prompt": "problem", "reference": "solution", "reference_boxed": True},
        MATH, "[user:What is 2+3?][bot:", "\\boxed{5}", "\\boxed{4}", {"solution": "It is $\\boxed{\\frac{1}}$."},
    ),
    "numina_math": Shape(
        {"source": "olympiads", "problem": "What is 2+3?", "solution": SOLUTION, "messages": ASKED},
        {"prompt": "problem", "reference": "solution", "reference_boxed": True, "template": "{source}: {prompt}"},
        MATH, "[user:olympiads: What is 2+3?][bot:", "\\boxed{5}", "\\boxed{4}",
        {"solution": "It is $\\boxed{\\frac{1}}$."},
    ),
    "open_r1": Shape(
        {"problem": "What is 2+3?", "solution": SOLUTION, "answer": "5", "messages": ASKED},
        {"prompt": "problem", "reference": "answer", "system": "Think."},
        MATH, "[system:Think.][user:What is 2+3?][bot:", "\\boxed{5}", "\\boxed{4}", BROKEN,
    ),
    "verl": Shape(
        {
            "data_source": "openai/gsm8k", "prompt": ASKED, "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": "5"}, "extra_info": {"question": "2+3", "index": 0},
        },
        {"reference": "reward_model.ground_truth", "template": "{extra_info.question} = {prompt}"},
        MATH, "[user:2+3 = What is 2+3?][bot:", "\\boxed{5}", "\\boxed{4}",
        {"reward_model": {"style": "rule", "ground_truth": "\\frac{1}{"}},
    ),
    "verl_without_chat": Shape(
        {"prompt": ASKED, "reward_model": {"ground_truth": "5"}, "extra_info": {"question": "What is 2+3?"}},
        {"prompt": "extra_info.question", "reference": "reward_model.ground_truth"},
        MATH, "[user:What is 2+3?][bot:", "\\boxed{5}", "\\boxed{4}",
        {"reward_model": {"ground_truth": "\\frac{1}{"}},
    ),
    "trl": Shape(
        {"prompt": ASKED, "answer": "$5$"},
        {}, MATH, "[user:What is 2+3?][bot:", "\\boxed{5}", "\\boxed{4}", BROKEN,
    ),
    "content_parts": Shape(
        {"prompt": [{"role": "user", "content": [{"type": "text", "text": "What "}, {"type": "text", "text": "is?"}]}],
         "answer": "5"},
        {}, MATH, "[user:What is?][bot:", "\\boxed{5}", "\\boxed{4}", BROKEN,
    ),
    "openrlhf": Shape(
        {"input": "What is 2+3?", "label": "5"},
        {"prompt": "input", "reference": "label"}, MATH, "[user:What is 2+3?][bot:", "\\boxed{5}", "\\boxed{4}",
        {"label": "\\frac{1}{"},
    ),
    "openrlhf_messages": Shape(
        {"context_messages": ASKED, "datasource": "math", "label": "5"},
        {"prompt": "context_messages", "reference": "label"},
        MATH, "[user:What is 2+3?][bot:", "\\boxed{5}", "\\boxed{4}", {"label": "\\frac{1}{"},
    ),
    "prime_rl": Shape(
        {"prompt": ASKED, "task": "math", "info": '{"ground_truth": "5", "turns": [1]}'},
        {"reference": "info.ground_truth"}, MATH, "[user:What is 2+3?][bot:", "\\boxed{5}", "\\boxed{4}",
        {"info": '{"ground_truth": "\\\\frac{1}{"}'},
    ),
    "synthetic_1": Shape(
        {"task_type": "verifiable_math", "prompt": "What is 2+3?", "verification_info": '{"ground_truth": "5"}'},
        {"reference": "verification_info.ground_truth"}, MATH,
        "[user:What is 2+3?][bot:", "\\boxed{5}", "\\boxed{4}",
        {"verification_info": '{"ground_truth": "\\\\frac{1}{"}'},
    ),
    "verifiable_math_problems": Shape(  # the tasks of SYNTHETIC-1: Python's notation instead of JSON
        {"source": "numina_cn_k12", "prompt": "What is 2+3?", "verification_info": "{'ground_truth': '5', 'x': None}"},
        {"reference": "verification_info.ground_truth"}, MATH,
        "[user:What is 2+3?][bot:", "\\boxed{5}", "\\boxed{4}", {"verification_info": "{'ground_truth': '\\frac{1}{'}"},
    ),
    "olympiadbench": Shape(
        {"question": "Roots?", "final_answer": ["$2$", "$-3$"], "is_multiple_answer": True},
        {"prompt": "question", "reference": "final_answer", "reference_join": ", "},
        MATH, "[user:Roots?][bot:", "\\boxed{-3, 2}", "\\boxed{2}", {"final_answer": ["$\\frac{1}{$"]},
    ),
    "accepted_answers": Shape(
        {"question": "Capital?", "answer": ["Paris", "Paris, France"]},
        {"prompt": "question"}, {"use": "exact"}, "[user:Capital?][bot:", "\\boxed{paris, france}", "\\boxed{Lyon}",
        {"answer": [""]},
    ),
    "accepted_numbers": Shape(
        {"question": "What is 2+3?", "answer": ["5", "5.0 cm"]},
        {"prompt": "question"}, {"use": "math", "options": {"any_of": True}},
        "[user:What is 2+3?][bot:", "\\boxed{10/2}", "\\boxed{5, 6}", {"answer": ["\\frac{1}{"]},
    ),
    "mmlu": Shape(
        {"question": "Which?", "subject": "x", "choices": ["one", "two", "three", "four"], "answer": 2},
        {"prompt": "question", "template": "{prompt}\n{choices}", "choices": {"column": "choices"}},
        {"use": "choice"}, "[user:Which?\nA) one\nB) two\nC) three\nD) four][bot:", "\\boxed{C}", "\\boxed{A}",
        {"answer": "E"},
    ),
    "mmlu_pro": Shape(
        {"question": "Which?", "options": ["one", "two", "three"], "answer": "B", "answer_index": 1},
        {"prompt": "question", "template": "{prompt}\n{choices}", "choices": {"column": "options"}},
        {"use": "choice"}, "[user:Which?\nA) one\nB) two\nC) three][bot:", "\\boxed{B}", "\\boxed{A}", {"answer": "E"},
    ),
    "arc": Shape(
        {"question": "Which?", "choices": {"text": ["one", "two"], "label": ["A", "B"]}, "answerKey": "B"},
        {"prompt": "question", "reference": "answerKey", "template": "{prompt}\n{choices}",
         "choices": {"column": "choices"}},
        {"use": "choice"}, "[user:Which?\nA) one\nB) two][bot:", "\\boxed{B}", "\\boxed{A}", {"answerKey": "E"},
    ),
    "hellaswag": Shape(
        {"ctx": "He", "endings": ["runs", "flies"], "label": "1"},
        {"prompt": "ctx", "reference": "label", "template": "{prompt} ...\n{choices}",
         "choices": {"column": "endings"}},
        {"use": "choice"}, "[user:He ...\nA) runs\nB) flies][bot:", "\\boxed{B}", "\\boxed{A}", {"label": "E"},
    ),
    "alpaca": Shape(
        {"instruction": "Add.", "input": "2 and 3", "output": "5"},
        {"prompt": "instruction", "reference": "output", "template": "{prompt}\n{input}\nWrite \\boxed{output}."},
        MATH, "[user:Add.\n2 and 3\nWrite \\boxed{output}.][bot:", "\\boxed{5}", "\\boxed{4}", {"output": "\\frac{1}{"},
    ),
}  # fmt: skip

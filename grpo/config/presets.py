"""The presets of the section `algorithm`: the settings of each published method."""

from __future__ import annotations

from typing import Any, Literal

Preset = Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo", "reinforce++", "gmpo", "sapo", "maxrl"]

# The settings of each preset; other settings keep their defaults. If a paper gives no value, the comment says so.
PRESETS: dict[str, dict[str, Any]] = {
    # arXiv:2402.03300, section 4.2: mean over each completion first, k3 in the loss at 0.04; the clip is PPO's 0.2.
    "grpo": {
        "advantage": "group_std",
        "ratio": "token",
        "clip_low": 0.2,
        "clip_high": 0.2,
        "aggregation": "sequence_mean",
        "kl": "k3",
        "kl_coefficient": 0.04,
    },
    # arXiv:2503.20783, section 3.2: no division by the deviation nor by the length, no KL.
    "dr_grpo": {
        "advantage": "group_mean",
        "ratio": "token",
        "clip_low": 0.2,
        "clip_high": 0.2,
        "aggregation": "constant",
        "kl": "none",
        "kl_coefficient": 0.0,
    },
    # arXiv:2503.14476, sections 3.1 to 3.4; it refills without end, here three times at most. The soft overlong
    # punishment of 3.4 is the verifier `length`.
    "dapo": {
        "advantage": "group_std",
        "ratio": "token",
        "clip_low": 0.2,
        "clip_high": 0.28,
        "aggregation": "token_mean",
        "kl": "none",
        "kl_coefficient": 0.0,
        "overlong_filter": True,
        "refill_rounds": 3,
    },
    # arXiv:2507.18071, equation 5 and section 5.1.
    "gspo": {
        "advantage": "group_std",
        "ratio": "sequence",
        "clip_low": 3e-4,
        "clip_high": 4e-4,
        "aggregation": "sequence_mean",
        "kl": "none",
        "kl_coefficient": 0.0,
    },
    # arXiv:2506.13585, equations 4 and 5: no lower edge. The paper gives no upper edge, so this is ScaleRL's
    # (arXiv:2510.13786): ratios up to 5.
    "cispo": {
        "advantage": "group_std",
        "ratio": "cispo",
        "clip_low": 1.0,
        "clip_high": 4.0,
        "aggregation": "token_mean",
        "kl": "none",
        "kl_coefficient": 0.0,
    },
    # arXiv:2402.14740: the whole completion is one action, so its tokens are summed, and its reward carries k1 at
    # 0.03. The paper has a single optimizer step per batch and no clip. The clip here acts only with several steps.
    "rloo": {
        "advantage": "leave_one_out",
        "ratio": "token",
        "clip_low": 0.2,
        "clip_high": 0.2,
        "aggregation": "constant",
        "length_divisor": 1,
        "kl": "k1",
        "kl_coefficient": 0.03,
        "kl_place": "reward",
    },
    # arXiv:2501.03262: k1 in the reward, normalised over the whole batch; the coefficient is ours.
    "reinforce++": {
        "advantage": "reinforce++",
        "ratio": "token",
        "clip_low": 0.2,
        "clip_high": 0.2,
        "aggregation": "token_mean",
        "kl": "k1",
        "kl_coefficient": 0.001,
        "kl_place": "reward",
    },
    # arXiv:2507.20673: edges of exp(-0.4) and exp(0.4).
    "gmpo": {
        "advantage": "group_std",
        "ratio": "geometric",
        "clip_low": 0.3297,
        "clip_high": 0.4918,
        "aggregation": "sequence_mean",
        "kl": "none",
        "kl_coefficient": 0.0,
    },
    # arXiv:2511.20347, temperatures 1.0 and 1.05.
    "sapo": {
        "advantage": "group_std",
        "ratio": "soft",
        "soft_temperature_positive": 1.0,
        "soft_temperature_negative": 1.05,
        "aggregation": "sequence_mean",
        "kl": "none",
        "kl_coefficient": 0.0,
    },
    # arXiv:2602.02710, algorithm 1: the advantage is divided by the group's mean reward. The rest as in the authors'
    # code (tajwarfahim/maxrl): token mean, no KL, both edges 0.2.
    "maxrl": {
        "advantage": "maxrl",
        "ratio": "token",
        "clip_low": 0.2,
        "clip_high": 0.2,
        "aggregation": "token_mean",
        "kl": "none",
        "kl_coefficient": 0.0,
    },
}

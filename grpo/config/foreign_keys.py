"""Keys of other trainers, each with the key here that does the same.

Messages about unknown keys and values, and the page docs/migrating.md, come from this table (`grpo.config.migrating`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

VERL, TRL, OPENRLHF, PRIME = "verl", "TRL", "OpenRLHF", "prime-rl"
_TRANSLATED = re.compile(r"([\w.+-]+) is `([^`]+)`")


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """A key of another trainer.

    Attributes:
        trainer: name of the trainer.
        name: key in that trainer; dotted if it stands in sections.
        ours: key here that does the same; empty if there is none.
        note: difference between the two, or what to do instead; empty if the value can be copied. A translation of
            a value has the form "theirs is `ours`".
    """

    trainer: str
    name: str
    ours: str
    note: str = ""

    @property
    def values(self) -> dict[str, str]:
        """The values of the other trainer that the note translates, each with the value here."""
        return dict(_TRANSLATED.findall(self.note))


def _of(trainer: str, *rows: str) -> list[ForeignKey]:
    """Read rows of the form `their key -> our key; note`."""
    keys = []
    for row in rows:
        name, rest = row.split(" -> ", 1)
        ours, _, note = rest.partition("; ")
        keys.append(ForeignKey(trainer, name, "" if ours == "none" else ours, note))
    return keys


_REWARD = "a reward function is a verifier: `use: my_file.py:function`"
_TOP_P = (
    "training samples from the whole distribution, because the learner computes with its probabilities (`grpo eval` "
    "has this key)"
)
_REFERENCE = "a reference policy is loaded only if `algorithm.kl` needs it"
_TOKENS = "microbatches are limited by tokens, not by sequences"

FOREIGN_KEYS: tuple[ForeignKey, ...] = (
    *_of(
        VERL,
        "actor_rollout_ref.model.path -> policy.path",
        "actor_rollout_ref.model.lora_rank -> learner.lora.rank",
        "actor_rollout_ref.model.lora_alpha -> learner.lora.alpha",
        "actor_rollout_ref.model.target_modules -> learner.lora.targets; write `all-linear` or a list",
        "actor_rollout_ref.model.enable_gradient_checkpointing -> learner.gradient_checkpointing",
        "actor_rollout_ref.model.use_remove_padding -> none; sequences are always packed without padding",
        "actor_rollout_ref.actor.optim.lr -> learner.learning_rate",
        "actor_rollout_ref.actor.optim.lr_warmup_steps -> learner.warmup_steps; x algorithm.minibatches",
        "actor_rollout_ref.actor.optim.lr_warmup_steps_ratio -> learner.warmup_steps; "
        "steps = ratio x train.steps x algorithm.minibatches",
        "actor_rollout_ref.actor.optim.weight_decay -> learner.weight_decay",
        "actor_rollout_ref.actor.ppo_mini_batch_size -> algorithm.minibatches; "
        "minibatches = train_batch_size / ppo_mini_batch_size",
        f"actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu -> learner.microbatch_tokens; {_TOKENS}",
        "actor_rollout_ref.actor.ppo_max_token_len_per_gpu -> learner.microbatch_tokens",
        "actor_rollout_ref.actor.use_dynamic_bsz -> none; microbatches are always filled by tokens "
        "(learner.microbatch_tokens)",
        "actor_rollout_ref.actor.ppo_epochs -> none; every completion is trained on once in a step",
        "actor_rollout_ref.actor.grad_clip -> learner.gradient_clip",
        "actor_rollout_ref.actor.clip_ratio -> algorithm.clip_low; also set algorithm.clip_high",
        "actor_rollout_ref.actor.clip_ratio_low -> algorithm.clip_low",
        "actor_rollout_ref.actor.clip_ratio_high -> algorithm.clip_high",
        "actor_rollout_ref.actor.clip_ratio_c -> algorithm.dual_clip",
        "actor_rollout_ref.actor.loss_agg_mode -> algorithm.aggregation; token-mean is `token_mean`, "
        "seq-mean-token-mean is `sequence_mean`, seq-mean-token-sum-norm is `constant`",
        "actor_rollout_ref.actor.use_kl_loss -> algorithm.kl; `none` switches it off",
        "actor_rollout_ref.actor.kl_loss_coef -> algorithm.kl_coefficient",
        "actor_rollout_ref.actor.kl_loss_type -> algorithm.kl; low_var_kl is `k3`, kl is `k1`, mse is `k2`",
        "actor_rollout_ref.actor.entropy_coeff -> algorithm.entropy_coefficient",
        "actor_rollout_ref.actor.ulysses_sequence_parallel_size -> learner.sequence_parallel",
        "actor_rollout_ref.actor.fsdp_config.param_offload -> learner.offload; `parameters`, with learner.zero_stage=3",
        "actor_rollout_ref.actor.fsdp_config.optimizer_offload -> learner.offload; `optimizer`",
        "actor_rollout_ref.rollout.n -> rollout.group_size",
        "actor_rollout_ref.rollout.temperature -> rollout.temperature",
        f"actor_rollout_ref.rollout.top_p -> none; {_TOP_P}",
        f"actor_rollout_ref.rollout.top_k -> none; {_TOP_P}",
        "actor_rollout_ref.rollout.gpu_memory_utilization -> generator.gpu_memory_share",
        "actor_rollout_ref.rollout.tensor_model_parallel_size -> generator.tensor_parallel_size",
        "actor_rollout_ref.rollout.max_num_seqs -> generator.max_sequences",
        "actor_rollout_ref.rollout.enforce_eager -> generator.compile; the opposite value",
        "actor_rollout_ref.rollout.name -> none; the engine is always vLLM",
        f"actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu -> learner.microbatch_tokens; {_TOKENS}",
        "data.train_files -> data.path",
        "data.val_files -> evaluation.data.path",
        "data.train_batch_size -> rollout.prompts_per_step",
        "data.max_prompt_length -> rollout.max_prompt_tokens",
        "data.max_response_length -> rollout.max_completion_tokens",
        "data.prompt_key -> data.prompt",
        "data.filter_overlong_prompts -> none; longer prompts are always dropped, and counted",
        "algorithm.adv_estimator -> algorithm.advantage; grpo is `group_std`, rloo is `leave_one_out`, "
        "reinforce_plus_plus is `reinforce++`, reinforce_plus_plus_baseline is `reinforce++_baseline`; gae needs a "
        "value model, which does not exist here; or choose a whole method with algorithm.preset",
        "algorithm.norm_adv_by_std_in_grpo -> algorithm.advantage; true is `group_std`, false is `group_mean`",
        "algorithm.use_kl_in_reward -> algorithm.kl_place; `reward`",
        "algorithm.kl_ctrl.kl_coef -> algorithm.kl_coefficient",
        "algorithm.kl_ctrl.type -> none; the coefficient is fixed",
        "algorithm.kl_penalty -> algorithm.kl; low_var_kl is `k3`, kl is `k1`, mse is `k2`",
        "algorithm.filter_groups.enable -> algorithm.refill_rounds; the number of rounds, 0 switches it off",
        f"reward.custom_reward_function.path -> verifiers[].use; {_REWARD}",
        f"custom_reward_function.path -> verifiers[].use; {_REWARD}",
        "trainer.total_training_steps -> train.steps",
        "trainer.total_epochs -> train.steps; steps = epochs x rows / rollout.prompts_per_step",
        "trainer.save_freq -> train.checkpoint_every",
        "trainer.test_freq -> evaluation.every",
        "trainer.max_actor_ckpt_to_keep -> train.keep_checkpoints",
        "trainer.n_gpus_per_node -> launch.gpus_per_node; on one machine, learner.ranks and generator.replicas",
        "trainer.nnodes -> launch.nodes",
        "trainer.logger -> report.trackers",
        "trainer.project_name -> report.project",
        "trainer.experiment_name -> run.folder; the folder's name is the name of the run",
        "trainer.val_before_train -> none; there is always an evaluation before the first step",
        "trainer.default_local_dir -> run.folder",
        "trainer.resume_mode -> run.resume",
        "critic -> none; GRPO has no value model",
    ),
    *_of(
        TRL,
        "model_name_or_path -> policy.path",
        "dataset_name -> data.hub",
        "dataset_config -> data.subset",
        "output_dir -> run.folder",
        "num_generations -> rollout.group_size",
        "max_prompt_length -> rollout.max_prompt_tokens",
        "max_completion_length -> rollout.max_completion_tokens",
        "per_device_train_batch_size -> rollout.prompts_per_step; "
        "prompts = batch size x devices x steps_per_generation / num_generations (steps_per_generation is by default "
        "gradient_accumulation_steps)",
        "generation_batch_size -> rollout.prompts_per_step; prompts = generation_batch_size / num_generations",
        f"gradient_accumulation_steps -> learner.microbatch_tokens; {_TOKENS}",
        "steps_per_generation -> algorithm.minibatches; "
        "minibatches = steps_per_generation / gradient_accumulation_steps",
        "num_iterations -> none; every completion is trained on once in a step",
        "beta -> algorithm.kl_coefficient; also set algorithm.kl=k3. In DPOConfig the key here is dpo.beta",
        "epsilon -> algorithm.clip_low",
        "epsilon_high -> algorithm.clip_high",
        "delta -> algorithm.dual_clip",
        "loss_type -> algorithm.aggregation; dapo is `token_mean`, grpo is `sequence_mean`, dr_grpo is `constant`; or "
        "choose algorithm.preset",
        "scale_rewards -> algorithm.advantage; group is `group_std`, none is `group_mean`, batch is `batch_std`",
        "importance_sampling_level -> algorithm.ratio; `token` or `sequence`",
        "mask_truncated_completions -> algorithm.overlong_filter",
        "sync_ref_model -> algorithm.reference_refresh; number of steps",
        "ref_model_sync_steps -> algorithm.reference_refresh",
        "reward_weights -> verifiers[].weight; one for each verifier",
        f"reward_funcs -> verifiers[].use; {_REWARD}",
        "vllm_gpu_memory_utilization -> generator.gpu_memory_share",
        "vllm_tensor_parallel_size -> generator.tensor_parallel_size",
        "vllm_mode -> cluster.share_gpus; colocate is true, server is false",
        "vllm_importance_sampling_correction -> algorithm.importance_weight; `token`, with "
        "algorithm.proximal=recomputed",
        "vllm_importance_sampling_cap -> algorithm.importance_cap",
        "vllm_enable_sleep_mode -> cluster.sleep",
        "use_vllm -> none; the engine is always vLLM",
        f"top_p -> none; {_TOP_P}",
        f"top_k -> none; {_TOP_P}",
        f"min_p -> none; {_TOP_P}",
        "label_smoothing -> dpo.label_smoothing",
        "max_length -> dpo.max_tokens; longer rows are dropped, not cut",
        "precompute_ref_log_probs -> none; the starting policy always scores the answers before the first step",
        "rpo_alpha -> dpo.sft_weight; the mean per answer, not over all tokens of the batch",
        "learning_rate -> learner.learning_rate",
        "lr_scheduler_type -> learner.schedule; `constant`, `cosine` or `linear`",
        "warmup_steps -> learner.warmup_steps",
        "warmup_ratio -> learner.warmup_steps; steps = ratio x train.steps",
        "weight_decay -> learner.weight_decay",
        "max_grad_norm -> learner.gradient_clip",
        "max_steps -> train.steps",
        "num_train_epochs -> train.steps; steps = epochs x rows / rollout.prompts_per_step",
        "save_steps -> train.checkpoint_every",
        "save_total_limit -> train.keep_checkpoints",
        "eval_steps -> evaluation.every",
        "report_to -> report.trackers",
        "logging_steps -> none; every step is recorded",
        "bf16 -> policy.dtype; `bfloat16`",
        "resume_from_checkpoint -> run.resume; `auto`",
        "adam_beta1 -> learner.betas; the first of its two numbers",
        "adam_beta2 -> learner.betas; the second of its two numbers",
        "use_peft -> learner.lora; true is a section, for example `{rank: 16}`; false is null",
        "lora_r -> learner.lora.rank",
        "lora_alpha -> learner.lora.alpha",
        "lora_dropout -> learner.lora.dropout",
        "lora_target_modules -> learner.lora.targets",
    ),
    *_of(
        OPENRLHF,
        "pretrain -> policy.path",
        "prompt_data -> data.path; or data.hub",
        "prompt_data_probs -> data.sources[].ratio; one for each source",
        "input_key -> data.prompt",
        "label_key -> data.reference",
        "chosen_key -> data.chosen",
        "rejected_key -> data.rejected",
        "ipo -> dpo.loss; true is `ipo`, false is `sigmoid`",
        "nll_loss_coef -> dpo.sft_weight",
        "apply_chat_template -> data.chat_template; `auto`",
        "input_template -> data.template; `{}` becomes `{prompt}`",
        "save_path -> run.folder",
        "ckpt_path -> run.folder",
        "load_checkpoint -> run.resume; `auto`",
        "rollout_batch_size -> rollout.prompts_per_step",
        "n_samples_per_prompt -> rollout.group_size",
        "train_batch_size -> algorithm.minibatches; "
        "minibatches = rollout_batch_size x n_samples_per_prompt / train_batch_size",
        f"micro_train_batch_size -> learner.microbatch_tokens; {_TOKENS}",
        "micro_rollout_batch_size -> generator.max_sequences; it bounds the completions that are sampled at a time",
        "train_max_tokens_per_gpu -> learner.microbatch_tokens",
        "prompt_max_len -> rollout.max_prompt_tokens",
        "generate_max_len -> rollout.max_completion_tokens",
        "actor_learning_rate -> learner.learning_rate",
        "lr_warmup_ratio -> learner.warmup_steps; steps = ratio x train.steps",
        "lr_scheduler -> learner.schedule; `constant`, `cosine` or `linear`",
        "adam_betas -> learner.betas",
        "l2 -> learner.weight_decay",
        "max_norm -> learner.gradient_clip",
        "init_kl_coef -> algorithm.kl_coefficient; also set algorithm.kl",
        "kl_estimator -> algorithm.kl",
        "entropy_loss_coef -> algorithm.entropy_coefficient",
        "max_epochs -> none; every completion is trained on once in a step",
        "use_kl_loss -> algorithm.kl_place; true is `loss`, false is `reward`",
        "eps_clip -> algorithm.clip_low; also set algorithm.clip_high",
        "eps_clip_low_high -> algorithm.clip_low; the second number is algorithm.clip_high",
        "advantage_estimator -> algorithm.advantage; group_norm is `group_std`, dr_grpo is `group_mean`, rloo is "
        "`leave_one_out`, reinforce is `reinforce++`, reinforce_baseline is `reinforce++_baseline`; gae needs a value "
        "model, which does not exist here; or choose a whole method with algorithm.preset",
        "dynamic_filtering -> algorithm.refill_rounds; the number of rounds, 0 switches it off",
        "enable_vllm_is_correction -> algorithm.importance_weight; `token`, with algorithm.proximal=recomputed",
        f"remote_rm_url -> verifiers[].use; {_REWARD}",
        "vllm_num_engines -> generator.replicas",
        "actor_num_gpus_per_node -> learner.ranks; ranks = actor_num_gpus_per_node x actor_num_nodes",
        "actor_num_nodes -> learner.ranks; ranks = actor_num_gpus_per_node x actor_num_nodes",
        "colocate_all_models -> cluster.share_gpus",
        "vllm_enable_sleep -> cluster.sleep",
        "deepspeed_enable_sleep -> cluster.sleep",
        "enforce_eager -> generator.compile; the opposite value",
        "adam_offload -> learner.offload; `optimizer`",
        "ring_attn_size -> learner.sequence_parallel",
        "packing_samples -> none; sequences are always packed without padding",
        "async_train -> rollout.max_policy_lag; 1 or more",
        "num_episodes -> train.steps; steps = episodes x rows / rollout.prompts_per_step",
        "max_ckpt_num -> train.keep_checkpoints",
        "use_wandb -> report.trackers; `[wandb]`",
        f"ref_num_gpus_per_node -> none; {_REFERENCE}",
    ),
    *_of(
        PRIME,
        "model.name -> policy.path",
        "max_steps -> train.steps",
        "seq_len -> rollout.max_completion_tokens; seq_len counts prompt and completion together",
        "ckpt.interval -> train.checkpoint_every",
        "wandb.project -> report.project",
        "deployment.num_train_gpus -> learner.ranks",
        "deployment.num_infer_gpus -> generator.replicas",
        "orchestrator.batch_size -> rollout.prompts_per_step; prompts = batch_size / group_size",
        "orchestrator.group_size -> rollout.group_size",
        "orchestrator.rollouts_per_example -> rollout.group_size",
        "orchestrator.sampling.temperature -> rollout.temperature",
        "orchestrator.sampling.max_tokens -> rollout.max_completion_tokens",
        "orchestrator.max_off_policy_steps -> rollout.max_policy_lag",
        "max_async_level -> rollout.max_policy_lag",
        "orchestrator.eval.interval -> evaluation.every",
        "trainer.optim.lr -> learner.learning_rate",
        "trainer.optim.max_norm -> learner.gradient_clip",
        "trainer.optim.weight_decay -> learner.weight_decay",
        "trainer.model.ac -> learner.gradient_checkpointing",
        "trainer.model.seq_len -> learner.microbatch_tokens",
        "inference.parallel.tp -> generator.tensor_parallel_size",
        "inference.parallel.dp -> generator.replicas",
        "inference.gpu_memory_utilization -> generator.gpu_memory_share",
    ),
)

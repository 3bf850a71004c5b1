"""The configuration of `grpo eval`: a task, in the form of its file, and an evaluation of one model."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, model_validator

from grpo.addresses import without_secrets
from grpo.config import ClusterConfig, DatasetConfig, GeneratorConfig, VerifierConfig
from grpo.config.conditions import published
from grpo.config.conversation import ConversationConfig, Environments, conversation_problems, rewarded_by_environment
from grpo.config.inputs import row_problems
from grpo.config.learner import Dtype
from grpo.config.section import LogLevel, Positive, Seconds, Section, WorkerMemory
from grpo.config.verifiers import Cell
from rewards.deadlines import deadline_problems

Temperature = Annotated[float, Field(ge=0)]
TopP = Annotated[float, Field(gt=0, le=1)]
TopK = Annotated[int, Field(ge=0)]
MinP = Annotated[float, Field(ge=0, lt=1)]


class TaskVerifierConfig(Section):
    """The verifier that decides whether a completion is right."""

    use: str
    """Built-in name, `package.module:function`, `file.py:function`, or a `grpo.verifiers` entry point."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the verifier."""
    deadline_s: Seconds = 10.0
    """Longest time for one verdict, in seconds. A slower verdict is a `timeout`, and its worker is killed. If it is not
    set and a `code` verifier's program may take longer, it is longer."""
    memory_mib: WorkerMemory | None = 2048
    """MiB of address space of one worker. A verdict that needs more is an `error`. None sets no limit."""


class TaskSamplingConfig(Section):
    """How completions are sampled unless the command line says otherwise."""

    k: Positive = 1
    """Completions for each problem and seed."""
    temperature: Temperature = 0.0
    """0 is greedy."""
    top_p: TopP = 1.0
    """Only the likeliest tokens whose probabilities sum to this share are sampled."""
    top_k: TopK = 0
    """Number of likeliest tokens that are sampled; 0 is all."""
    min_p: MinP = 0.0
    """Only tokens with at least this share of the likeliest token's probability are sampled; 0 is all."""
    max_tokens: Positive = 2048
    """Longest completion, in tokens."""
    stop: tuple[str, ...] = ()
    """Strings that end a completion."""


Day = Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")]


class WindowConfig(Section):
    """The rows whose date lies in a window are the problems, for example of a version of LiveCodeBench."""

    column: str
    """Column with the date."""
    first: Day
    """First day, as 2025-01-31."""
    last: Day
    """Last day, included."""


class ShotsConfig(Section):
    """Solved examples before the question, for base models. They are the first rows of another split."""

    split: str = "train"
    """Split of the examples; it must not be the split of the problems."""
    path: str | None = None
    """Local copy of that split; by default the split on the hub."""
    count: Positive = 5
    """Number of examples."""
    template: str
    """One example; it may name any column. A blank line follows it."""


class TaskConfig(Section):
    """One benchmark."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    """Name of the task's folder, and of its row in the results."""
    source: str
    """Origin of the problems, and the part of them that the task uses."""
    size: Positive | None = None
    """Number of problems in the published data, for the list of tasks. None is unknown."""
    comparable: str = ""
    """Published numbers that this task's numbers can be compared with, and under which conditions."""
    data: DatasetConfig
    """Rows, with the same meaning as in training."""
    when: dict[str, Cell | tuple[Cell | None, ...] | None] = Field(default_factory=dict)
    """Only the rows with this value, or with one of these values, in each of these columns are problems; by default all
    rows. `task.when.discipline=Law` takes a part of a data set."""
    window: WindowConfig | None = None
    """Dates of the problems; by default all."""
    shots: ShotsConfig | None = None
    """Solved examples before the question; by default none."""
    tools: tuple[str, ...] = ()
    """Tools that the policy may call, as in training (docs/conversations.md). With tools or an environment, each
    completion is a conversation."""
    environment: Environments = ()
    conversation: ConversationConfig = ConversationConfig()
    max_prompt_tokens: Positive = 1024
    """Longest first prompt of a conversation, with its tools and what `reset` says, in tokens."""
    verifier: TaskVerifierConfig
    measures: dict[str, str | tuple[str, str]] = Field(default_factory=dict)
    """More shares in the results, from parts of the verdicts: name -> part, or [part, whole] for the sum of a part
    divided by the sum of another part."""
    sampling: TaskSamplingConfig = TaskSamplingConfig()

    @model_validator(mode="before")
    @classmethod
    def _reward_of_the_environment(cls, values: Any) -> Any:
        """Without a `verifier`, an environment rewards its conversations itself."""
        return rewarded_by_environment(values, "verifier", {"use": "environment"})

    @property
    def named_verifier(self) -> VerifierConfig:
        """The verifier, in the form of a run's verifier. Its name is that of the task."""
        return VerifierConfig(name=self.name, use=self.verifier.use, options=self.verifier.options)

    @property
    def talks(self) -> bool:
        """Whether each completion is a conversation."""
        return bool(self.tools or self.environment)

    def problems(self) -> list[str]:
        """Find problems between several fields, each with its remedy."""
        data, problems = self.data, []
        if bool(data.generator) == bool(data.hub or data.path):
            problems.append("data needs a hub name, a path, or a generator: one of them, or a hub name and a path")
        problems += row_problems("data", data)
        if self.shots and not self.shots.path and self.shots.split == data.split:
            problems.append(f"shots.split={self.shots.split} is also the split of the problems; name another split")
        problems += conversation_problems(self.tools, self.environment, self.conversation, [self.named_verifier])
        return problems + deadline_problems([self.named_verifier], self.verifier.deadline_s)


class EndpointConfig(Section):
    """An OpenAI-compatible server."""

    model: str | None = None
    """The model's name on the server; by default the only model that it serves."""
    identity: str | None = None
    """Name that stands for the model's files in place of what the server says about itself, for files whose path
    changes with each server. Give it from the first start on."""
    key_variable: str | None = "OPENAI_API_KEY"
    """Environment variable with the key; the key is written nowhere. None sends no key. Many local servers need no
    key."""
    plain_key: bool = False
    """Allow the key, and logins and queries in the URL, to travel over http:// to another machine."""
    concurrency: Positive = 16
    """Number of requests at the same time."""
    timeout_s: Seconds = 600.0
    """Longest wait for one answer, in seconds."""
    retries: Annotated[int, Field(ge=0)] = 5
    """Repeats of a request that failed for a passing reason (429, 5xx, a lost connection), after growing pauses."""
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """More fields of each request, as the server knows them: `{top_k: 20, chat_template_kwargs: {enable_thinking:
    false}}` for vLLM. A field replaces ours of the same name."""
    chat: bool | None = None
    """true: `/chat/completions`, where the server applies its chat template. false: `/completions`, which gets the
    question as plain text. null: as the task says; a task with `data.chat_template: never` needs `/completions`."""


class EvalConfig(Section):
    """`grpo eval`: one model on some tasks. It leaves out logins and queries of a URL: see `url`."""

    model: str
    """Folder in Hugging Face format, hub name (with a revision: `name@commit`), run or checkpoint, or the URL of an
    endpoint (`http://.../v1`)."""
    _url: str = PrivateAttr()
    folder: str
    """Folder for completions, metrics and cards. With the same folder, an evaluation continues where it stopped."""
    like: str | None = None
    """Published conditions of sampling, such as `deepseek-r1`, in place of the task's values; `grpo eval tasks` lists
    them. The next six keys replace single values."""
    k: Positive | None = None
    """Completions for each problem and seed; by default the task's value, like the next five keys."""
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: MinP | None = None
    max_tokens: Positive | None = None
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0,)
    """Seeds; each seed makes `k` completions for every problem."""
    limit: Positive | None = None
    """Number of problems of each task, from the first on; by default all."""
    dtype: Dtype | None = None
    """Number format of weights and activations; by default float32 on a CPU and bfloat16 on a GPU."""
    workers: Positive = 2
    """Number of verifier processes."""
    max_failure_share: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Largest share of `timeout` and `error` among the verdicts. Above it there is no result."""
    check_golds: Literal["refuse", "warn", "off"] = "refuse"
    """Before the start, every problem's reference is checked and up to 256 gold answers of a task are judged. If no
    gold answer is `correct`, or too many references cannot be used: `refuse` does not start, `warn` prints a warning.
    `off` checks nothing."""
    max_unusable_share: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Largest share of problems whose reference cannot be used. Up to it, the numbers leave them out and count them."""
    deadline_s: Seconds = 1800.0
    """Seconds without a finished completion, after which the evaluation stops."""
    log_level: LogLevel = "info"
    """Lowest level of what driver and generators write into `logs/` of the folder."""
    generator: GeneratorConfig = GeneratorConfig()
    cluster: ClusterConfig = ClusterConfig()
    endpoint: EndpointConfig = EndpointConfig()

    def model_post_init(self, context: Any, /) -> None:
        """Remove secrets from `model`, which is printed and stored. Only `url` keeps them."""
        self._url = self.model
        self.__dict__["model"] = without_secrets(self.model)

    @property
    def url(self) -> str:
        """The model as the user gave it, for a connection to it."""
        return self._url

    @property
    def is_endpoint(self) -> bool:
        """Whether the model is a URL."""
        return self.model.lower().startswith(("http://", "https://"))

    def problems(self) -> list[str]:
        """Find problems between several fields, each with its remedy."""
        problems = self.generator.problems()
        if len(set(self.seeds)) < len(self.seeds):
            problems.append(f"seeds={list(self.seeds)} repeats a seed, which would count twice; name each seed once")
        return problems

    def chat_of(self, task: TaskConfig) -> bool:
        """Whether the server's chat template may surround the task's questions (`endpoint.chat`).

        Raises:
            ValueError: the task needs a chat template, or none, and `endpoint.chat` says the opposite.
        """
        plain = task.data.chat_template == "never"
        chat = not plain if self.endpoint.chat is None else self.endpoint.chat
        if chat and plain:
            raise ValueError(
                f"{task.name}: endpoint.chat=true lets the server apply its chat template, but the task has "
                "data.chat_template=never; leave endpoint.chat out, and /completions gets the plain text; or give "
                "task.data.chat_template=auto"
            )
        if not chat and task.data.system:
            raise ValueError(
                f"{task.name}: data.system needs a chat template, but /completions gets plain text; leave "
                "endpoint.chat out, or remove the system message with task.data.system=null"
            )
        return chat

    def sampling_of(self, task: TaskConfig) -> TaskSamplingConfig:
        """The task's sampling, with the values that this evaluation overrides.

        Raises:
            ValueError: `like` is not known, or several greedy completions of a problem would all be the same.
        """
        like = published(self.like).of_task(task.name) if self.like else {}
        overrides = {
            name: getattr(self, name) for name in ("k", "temperature", "top_p", "top_k", "min_p", "max_tokens")
        }
        given = {name: value for name, value in overrides.items() if value is not None}
        chosen = task.sampling.model_copy(update={**like, **given})
        if chosen.temperature == 0 and chosen.k * len(self.seeds) > 1:
            raise ValueError(
                f"{task.name}: k={chosen.k} completions with {len(self.seeds)} seed(s) at temperature 0 would all be "
                "the same; give --temperature above 0, or k=1 and a single seed"
            )
        return chosen

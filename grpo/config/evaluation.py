"""The configuration of `grpo eval`: a task, as its file declares it, and an evaluation of one model."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr

from grpo.config import ClusterConfig, DatasetConfig, GeneratorConfig, VerifierConfig
from grpo.config.addresses import without_secrets
from grpo.config.code import code_problems
from grpo.config.learner import Dtype
from grpo.config.section import LogLevel, Positive, Seconds, Section, WorkerMemory

Temperature = Annotated[float, Field(ge=0)]
TopP = Annotated[float, Field(gt=0, le=1)]


class ChoicesConfig(Section):
    """Columns of a multiple-choice row; the options are shuffled by a hash of the question, alike in every run."""

    right: str
    """Column with the right option."""
    wrong: Annotated[tuple[str, ...], Field(min_length=1)]
    """Columns with the other options."""


class TaskVerifierConfig(Section):
    """Who says whether a completion is right."""

    use: str
    """Built-in name, `package.module:function`, `file.py:function`, or a `grpo.verifiers` entry point."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the verifier."""
    deadline_s: Seconds = 10.0
    """A verdict that takes longer is a `timeout`, and its worker is killed."""
    memory_mib: WorkerMemory | None = 2048
    """MiB of address space of one worker; a verdict that needs more is an `error`. None: no limit."""


class TaskSamplingConfig(Section):
    """How completions are sampled where the command line does not say otherwise."""

    k: Positive = 1
    """Completions for each problem and seed."""
    temperature: Temperature = 0.0
    """0 is greedy."""
    top_p: TopP = 1.0
    max_tokens: Positive = 2048
    """The longest completion."""
    stop: tuple[str, ...] = ()
    """Strings that end a completion."""


class TaskConfig(Section):
    """One benchmark."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    """Name of its folder and of its row in the results."""
    source: str
    """Where the problems come from and what of them is asked."""
    data: DatasetConfig
    """`template` may name any column of a row besides `{prompt}`; a list is written one item per line."""
    files: tuple[str, ...] = ()
    """JSON-lines files of the hub repository, where it is no data set that `datasets` loads."""
    reference_after: str | None = None
    """The reference is what follows the last of these in its column (GSM8K: `####`)."""
    reference_join: str | None = None
    """A list of answers becomes one reference, joined by this."""
    choices: ChoicesConfig | None = None
    """For multiple choice: `{choices}` in the template stands for the lettered options, the reference is a letter."""
    verifier: TaskVerifierConfig
    sampling: TaskSamplingConfig = TaskSamplingConfig()

    def problems(self) -> list[str]:
        """What no single field can know, each with its remedy."""
        data, found = self.data, []
        if bool(data.generator) == bool(data.hub or data.path):
            found.append("data needs a hub name, a path, or a generator: one of them, or a hub name and a path")
        if "{prompt}" not in data.template:
            found.append("data.template must contain {prompt}, or the model never sees the question")
        if self.choices and "{choices}" not in data.template:
            found.append("data.template must contain {choices}, or the model never sees the options")
        if self.files and not data.hub:
            found.append("files are those of a hub repository; name it with data.hub")
        verifier = VerifierConfig(name=self.name, use=self.verifier.use, options=self.verifier.options)
        return found + code_problems([verifier], self.verifier.deadline_s)


class EndpointConfig(Section):
    """An OpenAI-compatible server."""

    model: str | None = None
    """The model's name there; by default the only one that it serves."""
    key_variable: str | None = "OPENAI_API_KEY"
    """Environment variable with the key; it is written nowhere. None: no key is sent. Many local servers need none."""
    plain_key: bool = False
    """Send the key, or what the URL holds of logins and queries, over http:// to another machine; otherwise refused."""
    concurrency: Positive = 16
    """Requests at the same time."""
    timeout_s: Seconds = 600.0
    """Longest wait for one answer."""
    retries: Annotated[int, Field(ge=0)] = 5
    """Of a request that failed for a passing reason (429, 5xx, a lost connection), after growing pauses."""
    chat: bool = True
    """Ask `/chat/completions`; otherwise `/completions` gets the question as plain text."""


class EvalConfig(Section):
    """`grpo eval`: one model on some tasks. What a URL holds of logins and queries is no part of it: see `url`."""

    model: str
    """Folder in Hugging Face format, hub name (with a revision: `name@commit`), run or checkpoint, or the URL of an
    endpoint (`http://.../v1`)."""
    _url: str = PrivateAttr()
    folder: str
    """Where completions, metrics and cards go; the same folder goes on where it was."""
    k: Positive | None = None
    """Completions for each problem and seed; by default the task's, like the next three."""
    temperature: Temperature | None = None
    top_p: TopP | None = None
    max_tokens: Positive | None = None
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0,)
    """Each makes `k` completions of its own for every problem."""
    limit: Positive | None = None
    """Only the first so many problems of each task."""
    dtype: Dtype | None = None
    """Of weights and activations; by default float32 on CPU and bfloat16 on GPU."""
    workers: Positive = 2
    """Verifier processes."""
    max_failure_share: Annotated[float, Field(ge=0, le=1)] = 0.05
    """No result where more than this share of the verdicts are `timeout` or `error`."""
    check_golds: Literal["refuse", "warn", "off"] = "refuse"
    """Before the start every problem's reference is looked at, and up to 256 gold answers of a task are judged. Where
    none of them is `correct`, or too many references cannot be used, nothing starts, or it is said. `off` looks at
    nothing."""
    max_unusable_share: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Share of problems whose reference cannot be used, up to which they are left out of the numbers and counted."""
    deadline_s: Seconds = 1800.0
    """The evaluation stops when no completion at all has finished for so long."""
    log_level: LogLevel = "info"
    """Lowest level of what driver and generators write into `logs/` of the folder."""
    generator: GeneratorConfig = GeneratorConfig()
    cluster: ClusterConfig = ClusterConfig()
    endpoint: EndpointConfig = EndpointConfig()

    def model_post_init(self, context: Any, /) -> None:
        """Keep secrets out of what is printed and stored: the only place that still has them is `url`."""
        self._url = self.model
        self.__dict__["model"] = without_secrets(self.model)

    @property
    def url(self) -> str:
        """The model as it was given, for who connects to it."""
        return self._url

    @property
    def is_endpoint(self) -> bool:
        """True where the model is a URL."""
        return self.model.lower().startswith(("http://", "https://"))

    def problems(self) -> list[str]:
        """What no single field can know, each with its remedy."""
        found = self.generator.problems()
        if len(set(self.seeds)) < len(self.seeds):
            found.append(f"seeds={list(self.seeds)} names one twice, which would count its completions twice")
        return found

    def sampling_of(self, task: TaskConfig) -> TaskSamplingConfig:
        """The task's sampling with what this evaluation says instead.

        Raises:
            ValueError: several greedy completions of one problem, which would all be the same.
        """
        said = {"k": self.k, "temperature": self.temperature, "top_p": self.top_p, "max_tokens": self.max_tokens}
        chosen = task.sampling.model_copy(update={name: value for name, value in said.items() if value is not None})
        if chosen.temperature == 0 and chosen.k * len(self.seeds) > 1:
            raise ValueError(
                f"{task.name}: k={chosen.k} completions with {len(self.seeds)} seed(s) at temperature 0 would all be "
                "the same one; give --temperature above 0, or k=1 and one seed"
            )
        return chosen

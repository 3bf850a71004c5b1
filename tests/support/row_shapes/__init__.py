"""Small rows in the shapes of published data sets, and the config that describes them."""

from __future__ import annotations

from row_shapes.answers import SHAPES, Shape
from row_shapes.programs import CODE_SHAPES

ALL_SHAPES: dict[str, Shape] = SHAPES | CODE_SHAPES
# A chat template that shows where each message begins and ends.
CHAT = (
    "{% for one in messages %}[{{ one['role'] }}:{{ one['content'] }}]{% endfor %}"
    "{% if add_generation_prompt %}[bot:{% endif %}"
)

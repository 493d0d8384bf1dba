"""Prompts out of rows: what the columns of a JSONL, CSV or text file mean.

    prompt | messages        what is asked; or any columns at all, with a template such as "Translate: {{text}}"
    system                   the system prompt
    max_tokens | output_tokens   the limit of the reply
    weight                   how often, relative to the others (files up to SMALL_BYTES)
    image                    URL, data: URL or file beside the prompts, or a list of them

A bad row is a PlanError that names file, line and fault. Small files are checked completely at the start, of larger ones
the first CHECKED rows; a bad row further on raises when a worker comes to it: nothing is skipped or made up.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable, Iterator
from math import isfinite
from pathlib import Path
from typing import Any, Final

import msgspec

from ..dialects import Prompt
from ..errors import PlanError
from ..plan.plan import Workload
from .ask import Ask
from .index import Dataset, Raw, checked, open_records

SMALL_BYTES: Final = 8 << 20  # read through in 0.15 s before the run: every row is checked, weights are known
CHECKED: Final = 1000  # rows of a larger file
IMAGES_BYTES: Final = 4 << 20  # encoded images kept for the next row that shows them
_SLOT_IN_TEXT: Final = re.compile(r"\{\{\s*([^{}]*?)\s*\}\}")
_SYSTEM_ROLES: Final = ("system", "developer")
_IMAGE_TYPES: Final = ((b"\x89PNG", "png"), (b"\xff\xd8\xff", "jpeg"), (b"GIF8", "gif"), (b"RIFF", "webp"))

Columns = dict[str, Any]


class Rows:
    """The prompts of a file of rows."""

    def __init__(
        self, workload: Workload, seed: int, *, small_bytes: int = SMALL_BYTES, checked_rows: int = CHECKED
    ) -> None:
        self._records = open_records(workload.path, "workload.path")
        self._template = None if workload.template is None else filler(workload.template)
        self._images = Images(Path(workload.path).parent)
        self._small_bytes = small_bytes
        self._weighable = self._records.file.size <= small_bytes
        weights = list(checked(self._records, self._check, small_bytes, checked_rows))
        if not weights:
            raise PlanError(f"{workload.path} holds no records")
        self._dataset = Dataset(self._records, workload.order, seed)
        if any(weight is not None for weight in weights):
            filled = [1.0 if weight is None else weight for weight in weights]
            if not sum(filled):
                raise PlanError(f"at least one weight must be > 0 ({workload.path})")
            self._dataset.weigh(filled)

    def asks(self, worker: int, workers: int, first: int, phase: int) -> Iterator[Ask]:
        image = self._images.part
        for slot, offset, raw in self._dataset.select(worker, workers, first, phase):
            columns = self._columns(offset, raw)
            if "weight" in columns and not self._weighable:
                raise self._no_weights(offset)
            yield Ask(slot, self._prompt(offset, columns, image))

    def _check(self, offset: int, raw: Raw) -> float | None:
        """The row's weight. Raises PlanError if the row is no prompt."""
        columns = self._columns(offset, raw)
        self._prompt(offset, columns, self._images.there)
        if columns.get("weight") in (None, ""):
            return None
        if not self._weighable:
            raise self._no_weights(offset)
        try:
            weight = float(columns["weight"])
        except (TypeError, ValueError):
            weight = -1.0
        if not isfinite(weight) or weight < 0:
            raise self._bad(offset, f"weight must be a number >= 0, got {columns['weight']!r}")
        return weight

    def _columns(self, offset: int, raw: Raw) -> Columns:
        try:
            return self._records.columns(raw)
        except ValueError as error:
            raise self._bad(offset, str(error)) from error

    def _prompt(self, offset: int, columns: Columns, image: Callable[[str], Columns]) -> Prompt:
        try:
            return prompt_of(columns, self._template, image)
        except ValueError as error:
            raise self._bad(offset, str(error)) from error

    def _no_weights(self, offset: int) -> PlanError:
        return self._bad(
            offset,
            f"weights need a file of at most {self._small_bytes >> 20} MiB, as all of its rows are read before the run;"
            " split it into targets or repeat the rows instead",
        )

    def _bad(self, offset: int, what: str) -> PlanError:
        return PlanError(f"{self._records.file.where(offset)}: {what}")


def prompt_of(columns: Columns, template: Callable[[Columns], str] | None, image: Callable[[str], Columns]) -> Prompt:
    """The prompt that a row asks. Raises ValueError saying what is wrong with the row."""
    system = columns.get("system") or None
    if system is not None and not isinstance(system, str):
        raise ValueError(f"system must be text, got {system!r}")
    if template is not None:
        messages: tuple[Columns, ...] = ({"role": "user", "content": template(columns)},)
    elif columns.get("messages"):
        leading, messages = conversation(columns["messages"])
        system = system or leading
    else:
        prompt = columns.get("prompt")
        if not isinstance(prompt, str) or not prompt:
            raise ValueError(_NO_PROMPT.format(", ".join(columns)) if prompt is None else "prompt must be text")
        messages = ({"role": "user", "content": prompt},)
    if columns.get("image"):
        messages = _shown(messages, columns["image"], image)
    return Prompt(messages, system, limit_of(columns, "max_tokens", "output_tokens"), columns)


_NO_PROMPT: Final = "no prompt, no messages and no template (workload.template) for the columns: {}"


def conversation(messages: Any) -> tuple[str | None, tuple[Columns, ...]]:
    """(system prompt, user and assistant messages) of messages in OpenAI's form. Raises ValueError."""
    if isinstance(messages, str):  # a CSV cell
        try:
            messages = msgspec.json.decode(messages)
        except msgspec.DecodeError as error:
            raise ValueError(f"messages must be a JSON list ({error})") from error
    if not isinstance(messages, list):
        raise ValueError("messages must be a list")
    system: list[str] = []
    said: list[Columns] = []
    for number, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        content = message.get("content") if isinstance(message, dict) else None
        if role in _SYSTEM_ROLES and not said and isinstance(content, str):
            system.append(content)
        elif role in ("user", "assistant") and content and isinstance(content, str | list):
            said.append({"role": role, "content": content})
        else:
            raise ValueError(f"messages[{number}] must have role system (first), user or assistant, and content")
    if not said:
        raise ValueError("messages must hold a user message")
    return "\n\n".join(system) or None, tuple(said)


def limit_of(columns: Columns, *names: str) -> int | None:
    """The first of the columns that is there, as a number of tokens. Raises ValueError."""
    for name in names:
        value = columns.get(name)
        if value in (None, ""):
            continue
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = 0.0
        if not isfinite(number) or number < 1 or number != int(number) or isinstance(value, bool):
            raise ValueError(f"{name} must be an integer >= 1, got {value!r}")
        return int(number)
    return None


def filler(template: str) -> Callable[[Columns], str]:
    """The function that writes a row's columns over the `{{column}}`s of a text; it raises ValueError for one missing.

    Everything that is not text goes in as JSON. A brace pair that holds no name is an error now, not a prompt later.
    """
    parts = _SLOT_IN_TEXT.split(template)
    literals, names = parts[::2], parts[1::2]
    if "" in names or not names:
        raise PlanError("a template names columns as {{column}}, at least one (workload.template)")

    def fill(columns: Columns) -> str:
        pieces = [literals[0]]
        for name, literal in zip(names, literals[1:], strict=True):
            value = columns.get(name, _MISSING)
            if value is _MISSING:
                raise ValueError(f"no column {name!r} for the template, there are: {', '.join(columns)}")
            pieces.append(value if isinstance(value, str) else msgspec.json.encode(value).decode())
            pieces.append(literal)
        return "".join(pieces)

    return fill


_MISSING: Final = object()


class Images:
    """The image parts of messages; files are read relative to the prompts and sent as data: URLs."""

    def __init__(self, folder: Path, kept_bytes_max: int = IMAGES_BYTES) -> None:
        self._folder = folder
        self._kept_bytes_max = kept_bytes_max
        self._kept: dict[str, Columns] = {}
        self.kept_bytes = 0

    def part(self, name: str) -> Columns:
        """The content part that shows the image. Raises ValueError."""
        if _is_url(name):
            return _image_part(name)
        part = self._kept.get(name)
        if part is None:
            part = _image_part(self._encoded(name))
            self._keep(name, part)
        return part

    def there(self, name: str) -> Columns:
        """As `part`, without reading the image."""
        if not _is_url(name) and not (self._folder / name).is_file():
            raise ValueError(f"no such image: {self._folder / name}")
        return _image_part(name)

    def _encoded(self, name: str) -> str:
        try:
            content = (self._folder / name).read_bytes()
        except OSError as error:
            raise ValueError(f"cannot read the image {self._folder / name}: {error.strerror}") from error
        kind = next((kind for magic, kind in _IMAGE_TYPES if content.startswith(magic)), None)
        if kind is None:
            raise ValueError(f"{self._folder / name} is no PNG, JPEG, GIF or WebP")
        return f"data:image/{kind};base64,{b64encode(content).decode()}"

    def _keep(self, name: str, part: Columns) -> None:
        size = len(part["image_url"]["url"])
        if self.kept_bytes + size > self._kept_bytes_max:
            self._kept.clear()
            self.kept_bytes = 0
        self._kept[name] = part
        self.kept_bytes += size


def _is_url(name: str) -> bool:
    return name.startswith(("http://", "https://", "data:"))


def _image_part(url: str) -> Columns:
    return {"type": "image_url", "image_url": {"url": url}}


def _shown(messages: tuple[Columns, ...], images: Any, image: Callable[[str], Columns]) -> tuple[Columns, ...]:
    """The messages with the images in the last one of the user."""
    names = [images] if isinstance(images, str) else images
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"image must be a URL or path, or a list of them, got {images!r}")
    last = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=None)
    if last is None:
        raise ValueError("an image needs a user message to be in")
    content = messages[last]["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
    shown = {"role": "user", "content": [*parts, *map(image, names)]}
    return (*messages[:last], shown, *messages[last + 1 :])

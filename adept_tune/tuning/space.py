"""Search spaces: YAML files in, checked ranges and trial settings out.

A space names a method, ranges over its settings and points to try first. It may extend another space and change a
few lines of it. With `budget: N` the width follows from the prompt length, so every trial trains at most N numbers
and as nearly N as its prompt length allows. A prompt's rate may be told as a multiple of the root mean square of the
model's input embeddings (`relative_prompt_lr`), which differs by orders of magnitude between families of models.
"""

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from adept_tune.engine.config import TrialConfig
from adept_tune.errors import SpaceError
from adept_tune.methods import METHODS, InModel, Method, get_method
from adept_tune.methods.base import Sizes

Value = int | float | str | bool
Params = dict[str, Value]

# Trial settings that a space may name as they are; a method's own settings go by the method's names for them.
COMMON = (
    "batch_size",
    "warmup_steps",
    "clip_norm",
    "weight_decay",
    "dropout",
    "beta1",
    "beta2",
    "epsilon",
    "prompt_init",
    "prompt_text",
    "wide_start",
    "labels",
)
_INPUT_SIDE = ("dropout", "prompt_init", "prompt_text", "wide_start")  # nothing inside the model heeds these
_METHOD_FIELDS = ("prompt_length", "width", "prompt_lr", "offset_lr")
_SIZES = ("prompt_length", "width")
PROMPT_LR, RELATIVE_PROMPT_LR = "prompt_lr", "relative_prompt_lr"  # two ways to say one thing


def _number(value: object) -> object:
    """YAML 1.1 reads 1e-4 as a string; a person means a number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


_LARGEST = 1e15  # beyond it whole numbers are no longer exact

Number = Annotated[int | float, BeforeValidator(_number), Field(allow_inf_nan=False, ge=-_LARGEST, le=_LARGEST)]


class Range(BaseModel):
    """Numbers from low to high, both included."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    low: Number
    high: Number
    log: bool = False
    step: Number | None = None
    integer: bool = False

    def values(self) -> list[Value] | None:
        """All values where they are finitely many, else None."""
        step = self.step if self.step is not None else (1 if self.integer and not self.log else None)
        if self.low == self.high:
            return [self.low]
        if step is None:
            return list(range(int(self.low), int(self.high) + 1)) if self.integer else None
        count = math.floor((self.high - self.low) / step + 1e-9) + 1
        if self.integer:
            return [int(self.low + k * step) for k in range(count)]
        return [min(round(self.low + k * step, 12), self.high) for k in range(count)]  # 0.1 * 3 is not 0.3

    def corners(self) -> list[Value]:
        """The ends."""
        return [self.low, self.high]

    def contains(self, value: Value) -> bool:
        """Whether a value lies in the range (between two steps counts)."""
        return isinstance(value, int | float) and self.low <= value <= self.high

    def __str__(self) -> str:
        """As a person writes it."""
        kind = ", log" if self.log else f", step {self.step}" if self.step is not None else ""
        return f"[{self.low:g}, {self.high:g}{kind}]"


class Choices(BaseModel):
    """One of a few values."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    choices: tuple[Annotated[Value, BeforeValidator(lambda v: v)], ...] = Field(min_length=1)

    def values(self) -> list[Value] | None:
        """The choices."""
        return list(self.choices)

    def corners(self) -> list[Value]:
        """The choices."""
        return list(self.choices)

    def contains(self, value: Value) -> bool:
        """Whether a value is one of the choices."""
        return value in self.choices

    def __str__(self) -> str:
        """As a person writes it."""
        return "{" + ", ".join(str(choice) for choice in self.choices) + "}"


Dimension = Range | Choices


class SpaceFile(BaseModel):
    """A space as written, after `extends` has been followed."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    method: str
    budget: int | None = Field(default=None, ge=1)
    parameters: dict[str, Any]
    points: tuple[dict[str, Any], ...] = ()
    source: str | None = None


@dataclass(frozen=True)
class SearchSpace:
    """A checked space.

    Attributes:
        method: What is trained; one inside the model counts its parameters only when given a skeleton.
        dimensions: What is searched, by the method's names.
        fixed: Settings that differ from a trial's defaults but are not searched.
        budget: Most trained numbers a trial, or None.
        points: Configurations to try first.
        d_model: Width of the backbone's embeddings.
        source_length: Longest source of the task, in tokens.
        embedding_rms: Root mean square of the backbone's embeddings, which turns relative rates into rates; None, and
            counted as 1, until it is known.
    """

    method: Method | InModel
    dimensions: Mapping[str, Dimension]
    fixed: Params
    budget: int | None
    points: tuple[Params, ...]
    d_model: int
    source_length: int
    embedding_rms: float | None = None

    def at(self, embedding_rms: float | None) -> "SearchSpace":
        """The same for a backbone whose embeddings have that scale."""
        return replace(self, embedding_rms=embedding_rms)

    def settings(self, params: Params) -> dict[str, Value]:
        """Trial settings of a point of the space: rates as they are, the width derived where there is a budget."""
        names = self.method.parameters
        settings = {names.get(name, name): value for name, value in overlaid(self.fixed, params).items()}
        if RELATIVE_PROMPT_LR in settings:
            settings[PROMPT_LR] = float(settings.pop(RELATIVE_PROMPT_LR)) * (self.embedding_rms or 1.0)
        settings |= {size: 0 for size in _SIZES if size not in names.values()}
        if self.budget is not None and "width" in names.values():
            assert isinstance(self.method, Method), "a budget is of an input-side method"
            length = int(settings.get("prompt_length", TrialConfig.model_fields["prompt_length"].default))
            width = self.method.width_within(self.budget, length, self.d_model, self.source_length)
            settings["width"] = -1 if width is None else width
        return settings

    def config(self, params: Params, **others: Value) -> TrialConfig:
        """A trial's checked configuration; `others` fill what the space leaves open."""
        return TrialConfig.model_validate(others | self.settings(params))

    def num_parameters(self, params: Params) -> int:
        """Trained numbers of a point."""
        return self.method.num_parameters(self.sizes(params))

    def sizes(self, params: Params) -> Sizes:
        """Sizes of a point."""
        return self.config(params).sizes(self.d_model, self.source_length)

    def shown(self, params: Params) -> Params:
        """A point as people see it: with what is derived, by the method's names."""
        derived = [PROMPT_LR] if RELATIVE_PROMPT_LR in params and self.embedding_rms is not None else []
        derived += ["width"] if self.budget is not None else []
        settings, names = self.settings(params), self.method.parameters.items()
        return params | {name: settings[setting] for name, setting in names if setting in derived}

    def corners(self) -> Iterator[Params]:
        """Extreme points of the space, over the dimensions that set sizes; the others stay at their first end."""
        sizes = [name for name in self.dimensions if _field(name, self.method) in _SIZES]
        rest = {name: dim.corners()[0] for name, dim in self.dimensions.items() if name not in sizes}
        for values in product(*(self.dimensions[name].corners() for name in sizes)):
            yield rest | dict(zip(sizes, values, strict=True))

    def grid(self) -> list[Params]:
        """Every point of a finite space once, the first points first, whether or not they lie on the grid.

        Raises:
            SpaceError: A dimension has no finite set of values; names it.
        """
        columns = []
        for name, dimension in self.dimensions.items():
            values = dimension.values()
            if values is None:
                raise SpaceError(
                    f"{name}: {dimension} has no finite set of values; the grid sampler needs 'choices' or 'step'"
                )
            columns.append(values)
        points = [dict(zip(self.dimensions, values, strict=True)) for values in product(*columns)]
        return [*self.points, *(p for p in points if not any(_same(p, first) for first in self.points))]


def _distinct(points: Iterable[Params]) -> list[Params]:
    """The points in order, each once."""
    found: list[Params] = []
    for point in points:
        if not any(_same(point, other) for other in found):
            found.append(point)
    return found


def _same(one: Params, other: Params) -> bool:
    """Whether two points are equal but for rounding."""
    pairs = [(value, other[name]) for name, value in one.items()]
    return all(math.isclose(a, b) if isinstance(a, float) and isinstance(b, float | int) else a == b for a, b in pairs)


def space_folders() -> list[Path]:
    """Where named spaces are looked for: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    return [package / "search_spaces", package.parent / "search_spaces"]


def is_space(name: str) -> bool:
    """Whether there is a space of that name."""
    return any((folder / f"{name}.yaml").is_file() for folder in space_folders())


def find_space(name: str) -> Path:
    """The file of a space given by name or path.

    Raises:
        SpaceError: Neither; lists the named ones.
    """
    try:
        path = Path(name).expanduser()
        if path.suffix in (".yaml", ".yml"):
            if path.is_file():
                return path.resolve()
            raise SpaceError(f"space {name}: no such file")
        for folder in space_folders():
            if (folder / f"{name}.yaml").is_file():
                return (folder / f"{name}.yaml").resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, an unknown home, a NUL
        raise SpaceError(f"space {name[:80]!r}: {error}") from None
    known = sorted({path.stem for folder in space_folders() for path in folder.glob("*.yaml")})
    raise SpaceError(f"space {name!r} is unknown; choose one of {', '.join(known)}, or give a .yaml file")


def read_space(name: str) -> SpaceFile:
    """Read a space and what it extends, without knowing the model.

    Raises:
        SpaceError: Not readable, not a space, or extends itself.
    """
    path = find_space(name)
    merged = _read(path, ())
    try:
        return SpaceFile.model_validate(merged | {"source": path.name})
    except ValidationError as error:
        raise SpaceError(f"{path}: {_faults(error)}") from error


def settings_of(method: Method | InModel) -> list[str]:
    """Names of all settings that a trial of a method heeds, its own first."""
    ignored = _INPUT_SIDE if isinstance(method, InModel) else ()
    relative = [RELATIVE_PROMPT_LR] if PROMPT_LR in method.parameters else []
    return [*method.parameters, *relative, *(name for name in COMMON if name not in ignored)]


def resolve_space(
    file: SpaceFile, d_model: int, source_length: int, fixed: Mapping[str, Value] | None = None
) -> SearchSpace:
    """Check a space against its method and a model's width; all faults are told together.

    Args:
        file: The space as written.
        d_model: Width of the backbone's embeddings.
        source_length: Longest source of the task, in tokens.
        fixed: Settings from the command line; they take the place of ranges.

    Raises:
        SpaceError: With every fault found.
    """
    where = file.source or "space"
    faults: list[str] = []
    if file.method not in METHODS:
        raise SpaceError(f"{where}: method {file.method!r} is unknown; choose one of {', '.join(sorted(METHODS))}")
    method = get_method(file.method)
    dimensions: dict[str, Dimension] = {}
    settled: Params = {}
    written = overlaid(file.parameters, fixed or {})
    if not _is_open(written, PROMPT_LR) and not _is_open(written, RELATIVE_PROMPT_LR):
        faults.append(f"{PROMPT_LR}: {RELATIVE_PROMPT_LR} is given as well; give one of them")
    allowed = settings_of(method)
    for name, value in written.items():
        if value is None:  # an overlay takes a parameter out
            continue
        if name not in allowed:
            faults.append(f"{name}: unknown parameter{_hint(name, allowed)}; allowed: {', '.join(allowed)}")
            continue
        _place(name, value, method, dimensions, settled, faults)
    faults += _budget_faults(file, method, dimensions, settled, d_model, source_length)
    points = tuple(_point(point, dimensions, allowed, faults) for point in file.points)
    space = SearchSpace(method, dimensions, settled, file.budget, points, d_model, source_length)
    if not dimensions and not faults:
        faults.append("parameters: nothing to search; give at least one range or list of choices")
    if not faults:
        faults += _corner_faults(space)
    if faults:
        raise SpaceError(f"{where}:\n  " + "\n  ".join(dict.fromkeys(faults)))
    return replace(space, points=tuple(_distinct(points)))  # a fixed setting may have made two the same


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path in seen:
        raise SpaceError(f"{path}: extends itself through {' -> '.join(p.name for p in seen)}")
    try:
        content = yaml.safe_load(path.read_text())
    except Exception as error:  # PyYAML lets the errors of date, int and recursion through
        raise SpaceError(f"{path}: not readable as YAML ({error})") from error
    if not isinstance(content, dict):
        raise SpaceError(f"{path}: expected a mapping with 'method' and 'parameters', found {type(content).__name__}")
    if not isinstance(content.get("parameters") or {}, dict):
        raise SpaceError(f"{path}: parameters: expected a mapping, found {type(content['parameters']).__name__}")
    parent = content.pop("extends", None)
    if parent is None:
        return content
    beside = str(path.parent / f"{parent}.yaml")
    base = _read(find_space(beside if os.path.isfile(beside) else str(parent)), (*seen, path))
    changed = content.get("parameters") or {}
    parameters = overlaid(base.get("parameters") or {}, changed)
    merged = base | content | {"parameters": parameters}
    if "points" not in content and isinstance(points := base.get("points"), list):
        merged["points"] = [point for point in points if _may_stand(point, changed, parameters)]
    return merged


def _is_open(parameters: Mapping[str, Any], name: str) -> bool:
    """Whether nothing is said of a parameter."""
    return parameters.get(name) is None


def overlaid(parameters: Mapping[str, Any], changed: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters with some changed, in their order; a prompt's rate told in one way takes the place of the other."""
    places = {name: name for name in parameters}
    for one, other in ((PROMPT_LR, RELATIVE_PROMPT_LR), (RELATIVE_PROMPT_LR, PROMPT_LR)):
        if one in changed and other not in changed and other in parameters:
            places[other] = one
    return {places[name]: value for name, value in parameters.items()} | dict(changed)


def _may_stand(point: Any, changed: Mapping[str, Any], parameters: Mapping[str, Any]) -> bool:
    """Whether an inherited point lies inside the ranges and choices that an overlay changes; looked at as written."""
    for name, value in point.items() if isinstance(point, dict) else ():
        written, number = changed.get(name), _number(value)
        if name in (PROMPT_LR, RELATIVE_PROMPT_LR) and _is_open(parameters, name) and _searches_rate(parameters):
            return False
        if not isinstance(written, dict) or not isinstance(number, int | float):
            continue
        low, high = _number(written.get("low", number)), _number(written.get("high", number))
        if isinstance(low, int | float) and isinstance(high, int | float) and not low <= number <= high:
            return False
        choices = written.get("choices", [number])
        if isinstance(choices, list) and number not in [_number(choice) for choice in choices]:
            return False
    return True


def _searches_rate(parameters: Mapping[str, Any]) -> bool:
    """Whether a prompt's rate is searched, said in either way."""
    return any(isinstance(parameters.get(name), dict) for name in (PROMPT_LR, RELATIVE_PROMPT_LR))


def _field(name: str, method: Method | InModel) -> str:
    """The trial setting that a parameter is, or that it becomes."""
    return PROMPT_LR if name == RELATIVE_PROMPT_LR else method.parameters.get(name, name)


def _place(
    name: str,
    value: Any,
    method: Method | InModel,
    dimensions: dict[str, Dimension],
    settled: Params,
    faults: list[str],
) -> None:
    """Sort one written parameter into searched or fixed, or note what is wrong with it."""
    field = TrialConfig.model_fields[_field(name, method)]
    integer = field.annotation in (int, int | None)
    kind: Any = Annotated[field.annotation, field]
    check = TypeAdapter(kind).validate_python
    try:
        if not isinstance(value, dict):
            settled[name] = check(value if isinstance(value, bool) or field.annotation is str else _number(value))
        elif "choices" in value:
            dimensions[name] = Choices(choices=tuple(check(v) for v in Choices.model_validate(value).choices))
        elif not integer and field.annotation is not float:
            faults.append(f"{name}: not a number; list its values under 'choices'")
        else:
            span = Range.model_validate(value | {"integer": integer})
            fault = _range_fault(span)
            if fault:
                faults.append(f"{name}: {fault}")
                return
            for end in span.corners():
                check(end)
            dimensions[name] = span if not integer else _whole(span)
    except ValidationError as error:
        faults.append(f"{name}: " + "; ".join(_value_fault(e) for e in error.errors()))


def _value_fault(error: Any) -> str:
    """A fault of one value, or of one key of a range."""
    key = f"{error['loc'][0]}: " if error["loc"] and isinstance(error["loc"][0], str) else ""
    given = "" if error["type"] == "missing" else f"{error['input']!r}: "
    return f"{key}{given}{error['msg']}"


def _range_fault(span: Range) -> str | None:
    if span.low > span.high:
        return f"low={span.low:g} exceeds high={span.high:g}; swap them, or list values under 'choices'"
    if span.log and span.low <= 0:
        return f"low={span.low:g} on a log scale; it must be greater than 0"
    if span.step is not None and (span.log or span.step <= 0):
        return f"step={span.step:g}; it must be greater than 0 and not on a log scale"
    if span.integer and any(v is not None and v != int(v) for v in (span.low, span.high, span.step)):
        return f"{span} is not made of whole numbers"
    return None


def _whole(span: Range) -> Range:
    step = None if span.step is None else int(span.step)
    return span.model_copy(update={"low": int(span.low), "high": int(span.high), "step": step})


def _budget_faults(
    file: SpaceFile,
    method: Method | InModel,
    dimensions: dict[str, Dimension],
    settled: Params,
    d_model: int,
    source_length: int,
) -> list[str]:
    if file.budget is None:
        return []
    if isinstance(method, InModel):
        return [f"budget={file.budget}: method {method.name} has no prompt to trade for a width; take the budget out"]
    width = next((name for name, setting in method.parameters.items() if setting == "width"), None)
    if width is not None and (width in dimensions or width in settled):
        return [f"{width}: follows from budget={file.budget} and the prompt length; take it out, or the budget"]
    smallest = Sizes(1, 0, d_model, source_length)
    if file.budget < method.num_parameters(smallest):
        return [
            f"budget={file.budget}: below one prompt token, which takes {method.num_parameters(smallest)} numbers "
            f"at d={d_model}"
        ]
    return []


def _corner_faults(space: SearchSpace) -> list[str]:
    """Settings that a corner of the space would give a trial and a trial does not admit."""
    faults: dict[str, None] = {}
    for params in space.corners():
        try:
            config = space.config(params)
        except ValidationError as error:
            for fault in error.errors():
                faults[_explain(fault, params, space)] = None
            continue
        if isinstance(space.method, InModel):
            for name, field in space.method.parameters.items():
                if field in _SIZES and getattr(config, field) == 0:
                    faults[f"{name}=0: trains nothing; it must be at least 1"] = None
            continue
        num = space.method.num_parameters(config.sizes(space.d_model, space.source_length))
        if space.budget is not None and num > space.budget:
            faults[f"prompt_length={config.prompt_length}: takes {num} numbers, over budget={space.budget}"] = None
        if num == 0:
            faults[f"{params}: trains nothing; prompt_length and width are both 0"] = None
    return list(faults)


def _explain(fault: Any, params: Params, space: SearchSpace) -> str:
    setting = str(fault["loc"][0]) if fault["loc"] else "settings"
    if setting == "width" and space.budget is not None and isinstance(space.method, Method):
        spare = space.budget - space.method.num_parameters(Sizes(0, 0, space.d_model, space.source_length))
        length = space.settings(params)["prompt_length"]
        return (
            f"prompt_length={length}: leaves nothing of budget={space.budget} for a width; "
            f"at d={space.d_model} the longest prompt is {spare // space.d_model}"
        )
    public = {field: name for name, field in space.method.parameters.items()}
    return f"{public.get(setting, setting)}={fault['input']}: {fault['msg']}"


def _point(point: dict[str, Any], dimensions: dict[str, Dimension], allowed: list[str], faults: list[str]) -> Params:
    """A first point reduced to the searched dimensions; what is fixed or derived needs no place in it."""
    params: Params = {}
    for name, dimension in dimensions.items():
        value: Any = point.get(name) if isinstance(point.get(name), bool) else _number(point.get(name))
        if value is None:
            faults.append(f"points: {point} gives no {name}")
        elif not dimension.contains(value) or (_is_whole(dimension) and value != int(value)):
            faults.append(f"points: {name}={value} is outside {dimension}")
        else:
            params[name] = int(value) if _is_whole(dimension) else value
    faults += [f"points: unknown parameter {name}{_hint(name, allowed)}" for name in point if name not in allowed]
    return params


def _is_whole(dimension: Dimension) -> bool:
    return isinstance(dimension, Range) and dimension.integer


def _hint(name: str, allowed: list[str]) -> str:
    close = get_close_matches(name, allowed, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _faults(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(str(p) for p in e['loc'])}: {e['msg']}".lstrip(": ") for e in error.errors())


Sampler = Literal["tpe", "random", "gp", "grid"]

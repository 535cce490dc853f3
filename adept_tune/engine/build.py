"""Puts an engine together from the names of its parts."""

from collections.abc import Callable, Mapping

from torch import Tensor

from adept_tune.backbones import Backbone, BackboneInfo, load_backbone, load_tokenizer
from adept_tune.backbones.codec import TokenizerCodec
from adept_tune.backbones.load import Precision
from adept_tune.engine.engine import Engine
from adept_tune.engine.in_model import InModelEngine
from adept_tune.engine.lanes import Lanes
from adept_tune.engine.reading import Reader, never
from adept_tune.methods import INPUT_SIDE, InModel, Method
from adept_tune.tasks.tokens import TaskData

TrialEngine = Engine | InModelEngine


def build_engine(
    info: BackboneInfo,
    method: Method | InModel,
    data: TaskData,
    num_slots: int,
    *,
    device: str = "cpu",
    precision: Precision = "fp32",
    tokens_per_pass: int | None = None,
    num_lanes: int = 1,
    widest: tuple[int, int] = (0, 0),
    halted: Callable[[], bool] = never,
    start: Mapping[str, Tensor] | None = None,
) -> TrialEngine:
    """Load a backbone and its tokenizer, and make an engine over a task's tokens; see `Engine` for the rest.

    Args:
        info: The backbone.
        method: What is trained.
        data: The task's tokens, made with the backbone's tokenizer.
        num_slots: Trials that can be in at once; of a method inside the model each has a copy of it.
        device: ``cuda`` or ``cpu``.
        precision: Of the backbone and its activations.
        tokens_per_pass: Most tokens in one forward and backward; None fuses all.
        num_lanes: Passes at a time, for a CPU.
        widest: Longest prompt and widest bottleneck to make room for from the start.
        start: Tensors of an adapter that trials start from; None starts them from nothing.
        halted: Asked between two passes; where it says yes, a step or an evaluation is given up.

    Raises:
        BackboneError: The weights or the tokenizer cannot be read, or there is no such device.
        HubError: The Hub cannot be reached and they are not cached.
    """
    backbone = load_backbone(info, device, precision)
    codec, lanes = TokenizerCodec(load_tokenizer(info)), Lanes(num_lanes)

    def reader_over(driven: Backbone) -> Reader:
        return Reader(
            driven,
            INPUT_SIDE["prompt-tuning"] if isinstance(method, InModel) else method,  # of an empty prompt
            codec,
            data.metric,
            data.label_sets,
            data.label_texts,
            data.pad_id,
            data.also,
            data.max_target_length,
            lanes,
        )

    if isinstance(method, InModel):
        return InModelEngine(backbone, method, data, reader_over, num_slots, tokens_per_pass, halted=halted)
    reader = reader_over(backbone)
    return Engine(backbone, method, data, reader, num_slots, tokens_per_pass, widest=widest, halted=halted, start=start)

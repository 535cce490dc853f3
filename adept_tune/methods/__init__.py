"""What is trained on top of a frozen backbone.

An input-side method is stateless: it says which tensors it trains, how they start and how they change a stack of
embeddings. Who owns the tensors (the engine, an exported adapter, a test) is not its concern, so each
formula stands here once. A method inside the model says what it puts into a private copy of the model.
"""

from adept_tune.errors import MethodError
from adept_tune.methods.adept import Adept
from adept_tune.methods.base import Method, Sizes
from adept_tune.methods.bitfit import BitFit
from adept_tune.methods.dept import Dept
from adept_tune.methods.full import Full
from adept_tune.methods.houlsby import Houlsby
from adept_tune.methods.ia3 import Ia3
from adept_tune.methods.in_model import InModel
from adept_tune.methods.lora import Lora
from adept_tune.methods.prefix_tuning import PrefixTuning
from adept_tune.methods.prompt_tuning import PromptTuning

__all__ = ["INPUT_SIDE", "IN_MODEL", "METHODS", "InModel", "Method", "Sizes", "get_method"]

INPUT_SIDE: dict[str, Method] = {
    "adept": Adept(),
    "dept": Dept(),
    "prompt-tuning": PromptTuning(),
}

IN_MODEL: dict[str, InModel] = {
    "lora": Lora(),
    "ia3": Ia3(),
    "prefix-tuning": PrefixTuning(),
    "bitfit": BitFit(),
    "houlsby": Houlsby(),
    "full": Full(),
}

METHODS: dict[str, Method | InModel] = {**INPUT_SIDE, **IN_MODEL}


def get_method(name: str) -> Method | InModel:
    """Look a method up by the name the command line uses.

    Raises:
        MethodError: No such method; the message lists the choices.
    """
    try:
        return METHODS[name]
    except KeyError:
        raise MethodError(f"method {name!r} is unknown; choose one of {', '.join(sorted(METHODS))}") from None

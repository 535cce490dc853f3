"""What is trained on top of a frozen backbone's input embeddings.

A method is stateless: it says which tensors it trains, how they start and how they change a stack of
embeddings. Who owns the tensors (the engine, an exported adapter, a test) is not its concern, so each
formula stands here once.
"""

from adept_tune.errors import MethodError
from adept_tune.methods.adept import Adept
from adept_tune.methods.base import Method, Sizes
from adept_tune.methods.dept import Dept
from adept_tune.methods.prompt_tuning import PromptTuning

__all__ = ["METHODS", "Method", "Sizes", "get_method"]

METHODS: dict[str, Method] = {
    "adept": Adept(),
    "dept": Dept(),
    "prompt-tuning": PromptTuning(),
}


def get_method(name: str) -> Method:
    """Look a method up by the name the command line uses.

    Raises:
        MethodError: No such method; the message lists the choices.
    """
    try:
        return METHODS[name]
    except KeyError:
        raise MethodError(f"method {name!r} is unknown; choose one of {', '.join(sorted(METHODS))}") from None

"""Names of models: what `model.name` may be, and the configuration class of each."""

from pretrain.models.poyo import Poyo, PoyoConfig

MODELS: dict[str, tuple[type, type]] = {"poyo": (PoyoConfig, Poyo)}

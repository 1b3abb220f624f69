"""Options of the commands that train full models; cheap to import."""

from dataclasses import dataclass

from ...cache.common.fields import option
from ..encoders.prompts import DEFAULT_TEMPLATE


@dataclass(frozen=True)
class WeightsOptions:
    """What an AlexNet starts from."""

    PANEL = "Model"

    alexnet_weights: str = option(
        "imagenet",
        choices=("imagenet", "random"),
        closed=False,
        metavar="imagenet|random|FILE",
        help="What AlexNet starts from: torchvision's ImageNet weights, which are downloaded, "
        "random ones, or a state_dict in a file.",
    )


@dataclass(frozen=True)
class BackboneOptions(WeightsOptions):
    """The full model, and the images that it is trained on."""

    dataset: str | None = option(
        None, panel="Dataset", metavar="DATASET", help="A dataset, as extract takes it."
    )
    backbone: str = option(
        "clip",
        choices=("clip", "alexnet"),
        help="What is trained, every parameter of it: clip with CLIP's loss, or alexnet, a "
        "classifier, with cross-entropy.",
    )
    template: str = option(
        DEFAULT_TEMPLATE,
        flags=("--prompt",),
        metavar="TEMPLATE",
        help="Template of the class prompts.",
    )
    keep_model: bool = option(
        False, panel="Output", help="Write the parameters of the best round into the run."
    )

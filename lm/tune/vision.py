"""What the data has to know of a model's vision."""

from typing import Any

from lm.model.config import Vision
from lm.text.image_tokens import ImageTokens


def image_tokens(vision: Vision) -> ImageTokens:
    """How an image stands in the ids that a model with this vision reads."""
    return ImageTokens(
        vision.image_token, vision.soft_tokens, vision.begin_token, vision.end_token, vision.separator, vision.prefix
    )


def captions_for(vision: Vision) -> dict[str, Any]:
    """The fields of Captions that follow from a model's vision: Captions(records, **captions_for(vision))."""
    return {"image_tokens": image_tokens(vision), "size": vision.image_size, "resample": vision.resample}

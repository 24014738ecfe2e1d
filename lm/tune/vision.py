"""What the data has to know of a model's eyes."""

from typing import Any

from lm.model.config import Vision
from lm.text.pictures import PictureTokens


def picture_tokens(vision: Vision) -> PictureTokens:
    """How a picture stands in the ids that a model with these eyes reads."""
    return PictureTokens(
        vision.image_token, vision.soft_tokens, vision.begin_token, vision.end_token, vision.separator, vision.prefix
    )


def captions_for(vision: Vision) -> dict[str, Any]:
    """The fields of Captions that follow from a model's eyes: Captions(records, **captions_for(vision))."""
    return {"pictures": picture_tokens(vision), "size": vision.image_size, "resample": vision.resample}

#!/bin/sh
# tensorflow-datasets cannot leave a list of images as they are stored, where it is read without TensorFlow.
#
# as_data_source(decoders={"images": tfds.decode.SkipDecoding()}) gives the encoded bytes of an Image feature; of a Sequence
# of Image it fails with AttributeError: 'SkipDecoding' object has no attribute 'decode_batch_example_np'. The decoder has
# that method for TensorFlow alone (decode_batch_example), and decode_example_np for a single value. Seen with
# tensorflow-datasets 4.9.10. A subclass that gives back what it is given is enough.
# Needs Python 3.11 to 3.13 and PyPI; exits with 0 while it is so, and with 1 when it has changed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check tensorflow-datasets==4.9.10 importlib_resources==7.1.0 \
    pillow==13.0.0 array_record==0.8.6
"$folder/venv/bin/python" - "$folder/data" 2> /dev/null <<'END'
import io
import sys

import tensorflow_datasets as tfds
from PIL import Image


def png() -> io.BytesIO:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    return io.BytesIO(file.getvalue())


class Pairs(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        image = tfds.features.Image(shape=(8, 8, 3), encoding_format="png")
        features = tfds.features.FeaturesDict({"image": image, "images": tfds.features.Sequence(image)})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": iter([(0, {"image": png(), "images": [png(), png()]})])}

    def _generate_examples(self):
        raise NotImplementedError


builder = Pairs(data_dir=sys.argv[1], file_format="array_record")
builder.download_and_prepare()
skip = tfds.decode.SkipDecoding()
one = builder.as_data_source("train", decoders={"image": skip})[0]["image"]
assert isinstance(one, bytes) and one == png().getvalue()
try:
    builder.as_data_source("train", decoders={"images": skip})[0]
except AttributeError as error:
    print(f"tensorflow-datasets {tfds.__version__}: one image is read as stored, a list of them gives {error}")
else:
    raise SystemExit("a list of images is read as stored")
END

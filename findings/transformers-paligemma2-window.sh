#!/bin/sh
# transformers joins an image's block and a sliding window in one way for Gemma 3 and in another for PaliGemma 2.
#
# In Gemma 3's layers with a window a soft token sees later ones of its image however far, but of what is before it only
# what the window holds, its own image included: window AND (causal OR same block). PaliGemma 2, whose text model is
# Gemma 2 with windows in every second layer, gives its prefix (image and prompt) to the same function in another
# argument, and there it is (window AND causal) OR same block: the whole prefix is seen, windows notwithstanding. Who reads
# one of the two and builds the other's mask alike gets other logits, as soon as a prefix is longer than the window.
# Seen with transformers 5.23.0 and torch 2.13.0, of twelve tokens in one block and a window of 4: in Gemma 3's mask the last
# one sees 4 of the block, in PaliGemma 2's 12.
# Needs Python 3.11 or newer and PyPI; exits with 0 while it is so, and with 1 when it has changed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0 torch==2.13.0
"$folder/venv/bin/python" - <<'END'
import torch
import transformers

tower = dict(model_type="siglip_vision_model", hidden_size=8, intermediate_size=8, num_hidden_layers=1, image_size=6)
tower |= dict(num_attention_heads=2, patch_size=2, vision_use_head=False)
text = dict(vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, head_dim=8)
text |= dict(num_key_value_heads=1, sliding_window=4, layer_types=["sliding_attention", "full_attention"])
SOFT, IMAGE = 9, 30


def seen(kind, config, ids, types):
    """How many tokens the last one of the block looks at in the layer with a window."""
    torch.manual_seed(0)
    config._attn_implementation = "eager"
    model = kind(config).eval()
    with torch.no_grad():
        pixels = torch.zeros(1, 3, 6, 6)
        out = model(input_ids=ids, token_type_ids=types, pixel_values=pixels, output_attentions=True, use_cache=False)
    return int((out.attentions[0][0, 0, 11] > 0).sum())


nine = torch.full((1, SOFT), IMAGE)
gemma = transformers.Gemma3Config(
    text_config=dict(text, model_type="gemma3_text"), vision_config=tower, mm_tokens_per_image=SOFT,
    image_token_index=IMAGE, boi_token_index=28, eoi_token_index=29,
)
ids = torch.cat([torch.tensor([[1, 2, 3]]), nine], 1)  # the last soft token is number 11
first = seen(transformers.Gemma3ForConditionalGeneration, gemma, ids, (ids == IMAGE).long())
pali = transformers.PaliGemmaConfig(
    text_config=dict(text, model_type="gemma2"), vision_config=dict(tower, projection_dim=16), projection_dim=16,
    hidden_size=16, image_token_index=IMAGE,
)
ids = torch.cat([nine, torch.tensor([[1, 2, 3]])], 1)  # a prefix of twelve
second = seen(transformers.PaliGemmaForConditionalGeneration, pali, ids, torch.zeros_like(ids))
print(f"transformers {transformers.__version__}, a window of 4: the last token of a block sees {first} in Gemma 3's mask,")
print(f"{second} in PaliGemma 2's")
assert (first, second) == (4, 12), (first, second)
END

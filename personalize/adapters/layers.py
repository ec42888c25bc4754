"""Kinds of layers by the names of their parameters, for --l2_layers and --measure_layers.

    cross_attn     where text enters: keys, values, queries and outputs of the UNet's attn2; of
                   SD-3's joint attention the text's side
    self_attn      attn1 of the UNet; of SD-3's joint attention the picture's side
    feed_forward   the two linear layers after attention
    conv           convolutions of residual blocks, up- and downsamplers, first and last layer
    norm           scales and shifts of normalization layers
    time           what the noise level enters through
    text_encoder   text encoders and new words
    other          the rest, such as proj_in and proj_out around attention

A name belongs to the first kind whose expression is found in it (toy2d/runs/layers.py).
"""

LAYERS = {
    "text_encoder": r"^text_encoder",
    "cross_attn": r"^unet\..*\.attn2\.|\.attn\.(add_[qkv]_proj|to_add_out)",
    "self_attn": r"\.attn[12]?\.",
    "feed_forward": r"\.ff(_context)?\.",
    "conv": r"\.conv(1|2|_in|_out|_shortcut)?(\.|$)",
    "norm": r"norm",
    "time": r"\.(time_|add_embedding)",
}

"""Names of the graphs' tensors: written by export, fed by the server, listed in config.pbtxt."""

JOIN = ("user_row", "item_row")
"""Entity views, `levi`: rows of both sides as they are stored, items' [B, W], users' [B, W] or one [1, W] for all."""

ENCODER = ("input_ids", "attention_mask", "embedding", "codes", "side")
"""Entity views, `levi_encoder`: tokens [B, T] and mask, id embedding and bias [B, E + 1], codes [B, C], side [B]."""

PAIR = ("input_ids", "attention_mask", "user_row", "user_codes", "item_row", "item_codes")
"""Pair views, `levi`: tokens [B, T] and mask, each side's id embedding and bias [B, E + 1] and codes [B, C]."""

MASK = "attention_mask"
"""The one tensor that tells tokens (1) from padding (0)."""

RATINGS = ("head_ratings", "rating")
"""Outputs of `levi`: [B, n] unclipped and [B], their weighted mean, clipped."""

ROW = ("row",)
"""Output of `levi_encoder`: [B, W]."""

SENTENCE = frozenset({"input_ids", "attention_mask"})
"""Tensors whose second axis is the padded sentence length."""

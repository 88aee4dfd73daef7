"""PyTorch's own transformer with the weights of an Adder: the oracle of the tests, the opponent of the benchmark."""
import warnings
from inspect import signature

import torch
import torch.nn as nn


@torch.no_grad()
def copy_attention(ours, theirs):
    theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]))
    theirs.out_proj.weight.copy_(ours.output.weight)
    theirs.in_proj_bias.zero_()
    theirs.out_proj.bias.zero_()


def torch_attention(ours):
    """An nn.MultiheadAttention that computes what our MultiHeadAttention does."""
    theirs = nn.MultiheadAttention(ours.query.in_features, ours.n_head, batch_first=True).to(ours.query.weight.dtype)
    copy_attention(ours, theirs)
    return theirs


class TorchAdder(nn.Module):
    """The embeddings and logits of an Adder around a torch.nn.Transformer: pre-norm, ReLU, no dropout."""

    def __init__(self, ours):
        super().__init__()
        self.config = ours.config
        self.token_embedding = ours.token_embedding
        self.source_position = ours.source_position
        self.target_position = ours.target_position
        self.to_logits = ours.to_logits
        sizes = [ours.config[name] for name in ("d_model", "n_head", "n_layer", "n_layer", "d_ff")]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="enable_nested_tensor")
            self.transformer = nn.Transformer(*sizes, dropout=0.0, batch_first=True, norm_first=True)
        self.transformer.to(ours.to_logits.weight.dtype)
        encoder = self.transformer.encoder
        decoder = self.transformer.decoder
        pairs = [(ours.encoder_norm, encoder.norm), (ours.decoder_norm, decoder.norm)]
        for block, theirs in zip([*ours.encoder, *ours.decoder], [*encoder.layers, *decoder.layers]):
            copy_attention(block.self_attention, theirs.self_attn)
            pairs += [(block.feed_forward[0], theirs.linear1), (block.feed_forward[2], theirs.linear2)]
            pairs += [(block.norm1, theirs.norm1), (block.norm2, theirs.norm2)]
        for block, theirs in zip(ours.decoder, decoder.layers):
            copy_attention(block.cross_attention, theirs.multihead_attn)
            pairs += [(block.norm3, theirs.norm3)]
        for module, theirs in pairs:
            theirs.load_state_dict(module.state_dict())

    def forward(self, source, target):
        start = torch.full_like(target[:, :1], 11)
        answer = torch.cat([start, target[:, :-1]], dim=1)
        x = self.token_embedding(source) + self.source_position.weight
        y = self.token_embedding(answer) + self.target_position.weight
        mask = nn.Transformer.generate_square_subsequent_mask(answer.shape[1]).to(y)
        known = signature(self.transformer.forward).parameters
        options = {"tgt_is_causal": True} if "tgt_is_causal" in known else {}  # torch 2.0 finds out by itself
        return self.to_logits(self.transformer(x, y, tgt_mask=mask, **options))
